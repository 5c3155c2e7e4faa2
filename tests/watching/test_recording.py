"""What is kept of a watched run: samples, losses, verdicts, and what becomes of them when the disk is full."""

from __future__ import annotations

import errno
import math
import os
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import levada
from levada._errors import UsageError
from levada.cli import main
from levada.diagnose.finding import Finding
from levada.probe.trace import Site
from levada.report.page import sections_of
from levada.report.watch import watch_view
from levada.runs import Run, RunWriter, doctor
from levada.runs.codes import LARGEST, decoded, encode, thresholds
from levada.runs.exporters.stored import _findings
from levada.runs.standing import Standing
from levada.watching.measure.sample import WATCHED, Continue, Listener, Sample
from levada.watching.record.recording import Recording, codes_of, to_bytes
from levada.watching.verdict.bundle import Bundle, write_bundle

SITES = tuple(Site(f"layers.{i}", i, "Linear", (4, 8), (f"layers.{i}.weight",)) for i in range(3))


def watching(**fields: Any) -> Any:
    return SimpleNamespace(
        **{"sites": SITES, "findings": [], "overhead": 0.004, "standing": Standing(), "steps": 0, **fields}
    )


def sample(step: int, **scalars: float) -> Sample:
    values = {name: torch.full((3,), 2.0 ** (step % 7 + i), dtype=torch.float64) for i, name in enumerate(WATCHED)}
    return Sample(step, 1e9 + step, values, scalars, losses=tuple((step + j, 0.5 * (step + j)) for j in range(-19, 1)))


def finding(claim: str = "it spikes") -> Finding:
    return Finding("loss_spike", "warn", "fired", claim, where={"first": "layers.1"}, evidence={"value": math.inf})


def every_edge() -> list[float]:
    """Numbers at, above and below every threshold and special number, for both signs and in all the ranges."""
    numbers = [*decoded(range(-32768, 32768)), LARGEST, 5e-324, 1e-310, 1e300, 0.0, -0.0, math.pi]
    numbers += [
        math.ldexp(edge, octave) for edge in thresholds() for octave in (-1000, -128, -127, -126, 0, 127, 128, 129)
    ]
    return [y for x in numbers for y in (x, math.nextafter(x, math.inf), math.nextafter(x, -math.inf), -x)]


def test_codes_on_the_device_are_the_bytes_of_the_standard_library() -> None:
    numbers = every_edge()
    expected = encode(numbers)
    assert to_bytes(codes_of(torch.tensor(numbers, dtype=torch.float64))) == expected
    single = torch.tensor(numbers, dtype=torch.float64).float()
    assert to_bytes(codes_of(single)) == encode(single.tolist())
    assert to_bytes(codes_of(torch.empty(0))) == b""


def test_codes_by_arrow_are_the_bytes_of_the_standard_library() -> None:
    pa = pytest.importorskip("pyarrow")
    from levada.runs.pyramid import encode_by_arrow

    numbers = every_edge()
    got = encode_by_arrow(pa.array(numbers, pa.float64()))
    assert torch.tensor(got.to_pylist(), dtype=torch.int16).numpy().tobytes() == encode(numbers)


