"""Build the network and the optimizer that a configuration describes."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Mapping
from functools import partial
from typing import Any, Final, get_type_hints

import torch
from torch import Tensor, nn

from levada import connections, initialise, networks
from levada._errors import UsageError, require_at_least
from levada._names import nearest
from levada.connection import Connection
from levada.grouping import parameter_groups
from levada.networks import Network
from levada.training.config import Config, Model, Optimizer, Schedule
from levada.training.data import Source, load_data
from levada.training.files import fitting

__all__ = ["arranged", "bare_network", "build_network", "build_optimizer", "learning_rate", "network_of"]

_CALLABLES = ("activation", "norm")
_LISTED: Final = 40  # names that a sentence may have, more than there are connections
# What a network takes that is said elsewhere.
_ELSEWHERE: Final = {
    "connection": "model.connection",
    "depth": "model.depth",
    "dim": "model.dim",
    "inputs": "data.source",
    "outputs": "data.source",
    "vocabulary": "data.source",
    "dims": "data.source",
}


def build_network(model: Model, source: Source) -> Network:
    """Build a network for the data that it will be trained on.

    Args:
        model: the configuration.
        source: the data; its shapes are the network's.

    Raises:
        UsageError: if a name or an option is not known, or does not fit.

    Example:
        >>> from levada.training.data import Data, load_data
        >>> source = load_data(Data("mnist1d"))
        >>> len(build_network(Model(depth=3, connection="ReZero"), source).stack)
        3
    """
    network = bare_network(model, source)
    _require_runs(network, model, source)
    return _initialised(network, model, source)


def bare_network(model: Model, source: Source) -> Network:
    """Build a network as `build_network` does, with the weights that its layers draw, and without a call of it.

    Args:
        model: the configuration.
        source: the data; its shapes are the network's.

    Raises:
        UsageError: if a name or an option is not known, or does not fit.
    """
    known = {n: c for n, c in vars(connections).items() if isinstance(c, type) and issubclass(c, Connection)}
    connection = _named(model.connection, known, "model.connection")
    build = getattr(networks, model.network)
    _require_types(build, connection, model.options)
    options = {name: _callable(name, value) for name, value in model.options.items()}
    twice = sorted({*options} & {*model.connection_options})
    if twice:
        raise UsageError(f"train: {twice[0]} is in model.options and in model.connection_options: say it once.")
    options |= {"connection": connection, **model.connection_options}
    if model.network == "mlp":
        shape = {"dim": model.dim, "inputs": math.prod(source.shape), "outputs": source.outputs}
    elif model.network == "cifar_resnet":
        channels, dims = _channels(source.shape)
        shape = {"inputs": channels, "outputs": source.outputs, "dims": dims}
    else:
        shape = {"dim": model.dim, "vocabulary": source.outputs}
    network = _called(partial(build, model.depth, **shape), "model.options", model.connection_options, **options)
    assert isinstance(network, Network)
    return network


def network_of(config: Config) -> Network:
    """Build the network of a training as its configuration says; the data are opened, for their shapes.

    Args:
        config: the configuration.

    Raises:
        UsageError: as `build_network` and `load_data`.
    """
    return build_network(config.model, load_data(config.data))


def _require_types(build: Any, connection: Any, options: Mapping[str, Any]) -> None:
    """Raise unless a network's options have the types that its function says, and leave the rest of it to others."""
    kinds = get_type_hints(build) | {"checkpoint": int | bool, "compile": bool | Mapping[str, Any]}
    for name, value in options.items():
        if name in _ELSEWHERE:
            raise UsageError(f"train: model.options.{name} must be left out: {_ELSEWHERE[name]} says it.")
        near = nearest(name, {*kinds} - {*_ELSEWHERE, "options", "return"})
        if near and name not in kinds and name not in inspect.signature(connection).parameters:
            raise UsageError(f"train: model.options.{name} is not a key; did you mean model.options.{near}?")
        kind = tuple[int, ...] if name == "channels" else kinds.get(name)
        if name not in _CALLABLES and name in kinds:
            fitting(value, kind, f"model.options.{name}")
    for channels in options.get("channels", ()):
        require_at_least("train", "model.options.channels", channels, 1)


def _require_runs(network: Network, model: Model, source: Source) -> None:
    """Raise if an activation or a norm of `torch.nn` is not made for what it is given, which only a call shows."""
    named = [name for name in _CALLABLES if model.options.get(name, "none") != "none"]
    if not named:
        return
    inputs, _ = source.train.take(torch.arange(min(2, source.train.num)))
    try:
        with torch.no_grad():
            network.eval()(arranged(inputs, model, source))
    except UsageError:
        raise
    except (TypeError, ValueError, RuntimeError) as error:  # NotImplementedError is one too
        keys = " or ".join(f"model.options.{name} {model.options[name]!r}" for name in named)
        told = " ".join(str(error).split()).rstrip(".")
        raise UsageError(f"train: {keys} cannot be used in {model.network!r}: {told}.") from error
    finally:
        network.train()


