import dataclasses
import json

import nibabel as nib
import numpy as np
import pytest

from pancreas_mtl.data.audit import audit_cases, largest_case_bytes
from pancreas_mtl.data.checks import CHECKS
from pancreas_mtl.errors import CaseError
from pancreas_mtl.types import Case

SHAPE = (12, 10, 8)  # (W, H, D) as stored
LPS = nib.affines.from_matvec(np.diag((-0.7, -0.9, 2.0)), (5, -7, 11))
OBLIQUE = LPS @ nib.affines.from_matvec(nib.eulerangles.euler2mat(0.5, 0, 0))
SHEARED = LPS @ nib.affines.from_matvec([[1, 0.2, 0], [0, 1, 0], [0, 0, 1]])


def ct(seed=0, shape=SHAPE):
    rng = np.random.default_rng(seed)
    return (rng.normal(60, 20, shape) - 150 * (rng.random(shape) < 0.2)).astype(np.int16)


def labels():
    mask = np.zeros(SHAPE, np.uint8)
    mask[2:8, 2:8, 2:6] = 1
    mask[4:6, 4:6, 3:5] = 2
    return mask


def save(path, array, affine=LPS):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(np.asarray(array), affine), path)
    return path


@pytest.fixture
def case(tmp_path):
    image = save(tmp_path / "a_0000.nii.gz", ct())
    return Case("a", image, save(tmp_path / "a.nii.gz", labels()), 1)


def audit(*cases):
    return audit_cases(cases, workers=1)


def codes(*cases):
    return {finding.code for finding in audit(*cases).findings}


def test_a_sound_case_has_no_findings_and_right_facts(case):
    report = audit(case)
    assert report.findings == ()
    (facts,) = report.facts
    assert (facts.name, facts.shape, facts.orientation) == ("a", (8, 10, 12), "LPS")
    assert np.allclose(facts.spacing_mm, (2.0, 0.9, 0.7))
    voxel_ml = 2.0 * 0.9 * 0.7 / 1000
    assert facts.pancreas_ml == pytest.approx((6 * 6 * 4 - 8) * voxel_ml, abs=1e-3)
    assert facts.lesion_ml == pytest.approx(8 * voxel_ml, abs=1e-3)


def with_value(array, value):
    array = array.astype(np.float64)
    array[0, 0, 0] = value
    return array


@pytest.mark.parametrize(
    ("image", "affine", "code"),
    [
        (with_value(ct(), np.nan), LPS, "not_finite"),
        (with_value(ct(), -np.inf), LPS, "not_finite"),
        (np.full(SHAPE, np.nan), LPS, "unreadable_image"),
        (np.stack([ct(), ct()], -1), LPS, "unreadable_image"),
        (ct()[:, :, 0], LPS, "unreadable_image"),
        (np.full(SHAPE, 7, np.int16), LPS, "constant_image"),
        (ct() + 1024, LPS, "shifted_hu"),
        ((ct() - ct().min()) % 256, LPS, "other_modality"),
        (ct() / 40.0, LPS, "other_modality"),
        (ct(), LPS @ np.diag((1, 1, 8, 1)), "odd_spacing"),
        (ct(), LPS @ np.diag((0.3, 1, 1, 1)), "odd_spacing"),
        (ct(), OBLIQUE, "odd_orientation"),
        (ct(), SHEARED, "odd_orientation"),
        (ct()[:, :, :1], LPS, "few_slices"),
    ],
)
def test_findings_of_an_image(tmp_path, image, affine, code):
    one = Case("a", save(tmp_path / "a_0000.nii.gz", image, affine), split="test")
    assert codes(one) == {code}


@pytest.mark.parametrize("shift_hu", [-1024, 1024])
def test_a_mask_shows_a_shift_of_hu_either_way(case, shift_hu):
    save(case.image, ct() + np.int16(shift_hu))
    (finding,) = audit(case).findings
    assert finding.code == "shifted_hu"
    median = np.median(ct()[labels() > 0]) + shift_hu
    assert finding.message == f"a median of {median:.0f} HU inside the mask: shifted by 1024?"


@pytest.mark.parametrize("implant_hu", [3071, 30_000])
def test_implants_and_gross_contrast_are_no_findings(tmp_path, case, implant_hu):
    image = ct()
    image[:4, :4, :2] = implant_hu
    save(case.image, image)
    assert codes(case) == set()


@pytest.mark.parametrize(
    ("mask", "affine", "code"),
    [
        (labels() * 1.0000152587890625, LPS, "rounded_labels"),
        (labels() * 1.01, LPS, "unknown_label"),
        (labels() + 1, LPS, "unknown_label"),
        (labels() - 1.0, LPS, "unknown_label"),
        (with_value(labels(), np.nan), LPS, "unknown_label"),
        (labels() * 0, LPS, "empty_mask"),
        (labels() > 5, LPS, "empty_mask"),
        (np.minimum(labels(), 1), LPS, "empty_lesion"),
        (labels()[:-1], LPS, "other_grid"),
        (labels(), LPS @ nib.affines.from_matvec(np.eye(3), (0.5, 0, 0)), "other_grid"),
        (labels(), np.diag((0.7, 0.9, 2.0, 1)), "other_grid"),
        (np.stack([labels()] * 2, -1), LPS, "unreadable_mask"),
    ],
)
def test_findings_of_a_mask(case, mask, affine, code):
    save(case.mask, mask.astype(np.uint8) if mask.dtype == bool else mask, affine)
    (finding,) = audit(case).findings
    assert finding.code == code
    assert (finding.severity, finding.remedy) == CHECKS[code]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"mask": None}, {"no_mask"}),
        ({"subtype": None}, {"no_subtype"}),
        ({"mask": None, "subtype": None}, {"no_mask", "no_subtype"}),
        ({"mask": None, "subtype": None, "split": "test"}, set()),
        ({"name": "quiz_2_041"}, {"subtype_conflict"}),
        ({"name": "quiz_1_041"}, set()),
    ],
)
def test_findings_of_what_is_known_of_a_case(case, change, expected):
    assert codes(dataclasses.replace(case, **change)) == expected


