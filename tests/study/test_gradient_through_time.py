"""R13: the tasks ask what they say, slopes follow from carry and gain, and every claim can fail."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Generator, nn

from levada._errors import UsageError
from levada.cells import RNN
from levada.studies import gradient_through_time
from levada.studies import gradient_through_time_claims as claims_of
from levada.studies.gradient_through_time import CELLS, STUDY
from levada.study import Results
from levada.study.data import Dataset
from levada.study.lags import (
    ADDING_BASELINE,
    Reader,
    ReaderRecipe,
    adding,
    first_symbol,
    pixels,
    temporal_order,
    train_reader,
)

SETTINGS = STUDY.resolve("small")
CLAIMS = {claim.name: claim for claim in STUDY.claims(SETTINGS)}
SEEDS = range(5)


def results(measures, values):
    """Results of one kind of cells, of every seed; values: cell, seed -> what a run returns."""
    cells = [c for c in STUDY.configurations(SETTINGS, SEEDS) if c.config["measures"] == measures]
    return Results(cells, {c.key(seed): values(c.config["cell"], seed) for c in cells for seed in SEEDS})


def with_changed(found, cell, **changes):
    """The same results, but for some values of one cell."""
    values = copy.deepcopy(dict(found.values))
    for one in found.cells:
        for seed in one.seeds if one.config["cell"] == cell else []:
            values[one.key(seed)] |= changes
    return Results(found.cells, values)


@pytest.fixture(scope="module")
def slopes():
    cells = [c for c in STUDY.configurations(SETTINGS, SEEDS) if c.config["measures"] == "slope"]
    return Results(
        cells, {c.key(s): v for c in cells for s, v in zip(c.seeds, STUDY.run(c.config, c.seeds), strict=True)}
    )


def test_slopes_follow_from_carry_and_gain(slopes):
    outcome = CLAIMS["carry and gain"].test(slopes)
    assert outcome.status == "held"
    golden = {
        "tanh": math.log(3**-0.5),
        "LSTM, forget bias 0": -0.4521,
        "LSTM, forget bias 1": -0.1459,
        "leaky": -0.0573,
    }
    for name, value in golden.items():
        assert outcome.numbers[f"{name}: predicted"] == pytest.approx(value, abs=1e-4)
        assert sum(outcome.numbers[f"{name}: measured"]) / 5 == pytest.approx(value, rel=0.1)


def test_the_forget_gate_alone_is_not_the_law(slopes):
    outcome = CLAIMS["the forget gate alone"].test(slopes)
    assert outcome.status == "not held"
    assert outcome.numbers["LSTM, forget bias 1: predicted"] == pytest.approx(math.log(1 / (1 + math.exp(-1))))
    alone = {}
    for cell in slopes.cells:
        for seed in cell.seeds:
            gate = slopes.values[cell.key(seed)]["gate"]
            alone[cell.key(seed)] = {"gate": gate, "curve": [gate**k for k in range(claims_of.END + 1)]}
    assert CLAIMS["the forget gate alone"].test(Results(slopes.cells, alone)).status == "held"


@pytest.mark.parametrize(("factor", "status"), [(1.09, "held"), (1.11, "not held")])
def test_a_slope_may_err_by_a_tenth(slopes, factor, status):
    curve = [3 ** (-0.5 * factor * k) for k in range(claims_of.END + 1)]
    assert CLAIMS["carry and gain"].test(with_changed(slopes, "tanh", curve=curve)).status == status


def lagged(longest, horizon=None, predicted=None):
    return results(
        "lags",
        lambda cell, seed: {
            "longest": longest[cell],
            "horizon": (horizon or longest)[cell],
            "predicted": (predicted or longest)[cell],
            "accuracy": {},
        },
    )


def test_a_skip_makes_no_sense_if_none_learns_a_longer_lag():
    same = dict.fromkeys(CELLS, 20)
    claim = CLAIMS["no skip in time"]
    assert claim.test(lagged(same)).status == "held"
    longer = claim.test(lagged({**same, "leaky": 28}))
    assert longer.status == "not held"
    assert longer.statistic.value == 0  # of the three skips one
    plain = ("tanh", "tanh, four layers")
    every = {**dict.fromkeys(CELLS, 28), **dict.fromkeys(plain, 20)}
    assert claim.test(lagged(every)).statistic.value == 5
    assert claim.test(lagged({**same, "dilated": 28, "tanh, four layers": 28})).status == "held"


def test_horizons_must_rank_the_lags():
    longest = {name: 5 * (n + 1) for n, name in enumerate(CELLS)}
    claim = CLAIMS["horizon and lag"]
    assert claim.test(lagged(longest, {name: 2.0 * lag for name, lag in longest.items()})).status == "held"
    turned = claim.test(lagged(longest, {name: 100.0 - lag for name, lag in longest.items()}))
    assert turned.status == "not held"
    assert turned.numbers["Spearman's rank correlation, measured horizon"] == pytest.approx(-1.0)
    assert turned.numbers["Spearman's rank correlation, predicted horizon"] == pytest.approx(1.0)
    foreseen = claim.test(lagged(longest, longest, {name: 100.0 - lag for name, lag in longest.items()}))
    assert foreseen.status == "not held"
    assert claim.test(lagged(longest, dict.fromkeys(CELLS, math.inf))).status == "not held"  # no ranks at all


@pytest.mark.parametrize(
    ("claim", "measures", "gated", "plain", "status"),
    [
        ("adding needs a gate", "adding", 0.08, 0.16, "held"),
        ("adding needs a gate", "adding", 0.09, 0.16, "not held"),
        ("adding needs a gate", "adding", 0.08, 0.14, "not held"),
        ("order needs more than a plain cell", "temporal order", 0.95, 0.3, "held"),
        ("order needs more than a plain cell", "temporal order", 0.89, 0.3, "not held"),
        ("order needs more than a plain cell", "temporal order", 0.95, 0.91, "not held"),
    ],
)
def test_long_tasks(claim, measures, gated, plain, status):
    found = results(measures, lambda cell, seed: {"score": gated if cell.startswith("LSTM") else plain})
    assert CLAIMS[claim].test(found).status == status


def test_the_smallest_scale_runs_and_is_drawn():
    settings = STUDY.resolve("smoke")
    cells = list(STUDY.configurations(settings, range(settings["seeds"])))
    values = {c.key(s): v for c in cells for s, v in zip(c.seeds, STUDY.run(c.config, c.seeds), strict=True)}
    found = Results(cells, values)
    assert {claim.test(found).status for claim in STUDY.claims(settings)} == {"not decided"}  # of two seeds
    by_step, by_lag, tests = STUDY.figures(found)
    assert len([s for s in by_step.series if s.style == "measured"]) == 2 * len(CELLS)
    assert len([s for s in by_lag.series if s.style == "measured"]) == 2 * len(CELLS)
    assert len([s for s in tests.series if s.style == "measured"]) == 4
    assert [len(figure.series) for figure in STUDY.figures(Results([], {}))] == [0, 1, 1]


@pytest.mark.parametrize(
    ("name", "measures"), [("images pixel by pixel", "pixels"), ("pressures step by step", "pressure")]
)
def test_images_and_pressures_are_read_at_the_largest_scale(name, measures):
    full = STUDY.resolve("full")
    assert name not in CLAIMS
    (claim,) = [claim for claim in STUDY.claims(full) if claim.name == name]
    cells = [c for c in STUDY.configurations(full, SEEDS) if c.config["measures"] == measures]
    assert [c.config["cell"] for c in cells] == list(claims_of.PIXEL_CELLS)
    for gated, last, status in ((0.9, 0.9, "held"), (0.5, 0.5, "not held"), (0.9, 0.5, "not held")):
        best = {
            c.key(s): {"score": (last if s == 4 else gated) if c.config["cell"] == "GRU" else 0.5}
            for c in cells
            for s in SEEDS
        }
        assert claim.test(Results(cells, best)).status == status


def test_images_are_read(monkeypatch):
    images = torch.randint(256, (40, 4, 4), generator=Generator().manual_seed(0)).to(torch.uint8)
    data = Dataset("noise", images, torch.arange(40) % 10, images, torch.arange(40) % 10)
    monkeypatch.setattr(gradient_through_time, "mnist", lambda: data)
    settings = STUDY.resolve("full", {"pixel_steps": 2, "dim": 4})
    cells = [c for c in STUDY.configurations(settings, [0]) if c.config["measures"] == "pixels"]
    assert [c.config["cell"] for c in cells] == list(claims_of.PIXEL_CELLS)
    for cell in cells:
        (told,) = STUDY.run(cell.config, [0])
        assert 0 <= told["score"] <= 1
        assert told["steps"] == 2


def test_pressures_are_read(monkeypatch):
    signals = torch.randn(8, 20, generator=Generator().manual_seed(0))
    data = Dataset("noise", signals, torch.arange(8) % 4, signals, torch.arange(8) % 4)
    monkeypatch.setattr(gradient_through_time, "pig_cvp", lambda: data)
    settings = STUDY.resolve("full", {"pressure_steps": 2, "dim": 4})
    for cell in (c for c in STUDY.configurations(settings, [0]) if c.config["measures"] == "pressure"):
        (told,) = STUDY.run(cell.config, [0])
        assert 0 <= told["score"] <= 1
        assert told["steps"] == 2


def test_pixels_of_an_image_come_row_by_row_and_tests_are_of_other_images():
    images = torch.arange(2 * 6).view(2, 2, 3).to(torch.uint8)
    data = Dataset("numbers", images, torch.tensor([0, 1]), images + 100, torch.tensor([1, 0]))
    task = pixels(data)
    x, targets = task.draw(5, Generator().manual_seed(0))
    expected = torch.stack([images[int(t)].flatten().float() / 255 for t in targets], 1).unsqueeze(-1)
    torch.testing.assert_close(x, expected)
    seen, other = task.draw_test(5, Generator().manual_seed(0))
    assert float(seen.min()) >= 100 / 255
    assert sorted(other.tolist()) == [0, 1]  # each test image once
    assert task.num_test == 2
    assert [float(image[0, 0]) * 255 for image in seen.unbind(1)] == pytest.approx([106 - 6 * int(t) for t in other])


def test_the_first_symbol_is_all_that_tells():
    x, targets = first_symbol(7).draw(50, Generator().manual_seed(0))
    assert torch.equal(x[0, :, :4].argmax(-1), targets)
    assert not x[1:-1].any()
    assert bool((x[-1] == torch.tensor([0, 0, 0, 0, 1.0])).all())


def test_adding_has_its_baseline():
    x, targets = adding(20).draw(20_000, Generator().manual_seed(0))
    assert bool((x[:10, :, 1].sum(0) == 1).all())
    assert bool((x[10:, :, 1].sum(0) == 1).all())
    assert float((targets - 1).square().mean()) == pytest.approx(ADDING_BASELINE, rel=0.03)


def test_the_order_is_that_of_the_symbols():
    x, targets = temporal_order(30).draw(200, Generator().manual_seed(0))
    tokens = x.argmax(-1)
    for row in range(200):
        found = [int(token) for token in tokens[:, row] if token < 2]
        assert len(found) == 2
        assert targets[row] == 2 * found[0] + found[1]
    assert sorted(targets.unique().tolist()) == [0, 1, 2, 3]


def test_a_reader_learns_and_stops():
    torch.manual_seed(0)
    told = train_reader(Reader([RNN(5, 16)], 4), first_symbol(2), ReaderRecipe(300, 1e-2, enough=0.9), 0)
    assert told["score"] >= 0.9
    assert told["steps"] < 300
    assert told["curve"][0][-1] == told["steps"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: first_symbol(0), "lag must be at least 1"),
        (lambda: first_symbol(3, symbols=1), "symbols must be at least 2"),
        (lambda: adding(1), "steps must be at least 2"),
        (lambda: temporal_order(9), "steps must be at least 10"),
        (lambda: train_reader(nn.Flatten(), first_symbol(3), ReaderRecipe(1, 0.1), 0), "answers must be"),
        (lambda: ReaderRecipe(0, 0.1), "steps must be at least 1"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(UsageError, match=message):
        make()
