"""Writes `docs/errors.md` from the code: every message that a user may see, and its exit code.

    python docs/build_errors.py

A test compares the file with the code. Values that are filled in stand in braces; parts in square
brackets are not always there.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from pancreas_mtl.data.checks import CHECKS

ROOT = Path(__file__).resolve().parent.parent
TABLE = ROOT / "docs" / "errors.md"
EXIT_CODES = {"UsageError": 2, "CaseError": 1, "LackOfMemoryError": 1, "TrainingError": 1}
RETURNED: dict[str, int | None] = {"one_line": 2, "geometry_warnings": None}
"""Functions whose answers are messages."""
HEAD = """# Messages

Made from the code by `make reference`; a test compares it with the code. A command says
what is wrong in one line: the file or key, the value, and what to do. Values stand in braces here,
and parts in square brackets are not always there.

Exit codes: 0 all done; 1 some cases failed, and the others are done; 2 bad usage, nothing was
done. A message of code 1 about a single case stands in `run.json`, `metrics.json` or `audit.json`,
and the first of them in the terminal. Anything that begins with `defect:` is a mistake of the
program; its traceback is in the log.
"""


class Message(NamedTuple):
    """One message, as far as the code alone says it."""

    where: str  # of the module
    code: int | None  # None for a warning
    text: str


def messages() -> list[Message]:
    """All of them, by module and in the order of the code."""
    found: list[Message] = []
    for path in (*sorted((ROOT / "pancreas_mtl").rglob("*.py")), ROOT / "train.py"):
        where = str(path.relative_to(ROOT)).removeprefix("pancreas_mtl/")
        found += dict.fromkeys(_messages_of(ast.parse(path.read_text(encoding="utf-8")), where))
    return found


def findings() -> dict[str, list[str]]:
    """What the audit says, by check; where another message is passed on, that one has the words."""
    found: dict[str, list[str]] = {name: [] for name in CHECKS}
    for name in ("checks.py", "audit.py"):
        tree = ast.parse((ROOT / "pancreas_mtl" / "data" / name).read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            parts = node.elts if isinstance(node, ast.Tuple) else []
            parts = node.args if isinstance(node, ast.Call) else parts
            if len(parts) > 1 and isinstance(parts[0], ast.Constant) and parts[0].value in CHECKS:
                text = _text(parts[-1], _assigned(tree))
                if text not in ("warning", "error") and text.strip("{}") != _name(parts[-1]):
                    found[parts[0].value].append(text)
    return found


def page() -> str:
    """The content of `docs/errors.md`."""
    parts = [HEAD]
    everything = messages()
    for title, code in (("Exit code 2", 2), ("Exit code 1", 1), ("Warnings", None)):
        rows = [
            f"| {_cell(message.text)} | `{message.where}` |"
            for message in everything
            if message.code == code
        ]
        parts.append("\n".join([f"## {title}\n", "| message | from |", "|---|---|", *rows]) + "\n")
    found = findings()
    checks = [
        f"| `{name}` | {kind} | {', '.join(map(_cell, found[name]))} | {remedy} |"
        for name, (kind, remedy) in CHECKS.items()
    ]
    head = ["## Findings of the audit\n", "| check | kind | message | what to do |"]
    head.append("|---|---|---|---|")
    parts.append("\n".join([*head, *checks]) + "\n")
    return "\n".join(parts)


def _cell(text: str) -> str:
    return "`" + " ".join(text.split()).replace("|", "\\|").replace("`", "'") + "`"


def _messages_of(tree: ast.Module, where: str) -> Iterator[Message]:
    constants = {name: text for name, text in _assigned(tree).items() if name.isupper()}
    helpers = {
        function.name: (function, call)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef)
        for call in [_returned_error(function)]
        if call is not None
    }
    inside = {id(call) for _, call in helpers.values()}
    for scope, node in _calls(tree):
        name, known = _name(node.func), constants | _assigned(scope)
        if name in EXIT_CODES and id(node) not in inside and node.args:
            yield Message(where, EXIT_CODES[name], _text(node.args[0], known))
        elif name in helpers and isinstance(node.func, ast.Name):
            function, call = helpers[name]
            values = dict(zip([a.arg for a in function.args.args], node.args, strict=False))
            outer = {key: _text(value, known) for key, value in values.items()}
            yield Message(where, EXIT_CODES[_name(call.func)], _text(call.args[0], outer))
        elif name in ("warning", "warn") and node.args:
            text = re.sub("%(s|d|[.]0f)", "{}", _text(node.args[0], known))
            if text.strip("{}"):
                yield Message(where, None, text)
    yield from _messages_without_error(tree, where)


def _messages_without_error(tree: ast.Module, where: str) -> Iterator[Message]:
    """Those that a function returns, or that are noted as the error of a case."""
    for function in ast.walk(tree):
        if not isinstance(function, ast.FunctionDef):
            continue
        known = _assigned(function)
        for node in ast.walk(function):
            if isinstance(node, ast.Assign) and _is_text(node.value):
                if isinstance(node.targets[0], ast.Attribute) and _name(node.targets[0]) == "error":
                    yield Message(where, 1, _text(node.value, known))
            elif isinstance(node, ast.Return) and node.value and function.name in RETURNED:
                values = node.value.elts if isinstance(node.value, ast.List) else [node.value]
                for value in filter(_is_text, values):
                    yield Message(where, RETURNED[function.name], _text(value, known))


def _returned_error(function: ast.FunctionDef) -> ast.Call | None:
    last = function.body[-1]
    if isinstance(last, ast.Return) and isinstance(last.value, ast.Call):
        return last.value if _name(last.value.func) in EXIT_CODES else None
    return None


def _calls(tree: ast.AST, scope: ast.AST | None = None) -> Iterator[tuple[ast.AST, ast.Call]]:
    scope = scope or tree
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Call):
            yield scope, node
        inner = node if isinstance(node, ast.FunctionDef) else scope
        yield from _calls(node, inner)


def _assigned(scope: ast.AST) -> dict[str, str]:
    """Texts that a function gives a name once, by that name."""
    values: dict[str, list[ast.expr]] = {}
    for node in ast.walk(scope):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            values.setdefault(node.targets[0].id, []).append(node.value)
    texts = (ast.JoinedStr, ast.Constant, ast.IfExp)
    return {
        name: _text(found[0], {})
        for name, found in values.items()
        if len(found) == 1 and isinstance(found[0], texts) and _is_text(found[0])
    }


def _is_text(node: ast.expr) -> bool:
    if isinstance(node, ast.IfExp):
        return _is_text(node.body) and _is_text(node.orelse)
    is_literal = isinstance(node, ast.Constant) and isinstance(node.value, str)
    return is_literal or isinstance(node, ast.JoinedStr)


def _text(node: ast.expr, known: Mapping[str, str]) -> str:
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(part, known) for part in node.values)
    if isinstance(node, ast.FormattedValue):
        return _text(node.value, known)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _text(node.left, known) + _text(node.right, known)
    if isinstance(node, ast.IfExp) and _is_text(node):
        body, other = _text(node.body, known), _text(node.orelse, known)
        return f"{body} or {other}" if other.strip() and body.strip() else f"[{body or other}]"
    if isinstance(node, ast.Name) and node.id in known:
        return known[node.id]
    return "{" + _name(node) + "}"


def _name(node: ast.expr) -> str:
    """A word for a value: the name it has, or the function or the key it comes from."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return node.attr
    if isinstance(node, ast.Call) and _name(node.func) == "join" and node.args:
        return _name(node.args[0])
    if isinstance(node, ast.Call) and node.args and _name(node.func) in ("str", "list", "ascii"):
        return _name(node.args[0])
    if isinstance(node, ast.Call):
        return _name(node.func)
    if isinstance(node, ast.Subscript):
        return _name(node.value)
    if isinstance(node, (ast.ListComp, ast.GeneratorExp)):
        return _name(node.generators[0].iter)
    return "..."


if __name__ == "__main__":
    TABLE.write_text(page(), encoding="utf-8")
    print(f"{TABLE}: {len(messages())} messages")
