"""The Triton kernels of a residual connection with its norm, compiled for GPUs that are not there."""

import pytest
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from levada.ops.residual_norm import triton as kernels

SIZES = {"bf16": 2, "fp16": 2, "fp32": 4, "fp64": 8}


@pytest.mark.parametrize("kernel", [kernels._residual_norm, kernels._residual_norm_backward], ids=lambda k: k.__name__)
@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize(("dtype", "capability", "width"), [("bf16", 80, 2560), ("bf16", 90, 8192), ("fp32", 100, 96)])
def test_it_compiles(kernel, centred, dtype, capability, width):
    block, rows, warps = kernels.shape_of(width)
    constants = {"width": width, "block": block, "rows": rows, "eps": 1e-5, "centred": centred, "scaled": True}
    constants |= {"shifted": centred, "work": tl.float32}
    if "stages" in kernel.arg_names:
        constants["stages"] = kernels.stages_of(rows * block * SIZES[dtype])
    signature = dict.fromkeys(kernel.arg_names, "*" + dtype)
    signature |= dict.fromkeys(("weight", "bias", "of_weight", "of_bias"), "*fp32") | {"tokens": "i32"}
    signature |= dict.fromkeys(constants, "constexpr")
    signature = {name: signature[name] for name in kernel.arg_names}
    pointers = [i for i, kind in enumerate(signature.values()) if kind.startswith("*")]
    compiled = triton.compile(
        ASTSource(kernel, signature, constants, {(i,): [["tt.divisibility", 16]] for i in pointers}),
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": warps},
    )
    assert f".target sm_{capability}" in compiled.asm["ptx"]
    assert len(compiled.asm["cubin"])
    assert "st.global.v" in compiled.asm["ptx"]
    assert compiled.metadata.shared <= kernels.SHARED + 2**11
