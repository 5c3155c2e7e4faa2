"""Conversion of models that other people wrote: the same function, parameters that learn, and every way to use them."""

from __future__ import annotations

import copy
import math
import pickle
import warnings

import pytest
import torch
from torch import Tensor, nn

import levada
from levada import connections
from levada._errors import UsageError
from levada.connection import Connection
from levada.conversion import convert, verify_preserved
from levada.watching.loop.places import find_places

IMAGE = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
TOKENS = torch.randint(0, 50, (2, 7), generator=torch.Generator().manual_seed(1))
SEQUENCE = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(1))


class Loop(nn.Module):
    """A pre-norm network as one writes it by hand."""

    def __init__(self, depth=4, dim=16):
        super().__init__()
        self.embed = nn.Linear(16, dim)
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(depth))
        self.branches = nn.ModuleList(
            nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim)) for _ in range(depth)
        )
        self.norm, self.head = nn.LayerNorm(dim), nn.Linear(dim, 3)

    def forward(self, x):
        x = self.embed(x)
        for norm, branch in zip(self.norms, self.branches, strict=True):
            x = x + branch(norm(x))
        return self.head(self.norm(x))


def encoder(norm_first, depth=3):
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True, norm_first=norm_first)
    return nn.TransformerEncoder(layer, depth, enable_nested_tensor=not norm_first)


def stack():
    branches = [nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 16), nn.Tanh()) for _ in range(4)]
    return nn.Sequential(nn.Linear(16, 16), levada.Stack(branches, levada.Residual, dim=16), nn.LayerNorm(16))


def language_model(name, **options):
    transformers = pytest.importorskip("transformers", reason="needs transformers, which the test extra installs")
    config = getattr(transformers, f"{name}Config")(vocab_size=50, use_cache=False, **options)
    return getattr(transformers, f"{name}Model")(config)


def picture_model(name, **options):
    timm = pytest.importorskip("timm", reason="needs timm and torchvision, which CI installs with --no-deps")
    return timm.create_model(name, num_classes=5, **options)


SMALL = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
GROUPED = {**SMALL, "num_key_value_heads": 2}
GPT2 = {"n_embd": 16, "n_layer": 3, "n_head": 2, "n_positions": 20, "bos_token_id": 0, "eos_token_id": 0}
FAMILIES = {
    "torch.nn.TransformerEncoder, pre-norm": (lambda: encoder(True), SEQUENCE),
    "torch.nn.TransformerEncoder, post-norm": (lambda: encoder(False), SEQUENCE),
    "transformers GPT-2": (lambda: language_model("GPT2", **GPT2), {"input_ids": TOKENS}),
    "transformers Llama": (lambda: language_model("Llama", **GROUPED), {"input_ids": TOKENS}),
    "transformers Qwen3": (lambda: language_model("Qwen3", head_dim=8, **GROUPED), {"input_ids": TOKENS}),
    "transformers BERT": (lambda: language_model("Bert", **SMALL), {"input_ids": TOKENS}),
    "timm ViT": (lambda: picture_model("vit_tiny_patch16_224", img_size=64, depth=3), IMAGE),
    "timm ConvNeXt": (lambda: picture_model("convnext_atto", ls_init_value=0.1, depths=(1, 2, 2, 1)), IMAGE),
    "timm ResNet": (lambda: picture_model("resnet50", layers=(3, 1, 3, 1), zero_init_last=False), IMAGE),
    "levada.Stack": (stack, torch.randn(3, 16)),
    "loop by hand": (Loop, torch.randn(3, 16)),
}
every_family = pytest.mark.parametrize("family", FAMILIES)
PRESERVING = [
    c
    for c in vars(connections).values()
    if isinstance(c, type) and issubclass(c, Connection) and c.residual_start == "exact"
]
PRESERVING.remove(levada.ValueResidual)  # it needs branches that take part: below


def build(family: str) -> tuple[nn.Module, object]:
    torch.manual_seed(0)
    make, batch = FAMILIES[family]
    return make().eval(), batch


