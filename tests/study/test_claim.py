from __future__ import annotations

import math

import pytest

from levada._errors import UsageError
from levada.study import Axis, Cell, Claim, Figure, Results, Series, Statistic, Study, Undecided


def grid(seeds, *, depths=(20, 56), missing=(), failures=None):
    cells = [Cell({"depth": depth}, range(seeds)) for depth in depths]
    values = {
        cell.key(seed): {"error": cell.config["depth"] + seed}
        for cell in cells
        for seed in cell.seeds
        if (cell.config["depth"], seed) not in missing
    }
    return Results(cells, values, failures)


def deeper_is_worse(results):
    shallow, deep = results.column("error", depth=20), results.column("error", depth=56)
    return min(deep) > max(shallow), {"deep": deep}, Statistic("difference", min(deep) - max(shallow), p=0.01)


CLAIM = Claim("degrades", "Deeper is worse.", "in every seed", "somebody", deeper_is_worse)


def test_a_claim_is_decided_by_its_criterion():
    outcome = CLAIM.test(grid(5))
    assert (outcome.status, outcome.seeds, outcome.numbers) == ("held", (0, 1, 2, 3, 4), {"deep": [56, 57, 58, 59, 60]})
    opposite = Claim("improves", "", "", "", lambda r: (not deeper_is_worse(r)[0], {}, None))
    assert opposite.test(grid(5)).status == "not held"
    event = CLAIM.to_event(outcome)
    assert event["statistic"] == {"name": "difference", "value": 32, "p": 0.01}
    assert event["status"] == "held"


def test_four_seeds_decide_nothing():
    outcome = CLAIM.test(grid(4))
    assert outcome.status == "not decided"
    assert "5 seeds or more, and this run has 4" in outcome.reason


def test_results_that_cannot_say_decide_nothing_and_keep_their_numbers():
    shallow = Undecided("the largest depth is 56, and the statement is about 1,202")
    outcome = Claim("overfits", "", "", "", lambda r: (shallow, {"deep": r.column("error", depth=56)}, None)).test(
        grid(5)
    )
    assert (outcome.status, outcome.reason) == ("not decided", shallow.reason)
    assert outcome.numbers == {"deep": [56, 57, 58, 59, 60]}


def test_seeds_are_counted_by_configuration_however_many_a_cell_computes():
    def spread(seeds):
        cells = [Cell({"depth": depth}, [seed]) for depth in (20, 56) for seed in range(seeds)]
        return Results(cells, {c.key(s): {"error": c.config["depth"] + s} for c in cells for s in c.seeds})

    assert CLAIM.test(spread(5)).status == "held"
    assert CLAIM.test(spread(4)).reason == "a claim is decided with 5 seeds or more, and this run has 4"
    uneven = Results([*spread(5).cells[:5], *spread(4).cells[4:]], spread(5).values)
    assert CLAIM.test(uneven).reason == "a claim is decided with 5 seeds or more, and this run has 4"


def test_one_missing_result_decides_nothing_and_is_named():
    outcome = CLAIM.test(grid(5, missing={(56, 3)}))
    assert outcome.status == "not decided"
    assert outcome.reason == "a result is missing: depth=56, seed=3"


def test_failures_are_named_before_anything_else():
    deep = Cell({"depth": 56}, range(5))
    one = CLAIM.test(grid(5, missing={(56, 3)}, failures={deep.key(3): "ValueError: no"}))
    assert (one.status, one.reason) == ("not decided", "1 of 10 results failed: ValueError: no")
    missing = {(56, 0), (56, 1)}
    few = CLAIM.test(grid(2, missing=missing, failures={deep.key(0): "ValueError: no", deep.key(1): "KeyError: 1"}))
    assert few.reason == "2 of 4 results failed: ValueError: no (errors of 2 kinds; this is the first)"
    mended = CLAIM.test(grid(5, failures={deep.key(3): "ValueError: no"}))
    assert mended.status == "held"


