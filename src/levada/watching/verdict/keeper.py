"""When a bundle is kept, and of what: the first loss that is not finite, a spike, any error."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final, final

import torch
from torch import Tensor, nn

from levada._errors import UsageError, require_at_least
from levada._numbers import json_ready, written
from levada._ranks import process_rank
from levada.diagnose.finding import Finding
from levada.inputs import tensors_in
from levada.runs.manifest import versions_here
from levada.watching.loop.places import original, plain_name
from levada.watching.loop.telling import warn
from levada.watching.measure.broken import broken_parameters
from levada.watching.measure.given import sizes
from levada.watching.verdict.baseline import LossBaseline
from levada.watching.verdict.bundle import BUNDLES, Bundle, write_bundle
from levada.watching.verdict.nonfinite import RULE, SKIPPED
from levada.watching.verdict.spike import STEEP, jumps

__all__ = ["Keeper", "require_notes"]

# The rule of a loss that rises steeply with the first steps.
STEEPLY: Final = "learning_rate_too_high"
_NOTES: Final = ("indices", "targets", "checkpoint")
# Steps between two looks at what a usual loss is: it hardly moves.
_REFRESH: Final = 8


def require_notes(facts: Mapping[str, Any]) -> None:
    """Raise if something is noted that no bundle has a place for.

    Args:
        facts: name -> what was noted.

    Raises:
        UsageError: if so.
    """
    other = next((name for name in facts if name not in _NOTES), None)
    if other is not None:
        raise UsageError(f"note: what can be noted is {', '.join(_NOTES)}, got {other!r}.")
    path = facts.get("checkpoint")
    if path is not None and (not isinstance(path, str | Path) or not str(path).strip()):
        raise UsageError(f"note: checkpoint must be the path of one, got {path!r}. Leave it out where there is none.")


@final
class Keeper:
    """Keeps a few bundles of a run, one for each rule that asks.

    On the CPU each step's loss is read before the update, so that a bundle holds weights that this step has not moved.
    On an accelerator a loss is read once it has arrived, which takes a step or more: the bundle then holds the pass
    that is under way, and weights only if they are still finite; the reason says so. A rule that speaks of a sample has
    its bundle at the next update, with that step's pass; a training that stands still at once, with the last pass.

    Args:
        source: what is watched, with `model`, `optimizers` and `last_pass` as far as it has them.
        run: the run's folder.
        most: bundles of one run.
        cap: bytes of weights, and as many of the optimizer's state, that one bundle may hold.

    Attributes:
        folders: of the bundles.
        run: the run's folder.
        highest: finite loss of those that were read with the last update.
    """

    def __init__(self, source: Any, run: Path, *, most: int = 3, cap: int = 1 << 30) -> None:
        require_at_least("Keeper", "most", most, 0)
        self.folders: list[Path] = []
        self.highest = -math.inf
        self._source = source
        self.run = run
        self._cap = cap
        self._asked: Finding | None = None
        self._kept: set[str] = set()
        self._checkpoint: str | None = None
        self._noted: dict[str, Any] = {}  # of the step that is under way
        self._noted_at: dict[str, int] = {}  # the step of which each was noted last
        self._noted_of: dict[int, dict[str, Any]] = {}  # of the last two that had their update
        getattr(source, "last_pass", None)  # who asks is kept the passes from now on
        self._losses = LossBaseline()
        self._limit = math.inf
        self._bad = 0
        self._coming: deque[tuple[int, Tensor, Callable[[], bool]]] = deque(maxlen=256)
        self._rank = process_rank()
        # A run that goes on has those it had; that of the first steps leaves room here too.
        kept = [path.name for path in (run / BUNDLES).glob("step-*") if STEEPLY not in path.name]
        self._left = most - sum(
            name.partition("-rank-")[1:] == _of_rank(self._rank).partition("-rank-")[1:] for name in kept
        )

    def note(self, **facts: Any) -> None:
        """Take what the user knows of the present step.

        Args:
            facts: `indices` of the batch's rows in the data and its `targets`, which are of this step alone; the path
                of the last `checkpoint`, which stands until another is noted.

        Raises:
            UsageError: if it is something else.
        """
        require_notes(facts)
        path = facts.get("checkpoint")
        if isinstance(path, str | Path) and Path(path).exists():  # it may also be an address, or come later
            path = Path(path).absolute()
        self._checkpoint = self._checkpoint if path is None else str(path)
        self._noted |= {name: fact for name, fact in facts.items() if name != "checkpoint"}

    def ask(self, finding: Finding) -> None:
        """Ask for a bundle at the next update.

        Args:
            finding: why.
        """
        if self._asked is None and finding.rule not in self._kept:
            self._asked = finding

    def keep_now(self, step: int, finding: Finding) -> None:
        """Keep a bundle of the last pass, where no update may come any more.

        Args:
            step: the present step.
            finding: why.
        """
        self._keep(step, finding.rule, finding.claim, math.nan, finding)

    def before_update(self, step: int, loss: Tensor | None, *, scaled: bool = False) -> None:
        """Keep a bundle, if something asks for one.

        Args:
            step: number of the step.
            loss: its loss, on its device; None if it was not seen.
            scaled: whether a scaler skips steps that overflow.
        """
        self._before_update(step, loss, scaled=scaled)
        self._noted_of = {of: noted for of, noted in self._noted_of.items() if of == step - 1}
        self._noted_at |= dict.fromkeys(self._noted, step)
        self._noted_of[step], self._noted = self._noted, {}

    def _before_update(self, step: int, loss: Tensor | None, *, scaled: bool) -> None:
        arrived = list(self._arrived(step, loss))
        self.highest = max((value for _, value in arrived if math.isfinite(value)), default=-math.inf)
        if self._left <= 0:
            return
        at, value = -1, math.nan
        for at, value in arrived:
            late = "" if at == step else f" It was known at step {step} only, whose pass this is."
            if not math.isfinite(value):
                self._bad += 1
                if not scaled or self._bad >= SKIPPED:
                    self._keep(step, RULE, f"The loss of step {at} is {written(value)}.{late}", value, of=at)
                continue
            self._bad = 0
            if self._steep(value):
                began = f"{self._losses.first:.4g} at step {self._losses.first_step}"
                reason = f"The loss of step {at} is {value:.4g}, and the first that was seen is {began}.{late}"
                self._keep(step, STEEPLY, reason, value, of=at)
            if value > self._limit and jumps(self._losses, value):
                usual = f"{self._losses.median:.4g}"
                reason = f"The loss of step {at} is {value:.4g}, usual is {usual}.{late}"
                self._keep(step, "loss_spike", reason, value, of=at)
            self._losses.add(at, value)
            if self._losses.steps % _REFRESH == 0 and self._losses.ready:
                self._limit = self._losses.median + 0.25 * self._losses.scale
        if self._asked is not None:
            finding, self._asked = self._asked, None
            self._keep(step, finding.rule, finding.claim, value, finding, of=at)

    def _steep(self, value: float) -> bool:
        """Whether the loss has risen steeply before there is a baseline, as by a rate that is too high."""
        first = self._losses.first
        return not self._losses.ready and STEEPLY not in self._kept and value >= STEEP * abs(first) > 0

    def _arrived(self, step: int, loss: Tensor | None) -> Iterator[tuple[int, float]]:
        """Yield the losses that can be read without waiting."""
        if loss is None:
            return
        loss = loss.detach()
        if loss.device.type == "cpu":
            yield step, float(loss)
            return
        sent = _send(loss)
        if sent is not None:
            self._coming.append((step, *sent))
        while self._coming and self._coming[0][2]():
            at, value, _ = self._coming.popleft()
            yield at, float(value)

    def _keep(
        self, step: int, rule: str, reason: str, loss: float, finding: Finding | None = None, *, of: int = -1
    ) -> None:
        """Keep a bundle with the last pass; `of` is the step whose loss this is, -1 if none was seen."""
        if rule in self._kept or self._left <= 0:
            return
        self._kept.add(rule)
        self._left -= rule != STEEPLY  # what is seen of the first steps leaves room for what comes later
        model, last = getattr(self._source, "model", None), getattr(self._source, "last_pass", None)
        model = original(model) if isinstance(model, nn.Module) else None  # as it is built, before it was compiled
        values, missing = self._pass(last, step)
        if model is not None and broken_parameters(model):
            values |= self._before_it(getattr(last, "earlier", None), missing)
        if model is not None:
            self._state(model, values, missing)
            self._as_begun(getattr(last, "buffers", {}), values, missing)
        else:
            missing["weights"] = "the model is not at hand"
        values |= self._noted or self._noted_of.get(step, {})
        missing |= {
            name: f"it was noted for step {at} last, and has to be noted in each step"
            for name, at in self._noted_at.items()
            if name not in values
        }
        bundle = Bundle(
            step=step,
            rule=rule,
            reason=reason,
            loss=loss,
            values=values,
            missing=missing,
            training=dict(_modes(model)) if model is not None else {},
            checkpoint=self._checkpoint,
            finding=json_ready(asdict(finding)) if finding is not None else {},
            facts=_facts(model, last, self._rank)
            | {"pass": getattr(last, "number", 1), "loss_of": of}
            | _sizes_before(getattr(last, "earlier", None), step, model)
            | {"optimizers": [type(each).__name__ for each in getattr(self._source, "optimizers", ())]}
            | {"optimizer_parameters": _held(model, getattr(self._source, "optimizers", ()))},
        )
        try:
            self.folders.append(write_bundle(self.run, bundle, _of_rank(self._rank)))
        except (OSError, RuntimeError) as error:  # torch.save raises RuntimeError on a full disk
            warn(f"levada: the bundle of step {step} could not be written: {error}.", stacklevel=2)

    def _pass(self, last: Any, step: int) -> tuple[dict[str, Any], dict[str, str]]:
        """Return what is kept of the last forward pass, and why something is not."""
        names = ("args", "kwargs", "output_gradient", "random_state")
        held = {name: getattr(last, name, None) for name in names} if last is not None else {}
        values = {name: value for name, value in held.items() if value is not None}
        why = "no forward pass was seen" if last is None else "larger than the cap, overwritten since, or never there"
        missing = {name: why for name in names if name not in values}
        if last is not None and last.step != step:
            missing |= dict.fromkeys(values, f"the last pass was of step {last.step}")
            values = {}
        return values, missing

    def _before_it(self, earlier: Any, missing: dict[str, str]) -> dict[str, Any]:
        """Return the last pass of the step before, whose update may have broken the weights."""
        held = {name: getattr(earlier, name, None) for name in ("args", "kwargs", "random_state")}
        if held["args"] is None:
            missing["earlier"] = "larger than the cap, overwritten since, or never there"
            return {}
        return {"earlier": {"step": earlier.step, **held, **self._noted_of.get(earlier.step, {})}}

    def _state(self, model: nn.Module, values: dict[str, Any], missing: dict[str, str]) -> None:
        """Add weights and optimizer state, where they are finite and below the cap."""
        # Sharded ones are no more than named: they are not kept, and a state_dict may wait for the other processes.
        sharded = any(hasattr(p, "placements") for p in model.parameters())
        named = model.named_parameters() if sharded else model.state_dict().items()
        weights = {plain_name(name): t for name, t in named if isinstance(t, Tensor)}
        broken = broken_parameters(model)
        # A single broken one is the fault, and is kept; if all are, an update has spread it.
        if broken and len(broken) == sum(1 for _ in model.parameters()):
            missing["weights"] = "an update has made every parameter NaN or Inf"
        elif _bytes(weights) > self._cap:
            missing["weights"] = f"{_bytes(weights)} bytes, above the cap of {self._cap}"
        else:
            values["weights"] = weights
        states = [optimizer.state_dict() for optimizer in getattr(self._source, "optimizers", ())]
        if "weights" in values and _bytes(states) <= self._cap:
            values["optimizer"] = states
        else:
            missing["optimizer"] = "above the cap" if "weights" in values else "kept with weights alone"

    def _as_begun(self, buffers: Mapping[str, Tensor | None], values: dict[str, Any], missing: dict[str, str]) -> None:
        """Put back the buffers that the pass wrote, as they were when it began."""
        weights = values.get("weights")
        if weights is None:
            return
        values["weights"] = weights | {name: t for name, t in buffers.items() if t is not None and name in weights}
        lost = [name for name, t in buffers.items() if t is None or name not in weights]
        if lost:
            missing["buffers"] = (
                f"the pass wrote {', '.join(lost[:3])}{' and more' * (len(lost) > 3)}, which is above the cap or no "
                "part of the state_dict"
            )


def _of_rank(rank: int) -> str:
    """Return what ends the name of a bundle that is not of the first process, whose inputs are others."""
    return f"-rank-{rank:05d}" if rank else ""


def _send(loss: Tensor) -> tuple[Tensor, Callable[[], bool]] | None:
    """Send a loss to the host without waiting; return where it comes, and what says whether it is there."""
    if loss.device.type != "cuda":  # no event to ask
        return None
    host = torch.empty((), dtype=torch.float32, pin_memory=True)
    host.copy_(loss, non_blocking=True)
    event = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record(torch.cuda.current_stream(loss.device))
    return host, lambda: bool(event.query())  # type: ignore[no-untyped-call]


def _facts(model: Any, last: Any, rank: int) -> dict[str, Any]:
    return {
        "model": type(model).__name__,
        "rank": rank,
        "autocast": dict(getattr(last, "autocast", {})),
        "versions": {**versions_here(), "torch": str(torch.__version__)},
    }


def _sizes_before(earlier: Any, step: int, model: nn.Module | None) -> dict[str, Any]:
    """Return how large the inputs of the step before were, to compare those of a bundle with."""
    args, kwargs = getattr(earlier, "args", None), getattr(earlier, "kwargs", None)
    if args is None or earlier.step >= step:
        return {}
    try:
        found = sizes({**dict(enumerate(args)), **(kwargs or {})}, model)
    except (RuntimeError, TypeError, NotImplementedError):  # of a kind of tensor that has none
        return {}
    return {"inputs_before": {"step": earlier.step, "rms": found}} if found else {}


def _held(model: nn.Module | None, optimizers: Sequence[Any]) -> list[list[list[str]]]:
    """Return the names of the parameters in each group of each optimizer; none if one is no parameter of the model."""
    named = model.named_parameters() if model is not None else ()
    names = {id(parameter): plain_name(name) for name, parameter in named}
    try:
        return [[[names[id(p)] for p in group["params"]] for group in each.param_groups] for each in optimizers]
    except KeyError:
        return []


def _modes(model: nn.Module) -> Mapping[str, bool]:
    """Return the mode of the model, and of each module whose mode is not its parent's."""
    modes = {"": model.training}
    for name, module in model.named_modules():
        for part, child in module.named_children():
            if child.training != module.training:
                modes[plain_name(f"{name}.{part}" if name else part)] = child.training
    return modes


def _bytes(value: Any) -> int:
    return sum(t.numel() * t.element_size() for t in tensors_in(value))
