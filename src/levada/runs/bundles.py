"""Look at the kept steps of a run, `bundles/step-NNNNNN-RULE`, without torch: is each whole, as its table says?"""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from pathlib import Path
from typing import Final

from levada.runs.frames import Damage

__all__ = ["BUNDLES", "examine_bundles"]

BUNDLES: Final = "bundles"
_TABLE, _TENSORS = "bundle.json", "tensors.pt"
# What a table of values without their tensors may take.
_MAX_TABLE: Final = 2**28


def examine_bundles(run: Path) -> tuple[int, list[Damage]]:
    """Count the bundles of a run, and say which are damaged: the table says the checksum of the tensors."""
    count, damages = 0, []
    for folder in sorted((run / BUNDLES).glob("*")):
        if folder.is_dir() and not folder.name.startswith("."):  # a draft is hidden until it is whole
            count += 1
            if reason := _wrong(folder):
                size = 0
                with suppress(OSError):
                    size = sum(path.stat().st_size for path in folder.iterdir())
                damages.append(Damage("file", 0, size, f"{BUNDLES}/{folder.name} cannot be replayed: {reason}"))
    return count, damages


def _wrong(folder: Path) -> str:
    try:
        if (folder / _TABLE).stat().st_size > _MAX_TABLE:
            return f"{_TABLE} is longer than {_MAX_TABLE:,} bytes"
        expected = json.loads((folder / _TABLE).read_bytes())["sha256"]
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        return f"{_TABLE} is missing or is none ({error!r})"
    try:
        with (folder / _TENSORS).open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        return f"{_TENSORS} cannot be read ({error.strerror})"
    return "" if found == expected else f"the bytes of {_TENSORS} are not those whose checksum is in {_TABLE}"
