"""R9: 1,000 and 10,000 layers, with and without skips: what the start carries, how exact it is, and what trains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil, prod
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from levada.connections import Plain, ReZero
from levada.initialise import delta_orthogonal, gaussian, he, orthogonal, pytorch_default
from levada.networks import Network
from levada.stack import Stack
from levada.studies.ten_thousand_layers_claims import BACHLECHNER, FIXUP, XIAO, claims
from levada.studies.ten_thousand_layers_figures import figures
from levada.study import Cell, Cost, Settings, Study
from levada.study.data import Dataset, cifar10, mnist
from levada.study.deep_replicas import (
    DeepReplicas,
    Descent,
    Design,
    descend,
    profile,
    thin,
    training_loss,
)
from levada.study.devices import preferred_device
from levada.study.training import batches, cross_entropies

__all__ = ["STUDY"]

LOGGED_SEED = 0  # of which every layer is kept
NUM_KEPT = 200  # boundaries of the other seeds
# Network: arm, initialisation, activation. Rates were chosen on seed 100 from the grids in the notes.
NETWORKS: dict[str, tuple[Any, Any, Any]] = {
    "ReZero": ("ReZero", he, torch.relu),
    "orthogonal": ("plain", orthogonal, torch.tanh),
    "Gaussian": ("plain", gaussian, torch.tanh),
    "PyTorch's default": ("plain", pytorch_default, torch.tanh),
}
CONVOLUTIONS: dict[str, Any] = {"delta-orthogonal": delta_orthogonal, "PyTorch's default": pytorch_default}
# Adam's rates, which seed 100 chose: see the notes.
RATES = {"orthogonal": 1e-5, "Gaussian": 1e-5, "PyTorch's default": 1e-4}
CONVOLUTION_RATES = {"delta-orthogonal": 1e-3, "PyTorch's default": 1e-4}


def configurations(settings: Settings, seeds: Sequence[int]) -> list[Cell]:
    """Give the cells that train, deepest first, those that measure what the start carries, and those on exactness."""
    data = {key: settings[key] for key in ("data", "folder", "examples")} | {"version": 2}
    deep, batch = settings["deep"], {"batch_size": settings["batch_size"]}
    configs: list[dict[str, Any]] = []

    def training(network: str, depth: int, dim: int, steps: int, lr: float) -> list[dict[str, Any]]:
        """Train it, and where the claim is that layers learn, its frozen twin."""
        optimizer = "Adagrad" if network == "ReZero" else "Adam"
        shape = {"depth": depth, "dim": dim, "steps": steps, "optimizer": optimizer, "lr": lr}
        told = {"measures": "training", "network": network, **shape, **batch, **data}
        arms = (False, True) if network == "ReZero" or depth == deep else (False,)
        return [{**told, "frozen": frozen, "log": depth == deep and not frozen} for frozen in arms]

    rates = {"ReZero": settings["deep_rezero_lr"], "orthogonal": settings["deep_lr"]}
    deepest = deep, settings["rezero_dim"], settings["deep_steps"]
    for network in settings["deep_networks"]:
        configs += training(network, *deepest, rates[network])
    for network in NETWORKS:
        dim = settings["rezero_dim" if network == "ReZero" else "dim"]
        lr = settings["rezero_lr"] if network == "ReZero" else RATES[network]
        configs += training(network, settings["depth"], dim, settings["steps"], lr)
    for depth, channels in zip(settings["convolution_depths"], settings["channels"], strict=True):
        for draw in CONVOLUTIONS:
            told = {"draw": draw, "depth": depth, "channels": channels, "lr": CONVOLUTION_RATES[draw]}
            steps = {"steps": settings["convolution_steps"]}
            configs.append({"measures": "convolution", **told, **steps, **batch, **data})
    start = {"depth": deep, "dim": settings["dim"], "batch_size": settings["start_batch"], **data}
    configs += [{"measures": "exactness", "network": network, **start} for network in ("ReZero", "orthogonal")]
    configs += [
        {"measures": "start", "network": network, "log": network == "orthogonal", **start} for network in NETWORKS
    ]
    return [Cell(config, seeds) for config in configs]


def run(config: Mapping[str, Any], seeds: Sequence[int]) -> list[dict[str, Any]]:
    """Train, measure what the start carries, or compare ways to compute the same gradient; all seeds at once."""
    inputs, targets = _examples(config)
    how = {"training": _train, "convolution": _convolve, "start": _start, "exactness": _compare}
    return how[config["measures"]](config, seeds, inputs, targets)


def _examples(config: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Return the first training images, of mean square 1, and their classes."""
    data: Dataset = mnist() if config["data"] == "mnist" else cifar10(config["folder"])
    images, count = data.train_inputs, config["examples"]
    inputs = (images if images.dim() == 4 else images.unsqueeze(1))[:count].float()
    device = preferred_device()
    return ((inputs - inputs.mean()) / inputs.std()).to(device), data.train_targets[:count].to(device)


