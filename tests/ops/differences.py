"""How far results lie from what they should be."""

import math

import torch


def relative_errors(got, expected):
    """Return each one's error over its size, infinite where that is no number: `max` passes over what is NaN."""
    found = []
    for x, truth in zip(got, expected, strict=True):
        same = torch.equal(x.double(), truth.double())  # of zeros too
        error = 0.0 if same else ((x.double() - truth).norm() / truth.norm()).item()
        found.append(math.inf if math.isnan(error) else error)
    return found
