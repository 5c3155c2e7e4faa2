from __future__ import annotations

import pytest
import torch
from torch import nn

import levada
from levada._errors import UsageError


class Language(nn.Module):
    def __init__(self, tied=False):
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        blocks = [nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8)) for _ in range(2)]
        self.stack = levada.Stack(blocks, levada.ManifoldHyperConnection, dim=8, form="deepseek_v4")
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 11, bias=False)
        if tied:
            self.head.weight = self.embed.weight


def named(model, **options):
    names = {parameter: name for name, parameter in model.named_parameters()}
    groups = levada.parameter_groups(model, **options)
    return {group["name"]: {names[p] for p in group["params"]} for group in groups}


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("tied", [False, True])
def test_every_parameter_is_in_one_group(optimizer, tied):
    model = Language(tied)
    groups = levada.parameter_groups(model, weight_decay=0.3, optimizer=optimizer)
    parameters = [p for group in groups for p in group["params"]]
    assert len(parameters) == len({id(p) for p in parameters}) == len(list(model.parameters()))
    for group in groups:
        assert group["weight_decay"] == (0.3 if group["name"].endswith(", decayed") else 0.0)


def test_connections_follow_their_papers():
    found = named(Language())
    decayed, kept = found["adamw, decayed"], found["adamw, not decayed"]
    assert {"embed.weight", "head.weight", "stack.layers.0.branch.1.weight"} <= decayed
    assert {"stack.layers.1.connection.projection", "stack.output.projection"} <= decayed
    assert {"stack.layers.0.connection.bias", "stack.layers.0.connection.scale", "stack.output.bias"} <= kept
    assert {"norm.weight", "norm.bias", "stack.layers.0.branch.1.bias"} <= kept
    static = named(levada.Stack([nn.Linear(4, 4)], levada.HyperConnection, dim=4))["adamw, not decayed"]
    assert "layers.0.connection.static_mix" in static  # a matrix that does not decay


def test_muon_gets_hidden_matrices():
    found = named(Language(), optimizer="muon")
    assert found["muon, decayed"] == {
        *(f"stack.layers.{i}.branch.1.weight" for i in range(2)),
        *(f"stack.layers.{i}.connection.projection" for i in range(2)),
        "stack.output.projection",
    }
    assert {"embed.weight", "head.weight"} <= found["adamw, decayed"]
    model = Language()
    for group in levada.parameter_groups(model, optimizer="muon"):
        kind = torch.optim.Muon if group["optimizer"] == "muon" else torch.optim.AdamW
        kind([{key: group[key] for key in ("params", "weight_decay")}], lr=1e-3)


def transformer(which):
    """GPT-2 and two ViTs, with random weights."""
    if which == "gpt2":
        transformers = pytest.importorskip("transformers")
        options = {"bos_token_id": 0, "eos_token_id": 0}
        return transformers.GPT2LMHeadModel(
            transformers.GPT2Config(vocab_size=50, n_embd=16, n_layer=2, n_head=2, n_positions=20, **options)
        )
    timm = pytest.importorskip("timm")
    options = {"img_size": 32, "embed_dim": 16, "depth": 2, "num_heads": 2, "init_values": 1e-3}
    return timm.models.VisionTransformer(num_classes=10 if which == "vit" else 0, **options)


INSIDE = {"gpt2": ("c_attn", "c_proj", "c_fc"), "vit": ("qkv", "proj", "fc1", "fc2")}
INSIDE["headless vit"] = INSIDE["vit"]
TABLES = {"gpt2": {"transformer.wte.weight", "transformer.wpe.weight"}, "headless vit": {"patch_embed.proj.weight"}}
TABLES["vit"] = {"patch_embed.proj.weight", "head.weight"}


@pytest.mark.parametrize("which", INSIDE)
def test_transformers_of_other_libraries(which):
    model = transformer(which)
    found = named(model, optimizer="muon")
    assert found.keys() == {"muon, decayed", "adamw, decayed", "adamw, not decayed"}
    names = {name for name, _ in model.named_parameters()}
    inside = {n for n in names if n.endswith(".weight") and n.split(".")[-2] in INSIDE[which]} - TABLES[which]
    assert len(inside) == 8
    assert found["muon, decayed"] == inside
    assert found["adamw, decayed"] == TABLES[which]
    if which != "gpt2":
        assert {"cls_token", "pos_embed", "blocks.1.ls2.gamma", "norm.weight"} <= found["adamw, not decayed"]


