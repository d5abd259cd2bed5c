"""Extras are optional: without them the suite is collected, and what needs one names it."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from commands import call
from extras import PACKAGES

ROOT = Path(__file__).resolve().parent.parent
SECTION = (ROOT / "pyproject.toml").read_text().split("[project.optional-dependencies]")[1]
EXTRAS = re.findall(r"^([a-z-]+) = \[", SECTION.split("\n[")[0], re.MULTILINE)


def test_every_extra_is_known_to_the_tests():
    assert set(PACKAGES) == set(EXTRAS) - {"dev"}


def test_a_skip_for_a_missing_package_names_its_extra():
    for path in (ROOT / "tests").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.importorskip":
                text = ast.unparse(node)
                named = re.search(r"reason=f?'needs the extra ([\w{}-]+)'", text)
                assert named, f"{path}: {text}"
                assert named[1] in (*EXTRAS, "{extra}"), f"{path}: {text}"


@pytest.mark.slow
def test_the_suite_is_collected_without_any_extra():
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "extras", "-p", "no:xdist", "--collect-only"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": f"{ROOT / 'tests'}{os.pathsep}{ROOT}"},
    )
    assert done.returncode == 0, done.stdout[-3000:]


def test_a_sweep_without_optuna_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    for name in [name for name in sys.modules if name.startswith("pancreas_mtl.search.")]:
        monkeypatch.delitem(sys.modules, name)
    assert call("pancreas_mtl.sweep", "--help").code == 0
    result = call("pancreas_mtl.sweep", f"output_dir={tmp_path}")
    assert result.code == 2
    assert "pip install 'pancreas-mtl[sweep]'" in result.last_line
    assert not list(tmp_path.iterdir())


def test_tensorboard_that_is_missing_is_said_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    result = call("train", "logger=tensorboard", f"output_dir={tmp_path / 'run'}")
    assert result.code == 2
    assert "pip install 'pancreas-mtl[tensorboard]'" in result.last_line
    assert not list(tmp_path.iterdir())
