import json
import resource

import nibabel as nib
import numpy as np
import pytest

from pancreas_mtl.data.audit import audit_cases
from pancreas_mtl.data.cases import read_cases, read_official_folds
from pancreas_mtl.data.images import read_grid, read_image, read_mask
from pancreas_mtl.data.repair import repair_text, write_repaired
from pancreas_mtl.errors import CaseError, UsageError

SHAPE = (12, 10, 8)
RAS = nib.affines.from_matvec(np.diag((0.7, 0.9, 2.0)), (5, -7, 11))


def ct(seed):
    rng = np.random.default_rng(seed)
    return (rng.normal(60, 20, SHAPE) - 150 * (rng.random(SHAPE) < 0.2)).astype(np.float32)


def labels():
    mask = np.zeros(SHAPE, np.float32)
    mask[2:8, 2:8, 2:6] = 1
    mask[4:6, 4:6, 3:5] = 2
    return mask


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, RAS), path)


def write_case(images, masks, name, seed, *, image=None, mask=None, suffix="_0000"):
    save(images / f"{name}{suffix}.nii.gz", ct(seed) if image is None else image)
    save(masks / f"{name}.nii.gz", labels() if mask is None else mask)


def not_finite(seed):
    image = ct(seed)
    image[0, 0, :2] = np.nan
    return image


@pytest.fixture
def quiz(tmp_path):
    """One case of every fate."""
    root = tmp_path / "quiz"
    zero, one = root / "train" / "subtype0", root / "train" / "subtype1"
    write_case(zero, zero, "quiz_0_001", 1)
    write_case(zero, zero, "quiz_0_002", 2, mask=labels() * np.float32(1.0000152587890625))
    write_case(zero, zero, "quiz_0_003", 3, image=not_finite(3))
    write_case(zero, zero, "quiz_0_004", 4, mask=labels() * 7)
    write_case(one, one, "quiz_2_005", 5)
    write_case(one, one, "quiz_1_006", 6)
    (one / "quiz_1_006_0000.nii.gz").write_bytes(b"nothing")
    write_case(one, one, "quiz_1_007", 7)
    save(root / "test" / "quiz_008_0000.nii.gz", ct(7))
    save(root / "test" / "quiz_009_0000.nii.gz", ct(9))
    return root


def repair(layout, root, destination):
    report = audit_cases(read_cases(layout, root), workers=1)
    return {r.case.name: r for r in write_repaired(report, root, destination, workers=1)}


def snapshot(root):
    return {path: path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def test_what_can_be_mended_is_and_the_rest_is_left_out_and_named(quiz, tmp_path):
    before = snapshot(quiz)
    repairs = repair("quiz", quiz, tmp_path / "out" / "fixed")
    assert {name: one.action for name, one in repairs.items()} == {
        "quiz_008": "copied",
        "quiz_009": "copied",
        "quiz_0_001": "copied",
        "quiz_0_002": "mended: rounded_labels",
        "quiz_0_003": "mended: not_finite",
        "quiz_0_004": "mask left out: unknown_label",
        "quiz_1_006": "left out: unreadable_image",
        "quiz_1_007": "left out: duplicate",
        "quiz_2_005": "left out: subtype_conflict",
    }
    lost = {name for name, one in repairs.items() if one.loses_something}
    assert lost == {"quiz_0_004", "quiz_1_006", "quiz_1_007", "quiz_2_005"}
    assert snapshot(quiz) == before
    fixed = read_cases("quiz", tmp_path / "out" / "fixed")
    assert [case.name for case in fixed] == [
        "quiz_008", "quiz_009", "quiz_0_001", "quiz_0_002", "quiz_0_003", "quiz_0_004",
    ]  # fmt: skip
    report = audit_cases(fixed, workers=1)
    assert [(finding.code, finding.case) for finding in report.findings] == [
        ("no_mask", "quiz_0_004")
    ]


def test_mended_files_keep_all_else(quiz, tmp_path):
    repair("quiz", quiz, tmp_path / "fixed")
    folder, fixed = quiz / "train" / "subtype0", tmp_path / "fixed" / "train" / "subtype0"
    mask = nib.load(fixed / "quiz_0_002.nii.gz")
    assert mask.get_data_dtype() == np.uint8
    assert np.array_equal(np.asarray(mask.dataobj), labels())
    assert np.array_equal(mask.affine, nib.load(folder / "quiz_0_002.nii.gz").affine)
    original, image = (
        nib.load(parent / "quiz_0_003_0000.nii.gz").get_fdata() for parent in (folder, fixed)
    )
    finite = np.isfinite(original)
    assert np.array_equal(image[finite], original[finite])
    assert (image[~finite] == original[finite].min()).all()
    for name in ("quiz_0_001_0000.nii.gz", "quiz_0_001.nii.gz"):
        assert (fixed / name).read_bytes() == (folder / name).read_bytes()


def test_the_text_lists_each_kind_of_action_once(quiz, tmp_path):
    lines = repair_text(list(repair("quiz", quiz, tmp_path / "fixed").values())).splitlines()
    assert lines[0] == "copied (3): quiz_008, quiz_009, quiz_0_001"
    assert "left out: duplicate (1): quiz_1_007" in lines
    assert len(lines) == 7


def test_of_two_copies_the_sound_one_is_kept(tmp_path):
    zero, one = tmp_path / "quiz" / "train" / "subtype0", tmp_path / "quiz" / "train" / "subtype1"
    write_case(one, one, "quiz_0_900", 1)  # in the folder of another subtype
    write_case(zero, zero, "quiz_0_901", 1)
    write_case(zero, zero, "quiz_0_902", 2, mask=labels() * 0)
    write_case(zero, zero, "quiz_0_903", 2)
    repairs = repair("quiz", tmp_path / "quiz", tmp_path / "fixed")
    actions = {name: one.action for name, one in repairs.items()}
    assert actions["quiz_0_901"] == actions["quiz_0_903"] == "copied"
    assert actions["quiz_0_900"].startswith("left out: ")
    assert actions["quiz_0_902"].startswith("left out: ")


def test_a_case_without_mask_and_subtype_teaches_nothing_and_is_left_out(tmp_path):
    root = tmp_path / "Dataset001_X"
    write_case(root / "imagesTr", root / "labelsTr", "a", 1)
    write_case(root / "imagesTr", root / "labelsTr", "b", 2, mask=labels() * 0)
    save(root / "imagesTr" / "c_0000.nii.gz", ct(3))
    facts = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "pancreas": 1, "lesion": 2}}
    (root / "dataset.json").write_text(json.dumps(facts))
    repairs = repair("nnunet", root, tmp_path / "fixed")
    assert repairs["a"].action == "copied"
    assert repairs["b"].action == "left out: empty_mask"
    assert repairs["c"].action == "left out: neither mask nor subtype"


