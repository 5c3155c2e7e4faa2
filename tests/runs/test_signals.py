"""The signals of a run: what was written is read, from tails and from sealed files, full and faded."""

from __future__ import annotations

import errno
import itertools
import math
import os
import random
import subprocess
import sys
import warnings
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from levada._errors import MissingExtraError, UsageError
from levada.runs import Run, RunWriter, SignalWriter
from levada.runs import segments as segments_module
from levada.runs.codes import (
    INFINITE,
    LARGEST,
    NAN,
    OVERFLOW,
    UNDERFLOW,
    codes_from,
    decode,
    decoded,
    encode,
    thresholds,
)
from levada.runs.pyramid import coarsen, coarsen_by_arrow
from levada.runs.segments import Cut, places, seal
from levada.runs.tail import Samples

NAMES = ("signal_rms", "gradient_rms")
SITES = [{"name": f"layers.{i}", "order": i, "kind": "Linear", "shape": [4, 8], "parameters": []} for i in range(3)]


def value(step: int, signal: int, site: int) -> float:
    """A number that has a code of its own, so that reading gives it back exactly."""
    return 2.0 ** ((step * 7 + signal * 3 + site) % 40 - 20)


def row(step: int, signal: int) -> list[float]:
    return [value(step, signal, site) for site in range(3)]


def codes(step: int) -> bytes:
    return encode([x for signal in range(2) for x in row(step, signal)])


def new_run(folder: Path) -> Path:
    RunWriter.create(folder, kind="watch", name="test").close()
    return folder


def write(folder: Path, steps: Sequence[int], **options: object) -> SignalWriter:
    writer = SignalWriter(folder, sites=SITES, signals=NAMES, **options)  # type: ignore[arg-type]
    for step in steps:
        writer.append(step, float(step), codes(step), {"loss": step / 2})
        writer.flush()  # what a test writes is not dropped because it is faster than a disk
    return writer


