"""Two processes: the numbers of one, checkpoints for another number of them, and a worker that is killed."""

from __future__ import annotations

import importlib
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import nn

from levada._errors import MeasurementError, UsageError
from levada.cli import main
from levada.runs import Run
from levada.training import evaluations, losses, read, resolve, train
from levada.training.engine import WholeNetwork
from levada.training.processes import Processes, SaidMeasurementError, SaidUsageError, meet

KINDS = ("ddp", "fsdp", "pipeline", "fsdp-stacked")
TABLES = {
    "model": {"depth": 3, "dim": 8, "connection": "HyperConnection", "connection_options": {"streams": 2}},
    "data": {"batch_size": 16, "evaluated": 32},
    "optimizer": {"lr": 0.003, "clip": 0.5, "accumulate": 2},
    "schedule": {"name": "constant", "warmup": 3},
    "checkpoint": {"every": 4},
    "run": {"evaluate_every": 4},
}


def alone_of(kind):
    """Return how one process trains what several do: what an optimizer holds of stacked layers is stacked."""
    return "none-stacked" if kind.endswith("stacked") else "none"


def config(folder, kind, steps, watch="false", *changes):
    kind, _, stacked = kind.partition("-")
    changes = [
        f"run.folder={folder}",
        f"parallel.kind={kind}",
        f"run.steps={steps}",
        f"watch.enabled={watch}",
        f"parallel.stacked={'true' if stacked else 'false'}",
        *changes,
    ]
    if kind == "pipeline":
        changes += ["optimizer.accumulate=1", "parallel.micro_batches=2"]
    return resolve(TABLES, changes)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """A run of one process, and the first part of it to be continued by two."""
    home = tmp_path_factory.mktemp("alone")
    for kind in KINDS:
        train(config(home / f"part-{kind}", alone_of(kind), 8))
    return home, train(config(home / "whole", "none", 12))


@pytest.fixture(scope="module")
def together(alone, two_processes):
    os.environ["LEVADA_TEST_ALONE"] = str(alone[0])
    try:
        found = two_processes(__file__)
    finally:
        del os.environ["LEVADA_TEST_ALONE"]
    return Path(found["folder"]), found


