"""What pages show as measured is what the newest rows of the benchmarks hold."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODELS = ("transformer, 12 layers of 256", "ResNet-56, 64 images", "MLP, 1000 layers of 64")
WHAT = {
    "default settings, 400 steps": "default settings",
    "the same, recorded": "default settings, recorded",
    "a sampled step": "a sampled step",
    "a step that is not sampled": "a step not sampled",
    '`wandb.watch(log="all", log_freq=20)`, offline': "wandb.watch(log='all', log_freq=20)",
    "naive hooks: mean, deviation and norm of every output and gradient, each step": "naive hooks, every step",
}
SHORT = {
    "a hook behind the optimizer's step that does nothing": "empty hook behind the optimizer's step",
    "all five hooks that a watch has, doing nothing": "empty hooks, all that a watch has",
    "watched, and heard": "a step not sampled",
    "watched, in mixed precision (bfloat16, a scaler)": "a step not sampled, mixed precision",
    "watched, with a record": "a step not sampled, recorded",
    "at default settings, behind 20,000 steps, samples counted: with pauses": "default settings, after 20,000 steps",
}


def newest(name):
    lines = (ROOT / "benchmarks" / "results" / f"{name}.jsonl").read_text().splitlines()
    return {row["case"]: row for row in map(json.loads, lines)}  # a later one replaces those before it


def rows_of(page, label):
    """The cells of each row of the table in which a row begins with `label`."""
    text = (ROOT / "docs" / f"{page}.md").read_text()
    tables = [part for part in re.split(r"\n\n", text) if part.startswith("| ") and f"\n| {label} |" in part]
    (table,) = tables
    return {cells[0]: cells[1:] for line in table.splitlines() if (cells := line.strip("| ").split(" | "))}


def assert_shown(cell, ratio, aim=None):
    shown = cell.replace("*", "")
    numbers = re.fullmatch(r"(\d+\.\d+) \[(\d+\.\d+), (\d+\.\d+)\]", shown)
    assert numbers, f"{cell!r} is no median with its quartiles"
    for text, key in zip(numbers.groups(), ("median", "q1", "q3"), strict=True):
        assert text == f"{ratio[key]:.{len(text.partition('.')[2])}f}", f"{cell} is not the newest row, {ratio}"
    if aim is not None:
        assert cell.startswith("**") == (ratio["median"] > aim), f"bold is what is above {aim}: {cell}"


@pytest.mark.parametrize("label", WHAT)
def test_what_watching_costs(label):
    rows, cells = newest("watch"), rows_of("watch_cost", next(iter(WHAT)))[label]
    assert len(cells) == len(MODELS)
    for model, cell in zip(MODELS, cells, strict=True):
        row = rows[f"{model}, {WHAT[label]}"]
        assert_shown(cell, row["extra"]["processor"], row["target"])


@pytest.mark.parametrize("label", SHORT)
def test_what_watching_short_steps_costs(label):
    (cell,) = rows_of("watch_cost", next(iter(SHORT)))[label]
    assert_shown(cell, newest("watch")[f"MLP, 8 layers of 64, {SHORT[label]}"]["extra"]["processor"])


def test_what_was_tried_on_a_run():
    rows = newest("faults")
    page = (ROOT / "docs" / "runs.md").read_text()
    said = page[page.index("## What was tried on it") : page.index("| volume |")]
    trials = {case: row["extra"] for case, row in rows.items() if row["target"] == 0.0}
    assert all(rows[case]["ratio"]["median"] == 0 for case in trials)

    def columns(case, form, of=trials):
        return " | ".join(form.format(**of[f"{case}, {suffix}"]) for suffix in ("parquet", "frames")) + " |"

    sealed = {
        case: one | {"kept": one["numbers_kept"] / (one["numbers_kept"] + one["numbers_lost"])}
        for case, one in trials.items()
        if case.startswith("sealed again")
    }
    assert f"trials, failures | {columns('kill -9 at a random moment', '{trials}, 0')}" in said
    assert (
        f"not yet removed | {columns('kill -9 at a random moment', '{half_sealed}; {sealed_beside_their_tail}')}"
        in said
    )
    assert f"samples read back | {columns('kill -9 at a random moment', '{segments:,}, {samples_read:,}')}" in said
    assert f"trials, failures | {columns('a file cut at every byte', '{trials:,}, 0')}" in said
    assert columns("a file cut at every byte", "{detected:,}; {harmless}; {earlier}") in said
    assert f"trials, failures | {columns('a random bit flipped', '{trials:,}, 0')}" in said
    assert columns("sealed again after a flip", "{trials}, 0, {kept:.1%}", sealed).replace("%", " %") in said
    for case, form in {
        "a full disk": "{samples_stored} samples stored and whole, {dropped:,} counted as dropped",
        "two writers on one folder": "{trials} trials; each time one of\nthem had it",
        "a log cut, or a bit flipped, at every byte, and written again": "no failure; {events_kept:,} events read",
        "kill -9 of a log's mending, before all that it does to a file": "before each of the {trials} things",
        "kill -9 of a log's mending at a random moment": "({left_as_it_was}) or whole, never in between",
        "a clock that goes backwards": "{samples_right} of {trials} samples right",
    }.items():
        assert form.format(**trials[case]) in said


VOLUME = {
    "bytes a value: 200 sites x 1024 samples x 8 signals of a real training": "200 sites x 1,024 samples x 8 signals",
    "bytes a value: 10000 sites x 1000 samples x 8 signals": "10,000 sites x 1,000 samples x 8 signals",
    "open and read a site: 10000 sites x 1000 samples x 8 signals": "one signal of one of 10,000 sites are read",
}


@pytest.mark.parametrize("case", VOLUME)
def test_how_large_a_run_is_and_how_soon_it_is_open(case):
    row = newest("faults")[case]
    assert row["ratio"]["median"] <= row["target"]
    assert f"{VOLUME[case]} | {row['ratio']['median']:.2f} |" in (ROOT / "docs" / "runs.md").read_text()


def test_curves_of_killed_trainings_are_those_of_trainings_left_alone():
    rows = [json.loads(line) for line in (ROOT / "benchmarks" / "results" / "restart.jsonl").read_text().splitlines()]
    last = {row["kind"]: row for row in rows}
    assert {*last} >= {"ddp", "fsdp", "pipeline"}
    for row in last.values():
        assert row["same steps"]
        assert row["largest difference"] == 0
        assert len(row["continued after"]) > 1
