from __future__ import annotations

import json

import numpy as np
import pytest
from commands import call


@pytest.fixture
def folders(tmp_path, write_nifti):
    """References, predictions that are moved by a voxel, and subtypes of four cases."""
    mask = np.zeros((14, 12, 8), np.uint8)
    mask[3:10, 3:9, 2:6] = 1
    mask[5:8, 4:7, 3:5] = 2
    names = [f"case{number}.nii.gz" for number in range(4)]
    for name in names:
        write_nifti(tmp_path / "references" / name, mask)
        write_nifti(tmp_path / "predictions" / name, np.roll(mask, 1, axis=0))
    rows = "".join(f"{name},{number % 3}\n" for number, name in enumerate(names))
    for path in ("references/subtypes.csv", "predictions/subtype_results.csv"):
        (tmp_path / path).write_text(f"Names,Subtype\n{rows}")
    return tmp_path


@pytest.fixture
def run(folders):
    """A function that runs the command on some of the folders."""

    def command(*overrides, given=("predictions", "references", "output_dir")):
        paths = [f"{key}={folders / key.removesuffix('_dir')}" for key in given]
        common = ["workers=1", "task.bootstrap_resamples=20"]
        return call("pancreas_mtl.evaluate", *common, *paths, *overrides)

    return command


def test_it_writes_the_files_and_prints_the_targets(run, folders):
    code, text, _ = run()
    assert code == 0
    assert "| subtype macro-F1 " in text
    assert str(folders / "output" / "metrics.json") in text
    metrics = json.loads((folders / "output" / "metrics.json").read_text())
    assert metrics["n_cases"] == 4
    assert f"{metrics['whole_pancreas']['dsc']['mean']:.3f}" in text
    files = sorted(path.name for path in (folders / "output").iterdir())
    assert files == ["metrics.csv", "metrics.json"]


def test_a_failed_case_gives_exit_code_1_and_the_others_are_done(run, folders):
    (folders / "predictions" / "case2.nii.gz").write_bytes(b"")
    code, text, error = run()
    assert code == 1
    assert "macro-F1" in text
    assert "1 of 4 cases failed (see " in error.splitlines()[-1]
    assert "case2.nii.gz is truncated" in error.splitlines()[-1]
    metrics = json.loads((folders / "output" / "metrics.json").read_text())
    assert metrics["cases"][1]["whole_pancreas_dsc"] > 0.5


def test_runs_are_compared(run, folders):
    assert run(f"output_dir={folders / 'first'}", given=("predictions", "references"))[0] == 0
    code, text, _ = run(f"compare={folders / 'first'}")
    assert code == 0
    assert "p (Holm)" in text
    written = json.loads((folders / "output" / "comparison.json").read_text())
    assert [one["paired"]["difference"] for one in written] == [0] * 5


def test_several_prediction_folders(run, folders):
    (folders / "more").mkdir()
    for name in ("case1.nii.gz", "case3.nii.gz"):
        (folders / "predictions" / name).rename(folders / "more" / name)
    (folders / "predictions" / "subtype_results.csv").unlink()
    both = f"predictions=[{folders / 'predictions'},{folders / 'more'}]"
    code, text, _ = run(both, given=("references", "output_dir"))
    assert code == 0
    assert "without prediction" not in text


@pytest.mark.parametrize(
    ("overrides", "given", "message"),
    [
        ((), ("predictions", "references"), "output_dir is not set: give output_dir=VALUE"),
        (("predictions=nowhere",), ("references", "output_dir"), "nowhere is no folder"),
        (("references=nowhere",), ("predictions", "output_dir"), "nowhere is no folder"),
        (("compare=nowhere",), None, "compare=nowhere: no metrics.json of this version"),
        (("missing=best",), None, "missing=best: choose worst or skip"),
        (("task.coverage=2",), None, "task.coverage=2: must be between 0 and 1"),
        (("task.nsd_tolerance_mm=1mm",), None, "nsd_tolerance_mm=1mm: has to be a number"),
        (("task.lesion_size_limits_ml=4.2",), None, "_limits_ml=4.2: has to be a list"),
        (("task.lesion_size_limits_ml=[a,b]",), None, "_limits_ml=a: has to be a number"),
        (("overlay=true",), None, "overlay: no such key; did you mean overlays?"),
    ],
)
def test_bad_usage_is_one_line_and_exit_code_2(
    run, folders, monkeypatch, overrides, given, message
):
    monkeypatch.chdir(folders)
    options = {} if given is None else {"given": given}
    code, _, error = run(*overrides, **options)
    assert code == 2
    assert message in error.splitlines()[-1]
    assert not (folders / "output" / "metrics.json").exists()
