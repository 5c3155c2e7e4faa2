"""The loop on one process: what a step computes, what is kept, what stops it."""

from __future__ import annotations

import io
import json
import math
import re
import shutil
import signal
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional

from levada._errors import MeasurementError, UsageError
from levada.cli import main
from levada.diagnose import Finding
from levada.runs import Run, RunWriter, doctor
from levada.training import evaluations, losses, read, resolve, train
from levada.training.building import build_network, build_optimizer, learning_rate
from levada.training.checkpoint import Checkpoints, complete
from levada.training.config import Model, Optimizer, Schedule
from levada.training.data import Examples, Source, load_data
from levada.training.engine import WholeNetwork
from levada.training.processes import Processes, launch
from levada.training.record import Progress, Record, begin
from levada.training.stopping import NotFiniteError, stop
from levada.watching.verdict.bundle import read_bundle, write_bundle
from levada.watching.watch import Watch

SMALL = {
    "model": {"depth": 2, "dim": 8},
    "data": {"batch_size": 16, "evaluated": 32},
    "optimizer": {"lr": 0.01},
    "run": {"steps": 6},
}


def small(tmp_path, *changes, name="run"):
    return resolve(SMALL, [f"run.folder={tmp_path / name}", "watch.enabled=false", *changes])


def curve(trained):
    return list(losses(trained.run).values())


def test_a_run_keeps_the_loss_of_every_step(tmp_path):
    trained = train(small(tmp_path, "run.evaluate_every=4"))
    for read_again in (losses, evaluations):
        assert read_again(tmp_path / "run") == read_again(str(tmp_path / "run")) == read_again(trained.run) != {}
        with pytest.raises(UsageError, match="run must be a Run, or the path of its folder, got int"):
            read_again(3)
    assert list(losses(trained.run)) == list(range(6))
    assert trained.loss == losses(trained.run)[5]
    assert list(evaluations(trained.run)) == [4, 6]
    assert trained.held_out == evaluations(trained.run)[6]
    assert trained.run.damage is None
    assert trained.run.manifest.kind == "train"
    assert small(tmp_path, "run.evaluate_every=4") == read(tmp_path / "run" / "config.toml")


def test_a_line_shows_what_is_held_out_where_it_is_new(tmp_path):
    stream = io.StringIO()
    trained = train(small(tmp_path, "run.evaluate_every=2"), stream=stream)
    shown = {
        int(step): float(loss) for step, loss in re.findall(r"step (\d+)/6 .*held out ([\d.]+)  ", stream.getvalue())
    }
    assert shown == pytest.approx(evaluations(trained.run), abs=1e-4)


def test_a_line_of_a_later_step_says_of_which_one_the_held_out_loss_is(tmp_path):
    stream = io.StringIO()
    train(small(tmp_path, "run.evaluate_every=7", "run.steps=40"), stream=stream)  # a line every two steps
    told = re.findall(r"step (\d+)/40 .*held out [\d.]+( at step \d+)?  ", stream.getvalue())
    assert told == [
        ("8", " at step 7"),
        ("14", ""),
        ("22", " at step 21"),
        ("28", ""),
        ("36", " at step 35"),
        ("40", ""),
    ]


def test_a_run_is_a_function_of_its_configuration(tmp_path):
    first = curve(train(small(tmp_path, name="a")))
    torch.manual_seed(99)
    assert curve(train(small(tmp_path, name="b"))) == first
    assert curve(train(small(tmp_path, "run.seed=1", name="c"))) != first


def test_it_learns(tmp_path):
    trained = train(small(tmp_path, "run.steps=150", "model.dim=32"))
    assert trained.held_out < 0.8 * math.log(10)


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_micro_batches_add_up_to_the_batch(tmp_path, name):
    whole = curve(train(small(tmp_path, f"optimizer.name={name}", name="whole")))
    parts = curve(train(small(tmp_path, f"optimizer.name={name}", "optimizer.accumulate=4", name="parts")))
    assert parts == pytest.approx(whole, rel=1e-6)


