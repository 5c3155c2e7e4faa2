"""Reports and runs as levada writes them, their numbers from closed forms with seeded noise."""

from __future__ import annotations

import base64
import math
import random
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.report.watched import write_watch

from levada.runs import RunWriter

RATE = 0.408


def make_sick(depth: int = 50, rate: float = RATE, model: str = "mlp.py:sigmoid_stack") -> dict[str, Any]:
    """Make the report of a deep stack whose gradient keeps `rate` per block."""
    noise = random.Random(0)
    blocks = []
    for i in range(depth):
        wobble = math.exp(noise.gauss(0, 0.18))
        gradient = 2.1e-2 * rate ** (depth - 1 - i)
        blocks.append(
            {
                "site": f"layers.{i}",
                "order": i,
                "kind": "Sigmoid",
                "signal_rms": 0.52 + 0.01 * noise.random(),
                "signal_predicted": 0.525,
                "signal_spread": 0.21 * rate**i * math.exp(noise.gauss(0, 0.2)) + 1e-9,
                "gradient_rms": gradient * wobble,
                "gradient_predicted": gradient,
                "gain_measured": rate * math.exp(noise.gauss(0, 0.03)),
                "gain_predicted": rate,
                "update_ratio": 1e-3 * rate ** (depth - 1 - i),
                "saturated_fraction": 0.02 * noise.random(),
                "dead_fraction": 0.0,
            }
        )
    decay = {"value": rate * 1.005, "low": rate * 0.985, "high": rate * 1.024, "predicted": rate}
    last = max(1, int(depth * 0.62)) - 1
    return {
        "schema": 1,
        "levada": "0.1.0",
        "torch": "2.13.0",
        "model": model,
        "parameters": 3_276_810,
        "seed": 0,
        "seconds": 3.24,
        "verdict": "error",
        "blocks": blocks,
        "summary": {
            "depth": depth,
            "gradient_decay_per_block": decay,
            "effective_depth": 4.2,
            "trainable_depth": 12,
            "memory_horizon": None,
        },
        "findings": [_finding(depth, last, rate, decay), *_lesser_findings()],
        "notes": ["No loss was given: cross entropy was taken."],
        "optimizer": "Adam",
    }


def _finding(depth: int, last: int, rate: float, decay: dict[str, float]) -> dict[str, Any]:
    return {
        "rule": "vanishing_gradient",
        "severity": "error",
        "status": "fired",
        "claim": f"Each block passes on {rate:.3f} of the gradient: of 1 at the output, "
        f"{rate**depth:.1e} reaches the input.",
        "where": {"first": "layers.0", "last": f"layers.{last}"},
        "evidence": {
            "gradient decay per block": {**decay, "from": "mean-field theory of the sigmoid stack"},
            "freeze_test": {"loss free": 2.3021, "loss frozen": 2.3024, "p": 0.81, "seeds": 5},
            "blocks_below_limit": last + 1,
        },
        "consequence": f"layers.0 to layers.{last} keep their random weights; the network trains as one of 19 blocks.",
        "falsify": f"Freeze layers.0 to layers.{last} and train: if the loss is worse, this finding is wrong.",
        "remedies": [
            {
                "name": "residual",
                "patch": "from levada import Residual, Stack\n\n"
                "net = Stack([Block(256) for _ in range(50)], Residual, dim=256)",
                "before": {"gradient decay per block": decay, "loss after 100 steps": 2.302},
                "after": {
                    "gradient decay per block": {"value": 0.996, "low": 0.991, "high": 1.001},
                    "loss after 100 steps": {"value": 0.61, "low": 0.55, "high": 0.68},
                },
                "verified": True,
            },
            {
                "name": "orthogonal_initialisation",
                "patch": "for layer in net.layers:\n    nn.init.orthogonal_(layer.linear.weight, gain=4.0)",
                "before": {"gradient decay per block": decay},
                "after": {"gradient decay per block": 0.98},
                "verified": False,
            },
        ],
        "source": "Glorot and Bengio 2010; Schoenholz et al. 2017, arXiv:1611.01232",
    }


