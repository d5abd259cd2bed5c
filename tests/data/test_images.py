import itertools
import pickle

import nibabel as nib
import numpy as np
import pytest

from pancreas_mtl.data.images import (
    canonical_shape,
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
from pancreas_mtl.data.names import case_name
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


# Naming


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
    with pytest.raises(UsageError, match=r"holds no \.nii or \.nii\.gz file: give a folder of CTs"):
        find_images(tmp_path)
    with pytest.raises(UsageError, match="nowhere is no file and no folder: check the path"):
        find_images(tmp_path / "nowhere")
    for name in ("a.nii", "a.nii.gz"):
        (tmp_path / name).touch()
    with pytest.raises(UsageError, match=r"holds a twice \(a\.nii and a\.nii\.gz\): remove"):
        find_images(tmp_path)
