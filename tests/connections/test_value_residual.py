"""Value residuals: values of the first attention in every other, and the contract with a branch."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import levada
from levada import ValueResidual
from levada._errors import UsageError
from levada.blocks import Attention, FeedForward

DIM, HEADS = 8, 2


def transformer(depth: int = 6, *, seed: int = 0, dtype=torch.float64, connection=ValueResidual, **options):
    """Attention and feed-forward in turn, with the numbers that are learned off their start."""
    torch.manual_seed(seed)
    branches = [Attention(DIM, heads=HEADS, causal=True) if i % 2 == 0 else FeedForward(DIM) for i in range(depth)]
    stack = levada.Stack(branches, connection, dim=DIM, **options)
    return stack.to(dtype)


def moved(stack: levada.Stack) -> levada.Stack:
    with torch.no_grad():
        for layer in stack:
            for parameter in layer.connection.parameters():
                parameter.add_(0.3 * torch.randn(1))
    return stack


def tokens(*shape: int, dtype=torch.float64) -> Tensor:
    return torch.randn(*shape, DIM, generator=torch.Generator().manual_seed(5)).to(dtype)


def by_hand(stack: levada.Stack, x: Tensor, weights) -> Tensor:
    """The same network as a loop, with attention written as a sum over earlier tokens."""
    first = None
    for place, layer in enumerate(stack):
        branch = layer.branch
        if isinstance(branch, FeedForward):
            x = x + branch(x)
            continue
        y = branch.norm(x)
        v = branch.value(y)
        if first is None:
            first, mixed = v, v
        else:
            a, b = weights(place)
            mixed = a * first + b * v
        heads = []
        for part in range(HEADS):
            lanes = slice(part * DIM // HEADS, (part + 1) * DIM // HEADS)
            scores = branch.query(y)[..., lanes] @ branch.key(y)[..., lanes].mT / (DIM // HEADS) ** 0.5
            later = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
            heads.append(scores.masked_fill(later, -torch.inf).softmax(-1) @ mixed[..., lanes])
        x = x + branch.output(torch.cat(heads, -1))
    return x


def gradients(stack: nn.Module, x: Tensor, function=None) -> list[Tensor]:
    x = x.detach().requires_grad_()
    parameters = list(stack.parameters())
    return list(torch.autograd.grad((function or stack)(x).square().sum(), [x, *parameters]))


@pytest.mark.parametrize("form", ["learned", "fixed", "gated"])
def test_values_are_mixed_as_the_equation_says(form):
    stack, x = moved(transformer(weights=(0.7, 0.3), form=form)), tokens(2, 5)

    def weights(place: int):
        connection = stack[place].connection
        if form == "fixed":
            return 0.7, 0.3
        if form == "gated":
            return 1 - connection.gate.sigmoid(), connection.gate.sigmoid()
        return connection.first_weight, connection.own_weight

    torch.testing.assert_close(stack(x), by_hand(stack, x, weights), rtol=1e-12, atol=1e-12)
    expected = gradients(stack, x, lambda x: by_hand(stack, x, weights))
    torch.testing.assert_close(gradients(stack, x), expected, rtol=1e-10, atol=1e-10)


def test_a_layer_by_hand():
    class Doubled(nn.Module):
        mixes_values = True

        def forward(self, x: Tensor, mix_values) -> Tensor:
            return mix_values(2 * x)

    stack = levada.Stack([Doubled(), nn.Identity(), Doubled()], ValueResidual, dim=1, weights=(3.0, 5.0), form="fixed")
    # 1 + 2 = 3, v_1 = 2;  3 + 3 = 6;  6 + 3 * 2 + 5 * 12 = 72
    assert stack(torch.ones(1, 1)).item() == 72


def test_with_none_of_the_first_values_it_is_residual():
    x, residual = tokens(2, 5), transformer(connection=levada.Residual)
    assert torch.equal(transformer(weights=(0.0, 1.0))(x), residual(x))
    stack = transformer()
    assert not torch.allclose(stack(x), residual(x), rtol=1e-3)
    for layer in moved(stack):
        layer.connection.start_as_residual()
    assert torch.equal(stack(x), residual(x))


def test_what_is_learned_and_where():
    def names(**options) -> list[str]:
        stack = levada.Stack([nn.Identity() for _ in range(6)], ValueResidual, dim=DIM, **options)
        return [name.replace("layers.", "").replace("connection.", "") for name, _ in stack.named_parameters()]

    assert names() == ["2.first_weight", "2.own_weight", "4.first_weight", "4.own_weight"]
    assert names(form="gated", first=1, period=3) == ["4.gate"]
    assert names(form="gated", period=1) == [f"{i}.gate" for i in range(1, 6)]
    assert names(form="fixed") == []
    first, own = ValueResidual(DIM, layer=2, depth=3).parameters()
    assert (first.item(), own.item()) == (0.5, 0.5)
    assert ValueResidual(DIM, form="gated", weights=(0.75, 0.25), layer=2, depth=3).gate.sigmoid().item() == 0.25
    stack = transformer()
    groups = {group["name"]: {id(p) for p in group["params"]} for group in levada.parameter_groups(stack)}
    assert {id(p) for layer in stack for p in layer.connection.parameters()} <= groups["adamw, not decayed"]


def test_before_the_first_attention_there_are_no_values():
    torch.manual_seed(0)
    branches = [FeedForward(DIM), Attention(DIM, heads=HEADS), FeedForward(DIM), Attention(DIM, heads=HEADS)]
    stack = levada.Stack(branches, ValueResidual, dim=DIM, first=1)
    state = stack[0].connection.begin(tokens(2, 5, dtype=torch.float32))
    held = []
    for layer in stack:
        state = layer(state)
        held.append(state[1])
    assert held[0] is None
    assert held[1].shape == (2, 5, DIM)
    assert held[2] is held[1], "values pass a branch without attention untouched"
    assert held[3] is held[1]


def test_masks_and_what_else_a_branch_returns():
    class Weighed(nn.Module):
        mixes_values = True

        def __init__(self):
            super().__init__()
            self.inner = Attention(DIM, heads=HEADS)

        def forward(self, x, mask, mix_values=None):
            return self.inner(x, mask, mix_values=mix_values), mask.sum()

    torch.manual_seed(0)
    stack = levada.Stack([Weighed(), Weighed()], ValueResidual, dim=DIM, period=1).double()
    x, mask = tokens(2, 5), torch.ones(5, 5, dtype=torch.bool).tril()
    y, extras = stack(x, mask)
    assert [extra[0].item() for extra in extras] == [15, 15]
    twin = levada.Stack([w.branch.inner for w in stack], ValueResidual, dim=DIM, period=1).double()
    assert torch.equal(twin(x, mask), y)
    assert not torch.allclose(twin(x), y)


class Recomputed(nn.Module):
    """An attention that keeps nothing for the backward pass, as one makes it by a wrapper."""

    mixes_values = True

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor, mix_values=None) -> Tensor:
        return checkpoint(self.inner, x, mix_values=mix_values, use_reentrant=False)


def test_recomputing_a_branch_gives_the_same_gradients_and_leaves_nothing_behind():
    stack, x = moved(transformer()), tokens(2, 5)
    expected = gradients(stack, x)
    for layer in stack:
        if isinstance(layer.branch, Attention):
            layer.branch = Recomputed(layer.branch)
    torch.testing.assert_close(gradients(stack, x), expected)
    made: list[weakref.ref] = []
    handle = stack[2].branch.inner.value.register_forward_hook(lambda *given: made.append(weakref.ref(given[-1])))
    y = stack(x)
    gc.collect()
    assert [ref() for ref in made] == [None], "what is computed again need not be kept"
    y.sum().backward(retain_graph=True)
    gc.collect()
    assert [ref() for ref in made] == [None, None]
    handle.remove()


@pytest.mark.parametrize("segments", [1, 2, 5])
def test_checkpointed_segments_give_the_same_gradients(segments):
    stack, x = moved(transformer()), tokens(2, 5)
    expected = gradients(stack, x)
    stack.segments = segments
    torch.testing.assert_close(gradients(stack, x), expected)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_compiled_layers_and_compiled_branches_compute_the_same():
    x, graphs = tokens(2, 5, dtype=torch.float32), []
    stack = moved(transformer(10, dtype=torch.float32))
    expected = gradients(stack, x)

    def counting(graph, inputs):
        graphs.append(graph)
        return graph.forward

    torch.compiler.reset()
    twin = transformer(10, dtype=torch.float32, compile={"backend": counting})
    twin.load_state_dict(stack.state_dict())
    torch.testing.assert_close(gradients(twin, x), expected, rtol=1e-4, atol=1e-5)
    assert len(graphs) == 3, "the first attention, another, and a feed-forward"
    for layer in stack:
        layer.branch.compile(backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(gradients(stack, x), expected, rtol=1e-4, atol=1e-5)


def test_a_network_can_be_exported():
    net = levada.networks.transformer(4, 16, vocabulary=20, connection=ValueResidual).eval()
    x = torch.randint(0, 20, (2, 7))
    exported = torch.export.export(net, (x,)).module()
    torch.testing.assert_close(exported(x), net(x))


class Wrapped(nn.Module):
    """A wrapper as it should be written."""

    mixes_values = True

    def __init__(self) -> None:
        super().__init__()
        self.attention = Attention(DIM, heads=HEADS)

    def forward(self, x: Tensor, mix_values=None) -> Tensor:
        return self.attention(x, mix_values=mix_values)


@pytest.mark.parametrize("place", [0, 2])
@pytest.mark.parametrize("compile", [False, {"backend": "eager"}])
def test_a_wrapper_that_hides_an_attention_is_refused(place, compile):
    def stack(wrapper: nn.Module, **options) -> levada.Stack:
        made = [Attention(DIM, heads=HEADS), FeedForward(DIM), Attention(DIM, heads=HEADS), FeedForward(DIM)]
        made[place] = wrapper
        return levada.Stack(made, ValueResidual, dim=DIM, **options)

    x = tokens(2, 5, dtype=torch.float32)
    hidden = nn.Sequential(Attention(DIM, heads=HEADS), nn.Identity())
    expected = UsageError if compile is False else torch._dynamo.exc.Unsupported
    with torch.no_grad(), pytest.raises(expected) as caught:
        stack(hidden, compile=compile)(x)
    if compile is False:
        assert f"Sequential, the branch of layer {place}, holds an attention that mixes values" in str(caught.value)
        net = stack(Wrapped())
        net(x).sum().backward()
        assert all(p.grad is not None for p in net.parameters())
        hidden[0].mixes_values = False  # that it takes no part is said
        stack(hidden)(x)


def test_a_network_in_which_nothing_mixes_says_so_once():
    branches = [nn.Linear(DIM, DIM) for _ in range(4)]
    stack, x = levada.Stack(branches, ValueResidual, dim=DIM), tokens(2, 5, dtype=torch.float32)
    with pytest.warns(UserWarning, match="no branch of the network mixed values, so that it is residual"):
        stack(x)
    stack(x)  # in these tests any further warning is an error
    levada.Stack(branches, ValueResidual, dim=DIM, form="fixed")(x)
    levada.Stack(branches[:2], ValueResidual, dim=DIM)(x)  # has nothing to learn


def test_inputs_that_do_not_fit():
    stack = transformer(dtype=torch.float32)
    with pytest.raises(UsageError, match="ValueResidual: the input must be of floating point"):
        stack(torch.zeros(2, 5, DIM, dtype=torch.int64))
    with pytest.raises(UsageError, match=r"ValueResidual: the input must have 8 channels at axis -1, got \(2, 5, 6\)"):
        stack(torch.zeros(2, 5, 6))
    with pytest.raises(UsageError, match=r"Attention: the input must be of width 8 on its last axis, got \(2, 5, 6\)"):
        stack[0].branch(torch.zeros(2, 5, 6))


@pytest.mark.parametrize("form", ["learned", "fixed", "gated"])
@pytest.mark.parametrize("shared", [torch.bfloat16, torch.float32])
def test_values_keep_their_type_beside_numbers_in_float32(form, shared):
    first, own = tokens(2, 5), tokens(5, 2).mT.reshape(2, 5, DIM)
    connection = ValueResidual(DIM, form=form, layer=2, depth=4)
    mixed = connection.mix(first.to(shared), own.to(torch.bfloat16))
    assert mixed.dtype == torch.bfloat16
    torch.testing.assert_close(mixed.double(), (first + own) / 2, rtol=0.02, atol=0.02)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"form": "free"}, "form must be 'learned', 'fixed' or 'gated', got 'free'"),
        ({"period": 0}, "period must be at least 1, got 0"),
        ({"first": -1}, "first must be at least 0, got -1"),
        ({"weights": 0.5}, "weights must be two numbers, of the first values and of the layer's own, got 0.5"),
        ({"weights": (0.5, float("nan"))}, r"weights must be two numbers, .* got \(0.5, nan\)"),
        ({"weights": (0.5, 0.5, 0.5)}, "weights must be two numbers"),
        ({"weights": (0.0, 1.0), "form": "gated"}, r"must be positive and sum to 1, got \(0.0, 1.0\)\. Change them"),
        ({"weights": (1.0, 0.5), "form": "gated"}, "must be positive and sum to 1"),
    ],
)
def test_bad_options(options, words):
    with pytest.raises(UsageError, match=f"^ValueResidual: .*{words}"):
        ValueResidual(DIM, **options)


@pytest.mark.parametrize("options", [{"form": "gated"}, {"form": "fixed"}])
def test_what_cannot_be_residual_says_so(options):
    with pytest.raises(UsageError, match=r"first values are always mixed in.* Use form='learned'\."):
        ValueResidual(DIM, **options).start_as_residual()
    ValueResidual(DIM, form="fixed", weights=(0.0, 1.0)).start_as_residual()


def test_branches_that_do_not_fit():
    class Forgetful(nn.Linear):
        mixes_values = True

        def forward(self, x, mix_values):
            return super().forward(x)

    x = tokens(2, 5, dtype=torch.float32)
    with pytest.raises(UsageError, match=r"must apply mix_values to its values, and Forgetful of layer 0 does not\. "):
        levada.Stack([Forgetful(DIM, DIM)], ValueResidual, dim=DIM)(x)
    with pytest.raises(UsageError, match=r"branch of layer 1 mixes values.* Pass first=, .* and period="):
        levada.Stack([Attention(DIM, heads=2) for _ in range(2)], ValueResidual, dim=DIM)(x)

    class Narrow(nn.Linear):
        mixes_values = True

        def forward(self, x, mix_values):
            mix_values(super().forward(x))
            return x

    with pytest.raises(UsageError, match=r"layer 1 have \(2, 5, 4\), the first ones \(2, 5, 8\)\. Use as many heads"):
        levada.Stack([Narrow(DIM, DIM), Narrow(DIM, 4)], ValueResidual, dim=DIM, period=1)(x)