def test_a_run_of_samples_losses_and_verdicts_is_read(tmp_path: Path) -> None:
    watch = watching()
    recording: Listener = Recording(tmp_path / "mine", watch, config={"lr": 0.1})
    for step in range(19, 200, 20):
        recording.before_update(step, None)
        if step == 99:
            watch.findings.append(finding())
            write_bundle(tmp_path / "mine", Bundle(99, "loss_spike", "it spikes"))
        recording.sampled(sample(step, loss=0.5 * step, lr=0.1))
    recording.close()
    recording.close()
    run = Run(tmp_path / "mine")
    assert (run.manifest.kind, run.manifest.name, run.manifest.config) == ("watch", "mine", {"lr": 0.1})
    signals = run.signals()
    assert signals.steps == tuple(range(19, 200, 20))
    assert signals.names == WATCHED
    assert dict(signals.sites[1]) == {
        "name": "layers.1",
        "order": 1,
        "kind": "Linear",
        "shape": [4, 8],
        "parameters": ["layers.1.weight"],
    }
    for i, name in enumerate(WATCHED):
        assert signals.read(name) == [[2.0 ** (step % 7 + i)] * 3 for step in signals.steps]
    assert signals.losses() == run.losses() == [(step, 0.5 * step) for step in range(200)]
    assert signals.scalars("lr") == [(step, 0.1) for step in signals.steps]
    assert signals.marks == (99,)
    (event,) = run.events("finding", numbers=("evidence",))
    assert (event["rule"], event["step"], event["claim"], event["evidence"]) == (
        "loss_spike",
        99,
        "it spikes",
        {"value": math.inf},
    )
    assert [event["path"] for event in run.events("bundle")] == ["bundles/step-000099-loss_spike"]
    assert [event["share"] for event in run.events("overhead")] == [0.004]
    (end,) = run.events("end")
    assert (end["steps"], end["samples"], end["dropped"], end["problem"]) == (200, 10, 0, None)
    assert end["losses_dropped"] == 0
    assert doctor(tmp_path / "mine").healthy


def test_what_no_file_can_hold_of_a_finding_takes_nothing_else_with_it(tmp_path: Path) -> None:
    odd = Finding("mine", "warn", "fired", "odd", evidence={"told_at": 3, "model": nn.Linear(1, 1)})
    recording = Recording(tmp_path, watching(findings=[odd]))
    recording.sampled(sample(19))
    recording.close()
    (event,) = Run(tmp_path).events("finding")
    assert (event["case"], event["evidence"]["told_at"]) == ("mine 3", 3)
    assert event["evidence"]["model"].startswith("Linear(")


def test_losses_behind_the_last_sample_are_kept_at_the_end(tmp_path: Path) -> None:
    recording = Recording(tmp_path, watching())
    for step in range(25):
        recording.before_update(step, torch.tensor(0.5 * step, requires_grad=True))
        recording.before_update(step, torch.tensor(0.5 * step))  # a second optimizer
        if step == 20:
            recording.sampled(sample(19))
    recording.before_update(25, None)
    recording.close()
    run = Run(tmp_path)
    assert run.losses() == [(step, 0.5 * step) for step in range(25)]
    assert next(run.events("end"))["steps"] == 25


def test_a_signal_that_was_not_measured_is_nan(tmp_path: Path) -> None:
    recording = Recording(tmp_path, watching())
    recording.sampled(Sample(0, 0.0, {"gradient_rms": torch.tensor([1.0, 2.0, math.inf])}))
    recording.close()
    signals = Run(tmp_path).signals()
    assert signals.read("gradient_rms") == [[1.0, 2.0, math.inf]]
    assert all(map(math.isnan, signals.read("signal_rms")[0]))


def test_a_run_goes_on_where_its_checkpoint_was(tmp_path: Path) -> None:
    first = Recording(tmp_path, watching())
    for step in range(19, 120, 20):
        first.sampled(sample(step))
    with pytest.raises(UsageError, match="one writer at a time"):
        Recording(tmp_path, watching(), resume=True)
    first.close()
    with pytest.raises(UsageError, match=r"this holds a run\. .* by run=levada\.watching\.Continue\(folder, step\)"):
        Recording(tmp_path, watching())
    second = Recording(tmp_path, watching(steps=60), resume=True)
    for step in range(79, 200, 20):
        losses = tuple((s, -1.0) for s in range(step - 19, step + 1))
        second.sampled(Sample(step, 0.0, sample(step).values, losses=losses))
    second.close()
    run = Run(tmp_path)
    assert run.signals().steps == tuple(range(19, 200, 20))
    assert run.losses() == [(step, 0.5 * step if step < 60 else -1.0) for step in range(200)]


