"""Keep a watched run on disk: samples by rank, and as events the losses, the verdicts and what watching cost."""

from __future__ import annotations

import json
import os
import re
import sys
import threading
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, Final, Protocol, final

import torch
from torch import Tensor

from levada._errors import TakenError, UsageError
from levada._numbers import json_ready
from levada._ranks import is_one_of_several
from levada._termination import PATIENCE, before_end
from levada.diagnose.finding import Finding
from levada.probe.trace import Site
from levada.runs import RunWriter, SignalWriter
from levada.runs.address import require_local
from levada.runs.folders import rank_folder
from levada.runs.losses import APART, LOGGED
from levada.runs.manifest import MANIFEST, name_of
from levada.runs.rank_log import RankLog
from levada.runs.remote import Mirror, is_remote, stage
from levada.runs.standing import CONTINUED, EVENT, Standing
from levada.watching.loop.places import class_of
from levada.watching.measure.coded import codes_of, to_bytes
from levada.watching.measure.sample import WATCHED, Sample
from levada.watching.record.events import Events
from levada.watching.record.kept_coefficients import KeptCoefficients
from levada.watching.record.kept_losses import KeptLosses
from levada.watching.record.kept_scalars import KeptScalars
from levada.watching.record.since import Since
from levada.watching.verdict.ledger import case_of
from levada.watching.verdict.series import kinds_apart

__all__ = ["Recording", "Watched"]

_AS_TEXT: Final = "Write it as text: pathlib takes one of its slashes away."
_LONGEST: Final = 2_000  # characters of an error that ended a training
_NUMBER: Final = re.compile(r"\d[\d,.]*(e[+-]?\d+)?")
_SITE: Final = tuple(field.name for field in fields(Site))


class Watched(Protocol):
    """What a recording asks of the watch that it records."""

    @property
    def sites(self) -> Sequence[Site]:
        """Block boundaries, known when the first sample comes."""

    @property
    def findings(self) -> Sequence[Finding]:
        """Verdicts so far."""

    @property
    def overhead(self) -> float:
        """Measured share of the training time."""

    @property
    def standing(self) -> Standing:
        """The verdict so far, and what it rests on."""

    @property
    def steps(self) -> int:
        """Number of completed steps, with those of the run that this one goes on with."""


def _begin(folder: Path, name: str, config: Mapping[str, Any] | None) -> RunWriter:
    try:
        return RunWriter.create(folder, kind="watch", name=name, config=config)
    except TakenError as error:
        advice = "Choose another folder, or go on with the run by run=levada.watching.Continue(folder, step)."
        raise TakenError(error.rule, advice) from error


