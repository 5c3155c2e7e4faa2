"""Intermediate losses: heads at named places of any model, their weights over training, and what they do to gradients.

The model is left as it is: heads are modules of their own, and nothing of them runs in evaluation.
"""

from levada.supervision.head import Head as Head
from levada.supervision.reach import Reach as Reach
from levada.supervision.reach import gradient_reach as gradient_reach
from levada.supervision.schedules import Schedule as Schedule
from levada.supervision.schedules import constant as constant
from levada.supervision.schedules import linear_decay as linear_decay
from levada.supervision.schedules import until_half_depth as until_half_depth
from levada.supervision.supervision import Supervised as Supervised
from levada.supervision.supervision import Supervision as Supervision

__all__ = [
    "Head",
    "Reach",
    "Schedule",
    "Supervised",
    "Supervision",
    "constant",
    "gradient_reach",
    "linear_decay",
    "until_half_depth",
]
