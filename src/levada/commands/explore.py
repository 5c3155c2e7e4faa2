"""`levada explore`."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Final

import levada
from levada._errors import MissingExtraError, UsageError, import_extra
from levada.commands.output import QUIET, tell, write

__all__ = ["explore"]

_PAGE: Final = Path(levada.__file__).parent / "web" / "static" / "single" / "explore.html"


def explore(options: argparse.Namespace) -> int:
    """Run `levada explore`: write the explorer as one file, or serve it until Ctrl-C.

    Args:
        options: `out`, and where it is left out `port` and `open`.

    Raises:
        UsageError: if the pages are not built, the file cannot be written, or what serves is not installed.
    """
    if not _PAGE.is_file():
        raise UsageError("This installation of levada has no pages. In a checkout, `make web` builds them.")
    if options.out is not None:
        return _store(Path(options.out))
    try:
        for module in ("fastapi", "uvicorn", "numpy"):
            import_extra(module, "serve", "levada explore")
    except MissingExtraError as error:
        raise UsageError(f"{error}, or write the page as a file, which needs nothing: --out explore.html") from error
    from levada.web.server import serve

    with tempfile.TemporaryDirectory(prefix="levada-explore-") as empty:
        serve(Path(empty), "127.0.0.1", options.port, closed=False, opens=options.open, page="explore.html")
    return QUIET


def _store(path: Path) -> int:
    if str(path) == "-":
        raise UsageError("--out must name a file, got '-', and nothing is written to standard output. Give a path.")
    if path.is_dir():
        raise UsageError(
            f"--out must name a file, got {str(path)!r}, which is a folder. Give the path of a file in it."
        )
    write(path, _PAGE.read_text(encoding="utf-8"))
    tell(str(path.resolve()))
    return QUIET
