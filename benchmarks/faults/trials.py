"""The trials: kill -9, files cut at every byte, flipped bits, a full disk, a clock that goes backwards."""

from __future__ import annotations

import json
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.faults import small
from levada.runs import Run, RunWriter, SignalWriter, doctor, reseal

__all__ = ["clock", "cuts", "flips", "full_disk", "kills"]

_KILLED = """
import mmap, sys
from unittest import mock
from levada.runs import SignalWriter
from levada.runs.codes import encode
folder, suffix, told, start = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
sites = [{"name": f"layers.{i}"} for i in range(3)]
with open(told, "r+b") as file:
    shared = mmap.mmap(file.fileno(), 8)
with mock.patch("levada.runs.signal_writer.has_parquet", lambda: suffix == "parquet"):
    writer = SignalWriter(folder, sites=sites, signals=["a", "b"], keep=10**9)
writer.flush()
print("ready", flush=True)
for step in range(start, start + 10**9):
    values = [2.0 ** ((step * 7 + i) % 61 - 30) for i in range(6)]
    writer.append(step, 0.0, encode(values), {"loss": 2.0 ** -(step % 50)})
    if step % 8 == 0:
        writer.flush()
        shared[:8] = step.to_bytes(8, "little")  # all up to here was handed to the operating system
"""


def kills(trials: int, suffix: str, *, seed: int = 0, per_run: int = 10) -> dict[str, Any]:
    """Kill a writer at random moments, `per_run` times in a row on one run; AssertionError if anything is lost.

    Returns:
        What was counted: trials, samples that were read back, sealed segments, and how often a segment was found sealed
        with its tail still there, or half sealed.
    """
    draw, counted = random.Random(seed), Counter[str]()
    with tempfile.TemporaryDirectory() as root:
        for trial in range(trials):
            folder = Path(root) / f"run-{trial // per_run}"
            told = Path(root) / "told"
            if trial % per_run == 0:
                RunWriter.create(folder, kind="watch", name="killed").close()
                told.write_bytes(bytes(8))
            before = Run(folder).signals().steps if trial % per_run else ()
            words = [sys.executable, "-c", _KILLED, str(folder), suffix, str(told), str(len(before))]
            process = subprocess.Popen(words, stdout=subprocess.PIPE)
            assert process.stdout is not None
            if draw.random() < 0.9:  # the others are killed while they seal what the one before them left
                process.stdout.readline()
            time.sleep(draw.random() * 0.4)
            process.send_signal(signal.SIGKILL)
            process.wait()
            process.stdout.close()
            _after_kill(folder, int.from_bytes(told.read_bytes(), "little"), counted)
    return {"trials": trials, **counted}


def _after_kill(folder: Path, acknowledged: int, counted: Counter[str]) -> None:
    signals = Run(folder).signals()
    steps = signals.steps
    assert steps == tuple(range(len(steps))), "samples are missing, or come twice"
    assert not acknowledged or len(steps) > acknowledged, "a sample that was handed over is lost"
    assert all(damage.kind == "incomplete" for damage in signals.damage), signals.damage
    for i, name in enumerate(signals.names):
        reading = signals.read(name)
        assert (reading.steps, max(reading.counts, default=1)) == (list(steps), 1), "not all is read in full"
        for step, row in zip(reading.steps, reading, strict=True):
            assert row == [2.0 ** ((step * 7 + 3 * i + site) % 61 - 30) for site in range(3)], "a number is wrong"
    assert [loss for _, loss in signals.scalars("loss")] == [2.0 ** -(step % 50) for step in steps]
    health = doctor(folder).signals[0]
    assert health.samples == len(steps)
    assert all(damage.kind == "incomplete" for damage in health.damage), health.damage
    levels: dict[str, set[str]] = {}
    for path in signals.folder.iterdir():
        parts = path.name.replace(".log", "").split("-")
        if len(parts) > 1 and parts[0] != "sites" and not path.name.startswith("."):
            levels.setdefault(parts[1], set()).add(parts[0])
    counted["samples_read"] += len(steps)
    counted["segments"] += sum("samples" in found for found in levels.values())
    counted["sealed_beside_their_tail"] += sum({"samples", "tail"} <= found for found in levels.values())
    counted["half_sealed"] += sum("by256" in found and "samples" not in found for found in levels.values())
    counted["torn_frames"] += len(signals.damage)


