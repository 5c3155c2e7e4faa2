"""The Triton kernels of Sinkhorn normalisation, compiled for GPUs that are not there: run by test_triton.py."""

import pytest
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from levada.ops.sinkhorn import triton as kernels

TYPES = {"fp32": torch.float32, "fp64": torch.float64}


@pytest.mark.parametrize("kernel", [kernels._sinkhorn, kernels._sinkhorn_backward], ids=lambda k: k.__name__)
@pytest.mark.parametrize(
    ("n", "iterations", "epsilon", "dtype", "capability"),
    [(4, 3, 0.0, "fp32", 80), (4, 20, 0.0, "fp32", 90), (3, 3, 1e-6, "fp64", 90), (16, 3, 0.0, "fp32", 100)],
)
def test_it_compiles(kernel, n, iterations, epsilon, dtype, capability):
    constants = kernels.options_of(n, iterations, epsilon, TYPES[dtype], kernels.MATRICES)
    options = {"num_warps": constants.pop("num_warps")}
    signature = dict.fromkeys(kernel.arg_names, "*" + dtype) | {"tokens": "i32"} | dict.fromkeys(constants, "constexpr")
    compiled = triton.compile(
        ASTSource(kernel, signature={name: signature[name] for name in kernel.arg_names}, constexprs=constants),
        target=GPUTarget("cuda", capability, 32),
        options=options,
    )
    assert f".target sm_{capability}" in compiled.asm["ptx"]
    assert len(compiled.asm["cubin"])
    assert compiled.metadata.shared <= 2**14
