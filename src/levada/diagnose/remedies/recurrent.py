"""Remedies for a memory over time that is too short, or explodes."""

from __future__ import annotations

from torch import nn

from levada.diagnose.recurrent import repair_of
from levada.diagnose.remedies.remedy import Patch, Subject

__all__ = ["chrono", "orthogonal_recurrence"]


def chrono(subject: Subject) -> Patch | None:
    """Let gates keep memories of 1 step to the whole sequence at the start: biases of their logarithms."""
    memory = subject.facts.memory
    gated = nn.LSTM | nn.GRU | nn.LSTMCell | nn.GRUCell
    if memory is None or not any(
        m.bias if isinstance(m, gated) else hasattr(m, "carry_bias") for m in subject.model.modules()
    ):
        return None
    name, code = repair_of("short_memory", memory.curves, subject.generator)
    return Patch(code) if name == "chrono" else None


def orthogonal_recurrence(subject: Subject) -> Patch | None:
    """Set recurrent weights to orthogonal ones, which keep the norm of a state, or the identity for rectifiers."""
    torchs = nn.RNNBase | nn.RNNCellBase
    if not any(isinstance(m, torchs) or hasattr(m, "recurrent_weights") for m in subject.model.modules()):
        return None
    return Patch(repair_of("exploding_memory", (), subject.generator)[1])
