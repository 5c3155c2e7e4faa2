"""R16: losses inside a network: what they do for the gradient, for the output, and for the order of tasks."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from levada.blocks import Convolution
from levada.connections import Plain, ReZero
from levada.initialise import gaussian
from levada.networks import Network, mlp
from levada.stack import Stack
from levada.studies.intermediate_losses_claims import AL_RFOU, ARMS, DSN, SOGAARD, claims
from levada.studies.intermediate_losses_figures import figures
from levada.study import Cell, Cost, Settings, Study
from levada.study.data import mnist, mnist1d, standard_digits
from levada.study.tagging import TaggingRecipe, correct_by_sentence, supervised_tagger, train_tagger
from levada.study.training import batches
from levada.study.treebank import Vocabulary, turkish_treebanks
from levada.supervision import Supervision, gradient_reach

__all__ = ["STUDY"]

EVERY = {"sigmoid": 4, "convolutional": 2}  # layers between heads
SMALL = 0.01  # standard deviation of the convolutions' weights


def configurations(settings: Settings, seeds: Sequence[int]) -> list[Cell]:
    """Give a cell for each arm: the tagger's, then the convolutional networks', then the sigmoid ones'."""
    tagging = {key: settings[key] for key in ("sentences", "epochs", "dim")}
    configs: list[dict[str, Any]] = [
        {"measures": "tagging", "site": site, "lr": settings["tagging_lr"], "batch_size": 32, **tagging}
        for site in (0, 2, None)
    ]
    for network in ("convolutional", "sigmoid"):
        own = {key: settings[f"{network}_{key}"] for key in ("depth", "steps", "lr")}
        more = {"batch_size": 128, "examples": settings["examples"], **own}
        configs += [{"measures": "depth", "network": network, "arm": arm, **more} for arm in ARMS]
    return [Cell(config, [seed]) for config in configs for seed in seeds]


def run(config: Mapping[str, Any], seeds: Sequence[int]) -> list[dict[str, Any]]:
    """Train and measure, one seed after the other."""
    measure = _tagging if config["measures"] == "tagging" else _depth
    return [measure(config, seed) for seed in seeds]


def _tagging(config: Mapping[str, Any], seed: int, part: str = "test") -> dict[str, Any]:
    treebank = turkish_treebanks()
    sentences, test = treebank.train[: config["sentences"]], getattr(treebank, part)
    vocabulary = Vocabulary(sentences)
    supervised = supervised_tagger(vocabulary, config["dim"], config["site"], seed)
    recipe = TaggingRecipe(config["epochs"], config["batch_size"], config["lr"])
    losses = train_tagger(supervised, vocabulary, sentences, recipe, seed)
    return {
        "loss": losses,
        "correct": correct_by_sentence(supervised.model, vocabulary, test),
        "tokens": [len(sentence) for sentence in test],
    }


def _depth(config: Mapping[str, Any], seed: int) -> dict[str, Any]:
    train_inputs, train_targets, test_inputs, test_targets = _data(config["network"], config["examples"])
    supervised, sites = _network(config, seed)
    index = next(batches(len(train_inputs), config["batch_size"], [seed]))[:, 0]
    reach = [
        (found.without, found.supervised)
        for found in gradient_reach(supervised, train_inputs[index], targets=train_targets[index])
        if isinstance(supervised.model.get_submodule(found.site), nn.Linear | nn.Conv1d)  # not ReZero's factors
    ]
    curve = _train(supervised, train_inputs, train_targets, config, seed)
    own = sites if config["arm"] == "supervised" else []
    return {
        "gradient": [without for without, _ in reach],
        "supervised_gradient": [together for _, together in reach],
        "heads": [place + (1 if config["network"] == "sigmoid" else 2) for place in own],  # the stem is a layer there
        "head_accuracy": _head_accuracies(supervised, own, test_inputs, test_targets),
        "accuracy": _accuracy(supervised.eval()(test_inputs), test_targets),
        "curve": curve,
    }


