import json
import logging
import os
import tempfile
from functools import partial
from pathlib import Path

import pytest

from pancreas_mtl.data.cases import fits, read_cases, read_official_folds, subtype_in_name
from pancreas_mtl.data.images import find_images
from pancreas_mtl.errors import UsageError
from pancreas_mtl.types import Case

LABELS = {"background": 0, "pancreas": 1, "lesion": 2}
NNUNET = {"channel_names": {"0": "CT"}, "labels": LABELS, "file_ending": ".nii.gz"}
MSD = {
    "modality": {"0": "CT"},
    "labels": {"0": "background", "1": "pancreas", "2": "cancer"},
    "training": [
        {"image": "./imagesTr/pancreas_001.nii.gz", "label": "./labelsTr/pancreas_001.nii.gz"},
        {"image": "./imagesTr/pancreas_004.nii.gz", "label": "./labelsTr/pancreas_004.nii.gz"},
    ],
    "test": ["./imagesTs/pancreas_002.nii.gz"],
}


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def write_json(root, content, name="dataset.json"):
    (root / name).write_text(content if isinstance(content, str) else json.dumps(content))


@pytest.fixture
def quiz(tmp_path):
    return touch(
        tmp_path / "quiz",
        "train/subtype0/quiz_0_041_0000.nii.gz",
        "train/subtype0/quiz_0_041.nii.gz",
        "train/subtype2/quiz_2_005_0000.nii.gz",
        "train/subtype2/._quiz_2_005_0000.nii.gz",
        "validation/subtype1/quiz_1_090_0000.nii.gz",
        "validation/subtype1/quiz_1_090.nii.gz",
        "test/quiz_037_0000.nii.gz",
        "references/quiz_037.nii.gz",
    )


@pytest.fixture
def nnunet(tmp_path):
    root = touch(
        tmp_path / "raw" / "Dataset172_PancreasQuiz",
        "imagesTr/quiz_0_041_0000.nii.gz",
        "imagesTr/other_0000.nii.gz",
        "labelsTr/quiz_0_041.nii.gz",
        "imagesTs/quiz_037_0000.nii.gz",
    )
    write_json(root, NNUNET)
    return root


@pytest.fixture
def msd(tmp_path):
    root = touch(
        tmp_path / "Task07_Pancreas",
        "imagesTr/pancreas_001.nii.gz",
        "imagesTr/pancreas_004.nii.gz",
        "imagesTr/._pancreas_001.nii.gz",
        "labelsTr/pancreas_001.nii.gz",
        "imagesTs/pancreas_002.nii.gz",
    )
    write_json(root, MSD)
    return root


@pytest.mark.parametrize("layout", ["quiz", "phantom"])
def test_quiz(quiz, layout):
    zero, two = quiz / "train" / "subtype0", quiz / "train" / "subtype2"
    one = quiz / "validation" / "subtype1"
    assert read_cases(layout, quiz) == [
        Case("quiz_037", quiz / "test" / "quiz_037_0000.nii.gz", split="test"),
        Case("quiz_0_041", zero / "quiz_0_041_0000.nii.gz", zero / "quiz_0_041.nii.gz", 0),
        Case(
            "quiz_1_090",
            one / "quiz_1_090_0000.nii.gz",
            one / "quiz_1_090.nii.gz",
            1,
            "validation",
        ),
        Case("quiz_2_005", two / "quiz_2_005_0000.nii.gz", None, 2),
    ]


def test_nnunet_takes_subtypes_from_names_where_there_is_no_table(nnunet):
    images, masks = nnunet / "imagesTr", nnunet / "labelsTr"
    assert read_cases("nnunet", nnunet) == [
        Case("other", images / "other_0000.nii.gz"),
        Case("quiz_037", nnunet / "imagesTs" / "quiz_037_0000.nii.gz", split="test"),
        Case("quiz_0_041", images / "quiz_0_041_0000.nii.gz", masks / "quiz_0_041.nii.gz", 0),
    ]


