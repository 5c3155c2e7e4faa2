"""The Triton kernels that write to streams, compiled for GPUs that are not there: run by test_triton.py."""

import pytest
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from levada.ops.streams import triton as kernels

WORK = {"fp32": tl.float32, "bf16": tl.float32, "fp64": tl.float64}


@pytest.mark.parametrize(
    ("kernel", "chosen"),
    [(kernels._write, kernels.FORWARD), (kernels._write_backward, kernels.BACKWARD)],
    ids=["write", "write_backward"],
)
@pytest.mark.parametrize(("n", "mixes"), [(4, False), (4, True), (16, True)])
@pytest.mark.parametrize(("dtype", "capability"), [("bf16", 80), ("bf16", 90), ("fp32", 100)])
def test_it_compiles(kernel, chosen, n, mixes, dtype, capability):
    padded = triton.next_power_of_2(n)
    shape = kernels.shape_of(chosen, padded, 4096, even=False)
    constants = {
        "width": 4096, "n": n, "padded": padded, "block": shape["block"], "mixes": mixes, "work": WORK[dtype],
    }  # fmt: skip
    signature = dict.fromkeys(kernel.arg_names, "*" + dtype)
    signature |= dict.fromkeys(("weights", "mix", "by_weights", "by_mix"), "*fp32")
    signature |= dict.fromkeys(constants, "constexpr")
    signature = {name: signature[name] for name in kernel.arg_names}
    compiled = triton.compile(
        ASTSource(kernel, signature=signature, constexprs=constants),
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": shape["num_warps"]},
    )
    assert f".target sm_{capability}" in compiled.asm["ptx"]
    assert len(compiled.asm["cubin"])
