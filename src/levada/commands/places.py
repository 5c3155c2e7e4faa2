"""Where `levada run` keeps its records: chosen before the script runs, the same for all processes of one training."""

from __future__ import annotations

import errno
import itertools
import os
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self, final

from levada._errors import UsageError
from levada._ranks import is_first, process_rank
from levada.runs.manifest import MANIFEST
from levada.runs.reader import runs_in
from levada.runs.remote import is_remote, stage

if TYPE_CHECKING:
    from torch import nn

__all__ = ["Place", "Places"]

# Seconds that a process waits, once, to hear from the first where a model's record is: of a model that they train
# together, and of another, which the first may not have.
_PATIENCE: Final = {"together": 30.0, "own": 10.0}
_PAUSE: Final = 0.02
_MOST: Final = 1000


class Place(NamedTuple):
    """Where a record goes.

    Attributes:
        where: a folder, or an address.
        alone: whether a process other than the first keeps a record of its own there.
    """

    where: str
    alone: bool = False


@final
class Places:
    """Gives each watched model its place: DIR, DIR-2, ...; or runs/NAME-1, runs/NAME-2, ...

    Paths are those of the working directory in which this is made, wherever the script goes. As a context, it leaves
    no empty folder behind.

    The processes of one training agree through the store of their group, not by a collective: they need not train the
    same models in the same order, and a collective of ours would be taken for one of the script's. The first says where
    its n-th model is kept that is trained together, and its n-th other one; the others wait for that, not for long.

    Args:
        run: folder or address that was asked for.
        name: of the script.

    Raises:
        UsageError: if nothing can be written there, or a run is there already.
    """

    def __init__(self, run: str | None, name: str) -> None:
        if run is not None and not run.strip():
            raise UsageError(f"--run must name a folder or an address, got {run!r}.")
        self._asked = run is not None
        self._remote = run is not None and is_remote(run)
        if run is not None:
            self._base = run if self._remote else str(Path.cwd() / run)
        else:
            self._base = str(Path.cwd() / "runs" / name)
        # Workers that are started again after a failure find the record of the first attempt, and take the next.
        self._attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        self._again = self._attempt != "0"
        self._given = 0
        self._counts: Counter[str] = Counter()
        self._missed: set[str] = set()
        self._made: list[Path] = []
        self._require(run)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for folder in reversed(self._made):
            with suppress(OSError):  # it holds something now
                folder.rmdir()

    def next(self, model: nn.Module) -> Place | None:
        """Give the place of a model's record; None if it should have none, because the first process watches it not.

        Args:
            model: any that a watch begins on.
        """
        from torch import distributed

        from levada.watching.measure.reduce import find_peers

        if not (distributed.is_available() and distributed.is_initialized()) or distributed.get_world_size() == 1:
            return Place(self._free(self._base))
        kind = "own" if find_peers(model) is None else "together"
        self._counts[kind] += 1
        where = self._agreed(kind)
        if where:
            return Place(where)
        if kind == "own":
            return Place(self._free(f"{self._base}-rank-{process_rank()}"), alone=True)
        return None

    def _agreed(self, kind: str) -> str:
        """Tell the others, or hear from the first; nothing if it says nothing."""
        from torch import distributed

        store: Any = distributed.distributed_c10d._get_default_store()  # private, and there is no other way to it
        # A launcher's store outlives workers that are started again.
        key = f"levada/run/{self._attempt}/{kind}/{self._counts[kind]}"
        if process_rank() == 0:
            where = ""
            try:
                where = self._free(self._base)
            finally:
                store.set(key, where)
            return where
        until = time.monotonic() + (0.0 if kind in self._missed else _PATIENCE[kind])
        # Not `store.wait`, which would keep the store from the script's other threads.
        while not store.check([key]):
            if time.monotonic() >= until:
                self._missed.add(kind)
                return ""
            time.sleep(_PAUSE)
        return bytes(store.get(key)).decode()

    def _free(self, base: str) -> str:
        """Take a place that nobody else has."""
        self._given += 1
        asked = self._asked
        for number in itertools.count(self._given if asked else 1):
            place = base if asked and number == 1 else f"{base.rstrip('/')}-{number}"
            if self._remote:
                if number == 1 and not self._again:  # it was looked at
                    return place
                with suppress(UsageError):  # another run is there
                    if not _holds_run(stage(place)):
                        return place
                if number > _MOST:
                    break
                continue
            folder = Path(place)
            try:
                folder.mkdir(parents=True)
            except FileExistsError:
                if not asked or not folder.is_dir() or _holds_run(folder):
                    continue
            return place
        raise UsageError(f"{base}: there are {_MOST} runs there. Choose another place.")

    def _require(self, run: str | None) -> None:
        """Raise before anything is trained if the record cannot be written."""
        if self._remote:
            # Others than the first may come late, when its record is there.
            if not self._again and is_first() and _holds_run(stage(self._base)):
                raise UsageError(f"--run must name an address that holds no run yet, got {run!r}. Name another.")
            return
        folder = Path(self._base) if self._asked else Path(self._base).parent
        if self._asked and not self._again and is_first() and _holds_run(folder):
            look = f"Name another, or look at the one that is there: levada report {run}"
            raise UsageError(f"--run must name a folder that holds no run yet, got {run!r}. {look}")
        if self._asked and not self._again and is_first() and (held := runs_in(folder)):
            raise UsageError(f"--run must name a folder of its own, got {run!r}, which holds {held}. Name one in it.")
        missing = [one for one in (folder, *folder.parents) if not one.exists()]
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if not os.access(folder, os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        except OSError as error:
            file = next((one for one in (folder, *folder.parents) if one.is_file()), None)
            why = f"{str(file)!r} is a file" if file is not None else error.strerror or error
            rule = f"--run must name a folder that can be written, got {run or 'runs'!r}"
            raise UsageError(f"{rule}: {why}. Name another.") from error
        self._made = missing[::-1]


def _holds_run(folder: Path) -> bool:
    return (folder / MANIFEST).exists()
