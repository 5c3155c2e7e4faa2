"""Proposals against decay over depth: a change in code, and what theory says it does. None of them was tried here."""

from __future__ import annotations

from levada.diagnose.facts import facts_of
from levada.diagnose.finding import Proposal
from levada.probe.trace import Trace

__all__ = ["repairs"]

# Homogeneous activations keep a gain of exactly 1 at any size of signal; the others only at a chosen variance.
_RECTIFIERS = {"relu": 0.0, "leaky_relu": 0.01}
_CRITICAL = {"gelu": "torch.nn.functional.gelu", "silu": "torch.nn.functional.silu", "tanh": "torch.tanh"}


def repairs(trace: Trace, gain: float) -> tuple[Proposal, ...]:
    """Return proposals for a network whose signal or gradient changes by `gain` per block.

    Initialisation repairs what is a chain without normalisation; where skips join it, the weights alone do not say the
    gain. A branch behind a scalar that starts at zero is the identity at the start, whatever the branch.

    Args:
        trace: with the facts of a check.
        gain: the measured factor per block.
    """
    facts = facts_of(trace)
    before, after = {"gain_per_block": gain}, {"gain_per_block": 1.0}
    proposals = []
    used = {name for names in facts.activations.values() for name in names}
    name = next(iter(used)) if len(used) == 1 and facts.chain and not facts.normalised else None
    if name in _RECTIFIERS:
        slope = _RECTIFIERS[name]
        option = f", negative_slope={slope}" if slope else ""
        patch = f"from levada import initialise\ninitialise.he(model{option})"
        proposals.append(Proposal("initialise.he", patch, before, after))
    elif name in _CRITICAL and gain < 1:
        patch = f"import torch\nfrom levada import initialise\ninitialise.critical(model, activation={_CRITICAL[name]})"
        proposals.append(Proposal("initialise.critical", patch, before, after))
    shape = _common_shape(trace)
    if shape is not None:
        patch = (
            "from levada import ReZero, Stack\n"
            f"net = Stack(blocks, ReZero, dim={shape[-1] if len(shape) < 4 else shape[1]})"
            "  # blocks: those of equal width, f in x + a f(x)"
        )
        proposals.append(Proposal("rezero", patch, before, after))
    return tuple(proposals)


def _common_shape(trace: Trace) -> tuple[int, ...] | None:
    shapes = [site.shape for site in trace.sites[:-1]]
    most = max(set(shapes), key=shapes.count) if shapes else ()
    return most if most and shapes.count(most) * 2 > len(shapes) else None
