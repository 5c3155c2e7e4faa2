"""A run that goes to more than one place: what one has says nothing of the other."""

from __future__ import annotations

from pathlib import Path

import fsspec
import pytest

from levada.runs import Run, RunWriter
from levada.runs.remote import pending, upload


def test_what_was_uploaded_to_one_root_is_not_taken_to_be_at_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LEVADA_CACHE", str(tmp_path / "cache"))
    fsspec.filesystem("memory").store.clear()
    first, second = "memory://bucket/first", "memory://bucket/second"
    with RunWriter.create(tmp_path / "run", kind="study", name="twice") as writer:
        writer.append("result", seed=0)
        assert upload(writer.path, first) == 2
        assert not pending(writer.path, first)
        assert pending(writer.path, second).keys() == {"run.json", "events.log"}
        assert upload(writer.path, second) == 2
        assert [event["seed"] for event in Run(second).events("result")] == [0]
        writer.append("result", seed=1)
    assert upload(writer.path, second) == 1
    assert pending(writer.path, first).keys() == {"events.log"}