class ByHand(nn.Module):
    """A head before all else, tables without modules, a norm over two axes."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(8, 50)
        self.tokens = nn.Embedding(50, 8)
        self.positions = nn.Parameter(torch.zeros(16, 8))
        self.table = nn.Parameter(torch.zeros(4, 8))
        self.cls_token = nn.Parameter(torch.zeros(1, 8))
        self.gamma = nn.Parameter(torch.ones(8, 1, 1))
        self.relative_bias_table = nn.Parameter(torch.zeros(9, 2))
        self.experts = nn.Parameter(torch.zeros(3, 8, 8))
        self.attention = nn.ModuleList(nn.MultiheadAttention(8, 2, add_bias_kv=True) for _ in range(2))
        self.mix = nn.ModuleList(nn.Linear(8, 8) for _ in range(2))
        self.norm = nn.LayerNorm((4, 8))
        self.heads = nn.ModuleList([nn.Linear(8, 3), nn.Linear(8, 5)])


def test_a_model_written_by_hand():
    found = named(ByHand(), optimizer="muon")
    both = range(2)
    assert found["muon, decayed"] == {
        *(f"mix.{i}.weight" for i in both),
        *(f"attention.{i}.{name}" for i in both for name in ("in_proj_weight", "out_proj.weight")),
    }
    heads = {"head.weight", "heads.0.weight", "heads.1.weight"}
    assert found["adamw, decayed"] == heads | {"tokens.weight", "table", "experts"}
    kept = {"positions", "cls_token", "gamma", "relative_bias_table", "norm.weight", "norm.bias", "attention.0.bias_k"}
    assert kept <= found["adamw, not decayed"]
    levada_own = levada.Stack([nn.Linear(8, 8)], levada.GatedResidual, dim=8, streams=2)
    assert "layers.0.branch.weight" in named(levada_own, optimizer="muon")["muon, decayed"]


def block():
    return nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8))


class Wrapped(nn.Module):
    def __init__(self):
        super().__init__()
        self.branch = block()


@pytest.mark.parametrize(
    ("make", "hidden"),
    [
        (lambda: nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 2)), {"2.weight"}),
        (lambda: nn.Sequential(nn.Embedding(4, 8), nn.Linear(8, 8), nn.Linear(8, 2)), {"1.weight"}),
        (lambda: nn.ModuleList([nn.Linear(4, 8), *(nn.Linear(8, 8) for _ in range(2)), nn.Linear(8, 4)]), {"1.", "2."}),
        (lambda: nn.Sequential(nn.Linear(8, 8), block(), block(), nn.Sequential(nn.Linear(8, 2))), {"1.1.", "2.1."}),
        (lambda: nn.Sequential(nn.Linear(8, 8), Wrapped(), Wrapped(), nn.Linear(8, 8)), {"1.branch.", "2.branch."}),
        (lambda: nn.Linear(8, 8), set()),
    ],
)
def test_what_is_hidden(make, hidden):
    found = named(make(), optimizer="muon").get("muon, decayed", set())
    assert len(found) == len(hidden)
    assert all(any(name.startswith(begin) for begin in hidden) for name in found)


def test_rules_of_modules_that_mean_other_things_by_them():
    class Grammar(nn.Linear):
        rules = ("weight",)

    class Other(nn.Linear):
        rules = {"weight": "decay"}  # noqa: RUF012

    assert named(nn.Sequential(Grammar(2, 2), Other(2, 2)))["adamw, decayed"] == {"0.weight", "1.weight"}


def test_decay_shrinks_what_decays_and_nothing_else():
    model = Language()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.AdamW(levada.parameter_groups(model, weight_decay=0.5), lr=0.1)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    zero_at_the_start = {name for name in before if not before[name].any()}
    assert changed == named(model)["adamw, decayed"] - zero_at_the_start


def test_bad_input():
    with pytest.raises(UsageError, match=r"weight_decay must be at least 0\.0, got -0\.1"):
        levada.parameter_groups(nn.Linear(2, 2), weight_decay=-0.1)
    with pytest.raises(UsageError, match="must be 'adamw' or 'muon', got 'sgd'"):
        levada.parameter_groups(nn.Linear(2, 2), optimizer="sgd")
    with pytest.raises(UsageError, match="ReLU has none"):
        levada.parameter_groups(nn.ReLU())
    frozen = nn.Linear(2, 2)
    frozen.weight.requires_grad_(False)
    assert [len(g["params"]) for g in levada.parameter_groups(frozen)] == [1]
