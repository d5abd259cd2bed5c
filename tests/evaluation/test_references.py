from __future__ import annotations

import pytest

from pancreas_mtl.errors import UsageError
from pancreas_mtl.evaluation.references import read_references


def touch(*paths):
    """Files of these names; listing references reads no voxel."""
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def subtypes(path):
    return {reference.name: reference.subtype for reference in read_references(path)}


def test_a_flat_folder_with_its_subtypes(tmp_path):
    touch(tmp_path / "b.nii.gz", tmp_path / "a.nii", tmp_path / ".hidden.nii.gz")
    (tmp_path / "subtypes.csv").write_text("Names,Subtype\na.nii.gz,2\nb.nii.gz,\nc.nii.gz,0\n")
    found = read_references(tmp_path)
    assert [(one.name, one.subtype) for one in found] == [("a", 2), ("b", None), ("c", 0)]
    assert [one.mask for one in found] == [tmp_path / "a.nii", tmp_path / "b.nii.gz", None]


def test_a_part_of_the_quiz_layout(tmp_path):
    part = tmp_path / "validation"
    touch(part / "subtype0" / "quiz_0_1.nii.gz", part / "subtype0" / "quiz_0_1_0000.nii.gz")
    touch(part / "subtype2" / "quiz_2_3.nii.gz")
    touch(part / "subtype1" / "quiz_1_5_0000.nii.gz")
    found = read_references(part)
    expected = [("quiz_0_1", 0), ("quiz_1_5", 1), ("quiz_2_3", 2)]
    assert [(one.name, one.subtype) for one in found] == expected
    assert found[0].mask == part / "subtype0" / "quiz_0_1.nii.gz"
    assert found[1].mask is None
    with pytest.raises(UsageError, match=r"holds no masks.*give references=.*validation"):
        read_references(tmp_path)


def test_an_nnunet_dataset(tmp_path):
    touch(*(tmp_path / "labelsTr" / f"{name}.nii.gz" for name in ("quiz_1_7", "other")))
    assert subtypes(tmp_path) == {"other": None, "quiz_1_7": 1}
    assert subtypes(tmp_path / "labelsTr") == {"other": None, "quiz_1_7": 1}
    (tmp_path / "subtypes.csv").write_text("Names,Subtype\nother.nii.gz,2\nunlabelled.nii.gz,1\n")
    assert subtypes(tmp_path) == {"other": 2, "quiz_1_7": None}
    assert subtypes(tmp_path / "labelsTr") == {"other": 2, "quiz_1_7": None}


def test_what_cannot_be_read_is_refused(tmp_path):
    with pytest.raises(UsageError, match="nowhere is no folder: give the folder of the masks"):
        read_references(tmp_path / "nowhere")
    with pytest.raises(UsageError, match=r"holds no masks and no subtypes\.csv: give the folder"):
        read_references(tmp_path)
    touch(tmp_path / "a.nii.gz", tmp_path / "a.nii")
    with pytest.raises(UsageError, match=r"a\.nii and a\.nii\.gz both exist: remove one"):
        read_references(tmp_path)


def test_a_case_of_two_subtypes_is_refused(tmp_path):
    touch(tmp_path / "subtype0" / "case.nii.gz", tmp_path / "subtype1" / "case.nii.gz")
    with pytest.raises(UsageError, match="case occurs twice: remove one of them"):
        read_references(tmp_path)
