"""Checkpoints on one process: what goes on goes on exactly, and what is half written is not loaded."""

from __future__ import annotations

import io
import json
import shutil

import pytest
import torch
from torch import nn

from levada import connections
from levada._errors import MeasurementError, UsageError
from levada.connection import Connection
from levada.runs import doctor
from levada.training import losses, resolve, train
from levada.training.checkpoint import Checkpoints, complete, load_weights
from levada.training.config import Checkpoint
from levada.training.processes import Processes

NETWORKS = {
    "random": {"model": {"depth": 3, "dim": 8, "connection": "StochasticDepth"}},
    "running statistics": {
        "model": {
            "network": "cifar_resnet",
            "depth": 8,
            "connection": "ReZero",
            "options": {"channels": [4, 8, 8], "pre_activation": True},
        },
        "optimizer": {"name": "sgd"},
    },
    "text": {
        "model": {
            "network": "transformer",
            "depth": 2,
            "dim": 8,
            "connection": "ManifoldHyperConnection",
            "connection_options": {"streams": 2, "iterations": 3},
            "options": {"heads": 2},
        },
        "data": {"source": "king_james", "context": 8},
    },
}
EVERYWHERE = [
    "watch.enabled=false",
    "data.batch_size=8",
    "data.evaluated=16",
    "checkpoint.every=3",
    "run.evaluate_every=3",
]
CONNECTIONS = sorted(
    name
    for name, kind in vars(connections).items()
    if isinstance(kind, type)
    and issubclass(kind, Connection)
    and kind is not Connection
    and name not in ("Dense", "Reversible")  # their branches have another width than those of `mlp`
)
ALONE = Processes(0, 1, torch.device("cpu"))


def run(case, tmp_path, name, *changes, **options):
    config = resolve(NETWORKS[case], [*EVERYWHERE, f"run.folder={tmp_path / name}", *changes])
    return train(config, **options)


@pytest.mark.parametrize(("case", "asynchronous"), [*((case, "true") for case in NETWORKS), ("random", "false")])
def test_a_continued_run_is_the_run(case, asynchronous, tmp_path):
    changes = "schedule.name=constant", f"checkpoint.asynchronous={asynchronous}"
    whole = run(case, tmp_path, "whole", "run.steps=10", *changes)
    run(case, tmp_path, "parts", "run.steps=6", *changes)
    parts = run(case, tmp_path, "parts", "run.steps=10", *changes, resume=True)
    assert losses(parts.run) == losses(whole.run)
    assert parts.held_out == whole.held_out
    for (name, mine), theirs in zip(
        whole.engine.module.state_dict().items(), parts.engine.module.state_dict().values(), strict=True
    ):
        assert torch.equal(mine, theirs), name


@pytest.mark.filterwarnings("ignore:ValueResidual. no branch")
@pytest.mark.parametrize("connection", CONNECTIONS)
def test_a_run_continues_from_its_first_step(connection, tmp_path):
    """Parameters that had no gradient until then have no moments in the checkpoint."""
    model = {"depth": 4, "dim": 8, "connection": connection}
    tables = {"model": model, "data": {"batch_size": 8, "evaluated": 8}, "checkpoint": {"every": 1, "keep": 3}}
    config = resolve(tables, ["watch.enabled=false", "run.steps=3", f"run.folder={tmp_path / 'run'}"])
    whole = train(config)
    kept = {name: value.clone() for name, value in whole.engine.module.state_dict().items()}
    for step in (2, 3):
        shutil.rmtree(tmp_path / "run" / "checkpoints" / f"step-{step:08d}")
    again = train(config, resume=True)
    assert [event["step"] for event in again.run.events("resumed")] == [1]
    assert (again.loss, again.held_out) == (whole.loss, whole.held_out)
    for name, value in again.engine.module.state_dict().items():
        assert torch.equal(value, kept[name]), name


def test_what_was_done_after_the_checkpoint_is_done_again(tmp_path):
    whole = run("random", tmp_path, "whole", "run.steps=8")
    folder = tmp_path / "whole"
    shutil.rmtree(folder / "checkpoints" / "step-00000008")
    again = run("random", tmp_path, "whole", "run.steps=8", resume=True)
    assert [event["step"] for event in again.run.events("resumed")] == [6]
    assert losses(again.run) == losses(whole.run)
    assert again.loss == whole.loss


