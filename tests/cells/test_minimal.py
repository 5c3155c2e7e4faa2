"""minGRU and minLSTM: one scan is the loop of steps, is the source's recurrence, and is the scan's reference."""

import pytest
import torch
from torch.nn.functional import linear, softplus

from levada._errors import UsageError
from levada.cells import MinGRU, MinLSTM, blockwise
from levada.initialise import chrono
from levada.ops.scan import reference

kinds = pytest.mark.parametrize("kind", [MinGRU, MinLSTM])
positive = pytest.mark.parametrize("positive", [False, True])


def build(kind, dim_in=3, dim=4, dtype=torch.float64, **options):
    torch.manual_seed(0)
    return kind(dim_in, dim, **options).to(dtype), torch.randn(2, dim, dtype=dtype).abs()


def gradients(outputs, tensors):
    return torch.autograd.grad((outputs * outputs.cos()).sum(), tensors)


@kinds
@positive
def test_a_run_is_its_steps(kind, positive):
    cell, h = build(kind, positive=positive)
    x = torch.randn(70, 2, 3, dtype=torch.float64, requires_grad=True)
    tensors = [x, h.requires_grad_(), *cell.parameters()]
    outputs, last = cell.run(x, (h,))
    state, steps = (h,), []
    for one in x:
        state = cell(one, state)
        steps.append(state[0])
    torch.testing.assert_close(outputs, torch.stack(steps), rtol=1e-12, atol=1e-12)
    assert torch.equal(outputs[-1], last[0])
    expected = gradients(torch.stack(steps), tensors)
    torch.testing.assert_close(gradients(outputs, tensors), expected, rtol=1e-10, atol=1e-12)


def by_scan(cell, x, h):
    return cell.scan(cell.project(x), h)


@kinds
@positive
@pytest.mark.parametrize("wanted", [(0, 1), (0,), (1,)])
def test_blocks_of_steps_are_the_scan(kind, positive, wanted, monkeypatch):
    monkeypatch.setattr(
        blockwise, "_NUMBERS", 7 * 2 * 4 // torch.get_num_threads()
    )  # 7 steps of 2 rows of 4: 23 steps are 4 blocks
    cell, h = build(kind, positive=positive)
    cell.requires_grad_(0 in wanted)
    x = torch.randn(23, 2, 3, dtype=torch.float64)
    tensors = [x.requires_grad_(0 in wanted), h.requires_grad_(1 in wanted)]
    leaves = [tensors[i] for i in wanted] + [p for p in cell.parameters() if p.requires_grad]
    outputs, expected = cell.run(x, (h,))[0], by_scan(cell, x, h)
    assert type(outputs.grad_fn).__name__ == "_InBlocksBackward"
    torch.testing.assert_close(outputs, expected, rtol=1e-14, atol=1e-15)
    torch.testing.assert_close(gradients(outputs, leaves), gradients(expected, leaves), rtol=1e-12, atol=1e-13)
    with torch.no_grad():
        assert torch.equal(cell.run(x, (h,))[0], outputs)


@kinds
def test_blocks_have_gradients_of_gradients_many_at_once_and_forward_ones(kind, monkeypatch):
    monkeypatch.setattr(blockwise, "_NUMBERS", 2 * 4 // torch.get_num_threads())
    cell, h = build(kind)
    x, h = torch.randn(3, 2, 3, dtype=torch.float64, requires_grad=True), h.requires_grad_()
    assert torch.autograd.gradgradcheck(lambda x, h: cell.run(x, (h,))[0].sin(), (x, h))
    assert torch.autograd.gradcheck(lambda x, h: cell.run(x, (h,))[0], (x, h), check_batched_grad=True)
    outputs = cell.run(x, (h,))[0]
    cotangents = torch.randn(5, *outputs.shape, dtype=torch.float64)
    many = torch.autograd.grad(outputs, (x, h), cotangents, is_grads_batched=True, retain_graph=True)
    one_by_one = [torch.autograd.grad(outputs, (x, h), c, retain_graph=True) for c in cotangents]
    torch.testing.assert_close(many, tuple(map(torch.stack, zip(*one_by_one, strict=True))))
    of_x = torch.randn_like(x)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, of_x)
        tangent = torch.autograd.forward_ad.unpack_dual(cell.run(dual, (h,))[0]).tangent
    expected = torch.func.jvp(lambda x: by_scan(cell, x, h), (x,), (of_x,))[1]
    torch.testing.assert_close(tangent, expected)