def test_every_rank_keeps_its_samples_and_the_first_the_events(tmp_path: Path) -> None:
    ranks = [Recording(tmp_path, watching(), rank=rank) for rank in (2, 0)]
    for recording in ranks:
        recording.sampled(sample(19))
        recording.close()
    run = Run(tmp_path)
    assert run.ranks == (0, 2)
    assert run.signals(2).steps == (19,)
    assert len(list(run.events("end"))) == 1


def test_what_another_rank_found_is_told_and_is_over_where_it_does_not_go_on(tmp_path: Path) -> None:
    def train(ranks: int, first: int = 0, found: Any = ()) -> None:
        for rank in reversed(range(ranks)):
            judged = Standing((), ("dead_units",), first=first)
            watch = watching(findings=list(found) if rank == 2 else [], standing=judged, steps=first)
            recording = Recording(tmp_path, watch, rank=rank, resume=first > 0)
            recording.sampled(sample(first + 19))
            recording.close()

    def page() -> tuple[str, list[tuple[str, str]]]:
        run = Run(tmp_path)
        view = watch_view(run, "mine", list(run.events()))
        return view["verdict"], [(one["kind"], one["claim"]) for one in view["findings"]]

    dead = Finding("dead_units", "warn", "fired", "They are dead.", {"first": "layers.1"}, {"told_at": 19})
    train(3, found=[dead])
    assert page() == ("warn", [("warning", "They are dead. Told by process 2.")])
    train(2, first=100)  # without it
    why = "Superseded from step 100 on, where another process went on with the run."
    assert page() == ("healthy", [("warning, over", f"They are dead. {why} Told by process 2.")])
    train(3, first=200, found=[dead])
    assert page()[0] == "warn"
    train(3, first=300)
    assert page()[0] == "healthy"
    told = [text for texts in _findings(Run(tmp_path), 0).values() for _, text in texts]
    assert [text.partition(" ")[0] for text in told] == ["warn", "clear", "warn", "clear"]
    assert all(text.endswith("Told by process 2.") for text in told)


def test_replicas_that_find_the_same_tell_it_once(tmp_path: Path) -> None:
    dead = Finding("dead_units", "warn", "fired", "They are dead.", {"first": "layers.1"}, {"told_at": 19})
    for rank in (1, 0):
        recording = Recording(tmp_path, watching(findings=[dead]), rank=rank)
        recording.sampled(sample(19))
        recording.close()
    run = Run(tmp_path)
    view = watch_view(run, "mine", list(run.events()))
    assert [one["claim"] for one in view["findings"]] == ["They are dead."]
    assert sum(len(texts) for texts in _findings(run, 0).values()) == 1


def test_sites_that_change_get_a_table_of_their_own(tmp_path: Path) -> None:
    watch = watching(sites=SITES[:2])
    recording = Recording(tmp_path, watch)
    values = {name: torch.ones(2) for name in WATCHED}
    recording.sampled(Sample(0, 0.0, values))
    watch.sites = SITES
    recording.sampled(sample(1))
    recording.close()
    read = Run(tmp_path).signals().read("signal_rms")
    assert math.isnan(read[0][2])
    assert read[1] == [2.0, 2.0, 2.0]
    assert recording.dropped == 0


def test_verdicts_wait_while_the_disk_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watch = watching()
    recording = Recording(tmp_path, watch)
    recording.sampled(sample(0))
    recording.flush()
    with monkeypatch.context() as patch:

        def full(descriptor: int, data: object) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        patch.setattr(os, "write", full)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for step in range(1, 6):
                watch.findings.append(finding(f"number {step}"))
                recording.sampled(sample(step))
                recording.flush()
        assert len(caught) == 1, "one warning is enough"
        claims = [payload["claim"] for type, payload in recording.waiting if type == "finding"]
        assert claims == [f"number {step}" for step in range(1, 6)]
        assert "No space left" in str(recording.problem)
    recording.close()
    run = Run(tmp_path)
    assert [event["claim"] for event in run.events("finding")] == [f"number {step}" for step in range(1, 6)]
    assert recording.waiting == ()
    assert recording.dropped == 5
    assert run.signals().steps == (0,)


