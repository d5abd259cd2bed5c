import pytest
import torch
import torch.nn.functional as F

from pancreas_mtl.models.pooling import Standardise, dilated, reach_of, shells, texture


@pytest.mark.parametrize("shape", [(2, 1, 5, 6, 7), (1, 1, 1, 2, 1)])
def test_dilation_is_a_max_pool_of_stride_one(shape):
    region = torch.rand(shape)
    torch.testing.assert_close(dilated(region), F.max_pool3d(region, 3, stride=1, padding=1))


def test_dilation_reaches_as_far_as_told():
    region = torch.zeros(1, 1, 7, 7, 7)
    region[..., 3, 3, 3] = 1
    assert dilated(region, (0, 1, 2)).nonzero()[:, 2:].tolist() == [
        [3, h, w] for h in range(2, 5) for w in range(1, 6)
    ]


@pytest.mark.parametrize(
    ("spacing_mm", "reach"),
    [((2.0, 0.73, 0.73), (1, 2, 2)), ((3.6, 1.44, 1.44), (0, 1, 1)), ((1, 1, 4), (2, 2, 1))],
)
def test_a_shell_has_about_its_thickness(spacing_mm, reach):
    assert reach_of(spacing_mm) == reach


def test_shells_share_out_the_lesion_and_its_surroundings():
    lesion = torch.rand(2, 1, 6, 7, 8)
    parts = shells(lesion, (0, 1, 1))
    assert parts.shape == (2, 7, 6, 7, 8)
    assert (parts > -1e-6).all()
    torch.testing.assert_close(parts[:, 3:].sum(1, keepdim=True), lesion)
    outermost = dilated(lesion, (0, 3, 3))
    torch.testing.assert_close(parts.sum(1, keepdim=True), outermost)


def test_texture_of_a_ramp():
    """A plane's detail is none, its gradient what it rises over two voxels."""
    ramp = (torch.arange(8.0) * 3).expand(1, 1, 3, 8, 8)
    image, detail, gradient = texture(ramp)[0, :, :, 1:-1, 1:-1]
    torch.testing.assert_close(image, ramp[0, 0, :, 1:-1, 1:-1])
    torch.testing.assert_close(detail, torch.zeros_like(detail))
    torch.testing.assert_close(gradient, torch.full_like(gradient, 6.0))


def test_features_come_out_standard():
    torch.manual_seed(0)
    standardise = Standardise(2)
    mean, spread = torch.tensor([5.0, -100.0]), torch.tensor([0.1, 20.0])
    for _ in range(2000):
        x = mean + spread * torch.randn(2, 2)
        standardise(x, torch.ones(2, 2, dtype=torch.bool))
    z = standardise.eval()(mean + spread * torch.randn(500, 2), torch.ones(500, 2) > 0)
    torch.testing.assert_close(z.mean(0), torch.zeros(2), atol=0.2, rtol=0)
    torch.testing.assert_close(z.std(0), torch.ones(2), atol=0.2, rtol=0)


def test_unknown_and_broken_features_are_not_learned():
    standardise = Standardise(3)
    x, known = torch.tensor([[2.0, 7.0, torch.nan]]), torch.tensor([[True, False, True]])
    assert standardise(x, known)[0, 1] == 0
    assert standardise.batches.tolist() == [1, 0, 0]
    assert standardise.mean[0] > 0
    assert standardise.mean[1:].tolist() == [0, 0]
    before = standardise.mean.clone()
    standardise(x, known, learn=False)
    assert torch.equal(standardise.mean, before), "nor does what is frozen"
    standardise.eval()(x, known)
    assert torch.equal(standardise.mean, before), "prediction learns nothing"
