"""A loss whose sign is reversed falls without a bound; log densities, rewards and similarities do not."""

import math

import pytest
import torch
from benchmarks.watch_verdicts.synthetic import Synthetic
from torch import nn
from torch.nn import functional

import levada
from levada.diagnose.finding import Finding
from levada.watching.verdict.account import report
from levada.watching.verdict.falling import Falling
from levada.watching.verdict.overshot import Before, blamed


def following(course, constant=None):
    def edit(step, values, scalars, losses):
        losses[:] = [(s, course(s)) for s, _ in losses]
        if constant is not None:
            scalars["constant_loss"] = scalars["constant_of_batch"] = constant(step)

    return edit


def said(run):
    return [f for f in run.judge.findings if f.rule == "maximised_loss"]


COURSES = {
    "outputs that grow with each step": (lambda s: -2.3 - 0.1 * s**1.5, "unknown"),
    "a power of the steps": (lambda s: 1.0 - 1e-3 * s**3, "unknown"),
    "the logarithm of a density that Adam narrows": (lambda s: 0.01 - 0.003 * s, "healthy"),
    "the logarithm of a density that narrows": (lambda s: 0.5 - 100 * math.log1p(s), "healthy"),
    "one that began near zero": (lambda s: 0.01 - 300 * (1 - math.exp(-s / 60)), "healthy"),
    "a reward that has a most": (lambda s: -0.1 - 50 * s / (s + 200), "healthy"),
    "a similarity": (lambda s: -0.2 - 0.7 * (1 - math.exp(-s / 100)), "healthy"),
    "a power that is a few times its first": (lambda s: -50.0 - s, "healthy"),
    "a positive loss that grows": (lambda s: 2.3 + s**1.5, None),
}


@pytest.mark.parametrize("name", COURSES)
def test_a_negative_loss_without_a_bound_is_an_information_and_no_run_of_it_healthy(name):
    course, verdict = COURSES[name]
    run = Synthetic()
    run.run(30, following(course))
    assert [f.severity for f in said(run)] == (["info"] if verdict == "unknown" else [])
    if verdict is not None:
        assert report(run.judge).verdict == verdict
    if verdict == "unknown":
        assert "falls without a bound so far" in said(run)[0].claim


@pytest.mark.parametrize(
    ("constant", "severities"),
    [
        (lambda s: -2.3, ["warn"]),
        (lambda s: 2.3, []),
        (lambda s: 2.3 if s < 40 else -2.3, []),
    ],  # turns, of adversaries
)
def test_a_negative_multiple_of_a_cross_entropy_that_falls_is_a_warning(constant, severities):
    run = Synthetic()
    run.run(30, following(lambda s: -2.3 - 0.01 * s, constant))
    assert [f.severity for f in said(run)] == severities


def test_scatter_is_no_fall():
    run = Synthetic()
    run.run(30, following(lambda s: -2.3 - 0.001 * (s % 7), lambda s: -2.3))
    assert not said(run)


def test_what_falls_no_more_without_a_bound_is_taken_back():
    run = Synthetic()
    run.run(60, following(lambda s: -2.3 - 0.1 * min(s, 600) ** 1.5))
    assert [f.status for f in said(run)] == ["clear"]


def after(count, course):
    falling = Falling()
    for n in range(1, count + 1):
        falling.add(n, course(n))
    return falling


def test_powers_are_those_between_ends_a_factor_of_two_apart():
    falling = after(300, lambda n: -(min(n, 256) ** 2.0))
    assert falling.power == pytest.approx(math.log(4) / math.log(300 / 128))
    assert [count for count, _ in falling.marks] == [64, 128, 256]


@pytest.mark.parametrize(("power", "unbounded"), [(0.5, False), (1.0, False), (1.2, False), (1.3, True), (2.0, True)])
def test_what_grows_ever_more_slowly_has_a_bound(power, unbounded):
    assert after(300, lambda n: -0.01 if n <= 16 else -(n**power)).unbounded is unbounded


