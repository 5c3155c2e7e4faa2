"""The remedy for parameters that nobody would draw like that: draw them again, and nothing else."""

from __future__ import annotations

from levada.diagnose.redraw import code_of
from levada.diagnose.remedies.remedy import Patch, Subject

__all__ = ["redraw"]


def redraw(subject: Subject) -> Patch | None:
    """Draw the parameters that lie far off again, as modules of their kind are drawn, and leave all others."""
    found = subject.facts.redrawn
    return None if found is None else Patch(code_of(found.culprits, subject.generator))