def _data(network: str, examples: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    if network == "convolutional":
        data = mnist1d()
        inputs, test = data.train_inputs.unsqueeze(1), data.test_inputs.unsqueeze(1)
    else:
        data = mnist()
        inputs, test = (
            standard_digits(images[:count].flatten(1))
            for images, count in ((data.train_inputs, examples), (data.test_inputs, 2000))
        )
    return inputs[:examples], data.train_targets[:examples], test, data.test_targets[: len(test)]


def _network(config: Mapping[str, Any], seed: int) -> tuple[Supervision, list[int]]:
    """Return a network, its heads, and after which layers they lie; all arms draw the same weights."""
    connection, depth = (ReZero if config["arm"] == "ReZero" else Plain), config["depth"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if config["network"] == "sigmoid":
            model = mlp(depth, 64, inputs=784, outputs=10, activation=nn.Sigmoid, connection=connection)
            gaussian(model)
            head: Any = functools.partial(nn.Linear, 64, 10)
        else:
            head = _signal_head
            stem = Convolution(1, dim_out=16, dims=1, kernel_size=5, stride=2)
            stack = Stack(functools.partial(Convolution, dims=1), connection, dim=16, depth=depth - 1)
            model = Network(stem, stack, head())
            for module in model.modules():
                if isinstance(module, nn.Conv1d):
                    nn.init.normal_(module.weight, std=SMALL)
                    nn.init.zeros_(module.bias)  # type: ignore[arg-type]
        sites = list(range(EVERY[config["network"]] - 1, len(model.stack) - 1, EVERY[config["network"]]))
        heads = {f"stack.layers.{place}": head() for place in sites}
    weight = 1.0 if config["arm"] == "supervised" else 0.0
    return Supervision(model, heads, cross_entropy, weight=weight), sites


def _signal_head() -> nn.Sequential:
    return nn.Sequential(nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(16, 10))


def _train(
    supervised: Supervision, inputs: Tensor, targets: Tensor, config: Mapping[str, Any], seed: int
) -> dict[str, list[float]]:
    """Train by Adam; return the output's loss, each point the mean of a twentieth of the steps."""
    optimizer = torch.optim.Adam(supervised.parameters(), lr=config["lr"])
    losses = []
    order = batches(len(inputs), config["batch_size"], [seed])
    for _, index in zip(range(config["steps"]), order, strict=False):
        found = supervised(inputs[index[:, 0]], targets=targets[index[:, 0]])
        optimizer.zero_grad()
        found.loss.backward()
        optimizer.step()
        losses.append(found.losses["output"])
    parts = torch.split(torch.stack(losses), math.ceil(len(losses) / 20))
    ends = torch.tensor([len(part) for part in parts]).cumsum(0).tolist()
    return {"steps": ends, "loss": [part.mean().item() for part in parts]}


@torch.no_grad()
def _head_accuracies(supervised: Supervision, sites: Sequence[int], inputs: Tensor, targets: Tensor) -> list[float]:
    model: Any = supervised.model
    state, found = model.stack[0].connection.begin(model.stem(inputs)), []
    for place, layer in enumerate(model.stack):
        state = layer(state)
        if place in sites:
            head = supervised.heads[f"/stack/layers/{place}"]
            found.append(_accuracy(head(layer.connection.end(state)), targets))
    return found


def _accuracy(scores: Tensor, targets: Tensor) -> float:
    return float((scores.argmax(-1) == targets).double().mean())


STUDY = Study(
    name="R16", slug="intermediate_losses", title="Losses inside a network",
    question="Do losses at inner layers make deep networks trainable, and does a low task belong at a low layer?",
    method="Networks of 20 sigmoid and of 12 convolutional layers are trained as they are, with losses at inner "
           "layers, and with ReZero, all from the same weights. The gradient at every layer is measured before "
           "training, the accuracy of the output and of every head after it. A tagger of three recurrent layers "
           "learns dependency relations of Turkish sentences with parts of speech at its first layer, at its third, "
           "or not at all.",
    sources=(DSN, SOGAARD, AL_RFOU, "Bachlechner et al. 2021, arXiv 2003.04887 (ReZero)"),
    settings={"seeds": 5, "examples": 5000, "sigmoid_depth": 20, "sigmoid_steps": 1500, "sigmoid_lr": 0.003,
              "convolutional_depth": 12, "convolutional_steps": 1000, "convolutional_lr": 0.01,
              "sentences": 800, "epochs": 15, "dim": 64, "tagging_lr": 0.01},
    scales={"smoke": {"seeds": 2, "examples": 256, "sigmoid_steps": 4, "convolutional_steps": 4, "sentences": 40,
                      "epochs": 1, "dim": 8},
            "full": {"seeds": 10, "examples": 60000, "sigmoid_steps": 10000, "convolutional_depth": 20,
                     "convolutional_steps": 10000, "sentences": 3881, "epochs": 20, "dim": 128}},
    costs={"smoke": Cost(3 / 3600, measured=True), "small": Cost(0.0842, measured=True), "full": Cost(3)},
    check={"measures": "depth", "arm": "supervised"},
    configurations=configurations, run=run, claims=lambda settings: claims(), figures=figures,
    notes=("Sigmoid: 20 layers of width 64 on 5,000 digits of MNIST, weights N(0, 1/n), heads after layers 4, 8, 12 "
           "and 16. Convolutional: 12 rectified layers of 16 channels on MNIST-1D, weights N(0, 0.01^2), heads after "
           "layers 3, 5, 7, 9 and 11. All losses count equally. Adam.",
           "Tagger: three bidirectional LSTM layers on 800 Turkish sentences, dependency relations at the output, a "
           "head for parts of speech at the first or the third layer, or none; tested on 485 sentences. The interval "
           "is a paired bootstrap over sentences of the difference's mean over seeds.",
           "Steps and learning rates were chosen on seed 100 by the arm with intermediate losses, of taggers by the "
           "one without; plain networks stayed at chance at .001, .003 and .01 (sigmoid), and at .01 and .03."),
    answer="In 1,500 steps losses at inner layers take 20 sigmoid layers from chance to 43 to 71 % accuracy, "
    "ReZero to 90 %; parts of speech serve syntax better at the first layer than at the third, by 1.8 "
    "points.",
)  # fmt: skip
