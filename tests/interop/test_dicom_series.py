import shutil

import pytest
from commands import call

from pancreas_mtl.errors import UsageError

pytest.importorskip("pydicom", reason="needs the extra dicom")
import pydicom

from pancreas_mtl.interop.dicom_series import find_series


def test_the_only_series_is_found_at_any_depth(write_series, tmp_path):
    write_series(tmp_path / "in" / "study" / "series")
    series = find_series(tmp_path / "in", None)
    assert series.uid == "1.2.3.4"
    assert len(series.slices) == 5
    assert series.notes == ()


def test_the_name_of_a_case_comes_from_the_uid_alone(write_series, tmp_path):
    first = find_series(write_series(tmp_path / "Doe^Jane"), None)
    second = find_series(write_series(tmp_path / "elsewhere"), None)
    other = find_series(write_series(tmp_path / "other", uid="1.2.3.5"), None)
    assert first.name == second.name != other.name
    assert first.name.startswith("ct_")
    assert len(first.name) == 15


def test_several_series_are_listed_and_one_is_chosen(write_series, tmp_path):
    write_series(tmp_path)
    write_series(tmp_path, uid="1.2.3.5", slices=4)
    listed = (
        r"holds 2 CT series: choose one by series=UID from "
        r"1\.2\.3\.\d \(portal venous, \d slices\); 1\.2\.3\.\d \(portal venous, \d slices\)"
    )
    with pytest.raises(UsageError, match=listed):
        find_series(tmp_path, None)
    assert len(find_series(tmp_path, "1.2.3.5").slices) == 4
    with pytest.raises(UsageError, match=r"series=9\.9 is not in .* holds 1\.2\.3\.\d \(portal"):
        find_series(tmp_path, "9.9")


def test_several_series_end_a_prediction_before_any_work(bundle, write_series, tmp_path):
    write_series(tmp_path / "in")
    write_series(tmp_path / "in", uid="1.2.3.5")
    folders = (f"input={tmp_path / 'in'}", f"output_dir={tmp_path / 'out'}")
    result = call("predict", f"model={bundle}", *folders)
    assert result.code == 2
    assert "holds 2 CT series: choose one by series=UID from 1.2.3." in result.last_line
    assert not (tmp_path / "out").exists()
    assert call("predict", f"model={bundle}", *folders, "series=1.2.3.5").code == 0


def test_a_description_cannot_steer_the_terminal(write_series, tmp_path):
    def edit(index, dataset):
        dataset.SeriesDescription = "red\x07[31m\nline"

    assert (
        str(find_series(write_series(tmp_path, edit), None)).split("(")[1].startswith("red[31mli")
    )


def localizer(index, dataset):
    if index == 2:
        dataset.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]


def screenshot(index, dataset):
    if index == 2:
        dataset.SOPClassUID = pydicom.uid.SecondaryCaptureImageStorage


@pytest.mark.parametrize(
    ("edit", "note"), [(localizer, "1 x localizer"), (screenshot, "1 x Secondary Capture Image")]
)
def test_what_is_no_slice_of_a_volume_is_left_out_and_noted(edit, note, write_series, tmp_path):
    series = find_series(write_series(tmp_path, edit), None)
    assert len(series.slices) == 4
    assert note in series.notes[0]


def test_other_files_are_left_out_and_noted(write_series, tmp_path):
    write_series(tmp_path)
    (tmp_path / "notes.txt").write_text("thin slices")
    (tmp_path / ".DS_Store").write_text("hidden")
    shutil.copy(next(tmp_path.glob("*.dcm")), tmp_path / "DICOMDIR")
    series = find_series(tmp_path, None)
    assert len(series.slices) == 5
    assert series.notes == (f"{tmp_path}: left out 1 x file that is not DICOM",)


@pytest.mark.parametrize("content", [b"", b"<html>404</html>"])
def test_a_file_named_as_the_slices_but_no_dicom_is_refused(content, write_series, tmp_path):
    write_series(tmp_path)
    (tmp_path / "IM99.DCM").write_bytes(content)
    with pytest.raises(UsageError, match=r"IM99\.DCM is named as the DICOM files are but is none"):
        find_series(tmp_path, None)


def test_files_named_after_their_uid_have_one_kind_of_name(write_series, tmp_path):
    for path in write_series(tmp_path).glob("*.dcm"):
        path.rename(tmp_path / f"1.2.840.{path.stem[2:]}")
    (tmp_path / "1.2.840.999").write_bytes(b"")
    with pytest.raises(UsageError, match=r"1\.2\.840\.999 is named as the DICOM files are"):
        find_series(tmp_path, None)


@pytest.mark.parametrize("length", [132, 150, 200, 300])
def test_a_file_cut_off_in_its_header_is_named(length, write_series, tmp_path):
    path = next(write_series(tmp_path).glob("*.dcm"))
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(UsageError, match=rf"{path.name} (has no SeriesInstanceUID|cannot be read)"):
        find_series(tmp_path, None)


def test_blanked_series_uids_are_refused(write_series, tmp_path):
    def edit(index, dataset):
        dataset.SeriesInstanceUID = ""

    with pytest.raises(UsageError, match=r"has no SeriesInstanceUID.* an anonymiser blanked it"):
        find_series(write_series(tmp_path, edit), None)


def test_another_modality_is_named(write_series, tmp_path):
    def edit(index, dataset):
        dataset.Modality = "MR"
        dataset.SOPClassUID = pydicom.uid.MRImageStorage if index else dataset.SOPClassUID

    write_series(tmp_path, edit)
    with pytest.raises(UsageError, match=r"no CT series but .*4 x MR Image Storage"):
        find_series(tmp_path, None)
    with pytest.raises(UsageError, match="1 x modality MR"):
        find_series(tmp_path, None)


def test_two_real_series_are_listed_and_either_is_read(real_ct, tmp_path):
    uid = pydicom.uid.generate_uid()
    for index, path in enumerate(sorted((real_ct / "dicom").glob("*.dcm"))):
        dataset = pydicom.dcmread(path)
        dataset.SeriesInstanceUID = uid if index % 4 == 0 else dataset.SeriesInstanceUID
        dataset.save_as(tmp_path / path.name)
    with pytest.raises(UsageError, match="holds 2 CT series: choose one by series=UID") as error:
        find_series(tmp_path, None)
    assert "15 slices)" in str(error.value)
    assert f"{uid} (no description, 5 slices)" in str(error.value)
    assert len(find_series(tmp_path, uid).slices) == 5


def test_the_published_real_series_had_no_uids(real_ct, tmp_path):
    for path in sorted((real_ct / "dicom").glob("*.dcm"))[:3]:
        dataset = pydicom.dcmread(path)
        dataset.SeriesInstanceUID = ""
        dataset.save_as(tmp_path / path.name)
    with pytest.raises(UsageError, match=r"IM0000\.dcm has no SeriesInstanceUID"):
        find_series(tmp_path, None)
