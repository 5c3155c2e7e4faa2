"""What cannot be is said in one sentence: the rule, what came, what to do."""

from __future__ import annotations

import functools

import numpy
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from levada._errors import UsageError
from levada.cells import GRU, LSTM, RNN, Leaky, MinGRU, MinLSTM, Recurrent, RecurrentHighway, ResidualInTime, detach
from levada.initialise import chrono, orthogonal_recurrence

NAN, INF = float("nan"), float("inf")


def gru(dim_in):
    return GRU(dim_in, 4)


def said(call, message):
    with pytest.raises(UsageError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
    assert "Parametrized" not in str(caught.value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LSTM(3, 4, forget_bias=2.0, chrono=10.0), r"forget_bias=2.0 and chrono=10.0. Leave one of them out"),
        (lambda: LSTM(3, 4, forget_bias=1.0, chrono=10.0), r"forget_bias=1.0 and chrono=10.0"),
        (lambda: LSTM(3, 4, bias=False, forget_bias=2.0), "LSTM: forget_bias sets biases, and bias is False"),
        (lambda: LSTM(3, 4, bias=False, forget_bias=1.0), "LSTM: forget_bias sets biases, and bias is False"),
        (lambda: LSTM(3, 4, forget_bias=NAN), "LSTM: forget_bias must be finite, got nan"),
        (lambda: LSTM(3, 4, forget_bias="a"), "LSTM: forget_bias must be a number, got 'a'"),
        (lambda: ResidualInTime(GRU(3, 4), NAN), "ResidualInTime: scale must be finite, got nan"),
        (lambda: ResidualInTime(GRU(3, 4), -INF), "ResidualInTime: scale must be finite, got -inf"),
        (lambda: Leaky(GRU(3, 4), NAN), "Leaky: rate must be above 0 and at most 1, got nan"),
        (
            lambda: RecurrentHighway(3, 4, transform_bias=NAN),
            "RecurrentHighway: transform_bias must be finite, got nan",
        ),
        *(
            (functools.partial(kind, 3, 4, chrono=bad), message)
            for kind in (LSTM, GRU, MinGRU, MinLSTM)
            for bad, message in [
                (INF, "chrono: horizon must be finite, got inf"),
                (NAN, "chrono: horizon must be above 2 steps, got nan"),
                ("a", "chrono: horizon must be a number, got 'a'"),
            ]
        ),
        (lambda: orthogonal_recurrence(RNN(3, 4), gain=NAN), "gain must be finite, got nan"),
        (lambda: orthogonal_recurrence(RNN(3, 4), gain="a"), "gain must be a number, got 'a'"),
        (lambda: detach(None), "detach: states must be tensors in tuples or lists, got NoneType"),
        (lambda: detach(torch.zeros(2, 3)), "detach: states must be tensors in tuples or lists, got Tensor"),
        (lambda: detach(((torch.zeros(1), None),)), "got NoneType"),
    ],
)
def test_numbers_and_starts(make, message):
    said(make, message)


def test_starts_that_are_left_out_are_no_starts():
    torch.manual_seed(0)
    cell = LSTM(3, 4)
    assert torch.equal(cell.bias_ih[4:8], torch.ones(4))
    assert not cell.bias_hh[4:8].any()
    assert LSTM(3, 4, bias=False).bias_ih is None
    assert LSTM(3, 4, bias=False, forget_bias=None).bias_ih is None
    assert LSTM(3, 4, chrono=9.0, forget_bias=None).bias_ih[4:8].min() > 0
    assert LSTM(3, 4, forget_bias=None).bias_hh[4:8].any()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: Recurrent(LSTM(3, 4)),
            "a function from a width to a Cell, or cells in a list, got LSTM. Put it in a list",
        ),
        (lambda: Recurrent(RNN(3, 4, constrained=True)), "got RNN. Put it in a list"),
        (lambda: Recurrent(nn.LSTM(3, 4)), "cells in a list, got LSTM. Call Recurrent.from_torch with it"),
        (lambda: Recurrent(nn.GRUCell(3, 4), dim_in=3), "cells in a list, got GRUCell. See levada.cells.Cell"),
        (lambda: Recurrent(3), "cells in a list, got 3"),
        (lambda: Recurrent(gru), "dim_in must be given to a function that makes cells, got None"),
        (
            lambda: Recurrent(LSTM, dim_in=3),
            "must make a Cell from a width alone, got LSTM: missing.*'dim'.*lambda dim_in",
        ),
        (lambda: Recurrent(lambda: LSTM(3, 4), dim_in=3), "must make a Cell from a width alone, got <lambda>"),
        (lambda: Recurrent([gru(3)], dim_in=5), "the width that the first cell reads, 3, got 5. Leave it out"),
    ],
)
def test_what_makes_no_layers(make, message):
    said(make, message)


