"""Remedies that draw weights again."""

from __future__ import annotations

import copy
import math
import textwrap
from dataclasses import replace

import torch
from torch import nn

from levada import initialise
from levada._errors import UsageError
from levada.diagnose.remedies.remedy import Patch, Subject
from levada.diagnose.remedies.training import tenth
from levada.theory import critical_point

__all__ = ["critical", "default", "forget_bias", "glorot", "he", "he_slower", "he_there", "lsuv", "orthogonal"]

MAPS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
RECTIFIERS = {"relu": "", "leaky_relu": ", negative_slope=0.01"}


def he(subject: Subject) -> Patch | None:
    """Draw all weights for rectifiers, so that signal and gradient keep their size: variance 2 / fan_in."""
    used = subject.activations
    option = next((text for name, text in RECTIFIERS.items() if used == {name}), "" if "relu" in used else None)
    return None if option is None else _drawn(subject, f"initialise.he(model{option}, generator=generator)")


def he_slower(subject: Subject) -> Patch | None:
    """Draw all weights for rectifiers and divide the learning rate by ten: what had died arrives whole."""
    drawn = he(subject)
    return None if drawn is None else replace(drawn, optimizer=tenth(subject).optimizer)


def he_there(subject: Subject) -> Patch | None:
    """Draw the weights of the dead block alone, and set its biases to zero."""
    places = [p for p in subject.places("dead_units") if _is_module(subject.model, p)]
    if not places:
        return None
    return _drawn(subject, *(f"initialise.he(model.get_submodule({place!r}), generator=generator)" for place in places))


def critical(subject: Subject) -> Patch | None:
    """Draw weights and biases at the edge of chaos of the model's activation, where the gradient keeps its size."""
    used = subject.activations
    if len(used) != 1 or used <= RECTIFIERS.keys():
        return None
    (name,) = used
    try:
        critical_point(name, 1.0)
    except UsageError:
        return None  # a sigmoid has no such point
    return _drawn(subject, f"initialise.critical(model, activation={name!r}, generator=generator)")


def glorot(subject: Subject) -> Patch | None:
    """Draw all weights with variance 2 / (fan_in + fan_out), which leaves bounded activations unsaturated."""
    if not subject.activations & {"tanh", "sigmoid", "softsign", "erf"}:
        return None
    return _drawn(subject, "initialise.glorot(model, generator=generator)")


def orthogonal(subject: Subject) -> Patch | None:
    """Draw orthogonal weights, which keep the norm of every signal: for tanh near zero, and without activations."""
    if not subject.activations <= {"tanh"}:
        return None
    return _drawn(subject, "initialise.orthogonal(model, generator=generator)")


def lsuv(subject: Subject) -> Patch | None:
    """Scale orthogonal weights until every layer's output has variance 1 on a batch."""
    if subject.inputs is None or isinstance(subject.inputs, dict):
        return None
    start = _drawn(subject, "initialise.orthogonal(model, generator=generator)")
    if start is None:
        return None
    names = [name for name, module in subject.model.named_modules() if isinstance(module, MAPS)]
    scaled = copy.deepcopy(subject.model)
    generator = torch.Generator(next(scaled.parameters()).device).manual_seed(subject.seed % 2**63)
    # The gains that the batch asks for are written down, so that the change needs no batch.
    initialise.lsuv(scaled, subject.inputs, generator=generator)
    plain = start.change(copy.deepcopy(subject.model))
    gains = {name: _gain(scaled, plain, name) for name in names}
    told = "\n".join(textwrap.wrap(repr(gains), 100, subsequent_indent=" " * 9, break_long_words=False))
    lines = [f"gains = {told}", "with torch.no_grad():", "    for name, gain in gains.items():"]
    return Patch("\n".join([start.build, *lines, "        model.get_submodule(name).weight *= gain"]))


def _gain(scaled: nn.Module, plain: nn.Module, name: str) -> float:
    sizes = [torch.linalg.vector_norm(m.get_parameter(f"{name}.weight".removeprefix("."))) for m in (scaled, plain)]
    return float(f"{sizes[0].item() / sizes[1].item():.4g}")


def default(subject: Subject) -> Patch | None:
    """Draw all weights as PyTorch does, in a model whose skips or normalisations keep the signal's size."""
    if subject.facts.chain and not subject.facts.normalised:
        return None
    return _drawn(subject, "initialise.pytorch_default(model, generator=generator)")


def forget_bias(subject: Subject) -> Patch | None:
    """Open the forget gates of LSTMs at the start: a bias of 1."""
    if not any(isinstance(m, nn.LSTM) and m.bias for m in subject.model.modules()):
        return None
    return Patch(
        "import torch\nfrom torch import nn\n"
        "with torch.no_grad():\n"
        "    for lstm in (m for m in model.modules() if isinstance(m, nn.LSTM) and m.bias):\n"
        "        for name, bias in lstm.named_parameters():\n"
        "            if name.startswith('bias'):  # input, forget, cell and output gate; two biases are added\n"
        "                bias[lstm.hidden_size : 2 * lstm.hidden_size] = 1.0 if name.startswith('bias_ih') else 0.0"
    )


def _drawn(subject: Subject, *lines: str) -> Patch | None:
    if not any(isinstance(m, MAPS) for m in subject.model.modules()):
        return None
    head = f"import torch\nfrom levada import initialise\ngenerator = {subject.generator}"
    return Patch("\n".join([head, *lines]))


def _is_module(model: nn.Module, name: str) -> bool:
    return bool(name) and name in dict(model.named_modules()) and math.prod((1, *_sizes(model.get_submodule(name)))) > 0


def _sizes(module: nn.Module) -> tuple[int, ...]:
    return tuple(p.numel() for p in module.parameters()) or (0,)
