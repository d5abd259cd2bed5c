"""Names that would leave the folder, run in a browser, a spreadsheet or a terminal."""

import csv
import html.parser
import json
import shutil

import nibabel as nib
import numpy as np
import pytest
from commands import call
from hypothesis import given
from hypothesis import strategies as st
from trust.faults import AFFINE, content, ct, predict, save_ct

from pancreas_mtl.data.cases import read_cases, read_subtypes
from pancreas_mtl.data.images import find_images
from pancreas_mtl.data.names import from_cell, name_problem, to_cell
from pancreas_mtl.errors import UsageError
from pancreas_mtl.evaluation.predictions import read_predictions

SCRIPT = "<script>alert(1)<script>"
NAMES = (SCRIPT, '"><img src=x onerror=alert(1)>', '=HYPERLINK("x")', "-1", "a'b", "{{7*7}}")


@given(st.text(st.characters(exclude_categories=["C", "Z"], exclude_characters="/"), min_size=1))
def test_every_name_survives_a_table(name):
    cell = to_cell(name)
    assert cell[0] not in "=+-@"
    if not name_problem(name):
        assert from_cell(cell) == name


@pytest.mark.parametrize(
    "name", ["", " ", ".", "..", "a/b", "../a", "/a", "a\nb", "a\x1bb", "a\0b"]
)
def test_names_that_nothing_can_carry(name):
    assert name_problem(name)
    if name.strip():
        with pytest.raises(ValueError, match=r"is no name|cannot be printed|leads to another"):
            from_cell(name)


@pytest.mark.parametrize(
    ("name", "problem"), [(" a", "a blank"), ("a ", "a blank"), ("a_0000", "marks an image")]
)
def test_names_that_a_table_would_give_back_changed(name, problem):
    assert problem in name_problem(name)


@pytest.mark.parametrize("cell", ["a", "a.nii", "a.nii.gz", "a_0000.nii.gz", " a.nii.gz "])
def test_a_cell_names_a_case_or_its_file(cell):
    assert from_cell(cell) == "a"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("../../etc/passwd,1", "leads to another folder"),
        ("/tmp/x.nii.gz,1", "leads to another folder"),
        ("sub/x.nii.gz,1", "leads to another folder"),
        (",1", "is no name"),
        ("..,1", "is no name"),
        ('"a\nb",1', "cannot be printed"),
        ("a.nii.gz,1\na.nii,2", "a with subtype 2 a second time"),
        ("a,7", "a with subtype 7"),
        ("a,1,2", "a with subtype 1"),
        ("a", ""),
    ],
)
def test_a_table_with_such_names_is_refused_by_line(tmp_path, row, message):
    path = tmp_path / "subtypes.csv"
    path.write_text(f"Names,Subtype\n{row}\n")
    if message:
        with pytest.raises(UsageError) as caught:
            read_subtypes(path)
        assert message in str(caught.value)
        assert f"{path}, line " in str(caught.value)
    else:
        assert read_subtypes(path) == {"a": None}


@pytest.mark.parametrize("data", [b"\xff\xfe\x00", b"Names,Subtype\n\xff,1\n", b"\x00" * 50])
def test_bytes_that_are_no_table_are_one_line(tmp_path, data):
    (tmp_path / "subtypes.csv").write_bytes(data)
    with pytest.raises(UsageError, match=r"subtypes\.csv"):
        read_subtypes(tmp_path / "subtypes.csv")
    (tmp_path / "subtype_probabilities.csv").write_bytes(data)
    with pytest.raises(UsageError, match=r"subtype"):
        read_predictions([tmp_path])