def test_what_is_evaluated_does_not_depend_on_micro_batches(tmp_path):
    whole = train(small(tmp_path, "data.evaluated=60", name="whole"))
    parts = train(small(tmp_path, "data.evaluated=60", "optimizer.accumulate=4", name="parts"))
    assert parts.held_out == pytest.approx(whole.held_out, rel=1e-6)


def test_each_of_few_held_out_examples_counts_alike(tmp_path):
    config = small(tmp_path, "data.held_out=0.001", "run.steps=2")
    source = load_data(config.data)
    trained = train(config)
    assert source.held_out.num == 4, "a batch has 16"
    inputs, targets = source.held_out.take(torch.arange(4))
    with torch.no_grad():
        expected = functional.cross_entropy(trained.engine.module.eval()(inputs), targets)
    assert trained.held_out == pytest.approx(float(expected), rel=1e-5)


def test_a_step_is_the_optimizers(tmp_path):
    """Against a loop by hand, of which every line is plain."""
    from levada.training.data import load_data
    from levada.training.sampling import Order

    config = small(tmp_path, "optimizer.clip=0.5", "schedule.warmup=2", "run.steps=5")
    found = train(config)
    source = load_data(config.data)
    torch.manual_seed(0)
    network = build_network(config.model, source)
    decayed = [p for n, p in network.named_parameters() if p.ndim > 1]
    others = [p for n, p in network.named_parameters() if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1.0, betas=(0.9, 0.95))
    order = Order(source.train.num, 0)
    expected = []
    for step in range(5):
        inputs, targets = source.train.take(order.examples(step * 16, step * 16 + 16))
        loss = nn.functional.cross_entropy(network(inputs.flatten(1)), targets)
        for group in optimizer.param_groups:
            rates = [0.005, 0.01, *(0.01 * (1 + math.cos(math.pi * i / 3)) / 2 for i in range(3))]
            group["lr"] = rates[step]
        optimizer.zero_grad()
        loss.backward()
        norm = torch.stack([p.grad.norm() for p in network.parameters()]).norm()
        for p in network.parameters():
            p.grad *= min(1.0, 0.5 / norm.item())
        optimizer.step()
        expected.append(loss.item())
    assert curve(found) == pytest.approx(expected, rel=1e-5)
    for (name, mine), theirs in zip(network.named_parameters(), found.engine.module.parameters(), strict=True):
        torch.testing.assert_close(theirs, mine, rtol=1e-4, atol=1e-6, msg=name)


def test_bfloat16_is_used_where_asked(tmp_path):
    single = curve(train(small(tmp_path, name="single")))
    half = curve(train(small(tmp_path, "precision.compute=bfloat16", name="half")))
    assert half == pytest.approx(single, rel=0.05)
    assert half != pytest.approx(single, rel=1e-5), "else it ran in float32"


def test_recomputation_changes_nothing(tmp_path):
    plain = curve(train(small(tmp_path, name="plain")))
    assert curve(train(small(tmp_path, "parallel.checkpoint=2", name="again"))) == plain