@pytest.fixture(params=["parquet", "frames"])
def suffix(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr("levada.runs.signal_writer.has_parquet", lambda: request.param == "parquet")
    return request.param


def test_every_code_is_a_number_that_has_this_code() -> None:
    every = array("h", range(NAN, INFINITE + 1))
    assert codes_from(encode(decoded(every))) == every
    numbers = decoded(range(-INFINITE, INFINITE + 1))
    assert all(a < b for a, b in itertools.pairwise(numbers)), "codes are in the order of numbers"


@settings(max_examples=300, deadline=None)
@given(st.floats(width=64))
def test_a_code_is_right_to_0_28_percent_and_says_what_has_none(x: float) -> None:
    (code,), (back,) = codes_from(encode([x])), decode(encode([x]))
    size = abs(x)
    if math.isnan(x):
        assert code == NAN
        assert math.isnan(back)
    elif x == 0:
        assert code == 0
    elif math.isinf(x):
        assert abs(code) == INFINITE
        assert back == x
    elif size > LARGEST:
        assert abs(code) == OVERFLOW
        assert math.copysign(2.0**128, x) == back
    elif size < 2.0 ** (-16379.5 / 128):
        assert abs(code) == UNDERFLOW
        assert math.copysign(2.0**-149, x) == back
    else:
        assert abs(back / x - 1) <= (2 ** (1 / 256) - 1) * (1 + 1e-12)


def test_the_error_bound_is_reached_and_the_smallest_and_largest_float32_have_codes() -> None:
    worst = max(abs(decode(encode([t * 0.9999999]))[0] / t - 1) for t in thresholds())
    assert 0.0027 < worst < 0.00272
    assert list(decode(encode([LARGEST, -(2.0**-126), 1.0, 2.0**-20]))) == [LARGEST, -(2.0**-126), 1.0, 2.0**-20]
    with pytest.raises(ValueError):
        decode(b"\0\0\0")


def test_what_was_written_is_read_from_the_tail_and_from_sealed_files(tmp_path: Path, suffix: str) -> None:
    new_run(tmp_path)
    writer = write(tmp_path, range(0, 600, 2))
    for stage in ("open", "closed"):
        run = Run(tmp_path)
        signals = run.signals()
        assert run.ranks == (0,)
        assert signals.names == NAMES
        assert [dict(site) for site in signals.sites] == SITES
        assert signals.steps == tuple(range(0, 600, 2))
        assert signals.times == tuple(map(float, signals.steps))
        for i, name in enumerate(NAMES):
            assert signals.read(name) == [row(step, i) for step in range(0, 600, 2)], stage
        one = signals.read("gradient_rms", site="layers.2", first=500, last=520)
        assert one.steps == list(range(500, 522, 2))
        assert one == [[value(step, 1, 2)] for step in one.steps]
        assert one.low == one.high == one
        assert set(one.counts) == {1}
        assert signals.scalars("loss")[-1] == (598, 299.0)
        assert signals.losses() == signals.scalars("loss")
        assert signals.scalar_names == ("loss",)
        assert signals.damage == []
        kinds = sorted((place.number, place.level) for place in places(signals.folder))
        sealed = [(1, level) for level in ("by16", "by256", "full", "samples")]
        if stage == "open":
            assert kinds == [*sealed, (2, "tail")]
            writer.close()
        else:
            assert kinds == [*sealed, *((2, level) for _, level in sealed)]
            assert {place.path.suffix for place in places(signals.folder)} == {f".{suffix}"}
    assert writer.dropped == 0
    assert writer.problem is None


@pytest.mark.parametrize("rows", [1, 15, 16, 17, 40, 256])
def test_both_kinds_of_sealed_files_and_both_pyramids_hold_the_same(tmp_path: Path, rows: int) -> None:
    draw = random.Random(rows)
    special = [0.0, math.nan, math.inf, -math.inf, 1e-60, -1e60, LARGEST]
    matrix = [
        [
            draw.choice(special) if draw.random() < 0.2 else draw.choice((-1, 1)) * math.exp(draw.gauss(0, 9))
            for _ in range(6)
        ]
        for _ in range(rows)
    ]
    steps = array("q", range(rows))
    samples = Samples(0, steps, array("d", steps), [{"a": math.nan}] * rows, [3], [encode(each) for each in matrix])
    series = samples.series(6)
    for span in (1, 16, 256):
        low, mean, high = coarsen(series, rows, span)
        for other, mine in zip(coarsen_by_arrow(series, rows, span), (low, mean, high), strict=True):
            assert max(abs(a - b) for a, b in zip(other, mine, strict=True)) <= (mine is mean)
    got = []
    for form in ("parquet", "frames"):
        folder = tmp_path / form
        folder.mkdir()
        seal(folder, 1, samples, NAMES, SITES, form)
        by_level = {place.level: place for place in places(folder)}
        back = segments_module.read_samples(by_level["samples"])
        assert (back.steps, back.times, str(back.scalars), back.marks) == (
            steps,
            samples.times,
            str(samples.scalars),
            [3],
        )
        planes = segments_module.read_planes(by_level["full"], Cut.of("full", steps, 3), 1, range(1, 3))
        assert planes == [series[4 * rows : 6 * rows]]
        got.append(segments_module.read_planes(by_level["by256"], Cut.of("by256", steps, 3), 0, range(3)))
    assert got[0][::2] == got[1][::2]


def test_blocks_of_16_and_256_hold_minimum_mean_and_maximum(tmp_path: Path, suffix: str) -> None:
    new_run(tmp_path)
    writer = write(tmp_path, range(300))
    for _ in range(2):
        signals = Run(tmp_path).signals()
        for resolution in (16, 256):
            found = signals.read("signal_rms", site="layers.0", resolution=resolution)
            bounds = [
                (a, min(a + resolution, stop))
                for start, stop in ((0, 256), (256, 300))
                for a in range(start, stop, resolution)
            ]
            assert list(zip(found.steps, found.last_steps, found.counts, strict=True)) == [
                (a, b - 1, b - a) for a, b in bounds
            ]
            for (a, b), low, mean, high in zip(bounds, found.low, found, found.high, strict=True):
                numbers = [value(step, 0, 0) for step in range(a, b)]
                assert (low, high) == ([min(numbers)], [max(numbers)])
                assert mean[0] == pytest.approx(sum(numbers) / len(numbers), rel=0.0028)
        writer.close()


def test_detail_fades_with_age_but_not_around_a_mark(tmp_path: Path) -> None:
    new_run(tmp_path)
    writer = write(tmp_path, range(256 * 3), keep=256)
    writer.mark(256 * 3 + 5)
    for step in range(256 * 3, 256 * 20):
        writer.append(step, 0.0, codes(step), {"loss": float(step)})
        if step % 64 == 0:
            writer.flush()
    writer.close()
    assert writer.dropped == 0
    kept: dict[str, set[int]] = {}
    for place in places(writer.folder):
        kept.setdefault(place.level, set()).add(place.number)
    assert kept["full"] == {3, 4, 20}
    assert kept["by16"] == {3, 4, *range(5, 21)}
    assert kept["by256"] == kept["samples"] == set(range(1, 21))
    signals = Run(tmp_path).signals()
    found = signals.read("signal_rms")
    assert found.steps == list(signals.steps)
    assert found.counts[:2] == [256, 256]
    assert found.counts[2 : 2 + 512] == [1] * 512
    assert found.counts[2 + 512 : 2 + 512 + 16] == [16] * 16
    assert sum(found.counts) == 256 * 20
    assert signals.marks == (256 * 3 + 5,)
    assert len(signals.scalars("loss")) == 256 * 20, "scalars and steps are small, and stay"


def test_steps_that_come_again_replace_those_before_and_both_stay_on_disk(tmp_path: Path, suffix: str) -> None:
    new_run(tmp_path)
    write(tmp_path, range(0, 100, 10)).close()
    writer = SignalWriter(tmp_path, sites=SITES, signals=NAMES)
    for step in (55, 65):  # from a checkpoint at step 50, with a clock that stands an hour earlier
        writer.append(step, step - 3600.0, codes(step + 1), {"loss": -1.0})
    writer.flush()
    for _ in range(2):
        signals = Run(tmp_path).signals()
        assert signals.steps == (0, 10, 20, 30, 40, 50, 55, 65)
        assert signals.times[-1] == 65 - 3600.0
        assert signals.read("signal_rms")[-2:] == [row(56, 0), row(66, 0)]
        assert signals.scalars("loss")[-3:] == [(50, 25.0), (55, -1.0), (65, -1.0)]
        writer.close()
    numbers = {place.number for place in places(signals.folder) if place.level == "full"}
    assert numbers == {1, 2}


def test_a_run_that_goes_on_with_other_sites(tmp_path: Path) -> None:
    new_run(tmp_path)
    write(tmp_path, [0, 1]).close()
    moved = [{"name": "layers.2"}, {"name": "layers.9"}]
    with SignalWriter(tmp_path, sites=moved, signals=["gradient_rms"]) as writer:
        writer.append(2, 0.0, encode([0.5, 0.25]))
    signals = Run(tmp_path).signals()
    assert [site["name"] for site in signals.sites] == ["layers.2", "layers.9", "layers.0", "layers.1"]
    found = signals.read("gradient_rms")
    assert found[0][0] == value(0, 1, 2)
    assert math.isnan(found[0][1])
    assert found[2][:2] == [0.5, 0.25]
    assert math.isnan(found[2][2])
    assert signals.read("gradient_rms", site="layers.9") == [[0.25]]
    assert signals.read("signal_rms", site="layers.0") == [[value(0, 0, 0)], [value(1, 0, 0)]]


def test_what_an_interrupted_writer_left_is_sealed_once(tmp_path: Path, suffix: str) -> None:
    new_run(tmp_path)
    writer = write(tmp_path, range(5))
    tail = next(place.path for place in places(writer.folder) if place.level == "tail")
    content = tail.read_bytes()
    writer.close()
    # Killed between the last sealed file and the removal of the tail, and once more while the next was sealed.
    tail.write_bytes(content)
    (writer.folder / "tail-000002.log").write_bytes(content[:-1])
    (writer.folder / ".full-000002-00000000.parquet.17").write_bytes(b"half")
    signals = Run(tmp_path).signals()
    assert signals.steps == (0, 1, 2, 3)  # of the second tail, which comes later
    SignalWriter(tmp_path, sites=SITES, signals=NAMES).close()
    assert {place.level for place in places(writer.folder)} == {"by16", "by256", "full", "samples"}
    assert not list(writer.folder.glob(".*"))
    assert Run(tmp_path).signals().steps == (0, 1, 2, 3)
    assert Run(tmp_path).signals().damage == []


def test_a_reader_beside_a_writer_sees_every_sample_once(tmp_path: Path, suffix: str) -> None:
    new_run(tmp_path)
    writer = SignalWriter(tmp_path, sites=SITES, signals=NAMES, capacity=10_000)
    writer.flush()
    seen = 0
    for start in range(0, 3000, 100):
        for step in range(start, start + 100):
            writer.append(step, 0.0, codes(step))
        signals = Run(tmp_path).signals()
        assert signals.steps == tuple(range(len(signals.steps)))
        assert len(signals.steps) >= seen
        seen = len(signals.steps)
        reading = signals.read("gradient_rms", first=max(0, seen - 300))
        assert reading == [row(step, 1) for step in reading.steps]
        assert reading.steps == list(range(max(0, seen - 300), seen))
        assert {damage.kind for damage in signals.damage} <= {"incomplete"}
    writer.close()
    assert writer.dropped == 0
    assert Run(tmp_path).signals().steps == tuple(range(3000))


def test_one_writer_for_a_rank_and_another_rank_beside_it(tmp_path: Path) -> None:
    new_run(tmp_path)
    with SignalWriter(tmp_path, sites=SITES, signals=NAMES):
        with pytest.raises(UsageError, match="one writer at a time"):
            SignalWriter(tmp_path, sites=SITES, signals=NAMES)
        write(tmp_path, [0], rank=3).close()
    assert Run(tmp_path).ranks == (0, 3)
    assert Run(tmp_path).signals(3).steps == (0,)
    with pytest.raises(UsageError, match="not of rank 1; of these: 0, 3"):
        Run(tmp_path).signals(1)


def test_append_takes_anything_waits_for_nothing_and_counts(tmp_path: Path) -> None:
    new_run(tmp_path)
    writer = SignalWriter(tmp_path, sites=SITES, signals=NAMES, capacity=4)
    assert writer.flush()
    blocked = os.pipe()
    writer._thread.put("recover")  # type: ignore[attr-defined]
    writer.flush()
    original = writer._do
    writer._thread._work = lambda piece: (os.read(blocked[0], 1), original(piece))[1]  # type: ignore[method-assign]
    for step in range(20):
        writer.append(step, 0.0, codes(step))
    assert writer.dropped >= 15
    os.write(blocked[1], b"x" * 40)
    writer.flush()
    before = writer.dropped
    for bad in (b"", b"xx", None, 7):
        writer.append(99, 0.0, bad)  # type: ignore[arg-type]
    writer.append("step", 0.0, codes(0))  # type: ignore[arg-type]
    writer.append(2**80, 0.0, codes(0), {"loss": "high"})  # type: ignore[dict-item]
    assert writer.dropped == before + 6
    writer.close()
    writer.append(5, 0.0, codes(0))
    assert writer.dropped == before + 7
    assert len(Run(tmp_path).signals().steps) == 27 - writer.dropped


@pytest.mark.parametrize("partial", [0, 30])
def test_a_full_disk_stops_storing_with_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, partial: int
) -> None:
    new_run(tmp_path)
    writer = write(tmp_path, range(3))
    real, taken = os.write, []

    def full(descriptor: int, data: memoryview) -> int:
        if partial and not taken:
            taken.append(real(descriptor, data[:partial]))
            return partial
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for step in range(3, 8):
                writer.append(step, 0.0, codes(step))
                writer.flush()
            writer.close()
    assert [str(each.message).partition(":")[0] for each in caught] == [str(writer.folder)]
    assert "No space left" in str(writer.problem)
    assert writer.dropped == 5
    signals = Run(tmp_path).signals()
    assert (signals.steps, signals.damage) == ((0, 1, 2), [])
    write(tmp_path, [3]).close()
    assert Run(tmp_path).signals().steps == (0, 1, 2, 3)


