"""Signal to noise of gradients, what eps holds back, and scaled losses, against closed forms and loops by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from levada.diagnose import check
from levada.diagnose.update import first_update
from levada.probe import Probe
from levada.probe.damping import damped, eps_fraction
from levada.probe.noise import Noise


@pytest.mark.parametrize("snr", [0.1, 1.0, 5.0])
@pytest.mark.parametrize("batches", [2, 4, 20])
def test_the_ratio_of_normal_gradients_is_that_of_their_distribution(snr, batches):
    generator = torch.Generator().manual_seed(0)
    mean = snr * torch.randn(20_000, generator=generator)
    noise = Noise()
    for _ in range(batches):
        noise.add({"a": 3.0 * (mean + torch.randn(20_000, generator=generator)), "b": None})
    # snr^2 scatters by sqrt(2/d)/n about noise alone, and by 2 snr / sqrt(d n) beside a signal.
    error = 4 * (math.sqrt(2 / 20_000) / batches + 2 * snr / math.sqrt(20_000 * batches) + snr**2 * 0.02)
    assert noise.ratio(["a", "b"]) ** 2 == pytest.approx(snr**2, abs=error)


def test_noise_alone_has_no_signal_on_average():
    """Without the correction the mean of n gradients would seem to have a ratio of 1/sqrt(n)."""
    generator, squares = torch.Generator().manual_seed(0), []
    for _ in range(50):
        noise = Noise()
        for _ in range(4):
            noise.add({"a": torch.randn(1000, generator=generator)})
        squares.append(noise.ratio(["a"]) ** 2)
    assert sum(squares) / len(squares) < 0.01  # clamped at zero: half of sqrt(2/1000)/4 at most
    assert 10 < sum(value > 0 for value in squares) < 40


def test_one_gradient_or_none_has_no_ratio_and_equal_ones_have_no_noise():
    noise = Noise()
    assert math.isnan(noise.ratio(["a"]))
    noise.add({"a": torch.ones(3)})
    assert math.isnan(noise.ratio(["a"]))
    noise.add({"a": torch.ones(3)})
    assert noise.ratio(["a"]) == math.inf


OPTIMIZERS = {
    "Adam": {},
    "AdamW": {"amsgrad": True},
    "NAdam": {},
    "RAdam": {},
    "RMSprop": {"centered": True},
    "Adagrad": {},
    "Adadelta": {},
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("steps", [1, 5])
def test_what_eps_holds_back_is_what_moves_less_than_half_as_far(name, steps):
    """The same steps with a negligible eps: where they are more than twice as long, eps is the larger."""
    sizes = 10.0 ** torch.arange(-9.0, 1.0)
    parameter = nn.Parameter(torch.zeros(10, dtype=torch.float64))
    eps = 1e-8 if name == "Adadelta" else 1e-4
    optimizer = getattr(torch.optim, name)([parameter], eps=eps, **OPTIMIZERS[name])
    generator = torch.Generator().manual_seed(0)
    total = torch.zeros(10, dtype=torch.float64)
    for _ in range(steps):
        parameter.grad = sizes.double() * (1 + 0.1 * torch.randn(10, generator=generator, dtype=torch.float64))
        total += parameter.grad.square()
        optimizer.step()
    group, state = optimizer.param_groups[0], optimizer.state[parameter]
    if name == "Adagrad":
        root = total.sqrt()
    elif name in ("RMSprop", "Adadelta"):
        square = state["square_avg"] - (state["grad_avg"].square() if name == "RMSprop" else 0.0)
        root = square.clamp_min(0).sqrt()
    else:
        second = state["max_exp_avg_sq"] if "amsgrad" in OPTIMIZERS[name] else state["exp_avg_sq"]
        root = (second / (1 - group["betas"][1] ** steps)).sqrt()
    expected = int((root < 1e-4).sum())
    assert 3 < expected <= 10
    assert damped(optimizer, parameter) == (expected, 10)


def test_elements_without_a_gradient_are_not_counted_and_plain_sgd_has_no_eps():
    parameter = nn.Parameter(torch.zeros(4))
    parameter.grad = torch.tensor([1.0, 1e-10, 1e-30, 0.0])  # the third has a square that is no float32
    adam, sgd = torch.optim.Adam([parameter]), torch.optim.SGD([parameter], lr=0.1)
    adam.step()
    sgd.step()
    assert damped(adam, parameter) == (2, 3)
    assert damped(sgd, parameter) is None
    assert damped(adam, nn.Parameter(torch.zeros(1))) is None
    assert math.isnan(eps_fraction({}, ["a"]))


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))


X, Y = torch.randn(64, 6, generator=torch.Generator().manual_seed(1)), torch.arange(64) % 3


def test_a_check_tells_both_by_block():
    model, batches = net(), [(X[i : i + 16], Y[i : i + 16]) for i in range(0, 64, 16)]
    report = check(model, batches, optimizer=lambda p: torch.optim.Adam(p, eps=1e-2))
    gradients = []
    for x, y in batches:
        model.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters()})
    for block, weight in zip(report.blocks, ("0.weight", "2.weight", "4.weight"), strict=True):
        noise = Noise()
        for gradient in gradients:
            noise.add({weight: gradient[weight], f"{block['site']}.bias": gradient[f"{block['site']}.bias"]})
        assert block["gradient_snr"] == pytest.approx(noise.ratio([weight, f"{block['site']}.bias"]), rel=1e-4)
        assert block["eps_fraction"] == pytest.approx(float((gradients[0][weight].abs() < 1e-2).float().mean()))
        assert 0 < block["eps_fraction"] < 1
    alone = check(net(), batches[0]).blocks
    assert "gradient_snr" not in alone[0]  # one batch has no noise
    assert alone[0]["eps_fraction"] == 0.0
    assert "eps_fraction" not in check(net(), batches[0], optimizer="SGD").blocks[0]
    update = first_update(net(), gradients[0], lambda p: torch.optim.Adam(p, eps=1e-2))
    assert set(update.damped) == set(dict(net().named_parameters()))


def train(model, optimizer, steps, scaler=None, spoil=()):
    """Take steps; in the steps named, the loss overflows and the scaler skips."""
    for step in range(steps):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(X), Y) * (math.inf if step in spoil else 1.0)
        if scaler is None:
            loss.backward()
            optimizer.step()
        else:
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()


def test_a_probe_tells_them_of_a_run():
    model = net()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, eps=1e-2)
    with Probe(model, optimizer, noise=True) as probe:
        train(model, optimizer, 6)
    trace = probe.trace()
    assert bool(trace["gradient_snr"][:-1].isnan().all())
    assert bool((trace["gradient_snr"][-1] > 1).all())  # always the same batch: the gradient hardly changes
    weights = optimizer.state[model[0].weight]["exp_avg_sq"] / (1 - 0.999**6)
    assert trace.at("eps_fraction", "0")[-1] == pytest.approx(float((weights.sqrt() < 1e-2).double().mean()))
    with Probe(model, optimizer) as probe:
        train(model, optimizer, 2)
    assert bool(probe.trace()["gradient_snr"].isnan().all())


@pytest.mark.parametrize("fused", [False, True])
def test_a_loss_scale_is_divided_out(fused):
    traces = []
    for scaled in (False, True):
        model = net()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=fused)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12) if scaled else None
        with Probe(model, optimizer, scaler=scaler) as probe:
            train(model, optimizer, 3, scaler)
        traces.append(probe.trace())
    for signal in ("gradient_rms", "weight_gradient_rms", "update_ratio"):
        assert torch.allclose(traces[0][signal], traces[1][signal], rtol=1e-4), signal


def test_passes_whose_step_was_skipped_are_left_out():
    traces = []
    for spoil in ((), (1,)):
        model = net()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
        with Probe(model, optimizer, scaler=scaler) as probe:
            train(model, optimizer, 3 + len(spoil), scaler, spoil)
        traces.append(probe.trace())
    assert traces[0].steps == traces[1].steps == (0, 1, 2)
    assert torch.allclose(traces[0]["gradient_rms"], traces[1]["gradient_rms"], rtol=1e-4)
    assert bool((traces[1]["gradient_nonfinite"] == 0).all())


@pytest.mark.parametrize(("loop", "scale"), [("scaled", 2.0**12), ("plain", 1.0), ("clipped", 1.0), ("kept", 1.0)])
def test_a_scaled_loss_is_noticed_where_no_scaler_was_given(loop, scale):
    model = net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12) if loop == "scaled" else None
    with Probe(model, optimizer) as probe:
        if loop in ("scaled", "plain"):
            train(model, optimizer, 3, scaler)
        for _ in range(3 if loop in ("clipped", "kept") else 0):
            if loop == "clipped":
                optimizer.zero_grad()
            nn.functional.cross_entropy(model(X), Y).backward()
            if loop == "clipped":
                nn.utils.clip_grad_norm_(model.parameters(), 0.01)
            optimizer.step()
    assert probe.trace().context["loss_scale"] == scale
