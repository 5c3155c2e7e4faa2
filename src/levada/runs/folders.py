"""Where a run keeps what."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

__all__ = ["rank_folder", "rank_folders"]

_SIGNALS: Final = "signals"
_RANK: Final = re.compile(r"rank-(\d{5,9})")


def rank_folder(run: Path, rank: int) -> Path:
    """Give the folder of a rank's signals."""
    return run / _SIGNALS / f"rank-{rank:05d}"


def rank_folders(run: Path) -> dict[int, Path]:
    """Find the ranks whose signals a run keeps."""
    folders = (run / _SIGNALS).glob("rank-*")
    return {int(match[1]): path for path in folders if (match := _RANK.fullmatch(path.name)) and path.is_dir()}
