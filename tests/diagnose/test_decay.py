"""The estimator of the factor per block: its interval covers, and the worst span is found where it is."""

from __future__ import annotations

import math

import pytest
import torch

from levada.diagnose.decay import Decay, size_decay
from levada.diagnose.facts import Facts
from levada.diagnose.report import Report
from levada.probe.trace import Site, Trace


def growth(rows) -> Decay:
    """Fit rows of log10 factors per block, through the public reading of a trace; the last block is the head."""
    rows = torch.as_tensor(rows, dtype=torch.float64)
    zero = torch.zeros(len(rows), 1, dtype=torch.float64)
    logs = torch.cat([zero, rows, zero], 1)
    logs = logs.cumsum(1)
    sites = tuple(Site(str(i), i, "Linear", (4, 8)) for i in range(logs.shape[1]))
    found = size_decay(Trace(sites, (0,) * len(rows), {"signal_rms": 10.0**logs}, {"facts": Facts()}))
    assert isinstance(found, Decay)
    return found


@pytest.mark.parametrize("kind", ["normal", "laplace", "student"])
@pytest.mark.parametrize("num", [4, 6, 10, 20])
def test_the_interval_covers_nineteen_times_in_twenty(kind, num):
    torch.manual_seed(num)
    trials, draws = 700, 4
    law = {
        "normal": torch.distributions.Normal(0.0, 0.1),
        "laplace": torch.distributions.Laplace(0.0, 0.1),
        "student": torch.distributions.StudentT(4.0, 0.0, 0.1),
    }[kind]
    blocks = law.sample((trials, 1, num)).double()
    noise = 0.02 * torch.randn(trials, draws, num + 1, dtype=torch.float64)
    hits = 0
    for one, error in zip(blocks, noise, strict=True):
        found = growth(one + error.diff())
        hits += found.low <= 1.0 <= found.high
    # 700 trials tell a share of .95 to .016 at two standard deviations.
    assert 0.92 <= hits / trials <= 0.985


def test_the_interval_of_yuen_in_closed_form():
    # 0..9 tenths: one is trimmed on either side, eight remain; winsorised: 1 1 2 ... 8 8 tenths.
    found = growth([[i / 10 for i in range(10)]])
    assert math.log10(found.value) == pytest.approx(0.45)
    squares = 2 * (2 * 0.35**2 + 0.25**2 + 0.15**2 + 0.05**2)  # of the ten winsorised values about 0.45
    half = 2.365 * math.sqrt(squares / (8 * 7))
    assert math.log10(found.high / found.value) == pytest.approx(half, rel=1e-6)
    assert math.log10(found.value / found.low) == pytest.approx(half, rel=1e-6)


def test_one_block_tells_no_scatter():
    found = growth([[-4.0]])
    assert (found.low, found.high) == (0.0, math.inf)
    assert "low" not in found.told()
    assert not found.excludes_criticality()


def test_where_the_interval_says_nothing_the_blocks_own_factors_are_told():
    found = growth([[-9.0, 2.0]])
    assert found.high > 1e60 * found.low
    assert (found.told()["least"], found.told()["most"]) == pytest.approx((1e-9, 1e2))
    assert found.interval() == "no one factor can be told: its 2 blocks have 1e-09 to 100; theory has no value here"
    told = growth([[-0.5, -0.6, -0.4, -0.5]])
    assert "least" not in told.told()
    assert told.interval().startswith("95 % interval 0.2")


def test_a_report_tells_what_the_blocks_have_instead_of_an_interval_that_says_nothing():
    summary = {"depth": 4, "gradient_decay_per_block": growth([[-9.0, 2.0]]).told()}
    line = str(Report("healthy", (), (), summary, (), "Net", 3, 0.0)).splitlines()[1]
    assert line.endswith("x0.0003162 (no one factor can be told: the blocks have x1e-09 to x100)")


def test_three_blocks_are_too_few_for_an_error_and_four_are_not():
    assert not growth([[-2.0] * 3]).excludes_criticality()
    assert growth([[-2.0] * 4]).excludes_criticality()
    assert growth([[2.0] * 4]).excludes_criticality(grows=True)
    assert not growth([[2.0] * 4]).excludes_criticality()


def test_draws_that_disagree_widen_the_interval():
    alike, apart = growth([[-0.5] * 8] * 4), growth([[-0.1] * 8, [-0.9] * 8] * 2)
    assert alike.value == pytest.approx(apart.value)
    assert alike.high == pytest.approx(alike.value)
    assert not apart.excludes_criticality()


@pytest.mark.parametrize(("before", "after"), [(100, 0), (0, 100), (60, 60)])
def test_the_worst_span_is_found_between_blocks_at_criticality(before, after):
    torch.manual_seed(0)
    critical = (0.01 * torch.randn(before + after)).tolist()
    for sign in (-1.0, 1.0):
        steps = [*critical[:before], *[sign * 0.85] * 9, *critical[before:]]
        whole = growth([steps])
        assert whole.value == pytest.approx(1.0, abs=0.02)  # the trimmed mean of all blocks does not see it
        span = whole.steepest(grows=sign > 0)
        assert (span.first, span.last) == (before, before + 9)
        assert span.value == pytest.approx(10 ** (sign * 0.85))
        assert span.total == pytest.approx(-sign * 7.65)
        assert whole.steepest(grows=sign < 0) is None or whole.steepest(grows=sign < 0).spread_out(grows=sign < 0) < 0.1


def test_a_loss_within_the_tolerated_factor_is_no_span():
    assert growth([[-0.045] * 200]).steepest() is None
    assert growth([[-0.047] * 200]).steepest().total == pytest.approx(9.4)


def test_one_large_step_is_not_spread_out():
    assert growth([[0.0, 0.0, -5.0, 0.0, 0.0]]).steepest().spread_out() == 0.0
    assert growth([[0.0, -1.0, -5.0, -1.0, 0.0]]).steepest().spread_out() == pytest.approx(3.0)