def test_nnunet_takes_subtypes_from_its_table(nnunet):
    (nnunet / "subtypes.csv").write_text("\ufeffNames,Subtype\nquiz_0_041.nii.gz,\nother,2\n")
    subtypes = {case.name: case.subtype for case in read_cases("nnunet", nnunet)}
    assert subtypes == {"other": 2, "quiz_0_041": None, "quiz_037": None}


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("name,subtype\nother,1\n", r"header \['name', 'subtype'\]: it must be Names,Subtype"),
        ("Names,Subtype\nother,3\n", "line 2: other with subtype 3: give each case's name once"),
        (
            "Names,Subtype\nother,1\nother,1\n",
            "line 3: other with subtype 1 a second time: give",
        ),
        ("Names,Subtype\notter,1\n", "names otter, which has no image: mend the name"),
        ("", "header \\[\\]: it must be Names,Subtype"),
    ],
)
def test_nnunet_with_a_bad_table(nnunet, table, message):
    (nnunet / "subtypes.csv").write_text(table)
    with pytest.raises(UsageError, match=message):
        read_cases("nnunet", nnunet)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"channel_names": {"0": "CT", "1": "PET"}}, "channels .*PET.*: this reads one channel"),
        (
            {"labels": {"background": 0, "pancreas": 1}},
            "must be background 0, pancreas 1, lesion 2",
        ),
        ({"channel_names": 1}, "channels 1: this reads one channel"),
        ({"labels": {"background": 0, "lesion": 1, "pancreas": 2}}, "must be background 0"),
        ({"labels": {"background": 0, "pancreas": [1, 2], "lesion": 2}}, "must be background 0"),
        ({"labels": ["background"]}, "must be background 0"),
        ({"file_ending": ".nrrd"}, r"file_ending \.nrrd: convert the files"),
    ],
)
def test_nnunet_with_a_bad_dataset_json(nnunet, change, message):
    write_json(nnunet, NNUNET | change)
    with pytest.raises(UsageError, match=message):
        read_cases("nnunet", nnunet)


@pytest.mark.parametrize("layout", ["nnunet", "msd"])
@pytest.mark.parametrize("content", ["", "{", "[]", "[" * 100_000])
def test_dataset_json_that_is_no_json_object(nnunet, msd, layout, content):
    root = {"nnunet": nnunet, "msd": msd}[layout]
    write_json(root, content)
    with pytest.raises(UsageError, match=r"dataset\.json (cannot be read|is no JSON object)"):
        read_cases(layout, root)


def test_msd(msd):
    images = msd / "imagesTr"
    assert read_cases("msd", msd) == [
        Case("pancreas_001", images / "pancreas_001.nii.gz", msd / "labelsTr/pancreas_001.nii.gz"),
        Case("pancreas_002", msd / "imagesTs" / "pancreas_002.nii.gz", split="test"),
        Case("pancreas_004", images / "pancreas_004.nii.gz"),
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"training": ["imagesTr/a.nii.gz"]}, "`training` is no list of image and label"),
        ({"test": ["../secret.nii.gz"]}, r"names \.\./secret\.nii\.gz: only paths inside it"),
        ({"test": ["/etc/x.nii.gz"]}, r"names /etc/x\.nii\.gz: only paths inside it"),
        ({"modality": {"0": "FLAIR", "1": "T1w"}}, "this reads one channel"),
    ],
)
def test_msd_with_a_bad_dataset_json(msd, change, message):
    write_json(msd, MSD | change)
    with pytest.raises(UsageError, match=message):
        read_cases("msd", msd)


# Roots that do not fit


def test_unknown_layout(quiz):
    with pytest.raises(UsageError, match="data=qiuz: no such layout; choose one of quiz, nnunet"):
        read_cases("qiuz", quiz)


def test_missing_root(tmp_path):
    with pytest.raises(UsageError, match="nowhere is no folder: give the dataset"):
        read_cases("quiz", tmp_path / "nowhere")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(UsageError, match="loop is no folder"):
        read_cases("quiz", tmp_path / "loop")


def test_empty_folder(tmp_path):
    empty = tmp_path / "a" / "b" / "empty"
    empty.mkdir(parents=True)
    wanted = r"does not fit the layout quiz: expected train/subtype\{0,1,2\}/.*; found nothing"
    with pytest.raises(UsageError, match=f"{wanted}; no layout fits there or nearby"):
        read_cases("quiz", empty)


def test_another_layout_is_named(quiz, nnunet, msd):
    for layout, root, better in [
        ("nnunet", quiz, "quiz"),
        ("msd", nnunet, "nnunet"),
        ("nnunet", msd, "msd"),
        ("quiz", msd, "msd"),
    ]:
        with pytest.raises(UsageError, match=f"the layout {better} would fit {root}$"):
            read_cases(layout, root)


def test_a_root_one_level_off_is_named(quiz, nnunet):
    for layout, root, better in [
        ("quiz", quiz / "train", quiz),
        ("quiz", quiz / "train" / "subtype0", quiz),
        ("nnunet", nnunet.parent, nnunet),
        ("nnunet", nnunet / "imagesTr", nnunet),
    ]:
        with pytest.raises(UsageError, match=f"the layout {layout} would fit {better}$"):
            read_cases(layout, root)


