"""Which code computed a result, and on what machine."""

from __future__ import annotations

import functools
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import levada

__all__ = ["provenance"]


@functools.cache
def provenance() -> dict[str, Any]:
    """Return the commit of this package and the machine, as fields of an event.

    "commit" is empty where the package was installed and is no working tree; "dirty" says whether files of the package
    differ from the commit, or are not in it.

    Example:
        >>> sorted(provenance())
        ['commit', 'dirty', 'machine']
    """
    package = Path(levada.__file__).parent
    commit, dirty = "", False
    # A folder that merely lies inside somebody's repository is not of its commit.
    if _git(package, "ls-files", "--error-unmatch", "__init__.py") is not None:
        commit = _git(package, "rev-parse", "HEAD") or ""
        dirty = bool(_git(package, "status", "--porcelain", "--", "."))
    return {"commit": commit, "dirty": dirty, "machine": {"cpu": _cpu(), "cores": os.cpu_count()}}


def _git(folder: Path, *arguments: str) -> str | None:
    """Return what git says; None where it fails or is not there."""
    command = ["git", "--no-optional-locks", *arguments]
    try:
        asked = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return asked.stdout.strip() if asked.returncode == 0 else None


def _cpu() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
