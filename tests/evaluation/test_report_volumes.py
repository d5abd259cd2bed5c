import base64
import gzip
import io

import nibabel as nib
import numpy as np
import pytest
from evaluation import report_runs as make
from PIL import Image

from pancreas_mtl.data.images import read_image, read_mask
from pancreas_mtl.errors import CaseError
from pancreas_mtl.evaluation.report import volumes
from pancreas_mtl.evaluation.report.sheets import QUANTISED_HU, pack_ct, quantise, reductions
from pancreas_mtl.evaluation.report.volumes import (
    ROW_BYTES,
    THUMBNAIL_PX,
    VOLUMES_BYTES,
    WEIGHT_STEP,
    Budget,
    CaseSource,
    Overlay,
    pack_case,
    share_out,
)

SPACING_MM = (2.0, 0.7, 0.9)
CT_BYTES = 300_000
BUDGET = Budget(500_000, 60_000)


def unpack_ct(sheet):
    """The NIfTI image that the viewer makes of a sheet."""
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(sheet.jpeg))))
    depth, height, width = sheet.shape
    slices = []
    for d in range(depth):
        y, x = (d // sheet.columns) * sheet.tile[0], (d % sheet.columns) * sheet.tile[1]
        slices.append(pixels[y : y + height, x : x + width])
    voxels = np.stack(slices).astype(np.uint8)
    return nib.Nifti1Image.from_bytes(base64.b64decode(sheet.header) + voxels.tobytes())


def unpack_mask(text):
    return nib.Nifti1Image.from_bytes(gzip.decompress(base64.b64decode(text)))


def smooth_ct(shape=(9, 20, 27)):
    d, h, w = np.indices(shape)
    return (40 + 60 * np.sin(d / 3) + 2 * h - 1.5 * w).astype(np.float32)


def test_a_ct_comes_back_within_the_loss_of_the_jpeg():
    image = smooth_ct()
    back = unpack_ct(pack_ct(image, SPACING_MM, max_bytes=CT_BYTES))
    assert back.header.get_zooms() == pytest.approx(tuple(reversed(SPACING_MM)))
    hu = np.asarray(back.dataobj).transpose(2, 1, 0)
    assert hu.shape == image.shape
    assert np.abs(hu - image).max() < 12
    assert np.abs(hu - image).mean() < 3


def test_the_affine_says_left_posterior_superior():
    back = unpack_ct(pack_ct(smooth_ct(), SPACING_MM, max_bytes=CT_BYTES))
    assert nib.aff2axcodes(back.affine) == ("L", "P", "S")


def test_quantising_covers_its_window_and_clips_the_rest():
    low, high = QUANTISED_HU
    levels = quantise(np.array([-1000, low, 0, high - 0.01, 3000], np.float32))
    assert levels.tolist() == [0, 0, round(-low / (high - low) * 256), 255, 255]


def test_reductions_begin_at_full_resolution_and_spare_the_coarse_axis():
    first, second = (next(r) for r in [reductions((10, 10, 10), SPACING_MM)] * 2)
    assert first == (1, 1, 1)
    assert second == (1, 2, 2)  # slices of 2 mm are coarse already
    thin = reductions((10, 10, 10), (0.5, 0.7, 0.7))
    assert [next(thin) for _ in range(3)] == [(1, 1, 1), (2, 1, 1), (3, 1, 1)]


def test_a_ct_that_is_too_large_is_averaged_and_stays_in_place():
    image = smooth_ct((12, 40, 50))
    full = pack_ct(image, SPACING_MM, max_bytes=CT_BYTES)
    limit = len(base64.b64decode(full.jpeg)) // 3
    coarse = pack_ct(image, SPACING_MM, max_bytes=limit)
    assert len(base64.b64decode(coarse.jpeg)) <= limit
    assert np.prod(coarse.shape) < image.size

    def middle_mm(sheet):
        back = unpack_ct(sheet)
        return back.affine @ [*(np.array(back.shape) - 1) / 2, 1]

    np.testing.assert_allclose(middle_mm(coarse), middle_mm(full), atol=0.5)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    root = tmp_path_factory.mktemp("volumes")
    cases = make.write_data(root, ["quiz_0_001"])
    folder = make.write_predictions(root / "predictions", cases)
    overlay = Overlay(
        link="case-0-0",
        prediction=folder / "quiz_0_001.nii.gz",
        attention=folder / "attention" / "quiz_0_001.nii.gz",
        title="quiz_0_001",
    )
    reference = root / "references" / "quiz_0_001.nii.gz"
    return CaseSource("quiz_0_001", cases["quiz_0_001"][0], reference, (overlay,))


def test_masks_come_back_exactly_and_on_the_ct(source):
    packed = pack_case(source, BUDGET)
    ct, reference = unpack_ct(packed.ct), unpack_mask(packed.reference)
    prediction = unpack_mask(packed.overlays[0].prediction)
    for mask, path in ((reference, source.reference), (prediction, source.overlays[0].prediction)):
        found = np.asarray(mask.dataobj).transpose(2, 1, 0)
        np.testing.assert_array_equal(found, read_mask(path).array)  # the margin spans it all
        np.testing.assert_allclose(mask.affine, ct.affine)
        assert mask.shape == ct.shape
    hu = np.asarray(ct.dataobj).transpose(2, 1, 0)
    assert (
        np.abs(hu - read_image(source.image).array).mean() < 6
    )  # of noise with a standard deviation of 20


def test_pooling_weights_come_back_coarser_in_steps_and_in_place(source):
    packed = pack_case(source, BUDGET)
    weights, mask = (unpack_mask(x) for x in (packed.overlays[0].attention, packed.reference))
    values = np.asarray(weights.dataobj)
    assert values.shape == (11, 13, 12)  # half as many columns and rows
    assert (values.min(), values.max()) == (16, 240)
    assert not (values % WEIGHT_STEP).any()

    def corners_mm(image):
        ends = np.array([[-0.5] * 3, np.array(image.shape) - 0.5])
        return nib.affines.apply_affine(image.affine, ends)

    np.testing.assert_allclose(corners_mm(weights), corners_mm(mask), atol=1e-5)


def test_pooling_weights_of_a_large_case_are_averaged_further(source, monkeypatch):
    monkeypatch.setattr(volumes, "MAX_WEIGHT_VOXELS", 900)
    weights = unpack_mask(pack_case(source, BUDGET).overlays[0].attention)
    assert weights.shape == (11, 13, 6)  # 858 of 22 x 26 x 12


def test_the_viewer_starts_in_the_reference_lesion(source):
    packed = pack_case(source, BUDGET)
    mask = unpack_mask(packed.reference)
    labels = nib.as_closest_canonical(mask)  # Right, Anterior, Superior, as the viewer counts
    at = tuple(int(f * n) for f, n in zip(packed.focus, labels.shape, strict=True))
    assert np.asarray(labels.dataobj)[at] == 2


def test_pictures_are_jpegs_and_the_thumbnail_is_small(source):
    overlay = pack_case(source, BUDGET).overlays[0]
    picture, thumbnail = (
        Image.open(io.BytesIO(base64.b64decode(text)))
        for text in (overlay.picture, overlay.thumbnail)
    )
    assert (picture.format, thumbnail.format) == ("JPEG", "JPEG")
    assert picture.width > 800
    assert max(thumbnail.size) == THUMBNAIL_PX


def test_a_small_budget_makes_a_picture_smaller(source):
    full, small = (
        base64.b64decode(pack_case(source, Budget(500_000, limit)).overlays[0].picture)
        for limit in (60_000, 15_000)
    )
    assert len(small) <= 15_000 < len(full)
    sizes = [Image.open(io.BytesIO(picture)).size for picture in (full, small)]
    assert sizes[0][0] / sizes[0][1] == pytest.approx(sizes[1][0] / sizes[1][1], rel=0.02)


@pytest.mark.parametrize("runs", [1, 2, 5])
def test_the_page_is_shared_out_whole(runs):
    budget = share_out(72, 72 * runs)
    assert 72 * budget.case_bytes + 72 * runs * ROW_BYTES == pytest.approx(VOLUMES_BYTES, abs=72)
    assert runs * budget.picture_bytes < budget.case_bytes
    assert share_out(0, 0).case_bytes > 0


def test_the_ct_gets_what_masks_and_pictures_leave(source, monkeypatch):
    monkeypatch.setattr(volumes, "CT_BYTES", (100, 300_000))

    def sizes(case_bytes):
        packed = pack_case(source, Budget(case_bytes, 60_000))
        texts = [packed.reference, *packed.overlays[0].texts()]
        return len(base64.b64decode(packed.ct.jpeg)), sum(len(base64.b64decode(t)) for t in texts)

    ct, others = sizes(1_000_000)
    padding = 10  # of base64, at most 2 bytes a text
    assert sizes(others + ct + padding) == (ct, others)
    less, same = sizes(others + ct - 1)
    assert less < ct
    assert same == others


def test_a_mask_of_another_grid_names_its_file(source, tmp_path):
    path = tmp_path / "prediction.nii.gz"
    nib.Nifti1Image(np.zeros((4, 4, 4), np.uint8), np.eye(4)).to_filename(path)
    wrong = Overlay("case-0-0", path, None, "")
    with pytest.raises(CaseError, match=r"prediction\.nii\.gz is not on its image's grid"):
        pack_case(CaseSource(source.name, source.image, None, (wrong,)), BUDGET)


def test_without_any_mask_the_whole_ct_is_packed(source):
    alone = CaseSource(source.name, source.image, None, (Overlay("case-0-0", None, None, ""),))
    packed = pack_case(alone, BUDGET)
    assert packed.reference is None
    assert packed.overlays[0].prediction is None
    assert packed.ct.shape == read_image(source.image).array.shape
