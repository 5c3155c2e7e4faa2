"""A watch follows one model in one process: it is not copied; a model that is watched can be."""

import copy
import io
import pickle

import pytest
import torch
from tests.watching.by_hand import data, make, sgd, train, watch

from levada._errors import UsageError

WAYS = {"copy": copy.copy, "deepcopy": copy.deepcopy, "pickle": pickle.dumps}


@pytest.mark.parametrize("closed", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_a_copied_watch_says_the_rule(way, closed):
    model = make()
    with watch(model, optimizer := sgd(model)) as watched:
        train(model, optimizer, data(1))
        if closed:
            watched.close()
        with pytest.raises(UsageError, match="cannot be copied or pickled") as told:
            WAYS[way](watched)
        assert isinstance(told.value, TypeError)  # as what asks whether a thing can be pickled expects
        train(model, optimizer, data(2)[1:])
    assert watched.steps == (1 if closed else 2)


def test_what_is_known_can_be_copied():
    model = make()
    with watch(model, optimizer := sgd(model)) as watched:
        train(model, optimizer, data(3))
    report = watched.report()
    assert copy.deepcopy(report).to_json() == pickle.loads(pickle.dumps(report)).to_json() == report.to_json()
    assert pickle.loads(pickle.dumps(watched.trace())).names() == watched.trace().names()


@pytest.mark.parametrize("moment", ["armed", "between", "closed"])
def test_a_model_saved_whole_is_loaded_and_not_watched(moment):
    model = make()
    with watch(model, optimizer := sgd(model), every=1 if moment == "armed" else 20) as watched:
        train(model, optimizer, data(1 if moment == "armed" else 3))
        if moment == "closed":
            watched.close()
        torch.save(model, file := io.BytesIO())
    file.seek(0)
    loaded, steps = torch.load(file, weights_only=False), watched.steps
    train(loaded, sgd(loaded), data(2))
    assert watched.steps == steps
    if moment == "closed":  # as before: a machine without levada reads it
        assert b"levada" not in file.getvalue()
