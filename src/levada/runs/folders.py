"""Where a run keeps what."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

__all__ = ["PARTS", "part_folders", "rank_folder", "rank_folders"]

PARTS: Final = ("mixing", "gates")
"""What is kept of a rank beside the signals of its blocks, each in a folder of the same form inside of the rank's."""

_SIGNALS: Final = "signals"
_RANK: Final = re.compile(r"rank-(\d{5,9})")


def rank_folder(run: Path, rank: int, part: str = "") -> Path:
    """Give the folder of a rank's signals, or of another part that is kept of it."""
    return run / _SIGNALS / f"rank-{rank:05d}" / part


def rank_folders(run: Path) -> dict[int, Path]:
    """Find the ranks whose signals a run keeps."""
    folders = (run / _SIGNALS).glob("rank-*")
    return {int(match[1]): path for path in folders if (match := _RANK.fullmatch(path.name)) and path.is_dir()}


def part_folders(folder: Path) -> dict[str, Path]:
    """Find the parts that a rank keeps beside its signals, by name.

    Args:
        folder: of the rank.
    """
    return {part: folder / part for part in PARTS if (folder / part).is_dir() and not (folder / part).is_symlink()}