def test_a_rank_that_another_writer_holds_is_told_once_and_training_goes_on(tmp_path: Path) -> None:
    RunWriter.create(tmp_path, kind="watch", name="x").close()
    first, second = (Recording(tmp_path, watching(), rank=1) for _ in range(2))
    first.sampled(sample(0))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for step in range(3):
            second.sampled(sample(step))
        second.close()
    assert ["one writer at a time" in str(each.message) for each in caught] == [True]
    assert second.dropped == 3
    first.close()
    assert Run(tmp_path).signals(1).steps == (0,)


def test_a_training_that_goes_on_from_a_checkpoint_goes_on_with_its_record(tmp_path):
    folder = tmp_path / "run"

    def go(steps, run):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        with levada.watch(model, optimizer, run=run, every=2, max_overhead=math.inf) as watch:
            for _ in range(steps):
                optimizer.zero_grad()
                model(torch.ones(3, 2)).square().sum().backward()
                optimizer.step()
        return watch

    go(7, Continue(folder, 0))
    watch = go(5, Continue(str(folder), 4))  # the checkpoint was older
    assert watch.steps == 9
    run = Run(folder)
    assert list(run.signals().steps) == [0, 2, 4, 6, 8]
    losses = run.losses()
    assert [step for step, _ in losses] == list(range(9))
    assert losses[4][1] == losses[0][1], "of a step that was trained twice the later counts"
    with pytest.raises(UsageError, match="holds a run"):
        go(1, folder)
    with pytest.raises(UsageError, match="step must be at least 0, got -1"):
        Continue(folder, -1)


def test_every_loss_is_kept_however_rare_samples_are(tmp_path: Path) -> None:
    recording = Recording(tmp_path, watching())
    for step in range(12_345):
        recording.before_update(step, torch.tensor(0.5 * step))
        if step == 2500:  # it brings all losses that it has seen, also those that are written
            losses = tuple((s, 0.5 * s) for s in range(step))
            recording.sampled(Sample(step - 1, 0.0, sample(0).values, losses=losses))
        if step == 2600:
            assert recording.flush()
            assert len(Run(tmp_path).losses()) == 2500, "what is older than a thousand steps is on disk"
    recording.close()
    run = Run(tmp_path)
    assert run.losses() == [(step, 0.5 * step) for step in range(12_345)]
    (end,) = run.events("end")
    assert (end["steps"], end["losses_dropped"]) == (12_345, 0)
    assert sum(len(event["steps"]) for event in run.events("loss")) == 12_345, "none is written twice"


def test_a_sample_that_knows_only_the_last_losses_does_not_take_those_before(tmp_path: Path) -> None:
    recording = Recording(tmp_path, watching(steps=750))
    for step in range(700):
        recording.before_update(step, torch.tensor(1.0))
    losses = tuple((step, 2.0) for step in range(188, 700))  # means over processes, of the last 512 steps
    recording.sampled(Sample(699, 0.0, sample(0).values, losses=losses))
    recording.close()
    assert Run(tmp_path).losses() == [(step, 1.0 if step < 188 else 2.0) for step in range(700)]
    assert next(Run(tmp_path).events("end"))["steps"] == 750, "of the last fifty no loss was seen"


def test_losses_that_the_disk_does_not_take_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("levada.watching.record.events.WAITING", 1)
    recording = Recording(tmp_path, watching())
    with monkeypatch.context() as patch:

        def full(descriptor: int, data: object) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        patch.setattr(os, "write", full)
        for step in range(5000):
            recording.before_update(step, torch.tensor(1.0))
            if step % 1000 == 999:
                recording.flush()
    with pytest.warns(RuntimeWarning, match="No space left"):
        recording.close()
    (end,) = Run(tmp_path).events("end")
    assert (len(Run(tmp_path).losses()), end["losses_dropped"], end["steps"]) == (2000, 3000, 5000)


