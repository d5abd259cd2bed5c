import contextlib
import gzip
import itertools
import os
import pickle
import resource
import tracemalloc

import nibabel as nib
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pancreas_mtl.data.images import (
    canonical_shape,
    case_name,
    find_images,
    geometry_warnings,
    grid_difference,
    read_grid,
    read_image,
    read_mask,
    to_source,
    volume_from_source,
    write_mask,
    write_volume,
)
from pancreas_mtl.errors import CaseError, UsageError
from pancreas_mtl.types import SourceGrid

SPACING_MM = (0.7, 0.9, 2.0)  # along the patient's right, front, head
ORIENTATIONS = [
    (axes, signs)
    for axes in itertools.permutations(range(3))
    for signs in itertools.product((1, -1), repeat=3)
]
OBLIQUE = nib.affines.from_matvec(
    nib.eulerangles.euler2mat(0.3, -0.2, 0.4) @ np.diag((-0.7, -0.9, 2.0)), (5, -7, 11)
)
SHEARED = OBLIQUE @ nib.affines.from_matvec([[1, 0.2, 0], [0, 1, -0.3], [0, 0, 1]])


def axis_affine(axes, signs):
    """The affine of a file whose axis n runs along world axis axes[n], forward or backward."""
    matrix = np.zeros((3, 3))
    for column, (axis, sign) in enumerate(zip(axes, signs, strict=True)):
        matrix[axis, column] = sign * SPACING_MM[axis]
    return nib.affines.from_matvec(matrix, (11, -23, 47))


def save(path, array, affine, header=None, klass=nib.Nifti1Image):
    nib.save(klass(array, affine, header), path)
    return path


def save_ct(path, shape=(4, 5, 6), affine=OBLIQUE, dtype=np.int16, seed=0):
    values = np.random.default_rng(seed).integers(-100, 100, shape)
    return save(path, values.astype(dtype), affine)


def world_mm(shape, affine):
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    return nib.affines.apply_affine(affine, index)


@pytest.mark.parametrize(("axes", "signs"), ORIENTATIONS)
def test_48_orientations_lead_to_one_convention_and_exactly_back(tmp_path, axes, signs):
    affine, shape = axis_affine(axes, signs), (3, 4, 5)
    coded = (world_mm(shape, affine) @ (1, 10, 100)).astype(np.float32)
    volume = read_image(save(tmp_path / "x.nii", coded, affine))
    for axis, step in enumerate((2.0 * 100, -0.9 * 10, -0.7)):  # to head, back and left
        assert np.allclose(np.diff(volume.array, axis=axis), step, atol=1e-3)
    assert np.allclose(volume.spacing_mm, (2.0, 0.9, 0.7))
    assert canonical_shape(volume.source) == volume.array.shape
    assert np.array_equal(to_source(volume.array, volume.source), coded)
    assert np.array_equal(volume_from_source(coded, volume.source).array, volume.array)

    lesion = np.zeros(volume.array.shape, np.uint8)
    lesion[-1, 0, -1] = 2  # the voxel nearest to head, front and left
    write_mask(tmp_path / "m.nii.gz", lesion, volume.source)
    written = nib.load(tmp_path / "m.nii.gz")
    (found,) = np.argwhere(np.asarray(written.dataobj) == 2)
    x, y, z = nib.affines.apply_affine(written.affine, found)
    world = world_mm(shape, affine).reshape(-1, 3)
    assert np.allclose((x, y, z), (world[:, 0].min(), world[:, 1].max(), world[:, 2].max()))


@pytest.mark.parametrize("affine", [OBLIQUE, SHEARED], ids=["oblique", "sheared"])
def test_oblique_and_sheared_grids_keep_their_voxels(tmp_path, affine):
    path = save_ct(tmp_path / "x.nii.gz", affine=affine)
    volume = read_image(path)
    stored = nib.load(path)
    assert np.array_equal(to_source(volume.array, volume.source), stored.get_fdata())
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    assert np.allclose(volume.spacing_mm, lengths[::-1], rtol=1e-6)
    assert volume.array.flags.c_contiguous


