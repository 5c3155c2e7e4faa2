"""A small run whose every number is known, and what must be true of it however its files were damaged."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from unittest import mock

from levada._errors import UsageError
from levada.runs import Reading, Run, RunWriter, SignalWriter, doctor
from levada.runs.codes import encode
from levada.runs.frames import Frame, scan
from levada.runs.manifest import LOG

SIGNALS = ("signal_rms", "gradient_rms")
SITES = [{"name": f"layers.{i}", "order": i, "kind": "Linear", "shape": [4, 8], "parameters": []} for i in range(3)]
EVERY = 5
SEALED = 20
"""Samples in the first tail; the second is left open."""


def value(step: int, signal: int, site: int) -> float:
    """A number of its own for each place, which its code gives back exactly."""
    return 2.0 ** ((step * 7 + signal * 3 + site) % 61 - 30)


def codes(step: int) -> bytes:
    return encode([value(step, signal, site) for signal in range(2) for site in range(3)])


@contextlib.contextmanager
def sealed_as(suffix: str) -> Iterator[None]:
    """Write sealed files as Parquet or as frames."""
    with mock.patch("levada.runs.signal_writer.has_parquet", return_value=suffix == "parquet"):
        yield


def write(folder: Path, suffix: str, samples: int = SEALED + 7) -> None:
    """Write a run: a manifest, events, one sealed segment, and a tail that its writer left."""
    write_events(folder)
    with sealed_as(suffix):
        with SignalWriter(folder, sites=SITES, signals=SIGNALS) as writer:
            append(writer, range(SEALED))
        writer = SignalWriter(folder, sites=SITES, signals=SIGNALS)
        append(writer, range(SEALED, samples))
        writer.mark(EVERY * SEALED)
        writer.flush()
        left = {path.name: path.read_bytes() for path in writer.folder.glob("tail-*")}
        writer.close()
    for path in writer.folder.glob("*-000002-*"):
        path.unlink()
    for name, content in left.items():
        (writer.folder / name).write_bytes(content)


def write_events(folder: Path, count: int = 6) -> None:
    """Write a run of a manifest and so many events."""
    with RunWriter.create(folder, kind="watch", name="small", config={"depth": 3}) as writer:
        for i in range(count):
            writer.append("loss", steps=[2 * i, 2 * i + 1], values=[0.5**i, 0.3**i])


def events(folder: Path) -> list[int]:
    """Give the numbers of the events that are read; AssertionError if one is wrong, or out of order."""
    found = [(event["steps"], event["values"]) for event in Run(folder).events("loss")]
    numbers = [steps[0] // 2 for steps, _ in found]
    assert found == [([2 * i, 2 * i + 1], [0.5**i, 0.3**i]) for i in numbers], "an event is wrong"
    assert numbers == sorted(set(numbers)), "events are not in order"
    return numbers


def frame_ends(folder: Path) -> list[int]:
    """Give the byte behind each frame of the log."""
    with (folder / LOG).open("rb") as file:
        return [part.stop for part in scan(file) if isinstance(part, Frame)]


def append(writer: SignalWriter, numbers: Sequence[int]) -> None:
    for number in numbers:
        writer.append(EVERY * number, 0.25 * number, codes(EVERY * number), {"loss": 2.0**-number})
        writer.flush()


def contents(folder: Path) -> dict[Path, bytes]:
    """Give all files that hold something of a run."""
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file() and path.suffix != ".lock"}


def judge(folder: Path, samples: int = SEALED + 7) -> str:
    """Say what a damage of the small run did; AssertionError if something wrong is read, or a loss is not told.

    Returns:
        "harmless" (all is read as it was written), "earlier" (what is read is right, and ends at the end of a frame, as
        a run that was interrupted there would), or "detected".
    """
    health = doctor(folder)
    try:
        run = Run(folder)
    except UsageError:
        assert not health.healthy, "the manifest is refused, and the doctor says nothing"
        return "detected"
    assert (run.manifest.name, run.manifest.config, run.manifest.kind) == ("small", {"depth": 3}, "watch")
    found = events(folder)
    assert found == list(range(len(found))), "an event is missing before others"
    whole = len(found) == 6
    signals = run.signals()
    if signals.sites:
        assert [dict(site) for site in signals.sites] == SITES, "the site table is wrong"
        assert signals.names == SIGNALS
    told = bool(signals.damage)
    for signal, name in enumerate(signals.names):
        reading = signals.read(name)
        whole &= reading.steps == [EVERY * i for i in range(samples)] and set(reading.counts) == {1}
        _check(reading, signal)
    whole &= bool(signals.names)
    losses = dict(signals.scalars("loss"))
    assert all(losses[step] == 2.0 ** -(step // EVERY) for step in losses), "a scalar is wrong"
    whole &= len(losses) == samples and signals.marks == (EVERY * SEALED,)
    assert all(time == 0.25 * step / EVERY for step, time in zip(signals.steps, signals.times, strict=True))
    told |= bool(signals.damage) or run.damage is not None
    assert not told or not health.healthy, "the reader tells of a damage, and the doctor does not"
    if whole and health.healthy:
        return "harmless"
    if not health.healthy:
        return "detected"
    newest = signals.steps and signals.steps == tuple(EVERY * i for i in range(len(signals.steps)))
    assert newest or len(found) < 6, "something is lost, and not told"
    return "earlier"


def _check(reading: Reading, signal: int) -> None:
    """Every row is what was written: a sample, or the minimum, mean and maximum of the block that it says."""
    places = zip(reading.steps, reading.last_steps, reading.counts, reading.low, reading, reading.high, strict=True)
    for first, last, count, low, mean, high in places:
        steps = range(first, last + 1, EVERY)
        assert len(steps) == count, "a row counts samples that it does not have"
        for site in range(3):
            numbers = [value(step, signal, site) for step in steps]
            assert (low[site], high[site]) == (min(numbers), max(numbers)), "a number is wrong"
            assert abs(mean[site] / (sum(numbers) / count) - 1) < 0.0028, "a mean is wrong"


def tally(kinds: Mapping[str, int] | Counter[str]) -> dict[str, int]:
    return {kind: kinds.get(kind, 0) for kind in ("detected", "harmless", "earlier")}
