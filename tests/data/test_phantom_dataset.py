import json
import shutil

import nibabel as nib
import numpy as np
import pytest

from pancreas_mtl.data.cases import read_cases, read_official_folds
from pancreas_mtl.data.images import read_image, read_mask
from pancreas_mtl.data.phantom import PhantomCase, files, make_phantom, write_dataset
from pancreas_mtl.data.phantom.files import ARTEFACT
from pancreas_mtl.errors import CaseError, UsageError


@pytest.fixture
def instant(monkeypatch):
    """Cases that take no time to draw, for what does not depend on their content."""

    def make(seed, index, *, difficulty, size):
        rng = np.random.default_rng([seed, index])
        labels = rng.integers(0, 3, (6, 8, 10), dtype=np.uint8)
        image = rng.integers(-100, 200, labels.shape, dtype=np.int16)
        return PhantomCase(image, labels, (2.0, 0.7, 0.9), files.subtype_of(seed, index))

    monkeypatch.setattr(files, "make_phantom", make)


def contents(root):
    return {path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_files_hold_the_case(tmp_path):
    write_dataset(tmp_path, num_train=1, seed=4, size="small")
    (case,) = read_cases("quiz", tmp_path)
    expected = make_phantom(4, 0, size="small")
    image, mask = read_image(case.image), read_mask(case.mask)
    np.testing.assert_array_equal(image.array, expected.image_hu)
    np.testing.assert_array_equal(mask.array, expected.labels)
    np.testing.assert_allclose(image.spacing_mm, expected.spacing_mm, rtol=1e-5)
    assert case.subtype == expected.subtype


def test_quiz_layout(tmp_path, instant):
    plan = write_dataset(tmp_path, num_cases=20)
    cases = read_cases("quiz", tmp_path)
    splits = [case.split for case in cases]
    assert (plan.num_train, plan.num_validation, plan.num_test) == (14, 2, 4)
    assert [splits.count(s) for s in ("train", "validation", "test")] == [14, 2, 4]
    assert all((case.mask is None) == (case.split == "test") for case in cases)
    assert all(case.name.startswith(f"quiz_{case.subtype}_") for case in cases if case.mask)


def test_nnunet_layout(tmp_path, instant):
    write_dataset(tmp_path, num_cases=20, layout="nnunet")
    root = tmp_path / "Dataset900_PancreasPhantom"
    cases = read_cases("nnunet", root)
    [(train, validation)] = read_official_folds("nnunet", root)
    labelled = [case for case in cases if case.mask]
    assert (len(train), len(validation), len(cases)) == (14, 2, 20)
    assert {case.name for case in labelled} == {*train, *validation}
    assert all(case.subtype == int(case.name.split("_")[1]) for case in labelled)
    assert nib.load(labelled[0].mask).get_data_dtype() == np.uint8  # nnU-Net takes whole labels


def test_nnunet_layout_without_validation_leaves_the_folds_to_the_reader(tmp_path, instant):
    write_dataset(tmp_path, num_train=3, layout="nnunet")
    assert read_official_folds("nnunet", tmp_path / "Dataset900_PancreasPhantom") is None


@pytest.mark.parametrize("layout", ["quiz", "nnunet"])
def test_references_match_the_test_images(tmp_path, instant, layout):
    write_dataset(tmp_path, num_test=3, num_train=1, layout=layout)
    lines = (tmp_path / "references" / "subtypes.csv").read_text().splitlines()
    names = [line.split(",")[0] for line in lines[1:]]
    images = {path.name: nib.load(path) for path in tmp_path.rglob("quiz_2????_0000.nii.gz")}
    assert lines[0] == "Names,Subtype"
    assert len(names) == 3
    for line, name in zip(lines[1:], names, strict=True):
        mask, image = (
            nib.load(tmp_path / "references" / name),
            images[name.replace(".", "_0000.", 1)],
        )
        np.testing.assert_array_equal(mask.affine, image.affine)
        assert mask.shape == image.shape
        assert int(line.split(",")[1]) == files.subtype_of(0, int(name[5:10]))


def test_files_are_lps_in_mm_with_a_spacing_per_axis(tmp_path, instant):
    write_dataset(tmp_path, num_train=1)
    (image,) = map(nib.load, tmp_path.rglob("*_0000.nii.gz"))
    assert nib.aff2axcodes(image.affine) == ("L", "P", "S")
    assert image.header.get_zooms() == pytest.approx((0.9, 0.7, 2.0))
    assert image.header.get_xyzt_units()[0] == "mm"
    assert (image.header["qform_code"], image.header["sform_code"]) == (1, 1)
    assert image.shape == (10, 8, 6)
    assert image.get_data_dtype() == np.int16


def test_three_quarters_of_the_masks_hold_the_float_artefact(tmp_path, instant):
    write_dataset(tmp_path, num_train=80)
    masks = [nib.load(path) for path in tmp_path.glob("train/*/quiz_?_?????.nii.gz")]
    values = [tuple(np.unique(np.asanyarray(mask.dataobj))) for mask in masks]
    assert {mask.get_data_dtype() for mask in masks} == {np.dtype(np.float32)}
    assert set(values) == {(0.0, 1.0, 2.0), (0.0, ARTEFACT, 2.0)}
    assert 48 <= sum(ARTEFACT in found for found in values) <= 72


def test_a_case_is_the_same_whatever_else_is_made(tmp_path, instant):
    write_dataset(tmp_path / "few", num_train=2, num_test=2)
    write_dataset(tmp_path / "many", num_train=5, num_validation=1, num_test=3)
    few, many = contents(tmp_path / "few"), contents(tmp_path / "many")
    shared = [path for path in few if path.suffix == ".gz"]
    assert len(shared) == 8
    assert all(few[path] == many[path] for path in shared)


@pytest.mark.slow
def test_workers_write_the_same_bytes(tmp_path):
    for workers in (1, 2):
        write_dataset(tmp_path / str(workers), num_train=3, size="small", workers=workers)
    assert contents(tmp_path / "1") == contents(tmp_path / "2")


def test_a_repeated_call_changes_nothing_and_fills_in_what_is_missing(tmp_path, instant):
    write_dataset(tmp_path, num_cases=10)
    before = contents(tmp_path)
    stamps = {path: (tmp_path / path).stat().st_mtime_ns for path in before}
    lost = next(path for path in before if path.name.startswith("quiz_"))
    (tmp_path / lost).unlink()
    write_dataset(tmp_path, num_cases=10)
    after = {path: (tmp_path / path).stat().st_mtime_ns for path in before}
    changed = {path for path in before if after[path] != stamps[path]}
    assert contents(tmp_path) == before
    assert lost in changed
    assert len([path for path in changed if path.suffix == ".gz"]) <= 2  # an image and its mask


def test_another_dataset_is_refused_unless_it_may_be_overwritten(tmp_path, instant):
    write_dataset(tmp_path / "a", num_cases=10)
    before = contents(tmp_path / "a")
    with pytest.raises(UsageError, match=r"with seed=0 instead of 1: give .*data\.root.*remove it"):
        write_dataset(tmp_path / "a", num_cases=10, seed=1)
    assert contents(tmp_path / "a") == before
    (tmp_path / "a" / "notes.txt").write_text("mine")
    write_dataset(tmp_path / "a", num_cases=6, seed=1, layout="nnunet", overwrite=True)
    write_dataset(tmp_path / "b", num_cases=6, seed=1, layout="nnunet")
    assert not (tmp_path / "a" / "train").exists()
    (tmp_path / "a" / "notes.txt").unlink()  # files of others are left alone
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


@pytest.mark.parametrize("overwrite", [False, True])
def test_folders_with_something_else_are_left_alone(tmp_path, instant, overwrite):
    (tmp_path / "scan.nii.gz").write_bytes(b"precious")
    with pytest.raises(UsageError, match="holds something else: give an empty or new folder"):
        write_dataset(tmp_path, num_cases=5, overwrite=overwrite)
    assert list(contents(tmp_path).values()) == [b"precious"]


def test_a_file_is_no_folder(tmp_path, instant):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="file holds something else"):
        write_dataset(tmp_path / "file", num_cases=5)
    with pytest.raises(UsageError, match=r"file/below cannot be made \(Not a directory\)"):
        write_dataset(tmp_path / "file" / "below", num_cases=5)


