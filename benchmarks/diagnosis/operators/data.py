"""Faults of the data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.diagnosis.architectures import Plan
from benchmarks.diagnosis.operators.operator import At, draws, operator
from benchmarks.diagnosis.program import Setup

FLOATING = "mlp cnn resnet vit lstm gru rnn"
CLASSIFIERS = "mlp cnn resnet transformer vit lstm gru rnn"


def with_inputs(setup: Setup, change: Callable[[Tensor], Tensor]) -> Setup:
    """Change the inputs; the program is judged on them as well."""
    return replace(setup, batches=[(change(x), y) for x, y in setup.batches])


def not_text(plan: Plan) -> bool:
    return not plan.text


@operator("unscaled_input", families=FLOATING, suits=not_text)
def inputs_1000_times(setup: Setup, at: At) -> Setup:
    """Inputs are a thousand times too large."""
    return with_inputs(setup, lambda x: 1000 * x)


@operator("unscaled_input", families=FLOATING, suits=not_text)
def inputs_off_centre(setup: Setup, at: At) -> Setup:
    """Inputs have a mean of 100."""
    return with_inputs(setup, lambda x: x + 100)


@operator("unscaled_input", families=FLOATING, suits=not_text)
def inputs_of_bytes(setup: Setup, at: At) -> Setup:
    """Inputs run from 0 to 255."""
    low = min(float(x.min()) for x, _ in setup.batches)
    high = max(float(x.max()) for x, _ in setup.batches)
    return with_inputs(setup, lambda x: 255 * (x - low) / (high - low))


@operator("unscaled_input", families=FLOATING, suits=not_text)
def tiny_inputs(setup: Setup, at: At) -> Setup:
    """Inputs are 1e-4 times what they should be."""
    return with_inputs(setup, lambda x: 1e-4 * x)


@operator("unscaled_input", families=FLOATING, suits=not_text)
def one_large_feature(setup: Setup, at: At) -> Setup:
    """One column of the inputs is a thousand times larger than the others."""

    def change(x: Tensor) -> Tensor:
        x = x.clone()
        x[..., x.shape[-1] // 2] *= 1000
        return x

    return with_inputs(setup, change)


@operator("refused", "numerical_overflow", families=FLOATING + " autoencoder", suits=not_text)
def nan_inputs(setup: Setup, at: At) -> Setup:
    """One number of every batch is NaN; judged on the clean batches."""

    def change(x: Tensor) -> Tensor:
        x = x.clone()
        x.view(-1)[x.numel() // 2] = float("nan")
        return x

    clean = setup.batches
    return replace(with_inputs(setup, change), data=clean)


@operator("mispaired_targets", families=CLASSIFIERS)
def shuffled_labels(setup: Setup, at: At) -> Setup:
    """Targets are dealt anew to the rows of each batch; judged on the right ones."""
    generator = draws(at)
    batches = [(x, y[torch.randperm(len(y), generator=generator)]) for x, y in setup.batches]
    return replace(setup, batches=batches, data=setup.batches)


@operator("mispaired_targets", families=CLASSIFIERS + " autoencoder")
def targets_of_another_batch(setup: Setup, at: At) -> Setup:
    """Each batch comes with the targets of the next one; judged on the right ones."""
    targets = [y for _, y in setup.batches]
    batches = [(x, y) for (x, _), y in zip(setup.batches, targets[1:] + targets[:1], strict=True)]
    return replace(setup, batches=batches, data=setup.batches)


@operator("short_memory", families="lstm gru rnn", suits=not_text)
def padded_sequences(setup: Setup, at: At) -> Setup:
    """A hundred empty rows follow every sequence, and the head reads the state after them."""
    return with_inputs(setup, lambda x: functional.pad(x, (0, 0, 0, 100)))