@pytest.mark.parametrize("where", ["../secret.nii.gz", "/etc/passwd", "imagesTr/../../x.nii.gz"])
def test_a_dataset_cannot_name_files_outside_itself(tmp_path, where):
    save_ct(tmp_path / "data" / "imagesTr" / "a.nii.gz")
    facts = {
        "modality": {"0": "CT"},
        "labels": {"0": "background", "1": "pancreas", "2": "cancer"},
        "training": [{"image": where, "label": "labelsTr/a.nii.gz"}],
    }
    (tmp_path / "data" / "dataset.json").write_text(json.dumps(facts))
    with pytest.raises(UsageError, match=r"dataset\.json names .*: only paths inside it are read"):
        read_cases("msd", tmp_path / "data")


def test_duplicates_that_differ_in_their_extension_are_refused(tmp_path):
    for names in (("a.nii", "a.nii.gz"), ("b.NII.GZ", "b.nii.gz"), ("c.mha", "c.nii")):
        folder = tmp_path / names[0]
        folder.mkdir()
        for name in names:
            save_ct(folder / name) if name.endswith(".nii") else (folder / name).write_bytes(b"")
    for folder in sorted(tmp_path.iterdir()):
        with pytest.raises(UsageError, match=r"holds . twice \(.* and .*\): remove or rename"):
            find_images(folder)


# From names to pages and tables, by the commands


