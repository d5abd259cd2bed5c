"""Imports run one way, files stay small, and only the commands know Hydra."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "pancreas_mtl"
# What each part may import of the others; every part may import itself and the bottom.
BOTTOM = {"types", "errors", "interruption", "provenance", "ranks"}
CORE = {"data", "models", "losses", "metrics"}
ALLOWED = {
    **{part: set() for part in CORE | BOTTOM},
    "inference": CORE,
    "training": CORE | {"inference"},
    "evaluation": CORE | {"inference", "training"},
    "interop": CORE | {"inference", "training"},
    "benchmarks": CORE | {"inference", "training", "interop"},
    "build": CORE | {"inference", "training", "evaluation", "interop", "configuration"},
    "search": {"data"},
    "configuration": set(),
    "help": {"configuration"},
    "multirun": {"data"},
    "command": {"configuration", "help", "multirun"},
    "run_folder": {"data", "training", "command", "configuration"},
    "run_record": {"data", "training", "command", "configuration", "multirun"},
}
ANYTHING = CORE | {
    "inference",
    "training",
    "evaluation",
    "interop",
    "search",
    "benchmarks",
    "build",
    "command",
    "configuration",
    "run_folder",
    "run_record",
}
HYDRA = {"build", "multirun", "command", "configuration", "run_folder", "run_record"}
FILES = sorted(PACKAGE.rglob("*.py"))


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def is_command(path: Path) -> bool:
    return path.parent == PACKAGE and "@command(" in path.read_text()


def imported(path: Path) -> list[str]:
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_run_one_way(path):
    part = part_of(path)
    if part == "__init__":
        return
    allowed = (ANYTHING if is_command(path) else ALLOWED[part]) | BOTTOM | {part}
    for name in imported(path):
        if name.startswith("pancreas_mtl."):
            assert name.split(".")[1] in allowed, f"{path}: {name}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_only_commands_know_hydra(path):
    if is_command(path) or part_of(path) in HYDRA:
        return
    assert not any(name.split(".")[0] in ("hydra", "omegaconf") for name in imported(path))


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_budgets(path):
    text = path.read_text()
    assert text.count("\n") <= (60 if is_command(path) else 300), "file too long"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            documented = ast.get_docstring(node) is not None
            first = node.body[1] if documented and len(node.body) > 1 else node.body[0]
            assert node.end_lineno - first.lineno < 40, f"{node.name} is too long"


def test_every_file_is_reached():
    assert len(FILES) > 30
    assert {part_of(path) for path in FILES} >= CORE
