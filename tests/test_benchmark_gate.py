"""No speed is reported of what is wrong: the check before operations are timed, and that each operation has a case."""

import dataclasses
import functools
import math

import benchmarks.ops.__main__ as program
import pytest
import torch
from benchmarks.ops import Case, rows
from torch.utils._python_dispatch import TorchDispatchMode

CPU = torch.device("cpu")


def case(**programs):
    def make():
        return [torch.randn(4, 8).requires_grad_(), torch.randn(4, 8).requires_grad_()]

    def plain(x, f):
        return [x + f, x * f]

    given = {"reference": plain, "levada": plain, **programs}
    return Case(
        operator="sum and product", size={"tokens": 4, "width": 8}, make=make, programs=given, forward=8, backward=8
    )


class Wrong(torch.autograd.Function):
    """A product whose gradient is given."""

    @staticmethod
    def forward(ctx, x, f, factor):
        ctx.save_for_backward(x, f)
        ctx.factor = factor
        return x * f

    @staticmethod
    def backward(ctx, by):
        x, f = ctx.saved_tensors
        return by * f, by * x * ctx.factor, None


@pytest.mark.parametrize("name", ["levada", "levada, two operations"])
@pytest.mark.parametrize("factor", [1.001, math.nan])
def test_a_wrong_gradient_of_levada_stops_it(name, factor):
    wrong = case(**{name: lambda x, f: [x + f, Wrong.apply(x, f, factor)]})
    with pytest.raises(AssertionError, match=f"sum and product, {name}: relative error"):
        next(rows(wrong, CPU, torch.float32, 1))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_of_16_bits_a_few_of_their_own_are_let_pass_and_no_more(dtype):
    """Wrong numbers of eight streams on an H100 were off by a fifth: 26 times the precision of bfloat16."""
    for times, right in ((2, True), (16, False)):  # of half of the gradient: what is drawn decides how much is left
        factor = 1 + times * torch.finfo(dtype).eps
        given = case(levada=lambda x, f, factor=factor: [x + f, Wrong.apply(x, f, factor)])
        found = rows(dataclasses.replace(given, tolerance=64.0), CPU, dtype, 1)
        if right:
            assert next(found)
        else:
            with pytest.raises(AssertionError, match="relative error"):
                next(found)
    assert case().limit(torch.float32, 2) == 8 * torch.finfo(torch.float32).eps
    wide = dataclasses.replace(case(), wide=frozenset({0, 1}))
    assert wide.limit(dtype, 2) == 8 * torch.finfo(torch.float32).eps


def test_what_moves_nothing_on_its_way_back_is_timed_on_its_way_there_alone():
    given = dataclasses.replace(case(), backward=0)
    assert {row.case.split()[3] for row in rows(given, CPU, torch.float32, 1)} == {"forward"}
    assert {row.case.split()[3] for row in rows(case(), CPU, torch.float32, 1)} == {"forward", "backward", "both"}


def test_what_raises_in_levada_is_not_taken_for_a_rival_that_does_not_run():
    def broken(x, f):
        raise RuntimeError("no kernel")

    with pytest.raises(RuntimeError, match="no kernel"):
        next(rows(case(levada=broken), CPU, torch.float32, 1))


def test_rivals_that_are_wrong_or_do_not_run_are_told_and_not_timed(capsys):
    def missing(x, f):
        raise ModuleNotFoundError("No module named 'rival'")

    given = case(wrong=lambda x, f: [x + f, Wrong.apply(x, f, math.nan)], missing=missing)
    found = list(rows(given, CPU, torch.float32, 1))
    assert {row.candidate for row in found} == {"reference", "levada"}
    said = capsys.readouterr().out
    assert "sum and product wrong: relative error nan, above" in said
    assert "sum and product missing: does not run here: ModuleNotFoundError: No module named 'rival'" in said


def test_there_are_rows_forward_backward_and_both():
    found = [row for row in rows(case(), CPU, torch.float32, 1) if row.candidate == "levada"]
    assert [row.case.split()[3] for row in found] == ["forward", "backward", "both"]
    assert [row.extra["bytes"] for row in found] == [32, 32, 64]
    assert found[0].versions["torch"] == torch.__version__


class Seen(TorchDispatchMode):
    def __init__(self, names):
        super().__init__()
        self.names = names

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "levada":
            self.names.add(function._opname)
        return function(*args, **(kwargs or {}))


def operations():
    names = torch._C._dispatch_get_all_op_names()
    return {name.removeprefix("levada::").partition(".")[0] for name in names if name.startswith("levada::")}


@functools.cache
def modules():
    return [program.importlib.import_module(f"benchmarks.ops.{name}") for name in program._NAMES]


def test_each_operation_has_a_case_and_passes():
    """All but those of two operations in one node, which have none of their own."""
    seen = set()
    for module in modules():
        for given in module.cases([(6, 3, 20)]):
            torch.manual_seed(0)
            inputs = given.make()
            if not given.own:
                continue
            expected = given.programs["reference"](*inputs)
            for name in [name for name in given.programs if name.startswith("levada")]:
                with Seen(seen):
                    found = given.programs[name](*inputs)
                    leaves = [x for x in inputs if x.requires_grad]
                    if leaves:
                        torch.autograd.grad([y.sum() for y in found], leaves)
                torch.testing.assert_close(list(found), list(expected), rtol=1e-4, atol=1e-5)
    assert operations() - seen == set()