@pytest.mark.parametrize("text", ["{", "{}", '{"format": 0}'])
def test_manifests_of_other_versions_are_refused(tmp_path, instant, text):
    (tmp_path / "phantom.json").write_text(text)
    with pytest.raises(UsageError, match=r"phantom\.json is of another version"):
        write_dataset(tmp_path, num_cases=5, overwrite=True)


def test_manifest_states_what_was_asked(tmp_path, instant):
    write_dataset(tmp_path, num_train=1, seed=7, difficulty="hard", size="small")
    manifest = json.loads((tmp_path / "phantom.json").read_text())
    assert (manifest["seed"], manifest["difficulty"], manifest["size"]) == (7, "hard", "small")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "no cases are asked for: give num_cases=N"),
        ({"num_cases": -5}, "num_cases=-5: give a number from 1"),
        ({"num_train": -1}, "num_train=-1: give a number from 0 to 10000"),
        ({"num_test": 10_001}, "num_test=10001: give a number from 0 to 10000"),
        ({"num_cases": 5, "seed": -1}, "seed=-1: give a number from 0"),
        ({"num_cases": 5, "layout": "msd"}, "layout=msd: choose one of quiz, nnunet"),
        ({"num_cases": 5, "difficulty": "mean"}, "difficulty=mean: choose one of easy, hard"),
        ({"num_cases": 5, "size": "tiny"}, "size=tiny: choose one of full, small"),
    ],
)
def test_bad_arguments_are_named_before_anything_is_made(tmp_path, arguments, message):
    with pytest.raises(UsageError, match=message):
        write_dataset(tmp_path / "new", **arguments)
    assert not (tmp_path / "new").exists()


def test_a_folder_that_cannot_be_made_is_named(tmp_path, instant):
    write_dataset(tmp_path, num_train=1)
    shutil.rmtree(tmp_path / "train")
    (tmp_path / "train").write_text("a file where a folder belongs")
    with pytest.raises(UsageError, match=r"train/subtype\d cannot be made \(Not a directory\)"):
        write_dataset(tmp_path, num_train=1)


def test_a_case_that_cannot_be_written_is_named(tmp_path, instant, monkeypatch):
    def fail(path, array, grid):
        raise CaseError(f"{path} cannot be written (No space left on device)")

    monkeypatch.setattr(files, "write_volume", fail)
    with pytest.raises(CaseError, match=r"^case 0: .*No space left"):
        write_dataset(tmp_path, num_train=1)
