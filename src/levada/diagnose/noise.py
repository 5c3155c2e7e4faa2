"""Noise of a forward pass: how far outputs differ from run to run, beside how far they differ between inputs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from levada._errors import MeasurementError, UsageError
from levada.diagnose.loss import Loss, main_output
from levada.diagnose.passes import Run
from levada.diagnose.rehearsal import STEPS, Course, rehearse, undone
from levada.diagnose.update import Factory
from levada.probe import Execution

__all__ = ["CALM", "HEAVY", "Noise", "noise_of", "noise_share"]

# Common rates of dropout are 0.1 to 0.6; from here on it is looked at.
HEAVY = 0.9
# A common rate.
CALM = 0.1
DRAWS = 8
WHAT, RULES = "passes and steps with less dropout", ("noisy_forward",)


@dataclass(frozen=True, slots=True)
class Noise:
    """Noise that heavy dropout makes.

    Attributes:
        modules: name -> rate of those that drop `HEAVY` or more.
        site: block of the first of them.
        patch: code that lets them drop at a rate of `CALM`.
        share: part of the outputs' variance that is noise; NaN if the batch has one row.
        low: lower end of its interval.
        high: upper end.
        plain: some steps as the model is; `aside` is the loss without that dropout before and after.
        calm: the same at a rate of `CALM`.
    """

    modules: Mapping[str, float] = field(default_factory=dict)
    site: str = ""
    patch: str = ""
    share: float = math.nan
    low: float = math.nan
    high: float = math.nan
    plain: Course | None = None
    calm: Course | None = None


def noise_share(outputs: Tensor) -> tuple[float, float, float]:
    r"""Return noise's share of the variance of outputs, $n^2 / (n^2 + s^2)$, and its interval over passes.

    $n^2$ is the variance over passes, $s^2$ the variance between inputs of the mean of passes less $n^2$ over their
    number: what of it is noise. The interval is the jackknife's, of 1.96 standard errors.

    Args:
        outputs: of several passes.

    Shape:
        `(passes, rows, ...)`.

    Example:
        >>> x = torch.randn(8, 64, 4, generator=torch.Generator().manual_seed(0))
        >>> noise_share(x[:1].expand(8, -1, -1))[0], noise_share(x)[0] > 0.9
        (0.0, True)
    """
    passes = len(outputs)
    parts = [_share(torch.cat([outputs[:k], outputs[k + 1 :]])) for k in range(passes)]
    mean = sum(parts) / passes
    error = math.sqrt((passes - 1) / passes * sum((part - mean) ** 2 for part in parts))
    share = _share(outputs)
    return share, max(0.0, share - 1.96 * error), min(1.0, share + 1.96 * error)


def _share(outputs: Tensor) -> float:
    noise = float(outputs.var(0).mean())
    between = float(outputs.mean(0).var(0).mean())
    signal = max(between - noise / len(outputs), 0.0)
    return noise / (noise + signal) if noise + signal > 0 else math.nan


def noise_of(run: Run, execution: Execution, loss: Loss | None, factory: Factory) -> Noise | None:
    """Measure the noise of a model with heavy dropout, and train some steps with it and with less; None without any.

    Args:
        run: the model, which comes back as it was.
        execution: its blocks.
        loss: the loss; without one there are no steps.
        factory: builds the optimizer.
    """
    heavy = {name: rate for name, rate in _rates(run.model).items() if HEAVY <= rate < 1}
    steps = 2 * STEPS
    reads = {s.name: {o.module for o in execution.operations[s.name]} for s in execution.sites}
    site = next((s for s, modules in reads.items() if modules & heavy.keys()), "")
    if not heavy or not run.pace.allows(WHAT, DRAWS + 2 * (steps + 3), 2 * (steps + 1), rules=RULES):
        return None
    bare = Noise(heavy, site, "\n".join(_code(run.model, heavy)))
    with torch.no_grad(), undone(run.model):
        drawn = [main_output(run(draw=draw)).double() for draw in range(DRAWS)]
    if drawn[0].dim() < 1 or len(drawn[0]) < 2 or any(out.shape != drawn[0].shape for out in drawn):
        return bare
    outputs = torch.stack(drawn)
    share = noise_share(outputs)
    if loss is None:
        return Noise(heavy, site, bare.patch, *share)
    plain = _course(run, loss, factory, heavy, None)
    calm = _course(run, loss, factory, heavy, CALM) if plain is not None else None
    return Noise(heavy, site, bare.patch, *share, plain, calm)


def _rates(model: nn.Module) -> dict[str, float]:
    """Return the dropout rate of the modules that drop in training and are in that mode."""
    return {name: float(getattr(m, attribute)) for name, m in model.named_modules() if (attribute := _attribute(m))}


def _attribute(module: nn.Module) -> str:
    if not module.training:
        return ""
    if isinstance(module, nn.modules.dropout._DropoutNd):
        return "p"
    return "dropout" if isinstance(module, nn.RNNBase | nn.MultiheadAttention) else ""


@contextmanager
def _dropping(model: nn.Module, names: Mapping[str, float], rate: float | None) -> Iterator[None]:
    """Let modules drop at another rate, or at their own if it is None."""
    held = [(m, key, getattr(m, key)) for m in map(model.get_submodule, names) if (key := _attribute(m))]
    try:
        for module, key, _ in held:
            setattr(module, key, getattr(module, key) if rate is None else rate)
        yield
    finally:
        for module, key, before in held:
            setattr(module, key, before)


def _course(run: Run, loss: Loss, factory: Factory, names: Mapping[str, float], rate: float | None) -> Course | None:
    """Return some steps on one batch at a rate of dropout, with new noise at each, and the loss without it."""
    batch, draws = run.batches[0], iter(range(10**6))

    def objective() -> Tensor:
        return loss(run(draw=next(draws)), batch)

    def quiet() -> Tensor:
        with _dropping(run.model, names, 0.0):
            return loss(run(), batch)

    try:
        with _dropping(run.model, names, rate):
            made = rehearse(run.model, objective, factory, run.pace.deadline, aside=quiet, steps=2 * STEPS)
    except (RuntimeError, MeasurementError, UsageError):
        return None
    return made if made is not None and made.complete and len(made.aside) == 2 else None


def _code(model: nn.Module, names: Iterable[str]) -> list[str]:
    """Return the lines of code that let modules drop at a common rate."""
    kinds = {name: _attribute(model.get_submodule(name)) for name in names}
    return [f"model.get_submodule({name!r}).{kind} = {CALM:g}" for name, kind in kinds.items()]
