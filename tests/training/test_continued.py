"""A run that is continued takes the steps that it would have taken: what it began with holds, whoever changed what."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from levada._errors import UsageError
from levada.runs import Run, RunWriter
from levada.training import losses, read, resolve, to_toml, train
from levada.training.config import Data
from levada.training.data import described, load_data
from levada.training.loop import _described
from levada.training.record import begin

SMALL = {
    "model": {"depth": 2, "dim": 8},
    "data": {"batch_size": 16, "evaluated": 32},
    "watch": {"enabled": False},
    "run": {"steps": 2},
}


def small(folder, *changes):
    return resolve(SMALL, [f"run.folder={folder}", *changes])


def test_the_run_s_own_file_changed_is_not_what_the_run_began_with(tmp_path):
    train(small(tmp_path / "run"))
    file = tmp_path / "run" / "config.toml"
    began = file.read_text()
    file.write_text(began.replace("lr = 0.001", "lr = 5.0"))
    with pytest.raises(UsageError, match=r"optimizer\.lr must stay what it is .* has 0\.001, got 5\.0"):
        train(read(file), resume=True)
    file.write_text(began.replace("steps = 2", "steps = 3"))
    assert list(losses(train(read(file), resume=True).run)) == [0, 1, 2], "what is free may be changed there"
    file.unlink()
    with pytest.raises(UsageError, match=r"run\.seed must stay what it is .* has 0, got 1"):
        train(small(tmp_path / "run", "run.seed=1", "run.steps=4"), resume=True)


OF_BEFORE = json.loads("""{
  "hash": "e9c22243a0bd85f0",
  "model": {"network": "cifar_resnet", "depth": 8, "dim": 32, "connection": "Residual", "connection_options": {},
            "options": {}, "initialisation": "", "initialisation_options": {}},
  "data": {"source": "images", "path": "~/pictures", "batch_size": 16, "context": 64, "held_out": 0.1,
           "evaluated": 512},
  "optimizer": {"name": "adamw", "lr": 0.001, "weight_decay": 0.1, "betas": [0.9, 0.95], "momentum": 0.5, "clip": 1.0,
                "accumulate": 1},
  "schedule": {"name": "cosine", "warmup": 0, "decay": 0, "final": 0.0},
  "precision": {"compute": "auto", "deterministic": false},
  "parallel": {"kind": "none", "stages": 0, "split": [], "micro_batches": 1, "schedule": "1f1b", "checkpoint": false},
  "checkpoint": {"every": 0, "keep": 2, "asynchronous": true},
  "watch": {"enabled": true, "every": 20, "max_overhead": 0.01, "live": false},
  "run": {"folder": "~/a", "seed": 0, "steps": 20, "evaluate_every": 0, "device": "auto"}
}""")


@pytest.fixture
def of_before(tmp_path, monkeypatch):
    """A run that an earlier levada began, with keys that nothing reads and a folder that is called `~`."""
    monkeypatch.chdir(tmp_path)
    RunWriter.create("~/a", kind="train", name="a", config=OF_BEFORE).close()
    tables = {name: table for name, table in OF_BEFORE.items() if name != "hash"}
    plain = to_toml(resolve({}))
    for table, keys in tables.items():
        body = "".join(f"{key} = {json.dumps(value)}\n" for key, value in keys.items())
        plain = plain.replace(plain.split(f"[{table}]\n")[1].split("\n[")[0], body)
    Path("~/a/config.toml").write_text(plain)
    return Path("~/a/config.toml")


def test_a_run_of_before_goes_on_whatever_is_refused_today(of_before):
    by_hand = {
        "model": {"network": "cifar_resnet", "depth": 8},
        "data": {"source": "images", "path": "./~/pictures", "batch_size": 16},
        "run": {"steps": 20, "folder": "./~/a"},
    }
    for config in (resolve(by_hand), read(of_before)):
        writer, continued = begin(config, resume=True)
        writer.close()
        assert continued
    for fixed, told in (
        ("model.depth=14", r"model\.depth .* has 8, got 14"),
        ("optimizer.clip=2.0", r"has 1\.0, got 2"),
    ):
        with pytest.raises(UsageError, match=told):
            begin(resolve(by_hand, [fixed]), resume=True)


def test_the_file_of_a_run_of_before_gives_the_same_anew(of_before):
    anew = read(of_before, ["run.folder=new"])
    assert (anew.run.folder, anew.data.path, anew.model.dim, anew.optimizer.momentum) == (
        "new",
        "./~/pictures",
        64,
        0.9,
    )
    assert read(of_before, ["model.network=mlp"]).model.dim == 32, "what is read counts"
    begun = of_before.read_text()
    for was, now, told in (
        ("dim = 32", "dim = 48", r"model\.dim belongs to"),
        ('"~/a"', '"~/b"', "without the shell's ~, got '~/b'"),
    ):
        of_before.write_text(begun.replace(was, now))
        with pytest.raises(UsageError, match=told):
            read(of_before)
    of_before.write_text(begun)
    of_before.rename("config.toml")
    with pytest.raises(UsageError, match=r"belongs to|without the shell"):
        read("config.toml")


@pytest.mark.parametrize(
    ("now", "told"),
    [
        (b"cd" * 2000, "the checksum of the targets is [0-9a-f]{8} in .*run, got [0-9a-f]{8}"),
        (b"ab" * 1900, "the number of examples that are trained on is 3592 in .*run, got 3412"),
    ],
)
def test_data_that_changed_are_refused(tmp_path, now, told):
    text = tmp_path / "text.txt"
    text.write_bytes(b"ab" * 2000)
    of_text = ["model.network=transformer", "data.source=text", "data.context=8", f"data.path={text}"]

    def begun(**how):
        return begin(
            small(tmp_path / "run", *of_text), examples=described(load_data(Data("text", str(text), context=8))), **how
        )

    begun(resume=False)[0].close()
    begun(resume=True)[0].close()
    text.write_bytes(now)
    with pytest.raises(UsageError, match=f"train: the data must stay what they are .*: {told}"):
        begun(resume=True)


def of_text(folder, path, **how):
    """Begin or continue a run on a text, as far as its first event."""
    data = ["model.network=transformer", "data.source=text", "data.context=8", f"data.path={path}"]
    told = described(load_data(Data("text", str(path), context=8))) if how.pop("tells", True) else None
    writer, _ = begin(small(folder, *data), examples=told, **how)
    writer.close()


def test_the_same_data_may_lie_elsewhere_where_they_are_compared_themselves(tmp_path):
    here, there = tmp_path / "here.txt", tmp_path / "there.txt"
    for place in (here, there):
        place.write_bytes(bytes(range(200)) * 20)
    for run, tells in (("new", True), ("old", False)):
        of_text(tmp_path / run, here, resume=False, tells=tells)
    of_text(tmp_path / "new", there, resume=True)
    with pytest.raises(UsageError, match=r"data\.path must stay what it is"):
        of_text(tmp_path / "old", there, resume=True)
    there.write_bytes(bytes(range(1, 201)) * 20)
    with pytest.raises(UsageError, match=r"the data must stay what they are .* the checksum of the targets"):
        of_text(tmp_path / "new", there, resume=True)


@pytest.mark.parametrize("changed", [500, 199_500, None])
def test_a_text_that_changed_where_no_target_is_looked_at_is_refused(tmp_path, changed):
    text, content = tmp_path / "text.txt", bytearray(b"a" * 200_000)
    text.write_bytes(content)
    of_text(tmp_path / "run", text, resume=False)
    if changed is None:
        of_text(tmp_path / "run", text, resume=True)
        return
    content[changed] = ord("b")
    text.write_bytes(content)
    with pytest.raises(UsageError, match=r"the checksum of the files is [0-9a-f]{8} in .*run, got [0-9a-f]{8}"):
        of_text(tmp_path / "run", text, resume=True)


def test_a_run_whose_data_are_known_by_their_targets_alone_says_more_from_its_continuation_on(tmp_path):
    text = tmp_path / "text.txt"
    text.write_bytes(b"ab" * 2000)
    of_text(tmp_path / "run", text, resume=False, tells=False)
    told = described(load_data(Data("text", str(text), context=8)))
    with RunWriter.open(tmp_path / "run") as writer:
        writer.append("examples", **{key: value for key, value in told.items() if key != "content"})
    for _ in range(2):
        of_text(tmp_path / "run", text, resume=True)
    assert [event.get("content") for event in Run(tmp_path / "run").events("examples")] == [None, told["content"]]


def test_hidden_files_that_a_run_of_before_read_are_told(tmp_path):
    texts = tmp_path / "texts"
    texts.mkdir()
    for name in ("one.txt", "._one.txt"):
        (texts / name).write_bytes(b"ab" * 500)
    of_text(tmp_path / "old", texts, resume=False, tells=False)
    of_text(tmp_path / "new", texts, resume=False)
    of_text(tmp_path / "new", texts, resume=True)
    with pytest.raises(UsageError, match=r"hidden files among them, which were read when .*old began .* is 1\. Take"):
        of_text(tmp_path / "old", texts, resume=True)
    (texts / "._one.txt").unlink()
    of_text(tmp_path / "old", texts, resume=True)


def test_a_run_of_before_that_says_nothing_of_its_data_says_it_from_its_continuation_on(tmp_path):
    config = small(tmp_path / "run")
    begin(config, resume=False)[0].close()
    for _ in range(2):
        assert list(losses(train(config, resume=True).run)) == [0, 1]
    assert [event["train"] for event in Run(tmp_path / "run").events("examples")] == [3600]


@pytest.mark.parametrize("resume", [True, False])
def test_a_run_whose_beginning_did_not_fit_on_the_disk_is_begun_again_in_the_same_process(
    tmp_path, monkeypatch, resume
):
    config = small(tmp_path / "run")
    if resume:
        begin(config, resume=False)[0].close()

    def full(path, data):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    with monkeypatch.context() as patched:
        patched.setattr("levada.training.record.write_atomically", full)
        with pytest.raises(OSError, match="No space left"):
            train(config, resume=resume)
    assert list(losses(train(config, resume=True).run)) == [0, 1]


@pytest.mark.parametrize("same", [True, False])
def test_every_process_must_read_the_same(same):
    source = load_data(Data())
    first = described(source) if same else {**described(source), "train": 3599}
    asked = []

    def any_of(here, elsewhere=False):
        asked.append(here)
        return here or elsewhere

    others = SimpleNamespace(agree=lambda ask: first, any=any_of)
    if same:
        assert _described(source, others) == first
        others.any = lambda here: any_of(here, elsewhere=True)  # a third process reads other data
    with pytest.raises(UsageError, match=r"the data must be the same in every process"):
        _described(source, others)
    assert asked == ([False, False] if same else [True])
