import io

import numpy as np
import pytest
from PIL import Image

from pancreas_mtl.errors import CaseError
from pancreas_mtl.inference import pictures
from pancreas_mtl.inference.pictures import centre, mosaic, neighbourhood, save_png, write_preview
from pancreas_mtl.types import CasePrediction, Label, Volume

SPACING_MM = (2.0, 0.7, 0.9)
SHAPE = (12, 20, 16)


def labels(*, lesion=None):
    mask = np.zeros(SHAPE, np.uint8)
    mask[4:9, 6:15, 3:13] = Label.PANCREAS
    if lesion is not None:
        mask[lesion] = Label.LESION
    return mask


def image():
    return np.random.default_rng(0).normal(40, 30, SHAPE).astype(np.float32)


def pixels(figure):
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return np.asarray(Image.open(buffer).convert("RGB")).astype(int)


def test_centre_is_a_voxel_of_the_lesion_even_where_its_centroid_is_not():
    ring = labels()
    ring[6, 8:13, 5:10] = Label.LESION
    ring[6, 9:12, 6:9] = Label.PANCREAS
    d, h, w = centre([ring])
    assert ring[d, h, w] == Label.LESION


def test_centre_prefers_a_lesion_in_any_mask_to_a_pancreas_in_the_first():
    assert centre([labels(), labels(lesion=(5, 7, 4))]) == (5, 7, 4)


def test_centre_falls_back_to_the_pancreas_and_then_to_the_middle():
    assert centre([labels()]) == (6, 10, 7)  # the voxels around the centroid tie; the first wins
    assert centre([np.zeros(SHAPE, np.uint8)]) == (6, 10, 8)


def test_neighbourhood_adds_the_same_millimetres_on_every_axis():
    mask = np.zeros((40, 60, 60), np.uint8)
    mask[20, 30, 30] = Label.PANCREAS
    d, h, w = neighbourhood([mask], SPACING_MM, margin_mm=6.3)
    assert (d, h, w) == (slice(16, 25), slice(21, 40), slice(23, 38))


def test_neighbourhood_of_nothing_is_everything_and_stops_at_the_border():
    whole = (slice(0, 12), slice(0, 20), slice(0, 16))
    assert neighbourhood([np.zeros(SHAPE, np.uint8)], SPACING_MM) == whole
    assert neighbourhood([labels()], SPACING_MM) == whole


def test_panels_share_one_scale_and_show_the_three_planes():
    axes = mosaic(image(), labels(lesion=(6, 10, 8)), SPACING_MM).axes
    seen = [panel.get_images()[0].get_array().shape for panel in axes]
    assert seen == [(20, 16), (12, 16), (12, 20)]
    scales = [panel.get_window_extent().width / panel.get_xlim()[1] for panel in axes]
    np.testing.assert_allclose(scales, scales[0])
    heights = [panel.get_window_extent().height / max(panel.get_ylim()) for panel in axes]
    np.testing.assert_allclose(heights, scales)


def test_head_is_up_and_front_is_up():
    marked = np.full(SHAPE, -160.0, np.float32)
    marked[6:] = 240.0  # the upper half of the body
    coronal = mosaic(marked, np.zeros(SHAPE, np.uint8), SPACING_MM).axes[1].get_images()[0]
    assert coronal.origin == "lower"
    assert coronal.get_array()[-1].min() == 240.0
    axial = mosaic(marked, np.zeros(SHAPE, np.uint8), SPACING_MM).axes[0].get_images()[0]
    assert axial.origin == "upper"


def test_outlines_of_prediction_and_reference_both_show():
    plain = pixels(mosaic(image(), np.zeros(SHAPE, np.uint8), SPACING_MM))
    predicted = pixels(mosaic(image(), labels(lesion=np.s_[5:8, 8:12, 6:10]), SPACING_MM))

    def red(picture):
        r, g, b = (picture[..., channel] for channel in range(3))
        return ((r > 200) & (g < 120) & (b < 150)).sum()

    assert red(predicted) > red(plain) + 50
    reference = labels(lesion=np.s_[5:8, 9:14, 6:10])
    with_reference = mosaic(image(), labels(), SPACING_MM, reference=reference)
    assert red(pixels(with_reference)) > red(plain) + 50


@pytest.mark.parametrize("shape", [(1, 20, 16), (12, 1, 16), (1, 1, 1)])
def test_single_slices_are_drawn(shape):
    mask = np.full(shape, Label.LESION, np.uint8)
    assert pixels(mosaic(np.zeros(shape, np.float32), mask, SPACING_MM)).size > 0


def test_a_title_is_text_and_not_a_formula():
    figure = mosaic(image(), labels(), SPACING_MM, title=r"case_$\frac{1}$")
    assert pixels(figure).size > 0


def test_a_preview_states_the_subtype_with_its_probabilities(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(pictures, "save_png", lambda figure, path: drawn.append((figure, path)))
    volume = Volume(image(), SPACING_MM, source=None)
    probabilities = np.array([0.21, 0.09, 0.7], np.float32)
    write_preview(tmp_path, "case", volume, CasePrediction(labels(), probabilities, (0, 2)))
    ((figure, path),) = drawn
    (title,) = (text.get_text() for text in figure.texts)
    assert title.split() == [
        "case",
        "subtype",
        "2",
        "p0",
        "0.21",
        "p1",
        "0.09",
        "p2",
        "0.70",
        "set",
        "0|2",
    ]
    assert path == tmp_path / "previews" / "case.png"


def test_save_png_leaves_nothing_behind_when_the_folder_is_missing(tmp_path):
    figure = mosaic(image(), labels(), SPACING_MM)
    save_png(figure, tmp_path / "case.png")
    assert Image.open(tmp_path / "case.png").format == "PNG"
    with pytest.raises(CaseError, match="cannot be written"):
        save_png(figure, tmp_path / "nowhere" / "case.png")
    assert [path.name for path in tmp_path.iterdir()] == ["case.png"]