def test_stacking_changes_nothing_but_what_the_optimizer_holds(tmp_path):
    asked = ("model.connection=ReZero", "model.depth=5", "model.initialisation=orthogonal", "checkpoint.every=2")
    plain = train(small(tmp_path, *asked, name="plain"))
    whole = train(small(tmp_path, *asked, "parallel.stacked=true", name="whole"))
    assert curve(whole) == pytest.approx(curve(plain), rel=1e-6)  # a chunk of gradients is one product
    assert {len(p) for p in whole.engine.module.stack.stacked.parameters()} == {5}
    for name, weight in plain.engine.module.state_dict().items():
        torch.testing.assert_close(whole.engine.module.state_dict()[name], weight, rtol=1e-5, atol=1e-6)
    train(small(tmp_path, *asked, "parallel.stacked=true", "run.steps=3", "schedule.name=constant", name="parts"))
    config = small(tmp_path, *asked, "parallel.stacked=true", "schedule.name=constant", name="parts")
    again = train(config, resume=True)
    one = train(small(tmp_path, *asked, "parallel.stacked=true", "schedule.name=constant", name="one"))
    assert curve(again) == curve(one)
    with pytest.raises(UsageError, match=r"parallel\.stacked must stay what it is"):
        train(small(tmp_path, *asked, "schedule.name=constant", "run.steps=9", name="parts"), resume=True)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (Schedule("constant"), [1, 1, 1, 1, 1, 1, 1, 1]),
        (Schedule("constant", warmup=4), [0.25, 0.5, 0.75, 1, 1, 1, 1, 1]),
        (Schedule("cosine", final=0.5), [(1.5 + 0.5 * math.cos(math.pi * i / 8)) / 2 for i in range(8)]),
        (Schedule("stable_decay", warmup=2, decay=4), [0.5, 1, 1, 1, 1, 0.75, 0.5, 0.25]),
        (Schedule("stable_decay", decay=2, final=0.1), [1, 1, 1, 1, 1, 1, 1, 0.55]),
    ],
)
def test_schedules(schedule, expected):
    found = [learning_rate(step, Optimizer(lr=2.0), schedule, 8) / 2 for step in range(8)]
    if schedule.name == "cosine":
        expected = [0.5 + 0.5 * (1 + math.cos(math.pi * i / 8)) / 2 for i in range(8)]
    assert found == pytest.approx(expected)


