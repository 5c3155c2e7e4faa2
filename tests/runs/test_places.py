"""Places that cannot be written: an address where a folder is meant, a page on a full disk; each told by its name."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch

import levada
from levada._errors import UsageError
from levada.cli import main
from levada.runs import RunWriter
from levada.training import resolve

MODEL = """
from torch import nn
def build():
    return nn.Linear(4, 2)
"""


@pytest.mark.parametrize(
    "words",
    [
        ["study", "R4", "--scale", "smoke", "--out", "memory://runs"],
        ["check", "model.py:build", "--run", "memory://runs/mine"],
        ["train", "empty.toml", "--set", "run.folder=memory://runs/mine"],
        ["serve", "memory://runs"],
    ],
    ids=["study", "check", "train", "serve"],
)
def test_an_address_is_no_folder(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.py").write_text(MODEL)
    (tmp_path / "empty.toml").write_text("")
    assert main(words) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert "must name a folder of this machine, got the address memory://runs" in told.err
    assert {path.name for path in tmp_path.iterdir()} - {"__pycache__"} == {"model.py", "empty.toml"}


def test_an_address_that_pathlib_shortened_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(
        UsageError, match=r"or an address as text, got the address memory:/runs/mine\. Write it as text"
    ):
        levada.watch(model, optimizer, run=Path("memory://runs/mine"))
    with pytest.raises(UsageError, match="must be a folder of this machine, got the address memory:/runs"):
        RunWriter.create(Path("memory://runs"), kind="check", name="mine")
    assert not list(tmp_path.iterdir())
    RunWriter.create("./memory:/runs", kind="check", name="mine").close()  # a folder that is called so
    assert (tmp_path / "memory:" / "runs" / "run.json").exists()


def test_data_at_an_address_are_refused() -> None:
    with pytest.raises(
        UsageError, match=r"data\.path must name a place on this machine, got the address s3://bucket/a"
    ):
        resolve({"data": {"source": "text", "path": "s3://bucket/a"}})


@pytest.mark.parametrize("reason", ["EACCES", "ENOSPC"])
def test_a_page_that_cannot_be_written_is_told_by_its_own_name(
    reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    RunWriter.create(tmp_path / "mine", kind="check", name="mine").close()
    number = getattr(errno, reason)

    def refuse(self: Path, *_: object, **__: object) -> int:
        raise OSError(number, os.strerror(number), str(self))

    monkeypatch.setattr(Path, "write_text", refuse)
    page = tmp_path / "page.html"
    assert main(["report", str(tmp_path / "mine"), "-o", str(page)]) == 2
    said = capsys.readouterr().err
    assert f"'{page}'" in said
    assert ".page.html." not in said
    assert not page.exists()
