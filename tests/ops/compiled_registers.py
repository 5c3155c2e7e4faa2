"""What the kept rows say that compiled kernels take, against what they take: run by test_triton.py."""

import importlib
import re
from pathlib import Path

import pytest
import torch
import triton
from benchmarks import registers
from benchmarks.registers import CAPABILITIES, CASES, kernels_of, read, table

import levada.ops

ROWS = read()
SOURCES = sorted(Path(levada.ops.__file__).parent.rglob("triton.py"))


# Each operation for one GPU of the three, in turn.
@pytest.mark.parametrize(
    ("operation", "capability"), [(name, CAPABILITIES[i % len(CAPABILITIES)]) for i, name in enumerate(CASES)]
)
def test_kept_rows_are_what_is_compiled(operation, capability):
    kept = [row for row in ROWS if (row.operation, row.capability) == (operation, capability)]
    if triton.__version__ != kept[0].triton:
        pytest.skip(f"rows are of triton {kept[0].triton}")
    assert [*kernels_of(operation, capability)] == kept


ODD = [(80, torch.bfloat16), (90, torch.float16), (100, torch.float32)]
OTHERS = {"read hyper-connections", "read gated streams"}  # some of their kernels are compiled nowhere else


@pytest.mark.parametrize(
    ("operation", "capability", "dtype"),
    [(name, *odd) for i, name in enumerate(CASES) for odd in (ODD if name in OTHERS else [ODD[i % len(ODD)]])],
    ids=str,
)
def test_it_compiles_at_odd_sizes_in_each_type(operation, capability, dtype, monkeypatch):
    for name, value in {"_TOKENS": 193, "_STREAMS": 3, "_WIDTH": 2501, "_SOURCES": 5, "_NARROW": dtype}.items():
        monkeypatch.setattr(registers, name, value)
    found = {one.kernel: one for one in kernels_of(operation, capability)}
    assert found.keys() == {row.kernel for row in ROWS if row.operation == operation} - unsplit(dtype)
    assert max(one.shared for one in found.values()) <= (166912 if capability == 80 else 232448)


def unsplit(dtype):
    """Weights of float32 are one part, which nothing splits."""
    return {"split_weights"} if dtype == torch.float32 else set()


def test_every_kernel_that_is_launched_has_rows():
    root = Path(levada.ops.__file__).parents[2]
    launched = set()
    for source in SOURCES:
        module = importlib.import_module(".".join(source.relative_to(root).with_suffix("").parts))
        names = re.findall(r"^ +(?:(\w+)\.)?(\w+)\[", source.read_text(), re.MULTILINE)
        found = {name: getattr(getattr(module, of, None) if of else module, name, None) for of, name in names}
        launched |= {name for name, kernel in found.items() if isinstance(kernel, triton.JITFunction)}
    assert len(launched) > 15
    for capability in CAPABILITIES:
        assert {row.kernel for row in ROWS if row.capability == capability} == {name.lstrip("_") for name in launched}


def test_what_does_not_fit_into_registers_is_known():
    spilled = {(row.operation, row.kernel, row.capability) for row in ROWS if row.spilled}
    assert spilled == {
        ("read streams", "write_and_project", 80),
        *(("attend depth, 8 queries", "spread", capability) for capability in CAPABILITIES),
    }


def test_the_table_of_the_documentation():
    page = Path(__file__).parents[2] / "docs" / "operations.md"
    assert table(ROWS) in page.read_text()
