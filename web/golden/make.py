"""Write the golden vectors: what PyTorch and levada make of small inputs, in float64, for the explorer's engine.

`python web/golden/make.py` from the root of the repository; `tests/test_golden_vectors.py` holds the files to it.
"""

from __future__ import annotations

import contextlib
import json
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import levada
from levada import blocks, theory
from levada.ops.sinkhorn import sinkhorn
from levada.probe.mixing import mixing_signals
from levada.probe.streams import Sample
from levada.theory.activation import as_activation

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))  # for the modules beside this one

from golden_cases import Case, drawn, listed, passed, rms  # noqa: E402
from golden_depth import path_cases  # noqa: E402
from golden_preferred import preferred_cases  # noqa: E402
from golden_recurrent import layer_cases, memory_cases, memory_theory  # noqa: E402

ACTIVATIONS = [
    "linear", "relu", "leaky_relu", "sigmoid", "tanh", "erf", "gelu", "silu", "mish", "softplus", "elu", "selu",
    "hardtanh",
]  # fmt: skip
LAYERS: dict[str, Callable[[Tensor], Tensor]] = {
    "linear": nn.Identity(), "erf": torch.erf,
    **{name: getattr(functional, name) for name in ACTIVATIONS if name not in ("linear", "erf")},
}  # fmt: skip
ROWS, DIM, DEPTH = 3, 4, 3

# The engine's options, then levada's for the same.
CONNECTIONS: dict[str, tuple[Case, type[levada.Connection], Case]] = {
    "plain": ({"name": "plain"}, levada.Plain, {}),
    "plain_activation": ({"name": "plain", "activation": "tanh"}, levada.Plain, {"activation": nn.Tanh()}),
    "residual": ({"name": "residual"}, levada.Residual, {}),
    "residual_activation": ({"name": "residual", "activation": "gelu"}, levada.Residual, {"activation": nn.GELU()}),
    "post_norm": ({"name": "post_norm"}, levada.PostNorm, {}),
    "post_norm_alpha": (
        {"name": "post_norm", "alpha": 1.75, "norm": "rms"}, levada.PostNorm, {"alpha": 1.75, "norm": nn.RMSNorm},
    ),
    "highway": ({"name": "highway"}, levada.Highway, {}),
    "highway_uncoupled": (
        {"name": "highway", "coupled": False, "bias": -1}, levada.Highway, {"coupled": False, "bias": -1.0},
    ),
    "dense": ({"name": "dense", "growth": 2}, levada.Dense, {"growth": 2}),
    "hyper": ({"name": "hyper"}, levada.HyperConnection, {}),
    "hyper_mean_rms": (
        {"name": "hyper", "streams": 3, "head": "mean", "norm": "rms"},
        levada.HyperConnection, {"streams": 3, "head": "mean", "norm": "rms"},
    ),
    "hyper_static": ({"name": "hyper", "dynamic": False}, levada.HyperConnection, {"dynamic": False}),
    "manifold": ({"name": "manifold"}, levada.ManifoldHyperConnection, {}),
    "manifold_two_streams": (
        {"name": "manifold", "streams": 2, "iterations": 3},
        levada.ManifoldHyperConnection, {"streams": 2, "iterations": 3},
    ),
    "identity": ({"name": "identity"}, levada.IdentityHyperConnection, {}),
    "identity_mean": (
        {"name": "identity", "streams": 3, "head": "mean"},
        levada.IdentityHyperConnection, {"streams": 3, "head": "mean"},
    ),
    "attention": ({"name": "attention"}, levada.AttentionResidual, {}),
    "attention_blocks": (
        {"name": "attention", "blockSize": 2, "scale": "sum"},
        levada.AttentionResidual, {"block_size": 2, "scale": "sum"},
    ),
}  # fmt: skip


