"""`levada check`."""

from __future__ import annotations

import argparse
import contextlib
import sys

from levada.commands.inputs import batch_of, loss_of, model_of, named, require_model
from levada.commands.output import FIRED, QUIET, UNMEASURED, console, fails, require_writable, store

__all__ = ["check"]


def check(options: argparse.Namespace) -> int:
    """Run `levada check`: build the model from its target, check it, show and store the report."""
    require_writable(options)
    require_model(options)

    import torch

    import levada

    # What the user's code prints must not get between the lines of --json -.
    with contextlib.redirect_stdout(sys.stderr), console(stderr=True).status(f"checking {options.model}"):
        torch.manual_seed(options.seed)
        model, batch = model_of(options.model), batch_of(options.batch)
        report = levada.check(
            model,
            batch,
            loss=loss_of(options.loss),
            optimizer=named(options.optimizer),
            lr=options.lr,
            seed=options.seed,
            budget=options.budget,
        )
    told = {**report.to_dict(), "model": options.model}
    if options.json != "-":
        from levada.report.terminal import print_check

        print_check(told, console())
    store(told, options, told, {"": told})
    if told["verdict"] == "unknown":
        return UNMEASURED
    return FIRED if fails(told["verdict"], options.fail_on) else QUIET
