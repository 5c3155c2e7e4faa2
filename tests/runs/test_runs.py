"""The Run folder: what was written is read, and damage costs what it touched and nothing before it."""

from __future__ import annotations

import errno
import json
import math
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from levada._errors import UsageError
from levada._numbers import json_ready, restore_numbers
from levada.runs import Run, RunWriter, doctor, find_runs, reseal
from levada.runs.frames import MAGIC, MAX_FRAME, encode, frame


def write(folder: Path, count: int = 3) -> Path:
    with RunWriter.create(folder, kind="study", name="decay", config={"depth": 50}) as writer:
        for i in range(count):
            writer.append("result", key=f"k{i}", seed=i, values={"rate": 0.5**i})
    return folder


def seeds(folder: Path) -> list[int]:
    return [event["seed"] for event in Run(folder).events("result")]


def test_what_was_written_is_read(tmp_path: Path) -> None:
    run = Run(write(tmp_path / "a"))
    assert [event["values"]["rate"] for event in run.events()] == [1.0, 0.5, 0.25]
    assert run.damage is None
    assert (run.manifest.kind, run.manifest.name, run.manifest.config) == ("study", "decay", {"depth": 50})
    assert run.manifest.created.endswith("+00:00")
    assert {"levada", "python", "torch"} <= set(run.manifest.versions)
    assert list(run.events("claim")) == []


@pytest.mark.parametrize(
    ("called", "told"),
    [
        (["/usr/bin/python3", "train.py", "--lr", "0.1"], "python3 train.py --lr 0.1"),
        (["/usr/bin/python3", "/usr/bin/levada", "run", "my loop.py"], "levada run 'my loop.py'"),
        (["/usr/bin/python3", "-m", "levada", "check"], "python3 -m levada check"),
        (["/usr/bin/python3", "-c", "x = 1\n" * 200], "-c 7"),
        ([], "-c 7"),
    ],
)
def test_the_command_can_be_called_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, called: list[str], told: str
) -> None:
    monkeypatch.setattr("sys.orig_argv", called)
    monkeypatch.setattr("sys.argv", ["-c", "7"])
    assert Run(write(tmp_path / "a")).manifest.command == told


def test_nonfinite_numbers_are_names_until_the_reader_says_they_are_numbers(tmp_path: Path) -> None:
    with RunWriter.create(tmp_path, kind="check", name="inf") as writer:
        writer.append("result", name="inf", values={"a": math.nan, "b": [math.inf, -math.inf, 1.0]})
    run = Run(tmp_path)
    assert next(run.events())["values"] == {"a": "nan", "b": ["inf", "-inf", 1.0]}
    event = next(run.events(numbers=("values",)))
    assert event["name"] == "inf"
    assert math.isnan(event["values"]["a"])
    assert event["values"]["b"] == [math.inf, -math.inf, 1.0]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
).filter(lambda value: not any(name in repr(value) for name in ("'nan'", "'inf'", "'-inf'")))


@settings(max_examples=60, deadline=None)
@given(json_values)
def test_every_json_value_survives(value: object) -> None:
    assert restore_numbers(json.loads(encode("t", {"value": value}))["value"]) == value


def test_arrays_paths_and_lone_surrogates_become_json() -> None:
    class Array:
        def tolist(self) -> list[float]:
            return [1.0, math.nan]

    assert json_ready({"a": Array(), "p": Path("x"), "t": (1, True, None)}) == {
        "a": [1.0, "nan"],
        "p": "x",
        "t": [1, True, None],
    }
    assert json.loads(encode("t", {"name": "\udc80"}))["name"] == "\udc80"