def test_a_disk_that_is_full_when_sealing_keeps_the_tail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    new_run(tmp_path)
    writer = write(tmp_path, range(3))
    for refused in range(4):
        done = []

        def refuse(path: Path, data: bytes, refused: int = refused, done: list[Path] = done) -> None:
            if len(done) == refused:
                raise OSError(errno.ENOSPC, "full")
            done.append(path)
            path.write_bytes(data)

        with monkeypatch.context() as patch:
            patch.setattr("levada.runs.segments.write_atomically", refuse)
            with pytest.warns(RuntimeWarning, match="full"):
                writer.close()
        assert Run(tmp_path).signals().read("signal_rms") == [row(step, 0) for step in range(3)]
        with monkeypatch.context() as patch:
            patch.setattr("levada.runs.segments.write_atomically", refuse)
            writer = SignalWriter(tmp_path, sites=SITES, signals=NAMES)
            writer.flush()
    with pytest.warns(RuntimeWarning, match="full"):
        writer.close()
    write(tmp_path, []).close()
    assert Run(tmp_path).signals().read("signal_rms") == [row(step, 0) for step in range(3)]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="fork is POSIX")
def test_a_forked_child_writes_nothing_and_holds_no_lock(tmp_path: Path) -> None:
    new_run(tmp_path)
    code = f"""
import os, sys, time
from levada.runs import SignalWriter
from levada.runs.codes import encode
writer = SignalWriter({str(tmp_path)!r}, sites={SITES!r}, signals={NAMES!r})
writer.append(0, 0.0, encode([1.0] * 6))
writer.flush()
child = os.fork()
if child == 0:
    writer.append(1, 0.0, encode([1.0] * 6))
    writer.mark(1)
    writer.close()
    sys.stdin.read()
    sys.exit(0)
print(child, flush=True)
os.kill(os.getpid(), 9)
"""
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdout is not None
    assert int(child.stdout.readline()) > 0
    child.wait()
    # The grandchild lives, and the lock died with its parent.
    write(tmp_path, [2]).close()
    assert Run(tmp_path).signals().steps == (0, 2)
    child.communicate(b"")


