"""A run at a remote root: the same run, whatever the remote does to it, and a training loop that never waits for it."""

from __future__ import annotations

import json
import math
import random
import subprocess
import sys
import threading
import time
import warnings

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

import levada.runs.remote
from levada._errors import UsageError
from levada.cli import main
from levada.runs import Run, RunWriter, address, doctor, find_runs, remote
from levada.runs.remote import Mirror, fetch, is_remote, pending, stage, upload


class Unreliable(MemoryFileSystem):
    """Fails half of its calls."""

    protocol = "unreliable"
    store, pseudo_dirs = {}, [""]
    chance = random.Random(0)
    share = 0.5

    def put_file(self, *args, **kwargs):
        if self.chance.random() < self.share:
            raise ConnectionError("the network is down")
        super().put_file(*args, **kwargs)


class Slow(MemoryFileSystem):
    """Hangs until the gate is open."""

    protocol = "slow"
    store, pseudo_dirs = {}, [""]
    gate = threading.Event()

    def put_file(self, *args, **kwargs):
        assert self.gate.wait(300.0)
        super().put_file(*args, **kwargs)


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("LEVADA_CACHE", raising=False)
    for kind in (Unreliable, Slow):
        fsspec.register_implementation(kind.protocol, kind, clobber=True)
        kind.store.clear()
    Slow.gate.clear()
    MemoryFileSystem.store.clear()


def begin(url, **config):
    return RunWriter.create(stage(url), kind="watch", name="remote", config=config)


def wait(condition, seconds=120.0):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.005)
    assert condition()


def segment(folder, number, data, rank=0):
    path = folder / "signals" / f"rank-{rank:05d}" / f"{number:06d}.segment"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def losses(url):
    return [event["value"] for event in Run(url).events("loss")]


def test_what_is_an_address():
    assert [is_remote(p) for p in ("memory://a", "s3://b/c", "simplecache::s3://b", "file:///x", "a+b://c")] == [
        True
    ] * 5
    assert not any(is_remote(p) for p in ("runs/a", "/runs", r"C:\runs", "C:/runs", "a:b", "", "x//y"))


@pytest.mark.parametrize("kind", ["memory", "file"])
def test_a_mirrored_run_is_the_run(kind, tmp_path, capsys):
    url = "memory://bucket/runs/first" if kind == "memory" else f"file://{tmp_path}/there/first"
    with begin(url, lr=0.1) as writer:
        mirror = Mirror(writer.path, url, every=0.01)
        for step in range(20):
            writer.append("loss", step=step, value=1 / (step + 1))
            segment(writer.path, step, bytes([step]) * 100)
        wait(lambda: not mirror.pending)
        assert losses(url) == [1 / (step + 1) for step in range(20)]  # while it is written
        writer.append("loss", step=20, value=float("nan"))
        assert mirror.pending.keys() <= {"events.log"}
    (writer.path / ".hidden").write_text("x")
    mirror.close()
    mirror.close()
    assert mirror.problem is None
    assert not pending(writer.path, url)
    files, root = fsspec.core.url_to_fs(url)
    there = {path.removeprefix(root).lstrip("/"): files.cat_file(path) for path in files.find(root)}
    here = {p.relative_to(writer.path).as_posix(): p.read_bytes() for p in writer.path.rglob("*") if p.is_file()}
    assert there == {k: v for k, v in here.items() if k != "writer.lock" and not k.startswith(".")}
    run = Run(url)
    assert run.manifest.config == {"lr": 0.1}
    assert doctor(url).healthy
    assert [Run(path).manifest for path in find_runs(url.rsplit("/", 1)[0])] == [run.manifest]
    assert main(["doctor", url.rsplit("/", 1)[0] + "/"]) == 0
    assert capsys.readouterr().out.startswith(f"{url}: watch ")
    assert main(["report", url, "-o", str(tmp_path / "page.html")]) == 0
    assert f"{url} is not ended" in capsys.readouterr().err
    assert (tmp_path / "page.html").stat().st_size > 1000


