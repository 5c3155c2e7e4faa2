"""R12: what depth makes cheap to represent, and what training finds of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from levada.studies.depth_separation_claims import BY_DEPTH, ELDAN, EQUAL, HANIN, TELGARSKY, THREE, TWO, claims
from levada.studies.depth_separation_figures import figures
from levada.study import Cell, Cost, Settings, Study
from levada.study.perceptrons import ReplicaPerceptron
from levada.study.pieces import Layers, evaluate, num_crossings, num_pieces
from levada.study.training import Recipe, error, train
from levada.theory import sawtooth, sawtooth_layers

__all__ = ["STUDY"]

SELECTION_SEEDS = (100, 101)
APART = 10**6  # what the seeds of data are larger than those of weights: their streams must not be the same
LONGER = 4  # times the steps, and times the weights
SPAN = math.sqrt(3)  # a sawtooth's inputs are spread evenly over [-SPAN, SPAN], of variance 1
BITS = 40  # of the random dyadic points at which the construction is compared with the sawtooth
GRID = (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1)
NEAR = "deep, near the construction"
# `levada study R12 --set select=true` chooses again.
RATES = {
    "sawtooth, shallow, a quarter of the pieces": 0.003, "sawtooth, shallow, 8 times the weights": 0.01,
    "sawtooth, shallow, pieces enough": 0.0003, "sawtooth, deep, as constructed": 0.0003,
    "sawtooth, deep, wide": 0.003, "sawtooth, deep, near the construction": 0.0003,
    "labels, shallow": 0.03, "labels, deep": 0.01, "labels, deep, an eighth of the weights": 0.01,
    "radial, two layers": 0.03, "radial, two layers, 4 times the weights": 0.03,
    "radial, two layers, 4 times the steps": 0.01, "radial, three layers": 0.01,
}  # fmt: skip


def configurations(settings: Settings, seeds: Sequence[int]) -> list[Cell]:
    """Give a cell for each network and task, all seeds in it."""
    both = {key: settings[key] for key in ("select", "device", "batch_size")}
    radial = {"points": settings["radial_points"], "shell": 1.0, **both}
    saw = {"steps": settings["steps"], "noise": 0.01, **both}
    labels = {"steps": settings["steps"], "points": settings["label_points"], "dim": 10, **both}
    configs: list[dict[str, Any]] = [
        {"measures": "radial", "dim": dim, "network": name, "widths": widths, "steps": steps, **radial}
        for dim in settings["dims"]
        for name, (widths, steps) in _radial_networks(dim, settings["radial_width"], settings["radial_steps"]).items()
    ]
    configs += [
        {"measures": "sawtooth", "folds": folds, "network": name, "widths": widths, **saw}
        for folds in sorted(settings["folds"], reverse=True)
        for name, widths in _sawtooth_widths(folds, settings["width"]).items()
    ]
    configs += [
        {"measures": "labels", "network": name, "widths": widths, **labels}
        for name, widths in _label_widths(settings["label_width"]).items()
    ]
    untrained = {"measures": "untrained", "dim": 10, "draws": settings["draws"]}
    units = settings["width"] * max(settings["depths"])
    for depth in settings["depths"]:
        configs.append({"depth": depth, "width": settings["width"], "layered": BY_DEPTH, **untrained})
        configs.append({"depth": depth, "width": units // depth, "layered": EQUAL, **untrained})
    configs += [{"measures": "construction", "folds": folds} for folds in settings["constructed"]]
    return [Cell(config, seeds) for config in configs]


def _sawtooth_widths(folds: int, width: int) -> dict[str, list[int]]:
    """Hidden units of each network that learns a sawtooth of 2^folds pieces."""
    return {
        "shallow, a quarter of the pieces": [2 ** (folds - 2) - 1],
        "shallow, 8 times the weights": [8 * (6 * folds + 1) // 3],
        "shallow, pieces enough": [2**folds],
        "deep, as constructed": [2] * folds,
        "deep, wide": [width] * folds,
        NEAR: [2] * folds,
    }


def _radial_networks(dim: int, width: int, steps: int) -> dict[str, tuple[list[int], int]]:
    """Hidden units and steps: one hidden layer of `width` units, and two hidden layers of as many weights.

    They have `width (dim + 3) + 2` weights and `h^2 + (dim + 4) h + 2`. One hidden layer is tried with four times the
    units, and with four times the steps, as well.
    """
    half = (dim + 4) / 2
    return {
        TWO: ([width], steps),
        f"{TWO}, 4 times the weights": ([LONGER * width], steps),
        f"{TWO}, 4 times the steps": ([width], LONGER * steps),
        THREE: ([int(math.sqrt(half**2 + width * (dim + 3)) - half)] * 2, steps),
    }


def _label_widths(width: int) -> dict[str, list[int]]:
    """One hidden layer, four of about as many weights, and four of an eighth: `13 m + 2` and `3 h^2 + 16 h + 2`."""

    def four(weights: float) -> list[int]:
        return [round((math.sqrt(64 + 3 * weights) - 8) / 3)] * 4

    return {"shallow": [width], "deep": four(13 * width), "deep, an eighth of the weights": four(13 * width / 8)}


def run(config: Mapping[str, Any], seeds: Sequence[int]) -> list[dict[str, Any]]:
    """Measure a configuration; networks that train do so at the learning rate that was chosen for their kind."""
    if config["measures"] == "construction":
        return [_construct(config["folds"], seed) for seed in seeds]
    if config["measures"] == "untrained":
        return [_untrained(config, seed) for seed in seeds]
    measure = {"sawtooth": _sawtooth, "labels": _labels, "radial": _radial}[config["measures"]]
    rates = GRID if config["select"] else ()
    scores = {str(lr): fmean(v["error"] for v in measure(config, SELECTION_SEEDS, lr)) for lr in rates}
    lr = (
        float(min(scores, key=lambda rate: scores[rate]))
        if scores
        else RATES[f"{config['measures']}, {config['network']}"]
    )
    return [{**values, "lr": lr, "selection": scores} for values in measure(config, seeds, lr)]


def _construct(folds: int, seed: int) -> dict[str, Any]:
    """Compare the construction with the sawtooth: at all of its ends, and at random dyadic points; every bit counts."""
    layers = sawtooth_layers(folds)
    ends = torch.arange(2**folds + 1, dtype=torch.float64) / 2**folds
    drawn = torch.randint(2**BITS, (1000,), generator=torch.Generator().manual_seed(seed)).double() / 2**BITS
    wrong = (evaluate(layers, ends.unsqueeze(1)).flatten() > 0.5) != (torch.arange(2**folds + 1) % 2 == 1)
    unequal = evaluate(layers, drawn.unsqueeze(1)).flatten() != sawtooth(drawn, folds)
    return {
        "error": wrong.double().mean().item(),
        "unequal": int(unequal.sum()),
        "pieces": num_pieces(layers, 0.0, 1.0),
        "parameters": sum(weight.numel() + bias.numel() for weight, bias in layers),
    }


def _untrained(config: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """Count pieces between two Gaussian points, of networks from He's initialisation."""
    generator = torch.Generator().manual_seed(seed + APART)
    widths, counts = [config["dim"], *[config["width"]] * config["depth"], 1], []
    for _ in range(config["draws"]):
        start, end = torch.randn(2, config["dim"], generator=generator, dtype=torch.float64)
        drawn = int(torch.randint(2**31, (1,), generator=generator))
        (weight, bias), *rest = ReplicaPerceptron(widths, "relu", [drawn], initialisation="he").replica(0)
        line = [((weight.double() @ (end - start)).unsqueeze(1), weight.double() @ start + bias), *rest]
        counts.append(num_pieces(line, 0.0, 1.0))
    return {"pieces": fmean(counts), "neurons": config["width"] * config["depth"]}


