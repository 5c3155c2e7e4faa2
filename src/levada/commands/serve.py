"""`levada serve`."""

from __future__ import annotations

import argparse
from pathlib import Path

from levada._errors import import_extra
from levada.commands.output import QUIET
from levada.runs.address import require_local

__all__ = ["serve"]


def serve(options: argparse.Namespace) -> int:
    """Run `levada serve`: show the runs below a folder in a browser, until Ctrl-C."""
    for module in ("fastapi", "uvicorn", "numpy"):
        import_extra(module, "serve", "levada serve")
    advice = "Copy the runs to a folder, or make a page of them: levada report ADDRESS"
    require_local("DIR must name a folder of this machine", options.folder, advice)
    from levada.web.server import serve as run

    run(Path(options.folder), options.host, options.port, closed=options.token, opens=options.open)
    return QUIET