def _lesser_findings() -> list[dict[str, Any]]:
    return [
        {
            "rule": "rank_collapse",
            "severity": "warn",
            "status": "fired",
            "claim": "The spread between inputs is 1.0e-9 at the output, of 0.21 at the first block.",
            "where": {"first": "layers.20", "last": "layers.49"},
            "evidence": {"signal spread at the output": 1.0e-9},
            "consequence": "The last blocks see the same vector for every input.",
            "remedies": [],
            "source": "",
        },
        {"rule": "dead_units", "severity": "warn", "status": "clear", "claim": "No unit is flat for every input."},
        {
            "rule": "short_memory",
            "severity": "info",
            "status": "unknown",
            "claim": "The model has no recurrence to measure.",
        },
    ]


def png(width: int, height: int, grey: int = 90) -> bytes:
    """Give a PNG of one colour."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    lines = zlib.compress((b"\0" + bytes([grey]) * width) * height)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", lines) + chunk(b"IEND", b"")


def _picture() -> dict[str, Any]:
    images = [
        {
            "label": f"side output {number}",
            "alternative": f"Edges by side output {number}.",
            "png": base64.b64encode(png(160, 120, 40 * number)).decode(),
        }
        for number in range(1, 6)
    ]
    return {
        "kind": "picture", "id": "edges", "title": "Edges by depth", "caption": "Black is an edge.", "images": images,
    }  # fmt: skip


def make_healthy() -> dict[str, Any]:
    """Make the report of a residual stack in which nothing is wrong."""
    report = make_sick(24, 0.992, "mlp.py:residual_stack")
    return {**report, "verdict": "healthy", "findings": []}


def write_study(folder: Path) -> Path:
    """Write a study's run: five seeds, two groups, three figures, three claims."""
    noise = random.Random(1)
    with RunWriter.create(folder, kind="study", name="gradient_decay") as writer:
        writer.append(
            "study",
            name="gradient_decay",
            title="How fast does the gradient of a deep stack decay?",
            question="Does the decay that mean-field theory predicts appear in finite networks of any depth?",
            sources=[
                "Schoenholz, Gilmer, Ganguli, Sohl-Dickstein 2017, arXiv:1611.01232",
                "He et al. 2015, arXiv:1512.03385",
            ],
            notes="Width 256, float64, 5 seeds; the weights are drawn anew for every seed.",
        )
        for seed in range(5):
            for kind in ("plain", "residual"):
                writer.append("result", key=f"{kind}-{seed}", config={"kind": kind}, seed=seed, values={"rate": 0.4})
        writer.append("failure", key="plain-4", config={}, seed=4, error="RuntimeError: computed again below")
        writer.append("failure", key="plain-9", config={}, seed=9, error="RuntimeError: out of memory")
        writer.append("result", key="plain-4", config={"kind": "plain"}, seed=4, values={"rate": 0.4})
        writer.append("figure", **_decay_figure(noise))
        writer.append("figure", **_bar_figure(noise))
        writer.append("figure", **_panel_figure(noise))
        writer.append("figure", **_picture())
        writer.append(
            "claim",
            name="decay_matches_theory",
            statement="The gradient shrinks by the same factor at every layer, and mean-field theory gives the factor.",
            criterion="the measured factor lies within 3 % of the predicted one in 5 of 5 seeds.",
            status="held",
            numbers={"factor": {"value": 0.4093, "low": 0.4061, "high": 0.4127, "predicted": 0.408}, "seeds": 5},
            statistic={"test": "permutation", "p": 0.008},
            reason="The largest deviation is 0.9 %.",
            seeds=[0, 1, 2, 3, 4],
            paper_value=0.408,
            source="Schoenholz et al. 2017, arXiv:1611.01232",
        )
        writer.append(
            "claim",
            name="twenty_layers",
            statement="Networks deeper than about twenty layers could not be trained before residual connections.",
            criterion="no plain stack of 30 layers reaches 90 % training accuracy.",
            status="not held",
            numbers={"best plain accuracy at 30 layers": 0.981, "seeds": 5},
            correction="Highway networks of 100 layers were trained in May 2015; what fails beyond 20 is the gain, "
            "not the training.",
            source="Srivastava et al. 2015, arXiv:1505.00387",
        )
        writer.append(
            "claim",
            name="ten_thousand",
            statement="Delta-orthogonal initialisation trains plain networks of ten thousand layers.",
            criterion="training accuracy above 95 % at 10,000 layers in 3 of 3 seeds.",
            status="not decided",
            numbers={"deepest run": 1250},
            source="Xiao et al. 2018, arXiv:1806.05393",
        )
    return folder