def call(model: nn.Module, batch: object) -> Tensor:
    result = model(**batch) if isinstance(batch, dict) else model(batch)
    return result if isinstance(result, Tensor) else result[0]


def doubled(batch: object) -> object:
    return batch.double() if isinstance(batch, Tensor) else batch


def moved(model: nn.Module) -> nn.Module:
    """Move every parameter off its start, where some differences would not be seen."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)))
    return model


def converted(family: str, connection=levada.HyperConnection, **options) -> tuple[nn.Module, object]:
    model, batch = build(family)
    return convert(model, connection, batch=batch, **options), batch


def new_parameters(net: nn.Module, model: nn.Module) -> dict[str, nn.Parameter]:
    old = dict(model.named_parameters())
    return {name: p for name, p in net.named_parameters() if name not in old}


@every_family
@pytest.mark.parametrize(
    "connection", [levada.HyperConnection, levada.ManifoldHyperConnection], ids=lambda c: c.__name__
)
def test_the_function_is_preserved(family, connection):
    model, batch = build(family)
    state = copy.deepcopy(model.state_dict())
    net = convert(model, connection, batch=batch)
    assert net.levada_conversion.difference <= 1e-12
    assert verify_preserved(model, net, batch) <= 1e-5  # weights in float32 sum to 1 up to their rounding
    exact = model.double()
    assert verify_preserved(exact, convert(exact, connection, batch=doubled(batch), verify=False), batch) <= 1e-12
    model.float()
    assert len(net.levada_conversion.sites) >= 4
    assert new_parameters(net, model)
    assert {name for name, _ in model.named_parameters()} <= {name for name, _ in net.named_parameters()}
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert not any(isinstance(m, Connection) and not isinstance(m, levada.Residual) for m in model.modules())
    torch.testing.assert_close(call(net, batch), call(model, batch), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("connection", PRESERVING, ids=lambda c: c.__name__)
@pytest.mark.parametrize("family", ["loop by hand", "transformers Llama", "levada.Stack"])
def test_every_connection_that_can_preserves(family, connection):
    options = {"mode": "sample"} if connection is levada.StochasticDepth else {}
    options |= {"scale": "sum"} if connection.__name__ == "AttentionResidual" else {}
    net, _ = converted(family, connection, **options)
    assert net.levada_conversion.difference <= 1e-12


@pytest.mark.parametrize("options", [{}, {"preserve": False}], ids=str)
@pytest.mark.parametrize("family", ["loop by hand", "transformers Llama"])
def test_values_inside_an_attention_cannot_be_reached(family, options):
    model, batch = build(family)
    with pytest.raises(UsageError, match=r"ValueResidual mixes values inside an attention.*nothing would be mixed\. "):
        convert(model, levada.ValueResidual, batch=batch, copy=False, **options)
    assert not any(isinstance(module, Connection) for module in model.modules())


def test_a_stack_whose_attention_takes_part_can_mix_values():
    torch.manual_seed(0)
    model = levada.networks.transformer(4, 16, vocabulary=50)
    net = convert(model, levada.ValueResidual, batch=TOKENS)
    assert net.levada_conversion.difference <= 1e-12
    with torch.no_grad():
        net.stack[2].connection.first_weight.add_(0.5)
    assert not torch.allclose(net(TOKENS), model(TOKENS), rtol=1e-3)


@every_family
def test_one_connection_takes_the_place_of_each_addition(family):
    """With the streams' weights moved by hand, the function changes at every site."""
    net, batch = converted(family)
    sites = [m for m in net.modules() if isinstance(m, levada.HyperConnection)]
    assert len(sites) == len(net.levada_conversion.sites)
    reference = call(net, batch)
    for site in sites:
        written = next(p for name, p in site.named_parameters() if p.shape == (site.streams,))
        before = written.detach().clone()
        with torch.no_grad():
            written.mul_(0.5)
        assert not torch.allclose(call(net, batch), reference, rtol=1e-7, atol=0)
        with torch.no_grad():
            written.copy_(before)
    assert torch.equal(call(net, batch), reference)