@pytest.mark.parametrize("payload", [{"x": {1: 2}}, {"x": {1, 2}}, {"x": object()}, {"type": "y"}])
def test_what_json_cannot_hold_is_refused(payload: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        encode("t", payload)


def test_the_last_frame_cut_at_every_byte_leaves_the_frames_before(tmp_path: Path) -> None:
    log = write(tmp_path, 3) / "events.log"
    whole = log.read_bytes()
    last = len(frame(encode("result", {"key": "k2", "seed": 2, "values": {"rate": 0.25}})))
    for cut in range(len(whole) - last, len(whole)):
        log.write_bytes(whole[:cut])
        assert seeds(tmp_path) == [0, 1]
        damage = Run(tmp_path).damage
        if cut == len(whole) - last:
            assert damage is None
        else:
            assert damage is not None
            assert (damage.kind, damage.offset, damage.num_bytes) == (
                "incomplete",
                len(whole) - last,
                cut - len(whole) + last,
            )


@pytest.fixture(scope="module")
def four_events(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    folder = write(tmp_path_factory.mktemp("flip"), 4)
    return folder, (folder / "events.log").read_bytes()


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_flipped_bit_is_always_noticed_and_costs_nothing_before_it(
    four_events: tuple[Path, bytes], data: st.DataObject
) -> None:
    folder, whole = four_events
    log, content = folder / "events.log", bytearray(whole)
    size = (len(content) - len(MAGIC)) // 4
    bit = data.draw(st.integers(0, 8 * len(content) - 1))
    content[bit // 8] ^= 1 << bit % 8
    log.write_bytes(content)
    reached = seeds(folder)
    hit = max(0, bit // 8 - len(MAGIC)) // size if bit // 8 >= len(MAGIC) else 0
    assert Run(folder).damage is not None
    assert reached == list(range(len(reached)))
    assert abs(len(reached) - hit) <= 1  # frames differ by a byte or two in size
    if bit // 8 < len(MAGIC):
        assert reached == []


def test_a_tail_of_zeros_is_damage_and_not_empty_frames(tmp_path: Path) -> None:
    log = write(tmp_path) / "events.log"
    log.write_bytes(log.read_bytes() + bytes(4096))  # what a file system leaves after a power cut
    damage = Run(tmp_path).damage
    assert damage is not None
    assert damage.kind == "length"
    assert seeds(tmp_path) == [0, 1, 2]


@pytest.mark.parametrize(
    ("payload", "kind"),
    [
        (b"[1,2,3,4,5,6,7]", "payload"),
        (b'{"type":7,"x":1}', "payload"),
        (b'{"type":"x","y":NaN}', "payload"),
        (b"[" * 200_000, "payload"),
        (b'{"type":"x","y":' + b"9" * 5000 + b"}", "payload"),
        (b'{"type":"\xff"}', "payload"),
    ],
)
def test_a_frame_with_a_right_checksum_may_still_be_no_event(tmp_path: Path, payload: bytes, kind: str) -> None:
    log = write(tmp_path) / "events.log"
    log.write_bytes(log.read_bytes() + frame(payload))
    damage = Run(tmp_path).damage
    assert damage is not None
    assert damage.kind == kind
    assert seeds(tmp_path) == [0, 1, 2]


def test_a_claimed_length_beyond_the_cap_is_not_allocated(tmp_path: Path) -> None:
    log = write(tmp_path) / "events.log"
    log.write_bytes(log.read_bytes() + (MAX_FRAME + 1).to_bytes(4, "little") + bytes(100))
    damage = Run(tmp_path).damage
    assert damage is not None
    assert damage.kind == "length"


def test_continuing_moves_a_torn_tail_aside_and_says_so(tmp_path: Path) -> None:
    log = write(tmp_path) / "events.log"
    torn = frame(encode("result", {"seed": 9}))[:-3]
    log.write_bytes(log.read_bytes() + torn)
    with RunWriter.open(tmp_path) as writer:
        writer.append("result", seed=3)
    assert seeds(tmp_path) == [0, 1, 2, 3]
    assert (tmp_path / "events.torn-1").read_bytes() == torn
    repaired = next(Run(tmp_path).events("repaired"))
    told = [repaired[key] for key in ("moved_to", "num_bytes", "good_frames_kept")]
    assert told == ["events.torn-1", len(torn), 0]
    assert doctor(tmp_path).torn == {"events.torn-1": len(torn)}


def test_damage_in_the_middle_keeps_what_is_behind_it(tmp_path: Path) -> None:
    log = write(tmp_path, 5) / "events.log"
    content = bytearray(log.read_bytes())
    content[content.index(b'"k1"') + 1] ^= 1
    log.write_bytes(content)
    health = doctor(tmp_path)
    assert (health.frames, health.frames_behind) == (1, 3)
    assert not health.healthy
    assert "checksum" in str(health)
    with RunWriter.open(tmp_path) as writer:
        writer.append("result", seed=5)
    assert seeds(tmp_path) == [0, 2, 3, 4, 5]
    assert [event["good_frames_kept"] for event in Run(tmp_path).events("repaired")] == [3]
    assert [event["type"] for event in Run(tmp_path).events()][1] == "repaired", "where the lost event was"
    assert Run(tmp_path).damage is None


WRITER = """
import sys
from levada.runs import RunWriter
writer = RunWriter.create(sys.argv[1], kind="study", name="killed")
for seed in range(10**9):
    writer.append("result", seed=seed, text="x" * (seed % 5000))
"""


def start_writer(folder: Path) -> subprocess.Popen[bytes]:
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(folder)])
    deadline = time.monotonic() + 60
    while not (folder / "events.log").exists() or (folder / "events.log").stat().st_size < 200_000:
        assert process.poll() is None, "the writing process ended"
        assert time.monotonic() < deadline, "the writing process wrote nothing"
        time.sleep(0.01)
    return process


@pytest.mark.skipif(os.name != "posix", reason="kill -9 is POSIX")
def test_kill_9_while_writing_and_while_another_reads(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process = start_writer(folder)
    try:
        reached = seeds(folder)  # concurrent reader
        assert reached == list(range(len(reached)))
        assert len(reached) > 10
        with pytest.raises(UsageError, match=rf"another holds it \(process {process.pid} on "):
            RunWriter.open(folder)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    after = seeds(folder)
    assert after == list(range(len(after)))
    assert len(after) >= len(reached)
    with RunWriter.open(folder) as writer:  # the lock died with its holder
        writer.append("result", seed=len(after))
    assert seeds(folder) == list(range(len(after) + 1))


def test_a_page_follows_a_run(tmp_path: Path) -> None:
    with RunWriter.create(tmp_path, kind="watch", name="live") as writer:
        run = Run(tmp_path)
        events, offset = run.tail()
        assert events == []
        for i in range(3):
            writer.append("step", step=i)
            events, offset = run.tail(offset)
            assert [event["step"] for event in events] == [i]


@pytest.mark.parametrize("how", ["cut", "mended", "replaced"])
def test_who_follows_a_run_does_not_stand_still_where_its_log_is_another(tmp_path: Path, how: str) -> None:
    with RunWriter.create(tmp_path, kind="watch", name="live") as writer:
        for i in range(3):
            writer.append("step", step=i)
    run, log = Run(tmp_path), tmp_path / "events.log"
    whole = log.read_bytes()
    _, offset = run.tail()
    if how == "cut":
        log.write_bytes(whole[:-5])
    if how == "mended":  # a disk flipped a bit of the first event, and the doctor wrote the log anew
        log.write_bytes(whole.replace(b'"step":0', b'"step":1', 1))
        reseal(tmp_path)
    if how == "replaced":
        log.write_bytes(whole[: len(MAGIC)])
    given, at = run.tail(offset)
    assert given == list(run.events())
    assert run.tail(at) == ([], at)
    with RunWriter.open(tmp_path) as writer:
        writer.append("step", step=7)
    for _ in range(2):
        events, at = run.tail(at)
        given += events
    assert [event["step"] for event in given if event["type"] == "step"][-1] == 7


def test_half_an_event_at_the_end_is_waited_for(tmp_path: Path) -> None:
    with RunWriter.create(tmp_path, kind="watch", name="live") as writer:
        writer.append("step", step=0)
        (_, first), size = Run(tmp_path).tail(), (tmp_path / "events.log").stat().st_size
        assert first == size
        writer.append("step", step=1)
    log = tmp_path / "events.log"
    whole = log.read_bytes()
    log.write_bytes(whole[:-3])
    assert Run(tmp_path).tail(first) == ([], first)
    log.write_bytes(whole)
    events, at = Run(tmp_path).tail(first)
    assert ([event["step"] for event in events], at) == ([1], len(whole))


def test_what_is_promised_to_outlive_the_machine_is_forced_to_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, forced = os.fsync, []

    def sync(descriptor: int) -> None:
        status = os.fstat(descriptor)
        forced.append((status.st_ino, None if stat.S_ISDIR(status.st_mode) else status.st_size))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", sync)
    clock = iter([0.0, 4.9, 5.1, 5.1, 5.2])
    # The writer's clock alone: other threads ask the time, too.
    monkeypatch.setattr("levada.runs.writer.time", SimpleNamespace(monotonic=lambda: next(clock), time=time.time))

    def inode(name: str) -> int:
        return (tmp_path / name).stat().st_ino

    def size(name: str) -> int:
        return (tmp_path / name).stat().st_size

    writer = RunWriter.create(tmp_path, kind="study", name="decay")
    folder = [(inode("."), None)] if os.name == "posix" else []
    log, manifest = (inode("events.log"), len(MAGIC)), (inode("run.json"), size("run.json"))
    assert forced == [log, *folder, manifest, *folder], "whole files under their names, the manifest last"
    forced.clear()
    writer.append("result", seed=0)
    assert forced == [], "4.9 seconds later it may wait"
    writer.append("result", seed=1)
    assert forced == [(log[0], size("events.log"))], "5.1 seconds later it must not"
    forced.clear()
    with monkeypatch.context() as patch:
        patch.setattr("levada.runs.writer.time", SimpleNamespace(monotonic=lambda: 5.2))
        writer.append("result", seed=2)
        assert forced == []
        writer.close()
    assert forced == [(log[0], size("events.log"))]
    forced.clear()

    with (tmp_path / "events.log").open("ab") as file:
        file.write(b"torn")
    monkeypatch.setattr("levada.runs.writer.time", SimpleNamespace(monotonic=lambda: 0.0))
    with RunWriter.open(tmp_path):
        torn = (inode("events.torn-1"), len(b"torn"))
        log = (inode("events.log"), size("events.log"))
        assert forced == [torn, *folder, log, *folder], "what is moved is safe before it is cut off"


@pytest.mark.parametrize("partial", [0, 5])
def test_a_full_disk_keeps_the_run_readable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, partial: int) -> None:
    writer = RunWriter.create(tmp_path, kind="study", name="full")
    writer.append("result", seed=0)
    real, written = os.write, []

    def full(descriptor: int, data: memoryview) -> int:
        if partial and not written:
            written.append(real(descriptor, data[:partial]))
            return partial
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(OSError, match="was not stored, those before it are safe") as caught:
            writer.append("result", seed=1)
    assert caught.value.errno == errno.ENOSPC
    assert Run(tmp_path).damage is None
    writer.append("result", seed=2)  # there is room again
    writer.close()
    assert seeds(tmp_path) == [0, 2]


def test_a_partial_frame_that_cannot_be_taken_back_stops_the_writer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = RunWriter.create(tmp_path, kind="study", name="full")

    def refuse(*_: object) -> int:
        raise OSError(errno.EIO, "input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", refuse)
        patch.setattr(os, "ftruncate", refuse)
        with pytest.raises(OSError):
            writer.append("result", seed=0)
    with pytest.raises(OSError, match="reopen the run"):
        writer.append("result", seed=1)
    writer.close()


def test_paths_that_are_no_run(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is nothing here"):
        Run(tmp_path / "absent")
    with pytest.raises(UsageError, match=r"a run holds run\.json"):
        Run(tmp_path)
    with pytest.raises(UsageError):
        doctor(tmp_path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError, match=r"a run is a folder, and .*file is a file"):
        RunWriter.create(tmp_path / "file", kind="check", name="x")
    with pytest.raises(UsageError, match="a folder that exists"):
        find_runs(tmp_path / "absent")
    with pytest.raises(UsageError, match="name must be a non-empty string"):
        RunWriter.create(tmp_path / "x", kind="check", name="")


def test_a_manifest_of_another_schema_or_corrupt(tmp_path: Path) -> None:
    manifest = write(tmp_path) / "run.json"
    values = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**values, "schema": 2}))
    with pytest.raises(UsageError, match=r"got schema 2\. Update levada"):
        Run(tmp_path)
    for corrupt in ("{", "[]", json.dumps({**values, "kind": 3}), json.dumps({"schema": 1}), "[" * 100_000):
        manifest.write_text(corrupt)
        with pytest.raises(UsageError, match="the manifest is damaged"):
            Run(tmp_path)
        health = doctor(tmp_path)
        assert health.manifest is None
        assert health.frames == 3
        assert not health.healthy


