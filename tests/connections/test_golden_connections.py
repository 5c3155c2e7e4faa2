"""Numbers of small stacks, written down once: a change of the mathematics, of an order or of a default shows here.

Weights come from a formula and not from random numbers, so that they are the same everywhere. The outputs are computed
a second time in NumPy, from the papers' recurrences.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import levada.connections
from levada import Stack

DIM, DEPTH, GROWTH = 4, 5, 2

OPTIONS = {
    "Dense": {"growth": GROWTH},
    "LayerScale": {"init": 0.3},
    "PostNorm": {"alpha": "deepnorm"},
    "ReZero": {"init": 0.3},
    "SkipInit": {"init": "depth"},
}

# Sums of the output and of the gradient at the input, both weighted by a wave.
GOLDEN = {
    "Dense": (0.887118982, 0.853605195),
    "Highway": (0.83108566, 0.747610018),
    "LayerScale": (1.42332686, 1.22902071),
    "Momentum": (1.43661532, 1.26413309),
    "Plain": (0.12648306, 0.000766893374),
    "PostNorm": (0.206270316, 0.648170849),
    "ReZero": (1.42332686, 1.22902071),
    "Residual": (1.15445709, 0.562553066),
    "Reversible": (-0.567792223, -0.42729824),
    "SkipInit": (1.35745188, 1.07173039),
    "StochasticDepth": (1.25529222, 0.820846346),
}


def wave(*shape: int) -> np.ndarray:
    return np.sin(np.arange(1, np.prod(shape) + 1)).reshape(shape) / 2


def f(x: np.ndarray, width: int | None = None) -> np.ndarray:
    width = width or x.shape[-1]
    return x @ wave(width, x.shape[-1]).T + wave(width)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def normalise(x: np.ndarray) -> np.ndarray:
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)


def momentum(x: np.ndarray) -> np.ndarray:
    v = np.zeros_like(x)
    for _ in range(DEPTH):
        v = 0.9 * v + 0.1 * f(x)
        x = x + v
    return x


def reversible(x: np.ndarray) -> np.ndarray:
    halves = list(np.split(x, 2, axis=-1))
    for layer in range(DEPTH):  # the halves in place: even layers add to the first one
        halves[layer % 2] = halves[layer % 2] + f(halves[1 - layer % 2])
    return np.concatenate(halves[::-1] if DEPTH % 2 else halves, axis=-1)


def repeated(step):
    def run(x: np.ndarray) -> np.ndarray:
        for layer in range(DEPTH):
            x = step(x, layer)
        return x

    return run


RECURRENCES = {
    "Dense": repeated(lambda x, _: np.concatenate((x, f(x, GROWTH)), axis=-1)),
    "Highway": repeated(lambda x, _: x + sigmoid(x @ wave(DIM, DIM).T - 2) * (f(x) - x)),
    "LayerScale": repeated(lambda x, _: x + 0.3 * f(x)),
    "Momentum": momentum,
    "Plain": repeated(lambda x, _: f(x)),
    "PostNorm": repeated(lambda x, _: normalise((2 * DEPTH / 2) ** 0.25 * x + f(x))),
    "ReZero": repeated(lambda x, _: x + 0.3 * f(x)),
    "Residual": repeated(lambda x, _: x + f(x)),
    "Reversible": reversible,
    "SkipInit": repeated(lambda x, _: x + f(x) / np.sqrt(DEPTH)),
    "StochasticDepth": repeated(lambda x, layer: x + (1 - (layer + 1) / DEPTH / 2) * f(x)),
}


def outputs_and_gradients(name: str) -> tuple[np.ndarray, np.ndarray]:
    options = OPTIONS.get(name, {})
    connection = getattr(levada.connections, name)
    stack = Stack(lambda dim: nn.Linear(dim, options.get("growth", dim)), connection, dim=DIM, depth=DEPTH, **options)
    stack.double().eval()
    with torch.no_grad():
        for parameter_name, parameter in stack.named_parameters():
            if "branch" in parameter_name or parameter.ndim == 2:
                parameter.copy_(torch.from_numpy(wave(*parameter.shape)))
    x = torch.from_numpy(wave(3, DIM)).requires_grad_()
    y = stack(x)
    y.backward(torch.from_numpy(wave(*y.shape)))
    return y.detach().numpy(), x.grad.numpy()


@pytest.mark.parametrize("name", RECURRENCES)
def test_outputs_are_the_papers_recurrence(name):
    y, _ = outputs_and_gradients(name)
    np.testing.assert_allclose(y, RECURRENCES[name](wave(3, DIM)), rtol=1e-6)


@pytest.mark.parametrize("name", RECURRENCES)
def test_golden_numbers(name):
    assert [np.vdot(wave(*v.shape), v) for v in outputs_and_gradients(name)] == pytest.approx(GOLDEN[name], rel=1e-6)