TYPES = ["i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"]


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("dtype", TYPES)
def test_every_number_type_reads_as_nibabel_reads_it(tmp_path, dtype, order):
    array = np.arange(60).reshape(3, 4, 5).astype(order + dtype)
    header = nib.Nifti1Header(endianness=order)
    header.set_data_dtype(array.dtype)
    header.set_slope_inter(2.5, -1024)
    save(tmp_path / "x.nii.gz", array * 2.5 - 1024, OBLIQUE, header)
    volume = read_image(tmp_path / "x.nii.gz")
    assert volume.array.dtype == np.float32
    expected = nib.load(tmp_path / "x.nii.gz").get_fdata()
    assert np.allclose(to_source(volume.array, volume.source), expected, atol=1e-3)
    assert np.ptp(expected) > 100


def with_codes(sform, qform):
    def make():
        header = nib.Nifti1Header()
        header.set_qform(OBLIQUE, code=qform)
        header.set_sform(SHEARED, code=sform)
        return header

    return make


def big_endian():
    return nib.Nifti1Header(endianness=">")


def with_units():
    header = with_codes(2, 1)()
    header.set_xyzt_units("mm", "sec")
    header["pixdim"][4:6] = (3, 7)
    return header


GEOMETRY = ["dim", "pixdim", "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d",
            "qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z",
            "xyzt_units"]  # fmt: skip


@pytest.mark.parametrize("name", ["x.nii", "x.nii.gz"])
@pytest.mark.parametrize(
    ("make_header", "shape", "klass"),
    [
        (with_codes(0, 1), (3, 4, 5), nib.Nifti1Image),
        (with_codes(2, 0), (3, 4, 5), nib.Nifti1Image),
        (with_codes(4, 3), (3, 4, 5), nib.Nifti1Image),
        (with_codes(0, 0), (3, 4, 5), nib.Nifti1Image),
        (big_endian, (3, 4, 5), nib.Nifti1Image),
        (with_units, (3, 4, 5), nib.Nifti1Image),
        (with_units, (3, 4, 1), nib.Nifti1Image),
        (with_units, (3, 4, 5, 1), nib.Nifti1Image),
        (with_units, (3, 4, 5, 1, 1), nib.Nifti2Image),
    ],
)
def test_the_mask_has_the_geometry_of_the_image(tmp_path, make_header, shape, klass, name):
    array = np.arange(np.prod(shape), dtype=np.int16).reshape(shape)
    header = make_header()
    header.set_slope_inter(2, 5)
    image_path = save(tmp_path / name, array, None, header, klass)
    volume = read_image(image_path)
    labels = (volume.array % 3).astype(np.uint8)
    write_mask(tmp_path / f"mask_{name}", labels, volume.source)
    image, mask = nib.load(image_path), nib.load(tmp_path / f"mask_{name}")
    assert type(image) is type(mask)
    assert image.header.endianness == mask.header.endianness
    for field in GEOMETRY:
        assert np.array_equal(mask.header[field], image.header[field]), field
    assert np.array_equal(mask.affine, image.affine)
    assert mask.get_data_dtype() == np.uint8
    assert (mask.dataobj.slope, mask.dataobj.inter) == (1, 0)
    assert mask.shape == shape
    assert np.array_equal(read_mask(tmp_path / f"mask_{name}", grid=volume.source).array, labels)


def test_a_grid_without_header_writes_its_own(tmp_path):
    grid = SourceGrid((3, 4, 5), SHEARED)
    write_mask(tmp_path / "m.nii.gz", np.ones(canonical_shape(grid), np.uint8), grid)
    written = read_grid(tmp_path / "m.nii.gz")
    assert grid_difference(written, grid) is None
    assert written.header.get_xyzt_units()[0] == "mm"


def test_written_files_carry_no_text_or_extension_of_the_image(tmp_path):
    header = nib.Nifti1Header()
    header["descrip"], header["db_name"] = b"a name", b"another"
    header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"a third"))
    image = read_image(save(tmp_path / "x.nii.gz", np.zeros((3, 4, 5), np.int16), OBLIQUE, header))
    write_mask(tmp_path / "m.nii", image.array.astype(np.uint8), image.source)
    assert b"name" not in (tmp_path / "m.nii").read_bytes()
    assert not nib.load(tmp_path / "m.nii").header.extensions


