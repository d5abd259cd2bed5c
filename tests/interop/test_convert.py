import json
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from pancreas_mtl.data.cases import read_cases, read_official_folds
from pancreas_mtl.errors import CaseError, UsageError
from pancreas_mtl.inference.pipeline import predict_cases
from pancreas_mtl.inference.predictor import Predictor
from pancreas_mtl.inference.writer import close_output, open_output, run_facts
from pancreas_mtl.interop.convert import convert_dataset
from pancreas_mtl.interop.sources import find_sources

ROOT = Path(__file__).resolve().parents[2]
SHAPE = (5, 4, 3)
NAMES = {  # of the training and validation cases, by folder
    "train/subtype0": ["quiz_0_001", "quiz_0_002"],
    "train/subtype1": ["=odd, name"],
    "train/subtype2": ["quiz_2_004"],
    "validation/subtype1": ["quiz_1_005"],
}


@pytest.fixture
def quiz(tmp_path, write_nifti):
    """Five labelled cases and a test case; float masks with the artefact of real ones."""
    rng = np.random.default_rng(0)
    root = tmp_path / "quiz"
    labels = rng.integers(0, 3, SHAPE).astype(np.float32)
    labels[labels == 1] = 1.0000152587890625
    for folder, names in {**NAMES, "test": ["quiz_077"]}.items():
        for name in names:
            hu = rng.normal(0, 100, SHAPE).astype(np.float32)
            write_nifti(root / folder / f"{name}_0000.nii.gz", hu)
            if folder != "test":
                write_nifti(root / folder / f"{name}.nii.gz", np.roll(labels, len(name), 0))
    return root


def facts(layout, root):
    return {case.name: (case.split, case.subtype) for case in read_cases(layout, root)}


def by_name(layout, root):
    return {case.name: case for case in read_cases(layout, root)}


def to_nnunet(root, output_dir, **options):
    return convert_dataset(root, output_dir, source="quiz", target="nnunet", **options)


@pytest.fixture
def nnunet(quiz, tmp_path):
    """The quiz dataset in nnU-Net's layout."""
    to_nnunet(quiz, tmp_path / "Dataset172_Quiz")
    return tmp_path / "Dataset172_Quiz"


def test_nnunets_files_are_as_it_documents_them(quiz, nnunet):
    assert json.loads((nnunet / "dataset.json").read_text()) == {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "pancreas": 1, "lesion": 2},
        "numTraining": 5,
        "file_ending": ".nii.gz",
    }
    names = [name for folder in NAMES.values() for name in folder]
    listed = {path.name for path in (nnunet / "imagesTr").iterdir()}
    assert listed == {f"{name}_0000.nii.gz" for name in names}
    assert {path.name for path in (nnunet / "labelsTr").iterdir()} == {f"{n}.nii.gz" for n in names}
    assert [path.name for path in (nnunet / "imagesTs").iterdir()] == ["quiz_077_0000.nii.gz"]
    assert '"\'=odd, name.nii.gz",1\n' in (nnunet / "subtypes.csv").read_text()
    (fold,) = read_official_folds("nnunet", nnunet)
    assert fold == (sorted(set(names) - {"quiz_1_005"}), ["quiz_1_005"])
    expected = facts("quiz", quiz)
    assert facts("nnunet", nnunet) == {
        name: ("train" if split == "validation" else split, subtype)
        for name, (split, subtype) in expected.items()
    }


def test_masks_become_clean_labels_on_the_images_grid(quiz, nnunet):
    for name, case in by_name("quiz", quiz).items():
        if case.mask is None:
            continue
        image, mask = nib.load(case.image), nib.load(nnunet / "labelsTr" / f"{name}.nii.gz")
        assert mask.get_data_dtype() == np.uint8
        np.testing.assert_array_equal(
            np.asanyarray(mask.dataobj), nib.load(case.mask).get_fdata().round()
        )
        np.testing.assert_array_equal(mask.affine, image.affine)
        assert mask.header["sform_code"] == image.header["sform_code"]


def test_there_and_back_again_loses_nothing(quiz, nnunet, tmp_path):
    back = tmp_path / "back"
    conversion = convert_dataset(nnunet, back, source="nnunet", target="quiz")
    assert conversion.notes == []
    assert facts("quiz", back) == facts("quiz", quiz)
    before, after = by_name("quiz", quiz), by_name("quiz", back)
    for name, case in before.items():
        there = after[name].image
        assert there.relative_to(back) == case.image.relative_to(quiz)
        assert there.read_bytes() == case.image.read_bytes()
        if case.mask is not None:
            labels = nib.load(case.mask).get_fdata().round()
            np.testing.assert_array_equal(nib.load(after[name].mask).get_fdata(), labels)
    to_nnunet(back, tmp_path / "Dataset173_Again")
    for path in sorted(nnunet.rglob("*.*")):
        assert (tmp_path / "Dataset173_Again" / path.relative_to(nnunet)).read_bytes() == (
            path.read_bytes()
        )


