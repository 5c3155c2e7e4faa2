"""What the reading process answers: each question is a function of the served folder and some values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel

from levada.web.depth import memory_of, mixing_of
from levada.web.drawings import drawings_of
from levada.web.heat import heat_of
from levada.web.inside import watched_gates
from levada.web.pictures import GatesOf, HeatOf, LossOf, MixingOf
from levada.web.series import loss_of
from levada.web.summary import row_of, summary_of

__all__ = ["QUESTIONS"]


def _row(root: Path, run: str, id: str) -> BaseModel:
    return row_of(root / run, id, run)


def _summary(root: Path, run: str, id: str) -> BaseModel:
    return summary_of(root / run, id, run)


def _loss(root: Path, run: str, asked: dict[str, Any]) -> BaseModel:
    return loss_of(root / run, LossOf(**asked))


def _heat(root: Path, run: str, asked: dict[str, Any]) -> BaseModel:
    return heat_of(root / run, HeatOf(**asked))


def _mixing(root: Path, run: str, asked: dict[str, Any]) -> BaseModel:
    return mixing_of(root / run, MixingOf(**asked))


def _gates(root: Path, run: str, asked: dict[str, Any]) -> BaseModel:
    return watched_gates(root / run, GatesOf(**asked))


def _memory(root: Path, run: str) -> BaseModel:
    return memory_of(root / run)


def _drawings(root: Path, run: str) -> BaseModel:
    return drawings_of(root / run)


QUESTIONS: Final[Mapping[str, Callable[..., BaseModel]]] = {
    "row": _row,
    "summary": _summary,
    "loss": _loss,
    "heat": _heat,
    "mixing": _mixing,
    "gates": _gates,
    "memory": _memory,
    "drawings": _drawings,
}
"""By name; the first argument is the served folder, the others come as JSON."""