def activations() -> list[Case]:
    """Values and slopes, at kinks too."""
    between = [round(256 * place / 9) / 256 for place in range(-61, 62, 5)]  # exact in float32, off any grid of eighths
    places = torch.tensor([-1.0, 0.0, 1.0, -30.0, 30.0, *between]).double()
    return [
        {"name": name, "at": listed(places), "value": listed(known.value(places)), "slope": listed(known.slope(places))}
        for name, known in ((name, as_activation(name)) for name in ACTIVATIONS)
    ]


def extremes() -> list[Case]:
    """Values and gradients where one of the two given is NaN or infinite, and at the kinks between.

    Each in a row as long as a layer's: PyTorch's vector loops and the scalar ones behind them differ at NaN. What is
    finite is as `activations` has it; JSON has no number for the rest, which is text.
    """
    at = [math.nan, math.inf, -math.inf, -1e300, 1e300, -1.0, -0.0, 0.0, 1.0, 1.5, -1.5]
    given = [math.nan, math.inf, -math.inf, -1.0]
    cases = []
    for name in ACTIVATIONS:
        values, back = [], []
        for place in at:
            for gradient in given:
                x = torch.full((64,), place, dtype=torch.float64).requires_grad_()
                y = LAYERS[name](x)
                y.backward(torch.full_like(y, gradient))
                assert x.grad is not None
                back.append(_told(float(x.grad[0])))
            values.append(_told(float(y.detach()[0])))
        cases.append({
            "name": name, "at": [_told(place) for place in at], "given": [_told(one) for one in given],
            "value": values, "back": back,
        })  # fmt: skip
    return cases


def _told(value: float) -> str:
    """Return what JavaScript's `Number` reads; 12 digits, which no machine's rounding changes."""
    return "NaN" if math.isnan(value) else f"{'-' * (value < 0)}Infinity" if math.isinf(value) else f"{value:.11e}"


def layers() -> list[Case]:
    """The linear layer and the normalisations, alone."""
    made: dict[str, Callable[[], nn.Module]] = {
        "linear": lambda: nn.Linear(4, 6),
        "linear_no_bias": lambda: nn.Linear(4, 3, bias=False),
        "layer": lambda: nn.LayerNorm(4),
        "rms": lambda: nn.RMSNorm(4),
        "batch": lambda: nn.BatchNorm1d(4),
    }
    cases = []
    for name, make in made.items():
        module = make()
        if not isinstance(module, nn.Linear):  # as a part of a branch, which is how the names of parameters are made
            module = nn.Sequential()
            module.add_module("norm", make())
        cases.append(passed(name, module, drawn(f"{name}.input", 5, 4, scale=2.0)))
    return cases


def branch(name: str) -> Callable[[int], nn.Module]:
    """Return what makes the branches of a stack: the options differ, so that all are met."""
    if name == "dense":
        return lambda dim: blocks.FullyConnected(dim, nn.Tanh, dim_out=2)
    if name in ("residual", "manifold"):
        return lambda dim: blocks.FullyConnected(dim, nn.Tanh, norm=nn.LayerNorm, pre_activation=True)
    if name == "residual_activation":
        return lambda dim: blocks.FullyConnected(dim, nn.Tanh, norm=nn.BatchNorm1d, bias=False)
    return lambda dim: blocks.FullyConnected(dim, nn.Tanh)


def branch_options(name: str) -> Case:
    """Return the engine's options for the same branches."""
    options: Case = {"activation": "tanh"}
    if name in ("residual", "manifold"):
        options |= {"norm": "layer", "preActivation": True}
    if name == "residual_activation":
        options |= {"norm": "batch", "bias": False}
    return options