def cuts(suffix: str, *, stride: int = 1) -> dict[str, int]:
    """Cut every file of a small run at every byte (or every so many), one at a time, and judge what is read."""
    kinds = Counter[str]()
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root) / "run"
        small.write(folder, suffix)
        assert small.judge(folder) == "harmless"
        for path, content in small.contents(folder).items():
            text = path.suffix in (".json", ".copy")  # which says all without its last newline
            for length in range(0, len(content) - text, stride):
                path.write_bytes(content[:length])
                kinds[small.judge(folder)] += 1
            path.write_bytes(content)
    return {"trials": kinds.total(), **small.tally(kinds)}


def flips(count: int, suffix: str, *, seed: int = 0) -> dict[str, int]:
    """Flip random bits of a small run, one at a time, and judge; the growth of the memory is measured."""
    draw, kinds = random.Random(seed), Counter[str]()
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root) / "run"
        small.write(folder, suffix)
        files = small.contents(folder)
        paths, sizes = list(files), [len(content) for content in files.values()]
        small.judge(folder)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for _ in range(count):
            path = draw.choices(paths, sizes)[0]
            content = bytearray(files[path])
            bit = draw.randrange(8 * len(content))
            content[bit // 8] ^= 1 << bit % 8
            path.write_bytes(content)
            kind = small.judge(folder)
            assert kind != "earlier", f"bit {bit} of {path.name} shortens the run, and nothing tells"
            kinds[kind] += 1
            path.write_bytes(files[path])
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return {"trials": count, **small.tally(kinds), "memory_grown_kb": grown}


def resealed(count: int, suffix: str, *, seed: int = 0) -> dict[str, int]:
    """Flip a bit of the signals or the log, seal again: what is read must be right, and what is lost must be told."""
    draw, kinds = random.Random(seed), Counter[str]()
    with tempfile.TemporaryDirectory() as root:
        for trial in range(count):
            folder = Path(root) / f"run-{trial}"
            small.write(folder, suffix)
            files = {path: content for path, content in small.contents(folder).items() if path.name != "run.json"}
            path = draw.choice(list(files))
            content = bytearray(files[path])
            bit = draw.randrange(8 * len(content))
            content[bit // 8] ^= 1 << bit % 8
            path.write_bytes(content)
            reseal(folder)
            assert not [damage for rank in doctor(folder).signals for damage in rank.damage]
            assert len(small.events(folder)) >= 6 - (path.name == "events.log"), "an event is lost"
            signals = Run(folder).signals()
            read = 0
            for i, name in enumerate(signals.names):
                reading = signals.read(name)
                for step, held, row in zip(reading.steps, reading.counts, reading, strict=True):
                    for site, number in enumerate(row if held == 1 else ()):
                        good = number == small.value(step, i, site)
                        assert good or number != number, "a wrong number was sealed"
                        read += good
            whole = read == 27 * 6 and len(small.events(folder)) == 6
            assert whole or not doctor(folder).healthy, f"bit {bit} of {path.name} costs something, untold"
            kinds["numbers_kept"] += read
            kinds["numbers_lost"] += 27 * 6 - read
    return {"trials": count, **kinds}


_FULL = """
import json, os, sys, warnings
from types import SimpleNamespace
import torch
from levada.diagnose.finding import Finding
from levada.probe.trace import Site
from levada.runs.standing import Standing
from levada.watching.record.recording import Recording
from levada.watching.measure.sample import WATCHED, Sample
if sys.argv[3:]:
    import resource, signal
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, resource.RLIM_INFINITY))
folder, steps = sys.argv[1], int(sys.argv[2])
sites = tuple(Site(f"layers.{i}", i, "Linear", (4, 8)) for i in range(100))
watch = SimpleNamespace(sites=sites, findings=[], overhead=0.0, standing=Standing(), steps=0)
weight = torch.zeros(3, requires_grad=True)
optimizer = torch.optim.SGD([weight], lr=0.1)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    recording = Recording(folder, watch)
    for step in range(steps):
        optimizer.zero_grad()
        ((weight - 1) ** 2).sum().backward()
        optimizer.step()
        if step % 100 == 99:
            evidence = {"long": "x" * 4_000}
            watch.findings.append(Finding("loss_spike", "warn", "fired", f"at step {step}", evidence=evidence))
        values = {name: torch.full((100,), 1.0 + step, dtype=torch.float64) for name in WATCHED}
        recording.sampled(Sample(step, 0.0, values, {"loss": 1.0}, losses=((step, 1.0),)))
        if step % 100 == 0:
            recording.flush()
    waiting = len(recording.waiting)
    if sys.argv[3:]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    else:
        os.remove(os.path.join(os.path.dirname(folder), "ballast"))
    recording.close()
print(json.dumps({
    "steps": step + 1, "weight": weight.tolist(), "warnings": len(caught), "dropped": recording.dropped,
    "events_waiting": waiting, "events_left": len(recording.waiting), "problem": str(recording.problem)[-60:],
}))
"""


def full_disk(steps: int = 4000) -> dict[str, Any]:
    """Train on with a disk that is full: a tmpfs of 2 MB where mounting is allowed, else a limit on the size of files.

    The disk takes data again before the end: the verdicts that waited must then be written.
    """
    with tempfile.TemporaryDirectory() as root:
        mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", root]
        try:
            mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
        except FileNotFoundError:
            mounted = False
        try:
            if mounted:
                (Path(root) / "ballast").write_bytes(bytes(1_700_000))
            folder = Path(root) / "run"
            words = [sys.executable, "-c", _FULL, str(folder), str(steps), *([] if mounted else ["limit"])]
            said = subprocess.run(words, capture_output=True, check=True, text=True)
            found: dict[str, Any] = json.loads(said.stdout)
            run = Run(folder)
            verdicts = [event["claim"] for event in run.events("finding")]
            signals = run.signals()
            stored = len(signals.steps)
            assert (found["steps"], round(found["weight"][0], 6)) == (steps, 1.0), "the training did not go on"
            assert found["warnings"] == 1, "one warning is enough"
            assert min(found["dropped"], stored) > 0, "the disk was not full"
            assert verdicts == [f"at step {step}" for step in range(99, steps, 100)], "a verdict is lost"
            assert (signals.steps, run.damage) == (tuple(range(stored)), None), "what was stored is not whole"
        finally:
            if mounted:
                subprocess.run(["umount", root], check=True)
    del found["weight"]
    return {"by": "tmpfs" if mounted else "RLIMIT_FSIZE", "samples_stored": stored, **found}


def clock() -> dict[str, int]:
    """Write samples whose times go backwards: steps are in order, times as given."""
    draw = random.Random(0)
    times = [draw.uniform(-1e9, 1e9) for _ in range(300)]
    with tempfile.TemporaryDirectory() as root:
        RunWriter.create(root, kind="watch", name="clock").close()
        for part in (range(150), range(100, 300)):
            with SignalWriter(root, sites=small.SITES, signals=small.SIGNALS) as writer:
                for step in part:
                    writer.append(step, times[step] - 1e6 * len(part), small.codes(step))
                    writer.flush()
        signals = Run(root).signals()
        assert signals.steps == tuple(range(300))
        assert signals.times == tuple(times[step] - 1e6 * (150 if step < 100 else 200) for step in range(300))
        assert doctor(root).healthy
    return {"trials": 300, "samples_right": len(signals.steps)}