def test_only_what_changed_is_copied_and_what_is_gone_goes():
    url = "memory://bucket/run"
    with begin(url) as writer:
        first, second = segment(writer.path, 0, b"a"), segment(writer.path, 1, b"b")
        assert upload(writer.path, url) == 4
        assert upload(writer.path, url) == 0
        copy = fetch(url)
        times = {p: p.stat().st_mtime_ns for p in copy.rglob("*.segment")}
        second.unlink()
        writer.append("loss", value=1.0)
        segment(writer.path, 2, b"c")
        assert upload(writer.path, url) == 2
    assert fetch(url) == copy
    assert sorted(p.name for p in copy.rglob("*.segment")) == ["000000.segment", "000002.segment"]
    kept = copy / first.relative_to(writer.path)
    assert kept.stat().st_mtime_ns == times[kept]
    assert losses(url) == [1.0]


def test_a_remote_that_fails_at_random_is_one_warning_and_has_everything_in_the_end():
    url = "unreliable://run"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with begin(url) as writer:
            mirror = Mirror(writer.path, url, every=0.002)
            for step in range(60):
                writer.append("loss", step=step, value=float(step))
                segment(writer.path, step, bytes([step]) * 10)
            wait(lambda: mirror.problem is not None or caught)
            mirror._failures = 0
            Unreliable.share = 0.2
            wait(lambda: not mirror.pending)
        Unreliable.share = 0.0
        mirror.close()
    Unreliable.share = 0.5
    assert [str(w.message) for w in caught if "could not be uploaded" in str(w.message)]
    assert len(caught) == 1
    assert "the network is down" in str(caught[0].message)
    assert losses(url) == [float(step) for step in range(60)]
    assert len(list(Run(url).path.rglob("*.segment"))) == 60


def test_what_a_dead_remote_lacks_is_known_and_can_be_brought_later():
    url, Unreliable.share = "unreliable://dead", 1.0
    with begin(url) as writer, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        writer.append("loss", value=0.5)
        mirror = Mirror(writer.path, url, every=0.01)
        wait(lambda: mirror.problem is not None)
        mirror.close()
    Unreliable.share = 0.5
    assert len(caught) == 2
    assert "2 files" in str(caught[1].message)
    assert "remote.upload(" in str(caught[1].message)
    assert pending(writer.path, url).keys() == {"run.json", "events.log"}
    Unreliable.share = 0.0
    assert upload(writer.path, url) == 2
    Unreliable.share = 0.5
    assert not pending(writer.path, url)
    assert losses(url) == [0.5]


def test_a_remote_that_hangs_stalls_neither_the_loop_nor_for_long_the_end():
    url = "slow://run"
    with begin(url) as writer, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        mirror = Mirror(writer.path, url, every=0.001)
        for step in range(200):
            writer.append("loss", step=step, value=0.0)
            _ = mirror.problem
        assert Slow.store == {}, "the loop has ended, and no upload has"
        thread = mirror._thread
        mirror.close(timeout=0.05)
    assert ["took longer than 0.05 s" in str(w.message) for w in caught] == [True]
    assert "events.log" in pending(writer.path, url)
    Slow.gate.set()
    thread.join(120.0)  # what hung goes on where it was, and then nothing is missing
    assert not pending(writer.path, url)
    assert len(losses(url)) == 200


def test_another_run_at_the_root_is_never_overwritten(monkeypatch, tmp_path):
    url = "memory://bucket/mine"
    with begin(url, seed=0) as writer:
        upload(writer.path, url)
    assert stage(url) == stage(url, resume=True) == writer.path  # a run that goes on
    monkeypatch.setenv("LEVADA_CACHE", str(tmp_path / "elsewhere"))
    with pytest.raises(UsageError, match="holds a run"):
        stage(url)
    # The remote could not be asked in the beginning: found out before the first upload.
    with RunWriter.create(tmp_path / "second", kind="watch", name="second") as second:
        pass
    with pytest.raises(UsageError, match="holds another run"):
        upload(second.path, url)
    with pytest.warns(RuntimeWarning) as caught:
        Mirror(second.path, url, every=0.01).close()
    assert "holds another run" in str(caught[0].message)
    assert Run(url).manifest.name == "remote"


def test_what_an_older_run_left_in_the_staging_folder_is_kept_and_not_mixed_in():
    url = "memory://bucket/again"
    with begin(url, seed=0) as first:
        segment(first.path, 0, b"old", 1)
        upload(first.path, url)
    fsspec.core.url_to_fs(url)[0].rm(url, recursive=True)  # by its owner; or it never arrived
    assert stage(url, resume=True) == first.path
    with begin(url, seed=1) as second:
        assert second.path != first.path
        assert stage(url, rank=1) != first.path
        upload(second.path, url)
    assert Run(url).manifest.config == {"seed": 1}
    assert not list(Run(url).path.rglob("*.segment"))
    assert Run(first.path).manifest.config == {"seed": 0}
    assert stage(url) == second.path