def stacks() -> list[Case]:
    """Stacks of each connection, and what their parameters start from where that is not random."""
    cases = []
    for name, (options, connection, arguments) in CONNECTIONS.items():
        stack = levada.Stack(branch(name), connection, dim=DIM, depth=DEPTH, **arguments)
        other = dict(levada.Stack(branch(name), connection, dim=DIM, depth=DEPTH, **arguments).named_parameters())
        start = {key: listed(p) for key, p in stack.named_parameters() if torch.equal(p, other[key])}
        signal, gradient = [0.0] * (DEPTH + 1), [0.0] * (DEPTH + 1)
        for place, layer in enumerate(stack.layers):
            layer.branch.register_forward_hook(_recorder(place, signal, gradient))
        case = passed(name, stack, drawn(f"{name}.input", ROWS, DIM, scale=2.0))
        signal[DEPTH], gradient[0] = (rms(torch.tensor(case[key])) for key in ("output", "byInput"))
        network = {"depth": DEPTH, "width": DIM, "connection": options, **branch_options(name)}
        measured = {"signal": signal, "gradient": gradient, "mixing": mixing(stack, torch.tensor(case["input"]))}
        cases.append({**case, "network": network, "start": start, **measured})
    return cases


def mixing(stack: levada.Stack, x: Tensor) -> Case | None:
    """Return what mixes the streams layer by layer, and the gains of the products; None where nothing does."""
    if not isinstance(stack.layers[0].connection, levada.HyperConnection | levada.ManifoldHyperConnection):
        return None
    samples, state = [], stack.layers[0].connection.begin(x.reshape(ROWS, DIM))
    for place, layer in enumerate(stack.layers):
        read, mix, write = (weights.detach() for weights in layer.connection.coefficients(state))
        mix = mix.expand(ROWS, -1, -1)
        samples.append(Sample("", place, mix, read, write, torch.ones_like(mix), torch.zeros(1)))
        state = layer(state)
    gains = mixing_signals(samples)
    names = ("composite_forward_gain", "composite_backward_gain", "composite_log_column_sum")
    matrices = torch.stack([sample.matrices().mean(0) for sample in samples])
    found = {name: [gain[name] if math.isfinite(gain[name]) else None for gain in gains] for name in names}
    return {"matrices": listed(matrices), **found}


def _recorder(place: int, signal: list[float], gradient: list[float]) -> Callable[..., None]:
    def record(_: nn.Module, given: tuple[Tensor], out: Tensor) -> None:
        signal[place] = rms(given[0])
        out.register_hook(lambda by: gradient.__setitem__(place + 1, rms(by)))

    return record


def sinkhorns() -> list[Case]:
    """Matrices from logits near and far apart, with few iterations and with so many that factors are absorbed."""
    cases = []
    for n, scale, iterations in ((4, 1.0, 20), (3, 4.0, 1), (2, 400.0, 50), (4, 900.0, 300), (4, 3000.0, 700)):
        name = f"{n}_{scale:g}_{iterations}"
        logits = drawn(name, n, n, scale=scale).requires_grad_()
        mix = sinkhorn(logits, iterations)
        cotangent = drawn(f"{name}.cotangent", n, n)
        mix.backward(cotangent)
        assert logits.grad is not None
        cases.append({
            "name": name, "n": n, "iterations": iterations, "logits": listed(logits), "mix": listed(mix),
            "cotangent": listed(cotangent), "byLogits": listed(logits.grad),
        })  # fmt: skip
    return cases


def losses() -> list[Case]:
    """Cross-entropy, with large outputs too, and the mean square."""
    outputs = drawn("losses", 4, 5, scale=3.0)
    outputs[0] *= 300
    labels, targets = [3, 0, 4, 1], drawn("targets", 4, 5)
    cases = []
    for name, loss in (
        ("cross_entropy", lambda y: functional.cross_entropy(y, torch.tensor(labels))),
        ("mean_square", lambda y: functional.mse_loss(y, targets)),
    ):
        y = outputs.clone().requires_grad_()
        value = loss(y)
        value.backward()
        assert y.grad is not None
        cases.append({"name": name, "value": float(value.detach()), "gradient": listed(y.grad)})
    shared = {"rows": 4, "outputs": listed(outputs), "labels": labels, "targets": listed(targets)}
    return [{**shared, **case} for case in cases]


