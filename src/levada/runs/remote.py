"""A run at a remote root: written to a local folder and mirrored, read through a local copy.

Staging folders are in `staged`, copies in `fetched`, both in `$LEVADA_CACHE`, else in `levada` in the user's cache:
below a digest of the address a folder with its last part as name, and a number where an older run has that name. A
staging folder holds the whole run, also after the upload: to remove it is its owner's decision. What was uploaded is
written down in it, in a hidden file for each address, so that after a crash too `pending` knows what is missing, and
`upload` can bring it.
"""

from __future__ import annotations

import atexit
import hashlib
import json
import os
import re
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, final

from levada._errors import UsageError
from levada.runs.address import cache_folder, connect
from levada.runs.address import fetch as fetch
from levada.runs.address import is_remote as is_remote
from levada.runs.lock import LOCKS
from levada.runs.manifest import LOG, MANIFEST, write_atomically

__all__ = ["Mirror", "fetch", "is_remote", "not_uploaded", "pending", "stage", "upload"]

_RANK: Final = re.compile(r"signals/rank-(\d+)/")
# Seconds: between two rounds, at most after failures, for the first look at the remote, and for the last round.
_EVERY, _LONGEST, _FIRST, _LAST = 15.0, 300.0, 10.0, 60.0


def _within(seconds: float, call: Callable[[], Any]) -> Any:
    """Give what `call` gives, or None if that takes longer; what it raises is raised."""
    box: list[Any] = []

    def run() -> None:
        try:
            box.append((call(), None))
        except Exception as error:
            box.append((None, error))

    thread = threading.Thread(target=run, name="levada-remote", daemon=True)
    thread.start()
    thread.join(seconds)
    if not box:
        return None
    value, error = box[0]
    if error is not None:
        raise error
    return value


def _manifest_at(url: str) -> bytes | None:
    """Read the manifest at the remote root; None if there is none."""
    files, root = connect(url)
    try:
        return bytes(files.cat_file(f"{root}/{MANIFEST}"))
    except FileNotFoundError:
        return None


def _manifest_in(folder: Path) -> bytes | None:
    path = folder / MANIFEST
    return path.read_bytes() if path.is_file() else None


def stage(url: str, *, rank: int = 0, resume: bool = False) -> Path:
    """Give the local folder in which a run for a remote root is written; it need not exist.

    Args:
        url: the remote root.
        rank: of this process; rank 0 looks whether the root is free.
        resume: give the folder of the last run that was written here for this root, if there is one.

    Raises:
        UsageError: if another run is at the remote root, or fsspec has no such file system.
    """
    first = cache_folder("staged", url)
    connect(url)
    there: bytes | None = None
    # A remote that cannot be reached now is no reason not to train: the mirror looks again before its first upload.
    with suppress(Exception):
        there = _within(_FIRST, lambda: _manifest_at(url)) if rank == 0 else None
    number, taken = 1, []
    while _holds_run(folder := first if number == 1 else first.with_name(f"{first.name}-{number}"), rank):
        taken.append(folder)
        number += 1
    if there is not None:
        # To go on with a run, or to be told by its folder that it is there.
        if same := [folder for folder in taken if _manifest_in(folder) == there]:
            return same[-1]
        raise UsageError(f"{url}: a new run needs a root without one, and this holds a run. Choose another address.")
    return taken[-1] if resume and taken else folder


def _holds_run(folder: Path, rank: int) -> bool:
    return (folder / MANIFEST).exists() or (folder / f"signals/rank-{rank:05d}").exists()


def _state(folder: Path, url: str, rank: int) -> Path:
    digest = hashlib.sha256(url.encode("utf-8", errors="surrogatepass")).hexdigest()[:16]
    return folder / f".remote-{rank:05d}-{digest}.json"


def _uploaded(folder: Path, url: str, rank: int) -> dict[str, list[int]]:
    with suppress(OSError, ValueError, KeyError, TypeError):
        values = json.loads(_state(folder, url, rank).read_bytes())
        return dict(values["files"]) if values["url"] == url else {}
    return {}