@pytest.mark.parametrize("clip", [0.0, 1e-3])
def test_a_loss_that_is_not_finite_stops_it_and_the_run_is_kept(tmp_path, clip):
    changes = "optimizer.name=sgd", "optimizer.lr=1e12", "run.steps=50", f"optimizer.clip={clip}"
    changes = (*changes, "optimizer.lr=1e25") if clip else changes
    with pytest.raises(
        MeasurementError, match=r"train: the (loss|gradient's norm) is (NaN|Inf).* at step \d+; the run"
    ):
        train(small(tmp_path, *changes))
    found = losses(Run(tmp_path / "run"))
    last = max(found)
    assert all(math.isfinite(loss) for step, loss in found.items() if step < last)
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == [f"step-{last:08d}"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["optimizer.lr=1e30"], "The loss of step 1 is the first that is not finite"),
        (["optimizer.lr=1e12", "optimizer.accumulate=2", "model.depth=4"], "it is in the "),
    ],
)
def test_a_watched_training_that_stops_is_judged_and_its_step_can_be_run_again(tmp_path, capsys, changes, said):
    shown = io.StringIO()
    config = small(
        tmp_path,
        "watch.enabled=true",
        "optimizer.name=sgd",
        "optimizer.clip=0",
        "run.steps=50",
        "watch.every=40",
        *changes,
    )
    with pytest.raises(MeasurementError) as stopped:
        train(config, stream=shown)
    step = int(re.search(r"at step (\d+)", str(stopped.value))[1])
    assert 0 < step < 40  # not one that would have been sampled
    folder = tmp_path / "run"
    watched = Run(folder / "watch" / "1")
    found = [event for event in watched.events("finding") if event["rule"] == "numerical_overflow"][-1]
    assert (found["severity"], found["status"], found["evidence"]["step"]) == ("error", "fired", step)
    assert found["where"]["first"] in {site["name"] for site in watched.signals().sites}
    assert found["evidence"]["tensor"] in ("signal", "gradient")
    assert said in found["claim"]
    assert f"error: {found['claim']}" in shown.getvalue()
    assert "watched: error, " in shown.getvalue()
    bundle = folder / "watch" / "1" / "bundles" / f"step-{step:06d}-numerical_overflow"
    again = f"levada replay {bundle} --model {folder / 'config.toml'}"
    assert f"`{again}` runs the step again" in str(stopped.value)
    assert main(again.split()[1:]) == 1
    out = " ".join(capsys.readouterr().out.split())
    assert f"NaN or Inf at {found['where']['first']}." in out
    assert "out of numbers without one" in out
    kept = read_bundle(bundle)
    assert kept.checkpoint == str(folder / "checkpoints" / f"step-{step:08d}")
    without = replace(kept, values={name: value for name, value in kept.values.items() if name != "weights"})
    sharded = write_bundle(tmp_path / "sharded", without)  # the checkpoint has them
    assert "The weights are those of" not in out
    assert main(["replay", str(sharded), "--model", str(folder / "config.toml"), "--json", "-"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["findings"][0]["where"]["first"] == found["where"]["first"]
    assert told["notes"][-1] == f"The weights are those of {kept.checkpoint}, from before the step."
    with pytest.raises(MeasurementError, match=f"at step {step};"):  # as is said
        train(config, resume=True)
    assert "Continued with --resume it takes the same step and comes to the same." in str(stopped.value)


def test_weights_that_are_not_finite_before_the_step_are_not_called_good(tmp_path):
    config = small(tmp_path, "watch.enabled=true", "run.steps=2")
    trained = train(config)
    optimizer = build_optimizer(trained.engine.module, config.optimizer)
    trained.engine.module.head.bias.data[3] = math.nan
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints", config.checkpoint, Processes(0, 1, torch.device("cpu")))
    checkpoints.save(2, trained.engine.module, optimizer)
    checkpoints.finish()
    longer = small(tmp_path, "watch.enabled=true", "run.steps=4")
    with pytest.raises(MeasurementError) as stopped:
        train(longer, resume=True)
    said = "at step 2; the run is kept, and its weights are not finite before the step already: head.bias holds NaN. "
    assert said in str(stopped.value)
    found = list(Run(tmp_path / "run" / "watch" / "2").events("finding"))[-1]
    assert (found["evidence"]["tensor"], found["evidence"]["step"]) == ("weight", 2)
    assert "the parameter head.bias holds NaN" in found["claim"]


def test_a_training_is_stopped_by_its_gradient_with_the_block_named(tmp_path, monkeypatch):
    whole = WholeNetwork._loss
    monkeypatch.setattr(
        WholeNetwork, "_loss", lambda self, x, y: whole(self, x, y) + 0 * (0 * self.module(x)).square().sum().sqrt()
    )
    with pytest.raises(
        MeasurementError, match=r"the gradient's norm is NaN, the loss 2\.\d+ at step 0; the run is kept; its"
    ):
        train(small(tmp_path, "watch.enabled=true"))
    found = list(Run(tmp_path / "run" / "watch" / "1").events("finding"))[-1]
    assert (found["evidence"]["tensor"], found["where"]["first"]) == ("gradient", "head")


def test_a_restart_continues_what_its_launch_began_and_nothing_else(tmp_path):
    config = small(tmp_path)

    def opened(**options):
        record = Record()
        try:
            return record.open(config, **options)
        finally:
            record.close()

    assert not opened(resume=False, launch="first")
    assert opened(resume=False, restarted=True, launch="first")
    for other in ("second", ""):
        with pytest.raises(UsageError, match=r"holds a run\. Continue it with --resume"):
            opened(resume=False, restarted=True, launch=other)
    assert opened(resume=True, launch="second")
    assert opened(resume=False, restarted=True, launch="second")
    with pytest.raises(UsageError, match=r"holds a run\. Continue it with --resume"):
        opened(resume=False, restarted=True, launch="first")


@pytest.mark.parametrize("resume", [False, True])
def test_what_stopped_by_itself_is_not_trained_again_by_its_launch(tmp_path, resume):
    config = small(tmp_path, "optimizer.name=sgd", "optimizer.lr=1e30", "optimizer.clip=0")
    begin(config, resume=False, launch="first")[0].close()
    with pytest.raises(MeasurementError, match="at step"):
        train(config, resume=True)
    with pytest.raises(MeasurementError, match=r"at step .* It is not tried again in this launch"):
        begin(config, resume=resume, restarted=True, launch="first")
    begin(config, resume=True, launch="second")[0].close()


def test_a_launch_keeps_its_name(monkeypatch):
    assert launch() == ""
    server = torch.distributed.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    monkeypatch.setenv("MASTER_PORT", str(server.port))
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "1"), ("TORCHELASTIC_USE_AGENT_STORE", "True")):
        monkeypatch.setenv(name, value)
    first = launch()
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert launch() == first != ""


