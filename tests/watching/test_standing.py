"""The verdict of a watched run: the same wherever it is told, and none before the rules have judged."""

import io
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from benchmarks.watch_verdicts.synthetic import Synthetic
from torch import nn

import levada
from levada._names import CALLED
from levada.probe.trace import Site
from levada.report.watch import watch_view
from levada.runs import Run
from levada.runs.standing import Standing
from levada.watching import Sample
from levada.watching.measure.sample import WATCHED
from levada.watching.record.recording import Recording
from levada.watching.show.lines import finding_lines, summary
from levada.watching.show.live import Live
from levada.watching.verdict.account import report
from levada.watching.verdict.judged import standing_of


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
    assert f"{CALLED[verdict]}: nothing found" in said
    assert watch.standing.told in told.notes
    assert watch.standing.told in shown["notes"]
    assert watch.standing.counted in " ".join(said.split())
    sampling = (
        "sampled every 5 steps" if steps == 21 else "sampled once, at step 0" if steps == 3 else "sampled every 5 to 6"
    )
    assert any(sampling in note for note in told.notes)
    assert sampling in next(fact["note"] for fact in shown["facts"] if fact["label"] == "overhead")
    assert sampling in said


def test_a_run_that_was_sampled_to_its_middle_is_called_healthy_up_to_there_wherever_that_stands_first(tmp_path: Path):
    watch, _ = trained(120, tmp_path / "run")
    seen = replace(watch.standing, sampled=60)
    told = report(watch.judge, model=watch.model, standing=seen)
    called = "healthy up to step 60 of 120"
    assert (told.verdict, told.called, told.to_dict()["called"]) == ("healthy", called, called)
    assert str(told).startswith(f"{called}: Sequential, ")
    assert called in " ".join(told.to_html(tmp_path / "page.html").read_text().split())
    line = "".join(piece for piece, _ in finding_lines([], [], seen, 200, 4, True)[0])
    assert line.startswith(f"✓ {called}: nothing found, ")
    assert "up to" not in line.removeprefix(f"✓ {called}")
    assert watch.report().called == "healthy"


def test_what_is_told_to_be_lacking_is_what_a_verdict_takes():
    run, told = Synthetic(every=1, dtype=torch.float32), []
    for _ in range(70):
        run.run(1)
        told.append(standing_of(run.judge))
    for made, standing in enumerate(told, 1):
        lacks = standing.lacking.get("samples", 0), standing.lacking.get("losses", 0)
        assert lacks == (max(11 - made, 0), max(64 - made, 0))
        assert (standing.verdict == "unknown") == any(lacks)
    assert told[0].counted.endswith("; 10 more sampled steps and 63 more losses are needed")
    assert told[9].headline == "Too few samples to judge: 1 more sampled step and 54 more losses are needed"
    assert told[62].counted.endswith("; 1 more loss is needed")
    assert told[63].wanted == ""


def test_what_a_rule_that_waits_for_nothing_would_need_is_not_asked_for():
    run = Synthetic(every=1, dtype=torch.float32)
    run.run(30, lambda step, values, scalars, losses: losses.clear())
    standing = standing_of(run.judge)
    assert (standing.verdict, standing.wanted, standing.lacking) == ("healthy", "", {})


def test_what_was_measured_of_other_blocks_is_not_taken_for_these():
    run = Synthetic(every=1, dtype=torch.float32)
    run.run(12)
    assert "vanishing_gradient" in standing_of(run.judge).judged
    run.source.sites = run.sites = run.sites[:4]
    run.source.model = nn.ModuleList(list(run.source.model)[:4])

    def without(step, values, scalars, losses):
        values["gradient_rms"].fill_(math.nan)

    run.run(12, without)
    assert standing_of(run.judge).unjudged["vanishing_gradient"] == "no gradient was measured at a block"


def test_more_samples_are_not_asked_for_where_they_would_not_help():
    run = Synthetic(every=1)
    run.run(1)
    run.judge.ended["lost_update"] = "an error ended it"
    standing = standing_of(run.judge)
    assert standing.lacking == {"samples": 10, "losses": 63}
    assert standing.wanted == ""


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


def off(at):
    """Leave a block and all before it without an activation or a gradient, on some samples."""

    def edit(step, values, scalars, losses):
        if at(step):
            values["zero_fraction"][2] = 1.0
            values["weight_gradient_rms"][:3] = 0.0

    return edit


