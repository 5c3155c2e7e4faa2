"""What a rule costs: the time of the passes and tests that it reads, shared where other rules read them too."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["READS", "cost_of"]

# Stages of a check by the rule that reads what they measure; `levada.diagnose.measure` and `gather` name them.
READS: Mapping[str, tuple[str, ...]] = {
    "numerical_overflow": ("losses", "rounding"),
    "wrong_loss": ("objective",),
    "double_softmax": ("objective",),
    "unscaled_input": ("courses",),
    "train_mode": ("mode",),
    "frozen_layers": ("losses", "matter"),
    "dead_units": ("losses",),
    "saturated_activation": ("losses", "step"),
    "stream_collapse": ("losses", "streams"),
    "unstable_mixing": ("losses", "cotangents"),
    "exploding_signal": ("losses", "outputs"),
    "vanishing_signal": ("losses", "outputs", "trials"),
    "rank_collapse": ("outputs", "trials"),
    "vanishing_gradient": ("cotangents", "after_step", "step"),
    "exploding_gradient": ("cotangents", "outputs", "step"),
    "shattered_gradient": ("neighbours",),
    "misscaled_weights": ("redraw",),
    "attention_collapse": ("outputs", "attention"),
    "short_memory": ("memory", "trials"),
    "exploding_memory": ("memory",),
    "unoptimised_parameters": ("recipe",),
    "undamped_momentum": ("recipe",),
    "excessive_decay": ("recipe",),
    "lost_update": ("step", "rounding"),
    "learning_rate_too_high": ("courses",),
    "learning_rate_too_low": ("courses",),
    "mixed_rows": ("rows",),
    "noisy_forward": ("noise",),
    "blind_attention": ("outputs",),
    "no_progress": ("courses",),
    "mispaired_targets": ("pairing",),
}


def cost_of(rule: str, seconds: Mapping[str, float]) -> dict[str, float]:
    """Return the milliseconds of what a rule reads; {} if nothing was timed.

    Args:
        rule: the rule's name.
        seconds: time of each stage of a check.

    Returns:
        {"total", "own", "shared"}: `own` for what no other rule reads; `shared` is the rule's part of the rest, each
        stage divided by the number of rules that read it.

    Example:
        >>> cost_of("rank_collapse", {"outputs": 0.4})
        {'total': 66.67, 'own': 0.0, 'shared': 66.67}
    """
    own = shared = 0.0
    stages = [stage for stage in READS.get(rule, ()) if stage in seconds]
    for stage in stages:
        readers = sum(stage in read for read in READS.values())
        if readers == 1:
            own += 1e3 * seconds[stage]
        else:
            shared += 1e3 * seconds[stage] / readers
    told = {"total": own + shared, "own": own, "shared": shared}
    return {part: round(value, 2) for part, value in told.items()} if stages else {}
