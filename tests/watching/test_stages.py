"""What no stage of a pipeline sees alone is judged over the records of all, without a process."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from levada.report.staged import read_together
from levada.runs.processes import Together
from levada.runs.reading import Reading

SAMPLES, EVERY, BLOCKS = 16, 10, 5
RULES = ("exploding_gradient", "exploding_signal", "vanishing_gradient", "vanishing_signal")


class Kept:
    """The signals of a stage: gradients that shrink by a factor per block, counted from the end of the pipeline."""

    def __init__(self, stage, factor, steps):
        self.sites = [{"name": f"layers.{i}", "kind": "Block", "shape": [16, 8]} for i in range(BLOCKS)]
        self.names = ("signal_rms", "gradient_rms", "update_ratio")
        self.steps, self.times = list(steps), [0.0 for _ in steps]
        behind = [BLOCKS * (1 - stage) + BLOCKS - 1 - i for i in range(BLOCKS)]
        self.rows = {
            "signal_rms": [1.0] * BLOCKS,
            "gradient_rms": [factor**n for n in behind],
            "update_ratio": [1e-3 * factor**n for n in behind],
        }

    def read(self, signal, *, first, last):
        reading = Reading()
        for step in self.steps:
            if first <= step <= last:
                reading.append(self.rows[signal])
                reading.steps.append(step)
        return reading

    def scalars(self, name):
        return [(step, 0.01) for step in self.steps]


class Record:
    """A run of two stages, of which each says that it was judged by itself."""

    path, ranks = Path("run"), (0, 1)

    def __init__(self, factor, *, adaptive=False, late=0, falling=False):
        last = SAMPLES * EVERY
        self.kept = [Kept(rank, factor, range(late * EVERY * rank, last, EVERY)) for rank in (0, 1)]
        self.told = [(s, (2 - 0.01 * s if falling else 2) + 0.01 * (s % 3)) for s in range(last)]
        self.said = {"type": "judged", "step": 0, "rules": [*RULES, "loss_spike"], "num_stages": 2, "first": 0}
        self.said["adaptive"] = adaptive

    def signals(self, rank=0):
        return self.kept[rank]

    def losses(self):
        return self.told

    def events(self, *, rank=0):
        return iter([{**self.said, "stages": [rank]}])


def judged(record):
    together = read_together(record, list(record.events()))
    return together, together.standing(SAMPLES * EVERY)


def test_a_gradient_that_vanishes_from_stage_to_stage_is_found_in_none_and_over_all():
    record = Record(0.35)
    together, standing = judged(record)
    (finding,) = together.findings
    assert finding["rule"] == "vanishing_gradient"
    assert finding["evidence"]["decades"] == pytest.approx(
        -math.log10(0.35) * 8, rel=0.01
    )  # the last block is the loss's own
    assert (finding["where"]["first"], finding["where"]["last"]) == ("layers.0 of process 0", "layers.3 of process 1")
    assert finding["claim"].endswith("Told of all stages together.")
    assert standing.verdict == finding["severity"] == "warn"
    assert set(standing.judged) == {*RULES, "loss_spike"}
    alone = Together(record, list(record.events()))
    assert alone.findings == []
    assert alone.standing(SAMPLES * EVERY).unjudged == dict.fromkeys(RULES, "each stage was judged by itself")


@pytest.mark.parametrize("adaptive", [False, True])
def test_an_even_gradient_is_healthy_and_the_rules_over_depth_have_judged(adaptive):
    together, standing = judged(Record(0.9, adaptive=adaptive, falling=True))
    assert (together.findings, standing.verdict) == ([], "healthy")
    assert set(standing.judged) == {*RULES, "loss_spike"}


def test_less_than_three_decades_are_told_where_the_optimizer_does_not_rescale():
    assert [len(judged(Record(0.5, adaptive=adaptive))[0].findings) for adaptive in (False, True)] == [1, 0]


def test_stages_that_share_few_samples_leave_the_verdict_open():
    together, standing = judged(Record(0.35, late=SAMPLES - 2))
    assert (together.findings, standing.verdict) == ([], "unknown")
    assert set(RULES) <= standing.waiting
    assert "11 samples are needed" in standing.unjudged["vanishing_gradient"]


class Copies:
    """A run of two processes with the same blocks, of which each says what it found."""

    path, ranks = Path("run"), (0, 1)

    def __init__(self, *found):
        self.found = found

    def signals(self, rank=0):
        return Kept(0, 1.0, range(0, 100, EVERY))

    def losses(self):
        return [(step, 2.0) for step in range(100)]

    def events(self, *, rank=0):
        return iter(self.found[rank])


def overflow(rank, step, tensor, *, where=None, rule="numerical_overflow"):
    claim = f"The loss of step {step} is the first that is not finite, on rank {rank}: {tensor}."
    evidence = {"step": step, "tensor": tensor, "told_at": step}
    told = {"rule": rule, "severity": "error", "status": "fired", "claim": claim, "where": where or {}}
    return {"type": "finding", "step": step, **told, "evidence": evidence}


@pytest.mark.parametrize("step", [123, 124])
def test_what_is_not_finite_is_told_by_the_process_that_met_it_first(step):
    """Of the same step, by the one that knows where it comes from."""
    together = read_together(
        run := Copies([overflow(0, 124, "weight")], [overflow(1, step, "inputs")]), [*run.events()]
    )
    first, *others = together.findings
    assert (
        first["claim"]
        == f"The loss of step {step} is the first that is not finite, on rank 1: inputs. Told by process 1."
    )
    assert (first["severity"], first["evidence"]["step"]) == ("error", step)
    followed = "What followed what process 1 met at step 123: The loss of step 124 is the first that is not finite, on"
    assert [(one["severity"], one["claim"][: len(followed)]) for one in others] == [("info", followed)] * (step == 123)
    assert together.standing(200).verdict == "error"


def test_what_other_processes_met_later_is_told_once_after_the_first():
    run = Copies([overflow(0, 123, "inputs")], [overflow(1, 124, "weight", where={"first": "0", "last": "0"})])
    run.found, run.ranks = (*run.found, [overflow(2, 125, "weight")]), (0, 1, 2)
    first, follows = read_together(run, [*run.events()]).findings
    assert (first["severity"], first["claim"]) == ("error", overflow(0, 123, "inputs")["claim"])
    assert follows["claim"].startswith("What followed what process 0 met at step 123: The loss of step 124")