def _network(config: Mapping[str, Any], seeds: Sequence[int], inputs: Tensor) -> DeepReplicas:
    """Build the network; those without skips or biases are given signals so small that tanh takes half of them away."""
    arm, draw, activation = NETWORKS[config["network"]]
    depth = config["depth"]
    scale_in = (2 * depth) ** -0.5 if config["network"] in ("orthogonal", "Gaussian") else 1.0
    shape: dict[str, Any] = {"inputs": prod(inputs.shape[1:]), "outputs": 10}
    design = Design(arm, depth, config["dim"], draw=draw, activation=activation, scale_in=scale_in, **shape)
    return DeepReplicas(design, seeds, checkpoint=inputs.is_cuda and depth > 2000).to(inputs.device)


def _train(config: Mapping[str, Any], seeds: Sequence[int], inputs: Tensor, targets: Tensor) -> list[dict[str, Any]]:
    network = _network(config, seeds, inputs)
    model = _frozen(network) if config["frozen"] else network
    descent = Descent(config["optimizer"], config["lr"], config["steps"], config["batch_size"])
    losses = descend(model, inputs, targets, descent, seeds)
    final = training_loss(model, inputs, targets, len(seeds))
    if config["frozen"]:
        return [{"loss": final[i], "curve": thin(losses[:, i])} for i in range(len(seeds))]
    found = _profiles(network, config, seeds, inputs, targets)
    for i, values in enumerate(found):
        values |= {"loss": final[i], "curve": thin(losses[:, i])}
        if config["network"] == "ReZero":
            scales = torch.cat([cast(ReZero, layer.connection).scale.detach()[i] for layer in network.stack])
            values["scale"] = float(scales.square().mean().sqrt())
        if "log" in values:
            values["log"]["loss"] = [_six(loss) for loss in losses[:, i].tolist()]
    return found


def _frozen(network: DeepReplicas) -> nn.Module:
    """The same network where the maps in and out train and the layers do not.

    Layers of ReZero return what they are given as long as their scales are zero: they are left out.
    """
    for parameter in network.stack.parameters():
        parameter.requires_grad_(False)
    identity = all(isinstance(layer.connection, ReZero) and not layer.connection.scale.any() for layer in network.stack)
    return _WithoutLayers(network) if identity else network


class _WithoutLayers(nn.Module):
    """The maps in and out of a network, `(batch, replicas, ...)` -> `(batch, replicas, classes)`."""

    def __init__(self, network: DeepReplicas) -> None:
        super().__init__()
        self.first, self.last = network.first, network.last
        self._begin, self._end = network.begin, network.end

    def forward(self, x: Tensor) -> Tensor:
        return self._end(self._begin(x))


def _start(config: Mapping[str, Any], seeds: Sequence[int], inputs: Tensor, targets: Tensor) -> list[dict[str, Any]]:
    network = _network(config, seeds, inputs).double()
    return _profiles(network, config, seeds, inputs.double(), targets)


