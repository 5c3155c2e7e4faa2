"""Connections that look back over depth, and streams without mixing, against their equations written out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import levada
from levada import (
    AttentionResidual,
    DepthWeightedAverage,
    GatedResidual,
    IdentityHyperConnection,
    InputResidual,
    LearnedAugmentedResidual,
    MultiwayDynamicDense,
    Residual,
    Stack,
)
from levada._errors import UsageError
from levada.connections.depth_attention import DepthAttention

DIM, DEPTH = 6, 5


def branches(depth=DEPTH, first=nn.Identity):
    torch.manual_seed(0)
    return [nn.Sequential(first(DIM), nn.Linear(DIM, DIM), nn.Tanh()) for _ in range(depth)]


def build(connection, depth=DEPTH, first=nn.Identity, **options) -> Stack:
    return Stack(branches(depth, first), connection, dim=DIM, **options).double()


def moved(stack: Stack) -> Stack:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for module in [*(layer.connection for layer in stack), stack.output]:
            for parameter in module.parameters():
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return stack


def batch() -> Tensor:
    return torch.randn(4, DIM, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def rms(x: Tensor) -> Tensor:
    return (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()


def attended(query: Tensor, sources: list[Tensor]) -> Tensor:
    rows = []
    for row in range(len(sources[0])):
        scores = torch.stack([query @ (s[row] / rms(s[row])) for s in sources])
        weights = scores.exp() / scores.exp().sum()
        rows.append(sum(w * s[row] for w, s in zip(weights, sources, strict=True)))
    return torch.stack(rows)


@pytest.mark.parametrize("size", [1, 2, 3, 9])
def test_attention_residual_is_its_equation(size):
    stack, x = moved(build(AttentionResidual, block_size=size)), batch()
    sources = [x]
    for index, layer in enumerate(stack):
        u = sources[0] if index == 0 else attended(layer.connection.attention.query, sources)
        out = layer.branch(u)
        if index % size == 0:
            sources.append(out)
        else:
            sources[-1] = sources[-1] + out
    torch.testing.assert_close(stack(x), attended(stack.output.query, sources), rtol=1e-12, atol=1e-12)
    assert len(sources) == 1 + -(-DEPTH // size)


def test_attention_residual_starts_as_the_residual_connection():
    x = batch()
    summed = build(AttentionResidual, depth=24, scale="sum", block_size=4)
    torch.testing.assert_close(summed(x), build(Residual, depth=24)(x), rtol=1e-12, atol=1e-12)
    mean, residual = (
        build(AttentionResidual, depth=24, first=nn.LayerNorm),
        build(Residual, depth=24, first=nn.LayerNorm),
    )
    norm = nn.LayerNorm(DIM).double()
    assert (norm(mean(x)) - norm(residual(x))).abs().max() < 2e-2
    assert not torch.allclose(mean(x), residual(x), rtol=0.1)


def normal_mean(query: Tensor, sources: list[Tensor]) -> Tensor:
    normal = torch.stack([s / rms(s) for s in sources], 1)
    return (torch.softmax(normal @ query / DIM**0.5, 1).unsqueeze(-1) * normal).sum(1)


@pytest.mark.parametrize("size", [1, 2, 9])
def test_attention_residual_as_released_with_inkling_is_its_equation(size):
    stack, x = moved(build(AttentionResidual, block_size=size, form="inkling2")), batch()
    sources = [x]
    for index, layer in enumerate(stack):
        u = x if index == 0 else normal_mean(layer.connection.attention.query, sources)
        out = layer.branch(u)
        if index % size == 0:
            sources.append(out)
        else:
            sources[-1] = sources[-1] + out
    torch.testing.assert_close(stack(x), normal_mean(stack.output.query, sources), rtol=1e-12, atol=1e-12)
    assert not torch.allclose(stack(x), attended(stack.output.query, sources), rtol=0.1)


def test_depth_attention_of_one_source_and_of_two_by_hand():
    attention = DepthAttention(4, form="inkling2", epsilon=0.0)
    first, second = torch.tensor([2.0, 0, 0, 0]), torch.tensor([0, 6.0, 0, 0])  # of root mean square 1 and 3
    with torch.no_grad():
        attention.query[0] = torch.tensor(3.0).log()  # scores 2 log 3 / sqrt(4) and 0: shares 3/4 and 1/4
    torch.testing.assert_close(attention((first, second)), torch.tensor([1.5, 0.5, 0, 0]))
    torch.testing.assert_close(attention((second,)), second / 3)
    paper = DepthAttention(4, epsilon=0.0)
    with torch.no_grad():
        paper.query[0] = torch.tensor(3.0).log() / 2
    torch.testing.assert_close(paper((first, second)), torch.tensor([1.5, 1.5, 0, 0]))
    torch.testing.assert_close(paper((second,)), second)


def test_depth_attention_starts_from_the_uniform_mean_of_normal_sources():
    sources = tuple(scale * batch() for scale in (1, 10, 100))
    expected = batch() / batch().square().mean(-1, keepdim=True).sqrt()
    found = DepthAttention(DIM, form="inkling2", epsilon=0.0).double()(sources)
    torch.testing.assert_close(found, expected, rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(DepthAttention(DIM).double()(sources), 37 * batch())


def test_several_queries_are_one_query_each():
    sources = tuple(batch() + i for i in range(3))
    several = DepthAttention(DIM, num_queries=3, form="inkling2").double()
    with torch.no_grad():
        several.query.copy_(torch.randn(3, DIM, generator=torch.Generator().manual_seed(3)))
    found = several(sources)
    assert len(found) == 3
    for query, mean in zip(several.query, found, strict=True):
        torch.testing.assert_close(mean, normal_mean(query, list(sources)), rtol=1e-12, atol=1e-12)
    assert not torch.allclose(found[0], found[1], rtol=0.1)


@pytest.mark.parametrize("axis", [-1, 1])
@pytest.mark.parametrize("form", ["paper", "inkling2"])
def test_a_branch_of_several_inputs_gets_a_mean_for_each_query(form, axis):
    class Three(nn.Module):
        def forward(self, query, key, value):
            return query * key + value, "weights"

    layers = [AttentionResidual(DIM, inputs=3, layer=i, depth=2, form=form, axis=axis).double() for i in range(2)]
    with torch.no_grad():
        layers[1].attention.query.copy_(torch.randn(3, DIM, generator=torch.Generator().manual_seed(3)))
    x = batch().reshape(2, 2, DIM)
    state = layers[0].begin(x.movedim(-1, axis))
    state, extra = layers[0].advance(state, Three())
    torch.testing.assert_close(state[1], x * x + x)  # the first layer has the input alone, as it is
    assert extra == ("weights",)
    sources = [s.reshape(-1, DIM) for s in state]
    mean = attended if form == "paper" else normal_mean
    queries, keys, values = (mean(query, sources).view_as(x) for query in layers[1].attention.query)
    state, _ = layers[1].advance(state, Three())
    torch.testing.assert_close(state[2], queries * keys + values, rtol=1e-12, atol=1e-12)


def test_a_branch_of_several_inputs_must_keep_the_shape():
    connection = AttentionResidual(DIM, inputs=2)
    with pytest.raises(UsageError, match="must return the shape that it was given"):
        connection.advance(connection.begin(batch()), nn.Bilinear(DIM, DIM, 1).double())


def test_attention_residual_as_released_with_inkling_cannot_start_as_the_residual_connection():
    with pytest.raises(UsageError, match=r"computes another function\. Use form='paper'"):
        AttentionResidual(DIM, layer=1, depth=2, form="inkling2").start_as_residual()
    paper = AttentionResidual(DIM, inputs=2, layer=1, depth=2)
    nn.init.ones_(paper.attention.query)
    paper.start_as_residual()
    assert not paper.attention.query.any()


def test_depth_weighted_average_is_its_equation():
    stack, x = moved(build(DepthWeightedAverage)), batch()
    outputs, y = [x], x
    for layer in stack:
        outputs.append(y + layer.branch(y))
        y = sum(a * o for a, o in zip(layer.connection.alpha, outputs, strict=True))
    torch.testing.assert_close(stack(x), y, rtol=1e-12, atol=1e-12)
    start = build(DepthWeightedAverage)
    torch.testing.assert_close(start(x), build(Residual)(x), rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize(
    ("dilation", "period", "sources"),
    [
        (2, 1, [[1], [0, 2], [1, 3], [0, 2, 4], [1, 3, 5]]),
        (1, 2, [None, [0, 1, 2], None, [0, 1, 2, 3, 4], None]),
        (3, 2, [None, [2], None, [1, 4], None]),
    ],
)
def test_dilation_and_period_choose_the_outputs(dilation, period, sources):
    stack, x = moved(build(DepthWeightedAverage, dilation=dilation, period=period)), batch()
    outputs, y = [x], x
    for layer, chosen in zip(stack, sources, strict=True):
        outputs.append(y + layer.branch(y))
        alpha = layer.connection.alpha
        assert (alpha is None) == (chosen is None)
        y = outputs[-1] if chosen is None else sum(a * outputs[j] for a, j in zip(alpha, chosen, strict=True))
    torch.testing.assert_close(stack(x), y, rtol=1e-12, atol=1e-12)


def combined(module, sources: list[Tensor]) -> list[Tensor]:
    hidden = nn.functional.gelu((sources[-1] / rms(sources[-1])) @ module.down.T)
    weights = (hidden @ module.up.T).reshape(len(hidden), *module.static.shape) + module.static
    return [sum(weights[:, c, j, None] * s for j, s in enumerate(sources)) for c in range(len(module.static))]


def test_multiway_dynamic_dense_is_its_equation():
    stack, x = moved(build(MultiwayDynamicDense)), batch()
    sources = [x]
    for index, layer in enumerate(stack):
        u, residual = (x, x) if index == 0 else combined(layer.connection.combination, sources)
        sources.append(residual + layer.branch(u))
    (y,) = combined(stack.output.combination, sources)
    torch.testing.assert_close(stack(x), y, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(build(MultiwayDynamicDense)(x), build(Residual)(x), rtol=1e-14, atol=1e-14)


def test_a_branch_of_several_inputs_gets_several_combinations():
    class Three(nn.Module):
        def forward(self, query, key, value):
            return query * key + value

    layers = [MultiwayDynamicDense(DIM, inputs=3, layer=i, depth=2).double() for i in range(2)]
    x = batch()
    state = layers[0].advance(layers[0].begin(x), Three())
    torch.testing.assert_close(state[1], x + x * x + x)
    with torch.no_grad():
        layers[1].combination.static.copy_(torch.tensor([[1.0, 0], [0, 1], [2, 0], [0, 3]]))
    after = layers[1].advance(state, Three())[2]
    torch.testing.assert_close(after, 3 * state[1] + x * state[1] + 2 * x)


def test_input_residual_is_its_equation():
    stack, x = moved(build(InputResidual, start="nanochat", period=2)), batch()
    y = x
    for index, layer in enumerate(stack):
        if index % 2 == 0:
            y = layer.connection.scale * y + layer.connection.input_scale * x
        y = y + layer.branch(y)
    torch.testing.assert_close(stack(x), y, rtol=1e-13, atol=1e-13)
    assert stack[1].connection.scale is None


@pytest.mark.parametrize("norm", [False, True])
def test_learned_augmented_residual_is_its_equation(norm):
    stack, x = moved(build(LearnedAugmentedResidual, rank=2, norm=norm)), batch()
    y = x
    for layer in stack:
        c = layer.connection
        change = y @ c.down.T @ c.up.T
        y = y + (change / rms(change) * c.gain if norm else change) + layer.branch(y)
    torch.testing.assert_close(stack(x), y, rtol=1e-12, atol=1e-12)


def test_identity_hyper_connection_is_its_equation():
    stack, x = moved(build(IdentityHyperConnection, streams=3, norm_epsilon=1e-6)), batch()
    state = x.unsqueeze(1).repeat(1, 3, 1)

    def logits(module):
        flat = state.flatten(1)
        scale = module.scale.repeat_interleave(len(module.bias) // len(module.scale))
        return (flat / rms(flat)) @ module.projection.T * scale + module.bias  # one norm over all streams

    for layer in stack:
        a, b = logits(layer.connection).chunk(2, -1)
        u = ((a.sigmoid() + 1e-6).unsqueeze(-1) * state).sum(1)
        state = state + (2 * b.sigmoid() + 1e-6).unsqueeze(-1) * layer.branch(u).unsqueeze(1)
    y = ((logits(stack.output).sigmoid() + 1e-6).unsqueeze(-1) * state).sum(1)
    torch.testing.assert_close(stack(x), y, rtol=1e-12, atol=1e-12)


def test_identity_hyper_connection_starts_as_the_residual_connection():
    stack, x = build(IdentityHyperConnection, depth=24, head="mean"), batch()
    assert not torch.allclose(stack(x), build(Residual, depth=24)(x), rtol=1e-6)
    for layer in stack:
        layer.connection.start_as_residual()
    torch.testing.assert_close(stack(x), build(Residual, depth=24)(x), rtol=1e-12, atol=1e-12)


def test_gated_residual_is_its_equation():
    stack, x = moved(build(GatedResidual, streams=3, rank=2)), batch()
    state = x.unsqueeze(1).repeat(1, 3, 1)

    def read(module):
        normal = state / rms(state) * module.gain  # one norm for each stream
        narrow = nn.functional.silu(normal.flatten(1) @ module.down.T / 3)
        gate = (narrow @ module.up.T).sigmoid().reshape(state.shape)
        return (gate * normal).mean(1), normal.flatten(1)

    for layer in stack:
        u, normal = read(layer.connection.gated)
        write = 2 * (normal @ layer.connection.projection.T / 3).sigmoid()
        state = state + write.unsqueeze(-1) * layer.branch(u).unsqueeze(1)
    torch.testing.assert_close(stack(x), read(stack.output)[0], rtol=1e-12, atol=1e-12)


def test_gated_residual_starts_as_the_residual_connection_of_normalised_branches():
    stack, residual, x = build(GatedResidual, 12, first=nn.LayerNorm), build(Residual, 12, first=nn.LayerNorm), batch()
    for module in [*(layer.connection for layer in stack), stack.output]:
        module.start_as_residual()
    norm = nn.LayerNorm(DIM).double()
    assert (norm(stack(x)) - norm(residual(x))).abs().max() < 1e-3


ALL = [
    (AttentionResidual, {}),
    (AttentionResidual, {"form": "inkling2"}),
    (DepthWeightedAverage, {}),
    (MultiwayDynamicDense, {}),
    (InputResidual, {}),
    (IdentityHyperConnection, {}),
    (GatedResidual, {}),
]


@pytest.mark.parametrize(("connection", "options"), ALL)
def test_inputs_that_do_not_fit_are_refused(connection, options):
    made = connection(DIM, layer=1, depth=3, **options)
    with pytest.raises(UsageError, match=f"must have {DIM} channels at axis -1, got"):
        made.begin(torch.zeros(2, DIM + 1))
    with pytest.raises(UsageError, match=r"must be of floating point, got torch\.int64"):
        made.begin(torch.zeros(2, DIM, dtype=torch.int64))
    with pytest.raises(UsageError, match="the state must be"):
        made.read(torch.zeros(2, DIM + 3))


@pytest.mark.parametrize(("connection", "options"), ALL)
def test_an_empty_batch_is_empty_and_a_nan_stays_in_its_row(connection, options):
    stack = build(connection, **options)
    assert stack(batch()[:0]).shape == (0, DIM)
    x = batch()
    x[1, 2] = torch.nan
    y = stack(x)
    assert y[1].isnan().all()
    assert y[[0, 2, 3]].isfinite().all()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: AttentionResidual(4, block_size=0), "block_size must be at least 1, got 0"),
        (lambda: AttentionResidual(4, scale="max"), "scale must be 'mean' or 'sum', got 'max'"),
        (lambda: AttentionResidual(4, inputs=0), "inputs must be at least 1, got 0"),
        (lambda: AttentionResidual(4, form="kimi"), "form must be one of paper, inkling2, got 'kimi'"),
        (lambda: AttentionResidual(4, form="inkling2", scale="sum"), "form='inkling2' cannot be: it normalises"),
        (lambda: DepthAttention(4, num_queries=0), "num_queries must be at least 1, got 0"),
        (lambda: DepthAttention(4, form="kimi"), "form must be one of paper, inkling2, got 'kimi'"),
        (lambda: DepthWeightedAverage(4, dilation=0), "dilation must be at least 1, got 0"),
        (lambda: DepthWeightedAverage(4, period=0), "period must be at least 1, got 0"),
        (lambda: MultiwayDynamicDense(4, inputs=0), "inputs must be at least 1, got 0"),
        (lambda: InputResidual(4, start="zero"), "start must be 'identity' or 'nanochat', got 'zero'"),
        (lambda: InputResidual(4, period=0), "period must be at least 1, got 0"),
        (lambda: LearnedAugmentedResidual(4, rank=0), "rank must be at least 1, got 0"),
        (lambda: GatedResidual(4, rank=0), "rank must be at least 1, got 0"),
        (lambda: GatedResidual(4, streams=0), "streams must be at least 2, got 0. For a single stream use Residual"),
        (lambda: IdentityHyperConnection(4, streams=1), "got 1. For a single stream use Residual"),
        (lambda: IdentityHyperConnection(4, head="sum"), "head must be 'learned' or 'mean', got 'sum'"),
    ],
)
def test_options_that_make_no_sense_are_refused(make, words):
    with pytest.raises(UsageError, match=words.replace(".", r"\.")) as caught:
        make()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("connection", [levada.AttentionResidual, levada.MultiwayDynamicDense])
def test_a_branch_of_fewer_inputs_is_named_and_an_error_of_its_own_is_not_blamed_on_it(connection):
    stack = levada.Stack([nn.Identity(), nn.Identity()], connection, dim=4, inputs=2)
    with pytest.raises(
        UsageError, match="with inputs=2 a branch must take 2 tensors, and Identity of layer 0 does not"
    ):
        stack(torch.zeros(1, 4))

    class Wrong(nn.Module):
        def forward(self, a, b):
            return a + "b"

    with pytest.raises(TypeError, match="unsupported operand"):
        levada.Stack([Wrong()], connection, dim=4, inputs=2)(torch.zeros(1, 4))