def test_a_claim_rests_on_the_configurations_that_it_needs():
    shallow = Claim("shallow", "", "", "", lambda r: (len(r.configs) == 1, {}, None), {"depth": (20, 32)})
    assert shallow.test(grid(5, missing={(56, 3)})).status == "held"
    assert shallow.test(grid(5, depths=(56,))).reason == "no configuration of this run measures it"


def test_keys_name_the_content():
    assert Cell({"a": 1, "b": [2.5, "x"]}, [7]).key(7) == Cell({"b": [2.5, "x"], "a": 1}, [3, 7]).key(7)
    different = [
        Cell({"a": 1}, [0]).key(0),
        Cell({"a": 1}, [1]).key(1),
        Cell({"a": 1.5}, [0]).key(0),
        Cell({"b": 1}, [0]).key(0),
    ]
    assert len(set(different)) == 4
    # The hash finds results on disk: if it changes, every stored result is lost.
    assert different[0] == "bdea844b996136cfdd340fd5e2f47c90060bc82ed9bb4d02079603c4da146518"


@pytest.mark.parametrize("config", [{"a": math.nan}, {"a": object()}, {"a": {1, 2}}])
def test_a_configuration_is_json(config):
    with pytest.raises(UsageError, match="config must be what JSON can hold"):
        Cell(config, [0])


def test_seeds_differ():
    with pytest.raises(UsageError, match="seeds must differ"):
        Cell({}, [0, 0])


def test_settings():
    study = Study(
        "R0", "nothing", "", "", (), {"seeds": 5, "lr": 0.1, "long": False, "grid": (0.1,), "kind": "plain"},
        lambda settings, seeds: [], lambda config, seeds: [], lambda settings: [], lambda results: [],
        scales={"smoke": {"seeds": 2}},
    )  # fmt: skip
    assert study.resolve("small") == {"seeds": 5, "lr": 0.1, "long": False, "grid": (0.1,), "kind": "plain"}
    changed = study.resolve("smoke", {"lr": "3e-2", "long": "true", "grid": "0.1, 1", "kind": "residual"})
    assert changed == {"seeds": 2, "lr": 0.03, "long": True, "grid": (0.1, 1.0), "kind": "residual"}
    with pytest.raises(UsageError, match="has no setting 'lrr'; it has: grid, kind, long, lr, seeds"):
        study.resolve("small", {"lrr": 1})
    for key, value in {"seeds": "2.5", "lr": "fast", "long": "maybe", "grid": "0.1,x", "kind": 3}.items():
        with pytest.raises(UsageError, match=f"setting '{key}' is of type"):
            study.resolve("small", {key: value})
    with pytest.raises(UsageError, match="seeds must be above 0, got 0"):
        study.resolve("small", {"seeds": 0})
    for key, value in {"lr": "-1", "grid": "0.1,0", "seeds": "-2"}.items():
        with pytest.raises(UsageError, match=f"study R0: {key} must be above 0, got "):
            study.resolve("smoke", {key: value})
    with pytest.raises(
        UsageError, match=r"study R0: seeds must be at most 5000, a thousand times .*, got 100000000000"
    ):
        study.resolve("smoke", {"seeds": "100000000000"})
    assert study.resolve("smoke", {"seeds": 5000})["seeds"] == 5000
    with pytest.raises(UsageError, match="setting 'seeds' is of type int; got 'inf'"):
        study.resolve("small", {"seeds": "inf"})
    with pytest.raises(UsageError, match="one of smoke, small, full, got 'huge'"):
        study.resolve("huge")


def test_a_figure_is_json_with_a_group_for_every_series():
    figure = Figure("f", "t", "c", Axis("layer"), Axis("gradient", "log"), (Series("s", "bound", [0, 1], [1, 2]),))
    event = figure.to_event()
    assert event["y"] == {"label": "gradient", "scale": "log"}
    assert event["series"][0] == {
        "label": "s", "style": "bound", "group": "s", "x": [0, 1], "y": [1, 2], "low": None, "high": None, "seed": None,
    }  # fmt: skip
