"""What the rules of a check and the keys of their evidence are called in plain words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

__all__ = ["EVIDENCE", "GROUPS", "LOOKS", "OF_TENSOR", "OF_WATCH", "OF_WEIGHTS", "PHRASES", "REASONS"]

# What happened, and the words that lead to the place.
PHRASES: Final[Mapping[str, tuple[str, str]]] = {
    "vanishing_gradient": ("The learning signal dies on its way back", "through"),
    "exploding_gradient": ("The gradient explodes on its way back", "through"),
    "vanishing_signal": ("The signal dies out", "in"),
    "exploding_signal": ("The signal explodes", "in"),
    "saturated_activation": ("The activations saturate", "at"),
    "dead_units": ("Units are dead", "at"),
    "rank_collapse": ("All inputs come to look the same", "at"),
    "attention_collapse": ("Every token attends to one", "at"),
    "shattered_gradient": ("The gradient turns into noise", "at"),
    "degradation": ("Depth makes the training worse", "from"),
    "frozen_layers": ("No gradient arrives", "at"),
    "lost_update": ("Updates are lost in rounding", "at"),
    "learning_rate_too_high": ("The learning rate is too high", "for"),
    "learning_rate_too_low": ("The learning rate is too low", "for"),
    "short_memory": ("The memory is too short", "at"),
    "exploding_memory": ("The memory explodes", "at"),
    "numerical_overflow": ("Numbers become NaN or Inf", "at"),
    "skipped_steps": ("The training makes no update", "at"),
    "loss_above_best": ("The loss is above its lowest", "at"),
    "maximised_loss": ("A negative loss falls", "at"),
    "nonfinite_batches": ("Batches that are not finite are left out", "at"),
    "frozen_parameters": ("Parameters are trained no more", "in"),
    "constant_inputs": ("All inputs are the same", "at"),
    "accumulated_gradients": ("Gradients pile up from step to step", "at"),
    "double_softmax": ("The softmax is applied twice", "at"),
    "wrong_loss": ("The loss does not fit the outputs", "of"),
    "unscaled_input": ("The inputs are not scaled", "at"),
    "misscaled_weights": ("The weights are drawn at the wrong scale", "at"),
    "unoptimised_parameters": ("The optimizer does not hold all parameters", "at"),
    "undamped_momentum": ("The optimizer forgets nothing", "for"),
    "excessive_decay": ("Weight decay takes the weights away", "in"),
    "train_mode": ("A module is in the wrong mode", "at"),
    "stream_collapse": ("The streams have become one", "at"),
    "unstable_mixing": ("The mixing of the streams is unstable", "at"),
}

# The same of what is not finite, by where it was seen first; a batch and a loss have no place among the blocks.
OF_TENSOR: Final[Mapping[str, tuple[str, str]]] = {
    "inputs": ("The batch holds NaN or Inf", ""),
    "targets": ("The targets hold NaN or Inf", ""),
    "loss": ("The loss is NaN or Inf", ""),
    "buffer": ("A buffer holds NaN or Inf", ""),
    "weight": ("A parameter holds NaN or Inf", "at"),
    "signal": ("The signal becomes NaN or Inf", "at"),
    "gradient": ("The gradient becomes NaN or Inf", "at"),
}

# The same of weights that get no gradient though their layers do.
OF_WEIGHTS: Final = ("Some weights get no gradient", "in")

# What the keys of evidence mean, and the unit: a share is written in per cent.
EVIDENCE: Final[Mapping[str, tuple[str, str]]] = {
    "gradient_decay_per_block": ("gradient, factor per block", ""),
    "signal_decay_per_block": ("difference between inputs, factor per block", ""),
    "growth_per_block": ("signal, factor per block", ""),
    "gain_per_block": ("gain per block", ""),
    "predicted_share": ("blocks that theory covers", "%"),
    "decades": ("at the place named, in all", "orders of magnitude"),
    "decades_over_all_blocks_measured": ("over all blocks that could be measured", "orders of magnitude"),
    "starved": ("first and last of the layers that it hardly reaches", ""),
    "explained_by": ("explained by", ""),
    "output_spread": ("difference between outputs / size of the output", ""),
    "output_spread_after_step": ("the same after the optimizer's first step", ""),
    "output_rms": ("size of the output, root mean square", ""),
    "output_depends_on_input": ("whether the output depends on the input", ""),
    "dead_fraction": ("share of units that are dead", "%"),
    "saturated_fraction": ("share of elements that are saturated", "%"),
    "gradient_before": ("gradient before the dead units", ""),
    "spread_behind": ("difference between inputs behind them", ""),
    "reference": ("for comparison", ""),
    "input_rms": ("size of the input, root mean square", ""),
    "weight_rms": ("size of the weights, root mean square", ""),
    "lr": ("learning rate", ""),
    "update_ratio": ("optimizer's first step / weights", ""),
    "lost_fraction": ("share of that step lost in rounding", "%"),
    "first_update_ratio": ("first of these layers, optimizer's first step / weights", ""),
    "last_update_ratio": ("last of the other layers, optimizer's first step / weights", ""),
    "first_lost_fraction": ("first of these layers, share of that step lost in rounding", "%"),
    "first_gradient_over_eps": ("first of these layers, gradient / the optimizer's epsilon", ""),
    "standing_still": ("layers that the optimizer's first step all but leaves as they are", ""),
    "still_at_most": ("of these layers that the step all but leaves as they are, at most", ""),
    "share_changed": ("share of the elements that the step changes", "%"),
    "first_step_beside_weights": ("optimizer's first step / weights", ""),
    "optimizer_first_step": ("test of the optimizer's first step", ""),
    "loss_after_first_step": ("test of the loss after the first step", ""),
    "loss_before": ("loss before the optimizer's first step", ""),
    "loss_after": ("loss after it", ""),
    "loss_beside_that_of_zeros": ("test of the loss beside that of an output of zeros", ""),
    "loss_of_zeros": ("loss of an output of zeros", ""),
    "freeze_training": ("training test with these layers frozen", ""),
    "training": ("longer training test", ""),
    "longer_training": ("longer training test", ""),
    "parameters_without_gradient": ("parameters without a gradient", ""),
    "share": ("share of values that are NaN or infinite", "%"),
    "tensor": ("what is NaN or infinite first", ""),
    "blocks_after": ("blocks behind it", ""),
    "composite_forward_gain": ("what the mixing multiplies equal streams by", ""),
    "composite_backward_gain": ("what the mixing multiplies a gradient by that is equal in all streams", ""),
    "composite_column_norm": ("what the mixing leaves to one stream of a gradient that points anywhere", ""),
    "composite_log_column_sum": ("the logarithm of that, growing or shrinking", "nat"),
    "growth_beside_the_mixing": ("test of what was measured beside the mixing", ""),
    "decades_of_the_mixing": ("the mixing alone", "orders of magnitude"),
    "decades_measured_at_least": ("measured, at least", "orders of magnitude"),
    "stream_cosine": ("cosine between the streams, the smallest", ""),
    "difference_of_gradients_between_streams": ("difference of gradients between streams / their size", ""),
    "least_share": ("smallest such share", "%"),
    "effective_rank": ("directions in which the inputs differ, effective rank", ""),
    "attainable_rank": ("as many as batch and width allow", ""),
    "rank_before": ("directions before the block", ""),
    "rank_after_first_step": ("directions after the optimizer's first step", ""),
    "correlation": ("mean cosine between inputs", ""),
    "attention_entropy": ("entropy of attention / its largest value", ""),
    "attention_slope": ("slope of the softmax", ""),
    "attention_logit_max": ("largest logit", ""),
    "steps_of_queries_and_keys": ("ten steps of queries and keys alone", ""),
    "gradient_cosine": ("cosine between the gradients of neighbours", ""),
    "gain_of_neighbours": ("what steps for the inputs gain their neighbours, as a share", "%"),
    "gain_of_exact_step": ("what the step gains without rounding", ""),
    "gain_of_rounded_step": ("what it gains with rounding", ""),
    "flushed_fraction": ("share of the gradient's elements that float16 loses", "%"),
    "loss_at_lr": ("losses at this rate", ""),
    "loss_with_smaller_eps": ("losses with a smaller eps", ""),
    "floor_of_the_loss": ("least loss that there is", ""),
    "memory_horizon": ("steps after which 1/1000 of the memory is left", ""),
    "horizon_predicted": ("the same by its gates, or the size of its weights, alone", ""),
    "gradient_in_first_half": ("gradient in the first half of the sequence / the largest", ""),
    "growth_per_step": ("gradient, factor per step back in time", ""),
    "lyapunov_exponent": ("largest Lyapunov exponent, per step", ""),
    "repaired_copy": ("trial of a repaired copy", ""),
    "shrinkage_per_step": ("share of the weights that decay takes at each step", "%"),
    "decay_over_gradient": ("decay / the gradient that it is added to", ""),
    "loss_with_decay": ("losses with decay", ""),
    "loss_without_decay": ("losses without it", ""),
    "suspected": ("parameters of unusual size", ""),
    "loss_as_it_is": ("losses as it is", ""),
    "loss_drawn_again": ("last losses, drawn again", ""),
    "loss_when_1_is_added": ("change of the loss when 1 is added to all outputs", ""),
}
# The same of keys that mean something else in the findings of a rule.
OF_RULE: Final[Mapping[str, Mapping[str, tuple[str, str]]]] = {
    "loss_spike": {
        "loss_before": ("median of the losses before the jump", ""),
        "loss_peak": ("largest loss of the jump", ""),
    },
}
# The same of keys that mean something else in a run that was watched: there the step is any that was sampled.
OF_WATCH: Final[Mapping[str, tuple[str, str]]] = {
    "signal_decay_per_block": ("signal, factor per block", ""),
    "update_ratio": ("optimizer's step / weights", ""),
    "first_update_ratio": ("first of these blocks, optimizer's step / weights", ""),
    "law": ("what one factor for all blocks explains of the change", "%"),
    "samples": ("samples in a row on which it held", ""),
    "held": ("times in a row that it was seen before it was told", ""),
    "decades_by_sample": ("on each of the last samples, in all", "orders of magnitude"),
    "decades_by_block": ("block by block", "orders of magnitude"),
    "octaves_below_baseline": ("below the run's own baseline", "octaves"),
    "octaves_above_baseline": ("above the run's own baseline", "octaves"),
}
LOOKS: Final = ("locate", "look at the data", "run the loss again")
"""What stands among the repairs of a finding and only looks for its cause."""
GROUPS: Final = ("tests", "optimizer_first_step", "loss_after_first_step", "loss_beside_that_of_zeros")
REASONS: Final = {"place": "its place: it happens at one block"}
