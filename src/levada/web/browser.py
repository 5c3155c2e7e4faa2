"""Opening a page in a browser without a word of its token in a command line, which every user of a machine can read."""

from __future__ import annotations

import html
import os
import shutil
import tempfile
import webbrowser
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

__all__ = ["opening"]

_PAGE: Final = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="referrer" content="no-referrer">
<meta http-equiv="refresh" content="0; url={address}">
<title>levada</title>
<p><a href="{address}">Open levada's page</a></p>
</html>
"""


@contextmanager
def opening(address: str) -> Iterator[None]:
    """Open an address in a browser, by a file that leads there and that only this user can read.

    The command line of a browser says what it opens: that is the file, which is there until the context ends.

    Args:
        address: with the token.

    Raises:
        OSError: if the file cannot be written.
    """
    folder = Path(tempfile.mkdtemp(prefix="levada-"))  # which is this user's alone
    try:
        file = folder / "open.html"
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as page:
            page.write(_PAGE.format(address=html.escape(address)))
        webbrowser.open(file.as_uri())
        yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)