def test_a_block_that_is_wholly_off_on_all_of_the_last_samples_is_not_called_healthy_whatever_its_habit():
    run = Synthetic()
    run.run(11, off(lambda step: step == 20 or step >= 100))
    standing = standing_of(run.judge)
    assert (standing.verdict, run.judge.findings) == ("unknown", [])  # by its habit it may rest still
    assert standing.waiting == {"dead_units"}
    assert standing.unjudged["dead_units"].startswith(
        "layers.2 gave nothing but zeros and got no gradient on the last 4"
    )
    run.run(1, off(lambda step: True))
    assert [(f.rule, f.severity) for f in run.judge.findings] == [("dead_units", "error")]
    rests = Synthetic()
    rests.run(24, off(lambda step: step % 80 > 0))  # three samples of four
    assert (standing_of(rests.judge).verdict, rests.judge.findings) == ("healthy", [])


def test_what_cannot_be_judged_here_is_said_and_keeps_no_verdict_open():
    run = Synthetic(sites=2)

    def bare(step, values, scalars, losses):
        values["zero_fraction"][:] = math.nan
        scalars.clear()

    run.run(20, bare)
    standing = standing_of(run.judge)
    assert standing.verdict == "healthy"
    assert standing.unjudged["dead_units"] == "no block was seen to have activations with exact zeros"
    told = "there are 2 blocks, and it takes 3 to compare one with the others"
    assert standing.unjudged["vanishing_gradient"] == told
    judged = ("numerical_overflow", "loss_spike", "skipped_steps", "accumulated_gradients")
    judged += ("learning_rate_too_high", "frozen_layers")
    judged += ("exploding_signal", "vanishing_signal", "exploding_gradient")  # at a block in time, if not over depth
    assert (standing.judged, standing.counted) == (judged, "9 of 16 rules judged it")
    assert standing.reasons.count("the learning rate is not known") == 1  # grouped
    alone = Synthetic(sites=1)
    alone.run(10)
    assert standing_of(alone.judge).unjudged["exploding_gradient"].startswith("11 samples are needed")
    alone.run(1)
    assert standing_of(alone.judge).unjudged["vanishing_gradient"].startswith("there is 1 block, ")


def keep(*names, losses=True):
    """Leave of a sample only these signals; the others were not measured."""

    def edit(step, values, scalars, told):
        for name in set(values) - set(names):
            values[name][:] = math.nan
        if not losses:
            told.clear()

    return edit


def test_a_run_of_which_nothing_was_measured_is_not_healthy():
    run = Synthetic()
    run.run(80, keep(losses=False))
    standing = standing_of(run.judge)
    assert (standing.verdict, standing.judged) == ("unknown", ("skipped_steps",))
    assert standing.unjudged["numerical_overflow"] == "no signal, no gradient and no loss was measured"


@pytest.mark.parametrize(
    ("measured", "losses", "verdict", "silent"),
    [
        (("signal_rms", "nonfinite", "weight_gradient_rms"), False, "unknown", "vanishing_gradient"),
        (("weight_rms", "update_ratio"), True, "unknown", "vanishing_signal"),
        (("signal_rms",), True, "healthy", "exploding_gradient"),
        (("gradient_rms",), True, "healthy", "exploding_signal"),
        (("signal_rms", "gradient_rms"), False, "healthy", "vanishing_signal"),
    ],
)
def test_a_rule_whose_signal_was_not_measured_has_not_judged(measured, losses, verdict, silent):
    run = Synthetic()
    run.run(80, keep(*measured, losses=losses))
    standing = standing_of(run.judge)
    assert standing.verdict == verdict, standing.told
    assert silent in standing.unjudged
    assert "was measured" in standing.unjudged[silent] or "no loss" in standing.unjudged[silent]


def test_a_run_that_tells_no_gradient_and_no_loss_is_not_healthy():
    torch.manual_seed(0)
    net = nn.Sequential(*[nn.Linear(8, 8, bias=False) for _ in range(5)], nn.Linear(8, 1))
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-9)
    with levada.watch(net, optimizer, every=1, max_overhead=math.inf) as watch:
        for _ in range(40):
            loss = net(torch.randn(16, 8)).square().mean()
            for parameter, gradient in zip(
                net.parameters(), torch.autograd.grad(loss, list(net.parameters())), strict=True
            ):
                parameter.grad = gradient  # no backward pass, of which the watch would hear
            optimizer.step()
    assert watch.standing.verdict == "unknown"
    assert watch.standing.unjudged["vanishing_gradient"] == "no gradient was measured at a block"