def test_entering_the_watch_again_goes_on_with_the_record(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(3)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    watched = levada.watch(model, optimizer, run=tmp_path / "run", every=1, max_overhead=math.inf)

    def train(steps: int) -> None:
        for _ in range(steps):
            optimizer.zero_grad()
            model(torch.ones(2, 4)).square().mean().backward()
            optimizer.step()

    with watched:
        train(4)
    with watched:
        train(2)
        nn.init.constant_(model[1].bias, float("nan"))
        train(1)
    with watched:
        train(2)
    run = Run(tmp_path / "run")
    assert [step for step, _ in run.losses()] == list(range(9))
    assert len(run.signals().read("gradient_rms")) == 9
    assert [event["rule"] for event in run.events() if event["type"] == "finding"] == ["numerical_overflow"]


def test_a_killed_run_has_said_where_its_loss_was_lost(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(
        textwrap.dedent(
            """
            import os, signal, sys, time, torch, levada
            from torch import nn

            torch.manual_seed(0)
            model = nn.Sequential(*[layer for _ in range(4) for layer in (nn.Linear(8, 8), nn.ReLU())], nn.Linear(8, 2))
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            watch = levada.watch(model, optimizer, run=sys.argv[1], every=1000)
            for step in range(40):
                x = torch.randn(16, 8)
                x[0, 0] = float("inf") if step == 30 else 0.0
                loss = nn.functional.cross_entropy(model(x), torch.arange(16) % 2)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            for listener in watch._listeners:
                if hasattr(listener, "flush"):
                    listener.flush()
            os.kill(os.getpid(), signal.SIGKILL)
            """
        )
    )
    done = subprocess.run([sys.executable, script, tmp_path / "run"], capture_output=True, text=True, check=False)
    assert done.returncode == -9, done.stderr
    events = list(Run(tmp_path / "run").events())
    (found,) = [event for event in events if event["type"] == "finding" and event["severity"] == "error"]
    assert (found["rule"], found["step"]) == ("numerical_overflow", 30)
    assert [event["path"] for event in events if event["type"] == "bundle"]
    assert all(event["type"] != "end" for event in events)
    assert any(30 in event["steps"] for event in events if event["type"] == "loss")
    page = tmp_path / "page.html"
    assert main(["report", str(tmp_path / "run"), "-o", str(page)]) == 0
    text = page.read_text()
    assert "The run was cut off: its process was killed" in text
    assert "✓ healthy" not in text


def test_an_error_that_ends_a_training_is_in_its_record(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def train() -> None:
        with levada.watch(model, optimizer, run=tmp_path / "run"):
            for _ in range(3):
                model(torch.randn(4, 2)).sum().backward()
                optimizer.step()
            raise RuntimeError("disk\non fire")

    with pytest.raises(RuntimeError, match="on fire"):
        train()
    end = list(Run(tmp_path / "run").events("end"))[-1]
    assert end["error"] == "RuntimeError: disk on fire"
    page = tmp_path / "page.html"
    assert main(["report", str(tmp_path / "run"), "-o", str(page)]) == 0
    assert "The training ended by an error: RuntimeError: disk on fire." in page.read_text()
    assert "The run was stopped by an error after 3 steps: RuntimeError." in page.read_text()


def test_the_record_and_its_page_say_which_network_it_is_of(tmp_path: Path) -> None:
    class Critic(nn.Linear): ...

    model = torch.nn.DataParallel(Critic(2, 1))
    with levada.watch(model, torch.optim.SGD(model.parameters(), lr=0.1), run=tmp_path / "gan-2"):
        pass
    run = Run(tmp_path / "gan-2")
    assert run.manifest.config == {"model": "Critic"}
    assert sections_of(run)[0]["view"]["title"] == "gan-2 (Critic)"
