"""What operations refuse: whoever calls them by `torch.ops` gives shapes that no function of levada has looked at."""

import pathlib
import re
import subprocess
import sys

import pytest
import torch
import torch._dynamo

from levada._errors import UsageError
from levada.ops.hyper import Parameters, read_hyper
from levada.ops.hyper.static import read_static, write_and_read_static


def test_no_operation_takes_what_does_not_fit():
    """Every argument of every operation is spoiled in every way, in another process: memory may be lost there."""
    script = pathlib.Path(__file__).with_name("misfits.py")
    done = subprocess.run([sys.executable, "-P", script], capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    spoiled, harmless = done.stdout.splitlines()  # a line more for each call that was neither refused nor right
    refused, count = map(int, re.findall(r"\d+", spoiled))
    assert count > 1700
    # What is left are sizes that no other argument knows: of queries, of matrices, of tokens.
    assert count - refused < 35
    refused, count = map(int, re.findall(r"\d+", harmless))
    assert refused < 0.15 * count  # gradients of another type than what was returned


def test_what_is_said():
    state, out, weights = torch.zeros(5, 4, 8), torch.zeros(5, 8), torch.zeros(5, 4)
    write = torch.ops.levada.streams_write
    with pytest.raises(
        UsageError, match=r"levada::streams_write: out must be \(5, 8\) beside .* got \(5, 7\). Reshape"
    ):
        write(state, out[:, :7], weights, None)
    with pytest.raises(UsageError, match=r"levada::streams_write: state must be \(tokens, n, dim\), got \(4, 8\)"):
        write(state[0], out, weights, None)
    with pytest.raises(
        UsageError, match=r"weights must be of real floating point, on cpu as state is, got torch.int64"
    ):
        write(state, out, weights.long(), None)
    with pytest.raises(UsageError, match=r"weights must .* on cpu as state is, got torch.float32 on meta"):
        write(state, out, weights.to("meta"), None)
    with pytest.raises(UsageError, match=r"levada::sinkhorn: iterations must be at least 1, got 0"):
        torch.ops.levada.sinkhorn(torch.zeros(3, 2, 2), 0, 0.0)
    with pytest.raises(UsageError, match=r"levada::depth_mix: sources\[1\] must be \(3, 5\) .* got \(3, 6\)"):
        torch.ops.levada.depth_mix(torch.zeros(2), [torch.zeros(3, 5), torch.zeros(3, 6)])
    with pytest.raises(UsageError, match=r"sinkhorn_backward: cotangent must be of torch.float32 .* got torch.float64"):
        torch.ops.levada.sinkhorn_backward(torch.zeros(3, 2, 2), torch.zeros(3, 2, 2).double(), 3, 0.0)


def test_what_traces_is_refused_as_well():
    """A graph that cannot run is not recorded."""
    program = torch.nn.Module()
    program.forward = lambda state, read: torch.ops.levada.streams_read_static(state, read)
    state = torch.zeros(5, 4, 8)
    torch.export.export(program, (state, torch.zeros(4)))
    with pytest.raises(
        Exception, match=r"streams_read_static: read must be \(4,\) beside the other tensors, got \(3,\)"
    ):
        torch.export.export(program, (state, torch.zeros(3)))


@torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True)
def test_sizes_that_no_trace_can_compare_are_compared_by_the_kernel():
    def found(one, other):
        state, out = torch.nonzero(one).float(), torch.nonzero(other).float()
        weights = state.expand(-1, 4)
        return torch.ops.levada.streams_write(state[:, None].expand(-1, 4, 8), out.expand(-1, 8), weights, None)

    compiled = torch.compile(found, fullgraph=True, backend="aot_eager")
    one, other = torch.tensor([True, False, True]), torch.tensor([True, True, False])
    assert torch.equal(compiled(one, other), found(one, other))
    with pytest.raises(UsageError, match=r"out must be \(2, 8\) beside the other tensors, got \(3, 8\)"):
        compiled(one, one | other)


def test_functions_that_call_kernels_without_the_dispatcher_look_as_well():
    pytest.importorskip("numba")
    state, out, weights, mix = torch.zeros(2, 5, 4, 8), torch.zeros(2, 5, 8), torch.zeros(4), torch.zeros(4, 4)
    with pytest.raises(UsageError, match=r"read must be \(4,\) beside the other tensors, got \(3,\)"):
        read_static(state, torch.zeros(3))
    with pytest.raises(UsageError, match=r"read must be \(4,\) beside the other tensors, got \(5,\)"):
        write_and_read_static(state, out, weights, mix, torch.zeros(5))
    own = Parameters(weights, mix, weights, torch.zeros(6, 7), torch.zeros(1), torch.zeros(1), torch.zeros(8), None)
    with pytest.raises(UsageError, match=r"projection must be \(6, 8\) beside the other tensors, got \(6, 7\)"):
        read_hyper(state, own)