def test_nnunet_keeps_its_tables_with_the_kept_cases_alone(tmp_path):
    root = tmp_path / "Dataset001_X"
    for seed, name in enumerate(["a", "b", "=c"]):
        write_case(root / "imagesTr", root / "labelsTr", name, seed)
    save(root / "imagesTs" / "t_0000.nii.gz", ct(1))  # the voxels of b
    facts = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "pancreas": 1, "lesion": 2}}
    (root / "dataset.json").write_text(json.dumps(facts | {"numTraining": 3, "name": "X"}))
    (root / "subtypes.csv").write_text("Names,Subtype\na.nii.gz,0\nb.nii.gz,1\n'=c.nii.gz,2\n")
    folds = [{"train": ["a", "b"], "val": ["=c"]}, {"train": ["a", "=c"], "val": ["b"]}]
    (root / "splits_final.json").write_text(json.dumps(folds))
    fixed = tmp_path / "fixed"
    assert repair("nnunet", root, fixed)["b"].action == "left out: duplicate"
    assert {case.name: case.subtype for case in read_cases("nnunet", fixed)} == {
        "a": 0, "=c": 2, "t": None,
    }  # fmt: skip
    assert read_official_folds("nnunet", fixed) == [(["a"], ["=c"])]
    assert json.loads((fixed / "dataset.json").read_text()) == facts | {
        "numTraining": 2, "name": "X",
    }  # fmt: skip


def test_msd_lists_the_kept_files_alone(tmp_path):
    root = tmp_path / "Task07_Pancreas"
    for seed, name in enumerate(("p_1", "p_2")):
        write_case(root / "imagesTr", root / "labelsTr", name, seed, suffix="")
    (root / "imagesTr" / "p_2.nii.gz").write_bytes(b"")
    save(root / "imagesTs" / "p_3.nii.gz", ct(5))
    facts = {
        "modality": {"0": "CT"},
        "labels": {"0": "background", "1": "pancreas", "2": "cancer"},
        "training": [
            {"image": f"./imagesTr/{name}.nii.gz", "label": f"./labelsTr/{name}.nii.gz"}
            for name in ("p_1", "p_2")
        ],
        "test": ["./imagesTs/p_3.nii.gz"],
    }
    (root / "dataset.json").write_text(json.dumps(facts))
    repair("msd", root, tmp_path / "fixed")
    assert [case.name for case in read_cases("msd", tmp_path / "fixed")] == ["p_1", "p_3"]
    written = json.loads((tmp_path / "fixed" / "dataset.json").read_text())
    assert (written["numTraining"], written["numTest"]) == (1, 1)


@pytest.mark.parametrize("where", ["quiz/fixed", "quiz", "."])
def test_nothing_is_written_into_or_around_the_dataset(quiz, tmp_path, where):
    with pytest.raises(UsageError, match=r"fix=true writes to .*: give output_dir"):
        repair("quiz", quiz, tmp_path / where)


def test_nothing_is_overwritten(quiz, tmp_path):
    (tmp_path / "fixed").mkdir()
    with pytest.raises(UsageError, match="fixed exists already: remove it, or give another"):
        repair("quiz", quiz, tmp_path / "fixed")


def test_a_full_disk_leaves_no_part_of_a_copy(quiz, tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, limits[1]))
    try:
        with pytest.raises(CaseError, match=r"cannot be written \(File too large\): free space"):
            repair("quiz", quiz, tmp_path / "out" / "fixed")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list((tmp_path / "out").iterdir()) == []


def test_an_interrupted_copy_is_begun_again(quiz, tmp_path):
    (tmp_path / ".fixed.draft" / "train").mkdir(parents=True)
    (tmp_path / ".fixed.draft" / "train" / "rest").touch()
    repair("quiz", quiz, tmp_path / "fixed")
    assert not (tmp_path / ".fixed.draft").exists()
    assert not (tmp_path / "fixed" / "train" / "rest").exists()
    image = tmp_path / "fixed" / "train" / "subtype0" / "quiz_0_002_0000.nii.gz"
    mask = read_mask(image.with_name("quiz_0_002.nii.gz"), grid=read_grid(image))
    assert mask.array.shape == read_image(image).array.shape