@final
class Recording:
    """Hears a watched run and keeps it in a Run folder of kind "watch"; a `Listener`.

    Rank 0 keeps the manifest and the events: "loss" (steps and values since the sample before, or of a quarter of a
    second where samples are rarer), "apart" (optimizers that take turns have losses of their own), "logged" (behind the
    last sample, as often), "finding", "judged" (by which rules, and why not by others), "bundle", "overhead", "end",
    and "continued" where another process goes on; every rank keeps its samples (`levada.runs.SignalWriter`), and beside
    them what was found in it, and by which rules it was judged; that of a pipeline's last stage the losses too.

    Nothing here stops the training: what cannot be stored is told by one warning, verdicts wait in memory until the
    disk takes them again.

    Args:
        folder: the run; or an address, as "s3://bucket/run": it is written to a local folder, and mirrored from there.
        watch: what is recorded.
        name: the run's name; the folder's by default.
        config: settings to keep in the manifest; by default the class of the model, as what tells two networks apart.
        rank: of this process; that of torch.distributed by default.
        resume: go on with the run if the folder holds one.
        keep: how many of the newest samples are kept in full detail; older ones, away from findings, only as minimum,
            mean and maximum of 16, later of 256.

    Raises:
        UsageError: if the folder holds a run and `resume` is false, or another writer is at work in it.
        OSError: if the folder cannot be written.

    Example:
        >>> import tempfile
        >>> from types import SimpleNamespace
        >>> from levada.runs import Run
        >>> sites = (Site("0", 0, "Linear", (4, 2)),)
        >>> watch = SimpleNamespace(sites=sites, findings=[], overhead=0.004, standing=Standing(), steps=0)
        >>> folder = tempfile.mkdtemp()
        >>> recording = Recording(folder, watch)
        >>> recording.sampled(Sample(0, 1.0, {"gradient_rms": torch.tensor([0.5])}, losses=((0, 2.5),)))
        >>> recording.close()
        >>> Run(folder).signals().read("gradient_rms"), Run(folder).losses()
        ([[0.5]], [(0, 2.5)])
    """

    def __init__(
        self,
        folder: str | Path,
        watch: Watched,
        *,
        name: str | None = None,
        config: Mapping[str, Any] | None = None,
        rank: int | None = None,
        resume: bool = False,
        keep: int = 4096,
    ) -> None:
        address = folder if isinstance(folder, str) and is_remote(folder) else None
        if address is None:
            require_local("levada.watch: run must be a folder, or an address as text", folder, _AS_TEXT)
        if rank is None:
            distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
            rank = torch.distributed.get_rank() if distributed else 0
        self.folder = Path(folder).absolute() if address is None else stage(address, rank=rank, resume=resume)
        self.rank = rank
        self._watch, self._keep, self._process = watch, keep, os.getpid()
        writer: RunWriter | RankLog
        if rank > 0:
            writer = RankLog(rank_folder(self.folder, rank))
            goes_on = writer.goes_on
        elif goes_on := resume and (self.folder / MANIFEST).exists():
            writer = RunWriter.open(self.folder)
        else:
            settings = {"model": class_of(watch)} if config is None and class_of(watch) else config
            writer = _begin(self.folder, name or name_of(self.folder.resolve()) or "watch", settings)
        self._events = Events(writer, self.close)
        if goes_on and not isinstance(watch, Since):
            self._events.add(CONTINUED, step=watch.steps)
        self._mirror = None if address is None else Mirror(self.folder, address, rank=rank)
        self._signals: SignalWriter | None = None
        self._sites: tuple[Site, ...] = ()
        self._problem: str | None = None
        self._told = self._closed = False
        self._heard: list[Finding] = []
        self._steps = self._samples = self._dropped = 0
        ended = getattr(watch, "ended_losses", tuple)
        several = len(getattr(watch, "optimizers", ())) > 1
        turns = {"turn_of": watch.turn_of} if several and hasattr(watch, "turn_of") else {}
        self._losses = KeptLosses(self._add_losses, ended, shared=is_one_of_several(), **turns)
        self._apart = False  # whether it was told that optimizers have losses of their own
        self._scalars = KeptScalars(self._events.add)
        self._coefficients = KeptCoefficients(self.folder, rank, keep, self._events.add)
        self._left: int | None = None
        self._judged, self._judged_at = "", 0  # what was kept last, and at which sample
        self._bundles = self._bundle_names()
        self._over = threading.Event()
        before_end(self._close_beside)

    @property
    def problem(self) -> str | None:
        """Why something is not stored, or None."""
        signals = (self._signals.problem or self._signals.left) if self._signals is not None else None
        return self._problem or signals or self._coefficients.problem or self._events.problem

    @property
    def dropped(self) -> int:
        """How many samples were not stored."""
        return self._dropped + (self._signals.dropped if self._signals is not None else 0)

    @property
    def waiting(self) -> tuple[tuple[str, dict[str, Any]], ...]:
        """Events that the disk has not taken yet: type and fields."""
        return self._events.waiting

    def before_update(self, step: int, loss: Tensor | None) -> None:
        """Remember the loss, on its device; those before it are written, if no sample has brought them in time."""
        if self._closed or os.getpid() != self._process:
            return
        if loss is not None:
            self._steps = max(self._steps, step + 1)
            self._losses.hear(step, loss)
        self._scalars.look()

    def step_left(self, step: int, loss: Tensor | None) -> None:
        """Remember the loss of a step that is left before its update, and is none of those that were made."""
        self.before_update(step, loss)
        self._left = step

    def sampled(self, sample: Sample) -> None:
        """Keep a sample, the losses before it, and the verdicts that are new."""
        if self._closed or os.getpid() != self._process:
            return
        self._samples += 1
        self._steps = max(self._steps, sample.step + 1)
        self._losses.sampled(sample)
        if not self._apart and (kinds := kinds_apart(self._watch)):
            self._apart = True
            self._add_losses(APART, step=sample.step, optimizers=kinds)
        self._scalars.sampled(sample)
        self._keep_sample(sample)
        self._coefficients.sampled(sample)
        self._hear(sample.step)
        self._keep_standing(sample.step)
        self._tell()

    def found_between_samples(self, step: int) -> None:
        """Keep the verdicts and bundles that are new, and the losses that led to them."""
        if not self._closed and os.getpid() == self._process:
            self._losses.found(step)
            self._hear(step, bundles=True)
            self._keep_standing(step)

    def flush(self, seconds: float = 60.0) -> bool:
        """Wait until what was heard is handed to the operating system; False if it is not in so many seconds."""
        writers = (self._signals, self._coefficients, self._events)
        done = [writer.flush(seconds) for writer in writers if writer is not None]
        return all(done)

    def close(self) -> None:
        """Keep what is new, say how the run ended, and let the next writer in; again is harmless."""
        if self._closed or os.getpid() != self._process:
            return
        self._closed = True
        try:
            self._end()
        finally:
            self._over.set()

    def _close_beside(self) -> None:
        """Close by another thread than the loop's; where that is closing, wait for it."""
        self.close()
        self._over.wait(PATIENCE)

    def _end(self) -> None:
        self._steps = max(self._steps, self._watch.steps)
        self._hear(self._steps - 1)
        if self._signals is not None:
            self._signals.close()
        self._coefficients.close()
        events = self._events
        try:
            self._losses.keep(self._steps)
        except RuntimeError:  # a device that failed has no losses to give
            events.losses_dropped += len(self._losses)
        self._keep_standing(self._steps - 1, last=True)
        if self.rank == 0:
            events.add("overhead", step=self._steps - 1, share=float(self._watch.overhead))
            end = {"steps": self._steps, "samples": self._samples, "dropped": self.dropped, "problem": self.problem}
            end["keep"] = self._keep
            error = sys.exc_info()[1]
            if self._left is not None and self._left >= self._watch.steps:
                end |= {"steps": self._left, "left": self._left}
            if isinstance(error, Exception | KeyboardInterrupt):  # a with-block is left by it
                end["error"] = " ".join(f"{type(error).__name__}: {error}".split())[:_LONGEST]
            events.add("end", losses_dropped=lambda: events.losses_dropped, **end)
        events.close()
        if self._mirror is not None:
            self._mirror.close()
        self._tell()

    def _add_losses(self, type: str, **payload: Any) -> None:
        """Keep losses where they are told: by the first process, and of a pipeline by those of its last stage."""
        if self.rank:
            told = self._watch.standing
            if told.num_stages - 1 not in told.stages:
                return
        self._events.add(type, **payload)

    def logged(self, step: int, scalars: Mapping[str, float]) -> None:
        """Keep what the loop logged behind the last sample.

        Args:
            step: the last one.
            scalars: name -> number.
        """
        if not self._closed and os.getpid() == self._process:
            self._scalars.forget()
            self._events.add(LOGGED, step=step, values=dict(scalars))

    def noted(self, step: int, scalars: Mapping[str, float]) -> None:
        """Keep what the loop logs, if no sample brings it in time.

        Args:
            step: which is under way.
            scalars: name -> number.
        """
        if not self._closed and os.getpid() == self._process:
            self._scalars.hear(step, scalars)

    def _keep_standing(self, step: int, *, last: bool = False) -> None:
        """Keep which rules have judged the run, where that or a reason has changed; at the end, with the counts too.

        Where a reason's numbers alone are others, as the median of a loss is with each sample, it is kept again when
        there are twice as many samples.
        """
        standing = self._watch.standing
        fields = standing.event(counts=False)
        told = json.dumps(fields)
        alike = _NUMBER.sub("#", told) == _NUMBER.sub("#", self._judged) and self._samples < 2 * self._judged_at
        if not (standing.judged or standing.unjudged) or (not last and (alike or told == self._judged)):
            return
        self._judged, self._judged_at = told, self._samples
        self._events.add(EVENT, step=step, **(standing.event() if last else fields))

    def _keep_sample(self, sample: Sample) -> None:
        sites = tuple(self._watch.sites)
        if self._signals is None or sites != self._sites:
            self._open(sites)
        if self._signals is None:
            self._dropped += 1
            return
        absent = torch.full((len(sites),), float("nan"), dtype=torch.float64)
        rows = [sample.values.get(name, absent) for name in WATCHED]

        def codes() -> bytes:
            return to_bytes(codes_of(torch.stack([row.to("cpu", torch.float64) for row in rows])))

        self._signals.append(sample.step, sample.time, codes, sample.scalars)

    def _open(self, sites: tuple[Site, ...]) -> None:
        """Begin to write the samples of these sites; on the second call, because the model is another one now."""
        if self._signals is not None:
            self._signals.close()
            self._dropped += self._signals.dropped
            self._signals = None
        if sites == self._sites and self._problem is not None:
            return
        self._sites = sites
        # Not by `asdict`, which copies each of ten thousand names.
        table = [{name: getattr(site, name) for name in _SITE} for site in sites]
        try:
            self._signals = SignalWriter(
                self.folder, rank=self.rank, sites=table, signals=WATCHED, keep=self._keep, warn=False
            )
        except (OSError, UsageError) as error:
            self._problem = f"{error}"

    def _hear(self, step: int, *, bundles: bool = False) -> None:
        """Keep the verdicts that are new, and the detail around them."""
        known = set(map(id, self._heard))
        found = list(self._watch.findings)
        new = [finding for finding in found if id(finding) not in known]
        self._heard = found  # what it replaces is let go; of what stands, nothing else has the identity
        for finding in new:
            self._events.add("finding", step=step, case=case_of(finding), **_fields(finding))
            if self._signals is not None and finding.status == "fired":
                self._signals.mark(step)
                self._coefficients.mark(step)
        if self.rank == 0 and (new or bundles or self._closed):
            for name in sorted(self._bundle_names() - self._bundles):
                self._bundles.add(name)
                self._events.add("bundle", step=step, path=f"bundles/{name}")

    def _bundle_names(self) -> set[str]:
        with suppress(OSError):
            return {path.parent.name for path in self.folder.glob("bundles/*/bundle.json")}
        return set()

    def _tell(self) -> None:
        """Warn once; where warnings are errors, they are not made to stop the training."""
        if self.problem is not None and not self._told:
            self._told = True
            with suppress(Warning):
                message = f"{self.folder}: not everything is stored, and training goes on: {self.problem}"
                warnings.warn(message, RuntimeWarning, stacklevel=3)


def _fields(finding: Finding) -> dict[str, Any]:
    """Give a finding as JSON can hold it; what cannot be, as text."""
    found: dict[str, Any] = asdict(finding)
    for table in (found["evidence"], found):  # what can be of the evidence stays
        for key, value in table.items():
            try:
                table[key] = json_ready(value, key)
            except UsageError:
                table[key] = repr(value)
    return found
