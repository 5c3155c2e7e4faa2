"""What the explorer trains before one's eyes, and what is left of it without a layer: PyTorch has the same numbers."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import levada
from levada.web.computing import build
from levada.web.network import CheckOf

WEB = Path(__file__).parents[2] / "web"
ESBUILD, NODE = WEB / "node_modules/.bin/esbuild", shutil.which("node")
pytestmark = pytest.mark.skipif(
    NODE is None or not ESBUILD.exists(), reason="the page's code is run by Node.js: cd web && npm ci"
)

LINKS = [
    "connections=plain,residual,highway,hyper,manifold&trainDepth=5&trainWidth=8&trainSteps=20",
    "connections=post_norm,dense,identity,attention&trainDepth=5&trainWidth=8&trainSteps=20&trainActivation=tanh&seed=3",
    "connections=plain,residual&trainDepth=4&trainWidth=8&trainSteps=20&trainNorm=batch&trainActivation=gelu&streams=2",
    "connections=residual,manifold&trainDepth=4&trainWidth=8&trainSteps=20&trainNorm=rms&trainLr=0.01&seed=7",
    "connections=plain,residual&trainDepth=4&trainWidth=8&trainSteps=20&trainNorm=none&trainActivation=sigmoid",
]
BOUNDS = {"float64": 1e-9, "float32": 2e-3}
"""AdamW's first steps are signs: what rounding leaves of a small gradient counts for as much as a large one does."""
ASKED = [*(f"{link}&precision=float64" for link in LINKS), f"{LINKS[0]}&precision=float32"]
TRAINED_ON = 1437


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Train all in the page's engine."""
    bundle = tmp_path_factory.mktemp("bundle") / "emit.mjs"
    command = [ESBUILD, WEB / "test/emit_training.ts", "--bundle", "--platform=node", "--format=esm"]
    subprocess.run([*map(str, command), f"--outfile={bundle}", "--log-level=error"], check=True)
    run = subprocess.run([str(NODE), str(bundle)], input=json.dumps(ASKED), capture_output=True, text=True, check=True)
    return json.loads(run.stdout)


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor]:
    """Give all images, of mean 0 and deviation 1 over those that are trained on, and what they show."""
    spec = importlib.util.spec_from_file_location("explorer_digits", WEB / "data/make.py")
    assert spec is not None
    assert spec.loader is not None
    make = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make)
    data = torch.tensor(list(make.unpacked(make.TO.read_text(encoding="utf-8"))))
    images, labels = data[: make.COUNT * make.PIXELS].reshape(make.COUNT, -1).double(), data[-make.COUNT :]
    seen = images[:TRAINED_ON]
    # The page holds them in float32.
    return ((images - seen.mean()) / seen.std(correction=0)).float(), labels


def without(network: Any, x: Tensor, gone: int) -> Tensor:
    """Run a network without a layer, which dense connections leave as zeros: the layers behind it read their places."""
    stack = network.stack
    state = stack[0].connection.begin(network.first(x))
    for place, layer in enumerate(stack):
        if place != gone:
            state = layer(state)
        elif isinstance(layer.connection, levada.Dense):
            state = layer.connection.write(state, torch.zeros_like(layer.branch(layer.connection.read(state))))
    outputs: Tensor = network.last(stack.output(stack[-1].connection.end(state)))
    return outputs


@pytest.mark.parametrize("place", range(len(ASKED)), ids=ASKED)
def test_pytorch_learns_the_same_and_loses_the_same(
    place: int, answers: list[dict[str, Any]], digits: tuple[Tensor, Tensor]
) -> None:
    images, labels = digits
    for name, shown in answers[place].items():
        asked = CheckOf.model_validate(shown["network"])
        network: nn.Module = build(asked)
        x = images.to(getattr(torch, asked.precision))
        close = lambda values, rel=BOUNDS[asked.precision]: pytest.approx(values, rel=rel)  # noqa: E731
        optimizer = torch.optim.AdamW(levada.parameter_groups(network, weight_decay=0.01), lr=shown["lr"])
        found: dict[str, list[float]] = {"loss": [], "accuracy": [], "heldOut": []}
        for rows in shown["rows"]:
            outputs = network(x[rows])
            loss = functional.cross_entropy(outputs, labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            found["loss"].append(float(loss.detach()))
            found["accuracy"].append(float((outputs.argmax(1) == labels[rows]).double().mean()))
            with torch.no_grad():
                held_out = functional.cross_entropy(network(x[TRAINED_ON:]), labels[TRAINED_ON:])
            found["heldOut"].append(float(held_out))
        for what, values in found.items():
            assert values == close(shown[what]), (name, what)
        assert found["loss"][0] != pytest.approx(found["loss"][-1], rel=1e-3)
        with torch.no_grad():
            for layer, (cost, accuracy) in enumerate(
                zip(shown["lesions"]["loss"], shown["lesions"]["accuracy"], strict=True)
            ):
                outputs = without(network, x[TRAINED_ON:], layer)
                assert float(functional.cross_entropy(outputs, labels[TRAINED_ON:])) == close(cost), (name, layer)
                right = float((outputs.argmax(1) == labels[TRAINED_ON:]).double().mean())
                # Rounding may decide between two outputs that are nearly equal.
                assert right == pytest.approx(accuracy, abs=1.5 / len(labels[TRAINED_ON:])), (name, layer)
