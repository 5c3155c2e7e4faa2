"""Read runs: up to the last good frame, also while they are written."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, final

from levada._errors import UsageError
from levada._numbers import restore_numbers
from levada.runs.address import local
from levada.runs.bundles import BUNDLES
from levada.runs.folders import part_folders, rank_folder, rank_folders
from levada.runs.frames import MAGIC, Damage, scan
from levada.runs.lock import LOCKS
from levada.runs.losses import Told
from levada.runs.manifest import LOG, MANIFEST, Manifest, read_manifest
from levada.runs.rank_log import RANK_LOG
from levada.runs.signals import Signals

__all__ = ["Run", "examine", "find_runs", "require_one", "require_readable", "runs_in", "unlisted"]

_NAMED: Final = 6  # runs that a message names


@final
class Run:
    """A run on disk. Reading takes no lock: a run can be read while it is written.

    Args:
        path: the run's folder; or an address as "s3://bucket/run", of which what is there now is copied to `path`.

    Raises:
        UsageError: if the folder does not exist or is not a run, or the manifest is corrupt or of a newer levada.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = local(path)
        require_one(self.path)
        self.manifest: Manifest = read_manifest(self.path)
        self._logs: dict[int, Told] = {}

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r}, kind={self.manifest.kind!r}, name={self.manifest.name!r})"

    def events(
        self, type: str | None = None, *, numbers: Sequence[str] = (), rank: int = 0
    ) -> Iterator[dict[str, Any]]:
        """Give the events in the order of writing, up to the last good frame; `damage` says whether that is the end.

        Args:
            type: only events of this type.
            numbers: fields that hold numbers: in these, at any depth, "nan", "inf" and "-inf" are read as floats.
            rank: of the process; another than the first says what was found in it, and by which rules it was judged.
        """
        for event, _ in self._read(len(MAGIC), self._log(rank)):
            if type is None or event["type"] == type:
                yield {key: restore_numbers(value) if key in numbers else value for key, value in event.items()}

    def tail(self, offset: int = len(MAGIC)) -> tuple[list[dict[str, Any]], int]:
        """Give the events from `offset` on, and the offset at which to ask again: how a program follows a run.

        Where the log was mended since, or its end was lost with the machine, so that no event ends at `offset`, it is
        given from the beginning again; what was given before may not be in it any more.

        Args:
            offset: what the call before gave; left out, the beginning.
        """
        log = self.path / LOG
        found = list(self._read(offset, log))
        if not found and offset != len(MAGIC) and log.exists() and log.stat().st_size != offset:
            # Half an event is at the end of a log that is written, and `offset` is the end of the one before.
            whole = list(self._read(len(MAGIC), log))
            if offset not in {stop for _, stop in whole}:
                return [event for event, _ in whole], whole[-1][1] if whole else len(MAGIC)
        return [event for event, _ in found], found[-1][1] if found else offset

    def _read(self, offset: int, log: Path) -> Iterator[tuple[dict[str, Any], int]]:
        if not log.exists():
            return
        with log.open("rb") as file:
            for found in scan(file, offset):
                if isinstance(found, Damage):
                    return
                yield found.event, found.stop

    @property
    def ranks(self) -> tuple[int, ...]:
        """The ranks whose signals are kept."""
        return tuple(sorted(rank_folders(self.path)))

    def parts(self, rank: int = 0) -> tuple[str, ...]:
        """Name what is kept of a rank beside the signals of its blocks: "mixing", "gates"."""
        folder = rank_folders(self.path).get(rank)
        return () if folder is None else tuple(part_folders(folder))

    def signals(self, rank: int = 0, part: str = "") -> Signals:
        """Give the signals of a rank as they are now, also while they are written.

        Args:
            rank: of the process.
            part: one of `parts(rank)`; left out, the signals of its blocks.

        Raises:
            UsageError: if the run keeps no signals of this rank, or no such part.
        """
        folders = rank_folders(self.path)
        if rank not in folders:
            kept = ", ".join(map(str, sorted(folders))) or "none"
            raise UsageError(f"{self.path}: signals are kept by rank, and not of rank {rank}; of these: {kept}.")
        if part:
            parts = part_folders(folders[rank])
            if part not in parts:
                kept = ", ".join(parts) or "none"
                raise UsageError(
                    f"{self.path}: of rank {rank} no {part!r} is kept beside its signals; of these: {kept}."
                )
            return Signals(parts[part])
        told = self._told(rank)
        return Signals(folders[rank], self.losses(), told.logged(), told.waiting())

    def losses(self, *, after: int = -1) -> list[tuple[int, float]]:
        """Give step and loss of every step whose loss was seen; where a step came again, the later one.

        Of a pipeline it is the process of the last stage that saw them. Asked again, it reads what came since.

        Args:
            after: only of steps behind this one.
        """
        found = (self._told(rank).losses(after=after) for rank in sorted({0, *self.ranks}))
        return next((losses for losses in found if losses), [])

    def losses_by_optimizer(self) -> dict[str, list[tuple[int, float]]]:
        """Give the losses of each optimizer by its name, where those that take turns have losses of their own.

        As a generator and a discriminator have; the losses of two optimizers that share one are not told apart. Where
        all losses are of one series, and of a run from before levada told them apart, it is empty.
        """
        found = (self._told(rank) for rank in sorted({0, *self.ranks}))
        return next((told.by_optimizer() for told in found if told.losses(after=-1)), {})

    def _told(self, rank: int) -> Told:
        return self._logs.setdefault(rank, Told(self._log(rank)))

    def _log(self, rank: int) -> Path:
        return self.path / LOG if rank == 0 else rank_folder(self.path, rank) / RANK_LOG

    @property
    def damage(self) -> Damage | None:
        """What keeps the log from being read to its end, or None. Reads the whole log."""
        return examine(self.path)[2]


