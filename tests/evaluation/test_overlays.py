from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from pancreas_mtl.evaluation.evaluate import evaluate
from pancreas_mtl.evaluation.overlays import draw_overlays
from pancreas_mtl.evaluation.references import read_references
from pancreas_mtl.evaluation.task import Task

REPOSITORY = Path(__file__).resolve().parents[2]
TASK = Task(**yaml.safe_load((REPOSITORY / "conf" / "task" / "pancreas.yaml").read_text()))


@pytest.fixture
def folders(tmp_path, write_nifti):
    """Images, references and predictions of three cases; the last one's image is gone."""
    rng = np.random.default_rng(0)
    mask = np.zeros((14, 12, 8), np.uint8)
    mask[3:10, 3:9, 2:6] = 1
    mask[5:8, 4:7, 3:5] = 2
    entries = []
    for name in ("a", "b", "gone"):
        image = tmp_path / "images" / f"{name}_0000.nii.gz"
        if name != "gone":
            write_nifti(image, rng.normal(0, 50, mask.shape).astype(np.int16))
        write_nifti(tmp_path / "references" / f"{name}.nii.gz", mask)
        write_nifti(tmp_path / "predictions" / f"{name}.nii.gz", np.roll(mask, 1, axis=0))
        entries.append({"name": name, "input": str(image)})
    (tmp_path / "predictions" / "run.json").write_text(
        json.dumps({"cases": entries, "failures": []})
    )
    (tmp_path / "overlays").mkdir()
    return tmp_path


def draw(folders):
    references = read_references(folders / "references")
    predictions = [folders / "predictions"]
    metrics = evaluate(predictions, references, task=TASK)
    draw_overlays(metrics, predictions, references, folders / "overlays", workers=1)
    return sorted(path.name for path in (folders / "overlays").iterdir())


def test_every_case_with_an_image_gets_a_picture(folders, caplog):
    assert draw(folders) == ["a.png", "b.png"]
    assert (folders / "overlays" / "a.png").read_bytes().startswith(b"\x89PNG")
    assert "gone: not drawn" in caplog.text


def test_without_a_record_there_is_nothing_to_draw(folders, caplog):
    (folders / "predictions" / "run.json").unlink()
    assert draw(folders) == []
    assert "overlays of 0 of 3 cases" in caplog.text


def test_an_image_on_another_grid_is_not_drawn(folders, caplog, write_nifti):
    write_nifti(folders / "images" / "a_0000.nii.gz", np.zeros((14, 12, 9), np.int16))
    assert draw(folders) == ["b.png"]
    assert "is not on the grid of its masks" in caplog.text
