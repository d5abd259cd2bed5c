"""The notebook runs from top to bottom and draws a case."""

import ast
import json
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from pancreas_mtl.data.images import read_image, read_mask

NOTEBOOK = Path(__file__).resolve().parent.parent / "docs" / "notebooks" / "one_case.ipynb"


def cells(kind):
    found = json.loads(NOTEBOOK.read_text())["cells"]
    return [cell for cell in found if cell["cell_type"] == kind]


def run(source, names):
    """Run a cell; the value of its last line, as a notebook shows it."""
    tree = ast.parse(source)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, str(NOTEBOOK), "exec"), names)
    if last is None:
        return None
    return eval(compile(ast.Expression(last.value), str(NOTEBOOK), "eval"), names)


@pytest.mark.slow
def test_it_runs_and_draws_a_case(bundle, tiny_quiz, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = {"BUNDLE": str(bundle), "CASES": str(tiny_quiz / "test"), "PRESET": "single"}
    parameters, *rest = cells("code")
    assert parameters["metadata"]["tags"] == ["parameters"]
    assert {node.targets[0].id for node in ast.parse("".join(parameters["source"])).body} == set(
        names
    )
    shown = [run("".join(cell["source"]), names) for cell in rest]
    (figure,) = [value for value in shown if isinstance(value, Figure)]
    figure.savefig(tmp_path / "case.png")
    pixels = imread(tmp_path / "case.png")[..., :3]  # 0 to 1
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 100
    assert pixels.std() > 0.05
    ct = read_image(names["path"])
    mask = read_mask(tmp_path / "mask.nii.gz", grid=ct.source)
    np.testing.assert_array_equal(mask.array, names["prediction"].labels)
    assert "subtype 2: 0." in capsys.readouterr().out


def test_it_is_stored_without_outputs():
    """So that no picture of a case gets into the repository by accident."""
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells("code"))