def test_rules_that_need_a_loss_wait_for_it_where_signal_or_gradient_leaves_its_range():
    def grown(step, values, scalars, losses):
        losses.clear()
        values["signal_rms"][4:] = 1e5

    run = Synthetic()
    run.run(20, keep(*WATCHED, losses=False))
    assert standing_of(run.judge).verdict == "healthy"  # by the others
    run.run(3, grown)
    standing = standing_of(run.judge)
    assert standing.verdict == "unknown"
    assert standing.unjudged["exploding_signal"] == "no loss was seen, and signal or gradient spans three decades"


def test_rules_that_speak_where_nothing_was_learned_wait_for_as_many_losses():
    def first(step, values, scalars, losses):
        del losses[1:]

    run = Synthetic()
    run.run(63, first)
    assert {"exploding_signal", "exploding_gradient", "vanishing_signal"} <= standing_of(run.judge).waiting
    run.run(1, first)
    assert standing_of(run.judge).verdict == "healthy"


def test_nothing_is_healthy_once_the_rules_hear_no_more():
    watch, _ = trained(120)
    assert watch.report().verdict == "healthy"
    watch.judge.sampled = None  # raises when it is called
    with watch, pytest.warns(UserWarning, match="Judge.sampled raised"):
        watch._sampled(Sample(999, 0.0, {}))
    assert watch.report().verdict == "unknown"
    assert "an error ended it, TypeError" in watch.standing.reasons
    assert any("? " in piece for line in summary(watch) for piece, _ in line)


def test_of_a_run_that_is_not_finite_from_its_first_step_on_nothing_else_is_told_as_missing():
    model = nn.Sequential(*(nn.Sequential(nn.Linear(4, 4), nn.ReLU()) for _ in range(3)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with levada.watch(model, optimizer, every=1, max_overhead=math.inf) as watch:
        for _ in range(20):
            optimizer.zero_grad()
            (model(torch.randn(8, 4)) * float("nan")).square().mean().backward()
            optimizer.step()
    why = {text for rule, text in watch.standing.unjudged.items() if rule in watch.standing.waiting}
    assert why == {"the numbers are not finite from step 0 on"}


@pytest.mark.parametrize("steps", [12, 50, 120, 202])
def test_a_training_that_was_too_short_says_at_which_distance_it_would_not_have_been(steps, tmp_path: Path):
    def train(every):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 2))
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
        with levada.watch(model, optimizer, every=every, max_overhead=math.inf) as watch:
            for _ in range(steps):
                assert watch.nearer == "", "how long the training is to be is not known"
                optimizer.zero_grad()
                model(torch.randn(4, 8)).square().mean().backward()
                optimizer.step()
        return watch

    told = train(20).nearer
    every = int(told.removeprefix("with every=").split()[0])
    assert told == f"with every={every} these {steps} steps have 11 samples"
    near = train(every)
    assert "samples" not in near.standing.lacking
    assert near.nearer == ""
    assert f"; {told}; " in str(train(20).report())


def test_a_reason_whose_numbers_alone_change_is_kept_ever_more_rarely(tmp_path: Path):
    watch = SimpleNamespace(sites=(Site("0", 0, "Linear", (4, 2)),), findings=[], overhead=0.0, steps=0)
    recording = Recording(tmp_path / "run", watch)
    for step in range(100):
        word = "flat" if step < 90 else "up"
        why = {"loss_spike": f"the loss is {word}, {2.5 - step / 1000:.4g} at step {1000 * step:,}"}
        watch.standing, watch.steps = Standing((), ("dead_units",), why, frozenset(why)), step + 1
        recording.sampled(Sample(step, 1.0, {"gradient_rms": torch.tensor([0.5])}))
    recording.close()
    told = list(Run(tmp_path / "run").events("judged"))
    # The last is the one of the end.
    assert [event["step"] for event in told] == [0, 1, 3, 7, 15, 31, 63, 90, 99]
    assert told[-1]["unjudged"] == {"loss_spike": "the loss is up, 2.401 at step 99,000"}
