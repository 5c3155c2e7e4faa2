"""Recurrent highways: a backward pass of their own, which is that of their steps."""

import pytest
import torch
import torch.utils.checkpoint

from levada.cells import MinGRU, MinLSTM, RecurrentHighway, blockwise, highway

STEPS, BATCH, WIDTH = 23, 2, 4


def build(depth, transform_bias=-2.0):
    torch.manual_seed(0)
    cell = RecurrentHighway(3, WIDTH, depth=depth, transform_bias=transform_bias).double()
    return cell, torch.randn(BATCH, WIDTH, dtype=torch.float64)


def by_steps(cell, x, s):
    return highway._looped(x, s, cell.weight_ih, cell.weight_hh, cell.bias)[0]


def gradients(outputs, last, leaves):
    return torch.autograd.grad((outputs * outputs.cos()).sum() + last.sin().sum(), leaves)


@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize("steps", [4, 14, STEPS])  # a block is 7 steps
@pytest.mark.parametrize("wanted", ["all", "x", "state", "weight_ih", "weight_hh", "bias"])
def test_a_sequence_is_its_steps(depth, steps, wanted, monkeypatch):
    monkeypatch.setattr(blockwise, "_NUMBERS", 7 * BATCH * WIDTH // torch.get_num_threads())
    cell, s = build(depth)
    x = torch.randn(steps, BATCH, 3, dtype=torch.float64)
    leaves = {"x": x, "state": s, **dict(cell.named_parameters())}
    for name, leaf in leaves.items():
        leaf.requires_grad_(wanted in (name, "all"))
    outputs, (last,) = cell.run(x, (s,))
    assert type(last.grad_fn).__name__ == "_SequenceBackward"
    assert torch.equal(last, outputs[-1])
    outputs = outputs.mul_(1.0)  # may be changed in place
    state, one_by_one = (s,), []
    for one in x:
        state = cell(one, state)
        one_by_one.append(state[0])
    expected = torch.stack(one_by_one)
    torch.testing.assert_close(outputs, expected, rtol=1e-13, atol=1e-14)
    asked = [leaf for leaf in leaves.values() if leaf.requires_grad]
    torch.testing.assert_close(
        gradients(outputs, last, asked), gradients(expected, state[0], asked), rtol=1e-11, atol=1e-13
    )


def test_gradients_of_gradients_many_at_once_and_forward_ones(monkeypatch):
    monkeypatch.setattr(blockwise, "_NUMBERS", 3 * BATCH * WIDTH // torch.get_num_threads())
    cell, s = build(2)
    x = torch.randn(5, BATCH, 3, dtype=torch.float64, requires_grad=True)
    weight = cell.weight_hh.detach().clone().requires_grad_()

    def run(x, s, weight):
        return highway._Sequence.apply(x, s, cell.weight_ih, weight, cell.bias)

    given = x, s.requires_grad_(), weight
    assert torch.autograd.gradcheck(run, given, check_batched_grad=True, fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda *given: [y.sin() for y in run(*given)], given, fast_mode=True)
    outputs, _ = run(*given)
    twice = [torch.autograd.grad(outputs.sin().sum(), given, retain_graph=True) for _ in range(2)]
    torch.testing.assert_close(*twice, rtol=0, atol=0)
    of_x = torch.randn_like(x)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, of_x)
        tangent = torch.autograd.forward_ad.unpack_dual(cell.run(dual, (s,))[0]).tangent
    expected = torch.func.jvp(lambda x: by_steps(cell, x, s), (x,), (of_x,))[1]
    torch.testing.assert_close(tangent, expected)


def test_a_gate_that_is_shut_carries_the_state_exactly():
    cell, s = build(3, transform_bias=-1000.0)
    x = torch.randn(9, BATCH, 3, dtype=torch.float64, requires_grad=True)
    outputs, _ = cell.run(x, (s.requires_grad_(),))
    assert torch.equal(outputs, s.expand(9, BATCH, WIDTH))
    assert torch.equal(torch.autograd.grad(outputs.sum(), s)[0], torch.full_like(s, 9.0))


def test_autocast_has_its_products_in_low_precision():
    cell, s = build(2)
    cell, x = cell.float(), torch.randn(5, BATCH, 3)
    with torch.autocast("cpu", torch.bfloat16):
        outputs, _ = cell.run(x, (s.float(),))
        expected = by_steps(cell, x, s.float())
    assert torch.equal(outputs, expected)
    assert not torch.equal(outputs, cell.run(x, (s.float(),))[0])


@pytest.mark.parametrize("kind", [RecurrentHighway, MinGRU, MinLSTM])
@pytest.mark.parametrize("made", ["state of x", "state of an earlier run", "x of an earlier run", "x of the state"])
def test_a_graph_of_gradients_does_not_count_the_way_between_inputs(kind, made):
    torch.manual_seed(0)
    cell = kind(WIDTH, WIDTH).double()
    x = torch.randn(6, BATCH, WIDTH, dtype=torch.float64, requires_grad=True)
    s = torch.randn(BATCH, WIDTH, dtype=torch.float64, requires_grad=True)

    def found(create_graph):
        outputs, last = cell.run(x, (s,))
        given = {
            "state of x": (x, (x[0].sin(),)),
            "state of an earlier run": (x.sin(), last),
            "x of an earlier run": (outputs, (s,)),
            "x of the state": (x * s, (s,)),
        }
        y = cell.run(*given[made])[0].square().sum()
        leaves = [x, s, *cell.parameters()]
        return torch.autograd.grad(y, leaves, create_graph=create_graph, materialize_grads=True)

    torch.testing.assert_close(found(True), found(False))


def test_checkpointed_it_has_the_same_gradients():
    cell, s = build(2)
    x = torch.randn(6, BATCH, 3, dtype=torch.float64)
    again = torch.utils.checkpoint.checkpoint(cell.run, x, (s,), use_reentrant=False)
    leaves = [*cell.parameters()]
    (got, (last,)), (expected, (end,)) = again, cell.run(x, (s,))
    torch.testing.assert_close(gradients(got, last, leaves), gradients(expected, end, leaves))
