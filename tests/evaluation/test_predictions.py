from __future__ import annotations

import json
from dataclasses import replace

import pytest

from pancreas_mtl.errors import UsageError
from pancreas_mtl.evaluation.predictions import Prediction, read_predictions

HEADER = "Names,p0,p1,p2"


def test_everything_a_folder_may_hold(tmp_path):
    (tmp_path / "lesion_candidates").mkdir()
    for path in (tmp_path / "a.nii.gz", tmp_path / "lesion_candidates" / "a.nii.gz"):
        path.touch()
    (tmp_path / "subtype_results.csv").write_text("Names,Subtype\na.nii.gz,0\n")
    (tmp_path / "subtype_probabilities.csv").write_text(
        f"{HEADER},conformal_set\na.nii.gz,0.2,0.5,0.3,0|2\nb.nii.gz,0.2,0.5,0.3,\n"
        "c.nii.gz,0.2,0.5,0.3,-\n"
    )
    record = {"cases": [{"name": "a", "input": "/data/a_0000.nii.gz"}], "failures": []}
    record |= {"conformal_coverage": 0.8}
    (tmp_path / "run.json").write_text(json.dumps(record))
    found = read_predictions([tmp_path])
    assert found["a"] == Prediction(
        name="a",
        mask=tmp_path / "a.nii.gz",
        subtype=0,  # as handed in, whatever is most probable
        probabilities=(0.2, 0.5, 0.3),
        conformal_set=(0, 2),
        coverage=0.8,
        candidates=tmp_path / "lesion_candidates" / "a.nii.gz",
        image=type(tmp_path)("/data/a_0000.nii.gz"),
    )
    b = Prediction(name="b", subtype=1, probabilities=(0.2, 0.5, 0.3), coverage=0.8)
    assert found["b"] == replace(b, conformal_set=())  # the most probable one, and an empty set
    assert found["c"] == replace(b, name="c")  # where no set could be made


@pytest.mark.parametrize(
    "row", ["case1.nii.gz,0.5,0.2,0.2", "case1,0.5,x,0.5", "case1,1.5,-0.5,0", "case1,nan,0.5,0.5"]
)
def test_malformed_probabilities_are_refused(tmp_path, row):
    (tmp_path / "subtype_probabilities.csv").write_text(f"{HEADER}\n{row}\n")
    with pytest.raises(UsageError, match=r"subtype_probabilities\.csv, line 2: case1.*sum to 1"):
        read_predictions([tmp_path])


@pytest.mark.parametrize("members", ["0|3", "0|1|1", "x"])
def test_malformed_conformal_sets_are_refused(tmp_path, members):
    text = f"{HEADER},conformal_set\ncase1,0.5,0.2,0.3,{members}\n"
    (tmp_path / "subtype_probabilities.csv").write_text(text)
    with pytest.raises(UsageError, match=r"line 2: case1.*conformal_set"):
        read_predictions([tmp_path])


def test_a_case_with_two_distributions_is_refused(tmp_path):
    row = "case1,0.5,0.2,0.3\n"
    (tmp_path / "subtype_probabilities.csv").write_text(f"{HEADER}\n{row}{row}")
    with pytest.raises(UsageError, match=r"line 3: case1"):
        read_predictions([tmp_path])


@pytest.mark.parametrize(
    "text",
    [
        *("", "[]", '{"cases": [{"name": "a"}]}', '{"cases": 3}'),
        '{"cases": [], "failures": [], "conformal_coverage": "most"}',
    ],
)
def test_a_damaged_record_is_refused(tmp_path, text):
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(UsageError, match=r"run\.json cannot be read .*: predict again, or remove"):
        read_predictions([tmp_path])


def test_folders_that_are_none_are_refused(tmp_path):
    with pytest.raises(UsageError, match="nowhere is no folder: give the folder of the masks"):
        read_predictions([tmp_path / "nowhere"])
    with pytest.raises(UsageError, match="predictions is empty"):
        read_predictions([])