def _initialised(network: Network, model: Model, source: Source) -> Network:
    if not model.initialisation:
        if model.initialisation_options:
            raise UsageError("train: model.initialisation must name what model.initialisation_options are for.")
        return network
    apply = _named(model.initialisation, initialise.INITIALISATIONS, "model.initialisation")
    given: tuple[Any, ...] = ()
    if "batch" in inspect.signature(apply).parameters:
        inputs, _ = source.train.take(torch.arange(min(256, source.train.num)))
        given = (arranged(inputs, model, source),)
    made = _called(partial(apply, network, *given), "model.initialisation_options", {}, **model.initialisation_options)
    assert isinstance(made, Network)
    return made


def _called(build: Any, path: str, inner: Mapping[str, Any], **options: Any) -> Any:
    """Call a function with options that a user named; one that it does not take is a wrong key.

    Options of the connection are among them: an error that names one of those is told as theirs.
    """
    try:
        return build(**options)
    except (TypeError, ValueError) as error:
        told = " ".join(str(error).split()).rstrip(".")
        outer = {*options} - {
            *inner
        }  # an option that is refused is quoted; those that are allowed are listed behind it
        theirs = {*inner} & {*re.findall(r"\w+", told)} or told.startswith(f"{_name(options.get('connection'))} ")
        if theirs and not outer & {*re.findall(r"'(\w+)'", told)}:
            path = "model.connection_options"
        elif " depth must " in told:
            path = "model.depth"
        raise UsageError(f"train: {path} cannot be used: {told}{'' if told.endswith('?') else '.'}") from error


def _name(kind: Any) -> str:
    return getattr(kind, "__name__", "")


def _named(name: str, known: Mapping[str, Any], path: str) -> Any:
    if name in known:
        return known[name]
    near = nearest(name, known)
    hint = f"did you mean {near!r}?" if near else f"there are: {', '.join(sorted(known))}."
    if not near and len(known) > _LISTED:
        hint = "it must be the name of a class in torch.nn, such as ReLU or LayerNorm."
    raise UsageError(f"train: {path} {name!r} is not known; {hint}")


def _callable(name: str, value: Any) -> Any:
    """Turn the name of an activation or a norm into its class in `torch.nn`."""
    if name not in _CALLABLES:
        return value
    if value == "none":
        return nn.Identity if name == "activation" else None
    layers = {n: c for n, c in vars(nn).items() if isinstance(c, type) and issubclass(c, nn.Module)}
    if not isinstance(value, str):
        raise UsageError(f"train: model.options.{name} must be a name in torch.nn, got {value!r}.")
    return _named(value, layers, f"model.options.{name}")


def _channels(shape: tuple[int, ...]) -> tuple[int, int]:
    """Number of channels and of dimensions of an input: `(length,)`, `(height, width)` or with channels before."""
    return (shape[0], 2) if len(shape) == 3 else (1, len(shape))


def arranged(inputs: Tensor, model: Model, source: Source) -> Tensor:
    """Bring inputs into the shape that a network reads.

    Args:
        inputs: `(batch, *source.shape)`, or tokens.
        model: the network's configuration.
        source: where they come from.
    """
    if model.network == "mlp":
        return inputs.flatten(1)
    if model.network == "cifar_resnet" and len(source.shape) < 3:
        return inputs.unsqueeze(1)
    return inputs


def build_optimizer(model: nn.Module, optimizer: Optimizer) -> torch.optim.Optimizer:
    """Build an optimizer, with the parameters in groups by what decays.

    Args:
        model: what this process holds of the network, sharded or not.
        optimizer: the configuration.

    Example:
        >>> type(build_optimizer(nn.Linear(2, 2), Optimizer("sgd"))).__name__
        'SGD'
    """
    groups = parameter_groups(model, weight_decay=optimizer.weight_decay)
    if optimizer.name == "sgd":
        return torch.optim.SGD(groups, lr=optimizer.lr, momentum=optimizer.momentum)
    return torch.optim.AdamW(groups, lr=optimizer.lr, betas=optimizer.betas)


def learning_rate(step: int, optimizer: Optimizer, schedule: Schedule, steps: int) -> float:
    """Return the learning rate of a step.

    Args:
        step: from 0.
        optimizer: holds the largest one.
        schedule: how it changes.
        steps: of the whole training.

    Example:
        >>> [learning_rate(step, Optimizer(lr=1.0), Schedule("cosine", warmup=2), 6) for step in range(6)]
        [0.5, 1.0, 1.0, 0.853..., 0.5, 0.146...]
    """
    if step < schedule.warmup:
        return optimizer.lr * (step + 1) / schedule.warmup
    if schedule.name == "cosine":
        done = (step - schedule.warmup) / max(steps - schedule.warmup, 1)
        factor = schedule.final + (1 - schedule.final) * (1 + math.cos(math.pi * done)) / 2
    elif schedule.name == "stable_decay":
        left = min((steps - step) / schedule.decay, 1.0)
        factor = schedule.final + (1 - schedule.final) * left
    else:
        factor = 1.0
    return optimizer.lr * factor
