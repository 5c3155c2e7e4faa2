"""Remedies for attention."""

from __future__ import annotations

from levada.diagnose.remedies.remedy import Patch, Subject

__all__ = ["qk_scale"]


def qk_scale(subject: Subject) -> Patch | None:
    """Scale what makes queries and keys, so that the logits of attention have a deviation of 1."""
    parts = subject.facts.attending.parts
    if not parts:
        return None
    lines = ["import torch", "with torch.no_grad():"]
    for part in parts:
        inside = f"[{':, ' * part.dim}{part.start}:{part.stop}]"
        lines.append(f"    model.get_parameter({part.parameter!r}){inside} *= {part.gain:.4g}")
    return Patch("\n".join(lines))