def test_files_that_cannot_be_read_are_findings_and_the_others_go_on(case, tmp_path):
    case.mask.write_bytes(case.mask.read_bytes()[:60])
    lost = Case("lost", tmp_path / "lost.nii.gz", split="test")
    report = audit(lost, case)
    assert [finding.code for finding in report.findings] == ["unreadable_image", "unreadable_mask"]
    assert "lost.nii.gz is no file" in report.findings[0].message
    assert [facts.name for facts in report.facts] == ["a"]


def test_a_qform_that_disagrees_is_a_warning(case):
    stored = nib.load(case.image)
    stored.set_qform(np.diag((1, 1, 1, 1)), code=1)
    nib.save(stored, case.image)
    assert codes(case) == {"odd_header"}


# Across cases


@pytest.mark.parametrize(
    ("first", "second", "code", "blamed"),
    [
        ("train", "test", "duplicate", "a"),
        ("test", "train", "duplicate", "b"),
        ("train", "validation", "duplicate", "a"),
        ("validation", "test", "duplicate", "a"),
        ("train", "train", "duplicate", "b"),
        ("test", "test", "duplicate_in_test", "b"),
    ],
)
def test_duplicates_blame_the_copy_nearest_to_training(tmp_path, first, second, code, blamed):
    flipped = LPS @ nib.affines.from_matvec(np.diag((-1, 1, 1)), (SHAPE[0] - 1, 0, 0))
    paths = (
        save(tmp_path / "a.nii.gz", ct()),
        save(tmp_path / "b.nii", ct()[::-1].astype(np.float32), flipped),
    )
    cases = [
        Case(name, path, path, 0, split)
        for name, path, split in zip("ab", paths, (first, second), strict=True)
    ]
    found = [finding for finding in audit(*cases).findings if finding.code == code]
    assert [finding.case for finding in found] == [blamed]


def test_different_images_are_no_duplicates(tmp_path):
    reshaped = ct().transpose(2, 1, 0).ravel().reshape(SHAPE[::-1]).transpose(2, 1, 0)
    cases = [
        Case(name, save(tmp_path / f"{name}.nii", array), split="test")
        for name, array in [("a", ct()), ("b", ct(1)), ("c", with_value(reshaped, 1))]
    ]
    assert codes(*cases) == set()


def test_an_orientation_unlike_nearly_all_others_is_a_warning(tmp_path):
    cases = []
    for index in range(10):
        affine = np.diag((0.7, 0.9, 2.0, 1)) if index == 3 else LPS
        path = save(tmp_path / f"{index}.nii", ct(index), affine)
        cases.append(Case(str(index), path, split="test"))
    (finding,) = audit(*cases).findings
    assert (finding.code, finding.case) == ("odd_orientation", "3")
    assert finding.message == "stored as RAS, nearly all others as LPS"
    assert audit(*cases[2:5]).findings == ()  # two of three are no rule


# The report


def test_the_text_names_a_few_cases_and_the_json_all(tmp_path):
    masks = [save(tmp_path / f"{index}.nii", labels() * 1.0001) for index in range(7)]
    cases = [
        Case(str(index), save(tmp_path / f"{index}_0000.nii", ct(index)), mask, 0)
        for index, mask in enumerate(masks)
    ]
    cases.append(Case("lost", tmp_path / "lost.nii", split="validation"))
    report = audit(*cases)
    lines = report.text().splitlines()
    assert lines[0] == "8 cases (7 train, 1 validation, 0 test): 1 errors in 1 cases, 9 warnings"
    assert lines[1].startswith("ERROR unreadable_image (1): replace the file")
    assert lines[2].startswith("  lost: ")
    assert lines[3].startswith("WARNING rounded_labels (7): ")
    assert lines[4] == "  0: its mask holds 1.0001000165939331 and the like"
    assert lines[9] == "  and 2 more in audit.json"
    content = json.loads(json.dumps(report.as_json()))
    assert (content["schema"], content["n_cases"], content["n_errors"]) == (1, 8, 1)
    assert len(content["findings"]) == 10
    assert set(content["findings"][0]) == {"severity", "code", "case", "message", "remedy"}
    assert [facts["name"] for facts in content["cases"]] == list("0123456")
    assert [finding.case for finding in report.errors] == ["lost"]


def test_no_cases_is_an_empty_report():
    report = audit()
    assert report.text() == "0 cases (0 train, 0 validation, 0 test): 0 errors, 0 warnings"


def test_a_killed_worker_is_a_finding_and_a_defect_is_none(case, monkeypatch):
    def give(outcome):
        pairs = iter([(case, outcome)])
        monkeypatch.setattr("pancreas_mtl.data.audit.map_in_processes", lambda *_, **__: pairs)

    give(CaseError("its worker process was killed"))
    assert codes(case) == {"unreadable_image"}
    give(ZeroDivisionError("a defect"))
    with pytest.raises(ZeroDivisionError, match="a defect"):
        audit(case)


def test_memory_is_estimated_from_headers(case, tmp_path):
    assert largest_case_bytes([case, Case("lost", tmp_path / "lost.nii")]) == 16 * 12 * 10 * 8
    assert largest_case_bytes([]) == 0
