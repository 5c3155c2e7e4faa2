"""The remedies: each writes one change as code, which is tried on a copy before anybody is told of it."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from levada.diagnose.remedies import attention, computation, connection, loss, recurrent, redraw, training, weights
from levada.diagnose.remedies.remedy import Call as Call
from levada.diagnose.remedies.remedy import Patch as Patch
from levada.diagnose.remedies.remedy import Remedy as Remedy
from levada.diagnose.remedies.remedy import Subject as Subject
from levada.diagnose.remedies.remedy import adjusted as adjusted
from levada.diagnose.remedies.remedy import calls as calls

__all__ = ["REMEDIES", "Call", "Patch", "Remedy", "Subject", "adjusted", "calls"]

STILL = "no_progress"  # the rule, or what the training of the model as it is showed
_SHRINKS = frozenset({"vanishing_gradient", "vanishing_signal"})
_GROWS = frozenset({"exploding_gradient", "exploding_signal", "numerical_overflow"})
_FLAT = frozenset({"saturated_activation", "dead_units"})
_NOISE = frozenset({"rank_collapse", "shattered_gradient", "degradation"})
_RATE = frozenset({"learning_rate_too_high"})
_SMALL = frozenset({"learning_rate_too_low", "lost_update"})
_WRONG = frozenset({"wrong_loss"})
_DEPTH = _SHRINKS | _GROWS | _NOISE | {STILL}

REMEDIES: Mapping[str, Remedy] = MappingProxyType(
    {
        "redraw": Remedy(frozenset({"misscaled_weights"}), 2, redraw.redraw),
        "softmax": Remedy(frozenset({"double_softmax", "wrong_loss"}), 2, computation.softmax),
        "last_activation": Remedy(_WRONG | _FLAT | {STILL}, 2, computation.last_activation),
        "loss.log_softmax": Remedy(_WRONG, 2, loss.log_softmax),
        "loss.sign": Remedy(_WRONG, 2, loss.sign),
        "loss.pairs": Remedy(_WRONG, 2, loss.pairs),
        "loss.standard": Remedy(_WRONG | {"numerical_overflow"}, 2, loss.standard),
        "loss.scale": Remedy(_WRONG | _SMALL | _RATE | _GROWS | _SHRINKS | {STILL}, 1, loss.scale),
        "train": Remedy(frozenset({"train_mode"}), 2, computation.train),
        "unfreeze": Remedy(frozenset({STILL}), 2, computation.unfreeze),
        "standardise": Remedy(_GROWS | _FLAT | _RATE | {STILL, "unscaled_input"}, 2, computation.standardise),
        "rescale_features": Remedy(_FLAT | _RATE | {STILL, "unscaled_input"}, 2, computation.rescale_features),
        "bfloat16": Remedy(_SHRINKS | _GROWS | _SMALL | {STILL}, 2, computation.bfloat16),
        "float32": Remedy(_GROWS | _SMALL | {STILL}, 2, computation.float32),
        "output_scale": Remedy(_SHRINKS | _SMALL | {STILL}, 2, computation.output_scale),
        "batch_first": Remedy(frozenset({"mixed_rows"}), 2, computation.batch_first),
        "less_dropout": Remedy(frozenset({"noisy_forward"}), 2, computation.less_dropout),
        "qk_scale": Remedy(frozenset({"attention_collapse"}), 2, attention.qk_scale),
        "initialise.he_there": Remedy(frozenset({"dead_units"}), 2, weights.he_there),
        "all_parameters": Remedy(frozenset({"unoptimised_parameters"}), 1, training.all_parameters),
        "weight_decay": Remedy(frozenset({"excessive_decay"}), 1, training.weight_decay),
        "momentum": Remedy(frozenset({"undamped_momentum"}), 1, training.momentum),
        "learning_rate.update_0.001": Remedy(_GROWS | _RATE | _SMALL | {STILL}, 1, training.thousandth),
        "learning_rate.update_0.01": Remedy(_GROWS | _RATE | _SMALL | {STILL}, 1, training.hundredth),
        "learning_rate.update_0.05": Remedy(_RATE | _SMALL | {STILL}, 1, training.twentieth),
        "learning_rate.times_0.1": Remedy(_RATE, 1, training.tenth),
        "clip": Remedy(_GROWS | _RATE | {"exploding_memory"}, 1, training.clip),
        "initialise.he": Remedy(_DEPTH | _FLAT, 3, weights.he),
        "initialise.he_slower": Remedy(_SHRINKS | {STILL}, 4, weights.he_slower),
        "initialise.critical": Remedy(_DEPTH | _FLAT, 3, weights.critical),
        "initialise.orthogonal": Remedy(_DEPTH | {"saturated_activation"}, 3, weights.orthogonal),
        "initialise.glorot": Remedy(_GROWS | _FLAT | {STILL}, 3, weights.glorot),
        "initialise.lsuv": Remedy(_DEPTH | _FLAT | {"unscaled_input"}, 3, weights.lsuv),
        "initialise.pytorch_default": Remedy(_DEPTH | _FLAT, 3, weights.default),
        "chrono": Remedy(frozenset({"short_memory", STILL}), 3, recurrent.chrono),
        "orthogonal_recurrence": Remedy(
            frozenset({"short_memory", "exploding_memory", STILL}), 3, recurrent.orthogonal_recurrence
        ),
        "forget_bias": Remedy(_SHRINKS | {"short_memory", STILL}, 3, weights.forget_bias),
        "activation.relu": Remedy(_SHRINKS | _NOISE | {"saturated_activation", STILL}, 4, computation.relu),
        "normalise": Remedy(_DEPTH | _FLAT | {"unscaled_input"}, 4, computation.normalise),
        "scale_branches": Remedy(_DEPTH, 5, connection.scale),
        "gate_branches": Remedy(_DEPTH, 5, connection.gate),
        "rezero": Remedy(_SHRINKS | _GROWS | _NOISE | {STILL}, 5, connection.rezero),
    }
)
