"""R8: what may be zero at the start: the saddle of all-zero blocks, and the race that ReZero wins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from levada.connections import Residual
from levada.initialise import he, pytorch_default
from levada.stack import Stack
from levada.studies.zero_initialisation_claims import ARMS, BACHLECHNER, RATE, RELEASED, claims
from levada.studies.zero_initialisation_figures import figures
from levada.study import Cell, Cost, Settings, Study
from levada.study.data import Dataset, cifar10, mnist1d
from levada.study.deep_replicas import (
    Arm,
    DeepReplicas,
    Descent,
    Design,
    Draw,
    ReplicaDense,
    descend,
    thin,
    training_loss,
)
from levada.study.devices import preferred_device
from levada.study.training import batches

__all__ = ["STUDY"]

SELECTION_SEEDS = (100, 101)
# `levada study R8 --set select=true` chooses again. Mean training loss, in nats, of SELECTION_SEEDS after 10 epochs at
# .0001 .0003 .001 .003 .01 .03: pre-norm - - .77 .09 .05 .57; plain with norm 2.08 1.86 2.13 - - -; plain - 1.72 1.56
# 1.83 - -; ReZero - - - .91 .16 .17. Residual: seed 100, 5 epochs, .001 to .1: 1e11 3e10 1e9 1.4e6 2e30.
LEARNING_RATES = {
    "pre-norm residual": 0.01, "residual": 0.03, "plain with norm": 0.0003, "plain": 0.001, "ReZero": 0.01,
}  # fmt: skip
ACTIVATIONS = {"ReLU": torch.relu, "tanh": torch.tanh, "sigmoid": torch.sigmoid}
ZERO_RATES = {"SGD": 0.1, "Adam": 0.003, "Adagrad": 0.03}
# Start, activation, optimizer.
ZERO_CELLS = (
    *(("all zero", activation, optimizer) for activation in ACTIVATIONS for optimizer in ZERO_RATES),
    *((start, activation, "Adam") for start in ("last zero", "factor zero") for activation in ("ReLU", "tanh")),
)


# What a block of zeros is given: what follows its addition, its input, its shortcut.
ZERO_BLOCKS = (
    ("", "any", "identity"), ("ReLU", "of a ReLU", "identity"), ("ReLU", "any", "identity"),
    ("ReLU", "of a ReLU", "projection"),
)  # fmt: skip


def configurations(settings: Settings, seeds: Sequence[int]) -> list[Cell]:
    """Give a cell an architecture of each race, one a start at zero, and one for what a block of zeros returns."""
    data = {key: settings[key] for key in ("data", "folder")} | {"version": 2}
    shape = {**data, "batch_size": settings["batch_size"]}
    race = {"measures": "race", **{key: settings[key] for key in ("depth", "dim", "epochs")}}
    configs: list[dict[str, Any]] = [
        {**race, **data, "batch_size": settings["released_batch"], "race": "released", "arm": arm, "lr": RATE}
        for arm in RELEASED
    ]
    for arm in ARMS:
        own = None if settings["select"] else LEARNING_RATES[arm]
        rate = {"lr": own} if own else {"lr_grid": [*settings["lr_grid"]]}
        configs.append({**race, **shape, "race": "own", "arm": arm, **rate})
    for start, activation, optimizer in ZERO_CELLS:
        blocks = {"depth": settings["blocks"], "dim": settings["block_dim"], "steps": settings["zero_steps"]}
        told = {"start": start, "activation": activation, "optimizer": optimizer}
        configs.append({"measures": "zero", **told, **blocks, **shape})
    configs += [
        {"measures": "identity", "after": after, "input": given, "shortcut": shortcut, "dim": settings["dim"],
         "version": 2}
        for after, given, shortcut in ZERO_BLOCKS
    ]  # fmt: skip
    return [Cell(config, seeds) for config in configs]


def run(config: Mapping[str, Any], seeds: Sequence[int]) -> list[dict[str, Any]]:
    """Run a race, train from a start at zero, or see what a block of zeros returns; all seeds at once."""
    if config["measures"] == "identity":
        return [_identity(config, seed) for seed in seeds]
    device = preferred_device()
    inputs, targets = _examples(config, device)
    return (_race if config["measures"] == "race" else _from_zero)(config, seeds, inputs, targets)


def _examples(config: Mapping[str, Any], device: torch.device) -> tuple[Tensor, Tensor]:
    data: Dataset = mnist1d() if config["data"] == "mnist1d" else cifar10(config["folder"])
    inputs = data.train_inputs.flatten(1).float()
    return ((inputs - inputs.mean()) / inputs.std()).to(device), data.train_targets.to(device)


def _identity(config: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Give a block whose weights and biases are zero a batch: any numbers, or what a ReLU returns."""
    dim, generator = config["dim"], torch.Generator().manual_seed(seed)
    x = torch.randn(64, dim, generator=generator)
    if config["input"] == "of a ReLU":
        x = x.relu()
    block = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, dim))
    for parameter in block.parameters():
        nn.init.zeros_(parameter)
    with torch.no_grad():
        if config["shortcut"] == "projection":
            y = (block(x) + he(nn.Linear(dim, dim, bias=False), generator=generator)(x)).relu()
        else:
            y = Stack([block], Residual, dim=dim, activation=nn.ReLU() if config["after"] else None)(x)
    return {"changed": float((y != x).double().mean()), "rectified": torch.equal(y, x.relu())}


