"""What `fix` returns: the repaired copy, the change in code, and everything that was tried."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias, final

import torch
from torch import nn

from levada._numbers import json_ready
from levada.diagnose.remedies import Patch
from levada.diagnose.report import Report
from levada.diagnose.verify import Trial

__all__ = ["Fix", "Outcome"]

Outcome: TypeAlias = Literal["healthy", "repaired", "helps", "not repaired", "unknown"]
SCHEMA = 1
_WORDS = {
    "healthy": "there is nothing to repair",
    "repaired": "a remedy helps, and nothing that was found is left",
    "helps": "a remedy helps, and something that was found is left",
    "not repaired": "no remedy that was tried helps",
    "unknown": "it is not known what would help",
}


@final
@dataclass(frozen=True, slots=True)
class Fix:
    """What repairs a model.

    Attributes:
        outcome: "healthy": nothing is to be repaired; "repaired": a remedy helps, in a check of the repaired copy no
            error fires and nothing that fired before, its training is steady, and the loss ends below that of outputs
            of zero; "helps": it helps, and one of these is not so; "not repaired": none helps; "unknown".
        model: a copy of the model with the best remedy applied, before any training; None if there is none.
        patch: the change, as code; run where `model` is the model as it was (and `inputs` what it is called with, and
            `optimizer` its optimizer, if the code names them), it makes `model` what `Fix.model` is.
        before: the check of the model as it is; its findings have the remedies that were verified.
        after: the check of the repaired copy.
        trials: everything that was tried: what is proposed, the best first, then what is not.
        change: the parts of the patch; None if there is none.
        causes: what the remedies were to answer: rules that fired, and what training the model as it is showed.
        judged: what the losses of all trials are of, in words, if that is not the loss that was given.
        notes: what was left out, one sentence each.
        seconds: time that all of it took.
    """

    outcome: Outcome
    model: nn.Module | None
    patch: str
    before: Report
    after: Report | None
    trials: tuple[Trial, ...]
    change: Patch | None = None
    causes: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    seconds: float = 0.0
    judged: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the model as plain values: numbers are finite or one of "nan", "inf", "-inf"."""
        from levada import __version__

        told = {
            "schema": SCHEMA,
            "levada": __version__,
            "torch": str(torch.__version__),
            "model": self.before.model,
            "outcome": self.outcome,
            "seconds": round(self.seconds, 3),
            "remedy": self.trials[0].name if self.patch else None,
            "patch": self.patch,
            "causes": self.causes,
            "judged": self.judged,
            "trials": [asdict(trial) for trial in self.trials],
            "notes": self.notes,
        }
        ready = {key: json_ready(value, key) for key, value in told.items()}
        ready["before"] = self.before.to_dict()
        ready["after"] = self.after.to_dict() if self.after is not None else None
        return ready

    def to_json(self) -> str:
        """Return `to_dict` as JSON text.

        Example:
            >>> json.loads(Fix("healthy", None, "", Report("healthy", (), (), {}), None, ()).to_json())["outcome"]
            'healthy'
        """
        return json.dumps(self.to_dict(), indent=1, allow_nan=False)

    def __str__(self) -> str:
        lines = [f"{self.outcome}: {_WORDS[self.outcome]} ({self.seconds:.1f} s)"]
        lines += [f"  causes: {', '.join(self.causes)}"] if self.causes else []
        lines += [f"  losses are those of {self.judged}, on both sides"] if self.judged else []
        lines += [f"  {_line(trial)}" for trial in self.trials]
        lines += [f"  note: {note}" for note in self.notes]
        return "\n".join([*lines, *([self.patch] if self.patch else [])])


def _line(trial: Trial) -> str:
    if trial.effect is None:
        return f"{trial.name}: {trial.said}"
    between = f" [{trial.low:+.3f}, {trial.high:+.3f}]" if trial.low is not None and trial.high is not None else ""
    losses = f"loss {trial.before['loss']:.4g} -> {trial.after['loss']:.4g}"
    return f"{trial.name}: {losses}, effect {trial.effect:+.3f}{between}; {trial.said}"