def _aligned(network: DeepReplicas, x: Tensor, wanted: Tensor) -> Tensor:
    """Squared cosine of the last state and the gradient that reaches it, `(replicas, batch)`."""
    with torch.no_grad():
        state = network.stack(network.begin(x))
    state.requires_grad_()
    (gradient,) = torch.autograd.grad(cross_entropies(network.end(state), wanted).sum(), state)
    return functional.cosine_similarity(state.detach(), gradient, dim=2).square()


def _profiles(
    network: DeepReplicas, config: Mapping[str, Any], seeds: Sequence[int], inputs: Tensor, targets: Tensor
) -> list[dict[str, Any]]:
    """Sizes of state and gradient by boundary, on each seed's first batch: some of them, and of one seed all."""
    x, wanted = _batch(config, seeds, inputs, targets)
    x, depth = x.double(), config["depth"]
    sizes = profile(network.double(), x, wanted, segments=ceil(depth**0.5), by_example=True)
    states, gradients = (size.square().mean(2).sqrt() for size in sizes)
    ends = torch.stack([size[:, place] for size in sizes for place in (0, -1)], 2)  # by replica and example
    every = range(0, depth + 1, ceil(depth / NUM_KEPT))
    found = []
    for i, (seed, state, gradient) in enumerate(zip(seeds, states.tolist(), gradients.tolist(), strict=True)):
        values: dict[str, Any] = {
            "boundaries": [*every],
            "forward": [_six(state[i]) for i in every],
            "gradient": [_six(gradient[i]) for i in every],
            "first": [state[0], gradient[0]],
            "last": [state[-1], gradient[-1]],
            "same": len(set(state)) == len(set(gradient)) == 1,
            "least": [min(state), min(gradient)],
            "largest": [max(state), max(gradient)],
        }
        if config["measures"] == "start" and config["network"] == "orthogonal":
            values["examples"] = torch.cat([ends[i], _aligned(network, x, wanted)[i, :, None]], 1).tolist()
        if config["log"] and seed == LOGGED_SEED:
            values["log"] = {"forward": [_six(v) for v in state], "gradient": [_six(v) for v in gradient]}
        found.append(values)
    return found


