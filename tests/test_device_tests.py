"""Tests that need a GPU, without one: what they ask of modules is there, as nobody would see until a device is lent."""

import ast
import importlib
from pathlib import Path
from types import ModuleType

import pytest

FILES = sorted((Path(__file__).parent / "gpu").glob("test_*.py"))


def modules_of(tree, module):
    """Return the modules that a file has by a name, those too that a test imports for itself."""
    found = {name: held for name, held in vars(module).items() if isinstance(held, ModuleType)}
    for node in ast.walk(tree):
        call = getattr(node, "value", None)
        if (
            isinstance(node, ast.Assign)
            and isinstance(call, ast.Call)
            and ast.unparse(call.func).endswith("importorskip")
        ):
            found |= {one.id: importlib.import_module(call.args[0].value) for one in node.targets}
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_what_it_asks_of_modules_is_there(file):
    pytest.importorskip("triton")
    tree, module = ast.parse(file.read_text()), importlib.import_module(f"tests.gpu.{file.stem}")
    held = modules_of(tree, module)
    asked = [
        (held[node.value.id], node.attr)
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in held
    ]
    assert asked
    assert [f"{one.__name__}.{name}" for one, name in asked if not hasattr(one, name)] == []
