import numpy as np
import pytest
import torch
from scipy import ndimage

from pancreas_mtl.data.augment import AugmentConfig, sample
from pancreas_mtl.data.augment.intensity import (
    add_noise,
    blur,
    change_brightness,
    change_contrast,
    change_gamma,
    change_intensity,
    coarsen,
)

ALL_AXES = (1, 1, 1)
CHANGES = {
    "noise": lambda image: add_noise(image, 0.1, seed=3),
    "blur": lambda image: blur(image, [0.5, 1.0, 1.5]),
    "brightness": lambda image: change_brightness(image, 1.3),
    "contrast": lambda image: change_contrast(image, 1.3),
    "coarse": lambda image: coarsen(image, 2.0, axes=ALL_AXES),
    "gamma": lambda image: change_gamma(image, 1.5),
}


@pytest.fixture
def image():
    return torch.randn(1, 8, 10, 12, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_change_answers_a_new_image_and_keeps_the_old(image, change):
    before = image.clone()
    changed = change(image)
    assert torch.equal(image, before)
    assert changed.shape == image.shape
    assert changed.dtype == torch.float32
    assert not torch.equal(changed, before)


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("shape", [(1, 8, 8, 8), (1, 1, 8, 2), (1, 1, 1, 1)])
@pytest.mark.parametrize("value", [0.0, -3.0])
def test_a_constant_or_tiny_image_stays_finite(shape, value, change):
    assert change(torch.full(shape, value)).isfinite().all()


def test_neutral_values_return_the_image_itself(image):
    neutral = sample(AugmentConfig(), torch.tensor([5])).of(0)
    assert change_intensity(image, neutral, axes=ALL_AXES) is image


def test_blur_is_scipys_gaussian(image):
    sigma = (0.6, 0.0, 1.4)
    expected = ndimage.gaussian_filter(
        image[0].numpy(), sigma, mode="nearest", radius=[2, 0, 5]
    )  # ceil(3 sigma)
    torch.testing.assert_close(blur(image, sigma)[0].numpy(), expected, atol=1e-5, rtol=1e-5)


def test_noise_has_its_deviation_and_its_seed():
    zeros = torch.zeros(1, 20, 30, 40)
    noise = add_noise(zeros, 0.1, seed=1)
    assert noise.std().item() == pytest.approx(0.1, rel=0.02)
    assert noise.mean().item() == pytest.approx(0, abs=0.003)
    assert torch.equal(noise, add_noise(zeros, 0.1, seed=1))
    assert not torch.equal(noise, add_noise(zeros, 0.1, seed=2))


def test_brightness_multiplies(image):
    assert torch.equal(change_brightness(image, 0.8), image * 0.8)


def test_less_contrast_draws_to_the_mean_and_more_is_clipped(image):
    mean = image.mean()
    torch.testing.assert_close(change_contrast(image, 0.5), (image + mean) / 2)
    more = change_contrast(image, 1.5)
    assert (more.min(), more.max()) == (image.min(), image.max())
    inside = (more > image.min()) & (more < image.max())
    torch.testing.assert_close((more - mean)[inside], 1.5 * (image - mean)[inside])


@pytest.mark.parametrize("exponent", [0.7, 1.5])
def test_gamma_is_a_power_with_mean_and_deviation_restored(image, exponent):
    values = image.double().numpy()
    power = ((values - values.min()) / np.ptp(values)) ** exponent
    expected = (power - power.mean()) / power.std() * values.std() + values.mean()
    changed = change_gamma(image, exponent).double().numpy()
    np.testing.assert_allclose(changed, expected, atol=1e-5)
    assert changed.mean() == pytest.approx(values.mean(), abs=1e-5)
    assert changed.std() == pytest.approx(values.std(), rel=1e-5)


def test_inverted_gamma_is_gamma_of_the_negative(image):
    neutral = sample(AugmentConfig(), torch.tensor([5])).of(0)
    inverted = neutral._replace(gamma_inverted=torch.tensor(1.5))
    changed = change_intensity(image, inverted, axes=ALL_AXES)
    torch.testing.assert_close(-changed, change_gamma(-image, 1.5))
    assert not torch.allclose(changed, change_gamma(image, 1.5), atol=1e-2)


@pytest.mark.parametrize("ratio", [1.3, 2.0])
def test_coarse_voxels_do_not_shift_the_image(ratio):
    d, h, w = torch.meshgrid(*(torch.arange(12.0) for _ in range(3)), indexing="ij")
    ramp = (d - 2 * h + 3 * w)[None]
    inside = (slice(None), *[slice(2, -2)] * 3)
    torch.testing.assert_close(
        coarsen(ramp, ratio, axes=ALL_AXES)[inside], ramp[inside], atol=0.2 * (ratio < 2), rtol=1e-5
    )


def test_coarse_voxels_lose_detail_except_along_a_marked_axis(image):
    along_d = torch.randn(1, 8, 1, 1).expand(1, 8, 10, 12).contiguous()
    torch.testing.assert_close(coarsen(along_d, 2.0, axes=(0, 1, 1)), along_d)
    assert coarsen(along_d, 2.0, axes=ALL_AXES).std() < 0.9 * along_d.std()


def test_the_order_is_noise_blur_brightness_contrast_coarse_gamma(image):
    all_on = sample(AugmentConfig(), torch.tensor([5])).of(0)
    all_on = all_on._replace(
        noise_std=torch.tensor(0.1),
        blur_sigma_vox=torch.tensor([0.5, 1.0, 1.5]),
        brightness=torch.tensor(1.3),
        contrast=torch.tensor(1.3),
        coarse=torch.tensor(2.0),
        gamma=torch.tensor(1.5),
        noise_seed=torch.tensor(3),
    )
    expected = image
    for change in CHANGES.values():
        expected = change(expected)
    torch.testing.assert_close(change_intensity(image, all_on, axes=ALL_AXES), expected)