def _batch(config: Mapping[str, Any], seeds: Sequence[int], inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    index = next(batches(len(inputs), config["batch_size"], seeds)).to(inputs.device)
    return inputs[index], targets[index]


def _compare(config: Mapping[str, Any], seeds: Sequence[int], inputs: Tensor, targets: Tensor) -> list[dict[str, Any]]:
    """Compute one gradient, in float64, with and without checkpointing, and along a line by differences of the loss."""
    network = _network(config, seeds, inputs).double()
    x, wanted = _batch(config, seeds, inputs.double(), targets)
    parameters = [*network.parameters()]

    def gradients(segments: int | bool) -> list[Tensor]:
        network.stack.arrange(checkpoint=segments)
        return [*torch.autograd.grad(cross_entropies(network(x), wanted).sum(), parameters)]

    plain, again = gradients(False), gradients(True)
    generators = [torch.Generator().manual_seed(seed + APART) for seed in seeds]
    lines = [_line(p, generators) for p in parameters]
    along = torch.stack([_by_replica(g * line) for g, line in zip(plain, lines, strict=True)]).sum(0)
    differ = torch.stack([_by_replica((a != b).double()) for a, b in zip(plain, again, strict=True)]).sum(0)
    finite = torch.stack([_by_replica((~g.isfinite()).double()) for g in plain]).sum(0) == 0
    network.stack.arrange(checkpoint=False)
    steps = []
    with torch.no_grad():
        for epsilon in (STEP, -2 * STEP, STEP):  # to one side, to the other, and back
            for parameter, line in zip(parameters, lines, strict=True):
                parameter.add_(line, alpha=epsilon)
            steps.append(cross_entropies(network(x), wanted))
    slope = (steps[0] - steps[1]) / (2 * STEP)
    return [
        {
            "gradients": sum(p[0].numel() for p in parameters),
            "differ": int(differ[i]),
            "finite": bool(finite[i]),
            "slope": float(along[i]),
            "difference": float(slope[i]),
            "apart": abs(float(slope[i] / along[i]) - 1),
        }
        for i in range(len(seeds))
    ]


STEP = 1e-7  # of the differences
APART = 1_000_000  # from a seed to that of its direction: the seed itself draws the weights


def _line(parameter: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """A random direction for each replica, from its own generator and of the size of its own parameter."""
    draws = [torch.randn(parameter.shape[1:], generator=g, dtype=parameter.dtype) for g in generators]
    sizes = parameter.detach().flatten(1).square().mean(1).sqrt()
    sizes = torch.where(sizes > 0, sizes, torch.ones_like(sizes))  # where it is zero, of size 1
    return torch.stack(draws).to(parameter.device) * sizes.view(-1, *[1] * (parameter.dim() - 1))


def _by_replica(x: Tensor) -> Tensor:
    return x.flatten(1).sum(1)


def _convolve(config: Mapping[str, Any], seeds: Sequence[int], inputs: Tensor, targets: Tensor) -> list[dict[str, Any]]:
    """Train plain convolutional networks, one seed after the other: they fill the processor."""
    found = []
    descent = Descent("Adam", config["lr"], config["steps"], config["batch_size"])
    for seed in seeds:
        network = _AsReplica(_convolutional(config, inputs, seed)).to(inputs.device)
        losses = descend(network, inputs, targets, descent, [seed])
        (final,) = training_loss(network, inputs, targets, 1)
        found.append({"loss": final, "curve": thin(losses[:, 0])})
    return found


def _convolutional(config: Mapping[str, Any], inputs: Tensor, seed: int) -> Network:
    """Two strided convolutions, `depth` more of one width with tanh and no skip, and a linear classifier."""
    depth, channels, generator = config["depth"], config["channels"], torch.Generator().manual_seed(seed)
    layers = [nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1), nn.Tanh()) for _ in range(depth)]
    stack = Stack(layers, Plain, dim=channels, checkpoint=inputs.is_cuda and depth > 200)
    stem = nn.Sequential(
        nn.Conv2d(inputs.shape[1], channels, 3, stride=2, padding=1),
        nn.Conv2d(channels, channels, 3, stride=2, padding=1),
    )
    side = ceil(ceil(inputs.shape[-1] / 2) / 2)
    head = nn.Sequential(nn.Flatten(), nn.Linear(channels * side**2, 10))
    for part in (stem, head):
        gaussian(part, generator=generator)
    CONVOLUTIONS[config["draw"]](stack, generator=generator)
    scale = (2 * depth) ** -0.5 if config["draw"] == "delta-orthogonal" else 1.0
    return Network(_Scaled(stem, scale), stack, nn.Sequential(_Scaled(nn.Identity(), 1 / scale), head))


class _Scaled(nn.Module):
    def __init__(self, inner: nn.Module, factor: float) -> None:
        super().__init__()
        self.inner, self.factor = inner, factor

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * self.inner(x)  # type: ignore[no-any-return]