def test_half_a_checkpoint_is_not_loaded(tmp_path):
    def damaged(folder, how):
        newest = folder / "checkpoints" / "step-00000009"
        data = next(newest.glob("*.distcp"))
        if how == "no marker":
            (newest / "complete.json").unlink()
        elif how == "half a marker":
            (newest / "complete.json").write_bytes((newest / "complete.json").read_bytes()[:20])
        elif how == "half the data":
            data.write_bytes(data.read_bytes()[:-1])
        elif how == "no data":
            data.unlink()
        else:
            (newest / ".metadata").unlink()

    run("random", tmp_path, "whole", "run.steps=9")
    for how in ("no marker", "half a marker", "half the data", "no data", "no plan"):
        folder = tmp_path / how
        shutil.copytree(tmp_path / "whole", folder)
        damaged(folder, how)
        assert [step for step, _ in complete(folder / "checkpoints")] == [6], how
        found = run("random", tmp_path, how, "run.steps=9", resume=True)
        assert [event["step"] for event in found.run.events("resumed")] == [6], how
        kept = (folder / "checkpoints" / "step-00000009.damaged").is_dir()
        assert kept == (how != "no marker"), "what was never completed is removed, what is damaged is not"


def spoil(folder, step, *, cut=False):
    path = folder / "checkpoints" / f"step-{step:08d}" / "__0_0.distcp"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content[:-1] if cut else content)


@pytest.mark.parametrize("asynchronous", ["true", "false"])
@pytest.mark.parametrize("cut", [True, False])
def test_a_damaged_checkpoint_is_said_and_kept_and_the_older_one_taken(cut, asynchronous, tmp_path):
    whole = run("random", tmp_path, "run", "run.steps=9", f"checkpoint.asynchronous={asynchronous}")
    folder = tmp_path / "run"
    assert doctor(folder).healthy
    assert "checkpoints: 2, every checksum right" in str(doctor(folder))
    spoil(folder, 9, cut=cut)
    health = doctor(folder)
    assert not health.healthy
    why = "__0_0.distcp has " if cut else "the checksum of __0_0.distcp differs"
    assert f"damage: checkpoints/step-00000009 cannot be used: {why}" in str(health)
    stream = io.StringIO()
    again = run("random", tmp_path, "run", "run.steps=9", resume=True, stream=stream)
    said = f"the checkpoint of step 9 is damaged, and is kept as step-00000009.damaged: {why}"
    assert said in stream.getvalue()
    assert "continuing after step 6" in stream.getvalue()
    assert losses(again.run) == losses(whole.run)
    health = doctor(folder)
    assert health.healthy
    assert "moved aside, because it was damaged: checkpoints/step-00000009.damaged; one of its step" in str(health)
    shutil.rmtree(folder / "checkpoints" / "step-00000009")
    assert not doctor(folder).healthy, "what was set aside is the newest again"


def test_where_all_checkpoints_are_damaged_it_does_not_begin_again_unasked(tmp_path):
    run("random", tmp_path, "run", "run.steps=9")
    folder = tmp_path / "run" / "checkpoints"
    for step in (6, 9):
        spoil(tmp_path / "run", step, cut=step == 6)
    for _ in range(2):  # the second time too
        with pytest.raises(MeasurementError, match=r"none in .* is: step-00000009 \(the checksum .*, step-00000006 \("):
            run("random", tmp_path, "run", "run.steps=9", resume=True)
        assert sorted(path.name for path in folder.iterdir()) == ["step-00000006", "step-00000009"]
    shutil.rmtree(folder / "step-00000006")
    (folder / "step-00000009").rename(folder / "step-00000009.damaged")
    with pytest.raises(MeasurementError, match="begins again at step 0"):
        run("random", tmp_path, "run", "run.steps=9", resume=True)
    folder.rename(folder.with_name("away"))
    again = run("random", tmp_path, "run", "run.steps=9", resume=True)
    assert [event["step"] for event in again.run.events("resumed")] == [0]


def test_weights_of_a_damaged_checkpoint_are_not_loaded(tmp_path):
    trained = run("random", tmp_path, "run", "run.steps=3")
    spoil(tmp_path / "run", 3)
    path = tmp_path / "run" / "checkpoints" / "step-00000003"
    with pytest.raises(MeasurementError, match=r"step-00000003 is damaged: the checksum of __0_0\.distcp differs"):
        load_weights(path, trained.engine.module)