def optimizers() -> list[Case]:
    """Five steps on given gradients."""
    kinds: list[tuple[Case, Callable[[list[Tensor]], torch.optim.Optimizer]]] = [
        ({"name": "sgd", "lr": 0.1}, lambda p: torch.optim.SGD(p, lr=0.1)),
        (
            {"name": "sgd", "lr": 0.1, "momentum": 0.9, "weightDecay": 0.25},
            lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.25),
        ),
        ({"name": "adamw", "lr": 0.01}, lambda p: torch.optim.AdamW(p, lr=0.01)),
        (
            {"name": "adamw", "lr": 0.1, "betas": [0.5, 0.75], "epsilon": 0.01, "weightDecay": 0.25},
            lambda p: torch.optim.AdamW(p, lr=0.1, betas=(0.5, 0.75), eps=0.01, weight_decay=0.25),
        ),
    ]
    gradients = drawn("optimizers", 5, 2, 3)
    cases = []
    for options, make in kinds:
        parameter = drawn("optimizers.start", 2, 3).requires_grad_()
        optimizer, after = make([parameter]), []
        for gradient in gradients:
            parameter.grad = gradient.clone()
            optimizer.step()
            after.append(listed(parameter))
        cases.append({
            "options": options, "start": listed(drawn("optimizers.start", 2, 3)),
            "gradients": [listed(gradient) for gradient in gradients], "after": after,
        })  # fmt: skip
    return cases


def predictions() -> Case:
    """Moments of activations, and what theory says of plain and residual networks layer by layer."""
    sizes = [1e-6, 0.1, 1.0, 7.5, 400.0]
    moments = [
        {
            "name": name, "q": sizes,
            "first": [theory.first_moment(name, q) for q in sizes],
            "second": [theory.second_moment(name, q) for q in sizes],
            "slope": [theory.slope_second_moment(name, q) for q in sizes],
        }
        for name in ACTIVATIONS
    ]  # fmt: skip
    paths = []
    for name, weight, bias, depth in (
        ("relu", 2.0, 0.0, 30), ("relu", 1 / 3, 0.0, 30), ("tanh", 1.0, 0.05, 30), ("tanh", 2.25, 0.05, 30),
        ("sigmoid", 16.0, 0.0, 12), ("gelu", 2.0, 0.0, 12), ("hardtanh", 1.5, 0.1, 12), ("selu", 1.0, 0.0, 12),
    ):  # fmt: skip
        plain = theory.propagate(name, weight, bias, depth, q0=0.75)
        first, last = (
            theory.propagate_residual(name, weight, bias, depth, q0=0.75, multiplier=0.5, activation_first=before)
            for before in (True, False)
        )
        paths.append({
            "name": name, "weightVariance": weight, "biasVariance": bias, "depth": depth, "q0": 0.75,
            "coherent": listed(
                theory.coherent_residual_gradient(name, weight, bias, depth, q0=0.75, alignment=1 / 32)
            ),
            **{
                kind: {"q": listed(path.q), "chi": listed(path.chi), "cumulative": listed(path.cumulative)}
                for kind, path in (("plain", plain), ("activationFirst", first), ("activationLast", last))
            },
        })  # fmt: skip
    return {"moments": moments, "paths": paths}


FILES: dict[str, Callable[[], Any]] = {
    "activations": activations,
    "extremes": extremes,
    "layers": layers,
    "stacks": stacks,
    "sinkhorn": sinkhorns,
    "losses": losses,
    "optimizers": optimizers,
    "theory": predictions,
    "recurrent": layer_cases,
    "memory": lambda: {"curves": memory_cases(), "theory": memory_theory()},
    "paths": path_cases,
    "preferred": preferred_cases,
}


@contextlib.contextmanager
def float64() -> Iterator[None]:
    """Make what is made here in float64."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def made(name: str) -> Any:
    """Return what a file holds.

    Args:
        name: a key of `FILES`.
    """
    with float64():
        return FILES[name]()


def main() -> None:
    """Write all files."""
    for name in FILES:
        lines = json.dumps(made(name), separators=(",", ":"), allow_nan=False)
        (HERE / f"{name}.json").write_text(lines.replace('{"name"', '\n{"name"') + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
