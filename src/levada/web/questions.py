"""What the reading process answers: each question is a function of the served folder and some values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from pydantic import BaseModel

from levada.web.summary import row_of, summary_of

__all__ = ["QUESTIONS"]


def _row(root: Path, run: str, id: str) -> BaseModel:
    return row_of(root / run, id, run)


def _summary(root: Path, run: str, id: str) -> BaseModel:
    return summary_of(root / run, id, run)


QUESTIONS: Final[Mapping[str, Callable[..., BaseModel]]] = {"row": _row, "summary": _summary}
"""By name; the first argument is the served folder, the others come as JSON."""
