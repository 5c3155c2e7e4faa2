"""A run that is continued takes the steps that it would have taken: what it began with holds, whoever changed what."""

from __future__ import annotations

import pytest

from levada._errors import UsageError
from levada.training import losses, read, resolve, train

SMALL = {
    "model": {"depth": 2, "dim": 8},
    "data": {"batch_size": 16, "evaluated": 32},
    "watch": {"enabled": False},
    "run": {"steps": 2},
}


def small(folder, *changes):
    return resolve(SMALL, [f"run.folder={folder}", *changes])


def test_the_run_s_own_file_changed_is_not_what_the_run_began_with(tmp_path):
    train(small(tmp_path / "run"))
    file = tmp_path / "run" / "config.toml"
    began = file.read_text()
    file.write_text(began.replace("lr = 0.001", "lr = 5.0"))
    with pytest.raises(UsageError, match=r"optimizer\.lr must stay what it is .* has 0\.001, got 5\.0"):
        train(read(file), resume=True)
    file.write_text(began.replace("steps = 2", "steps = 3"))
    assert list(losses(train(read(file), resume=True).run)) == [0, 1, 2], "what is free may be changed there"
    file.unlink()
    with pytest.raises(UsageError, match=r"run\.seed must stay what it is .* has 0, got 1"):
        train(small(tmp_path / "run", "run.seed=1", "run.steps=4"), resume=True)
