"""Small versions of the fault trials of `benchmarks.faults`, and what the doctor says and mends."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from benchmarks.faults import mendings, racing, small, trials

from levada.cli import main
from levada.runs import Run, RunWriter, SignalWriter, doctor, reseal
from levada.runs.segments import places


@pytest.mark.skipif(os.name != "posix", reason="kill -9 is POSIX")
@pytest.mark.parametrize("suffix", ["parquet", "frames"])
def test_kill_9_at_random_moments_loses_nothing(suffix: str) -> None:
    counted = trials.kills(3, suffix, per_run=3)
    assert counted["samples_read"] > 100


@pytest.mark.parametrize("suffix", ["parquet", "frames"])
def test_files_cut_anywhere_are_detected_or_read_as_an_earlier_run(suffix: str) -> None:
    counted = trials.cuts(suffix, stride=61 if suffix == "parquet" else 17)
    assert counted["trials"] > 150
    assert counted["harmless"] == 0


@pytest.mark.parametrize("suffix", ["parquet", "frames"])
def test_flipped_bits_are_detected_or_harmless(suffix: str) -> None:
    counted = trials.flips(150, suffix)
    assert counted["detected"] > 140
    assert counted["memory_grown_kb"] < 2**16


def test_the_judge_of_the_trials_sees_what_a_reader_without_checksums_would_miss(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for place in ("segments", "health"):
        monkeypatch.setattr(f"levada.runs.{place}.verified", lambda place: place.path.read_bytes())
    with pytest.raises(AssertionError):
        trials.flips(400, "parquet")


@pytest.mark.parametrize("suffix", ["parquet", "frames"])
def test_sealed_again_nothing_wrong_is_read_and_little_is_lost(suffix: str) -> None:
    counted = trials.resealed(12, suffix, seed=3)
    assert counted["numbers_kept"] > 2 * counted["numbers_lost"]


def test_a_log_that_is_sealed_again_has_every_good_event() -> None:
    counted = mendings.mended_logs(stride=7)
    assert counted["damages"] > 100
    assert counted["events_kept"] > 3 * counted["trials"]


@pytest.mark.skipif(os.name != "posix", reason="kill -9 is POSIX")
def test_a_mending_that_is_killed_at_any_moment_loses_nothing() -> None:
    counted = mendings.killed_mendings()
    assert counted["left_as_it_was"] > 5
    assert counted["drafts_left"] >= 2


@pytest.mark.skipif(os.name != "posix", reason="kill -9 is POSIX")
def test_a_mending_that_is_killed_at_a_random_moment_is_mended_by_the_other() -> None:
    counted = mendings.kill_mendings(12)
    assert counted["killed"] > 3


def test_a_full_disk_neither_stops_training_nor_loses_a_verdict() -> None:
    found = trials.full_disk(1200)
    assert found["events_left"] == 0


def test_a_clock_that_goes_backwards() -> None:
    assert trials.clock()["samples_right"] == 300


def test_of_two_processes_that_race_for_one_folder_one_has_it_and_the_other_is_refused() -> None:
    assert racing.two_writers(30)["trials"] == 30


def damage(path: Path, at: float = 0.5) -> None:
    content = bytearray(path.read_bytes())
    content[int(at * len(content))] ^= 16
    path.write_bytes(content)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    small.write(tmp_path / "runs" / "one", "parquet")
    return tmp_path / "runs" / "one"


def sealed(folder: Path, level: str) -> Path:
    return next(place.path for place in places(folder / "signals" / "rank-00000") if place.level == level)


def test_the_doctor_says_what_is_lost_of_which_rank(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor(run).healthy
    assert "signals of rank 0: 27 samples in 7 files" in str(doctor(run))
    damage(sealed(run, "full"))
    health = doctor(run)
    assert not health.healthy
    assert "full-000001" in str(health)
    with RunWriter.create(run.parent / "two" / "deep", kind="study", name="x"):
        pass
    assert main(["doctor", str(run.parent)]) == 1
    said = capsys.readouterr().out
    assert "full-000001" in said
    assert "study 'x'" in said
    assert main(["doctor", str(run.parent / "two")]) == 0


def test_a_damaged_level_is_made_again_of_the_full_detail(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for level in ("by16", "by256"):
        damage(sealed(run, level))
    assert main(["doctor", str(run)]) == 1
    assert main(["doctor", "--reseal", str(run)]) == 0, "nothing is missing, though the damaged files are still there"
    said = capsys.readouterr().out
    assert said.count("bytes; nothing is missing by it\n") == len(list(run.rglob("*.torn"))) == 2
    for path in run.rglob("*.torn"):
        path.unlink()
    assert doctor(run).healthy
    assert small.judge(run) == "harmless"


def test_steps_are_known_again_where_their_file_is_lost(run: Path) -> None:
    damage(sealed(run, "samples"))
    assert Run(run).signals().steps == tuple(range(100, 135, 5))
    assert "5 steps" not in "".join(done := reseal(run))
    assert "20 steps are known again" in "".join(done)
    signals = Run(run).signals()
    assert signals.steps == tuple(range(0, 135, 5))
    assert signals.read("gradient_rms")[3] == [small.value(15, 1, site) for site in range(3)]
    assert len(signals.scalars("loss")) == 7


def test_a_segment_without_its_steps_is_told(run: Path) -> None:
    sealed(run, "samples").unlink()
    assert small.judge(run) == "detected"
    assert "segment 1 has neither" in Run(run).signals().damage[0].message


def test_a_tail_whose_first_frame_is_damaged_keeps_its_samples(run: Path) -> None:
    path = sealed(run, "tail")
    content = bytearray(path.read_bytes())
    content[30] ^= 1
    path.write_bytes(content)
    assert len(Run(run).signals().steps) == 27
    reseal(run)
    assert not doctor(run).signals[0].damage
    assert len(Run(run).signals().steps) == 27


def test_frames_behind_a_damage_of_a_tail_are_read_and_sealed(run: Path) -> None:
    damage(sealed(run, "tail"), 0.3)
    assert len(Run(run).signals().steps) == 26
    assert reseal(run) == ["rank 0: tail 2 is sealed, 6 samples"]
    assert len(Run(run).signals().steps) == 26
    assert [path.name for path in run.rglob("*.torn")] == ["tail-000002.torn"]


def test_events_behind_a_damage_are_read_again_and_what_was_damaged_is_kept(run: Path) -> None:
    log = run / "events.log"
    before = log.read_bytes()
    damage(log)
    assert len(small.events(run)) < 5
    bad = log.read_bytes()
    (told,) = reseal(run)[:1]
    assert told.startswith("events.log is written again: ")
    assert len(small.events(run)) == 5
    assert bad.endswith((run / "events.torn-1").read_bytes())
    assert len((run / "events.torn-1").read_bytes()) > len(before) // 3
    assert main(["doctor", str(run)]) == 1, "what was moved aside is still there"
    with RunWriter.open(run) as writer:
        writer.append("loss", steps=[12, 13], values=[0.5**6, 0.3**6])
    assert len(small.events(run)) == 6


def test_an_empty_log_begins_anew_and_moves_nothing(run: Path) -> None:
    log = run / "events.log"
    log.write_bytes(b"")
    assert reseal(run)[0] == "events.log was empty, and begins anew"
    (event,) = Run(run).events()
    assert (event["type"], event["num_bytes"], "moved_to" in event) == ("repaired", 0, False)
    assert not list(run.glob("events.torn-*"))
    assert doctor(run).healthy


@pytest.mark.skipif(os.name != "posix", reason="permissions are POSIX")
def test_a_mended_log_and_what_it_keeps_have_the_permissions_that_the_log_had(run: Path) -> None:
    damage(run / "events.log")
    (run / "events.log").chmod(0o600)
    reseal(run)
    assert [(run / name).stat().st_mode & 0o777 for name in ("events.log", "events.torn-1")] == [0o600, 0o600]


def test_nothing_is_sealed_again_beside_a_writer(run: Path) -> None:
    with SignalWriter(run, sites=small.SITES, signals=small.SIGNALS), pytest.raises(ValueError, match="one writer"):
        reseal(run)
