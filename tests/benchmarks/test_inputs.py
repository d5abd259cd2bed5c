from dataclasses import asdict

import numpy as np

from pancreas_mtl.benchmarks.inputs import (
    LARGEST,
    QUIZ_PLAN,
    QUIZ_SIZES,
    TINY_SIZES,
    plan_from,
    windows,
    write_cases,
)
from pancreas_mtl.data.images import read_image, read_mask
from pancreas_mtl.inference.windows import window_starts


def test_the_mix_needs_as_many_windows_as_the_quiz():
    counts = [windows(size, QUIZ_PLAN) for size in QUIZ_SIZES]
    assert 2.25 <= np.mean(counts) <= 2.4
    assert min(counts) == 1 < max(counts)
    assert windows(LARGEST, QUIZ_PLAN) == len(window_starts((85, 223, 376), (64, 128, 192), 0.5))


def test_cases_have_the_shapes_that_are_asked_for(tmp_path):
    names = write_cases(tmp_path, TINY_SIZES, small=True)
    for name, (shape, spacing_mm) in zip(names, TINY_SIZES, strict=True):
        image = read_image(tmp_path / "images" / f"{name}_0000.nii.gz")
        mask = read_mask(tmp_path / "masks" / f"{name}.nii.gz", grid=image.source)
        assert image.array.shape == mask.array.shape == shape
        np.testing.assert_allclose(image.spacing_mm, spacing_mm, rtol=1e-6)
        assert mask.array.max() > 0


def test_cases_of_other_shapes_are_replaced_and_the_same_ones_stay(tmp_path):
    for sizes in (TINY_SIZES, TINY_SIZES[1:]):
        names = write_cases(tmp_path, sizes, small=True)
        images = sorted((tmp_path / "images").iterdir())
        assert [path.name for path in images] == [f"{name}_0000.nii.gz" for name in names]
    assert read_image(images[0]).array.shape == TINY_SIZES[1][0]
    made = images[0].stat().st_mtime_ns
    write_cases(tmp_path, TINY_SIZES[1:], small=True)
    assert images[0].stat().st_mtime_ns == made


def test_a_plan_survives_json():
    assert plan_from(asdict(QUIZ_PLAN)) == QUIZ_PLAN
