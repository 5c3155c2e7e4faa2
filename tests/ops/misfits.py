"""Arguments for every registered operation, and every way to spoil one of them: run by test_fitting.py, as a process.

Writes a line for each call that was neither refused nor right; a process of its own, as what is not refused may end it.
"""

import importlib
import pkgutil
import sys

import torch
from torch.utils._pytree import tree_leaves

import levada.ops
from levada._errors import UsageError

N, DIM, TOKENS, RANK = 3, 5, 7, 2
FORM = (True, 4, 0.0, 0.0, 0.0, 1e-6, False)


def operations():
    """Return the names of all operations, with every module imported that registers some."""
    for module in pkgutil.walk_packages(levada.ops.__path__, "levada.ops."):
        if not module.name.endswith((".triton", ".loops", "._numba", "._tiles")):
            importlib.import_module(module.name)
    names = (schema.name for schema in torch._C._jit_get_all_schemas())
    return sorted(name.removeprefix("levada::") for name in names if name.startswith("levada::"))


def tensor(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)))


def given():
    """Return arguments that fit, by operation."""
    rows = N * (2 + N)
    state, out, weights, mix = tensor(TOKENS, N, DIM), tensor(TOKENS, DIM), tensor(TOKENS, N), tensor(TOKENS, N, N)
    own = tensor(rows, N * DIM), tensor(3), tensor(rows)
    gated = tensor(N, DIM), tensor(RANK, N * DIM), tensor(N * DIM, RANK), tensor(N, N * DIM)
    hyper = tensor(N), tensor(N, N), tensor(N), tensor(N + 2, DIM), tensor(1), tensor(1), tensor(DIM), tensor(DIM)
    sources = [tensor(TOKENS, DIM) for _ in range(4)]
    features = torch.ops.levada.streams_read(state, *own, *FORM)[4:]
    of_gated = torch.ops.levada.streams_read_gated(state, *gated, 1e-6)[2:]
    of_hyper = torch.ops.levada.streams_read_hyper(state, *hyper, 1e-6)[4:]
    scored = tensor(RANK + N, N * DIM), tensor(1), tensor(N)
    _, _, scores, *kept = torch.ops.levada.streams_read_sparse(state, *scored, 1e-6)
    of_scored = scores, state, state, *scored, *kept
    steps, initial, many = tensor(TOKENS, 2, DIM), tensor(2, DIM), tensor(TOKENS, 2, 4)
    return {
        "depth_attend": (tensor(2, DIM), sources, 1e-6, 1.0, True),
        "depth_attend_backward": (steps.movedim(1, 0), tensor(2, DIM), sources, many, tensor(TOKENS, 4), 1.0, True),
        "depth_mix": (tensor(2, 4), sources),
        "depth_mix_backward": (steps.movedim(1, 0), many, sources),
        "residual_norm": (out, out, tensor(DIM), tensor(DIM), True, 1e-5),
        "residual_norm_backward": (out, out, out, tensor(DIM), True, 1e-5, True),
        "scan": (steps, steps, initial, False),
        "scan_backward": (steps, steps, steps, initial, True),
        "sinkhorn": (mix, 4, 0.0),
        "sinkhorn_backward": (mix, mix, 4, 0.0),
        "streams_read": (state, *own, *FORM),
        "streams_read_backward": (out, weights, weights, mix, state, state, *own, *features, *FORM),
        "streams_read_gated": (state, *gated, 1e-6),
        "streams_read_gated_backward": (out, weights, state, state, *gated, *of_gated, 1e-6),
        "streams_read_handed": (state, weights, *own, *FORM),
        "streams_read_handed_backward": (out, weights, weights, mix, state, state, weights, *own, *features, *FORM),
        "streams_read_hyper": (state, *hyper, 1e-6),
        "streams_read_hyper_backward": (out, weights, mix, weights, state, state, *hyper, *of_hyper, 1e-6),
        "streams_read_sparse": (state, *scored, 1e-6),
        "streams_read_sparse_backward": (out, weights, *of_scored, 1e-6),
        "streams_read_static": (state, tensor(N)),
        "streams_read_static_backward": (out, state, state, tensor(N)),
        "streams_write": (state, out, weights, mix),
        "streams_write_backward": (state, state, out, weights, mix),
        "streams_write_read": (state, out, weights, mix, *own, *FORM),
        "streams_write_read_backward": (
            state, out, weights, weights, mix, state, out, weights, mix, state, *own, *features, *FORM
        ),
        "tensor_statistics": (sources,),
    }  # fmt: skip


