"""The stages of a pipeline, each in its process: their samples are those of one process with the whole model."""

from __future__ import annotations

import io
import math
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from levada.watching.loop.microbatches import MicroBatches
from levada.watching.show.live import Live
from levada.watching.watch import watch

DIM, STEPS, MICRO, LR = 6, 3, 4, 0.05
RECORDED = 130  # its first updates raise the loss, which is judged after 128
SCHEDULES = ["ScheduleGPipe", "Schedule1F1B"]
SIGNALS = ("signal_rms", "gradient_rms", "weight_rms", "weight_gradient_rms", "update_ratio", "zero_fraction")


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.act, self.down = nn.Linear(DIM, 7), nn.ReLU(), nn.Linear(7, DIM)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(self.act(self.up(x)))


class Net(nn.Module):
    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


def build() -> Net:
    torch.manual_seed(0)
    return Net([Block() for _ in range(4)]).double()


def batches() -> Tensor:
    return torch.randn(STEPS, 8, DIM, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def objective(output: Tensor, target: Tensor) -> Tensor:
    return (output - target).square().mean()


def formula() -> list[dict[str, Tensor]]:
    """What one process sees, by the definitions."""
    net, outputs, zeros, found = build(), [], [], []
    for layer in net.layers:
        layer.register_forward_hook(lambda m, _, y: outputs.append(y))
        layer.act.register_forward_hook(lambda m, _, y: zeros.append((y == 0).double().mean()))
    optimizer = torch.optim.SGD(net.parameters(), lr=LR)
    for x in batches():
        outputs.clear()
        zeros.clear()
        loss = objective(net(x), -x)
        gradients = torch.autograd.grad(loss, outputs, retain_graph=True)
        loss.backward()
        matrices = [[layer.up.weight, layer.down.weight] for layer in net.layers]
        weights = [[w.detach().clone() for w in own] for own in matrices]
        learned = [[w.grad.clone() for w in own] for own in matrices]
        norms = [sum(p.grad.square().sum() for layer in half for p in layer.parameters()) for half in halves(net)]
        optimizer.step()
        optimizer.zero_grad()
        updates = [[w - b for w, b in zip(own, old, strict=True)] for own, old in zip(matrices, weights, strict=True)]
        columns = (outputs, gradients, weights, learned, updates)
        rows = [torch.stack([rms(value) for value in column]) for column in columns]
        rows[4] /= rows[2]
        values = dict(zip(SIGNALS, [*rows, torch.stack(zeros)], strict=True))
        found.append({**values, "loss": loss.detach(), "norms": torch.stack(norms).sqrt()})
    return found


def halves(net: Net) -> list[list[nn.Module]]:
    return [list(net.layers[:2]), list(net.layers[2:])]


def rms(values: Tensor | list[Tensor]) -> Tensor:
    given = values if isinstance(values, list) else [values]
    return torch.cat([value.detach().flatten() for value in given]).square().mean().sqrt()


@pytest.fixture(scope="module")
def found(two_processes) -> dict:
    return two_processes(__file__)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_samples_of_stages_are_those_of_one_process(schedule, found):
    for rank, (names, samples) in enumerate(found[schedule]):
        assert names == ["layers.0", "layers.1"]
        assert len(samples) == STEPS
        for sample, expected in zip(samples, formula(), strict=True):
            for signal in SIGNALS:
                own = expected[signal][2 * rank : 2 * rank + 2]
                rtol = 1e-7 if signal == "zero_fraction" else 1e-9  # a share of zeros is a float32
                torch.testing.assert_close(sample[signal], own, rtol=rtol, atol=0.0, msg=f"{signal}, stage {rank}")
            assert sample["gradient_norm"].item() == pytest.approx(expected["norms"][rank].item(), rel=1e-9)
            if rank == 1:  # it alone sees the loss
                torch.testing.assert_close(sample["loss"], expected["loss"], rtol=1e-9, atol=0.0)
            assert ("loss" in sample) == (rank == 1)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_no_rule_has_judged_the_run_of_which_a_stage_is_seen(schedule, found):
    why = "Not judged: only some blocks of a pipeline are seen here"
    assert found[f"standing of {schedule}"] == ("unknown", why, ())


def test_the_page_of_a_pipeline_tells_the_verdict_over_all_stages(found):
    told = found["page, healthy"]
    assert told["verdict"] == "healthy"
    assert told["sites"] == [f"layers.{i} of process {rank}" for rank in (0, 1) for i in (0, 1)]
    assert told["note"] == "15 of 16 rules judged it. Not judged: saturated_activation: no loss was seen."
    assert told["headline"] == "The learning signal reached every block"
    assert told["row"] == ("healthy", f"Nothing was found. {told['note']}")


def test_a_finding_of_a_later_stage_is_on_the_page_with_its_process(found):
    told = found["page, dead units"]
    assert told["verdict"] == told["row"][0] != "healthy"
    ((rule, claim),) = told["findings"]
    assert rule == "dead_units"
    assert claim.endswith("Told by process 1, stage 2 of 2.")
    assert "Told by process 1, stage 2 of 2." in told["exported"]


def test_the_loss_that_the_last_stage_alone_sees_is_on_the_page_and_in_the_terminal(found):
    told = found["page, healthy"]
    assert told["losses"] == list(range(RECORDED))
    assert told["facts"]["loss"].startswith("at step 0: ")
    assert told["figures"][0] == "The loss"
    assert f"{RECORDED} steps watched, loss " in told["terminal"]


@pytest.mark.parametrize(("fault", "judged"), [("healthy", 15), ("dead units", 14)])  # dead, it learns a constant
def test_a_training_ends_with_the_verdict_of_its_page(fault, judged, found):
    *first, last = found[f"page, {fault}"]["said"]
    assert last.startswith(f"watched: {found[f'page, {fault}']['verdict']}, {judged} of 16 rules judged it")
    assert [text.endswith("Told by process 1, stage 2 of 2.") for text in first] == [True] * (fault != "healthy")


def test_a_stage_that_left_no_record_leaves_the_verdict_open(found):
    told = found["page, one log lost"]
    assert told["verdict"] == "unknown"
    assert told["headline"] == "Not judged: only 1 of 2 stages were judged"


def test_what_a_schedule_does_is_heard_of_while_watched():
    from torch.distributed.pipelining import PipelineStage

    def methods() -> list:
        return [
            next(vars(k)[n] for k in PipelineStage.__mro__ if n in vars(k))
            for n in ("forward_one_chunk", "scale_grads")
        ]

    class Stage:
        submod = nn.Linear(1, 1)

    before, begun = methods(), []
    own = MicroBatches(Stage.submod, lambda: begun.append("own"))
    other = MicroBatches(nn.Linear(1, 1), lambda: begun.append("other"))
    own.open()
    own.open()
    other.open()
    for _ in range(2):
        with pytest.raises(AttributeError):  # ours is none that could run
            PipelineStage.forward_one_chunk(Stage(), 0, ())
    PipelineStage.scale_grads(Stage(), grad_scale_factor=4)
    assert begun == ["own"]
    assert (own.take(), other.take(), own.take()) == (4, 1, 1)
    own.close()
    assert methods() != before
    other.close()
    assert methods() == before


def record(rank: int, folder: Path, fault: str) -> tuple[list[str], str]:
    """Train a stage, and keep what is seen of it; of one fault the last block's units die in the middle.

    Returns what `levada train` says at the end, and the terminal of the first process.
    """
    from torch.distributed import pipelining

    from levada.training.processes import Processes
    from levada.training.stopping import say_found

    net = Net(halves(build())[rank])
    stage = pipelining.PipelineStage(net, rank, 2, torch.device("cpu"))
    schedule = pipelining.ScheduleGPipe(stage, MICRO, loss_fn=objective)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    draw = torch.Generator().manual_seed(2)
    terminal = io.StringIO()
    with watch(net, optimizer, every=1, max_overhead=math.inf, run=folder) as probe:
        probe.listen(Live(probe, plain=True, stream=terminal))
        for step in range(RECORDED):
            if step == 50 and rank == 1 and fault == "dead units":
                nn.init.constant_(net.layers[1].up.bias, -1e3)
            x = torch.randn(16, DIM, generator=draw, dtype=torch.float64)
            schedule.step(x) if rank == 0 else schedule.step(target=-x)
            optimizer.step()
            optimizer.zero_grad()
    said: list[str] = []
    say_found(probe, SimpleNamespace(say=said.append), Processes(rank, 2, torch.device("cpu")))
    return said, terminal.getvalue()


def page(folder: Path) -> dict:
    """What a page says of a run, and a training's page of the same inside of it."""
    from levada.report.training import _verdict
    from levada.report.watch import watch_view
    from levada.runs import Run
    from levada.runs.exporters.stored import _findings

    run = Run(folder)
    view = watch_view(run, "mine", list(run.events()))
    row, _ = _verdict(folder)
    exported = [f"{rule} {text}" for told in _findings(run, 0).values() for rule, text in told]
    return {
        "verdict": view["verdict"],
        "headline": view["headline"],
        "sites": [row["site"] for row in view["table"]["rows"]],
        "findings": [(one["rule"], one["claim"]) for one in view["findings"]],
        "note": view["notes"][0],
        "row": (row["verdict"], row["told"]),
        "losses": [step for step, _ in run.losses()],
        "facts": {fact["label"]: fact["note"] for fact in view["facts"]},
        "figures": [drawn["title"] for drawn in view["figures"]],
        "exported": "; ".join(exported),
    }


def work(rank: int, folder: Path) -> None:
    import torch.distributed as dist
    from torch.distributed import pipelining

    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    result = {}
    for name in SCHEDULES:
        net = Net(halves(build())[rank])
        stage = pipelining.PipelineStage(net, rank, 2, torch.device("cpu"))
        schedule = getattr(pipelining, name)(stage, MICRO, loss_fn=objective)
        optimizer = torch.optim.SGD(net.parameters(), lr=LR)
        with watch(net, optimizer, every=1, max_overhead=math.inf) as probe:
            for x in batches():
                if rank == 0:
                    schedule.step(x)
                else:
                    schedule.step(target=-x)
                optimizer.step()
                optimizer.zero_grad()
        samples = [
            {**sample.values, **{key: torch.tensor(v, dtype=torch.float64) for key, v in sample.scalars.items()}}
            for sample in probe.samples
        ]
        both, told = [None, None], probe.standing
        dist.all_gather_object(both, ([site.name for site in probe.sites], samples))
        result[name] = both
        result[f"standing of {name}"] = (told.verdict, told.headline, told.judged)
    for fault in ("healthy", "dead units"):
        said, terminal = record(rank, folder / fault, fault)
        dist.barrier()  # the losses are the other's to write
        if rank == 0:
            result[f"page, {fault}"] = {**page(folder / fault), "said": said, "terminal": terminal}
    if rank == 0:
        next((folder / "healthy").glob("signals/rank-00001/verdicts.log")).unlink()
        result["page, one log lost"] = page(folder / "healthy")
        torch.save(result, folder / "found.pt")
    dist.barrier()  # a process that ends while the other still talks to it aborts
    dist.destroy_process_group()


if __name__ == "__main__":
    work(int(sys.argv[1]), Path(sys.argv[2]))
    sys.stdout.flush()
    os._exit(0)  # gloo's threads sometimes outlive the interpreter and abort it
