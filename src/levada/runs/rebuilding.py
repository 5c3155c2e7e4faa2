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

from levada._numbers import json_ready
from levada.runs.manifest import MANIFEST, SCHEMA, Manifest, checked, name_of, packed, parsed, write_atomically
from levada.runs.reader import examine

__all__ = ["Rebuilt", "mend_manifest", "rebuilt"]

_MOST: Final = 4_096  # bytes in which one wrong bit is looked for: the time grows with their square
_TEXTS: Final = ("name", "created", "command", "cwd")
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

    One wrong bit is found by the checksum, and all is as it was written. Otherwise the events say the kind, which is
    certain unless the damaged file says another. The configuration of a training is that of its `config.toml`, which
    each continuation writes anew; the rest is as the damaged file has it. Neither is certain.

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
        doubts = whole.uncertain
        sure = f"it is as it was, not certain: {', '.join(doubts)}" if doubts else "all is certain"
        return Rebuilt(whole, f"one bit of it was wrong; with that put right its checksum agrees, and {sure}")
    came = _fields(data)
    if isinstance(came.get("schema"), int) and came["schema"] > SCHEMA:
        return None
    kind, certain, by_events = _kind(folder, came.get("kind"))
    if not kind:
        return None
    config, of_file = _config(folder, kind, came.get("config"))
    values = {
        "name": came.get("name") or name_of(folder.resolve()),
        "created": came.get("created", ""),
        "versions": came.get("versions", {}),
        "command": came.get("command", ""),
        "config": config,
        **({"cwd": came["cwd"]} if "cwd" in came else {}),  # none was written by older versions
    }
    other = {"name": "" if came.get("name") else "by the folder"}
    other["kind"] = f"by the events, where the damaged file says {came.get('kind')!r}" if by_events else ""
    other["config"] = "by config.toml, as of the last continuation" if of_file else ""
    unsure = tuple(key for key in ("kind", *values) if not (certain and key == "kind"))
    kept = [key for key in unsure if key in came and not other.get(key)]
    lost = [key for key in unsure if key not in came and not other.get(key)]
    parts = ["certain: the kind, by its events"] if certain else []
    parts += [f"not certain, as the damaged file has it: {', '.join(kept)}"] if kept else []
    parts += [f"not certain, {other[key]}: {key}" for key in unsure if other.get(key)]
    parts += [f"lost: {', '.join(lost)}"] if lost else []
    return Rebuilt(Manifest(SCHEMA, kind, **values, uncertain=unsure), "; ".join(parts))


def mend_manifest(folder: Path) -> Iterator[str]:
    """Write a damaged manifest again, under the run's lock; the damaged one is kept in `run.json.torn-N`.

    Args:
        folder: the run.

    Returns:
        What was done, a sentence each.
    """
    found = rebuilt(folder)
    if found is None:
        return
    path, data, aside = folder / MANIFEST, packed(found.manifest), ""
    if path.is_file():
        before, number = path.read_bytes(), 1
        # The same bytes are those of a mending that did not come to its end.
        while (target := folder / f"{MANIFEST}.torn-{number}").exists() and target.read_bytes() != before:
            number += 1
        write_atomically(target, before, like=path)
        aside = f"; the damaged one is kept in {target.name}"
    write_atomically(path, data)
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
            return {key: json_ready(value) for key, value in values.items() if isinstance(value, forms.get(key, ()))}
    found = {}
    for key, value in re.findall(r'^  "(\w+)": (".*"|\d+),?$', text, flags=re.MULTILINE):
        with suppress(ValueError):
            if isinstance(one := json.loads(value), forms.get(key, ())):
                found[key] = json_ready(one)
    return found


def _kind(folder: Path, came: Any) -> tuple[str, bool, bool]:
    """Give the kind, whether it is certain, and whether the events say it."""
    types = set(examine(folder)[0])
    by_events = [kind for kind, own in _KINDS.items() if types & own]
    if (folder / "signals").is_dir() and not by_events:
        by_events = ["watch"]
    if len(by_events) == 1:
        return by_events[0], came in (None, *by_events), True
    return (came if isinstance(came, str) else ""), False, False


def _config(folder: Path, kind: str, came: Any) -> tuple[Mapping[str, Any], bool]:
    """Give the configuration, and whether `config.toml` says it."""
    if kind == "train":
        with suppress(OSError, ValueError, RecursionError):  # also of a date, which no key of a training has
            return json_ready(tomllib.loads((folder / "config.toml").read_text(encoding="utf-8")), "config"), True
    return came or {}, False
