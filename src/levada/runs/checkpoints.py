"""Look at the checkpoints of a training, `checkpoints/step-NNNNNNNN`, without torch: is each as it was written?"""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, final

from levada.runs.frames import Damage

__all__ = [
    "CHECKPOINTS",
    "MARKER",
    "NAME",
    "Stored",
    "aside",
    "checksums",
    "examine_checkpoints",
    "put_aside",
    "stored",
    "verify",
]

CHECKPOINTS: Final = "checkpoints"
MARKER: Final = "complete.json"
NAME: Final = re.compile(r"step-(\d{8,})")
_ASIDE: Final = re.compile(r"step-(\d{8,})\.damaged(-\d+)?")
_BLOCK: Final = 1 << 20


@final
@dataclass(frozen=True, slots=True)
class Stored:
    """A checkpoint that was declared complete.

    Attributes:
        step: number of steps done.
        path: its folder.
        damage: why it cannot be used; "" if nothing speaks against it.
    """

    step: int
    path: Path
    damage: str = ""

    @property
    def told(self) -> str:
        """Its name, and its damage."""
        return f"{self.path.name} ({self.damage})"


def stored(folder: Path) -> list[Stored]:
    """Give the checkpoints that were declared complete, the newest first; of their files only the sizes are looked at.

    A checkpoint's marker is written last, once all of its files are on the disk, and is removed first.

    Args:
        folder: where they are.
    """
    named = ((NAME.fullmatch(path.name), path) for path in folder.iterdir()) if folder.is_dir() else ()
    found = [(int(match[1]), path) for match, path in named if match and (path / MARKER).exists()]
    return [Stored(step, path, _damage(path, bytes_too=False)) for step, path in sorted(found, reverse=True)]


def verify(path: Path) -> str:
    """Compare a checkpoint with what its marker says, every byte; give its damage, "" if there is none.

    Checkpoints of an earlier levada have no checksums; of those the sizes are compared.

    Args:
        path: the checkpoint.

    Cost:
        Reads all of it.
    """
    return _damage(path, bytes_too=True)


def checksums(path: Path) -> dict[str, int]:
    """Give the CRC-32 of each file of a checkpoint.

    Args:
        path: its folder.
    """
    return {file.name: _checksum(file) for file in sorted(path.iterdir()) if file.name != MARKER}


def put_aside(path: Path) -> Path:
    """Move a damaged checkpoint to a name under which it is not loaded and not removed; give that.

    Args:
        path: its folder.
    """
    free, number = path.with_name(f"{path.name}.damaged"), 1
    while free.exists():
        number += 1
        free = path.with_name(f"{path.name}.damaged-{number}")
    return path.rename(free)


def aside(folder: Path) -> list[Path]:
    """Give what `put_aside` moved.

    Args:
        folder: where checkpoints are.
    """
    return [path for path in sorted(folder.glob("step-*")) if _ASIDE.fullmatch(path.name)]


def examine_checkpoints(run: Path) -> tuple[int, list[Damage], list[str]]:
    """Count the checkpoints of a run, say which are damaged, and name those that were set aside and took nothing.

    One that was set aside took something if there is no good one of its step or a later one.

    Args:
        run: the run's folder.
    """
    folder, damages, newest = run / CHECKPOINTS, [], -1
    found = stored(folder)
    for one in found:
        damage = one.damage or verify(one.path)
        if damage:
            damages.append(Damage("file", 0, 0, f"{CHECKPOINTS}/{one.path.name} cannot be used: {damage}"))
        else:
            newest = max(newest, one.step)
    harmless = []
    for path in aside(folder):
        if (match := _ASIDE.fullmatch(path.name)) and int(match[1]) <= newest:
            harmless.append(path.name)
        else:
            told = f"{CHECKPOINTS}/{path.name} was damaged, and none of its step or a later one is there"
            damages.append(Damage("file", 0, 0, told))
    return len(found), damages, harmless


def _damage(path: Path, *, bytes_too: bool) -> str:
    try:
        marker: Any = json.loads((path / MARKER).read_bytes())
        sizes = {str(name): int(size) for name, size in marker["files"].items()}
        sums = marker.get("crc32", {})
        if not isinstance(sums, Mapping) or (sums and sums.keys() != sizes.keys()):
            return f"{MARKER} does not say the checksum of each file"
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return f"{MARKER} cannot be read"
    for name, size in sizes.items():
        file = path / name
        try:
            if (found := file.stat().st_size) != size:
                return f"{name} has {found:,} bytes, and {size:,} were written"
            if bytes_too and sums and _checksum(file) != sums[name]:
                return f"the checksum of {name} differs"
        except FileNotFoundError:
            return f"{name} is missing"
        except OSError as error:
            return f"{name} cannot be read ({error.strerror})"
    return ""


def _checksum(path: Path) -> int:
    found = 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            found = zlib.crc32(block, found)
    return found
