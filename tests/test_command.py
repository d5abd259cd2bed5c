"""Commands as users run them: real processes, exit codes, one readable line."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def run(*arguments, cwd=ROOT):
    environment = os.environ | {"COLUMNS": "200"}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def last_line(result):
    return result.stderr.strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train.py", "experiment=balancd"], "experiment=balancd: no such choice; choose one of: "),
        (["train.py", "data=quiz"], "data.root is not set: give data.root=VALUE"),
        (["train.py", "optimizer.lrr=1"], "optimizer.lrr: no such key; did you mean optimizer.lr?"),
        (["train.py", "data=quiz", "data.root=/nowhere"], "/nowhere"),
        (["train.py", "fold=9", "data=quiz", "data.root={quiz}"], "fold=9: choose one of 0 to 4"),
        (["predict.py", "input=x", "output_dir=y"], "model is not set: give model=VALUE"),
        (
            ["predict.py", "model=/nowhere", "input=x", "output_dir={tmp}/p"],
            "model=/nowhere: no such",
        ),
        (
            ["predict.py", "model=x", "input=x", "output_dir={tmp}/p", "preset=best"],
            "preset=best: choose",
        ),
        (["-m", "pancreas_mtl.phantom", "output_dir={tmp}/p", "num_train=-3"], "num_train=-3"),
    ],
)
def test_bad_usage_is_one_line_and_exit_code_2(arguments, message, tmp_path, tiny_quiz):
    before = sorted(tmp_path.rglob("*"))
    paths = {"tmp": str(tmp_path), "quiz": str(tiny_quiz)}
    result = run(*(a.format(**paths) for a in arguments), *_own_output(arguments, tmp_path))
    assert result.returncode == 2, result.stderr
    assert message.format(**paths) in last_line(result)
    assert "Traceback" not in result.stderr
    assert sorted(tmp_path.rglob("*")) == before


def _own_output(arguments, tmp_path):
    return (
        [f"output_dir={tmp_path}/run", f"paths.outputs={tmp_path}/o"]
        if arguments[0] == "train.py"
        else []
    )


@pytest.mark.parametrize("command", ["train.py", "predict.py"])
def test_help_shows_the_choices(command):
    result = run(command, "--help")
    assert result.returncode == 0
    for word in ("output_dir", "precision"):
        assert word in result.stdout
