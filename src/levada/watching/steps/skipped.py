"""A training that stands still: pass after pass gives NaN, and no update comes."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Any, Final, final

import torch
from torch import Tensor, nn

from levada.diagnose.finding import Finding
from levada.probe.recorder import tensors
from levada.watching.loop.telling import warn
from levada.watching.measure.reading import plain
from levada.watching.measure.transfer import OnItsWay

__all__ = ["RULE", "Skips", "continues"]

RULE: Final = "skipped_steps"
# Passes without an update, and of these the share that must have given NaN.
LEAST, SHARE = 32, 0.75
# Before the first update it is not known of how many micro-batches one is made: of those whose gradients are added to
# each other, so many count, as those of one optimizer step that is to come; or all, after so many passes.
_OF_ONE, _ALL = 8, 256
_BEYOND: Final = 8  # passes beyond the most that an update took, before outputs are looked at
_MORE: Final = 512  # after so many that were looked at, and four times the most that an update took, no more are
_BETWEEN: Final = 8  # passes between two counts that are sent to the host
_OUTPUTS: Final = 16  # of one pass
_MOVERS: Final = 8  # parameters that tell whether something else moves the model
_TYPES: Final = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def _apart(method: Callable[..., None]) -> Callable[..., None]:
    """Let an error end this rule, and not the watch."""

    @functools.wraps(method)
    def run(self: Skips, *args: Any, **kwargs: Any) -> None:
        if self.over:
            return
        try:
            method(self, *args, **kwargs)
        except Exception as error:  # whatever it is, training goes on
            self.over = True
            if self.ended is not None:
                self.ended(f"an error ended it, {type(error).__name__}: {error}")
            warn(
                f"watch: {RULE} raised {type(error).__name__}: {error}. It is judged no more; all else is.",
                of=self._model(),
                stacklevel=3,
            )

    return run


@final
class Skips:
    """Finds that a loop makes no update any more, because what the model gives is NaN.

    A loop that goes on to the next batch where the loss is not finite steps no optimizer then, so that no sample tells
    of it. Counted are passes with gradients since the last update, and of these such as gave NaN and had no backward
    pass, or one that began at NaN. Inf is none: scalers and masks make it.

    While updates come, passes are counted and nothing is looked at. Outputs are from the eighth pass on beyond the most
    that an update ever took, or before the first update; their NaN is added up on the device, and not waited for. A
    backward pass belongs to all passes since the one before it. Before the first update, passes whose gradients are
    added to each other are taken to be micro-batches of one step, of which eight count: a large batch that is NaN is no
    standstill, and four of them are. Where a loop leaves out each micro-batch before its backward pass, nothing tells
    that they are one, and each counts. What moves the model without being one of the watch's optimizers makes an update
    too.

    Args:
        model: what is watched.

    Attributes:
        tell: called with a finding where training stands still, and with None when an update has come.
        ended: called with the reason if an error ends this.
        over: whether one has.
        waits: whether the last pass that counts waits for its backward pass.

    Example:
        >>> found, skips = [], Skips(nn.Linear(1, 1))
        >>> skips.tell = found.append
        >>> for _ in range(33):
        ...     skips.returned(torch.full((2,), torch.nan, requires_grad=True) * 1.0, training=True)
        >>> found[0].severity, found[0].evidence["nan"], found[0].evidence["passes"]
        ('error', 32, 32)
    """

    def __init__(self, model: nn.Module) -> None:
        self.tell: Callable[[Finding | None], None] | None = None
        self.ended: Callable[[str], None] | None = None
        self.over = False
        self._model = weakref.ref(model)
        self._step: int | None = None  # of the last update
        self._mode: bool | None = None  # in which the model last learned
        self._other: bool | None = None  # of a pass that was not counted
        self.waits = False  # a pass, for its backward pass
        self._looks = False  # at the last pass
        self._passes = self._looked = self._most = 0
        self._behind = self._weighed = self._added = 0  # of the passes: with a backward pass, what they count, added up
        self._told = False
        self._open: Tensor | None = None  # passes with NaN since the last backward pass
        self._bad: Tensor | None = None  # and before it
        self._sent: tuple[OnItsWay, int, int] | None = None  # with the passes looked at, and all
        self._weights: list[tuple[weakref.ref[nn.Parameter], int]] = []

    @_apart
    def returned(self, output: Any, *, training: bool) -> None:
        """Hear what a pass with gradients gave.

        Args:
            output: any nest.
            training: the model's mode.
        """
        if training != self.counted:
            self._other = training
            return
        self._judge()
        found: list[Tensor] = []
        if self._looking():
            found = [t for t in islice(tensors(output), _OUTPUTS) if t.requires_grad]
            if not found:
                return
        self._count()
        self.waits = True
        bad: Tensor | None = None
        for each in map(plain, found):
            # Of other subclasses it is not known what they hold.
            if type(each) is Tensor and each.dtype in _TYPES and each.layout is torch.strided and each.numel():
                there = _is_nan(each)
                bad = there if bad is None else torch.maximum(bad, there.to(bad.device, non_blocking=True))
        if bad is not None:
            self._open = _sum(self._open, bad)

    @_apart
    def learned(self, roots: Sequence[Tensor]) -> None:
        """Hear that a backward pass was this model's.

        Args:
            roots: the scalars at which it began.
        """
        if not self.waits:  # a model that is called part by part, or one more backward pass
            self._mode = self._mode if self._other is None else self._other
            self._judge()
            self._count()
        else:
            self._mode = self.counted
        self.waits, self._other = False, None
        new, self._behind = self._passes - self._behind, self._passes
        self._weighed += min(new, max(_OF_ONE - self._added, 0))
        self._added += new
        if not self._looks:
            return
        bad = functools.reduce(torch.maximum, [_is_nan(root) for root in roots])
        among = bad if self._open is None else self._open.to(bad.device, non_blocking=True).clamp(min=1) * bad
        self._bad, self._open = _sum(self._bad, among), None

    @_apart
    def cleared(self) -> None:
        """Hear that gradients were cleared before an update used them: the passes behind them led to none."""
        self._added = 0

    @_apart
    def updated(self, step: int | None) -> None:
        """Hear of an update of the weights.

        Args:
            step: its number.
        """
        told, self._told = self._told, False
        self._step = step
        if self._passes and not told:
            self._most = max(self._most, self._passes)
        if self._looked:
            self._looked, self._bad, self._open, self._sent, self._weights = 0, None, None, None, []
        self._passes = self._behind = self._weighed = self._added = 0
        self._looks = False
        if told and self.tell is not None:
            self.tell(None)

    @property
    def most(self) -> int:
        """The most passes that an update took so far."""
        return self._most

    @property
    def counted(self) -> bool:
        """The mode in which passes are counted."""
        return self._mode is None or self._mode

    def _looking(self) -> bool:
        due = self._step is None or self._passes >= self._most + _BEYOND
        return due and not self._told and self._looked < 4 * self._most + _MORE

    def _count(self) -> None:
        self._looks = self._looking()
        if self._looks and not self._looked:
            self._weights = [(weakref.ref(p), p._version) for p in self._movers()]
        self._passes += 1
        self._looked += self._looks

    def _movers(self) -> Iterable[nn.Parameter]:
        model = self._model()
        those = [] if model is None else [p for p in model.parameters() if p.requires_grad]
        return those[:: max(1, len(those) // _MOVERS)][:_MOVERS]

    def _enough(self) -> bool:
        """Whether there were passes enough without an update to be judged."""
        count = self._passes
        if self._step is None and count < _ALL:
            count -= self._behind - self._weighed
        return count >= LEAST

    def _judge(self) -> None:
        """Look at the count of the passes before this one."""
        if self._sent is not None and self._sent[0].ready():
            way, looked, passes = self._sent
            self._sent = None
            bad = int(way.host())
            if bad >= SHARE * passes and self.tell is not None:
                if any((p := held()) is not None and p._version != then for held, then in self._weights):
                    self.updated(self._step)  # something else moves the weights
                    return
                self._told = True
                self.tell(_finding(bad, looked, passes, self._step, self._bad is not None))
        elif self._sent is None and self._looked and self._enough() and self._passes % _BETWEEN == 0:
            total = self._bad if self._open is None else _sum(self._bad, self._open)
            if total is not None and not self._told:
                self._sent = OnItsWay(total), self._looked, self._passes
                if total.device.type == "cpu":
                    self._judge()


def continues(given: Iterable[Any]) -> bool:
    """Return whether a pass goes on from another's graph, as in a loop over time: it is not counted apart.

    Args:
        given: what the model is called with.

    Example:
        >>> h = torch.ones(1, requires_grad=True)
        >>> continues([torch.ones(1), h]), continues([torch.ones(1), (2 * h, 2 * h)])
        (False, True)
    """
    for one in given:
        if isinstance(one, Tensor):
            if one.grad_fn is not None:
                return True
        elif isinstance(one, tuple | list) and any(isinstance(t, Tensor) and t.grad_fn is not None for t in one):
            return True
    return False


def _is_nan(tensor: Tensor) -> Tensor:
    value = plain(tensor.detach())
    return torch.isnan(value.amax() if value.dim() else value).float()  # NaN is the largest


def _sum(total: Tensor | None, more: Tensor) -> Tensor:
    return more if total is None else total.to(more.device, non_blocking=True) + more


def _finding(bad: int, looked: int, passes: int, step: int | None, backward: bool) -> Finding:
    since, among = "yet" if step is None else f"since step {step}", f": of the last {passes:,} forward passes"
    if looked < passes:  # after an update the first ones are not looked at
        among = f", in {passes:,} forward passes: of the last {looked:,}, which were looked at,"
    return Finding(
        rule=RULE,
        severity="error",
        status="fired",
        claim=(
            f"No update {since}{among} {bad:,} had outputs that are not finite (NaN), and no backward pass"
            f"{', or one that began at a loss of NaN' if backward else ''}."
        ),
        evidence={
            "last_update": step,
            "nan": bad,
            "passes": looked,
            "reference": "each pass of training leads to an update",
            "explained_by": "theory",
            "tests": {"values": "looked at exactly", "passes_without_update": passes},
        },
        consequence="The weights move no more, and the run looks alive.",
        falsify="Print the loss of each pass: if it is finite, or if its step is made all the same, this is wrong.",
        source="IEEE 754: a NaN stays one through every sum and product",
    )