def _present(folder: Path, rank: int) -> Iterator[tuple[str, list[int]]]:
    """Give what this rank uploads, with size and time of change, in an order that a reader can follow at any moment."""
    found = []
    for base, below, names in os.walk(folder):
        below[:] = [name for name in below if not name.startswith(".")]
        for name in names:
            path = Path(base, name)
            key = path.relative_to(folder).as_posix()
            of = _RANK.match(key)
            if name.startswith(".") or name in LOCKS or (of and int(of[1]) != rank):
                continue
            if rank and key in (MANIFEST, LOG):
                continue
            with suppress(FileNotFoundError):
                status = path.stat()
                found.append((key, [status.st_size, status.st_mtime_ns]))
    yield from sorted(found, key=lambda item: (_place(item[0]), item[0]))


def _place(key: str) -> int:
    """Order files: what others need first, what is sealed before the tail that it came from, log and manifest last."""
    name = key.rsplit("/", 1)[-1]
    if key in (LOG, MANIFEST):
        return 3 + (key == MANIFEST)
    return 0 if name.startswith("sites-") else 1 + name.startswith("tail-")


def pending(folder: str | Path, url: str, rank: int = 0) -> dict[str, int]:
    """Give the files of a staging folder that a remote root has not as they are now, and their sizes in bytes.

    Args:
        folder: the staging folder.
        url: the remote root; what was uploaded to another does not count.
        rank: whose part is asked for.
    """
    done = _uploaded(Path(folder), url, rank)
    return {key: status[0] for key, status in _present(Path(folder), rank) if done.get(key) != status}


def not_uploaded(folder: Path) -> list[str]:
    """Say of which addresses what lacks that a staging folder holds, and what brings it; nothing of other folders.

    Args:
        folder: of a run that is not being written.
    """
    told = []
    for state in sorted(folder.glob(".remote-*.json")):
        with suppress(OSError, ValueError, KeyError, TypeError):
            url, rank = str(json.loads(state.read_bytes())["url"]), int(state.name.split("-")[1])
            if left := pending(folder, url, rank):
                told.append(f"not at {url}: {_left(left)}; {_later(folder, url, rank)}")
    return told


def _left(left: Mapping[str, int]) -> str:
    return f"{len(left)} {'file' if len(left) == 1 else 'files'}, {sum(left.values()):,} bytes"


def _later(folder: Path, url: str, rank: int) -> str:
    of = f", rank={rank}" if rank else ""
    return f"levada.runs.remote.upload({str(folder)!r}, {url!r}{of}) brings what is missing"


def _put(files: Any, source: Path, root: str, key: str) -> None:
    """Upload one file so that readers see the old one or the new one."""
    target = f"{root}/{key}"
    protocols = (files.protocol,) if isinstance(files.protocol, str) else files.protocol
    if "file" not in protocols:
        # Object stores show an object when it is whole.
        files.put_file(str(source), target)
        return
    parent, name = target.rsplit("/", 1)
    files.makedirs(parent, exist_ok=True)
    part = f"{parent}/.{name}.part"
    files.put_file(str(source), part)
    files.mv(part, target)


def upload(folder: str | Path, url: str, *, rank: int = 0, stop: Callable[[], bool] = lambda: False) -> int:
    """Upload what a remote root lacks of a staging folder, and remove there what was removed here.

    Args:
        folder: the staging folder.
        url: the remote root.
        rank: whose part is uploaded.
        stop: asked before each file.

    Returns:
        How many files were uploaded.

    Raises:
        UsageError: if another run is at the remote root.
        Exception: what the file system raises; what was uploaded before is written down.
    """
    here, done, count = Path(folder), _uploaded(Path(folder), url, rank), 0
    files, root = connect(url)
    if not done and rank == 0 and _manifest_at(url) not in (None, _manifest_in(here)):
        raise UsageError(f"{url}: this root holds another run, and nothing is uploaded. Upload {here} elsewhere.")
    before = dict(done)
    try:
        present = dict(_present(here, rank))
        for key, status in present.items():
            if stop():
                return count
            if done.get(key) != status:
                try:
                    _put(files, here / key, root, key)
                except FileNotFoundError:
                    # A tail that was sealed meanwhile is no fault; a bucket that is missing is one.
                    if (here / key).exists():
                        raise
                else:
                    done[key], count = status, count + 1
        for key in [key for key in done if key not in present]:
            with suppress(FileNotFoundError):
                files.rm_file(f"{root}/{key}")
            del done[key]
    finally:
        if done != before:
            data = json.dumps({"url": url, "files": done}).encode()
            with suppress(OSError):
                write_atomically(_state(here, url, rank), data)
    return count


