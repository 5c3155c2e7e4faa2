"""What `levada.watch`, its methods and callbacks for trainers are called with: wrong is refused at once."""

from __future__ import annotations

import importlib
import math
import pickle

import pytest
import torch
from torch import nn

import levada
from levada._errors import UsageError
from levada.watching import Continue

WRONG = [
    (
        {"max_overhead": 2},
        r"max_overhead must be a share of the training time, in \(0, 1\], got 2\. Two percent are 0\.02",
    ),
    ({"max_overhead": -0.1}, r"in \(0, 1\], got -0\.1\. One percent is 0\.01\."),
    ({"max_overhead": math.nan}, "got nan"),
    ({"max_overhead": "1%"}, "max_overhead must be a number, got '1%'"),
    ({"every": True}, "every must be an integer, got True"),
    ({"every": 0.5}, "every must be an integer, got 0.5"),
    ({"every": 0}, "every must be at least 1, got 0. 20 samples every twentieth step."),
    ({"every": 2**62}, "every must be less than 2"),
    ({"run": 3}, "run must name a folder or an address, got int"),
    ({"live": 1}, "live must be True, False or 'plain', got 1"),
    ({"listeners": 3}, r"listeners must be a sequence of them, got int\. Give \[listener\]\."),
    ({"listeners": [nn.Linear]}, "got the class Linear. Call it"),
    ({"evry": 3}, "there is no argument 'evry'. Did you mean 'every'?"),
]


def network():
    model = nn.Linear(2, 1)
    return model, torch.optim.SGD(model.parameters(), lr=0.1)


@pytest.mark.parametrize(("options", "told"), WRONG)
def test_a_wrong_option_is_refused_by_the_watch(options, told):
    with pytest.raises(UsageError, match=f"watch: .*{told}"):
        levada.watch(*network(), **options)


@pytest.mark.parametrize("of", ["huggingface", "lightning"])
@pytest.mark.parametrize(
    ("options", "told"),
    [
        *WRONG,
        ({"stop_on_error": "yes"}, "stop_on_error must be True or False, got 'yes'"),
        ({"stop_on_eror": True}, "there is no argument 'stop_on_eror'. Did you mean 'stop_on_error'?"),
        ({"scaler": 3}, "scaler is the trainer's, got one. Leave it out."),
    ],
)
def test_a_wrong_option_is_refused_by_a_callback_before_any_training(of, options, told):
    callback = importlib.import_module(f"levada.integrations.{of}").LevadaCallback
    with pytest.raises(UsageError, match=f"LevadaCallback: .*{told}"):
        callback(**options)


def test_numbers_of_other_packages_and_the_limits_themselves_are_taken():
    for share in (1, 1.0, torch.tensor(0.5), math.inf):
        levada.watch(*network(), every=torch.tensor(3), max_overhead=share).close()


@pytest.mark.parametrize(
    ("optimizer", "told"),
    [
        ("sgd", "got str. Give None"),
        (torch.optim.SGD, "got the class SGD"),
        ({}, "got dict. Several are given in a list."),
        (iter(()), "got tuple_iterator. Several are given in a list."),
    ],
)
def test_what_is_no_optimizer_is_refused(optimizer, told):
    with pytest.raises(UsageError, match=told):
        levada.watch(nn.Linear(2, 1), optimizer)


def test_methods_of_a_watch_refuse_what_they_cannot_use():
    model, optimizer = network()
    with levada.watch(model, optimizer) as watch:
        for wrong, told in (
            (lambda: watch.leave(3), "Watch.leave: again must be a function that makes the gradients anew, got int"),
            (lambda: watch.leave(loss=2.5), "Watch.leave: loss must be a tensor of one number, got float 2.5"),
            (lambda: watch.leave(loss=torch.ones(3)), "got a tensor of 3"),
            (lambda: watch.listen(3), "Watch.listen: a listener has the methods .* but int has no before_update"),
            (lambda: watch.note(checkpoint=3), "note: checkpoint must be the path of one, got 3"),
            (lambda: setattr(watch.coefficients, "on", "no"), "watch.coefficients: on must be True or False, got 'no'"),
            (lambda: pickle.dumps(watch.judge), "cannot be copied or pickled"),
            (lambda: pickle.dumps(watch.coefficients), "cannot be copied or pickled"),
        ):
            with pytest.raises(UsageError, match=told):
                wrong()
        optimizer.zero_grad()
        model(torch.ones(3, 2)).sum().backward()
        optimizer.step()
    assert watch.steps == 1  # nothing of it ended the watching
    assert len(watch.samples) == 1


def test_a_class_is_no_scaler_and_a_word_no_switch():
    with pytest.raises(UsageError, match=r"got the class GradScaler\. Give the GradScaler that the loop uses"):
        levada.watch(*network(), scaler=torch.amp.GradScaler)
    with pytest.raises(UsageError, match="Continue: anew must be True or False, got 'yes'"):
        Continue("run", 3, anew="yes")