def test_an_unpacked_image_is_packed(tmp_path, write_nifti):
    image = write_nifti(tmp_path / "quiz/train/subtype0/a_0000.nii", np.ones(SHAPE, np.int16))
    write_nifti(tmp_path / "quiz/train/subtype0/a.nii", np.ones(SHAPE, np.uint8))
    to_nnunet(tmp_path / "quiz", tmp_path / "Dataset001_A", link=True)
    there = nib.load(tmp_path / "Dataset001_A/imagesTr/a_0000.nii.gz")
    np.testing.assert_array_equal(
        np.asanyarray(there.dataobj), np.asanyarray(nib.load(image).dataobj)
    )
    assert (tmp_path / "Dataset001_A/imagesTr/a_0000.nii.gz").read_bytes()[:2] == b"\x1f\x8b"


def test_links_take_no_space(quiz, tmp_path):
    to_nnunet(quiz, tmp_path / "Dataset172_Quiz", link=True)
    image = quiz / "test" / "quiz_077_0000.nii.gz"
    assert image.samefile(tmp_path / "Dataset172_Quiz" / "imagesTs" / image.name)
    assert image.stat().st_nlink == 2


@pytest.fixture
def msd(tmp_path, write_nifti):
    root = tmp_path / "Task07_Pancreas"
    for folder in ("imagesTr", "labelsTr", "imagesTs"):
        name = "pancreas_002" if folder == "imagesTs" else "pancreas_001"
        write_nifti(root / folder / f"{name}.nii.gz", np.ones(SHAPE, np.uint8))
    labels = {"0": "background", "1": "pancreas", "2": "cancer"}
    pair = {"image": "./imagesTr/pancreas_001.nii.gz", "label": "./labelsTr/pancreas_001.nii.gz"}
    content = {"modality": {"0": "CT"}, "labels": labels, "training": [pair]}
    content["test"] = ["./imagesTs/pancreas_002.nii.gz"]
    (root / "dataset.json").write_text(json.dumps(content))
    return root


def test_the_decathlon_becomes_nnunet_with_unknown_subtypes(msd, tmp_path):
    output_dir = tmp_path / "Dataset007_Pancreas"
    convert_dataset(msd, output_dir, source="msd", target="nnunet")
    expected = {"pancreas_001": ("train", None), "pancreas_002": ("test", None)}
    assert facts("nnunet", output_dir) == expected
    assert (output_dir / "subtypes.csv").read_text() == "Names,Subtype\npancreas_001.nii.gz,\n"
    assert not (output_dir / "splits_final.json").exists()


def test_the_quiz_layout_needs_subtypes(msd, tmp_path):
    with pytest.raises(UsageError, match="Task07_Pancreas has no subtypes, and layout quiz sorts"):
        convert_dataset(msd, tmp_path / "quiz", source="msd", target="quiz")
    assert not (tmp_path / "quiz").exists()


def test_a_case_without_subtype_is_left_out_and_named(nnunet, tmp_path):
    table = nnunet / "subtypes.csv"
    table.write_text(table.read_text().replace("quiz_2_004.nii.gz,2", "quiz_2_004.nii.gz,"))
    conversion = convert_dataset(nnunet, tmp_path / "back", source="nnunet", target="quiz")
    assert list(conversion.left_out) == ["quiz_2_004"]
    assert "has no subtype, and layout quiz sorts by it" in conversion.left_out["quiz_2_004"]
    assert len(read_cases("quiz", tmp_path / "back")) == 5


def test_a_bad_mask_leaves_its_case_out_and_the_tables_agree(quiz, tmp_path, write_nifti):
    write_nifti(quiz / "train/subtype0/quiz_0_001.nii.gz", np.full(SHAPE, 7, np.uint8))
    conversion = to_nnunet(quiz, tmp_path / "Dataset172_Quiz")
    assert "holds the value 7" in conversion.left_out["quiz_0_001"]
    assert "quiz_0_001" not in facts("nnunet", tmp_path / "Dataset172_Quiz")
    assert "quiz_0_001" not in (tmp_path / "Dataset172_Quiz" / "splits_final.json").read_text()