def test_a_missing_log_is_damage(tmp_path: Path) -> None:
    (write(tmp_path) / "events.log").unlink()
    damage = Run(tmp_path).damage
    assert damage is not None
    assert damage.kind == "missing"
    assert list(Run(tmp_path).events()) == []
    with pytest.raises(UsageError, match="missing"):
        RunWriter.open(tmp_path)


def test_one_run_per_folder_one_writer_per_run(tmp_path: Path) -> None:
    with RunWriter.create(tmp_path, kind="check", name="first"):
        with pytest.raises(UsageError, match="one writer at a time"):
            RunWriter.open(tmp_path)
        with pytest.raises(UsageError, match="one writer at a time"):
            RunWriter.create(tmp_path, kind="check", name="second")
    with pytest.raises(UsageError, match="this holds a run"):
        RunWriter.create(tmp_path, kind="check", name="second")
    writer = RunWriter.open(tmp_path)
    writer.close()
    writer.close()
    with pytest.raises(UsageError, match="this one is closed"):
        writer.append("result", seed=0)


def test_runs_are_found_below_a_folder(tmp_path: Path) -> None:
    expected = [write(tmp_path / name) for name in ("a", "b/c", "b/c/d")]
    write(tmp_path / ".hidden")
    (tmp_path / "e").mkdir()
    assert find_runs(tmp_path) == expected
    assert find_runs(expected[0]) == [expected[0]]


def test_neither_runs_nor_reports_load_torch() -> None:
    code = (
        "import sys, levada.runs, levada.report, levada.report.terminal, levada.report.sarif\n"
        "slow = {'torch', 'numpy', 'pyarrow', 'rich', 'jinja2'} & set(sys.modules)\n"
        "assert not slow, slow"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
