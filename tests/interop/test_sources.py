import importlib
import sys

import numpy as np
import pytest

from pancreas_mtl import interop
from pancreas_mtl.errors import UsageError
from pancreas_mtl.interop.sources import find_sources, walk

MAGIC = b"\0" * 128 + b"DICM"


def test_a_folder_of_nifti_files(write_nifti, tmp_path):
    for name in ("b", "a"):
        write_nifti(tmp_path / f"{name}.nii.gz", np.zeros((2, 2, 2)))
    assert [source.name for source in find_sources(tmp_path, None, "nifti", [])] == ["a", "b"]


def test_nifti_files_at_the_top_go_before_dicom_files_below(write_nifti, tmp_path):
    write_nifti(tmp_path / "a.nii.gz", np.zeros((2, 2, 2)))
    (tmp_path / "dicom").mkdir()
    (tmp_path / "dicom" / "IM1").write_bytes(MAGIC)
    assert [source.name for source in find_sources(tmp_path, None, "nifti", [])] == ["a"]


@pytest.mark.parametrize(
    ("series", "output_format", "message"),
    [
        ("1.2.3", "nifti", r"series=1\.2\.3 is for DICOM, but input=.*a\.nii is not: leave it out"),
        (None, "dicom_seg", r"output_format=dicom_seg is for DICOM, but input=.*a\.nii is not"),
        (None, "dcm", r"output_format=dcm: choose one of nifti, dicom_seg"),
    ],
)
def test_options_that_do_not_fit_are_refused(series, output_format, message, write_nifti, tmp_path):
    path = write_nifti(tmp_path / "a.nii", np.zeros((2, 2, 2)))
    with pytest.raises(UsageError, match=message):
        find_sources(path, series, output_format, [])


def test_one_dicom_file_is_no_series(tmp_path):
    (tmp_path / "IM1").write_bytes(MAGIC)
    with pytest.raises(UsageError, match="IM1 is one DICOM file: give the folder of its series"):
        find_sources(tmp_path / "IM1", None, "nifti", [])


def test_a_folder_without_either(tmp_path):
    (tmp_path / "notes.txt").write_text("nothing")
    with pytest.raises(UsageError, match=r"holds no \.nii or \.nii\.gz file"):
        find_sources(tmp_path, None, "nifti", [])


def test_the_walk_leaves_out_hidden_files_and_ends_in_loops_of_links(tmp_path):
    for name in ("b", "a", ".hidden"):
        (tmp_path / name).write_text("")
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "nowhere").symlink_to(tmp_path / "missing")
    assert walk(tmp_path) == [tmp_path / "a", tmp_path / "b"]


def test_dicom_without_its_extra_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "IM1").write_bytes(MAGIC)
    monkeypatch.setitem(sys.modules, "pydicom", None)  # as where it is not installed
    for name in ("sources", "dicom_read", "dicom_series", "dicom_write"):
        monkeypatch.delitem(sys.modules, f"pancreas_mtl.interop.{name}", raising=False)
        monkeypatch.delattr(interop, name, raising=False)
    fresh = importlib.import_module("pancreas_mtl.interop.sources")  # which needs no pydicom
    with pytest.raises(
        UsageError, match=r"holds DICOM files .*pip install 'pancreas-mtl\[dicom\]'"
    ):
        fresh.find_sources(tmp_path, None, "nifti", [])
