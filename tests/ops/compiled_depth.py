"""The Triton kernels of attention over depth, compiled for GPUs that are not there: run by test_triton.py."""

import re
import subprocess
from pathlib import Path

import pytest
import torch
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from levada.ops.depth import triton as kernels
from levada.ops.depth.table.triton import tabulate
from levada.ops.depth.whole import triton as whole

KINDS = {"fp32": tl.float32, "bf16": tl.bfloat16, "fp16": tl.float16, "fp64": tl.float64}
NARROW = {"means", "sums", "cotangent"}
NUMBERS = dict.fromkeys(("tokens", "sources", "token_stride"), "i32") | {"table": "*i64", "factor": "fp32"}


def compiled(kernel, width, queries, dtype, capability, **more):
    work = "fp64" if dtype == "fp64" else "fp32"
    chosen = {"attend": kernels.FORWARD, "attend_backward": kernels.BACKWARD}.get(kernel.__name__, kernels.BLOCKS)
    constants = kernels.shape_of(chosen, queries, width, getattr(torch, "float" + work[2:]))
    warps = constants.pop("num_warps")
    constants |= {
        "kind": KINDS[dtype],
        "mixed": False,
        "span": 16,
        "epsilon": 1e-6,
        "normal": True,
        "norms": False,
        "attends": True,
    }
    constants |= more
    constants = {name: value for name, value in constants.items() if name in kernel.arg_names}
    signature = {name: "*" + (dtype if name in NARROW else work) for name in kernel.arg_names}
    signature |= {name: kind for name, kind in NUMBERS.items() if name in kernel.arg_names}
    if kernel is kernels._products and not constants["norms"]:
        signature["left"] = "*" + dtype
    signature |= dict.fromkeys(constants, "constexpr")
    aligned = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(kernel.arg_names) if signature[name][0] == "*"}
    return triton.compile(
        ASTSource(kernel, signature=signature, constexprs=constants, attrs=aligned),
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": warps},
    )


KERNELS = [
    (whole.attend, {}),
    (whole.attend_backward, {}),
    (kernels._products, {"norms": True}),
    (kernels._products, {"norms": False}),
    (kernels._mix, {}),
    (kernels._spread, {"attends": True}),
    (kernels._spread, {"attends": False}),
]


@pytest.mark.parametrize(("kernel", "more"), KERNELS, ids=lambda k: getattr(k, "__name__", str(k)))
@pytest.mark.parametrize(
    ("width", "queries", "dtype", "capability"), [(512, 1, "bf16", 80), (4096, 1, "bf16", 90), (2560, 3, "fp32", 100)]
)
def test_it_compiles_and_reads_whole_vectors(kernel, more, width, queries, dtype, capability):
    found = compiled(kernel, width, queries, dtype, capability, **more)
    assert f".target sm_{capability}" in found.asm["ptx"]
    assert len(found.asm["cubin"])
    copied = r"cp\.async\.c[ag]\.shared\.global \[.*?\], \[.*?\], 0x10"
    assert re.search(rf"ld\.global\.\S*v4\.|{copied}", found.asm["ptx"])


@pytest.mark.parametrize(("kernel", "more"), KERNELS, ids=lambda k: getattr(k, "__name__", str(k)))
def test_it_compiles_for_sources_of_two_types(kernel, more):
    assert len(compiled(kernel, 4096, 1, "bf16", 90, mixed=True, **more).asm["cubin"])


def test_it_compiles_for_float64():
    for kernel, more in KERNELS:
        assert len(compiled(kernel, 500, 1, "fp64", 90, **more).asm["cubin"])


@pytest.mark.parametrize(("kernel", "more"), KERNELS, ids=lambda k: getattr(k, "__name__", str(k)))
@pytest.mark.parametrize(("width", "queries"), [(4096, 1), (8192, 1), (1024, 3)])
def test_registers_hold_it_all(kernel, more, width, queries, tmp_path):
    assembler = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "ptxas"
    if not assembler.exists():
        pytest.skip("no ptxas")
    source = tmp_path / "kernel.ptx"
    source.write_text(compiled(kernel, width, queries, "bf16", 90, **more).asm["ptx"])
    command = [assembler, "-v", "--gpu-name", "sm_90a", source, "-o", tmp_path / "kernel.cubin"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    assert "0 bytes spill stores, 0 bytes spill loads" in said


@pytest.mark.parametrize("types", [["bfloat16"], ["float32"], ["bfloat16", "float32"]], ids=str)
@pytest.mark.parametrize("width", [16384, 8192, 640])
def test_loads_ahead_fit_into_the_memory_of_a_multiprocessor(width, types):
    """That of the smallest one that Triton compiles for is 64 KiB."""
    sources = [torch.empty(1, width, dtype=getattr(torch, kind)) for kind in types]
    options = kernels._options(kernels.FORWARD, 1, sources, torch.float32)
    found = compiled(whole.attend, width, 1, "bf16", 90, **{k: options[k] for k in ("kind", "mixed", "stages")})
    assert found.metadata.shared <= 2**16 - 2**10
    assert width > 640 or options["stages"] == kernels.FORWARD["stages"]


def test_the_table_of_addresses_compiles():
    signature = {"table": "*i64", "addresses": ("i64",) * 4}
    source = ASTSource(tabulate, signature=signature, constexprs={})
    assert len(triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 1}).asm["cubin"])
