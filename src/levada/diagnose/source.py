"""Write a change into the source of what builds a model, and of its loss, as a unified diff."""

from __future__ import annotations

import ast
import difflib
from dataclasses import replace
from pathlib import Path

from levada.diagnose.remedies import Patch

__all__ = ["diff", "diffs"]

_LINE_MISSING = "\n\\ No newline at end of file\n"


def diff(path: Path, name: str, code: str, shown: str = "", *, loss: tuple[str, str] = ("", "")) -> str | None:
    r"""Return a unified diff that makes a function, or a module's variable, give the changed model.

    The code becomes a function of the file, through which goes what the builder returns. A loss is a function or a
    variable itself: its name is bound again below it. Applied by `git apply` from the folder that `shown` is relative
    to, the diff gives what was verified, as the code is the same.

    Args:
        path: a Python file.
        name: a function at its top level, or a variable that is assigned there.
        code: changes or replaces `model`; the model is left as it is without.
        shown: the file's name in the diff; `path` if left out.
        loss: name of a loss in that file, and code that replaces `loss`; without code it is left as it is.

    Returns:
        The diff; None if the file does not say where the model or the loss is made: a class, a name that is imported, a
        decorated function.

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
        changed: str | None = text
        if code:
            changed = _built(text, name, code)
        if changed is not None and loss[1]:
            changed = _bound_again(changed, *loss)
        if changed is None:
            return None
        ast.parse(changed)
    except (OSError, ValueError, SyntaxError):
        return None
    shown = shown or path.as_posix()
    found = difflib.unified_diff(
        text.splitlines(keepends=True), changed.splitlines(keepends=True), f"a/{shown}", f"b/{shown}"
    )
    return "".join(line if line.endswith("\n") else line + _LINE_MISSING for line in found)


def diffs(change: Patch, model: tuple[Path | None, str], loss: tuple[Path | None, str], folder: Path) -> str | None:
    """Return a change as diffs of the files that make a model and its loss, below what else is to be changed.

    Args:
        change: all of it.
        model: file of the function or variable that makes the model, and its name; None where there is no such file.
        loss: the same of the loss.
        folder: what the diffs are relative to; a file outside of it is left alone.

    Returns:
        What `git apply` reads; None if no file can be changed.
    """

    def written(place: Path | None, code: str, judge: str) -> str | None:
        if place is None or not place.is_relative_to(folder) or not (code or judge) or "inputs" in code:
            return None
        return diff(place, model[1], code, place.relative_to(folder).as_posix(), loss=(loss[1], judge))

    if model[0] == loss[0] and change.build and change.loss:
        both = written(model[0], change.build, change.loss)
        if both:
            rest = str(replace(change, build="", loss=""))
            return f"{rest}\n\n{both}" if rest else both
    parts = {"build": written(model[0], change.build, ""), "loss": written(loss[0], "", change.loss)}
    found = [text for text in parts.values() if text]
    rest = str(replace(change, **{part: "" for part, text in parts.items() if text}))
    return "\n\n".join([rest, *found] if rest else found) if found else None


def _built(text: str, name: str, code: str) -> str | None:
    """Let what a builder returns go through a function that changes it."""
    statement = next((s for s in reversed(ast.parse(text).body) if _makes(s, name)), None)
    made = _values(statement)
    if statement is None or not made:
        return None
    helper = _free("_repaired", text)
    lines = text.splitlines(keepends=True)
    for value in sorted(made, key=lambda v: (v.lineno, v.col_offset), reverse=True):
        assert value.end_lineno is not None
        assert value.end_col_offset is not None
        _insert(lines, value.end_lineno, value.end_col_offset, ")")
        _insert(lines, value.lineno, value.col_offset, f"{helper}(")
    first = statement.lineno - 1
    lines[first:first] = [line + _end(text) for line in [*_helper(helper, "model", code), "", ""]]
    return "".join(lines)


def _bound_again(text: str, name: str, code: str) -> str | None:
    """Bind the name of a loss again below where it is made."""
    makes = [s for s in ast.parse(text).body if _binds(s, name)]
    if not makes:
        return None
    last, end = makes[-1], _end(text)
    assert last.end_lineno is not None
    helper = _free(f"_repaired_{name}", text)
    lines = text.splitlines(keepends=True)
    if not lines[last.end_lineno - 1].endswith(("\n", "\r")):
        lines[last.end_lineno - 1] += end
    added = ["", "", *_helper(helper, "loss", code), "", "", f"{name} = {helper}({name})"]
    lines[last.end_lineno : last.end_lineno] = [line + end for line in added]
    return "".join(lines)


def _helper(name: str, changes: str, code: str) -> list[str]:
    body = [f"    {line}".rstrip() for line in [*code.splitlines(), f"return {changes}"]]
    return [f"def {name}({changes}):", *body]


def _end(text: str) -> str:
    return "\r\n" if "\r\n" in text else "\n"


def _binds(statement: ast.stmt, name: str) -> bool:
    """Return whether a statement makes a loss of that name: a function, decorated or not, or a variable."""
    if isinstance(statement, ast.FunctionDef):
        return statement.name == name
    if isinstance(statement, ast.AnnAssign):
        return isinstance(statement.target, ast.Name) and statement.target.id == name and statement.value is not None
    return _makes(statement, name)


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
