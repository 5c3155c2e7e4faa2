"""The manifest: what a run is, written once, before its first event."""

from __future__ import annotations

import json
import os
import platform
import shlex
import shutil
import sys
import zlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Final

from levada import __version__
from levada._errors import UsageError
from levada._numbers import json_ready

__all__ = [
    "LOG",
    "MANIFEST",
    "SCHEMA",
    "Manifest",
    "checked",
    "command_line",
    "describe",
    "name_of",
    "packed",
    "parsed",
    "read_manifest",
    "sync_folder",
    "versions_here",
    "write_atomically",
    "write_manifest",
]

SCHEMA: Final = 1
MANIFEST: Final = "run.json"
LOG: Final = "events.log"
_LONGEST: Final = 1000  # characters of a command


def name_of(folder: Path) -> str:
    """Name a run by its folder; where that is a number, as a training's watched runs have, with the folders above it.

    Example:
        >>> name_of(Path("runs/mine")), name_of(Path("runs/mine/watch/1")), name_of(Path("/1"))
        ('mine', 'mine/watch/1', '1')
    """
    parts = [part for part in folder.parts if part != folder.anchor]
    least = next((i for i in range(1, len(parts)) if not (parts[-i].isdecimal() or parts[-i] == "watch")), len(parts))
    return "/".join(parts[-least:]) if parts and (parts[-1].isdecimal()) else folder.name


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a run is.

    Attributes:
        schema: version of the format.
        kind: "check", "study", "watch", ...
        name: the run's name, for people.
        created: UTC, ISO 8601.
        versions: of levada, Python, torch and the platform.
        command: the command line that made the run.
        config: the settings, as JSON.
        uncertain: which of these are not certain, in a manifest that was damaged and is written again.
        cwd: the folder that the command was given in, from which its paths count; "" where that is not known.
    """

    schema: int
    kind: str
    name: str
    created: str
    versions: Mapping[str, str]
    command: str
    config: Mapping[str, Any]
    uncertain: tuple[str, ...] = ()
    cwd: str = ""


def versions_here() -> dict[str, str]:
    """Return the versions of levada, Python, torch, numpy and the platform, without importing them."""
    versions = {"levada": __version__, "python": platform.python_version(), "platform": platform.platform()}
    # Asked of the installed packages, not of the modules: the store does not wait for torch to load.
    for package in ("torch", "numpy"):
        with suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return versions


def command_line() -> str:
    """Return how this process was called, to be called again: `python train.py`, `levada run train.py`."""
    interpreter, *words = sys.orig_argv or sys.argv
    if words and Path(words[0]).stem == "levada":  # the command that the package installs
        return shlex.join(["levada", *words[1:]])
    told = shlex.join([Path(interpreter).name if sys.orig_argv else interpreter, *words])
    return told if len(told) <= _LONGEST else shlex.join(sys.argv)  # a program that was given with -c


def describe(kind: str, name: str, config: Mapping[str, Any] | None) -> Manifest:
    """Make the manifest of a run that begins now."""
    for label, value in (("kind", kind), ("name", name)):
        if not isinstance(value, str) or not value:
            raise UsageError(f"RunWriter.create: {label} must be a non-empty string, got {value!r}.")
    created = datetime.now(UTC).isoformat(timespec="seconds")
    settings = json_ready(config or {}, "config")
    cwd = ""
    with suppress(OSError):  # it was removed
        cwd = str(Path.cwd())
    return Manifest(SCHEMA, kind, name, created, versions_here(), command_line(), settings, cwd=cwd)


def write_atomically(path: Path, data: bytes, *, like: Path | None = None) -> None:
    """Write a file so that it exists whole or not at all, also after a power cut.

    Args:
        path: the file.
        data: what it holds.
        like: the file whose permissions it gets; by default the one that it replaces, if there is one.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        with suppress(OSError):  # there is none, or the file system has no permissions
            shutil.copymode(like or path, temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Force the names in a folder to the disk, so that a file made or renamed in it is there after a power cut."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _checksum(values: Mapping[str, Any]) -> int:
    """Give the checksum of a manifest's contents, however it is laid out as text."""
    others = {key: value for key, value in values.items() if key != "crc32"}
    return zlib.crc32(json.dumps(others, sort_keys=True, separators=(",", ":")).encode())


def packed(manifest: Manifest) -> bytes:
    """Give what `run.json` is to hold.

    Args:
        manifest: of which JSON can hold all.
    """
    values = asdict(manifest)
    for key in ("uncertain", "cwd"):
        if not values[key]:
            del values[key]
    text = json.dumps({**values, "crc32": _checksum(values)}, indent=2, ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8", errors="backslashreplace") + b"\n"


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `run.json`."""
    write_atomically(folder / MANIFEST, packed(manifest))


def read_manifest(folder: Path) -> Manifest:
    """Read `run.json`.

    Raises:
        UsageError: if the folder does not exist or is not a run, or the manifest is corrupt or of a newer levada.
    """
    path = folder / MANIFEST
    if not folder.exists():
        raise UsageError(f"{folder}: a run is a folder that exists; there is nothing here. Check the path.")
    if path.is_dir():
        raise UsageError(f"{path}: a run's manifest is a file, and this is a folder. Move it to another place.")
    if not folder.is_dir():
        raise UsageError(f"{folder}: a run is a folder, and this is a file. Give the folder that levada wrote.")
    if not path.is_file():
        raise UsageError(f"{folder}: a run holds {MANIFEST}, and this does not. Give the folder that levada wrote.")
    found = parsed(path.read_bytes())
    if isinstance(found, int):
        raise UsageError(
            f"{path}: this levada reads schema {SCHEMA} and older, got schema {found}. Update levada to read this run; "
            f"`levada doctor {folder}` says whether the number is damage."
        )
    if isinstance(found, str):
        raise UsageError(
            f"{path}: the manifest is damaged ({found}), and a run is read by it. `levada doctor {folder}` says what "
            f"of the run can be read; `levada doctor --reseal {folder}` writes the manifest again from that."
        )
    return found


def parsed(data: bytes) -> Manifest | str | int:
    """Read a manifest; give why not if it is corrupt, and its schema if that is newer.

    Args:
        data: what `run.json` holds.
    """
    if not data:
        return "it is empty"
    try:
        values = json.loads(data)
    except json.JSONDecodeError as error:
        return f"it is not JSON from line {error.lineno} on"
    except UnicodeDecodeError as error:
        return f"its byte {error.start:,} is no text"
    except (ValueError, RecursionError):
        return "it is not JSON"
    return checked(values)


def checked(values: Any) -> Manifest | str | int:
    """Make a manifest of what the JSON held; see `parsed`.

    Args:
        values: of the JSON.
    """
    schema = values.get("schema") if isinstance(values, dict) else None
    if isinstance(schema, int) and schema > SCHEMA:
        return schema
    wanted = {"kind": str, "name": str, "created": str, "versions": dict, "command": str, "config": dict}
    wrong = [
        key for key, form in wanted.items() if not isinstance(values, dict) or not isinstance(values.get(key), form)
    ]
    if schema != SCHEMA or wrong:
        return f"missing or of the wrong form: {', '.join(wrong) or 'schema'}"
    if "crc32" not in values:  # every manifest was written with one
        return "its checksum is missing"
    if values["crc32"] != _checksum(values):
        return "its checksum differs"
    uncertain = values.get("uncertain")
    names = tuple(map(str, uncertain)) if isinstance(uncertain, list) else ()
    cwd = held if isinstance(held := values.get("cwd"), str) else ""
    return replace(Manifest(schema, *(values[key] for key in wanted)), uncertain=names, cwd=cwd)