def learned_parts(connection: Connection) -> dict[str, Tensor]:
    """The gradients of what reads, writes and mixes, without what follows the token."""
    if isinstance(connection, levada.HyperConnection):
        found = {name: getattr(connection, f"static_{name}").grad for name in ("read", "write", "mix")}
    else:
        found = dict(zip(("read", "write", "mix"), connection.bias.grad.split(connection.sizes), strict=True))
        # Its rows sum to 1: mixing changes nothing where all streams are equal, nor before a mean of the streams.
        if connection.layer in (0, connection.depth - 1):
            del found["mix"]
    return found


@every_family
@pytest.mark.parametrize(
    "connection", [levada.HyperConnection, levada.ManifoldHyperConnection], ids=lambda c: c.__name__
)
def test_streams_separate_and_everything_new_learns(family, connection):
    """In float64, where rounding is no gradient."""
    model, batch = build(family)
    net, batch = convert(model.double(), connection, batch=doubled(batch)).eval(), doubled(batch)
    before = {name: p.detach().clone() for name, p in new_parameters(net, model).items()}
    rate = 1e-3 if "ResNet" in family else 1e-2  # in evaluation mode nothing holds a random ResNet's scale
    optimizer = torch.optim.Adam(net.parameters(), lr=rate, eps=1e-14)
    torch.manual_seed(0)
    target = torch.randn_like(call(net, batch))
    for _ in range(6):
        optimizer.zero_grad()
        (call(net, batch) - target).square().mean().backward()
        optimizer.step()
    for name, start in before.items():
        assert not torch.equal(dict(net.named_parameters())[name], start), f"{name} did not move"
    made = [module for module in net.modules() if isinstance(module, connection)]
    parts = [learned_parts(module) for module in made]
    largest = max(float(gradient.abs().max()) for part in parts for gradient in part.values())
    for module, part in zip(made, parts, strict=True):
        for name, gradient in part.items():
            assert gradient.abs().max() > 1e-9 * largest, f"{name} of layer {module.layer} does not learn"
    apart = []

    def watched(module, coefficients):
        def measure(state):
            center = state.detach().mean(-2, keepdim=True)
            apart.append(float((state.detach() - center).norm() / center.norm()))
            return coefficients(state)

        return measure

    for module in made:
        module.coefficients = watched(module, module.coefficients)
    call(net, batch)
    assert len(apart) >= len(made)
    assert max(apart) > 1e-5, "the streams are still the same"  # at the start they are equal, bit by bit


@every_family
def test_copies_pickles_and_states_round_trip(family):
    net, batch = converted(family)
    y = call(moved(net), batch)
    assert torch.equal(call(copy.deepcopy(net), batch), y)
    assert torch.equal(call(pickle.loads(pickle.dumps(net)), batch), y)
    other, _ = converted(family)
    assert not torch.equal(call(other, batch), y)
    other.load_state_dict(net.state_dict())
    assert torch.equal(call(other, batch), y)


# Hooks on the model itself run outside of its graph, in one of their own, which torch warns about: see finish.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@every_family
def test_compiles_as_one_graph(family):
    net, batch = converted(family)
    y = call(moved(net), batch)
    torch.compiler.reset()
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    z = call(compiled, batch)
    torch.testing.assert_close(z, y, rtol=1e-4, atol=1e-5)
    y.square().mean().backward()
    expected = {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}
    net.zero_grad()
    z.square().mean().backward()
    for name, parameter in net.named_parameters():
        if name in expected:
            # Of streams that are still equal the gradients cancel to 1e-7: the rounding of what cancels is left.
            error = (parameter.grad - expected[name]).norm() / expected[name].norm().clamp(min=1e-5)
            assert error < 1e-3, f"{name}: {error:.2g}"


