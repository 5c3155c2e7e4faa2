"""The Triton kernels of the scan, compiled for GPUs that are not there: run by test_triton.py."""

import itertools

import pytest
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from levada.ops.scan import triton as kernels

TYPES = {"fp32": tl.float32, "bf16": tl.float32, "fp64": tl.float64}


@pytest.mark.parametrize("kernel", [kernels._reduce_tiles, kernels._scan_tiles], ids=lambda k: k.__name__)
@pytest.mark.parametrize(("log", "reverse"), [*itertools.product([False, True], repeat=2)])
@pytest.mark.parametrize(("dtype", "capability"), [("fp32", 80), ("fp32", 90), ("bf16", 90), ("fp64", 90)])
def test_it_compiles(kernel, log, reverse, dtype, capability):
    work = TYPES[dtype]
    constants = {
        "log": log,
        "reverse": reverse,
        "span": kernels._STEPS,
        "wide": kernels._WIDTH,
        "work": work,
    }
    signature = dict.fromkeys(kernel.arg_names, "*" + dtype)
    signature |= dict.fromkeys(("products", "ends"), "*fp64" if work is tl.float64 else "*fp32")
    signature |= {"steps": "i32", "width": "i32"} | dict.fromkeys(constants, "constexpr")
    signature = {name: signature[name] for name in kernel.arg_names}
    compiled = triton.compile(
        ASTSource(kernel, signature=signature, constexprs=constants),
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": kernels._WARPS},
    )
    assert f".target sm_{capability}" in compiled.asm["ptx"]
    assert len(compiled.asm["cubin"])