def _sawtooth(config: Mapping[str, Any], seeds: Sequence[int], lr: float) -> list[dict[str, Any]]:
    """Learn the labels 0, 1, 0, 1, ... of the sawtooth at the ends of its pieces."""
    x = torch.arange(2 ** config["folds"] + 1, dtype=torch.float64) / 2 ** config["folds"]
    inputs, targets = (SPAN * (2 * x - 1)).float().unsqueeze(1), torch.arange(len(x)) % 2
    network = _network([1, *config["widths"], 2], config, seeds)
    if config["network"] == NEAR:
        _place(network, config["folds"], config["noise"], seeds)
    before = [_wrong(network, index, inputs, targets) for index in range(len(seeds))]
    curves = _fit(network, inputs, targets, config, lr, seeds)
    own = [_answer(network.replica(index)) for index in range(len(seeds))]
    return [
        {
            "error": _wrong(network, index, inputs, targets),
            "error_before": before[index],
            "pieces": num_pieces(layers, -SPAN, SPAN),
            "crossings": num_crossings(layers, -SPAN, SPAN),
            "parameters": sum(weight.numel() + bias.numel() for weight, bias in layers),
            "curve": curves[index],
        }
        for index, layers in enumerate(own)
    ]


def _answer(layers: Layers) -> Layers:
    """Return the network whose sign is the answer: the second logit less the first."""
    *before, (weight, bias) = layers
    return [*before, (weight[1:] - weight[:1], bias[1:] - bias[:1])]