def spoiled(x):
    """Yield what a tensor becomes, and how that is called."""
    for axis, size in enumerate(x.shape):
        for other in (size - 1, size + 1, 1000 * size):
            if other:
                yield f"{other} in axis {axis}", tensor(*x.shape[:axis], other, *x.shape[axis + 1 :])
    yield "an axis more", x.unsqueeze(0)
    yield "none", x.new_zeros(())
    if x.ndim:
        yield "an axis less", x[0]
    if x.ndim > 1 and x.shape[0] != x.shape[1]:
        yield "two axes exchanged", x.transpose(0, 1).contiguous()
    yield from converted(x)


def converted(x):
    """Yield what a tensor becomes without a change of its shape."""
    for dtype in (torch.int64, torch.bool, torch.complex64):
        yield str(dtype), x.to(dtype)
    yield "another device", x.to("meta")


def harmless(x):
    """Yield other tensors that fit: in another order of memory, all in one place, or of another type."""
    yield "last axis first in memory", x.movedim(-1, 0).contiguous().movedim(0, -1)
    yield "gaps", x.repeat_interleave(2, -1)[..., ::2]
    yield "of which torch keeps the sign", torch._neg_view(-x)
    for dtype in (torch.float64, torch.bfloat16):
        yield str(dtype), x.to(dtype)


def calls(replacements):
    """Yield operations, arguments of which one is replaced, and what was done."""
    for name, arguments in given().items():
        for place, argument in enumerate(arguments):
            if isinstance(argument, list):
                # Statistics are of any tensors, whatever the others are.
                how_else = converted if (replacements, name) == (spoiled, "tensor_statistics") else replacements
                replaced = [(how, [argument[0], one, *argument[2:]]) for how, one in how_else(argument[1])]
                if replacements is spoiled and name != "tensor_statistics":
                    replaced.append(("empty", []))
            elif isinstance(argument, torch.Tensor):
                replaced = [*replacements(argument)]
            elif type(argument) is int and replacements is spoiled:
                replaced = [(str(other), other) for other in (0, -1, -(2**62))]
            else:
                continue
            for how, other in replaced:
                yield name, (*arguments[:place], other, *arguments[place + 1 :]), f"argument {place}: {how}"


def without_loops(operation, arguments):
    """Return what the operation gives where no loops are installed."""
    changed = {m: m.import_kernels for name, m in [*sys.modules.items()] if name.startswith("levada.ops.")
               and hasattr(m, "import_kernels")}  # fmt: skip
    for module in changed:
        module.import_kernels = lambda *_: None
    try:
        return operation(*arguments)
    finally:
        for module, real in changed.items():
            module.import_kernels = real


def same(got, expected):
    """Return whether results agree, as far as types that were mixed let them."""
    pairs = zip(tree_leaves(got), tree_leaves(expected), strict=True)
    return all(x.shape == y.shape and torch.allclose(x, y.to(x.dtype), 1e-3, 1e-3, equal_nan=True) for x, y in pairs)


def report(replacements):
    """Write a line for each call that neither was refused nor gave what the reference gives."""
    count = refused = 0
    for name, arguments, how in calls(replacements):
        operation, count = getattr(torch.ops.levada, name), count + 1
        try:
            got = operation(*arguments)
            expected = without_loops(operation, arguments)
        except UsageError:
            refused += 1
        except Exception as error:
            sys.stdout.write(f"{name}, {how}: {type(error).__name__}: {str(error)[:90]}\n")
        else:
            if not any(x.is_meta for x in tree_leaves(got)) and not same(got, expected):
                sys.stdout.write(f"{name}, {how}: taken, and wrong\n")
        sys.stdout.flush()
    sys.stdout.write(f"{refused} of {count} refused\n")


if __name__ == "__main__":
    unlike = {*operations()} ^ {*given()}
    if unlike:
        sys.exit(f"arguments must be given for all operations, and for no others; unlike: {sorted(unlike)}")
    report(spoiled)
    report(harmless)
