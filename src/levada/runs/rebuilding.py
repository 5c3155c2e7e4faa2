"""A damaged manifest, written again from what of the run can be read: what is certain, and what is not."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, final

from levada.runs.manifest import (
    MANIFEST,
    SCHEMA,
    Manifest,
    checked,
    name_of,
    parsed,
    write_atomically,
    write_manifest,
)
from levada.runs.reader import examine

__all__ = ["Rebuilt", "mend_manifest", "rebuilt"]

_MOST: Final = 16_384  # bytes in which one wrong bit is looked for, in about a second
_TEXTS: Final = ("name", "created", "command")
_KINDS: Final[Mapping[str, frozenset[str]]] = {
    "train": frozenset({"losses", "evaluation", "launched", "watched"}),
    "watch": frozenset({"loss", "overhead", "bundle"}),
    "study": frozenset({"study", "result", "claim"}),
    "check": frozenset({"report"}),
}
"""Events that one kind of run alone has."""


@final
@dataclass(frozen=True, slots=True)
class Rebuilt:
    """A manifest that was put together again.

    Attributes:
        manifest: it; `uncertain` names what of it is not certain.
        told: where each part is from, a sentence.
    """

    manifest: Manifest
    told: str


def rebuilt(folder: Path) -> Rebuilt | None:
    """Put a run's manifest together from what can be read; nothing is written.

    One wrong bit is found by the checksum, and all is certain. Otherwise the events say the kind, the `config.toml` of
    a training its configuration, and the rest is as the damaged file has it, which is not certain.

    Args:
        folder: the run.

    Returns:
        None if the manifest is good, or of a newer levada, or nothing says what kind of run it is.
    """
    path = folder / MANIFEST
    data = path.read_bytes() if path.is_file() else b""
    if data and isinstance(parsed(data), Manifest):
        return None
    if (whole := _with_one_bit(data)) is not None:
        return Rebuilt(whole, "one bit of it was wrong; with that put right its checksum agrees, and all is certain")
    came = _fields(data)
    if isinstance(came.get("schema"), int) and came["schema"] > SCHEMA:
        return None
    kind, certain = _kind(folder, came.get("kind"))
    if not kind:
        return None
    config, of_file = _config(folder, kind, came.get("config"))
    versions = came.get("versions")
    values = {
        "name": came.get("name") or name_of(folder.resolve()),
        "created": came.get("created", ""),
        "versions": versions if isinstance(versions, dict) else {},
        "command": came.get("command", ""),
        "config": config,
    }
    sure = {name for name, known in (("kind", certain), ("config", of_file)) if known}
    unsure = tuple(key for key in ("kind", *values) if key not in sure)
    kept = [key for key in unsure if key in came]
    lost = [key for key in unsure if key not in kept and key not in ("name", "kind")]
    parts = ["certain: the kind, by its events" if certain else "", "config, by config.toml" if of_file else ""]
    parts += [f"not certain, as the damaged file has it: {', '.join(kept)}" if kept else ""]
    parts += ["not certain, by the folder: name" if "name" not in came else ""]
    parts += [f"lost: {', '.join(lost)}" if lost else ""]
    return Rebuilt(Manifest(SCHEMA, kind, **values, uncertain=unsure), "; ".join(part for part in parts if part))


def mend_manifest(folder: Path) -> Iterator[str]:
    """Write a damaged manifest again, under the run's lock; the damaged one is kept in `run.json.torn-N`.

    Args:
        folder: the run.

    Returns:
        What was done, a sentence each.
    """
    path = folder / MANIFEST
    found = rebuilt(folder)
    if found is None:
        return
    aside = ""
    if path.is_file():
        number = 1
        while (target := folder / f"{MANIFEST}.torn-{number}").exists():
            number += 1
        write_atomically(target, path.read_bytes(), like=path)
        aside = f"; the damaged one is kept in {target.name}"
    write_manifest(folder, found.manifest)
    yield f"{MANIFEST} is written again ({found.told}){aside}"


def _with_one_bit(data: bytes) -> Manifest | None:
    """Find the one bit whose change makes the checksum right."""
    if len(data) > _MOST:
        return None
    tried = bytearray(data)
    for i in range(len(tried)):
        for bit in range(8):
            tried[i] ^= 1 << bit
            with suppress(ValueError, RecursionError):
                if isinstance(found := checked(json.loads(bytes(tried))), Manifest):
                    return found
            tried[i] ^= 1 << bit
    return None


def _fields(data: bytes) -> dict[str, Any]:
    """Give what of a damaged manifest has the form that it should have."""
    forms = {"schema": int, "kind": str, "versions": dict, "config": dict, **dict.fromkeys(_TEXTS, str)}
    text = data.decode("utf-8", errors="replace")
    with suppress(ValueError, RecursionError):
        values = json.loads(text)
        if isinstance(values, dict):
            return {key: value for key, value in values.items() if isinstance(value, forms.get(key, ()))}
    found = {}
    for key, value in re.findall(r'^  "(\w+)": (".*"|\d+),?$', text, flags=re.MULTILINE):
        with suppress(ValueError):
            if isinstance(one := json.loads(value), forms.get(key, ())):
                found[key] = one
    return found


def _kind(folder: Path, came: Any) -> tuple[str, bool]:
    """Give the kind, and whether it is certain."""
    types = set(examine(folder)[0])
    by_events = [kind for kind, own in _KINDS.items() if types & own]
    if (folder / "signals").is_dir() and not by_events:
        by_events = ["watch"]
    if len(by_events) == 1:
        return by_events[0], came in (None, *by_events)
    return (came if isinstance(came, str) else ""), False


def _config(folder: Path, kind: str, came: Any) -> tuple[Mapping[str, Any], bool]:
    if kind == "train":
        with suppress(OSError, ValueError):
            return tomllib.loads((folder / "config.toml").read_text(encoding="utf-8")), True
    return (came if isinstance(came, dict) else {}), False
