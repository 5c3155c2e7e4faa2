"""Block boundaries of architectures as people write them."""

from __future__ import annotations

import copy
import dataclasses
from collections import OrderedDict

import pytest
import torch
from torch import nn
from torch.nn import functional

import levada
from levada._errors import MeasurementError
from levada.probe import record


def names(execution):
    return [site.name for site in execution.sites]


def kinds(execution, site):
    return [operation.kind for operation in execution.operations[site]]


def run(model, *args, **kwargs):
    return record(model, lambda: model(*args, **kwargs))


class BasicBlock(nn.Module):
    def __init__(self, channels_in, channels, stride=1):
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample = None
        if stride > 1:
            self.downsample = nn.Sequential(
                nn.Conv2d(channels_in, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x):
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out += x if self.downsample is None else self.downsample(x)
        return self.relu(out)


class ResNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(2)
        self.layer1 = nn.Sequential(BasicBlock(8, 8), BasicBlock(8, 8))
        self.layer2 = nn.Sequential(BasicBlock(8, 16, 2), BasicBlock(16, 16))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(16, 10)

    def forward(self, x):
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        return self.fc(torch.flatten(self.avgpool(self.layer2(self.layer1(x))), 1))


class Functional(nn.Module):
    """Layers registered in the reverse order of their use; activations as functions, methods and in place."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(8, 3)
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(4))

    def forward(self, x):
        x = torch.sigmoid(self.layers[3](x))
        x = functional.leaky_relu(self.layers[2](x), 0.2)
        x = self.layers[1](x).tanh()
        x = self.layers[0](x).clamp_(min=0)
        return self.head(x)


@dataclasses.dataclass
class Output:
    mask: torch.Tensor
    hidden: torch.Tensor


class SelfAttention(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(dim, dim) for _ in range(3))

    def forward(self, hidden, mask=None):
        q, k, v = self.query(hidden), self.key(hidden), self.value(hidden)
        weights = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)
        return (weights @ v, weights)


class Rejoin(nn.Module):
    """The skip is inside a child that takes two inputs, as in BERT."""

    def __init__(self, dim_in, dim):
        super().__init__()
        self.dense = nn.Linear(dim_in, dim)
        self.norm = nn.LayerNorm(dim)

    def forward(self, hidden, start):
        return self.norm(self.dense(hidden) + start)


class EncoderLayer(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.attention = SelfAttention(dim)
        self.attention_output = Rejoin(dim, dim)
        self.intermediate = nn.Linear(dim, 2 * dim)
        self.output = Rejoin(2 * dim, dim)

    def forward(self, hidden, mask=None, output_attentions=False):
        mixed, weights = self.attention(hidden, mask)
        hidden = self.attention_output(mixed, hidden)
        hidden = self.output(functional.gelu(self.intermediate(hidden)), hidden)
        return (hidden, weights) if output_attentions else (hidden,)


class Encoder(nn.Module):
    def __init__(self, dim, depth):
        super().__init__()
        self.layer = nn.ModuleList(EncoderLayer(dim) for _ in range(depth))

    def forward(self, hidden, mask=None):
        for layer in self.layer:
            hidden = layer(hidden, mask=mask)[0]
        return Output(mask=mask, hidden=hidden)


class Bert(nn.Module):
    def __init__(self, dim=8, depth=3):
        super().__init__()
        self.word, self.position = nn.Embedding(20, dim), nn.Embedding(10, dim)
        self.encoder = Encoder(dim, depth)
        self.pooler = nn.Linear(dim, dim)
        self.classifier = nn.Linear(dim, 2)

    def forward(self, ids, *, mask=None, labels=None):
        hidden = self.word(ids) + self.position(torch.arange(ids.shape[1]))
        pooled = torch.tanh(self.pooler(self.encoder(hidden, mask).hidden[:, 0]))
        logits = self.classifier(pooled)
        return OrderedDict(logits=logits, loss=None if labels is None else functional.cross_entropy(logits, labels))


def test_nested_sequential_gives_the_leaves_with_weights():
    net = nn.Sequential(
        nn.Flatten(),
        nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU(True)),
        nn.Sequential(OrderedDict(fc=nn.Linear(8, 8), act=nn.Sigmoid())),
        nn.Linear(8, 3),
    )
    execution = run(net, torch.randn(4, 2, 4))
    assert names(execution) == ["1.0", "2.fc", "3"]
    assert kinds(execution, "1.0") == ["reshape", "linear", "normalisation", "activation"]
    assert [operation.name for operation in execution.operations["2.fc"]] == ["linear", "sigmoid"]
    assert execution.sites[0].parameters == ("1.0.weight", "1.0.bias", "1.1.weight", "1.1.bias")
    assert execution.input_of["2.fc"] == execution.output_of["1.0"] != execution.output_of["2.fc"]


def test_functional_activations_belong_to_the_layer_before_in_order_of_execution():
    execution = run(Functional(), torch.randn(4, 8))
    assert names(execution) == ["layers.3", "layers.2", "layers.1", "layers.0", "head"]
    last = [execution.operations[name][-1] for name in names(execution)]
    assert [operation.name for operation in last] == ["sigmoid", "leaky_relu", "tanh", "relu", "linear"]
    assert last[1].options == {"negative_slope": 0.2}
    for name, operation in zip(names(execution), last, strict=True):
        assert execution.output_of[name] == operation.output


def test_resnet_stops_at_the_basic_blocks_and_shows_the_skip():
    execution = run(ResNet(), torch.randn(2, 3, 8, 8))
    assert names(execution) == ["conv1", "layer1.0", "layer1.1", "layer2.0", "layer2.1", "fc"]
    assert kinds(execution, "conv1") == ["conv", "normalisation", "activation", "pool"]
    add = next(operation for operation in execution.operations["layer1.1"] if operation.kind == "add")
    assert execution.input_of["layer1.1"] in add.inputs
    assert execution.sites[4].shape == (2, 16, 2, 2)  # the pooling belongs to what it prepares
    assert kinds(execution, "fc") == ["pool", "reshape", "linear"]


@pytest.mark.parametrize("norm_first", [False, True])
def test_torch_transformer_encoder(norm_first):
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=norm_first)
    net = nn.TransformerEncoder(layer, 3, norm=nn.LayerNorm(8), enable_nested_tensor=False)
    execution = run(net, torch.randn(2, 5, 8))
    assert names(execution) == ["layers.0", "layers.1", "layers.2", "norm"]
    assert kinds(execution, "layers.1").count("add") == 2
    assert len(execution.sites[1].parameters) == 12


def test_encoder_with_tuples_mappings_dataclasses_and_keywords():
    ids = torch.randint(0, 20, (2, 5))
    execution = run(Bert(), ids, mask=torch.ones(2, 5), labels=torch.tensor([0, 1]))
    assert names(execution) == [
        "word",
        "encoder.layer.0",
        "encoder.layer.1",
        "encoder.layer.2",
        "pooler",
        "classifier",
    ]
    assert execution.sites[0].parameters == ("word.weight", "position.weight")
    assert [site.shape for site in execution.sites][1:] == [(2, 5, 8)] * 3 + [(2, 8), (2, 2)]
    assert "loss" not in kinds(execution, "classifier")
    assert [operation.name for operation in execution.operations["pooler"]] == ["getitem", "linear", "tanh"]


def test_lstm_is_one_leaf():
    class Classifier(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(10, 8)
            self.lstm = nn.LSTM(8, 6, num_layers=2, batch_first=True)
            self.fc = nn.Linear(6, 3)

        def forward(self, ids):
            return self.fc(self.lstm(self.embedding(ids))[1][0][-1])

    execution = run(Classifier(), torch.randint(0, 10, (2, 5)))
    assert names(execution) == ["embedding", "lstm", "fc"]
    assert kinds(execution, "lstm") == ["recurrent", "reshape"]
    assert execution.sites[1].shape == (2, 6)


def test_module_used_twice_and_unrolled_cell():
    layer = nn.Linear(8, 8)
    execution = run(nn.Sequential(layer, nn.ReLU(), layer, nn.ReLU()), torch.randn(4, 8))
    assert names(execution) == ["0", "0#2"]
    assert execution.input_of["0#2"] == execution.output_of["0"]

    class Unrolled(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell = nn.RNNCell(3, 8)

        def forward(self, x):
            state = torch.zeros(x.shape[0], 8)
            for t in range(x.shape[1]):
                state = self.cell(x[:, t], state)
            return state

    assert names(run(Unrolled(), torch.randn(2, 3, 3))) == ["cell", "cell#2", "cell#3"]


def test_hand_written_residual_branches():
    class PreNorm(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.norm, self.head = nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 3)
            self.norms = nn.ModuleList(nn.LayerNorm(8) for _ in range(2))
            self.wide = nn.ModuleList(nn.Linear(8, 16) for _ in range(2))
            self.back = nn.ModuleList(nn.Linear(16, 8) for _ in range(2))

        def forward(self, x):
            x = self.stem(x)
            for norm, wide, back in zip(self.norms, self.wide, self.back, strict=True):
                x = x + back(functional.relu(wide(norm(x))))
            return self.head(self.norm(x))

    execution = run(PreNorm(), torch.randn(4, 8))
    assert names(execution) == ["stem", "wide.0", "wide.1", "norm", "head"]
    assert kinds(execution, "wide.1") == ["normalisation", "linear", "activation", "linear", "add"]
    assert execution.input_of["wide.1"] in execution.operations["wide.1"][-1].inputs

    class Attending(nn.Module):
        def __init__(self):
            super().__init__()
            self.norms = nn.ModuleList(nn.LayerNorm(8) for _ in range(2))
            self.attention = nn.ModuleList(SelfAttention(8) for _ in range(2))

        def forward(self, x):
            for norm, attention in zip(self.norms, self.attention, strict=True):
                x = x + attention(norm(x))[0]
            return x

    execution = run(Attending(), torch.randn(2, 5, 8))
    assert names(execution) == ["attention.0", "attention.1"]
    assert kinds(execution, "attention.1")[0] == "normalisation"
    assert kinds(execution, "attention.1")[-1] == "add"

    class PreActivation(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(4))

        def forward(self, x):
            x = self.layers[0](x)
            x = x * torch.sigmoid(x)  # this belongs to the layer before
            for layer in self.layers[1:]:
                x = x + layer(functional.relu(x))  # this to the layer after
            return x

    execution = run(PreActivation(), torch.randn(4, 8))
    assert names(execution) == ["layers.0", "layers.1", "layers.2", "layers.3"]
    assert kinds(execution, "layers.0") == ["linear", "activation", "multiply"]
    assert kinds(execution, "layers.2") == ["activation", "linear", "add"]
    assert execution.input_of["layers.2"] in execution.operations["layers.2"][-1].inputs

    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8), nn.GELU()) for _ in range(3))

        def forward(self, x):
            for layer in self.layers:
                x = layer(x) + x
            return x

    assert names(run(Branches(), torch.randn(4, 8))) == ["layers.0", "layers.1", "layers.2"]
    assert names(run(nn.Sequential(Branches()), torch.randn(4, 8))) == ["0.layers.0", "0.layers.1", "0.layers.2"]


@pytest.mark.parametrize("sparse", [False, True])
def test_experts_are_inside_their_block(sparse):
    class Mixture(nn.Module):
        def __init__(self):
            super().__init__()
            self.gate = nn.Linear(8, 2)
            self.experts = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.ReLU()) for _ in range(2))

        def forward(self, x):
            share = self.gate(x).softmax(-1)
            if not sparse:
                return sum(share[:, i : i + 1] * expert(x) for i, expert in enumerate(self.experts))
            out = torch.zeros_like(x)
            for i, expert in enumerate(self.experts):
                rows = (share.argmax(-1) == i).nonzero()[:, 0]
                out = out.index_add(0, rows, expert(x[rows]) * share[rows, i : i + 1])
            return out

    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 8), Mixture(), nn.Linear(8, 3))
    assert names(run(net, torch.randn(16, 8))) == ["0", "1", "2"]


def test_stack_of_layers_without_a_skip_still_counts_layers():
    from levada import Plain, Residual, Stack

    branches = [nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(3)]
    for connection in (Plain, Residual):
        net = Stack(copy.deepcopy(branches), connection, dim=8)
        assert names(run(net, torch.randn(4, 8))) == ["layers.0", "layers.1", "layers.2"]


def test_bare_parameters_give_function_sites_and_a_note():
    class Bare(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.randn(3, 8, 8))

        def forward(self, x):
            for i in range(3):
                x = torch.tanh(functional.linear(x, self.w[i]))
            return x

    execution = run(Bare(), torch.randn(4, 8))
    assert names(execution) == ["linear", "linear#2", "linear#3"]
    assert execution.sites[1].parameters == ("w",)
    assert "no submodule" in execution.note

    class Scale(nn.Module):
        def forward(self, x):
            return 2 * x

    execution = run(Scale(), torch.randn(4, 8))
    assert len(execution.sites) == 1
    assert execution.sites[0].shape == (4, 8)
    assert "one block" in execution.note


def test_custom_autograd_function_does_not_break_the_chain():
    class Double(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return 2 * x

        @staticmethod
        def backward(ctx, gradient):
            return 2 * gradient

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x):
            return self.b(Double.apply(self.a(x)))

    execution = run(Net(), torch.randn(4, 8))
    assert names(execution) == ["a", "b"]
    assert execution.input_of["b"] == execution.output_of["a"]
    assert kinds(execution, "a") == ["linear", "multiply"]  # the function's own forward is seen


def test_weight_norm_is_not_a_block():
    net = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(8, 8)), nn.Tanh(), nn.Linear(8, 3))
    execution = run(net, torch.randn(4, 8))
    assert names(execution) == ["0", "2"]
    assert kinds(execution, "0") == ["linear", "activation"]


def hooks(model):
    attributes = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_forward_hooks_always_called")
    return sum(len(getattr(module, name)) for module in model.modules() for name in attributes)


def test_model_is_untouched_also_after_an_error():
    class Failing(nn.Module):
        def forward(self, x):
            raise ArithmeticError("on purpose")

    net = nn.Sequential(nn.Linear(8, 8), nn.Dropout(), Failing())
    state = torch.get_rng_state()
    with pytest.raises(ArithmeticError, match="on purpose"):
        record(net, lambda: net(torch.ones(2, 8)))
    assert hooks(net) == 0
    assert torch.overrides._len_torch_function_stack() == 0
    torch.set_rng_state(state)
    net = net[:2]
    record(net, lambda: net(torch.ones(2, 8)))
    after = torch.get_rng_state()
    torch.set_rng_state(state)
    net(torch.ones(2, 8))
    assert torch.equal(after, torch.get_rng_state())
    assert hooks(net) == 0


def test_run_must_call_the_model():
    net = nn.Linear(2, 2)
    with pytest.raises(MeasurementError, match="without calling the model"):
        record(net, lambda: net.forward(torch.ones(1, 2)))


class Embedded(nn.Module):
    """Tokens and positions, side by side, then a chain; and a head around it."""

    class Chain(nn.Module):
        def __init__(self):
            super().__init__()
            self.tokens, self.positions = nn.Embedding(20, 8), nn.Embedding(5, 8)
            self.blocks = nn.ModuleList(nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0) for _ in range(3))

        def forward(self, ids):
            x = self.tokens(ids) + self.positions(torch.arange(ids.shape[1]))
            for block in self.blocks:
                x = block(x)
            return x

    def __init__(self):
        super().__init__()
        self.chain, self.head = Embedded.Chain(), nn.Linear(8, 20)

    def forward(self, ids):
        return self.head(self.chain(ids))


def test_a_chain_behind_two_embeddings_is_opened():
    report = levada.check(Embedded(), torch.randint(20, (4, 5)))
    assert [b["site"] for b in report.blocks] == ["chain.tokens", *(f"chain.blocks.{i}" for i in range(3)), "head"]


class ByHand(nn.Module):
    class Branch(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.linear = nn.LayerNorm(8), nn.Linear(8, 8)

        def forward(self, x):
            return self.linear(self.norm(x)).tanh()

    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Linear(8, 8), nn.Linear(8, 4)
        self.branches = nn.ModuleList(ByHand.Branch() for _ in range(3))

    def forward(self, x):
        x = self.embed(x)
        for branch in self.branches:
            x = x + branch(x)
        return self.head(x)


@pytest.mark.parametrize(
    "connection",
    [
        levada.HyperConnection,
        levada.ManifoldHyperConnection,
        levada.SinglePassManifoldHyperConnection,
        levada.MultiwayDynamicDense,
    ],
    ids=lambda c: c.__name__,
)
def test_a_converted_model_has_the_blocks_that_it_had(connection):
    model, x = ByHand(), torch.randn(6, 8)
    before = levada.check(model, x)
    after = levada.check(levada.convert(model, connection, batch=x), x)
    assert [b["site"] for b in after.blocks] == [b["site"] for b in before.blocks]