def test_each_rank_uploads_its_own_signals():
    url = "memory://bucket/ranks"
    with begin(url) as writer:
        for rank in (0, 1):
            segment(writer.path, 0, b"x", rank)
        assert pending(writer.path, url, 1).keys() == {"signals/rank-00001/000000.segment"}
        upload(writer.path, url, rank=1)
        assert pending(writer.path, url).keys() == {"events.log", "run.json", "signals/rank-00000/000000.segment"}
        upload(writer.path, url)
        assert not pending(writer.path, url, 1) | pending(writer.path, url)
    assert len(list(Run(url).path.rglob("*.segment"))) == 2


def test_another_machine_of_a_run_that_began_may_join_it(monkeypatch, tmp_path):
    url = "memory://bucket/machines"
    with begin(url) as writer:
        upload(writer.path, url)
    monkeypatch.setenv("LEVADA_CACHE", str(tmp_path / "other machine"))
    folder = stage(url, rank=1)
    segment(folder, 0, b"x", 1)
    assert upload(folder, url, rank=1) == 1
    assert len(list(Run(url).path.rglob("*.segment"))) == 1


def train(url, steps=40, poison=None):
    import torch

    import levada

    torch.manual_seed(0)
    model = torch.nn.Sequential(*(torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Tanh()) for _ in range(3)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with levada.watch(model, optimizer, run=url, every=1, max_overhead=math.inf) as watch:
        for step in range(steps):
            optimizer.zero_grad()
            model(torch.full((8, 4), float("nan") if step == poison else 1.0)).square().sum().backward()
            optimizer.step()
    return watch


@pytest.mark.parametrize("kind", ["memory", "file"])
def test_a_watched_training_is_read_where_it_was_sent(kind, tmp_path, capsys):
    url = "memory://bucket/watched" if kind == "memory" else f"file://{tmp_path}/remote/watched"
    watch = train(url)
    run = Run(url)
    assert (run.manifest.kind, run.manifest.name) == ("watch", "watched")
    signals = run.signals()
    assert list(signals.steps) == [sample.step for sample in watch.samples] == list(range(40))
    for sample, row in zip(watch.samples, signals.read("gradient_rms"), strict=True):
        assert row == pytest.approx(sample.values["gradient_rms"].tolist(), rel=0.01)
    assert run.losses() == [pair for sample in watch.samples for pair in sample.losses]
    assert doctor(url).healthy
    with pytest.raises(UsageError, match="holds a run"):
        train(url)


def test_findings_and_what_was_kept_to_replay_them_arrive_too():
    url = "memory://bucket/poisoned"
    watch = train(url, steps=6, poison=4)
    assert watch.findings[0].rule == "numerical_overflow"
    run = Run(url)
    assert next(run.events("finding"))["rule"] == "numerical_overflow"
    assert [path.name for path in run.path.glob("bundles/*/tensors.pt")] == ["tensors.pt"]
    assert watch.run != run.path


def test_a_training_whose_remote_is_dead_ends_as_it_would_have(monkeypatch):
    monkeypatch.setattr(Unreliable, "share", 1.0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        watch = train("unreliable://watched", steps=5)
    assert watch.steps == 5
    told = [str(w.message) for w in caught]
    assert ["could not be uploaded" in text for text in told] == [True, False]
    folder = address.cache_folder("staged", "unreliable://watched")
    assert "remote.upload" in told[1]
    assert str(folder) in told[1]
    assert Run(folder).signals().steps == (0, 1, 2, 3, 4)
    monkeypatch.setattr(Unreliable, "share", 0.0)
    upload(folder, "unreliable://watched")
    assert not pending(folder, "unreliable://watched")
    assert Run("unreliable://watched").signals().steps == (0, 1, 2, 3, 4)


def test_a_reader_sees_a_manifest_last():
    seen = []

    class Recorder(MemoryFileSystem):
        protocol, store, pseudo_dirs = "recorder", {}, [""]

        def put_file(self, source, target, **kwargs):
            seen.append(target.rsplit("/", 1)[-1])
            super().put_file(source, target, **kwargs)

    fsspec.register_implementation("recorder", Recorder, clobber=True)
    with begin("recorder://run") as writer:
        (writer.path / "signals" / "rank-00000").mkdir(parents=True)
        for name in ("tail-000000.log", "sites-000.json", "full-000000-00000000.parquet"):
            (writer.path / "signals" / "rank-00000" / name).write_bytes(b"t")
        upload(writer.path, "recorder://run")
    assert seen == [
        "sites-000.json",
        "full-000000-00000000.parquet",
        "tail-000000.log",
        "events.log",
        "run.json",
    ]


def test_names_at_the_remote_cannot_leave_the_folder(tmp_path):
    files = MemoryFileSystem()
    with begin("memory://evil/run") as writer:
        upload(writer.path, "memory://evil/run")
    files.store["/evil/run/../../outside"] = files.store["/evil/run/run.json"]
    files.store["/evil/run/.hidden"] = files.store["/evil/run/run.json"]
    copy = fetch("memory://evil/run", cache=tmp_path / "deep" / "er" / "copy")
    assert sorted(p.name for p in copy.rglob("*")) == ["events.log", "run.json"]
    assert not list(tmp_path.rglob("outside"))


def test_errors_say_what_to_do(monkeypatch):
    with pytest.raises(UsageError, match="nothing at this address"):
        Run("memory://no/such")
    with pytest.raises(UsageError, match="no such file system"):
        stage("nonsense://x")
    monkeypatch.setattr(Slow, "find", lambda *a, **k: 1 / 0)
    with pytest.raises(UsageError, match="it cannot be read"):
        Run("slow://x")
    assert main(["report", "memory://no/such"]) == 2
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(UsageError, match=r"pip install 'levada\[remote\]'"):
        stage("memory://x")


def test_a_script_that_dies_has_its_last_events_uploaded_and_runs_do_not_load_fsspec(tmp_path):
    code = f"""
import sys, levada.runs
assert "fsspec" not in sys.modules and "torch" not in sys.modules
from levada.runs.remote import Mirror, stage
url = "file://{tmp_path}/remote/run"
writer = levada.runs.RunWriter.create(stage(url), kind="watch", name="dies")
mirror = Mirror(writer.path, url, every=1000)
writer.append("loss", value=0.25)
1 / 0
"""
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "ZeroDivisionError" in told.stderr
    assert losses(f"file://{tmp_path}/remote/run") == [0.25]
    assert not list((tmp_path / "remote" / "run").glob(".*"))


def test_what_was_uploaded_is_known_after_a_crash():
    url = "memory://bucket/crash"
    with begin(url) as writer:
        upload(writer.path, url)
        writer.append("loss", value=1.0)
    assert pending(writer.path, url).keys() == {"events.log"}
    note = remote._state(writer.path, url, 0)
    assert json.loads(note.read_text())["url"] == url
    note.write_bytes(note.read_bytes()[:20])
    assert pending(writer.path, url).keys() == {"events.log", "run.json"}
    assert upload(writer.path, url) == 2


@pytest.mark.parametrize("rank", [0, 1])
def test_doctor_says_what_a_killed_process_had_not_uploaded_and_what_brings_it(rank):
    url, Unreliable.share = "unreliable://killed", 1.0
    with begin(url) as writer, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        segment(writer.path, 0, b"x", rank)
        mirror = Mirror(writer.path, url, rank=rank, every=0.01)
        wait(lambda: mirror.problem is not None)
        assert doctor(writer.path).not_uploaded == (), "it is being written"
        mirror.close()
    Unreliable.share = 0.0
    (told,) = doctor(writer.path).not_uploaded
    assert told.startswith(f"not at {url}: {'1 file' if rank else '3 files'}, ")
    assert f"  {told}\n" in f"{doctor(writer.path)}\n"
    eval(told.split("; ")[1].removesuffix(" brings what is missing"), {"levada": levada})
    Unreliable.share = 0.5
    assert not pending(writer.path, url, rank)
    assert doctor(writer.path).not_uploaded == ()


def test_doctor_of_an_address_says_where_the_rest_of_an_open_run_lies(capsys):
    url = "memory://bucket/open"
    with begin(url) as writer:
        writer.append("loss", steps=[0], values=[1.0])
        upload(writer.path, url)
    main(["doctor", url])
    assert "what was not uploaded lies on the machine that writes it" in capsys.readouterr().out
    with RunWriter.open(writer.path) as writer:
        writer.append("end", steps=1)
        upload(writer.path, url)
    main(["doctor", url])
    assert "what was not uploaded" not in capsys.readouterr().out
