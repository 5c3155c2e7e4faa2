"""By which code a study's claims were decided: a hash of each source file, so that a result knows when it is old."""

from __future__ import annotations

import ast
import functools
import hashlib
import inspect
import sys
from collections.abc import Mapping
from typing import Any

from levada.study import Study

__all__ = ["claim_code"]


def claim_code(study: Study, settings: Mapping[str, Any]) -> dict[str, str]:
    """Return the hashes of the source files in which a study's claims are stated and decided, by file.

    What of a file is hashed: all but white space, comments between its parts, its first docstring, and the study
    itself, whose configurations, notes and texts are compared by themselves. What these files import is not hashed.

    Args:
        study: the study.
        settings: its settings, on which claims may depend.
    """
    modules = {_module(study.claims), *(_module(claim.decide) for claim in study.claims(settings))}
    return {f"{name.replace('.', '/')}.py": _hash(inspect.getsource(sys.modules[name])) for name in sorted(modules)}


def _module(function: Any) -> str:
    while isinstance(function, functools.partial):
        function = function.func
    return str(function.__module__)


def _hash(source: str) -> str:
    parts = [node for node in ast.parse(source).body if not _is_docstring(node) and not _is_study(node)]
    text = "\n".join("".join((ast.get_source_segment(source, node) or "").split()) for node in parts)
    return hashlib.sha256(text.encode()).hexdigest()


def _is_docstring(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _is_study(node: ast.stmt) -> bool:
    return isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "STUDY" for t in node.targets)