@kinds
def test_blocks_keep_what_is_projected_and_the_states_alone(kind):
    cell, h = build(kind)
    kept = {}

    def pack(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    x = torch.randn(50, 2, 3, dtype=torch.float64)
    projected = cell.project(x).detach().requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        states = blockwise.scan_in_blocks(cell, projected, h)
    assert sorted(t.numel() for t in kept.values()) == sorted([projected.numel(), states.numel(), h.numel()])


@kinds
def test_third_derivatives_are_those_of_steps(kind):
    cell, h = build(kind, 2, 2)
    x = torch.randn(3, 1, 2, dtype=torch.float64)

    def scanned(x):
        return cell.run(x, (h[:1, :2],))[0].sin().sum()

    def stepped(x):
        state, outputs = (h[:1, :2],), []
        for one in x.unbind(0):
            state = cell(one, state)
            outputs.append(state[0])
        return torch.stack(outputs).sin().sum()

    def third(function):
        return torch.func.jacfwd(torch.func.jacfwd(torch.func.jacrev(function)))(x)

    torch.testing.assert_close(third(scanned), third(stepped), rtol=1e-12, atol=1e-12)


@kinds
def test_10_000_steps_against_the_scans_reference(kind):
    cell, h = build(kind, chrono=5_000.0)
    x = torch.randn(10_000, 2, 3, dtype=torch.float64)
    tensors = list(cell.parameters())
    outputs, _ = cell.run(x, (h,))
    gate, value = cell.recurrence(cell.project(x))
    expected = reference.scan(gate, value, h, False)
    torch.testing.assert_close(outputs, expected, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(gradients(outputs, tensors), gradients(expected, tensors), rtol=1e-9, atol=1e-10)


def test_min_gru_is_the_sources_recurrence():
    cell, h = build(MinGRU)
    x = torch.randn(5, 2, 3, dtype=torch.float64)
    outputs, _ = cell.run(x, (h,))
    for t in range(5):
        z = torch.sigmoid(linear(x[t], cell.weight_ih[:4], cell.bias_ih[:4]))
        candidate = linear(x[t], cell.weight_ih[4:], cell.bias_ih[4:])
        h = (1 - z) * h + z * candidate
        torch.testing.assert_close(outputs[t], h)


def test_min_lstm_is_the_sources_recurrence():
    cell, h = build(MinLSTM)
    x = torch.randn(5, 2, 3, dtype=torch.float64)
    outputs, _ = cell.run(x, (h,))
    for t in range(5):
        f, i, candidate = linear(x[t], cell.weight_ih, cell.bias_ih).split(4, -1)
        f, i = f.sigmoid(), i.sigmoid()
        h = f / (f + i) * h + i / (f + i) * candidate
        torch.testing.assert_close(outputs[t], h)


@kinds
def test_positive_candidates_are_the_sources_form_in_logarithms(kind):
    cell, h = build(kind, positive=True)
    x = torch.randn(60, 2, 3, dtype=torch.float64)
    *gates, candidate = linear(x, cell.weight_ih, cell.bias_ih).split(4, -1)
    ratio = gates[0] if kind is MinGRU else softplus(-gates[0]) - softplus(-gates[1])
    log_gate, log_in = -softplus(ratio), -softplus(-ratio)
    log_candidate = torch.where(candidate >= 0, (candidate.relu() + 0.5).log(), -softplus(-candidate))
    total = log_gate.cumsum(0)
    from_start = torch.cat([h.log()[None], log_in + log_candidate - total]).logcumsumexp(0)[1:]
    torch.testing.assert_close(cell.run(x, (h,))[0], (total + from_start).exp())


@kinds
def test_chrono_sets_the_memories(kind):
    cell, h = build(kind, dim=200)
    chrono(cell, 101.0, generator=torch.Generator().manual_seed(0))
    kept = cell.carry(cell.project(torch.zeros(1, 3, dtype=torch.float64)), (h[:1],))
    memories = 1 / (1 - kept)
    assert memories.min() > 2
    assert 98 < memories.max() < 101
    with pytest.raises(UsageError, match="horizon must be above 2"):
        kind(3, 4, chrono=2.0)


@kinds
def test_gates_that_saturate_keep_the_state_and_give_finite_gradients(kind):
    cell, h = build(kind, dtype=torch.float32)
    with torch.no_grad():
        cell.carry_bias(torch.full((4,), 200.0))
    outputs, _ = cell.run(torch.randn(1_000, 2, 3), (h,))
    torch.testing.assert_close(outputs[-1], h)
    assert all(g.isfinite().all() for g in gradients(outputs, list(cell.parameters())))


@kinds
def test_low_precision_keeps_long_memories(kind):
    """A gate of 1 - 1/5000 is 1 in bfloat16, and a state that is rounded at each step stays where it is."""
    cell, h = build(kind, dtype=torch.bfloat16)
    with torch.no_grad():
        cell.carry_bias(torch.full((4,), 8.5))
        cell.bias_ih[-4:] = 0.0
    outputs, _ = cell.run(torch.zeros(4_000, 2, 3, dtype=torch.bfloat16), (h,))
    assert outputs.dtype == torch.bfloat16
    decay = torch.tensor(8.5).double().sigmoid() ** 4_000
    torch.testing.assert_close(outputs[-1].double(), decay * h.double(), rtol=2**-7, atol=0.0)
    cell = cell.float()
    with torch.autocast("cpu", torch.bfloat16):
        outputs, _ = cell.run(torch.zeros(4_000, 2, 3), (h.float(),))
    assert outputs.dtype == torch.float32
    torch.testing.assert_close(outputs[-1].double(), decay * h.double(), rtol=2**-7, atol=0.0)


@kinds
def test_compiled_whole(kind):
    cell, h = build(kind)
    x = torch.randn(5, 2, 3, dtype=torch.float64)
    torch._dynamo.reset()
    compiled = torch.compile(cell.run, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, (h,)), cell.run(x, (h,)))


@kinds
def test_what_cannot_be_run_is_refused(kind):
    cell, h = build(kind)
    x = torch.randn(5, 2, 3, dtype=torch.float64)
    for arguments, words in [
        ((x[:0],), "a sequence must have a step or more"),
        ((x[..., :2],), "dim_in 3"),
        ((x, (h[:1],)), r"shapes \[\(2, 4\)\], got \[\(1, 4\)\]"),
    ]:
        with pytest.raises(UsageError, match=words):
            cell.run(*arguments)
    with torch.no_grad():
        cell.weight_ih[0, 0] = float("nan")
    with pytest.raises(UsageError, match="parameters must be finite"):
        cell.run(x)
