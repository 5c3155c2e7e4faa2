"""Remedies that change what a model computes: activations, normalisation, its output, its number type."""

from __future__ import annotations

import math

import torch
from torch import nn

from levada.diagnose.remedies.remedy import Call, Patch, Subject

__all__ = [
    "batch_first",
    "bfloat16",
    "float32",
    "last_activation",
    "less_dropout",
    "normalise",
    "output_scale",
    "relu",
    "rescale_features",
    "softmax",
    "standardise",
    "takes_sigmoid",
    "train",
    "unfreeze",
]

BOUNDED = (nn.Sigmoid, nn.Tanh, nn.Hardsigmoid, nn.Hardtanh, nn.Softsign, nn.ReLU6)
RECTIFIERS = (nn.ReLU, nn.Softplus)
MAPS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
# Initialisations are made for inputs of mean 0 and variance 1; a factor of three either way does no harm.
LEAST_SIZE, LARGEST_SIZE = 1 / 3, 3.0
# A sum of probabilities in float32 is this close to 1, and in bfloat16 not: these are looked at in float32 and up.
SUMS_TO_ONE = 1e-4
# What takes its own softmax does not see a number that is added to all outputs of a row.
UNSEEN = 1e-3
# Logits that differ by less between inputs give all of them one answer.
FAINT = 0.03
# Features of one kind differ in size; one of this many times the usual size is in other units.
APART = 30.0


def relu(subject: Subject) -> Patch | None:
    """Put ReLU in the place of bounded activations, and draw the weights for it."""
    inner = {id(c.module) for c in subject.calls if isinstance(c.module, BOUNDED) and not c.ends}
    kinds = sorted({type(c.module).__name__ for c in subject.calls if id(c.module) in inner})
    if not inner or any(isinstance(c.module, BOUNDED) and c.ends and id(c.module) in inner for c in subject.calls):
        return None
    everywhere = [n for n, m in subject.model.named_modules(remove_duplicate=False) if isinstance(m, BOUNDED)]
    names = [n for n in everywhere if id(subject.model.get_submodule(n)) in inner]
    chosen = f"isinstance(m, {' | '.join(f'nn.{kind}' for kind in kinds)})"
    if names == everywhere:
        found = f"[n for n, m in model.named_modules(remove_duplicate=False) if {chosen}]"
    else:
        found = repr(names)
    return Patch(
        f"import torch\nfrom torch import nn\nfrom levada import initialise\nfor name in {found}:\n"
        "    model.set_submodule(name, nn.ReLU())\n"
        f"initialise.he(model, generator={subject.generator})"
    )


def normalise(subject: Subject) -> Patch | None:
    """Normalise what every inner layer returns: a layer norm after Linear, one group after a convolution."""
    maps = [c for c in subject.calls if isinstance(c.module, MAPS)]
    inner = [c for c in maps[:-1] if c.name and sum(o.module is c.module for o in maps) == 1]
    if subject.facts.normalised or len(inner) < 2:
        return None
    names = [c.name for c in inner]
    ordered = [n for n, m in subject.model.named_modules() if isinstance(m, MAPS)]
    lines = ["from torch import nn"]
    if names == ordered[:-1] and all(isinstance(c.module, nn.Linear) for c in maps):
        lines.append("names = [n for n, m in model.named_modules() if isinstance(m, nn.Linear)][:-1]")
    else:
        lines.append(f"names = {names!r}")
    lines += ["for name in names:", "    layer = model.get_submodule(name)"]
    made = {_norm(c) for c in inner}
    if len(made) == 1:
        lines.append(f"    norm = {made.pop()}")
    else:
        lines.append(
            "    linear = isinstance(layer, nn.Linear)\n"
            "    norm = nn.LayerNorm(layer.out_features) if linear else nn.GroupNorm(1, layer.out_channels)"
        )
    lines.append("    model.set_submodule(name, nn.Sequential(layer, norm.to(layer.weight)))")
    return Patch("\n".join(lines))


def _norm(call: Call) -> str:
    linear = isinstance(call.module, nn.Linear)
    return "nn.LayerNorm(layer.out_features)" if linear else "nn.GroupNorm(1, layer.out_channels)"


def gives_probabilities(outputs: torch.Tensor) -> bool:
    """Return whether a model's output is positive and sums to one, over classes at dimension 1 or last."""
    values = outputs.detach().float()
    if values.dim() < 2 or not bool(torch.isfinite(values).all()) or bool((values < 0).any()):
        return False
    return any(values.shape[d] > 1 and bool(((values.sum(d) - 1).abs() < SUMS_TO_ONE).all()) for d in (1, -1))


def takes_softmax(subject: Subject) -> bool:
    """Return whether the loss takes a softmax of the outputs itself: it does not see what is added to all of a row.

    Args:
        subject: what was checked.
    """
    told = subject.facts.objective
    named = subject.facts.loss in ("cross_entropy", "CrossEntropyLoss")
    return named or (told is not None and told.classes > 1 and told.shift is not None and abs(told.shift) < UNSEEN)


def takes_sigmoid(subject: Subject) -> bool:
    """Return whether the loss takes a sigmoid of outputs that come from one.

    Args:
        subject: what was checked.
    """
    told = subject.facts.objective
    named = subject.facts.loss in ("binary_cross_entropy_with_logits", "BCEWithLogitsLoss")
    return named and told is not None and told.produced_by == "sigmoid"


