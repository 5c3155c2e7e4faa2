"""A large record beside a training: bytes a value, time to open, and what the training loses."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from levada.probe.trace import Site
from levada.runs import Run, SignalWriter
from levada.runs.codes import codes_from, decoded
from levada.runs.standing import Standing
from levada.watching.measure.sample import WATCHED, Sample
from levada.watching.record.recording import Recording, codes_of, to_bytes

__all__ = ["real_record", "volume"]


class _Block(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm, self.first, self.second = nn.LayerNorm(dim), nn.Linear(dim, dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(torch.relu(self.first(self.norm(x))))


class Training:
    """A residual network of `depth` blocks that learns what another network computes, on fresh data at every step."""

    def __init__(self, depth: int, dim: int, batch: int) -> None:
        torch.manual_seed(0)
        self.teacher = nn.Sequential(nn.Linear(dim, dim), nn.Tanh(), nn.Linear(dim, dim))
        self.blocks = nn.Sequential(*(_Block(dim) for _ in range(depth)))
        self.optimizer = torch.optim.AdamW(self.blocks.parameters(), lr=1e-3)
        self.batch, self.dim = batch, dim

    def loss(self, outputs: list[Tensor] | None = None) -> Tensor:
        x = torch.randn(self.batch, self.dim)
        with torch.no_grad():
            target = self.teacher(x)
        for block in self.blocks:
            x = block(x)
            if outputs is not None:
                x.retain_grad()
                outputs.append(x)
        return (x - target).square().mean()

    def step(self) -> None:
        self.optimizer.zero_grad()
        self.loss().backward()
        self.optimizer.step()

    def sample(self) -> Tensor:
        """Take a step and measure the eight signals of every block, `(signals, sites)`."""
        outputs: list[Tensor] = []
        self.optimizer.zero_grad()
        self.loss(outputs).backward()
        weights = [[block.first.weight, block.second.weight] for block in self.blocks]
        before = [[w.detach().clone() for w in each] for each in weights]
        grads = [_rms([w.grad for w in each]) for each in weights]
        self.optimizer.step()
        sizes = [_rms(each) for each in before]
        moved = [
            _rms([w - old for w, old in zip(new, each, strict=True)]) for new, each in zip(weights, before, strict=True)
        ]
        rows = {
            "signal_rms": [_rms([x]) for x in outputs],
            "gradient_rms": [_rms([x.grad]) for x in outputs],
            "weight_rms": sizes,
            "weight_gradient_rms": grads,
            "update_ratio": [a / b for a, b in zip(moved, sizes, strict=True)],
            "zero_fraction": [
                float((torch.relu(block.first(block.norm(x))) == 0).double().mean())
                for block, x in zip(self.blocks, outputs, strict=True)
            ],
            "nonfinite": [0.0] * len(outputs),
            "gradient_nonfinite": [0.0] * len(outputs),
        }
        return torch.tensor([rows[name] for name in WATCHED], dtype=torch.float64)


def _rms(tensors: list[Any]) -> float:
    flat = torch.cat([x.detach().reshape(-1) for x in tensors])
    return float(flat.double().square().mean().sqrt())


def _sites(count: int) -> list[dict[str, Any]]:
    parts = ("norm.weight", "norm.bias", "first.weight", "first.bias", "second.weight", "second.bias")
    return [
        {
            "name": f"layers.{i}",
            "order": i,
            "kind": "Block",
            "shape": [64, 64],
            "parameters": [f"layers.{i}.{p}" for p in parts],
        }
        for i in range(count)
    ]


def real_record(depth: int, steps: int) -> tuple[dict[str, Any], Tensor]:
    """Train, sample every step, store; give what it took on disk, and by signal how much it changes between samples."""
    training = Training(depth, 32, 64)
    values = torch.stack([training.sample() for _ in range(steps)])
    with tempfile.TemporaryDirectory() as root:
        with SignalWriter(root, sites=_sites(depth), signals=WATCHED) as writer:
            for step, each in enumerate(values):
                writer.append(step, 0.0, to_bytes(codes_of(each)), {"loss": 1.0})
                writer.flush()
        assert writer.dropped == 0
        found = _bytes(writer.folder, values.numel())
    logs = values.log2().diff(dim=0)
    changes = torch.where(logs.isfinite(), logs, 0.0).square().mean((0, 2)).sqrt()
    return {"values": values.numel(), **found, "change_octaves": [round(float(x), 4) for x in changes]}, changes


def _bytes(folder: Path, values: int) -> dict[str, float]:
    """Give bytes a value by level; "all" is every file of the rank, the site tables included."""
    sizes = {level: sum(p.stat().st_size for p in folder.glob(f"{level}-*")) for level in ("full", "by16", "by256")}
    total = sum(path.stat().st_size for path in folder.iterdir())
    return {key: round(size / values, 3) for key, size in {"all": total, **sizes}.items()}


def beside(num_sites: int, samples: int, every: int, *, phases: int = 8, depth: int = 200) -> dict[str, Any]:
    """Record a sample of `num_sites` sites at every so-manieth step beside a training, in turns with no record.

    Returns:
        Ratios by the clock, and of the processor time of all threads, of steps recorded over the same steps unrecorded.
    """
    torch.manual_seed(1)
    training = Training(depth, 64, 64)
    sites = tuple(Site(s["name"], s["order"], s["kind"], (64, 64), tuple(s["parameters"])) for s in _sites(num_sites))
    watch = SimpleNamespace(sites=sites, findings=[], overhead=0.0, standing=Standing(), steps=0)
    made = [torch.exp2(torch.randn(len(WATCHED), num_sites, dtype=torch.float64)) for _ in range(4)]
    each, clock, processor = samples // phases, list[float](), list[float]()
    with tempfile.TemporaryDirectory() as root:
        recording = Recording(Path(root) / "run", watch)
        for _ in range(10):
            training.step()
        recording.sampled(Sample(0, 0.0, dict(zip(WATCHED, made[0], strict=True)), {"loss": 1.0}))
        number = 1
        for phase in range(2 * phases):
            recorded = phase % 2 == 1
            assert recording.flush(120)
            start = time.perf_counter(), time.process_time()
            for step in range(each * every):
                training.step()
                if recorded and step % every == 0:
                    values = dict(zip(WATCHED, made[number % len(made)], strict=True))
                    recording.sampled(Sample(number, 0.0, values, {"loss": 1.0}, losses=((number, 1.0),)))
                    number += 1
            assert recording.flush(120)
            clock.append(time.perf_counter() - start[0])
            processor.append(time.process_time() - start[1])
        recording.close()
        assert (recording.dropped, recording.problem) == (0, None)
    ratios = {
        name: [seen / bare for bare, seen in zip(times[::2], times[1::2], strict=True)]
        for name, times in (("ratios", clock), ("processor", processor))
    }
    return {**ratios, "step_ms": round(1e3 * clock[-2] / (each * every), 1)}


def volume(num_sites: int, samples: int, changes: Tensor, *, phases: int = 4, depth: int = 200) -> dict[str, Any]:
    """Record `num_sites` sites beside a training that is sampled at every step, in turns with one that is not recorded.

    The numbers are made: a level for each site, and around it independent noise, whose change from sample to sample is
    that of the real record, signal by signal; so the worst for compression that has this change.
    """
    torch.manual_seed(1)
    training = Training(depth, 64, 64)
    levels = torch.randn(len(WATCHED), num_sites, dtype=torch.float64)
    width = (changes / 2**0.5)[:, None]
    sites = tuple(Site(s["name"], s["order"], s["kind"], (64, 64), tuple(s["parameters"])) for s in _sites(num_sites))
    watch = SimpleNamespace(sites=sites, findings=[], overhead=0.0, standing=Standing(), steps=0)
    each = samples // phases
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root) / "run"
        recording = Recording(folder, watch)
        handing, ratios, cpu_ratios, number, first = 0.0, [], [], 0, 0.0
        for _ in range(10):
            training.step()
        for _ in range(phases):
            alone = beside = cpu_alone = cpu_beside = 0.0
            for _ in range(each // 2):
                start, busy = time.perf_counter(), time.thread_time()
                training.step()
                alone += time.perf_counter() - start
                cpu_alone += time.thread_time() - busy
            for _ in range(each):
                numbers = torch.exp2(levels + width * torch.randn(levels.shape, dtype=torch.float64))
                numbers[-2:] = 0.0
                values = dict(zip(WATCHED, numbers, strict=True))
                start, busy = time.perf_counter(), time.thread_time()
                training.step()
                middle = time.perf_counter()
                recording.sampled(Sample(number, 0.0, values, {"loss": 1.0}, losses=((number, 1.0),)))
                stop, busy = time.perf_counter(), time.thread_time() - busy
                if number == 0:  # the folder, the site table and the thread are made
                    first = stop - middle
                else:
                    beside += stop - start
                    cpu_beside += busy
                    handing += stop - middle
                if number == samples // 2 + 3:
                    kept = numbers
                number += 1
            assert recording.flush(120)
            share = (each // 2) / (each - (number == each))
            ratios.append(share * beside / alone)
            cpu_ratios.append(share * cpu_beside / cpu_alone)
        step_ms = 1e3 * alone / (each // 2)
        start = time.perf_counter()
        recording.close()
        closing = time.perf_counter() - start
        assert (recording.dropped, recording.problem) == (0, None)
        found = _bytes(folder / "signals" / "rank-00000", len(WATCHED) * num_sites * samples)
        start = time.perf_counter()
        signals = Run(folder).signals()
        opened = time.perf_counter() - start
        series = signals.read("gradient_rms", site=f"layers.{num_sites // 3}")
        answered = time.perf_counter() - start
        middle_step = samples // 2 + 3
        right = decoded(codes_from(to_bytes(codes_of(kept[1, num_sites // 3]))))
        assert (len(series), series[middle_step]) == (samples, right)
        assert signals.read("gradient_rms", first=middle_step, last=middle_step)[0][num_sites // 3] == right[0]
    return {
        "ratios": ratios,
        "cpu_ratios": cpu_ratios,
        "bytes_per_value": found,
        "step_ms": round(step_ms, 1),
        "handing_over_ms": round(1e3 * handing / (number - 1), 2),
        "first_sample_ms": round(1e3 * first, 1),
        "closing_s": round(closing, 1),
        "signals_s": round(opened, 2),
        "opened_s": round(answered, 2),
    }
