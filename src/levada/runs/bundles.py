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

from levada._errors import UsageError
from levada.runs.bundle_forms import SCHEMA, strange_entry
from levada.runs.frames import Damage
from levada.runs.manifest import MANIFEST

__all__ = [
    "BUNDLES",
    "CHECKSUM",
    "Kept",
    "bundles_of",
    "checksum_of",
    "examine_bundles",
    "look_at",
    "no_bundle",
    "read_table",
    "replayed",
    "require_runnable",
    "require_schema",
    "without_targets",
]

BUNDLES: Final = "bundles"
CHECKSUM: Final = "crc32"
_NAMED: Final = 6  # bundles that a message names
_HELD: Final = {"args": "inputs", "weights": "weights", "output_gradient": "the gradient of the output"}
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


def read_table(folder: Path) -> dict[str, Any]:
    """Read what a bundle says of itself.

    Args:
        folder: the bundle.

    Raises:
        UsageError: if it is none, was written by a later version, or is damaged.
    """
    table = _table(folder)
    if isinstance(table, str) or "schema" not in table:
        raise UsageError(f"replay: {no_bundle(folder)}")
    require_schema(table["schema"])
    if (kept := look_at(folder)).damage:
        raise UsageError(f"replay: {str(folder)!r} is damaged: {kept.damage}. {kept.left}")
    return table


def require_schema(schema: object) -> None:
    """Raise unless this version reads bundles of a schema.

    Args:
        schema: what the table says.

    Raises:
        UsageError: if it does not.
    """
    if schema != SCHEMA:
        raise UsageError(f"replay: this version reads bundles of schema {SCHEMA}, got {schema!r}. Update levada.")


def require_runnable(
    values: Mapping[str, Any], missing: Mapping[str, str], checkpoint: str | None, *, as_built: bool
) -> None:
    """Raise unless a bundle holds what its step can be run with.

    Args:
        values: what was kept, by name.
        missing: name of what was not -> why.
        checkpoint: that the user named last; None without.
        as_built: whether the model has its weights already.

    Raises:
        UsageError: if inputs or weights are not there.
    """
    if "args" not in values:
        raise UsageError(f"replay: the bundle must hold inputs, and this has none: {missing.get('args', '')}.")
    if "weights" not in values and not as_built:
        named = f" Let the model load the checkpoint {checkpoint}, and say" if checkpoint else " Say"
        raise UsageError(
            f"replay: the bundle holds no weights: {missing.get('weights', 'none were kept')}.{named} "
            "as_built (--as-built) to run it with the weights that the model has."
        )


def without_targets(table: Mapping[str, Any], own: str = "") -> str:
    """Say of a bundle without targets what it has, what can be done with that, and how to have them; "" if it has them.

    Args:
        table: what it says of itself.
        own: a loss of the user's, which may need the outputs alone.

    Example:
        >>> print(without_targets({"step": 7, "values": {"args": {}, "output_gradient": {}}}))
        step 7 was kept with inputs and the gradient of the output, but without targets: the backward pass begins at ...
    """
    held = table["values"]
    if "targets" in held:
        return ""
    has = [words for name, words in _HELD.items() if name in held]
    listed = " and ".join([", ".join(has[:-1]), has[-1]] if len(has) > 1 else has) or "nothing"
    done = "the backward pass begins at that gradient" if "output_gradient" in held else "the forward pass alone is run"
    done = f"{own} is given the outputs alone" if own else done
    later = "watch.note(targets=targets) in the loop keeps them next time"
    return f"step {table.get('step')} was kept with {listed}, but without targets: {done}. {later}."


def no_bundle(folder: Path) -> str:
    """Say why a folder is no bundle, and which bundles are near.

    Args:
        folder: what was taken for one.
    """
    rule = f"a bundle is a folder with a {_TABLE} that says its schema, got {str(folder)!r}"
    if folder.is_file():
        whole = f"the folder: {folder.parent}" if (folder.parent / _TABLE).is_file() else "a folder in a run's bundles."
        return f"{rule}, which is a file. Give {whole}"
    if not folder.exists():
        return f"{rule}, which does not exist. Check the path."
    kept_here = folder.parent.name == BUNDLES or (folder / _TABLE).is_file()
    if kept_here and (kept := look_at(folder)).damage:
        return f"{rule}, which is damaged: {kept.damage}. {kept.left}"
    runs = [folder] if folder.name != BUNDLES else [folder.parent]
    runs += sorted(path.parent for path in folder.rglob(BUNDLES) if path.parent != folder)
    found = [str(bundle) for run in runs for bundle in bundles_of(run)]
    if not found:
        what = "a run that kept no step" if (folder / MANIFEST).exists() else "a folder without any"
        return f"{rule}, which is {what}. A run keeps a step when its loss is not finite or jumps, or after an error."
    more = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
    return f"{rule}. There {'is' if len(found) == 1 else 'are'}: {', '.join(found[:_NAMED])}{more}"


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
    if table.get("schema") == SCHEMA and (strange := strange_entry(table)):
        return f"{_TABLE} is damaged: {strange}"
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