def test_float_volumes_are_written_in_the_byte_order_of_the_header(tmp_path):
    path = save(tmp_path / "x.nii", np.zeros((3, 4, 5), ">i2"), OBLIQUE, big_endian())
    volume = read_image(path)
    volume.array[...] = np.linspace(-1, 1, volume.array.size).reshape(volume.array.shape)
    write_volume(tmp_path / "y.nii.gz", volume.array, volume.source)
    assert np.array_equal(read_image(tmp_path / "y.nii.gz").array, volume.array)
    reference = nib.load(tmp_path / "y.nii.gz").get_fdata()
    assert np.array_equal(to_source(volume.array, volume.source), reference.astype(np.float32))


@pytest.mark.parametrize(
    ("unit", "factor"), [("unknown", 1), ("mm", 1), ("meter", 1e-3), ("micron", 1e3)]
)
def test_spacing_is_in_mm_whatever_the_unit(tmp_path, unit, factor):
    header = nib.Nifti1Header()
    header.set_xyzt_units(unit)
    path = save(tmp_path / "x.nii", np.zeros((3, 4, 5), np.int16), OBLIQUE * factor, header)
    assert np.allclose(read_image(path).spacing_mm, (2.0, 0.9, 0.7))


def test_sform_counts_where_qform_disagrees_and_a_warning_says_so(tmp_path):
    path = save(tmp_path / "x.nii", np.zeros((3, 4, 5), np.int16), None, with_codes(1, 1)())
    grid = read_grid(path)
    assert np.allclose(grid.affine, SHEARED)
    assert "sform and qform disagree (corners up to" in geometry_warnings(grid)[0]
    assert geometry_warnings(read_grid(save_ct(tmp_path / "good.nii"))) == []
    assert geometry_warnings(SourceGrid((1, 1, 1), np.eye(4))) == []
    path = save(tmp_path / "none.nii", np.zeros((3, 4, 5), np.int16), None, with_codes(0, 0)())
    assert "its orientation is a guess" in geometry_warnings(read_grid(path))[0]


def test_an_invalid_qform_beside_a_valid_sform_is_a_warning(tmp_path):
    path = save_ct(tmp_path / "x.nii")
    edit_header(path, quatern_b=9.0, qform_code=1)
    assert "qform is no rotation" in geometry_warnings(read_grid(path))[0]
    assert read_image(path).array.shape == (6, 5, 4)


def test_volumes_travel_between_processes(tmp_path):
    volume = read_image(save_ct(tmp_path / "x.nii"))
    assert np.array_equal(pickle.loads(pickle.dumps(volume)).array, volume.array)


# Values


def test_voxels_that_are_not_finite_are_an_error_or_a_warning(tmp_path):
    array = np.linspace(-50, 80, 60, dtype=np.float32).reshape(3, 4, 5)
    array[0, 0, 1], array[1, 2, 3], array[2, 3, 4] = np.nan, np.inf, -np.inf
    path = save(tmp_path / "x.nii.gz", array, OBLIQUE)
    with pytest.raises(CaseError, match=r"x\.nii\.gz has 3 of 60 voxels .* fix=true"):
        read_image(path)
    notes = []
    mended = read_image(path, warn=notes.append)
    bad = ~np.isfinite(array)
    restored = to_source(mended.array, mended.source)
    assert (restored[bad] == -50).all()
    assert np.array_equal(restored[~bad], array[~bad])
    assert len(notes) == 1
    assert "3 of 60 voxels that are not finite; they count as -50" in notes[0]


def test_an_image_without_any_finite_voxel_is_an_error(tmp_path):
    path = save(tmp_path / "x.nii", np.full((3, 4, 5), np.nan), OBLIQUE)
    with pytest.raises(CaseError, match="60 of 60 voxels"):
        read_image(path, warn=print)