def softmax(subject: Subject) -> Patch | None:
    """Give cross-entropy the logits: take out the softmax before it, which it computes itself."""
    outputs = subject.outputs
    if outputs is None or not takes_softmax(subject) or not gives_probabilities(outputs):
        return None
    logarithm = (
        "import torch\ndef loss(outputs, targets, given=loss):\n"
        "    return given(outputs.clamp_min(torch.finfo(outputs.dtype).tiny).log(), targets)"
    )
    judged = "the negative log-likelihood of the probabilities that they stand for"
    last = _last(subject, (nn.Softmax,))
    if last is None:
        # The softmax is no module: its logarithm is what cross-entropy takes for logits.
        return Patch(loss=logarithm, says="The loss takes the logarithm of the outputs for logits.", judged=judged)
    return Patch(
        f"from torch import nn\nmodel.set_submodule({last!r}, nn.Identity())", measure=logarithm, judged=judged
    )


def last_activation(subject: Subject) -> Patch | None:
    """Take out the last activation, whose range does not hold what the loss asks for: logits, or numbers."""
    told, last = subject.facts.objective, _last(subject, (*BOUNDED, *RECTIFIERS))
    if last is None or told is None:
        return None
    twice = takes_sigmoid(subject)
    if not (takes_softmax(subject) or told.outside or twice):
        return None
    build = f"from torch import nn\nmodel.set_submodule({last!r}, nn.Identity())"
    if not twice:
        return Patch(build)
    return Patch(
        build,
        measure="def loss(outputs, targets, given=loss):\n    return given(outputs.logit(eps=1e-6), targets)",
        judged="the binary cross-entropy of the probabilities that they stand for",
    )


def _last(subject: Subject, kinds: tuple[type[nn.Module], ...]) -> str | None:
    """Return the name of the module of these kinds that makes the output, if it makes nothing else."""
    last = [c for c in subject.calls if c.ends and c.name and isinstance(c.module, kinds)]
    if not last or sum(c.module is last[0].module for c in subject.calls) > 1:
        return None
    return last[0].name


def output_scale(subject: Subject) -> Patch | None:
    """Multiply the logits so that they differ by about one between inputs."""
    outputs = subject.outputs
    if outputs is None or outputs.dim() < 2 or len(outputs) < 2 or not takes_softmax(subject):
        return None
    spread = float(outputs.double().std(0).square().mean().sqrt())
    if not 0 < spread < FAINT:
        return None
    factor = 10.0 ** round(-math.log10(spread))
    return Patch(
        f"model.register_forward_hook(lambda module, args, output: {factor:g} * output)",
        says=f"What the model returns is multiplied by {factor:g}.",
    )


def standardise(subject: Subject) -> Patch | None:
    """Bring every feature or channel of the inputs to mean 0 and variance 1, over the batch."""
    x = subject.inputs
    if not isinstance(x, torch.Tensor) or not x.is_floating_point() or x.dim() not in (2, 3, 4, 5):
        return None
    values = x.double()
    if LEAST_SIZE < float(values.std()) < LARGEST_SIZE and abs(float(values.mean())) < LARGEST_SIZE:
        return None
    dims = max(1, x.dim() - 2)
    made = f"nn.BatchNorm{dims}d({x.shape[1]}, affine=False).to(next(model.parameters()))"
    return Patch(f"from torch import nn\nmodel = nn.Sequential({made}, model)")


def rescale_features(subject: Subject) -> Patch | None:
    """Divide those features of the inputs that are far larger than most, so that they are of one size."""
    x = subject.inputs
    if not isinstance(x, torch.Tensor) or not x.is_floating_point() or x.dim() < 2 or len(x) < 2:
        return None
    size = x.double().square().mean(0).sqrt()
    present = size[size > 0]
    if not len(present) or not bool((size > APART * present.median()).any()):
        return None
    return Patch(
        "import torch\n"
        "size = inputs.square().mean(0).sqrt()\n"
        "usual = size[size > 0].median()\n"
        f"large = size > {APART:g} * usual\n"
        "model.register_buffer('feature_scale', torch.where(large, usual / size, torch.ones_like(size)))\n"
        "model.register_forward_pre_hook(lambda module, args: (args[0] * module.feature_scale, *args[1:]))"
    )


def bfloat16(subject: Subject) -> Patch | None:
    """Use bfloat16 for float16: gradients keep their range, and no loss scale is needed."""
    if not any(p.dtype == torch.float16 for p in subject.model.parameters()):
        return None
    return Patch("model.bfloat16()  # and the inputs: x.bfloat16()")


def float32(subject: Subject) -> Patch | None:
    """Use float32 for half precision: twice the memory, and no step is rounded away."""
    if not any(p.dtype in (torch.float16, torch.bfloat16) for p in subject.model.parameters()):
        return None
    return Patch("model.float()  # and the inputs: x.float()")


def train(subject: Subject) -> Patch | None:
    """Put the model into training mode."""
    return None if all(m.training for m in subject.model.modules()) else Patch("model.train()")


def batch_first(subject: Subject) -> Patch | None:
    """Let the modules read the first dimension as the rows of the batch, and the second as time."""
    found = subject.facts.mixed
    if found is None or found.doubt:
        return None
    return Patch("\n".join(f"model.get_submodule({name!r}).batch_first = True" for name in found.modules))


def less_dropout(subject: Subject) -> Patch | None:
    """Drop one in ten where nearly all was dropped."""
    found = subject.facts.noise
    if found is None:
        return None
    return Patch(found.patch)


def unfreeze(subject: Subject) -> Patch | None:
    """Let the parameters learn that ask for no gradient."""
    if not subject.facts.fixed:
        return None
    return Patch("model.requires_grad_(True)")
