"""`levada replay`."""

from __future__ import annotations

import argparse
import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from levada._errors import UsageError
from levada.commands.inputs import loss_of, model_of, require_loss
from levada.commands.output import FIRED, QUIET, console, fails, require_writable, tell, to_json, write
from levada.runs.address import local
from levada.runs.bundles import read_table, require_runnable, without_targets
from levada.targets import require

if TYPE_CHECKING:
    from levada.watching.verdict.bundle import Bundle

__all__ = ["replay"]


def replay(options: argparse.Namespace) -> int:
    """Run `levada replay`: build the model, give it the bundle's weights, run the step again, show what it measures."""
    require_writable(options)
    options.bundle = local(options.bundle)
    loss, lacking = _require(options)

    from levada.watching.rerun.replay import replay as again
    from levada.watching.rerun.replay import require_alone
    from levada.watching.verdict.bundle import read_bundle

    bundle = read_bundle(options.bundle, examined=True)  # by what is required
    with contextlib.redirect_stdout(sys.stderr), console(stderr=True).status(f"replaying step {bundle.step}"):
        given = loss_of(loss)
        if lacking and callable(given):
            require_alone(given)
        if lacking:
            tell(f"levada replay: {lacking}", stderr=True)
        if options.model.endswith(".toml"):
            model, usual, loaded = _trained(Path(options.model), bundle)
        else:
            model, usual, loaded = model_of(options.model), None, None
        if options.loss is not None or "targets" not in bundle.values:
            usual = given
        found = again(bundle, model, usual, as_built=options.as_built or loaded is not None)
    told = {**found.report.to_dict(), "model": options.model}
    if loaded is not None:
        told["notes"] = [*told["notes"], f"The weights are those of {loaded}, from before the step."]
    if options.json != "-":
        from levada.report.terminal import print_check

        print_check(told, console())
    if options.json == "-":
        sys.stdout.write(to_json(told))
    elif options.json:
        write(Path(options.json), to_json(told))
    return FIRED if fails(told["verdict"], options.fail_on) else QUIET


def _require(options: argparse.Namespace) -> tuple[str | None, str]:
    """Return the loss that can be computed again, and what the bundle lacks for one, "" if nothing.

    What is lacking is said before anything is built.
    """
    table = read_table(options.bundle)
    if options.model is None:
        built = table.get("facts", {}).get("model") or "model"
        raise UsageError(f"--model must name what builds the {built} of the bundle: --model FILE.py:NAME")
    if not options.model.endswith(".toml"):  # which may have the weights in a checkpoint
        require(options.model)
        require_runnable(table["values"], table["missing"], table["checkpoint"], as_built=options.as_built)
    elif not Path(options.model).is_file():
        raise UsageError(f"There is no file {options.model!r}. Give the config.toml of a training, or a target.")
    require_loss(options.loss)
    loss: str | None = options.loss
    if loss == "output":  # what the model returns is the loss
        return loss, ""
    told = without_targets(table, loss if loss is not None and ":" in loss else "")
    if told and loss in ("cross_entropy", "mse"):
        raise UsageError(
            f"--loss {loss} compares outputs with targets, and the bundle of step {table.get('step')} holds none. "
            "Leave it out, or give FILE.py:FUNCTION, which is then called with the outputs alone; "
            "watch.note(targets=targets) in the loop keeps them next time."
        )
    return loss, told


def _trained(path: Path, bundle: Bundle) -> tuple[Any, Any, Path | None]:
    """Return the network and the loss of a training, by its configuration, and the checkpoint that gave its weights.

    Of a bundle that has them in shards or of one stage alone, they are those of the checkpoint from before the step.
    """
    from levada.training import network_of, read
    from levada.training.checkpoint import complete, load_weights
    from levada.training.engine import cross_entropy

    network = network_of(read(path))
    checkpoint = dict(complete(path.parent / "checkpoints")).get(bundle.step)
    whole = network.state_dict().keys() == bundle.values.get("weights", {}).keys()
    if whole or checkpoint is None:
        return network, cross_entropy, None
    load_weights(checkpoint, network)
    return network, cross_entropy, checkpoint
