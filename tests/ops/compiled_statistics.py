"""The Triton kernels of statistics, compiled for GPUs that are not there: run by test_triton.py."""

import pytest
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from levada.ops.statistics import triton as kernels

TYPES = {"bf16": tl.bfloat16, "fp16": tl.float16, "fp32": tl.float32, "fp64": tl.float64}


def compiled(kernel, signature, constants, capability):
    signature |= dict.fromkeys(constants, "constexpr")
    found = triton.compile(
        ASTSource(kernel, signature={name: signature[name] for name in kernel.arg_names}, constexprs=constants),
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": kernels.WARPS},
    )
    assert f".target sm_{capability}" in found.asm["ptx"]
    assert len(found.asm["cubin"])
    return found.asm["ptx"]


@pytest.mark.parametrize(
    ("dtype", "capability"), [("bf16", 80), ("bf16", 90), ("fp16", 90), ("fp64", 90), ("fp32", 100)]
)
def test_it_loads_16_bytes_at_once(dtype, capability):
    work = tl.float64 if dtype == "fp64" else tl.float32
    constants = {"dtype": TYPES[dtype], "work": work, "block": kernels.BLOCK, "aligned": True}
    code = compiled(kernels._measure, {"table": "*i64", "found": "*fp64"}, constants, capability)
    assert "ld.global.v2.b64" in code if dtype == "fp64" else "ld.global.v4.b32" in code


@pytest.mark.parametrize("capability", [80, 90, 100])
def test_pieces_are_added_up(capability):
    signature = {"pieces": "*fp64", "firsts": "*i64", "found": "*fp64"}
    compiled(kernels._combine, signature, {"rows": kernels._ROWS}, capability)
