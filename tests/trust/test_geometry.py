"""Left stays left: a lesion painted in the world comes back where it was, whatever the storage.

The network is a stand-in that calls every bright voxel lesion, so the answer is known exactly; all
else is the real thing: reading, resampling at equal spacing, windows, labels, writing.
"""

import itertools

import nibabel as nib
import numpy as np
import pytest
import torch
from trust.faults import predict, save_ct

from pancreas_mtl.inference.bundle import load_bundle
from pancreas_mtl.inference.pipeline import nifti_source, predict_cases
from pancreas_mtl.inference.predictor import PRESETS, Predictor
from pancreas_mtl.inference.writer import open_output
from pancreas_mtl.types import Evidence

pytestmark = pytest.mark.slow

ORIENTATIONS = [
    (axes, signs)
    for axes in itertools.permutations(range(3))
    for signs in itertools.product((1, -1), repeat=3)
]
SPACING_MM = (1.5, 2.0, 4.0)  # of the plan, along Right, Anterior, Superior
GEOMETRY = ("dim", "pixdim", "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d",
            "qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z",
            "xyzt_units")  # fmt: skip
ROTATION = nib.eulerangles.euler2mat(0.2, -0.15, 0.3)
OBLIQUE = nib.affines.from_matvec(ROTATION @ np.diag((-1.5, -2.0, 4.0)), (5, -7, 11))
SHEARED = OBLIQUE @ nib.affines.from_matvec([[1, 0.2, 0], [0, 1, -0.2], [0, 0, 1]])


class BrightIsLesion:
    """An engine whose logits follow from the brightness alone."""

    device = torch.device("cpu")
    precision = "fp32"

    def __call__(self, images):
        bright = images > 2
        logits = torch.cat([torch.zeros_like(images), bright * 0.0, bright * 9.0 - 1.0], 1)
        return logits, Evidence(images.new_ones(1, 1), images.new_ones(1, 1))

    def classify(self, evidence):
        return torch.zeros(len(evidence.sums), 3)


@pytest.fixture(scope="module")
def predictor(model):
    predictor = Predictor([load_bundle(model)], preset=PRESETS["single"], device="cpu")
    predictor.engines = [BrightIsLesion()]
    return predictor


def lesion_mm(image):
    """World coordinates (n, 3), RAS, of the voxels that are bright, or labelled lesion."""
    found = np.argwhere(np.squeeze(np.asarray(image.dataobj)) == LESION[image.get_data_dtype()])
    return nib.affines.apply_affine(image.affine, found)


LESION = {np.dtype("int16"): 200, np.dtype("uint8"): 2}


def painted(affine, shape):
    """A CT whose lesion is a small box on the patient's left, front and head side."""
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    world = nib.affines.apply_affine(affine, index)
    middle = (world.min((0, 1, 2)) + world.max((0, 1, 2))) / 2
    there = (world[..., 0] < middle[0]) & (world[..., 1] > middle[1]) & (world[..., 2] > middle[2])
    array = np.where(index.sum(-1) % 2, -80, 40).astype(np.int16)
    array[there] = 200
    return array


def answer(predictor, path, folder):
    open_output(folder, "x", overwrite=True)
    (record,) = predict_cases(predictor, [nifti_source(path)], folder)
    assert record.error is None, record.error
    return nib.load(folder / f"{record.name}.nii.gz")


@pytest.mark.parametrize(("axes", "signs"), ORIENTATIONS)
def test_left_stays_left_in_48_storage_orders(predictor, tmp_path, axes, signs):
    matrix = np.zeros((3, 3))
    for column, (axis, sign) in enumerate(zip(axes, signs, strict=True)):
        matrix[axis, column] = sign * SPACING_MM[axis]
    affine = nib.affines.from_matvec(matrix, (11, -23, 47))
    sizes = (10, 12, 6)  # along Right, Anterior, Superior
    shape = tuple(sizes[axis] for axis in axes)
    image = nib.load(save_ct(tmp_path / "x.nii.gz", painted(affine, shape), affine))
    mask = answer(predictor, tmp_path / "x.nii.gz", tmp_path / "out")
    expected, found = lesion_mm(image), lesion_mm(mask)
    assert len(expected) == 5 * 6 * 3
    np.testing.assert_array_equal(found, expected)
    centre = nib.affines.apply_affine(affine, (np.array(shape) - 1) / 2)
    assert found[:, 0].max() < centre[0], "x grows towards the patient's right"
    for field in GEOMETRY:
        np.testing.assert_array_equal(mask.header[field], image.header[field])


def header_of(sform, qform, **fields):
    header = nib.Nifti1Header()
    header.set_qform(OBLIQUE, code=qform)
    header.set_sform(SHEARED if sform else None, code=sform)
    for name, value in fields.items():
        header[name] = value
    return header