@every_family
def test_exports(family):
    net, batch = converted(family)
    moved(net)
    args, kwargs = ((), batch) if isinstance(batch, dict) else ((batch,), {})
    exported = torch.export.export(net, args, kwargs, strict=False).module()
    torch.testing.assert_close(call(exported, batch), call(net, batch), rtol=1e-4, atol=1e-5)


def gradients(net: nn.Module, batch: object) -> dict[str, Tensor]:
    net.zero_grad()
    call(net, batch).square().mean().backward()
    return {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("family", ["transformers GPT-2", "transformers Llama", "transformers BERT"])
def test_checkpointing_gives_the_same_gradients(family):
    net, batch = converted(family)
    moved(net).train()
    for module in net.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if hasattr(module, "dropout_prob"):
            module.dropout_prob = 0.0
    expected = gradients(net, batch)
    net.activation_checkpointing_enable()
    torch.testing.assert_close(gradients(net, batch), expected)
    net.activation_checkpointing_disable()
    net.activation_checkpointing_enable({"use_reentrant": True})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, that an object is not a tensor that needs a gradient
        with pytest.raises(UsageError, match="use_reentrant=False"):
            gradients(net, batch)


def test_checkpointing_by_block_gives_the_same_gradients():
    from torch.utils.checkpoint import checkpoint

    class Blocks(nn.Module):
        def __init__(self, layers):
            super().__init__()
            self.layers = layers
            self.recompute = False

        def forward(self, x):
            for layer in self.layers:
                x = checkpoint(layer, x, use_reentrant=False) if self.recompute else layer(x)
            return x

    torch.manual_seed(0)
    net = convert(Blocks(encoder(True).layers), levada.HyperConnection, batch=SEQUENCE)
    expected = gradients(moved(net), SEQUENCE)
    net.recompute = True
    torch.testing.assert_close(gradients(net, SEQUENCE), expected)


def test_hidden_states_come_out_as_tensors():
    net, batch = converted("transformers Llama")
    found = net(**batch, output_hidden_states=True).hidden_states
    assert [type(t) for t in found] == [Tensor] * 4
    assert {t.shape for t in found} == {(2, 7, 16)}


@pytest.mark.parametrize(
    ("family", "options", "limit"),
    [("loop by hand", {}, 1e-3), ("transformers Llama", {"scale": "sum"}, 1e-12)],
)
def test_converts_and_trains_with_attention_over_depth(family, options, limit):
    net, batch = converted(family, levada.AttentionResidual, **options)
    assert net.levada_conversion.difference <= limit
    found = gradients(net, batch)
    new = new_parameters(net, build(family)[0])
    assert len(new) == len(net.levada_conversion.sites)  # the first has nothing to choose from, the end has a query
    assert all(found[name].abs().sum() > 0 for name in new)


class Scaled(nn.Module):
    """A block without a residual connection."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(16, 16)

    def forward(self, x):
        return self.linear(x) * 0.5


class Positioned(nn.Module):
    """Each block adds a position to the stream before its branch reads it."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(16, 16)
        self.branches = nn.ModuleList(nn.Linear(16, 16) for _ in range(3))
        self.register_buffer("position", torch.randn(1, 16))

    def forward(self, x):
        x = self.embed(x)
        for branch in self.branches:
            x = x + branch(x + self.position.expand_as(x))
        return x


class Made(nn.Module):
    """The stream is made between the modules."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(16, 16)
        self.branches = nn.ModuleList(nn.Linear(16, 16) for _ in range(3))

    def forward(self, x):
        x = self.embed(x) * 2.0
        for branch in self.branches:
            x = x + branch(x)
        return x


@pytest.mark.parametrize(
    ("make", "connection", "options", "words"),
    [
        (lambda: nn.Sequential(Scaled(), Scaled()), "HyperConnection", {}, "no block of the model adds"),
        (Positioned, "HyperConnection", {}, "also added to"),
        (Made, "HyperConnection", {}, "made by torch.Tensor.mul in between"),
        (Loop, "Highway", {}, "Highway cannot compute what the residual connection does"),
        (Loop, "HyperConnection", {"streams": 0}, "streams must be at least 2, got 0"),
        (Loop, "HyperConnection", {"streams": 1}, "For a single stream use Residual"),
        (Loop, "HyperConnection", {"stream": 4}, "takes no option 'stream'; it takes: streams"),
        (Loop, "HyperConnection", {"batch": torch.randn(3, 7)}, "Linear|shapes"),
        (Loop, "HyperConnection", {"batch": torch.randn(0, 16)}, "must not be empty"),
        (lambda: "model", "HyperConnection", {}, "must be an nn.Module, got str"),
        (lambda: encoder(False), "AttentionResidual", {"batch": SEQUENCE}, "goes through layer_norm"),
    ],
)
def test_what_cannot_be_converted_is_said_and_left_as_it_was(make, connection, options, words):
    model = make()
    before = repr(model)
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()] if before[0] != "'" else []
    options = {"batch": torch.randn(3, 16), **options}
    with pytest.raises(UsageError, match=words) as caught:
        convert(model, getattr(levada, connection), copy=False, **options)
    assert "\n" not in str(caught.value)
    assert repr(model) == before
    if hooks:
        assert [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()] == hooks
        assert not any("levada" in key for m in model.modules() for key in vars(m))


def test_a_model_is_converted_once():
    net, batch = converted("loop by hand")
    with pytest.raises(UsageError, match="converted already"):
        convert(net, levada.HyperConnection, batch=batch)


def test_a_change_of_function_is_refused_unless_it_is_meant():
    model, batch = build("loop by hand")
    with pytest.raises(UsageError, match="preserve=False"):
        convert(model, levada.Highway, batch=batch)
    net = convert(model, levada.Highway, batch=batch, preserve=False)
    assert verify_preserved(model, net, batch) > 1e-3


def test_in_place_conversion_undoes_itself_when_the_function_would_change():
    """A stream that is not normalised cannot become an average: found by measuring, after all was put in."""
    branches = nn.ModuleList(nn.Linear(16, 16) for _ in range(3))

    class Bare(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.branches = nn.Linear(16, 16), branches

        def forward(self, x):
            x = self.embed(x)
            for branch in self.branches:
                x = x + branch(x)
            return x

    model, x = Bare(), torch.randn(3, 16)
    y, before = model(x), repr(model)
    with pytest.raises(UsageError, match="not every branch and the output begin with a normalisation"):
        convert(model, levada.AttentionResidual, batch=x, copy=False)
    assert repr(model) == before
    assert torch.equal(model(x), y)
    assert not any("levada" in key for m in model.modules() for key in vars(m))


def test_the_difference_is_measured_and_not_assumed():
    a, b = nn.Linear(4, 4), nn.Linear(4, 4)
    b.load_state_dict({k: v * 1.25 for k, v in a.state_dict().items()})
    assert verify_preserved(a, b, torch.randn(3, 4)) == pytest.approx(0.25, rel=1e-6)
    with pytest.raises(UsageError, match="same shapes"):
        verify_preserved(a, nn.Linear(4, 3), torch.randn(3, 4))


def test_a_difference_that_is_no_number_is_not_lost_behind_others():
    class Two(nn.Module):
        def __init__(self, first):
            super().__init__()
            self.first = first

        def forward(self, x):
            return x * self.first, x

    assert math.isnan(verify_preserved(Two(1.0), Two(math.nan), torch.randn(3, 4)))


@pytest.mark.parametrize("name", ["ManifoldHyperConnection", "HyperConnection", "GatedResidual", "AttentionResidual"])
def test_the_blocks_that_are_watched_stay_those_of_the_model(name):
    model = encoder(True)
    blocks = [place.name for place in find_places(model)]
    net = convert(model, getattr(levada, name), batch=SEQUENCE, preserve=False)
    assert [place.name for place in find_places(net)] == blocks == ["layers.0", "layers.1", "layers.2"]