def _wrong(network: ReplicaPerceptron, index: int, inputs: Tensor, targets: Tensor) -> float:
    """Share of wrong answers, in float64, in which crossings are counted."""
    answers = evaluate(_answer(network.replica(index)), inputs).flatten() >= 0
    return (answers != (targets == 1)).double().mean().item()


@torch.no_grad()
def _place(network: ReplicaPerceptron, folds: int, noise: float, seeds: Sequence[int]) -> None:
    """Start from the construction, every weight and bias changed by a random share of itself."""
    (first, shift), *middle, (last, _) = sawtooth_layers(folds)
    # The sawtooth's x is (u / SPAN + 1) / 2 of the input u; the logits are -z and z, z = 2 f(x) - 1.
    signs = torch.tensor([[-1.0], [1.0]], dtype=torch.float64)
    built = [(first / (2 * SPAN), shift + 0.5 * first[:, 0]), *middle, (2 * signs @ last, -signs[:, 0])]
    for replica, seed in enumerate(seeds):
        generator = torch.Generator().manual_seed(seed)
        for layer, (weight, bias) in enumerate(built):
            for value, kept in (
                (weight, network.weights[layer][replica]),
                (bias, network.biases[layer][replica, :, 0]),
            ):
                kept.copy_(value * (1 + noise * torch.randn(value.shape, generator=generator, dtype=torch.float64)))


def _labels(config: Mapping[str, Any], seeds: Sequence[int], lr: float) -> list[dict[str, Any]]:
    """Fit labels that a coin gave, each seed's own, on Gaussian points."""
    found = []
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed + APART)
        inputs = torch.randn(config["points"], config["dim"], generator=generator).to(config["device"])
        targets = torch.randint(2, (config["points"],), generator=generator).to(config["device"])
        network = _network([config["dim"], *config["widths"], 2], config, [seed])
        (curve,) = _fit(network, inputs, targets, config, lr, [seed])
        wrong = error(network, inputs, targets, 1, len(inputs)).item()
        found.append({"error": wrong, "parameters": _num_parameters(network), "curve": curve})
    return found