def test_doubles_beyond_float32_count_as_not_finite(tmp_path):
    array = np.zeros((3, 4, 5))
    array[0, 0, 0] = 1e300
    with pytest.raises(CaseError, match="1 of 60 voxels"):
        read_image(save(tmp_path / "x.nii", array, OBLIQUE))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_mask_values_near_a_label_are_rounded(tmp_path, dtype):
    values = np.array([0, 1.0000152587890625, 2 - 9e-4, -5e-5], dtype).reshape(1, 2, 2)
    path = save(tmp_path / "m.nii.gz", values, np.eye(4))
    mask = read_mask(path)
    assert mask.array.dtype == np.uint8
    assert to_source(mask.array, mask.source).ravel().tolist() == [0, 1, 2, 0]


@pytest.mark.parametrize("value", [1.5, 0.998, 3, -1, np.nan, np.inf, 255])
def test_other_mask_values_are_refused_by_name(tmp_path, value):
    values = np.array([0, 1, 2, value]).reshape(1, 2, 2)
    path = save(tmp_path / "m.nii.gz", values.astype(np.float64), np.eye(4))
    with pytest.raises(
        CaseError, match=rf"m\.nii\.gz holds the value {value:.17g}: use 0, 1 and 2"
    ):
        read_mask(path)


def test_integer_masks_with_another_label_are_refused(tmp_path):
    path = save(tmp_path / "m.nii.gz", np.full((2, 2, 2), 7, np.uint8), np.eye(4))
    with pytest.raises(CaseError, match="the value 7"):
        read_mask(path)


def test_a_mask_must_share_its_images_grid(tmp_path):
    image = read_image(save_ct(tmp_path / "x.nii"))
    near = OBLIQUE + 1e-4
    mask = np.ones((4, 5, 6), np.uint8)
    assert read_mask(save(tmp_path / "near.nii", mask, near), grid=image.source).array.all()
    moved = nib.affines.from_matvec(OBLIQUE[:3, :3], (5, -7, 12))
    with pytest.raises(CaseError, match=r"not on its image's grid \(corners up to 1 mm apart\)"):
        read_mask(save(tmp_path / "moved.nii", mask, moved), grid=image.source)
    with pytest.raises(CaseError, match="shape 4 x 5 x 5 instead of 4 x 5 x 6"):
        read_mask(save(tmp_path / "small.nii", mask[:, :, :5], OBLIQUE), grid=image.source)


# Bad files


def edit_header(path, **fields):
    """Overwrite fields of a `.nii` file's header in place, past every check of nibabel."""
    raw = bytearray(path.read_bytes())
    header = nib.Nifti1Header(bytes(raw[:348]), check=False)
    for name, value in fields.items():
        header[name] = value
    raw[:348] = header.binaryblock
    path.write_bytes(raw)


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


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
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


# Writing and naming


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


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("quiz_1_002_0000.nii.gz", "quiz_1_002"),
        ("quiz_1_002.nii", "quiz_1_002"),
        ("=a b'ü.v2.NII.GZ", "=a b'ü.v2"),
        ("_0000.nii.gz", "_0000"),
        ("case_0000_0000.nii.gz", "case_0000"),
    ],
)
def test_case_names(tmp_path, file, name):
    assert case_name(tmp_path / file) == name


def test_images_of_a_folder_leave_out_masks_and_hidden_files(tmp_path):
    for name in ("b_0000.nii.gz", "b.nii.gz", "._a.nii.gz", "a.nii", "notes.txt"):
        (tmp_path / name).touch()
    assert [path.name for path in find_images(tmp_path)] == ["a.nii", "b_0000.nii.gz"]
    assert find_images(tmp_path / "a.nii") == [tmp_path / "a.nii"]


def test_folders_without_usable_images_are_bad_usage(tmp_path):
    with pytest.raises(UsageError, match=r"holds no \.nii or \.nii\.gz file: give a folder"):
        find_images(tmp_path)
    with pytest.raises(UsageError, match="nowhere is no file and no folder: check the path"):
        find_images(tmp_path / "nowhere")
    for name in ("a.nii", "a.nii.gz"):
        (tmp_path / name).touch()
    with pytest.raises(UsageError, match=r"holds a twice \(a\.nii and a\.nii\.gz\): remove"):
        find_images(tmp_path)
