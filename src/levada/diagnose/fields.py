"""What a report tells of one block beside the signals: how inputs and tokens lie to each other, and attention."""

from __future__ import annotations

import math
from typing import Any

from levada.diagnose.facts import Facts
from levada.diagnose.prediction import Prediction
from levada.probe import Site

__all__ = ["block_fields", "correlation_predicted"]


def block_fields(facts: Facts, site: Site) -> dict[str, Any]:
    r"""Return the fields of one block; what is not known is left out.

    `correlation` is the mean product of two inputs' signals over their mean square,
    $\langle x_a \cdot x_b \rangle / \langle x_a \cdot x_a \rangle$, and `correlation_predicted` that of the mean-field
    map; `signal_effective_rank` is that of the differences between inputs and `rank_possible` the most that batch and
    width allow; `token_similarity` is the mean cosine between tokens of one sequence and `token_difference` what they
    differ by, over their size; `attention_entropy` is that of the weights over its largest value, `attention_slope` the
    trace of the softmax's Jacobian and `attention_logit_max` the largest logit. All have unit 1.

    Args:
        facts: of the check.
        site: the block.
    """
    told: dict[str, Any] = {}
    found = facts.relations.get(site.name)
    if found is not None:
        told |= {
            "correlation": found.correlation,
            "signal_effective_rank": found.rank,
            "rank_possible": found.attainable,
        }
        told |= {"token_similarity": found.cosine, "token_difference": found.tokens}
        prediction = next((p for p in facts.predictions if p.site == site.name), None)
        if prediction is not None and site.shape:
            told["correlation_predicted"] = correlation_predicted(prediction, site.shape[0])
    attention = facts.attending.by_site.get(site.name)
    if attention is not None:
        told["attention_entropy"] = attention.entropy
        told["attention_slope"] = attention.slope
        told["attention_logit_max"] = attention.logit_max
    return {key: value for key, value in told.items() if not math.isnan(value)}


def correlation_predicted(prediction: Prediction, batch: int) -> float:
    r"""Return $1 - \sigma^2 / q$, with the mean-field variance between inputs and mean square; NaN where unknown.

    Args:
        prediction: theory's word on the block; its spread is that of a batch, which is smaller than that of the data.
        batch: number of rows.

    Example:
        >>> correlation_predicted(Prediction("0", 1.0, 2.0, 1.0), 2)
        0.5
    """
    if not prediction.signal or prediction.spread is None or batch < 2:
        return math.nan
    return 1 - (prediction.spread / prediction.signal) ** 2 * batch / (batch - 1)
