"""R14: a convolution over a sequence learns what lies within its receptive field, and nothing beyond it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from levada.connections import Plain
from levada.networks import TemporalConvolutionalNetwork
from levada.probe import receptive_field
from levada.studies.receptive_field_claims import BAI, LUO, claims
from levada.studies.receptive_field_figures import figures
from levada.study import Cell, Cost, Settings, Study
from levada.study.data import mnist, standard_digits
from levada.study.pressure import pig_cvp
from levada.study.sequence_networks import LastStep, Recurrent, convolutions, one_for_each, thinned
from levada.study.sequences import SYMBOLS, Draw, Replicas, accuracy, copy_memory, lagged_recall, train_sequences
from levada.study.training import batches
from levada.theory import depth_for_lag
from levada.theory import receptive_field as field_of

__all__ = ["STUDY"]

# Both see 16 steps.
FIELDS = {"dilated": ([1, 2, 4, 8], 2), "undilated": ([1, 1, 1], 6)}
# Networks of 6,600 to 6,650 parameters, the last one of 6,436. Rates, of .001 .003 .01 for recurrent networks, by the
# loss after 500 steps on seeds 100 and 101: LSTM .291 .263 .261; GRU .272 .262 .249; RNN .267 .262 .263. The TCN's was
# the first tried: it copies after 500 steps.
COPIERS: dict[str, dict[str, Any]] = {
    "GRU": {"dim": 40, "lr": 0.01},
    "TCN": {"dim": 14, "lr": 0.003, "dilations": [1, 2, 4, 8]},
    "RNN": {"dim": 71, "lr": 0.003},
    "LSTM": {"dim": 34, "lr": 0.01},
    "TCN, field too short": {"dim": 27, "lr": 0.003, "dilations": [1]},
}
RECURRENT: dict[str, Callable[..., nn.Module]] = {"LSTM": nn.LSTM, "GRU": nn.GRU, "RNN": nn.RNN}
# The same weights, 8 layers of kernel 7: only the dilations differ.
DIGITS = {"whole field": [2**layer for layer in range(8)], "short field": [1] * 8}
# The same for 2,000 steps, of 9 layers.
PRESSURES = {"whole field": [2**layer for layer in range(9)], "short field": [1] * 9}
APART = 10**6  # what the seeds of batches for testing are larger than those for training


def configurations(settings: Settings, seeds: Sequence[int]) -> list[Cell]:
    """Give one cell for each network and lag to learn, copier, and depth whose effective field is measured."""
    configs: list[dict[str, Any]] = []
    for measure, steps, fields in (
        ("pressure", settings["pressure_steps"], PRESSURES),
        ("digits", settings["digit_steps"], DIGITS),
    ):
        if steps:
            shared = {"steps": steps, "lr": 0.002, "dim": 24, "batch_size": 32}
            configs += [{"measures": measure, "network": n, "dilations": d, **shared} for n, d in fields.items()]
    copy = {"delay": settings["copy_delay"], "steps": settings["copy_steps"], "batch_size": settings["batch_size"]}
    configs += [{"measures": "copy", "network": name, **options, **copy} for name, options in COPIERS.items()]
    for growth, kind in ((1, "undilated"), (2, "dilated")):
        for lag, arm in [(lag, "depth") for lag in settings["depth_lags"]] + [(settings["reach_lag"], "reach")]:
            needed = depth_for_lag(lag, 3, growth=growth)
            for depth in (needed, needed - 1)[: 2 if arm == "depth" else 1]:
                dilations = [growth**layer for layer in range(depth)]
                configs.append({"arm": arm, "kind": kind, "dilations": dilations, "kernel_size": 3, "lag": lag})
    for kind, (dilations, kernel) in FIELDS.items():
        network = {"arm": "field", "kind": kind, "dilations": dilations, "kernel_size": kernel}
        configs += [{**network, "lag": lag} for lag in sorted(settings["lags"], reverse=True)]
    learnt = {key: settings[key] for key in ("dim", "steps", "batch_size", "length", "lr")}
    for config in configs:
        if "arm" in config:
            field = field_of([config["kernel_size"]] * len(config["dilations"]), config["dilations"])
            config |= {"measures": "recall", "beyond": config["lag"] >= field, **learnt}
    for depth in sorted(settings["depths"], reverse=True):
        configs += [{"measures": "field", "activation": a, "depth": depth, "dim": 64} for a in ("linear", "ReLU")]
    return [Cell({**config, "version": 1}, seeds) for config in configs]


def run(config: Mapping[str, Any], seeds: Sequence[int]) -> list[dict[str, Any]]:
    """Train and test all seeds side by side, or measure the effective field of untrained networks."""
    if config["measures"] == "field":
        return [_measure_field(config, seed) for seed in seeds]
    return {"recall": _recall, "copy": _copy}.get(config["measures"], _classify)(config, seeds)


def _recall(config: Mapping[str, Any], seeds: Sequence[int]) -> list[dict[str, Any]]:
    def draw(generator: torch.Generator, batch: int = config["batch_size"]) -> tuple[Tensor, Tensor]:
        return lagged_recall(batch, config["length"], config["lag"], generator)

    def build() -> nn.Module:
        return convolutions(config["dilations"], config["dim"], SYMBOLS, SYMBOLS, config["kernel_size"])

    model = Replicas(one_for_each(seeds, build))
    losses = train_sequences(model, draw, steps=config["steps"], lr=config["lr"], seeds=seeds)
    return _tested(model, functools.partial(draw, batch=128), seeds, losses)


def _copy(config: Mapping[str, Any], seeds: Sequence[int]) -> list[dict[str, Any]]:
    def draw(generator: torch.Generator, batch: int = config["batch_size"]) -> tuple[Tensor, Tensor]:
        return copy_memory(batch, config["delay"], generator)

    features, kind = SYMBOLS + 2, RECURRENT.get(config["network"])

    def build() -> nn.Module:
        if kind is not None:
            return Recurrent(kind, features, config["dim"], features)
        lag = config["delay"] + 10 if config["network"] == "TCN" else None  # a longer delay is refused, not failed
        return convolutions(config["dilations"], config["dim"], features, features, 8, lag=lag)

    networks = one_for_each(seeds, build)
    size = sum(parameter.numel() for parameter in networks[0].parameters())
    field = networks[0].receptive_field() if isinstance(networks[0], TemporalConvolutionalNetwork) else None
    model = Replicas(networks, together=kind is None)
    losses = train_sequences(model, draw, steps=config["steps"], lr=config["lr"], seeds=seeds)
    tested = _tested(model, functools.partial(draw, batch=256), seeds, losses, last=10)
    return [{**values, "parameters": size, "field": field} for values in tested]


def _classify(config: Mapping[str, Any], seeds: Sequence[int]) -> list[dict[str, Any]]:
    """Read digits pixel by pixel, or pressures step by step; the answer is asked after the last step."""
    if config["measures"] == "digits":
        data, read = mnist(), _digits
    else:
        data = pig_cvp()
        read = functools.partial(_standardised, data.train_inputs.mean(), data.train_inputs.std())
    classes = int(data.train_targets.max()) + 1
    test = data.test_inputs, data.test_targets
    order = {seed: batches(len(data.train_inputs), config["batch_size"], [seed]) for seed in seeds}
    found = []
    for seed in seeds:  # one by one: hundreds of steps fill the processor

        def draw(_: torch.Generator, seed: int = seed) -> tuple[Tensor, Tensor]:
            index = next(order[seed])[:, 0]
            return read(data.train_inputs[index]), data.train_targets[index, None]

        build = functools.partial(convolutions, config["dilations"], config["dim"], 1, classes, 7)
        model = Replicas([LastStep(network) for network in one_for_each([seed], build)])
        losses = train_sequences(model, draw, steps=config["steps"], lr=config["lr"], seeds=[seed])
        right = asked = 0
        for inputs, targets in zip(*(torch.split(part, 250) for part in test), strict=True):
            part = accuracy(model, lambda _, i=inputs, t=targets: (read(i), t[:, None]), [0])  # type: ignore[misc]
            right, asked = right + part[0][0], asked + part[1][0]
        found += [{"right": right, "asked": asked, "curve": thinned(losses[:, 0])}]
    return found


def _digits(images: Tensor) -> Tensor:
    return standard_digits(images.flatten(1))[..., None]


def _standardised(mean: Tensor, deviation: Tensor, signals: Tensor) -> Tensor:
    return ((signals - mean) / deviation)[..., None]


def _tested(
    model: Replicas, draw: Draw, seeds: Sequence[int], losses: Tensor, last: int | None = None
) -> list[dict[str, Any]]:
    right, asked = accuracy(model, draw, [seed + APART for seed in seeds], last)
    return [{"right": r, "asked": a, "curve": thinned(loss)} for r, a, loss in zip(right, asked, losses.T, strict=True)]


def _measure_field(config: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """The field of the last step, of a plain network of kernel 3 before training."""
    depth, activation = config["depth"], {"linear": nn.Identity, "ReLU": nn.ReLU}[config["activation"]]
    build = functools.partial(convolutions, [1] * depth, config["dim"], SYMBOLS, SYMBOLS, 3)
    (network,) = one_for_each([seed], functools.partial(build, activation=activation, connection=Plain))
    inputs, _ = lagged_recall(2, 2 * depth + 9, 0, torch.Generator().manual_seed(seed))
    found = receptive_field(network, inputs, axes=1, position=-1, seed=seed)
    return {
        "extent": found.extent[0],
        "deviation": [found.deviation[0].value, found.deviation[0].low, found.deviation[0].high],
        "span": [found.span[0].value, found.span[0].low, found.span[0].high],
        "energy": found.energy.flip(0)[: found.extent[0]].tolist(),
    }


STUDY = Study(
    name="R14", slug="receptive_field", title="The receptive field's cliff",
    question="What can a convolution over a sequence learn of its past, and how deep must it be for that?",
    answer="In 500 steps convolutions learn every lag tried within a field of 16 steps and nothing beyond; yet 7 "
           "undilated layers that just reach lag 14 stay at chance, where 3 dilated ones learn it.",
    method="Causal convolutions, dilated and not, are trained to repeat the symbol of so many steps before, at lags "
           "within their receptive field and beyond it. Networks of equal size, convolutional and recurrent, are "
           "trained to copy over 60 steps. The effective field of untrained networks of 4 to 64 layers is measured "
           "by gradients.",
    sources=(BAI, LUO, "van den Oord et al. 2016, arXiv 1609.03499"),
    settings={"seeds": 5, "lags": (1, 4, 8, 12, 14, 15, 16, 17, 20, 31), "depth_lags": (4, 8),
              "reach_lag": 14, "dim": 32, "steps": 500, "batch_size": 16, "length": 40, "lr": 0.003,
              "copy_delay": 60, "copy_steps": 1500, "depths": (4, 8, 16, 32, 64), "digit_steps": 0,
              "pressure_steps": 0},
    scales={"smoke": {"seeds": 2, "lags": (1, 15, 16), "depth_lags": (4,), "steps": 5, "copy_steps": 2,
                      "depths": (4, 8)},
            "full": {"seeds": 10, "steps": 2000, "copy_steps": 6000, "digit_steps": 2000, "pressure_steps": 2000}},
    costs={"smoke": Cost(0.8 / 3600, measured=True), "small": Cost(0.0682, measured=True), "full": Cost(12)},
    check={"measures": "recall"},
    configurations=configurations, run=run, claims=claims, figures=figures,
    notes=("Recall: eight random symbols; at every step the one of so many steps before is asked for, so that at the "
           "first step that asks it is the first symbol. One causal convolution a layer behind a residual connection, "
           "He's initialisation, Adam.",
           "Steps, widths and learning rates were chosen on seeds 100 to 104, which are not reported.",
           "They showed the one claim failing that a network learns each lag that it sees; all others they let expect.",
           "An answer from too short a field is right with probability 1/8 independently of all later ones: the number "
           "of right answers is binomial, and those of all seeds are counted together.",
           "Digits and pressures are read at the scale full alone. Rate, width and steps for pressures are those for "
           "digits, and were not tried."),
)  # fmt: skip
