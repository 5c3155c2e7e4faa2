"""Texts byte by byte and folders of images: what is read is what is there, and what is wrong is named."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from levada._errors import MeasurementError, UsageError
from levada.cli import main
from levada.training.config import Data
from levada.training.data import Examples, Source, described, load_data, require_batch

image = pytest.importorskip("PIL.Image")


def texts(folder, *contents):
    for number, content in enumerate(contents):
        (folder / f"{number}.txt").write_bytes(content)
    return folder


def test_windows_are_the_text(tmp_path):
    content = bytes(range(100)) * 2
    source = load_data(Data("text", str(texts(tmp_path, content) / "0.txt"), context=5, held_out=0.25))
    assert (source.train.num, source.held_out.num, source.outputs, source.shape) == (145, 45, 256, ())
    inputs, targets = source.train.take(torch.tensor([0, 144, 7]))
    assert inputs.tolist() == [list(content[start : start + 5]) for start in (0, 144, 7)]
    assert targets.tolist() == [list(content[start + 1 : start + 6]) for start in (0, 144, 7)]
    last = source.held_out.take(torch.tensor([0, 44]))[1]
    assert last[0].tolist() == list(content[151:156]), "the held-out part begins where the other ends"
    assert last[1].tolist() == list(content[195:200])


def test_no_window_runs_from_one_file_into_the_next(tmp_path):
    contents = [b"a" * 30, b"", b"b" * 7, b"c" * 40]
    source = load_data(Data("text", str(texts(tmp_path, *contents)), context=6, held_out=0.2))
    inputs, targets = source.train.take(torch.arange(source.train.num))
    windows = torch.cat([inputs, targets], 1)
    assert all(len(set(window)) == 1 for window in windows.tolist())
    assert source.train.num == (24 - 6) + 0 + (32 - 6), "b is too short a text and has no window"
    assert set(windows.flatten().tolist()) == {ord("a"), ord("c")}


def test_a_long_text_is_not_read_into_memory(tmp_path):
    with (tmp_path / "long.txt").open("wb") as file:
        file.truncate(2**34)  # a hole of 16 GiB
        file.seek(2**34 - 100)
        file.write(b"x" * 100)
    source = load_data(Data("text", str(tmp_path / "long.txt"), context=8))
    inputs, _ = source.held_out.take(torch.tensor([source.held_out.num - 1]))
    assert inputs.tolist() == [[ord("x")] * 8]


def test_texts_that_cannot_be_used(tmp_path):
    with pytest.raises(UsageError, match="none' does not exist"):
        load_data(Data("text", str(tmp_path / "none")))
    with pytest.raises(UsageError, match=r"holds no \.txt file"):
        load_data(Data("text", str(tmp_path)))
    with pytest.raises(UsageError, match=r"data\.context must be shorter than a text held out, got 8 and no text of 9"):
        load_data(Data("text", str(texts(tmp_path, b"a" * 50)), context=8))


def test_a_folder_that_is_called_as_a_text_is_a_folder(tmp_path):
    inside = tmp_path / "part.txt"
    inside.mkdir()
    (inside / "text.txt").write_bytes(b"a" * 200)
    assert load_data(Data("text", str(tmp_path), context=8)).train.num == 180 - 8


def test_a_text_that_cannot_be_read_is_told_by_the_system_s_error(tmp_path, monkeypatch):
    file = texts(tmp_path, b"a" * 200)

    def denied(path, *args):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", denied)
    with pytest.raises(PermissionError, match="Permission denied"):  # which the command line tells in a sentence
        load_data(Data("text", str(file), context=8))


def test_the_king_james_bible_keeps_its_own_parts():
    source = load_data(Data("king_james", context=16))
    assert source.outputs < 100
    assert source.held_out.num > 100_000


def pictures(folder, sizes=((8, 6),) * 6, mode="RGB"):
    for number, size in enumerate(sizes):
        home = folder / ("cat", "dog")[number % 2]
        home.mkdir(exist_ok=True)
        image.new(mode, size, number * 40 if mode == "L" else (number * 40, 0, 255)).save(home / f"{number}.png")
    return Data("images", str(folder), held_out=0.34)


def test_images_are_read_with_their_classes(tmp_path):
    source = load_data(pictures(tmp_path))
    assert (source.train.num, source.held_out.num, source.shape, source.outputs) == (4, 2, (3, 6, 8), 2)
    inputs, targets = (
        torch.cat(both)
        for both in zip(source.train.take(torch.arange(4)), source.held_out.take(torch.arange(2)), strict=True)
    )
    numbers = ((inputs[:, 0, 0, 0] + 1) * 127.5 / 40).round().int()
    assert sorted(numbers.tolist()) == list(range(6))
    assert (numbers % 2).tolist() == targets.tolist()
    assert inputs[:, 1].eq(-1).all()
    assert inputs[:, 2].eq(1).all()


def test_what_a_system_puts_beside_images_is_none_of_them(tmp_path):
    pictures(tmp_path)
    (tmp_path / "cat" / "._0.png").write_bytes(b"of the Finder")
    (tmp_path / "cat" / "more.png").mkdir()
    (tmp_path / "dog" / ".ipynb_checkpoints").mkdir()
    (tmp_path / "dog" / ".ipynb_checkpoints" / "1.png").write_bytes((tmp_path / "dog" / "1.png").read_bytes())
    (tmp_path / "dog" / ".notes.tif").touch()
    source = load_data(Data("images", str(tmp_path), held_out=0.2))
    assert (source.train.num + source.held_out.num, source.hidden) == (6, 2)


def test_what_is_hidden_or_never_ends_is_no_text(tmp_path):
    home = tmp_path / ".data"  # which the user named
    home.mkdir()
    texts(home, b"a" * 200)
    (home / "._0.txt").write_bytes(b"of the Finder" * 20)
    (home / ".git").mkdir()
    (home / ".git" / "1.txt").write_bytes(b"b" * 200)
    os.mkfifo(home / "pipe.txt")
    writer = os.open(home / "pipe.txt", os.O_RDWR | os.O_NONBLOCK)  # without which to open it never ends
    source = load_data(Data("text", str(home), context=8))
    os.close(writer)
    assert (source.train.num, source.hidden, source.files) == (180 - 8, 2, (home / "0.txt",))


def test_data_are_told_apart_by_targets_over_all_of_them():
    def of(*changed):
        targets = torch.zeros(3200)
        targets[list(changed)] = 1
        return described(Source(Examples(3200, lambda index: (index, targets[index])), Examples(1, None), (), 2))

    assert of(1510) == of(1550) == of(), "32 places of 3,200 are looked at"
    assert len({of(place)["targets"] for place in range(0, 3200, 100)}) == 32


def test_a_file_that_is_not_looked_into_is_told_apart_by_its_size(tmp_path):
    files = [tmp_path / f"{number:02}.png" for number in range(64)]
    for file in files:
        file.write_bytes(b"a" * 100)
    examples = Examples(64, lambda index: (index, index))
    contents = []
    for content in (b"a" * 100, b"b" * 100, b"b" * 101):
        files[1].write_bytes(content)
        contents.append(described(Source(examples, examples, (1, 2, 2), 2, tuple(files)))["content"])
    assert contents[0] == contents[1] != contents[2]


def test_images_are_told_apart_by_their_sizes_and_the_bytes_of_some(tmp_path):
    data = pictures(tmp_path)
    told = described(load_data(data))
    file = tmp_path / "dog" / "3.png"
    whole = file.read_bytes()
    for other in (whole + b" ", bytes([*whole[:-1], whole[-1] ^ 1])):
        file.write_bytes(other)
        changed = described(load_data(data))
        assert changed["content"] != told["content"]
        assert {**changed, "content": told["content"]} == told


def test_grey_images_have_one_channel(tmp_path):
    assert load_data(pictures(tmp_path, mode="L")).shape == (1, 6, 8)


def test_images_of_two_sizes_are_named(tmp_path):
    with pytest.raises(UsageError, match=r"cat/0\.png is 8x6 colour and .*dog/3\.png is 9x6 colour"):
        load_data(pictures(tmp_path, sizes=((8, 6), (8, 6), (8, 6), (9, 6))))


def test_corrupt_images_are_named(tmp_path):
    data = pictures(tmp_path)
    whole = (tmp_path / "dog" / "1.png").read_bytes()
    (tmp_path / "dog" / "1.png").write_bytes(whole[:-30])  # the header is whole
    source = load_data(data)
    parts = [source.train, source.held_out]
    with pytest.raises(MeasurementError, match=r"dog/1\.png is not a whole image"):
        [part.take(torch.arange(part.num)) for part in parts]
    (tmp_path / "cat" / "4.png").write_bytes(b"text")
    with pytest.raises(MeasurementError, match=r"cat/4\.png is not a whole image"):
        load_data(data)


def test_folders_without_classes_are_refused(tmp_path):
    with pytest.raises(UsageError, match="name a folder with a folder for each class, got"):
        load_data(Data("images", str(tmp_path / "none")))
    data = pictures(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="got no image in empty"):
        load_data(data)


def test_without_pillow_its_name_is_told(tmp_path, monkeypatch):
    data = pictures(tmp_path)
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(UsageError, match=r"needs the package 'pillow'.*pip install pillow"):
        load_data(data)


def test_something_must_be_on_both_sides():
    with pytest.raises(UsageError, match=r"data\.held_out must leave examples on both sides, got 1\.0 of 4000"):
        load_data(Data("mnist1d", held_out=1.0))


@pytest.mark.parametrize(
    ("source", "told"),
    [("mnist1d", "3600 examples"), ("king_james", r"\d{7} windows of the text")],
)
def test_a_batch_larger_than_the_data_is_refused(tmp_path, source, told):
    match = rf"data\.batch_size must be at most the {told} that are trained on, got 5000000\. Use a smaller batch\."
    data = Data(source, batch_size=5_000_000)
    opened = load_data(data)
    with pytest.raises(UsageError, match=match):
        require_batch(data, opened)
    require_batch(replace(data, batch_size=opened.train.num), opened)
    network = "transformer" if source == "king_james" else "mlp"
    words = [
        f"data.source={source}",
        f"model.network={network}",
        "data.batch_size=5000000",
        f"run.folder={tmp_path}/run",
    ]
    (tmp_path / "train.toml").write_text("")
    sets = [part for word in words for part in ("--set", word)]
    assert main(["train", str(tmp_path / "train.toml"), *sets]) == 2
    assert not (tmp_path / "run").exists()