def _design(config: Mapping[str, Any], inputs: int) -> Design:
    """Return the network of a race: of the released one, with its own starts; of the other, He's and norms inside."""
    shape: dict[str, Any] = {"depth": config["depth"], "dim": config["dim"], "inputs": inputs, "outputs": 10}
    if config["race"] == "own":
        return Design(config["arm"], draw=he, **shape)
    variance = 0.25 if config["arm"] == "residual" else 2.0
    ends: dict[str, Any] = {"draw_in": released(2.0), "draw_out": pytorch_default, "activate_in": True}
    return Design(config["arm"], draw=released(variance), **ends, **shape)


def released(variance: float) -> Draw:
    """Return a start with weights `N(0, variance / fan_in)` and PyTorch's own biases, uniform to `fan_in^(-1/2)`.

    Args:
        variance: as above.

    Source: the notebook that Bachlechner et al. 2021, arXiv 2003.04887, released.
    """

    @torch.no_grad()
    def draw(module: nn.Linear, *, generator: torch.Generator) -> nn.Module:
        bound = module.in_features**-0.5
        module.weight.normal_(0.0, variance**0.5 * bound, generator=generator)
        module.bias.uniform_(-bound, bound, generator=generator)
        return module

    return draw


def _race(config: Mapping[str, Any], seeds: Sequence[int], inputs: Tensor, targets: Tensor) -> list[dict[str, Any]]:
    """Train; the loss is that of all examples in the end, in the released race the mean over the last epoch's steps."""
    epoch = len(inputs) // config["batch_size"]

    def trained(lr: float, seeds: Sequence[int]) -> tuple[list[float], Tensor, tuple[Tensor, Tensor]]:
        network = DeepReplicas(_design(config, inputs.shape[1]), seeds).to(inputs.device)
        jacobian = _jacobian(network, inputs, seeds)
        descent = Descent("Adagrad", lr, config["epochs"] * epoch, config["batch_size"])
        losses = descend(network, inputs, targets, descent, seeds)
        if config["race"] == "released":
            return losses[-epoch:].mean(0).nan_to_num(nan=torch.inf).tolist(), losses, jacobian
        return training_loss(network, inputs, targets, len(seeds)), losses, jacobian

    grid = {str(lr): trained(lr, SELECTION_SEEDS)[0] for lr in config.get("lr_grid", ())}
    lr = float(min(grid, key=lambda rate: sum(grid[rate]))) if grid else config["lr"]
    final, losses, (square, identity) = trained(lr, seeds)
    return [
        {
            "loss": final[i],
            "curve": thin(losses[:, i]),
            "lr": lr,
            "selection": grid,
            "square": float(square[i]),
            "identity": bool(identity[i]),
        }
        for i in range(len(seeds))
    ]