def test_what_waits_is_stored_when_the_interpreter_ends(tmp_path: Path) -> None:
    new_run(tmp_path)
    code = f"""
from levada.runs import SignalWriter
from levada.runs.codes import encode
writer = SignalWriter({str(tmp_path)!r}, sites={SITES!r}, signals={NAMES!r})
for step in range(50):
    writer.append(step, 0.0, encode([1.0] * 6))
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)
    signals = Run(tmp_path).signals()
    assert signals.steps == tuple(range(50))
    assert not [place for place in places(signals.folder) if place.level == "tail"]


def test_damage_is_told_and_the_next_coarser_level_read(tmp_path: Path, suffix: str) -> None:
    new_run(tmp_path)
    writer = write(tmp_path, range(40))
    writer.close()
    by_level = {place.level: place.path for place in places(writer.folder)}
    for level, counts in (("full", [16, 16, 8]), ("by16", [40]), ("by256", [])):
        content = bytearray(by_level[level].read_bytes())
        content[len(content) // 2] ^= 1
        by_level[level].write_bytes(content)
        signals = Run(tmp_path).signals()
        assert signals.read("signal_rms").counts == counts
        assert signals.read("signal_rms").counts == counts
        assert by_level[level].name in signals.damage[-1].message
        assert len({damage.message for damage in signals.damage}) == len(signals.damage)
    assert len(signals.scalars("loss")) == 40


def test_arrow(tmp_path: Path) -> None:
    new_run(tmp_path)
    write(tmp_path, range(5)).close()
    table = Run(tmp_path).signals().to_arrow()
    assert table.column_names == ["signal", "site", "order", "step", "num_samples", "low", "value", "high"]
    assert table.num_rows == 5 * 3 * 2
    assert table["value"].to_pylist()[-3:] == row(4, 1)


def test_without_pyarrow_parquet_is_refused_by_the_name_of_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new_run(tmp_path)
    write(tmp_path, range(2)).close()
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match=r"levada\[store\]"):
        Run(tmp_path).signals()


def test_questions_that_have_no_answer(tmp_path: Path) -> None:
    new_run(tmp_path)
    with pytest.raises(UsageError, match="of these: none"):
        Run(tmp_path).signals()
    write(tmp_path, [0]).close()
    signals = Run(tmp_path).signals()
    for question, answer in (
        (("loss",), "no signal 'loss'"),
        (("signal_rms", "x"), "no site 'x'"),
        (("signal_rms", None, 4), "1, 16 or 256"),
    ):
        signal, site, resolution = (*question, None, None)[:3]
        with pytest.raises(UsageError, match=answer):
            signals.read(str(signal), site=site, resolution=resolution)  # type: ignore[arg-type]
    for sites in ([{"name": ""}], [{"name": "a"}, {"name": "a"}], [{}]):
        with pytest.raises(UsageError, match="a name of its own"):
            SignalWriter(tmp_path, sites=sites, signals=NAMES, rank=1)
