"""What a watch says of its own failures names the model, where several are watched."""

import warnings

import torch
from torch import nn

import levada
from levada.watching.loop.telling import _watched, unwatched, warn, watched


class First(nn.Sequential):
    """A model."""


class Second(nn.Sequential):
    """Another one."""


def fail(models, which):
    """Watch models, let the measuring of one fail, and return what is said."""
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.1) for model in models]
    watches = [levada.watch(*pair) for pair in zip(models, optimizers, strict=True)]
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for one in watches:
            one.__enter__()
        watches[which]._engine.fail(ValueError("no"))
        for one in watches:
            one.__exit__(None, None, None)
    return [str(one.message) for one in said if "measuring raised" in str(one.message)]


def test_a_failure_of_one_of_two_models_names_it():
    models = First(nn.Linear(2, 2)), Second(nn.Linear(2, 2))
    (told,) = fail(models, 1)
    assert told.startswith("watch of Second, model 2 of the 2 that are watched: measuring raised ValueError: no.")


def test_one_model_needs_no_name_and_none_is_left_behind():
    before = len(_watched)
    (told,) = fail([First(nn.Linear(2, 2))], 0)
    assert told.startswith("watch: measuring raised ValueError: no.")
    assert len(_watched) == before


def test_a_compiled_model_is_the_one_that_was_compiled_and_two_watches_of_one_are_one_model(recwarn):
    one, two = First(nn.Linear(2, 2)), Second(nn.Linear(2, 2))
    compiled = torch.compile(one, backend="eager")
    for model in (compiled, one):
        watched(model)
    warn("watch: alone.", of=one)
    watched(two)
    warn("watch: beside another.", of=compiled)
    for model in (one, one, two):
        unwatched(model)
    assert [str(w.message) for w in recwarn] == [
        "watch: alone.",
        "watch of First, model 1 of the 2 that are watched: beside another.",
    ]