def _jacobian(network: DeepReplicas, inputs: Tensor, seeds: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Mean squared singular value of each replica's stack at its first example, and whether it is the identity."""
    chosen = torch.tensor([int(next(batches(len(inputs), 1, [seed]))) for seed in seeds], device=inputs.device)
    with torch.no_grad():
        state = network.begin(inputs[chosen].unsqueeze(0))
    dim = state.shape[-1]
    state = state.expand(-1, dim, -1).clone().requires_grad_()
    one = torch.eye(dim, device=state.device).expand(len(seeds), -1, -1)
    (rows,) = torch.autograd.grad(network.stack(state), state, one)
    return rows.double().square().sum((1, 2)) / dim, (rows == one).all(2).all(1)


def _from_zero(
    config: Mapping[str, Any], seeds: Sequence[int], inputs: Tensor, targets: Tensor
) -> list[dict[str, Any]]:
    """Train residual blocks of two weights from a start at zero; watch every block's weights at every step."""
    arm: Arm = "ReZero" if config["start"] == "factor zero" else "residual"
    activation, optimizer = ACTIVATIONS[config["activation"]], config["optimizer"]
    shape: dict[str, Any] = {"inputs": inputs.shape[1], "outputs": 10, "weights": 2}
    design = Design(arm, config["depth"], config["dim"], draw=he, activation=activation, **shape)
    network = DeepReplicas(design, seeds).to(inputs.device)
    blocks = [[*layer.branch.children()] for layer in network.stack]
    weights = [cast(ReplicaDense, dense).weight for block in blocks for dense in block]
    biases = [cast(ReplicaDense, block[-1]).bias for block in blocks]
    if config["start"] != "factor zero":
        for weight in weights if config["start"] == "all zero" else weights[1::2]:
            nn.init.zeros_(weight)
    starts = [weight.detach().clone() for weight in weights]
    largest: list[Tensor] = []
    descent = Descent(optimizer, ZERO_RATES[optimizer], config["steps"], config["batch_size"])
    descend(network, inputs, targets, descent, seeds,
            before_step=lambda: largest.append(torch.stack([_largest(weight.grad) for weight in weights])))  # fmt: skip
    gradients = torch.stack(largest).amax(1)  # of all weights, by step
    moved = torch.stack([_largest(w - start) for w, start in zip(weights, starts, strict=True)])
    loss = training_loss(network, inputs, targets, len(seeds))
    shift = torch.stack([_largest(bias) for bias in biases])
    return [
        {
            "loss": loss[i],
            "steps_with_gradient": int((gradients[:, i] != 0).sum()),
            "gradient": thin(gradients[:, i], summary=torch.amax),
            "least_move": float(moved[:, i].min()),
            "largest_move": float(moved[:, i].max()),
            "least_bias": float(shift[:, i].min()),
        }
        for i in range(len(seeds))
    ]


def _largest(x: Tensor | None) -> Tensor:
    assert x is not None
    return x.detach().abs().amax((1, 2))


STUDY = Study(
    name="R8", slug="zero_initialisation", title="What may be zero at the start",
    question="Which parts of a residual network may start at zero, and does a start at zero win the race?",
    answer="One part of each block: then they train to .69 to .88 nats in 300 steps, all zero to 1.6; ReZero wins the "
    "released race, but at own rates pre-norm ends lower (.04 to .06 against .10 to .23).",
    method="Residual networks start with all weights of their blocks at zero, with the last of each block, or with a "
           "factor before each block, and the gradients of the blocks' weights are watched at every step. The four "
           "architectures of 64 fully connected layers of a released race are trained by Adagrad at its rate from its "
           "starts, and five at a rate chosen for each from one start, and their training losses compared. Before "
           "training, the Jacobian of each one's layers is computed whole.",
    sources=(BACHLECHNER, "Zhang, Dauphin and Ma 2019, arXiv 1901.09321", "He et al. 2015, arXiv 1512.03385"),
    settings={"seeds": 5, "data": "mnist1d", "folder": "data", "batch_size": 128, "released_batch": 100, "depth": 64,
              "dim": 128, "epochs": 10, "select": False,
              "lr_grid": (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1), "blocks": 8, "block_dim": 32,
              "zero_steps": 300},
    scales={"smoke": {"seeds": 2, "depth": 6, "dim": 16, "epochs": 1, "batch_size": 500,
                      "released_batch": 400, "lr_grid": (0.01, 0.03),
                      "select": True, "blocks": 2, "block_dim": 8, "zero_steps": 4},
            "full": {"data": "cifar10", "dim": 256, "select": True}},
    configurations=configurations, run=run, claims=lambda settings: claims(), figures=figures,
    notes=("The released race is that of the notebook of Bachlechner et al., its architectures and starts: ReLU after "
           "the map in; weights of variance 2/n, of the residual network 0.25/n, and PyTorch's biases; one layer "
           "normalisation with learned factors, shared by all layers, after the activation; batches of 100, 10 epochs; "
           "the loss is the mean over the last epoch's steps. Data and width are not: MNIST-1D, 4,000 signals, width "
           "128, where the notebook has CIFAR-10 and 256.",
           "The race at each one's own rate is another: He's start for all, batches of 128, layer normalisation "
           "without learned factors, before the activation (plain) or before the weights (pre-norm), and the loss of "
           "the whole training set after the last step.",
           "There each rate was chosen by the mean loss of seeds 100 and 101, which are not reported, after all 10 "
           "epochs, from the rates around the best of .0001, .0003, .001, .003, .01, .03 and .1; that of the residual "
           "network without normalisation, whose losses are above a million nats, on seed 100 after 5. These seeds "
           "train on the same signals as the others: what is compared is how fast these are fitted.",
           "After a review, and before the run that is reported: the race at .01 took the architectures and starts of "
           "the notebook, where it had He's start and other normalisations, and was compared with its losses; a block "
           "of zeros is also given what a ReLU returns, and a projection; the race at own rates is tested by pairs, "
           "and its rates, chosen on seed 100 after 5 epochs before, were chosen again.",
           "Start at zero: 8 residual blocks of two weights, width 32. Steps and optimizers were chosen on seeds 100 "
           "and 101: by SGD at .1, ReZero had hardly begun after 300 steps.",
           "The scale full is the notebook's race, on CIFAR-10 at width 256, which needs the binary version of "
           "CIFAR-10 in a folder (--set folder=...), and chooses rates again, with seeds 100 and 101. It has not been "
           "run."),
    check={"measures": "zero", "start": "last zero", "activation": "tanh"},
    known={"data": ("mnist1d", "cifar10")},
    costs={"smoke": Cost(0.0005, measured=True), "small": Cost(0.0553, measured=True), "full": Cost(1, "one H100")},
)  # fmt: skip