def _decay_figure(noise: random.Random) -> dict[str, Any]:
    xs = list(range(0, 60, 2))
    series: list[dict[str, Any]] = []
    for group, rate in (("plain", 0.41), ("residual", 0.97)):
        for seed in range(5):
            y = [rate**x * math.exp(noise.gauss(0, 0.25)) for x in xs]
            label = f"{group}, seed {seed}"
            series.append({"label": label, "style": "measured", "group": group, "x": xs, "y": y, "seed": seed})
        y = [rate**x for x in xs]
        series.append({"label": f"{group}, predicted", "style": "predicted", "group": group, "x": xs, "y": y})
    series.append({"label": "float32 precision", "style": "reference", "x": [0, 58], "y": [1.2e-7, 1.2e-7]})
    return {
        "id": "decay",
        "title": "Gradient by depth",
        "caption": "In the plain stack the gradient falls by 0.41 per block; the residual stack keeps 0.97.",
        "x": {"label": "blocks back from the output", "scale": "linear"},
        "y": {"label": "gradient relative to the output", "scale": "log"},
        "series": series,
    }


def _bar_figure(noise: random.Random) -> dict[str, Any]:
    names = ["Plain", "Residual", "HighwayConnection", "DenseConnection", "HyperConnection", "AttentionResidual"]
    value = [0.11, 0.93, 0.9, 0.94, 0.955, 0.951]
    return {
        "id": "accuracy",
        "title": "Accuracy by connection",
        "caption": "Every connection but the plain one trains at this depth; bars are the range over 5 seeds.",
        "x": {"label": "connection", "scale": "linear"},
        "y": {"label": "test accuracy (share)", "scale": "linear"},
        "series": [
            {
                "label": "50 blocks",
                "style": "measured",
                "x": names,
                "y": value,
                "low": [v - 0.02 - 0.01 * noise.random() for v in value],
                "high": [v + 0.02 for v in value],
            },
            {"label": "chance", "style": "bound", "x": names, "y": [0.1] * 6},
        ],
    }


def _panel_figure(noise: random.Random) -> dict[str, Any]:
    steps = list(range(0, 2000, 20))
    panels = []
    for depth in (10, 20, 50, 100):
        series = []
        for group, speed in (("plain", 1 / depth), ("residual", 0.1)):
            y = [0.05 + 2.25 * math.exp(-speed * x / 30) * (1 + noise.gauss(0, 0.02)) for x in steps]
            series.append({"label": group, "style": "measured", "group": group, "x": steps, "y": y, "seed": 0})
        panels.append({"title": f"{depth} blocks", "series": series})
    return {
        "id": "loss",
        "title": "Training loss",
        "caption": "The plain stack learns ever more slowly as it gets deeper; the residual stack does not.",
        "x": {"label": "step", "scale": "linear"},
        "y": {"label": "training loss (nats)", "scale": "log"},
        "panels": panels,
    }


def write_check(folder: Path) -> Path:
    """Write a check's run."""
    with RunWriter.create(folder, kind="check", name="mlp.py:sigmoid_stack") as writer:
        writer.append("report", report=make_sick(), title="Sigmoid stack, 50 blocks")
    return folder


@pytest.fixture
def sick_report() -> Callable[..., dict[str, Any]]:
    return make_sick


@pytest.fixture
def healthy_report() -> Callable[[], dict[str, Any]]:
    return make_healthy


@pytest.fixture
def sick() -> dict[str, Any]:
    return make_sick()


@pytest.fixture
def study_run(tmp_path: Path) -> Path:
    return write_study(tmp_path / "study")


@pytest.fixture
def check_run(tmp_path: Path) -> Path:
    return write_check(tmp_path / "check")


@pytest.fixture
def make_png() -> Callable[..., bytes]:
    return png


@pytest.fixture(autouse=True)
def pictures_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages as they are without the script that is built elsewhere; tests of the script put another in this place."""
    monkeypatch.setattr("levada.report.page.page_script", lambda: None)


@pytest.fixture
def watched(tmp_path: Path) -> Path:
    return write_watch(tmp_path / "run")
