"""`levada run`: a training script as it is, with every model that it trains watched."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from levada._errors import UsageError
from levada._ranks import is_first
from levada.commands.places import Place, Places
from levada.commands.script import Script, require_script, run_script

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

__all__ = ["run"]


def run(options: argparse.Namespace) -> int:
    """Run `levada run`: the script as python would, with a watch for each model that it trains."""
    words = options.module if options.module is not None else options.script
    if not words:
        raise UsageError("SCRIPT must be given, or -m and the name of a module: levada run train.py --lr 0.1")
    script = Script(words[0], tuple(words[1:]), module=options.module is not None)
    require_script(script)
    places = Places(options.run, script.name)

    from levada.watching.loop.telling import say
    from levada.watching.script import Watches

    def start(model: nn.Module, optimizers: Sequence[Optimizer], before: int) -> Any:
        place = places.next(model)
        if place is not None:
            return _watch(options, place, model, optimizers)
        say("levada run: the first process does not watch this model, so this process does not either.")
        return None

    watches = Watches(start)
    with places:
        code = run_script(script, watches)
    if not code and not watches.started and not watches.failures and options.view != "quiet" and is_first():
        say("levada run: no optimizer made a step, so nothing was watched.")
    return code


def _watch(options: argparse.Namespace, place: Place, model: nn.Module, optimizers: Sequence[Optimizer]) -> Any:
    import levada
    from levada.watching import Continue

    # Steps have the script's numbers: the first one showed the model. Of several optimizers one alone has stepped, and
    # what the others do ends that step.
    first = 1 if len(optimizers) == 1 else 0
    shown: bool | Literal["plain"] = "plain" if options.view == "plain" else options.view != "quiet"
    watch = levada.watch(
        model,
        optimizers,
        run=Continue(None if place.alone else place.where, first, anew=True),
        every=options.every,
        max_overhead=options.max_overhead,
        live=shown,
    )
    if place.alone:
        from levada.watching.record.recording import Recording

        recording = Recording(place.where, watch, rank=0)  # there is no other process in this run
        watch.listen(recording)
        watch.run = recording.folder
    return watch