def test_no_readable_case_leaves_nothing_behind(tmp_path):
    folder = tmp_path / "quiz" / "train" / "subtype0"
    folder.mkdir(parents=True)
    (folder / "a_0000.nii.gz").write_bytes(b"junk")
    with pytest.raises(CaseError, match=r"no case could be written: .*a_0000"):
        to_nnunet(tmp_path / "quiz", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["quiz"]


def test_what_gets_lost_is_said(quiz, nnunet, tmp_path):
    (quiz / "train/subtype2/quiz_2_004.nii.gz").unlink()
    notes = to_nnunet(quiz, tmp_path / "elsewhere").notes
    assert notes == [
        "1 cases have no mask, such as quiz_2_004: nnU-Net refuses them",
        "nnU-Net itself wants a folder DatasetXXX_Name, not elsewhere",
    ]
    fold = json.loads((nnunet / "splits_final.json").read_text())
    (nnunet / "splits_final.json").write_text(json.dumps(fold * 5))
    with (nnunet / "subtypes.csv").open("a") as file:
        file.write("quiz_077.nii.gz,1\n")
    conversion = convert_dataset(nnunet, tmp_path / "back", source="nnunet", target="quiz")
    assert conversion.notes == [
        f"{nnunet}/splits_final.json has 5 folds, which layout quiz cannot hold: all train",
        "1 test cases lose their subtype, which layout quiz cannot hold",
    ]
    assert not (tmp_path / "back" / "validation").exists()


def test_cases_that_the_fold_leaves_out_are_said_to_train(nnunet, tmp_path):
    path = nnunet / "splits_final.json"
    ((train, validation),) = read_official_folds("nnunet", nnunet)
    path.write_text(json.dumps([{"train": train[2:], "val": validation}]))
    conversion = convert_dataset(nnunet, tmp_path / "back", source="nnunet", target="quiz")
    assert conversion.notes == [
        f"{path} leaves out 2 labelled cases, such as {train[0]}, which layout quiz cannot: "
        "they train"
    ]
    assert facts("quiz", tmp_path / "back")[train[0]][0] == "train"


def test_predictions_are_what_nnunet_evaluates(bundle, nnunet, tmp_path):
    """It takes the `.nii.gz` files of both folders, asks for equal names, compares arrays."""
    predictor = Predictor.from_bundle(bundle, device="cpu", precision="fp32")
    sources = find_sources(nnunet / "imagesTr", None, "nifti", [])
    open_output(tmp_path / "predictions", "x", overwrite=False)
    records = predict_cases(predictor, sources, tmp_path / "predictions")
    close_output(tmp_path / "predictions", records, run_facts(predictor, {}))
    found = {path.name: path for path in (tmp_path / "predictions").glob("*.nii.gz")}
    labels = {path.name: path for path in (nnunet / "labelsTr").glob("*.nii.gz")}
    assert found.keys() == labels.keys()
    for name, path in found.items():
        prediction, reference = nib.load(path), nib.load(labels[name])
        assert prediction.shape == reference.shape
        assert prediction.get_data_dtype() == np.uint8
        assert set(np.unique(prediction.dataobj)) <= {0, 1, 2}
        np.testing.assert_array_equal(prediction.affine, reference.affine)


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        ("dicom", "quiz", "from=dicom: choose one of quiz, nnunet, msd"),
        ("quiz", "msd", "to=msd: choose one of quiz, nnunet"),
        ("quiz", "quiz", "from=quiz to=quiz: nothing to convert"),
        (
            "msd",
            "nnunet",
            "quiz does not fit the layout msd: .*; the layout quiz would fit /.*quiz$",
        ),
    ],
)
def test_choices_that_make_no_sense_are_refused(source, target, message, quiz, tmp_path):
    with pytest.raises(UsageError, match=message):
        convert_dataset(quiz, tmp_path / "out", source=source, target=target)


def test_an_output_folder_that_is_taken_is_refused(quiz, nnunet, tmp_path):
    with pytest.raises(UsageError, match=r"Dataset172_Quiz is not empty: .* overwrite=true"):
        to_nnunet(quiz, nnunet)
    with pytest.raises(UsageError, match="lie in each other"):
        to_nnunet(quiz, quiz / "out")
    other = tmp_path / "project"
    (other / "train").mkdir(parents=True)
    with pytest.raises(UsageError, match="project holds no dataset that overwrite=true could repl"):
        to_nnunet(quiz, other, overwrite=True)
    assert (other / "train").is_dir()
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="file is a file"):
        to_nnunet(quiz, tmp_path / "file")


def test_overwriting_replaces_the_dataset_and_nothing_else(quiz, nnunet):
    (nnunet / "notes.txt").write_text("mine")
    (nnunet / "labelsTr" / "old.nii.gz").write_text("old")
    to_nnunet(quiz, nnunet, overwrite=True)
    assert (nnunet / "notes.txt").read_text() == "mine"
    assert not (nnunet / "labelsTr" / "old.nii.gz").exists()
    assert len(read_cases("nnunet", nnunet)) == 6


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "pancreas_mtl.convert", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_the_command(quiz, tmp_path):
    target = tmp_path / "Dataset172_Quiz"
    options = [f"root={quiz}", f"output_dir={target}", f"hydra.run.dir={tmp_path}/log"]
    result = run("from=quiz", "to=nnunet", *options)
    assert (result.returncode, result.stderr) == (0, ""), result.stderr
    assert f"{target}: 6 cases in layout nnunet" in result.stdout
    again = run("from=quiz", "to=nnunet", *options)
    assert again.returncode == 2
    assert again.stderr.startswith(f"convert: output_dir={target} is not empty")
