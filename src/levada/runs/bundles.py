"""Look at the kept steps of a run, `bundles/step-NNNNNN-RULE`, without torch: is each whole, as its table says?"""

from __future__ import annotations

import hashlib
import json
import shlex
import zipfile
import zlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, final

from levada.runs.frames import Damage

__all__ = ["BUNDLES", "CHECKSUM", "Kept", "bundles_of", "checksum_of", "examine_bundles", "look_at", "replayed"]

BUNDLES: Final = "bundles"
CHECKSUM: Final = "crc32"
_TABLE, _TENSORS = "bundle.json", "tensors.pt"
# What a table of values without their tensors may take.
_MAX_TABLE: Final = 2**28


@final
@dataclass(frozen=True, slots=True)
class Kept:
    """What was found of a bundle.

    Attributes:
        folder: where it is.
        damage: why it cannot be replayed; "" if it can.
        left: sentences that say what of it can be used all the same; "" if it is whole.
        model: class of the model whose step it is; "" where that is not known.
    """

    folder: Path
    damage: str = ""
    left: str = ""
    model: str = ""


def bundles_of(run: Path) -> list[Path]:
    """Give the folders of a run's bundles, sorted, whether they are whole or not.

    Args:
        run: the run's folder.
    """
    # A draft is hidden until it is whole; other folders are the user's.
    return [path for path in sorted((run / BUNDLES).glob("step-*")) if path.is_dir()]


def replayed(folder: Path) -> tuple[str, bool]:
    """Give the command that runs a kept step again, and whether it is whole.

    Of a run inside of a training, the training's configuration builds the model; else its user knows what does.

    Args:
        folder: the bundle.

    Example:
        >>> replayed(Path("/runs/a/bundles/step-000007-loss_spike"))
        ('levada replay /runs/a/bundles/step-000007-loss_spike --model FILE.py:NAME', False)
    """
    folder = folder.absolute()  # the words may be read elsewhere than where they were written
    watched = folder.parents[1].parent
    config = watched.parent / "config.toml"
    whole = watched.name == "watch" and config.is_file()
    return shlex.join(["levada", "replay", str(folder), "--model", str(config) if whole else "FILE.py:NAME"]), whole


def examine_bundles(run: Path) -> tuple[int, list[Damage]]:
    """Count the bundles of a run, and say which are damaged: the table says the checksum of the tensors.

    Args:
        run: the run's folder.
    """
    found, damages = bundles_of(run), []
    for kept in map(look_at, found):
        if kept.damage:
            size = 0
            with suppress(OSError):
                size = sum(path.stat().st_size for path in kept.folder.iterdir())
            told = f"{BUNDLES}/{kept.folder.name} cannot be replayed: {kept.damage}. {kept.left}"
            damages.append(Damage("file", 0, size, told.removesuffix(".")))
    return len(found), damages


def look_at(folder: Path) -> Kept:
    """Look at every byte of a bundle.

    Args:
        folder: the bundle.

    Cost:
        Reads all of it, which may be some gigabytes.
    """
    table = _table(folder)
    if isinstance(table, str):
        return Kept(folder, table, _without_table(folder))
    model = str(facts.get("model") or "") if isinstance(facts := table.get("facts"), Mapping) else ""
    try:
        with (folder / _TENSORS).open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        return Kept(folder, f"{_TENSORS} is missing", _without_tensors(table), model)
    except OSError as error:
        return Kept(folder, f"{_TENSORS} cannot be read ({error.strerror})", _without_tensors(table), model)
    if found == table["sha256"]:
        return Kept(folder, model=model)
    reason = f"the bytes of {_TENSORS} are not those whose checksum is in {_TABLE}"
    return Kept(folder, reason, _without_tensors(table), model)


def _table(folder: Path) -> dict[str, Any] | str:
    """Give the table, or why it cannot be read."""
    try:
        if (folder / _TABLE).stat().st_size > _MAX_TABLE:
            return f"{_TABLE} is longer than {_MAX_TABLE:,} bytes"
        table = json.loads((folder / _TABLE).read_bytes())
    except FileNotFoundError:
        return f"{_TABLE} is missing"
    except OSError as error:
        return f"{_TABLE} cannot be read ({error.strerror})"
    except (ValueError, RecursionError):
        return f"{_TABLE} is damaged: it is not JSON"
    if not isinstance(table, dict) or not isinstance(table.get("sha256"), str):
        return f"{_TABLE} is damaged: it does not say the checksum of {_TENSORS}"
    if table.get(CHECKSUM, found := checksum_of(table)) != found:  # bundles of before this was written have none
        return f"{_TABLE} is damaged: its checksum differs"
    return table


def checksum_of(table: Mapping[str, Any]) -> int:
    """Give the checksum of a bundle's table, however it is laid out as text: of all but the checksum itself.

    Args:
        table: what JSON can hold.

    Example:
        >>> checksum_of({"step": 7, "rule": "loss_spike"}) == checksum_of({"rule": "loss_spike", "step": 7, "crc32": 1})
        True
    """
    others = {key: value for key, value in table.items() if key != CHECKSUM}
    return zlib.crc32(json.dumps(others, sort_keys=True, separators=(",", ":")).encode())


def _without_tensors(table: Mapping[str, Any]) -> str:
    """Say what a table is good for whose tensors are lost."""
    checkpoint = table.get("checkpoint")
    begin = f" from the checkpoint {checkpoint}" if checkpoint else ""
    again = f"a training that is repeated{begin} with the same seed and data comes to step {table.get('step')} again"
    return f"{_TABLE} still says the step, why it was kept and what was found; {again}."


def _without_table(folder: Path) -> str:
    """Say what tensors are good for whose table is lost."""
    path = folder / _TENSORS
    if not zipfile.is_zipfile(path):
        return "Nothing of it can be used: its name says the step and the rule."
    return f"The tensors may still be read, by name: torch.load({str(path)!r}, weights_only=True)."
