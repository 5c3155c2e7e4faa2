"""The Triton kernels that read streams, compiled for GPUs that are not there: run by test_triton.py."""

import re

import pytest
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from levada.ops.manifold import Form
from levada.ops.manifold import triton as kernels
from levada.ops.manifold.ahead import triton as ahead
from levada.ops.manifold.gates import triton as gates
from levada.ops.manifold.products import triton as products

TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
# What is in the streams' type; all other tensors are in float32.
NARROW = {"state", "x", "by_x", "by_new", "by_state", "out", "new"}


def pieces(n, width, form, dtype):
    """Return each kernel's constants and options, for 4096 tokens."""
    tokens, size, count = 4096, n * width, 2 * n + n * n * form.mixes
    split = dtype == "bf16"
    rows = count if dtype == "fp32" else 2 * count
    project = products.plan_of(tokens, size, rows, TYPES[dtype])
    by_state = products.plan_of_state(tokens, n, width, count, TYPES[dtype])
    common = gates.options_of(n, count, form)
    epsilons = {"write_epsilon": form.write_epsilon, "norm_epsilon": form.norm_epsilon}
    block, padded = kernels.block_of(width, 1024), triton.next_power_of_2(n)
    onward = {"mixes": form.mixes, "split": rows > count, **ahead.plan_of(tokens, width, rows, TYPES[dtype])}
    return {
        "_write_and_project": {"width": width, "n": n, "count": count, "rows": rows} | onward,
        "_project": {"size": size, "count": count, "rows": rows, "split": rows > count, "centred": False} | project,
        "gates": {"parts": project["parts"]} | epsilons | common,
        "_read": {"width": width, "n": n, "together": 2, "block": block, "num_warps": 4},
        "_by_reads": {"width": width, "n": n, "padded": padded, "block": block, "adds": True, "num_warps": 4},
        "gates_backward": {"split": split} | common,
        "_by_state": {"width": width, "n": n, "count": count, "adds": True, "split": split, "each": 1} | by_state,
    }


@pytest.mark.parametrize(
    "name", ["_project", "gates", "_read", "_by_reads", "gates_backward", "_by_state", "_write_and_project"]
)
@pytest.mark.parametrize(
    ("n", "width", "form", "dtype", "capability"),
    [
        (4, 2560, Form(iterations=3), "bf16", 80),
        (4, 2560, Form(), "bf16", 90),
        (4, 2560, Form(iterations=3), "fp32", 100),
        (3, 1001, Form(mixes=False), "fp16", 90),
        (8, 512, Form(iterations=3, epsilon=1e-6, transposed=True), "bf16", 90),
        (16, 512, Form(iterations=13), "fp32", 90),
    ],
)
def test_it_compiles(name, n, width, form, dtype, capability):
    if name == "_write_and_project" and n > ahead._MOST_STREAMS:
        pytest.skip("two kernels do it")
    require_compiled(name, pieces(n, width, form, dtype)[name], dtype, capability)


@pytest.mark.parametrize(("n", "width", "dtype"), [(4, 2560, "bf16"), (16, 512, "fp32"), (5, 1001, "fp16")])
def test_it_compiles_with_the_parts_of_hyper_connections(n, width, dtype):
    """Streams one by one, whose mean is taken out, and one gradient of what was read for all of a token."""
    tokens, count = 4096 * n, n + 2
    rows = count if dtype == "fp32" else 2 * count
    project = {"size": width, "count": count, "rows": rows, "split": rows > count, "centred": True}
    project |= products.plan_of(tokens, width, rows, TYPES[dtype]) | {"num_warps": products.PROJECT["num_warps"]}
    require_compiled("_project", project, dtype, 90)
    by_state = {"width": width, "n": 1, "count": count + 1, "adds": True, "split": dtype == "bf16", "each": n}
    by_state |= products.plan_of_state(tokens, 1, width, count + 1, TYPES[dtype])
    require_compiled("_by_state", by_state, dtype, 90)


def require_compiled(name, constants, dtype, capability):
    """Compile a kernel, and require that its products are waited for and its blocks fit on the chip."""
    kernel = next(getattr(module, name) for module in (ahead, products, gates, kernels) if hasattr(module, name))
    options = {key: constants.pop(key) for key in ("num_warps", "num_stages") if key in constants}
    constants = {key: value for key, value in constants.items() if key in kernel.arg_names}
    signature = {key: "*" + dtype if key in NARROW else "*fp32" for key in kernel.arg_names}
    parts = {"_project": "weights", "_write_and_project": "factors"}
    if name in parts:
        signature[parts[name]] = "*" + dtype
    if dtype == "bf16":
        signature |= {key: "*bf16" for key in ("by_logits",) if key in signature}
    signature |= {key: "i32" for key in ("tokens", "size") if key in signature}
    signature |= dict.fromkeys(constants, "constexpr")
    # Addresses are multiples of 16, as those of tensors are: only then are loads asynchronous.
    aligned = {(i,): [["tt.divisibility", 16]] for i, key in enumerate(kernel.arg_names) if signature[key][0] == "*"}
    signature = {key: signature[key] for key in kernel.arg_names}
    compiled = triton.compile(
        ASTSource(kernel, signature=signature, constexprs=constants, attrs=aligned),
        target=GPUTarget("cuda", capability, 32),
        options=options,
    )
    assert f".target sm_{capability}" in compiled.asm["ptx"]
    assert len(compiled.asm["cubin"])
    # A product that is waited for a turn late reads what the next load writes: wrong numbers on an H100.
    assert "wgmma.wait_group.sync.aligned 1" not in re.sub(r"\s+", " ", compiled.asm["ptx"])
    assert compiled.metadata.shared <= (166912 if capability == 80 else 232448)