def test_a_checkpoint_of_before_the_checksums_is_loaded(tmp_path):
    run("random", tmp_path, "run", "run.steps=3")
    marker = tmp_path / "run" / "checkpoints" / "step-00000003" / "complete.json"
    told = json.loads(marker.read_text())
    assert set(told.pop("crc32")) == set(told["files"])
    marker.write_text(json.dumps(told))
    assert doctor(tmp_path / "run").healthy
    again = run("random", tmp_path, "run", "run.steps=3", resume=True)
    assert [event["step"] for event in again.run.events("resumed")] == [3]


def test_without_a_checkpoint_it_begins_anew(tmp_path):
    whole = run("random", tmp_path, "whole", "run.steps=5")
    shutil.rmtree(tmp_path / "whole" / "checkpoints")
    again = run("random", tmp_path, "whole", "run.steps=5", resume=True)
    assert losses(again.run) == losses(whole.run)
    fresh = run("random", tmp_path, "fresh", "run.steps=5", resume=True)
    assert losses(fresh.run) == losses(whole.run)


def test_where_no_run_is_to_continue_one_line_says_that_it_begins(tmp_path):
    folder, said = tmp_path / "run", []
    for _ in range(2):
        stream = io.StringIO()
        run("random", tmp_path, "run", "run.steps=2", resume=True, stream=stream)
        said.append(stream.getvalue().splitlines())
    assert said[0][0] == f"{folder} holds no run to continue: this begins one"
    assert said[1][0] == "continuing after step 2"


def test_the_newest_are_kept(tmp_path):
    run("random", tmp_path, "run", "run.steps=11", "checkpoint.every=2", "checkpoint.keep=3")
    names = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert names == ["step-00000008", "step-00000010", "step-00000011"]
    marker = json.loads((tmp_path / "run" / "checkpoints" / names[0] / "complete.json").read_text())
    assert (marker["step"], marker["processes"]) == (8, 1)
    assert set(marker["files"]) == {".metadata", "__0_0.distcp"}


def fresh():
    torch.manual_seed(0)
    model = nn.Linear(64, 64)
    return model, torch.optim.AdamW(model.parameters())


def test_what_changes_while_it_is_written_is_not_in_it(tmp_path):
    model, optimizer = fresh()
    model(torch.ones(1, 64)).sum().backward()
    optimizer.step()
    kept = {name: value.clone() for name, value in model.state_dict().items()}
    checkpoints = Checkpoints(tmp_path, Checkpoint(), ALONE)
    checkpoints.save(1, model, optimizer)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(7.0)
    checkpoints.finish()
    other, its = fresh()
    checkpoints.load(complete(tmp_path)[0][1], other, its)
    assert all(torch.equal(value, kept[name]) for name, value in other.state_dict().items())


def test_a_disk_that_refuses_stops_nothing_until_the_end(tmp_path):
    said = []
    (tmp_path / "step-00000001").write_text("a file where a folder must be")
    checkpoints = Checkpoints(tmp_path, Checkpoint(), ALONE, said.append)
    model, optimizer = fresh()
    model(torch.ones(1, 64)).sum().backward()
    optimizer.step()
    checkpoints.save(1, model, optimizer)
    checkpoints.finish()
    assert len(said) == 1
    assert said[0].startswith("the checkpoint of step 1 was not written, those before it are as they were: ")
    with pytest.raises(MeasurementError, match="the last checkpoint could not be written"):
        checkpoints.require_saved()
    checkpoints.save(2, model, optimizer)
    checkpoints.finish()
    checkpoints.require_saved()


def test_a_checkpoint_of_another_network_is_refused(tmp_path):
    model, optimizer = fresh()
    checkpoints = Checkpoints(tmp_path, Checkpoint(asynchronous=False), ALONE)
    checkpoints.save(1, model, optimizer)
    other = nn.Linear(32, 64)
    with pytest.raises(MeasurementError, match="step-00000001 cannot be loaded: process 0: ValueError: Size mismatch"):
        checkpoints.load(complete(tmp_path)[0][1], other, torch.optim.AdamW(other.parameters()))


def test_another_configuration_is_refused_by_its_key(tmp_path):
    run("random", tmp_path, "run", "run.steps=3")
    with pytest.raises(UsageError, match=r"optimizer\.lr must stay what it is .* has 0\.001, got 0\.5"):
        run("random", tmp_path, "run", "run.steps=3", "optimizer.lr=0.5", resume=True)
