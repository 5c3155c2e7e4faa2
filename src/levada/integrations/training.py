"""What callbacks for trainers share: a watch that begins and ends with the training, and what of it is told."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, final

from levada._names import CALLED
from levada.watching.arguments import require_options
from levada.watching.measure.sample import Continue
from levada.watching.record.news import News

if TYPE_CHECKING:
    from levada.diagnose import Finding
    from levada.watching import Watch

__all__ = ["Watched"]


@final
class Watched:
    """A watch whose beginning and end another library's trainer decides.

    Args:
        options: of `levada.watch`.

    Raises:
        UsageError: if `levada.watch` has one of them not, or would refuse it.
    """

    def __init__(self, options: Mapping[str, Any]) -> None:
        self.watch: Watch | None = None
        self._options = require_options("LevadaCallback", options, own=("stop_on_error",))
        self._begun = 0
        self._news = News()
        self._reported = -1

    def begin(self, model: Any, optimizers: Sequence[Any], scaler: Any) -> None:
        """Watch from now; a training before this one, which ended without saying so, is over."""
        from levada.watching.watch import watch

        self.close()
        self._begun += 1
        self._news, self._reported = News(), -1
        options = dict(self._options)
        if self._begun > 1:
            # The record of a training is never continued by another one, also where a trainer begins again by itself.
            options["run"] = _numbered(options["run"], self._begun)
        self.watch = watch(model, list(optimizers), scaler=scaler, **options)

    def news(self) -> list[Finding]:
        """Give what was found since the last call, each with a warning."""
        if self.watch is None:
            return []
        found = [each for each in self._news.of(self.watch.findings) if each.status == "fired"]
        for finding in found:
            text = f"levada, step {self.watch.steps}: {CALLED[finding.severity]} {finding.rule}: {finding.claim}"
            warnings.warn(f"{text} {finding.consequence}".rstrip(), UserWarning, stacklevel=3)
        return found

    def numbers(self, *, once: bool = False) -> dict[str, float]:
        """Give the last sample's summary, for the trainer's logs; with `once`, only if it was not given before."""
        if self.watch is None or not self.watch.samples:
            return {}
        sample = self.watch.samples[-1]
        if once and sample.step == self._reported:
            return {}
        self._reported = sample.step
        told = {f"levada/{name}": sample.scalars.get(name, math.nan) for name in ("overhead", "gradient_norm")}
        for name in ("gradient_rms", "signal_rms", "update_ratio"):
            row = sample.values[name]
            told |= {f"levada/{name}_first": row[0].item(), f"levada/{name}_last": row[-1].item()}
        numbers = {name: value for name, value in told.items() if not math.isnan(value)}
        for severity in ("error", "warn"):
            fired = [each for each in self.watch.findings if each.status == "fired" and each.severity == severity]
            numbers[f"levada/findings_{severity}"] = float(len(fired))
        return numbers

    def close(self) -> None:
        """Watch no more; again is harmless. What was measured stays readable."""
        if self.watch is not None:
            self.watch.close()


def _numbered(run: Any, number: int) -> Any:
    """Give the place of the record of another training, beside the first one's and not in it."""
    if isinstance(run, Continue):
        run = run.folder
    return None if run is None else f"{str(run).rstrip('/')}-{number}"


def is_error(findings: Sequence[Finding]) -> bool:
    """Say whether one of the findings is an error."""
    return any(finding.severity == "error" for finding in findings)
