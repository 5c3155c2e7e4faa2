"""Write a change into the source of the function that builds a model, as a unified diff."""

from __future__ import annotations

import ast
import difflib
from pathlib import Path

__all__ = ["diff"]

_LINE_MISSING = "\n\\ No newline at end of file\n"


def diff(path: Path, name: str, code: str, shown: str = "") -> str | None:
    r"""Return a unified diff that makes a function, or a module's variable, give the changed model.

    The code becomes a function of the file, through which goes what the builder returns. Applied by `git apply` from
    the folder that `shown` is relative to, it gives the model that was verified, as the code is the same.

    Args:
        path: a Python file.
        name: a function at its top level, or a variable that is assigned there.
        code: changes or replaces `model`.
        shown: the file's name in the diff; `path` if left out.

    Returns:
        The diff; None if the file does not say where the model is made: a class, a name that is imported, a decorated
        function.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder) / "net.py"
        ...     _ = file.write_text("model = build()\n")
        ...     print(diff(file, "model", "model.train()", "net.py"))
        --- a/net.py
        +++ b/net.py
        @@ -1 +1,6 @@
        -model = build()
        +def _repaired(model):
        +    model.train()
        +    return model
        +
        +
        +model = _repaired(build())
        <BLANKLINE>
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:  # as it is: a patch must match every byte
            text = file.read()
        tree = ast.parse(text)
    except (OSError, ValueError, SyntaxError):
        return None
    statement = next((s for s in reversed(tree.body) if _makes(s, name)), None)
    made = _values(statement)
    if statement is None or not made:
        return None
    end = "\r\n" if "\r\n" in text else "\n"
    helper = _free("_repaired", text)
    lines = text.splitlines(keepends=True)
    for value in sorted(made, key=lambda v: (v.lineno, v.col_offset), reverse=True):
        assert value.end_lineno is not None
        assert value.end_col_offset is not None
        _insert(lines, value.end_lineno, value.end_col_offset, ")")
        _insert(lines, value.lineno, value.col_offset, f"{helper}(")
    body = [f"    {line}".rstrip() for line in [*code.splitlines(), "return model"]]
    first = statement.lineno - 1
    lines[first:first] = [line + end for line in [f"def {helper}(model):", *body, "", ""]]
    changed = "".join(lines)
    try:
        ast.parse(changed)
    except SyntaxError:
        return None
    shown = shown or path.as_posix()
    found = difflib.unified_diff(
        text.splitlines(keepends=True), changed.splitlines(keepends=True), f"a/{shown}", f"b/{shown}"
    )
    return "".join(line if line.endswith("\n") else line + _LINE_MISSING for line in found)


def _makes(statement: ast.stmt, name: str) -> bool:
    if isinstance(statement, ast.FunctionDef):
        return statement.name == name and not statement.decorator_list
    return (
        isinstance(statement, ast.Assign)
        and len(statement.targets) == 1
        and isinstance(statement.targets[0], ast.Name)
        and statement.targets[0].id == name
    )


def _values(statement: ast.stmt | None) -> list[ast.expr]:
    """Return the expressions that give the model: of an assignment, or of all returns of a function."""
    if isinstance(statement, ast.Assign):
        return [statement.value]
    if not isinstance(statement, ast.FunctionDef):
        return []
    found, pending = [], list[ast.AST](statement.body)
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Return):
            if node.value is None:
                return []
            found.append(node.value)
        elif isinstance(node, ast.Yield | ast.YieldFrom):
            return []
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda):
            pending.extend(ast.iter_child_nodes(node))
    return found


def _insert(lines: list[str], line: int, column: int, text: str) -> None:
    raw = lines[line - 1].encode()  # columns of a syntax tree count bytes
    lines[line - 1] = (raw[:column] + text.encode() + raw[column:]).decode()


def _free(name: str, text: str) -> str:
    while name in text:
        name += "_"
    return name