def test_what_stops_at_once_keeps_no_checkpoint_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(WholeNetwork, "step", lambda *_: torch.tensor(math.nan))
    with pytest.raises(MeasurementError, match="at step 0; the run is kept; its weights are those that it began with"):
        train(small(tmp_path))
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_no_checkpoint_is_saved_where_running_statistics_of_any_process_are_spoilt(tmp_path, monkeypatch):
    """Each process must decide the same, for they save together."""
    config = small(tmp_path, "checkpoint.every=1")
    trained = train(config)
    optimizer = build_optimizer(trained.engine.module, config.optimizer)
    checkpoints = Checkpoints(tmp_path / "new", config.checkpoint, Processes(0, 1, torch.device("cpu")))
    answers = iter([True, False])  # another one's statistics are, its weights are not
    monkeypatch.setattr(Processes, "any", lambda *_: next(answers))
    bad = NotFiniteError(3, math.nan, 1.0, lambda: None)
    told = stop(bad, config, trained.engine, optimizer, checkpoints, Record(), Progress(3, None), None)
    assert isinstance(told, MeasurementError)
    assert "could not be: running statistics are not finite either" in str(told)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("terminal", [False, True])
def test_the_pace_that_is_shown_is_the_present_one(monkeypatch, terminal):
    """A first step of a minute, in which things are compiled, made the pace climb for the rest of the training."""
    stream, now = io.StringIO(), 0.0
    stream.isatty = lambda: terminal
    monkeypatch.setattr("levada.training.record.time.monotonic", lambda: now)
    progress = Progress(400, stream)
    for step in range(400):
        now += 0.25 if step else 60.0
        progress.step(step, 1.0, 1.0, 0.1)
    told = stream.getvalue()
    assert told.endswith("  4.0 steps/s\n")
    assert "  0.0 steps/s" in told if terminal else "  0.3 steps/s" in told  # 20 steps in 64.75 seconds


def test_a_new_run_takes_up_no_foreign_checkpoints(tmp_path):
    train(small(tmp_path))
    (tmp_path / "other").mkdir()
    (tmp_path / "run" / "checkpoints").rename(tmp_path / "other" / "checkpoints")
    for resume in (False, True):
        with pytest.raises(UsageError, match="holds checkpoints, and no run that they belong to"):
            train(small(tmp_path, name="other"), resume=resume)
    assert not (tmp_path / "other" / "run.json").exists()
    assert complete(tmp_path / "other" / "checkpoints")


def test_both_curves_are_those_of_the_last_weights(tmp_path):
    train(small(tmp_path, "run.evaluate_every=2"))
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    again = train(small(tmp_path, "run.evaluate_every=3"), resume=True)
    assert [event["step"] for event in again.run.events("resumed")] == [0]
    assert list(evaluations(again.run)) == [3, 6]
    assert list(losses(again.run)) == list(range(6))