KINDS = {
    "oblique": (OBLIQUE, None, (10, 9, 6), nib.Nifti1Image, None),
    "sheared": (SHEARED, None, (10, 9, 6), nib.Nifti1Image, None),
    "not orthonormal": (
        OBLIQUE @ np.diag((1.01, 0.99, 1.0, 1)) + np.diag((0, 0.02, 0.01, 0)),
        None,
        (10, 9, 6),
        nib.Nifti1Image,
        None,
    ),
    "sform and qform disagree": (
        None,
        header_of(2, 1),
        (10, 9, 6),
        nib.Nifti1Image,
        "sform and qform disagree",
    ),
    "qform alone": (None, header_of(0, 1), (10, 9, 6), nib.Nifti1Image, None),
    "sform alone": (None, header_of(1, 0), (10, 9, 6), nib.Nifti1Image, None),
    "neither": (None, header_of(0, 0), (10, 9, 6), nib.Nifti1Image, "its orientation is a guess"),
    "without units": (None, header_of(1, 1, xyzt_units=0), (9, 9, 6), nib.Nifti1Image, "disagree"),
    "big-endian": (
        OBLIQUE,
        nib.Nifti1Header(endianness=">"),
        (10, 9, 6),
        nib.Nifti1Image,
        None,
    ),
    "NIfTI-2": (OBLIQUE, None, (10, 9, 6), nib.Nifti2Image, None),
    "one slice": (OBLIQUE, None, (10, 9, 1), nib.Nifti1Image, None),
    "4D with one volume": (OBLIQUE, None, (10, 9, 6, 1), nib.Nifti1Image, None),
    "fine": (np.diag((-0.3, -0.3, 0.3, 1)), None, (10, 9, 6), nib.Nifti1Image, None),
    "coarse": (np.diag((10.0, -10.0, 10.0, 1)), None, (10, 9, 6), nib.Nifti1Image, None),
    "anisotropic": (np.diag((0.3, -0.3, -10.0, 1)), None, (20, 18, 3), nib.Nifti1Image, None),
}


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_mask_has_the_geometry_of_its_image(predictor, tmp_path, kind, suffix):
    affine, header, shape, klass, warning = KINDS[kind]
    array = np.where(np.indices(shape).sum(0) % 2, -80, 40).astype(np.int16)
    array[: shape[0] // 2] = 200
    path = save_ct(tmp_path / f"x{suffix}", array, affine, header, klass)
    image, mask = nib.load(path), answer(predictor, path, tmp_path / "out")
    assert type(mask) is type(image)
    assert mask.shape == image.shape
    for field in GEOMETRY:
        np.testing.assert_array_equal(mask.header[field], image.header[field], err_msg=field)
    np.testing.assert_array_equal(mask.affine, image.affine)
    side = np.squeeze(np.asarray(mask.dataobj)) == 2
    assert side[0].mean() > 0.9 > 0.1 > side[-1].mean()  # the half that was bright
    notes = (tmp_path / "out" / "journal.jsonl").read_text()
    assert (warning or '"warnings": []') in notes


@pytest.mark.parametrize("slope", [(1.0, 0.0), (2.5, -1024.0), (-1.0, 100.0), (0.0, 7.0)])
@pytest.mark.parametrize("dtype", ["i1", "u1", "<u2", ">u2", "<i4", ">i4", "i8", "u8", ">f4", "f8"])
def test_a_number_is_worth_its_scaled_value_in_every_type(predictor, tmp_path, dtype, slope):
    stored = np.zeros((6, 5, 4), dtype)
    stored[1:3, 2, 1:3] = 100
    image = nib.Nifti1Image(stored, OBLIQUE, nib.Nifti1Header(endianness=">"))
    image.header.set_data_dtype(stored.dtype.newbyteorder(">"))
    path = tmp_path / "x.nii"
    nib.save(image, path)
    raw = bytearray(path.read_bytes())
    header = nib.Nifti1Header(bytes(raw[:348]), endianness=">", check=False)
    header["scl_slope"], header["scl_inter"] = slope
    raw[:348] = header.binaryblock
    path.write_bytes(raw)
    factor, offset = slope if slope[0] else (1.0, 0.0)  # a slope of 0 means that there is none
    bright = (stored.astype(float) * factor + offset).clip(-100, 250) > 60 + 2 * 50
    mask = answer(predictor, path, tmp_path / "out")
    np.testing.assert_array_equal(np.asarray(mask.dataobj) == 2, bright)
    for field in GEOMETRY:
        np.testing.assert_array_equal(mask.header[field], image.header[field], err_msg=field)
    assert mask.get_data_dtype() == np.uint8
    assert mask.dataobj.slope == 1


def test_the_command_says_the_same_as_the_pipeline(model, tmp_path):
    save_ct(tmp_path / "in" / "x.nii.gz", painted(OBLIQUE, (10, 9, 6)), OBLIQUE)
    predicted = predict(model, tmp_path / "in", tmp_path / "out")
    assert predicted.finished.code == 0
    np.testing.assert_allclose(nib.load(tmp_path / "out" / "x.nii.gz").affine, OBLIQUE, atol=1e-5)