def examine(folder: Path) -> tuple[Counter[str], int, Damage | None]:
    """Count events by type; give the size of the good part and the damage."""
    log, types, good = folder / LOG, Counter[str](), 0
    if not log.is_file():
        return types, 0, Damage("missing", 0, 0, f"{LOG} is missing")
    with log.open("rb") as file:
        good = min(len(MAGIC), os.fstat(file.fileno()).st_size)
        for found in scan(file):
            if isinstance(found, Damage):
                return types, found.offset, found
            types[found.event["type"]] += 1
            good = found.stop
    return types, good, None


def runs_in(folder: Path) -> str:
    """Name the runs that lie in a folder, one beside the other; "" without any.

    Args:
        folder: it need not exist.
    """
    return _listed(sorted(path.parent for path in folder.glob(f"*/{MANIFEST}")))


def _listed(runs: Sequence[Path]) -> str:
    more = f" and {len(runs) - _NAMED:,} more" if len(runs) > _NAMED else ""
    return f"{', '.join(map(str, runs[:_NAMED]))}{more}"


def require_one(folder: Path) -> None:
    """Raise if a folder is no run, and one is near: below it, or around it.

    Args:
        folder: what was given for a run.

    Raises:
        UsageError: if so; it names them.
    """
    if not folder.is_dir() or (folder / MANIFEST).exists() or (folder / LOG).exists():
        return
    if below := _listed(find_runs(folder)):
        raise UsageError(f"{folder}: one run is asked for, and this is a folder that holds {below}. Give one.")
    around = next((one for one in folder.absolute().parents if (one / MANIFEST).is_file()), None)
    if around is not None:
        raise UsageError(f"{folder}: a run is asked for, and this is a part of one. Give the run: {around}")


def require_readable(folder: Path) -> None:
    """Raise if this user may not read a part of a run, so that nothing of it is taken for gone.

    Bundles are looked at one by one where they are read.

    Args:
        folder: of the run.

    Raises:
        UsageError: if so; it names the file or folder.
    """
    with suppress(FileNotFoundError, NotADirectoryError):  # what reads the run says of these
        try:
            os.scandir(folder).close()
        except PermissionError as error:
            raise UsageError(unlisted(error)) from error
    signals = folder / "signals"
    parts = [folder, folder / MANIFEST, folder / LOG, folder / BUNDLES, signals]
    parts += [Path(base, name) for base, below, files in os.walk(signals) for name in (*below, *files)]
    for path in parts:
        if path.name in LOCKS or (path.name.startswith(".") and path != folder):  # who writes, and what is half written
            continue
        # A writer lets go of files, and makes some, between two questions.
        if not _may_read(path) and path.exists() and not _may_read(path):
            named = "its folder" if path == folder else path.relative_to(folder)
            raise UsageError(
                f"{folder}: a run is read by who may read all of it, and {named} is not for this user. Ask its owner."
            )


def unlisted(error: OSError) -> str:
    """Say of a folder that cannot be listed what it is.

    Args:
        error: which names it.
    """
    return f"{error.filename}: this folder cannot be listed ({error.strerror}). Ask its owner."


def _may_read(path: Path) -> bool:
    return os.access(path, os.R_OK | (os.X_OK if path.is_dir() else 0))


def find_runs(root: str | Path, *, whole: bool = True, onerror: Callable[[OSError], None] | None = None) -> list[Path]:
    """Find the run folders at and below a path, sorted; links are not followed and hidden folders are left out.

    Args:
        root: a folder, or an address.
        whole: only those that have both a manifest and a log; otherwise one of them is enough.
        onerror: is given the error of each folder that cannot be listed, but for parts of a run; without it, such a
            folder is passed over, unless it is `root`.

    Raises:
        UsageError: if `root` is not a folder, or cannot be listed and there is no `onerror`.
    """
    start = local(root)
    if start.is_file():
        raise UsageError(f"{start}: runs are looked for in a folder, and this is a file. Give the folder of the run.")
    if not start.is_dir():
        raise UsageError(f"{start}: runs are looked for in a folder that exists, and this is none. Check the path.")
    found = list[Path]()

    def told(error: OSError) -> None:
        folder = Path(error.filename)
        if folder == start and onerror is None:
            raise UsageError(
                f"{start}: runs are looked for in a folder that can be listed, and this cannot ({error.strerror}). "
                "Ask its owner."
            ) from error
        gone, part = isinstance(error, FileNotFoundError), any(run in folder.parents for run in found)
        if onerror is not None and not gone and not part:
            onerror(error)

    for folder, below, files in os.walk(start, onerror=told):
        below[:] = sorted(name for name in below if not name.startswith("."))
        if (all if whole else any)(name in files for name in (MANIFEST, LOG)):
            found.append(Path(folder))
    return sorted(found)