def test_a_watch_that_was_removed_leaves_the_run_to_be_continued(tmp_path):
    for steps in (2, 3, 4):
        train(small(tmp_path, f"run.steps={steps}", "watch.enabled=true"), resume=True)
    shutil.rmtree(tmp_path / "run" / "watch" / "1")
    train(small(tmp_path, "run.steps=5", "watch.enabled=true"), resume=True)
    assert sorted(path.name for path in (tmp_path / "run" / "watch").iterdir()) == ["2", "3", "4"]


def test_what_is_over_is_not_told_as_if_it_held(tmp_path, monkeypatch):
    found = [Finding("loss_spike", "info", status, f"{status} claim") for status in ("clear", "fired")]
    monkeypatch.setattr(Watch, "findings", property(lambda _: found))
    stream = io.StringIO()
    train(small(tmp_path, "run.steps=2", "watch.enabled=true"), stream=stream)
    *_, held, verdict = stream.getvalue().splitlines()
    assert held == "note: fired claim"
    assert verdict.startswith("watched: not judged, ")
    assert " rules judged it" in verdict
    assert re.search(r"; findings that are over: 1; overhead [^;]+$", verdict), verdict
    assert "clear claim" not in stream.getvalue()


def test_fewer_steps_than_the_newest_checkpoint_has_are_refused(tmp_path):
    train(small(tmp_path, "run.steps=4", "checkpoint.every=2", "checkpoint.keep=2"))
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-00000004")
    with pytest.raises(UsageError, match="at least the 2 that the newest complete checkpoint of a continued run has"):
        train(small(tmp_path, "run.steps=1"), resume=True)
    again = train(small(tmp_path, "run.steps=3"), resume=True)
    assert list(losses(again.run)) == [0, 1, 2], "fewer than were done"


def test_of_a_training_that_was_killed_the_doctor_says_that_it_did_not_end(tmp_path):
    folder = tmp_path / "run"
    assert not doctor(train(small(tmp_path, "run.steps=4")).run.path).open_end
    again = Record()
    assert again.open(small(tmp_path, "run.steps=9"), resume=True)
    again.event("resumed", step=4, processes=1)
    again.step(4, 2.0, 1.0, 1e-3)
    again.flush()
    assert "  being written now: last recorded step 4\n" in str(doctor(folder))
    again.close()  # without an end, as a process that is killed leaves it
    health = doctor(folder)
    assert "  not ended: last recorded step 4\n" in str(health)
    assert health.healthy
    with RunWriter.open(folder) as writer:
        writer.append("evaluation", step=9, loss=1.0)  # behind the last step, as of an earlier levada
    assert not doctor(folder).open_end


def test_a_training_that_sigterm_ends_keeps_its_steps_and_says_so(tmp_path, capsys, monkeypatch):
    def step(self, *numbers, kept=Record.step):
        kept(self, *numbers)
        if numbers[0] == 2:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(Record, "step", step)
    (tmp_path / "a.toml").write_text("[model]\ndepth = 2\ndim = 8\n[data]\nevaluated = 64\n")
    assert main(["train", str(tmp_path / "a.toml"), "--set", f"run.folder={tmp_path / 'run'}"]) == 143
    *_, goes_on, last = capsys.readouterr().err.splitlines()
    assert last == "levada train: ended by SIGTERM; what was finished is kept."
    assert goes_on.startswith(f"The run is kept in '{tmp_path / 'run'}', and goes on from its beginning, as it has no ")
    assert goes_on.endswith(f": levada train {tmp_path / 'a.toml'} --set run.folder={tmp_path / 'run'} --resume")
    run = Run(tmp_path / "run")
    assert list(losses(run)) == [0, 1, 2]
    assert [(event["state"], event["error"]) for event in run.events("end")] == [("stopped", "ended by SIGTERM")]
    assert list(Run(tmp_path / "run" / "watch" / "1").events("end"))