def test_an_error_of_ones_own_function_is_not_hidden():
    def broken(dim_in):
        return GRU(dim_in)

    with pytest.raises(TypeError, match="missing 1 required positional argument: 'dim'"):
        Recurrent(broken, dim_in=3)
    assert Recurrent(functools.partial(GRU, dim=4), dim_in=3).dim_out == 4
    assert Recurrent(nn.ModuleList([GRU(3, 4), GRU(4, 5)])).dim_out == 5


X = torch.zeros(6, 2, 3)


@pytest.mark.parametrize(
    "lengths", [numpy.array([4, 2]), numpy.array([4, 2], "uint8"), list(numpy.array([4, 2])), (4, 2)]
)
def test_lengths_in_arrays_are_lengths(lengths):
    net = Recurrent(gru, dim_in=3)
    assert torch.equal(net(X, lengths=lengths)[0], net(X, lengths=[4, 2])[0])


@pytest.mark.parametrize(
    ("lengths", "got"),
    [
        (4, "4"),
        (2.5, "2.5"),
        (numpy.array([4.0, 2.0]), r"\[4.0, 2.0\]"),
        (numpy.array([True, True]), r"\[True, True\]"),
        (numpy.array([[4, 2]]), r"\[\[4, 2\]\]"),
        (numpy.int64(4), "4"),
        ("42", r"\['4', '2'\]"),
    ],
)
def test_lengths_that_are_none(lengths, got):
    rule = "lengths must be 2 integers from 1 to 6, one for each row, got "
    said(lambda: Recurrent(gru, dim_in=3)(X, lengths=lengths), rule + got)


CELLS = [LSTM, GRU, RNN, RecurrentHighway, functools.partial(RNN, constrained=True), MinGRU]


@pytest.mark.parametrize("kind", CELLS, ids=str)
def test_dtypes_that_differ(kind):
    cell = kind(3, 4)
    message = (
        r"(LSTM|GRU|RNN|RecurrentHighway|MinGRU): the input, the state and the parameters must be of one dtype, got "
    )
    double = X.double()
    for call in (lambda: cell.run(double), lambda: cell(double[0]), lambda: Recurrent([cell])(double)):
        said(call, message + r"torch.float64, torch.float64 and torch.float32. Convert")
    said(lambda: Recurrent([cell])(double, lengths=[6, 2]), message)
    if kind is not MinGRU:  # its state goes in its own dtype through all steps
        said(lambda: cell.run(X, cell.begin(2, dtype=torch.float64)), message + "torch.float32, torch.float64 and")
        said(lambda: cell(X[0], cell.begin(2, dtype=torch.float64)), message + "torch.float32, torch.float64 and")


def test_another_error_stays_as_it_is():
    cell = GRU(3, 4)
    cell.weight_hh = nn.Parameter(torch.zeros(12, 5))
    with pytest.raises(RuntimeError) as caught:
        cell(X[0])
    assert not isinstance(caught.value, UsageError)


@pytest.mark.parametrize(
    ("module", "kind"),
    [
        (lambda: RNN(3, 4, constrained=True), "RNN whose weight_hh"),
        (lambda: Recurrent([RNN(3, 4, constrained=True)]), "Recurrent whose weight_hh"),
        (lambda: parametrizations.orthogonal(nn.RNN(3, 4), "weight_hh_l0"), "RNN whose weight_hh_l0"),
    ],
)
def test_weights_that_are_computed_are_not_set(module, kind):
    message = (
        f"recurrent weights must be parameters, got {kind} is computed from others. A constrained RNN is orthogonal"
    )
    said(lambda: orthogonal_recurrence(module()), message)


def test_of_several_those_that_can_be_set_are():
    net = Recurrent([RNN(3, 4, constrained=True), RNN(4, 4)])
    orthogonal_recurrence(net, gain=2.0)
    weight = net.cells[1].weight_hh
    torch.testing.assert_close(weight @ weight.T, 4 * torch.eye(4), rtol=1e-5, atol=1e-5)


def test_a_class_is_called_by_its_own_name():
    cell = RNN(3, 4, constrained=True)
    said(lambda: cell.run(X[..., :2]), "^RNN: the input must be")
    said(lambda: chrono(cell, 9.0), "^chrono: RNN must hold an LSTM or GRU with biases, and has none")
