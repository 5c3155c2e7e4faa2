"""Addresses that fsspec knows, as "s3://bucket/run": which they are, and local copies of what lies there."""

from __future__ import annotations

import hashlib
import json
import os
import re
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any, Final, NoReturn

from levada._errors import UsageError, import_extra
from levada.runs.manifest import MANIFEST, write_atomically

__all__ = ["cache_folder", "connect", "fetch", "is_remote", "local", "require_local"]

# At least two letters before the colon: one is a drive of Windows.
_ADDRESS: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+(://|::)")
_SHORTENED: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:(/|:)")  # an address, also as pathlib leaves it: "s3:/bucket"
# Seconds between two looks at an address where a listed file was gone: its writer seals, or lets go of detail.
_PAUSES: Final = (0.0, 0.1, 0.5, 2.0)
_COPYING: Final[dict[Path, threading.Lock]] = {}


class _MovedError(Exception):
    """A file was there when the address was listed, and was gone when it was to be copied."""


def is_remote(path: str | os.PathLike[str]) -> bool:
    """Say whether a path is an address for fsspec.

    Example:
        >>> [is_remote(path) for path in ("s3://bucket/run", "simplecache::s3://bucket/run", "runs/a", "C:/runs")]
        [True, True, False, False]
    """
    return isinstance(path, str) and _ADDRESS.match(path) is not None


def require_local(rule: str, path: str | os.PathLike[str], advice: str) -> None:
    """Raise where a folder of this machine is meant and an address came, of which a folder "s3:" would be made.

    Args:
        rule: what must be, as "--out must name a folder of this machine".
        path: what came, before pathlib takes a slash away.
        advice: what to do.

    Raises:
        UsageError: if it is an address.

    Example:
        >>> require_local("--out must name a folder of this machine", "s3://bucket/runs", "Copy it there later.")
        Traceback (most recent call last):
        levada._errors.UsageError: --out must name a folder of this machine, got the address s3://bucket/runs....
        >>> require_local("--out must name a folder of this machine", "./s3:/bucket", "")
    """
    text = os.fspath(path)
    if _SHORTENED.match(text):
        raise UsageError(f"{rule}, got the address {text}. {advice}")


def local(path: str | os.PathLike[str]) -> Path:
    """Give a folder to read: of an address, `fetch`'s copy, as it is at this moment; a path unchanged."""
    return fetch(path) if isinstance(path, str) and is_remote(path) else Path(path)


def connect(url: str) -> tuple[Any, str]:
    """Give the file system and the path in it."""
    fsspec = import_extra("fsspec", "remote", f"The address {url}")
    try:
        files, root = fsspec.core.url_to_fs(url)
    except ImportError as error:
        raise UsageError(f"{url}: its file system is not installed ({error}).") from error
    except ValueError as error:
        raise UsageError(f"{url}: fsspec knows no such file system ({error}). Check the address.") from error
    return files, str(root).rstrip("/")


def cache_folder(kind: str, url: str) -> Path:
    """Give the folder for local copies of an address; `kind` is "staged" or "fetched"."""
    own, base = os.environ.get("LEVADA_CACHE"), os.environ.get("XDG_CACHE_HOME")
    root = Path(own) if own else (Path(base) if base else Path.home() / ".cache") / "levada"
    digest = hashlib.sha256(url.rstrip("/").encode(errors="surrogatepass")).hexdigest()[:16]
    name = re.sub(r"[^0-9A-Za-z_.-]", "_", url.rstrip("/").rsplit("/", 1)[-1]).strip(".") or "run"
    return root / kind / digest / name


def fetch(url: str, *, cache: str | Path | None = None) -> Path:
    """Copy what is below an address to a local folder; only what has changed since the last time is copied.

    A run may be written meanwhile: where a listed file is gone, the address is listed again. Of several threads that
    copy to one folder, one does so at a time.

    Args:
        url: a run, or a folder that holds some.
        cache: the folder to copy to; a place in the user's cache if left out.

    Returns:
        The folder.

    Raises:
        UsageError: if there is nothing at the address, it cannot be read, the copy cannot be written, or fsspec has no
            such file system.
    """
    files, root = connect(url)
    folder = Path(cache) if cache is not None else cache_folder("fetched", url)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"{url}: what is there is copied to {folder}, which cannot be written to ({error.strerror}). "
            "Name another place by LEVADA_CACHE."
        ) from error
    with _COPYING.setdefault(folder.absolute(), threading.Lock()):
        for pause in _PAUSES:
            try:
                return _fetch(files, root, url, folder)
            except _MovedError:
                time.sleep(pause)
        try:
            return _fetch(files, root, url, folder)
        except _MovedError as error:
            _refuse(url, error)


def _fetch(files: Any, root: str, url: str, folder: Path) -> Path:
    try:
        files.invalidate_cache()
        found = files.find(root, detail=True)
        if not found:
            raise UsageError(f"{url}: there is nothing at this address. Check it.")
        _copy(files, root, found, folder)
    except (UsageError, _MovedError):
        raise
    except Exception as error:
        _refuse(url, error)
    return folder


def _refuse(url: str, error: Exception) -> NoReturn:
    raise UsageError(f"{url}: it cannot be read ({type(error).__name__}: {error}).") from error


def _copy(files: Any, root: str, found: Mapping[str, Any], folder: Path) -> None:
    index = folder.parent / f".{folder.name}.fetched.json"
    known: dict[str, Any] = {}
    with suppress(OSError, ValueError):
        known = json.loads(index.read_bytes())
    base = str(files._strip_protocol(root)).rstrip("/")
    now: dict[str, Any] = {}
    # As they are uploaded: the manifest last, so that a copy that was cut off is no run.
    for path, info in sorted(found.items(), key=lambda item: item[0].endswith(f"/{MANIFEST}")):
        key = str(path).removeprefix(base).lstrip("/")
        parts = PurePosixPath(key).parts
        # Neither hidden files nor "..", nor what another system reads as a path.
        if not parts or any(part.startswith(".") or "\\" in part or ":" in part for part in parts):
            continue
        stamp = [
            str(info.get(name)) for name in ("size", "ETag", "etag", "md5Hash", "mtime", "LastModified", "created")
        ]
        target = folder / key
        if known.get(key) != stamp or not target.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            part = target.with_name(f".{target.name}.{os.getpid()}")
            try:
                files.get_file(path, str(part))
                part.replace(target)
            except FileNotFoundError:
                files.invalidate_cache()  # or the listing that named the file answers for it
                if files.exists(path):
                    raise
                write_atomically(index, json.dumps(known | now).encode())  # what was copied is not copied again
                raise _MovedError(path) from None
            finally:
                part.unlink(missing_ok=True)
        now[key] = stamp
    for key in known.keys() - now.keys():
        (folder / key).unlink(missing_ok=True)
    write_atomically(index, json.dumps(now).encode())