def test_fits_tells_the_layouts_apart(quiz, nnunet, msd):
    roots = {"quiz": quiz, "nnunet": nnunet, "msd": msd}
    for layout in roots:
        assert [other for other, root in roots.items() if fits(layout, root)] == [layout]


# Names


def test_one_name_in_two_parts_is_refused(quiz):
    touch(quiz, "test/quiz_0_041_0000.nii.gz")
    with pytest.raises(UsageError, match=r"two cases are named quiz_0_041 \(.*train.* and .*test"):
        read_cases("quiz", quiz)


def test_duplicates_that_differ_in_extension_are_refused(quiz):
    touch(quiz, "train/subtype0/quiz_0_041.nii")
    with pytest.raises(UsageError, match=r"quiz_0_041\.nii and quiz_0_041\.nii\.gz both exist"):
        read_cases("quiz", quiz)
    touch(quiz, "train/subtype0/quiz_0_041_0000.nii")
    with pytest.raises(UsageError, match="holds quiz_0_041 twice"):
        read_cases("quiz", quiz)


def test_a_second_channel_is_refused(quiz):
    touch(quiz, "train/subtype0/quiz_0_041_0001.nii.gz")
    with pytest.raises(UsageError, match="subtype0 holds files of channel _0001: this reads one"):
        read_cases("quiz", quiz)


def test_masks_without_image_are_logged(quiz, caplog):
    touch(quiz, "train/subtype2/quiz_2_006.nii.gz")
    with caplog.at_level(logging.WARNING):
        read_cases("quiz", quiz)
    assert "1 masks without image, such as quiz_2_006.nii.gz" in caplog.text


def test_strange_names_are_kept_as_they_are(tmp_path):
    names = ["=cmd 'a'", "-x ü", "<script>alert(1)<", 'a,b"c']
    touch(tmp_path, *(f"train/subtype0/{name}_0000.nii.gz" for name in names))
    assert [case.name for case in read_cases("quiz", tmp_path)] == sorted(names)


@pytest.mark.parametrize(
    ("name", "subtype"),
    [("quiz_2_041", 2), ("quiz_041", None), ("quiz_3_041", None), ("quiz_1_041_b", None)],
)
def test_subtype_in_name(name, subtype):
    assert subtype_in_name(name) == subtype


# Official folds


def test_official_folds_of_nnunet_are_read(nnunet, quiz):
    assert read_official_folds("nnunet", nnunet) is None
    write_json(nnunet, [{"train": ["other"], "val": ["quiz_0_041"]}], "splits_final.json")
    assert read_official_folds("nnunet", nnunet) == [(["other"], ["quiz_0_041"])]
    assert read_official_folds("quiz", quiz) is None


@pytest.mark.parametrize(
    ("folds", "message"),
    [
        ({"train": ["other"]}, "is no list of folds with train and val"),
        ([{"train": ["other"]}], "is no list of folds with train and val"),
        ([{"train": ["other"], "val": ["x"]}], "fold 0 names x, which is no training case"),
        ([{"train": ["other"], "val": ["quiz_037"]}], "names quiz_037, which is no training case"),
        ([{"train": ["other"], "val": ["other"]}], "fold 0 has other on both sides"),
        ([{"train": ["other"], "val": []}], "fold 0 has an empty side"),
        ("[", r"splits_final\.json cannot be read"),
    ],
)
def test_bad_official_folds_are_refused(nnunet, folds, message):
    write_json(nnunet, folds, "splits_final.json")
    with pytest.raises(UsageError, match=message):
        read_official_folds("nnunet", nnunet)


@pytest.fixture
def closed_folder():
    """A folder that nobody may enter; root, who may, becomes another user meanwhile."""
    with tempfile.TemporaryDirectory() as parent:
        os.chmod(parent, 0o755)
        folder = Path(parent) / "closed"
        (folder / "train").mkdir(parents=True)
        folder.chmod(0)
        user = os.geteuid()
        if user == 0:
            os.seteuid(65534)
        yield folder
        os.seteuid(user)
        folder.chmod(0o755)


def test_a_folder_without_permission_is_one_line(closed_folder):
    for read in (partial(read_cases, "quiz"), partial(read_cases, "nnunet"), find_images):
        with pytest.raises(
            UsageError, match=r"closed.* cannot be listed \(Permission denied\): che"
        ):
            read(closed_folder)
