import pytest
import torch

from pancreas_mtl.data.augment import Augment, AugmentConfig
from pancreas_mtl.errors import UsageError
from pancreas_mtl.types import UNKNOWN, Batch

SPACING_MM = (2.0, 0.7, 0.9)
SIZE = (8, 10, 12)
READ = (10, 12, 14)
ALWAYS = AugmentConfig(
    flip_p=0.5,
    rotation_p=1.0,
    rotation_deg=30.0,
    scale_p=1.0,
    scale_ratio=1.4,
    noise_p=1.0,
    noise_std=0.1,
    blur_p=1.0,
    blur_sigma_vox=1.0,
    brightness_p=1.0,
    brightness_ratio=1.3,
    contrast_p=1.0,
    contrast_ratio=1.3,
    coarse_p=1.0,
    coarse_ratio=2.0,
    gamma_inverted_p=1.0,
    gamma_p=1.0,
    gamma_ratio=1.5,
)


def batch_of(*seeds: int, size=READ, lesion_vox=100.0) -> Batch:
    generator = torch.Generator().manual_seed(0)
    b = len(seeds)
    return Batch(
        image=torch.randn(b, 1, *size, generator=generator),
        mask=torch.randint(0, 3, (b, 1, *size), generator=generator, dtype=torch.int16),
        subtype=torch.arange(b),
        lesion_vox=torch.full((b,), lesion_vox),
        seed=torch.tensor(seeds),
        name=[f"case{i}" for i in range(b)],
    )


def element(batch: Batch, i: int) -> Batch:
    return Batch(*(field[i : i + 1] for field in batch))


def assert_same(a: Batch, b: Batch) -> None:
    for x, y in zip(a, b, strict=True):
        assert torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y


def augment(config: AugmentConfig = ALWAYS, *, size=SIZE, spacing_mm=SPACING_MM) -> Augment:
    return Augment(config, patch_size=size, spacing_mm=spacing_mm)


def test_the_default_returns_the_same_voxels():
    batch = batch_of(1, 2, size=SIZE)
    assert_same(augment(AugmentConfig())(batch), batch)


def test_the_default_crops_the_centre():
    batch = batch_of(1, 2)
    out = augment(AugmentConfig())(batch)
    assert torch.equal(out.image, batch.image[:, :, 1:-1, 1:-1, 1:-1])
    assert torch.equal(out.mask, batch.mask[:, :, 1:-1, 1:-1, 1:-1])


@pytest.mark.parametrize("read", [SIZE, READ, (9, 13, 17)])
def test_shapes_types_and_the_rest_of_the_batch(read):
    batch = batch_of(1, 2, 3, size=read)
    out = augment()(batch)
    assert out.image.shape == out.mask.shape == (3, 1, *SIZE)
    assert (out.image.dtype, out.mask.dtype) == (torch.float32, torch.int16)
    assert out.image.isfinite().all()
    assert torch.equal(out.subtype, batch.subtype)
    assert torch.equal(out.seed, batch.seed)
    assert out.name == batch.name


def test_the_same_seed_gives_the_same_patch_and_another_seed_another():
    assert_same(augment()(batch_of(7, 8)), augment()(batch_of(7, 8)))
    twins = batch_of(7, 8)
    twins.image[1], twins.mask[1] = twins.image[0], twins.mask[0]
    out = augment()(twins)
    assert not torch.allclose(out.image[0], out.image[1])
    assert not torch.equal(out.mask[0], out.mask[1])


def test_a_batch_is_each_of_its_elements():
    some = AugmentConfig(**{**vars(ALWAYS), "rotation_p": 0.5, "scale_p": 0.0, "gamma_p": 0.5})
    batch = batch_of(*range(6))
    out = augment(some)(batch)
    for i in range(6):
        assert_same(augment(some)(element(batch, i)), element(out, i))


@pytest.mark.parametrize("config", [ALWAYS, AugmentConfig(), AugmentConfig(flip_p=1.0)])
def test_the_input_stays_as_it_was_and_shares_no_memory(config):
    batch = batch_of(1, 2, size=SIZE)
    image, mask = batch.image.clone(), batch.mask.clone()
    out = augment(config)(batch)
    out.image.zero_()
    out.mask.zero_()
    assert torch.equal(batch.image, image)
    assert torch.equal(batch.mask, mask)


def test_flipping_twice_is_the_identity():
    flip = augment(AugmentConfig(flip_p=1.0))
    batch = batch_of(1, 2, size=SIZE)
    once = flip(batch)
    assert torch.equal(once.image, batch.image.flip(2, 3, 4))
    assert_same(flip(once), batch)


