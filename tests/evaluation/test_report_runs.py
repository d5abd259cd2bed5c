"""What is read of a run's folder, and that a report shows what is there and names what is not."""

import json
import re
import shutil

import pytest
from evaluation import report_runs as make

from pancreas_mtl.errors import UsageError
from pancreas_mtl.evaluation.report import write_report
from pancreas_mtl.evaluation.report.about import describe
from pancreas_mtl.evaluation.report.runs import read_run, read_runs

NAMES = ["quiz_0_001", "quiz_1_002"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """An evaluation of two cases; tests copy it before they break it."""
    root = tmp_path_factory.mktemp("data")
    make.make_evaluation(root, names=NAMES)
    return root


@pytest.fixture
def evaluation(data, tmp_path):
    """The evaluation in a folder of its own, whose files name each other there."""
    copy = tmp_path / "data"
    shutil.copytree(data, copy)
    for path in copy.rglob("*.json"):
        path.write_text(path.read_text().replace(str(data), str(copy)))
    return copy / "evaluation"


def test_an_evaluation_finds_every_file_of_its_cases(evaluation):
    run = read_run(evaluation, "evaluation", 2)
    assert [case.name for case in run.cases] == NAMES
    assert [case.link for case in run.cases] == ["case-2-0", "case-2-1"]
    files = run.cases[0].files
    paths = (files.image, files.reference, files.prediction, files.attention)
    assert all(path is not None and path.is_file() for path in paths)
    assert files.reference.parent.name == "references"
    assert set(run.cases[0].seconds) == {"read", "network", "write"}
    assert len(run.cases[0].probabilities) == 3
    assert not run.curves  # its metrics.csv has a row a case, and no epochs


def test_values_are_found_by_their_path(evaluation):
    run = read_run(evaluation, "evaluation")
    metrics = json.loads((evaluation / "metrics.json").read_text())
    assert run.value("lesion.dsc.ci95.1") == metrics["lesion"]["dsc"]["ci95"][1]
    assert run.value("cases.1.name") == NAMES[1]
    assert run.value("lesion.nothing") is None
    assert run.value("cases.7.name") is None


def test_curves_leave_out_empty_cells_and_words(tmp_path):
    (tmp_path / "metrics.csv").write_text(
        "epoch,train/loss,val/score,note\n0,1.5,,good\n1,nan,0.5,\n2,0.25,0.75,\n"
    )
    assert read_run(tmp_path, "run").curves == {
        "train/loss": [(0, 1.5), (2, 0.25)],
        "val/score": [(1, 0.5), (2, 0.75)],
    }


def test_a_training_that_has_not_ended_shows_its_curves(tmp_path):
    (tmp_path / "metrics.csv").write_text("epoch,val/score\n0,0.5\n")
    (tmp_path / "run.json").write_text('{"status": "running"}')
    run = read_run(tmp_path, "run")
    assert run.curves == {"val/score": [(0, 0.5)]}
    assert run.cases == ()


def test_a_training_takes_the_predictions_of_its_validation(evaluation, tmp_path):
    training = make.write_curves(tmp_path / "training")
    shutil.copytree(evaluation.parent / "evaluation_predictions", training / "validation")
    run = read_run(training, "training")
    assert [case.name for case in run.cases] == NAMES
    assert describe(run).startswith("2 validation cases, predicted, without references.")
    assert describe(run).endswith("Trained for 12 epochs.")


def move_images_into_train(evaluation):
    """As in cross-validation, whose cases all are training cases of the dataset."""
    root = evaluation.parent
    (root / "test").rename(root / "train")
    record = root / "evaluation_predictions" / "run.json"
    record.write_text(record.read_text().replace(f"{root}/test/", f"{root}/train/"))


def point_to(evaluation, predictions):
    """Let the evaluation be one of predictions in another folder."""
    path = evaluation / "metrics.json"
    metrics = json.loads(path.read_text())
    shutil.copytree(metrics["predictions"], predictions)
    path.write_text(json.dumps(metrics | {"predictions": str(predictions)}))


@pytest.mark.parametrize("folder", ["validation", "oof"])
def test_the_cases_that_a_training_held_out_are_its_validation_cases(evaluation, folder):
    move_images_into_train(evaluation)
    assert describe(read_run(evaluation, "evaluation")).startswith("2 training cases, scored")
    training = evaluation.parent / "run"
    point_to(evaluation, training / folder)
    (training / "bundle").mkdir()
    (training / "bundle" / "config.yaml").write_text("fold: 3\nseed: 0\n")
    text = describe(read_run(evaluation, "evaluation"))
    assert text.startswith("2 validation cases (fold=3), scored against references. These cases")
    assert "also chose the checkpoint:" in text


@pytest.mark.parametrize("folder", ["calibrated", "oof"])
def test_cross_validated_cases_are_out_of_fold_and_name_their_runs(evaluation, folder):
    move_images_into_train(evaluation)
    joined = evaluation.parent / "cv"
    point_to(evaluation, joined / folder)
    (joined / "oof").mkdir(exist_ok=True)
    rows = [f"{name}.nii.gz,fold{fold}-seed0" for fold, name in enumerate(NAMES)]
    (joined / "oof" / "folds.csv").write_text("\n".join(["Names,Run", *rows]))
    text = describe(read_run(evaluation, "evaluation"))
    assert text.startswith("2 out-of-fold cases (fold0-seed0, fold1-seed0), scored")
    assert "also chose the checkpoints:" in text
    point_to(evaluation, joined / "test")  # what else lies there is no part of it
    assert describe(read_run(evaluation, "evaluation")).startswith("2 training cases, scored")


def evaluate_without(root, name):
    """An evaluation of NAMES where one of them was not predicted; its page."""
    cases = make.write_data(root, NAMES)
    predicted = {other: files for other, files in cases.items() if other != name}
    folder = make.write_predictions(root / "predictions", predicted)
    (root / "evaluation").mkdir()
    metrics = make.evaluate(folder, make.read_references(root / "references"), task=make.TASK)
    make.write_results(metrics, root / "evaluation")
    return root / "evaluation"


def row_of(page, name):
    return re.search(rf'<tr id="case-[^>]*data-name="{name}".*?</tr>', page, re.DOTALL)[0]


def test_a_case_without_prediction_is_shown_with_its_reference(tmp_path):
    page = write_report([evaluate_without(tmp_path, NAMES[1])], tmp_path / "report").read_text()
    row = row_of(page, NAMES[1])
    link = re.search('id="(case-[^"]*)"', row)[1]
    assert "no prediction" in row
    assert "data:image/jpeg" in row
    assert page.count(f'id="picture-{link}"') == 1
    assert f'id="prediction-{link}"' not in page
    assert page.count('id="reference-') == 2
    assert f"CT of {NAMES[1]} in axial" in page
    assert "lesion as the reference has them" in page
    assert "no prediction" not in row_of(page, NAMES[0])


def test_a_row_without_picture_says_why(tmp_path):
    evaluation = evaluate_without(tmp_path, NAMES[1])
    images = sorted((tmp_path / "test").iterdir())
    images[0].write_bytes(images[0].read_bytes()[:200])
    images[1].unlink()
    page = write_report([evaluation], tmp_path / "report").read_text()
    assert "not drawn, see notes" in row_of(page, NAMES[0])
    assert "CT not found" in row_of(page, NAMES[1])
    assert 'src="data:image/jpeg' not in page


def test_phantoms_are_called_so(evaluation):
    plan = {"difficulty": "easy", "size": "small"}
    assert "Phantom" not in describe(read_run(evaluation, "evaluation"))
    (evaluation.parent / "phantom.json").write_text(json.dumps(plan))
    text = describe(read_run(evaluation, "evaluation"))
    assert text.startswith("2 test cases, scored against references. Phantom data (easy, small)")


@pytest.mark.parametrize(
    ("gone", "note"),
    [
        ("evaluation/metrics.json", None),
        ("evaluation_predictions", "no predictions with a run.json"),
        ("references", None),
        (f"evaluation_predictions/{NAMES[0]}.nii.gz", None),
    ],
)
def test_a_report_is_made_of_what_is_left(evaluation, tmp_path, gone, note):
    path = evaluation.parent / gone
    if gone == "evaluation/metrics.json":
        runs, note = [evaluation.parent / "evaluation_predictions"], "no metrics.json"
    else:
        runs = [evaluation]
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    text = write_report(runs, tmp_path / "report").read_text()
    assert all(name in text for name in NAMES)
    if note:
        assert note in text


def test_a_case_that_cannot_be_drawn_is_named(evaluation, tmp_path):
    image = evaluation.parent / "test" / f"{NAMES[0]}_0000.nii.gz"
    image.write_bytes(image.read_bytes()[:200])
    text = write_report([evaluation], tmp_path / "report").read_text()
    assert f"No pictures of {NAMES[0]}: " in text
    assert 'id="ct-0"' in text  # of the other case
    assert 'id="ct-1"' not in text


def test_images_that_are_elsewhere_are_said_to_be(evaluation):
    image = evaluation.parent / "test" / f"{NAMES[1]}_0000.nii.gz"
    image.unlink()
    (note,) = (n for n in read_run(evaluation, "evaluation").notes if "no pictures of" in n)
    assert note.startswith("evaluation: no pictures of 1 cases, whose CTs are not where run.json")
    assert str(image) in note


def test_failures_and_missing_cases_are_listed(evaluation):
    path = evaluation / "metrics.json"
    metrics = json.loads(path.read_text())
    metrics["failures"] = [{"name": "quiz_9", "error": "is broken"}]
    metrics["missing"], metrics["unreferenced"] = ["quiz_7"], ["quiz_8"]
    path.write_text(json.dumps(metrics))
    notes = read_run(evaluation, "evaluation").notes
    assert "evaluation, quiz_9: is broken" in notes
    assert "evaluation: no prediction, which counts as the worst, of quiz_7." in notes
    assert "evaluation: predicted, but without reference: quiz_8." in notes


def test_runs_that_share_a_name_are_told_apart(evaluation, tmp_path):
    shutil.copytree(evaluation, tmp_path / "other" / "evaluation")
    names = [run.name for run in read_runs([evaluation, tmp_path / "other" / "evaluation"])]
    assert names == ["data/evaluation", "other/evaluation"]


def test_bad_folders_and_files_are_refused(evaluation, tmp_path):
    with pytest.raises(UsageError, match="runs is empty"):
        read_runs([])
    with pytest.raises(UsageError, match="twice: give each folder once"):
        read_runs([evaluation, evaluation])
    with pytest.raises(UsageError, match="nowhere is no folder"):
        read_runs([tmp_path / "nowhere"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=r"empty: no metrics\.json, metrics\.csv or run\.json"):
        read_runs([tmp_path / "empty"])
    (evaluation / "metrics.json").write_text("{")
    with pytest.raises(UsageError, match=r"metrics\.json cannot be read .*: make it again"):
        read_runs([evaluation])


def test_nothing_is_written_when_a_folder_is_refused(tmp_path):
    with pytest.raises(UsageError, match="is no folder"):
        write_report([tmp_path / "nowhere"], tmp_path / "report")
    assert not (tmp_path / "report").exists()
