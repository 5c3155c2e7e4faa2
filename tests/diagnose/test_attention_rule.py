"""Attention of which the softmax passes nothing is named; attention as models start with it, or learn it, is not."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from levada.diagnose import REMEDIES, check
from levada.diagnose.attending import Attending
from levada.diagnose.check import examine
from levada.diagnose.diagnostics.attention_collapse import attention_collapse
from levada.diagnose.facts import Facts, facts_of
from levada.diagnose.rehearsal import Course
from levada.diagnose.remedies import Subject, calls
from levada.inputs import read_batches
from levada.probe.attention import Attention
from levada.probe.trace import Site, Trace

RULE = "attention_collapse"
GENERATOR = torch.Generator().manual_seed(0)
TOKENS, CLASSES = torch.randint(50, (16, 12), generator=GENERATOR), torch.arange(16) % 10
IMAGES = torch.randn(8, 3, 64, 64, generator=GENERATOR), torch.arange(8)


class Encoder(nn.Module):
    """A transformer of torch that reads its classes off one token, so that attention matters."""

    def __init__(self, layers=2, **options):
        super().__init__()
        layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True, **options)
        self.embed, self.place = nn.Embedding(50, 32), nn.Parameter(torch.randn(12, 32))
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(32, 10)

    def forward(self, tokens):
        return self.head(self.encoder(self.embed(tokens) + self.place)[:, 0])


def vit(fused):
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", num_classes=10, img_size=64, depth=3)
    for block in model.blocks:
        block.attn.fused_attn = fused
    return model


def language(name, attention):
    models = pytest.importorskip("transformers")
    torch.manual_seed(0)
    if name == "gpt2":
        config = models.GPT2Config(vocab_size=50, n_embd=64, n_layer=2, n_head=2, attn_implementation=attention)
        return models.GPT2LMHeadModel(config)
    config = models.BertConfig(
        vocab_size=50,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        attn_implementation=attention,
    )
    return models.BertForMaskedLM(config)


def sharpened(model, factor=30.0):
    """Multiply what makes queries and keys, as a wrong scale or a run gone wrong does."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, nn.MultiheadAttention):
                module.in_proj_weight[: 2 * module.embed_dim] *= factor
            elif name.endswith((".query", ".key")):
                module.weight *= factor
            elif name.endswith(".qkv"):
                module.weight[: 2 * len(module.weight) // 3] *= factor
            elif name.endswith(".c_attn"):
                module.weight[:, : 2 * module.weight.shape[1] // 3] *= factor
    return model


def named(report):
    return {f.rule: f.severity for f in report.findings if f.status == "fired"}


def torch_encoder():
    torch.manual_seed(0)
    return Encoder(norm_first=True)


WORDS = {"input_ids": TOKENS, "labels": TOKENS}
MODELS = {
    "torch": (torch_encoder, (TOKENS, CLASSES)),
    "vit": (lambda: vit(False), IMAGES),
    "vit, fused": (lambda: vit(True), IMAGES),
    "gpt2": (lambda: language("gpt2", "eager"), WORDS),
    "gpt2, fused": (lambda: language("gpt2", "sdpa"), WORDS),
    "bert": (lambda: language("bert", "eager"), WORDS),
    "bert, fused": (lambda: language("bert", "sdpa"), WORDS),
}


@pytest.mark.parametrize("case", MODELS)
def test_queries_and_keys_thirty_times_too_large_are_named_and_their_healthy_twins_are_not(case):
    build, batch = MODELS[case]
    model = build()
    healthy = check(model, batch)
    assert healthy.verdict == "healthy", str(healthy)
    entropies = [b["attention_entropy"] for b in healthy.blocks if "attention_entropy" in b]
    assert len(entropies) >= 2
    assert min(entropies) > 0.8
    sick = check(sharpened(model, 30.0 if case in ("torch", "vit", "vit, fused") else 60.0), batch)
    assert named(sick).get(RULE) in ("warn", "error"), str(sick)
    finding = next(f for f in sick.findings if f.rule == RULE)
    first = next(b["site"] for b in sick.blocks if "attention_entropy" in b)
    assert finding.where["first"] == first
    assert named(sick).keys() == {RULE}


@pytest.mark.parametrize("case", ["torch", "vit", "vit, fused"])
def test_it_is_an_error_where_queries_and_keys_cannot_learn_and_the_remedy_undoes_it(case):
    build, batch = MODELS[case]
    model = sharpened(build())
    report, trace = examine(model, batch)
    assert named(report)[RULE] == "error", str(report)
    batches = read_batches(model, batch)
    subject = Subject(copy.deepcopy(model), report, facts_of(trace), batches, calls(copy.deepcopy(model), batches[0]))
    patch = REMEDIES["qk_scale"].write(subject)
    assert patch is not None
    repaired = check(patch.change(copy.deepcopy(model)), batch)
    assert RULE not in named(repaired), str(repaired)
    assert all(b["attention_entropy"] > 0.3 for b in repaired.blocks if "attention_entropy" in b)
    assert REMEDIES["qk_scale"].write(replace(subject, facts=facts_of(examine(build(), batch)[1]))) is None


def test_a_check_with_the_test_leaves_the_model_as_it_was():
    model = sharpened(torch_encoder())
    before = {name: p.clone() for name, p in model.named_parameters()}
    check(model, (TOKENS, CLASSES))
    assert all(torch.equal(p, before[name]) and p.grad is None for name, p in model.named_parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def course(first, *, gain):
    return Course(tuple(first - gain * i / 10 for i in range(11)))


SHARP = Attention("a", entropy=0.01, lowest=0.0, slope=0.02, logit_max=300.0, logit_std=100.0, keys=32.0)


def severity(one=SHARP, **tests):
    told = {"plain": course(2.0, gain=0.0), "scaled": course(2.0, gain=0.5), **tests}
    facts = Facts(attending=Attending({"0": one}, **told))
    found = list(attention_collapse(Trace((Site("0", 0, "Block", (4, 32, 8)),), (0,), {}, {"facts": facts})))
    return found[0].severity if found else None


def test_each_leg_is_needed():
    assert severity() == "error"
    assert severity(replace(SHARP, entropy=0.2)) is None  # the measurement
    assert severity(replace(SHARP, logit_std=2.0)) is None  # theory: the slope of such logits is not small
    assert severity(plain=None) == severity(scaled=None) == "warn"  # no test was made
    assert severity(plain=course(2.0, gain=0.4)) == "warn"  # they learn
    assert severity(scaled=course(2.0, gain=0.015)) == "warn"  # attention does not matter here
    assert severity(scaled=course(2.1, gain=0.5)) == "error"
    assert severity(scaled=course(9.0, gain=6.0)) == "info"  # it learned to be sharp


def test_attention_that_was_learned_to_be_sharp_is_no_fault():
    """Each token must find the one before it: trained, its heads look at one place."""
    torch.manual_seed(0)
    model = Encoder(1, norm_first=True)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(300):
        tokens = torch.randint(10, (64, 12))
        loss = nn.functional.cross_entropy(model(tokens), tokens[:, 5])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.2
    tokens = torch.randint(10, (64, 12))
    report = check(model, (tokens, tokens[:, 5]))
    assert named(report).get(RULE, "info") == "info", str(report)


def test_only_models_with_attention_are_told_of_it():
    report = check(nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3)), torch.randn(4, 6))
    assert not [key for block in report.blocks for key in block if key.startswith(("attention", "token"))]


def test_a_minority_that_is_sharp_is_information():
    torch.manual_seed(0)
    model = Encoder(layers=4, norm_first=True)
    with torch.no_grad():
        first = model.encoder.layers[0].self_attn
        first.in_proj_weight[: 2 * first.embed_dim] *= 30.0
    assert named(check(model, (TOKENS, CLASSES))).get(RULE) == "info"