@final
class Mirror:
    """Uploads a run while it is written, on a thread of its own.

    A remote that fails is one warning, and is tried again, ever more rarely; one that hangs holds the thread and
    nothing else. After a round the thread rests for ten times as long as the round took. At the end, what could not be
    uploaded is named in a warning.

    Args:
        folder: the staging folder.
        url: the remote root.
        rank: of this process: rank 0 uploads the log, each rank its own signals.
        every: seconds between two rounds, at least.

    Attributes:
        problem: why the last round failed, or None.

    Example:
        >>> import pathlib, tempfile
        >>> from levada.runs import RunWriter
        >>> folder = pathlib.Path(tempfile.mkdtemp()) / "first"
        >>> with RunWriter.create(folder, kind="watch", name="first") as writer:
        ...     mirror = Mirror(folder, "memory://example/first")
        ...     writer.append("note", text="the gradient arrived")
        >>> mirror.close()
        >>> dict(mirror.pending)
        {}
    """

    def __init__(self, folder: str | Path, url: str, *, rank: int = 0, every: float = _EVERY) -> None:
        self.folder, self.url, self.rank = Path(folder), url, rank
        self.problem: str | None = None
        self._every, self._process = every, os.getpid()
        self._failures, self._warned, self._given_up = 0, False, False
        if not (state := _state(self.folder, url, rank)).exists():
            with suppress(OSError):  # `levada doctor` then knows the address, also if nothing ever comes there
                write_atomically(state, json.dumps({"url": url, "files": {}}).encode())
        self._wake, self._ending = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = threading.Thread(target=self._run, name="levada-mirror", daemon=True)
        self._thread.start()
        # A script that dies of an exception has its last seconds uploaded too.
        atexit.register(self.close)

    @property
    def pending(self) -> Mapping[str, int]:
        """The files that are not uploaded as they are now, and their sizes in bytes."""
        return pending(self.folder, self.url, self.rank)

    def _run(self) -> None:
        while not self._ending.is_set():
            took = self._round()
            rest = min(self._every * 2.0**self._failures, max(_LONGEST, self._every))
            self._wake.wait(max(rest, 10.0 * took))
            self._wake.clear()
        self._round()

    def _round(self) -> float:
        began = time.monotonic()
        if not self._given_up:
            try:
                upload(self.folder, self.url, rank=self.rank)
                self.problem, self._failures = None, 0
            except Exception as error:
                self._given_up = isinstance(error, UsageError)
                self.problem = f"{type(error).__name__}: {error}"
                self._failures = min(self._failures + 1, 10)
                if not self._warned:
                    self._warned = True
                    then = "" if self._given_up else "; it is tried again, training goes on"
                    self._warn(f"the run could not be uploaded to {self.url}{then} ({self.problem}).")
        return time.monotonic() - began

    @staticmethod
    def _warn(sentence: str) -> None:
        # Where warnings are errors, one from a thread has no caller to go to.
        with suppress(RuntimeWarning):
            warnings.warn(f"levada: {sentence}", RuntimeWarning, stacklevel=3)

    def close(self, timeout: float = _LAST) -> None:
        """Upload what is left; again, or in a forked child, which has no such thread, is harmless.

        Args:
            timeout: seconds to wait for that.
        """
        thread, self._thread = self._thread, None
        if thread is None or os.getpid() != self._process:
            return
        atexit.unregister(self.close)
        self._ending.set()
        self._wake.set()
        thread.join(timeout)
        if left := self.pending:
            why = self.problem or f"it took longer than {timeout:g} s"
            lacks = f"of {self.folder} not everything is at {self.url} ({why}): {_left(left)}"
            self._warn(f"{lacks}. Later: {_later(self.folder, self.url, self.rank)}.")
