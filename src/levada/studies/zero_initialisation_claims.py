"""What R8 claims: one sentence of one source each, with the criterion that decides it."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from typing import Any

from levada.study import Claim, Results, Statistic
from levada.study.statistics import mann_whitney, paired_permutation_test, sign_test

__all__ = ["ARMS", "BACHLECHNER", "RATE", "RELEASED", "claims"]

BACHLECHNER = "Bachlechner et al. 2021, arXiv 2003.04887"
REZERO = "ReZero"
RELEASED = ("plain", "residual", "shared norm", REZERO)  # the arms of the released race
ARMS = ("pre-norm residual", "residual", "plain with norm", "plain", REZERO)
RATE = 0.01  # of the released race, for every architecture
LEARNS, FAILS, SHARE = 0.5, 1.5, 0.75


def _every_seed(met: Sequence[bool]) -> tuple[bool, Statistic]:
    return all(met), sign_test(sum(met), len(met))


def _zero_is_identity(results: Results) -> tuple[bool, dict[str, Any], None]:
    numbers: dict[str, Any] = {}
    for config in results.configs:
        after = f"{config['after']} after the addition" if config["after"] else "nothing after the addition"
        given = "any input" if config["input"] == "any" else "input of a ReLU"
        told = f"{after}, {given}, {config['shortcut']}"
        numbers[f"{told}: share of the outputs that differ from the input"] = results.column("changed", **config)
        if config["input"] == "any" and config["after"]:
            numbers["there the output is ReLU(x)"] = results.column("rectified", **config)
    return all(changed == 0 for changed in results.column("changed")), numbers, None


def _stuck(results: Results) -> tuple[bool, dict[str, Any], None]:
    """Decide whether no weight of a block ever has a gradient; the output biases must move, or nothing would learn."""
    met = [True] * len(results.seeds)
    numbers: dict[str, Any] = {}
    for config in results.configs:
        steps, moved, bias = (
            results.column(key, **config) for key in ("steps_with_gradient", "largest_move", "least_bias")
        )
        name = f"{config['activation']}, {config['optimizer']}"
        numbers[f"{name}: steps with a gradient of a block's weight"] = steps
        numbers[f"{name}: largest change of such a weight"] = moved
        numbers[f"{name}: least of the blocks' largest output biases"] = bias
        met = [m and s == 0 and w == 0 and b > 0 for m, s, w, b in zip(met, steps, moved, bias, strict=True)]
    return all(met), numbers, None


def _one_part_trains(results: Results) -> tuple[bool, dict[str, Any], Statistic]:
    met = [True] * len(results.seeds)
    numbers: dict[str, Any] = {}
    for activation in ("ReLU", "tanh"):
        chosen = {"activation": activation, "optimizer": "Adam"}
        stuck = results.column("loss", start="all zero", **chosen)
        numbers[f"{activation}, all zero: training loss"] = stuck
        for start in ("last zero", "factor zero"):
            loss, moved = (results.column(key, start=start, **chosen) for key in ("loss", "least_move"))
            numbers[f"{activation}, {start}: training loss"] = loss
            numbers[f"{activation}, {start}: least of the weights' largest changes"] = moved
            met = [m and a <= SHARE * b and w > 0 for m, a, b, w in zip(met, loss, stuck, moved, strict=True)]
    held, statistic = _every_seed(met)
    return held, numbers, statistic


def _identity_jacobian(results: Results) -> tuple[bool, dict[str, Any], None]:
    numbers = {f"{arm}: mean squared singular value": results.column("square", arm=arm) for arm in RELEASED}
    return all(results.column("identity", arm=REZERO)), numbers, None


def _race(results: Results) -> tuple[bool, dict[str, Any], Statistic]:
    losses = {arm: results.column("loss", arm=arm) for arm in RELEASED}
    best = [min(seed) for seed in zip(*(loss for arm, loss in losses.items() if arm != REZERO), strict=True)]
    held = max(losses[REZERO]) <= LEARNS and min(best) >= FAILS
    numbers = {f"{arm}: mean loss of the last epoch": loss for arm, loss in losses.items()}
    return held, numbers, mann_whitney(losses[REZERO], best)


def _fair_race(results: Results) -> tuple[bool, dict[str, Any], Statistic | None]:
    """Decide seed by seed, and test it so: of a seed all architectures see the same batches."""
    numbers: dict[str, Any] = {}
    losses: dict[str, list[float]] = {}
    for arm in ARMS:
        losses[arm] = results.column("loss", arm=arm)
        numbers[f"{arm}: learning rate"] = results.column("lr", arm=arm)[0]
        numbers[f"{arm}: training loss"] = losses[arm]
    best = [min(seed) for seed in zip(*(loss for arm, loss in losses.items() if arm != REZERO), strict=True)]
    held = all(own < other for own, other in zip(losses[REZERO], best, strict=True))
    finite = all(map(isfinite, (*losses[REZERO], *best)))
    return held, numbers, paired_permutation_test(losses[REZERO], best) if finite else None


_ZERO = {"measures": "zero", "start": "all zero"}
_NOTEBOOK = "the released notebook, CIFAR-10, width 256, one seed, loss of epoch 10: "
_CLAIMS = (
    Claim("a block of zeros is the identity", "If the weights of a residual block are zero, its output is 0 + x = x.",
          "bitwise, in every seed: with nothing after the addition; with ReLU after it (the block of 2015), of what a "
          "ReLU returned, of any input, and with a projection on the shortcut",
          "common in tutorials; He et al. 2015, arXiv 1512.03385", _zero_is_identity, {"measures": "identity"},
          correction="So it is where nothing follows the addition (pre-activation), and in the block of 2015 where its "
          "network has it: what comes in has passed a ReLU, and ReLU(x) = x. Given any numbers that block returns "
          "ReLU(x), and one with a projection on its shortcut returns the projection, rectified."),
    Claim("all zero is a saddle", "A block whose weights are all zero never learns: its weights receive a gradient of "
          "exactly zero forever.", "blocks of two weights with ReLU or tanh, by SGD, Adam and Adagrad: every gradient "
          "of a block's weight bitwise 0 at every step, while the output bias of every block moves, in every seed",
          "follows from the chain rule: each weight's gradient has the other as a factor", _stuck,
          {**_ZERO, "activation": ("ReLU", "tanh")},
          correction="That the identity is easy to represent does not make zero a good start: only biases learn."),
    Claim("whatever the activation", "A block whose weights are all zero never learns, whatever its activation.",
          "the same with the sigmoid, whose value at 0 is 1/2", "common in discussions of zero initialisation", _stuck,
          {**_ZERO, "activation": "sigmoid"},
          correction="It takes an activation that is zero at zero. The sigmoid feeds 1/2 to the last weight, which "
          "learns at the first step, and then the first does; but all units of a block stay alike."),
    Claim("zero in one place trains", "Zero the last weight of each block, or one factor before it, and the network "
          "starts as the identity and trains.", f"after the same steps of Adam: training loss at most {SHARE:g} times "
          "that of all-zero blocks, and every weight of every block moved, with ReLU and tanh, in every seed",
          f"Zhang, Dauphin and Ma 2019, arXiv 1901.09321; {BACHLECHNER}", _one_part_trains,
          {"measures": "zero", "optimizer": "Adam", "activation": ("ReLU", "tanh")}),
    Claim("the Jacobian is the identity", "With the factors at zero the Jacobian of all layers is the identity.",
          "bitwise, all layers together, in every seed", BACHLECHNER, _identity_jacobian,
          {"measures": "race", "race": "released"}),
    Claim("ReZero wins the race", "At the released learning rate a fully connected network of 64 layers trains with "
          "ReZero, and plain, residual or with layer normalisation it does not.", "the released race's architectures "
          f"and starts, Adagrad at {RATE:g}: mean loss over the last epoch's steps of ReZero at most {LEARNS:g}, of "
          f"the three others at least {FAILS:g} nats, in every seed", BACHLECHNER, _race,
          {"measures": "race", "race": "released"},
          paper_value=f"{_NOTEBOOK}plain 2.02, residual 1.87, layer normalisation 2.01, ReZero 0.52"),
    Claim("at each one's own rate", "ReZero trains deep fully connected networks faster than the alternatives do.",
          "Adagrad at the learning rate that trial seeds chose for each: training loss of ReZero below that of plain, "
          "residual, plain with layer normalisation and pre-norm residual networks, in every seed", BACHLECHNER,
          _fair_race, {"measures": "race", "race": "own"},
          correction="Faster than networks without a skip or without normalisation, at any rate tried. A residual "
          "network that normalises before each branch, at its own rate, is not slower."),
)  # fmt: skip


def claims() -> list[Claim]:
    """Return the claims."""
    return list(_CLAIMS)