@pytest.fixture(scope="module")
def reported(model, tmp_path_factory):
    """Predictions, evaluation and report of cases with such names."""
    root = tmp_path_factory.mktemp("names")
    for seed, name in enumerate(NAMES):
        save_ct(root / "in" / f"{name}_0000.nii.gz", ct((12, 12, 8), seed=seed))
        labels = np.zeros((12, 12, 8), np.uint8)
        labels[3:9, 3:9, 2:6], labels[5:7, 5:7, 3:5] = 1, 2
        save_ct(root / "references" / f"{name}.nii.gz", labels)
    rows = [[to_cell(f"{name}.nii.gz"), seed % 3] for seed, name in enumerate(NAMES)]
    with (root / "references" / "subtypes.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["Names", "Subtype"], *rows])
    predicted = predict(model, root / "in", root / "predictions")
    evaluated = call(
        "pancreas_mtl.evaluate",
        f"predictions={root / 'predictions'}",
        f"references={root / 'references'}",
        f"output_dir={root / 'evaluation'}",
        "overlays=true",
        "workers=1",
    )
    report = call(
        "pancreas_mtl.report",
        f"runs=[{root / 'evaluation'}]",
        f"output_dir={root / 'report'}",
        "workers=1",
    )
    return root, (predicted.finished, evaluated, report)


@pytest.mark.slow
def test_every_command_takes_every_name(reported):
    root, finished = reported
    assert [one.code for one in finished] == [0, 0, 0], [one.stderr for one in finished]
    assert read_subtypes(root / "predictions" / "subtype_results.csv").keys() == set(NAMES)
    metrics = json.loads((root / "evaluation" / "metrics.json").read_text())
    assert {case["name"] for case in metrics["cases"]} == set(NAMES)
    assert metrics["failures"] == []
    assert {path.stem for path in (root / "evaluation" / "overlays").iterdir()} == set(NAMES)


@pytest.mark.slow
def test_nothing_leaves_the_output_folder(reported):
    root, _ = reported
    folders = {"in", "references", "predictions", "evaluation", "report"}
    assert {path.name for path in root.iterdir()} == folders
    names = {path.name for path in (root / "predictions").iterdir()}
    tables = {"run.json", "subtype_results.csv", "subtype_probabilities.csv"}
    assert names == {f"{name}.nii.gz" for name in NAMES} | tables


@pytest.mark.slow
def test_no_cell_of_a_table_is_a_formula(reported):
    root, _ = reported
    tables = [*root.rglob("*.csv")]
    assert len(tables) >= 4
    for path in tables:
        with path.open(newline="", encoding="utf-8") as file:
            cells = [row[0] for row in csv.reader(file)]
        assert len(cells) == 1 + len(NAMES)
        assert not [cell for cell in cells if cell[0] in "=+-@"], path


class Elements(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.scripts, self.handlers, self.text = [], [], []

    def handle_starttag(self, tag, attrs):
        self.handlers += [name for name, _ in attrs if name.startswith("on")]
        if tag == "script":
            self.scripts.append(dict(attrs))

    def handle_data(self, data):
        self.text.append(data)


@pytest.mark.slow
def test_a_script_tag_in_a_name_is_text_in_the_report(reported):
    root, _ = reported
    page = (root / "report" / "report.html").read_text(encoding="utf-8")
    found = Elements()
    found.feed(page)
    assert "onerror" not in found.handlers
    assert SCRIPT in " ".join(found.text)
    assert SCRIPT not in page
    assert "<img src=x" not in page
    assert "{{7*7}}" in page


@pytest.mark.slow
def test_a_hostile_metrics_json_is_text_in_the_report(reported, tmp_path):
    root, _ = reported
    folder = shutil.copytree(root / "evaluation", tmp_path / "evaluation")
    text = (folder / "metrics.json").read_text()
    hostile = "</script><script>alert(2)</script>"
    (folder / "metrics.json").write_text(text.replace(json.dumps(SCRIPT)[1:-1], hostile))
    finished = call(
        "pancreas_mtl.report", f"runs=[{folder}]", f"output_dir={tmp_path / 'r'}", "workers=1"
    )
    assert finished.code == 0, finished.stderr
    page = (tmp_path / "r" / "report.html").read_text(encoding="utf-8")
    assert "alert(2)" in page
    assert "<script>alert(2)" not in page


# Answers never take the place of anything that no prediction wrote


@pytest.mark.parametrize("how", ["overwrite=false", "overwrite=true", "shard.count=2"])
def test_a_prediction_never_overwrites_an_image_or_a_reference(model, tmp_path, how):
    save_ct(tmp_path / "a.nii.gz")
    save_ct(tmp_path / "b_0000.nii.gz")
    save_ct(tmp_path / "b.nii.gz", np.ones((10, 9, 6), np.uint8))
    before = content(tmp_path)
    predicted = predict(model, tmp_path, tmp_path, how)
    assert predicted.finished.code == 2
    assert "holds a.nii.gz, which no prediction wrote; give another" in predicted.finished.last_line
    assert content(tmp_path) == before


def test_overwriting_takes_away_answers_that_are_not_given_again(model, tmp_path):
    for name in ("a", "b"):
        save_ct(tmp_path / "in" / f"{name}.nii.gz")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    predict(model, tmp_path / "in", tmp_path / "out")
    (tmp_path / "in" / "b.nii.gz").write_bytes(b"damaged")
    predicted = predict(model, tmp_path / "in", tmp_path / "out", "overwrite=true")
    assert predicted.finished.code == 1
    assert not (tmp_path / "out" / "b.nii.gz").exists()
    assert (tmp_path / "out" / "a.nii.gz").exists()
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"
    assert "b" not in (tmp_path / "out" / "subtype_results.csv").read_text().split("Names")[1][9:]


def test_a_finished_prediction_stays_without_overwrite(model, tmp_path):
    save_ct(tmp_path / "in" / "a.nii.gz")
    predict(model, tmp_path / "in", tmp_path / "out")
    before = content(tmp_path)
    again = predict(model, tmp_path / "in", tmp_path / "out").finished
    assert again.code == 2
    assert "holds a finished prediction; give another output_dir, or overwrite" in again.last_line
    assert content(tmp_path) == before


def test_an_evaluation_never_goes_into_a_training_run(tmp_path):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "metrics.csv").write_text("epoch\n0\n")
    nib.save(nib.Nifti1Image(np.ones((4, 4, 4), np.uint8), AFFINE), tmp_path / "a.nii.gz")
    finished = call(
        "pancreas_mtl.evaluate",
        f"predictions={tmp_path}",
        f"references={tmp_path}",
        f"output_dir={tmp_path / 'run'}",
    )
    assert finished.code == 2
    assert "holds a training run: give another output_dir" in finished.last_line
    assert (tmp_path / "run" / "metrics.csv").read_text() == "epoch\n0\n"
