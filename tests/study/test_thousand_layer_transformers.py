"""R20: a network of replicas is the library's own, one step moves it as the closed form says, and claims can fail."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import nn

import levada
from levada._errors import UsageError
from levada.blocks import Attention, FeedForward
from levada.initialise import deepnorm
from levada.studies import thousand_layer_transformers as r20
from levada.study import Results, claims, execute, failures, figures
from levada.study.replica_transformer import (
    ReplicaTransformer,
    draw_windows,
    first_update,
    kept_input,
    letter_entropy,
    train_transformer,
)

SHAPE: dict[str, Any] = {"dim": 8, "heads": 2, "vocabulary": 5, "context": 6}
ARRANGEMENTS = ("post-norm", "pre-norm", "DeepNorm", "ReZero")


def library(model: ReplicaTransformer, replica: int) -> levada.Stack:
    """The library's own blocks and connections around one replica's weights."""
    norm = nn.LayerNorm if model.arrangement == "pre-norm" else None
    branches: list[nn.Module] = []
    for layer in range(len(model.weights) // 2):
        first, second = (model.weights[2 * layer + i].detach()[replica].T for i in (0, 1))
        if layer % 2:
            branch: Any = FeedForward(8, 16, activation=nn.ReLU, norm=norm)
            linears = [module for module in branch.modules() if isinstance(module, nn.Linear)]
            pairs = list(zip(linears, (first, second), strict=True))
        else:
            branch = Attention(8, heads=2, causal=True, norm=norm)
            pairs = [*zip((branch.query, branch.key, branch.value), first.chunk(3), strict=True)]
            pairs.append((branch.output, second))
        for linear, weight in pairs:
            assert linear.weight.shape == weight.shape
            linear.weight.data = weight
            nn.init.zeros_(linear.bias)
        branches.append(branch)
    connection, options = {
        "post-norm": (levada.PostNorm, {}), "pre-norm": (levada.Residual, {}),
        "DeepNorm": (levada.PostNorm, {"alpha": "deepnorm"}), "ReZero": (levada.ReZero, {}),
    }[model.arrangement]  # fmt: skip
    return levada.Stack(branches, connection, dim=8, **options).to(model.head.dtype)


@pytest.mark.parametrize("arrangement", ARRANGEMENTS)
def test_a_replica_is_the_library_s_own_network(arrangement):
    model = ReplicaTransformer(arrangement, 6, seeds=[3, 4], **SHAPE)
    tokens = torch.randint(5, (2, 3, 6), generator=torch.Generator().manual_seed(0))
    for scale, value in zip(model.scales, torch.linspace(-1, 1, 6), strict=False):
        scale.data.fill_(value)
    for replica in (0, 1):
        stack = library(model, replica)
        for layer, scale in zip(stack, model.scales, strict=False):
            layer.connection.scale.data = scale.detach()[replica, 0]
        own = model.embedding[replica][tokens[replica]] + model.position[replica]
        wanted = stack(own)
        if arrangement == "pre-norm":
            wanted = nn.functional.layer_norm(wanted, (8,))
        found = model.states(tokens)[replica].view(3, 6, 8)
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_replicas_do_not_depend_on_each_other_and_draw_the_same_weights_in_every_arrangement():
    both, alone = (ReplicaTransformer("post-norm", 4, seeds=seeds, **SHAPE) for seeds in ([0, 1], [1]))
    windows = torch.randint(5, (1, 2, 7), generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(both(windows[..., :-1].expand(2, -1, -1))[1], alone(windows[..., :-1])[0])
    deep = ReplicaTransformer("DeepNorm", 4, seeds=[1], **SHAPE)
    beta = (8 * 2) ** -0.25  # of two transformer layers
    for place, (plain, scaled) in enumerate(zip(alone.weights, deep.weights, strict=True)):
        shrunk = beta * plain
        if place % 4 == 0:  # queries and keys are not scaled
            shrunk[..., :16] = plain[..., :16]
        torch.testing.assert_close(scaled, shrunk)


def test_deepnorm_weights_have_the_library_s_variances():
    shape = {**SHAPE, "dim": 128, "heads": 2}
    model = ReplicaTransformer("DeepNorm", 4, seeds=[0], **shape)
    known = deepnorm(nn.Linear(128, 128), num_layers=2, generator=torch.Generator().manual_seed(0))
    assert model.weights[1].std().item() == pytest.approx(known.weight.std().item(), rel=0.03)
    assert model.weights[2].shape == (1, 128, 256)
    assert model.weights[2].std().item() == pytest.approx((2 / (128 + 256)) ** 0.5 * 16**-0.25, rel=0.03)
    assert model.alpha == (2 * 2) ** 0.25


def test_rezero_s_first_step_is_the_sum_over_branches_of_their_alignment():
    model = ReplicaTransformer("ReZero", 6, seeds=[0], **SHAPE).double()
    windows = torch.randint(5, (1, 3, 7), generator=torch.Generator().manual_seed(1))
    state = (model.embedding[0][windows[0, :, :-1]] + model.position[0]).detach().requires_grad_()
    logits = state @ model.head[0]
    loss = nn.functional.cross_entropy(logits.flatten(0, 1), windows[0, :, 1:].flatten())
    (gradient,) = torch.autograd.grad(loss, state)
    with torch.no_grad():
        branches = [layer.branch(state) for layer in library(model, 0)]
    change = sum((gradient * out).sum() * out for out in branches)
    wanted = change.square().mean().sqrt().item()
    assert first_update(model, windows, "SGD", 1e-7).item() == pytest.approx(wanted, rel=1e-5)
    signs = sum((gradient * out).sum().sign() * out for out in branches)
    assert first_update(model, windows, "Adam", 1e-7).item() == pytest.approx(signs.square().mean().sqrt().item(), 1e-4)


@pytest.mark.parametrize("optimizer", ["SGD", "Adam"])
def test_the_first_update_is_what_torch_s_optimizer_does_and_leaves_the_model_alone(optimizer):
    model = ReplicaTransformer("pre-norm", 4, seeds=[0, 1], **SHAPE).double()
    windows = torch.randint(5, (2, 3, 7), generator=torch.Generator().manual_seed(1))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = first_update(model, windows, optimizer, 1e-3)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    start = model.states(windows[..., :-1]).detach()
    step = getattr(torch.optim, optimizer)([*model.weights], lr=1e-3)
    logits = model(windows[..., :-1])
    for replica in (0, 1):
        wanted = windows[replica, :, 1:].flatten()
        nn.functional.cross_entropy(logits[replica].flatten(0, 1), wanted).backward(retain_graph=True)
    step.step()
    moved = (model.states(windows[..., :-1]) - start).square().mean((1, 2)).sqrt() / 1e-3
    torch.testing.assert_close(found, moved.detach(), rtol=1e-6, atol=0)


def test_training_learns_a_text_that_alternates_and_is_the_same_again():
    text = torch.tensor([0, 1] * 50)
    losses = []
    for _ in range(2):
        model = ReplicaTransformer("pre-norm", 4, seeds=[0, 1], **{**SHAPE, "vocabulary": 2})
        options = {"steps": 30, "batch_size": 4, "lr": 1e-3, "outer_lr": 0.03}
        losses.append(train_transformer(model, text, seeds=[0, 1], **options))
    assert torch.equal(*losses)
    assert losses[0].shape == (30, 2)
    assert losses[0][-1].max() < 0.3 < math.log(2) == pytest.approx(letter_entropy(text))


def test_windows_are_those_of_the_seed_alone():
    text = torch.arange(100)
    generators = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
    both = draw_windows(text, 6, 3, generators)
    assert torch.equal(both[1:], draw_windows(text, 6, 3, [torch.Generator().manual_seed(1)]))
    assert (both.diff() == 1).all()


def test_what_cannot_be_built_is_refused():
    with pytest.raises(UsageError, match="arrangement must be one of post-norm, pre-norm, DeepNorm, ReZero"):
        ReplicaTransformer("sandwich", 4, seeds=[0], **SHAPE)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="sublayers must be even"):
        ReplicaTransformer("ReZero", 5, seeds=[0], **SHAPE)


def made_up(claim, value):
    settings = r20.STUDY.resolve("small")
    cells = r20.STUDY.configurations(settings, range(5))
    values = {cell.key(seed): value(cell.config, seed) for cell in cells for seed in cell.seeds}
    (tested,) = [c for c in r20.STUDY.claims(settings) if c.name == claim]
    return tested.test(Results(cells, values))


@pytest.mark.parametrize(
    ("claim", "optimizer", "arrangement"),
    [("DeepNorm's update is bounded", "SGD", "DeepNorm"), ("and by Adam's step", "Adam", "DeepNorm"),
     ("ReZero's update is bounded", "SGD", "ReZero")],
)  # fmt: skip
@pytest.mark.parametrize(("ratio", "status"), [(1.99, "held"), (2.01, "not held")])
def test_an_update_is_bounded_if_no_depth_has_twice_that_of_another(claim, optimizer, arrangement, ratio, status):
    def value(config, seed):
        own = {"SGD": 1e3 * config["sublayers"], "Adam": 1e3 * config["sublayers"]}  # what must not count
        if config["arrangement"] == arrangement:
            own[optimizer] = ratio if (config["sublayers"], seed) == (200, 3) else 1.0
        return own

    outcome = made_up(claim, value)
    assert outcome.status == status
    assert outcome.numbers["largest over smallest"] == [1.0, 1.0, 1.0, ratio, 1.0]


def test_exponents_are_those_of_a_power_of_the_depth():
    outcome = made_up("and by Adam's step", lambda config, seed: {"Adam": config["sublayers"] ** (0.1 * seed)})
    found = outcome.numbers["DeepNorm: exponent of the depth, Adam"]
    assert found == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])
    assert outcome.statistic.value == pytest.approx(0.2)


@pytest.mark.parametrize(("last", "status", "seeds"), [(10.1, "held", 5), (9.9, "not held", 4)])
def test_post_norm_grows_tenfold_in_every_seed(last, status, seeds):
    def value(config, seed):
        return {"SGD": (last if seed == 2 else 50.0) if config["sublayers"] == 1000 else 1.0}

    outcome = made_up("post-norm's update grows", value)
    assert (outcome.status, outcome.statistic.value) == (status, seeds)


@pytest.mark.parametrize(("pre", "status"), [(0.9, "held"), (1.0, "not held")])
def test_pre_norm_changes_less_in_every_seed(pre, status):
    def value(config, seed):
        deepest = config["sublayers"] == 1000
        return {"SGD": pre if config["arrangement"] == "pre-norm" and seed == 4 and deepest else 1.0 - 0.5 * (
            config["arrangement"] == "pre-norm" and deepest)}  # fmt: skip

    assert made_up("pre-norm's update is smaller", value).status == status


def test_frozen_sub_layers_stay_and_the_rest_trains():
    text = torch.arange(200) % 5
    model = ReplicaTransformer("DeepNorm", 4, seeds=[0, 1], **SHAPE)
    drawn = [weight.detach().clone() for weight in model.weights]
    head = model.head.detach().clone()
    options = {"steps": 3, "batch_size": 4, "outer_lr": 0.03, "seeds": [0, 1]}
    frozen = train_transformer(model, text, lr=0.0, **options)
    assert all(torch.equal(weight, own) for weight, own in zip(model.weights, drawn, strict=True))
    assert all(weight.grad is None for weight in model.weights)
    assert (model.head != head).all()
    again = ReplicaTransformer("DeepNorm", 4, seeds=[0, 1], **SHAPE)
    trained = train_transformer(again, text, lr=1e-3, **options)
    assert torch.equal(trained[0], frozen[0])
    assert (trained[1:] != frozen[1:]).all()


def test_frozen_rezero_is_the_same_network_at_any_depth():
    text = torch.arange(200) % 5
    options = {"steps": 3, "batch_size": 4, "lr": 0.0, "outer_lr": 0.03, "seeds": [0, 1]}
    deep, two = (
        train_transformer(ReplicaTransformer("ReZero", depth, seeds=[0, 1], **SHAPE), text, **options)
        for depth in (8, 2)
    )
    assert torch.equal(deep, two)


def losses(arrangement, below, gains):
    """Losses of an arrangement, by how far each seed is below the entropy and below its frozen network."""

    def value(config, seed):
        own = below[seed] if config["arrangement"] == arrangement else -1.0
        far = own - gains[seed] if config.get("frozen") and config["arrangement"] == arrangement else own
        return {"loss": [9.0] * 90 + [3.0 - far] * 10, "letter_entropy": 3.0, "kept": 0.5}

    return value


@pytest.mark.parametrize("arrangement", ["DeepNorm", "ReZero", "pre-norm"])
@pytest.mark.parametrize(
    ("away", "gains", "status"),
    [(0.21, (0.1, 0.2, 0.3, 0.2, 0.1), "held"), (0.19, (0.1, 0.2, 0.3, 0.2, 0.1), "not held"),
     (math.nan, (0.1, 0.2, 0.3, 0.2, 0.1), "not held"), (0.21, (0.0, 0.0, 0.0, 0.0, 0.0), "not decided"),
     (0.21, (0.1, -0.2, 0.3, -0.2, 0.1), "not decided"), (0.21, (-0.1, -0.2, -0.3, -0.2, -0.1), "not decided")],
)  # fmt: skip
def test_to_learn_is_to_be_below_the_entropy_and_below_frozen_sub_layers(arrangement, away, gains, status):
    below = [0.5, away, 0.5, 0.5, 0.5]
    outcome = made_up(f"{arrangement} learns", losses(arrangement, below, gains))
    assert outcome.status == status
    if status == "held":
        assert outcome.numbers["gain over frozen sub-layers"] == pytest.approx(gains)
        assert outcome.statistic.value == pytest.approx(0.18)


@pytest.mark.parametrize(
    ("away", "gains", "status"),
    [(0.19, 0.0, "held"), (math.nan, 0.0, "held"), (0.21, 0.0, "not held"), (0.0, 0.09, "held"),
     (0.0, 0.11, "not held")],
)  # fmt: skip
def test_post_norm_stays_if_no_seed_learns_and_sub_layers_gain_little(away, gains, status):
    value = losses("post-norm", [0.0, away, 0.0, 0.0, 0.0], [gains] * 5)
    assert made_up("post-norm does not", value).status == status


def test_how_much_of_the_input_is_kept():
    tokens = torch.randint(5, (2, 50, 6), generator=torch.Generator().manual_seed(0))
    shape = {**SHAPE, "dim": 64}
    kept = {a: kept_input(ReplicaTransformer(a, 40, seeds=[0, 1], **shape), tokens) for a in ARRANGEMENTS}
    assert kept["ReZero"].tolist() == pytest.approx([1.0, 1.0], rel=1e-4)  # less the epsilon of the norm
    assert kept["DeepNorm"].min() > 0.9
    assert kept["pre-norm"].max() < 0.4
    assert kept["post-norm"].max() < 0.1
    model = ReplicaTransformer("pre-norm", 4, seeds=[0, 1], **SHAPE)
    before, after = (state - state.mean(2, keepdim=True) for state in (model.embed(tokens), model.states(tokens)))
    cosine = nn.functional.cosine_similarity(before, after, dim=2)
    torch.testing.assert_close(kept_input(model, tokens), cosine.square().mean(1), rtol=1e-3, atol=0)


def test_the_smoke_scale_runs_and_decides_nothing(tmp_path):
    with ThreadPoolExecutor(1) as pool:
        run = execute(r20.STUDY, scale="smoke", out=tmp_path, executor=pool)
    assert failures(run) == {}
    assert {claim["status"] for claim in claims(run).values()} == {"not decided"}
    drawn = figures(run)
    assert [len([s for s in drawn[name]["series"] if s["style"] == "measured"]) for name in ("sgd", "adam")] == [16, 16]
    guides = {s["label"] for s in drawn["adam"]["series"] if s["style"] != "measured"}
    assert guides == {"depth^0.5, through DeepNorm", "depth^1, through ReZero"}
    assert {s["style"] for s in drawn["sgd"]["series"]} == {"measured", "reference"}, "what was fitted predicts nothing"
    assert [s["y"][0] for s in drawn["losses"]["series"] if s["style"] == "reference"] == [pytest.approx(3.0097, 1e-4)]
    assert len(drawn["losses"]["series"]) == 4 * 2 + 1
    gains = [s for s in drawn["gains"]["series"] if s["group"] == "ReZero"]
    found = Results(list(r20.configurations(r20.STUDY.resolve("smoke"), range(2))), levada.study.results(run))
    own, frozen = (found.column("loss", arrangement="ReZero", frozen=frozen)[1] for frozen in (False, True))
    assert own[0] == frozen[0]
    assert (gains[1]["x"], gains[1]["y"]) == ([2.0], [pytest.approx((frozen[1] - own[1]) / 2)])