def norms(run):
    return [norm for event in run.events("losses") for norm in event["gradient_norm"]]


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_compute_what_one_does(kind, alone, together):
    one, two = alone[1].run, Run(together[0] / f"whole-{kind}")
    assert losses(two) == pytest.approx(losses(one), rel=1e-6)
    assert norms(two) == pytest.approx(norms(one), rel=1e-5)
    assert any(norm > 0.5 for norm in norms(one)), "else nothing was clipped"
    assert evaluations(two) == pytest.approx(evaluations(one), rel=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_continue_exactly(kind, together):
    whole, parts = (Run(together[0] / f"{name}-{kind}") for name in ("whole", "parts"))
    assert [event["step"] for event in parts.events("resumed")] == [8]
    assert losses(parts) == losses(whole)
    assert evaluations(parts) == evaluations(whole)


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_continue_what_one_began(kind, alone, together):
    run = Run(alone[0] / f"part-{kind}")
    assert [(event["step"], event["processes"]) for event in run.events("resumed")] == [(8, 2)]
    assert losses(run) == pytest.approx(losses(alone[1].run), rel=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_one_process_continues_what_two_began(kind, alone, together):
    trained = train(config(together[0] / f"two-{kind}", alone_of(kind), 12), resume=True)
    assert [(event["step"], event["processes"]) for event in trained.run.events("resumed")] == [(8, 1)]
    assert losses(trained.run) == pytest.approx(losses(alone[1].run), rel=1e-6)
    assert trained.held_out == pytest.approx(alone[1].held_out, rel=1e-6)


def test_running_statistics_become_those_of_all_processes(together):
    assert together[1]["statistics"] == [0.5, 0.5]


def test_copies_have_the_running_statistics_of_all_processes_as_shards_do(together):
    """Also where nothing was evaluated or saved in between."""
    copies, evaluated, shards = (together[1][f"norms, {name}"] for name in ("ddp", "ddp evaluated", "fsdp"))
    for name, value in shards.items():
        torch.testing.assert_close(copies[name], value, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(evaluated[name], value, rtol=1e-4, atol=1e-5)


def test_what_the_first_process_refuses_all_refuse(together):
    assert all("holds a run. Continue it with --resume" in told for told in together[1]["refused"])


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_that_is_not_finite_ends_all_processes_with_its_block_named(kind, together):
    folder, found = together
    told = found[f"stopped, {kind}"]
    assert "at step" in told
    run = Run(folder / f"stopped-{kind}")
    (stopped,) = run.events("stopped")
    assert stopped["told"] == told
    watched = Run(folder / f"stopped-{kind}" / "watch" / "1")
    finding = list(watched.events("finding"))[-1]
    assert (finding["rule"], finding["severity"]) == ("numerical_overflow", "error")
    assert finding["evidence"]["step"] == stopped["step"]
    assert finding["where"]["first"].startswith("stack.layers.")
    assert watched.signals().steps[-1] == stopped["step"]
    (bundle,) = [path for path in (watched.path / "bundles").iterdir() if "rank" not in path.name]
    assert bundle.name == f"step-{stopped['step']:06d}-numerical_overflow"
    assert ("levada replay" in told) is (kind != "pipeline")  # what one stage is given is none of the network


def test_layers_that_are_left_out_are_so_in_all_processes(together):
    """Else one process waits for parameters that the other does not gather."""
    assert "StochasticDepth leaves layers out" in together[1]["dropping, ddp"]
    assert together[1]["dropping, fsdp"] == pytest.approx(together[1]["dropping, none"], rel=1e-6)


def test_several_processes_need_something_to_spread(monkeypatch, tmp_path):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match=r'parallel\.kind "none" is for one process, got 2'):
        train(config(tmp_path / "run", "none", 4))


@pytest.mark.skipif(sys.platform != "linux", reason="finds the workers in /proc")
def test_a_killed_worker_is_restarted_and_the_curve_goes_on(tmp_path):
    from benchmarks.restart import end, kill_when, launch  # not in the processes that this file is run as

    changes = ["model.connection=ReZero", "model.connection_options={}"]
    process = launch(tmp_path, "ddp", 60, 1, *changes)
    kill_when(process, tmp_path / "run", 30, rank=1)
    told = end(process)
    assert process.returncode == 0, told
    run = Run(tmp_path / "run")
    (resumed,) = [event["step"] for event in run.events("resumed")]
    assert 30 <= resumed < 60
    # Steps that were done twice, before and after the kill, are bitwise the same; all are those of one process.
    first: dict[int, float] = {}
    for event in run.events("losses"):
        for step, loss in enumerate(event["loss"], start=event["first"]):
            assert first.setdefault(step, loss) == loss
    one = read(tmp_path / "config.toml", [f"run.folder={tmp_path / 'alone'}", "run.steps=60", *changes])
    assert losses(run) == pytest.approx(losses(train(one).run), rel=1e-5)


def work(rank: int, folder: Path) -> None:
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    alone = Path(os.environ["LEVADA_TEST_ALONE"])
    found: dict = {"folder": str(folder)}
    for kind in KINDS:
        train(config(folder / f"whole-{kind}", kind, 12))
        train(config(folder / f"parts-{kind}", kind, 8))
        train(config(folder / f"parts-{kind}", kind, 12), resume=True)
        train(config(folder / f"two-{kind}", kind, 8, watch="true"))
        train(config(alone / f"part-{kind}", kind, 12), resume=True)
        diverging = config(folder / f"stopped-{kind}", kind, 8, "true", "optimizer.name=sgd", "optimizer.lr=1e30")
        found[f"stopped, {kind}"] = refusal(diverging)
    norm = nn.BatchNorm1d(1)
    norm.running_mean.fill_(rank)
    WholeNetwork(norm, replica=rank, replicas=2).settle()
    found["statistics"] = [None, None]
    dist.all_gather_object(found["statistics"], norm.running_mean.item())
    found["refused"] = [None, None]
    dist.all_gather_object(found["refused"], refusal(config(folder / "whole-ddp", "ddp", 12)))
    dropping = {"model": {"depth": 4, "dim": 8, "connection": "StochasticDepth"}, "data": {"batch_size": 16}}
    changes = ["run.steps=4", "data.evaluated=16", "watch.enabled=false"]
    found["dropping, ddp"] = refusal(resolve(dropping, [*changes, f"run.folder={folder}/a", "parallel.kind=ddp"]))
    sharded = train(resolve(dropping, [*changes, f"run.folder={folder}/b", "parallel.kind=fsdp"]))
    found["dropping, fsdp"] = list(losses(sharded.run).values())
    norms = {"model": {"depth": 2, "dim": 8, "options": {"norm": "BatchNorm1d", "pre_activation": True}}}
    norms["optimizer"] = {"name": "sgd", "lr": 0.1}  # AdamW makes much of a bias before a norm, whose gradient is noise
    for name, every in (("ddp", 0), ("ddp evaluated", 1), ("fsdp", 0)):
        asked = [*changes, f"run.folder={folder}/norms-{name}", f"run.evaluate_every={every}", "data.batch_size=16"]
        module = train(resolve(norms, [*asked, f"parallel.kind={name.split()[0]}"])).engine.module
        found[f"norms, {name}"] = {key.removeprefix("module."): value.clone() for key, value in module.named_buffers()}
    dist.barrier()
    dist.destroy_process_group()
    if rank == 0:
        plain = train(resolve(dropping, [*changes, f"run.folder={folder}/c"]))
        found["dropping, none"] = list(losses(plain.run).values())
        torch.save(found, folder / "found.pt")


def refusal(asked) -> str:
    try:
        train(asked)
    except (UsageError, MeasurementError) as error:
        return str(error)
    return ""


def test_the_living_meet_where_the_dead_have_been():
    store = torch.distributed.HashStore()
    for rank in (1, 2):
        store.set(f"levada/greeting/{rank}", "dead")
    store.set("levada/answer/dead", "a name of the dead")
    with ThreadPoolExecutor(3) as pool:
        first = {pool.submit(meet, store, rank, 3) for rank in range(3)}
    with ThreadPoolExecutor(3) as pool:
        again = {pool.submit(meet, store, rank, 3) for rank in range(3)}
    names = {future.result() for future in first}
    others = {future.result() for future in again}
    assert (len(names), len(others), len(names & others)) == (1, 1, 0)


@pytest.mark.parametrize(
    ("error", "told", "code"),
    [
        (UsageError("train: no"), "levada train: process 1: no\n", 2),
        (MeasurementError("a.png is damaged"), "levada train: process 1: a.png is damaged\n", 3),
        (SaidUsageError("no"), "", 2),
        (SaidMeasurementError("no"), "", 3),
    ],
)
def test_what_goes_wrong_in_another_process_is_said(error, told, code, monkeypatch, capsys):
    def fail(_):
        raise error

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    command = importlib.import_module("levada.commands.train")
    waited = []
    monkeypatch.setattr(command, "_train", fail)
    monkeypatch.setattr(command.time, "sleep", waited.append)
    assert main(["train", "a.toml"]) == code
    assert capsys.readouterr().err == told
    assert waited == [5.0], "the first process says it first, and its launcher then ends this one"


def test_what_all_refuse_one_says_whoever_lives_longer(monkeypatch, capsys):
    """A process that has said it may take longer to end than another waits, on a machine that is busy."""

    def fail(_):
        raise UsageError("train: no")

    def told(rank, restart=0):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", str(restart))
        assert main(["train", "a.toml"]) == 2
        return capsys.readouterr().err

    store = torch.distributed.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    for name, value in {"MASTER_ADDR": "localhost", "MASTER_PORT": store.port, "WORLD_SIZE": 3}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")  # as torchrun, which holds the store, says of it
    command = importlib.import_module("levada.commands.train")
    monkeypatch.setattr(command, "_train", fail)
    monkeypatch.setattr(command.time, "sleep", lambda seconds: None)
    assert [told(0), told(1), told(2)] == ["levada train: no\n", "", ""]
    assert [told(2, 1), told(0, 1), told(1, 1)] == ["levada train: process 2: no\n", "", ""]


def test_an_answer_is_asked_of_one_process_without_a_group():
    assert Processes(0, 1, torch.device("cpu")).agree(lambda: 3) == 3


if __name__ == "__main__":
    work(int(sys.argv[1]), Path(sys.argv[2]))
    os._exit(0)  # gloo's threads sometimes outlive the interpreter and abort it
