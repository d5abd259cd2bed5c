import contextlib
import gzip
import os
import resource
import tracemalloc

import nibabel as nib
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pancreas_mtl.data import images
from pancreas_mtl.data.images import geometry_warnings, read_grid, read_image, write_mask
from pancreas_mtl.errors import CaseError
from pancreas_mtl.types import SourceGrid

AFFINE = nib.affines.from_matvec(np.diag((-0.7, -0.9, 2.0)), (5, -7, 11))


def save_ct(path, shape=(4, 5, 6)):
    values = np.random.default_rng(0).integers(-100, 100, shape).astype(np.int16)
    nib.save(nib.Nifti1Image(values, AFFINE), path)
    return path


def edit_header(path, **fields):
    """Overwrite fields of a `.nii` file's header in place, past every check of nibabel."""
    raw = bytearray(path.read_bytes())
    header = nib.Nifti1Header(bytes(raw[:348]), check=False)
    for name, value in fields.items():
        header[name] = value
    raw[:348] = header.binaryblock
    path.write_bytes(raw)


def test_an_invalid_qform_beside_a_valid_sform_is_a_warning(tmp_path):
    path = save_ct(tmp_path / "x.nii")
    edit_header(path, quatern_b=9.0, qform_code=1)
    assert "qform is no rotation" in geometry_warnings(read_grid(path))[0]
    assert read_image(path).array.shape == (6, 5, 4)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dim": (3, 32767, 32767, 32767, 1, 1, 1, 1)}, "promises 32767 x .* more than 1073741824"),
        ({"dim": (3, 1000, 1000, 1000, 1, 1, 1, 1)}, "is truncated or damaged"),
        ({"dim": (3, 4, 0, 6, 1, 1, 1, 1)}, r"has no voxels \(shape 4 x 0 x 6\)"),
        ({"dim": (3, 4, -5, 6, 1, 1, 1, 1)}, "has no voxels"),
        ({"dim": (2, 20, 6, 1, 1, 1, 1, 1)}, r"is not one 3D volume \(shape 20 x 6\)"),
        ({"dim": (4, 4, 5, 3, 2, 1, 1, 1)}, r"is not one 3D volume \(shape 4 x 5 x 3 x 2\)"),
        ({"magic": b"abc"}, "is no valid NIfTI file"),
        ({"magic": b"ni1"}, "its voxels are in another file"),
        ({"datatype": 999}, "is no valid NIfTI file"),
        ({"datatype": 128, "bitpix": 24}, "RGB or such, datatype 128"),
        ({"datatype": 32, "bitpix": 64}, "RGB or such, datatype 32"),
        ({"vox_offset": np.nan}, "is no valid NIfTI file"),
        ({"vox_offset": np.inf}, "begin at byte inf"),
        ({"vox_offset": 1e9}, r"begin at byte 1e\+09"),
        ({"vox_offset": 1e5}, "is truncated or damaged"),
        ({"srow_x": np.nan}, "an affine that is not finite"),
        ({"srow_x": 0, "srow_y": 0, "srow_z": 0}, "spacing of 0 x 0 x 0 mm"),
        ({"srow_x": (1, 0, 1, 0), "srow_y": (0, 1, 0, 0), "srow_z": 0}, "a singular affine"),
        ({"srow_x": (1e30, 0, 0, 0)}, r"spacing of 1e\+30"),
        ({"sform_code": 0, "qform_code": 1, "quatern_b": 9}, "has a qform that is no rotation"),
        ({"scl_slope": 1, "scl_inter": np.inf}, "is no valid NIfTI file"),
    ],
)
def test_headers_that_cannot_be_used_are_refused(tmp_path, fields, message):
    path = save_ct(tmp_path / "x.nii")
    edit_header(path, **fields)
    with pytest.raises(CaseError, match=rf"^{path} .*{message}.*: \w+"):
        read_image(path)


def test_a_promise_of_1e15_voxels_is_refused_before_allocation(tmp_path):
    header = nib.Nifti2Header()
    header.set_data_shape((100_000, 100_000, 100_000))
    header.set_sform(np.eye(4), code=1)
    path = tmp_path / "x.nii.gz"
    path.write_bytes(gzip.compress(header.binaryblock + bytes(1000)))
    tracemalloc.start()
    with pytest.raises(CaseError, match="promises 100000 x 100000 x 100000 voxels"):
        read_image(path)
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


def test_a_gzip_bomb_is_unpacked_only_as_far_as_its_header_promises(tmp_path):
    path = save_ct(tmp_path / "x.nii")
    bomb = gzip.compress(path.read_bytes() + bytes(2**26), 1)
    (tmp_path / "bomb.nii.gz").write_bytes(bomb[:-8] + b"no checksum")
    tracemalloc.start()
    volume = read_image(tmp_path / "bomb.nii.gz")
    assert tracemalloc.get_traced_memory()[1] < 2**22
    tracemalloc.stop()
    assert np.array_equal(volume.array, read_image(path).array)


