"""The judge of a watched run: rules on every sample, told once they are confirmed, and taken back when they end."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, final

import torch
from torch import Tensor, nn

from levada._errors import require_at_least
from levada.diagnose.finding import Finding
from levada.probe.trace import Site
from levada.watching.baseline import Baseline, LossBaseline, Silence
from levada.watching.keeper import Keeper, require_notes
from levada.watching.nonfinite import Nonfinite
from levada.watching.rules import EXPLAINS, PLACED, RULES, Rule
from levada.watching.rules.units import DEAD
from levada.watching.sample import Sample
from levada.watching.skipped import RULE as SKIPPED
from levada.watching.spike import RAISED, Departures, Spikes, raised, rise_in_words
from levada.watching.telling import warn
from levada.watching.unoptimised import RULE as UNOPTIMISED
from levada.watching.unoptimised import Unoptimised
from levada.watching.view import COMPARED, Blocks, View, membership, rate_of, values_of

__all__ = ["CONFIRMATIONS", "Judge"]

CONFIRMATIONS: Final = 3  # samples on which most rules must hold before they speak

# Samples over which signals over depth are averaged: the draws of a decay's interval.
ROWS: Final = 4
# Learning rates that are remembered where each differs from the one before.
RATES: Final = 64
# Samples of a signal before it has a baseline.
WARM_UP: Final = 8


@dataclass(slots=True)
class _Case:
    """What a rule says of one place, and for how many samples in a row."""

    finding: Finding
    held: int = 0
    missed: int = 0
    at: int | None = None  # its place among the findings, once it is told


@final
class Judge:
    """Applies the rules of a watched run to each of its samples.

    A rule's finding is told once it held on `confirm` samples in a row, and from then on stands in `findings`; when it
    held on none of as many, its entry there becomes "clear" and says at which step. What is not finite is told at once.
    `history` has each telling, worsening and ending in turn, and only grows: what a record follows.

    An error needs a scale-free measurement, a baseline of this run or theory, and a fact about what training does.

    Args:
        source: what is watched: anything with `sites`, or a function that returns them; `model`, `optimizers` and
            `last_pass` are read where it has them.
        keep: the folder of a run, below which bundles are kept; None to keep none.
        confirm: samples in a row on which a finding must hold.
        rules: name -> rule; all of them if left out.

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
    ) -> None:
        require_at_least("Judge", "confirm", confirm, 1)
        self.findings: list[Finding] = []
        self.history: list[Finding] = []
        self.loss = LossBaseline()
        self.keeper = Keeper(source, Path(keep)) if keep is not None else None
        self.blocks: Blocks | None = None
        self.samples = 0
        self._begun = time.monotonic()
        self.rows: deque[Sample] = deque(maxlen=ROWS)
        self._source = source
        self.confirm = confirm
        self.rules = rules
        self._cases: dict[tuple[str, str], _Case] = {}
        self._standing: dict[str, int] = {}  # place among the findings, by rule
        self._rates: deque[tuple[int, float]] = deque(maxlen=RATES)
        self._rate, self._rises = math.nan, deque[int](maxlen=RATES)
        self._spikes = Spikes()
        self._nonfinite = Nonfinite()
        self._unoptimised: Unoptimised | None = Unoptimised()
        self._baseline: Baseline | None = None
        self._departures: Departures | None = None
        self._silence, self._off, self._longest = Silence(0), Silence(0), torch.zeros(0)
        self._scaled = False
        self._rank = 0
        self._membership: tuple[tuple[int, bool], ...] = ()

    @property
    def seconds(self) -> float:
        """Seconds since the watch began."""
        return time.monotonic() - self._begun

    @property
    def told(self) -> tuple[int, int]:
        """How many findings and bundles there are."""
        return len(self.findings), 0 if self.keeper is None else len(self.keeper.folders)

    def before_update(self, step: int, loss: Tensor | None) -> None:
        """Look at this step's loss while the weights are still good, and keep what is needed to run it again.

        On an accelerator the loss is not waited for: it is looked at when it has arrived, a step or more later.

        Args:
            step: number of the step.
            loss: its loss, on its device; None if it was not seen.
        """
        rate = rate_of(getattr(self._source, "optimizers", ()))
        if rate >= RAISED * self._rate > 0:
            self._rises.append(step)
        self._rate = rate
        self._scaled = self._scaled or bool(getattr(self._source, "scaled", False))
        self._see_unoptimised(step)
        if self.keeper is not None:
            self.keeper.before_update(step, loss, scaled=self._scaled)
        if loss is None or loss.device.type != "cpu" or ("numerical_overflow", "") in self._cases:
            return
        value = float(loss.detach())
        if math.isfinite(value) and self._nonfinite.bad_step is None:
            return  # the samples bring it too; here only what must be seen at once
        self._nonfinite.see_loss(step, value)
        model, given = self._model, self._inputs
        found = self._nonfinite.before_update(step, self._rank, model, given, scaled=self._scaled)
        if found is not None:
            self._told_at_once(self._in_block(found))

    def _see_unoptimised(self, step: int) -> None:
        sites = self.blocks.sites if self.blocks is not None else ()
        try:
            looking, optimizers = self._unoptimised, getattr(self._source, "optimizers", ())
            changed = looking is not None and looking.before_update(step, self._model, optimizers, sites)
        except Exception as error:  # what a parameter is made of is the user's: all other rules go on
            self._unoptimised = None
            warn(f"watch: {UNOPTIMISED} raised {type(error).__name__}: {error}. It is judged no more; all else is.")
            return
        if not changed or looking is None:
            return
        if looking.found is not None:
            found = looking.found
            self._stand(replace(found, evidence={**found.evidence, "told_at": step}), renew=True)
        elif (at := self._standing.pop(UNOPTIMISED, None)) is not None:
            self._clear(at, step)

    def sampled(self, sample: Sample) -> None:
        """Apply the rules to a sampled step.

        Args:
            sample: its numbers.
        """
        blocks = self._known(sample)
        self._rank, self._scaled = sample.rank, sample.scalars.get("loss_scale", 1.0) != 1.0
        for step, loss in sample.losses:
            self._nonfinite.see_loss(step, loss)
            self._spikes.see_loss(step, loss, self.loss)
            self.loss.add(step, loss)
        rate = float(sample.scalars.get("lr", math.nan))
        if not math.isnan(rate) and (not self._rates or self._rates[-1][1] != rate):
            self._rates.append((sample.step, rate))
        self.rows.append(sample)
        self.samples += 1
        assert self._baseline is not None  # made with the blocks
        self._silence.add(values_of(sample, "weight_gradient_rms", len(blocks.sites)))
        on = 1 - values_of(sample, "zero_fraction", len(blocks.sites))
        self._off.add(torch.where(on <= 1 - DEAD, 0.0, on))
        ratio = values_of(sample, "update_ratio", len(blocks.sites))
        self._longest = torch.fmax(self._longest, torch.where(ratio.isinf(), math.nan, ratio))
        rates, rows = tuple(self._rates), tuple(self.rows)
        view = View(
            blocks,
            rows,
            self._baseline,
            self.loss,
            self._silence,
            self._longest,
            rates,
            self._model,
            self._off,
            tuple(self._rises),
        )
        overflow = self._nonfinite.see_sample(view, self._model)
        if overflow is not None:
            self._told_at_once(overflow)
            return  # nothing else can be measured, and nothing of it belongs into a baseline
        self._end("numerical_overflow", sample.step)
        self._apply(view)
        self._baseline.add(_columns(sample, view.sites))

    def skipped(self, finding: Finding | None, step: int) -> None:
        """Tell that training stands still, or take that back.

        Args:
            finding: what was found; None when it is over.
            step: the present step.
        """
        if finding is not None:
            self._stand(replace(finding, evidence={**finding.evidence, "step": step, "told_at": step}))
        elif (at := self._standing.pop(SKIPPED, None)) is not None:
            self._clear(at, step)

    def _stand(self, finding: Finding, *, renew: bool = False) -> None:
        """Tell a finding that is confirmed already, and does not depend on samples; or that it is another, or worse."""
        at = self._standing.get(finding.rule)
        if at is None:
            self._standing[finding.rule] = len(self.findings)
            self._tell(finding)
        elif renew or _worse(finding, self.findings[at]):
            told_at = self.findings[at].evidence["told_at"]
            self.findings[at] = replace(finding, evidence={**finding.evidence, "told_at": told_at})
            self._remember(self.findings[at])

    def note(self, **facts: Any) -> None:
        """Take what the user knows of the present step, for the bundles.

        Args:
            facts: `indices` of the batch's rows in the data, its `targets`, the path of the last `checkpoint`.

        Raises:
            UsageError: if it is something else.
        """
        require_notes(facts)
        if self.keeper is not None:
            self.keeper.note(**facts)

    def close(self) -> None:
        """Hear that the run is over; what is kept already is complete."""

    @property
    def fired(self) -> tuple[Finding, ...]:
        """The findings that hold now."""
        return tuple(finding for finding in self.findings if finding.status == "fired")

    @property
    def warm_up(self) -> int:
        """Samples before a signal has a baseline."""
        return WARM_UP

    @property
    def _model(self) -> nn.Module | None:
        model = getattr(self._source, "model", None)
        return model if isinstance(model, nn.Module) else None

    @property
    def _inputs(self) -> Any:
        """What the model was last called with, as far as it is still there."""
        if self.keeper is None and hasattr(self._source, "inputs"):
            return self._source.inputs or None
        last = getattr(self._source, "last_pass", None)
        return None if last is None else (last.args, last.kwargs)

    def _known(self, sample: Sample) -> Blocks:
        """Return the blocks; found anew where their number changed, as the baselines then are."""
        num = max((len(values) for values in sample.values.values()), default=0)
        if self.blocks is None or num != len(self.blocks.sites):
            sites: Sequence[Site] = self._source() if callable(self._source) else self._source.sites
            optimizers = getattr(self._source, "optimizers", ())
            self.blocks = Blocks.of(tuple(sites), self._model, optimizers)
            self._membership = membership(optimizers)
            columns = len(COMPARED) * len(self.blocks.sites)
            self._baseline, self._departures = Baseline(columns, warm_up=WARM_UP), Departures(columns)
            self._silence, self._off = Silence(len(self.blocks.sites)), Silence(len(self.blocks.sites))
            self._longest = torch.full((len(self.blocks.sites),), math.nan, dtype=torch.float64)
            self.rows.clear()
        elif (now := membership(getattr(self._source, "optimizers", ()))) != self._membership:  # thawed, or added
            self.blocks = Blocks.of(self.blocks.sites, self._model, self._source.optimizers)
            self._membership = now
        return self.blocks

    def _apply(self, view: View) -> None:
        assert self._baseline is not None  # made with the blocks
        assert self._departures is not None
        self._departures.see(view.step, _columns(view.sample, view.sites), self._baseline)
        said: dict[tuple[str, str], Finding] = {}
        explained: set[str] = set()
        for name, rule in self.rules.items():
            found = [finding for finding in rule(view) if name not in explained]
            for finding in found:
                said[name, finding.where.get("first", "") if name in PLACED else ""] = finding
            if found:
                explained |= EXPLAINS.get(name, frozenset())
        for key, finding in said.items():
            self._hold(key, finding, self.confirm, view.step)
        spike = self._spikes.told(view, self._departures)
        if spike is not None:
            said["loss_spike", str(spike.evidence["step"])] = spike
            key = "loss_spike", str(spike.evidence["step"])
            told = self._cases[key].finding.evidence["ended_at"] if key in self._cases else None
            self._hold(key, spike, 1, view.step, renew=told is None and spike.evidence["ended_at"] is not None)
        for key in [key for key in self._cases if key not in said]:
            self._miss(key, view.step)

    def _hold(self, key: tuple[str, str], finding: Finding, confirm: int, step: int, *, renew: bool = False) -> None:
        case = self._cases.setdefault(key, _Case(finding))
        case.finding, case.held, case.missed = finding, case.held + 1, 0
        if case.at is None and case.held >= confirm:
            told = replace(finding, evidence={**finding.evidence, "told_at": step, "samples": case.held})
            case.at = len(self.findings)
            self._tell(told)
        elif case.at is not None and (renew or _worse(finding, self.findings[case.at])):
            before = self.findings[case.at]
            told_at = {key: before.evidence[key] for key in ("told_at", "samples")}
            self.findings[case.at] = replace(finding, evidence={**finding.evidence, **told_at})
            if _worse(finding, before):
                self._remember(self.findings[case.at])

    def _miss(self, key: tuple[str, str], step: int) -> None:
        case = self._cases[key]
        case.held, case.missed = 0, case.missed + 1
        if case.at is None:
            del self._cases[key]
        elif case.missed >= self.confirm or key[0] == "loss_spike":
            self._clear(case.at, step)
            del self._cases[key]

    def _told_at_once(self, finding: Finding) -> None:
        key = finding.rule, ""
        case = self._cases.get(key)
        if case is None:
            rise = raised(tuple(self.rows), tuple(self._rates), finding.evidence["step"])
            if rise is not None:
                claim = f"{finding.claim} {rise_in_words(rise)}"
                finding = replace(finding, claim=claim, evidence={**finding.evidence, "learning_rate": rise})
            self._cases[key] = _Case(finding, 1, 0, len(self.findings))
            self._tell(replace(finding, evidence={**finding.evidence, "told_at": finding.evidence["seen_at"]}))
        elif case.at is not None and finding.where and not self.findings[case.at].where:
            before = self.findings[case.at].evidence
            if finding.evidence["step"] == before["step"]:  # the same one, and now its block is known
                self.findings[case.at] = replace(finding, evidence={**finding.evidence, "told_at": before["told_at"]})
                self.history.append(self.findings[case.at])

    def _tell(self, finding: Finding) -> None:
        self.findings.append(finding)
        self._remember(finding)

    def _remember(self, finding: Finding) -> None:
        self.history.append(finding)
        # A bundle holds the pass before an update: where training stands still none comes, and then a good one.
        if self.keeper is not None and finding.severity == "error" and finding.rule != SKIPPED:
            self.keeper.ask(finding)

    def _end(self, rule: str, step: int) -> None:
        case = self._cases.pop((rule, ""), None)
        if case is not None and case.at is not None:
            self._clear(case.at, step)

    def _clear(self, at: int, step: int) -> None:
        finding = self.findings[at]
        self.findings[at] = replace(
            finding,
            status="clear",
            claim=f"{finding.claim} Cleared at step {step}.",
            evidence={**finding.evidence, "cleared_at": step},
        )
        self.history.append(self.findings[at])

    def _in_block(self, finding: Finding) -> Finding:
        """Name the block of a parameter, where the blocks are known."""
        name = finding.where.get("first", "")
        for site in self.blocks.sites if self.blocks is not None else ():
            if name in site.parameters:
                return replace(finding, where={"first": site.name, "last": site.name})
        return finding


def _columns(sample: Sample, sites: int) -> Tensor:
    return torch.cat([values_of(sample, signal, sites) for signal in COMPARED])


_ORDER: Final = {"info": 0, "warn": 1, "error": 2}


def _worse(finding: Finding, told: Finding) -> bool:
    return _ORDER[finding.severity] > _ORDER[told.severity]
