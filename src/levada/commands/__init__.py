"""What each command of the command line does: load the targets, call the library, show and store the result."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping

from levada.commands.bench import bench
from levada.commands.check import check
from levada.commands.explore import explore
from levada.commands.export import export
from levada.commands.fix import fix
from levada.commands.listing import list_names
from levada.commands.replay import replay
from levada.commands.run import run
from levada.commands.runs import doctor, report
from levada.commands.serve import serve
from levada.commands.study import study
from levada.commands.train import train

__all__ = ["COMMANDS"]

COMMANDS: Mapping[str, Callable[[argparse.Namespace], int]] = {
    "check": check,
    "fix": fix,
    "run": run,
    "study": study,
    "train": train,
    "report": report,
    "serve": serve,
    "explore": explore,
    "export": export,
    "doctor": doctor,
    "replay": replay,
    "bench": bench,
    "list": list_names,
}