class _AsReplica(nn.Module):
    """One network as the only replica: `(batch, 1, ...)` -> `(batch, 1, classes)`."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x.squeeze(1)).unsqueeze(1)  # type: ignore[no-any-return]


def _six(value: float) -> float:
    """Round to six digits."""
    return float(f"{value:.6g}")


STUDY = Study(
    name="R9", slug="ten_thousand_layers", title="A thousand and ten thousand layers",
    question="Do networks of 1,000 and 10,000 layers carry a signal, compute their gradient exactly, and train, with "
             "and without skips?",
    answer="10,000 orthogonal layers keep .67 to .75 of signal and gradient, gradients are exact, and in 40 to 100 "
    "steps ReZero's layers lower the loss at both depths; without skips 1,000 layers train if orthogonal (.73 to .80 "
    "nats).",
    method="Networks of 10,000 fully connected layers are measured before training, in float64: the size of state and "
           "gradient at every layer, by example at both ends, and one gradient computed in three ways. Networks of "
           "1,000 layers are trained with ReZero, and without skips from three initialisations, and some of 10,000, of "
           "which every layer of one seed is kept; those with ReZero also with frozen layers, where only the maps in "
           "and out learn. Convolutional networks without skips are trained from two initialisations.",
    sources=(XIAO, BACHLECHNER, FIXUP),
    settings={"seeds": 5, "data": "mnist", "folder": "data", "examples": 5000, "batch_size": 64, "depth": 1000,
              "dim": 32, "steps": 100, "deep": 10000, "rezero_dim": 16, "deep_steps": 40,
              "deep_networks": ("ReZero",), "rezero_lr": 0.003, "deep_rezero_lr": 0.0003, "deep_lr": 1e-6,
              "convolution_depths": (128,), "channels": (8,), "convolution_steps": 30,
              "start_batch": 16},
    scales={"smoke": {"seeds": 2, "examples": 256, "depth": 12, "steps": 2,
                      "deep": 60, "deep_steps": 2, "convolution_depths": (4,), "channels": (4,),
                      "convolution_steps": 1, "dim": 8, "rezero_dim": 4},
            "full": {"deep_networks": ("ReZero", "orthogonal"), "deep_rezero_lr": 0.003,
                     "data": "cifar10", "examples": 50000, "batch_size": 128, "dim": 150, "rezero_dim": 150,
                     "steps": 10 * 390, "deep_steps": 25 * 390, "convolution_depths": (10000, 2500),
                     "channels": (64, 256), "convolution_steps": 10 * 390}},
    configurations=configurations, run=run, claims=lambda settings: claims(settings), figures=figures,
    notes=("Digits: the first 5,000 of MNIST, batches of 64. Tanh without skips (width 32) by Adam at 1e-5 (PyTorch's "
           "default 1e-4), ReLU with "
           "ReZero (width 16) by Adagrad at .003, 10,000 layers of it at .0003. Losses are those of all 5,000 digits "
           "after the last step.",
           "Orthogonal and Gaussian networks are given a first state of mean square 1 / (2 depth), so small that tanh "
           "takes half of it on the way, and their logits are made from a last state that is scaled back.",
           "Rates and steps were chosen on seed 100. Tanh at 1e-5, 3e-5 and 1e-4, 80 steps, loss on the last batches: "
           "orthogonal .94, 1.00, 1.54; Gaussian at 1e-5, 1e-4 and .001, 50 steps: 2.31, 2.32, 2.35; "
           "PyTorch's default at 1e-5 and 1e-4, 30 steps: 2.310, 2.307. ReZero at .003, "
           ".01 and .03, 60 steps: .76, 1.25, 2.93. Convolutions at 1e-4 and .001, 30: delta-orthogonal .99, .72; "
           "PyTorch's default 2.318, 2.323. 10,000 layers at .003, 40 steps: 3.9, at .0003, 25 steps: 1.76. That seed "
           "trains on the same 5,000 digits as the others: all losses are of training. Every rate lies at an edge of "
           "those tried: others may do better.",
           "After a review, and before the run that is reported, ReZero's bars on the loss gave way to the gain over "
           "frozen layers: the maps in and out pass half of ln 10 by themselves, and the 1.8 nats of 10,000 layers "
           "were taken from the trial seed. Also, the closed form is checked in every example to 0.5 %, where it was "
           "in the mean of a batch to 5 %, and the directions of the third way are drawn by seed.",
           "Layers of ReZero whose scales are frozen at zero return what they are given, and are left out.",
           "The scale full is the released configuration, 10,000 layers of width 150 with Adagrad at .003 for 25 "
           "epochs, on CIFAR-10 in a folder (--set folder=...), with convolutions of 64 and 256 channels. It has not "
           "been run; its hours are extrapolated from the number of kernels."),
    check={"measures": "training", "network": "ReZero", "frozen": False},
    known={"data": ("mnist", "cifar10")},
    costs={"smoke": Cost(0.001, measured=True), "small": Cost(0.0533, measured=True), "full": Cost(60, "one H100")},
)  # fmt: skip