def test_unknown_stays_unknown_beside_known():
    batch = batch_of(1, 2)
    batch.mask[0] = UNKNOWN
    out = augment()(batch)
    assert (out.mask[0] == UNKNOWN).all()
    assert (out.mask[1] != UNKNOWN).all()


@pytest.mark.parametrize("size", [(8, 8, 8), (1, 8, 8)])
@pytest.mark.parametrize("value", [0.0, -4.0])
def test_a_constant_tiny_patch_stays_finite(size, value):
    batch = batch_of(*range(5), size=size)
    batch.image.fill_(value)
    assert augment(size=size)(batch).image.isfinite().all()


def test_the_lesion_count_follows_the_scale():
    scaled = AugmentConfig(scale_p=1.0, scale_ratio=1.4)
    batch = batch_of(3)
    batch.mask.fill_(2)
    batch.lesion_vox.fill_(1000.0)
    solid, flat = augment(scaled), augment(scaled, spacing_mm=(5.0, 0.7, 0.9))
    in_space, in_plane = solid(batch).lesion_vox / 1000, flat(batch).lesion_vox / 1000
    assert in_space.item() != pytest.approx(1, abs=0.01)
    assert in_space.item() == pytest.approx(in_plane.item() ** 1.5, rel=1e-4)
    turned = augment(AugmentConfig(rotation_p=1.0, rotation_deg=30.0))(batch)
    assert torch.equal(turned.lesion_vox, batch.lesion_vox)


def test_the_lesion_count_matches_the_mask():
    scaled = augment(AugmentConfig(scale_p=1.0, scale_ratio=1.4), size=(24, 24, 24))
    batch = batch_of(5, size=(24, 24, 24))
    distance = torch.stack(
        torch.meshgrid(*(torch.arange(24) - 11.5 for _ in range(3)), indexing="ij")
    ).norm(dim=0)
    batch = batch._replace(mask=2 * (distance < 7)[None, None].to(torch.int16))
    batch.lesion_vox.fill_(float((batch.mask == 2).sum()))
    out = scaled(batch)
    assert out.lesion_vox.item() != pytest.approx(batch.lesion_vox.item(), rel=0.05)
    assert (out.mask == 2).sum().item() == pytest.approx(out.lesion_vox.item(), rel=0.05)


def test_slices_do_not_mix_where_they_are_thick():
    batch = batch_of(*range(4))
    batch.image[:] = torch.arange(10.0).view(-1, 1, 1)
    spatial = AugmentConfig(rotation_p=1.0, rotation_deg=30.0, scale_p=1.0, scale_ratio=1.1)
    centre = (slice(None), 0, slice(None), slice(4, 6), slice(5, 7))
    out = augment(spatial, spacing_mm=(3.0, 0.7, 0.9))(batch).image[centre]
    torch.testing.assert_close(out, torch.arange(1.0, 9.0).view(1, 8, 1, 1).expand_as(out))
    mixed = augment(spatial, spacing_mm=(2.0, 0.7, 0.9))(batch).image[centre]
    assert not torch.allclose(mixed, out, atol=0.1)


def test_autocast_is_off_within(monkeypatch):
    seen = []

    def spy(image, *_, **__):
        seen.append(torch.is_autocast_enabled("cpu"))
        return image

    monkeypatch.setattr("pancreas_mtl.data.augment.change_intensity", spy)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        augment()(batch_of(1, 2))
    assert seen == [False, False]


def test_no_gradient_is_kept():
    batch = batch_of(1)
    batch.image.requires_grad_()
    assert not augment()(batch).image.requires_grad


def test_patches_smaller_than_the_patch_size_are_refused():
    with pytest.raises(UsageError, match=r"patches of \(8, 10, 12\) .* patch size \(8, 12, 12\)"):
        augment(size=(8, 12, 12))(batch_of(1, size=SIZE))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gives_the_same_patches():
    quiet = augment(AugmentConfig(**{**vars(ALWAYS), "noise_p": 0.0}))
    batch = batch_of(*range(4))
    there = Batch(*(f.cuda() if isinstance(f, torch.Tensor) else f for f in batch))
    here, back = quiet(batch), quiet(there)
    torch.testing.assert_close(back.image.cpu(), here.image, atol=1e-3, rtol=1e-3)
    assert (back.mask.cpu() == here.mask).float().mean() > 0.999
