"""`levada replay`."""

from __future__ import annotations

import argparse
import contextlib
import sys

from levada._errors import UsageError
from levada.commands.inputs import model_of, named
from levada.commands.output import FIRED, QUIET, console, fails, require_writable, to_json, write

__all__ = ["replay"]


def replay(options: argparse.Namespace) -> int:
    """Run `levada replay`: build the model, give it the bundle's weights, run the step again, show what it measures."""
    from pathlib import Path

    from levada.watching.bundle import read_bundle
    from levada.watching.replay import replay as again

    require_writable(options)
    bundle = read_bundle(options.bundle)
    if options.model is None:
        built = bundle.facts.get("model") or "model"
        raise UsageError(f"--model must name what builds the {built} of the bundle: --model FILE.py:NAME")
    with contextlib.redirect_stdout(sys.stderr), console(stderr=True).status(f"replaying step {bundle.step}"):
        model = model_of(options.model)
        found = again(bundle, model, named(options.loss), as_built=options.as_built)
    told = {**found.report.to_dict(), "model": options.model}
    if options.json != "-":
        from levada.report.terminal import print_check

        print_check(told, console())
    if options.json == "-":
        sys.stdout.write(to_json(told))
    elif options.json:
        write(Path(options.json), to_json(told))
    return FIRED if fails(told["verdict"], options.fail_on) else QUIET
