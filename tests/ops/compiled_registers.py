"""What the kept rows say that compiled kernels take, against what they take: run by test_triton.py."""

import importlib
import re
from pathlib import Path

import pytest
import triton
from benchmarks.registers import CAPABILITIES, kernels_of, read, table

import levada.ops

ROWS = read()
SOURCES = sorted(Path(levada.ops.__file__).parent.rglob("triton.py"))


@pytest.mark.parametrize(
    ("operation", "capability"), [("write streams", 90), ("read hyper-connections", 90), ("sinkhorn", 100)]
)
def test_kept_rows_are_what_is_compiled(operation, capability):
    kept = [row for row in ROWS if (row.operation, row.capability) == (operation, capability)]
    if triton.__version__ != kept[0].triton:
        pytest.skip(f"rows are of triton {kept[0].triton}")
    assert [*kernels_of(operation, capability)] == kept


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