def test_the_command_line_trains_and_continues(tmp_path, capsys):
    file = tmp_path / "a.toml"
    file.write_text('[model]\ndepth = 2\ndim = 8\n[data]\nevaluated = 64\n[schedule]\nname = "constant"\n')
    changes = ["--set", f"run.folder={tmp_path / 'run'}", "--set", "run.steps=4"]
    assert main(["train", str(file), *changes]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("4 steps, loss ")
    assert str(tmp_path / "run") in out
    assert "step 4/4  loss " in err
    assert main(["train", str(file), *changes]) == 2
    assert capsys.readouterr().err == (
        f"levada train: run.folder '{tmp_path / 'run'}' holds a run. Continue it with --resume, or name another.\n"
    )
    assert main(["train", str(file), *changes, "--set", "run.steps=6", "--resume"]) == 0
    assert "continuing after step 4" in capsys.readouterr().err
    assert list(losses(Run(tmp_path / "run"))) == list(range(6))
    assert main(["train", str(file), *changes, "--resume"]) == 2
    assert capsys.readouterr().err == (
        "levada train: run.steps must be at least the 6 that the newest complete checkpoint of a continued run has, "
        "got 4. Name another run.folder to train for fewer.\n"
    )
    assert read(tmp_path / "run" / "config.toml").run.steps == 6, "what is refused changes nothing"
    assert [event["type"] for event in Run(tmp_path / "run").events()][-1] == "end"
    assert main(["train", str(file), *changes, "--set", "run.steps=6", "--resume"]) == 0
    out, err = capsys.readouterr()
    assert "6 steps, all of them done before" in out
    assert sorted(path.name for path in (tmp_path / "run" / "watch").iterdir()) == ["1", "2"], "nothing was to be seen"
    assert sum(event["type"] == "watched" for event in Run(tmp_path / "run").events()) == 2
    assert "levada train: --set run.steps came 2 times; the last one counts: 6\n" in err
    assert main(["train", str(file), *changes, "--resume", "--set", "model.dim=16"]) == 2
    assert "model.dim must stay what it is in a run that is continued" in capsys.readouterr().err
    nan = ["--set", f"run.folder={tmp_path / 'nan'}", "--set", "optimizer.lr=1e30", "--set", "optimizer.clip=0"]
    assert main(["train", str(file), *nan, "--set", "optimizer.name=sgd"]) == 3
    assert " at step " in capsys.readouterr().err


def test_a_wrong_path_leaves_no_run_behind(tmp_path):
    config = resolve(
        {"model": {"network": "transformer"}, "data": {"source": "text", "path": "no.txt"}},
        [f"run.folder={tmp_path / 'run'}"],
    )
    with pytest.raises(UsageError, match=r"'no\.txt' does not exist"):
        train(config)
    assert not (tmp_path / "run").exists()


def test_one_line_of_progress(tmp_path):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    shown, piped = Terminal(), io.StringIO()
    train(small(tmp_path, "run.steps=40", name="a"), stream=shown)
    train(small(tmp_path, "run.steps=40", name="b"), stream=piped)
    assert shown.getvalue().startswith("\rstep ")
    assert shown.getvalue().count("\n") == 1
    assert len(piped.getvalue().splitlines()) == 20


SOURCE = Source(
    Examples(8, lambda index: (torch.randn(len(index), 40), index % 3)),
    Examples(8, lambda index: (index, index)),
    (40,),
    3,
)


@pytest.mark.parametrize(
    ("model", "told"),
    [
        (Model(connection="Residul"), "model.connection 'Residul' is not known; did you mean 'Residual'?"),
        (Model(initialisation="hee"), "model.initialisation 'hee' is not known; did you mean 'he'?"),
        (
            Model(initialisation="he", initialisation_options={"gain": 2}),
            "model.initialisation_options cannot be used: ",
        ),
        (Model(initialisation_options={"gain": 2}), "model.initialisation must name what"),
        (Model(options={"activation": "Tan"}), "model.options.activation 'Tan' is not known; did you mean 'Tanh'?"),
        (Model(options={"norm": 3}), "model.options.norm must be a name in torch.nn, got 3"),
        (Model(options={"activation": "Module"}), "model.options.activation 'Module' cannot be used in 'mlp': "),
        (Model(options={"norm": "BatchNorm2d"}), "model.options.norm 'BatchNorm2d' cannot be used in 'mlp': expected"),
        (Model(options={"compile": "yes"}), "model.options.compile must be true or false or a table, got 'yes'"),
        (Model(options={"connection": "Plain"}), "model.options.connection must be left out: model.connection says it"),
        (Model("cifar_resnet", options={"channels": 3}), "model.options.channels must be a list of numbers, got 3"),
        (Model("cifar_resnet", options={"channels": [4, "x"]}), r"channels\[1\] must be a whole number, got 'x'"),
        (Model("cifar_resnet", options={"channels": [4, -2]}), "model.options.channels must be at least 1, got -2"),
        (
            Model(connection="HyperConnection", connection_options={"streams": "x"}),
            "model.connection_options cannot be used: HyperConnection: streams must be an integer, got 'x'",
        ),
        (Model(options={"heads": 3}), "model.options cannot be used: Residual takes no option 'heads'"),
        (
            Model(connection="HyperConnection", options={"heads": 3}, connection_options={"streams": 2}),
            "model.options cannot be used: HyperConnection takes no option 'heads'",
        ),
        (Model(options={"streams": 3}, connection_options={"streams": 2}), "say it once"),
        (Model(network="cifar_resnet", depth=9), "train: model.depth cannot be used: .*depth must be 6 n [+] 2"),
        (Model(options={"preactivation": True}), "is not a key; did you mean model.options.pre_activation?$"),
        (
            Model(options={"norm": "zzz"}),
            "'zzz' is not known; it must be the name of a class in torch.nn, such as ReLU",
        ),
        (
            Model(connection="HyperConnection", connection_options={"stream": 2}),
            "model.connection_options cannot be used: HyperConnection takes .* Did you mean 'streams'?$",
        ),
    ],
)
def test_networks_that_cannot_be_built(model, told):
    with pytest.raises(UsageError, match=told.replace("?", "[?]")):
        build_network(model, SOURCE)


@pytest.mark.parametrize(
    "model",
    [
        Model(options={"norm": "LayerNorm", "activation": "Tanh", "pre_activation": True}),
        Model(initialisation="lsuv", depth=3),
        Model(initialisation="critical", initialisation_options={"activation": "tanh"}),
        Model("cifar_resnet", depth=8, connection="ReZero", options={"pre_activation": True, "channels": [4, 8, 8]}),
        Model(connection="AttentionResidual"),
        Model(connection="HyperConnection", connection_options={"streams": 2}),
    ],
)
def test_networks_that_can(model):
    inputs = torch.randn(4, 1, 40) if model.network == "cifar_resnet" else torch.randn(4, 40)
    assert build_network(model, SOURCE)(inputs).shape == (4, 3)


def test_the_loss_that_backward_begins_at_is_the_loss(monkeypatch):
    """Whoever looks on sees it there, also with micro-batches."""
    roots = []
    before = torch.autograd.backward
    monkeypatch.setattr(torch.autograd, "backward", lambda root, *rest: roots.append(root) or before(root, *rest))
    engine = WholeNetwork(nn.Linear(40, 3), accumulate=2)
    loss = engine.step(torch.randn(8, 40), torch.arange(8) % 3)
    assert len(roots) == 2
    assert torch.stack([root.detach() for root in roots]).mean() == loss


def test_what_decays_is_the_librarys_to_say():
    network = build_network(Model(connection="HyperConnection"), SOURCE)
    decay = {group["weight_decay"] for group in build_optimizer(network, Optimizer(weight_decay=0.3)).param_groups}
    assert decay == {0.0, 0.3}
