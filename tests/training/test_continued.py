"""A run that is continued takes the steps that it would have taken: what it began with holds, whoever changed what."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from levada._errors import UsageError
from levada.runs import Run
from levada.training import losses, read, resolve, train
from levada.training.config import Data
from levada.training.data import described, load_data
from levada.training.loop import _described
from levada.training.record import begin

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


@pytest.mark.parametrize(
    ("now", "told"),
    [
        (b"cd" * 2000, "the checksum of the targets is [0-9a-f]{8} in .*run, got [0-9a-f]{8}"),
        (b"ab" * 1900, "the number of examples that are trained on is 3592 in .*run, got 3412"),
    ],
)
def test_data_that_changed_are_refused(tmp_path, now, told):
    text = tmp_path / "text.txt"
    text.write_bytes(b"ab" * 2000)
    of_text = ["model.network=transformer", "data.source=text", "data.context=8", f"data.path={text}"]

    def begun(**how):
        return begin(
            small(tmp_path / "run", *of_text), examples=described(load_data(Data("text", str(text), context=8))), **how
        )

    begun(resume=False)[0].close()
    begun(resume=True)[0].close()
    text.write_bytes(now)
    with pytest.raises(UsageError, match=f"train: the data must stay what they are .*: {told}"):
        begun(resume=True)


def test_a_run_of_before_that_says_nothing_of_its_data_says_it_from_its_continuation_on(tmp_path):
    config = small(tmp_path / "run")
    begin(config, resume=False)[0].close()
    for _ in range(2):
        assert list(losses(train(config, resume=True).run)) == [0, 1]
    assert [event["train"] for event in Run(tmp_path / "run").events("examples")] == [3600]


@pytest.mark.parametrize("same", [True, False])
def test_every_process_must_read_the_same(same):
    source = load_data(Data())
    first = described(source) if same else {**described(source), "train": 3599}
    others = SimpleNamespace(agree=lambda ask: first, any=bool)
    if same:
        assert _described(source, others) == first
    else:
        with pytest.raises(UsageError, match=r"the data must be the same in every process"):
            _described(source, others)