@pytest.mark.parametrize(("size", "unbounded"), [(200.0, False), (100.0, True)])
def test_thirty_times_the_first_losses_is_without_a_bound(size, unbounded):
    falling = after(300, lambda n: -size if n <= 16 else -(n**1.5))
    assert (falling.fold, falling.unbounded) == (pytest.approx(300**1.5 / size), unbounded)


def test_the_first_losses_have_the_size_of_the_largest_of_sixteen():
    falling = after(300, lambda n: -0.01 if n in (1, 16) else -200.0 if n == 9 else -(n**1.5))
    assert (falling.fold, falling.unbounded) == (pytest.approx(300**1.5 / 200), False)


def test_a_loss_that_was_above_zero_within_the_stretches_has_no_power():
    falling = after(300, lambda n: 1.0 if n < 100 else -(n**2.0))
    assert (falling.power, falling.unbounded) == (0.0, False)
    falling = after(600, lambda n: 1.0 if n < 100 else -(n**2.0))
    assert (falling.power, falling.unbounded) == (pytest.approx(2.0), True)


def test_a_few_losses_have_no_bound_yet():
    assert not after(127, lambda n: -0.01 * n**3).unbounded
    assert after(128, lambda n: -0.01 * n**3 if n > 16 else -1.0).unbounded


def test_a_cross_entropy_with_its_sign_turned_is_named_in_a_real_training():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    with levada.watch(net, optimizer, every=5, max_overhead=math.inf) as watch:
        for _ in range(60):
            x = torch.randn(32, 8)
            optimizer.zero_grad()
            (-functional.cross_entropy(net(x), x[:, :3].argmax(1))).backward()
            optimizer.step()
    (finding,) = [f for f in watch.findings if f.rule == "maximised_loss"]
    assert (finding.severity, watch.report().verdict) == ("warn", "warn")
    assert "is a negative multiple of a cross entropy or a mean square and falls:" in finding.claim


def to_the_end(sign, steps=400, stop=None):
    """Train a classifier whose loss has a sign, up to its first NaN and a little behind."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(8, 32), *(nn.Sequential(nn.Linear(32, 32), nn.ReLU()) for _ in range(3)), nn.Linear(32, 4)
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05 if sign < 0 else 30.0, momentum=0.9)
    with levada.watch(model, optimizer, max_overhead=math.inf) as watch:
        for _ in range(steps):
            y = torch.randint(4, (64,))
            x = torch.nn.functional.one_hot(y, 8) + torch.randn(64, 8)
            optimizer.zero_grad()
            (sign * functional.cross_entropy(model(x), y)).backward()
            optimizer.step()
    return next(f for f in watch.findings if f.rule == "numerical_overflow")


def test_a_nan_at_the_end_of_a_loss_that_is_maximised_is_blamed_on_its_sign():
    found = to_the_end(-1.0)
    assert found.evidence["explained_by"] == "sign"
    assert found.evidence["maximised_loss"]["to"] < -10
    assert "its sign is reversed, or that of the step, unless that is meant" in found.claim
    assert "learning_rate_too_high" not in found.evidence


def test_a_nan_of_too_long_steps_is_not():
    found = to_the_end(1.0)
    assert "maximised_loss" not in found.evidence
    assert "sign" not in found.claim


@pytest.mark.parametrize(
    ("losses", "said"),
    [
        ([-1.0, -1.5, -2.1], True),
        ([-1.0, -1.5, -1.9], False),
        ([0.5, -0.1], True),
        ([-2.0, -1.0], False),
        ([2.0, 5.0], False),
        ([], False),
    ],
)
@pytest.mark.parametrize("negated", [True, False])
def test_the_sign_is_blamed_where_the_loss_fell_far(losses, said, negated):
    finding = Finding(
        "numerical_overflow",
        "error",
        "fired",
        "It is.",
        {},
        {"step": 9, "tensor": "loss", "explained_by": None},
        "",
        "",
        "",
    )
    known = Before((), None, tuple(enumerate(losses)), 0.1, False, negated=negated)
    assert ("maximised_loss" in blamed(finding, known, None).evidence) == (said and negated)
