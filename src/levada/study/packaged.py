"""Files that come inside an installed package: found without importing it, and known by a checksum."""

from __future__ import annotations

import hashlib
from importlib import metadata
from pathlib import Path

from levada._errors import MeasurementError, UsageError

__all__ = ["packaged_file"]


def packaged_file(package: str, inside: str, md5: str, *, what: str, install: str) -> Path:
    """Return the path of a file of a package, which is not imported.

    Args:
        package: its name where it is installed from.
        inside: the file's path from the folder of packages.
        md5: of the file.
        what: what needs it, the subject of a sentence.
        install: what pip must be told.

    Raises:
        UsageError: if the package is not installed.
        MeasurementError: if the file is not there, or not what its checksum says.

    Example:
        >>> packaged_file("no-such-package", "data.txt", "", what="The example", install="no-such-package")
        Traceback (most recent call last):
        levada._errors.UsageError: The example needs the package 'no-such-package', which is not installed. Install it
        with: pip install no-such-package
    """
    try:
        path = Path(str(metadata.distribution(package).locate_file(inside)))
    except metadata.PackageNotFoundError as error:
        raise UsageError(
            f"{what} needs the package {package!r}, which is not installed. Install it with: pip install {install}"
        ) from error
    found = hashlib.md5(path.read_bytes() if path.is_file() else b"", usedforsecurity=False).hexdigest()
    if found != md5:
        raise MeasurementError(f"{package}: {path.name} should have md5 {md5}, got {found}. Reinstall the package.")
    return path
