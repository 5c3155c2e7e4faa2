"""`levada replay`."""

from __future__ import annotations

import argparse
import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from levada._errors import UsageError
from levada.commands.inputs import model_of, named
from levada.commands.output import FIRED, QUIET, console, fails, require_writable, to_json, write

if TYPE_CHECKING:
    from levada.watching.bundle import Bundle

__all__ = ["replay"]


def replay(options: argparse.Namespace) -> int:
    """Run `levada replay`: build the model, give it the bundle's weights, run the step again, show what it measures."""
    from levada.watching.bundle import read_bundle
    from levada.watching.replay import replay as again

    require_writable(options)
    bundle = read_bundle(options.bundle)
    if options.model is None:
        built = bundle.facts.get("model") or "model"
        raise UsageError(f"--model must name what builds the {built} of the bundle: --model FILE.py:NAME")
    with contextlib.redirect_stdout(sys.stderr), console(stderr=True).status(f"replaying step {bundle.step}"):
        if options.model.endswith(".toml"):
            model, loss, loaded = _trained(Path(options.model), bundle)
        else:
            model, loss, loaded = model_of(options.model), None, False
        if options.loss is not None or "targets" not in bundle.values:
            loss = named(options.loss)
        found = again(bundle, model, loss, as_built=options.as_built or loaded)
    told = {**found.report.to_dict(), "model": options.model}
    if options.json != "-":
        from levada.report.terminal import print_check

        print_check(told, console())
    if options.json == "-":
        sys.stdout.write(to_json(told))
    elif options.json:
        write(Path(options.json), to_json(told))
    return FIRED if fails(told["verdict"], options.fail_on) else QUIET


def _trained(path: Path, bundle: Bundle) -> tuple[Any, Any, bool]:
    """Return the network and the loss of a training, by its configuration, and whether its weights are loaded.

    Of a bundle that has them in shards or of one stage alone, they are those of the checkpoint from before the step.
    """
    from levada.training import network_of, read
    from levada.training.checkpoint import complete, load_weights
    from levada.training.engine import cross_entropy

    network = network_of(read(path))
    checkpoint = dict(complete(path.parent / "checkpoints")).get(bundle.step)
    whole = network.state_dict().keys() == bundle.values.get("weights", {}).keys()
    if not whole and checkpoint is not None:
        load_weights(checkpoint, network)
    return network, cross_entropy, not whole and checkpoint is not None
