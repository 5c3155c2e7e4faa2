"""What a watched run recorded of the inside of its layers: mixing matrices, step by step."""

from __future__ import annotations

from pathlib import Path
from typing import Final, Literal

from levada._numbers import sampled
from levada.runs.inside import EVENT, MixedLayer, chains_in, gates_of, largest_in, mixed_at, why_not
from levada.web.folder import RefusedError
from levada.web.opened import Opened, opened
from levada.web.pictures import Chain, Gate, Gates, GatesOf, Layer, Mixing, MixingOf
from levada.web.shapes import plain, told

__all__ = ["INSIDE", "absent", "watched_gates", "watched_mixing"]

INSIDE: Final[tuple[Literal["mixing", "gates"], ...]] = ("mixing", "gates")
"""What is recorded of the inside of layers."""

_MAX_NUMBERS: Final = 2**18  # of all matrices of an answer
_MAX_STEPS: Final = 2048  # that are listed
_MAX_SITES: Final = 64  # recurrences of an answer


def absent(run: Opened, what: str) -> str:
    """Say why a run has no record of something.

    Args:
        run: a watched one.
        what: one of `INSIDE`.
    """
    return why_not((event for rank in {0, *run.together.holders} for event in run.events(rank=rank)), what)


def watched_mixing(run: Opened, asked: MixingOf) -> Mixing:
    """Give the matrices at a sample; of several processes each one's layers, whose products are its own.

    Args:
        run: a watched one.
        asked: the newest sample up to which step, or the first there is.

    Raises:
        RefusedError: if nothing is recorded.
    """
    held = [(rank, run.signals(rank, "mixing")) for rank in run.holders("mixing")]
    steps = held[0][1].steps if held else ()
    if not steps:
        raise RefusedError(404, f"The run has no record of mixing matrices. {absent(run, 'mixing')}")
    step = None if asked.step is None else max(asked.step, steps[0])
    found = [(rank, at) for rank, signals in held if (at := mixed_at(signals, step)) is not None]
    layers: list[Layer] = []
    chains: list[Chain] = []
    for rank, (_, _, here) in found:
        named = {layer.name: plain(run.together.site(rank, layer.name)) for layer in here}
        layers += [_layer(layer, named[layer.name]) for layer in here]
        for chain in chains_in(here):
            most = largest_in(chain)
            chains.append(
                Chain(
                    layers=[named[layer.name] for layer in chain],
                    forward_gain=told(most["composite_forward_gain"]),
                    backward_gain=told(most["composite_backward_gain"]),
                )
            )
    size = max((len(layer.matrix) ** 2 for layer in layers), default=1)
    shown = [layers[i] for i in sampled(len(layers), max(2, _MAX_NUMBERS // size))]
    return Mixing(
        watched=True,
        steps=[steps[i] for i in sampled(len(steps), _MAX_STEPS)],
        step=found[0][1][0],
        last_step=found[0][1][1],
        layers=shown,
        chains=chains,
        total=_total(run, len(layers)),
    )


def _layer(layer: MixedLayer, name: str) -> Layer:
    return Layer(
        name=name,
        matrix=[[told(one) for one in row] for row in layer.matrix],
        forward_gain=told(layer.told["composite_forward_gain"]),
        backward_gain=told(layer.told["composite_backward_gain"]),
        row_deviation=told(layer.told["mixing_row_deviation"]),
        column_deviation=told(layer.told["mixing_column_deviation"]),
    )


def _total(run: Opened, least: int) -> int:
    """Give the number of layers that mix streams, with those of which no matrix is kept."""
    counts = 0
    for rank in run.holders("mixing"):
        said = [event.get("mixing") for event in run.events(rank=rank) if event["type"] == EVENT]
        layers = said[-1].get("layers") if said and isinstance(said[-1], dict) else None
        counts += layers if isinstance(layers, int) else 0
    return max(least, counts)


def watched_gates(path: Path, asked: GatesOf) -> Gates:
    """Give what the gates of recurrences were, by sampled step.

    Args:
        path: the run's folder.
        asked: which steps.

    Raises:
        RefusedError: if nothing is recorded.
    """
    run = opened(path)
    if run.manifest.kind != "watch" or not (holders := run.holders("gates")):
        why = absent(run, "gates") if run.manifest.kind == "watch" else "Watched runs have."
        raise RefusedError(404, f"The run has no record of gates. {why}")
    found = [
        (run.together.site(rank, one.site), one)
        for rank in holders
        for one in gates_of(run.signals(rank, "gates"), asked.start, asked.stop)
    ]
    made = []
    for name, one in (found[i] for i in sampled(len(found), _MAX_SITES)):
        kept = sampled(len(one.steps), asked.points)
        numbers = {key: [told(getattr(one, key)[i]) for i in kept] for key in ("mean", "low", "high", "horizon")}
        made.append(Gate(site=plain(name), gate=plain(one.gate), steps=[one.steps[i] for i in kept], **numbers))
    return Gates(recurrences=made, total=len(found))
