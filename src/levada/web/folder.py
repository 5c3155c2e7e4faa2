"""A run's folder before anything of it is read: plain files, inside of it, no larger than what a page needs."""

from __future__ import annotations

import base64
import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final, TypeAlias

from levada.runs.folders import PARTS
from levada.runs.lock import NAME as WRITER
from levada.runs.lock import is_held
from levada.runs.manifest import LOG, MANIFEST
from levada.runs.rank_log import RANK_LOG

__all__ = ["MAX_DEPTH", "MAX_RUNS", "Fingerprint", "RefusedError", "found_in", "identity", "inspect", "stamp"]

MAX_RUNS: Final = 1_000
MAX_DEPTH: Final = 8  # folders between the served one and a run
_MAX_FOLDERS: Final = 20_000  # that are looked into for runs
_MAX_FILES: Final = 20_000  # of one run
_MAX_BYTES: Final = {MANIFEST: 2**24, LOG: 2**28, "config.toml": 2**20}
_MAX_OTHER: Final = 2**28
_BELOW: Final = ("signals", "watch")  # what is looked into of a run
_MAX_BELOW: Final = 6
_PLACES: Final = (("rank-",), PARTS)  # below the signals: of a process, and what it keeps beside those of its blocks
_APPENDED: Final = ("tail-", RANK_LOG)

Fingerprint: TypeAlias = tuple[tuple[str, int, int], ...]


class RefusedError(Exception):
    """There is no answer.

    Args:
        status: of HTTP.
        sentence: why.
    """

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


def found_in(root: Path) -> tuple[list[str], int]:
    """Find runs: their paths from the root on, sorted, and how many more there are.

    Links are not followed, hidden folders are left out, and what is deeper than `MAX_DEPTH` is not looked at.

    Args:
        root: the served folder.
    """
    found: list[str] = []
    waiting, looked = [("", 0)], 0
    while waiting and looked < _MAX_FOLDERS:
        place, depth = waiting.pop()
        looked += 1
        try:
            with os.scandir(root / place) as entries:
                inside = [entry for entry in entries if not entry.name.startswith(".")]
        except OSError:
            continue
        names = {entry.name for entry in inside}
        if MANIFEST in names and LOG in names:
            found.append(place or ".")
        if depth < MAX_DEPTH:
            below = [entry.name for entry in inside if entry.is_dir(follow_symlinks=False)]
            waiting += [
                (f"{place}/{name}".lstrip("/"), depth + 1) for name in below if name not in ("signals", "bundles")
            ]
    found.sort()
    return found[:MAX_RUNS], max(0, len(found) - MAX_RUNS)


def inspect(run: Path) -> Fingerprint:
    """Look at all files of a run that a page may read, without opening one.

    Args:
        run: its folder.

    Returns:
        Name, size and time of change of each: what differs if anything was written.

    Raises:
        RefusedError: if one is a link, no plain file, or too large, or there are too many.
    """
    seen = []
    for name, about in _files(run, "", 0):
        if not stat.S_ISREG(about.st_mode):
            raise RefusedError(409, f"The run holds {name!r}, which is a link or no plain file: it is not opened.")
        most = _MAX_BYTES.get(name.rpartition("/")[2], _MAX_OTHER)
        if about.st_size > most:
            raise RefusedError(409, f"The run's file {name!r} has {about.st_size:,} bytes; a page reads {most:,}.")
        seen.append((name, about.st_size, about.st_mtime_ns))
        if len(seen) > _MAX_FILES:
            raise RefusedError(409, f"The run holds more than {_MAX_FILES:,} files; a page reads no more.")
    return tuple(sorted(seen))


def _files(run: Path, place: str, depth: int) -> Iterator[tuple[str, os.stat_result]]:
    try:
        with os.scandir(run / place) as entries:
            inside = sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise RefusedError(409, f"The run cannot be read: {error.strerror or type(error).__name__}.") from error
    for entry in inside:
        name = f"{place}/{entry.name}".lstrip("/")
        try:
            about = entry.stat(follow_symlinks=False)
        except FileNotFoundError:  # sealed or removed since
            continue
        if stat.S_ISDIR(about.st_mode):
            wanted = depth or entry.name in _BELOW
            if wanted and depth < _MAX_BELOW and entry.name != "bundles":
                yield from _files(run, name, depth + 1)
        elif place or stat.S_ISLNK(about.st_mode) or entry.name in (MANIFEST, LOG, "config.toml", WRITER):
            yield name, about


def identity(name: str) -> str:
    """Give a run's opaque name, by which alone it is asked for: no path ever comes in a question.

    Args:
        name: its path from the served folder on.

    Example:
        >>> identity("mine"), len(identity("../../etc"))
        ('h7jqkqx6h5q3cs6uuszn', 20)
    """
    digest = hashlib.sha256(name.encode("utf-8", errors="surrogateescape")).digest()
    return base64.b32encode(digest)[:20].decode().lower()


def stamp(run: Path) -> tuple[int, int, int, bool | None, Fingerprint]:
    """Give what differs when a run has grown or its writer has gone, at the cost of a look at few files.

    Each process appends to a log and a tail of its own: of what is sealed, the time of change of its folder is enough.

    Args:
        run: its folder.

    Raises:
        OSError: if it is gone.
    """
    log, manifest = (run / LOG).lstat(), (run / MANIFEST).lstat()
    lock = run / WRITER
    held = is_held(run) if lock.exists() and stat.S_ISREG(lock.lstat().st_mode) else None
    signals = run / _BELOW[0]
    grown = () if signals.is_symlink() else tuple(sorted(_growing(signals, "", 0)))
    return log.st_size, log.st_mtime_ns, manifest.st_mtime_ns, held, grown


def _growing(folder: Path, place: str, depth: int) -> Iterator[tuple[str, int, int]]:
    """Look at what processes append to, and at the folders that it lies in."""
    with suppress(OSError), os.scandir(folder / place) as entries:  # not there, or removed since
        for entry in entries:
            name = f"{place}/{entry.name}"
            if entry.is_dir(follow_symlinks=False) and depth < len(_PLACES) and entry.name.startswith(_PLACES[depth]):
                yield name, 0, entry.stat(follow_symlinks=False).st_mtime_ns
                yield from _growing(folder, name.lstrip("/"), depth + 1)
            elif entry.name.startswith(_APPENDED):
                about = entry.stat(follow_symlinks=False)
                yield name, about.st_size, about.st_mtime_ns
