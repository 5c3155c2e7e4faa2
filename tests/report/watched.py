"""A watched run as the writers of signals leave it: what pages of watched runs are tested on."""

from __future__ import annotations

import random
import re
from pathlib import Path

from levada.runs import RunWriter, SignalWriter
from levada.runs.codes import encode
from levada.watching.verdict.bundle import Bundle, write_bundle

NAMES = ("signal_rms", "gradient_rms", "update_ratio", "nonfinite", "gradient_nonfinite")


def write_watch(
    folder: Path, *, depth: int = 12, samples: int = 40, ranks: int = 1, stages: bool = False, noise: float = 0.05
) -> Path:
    """Write a run: the gradient falls to the input, is zero at block 1 of the middle sample, and ends in no number."""
    with RunWriter.create(folder, kind="watch", name="train.py", config={"every": 20}) as writer:
        writer.append("loss", steps=list(range(20 * samples)), values=[2.0 / (1 + i) for i in range(20 * samples)])
        fired = {
            "rule": "vanishing_gradient",
            "severity": "error",
            "status": "fired",
            "claim": "From layers.9 to layers.0 the gradient shrinks by five decades.",
            "where": {"first": "layers.0", "last": "layers.3"},
            "evidence": {"decades": 5.0},
        }
        spike = {"rule": "loss_spike", "severity": "warn", "claim": "The loss rose to 4.1.", "where": {}}
        writer.append("finding", step=200, **spike, status="fired")
        writer.append("finding", step=300, **spike, status="clear")
        writer.append("finding", step=400, **fired)
        write_bundle(folder, Bundle(400, "vanishing_gradient", "why"))
        writer.append("bundle", step=400, path="bundles/step-000400-vanishing_gradient")
        writer.append("overhead", step=20 * samples, share=0.0042)
        writer.append("end", steps=20 * samples, samples=samples, dropped=3, problem=None)
    for rank in range(ranks):
        draw = random.Random(rank)
        start = depth * rank if stages else 0
        sites = [{"name": f"layers.{start + i}", "order": i, "kind": "Block"} for i in range(depth)]
        with SignalWriter(folder, rank=rank, sites=sites, signals=NAMES) as signals:
            for j in range(samples):
                gradient = [10 ** (-6 + 3 * i / depth + draw.gauss(0, noise)) for i in range(depth)]
                if j == samples // 2:
                    gradient[1] = 0.0
                last = float(j == samples - 1)
                rows = {
                    "signal_rms": [1.0 + 0.1 * i for i in range(depth)],
                    "gradient_rms": gradient,
                    "update_ratio": [1e-3] * depth,
                    "nonfinite": [0.0] * depth,
                    "gradient_nonfinite": [last * (i == depth - 1) for i in range(depth)],
                }
                signals.append(20 * j, float(j), b"".join(encode(rows[name]) for name in NAMES), {"loss": 1.0})
                if j % 200 == 199:
                    signals.flush(30.0)
    return folder


def cells_of(drawn: str, rows: int, columns: int) -> list[list[str]]:
    """Read the picture back: the level of each cell."""
    found = [["" for _ in range(columns)] for _ in range(rows)]
    body = drawn[drawn.index('class="cells"') :]
    for level, path in re.findall(r'<path class="(h\w+)" d="([^"]+)"/>', body):
        for x, y, length in re.findall(r"M(\d+) (\d+)\.5h(\d+)", path):
            for j in range(int(x), int(x) + int(length)):
                assert found[int(y)][j] == ""
                found[int(y)][j] = level
    return found
