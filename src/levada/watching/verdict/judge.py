"""The judge of a watched run: rules on every sample, told once they are confirmed, and taken back when they end."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, final

import torch
from torch import Tensor, nn

from levada._errors import require_at_least
from levada.diagnose.finding import Finding
from levada.probe.trace import Site
from levada.watching.measure.given import Given, given_last
from levada.watching.measure.sample import Sample
from levada.watching.steps.skipped import RULE as SKIPPED
from levada.watching.uncopied import Uncopied
from levada.watching.verdict.baseline import Baseline, LossBaseline
from levada.watching.verdict.between import Between
from levada.watching.verdict.departures import Departures
from levada.watching.verdict.elsewhere import met_elsewhere, with_others_unknown
from levada.watching.verdict.habits import Habits
from levada.watching.verdict.held_spikes import LOSSES, hold_spikes
from levada.watching.verdict.keeper import Keeper, require_notes
from levada.watching.verdict.ledger import Ledger
from levada.watching.verdict.left_out import LeftOut
from levada.watching.verdict.nonfinite import Nonfinite
from levada.watching.verdict.overshot import Before, blamed
from levada.watching.verdict.restarts import Restarts
from levada.watching.verdict.rise import Rates, raised, with_before
from levada.watching.verdict.rules import EXPLAINS, PLACED, RULES, Rule
from levada.watching.verdict.rules.depth import is_far
from levada.watching.verdict.series import LossSeries
from levada.watching.verdict.spike import RULE as SPIKE
from levada.watching.verdict.spike import least_jump
from levada.watching.verdict.view import COMPARED, Blocks, View, membership, rate_of, whose_rate

__all__ = ["CONFIRMATIONS", "WARM_UP", "Judge"]

CONFIRMATIONS: Final = 3  # samples on which most rules must hold before they speak

# Samples over which signals over depth are averaged: the draws of a decay's interval.
ROWS: Final = 4
# Losses that no sample has brought yet, of which a jump before a NaN is named.
RECENT: Final = 512
# Samples of a signal before it has a baseline.
WARM_UP: Final = 8


@final
class Judge(Uncopied):
    """Applies the rules of a watched run to each of its samples.

    A rule's finding is told once it held on `confirm` samples in a row, and from then on stands in `findings`; when it
    held on none of as many, its entry there becomes "clear" and says at which step. What is not finite is told at once.
    `history` has each telling, worsening and ending in turn, of the last thousand.

    An error needs a scale-free measurement, a baseline of this run or theory, and a fact about what training does.

    Args:
        source: what is watched: anything with `sites`, or a function that returns them; `model`, `optimizers` and
            `last_pass` are read where it has them.
        keep: the folder of a run, below which bundles are kept; None to keep none.
        confirm: samples in a row on which a finding must hold.
        rules: name -> rule; all of them if left out.
        every: smallest distance between samples.

    Example:
        >>> site = Site("layers.0", 0, "Linear", (4, 2), ("layers.0.weight",))
        >>> judge = Judge(lambda: (site,))
        >>> judge.sampled(Sample(0, 0.0, {"nonfinite": torch.tensor([0.5], dtype=torch.float64)}, {}, ((0, math.nan),)))
        >>> judge.findings[0].rule, judge.findings[0].where["first"]
        ('numerical_overflow', 'layers.0')
    """

    def __init__(
        self,
        source: Any,
        keep: str | Path | None = None,
        *,
        confirm: int = CONFIRMATIONS,
        rules: Mapping[str, Rule] = RULES,
        every: int = 20,
    ) -> None:
        require_at_least("Judge", "confirm", confirm, 1)
        self.losses = LossSeries()
        self.keeper = Keeper(source, Path(keep)) if keep is not None else None
        self._ledger = Ledger(confirm, self._keep)
        self.between = Between(self._ledger, every)
        self.ended, self.idle = self.between.ended, self.between.idle  # rules judged no more, and why; what rests
        self.history = self._ledger.history
        self.blocks: Blocks | None = None
        self.samples = 0
        self.habits = Habits(0)  # of these blocks
        self.far = False  # whether signal or gradient spans three decades, and no loss says if that hurts
        self._begun = time.monotonic()
        self.rows: deque[Sample] = deque(maxlen=ROWS)
        self._source, self._turn_of = source, getattr(source, "turn_of", lambda step: 0)
        self.confirm, self.rules = confirm, rules
        self._rates, self.restarts = Rates(), Restarts()
        self._accounted: set[str] = set()  # rules for which an alarm of the last sample accounts
        self._jumps = False  # whether the loss of this step is far above what the last sample knew
        self._limit = math.inf
        self._view: View | None = None
        self._closed_at = -1  # the last step whose loss was judged without a sample
        self._recent: deque[tuple[int, float]] = deque(maxlen=RECENT)
        self._nonfinite = Nonfinite()
        self._baseline: Baseline | None = None
        self._departures: Departures | None = None
        self._scaled, self._rank = False, 0
        self._membership: tuple[tuple[int, int, bool], ...] = ()
        # With the targets of the step that is under way; its update lets them go.
        self.left_out = LeftOut(source, self._ledger, lambda: self._nonfinite.words(self._model, self._given))

    @property
    def loss(self) -> LossBaseline:
        """What the loss of a step is and was; of none, where optimizers that take turns have losses of their own."""
        return self.losses.loss

    @property
    def seconds(self) -> float:
        """Seconds since the watch began."""
        return time.monotonic() - self._begun

    @property
    def told(self) -> tuple[int, int]:
        """How many findings and bundles there were."""
        return self._ledger.count, 0 if self.keeper is None else len(self.keeper.folders)

    def before_update(self, step: int, loss: Tensor | None) -> None:
        """Look at this step's loss while the weights are still good, and keep what is needed to run it again.

        On an accelerator the loss is not waited for: it is looked at when it has arrived, a step or more later.

        Args:
            step: number of the step.
            loss: its loss, on its device; None if it was not seen.
        """
        targets = self.left_out.updated(step, loss)
        self._rates.before_update(step, rate_of(self._optimizers))
        self._scaled = self._scaled or bool(getattr(self._source, "scaled", False))
        weights = getattr(self._source, "weights", None)
        self.between.before_update(step, self._model, self._optimizers, self.blocks, self.habits.silence, weights)
        if self.keeper is not None:
            self.keeper.before_update(step, loss, scaled=self._scaled)
        self._jumps = self.keeper is not None and self.keeper.highest > self._limit
        if loss is None or loss.device.type != "cpu" or ("numerical_overflow", "") in self._ledger:
            return
        value = float(loss.detach() if loss.requires_grad else loss)
        if math.isfinite(value):
            self._recent.append((step, value))
            self._jumps = value > self._limit
        if math.isfinite(value) and self._nonfinite.bad_step is None:
            return  # the samples bring it too; here only what must be seen at once
        if self._recent and self._nonfinite.bad_step is None:
            self._nonfinite.see_loss(*self._recent[-1])
        self._nonfinite.see_loss(step, value)
        found = self._nonfinite.before_update(step, self._rank, self._model, self._given, targets, scaled=self._scaled)
        if found is not None:
            self._told_at_once(self._placed(found))

    def step_left(self, step: int, loss: Tensor | None) -> None:
        """Judge a step that is left before its update, as its loss, its gradient or its output is not finite.

        Args:
            step: number of the step.
            loss: its loss, on the host; None if there was no backward pass.
        """
        targets = self.left_out.targets
        self.before_update(step, loss)
        if self._model is None or self._scaled or ("numerical_overflow", "") in self._ledger:
            return
        finding = self._nonfinite.left(step, self._rank, self._model, self._given, targets, learned=loss is not None)
        if finding is not None:
            self._told_at_once(self._placed(finding))
            if self.keeper is not None:
                self.keeper.keep_now(step, finding)

    def sampled(self, sample: Sample) -> None:
        """Apply the rules to a sampled step.

        Args:
            sample: its numbers.
        """
        blocks = self._known(sample)
        self._rank, self._scaled = sample.rank, sample.scalars.get("loss_scale", 1.0) != 1.0
        self.loss.sampled(sample.scalars)
        self._see_losses(sample.losses)
        self._rates.sampled(sample.step, float(sample.scalars.get("lr", math.nan)))
        self.rows.append(sample)
        self.samples += 1
        assert self._baseline is not None  # made with the blocks
        habits = self.habits
        habits.sampled(sample)
        self.between.sampled(sample.step, blocks, habits.silence)
        rates, rises = self._rates.changes, self._rates.rises
        seen = self._baseline, self.loss, habits.silence, habits.longest, rates, self._model, habits.off, rises
        view = View(blocks, tuple(self.rows), *seen, habits.rows, self.between.severed)
        self._view, self._limit = view, least_jump(self.loss)
        if (overflow := self._nonfinite.see_sample(view, self._model)) is not None:
            self._told_at_once(overflow)
            if overflow.severity == "error":
                return  # nothing else can be measured, and nothing of it belongs into a baseline
        else:  # of a mask all else is judged
            self._ledger.end("numerical_overflow", sample.step)
        self.far = not self.loss.steps and is_far(view)
        self._apply(view)
        usual = view.columns
        off = usual[-view.sites :]  # the zero fraction; a block that is wholly off is none of what it usually is
        self._baseline.add(torch.cat([usual[: -view.sites], torch.where(off == 1, math.nan, off)]))

    def skipped(self, finding: Finding | None, step: int) -> None:
        """Tell that training stands still, or take that back.

        Args:
            finding: what was found; None when it is over.
            step: the present step.
        """
        self.left_out.stands(finding is not None)
        if finding is None:
            self._ledger.over(SKIPPED, step)
            return
        with suppress(Exception):  # what weights and inputs are made of is the user's; the verdict stands without
            _, name, words = self._nonfinite.words(self._model, self._given)
            where = {"first": name, "last": name} if name else {}
            finding = self._placed(replace(finding, claim=f"{finding.claim} {words}", where=where))
        finding = replace(finding, evidence={**finding.evidence, "step": step, "told_at": step})
        if self.keeper is not None:
            self.keeper.keep_now(step, finding)
        self._ledger.stand(finding)

    def note(self, **facts: Any) -> None:
        """Take what the user knows of the present step, for the bundles; its targets are looked at if it is not finite.

        Args:
            facts: `indices` of the batch's rows in the data, its `targets`, the path of the last `checkpoint`.

        Raises:
            UsageError: if it is something else.
        """
        require_notes(facts)
        if "targets" in facts:
            self.left_out.noted(facts["targets"])
        if self.keeper is not None:
            self.keeper.note(**facts)

    def _see_losses(self, losses: Iterable[tuple[int, float]]) -> None:
        for step, loss in losses:
            if step <= self._closed_at:
                continue
            self._nonfinite.see_loss(step, loss)
            self.losses.see(step, loss, self._turn_of(step))
            self.restarts.see(step, loss, self.loss, self._rates.rises)
            while self._recent and self._recent[0][0] <= step:
                self._recent.popleft()
        self._closed_at = -1

    @property
    def asks(self) -> bool:
        """Whether this step asks for samples: its loss is far above what the last one knew, or a gradient is missed."""
        return self._jumps or self.between.asks

    @property
    def content(self) -> bool:
        """Whether nothing waits for more samples: no spike is open, no loss above the limit, no gradient missed."""
        return not self._jumps and self.losses.is_over and not self.between.waits

    def close(self) -> None:
        """Judge what is behind the last sample: losses that no other will bring, and the weights that are left."""
        self.left_out.close()
        self.between.let_go()
        try:
            ended: Iterable[tuple[int, Any]] = getattr(self._source, "ended_losses", tuple)()
            rest = [(step, float(loss)) for step, loss in ended if step > self._closed_at]
        except RuntimeError:  # a device that failed has no losses to give
            return
        if self._view is None or ("numerical_overflow", "") in self._ledger:
            return
        self.between.close(self.blocks, self.habits.silence)
        if rest:
            self._see_losses(rest)
            self._closed_at = rest[-1][0]  # a watch that is entered again brings them once more
        at = max(self._closed_at, self._view.step, getattr(self._source, "steps", 0) - 1)
        view = replace(self._view, loss=self.loss, rates=self._rates.changes, rises=self._rates.rises)
        for _ in range(self.confirm):  # what is back is told once, and then over
            self._ledger.miss_others(self._hold_spike(view, at, ending=True), at, rules=LOSSES)
        found = self._nonfinite.ended(at, self._view, scaled=self._scaled)
        if found is not None and all(one.rule != SKIPPED for one in self.fired):  # which names the weight
            self._told_at_once(self._placed(found))

    @property
    def findings(self) -> list[Finding]:
        """Each finding as it stands now; of those that are over the last thousand."""
        return self._ledger.findings

    @property
    def fired(self) -> tuple[Finding, ...]:
        """The findings that hold now."""
        return tuple(finding for finding in self.findings if finding.status == "fired")

    @property
    def warm_up(self) -> int:
        """Samples before a signal has a baseline."""
        return WARM_UP

    @property
    def compared(self) -> int:
        """Samples that the rules have compared with those before them."""
        return 0 if self._baseline is None else self._baseline.samples

    @property
    def unheard(self) -> tuple[str, bool]:
        """Why it is not known whether the last pass of the loop was finite, and whether an error ended it; or ""."""
        return getattr(self._source, "unheard", lambda: ("", False))()

    @property
    def _optimizers(self) -> Sequence[Any]:
        return getattr(self._source, "optimizers", ())

    @property
    def _model(self) -> nn.Module | None:
        model = getattr(self._source, "model", None)
        return model if isinstance(model, nn.Module) else None

    @property
    def _given(self) -> Given | None:
        return given_last(self._source, kept=self.keeper is not None)

    def _known(self, sample: Sample) -> Blocks:
        """Return the blocks; found anew where their number changed, as the baselines then are."""
        num = max((len(values) for values in sample.values.values()), default=0)
        if self.blocks is None or num != len(self.blocks.sites):
            sites: Sequence[Site] = self._source() if callable(self._source) else self._source.sites
            self.blocks = Blocks.of(tuple(sites), self._model, self._optimizers)
            self._membership = membership(self._optimizers)
            columns = len(COMPARED) * len(self.blocks.sites)
            self._baseline, self._departures = Baseline(columns, warm_up=WARM_UP), Departures(columns)
            self.habits = Habits(len(self.blocks.sites), self.habits.rows)
            self.rows.clear()
        elif (now := membership(self._optimizers)) != self._membership:  # thawed, or added
            self.blocks = Blocks.of(self.blocks.sites, self._model, self._optimizers)
            self._membership = now
        return self.blocks

    def _apply(self, view: View) -> None:
        assert self._baseline is not None  # made with the blocks
        assert self._departures is not None
        self._departures.see(view.step, view.columns, self._baseline)
        said: dict[tuple[str, str], Finding] = {}
        explained: dict[bool, set[str]] = {True: set(), False: set()}  # by whether an alarm does
        for name, rule in self.rules.items():
            for finding in () if name in explained[True] else rule(view):
                alarm = finding.severity != "info"
                if not alarm and name in explained[False]:
                    continue  # an information accounts for another, and silences no alarm
                said[name, finding.where.get("first", "") if name in PLACED else ""] = finding
                explained[alarm] |= EXPLAINS.get(name, frozenset())
        for key, finding in said.items():
            known = finding.evidence.get("held", 0) >= self.confirm  # it held before it was beyond doubt
            self._ledger.hold(key, finding, view.step, confirm=1 if known else None)
        self._accounted = explained[True]
        self._ledger.miss_others({*said, *self._hold_spike(view, view.step), ("numerical_overflow", "")}, view.step)

    def _hold_spike(self, view: View, step: int, *, ending: bool = False) -> set[tuple[str, str]]:
        assert self._departures is not None  # made with the blocks
        found = self.losses.told(view, self._departures, self._optimizers)
        return hold_spikes(found, self._ledger, view, step, ending=ending, accounted=SPIKE in self._accounted)

    def _told_at_once(self, finding: Finding) -> None:
        """Tell of what is not finite, with what was before it."""
        new = (finding.rule, "") not in self._ledger
        if new and (first := met_elsewhere(finding, self.keeper and self.keeper.run)) is not None:
            finding = first
        elif finding.where or new:  # the place may be known only now
            finding = with_others_unknown(finding, self.keeper and self.keeper.run)
            step = finding.evidence["step"]
            jump, losses, loss = self.losses.before(step, self._recent, self._turn_of)
            jump = jump if finding.severity == "error" else None
            rise = raised(tuple(self.rows), self._rates.changes, step, self._rates.rises)
            finding = with_before(finding, jump, rise)
            if finding.severity == "error" and not self._scaled:
                about = losses, self._rates.now, loss.has_learned, jump, rise, loss.negated
                known = Before(self.rows, self.blocks, *about, whose_rate(self._optimizers))
                finding = blamed(finding, known, self._model, self._ledger.last((finding.rule, "")))
        self._ledger.tell_at_once(finding)

    def _keep(self, finding: Finding) -> None:
        if self.keeper is not None:
            self.keeper.ask(finding)

    def _placed(self, finding: Finding) -> Finding:
        return finding if self.blocks is None else self.blocks.placed(finding)