def damage(data, kind):
    if kind == "truncated":
        return data[: len(data) // 2]
    if kind == "checksum":
        return data[:-8] + bytes([data[-8] ^ 1]) + data[-7:]
    if kind == "stream":
        return data[:100] + bytes(50) + data[150:]
    return {"empty": b"", "one byte": b"\x1f", "text": b"no image " * 99}[kind]


@pytest.mark.parametrize("kind", ["truncated", "checksum", "stream", "empty", "one byte", "text"])
def test_damaged_files_are_refused(tmp_path, kind):
    path = save_ct(tmp_path / "x.nii.gz", shape=(9, 9, 9))
    path.write_bytes(damage(path.read_bytes(), kind))
    with pytest.raises(CaseError, match=rf"^{path} is (truncated or damaged|no valid NIfTI)"):
        read_image(path)


def test_a_truncated_plain_file_is_refused(tmp_path):
    path = save_ct(tmp_path / "x.nii")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CaseError, match="truncated or damaged: copy it again"):
        read_image(path)


@pytest.mark.parametrize("name", ["x.mha", "x.nrrd", "x.hdr", "x.dcm", "x.nii.gz.part", "x"])
def test_other_formats_are_refused_by_name(tmp_path, name):
    with pytest.raises(
        CaseError, match=f"{name} is no .nii or .nii.gz file .*: convert it to NIfTI"
    ):
        read_image(tmp_path / name)


def test_paths_that_are_no_files_are_refused(tmp_path):
    (tmp_path / "loop.nii").symlink_to(tmp_path / "loop.nii")
    (tmp_path / "folder.nii").mkdir()
    os.mkfifo(tmp_path / "pipe.nii")
    for name in ("loop.nii", "missing.nii", "pipe.nii"):
        with pytest.raises(CaseError, match=f"{name} is no file, or a link that leads nowhere"):
            read_image(tmp_path / name)
    with pytest.raises(CaseError, match=r"folder\.nii is a folder"):
        read_grid(tmp_path / "folder.nii")


def test_gzip_is_known_by_its_content_not_by_its_name(tmp_path):
    path = save_ct(tmp_path / "x.nii.gz")
    expected = read_image(path).array
    assert np.array_equal(read_image(path.rename(tmp_path / "X.NII")).array, expected)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    edits=st.lists(st.tuples(st.integers(0, 500), st.integers(0, 255)), max_size=6),
    cut=st.integers(0, 500),
    packed=st.booleans(),
)
def test_no_byte_of_a_file_can_do_worse_than_a_case_error(tmp_path, edits, cut, packed):
    data = bytearray(save_ct(tmp_path / "x.nii").read_bytes())
    for position, value in edits:
        data[position % len(data)] = value
    data = data[: len(data) - cut] if cut < 50 else data
    path = tmp_path / "y.nii.gz"
    path.write_bytes(gzip.compress(bytes(data)) if packed else bytes(data))
    with contextlib.suppress(CaseError):
        assert np.isfinite(read_image(path, warn=str).array).all()


def test_an_image_larger_than_the_free_memory_is_refused(tmp_path, monkeypatch):
    path = save_ct(tmp_path / "x.nii")
    monkeypatch.setattr(images, "free_ram_bytes", lambda: 120 * 5 - 1)
    with pytest.raises(CaseError, match=r"needs 0\.0 GB of memory, 0\.0 GB are free: free memory"):
        read_image(path)


# Writing


def test_a_full_disk_leaves_neither_a_mask_nor_a_rest(tmp_path):
    image = read_image(save_ct(tmp_path / "x.nii", shape=(20, 20, 20)))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(CaseError, match=r"m\.nii cannot be written \(File too large\): free"):
            write_mask(tmp_path / "m.nii", np.ones((20, 20, 20), np.uint8), image.source)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in tmp_path.iterdir()] == ["x.nii"]


def test_a_missing_output_folder_is_one_line(tmp_path):
    grid = SourceGrid((2, 2, 2), np.eye(4))
    with pytest.raises(CaseError, match=r"No such file or directory\): free space there, or write"):
        write_mask(tmp_path / "no" / "m.nii", np.ones((2, 2, 2), np.uint8), grid)


def test_masks_are_written_bit_for_bit_alike(tmp_path):
    grid = SourceGrid((2, 2, 2), np.eye(4))
    for name in ("a.nii.gz", "b.nii.gz"):
        write_mask(tmp_path / name, np.ones((2, 2, 2), np.uint8), grid)
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()
