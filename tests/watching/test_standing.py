"""The verdict of a watched run: the same wherever it is told, and none before the rules have judged."""

import io
import math
from pathlib import Path

import pytest
import torch
from benchmarks.watch_verdicts.synthetic import Synthetic
from torch import nn

import levada
from levada.report.watch import watch_view
from levada.runs import Run
from levada.watching import Sample
from levada.watching.judged import standing_of
from levada.watching.lines import summary
from levada.watching.live import Live


def trained(steps, folder=None, *, every=5, **options):
    """Train a healthy model, watched; return the watch and what its live view said."""
    torch.manual_seed(0)
    net = nn.Sequential(*[nn.Sequential(nn.Linear(8, 8), nn.ReLU()) for _ in range(5)], nn.Linear(8, 1))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    with levada.watch(net, optimizer, run=folder, every=every, max_overhead=math.inf, **options) as watch:
        out = io.StringIO()
        watch.listen(Live(watch, plain=True, stream=out))
        for _ in range(steps):
            x = torch.randn(16, 8)
            optimizer.zero_grad()
            (net(x) - x.sum(1, keepdim=True)).square().mean().backward()
            optimizer.step()
    return watch, out.getvalue()


def page(folder):
    run = Run(folder)
    return watch_view(run, "mine", list(run.events()))


@pytest.mark.parametrize(("steps", "verdict"), [(3, "unknown"), (21, "unknown"), (120, "healthy")])
def test_all_places_tell_the_same_verdict_the_same_rules_and_the_same_sampling(steps, verdict, tmp_path: Path):
    watch, said = trained(steps, tmp_path / "run")
    told, shown = watch.report(), page(tmp_path / "run")
    assert told.verdict == shown["verdict"] == watch.standing.verdict == verdict
    assert f"{verdict}: nothing found" in said
    assert watch.standing.told in told.notes
    assert watch.standing.told in shown["notes"]
    assert watch.standing.counted in " ".join(said.split())
    sampling = (
        "sampled every 5 steps" if steps == 21 else "sampled once, at step 0" if steps == 3 else "sampled every 5 to 6"
    )
    assert any(sampling in note for note in told.notes)
    assert sampling in next(fact["note"] for fact in shown["facts"] if fact["label"] == "overhead")
    assert sampling in said


def test_a_training_that_is_killed_has_its_verdict_up_to_there(tmp_path: Path):
    watch, _ = trained(120, tmp_path / "run")
    events = [event for event in Run(tmp_path / "run").events() if event["type"] != "end"]
    kept = [event for event in events if event["type"] == "judged"]
    assert 3 <= len(kept) <= 10  # where it changes, and not with each sample
    assert watch_view(Run(tmp_path / "run"), "mine", [e for e in events if e is not kept[-1]])["verdict"] == "healthy"
    assert watch_view(Run(tmp_path / "run"), "mine", [e for e in events if e not in kept[1:]])["verdict"] == "unknown"
    assert len(watch.samples) > 11


def test_a_rule_has_judged_from_the_sample_on_at_which_it_could_have_spoken():
    run, seen = Synthetic(dtype=torch.float32), {}
    for sample in range(1, 20):
        run.run(1)
        for rule in standing_of(run.judge).judged:
            seen.setdefault(rule, sample)
    assert seen["numerical_overflow"] == seen["skipped_steps"] == 1
    assert seen["lost_update"] == 3
    assert seen["loss_spike"] == 3  # 41 losses
    assert seen["learning_rate_too_low"] == 5  # 81
    assert seen["vanishing_gradient"] == seen["dead_units"] == seen["frozen_layers"] == 11
    # And the finding of a fault that begins as soon as there is a baseline comes at this sample.
    other = Synthetic()
    other.run(8)
    found = []
    for _ in range(3):
        assert found == []
        found = other.run(1, lambda step, values, *_: values["gradient_rms"].__setitem__(3, 1e-9))
    assert [f.rule for f in found] == ["vanishing_gradient"]


def test_a_block_that_never_had_a_gradient_keeps_the_verdict_open_until_it_is_no_rest():
    def cut(step, values, scalars, losses):
        values["weight_gradient_rms"][2] = values["update_ratio"][2] = 0.0

    run = Synthetic()
    told = []
    for _ in range(17):
        run.run(1, cut)
        told.append((standing_of(run.judge).verdict, [f.rule for f in run.judge.findings if f.status == "fired"]))
    assert told[14] == ("unknown", [])
    assert told[15][1] == ["frozen_layers"]  # at the 16th sample, as it is said


def test_what_cannot_be_judged_here_is_said_and_keeps_no_verdict_open():
    run = Synthetic(sites=2)

    def bare(step, values, scalars, losses):
        values["zero_fraction"][:] = math.nan
        scalars.clear()

    run.run(20, bare)
    standing = standing_of(run.judge)
    assert standing.verdict == "healthy"
    assert standing.unjudged["dead_units"] == "no block was seen to have activations with exact zeros"
    assert standing.unjudged["vanishing_gradient"] == "there are 2 blocks, and a law of depth needs 4"
    judged = ("numerical_overflow", "loss_spike", "skipped_steps", "learning_rate_too_high", "frozen_layers")
    assert (standing.judged, standing.counted) == (judged, "5 of 13 rules judged it")
    assert standing.reasons.count("a law of depth") == 1  # grouped


def test_nothing_is_healthy_once_the_rules_hear_no_more():
    watch, _ = trained(120)
    assert watch.report().verdict == "healthy"
    watch.judge.sampled = None  # raises when it is called
    with watch, pytest.warns(UserWarning, match="Judge.sampled raised"):
        watch._sampled(Sample(999, 0.0, {}))
    assert watch.report().verdict == "unknown"
    assert "an error ended it, TypeError" in watch.standing.reasons
    assert any("? " in piece for line in summary(watch) for piece, _ in line)