def _radial(config: Mapping[str, Any], seeds: Sequence[int], lr: float) -> list[dict[str, Any]]:
    """Tell on which shells around the origin Gaussian points lie, and be asked about others."""
    first = 2 if tuple(seeds) == SELECTION_SEEDS else 0  # rates are chosen on points that are not reported
    inputs, targets = _shells(config, config["points"], first)
    network = _network([config["dim"], *config["widths"], 2], config, seeds)
    curves = _fit(network, inputs, targets, config, lr, seeds)
    learned = error(network, inputs, targets, len(seeds), 1000).tolist()
    asked = error(network, *_shells(config, config["points"] // 4, first + 1), len(seeds), 1000).tolist()
    parameters = _num_parameters(network)
    return [
        {"error": e, "train_error": t, "parameters": parameters, "curve": c}
        for e, t, c in zip(asked, learned, curves, strict=True)
    ]


def _shells(config: Mapping[str, Any], num: int, seed: int) -> tuple[Tensor, Tensor]:
    points = torch.randn(num, config["dim"], generator=torch.Generator().manual_seed(seed + APART))
    # The norm of a Gaussian point is about sqrt(dim), give or take 0.7: shells are counted from there.
    place = (points.norm(dim=1) - math.sqrt(config["dim"])) / config["shell"]
    return points.to(config["device"]), place.floor().remainder(2).long().to(config["device"])


def _network(widths: Sequence[int], config: Mapping[str, Any], seeds: Sequence[int]) -> ReplicaPerceptron:
    # Without biases of their own, units of He's initialisation with one input all have their kink at 0.
    alone = widths[0] == 1 and len(widths) == 3
    return ReplicaPerceptron(widths, "relu", seeds, initialisation="standard" if alone else "he").to(config["device"])


def _num_parameters(network: ReplicaPerceptron) -> int:
    return sum(parameter[0].numel() for parameter in network.parameters())


def _fit(
    network: ReplicaPerceptron, inputs: Tensor, targets: Tensor, config: Mapping[str, Any], lr: float,
    seeds: Sequence[int],
) -> list[dict[str, list[float]]]:  # fmt: skip
    optimizer = torch.optim.Adam(network.parameters(), lr=lr, foreach=True)
    recipe = Recipe(config["steps"], min(config["batch_size"], len(inputs)), lr, schedule=_late)
    where = config["device"]
    return train(network, inputs.to(where), targets.to(where), recipe, seeds, optimizer).thinned(30)


def _late(progress: float) -> float:
    """Keep the learning rate for half of the steps, then let it fall to zero."""
    return min(1.0, 2 * (1 - progress))


STUDY = Study(
    name="R12", slug="depth_separation", title="Depth separation, and what training finds of it",
    question="Which functions does depth make cheap, how few are they, and does training find them?",
    sources=(TELGARSKY, ELDAN, HANIN),
    settings={"seeds": 5, "folds": (6, 8, 10), "constructed": (1, 2, 3, 4, 6, 8, 10, 12), "depths": (1, 2, 4, 8, 16),
              "draws": 20, "width": 16, "steps": 1000, "batch_size": 128, "label_points": 1000, "label_width": 100,
              "dims": (5, 10), "radial_width": 512, "radial_steps": 1500, "radial_points": 20000, "select": False,
              "device": "cpu"},
    scales={"smoke": {"seeds": 2, "folds": (4,), "constructed": (1, 4), "depths": (1, 2), "draws": 2, "steps": 4,
                      "label_points": 128, "dims": (3,), "radial_width": 16, "radial_steps": 4, "radial_points": 400},
            "full": {"seeds": 10, "folds": (6, 7, 8, 9, 10), "width": 64, "steps": 50000, "dims": (5, 10, 20),
                     "radial_width": 4096, "radial_steps": 50000, "radial_points": 1000000, "select": True,
                     "device": "cuda"}},
    configurations=configurations, run=run, claims=claims, figures=figures, check={"measures": "sawtooth"},
    method="A network that folds the unit interval k times is built by hand, and its pieces and values are compared "
    "with the sawtooth's, bit by bit. Shallow and deep networks are then trained by Adam on the ends of the sawtooth's "
    "pieces, on random labels and on shells around the origin, and their errors are put beside what counting pieces "
    "and networks allows. The linear pieces of rectified networks of one input are counted exactly, before and after "
    "training.",
    costs={"smoke": Cost(1 / 3600, measured=True), "small": Cost(0.0158, measured=True), "full": Cost(12, "one H100")},
    notes=("Rates were chosen on seeds 100 and 101, for the sawtooth at k = 7 and for shells in 5 dimensions on other "
           "points. The learning rate is kept for half of the steps and then falls to zero. The grid's least rate, "
           ".0003, stands where no rate leaves chance, and near the construction, where .001 is as good (.089, .093).",
           "On the trial seeds, in 5 dimensions, two layers err in .191 of the points after 1,500 steps and in .103 "
           "after 6,000, three layers in .041 after 1,500: what more steps bring two is measured for this reason.",
           "Shallow networks of one input are drawn as torch draws them, all others from He's initialisation: with "
           "biases of 0 all units of one input would have their kink at the same place.",
           "\"Near the construction\" starts with every weight and bias of it changed by a random share of 1 %.",
           "Weights of shallow and deep networks are compared as those of one output; networks are trained with two "
           "logits, whose difference is that output.",
           "Changed after a review and before the run that is reported: data come from other random streams than "
           "weights, which they did not, so that rows of a first layer were training or test points; random labels are "
           "decided by counting networks, training only illustrates it; two layers are tried on shells with four times "
           "the steps as well, and where these help the claim is left open; networks of equal numbers of units are "
           "compared before training; rates come from a wider grid."),
    answer="Sawtooths for one (4,096 pieces with 73 weights); counting shows that such functions are few, and "
    "from random weights 1,000 steps find no sawtooth of 64 pieces or more: errors stay at 35 % or "
    "above.",
)  # fmt: skip
