import math
from itertools import product

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from pancreas_mtl.data.augment import AugmentConfig, Parameters, sample
from pancreas_mtl.data.augment.spatial import transform, voxel_matrices
from pancreas_mtl.types import UNKNOWN

SPACING_MM = (2.0, 0.7, 0.9)
ALL_AXES = (1, 1, 1)
NO_FLIPS = (False, False, False)


def parameters(rotation_rad=(0.0, 0.0, 0.0), scale=1.0) -> Parameters:
    neutral = sample(AugmentConfig(), torch.tensor([0]))
    return neutral._replace(
        rotation_rad=torch.tensor([rotation_rad]), scale=torch.tensor([float(scale)])
    )


def move(image, mask, size, *, spacing_mm=SPACING_MM, axes=ALL_AXES, flips=NO_FLIPS, **turn):
    matrix = voxel_matrices(parameters(**turn), spacing_mm, axes)[0]
    return transform(image, mask, matrix=matrix, flips=flips, size=size)


def positions_mm(size, spacing_mm=SPACING_MM):
    axes = [(torch.arange(n) - (n - 1) / 2) * mm for n, mm in zip(size, spacing_mm, strict=True)]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)  # (D, H, W, 3)


def labels(condition):
    return condition[None].to(torch.int16)


def random_patch(size, values=(0, 1, 2), seed=0):
    generator = torch.Generator().manual_seed(seed)
    choice = torch.randint(len(values), (1, *size), generator=generator)
    return torch.randn(1, *size, generator=generator), torch.tensor(values, dtype=torch.int16)[
        choice
    ]


def test_nothing_to_do_is_exactly_the_identity():
    assert torch.equal(voxel_matrices(parameters(), SPACING_MM, ALL_AXES)[0], torch.eye(3).double())


@pytest.mark.parametrize(
    ("rotation_rad", "scale"),
    [((0.3, 0.0, 0.0), 1.0), ((0.0, -0.4, 0.0), 1.0), ((0.2, 0.5, -0.3), 1.25)],
)
def test_a_linear_image_follows_the_closed_form(rotation_rad, scale):
    """Linear interpolation is exact for a linear image, so every voxel is known."""
    slope = torch.tensor([1.0, -2.0, 0.5])
    read, size = (24, 30, 28), (8, 11, 10)
    image = (positions_mm(read) @ slope)[None]
    moved, _ = move(image, labels(image[0] > 0), size, rotation_rad=rotation_rad, scale=scale)
    turn = torch.tensor(Rotation.from_rotvec(rotation_rad).as_matrix(), dtype=torch.float32)
    expected = (positions_mm(size) @ turn / scale) @ slope  # a row times R is R transposed times it
    torch.testing.assert_close(moved[0], expected, atol=1e-4, rtol=0)


def test_rows_of_a_large_patch_are_found_to_within_a_thousandth_of_a_voxel():
    read, size = (80, 160, 16), (64, 128, 8)
    slope = torch.tensor([0.0, 1 / SPACING_MM[1], 0.0])  # the image is H's index
    turn = {"rotation_rad": (0.0, 0.0, 0.1), "scale": 1.1}
    image = (positions_mm(read) @ slope)[None]
    moved, _ = move(image, labels(image[0] > 0), size, **turn)
    matrix = voxel_matrices(parameters(**turn), SPACING_MM, ALL_AXES)[0]
    origin = positions_mm(size, (1.0, 1.0, 1.0)).double() @ matrix.mT
    assert (moved[0] - origin[..., 1]).abs().max() < 1e-3


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_rotated_box_is_where_trigonometry_puts_it(axis):
    """Turned by 25 degrees about one axis, in millimetres, off the centre."""
    angle = math.radians(25)
    size = (16, 40, 32)
    low, high = torch.tensor([-6.0, -4.2, -9.0]), torch.tensor([4.0, 8.4, 4.5])  # voxel edges
    x = positions_mm(size)
    mask = labels(((x > low) & (x < high)).all(-1)) * 2
    vector = [0.0, 0.0, 0.0]
    vector[axis] = angle
    _, moved = move(mask.float(), mask, size, rotation_rad=vector)
    a, b = (axis + 1) % 3, (axis + 2) % 3  # a turns towards b
    origin = x.clone()
    origin[..., a] = math.cos(angle) * x[..., a] + math.sin(angle) * x[..., b]
    origin[..., b] = math.cos(angle) * x[..., b] - math.sin(angle) * x[..., a]
    depth_mm = torch.minimum(origin - low, high - origin).min(-1).values
    assert (moved[0][depth_mm > 1.2] == 2).all()
    assert (moved[0][depth_mm < -1.2] == 0).all()
    assert (moved > 0).sum() == pytest.approx(int((depth_mm > 0).sum()), rel=0.03)


def test_scaling_acts_on_the_volume():
    size = (16, 40, 32)
    sphere = labels(positions_mm(size).norm(dim=-1) < 8)
    _, grown = move(sphere.float(), sphere, size, scale=1.3)
    assert grown.sum() == pytest.approx(int(sphere.sum()) * 1.3**3, rel=0.03)


@pytest.mark.parametrize(("axis", "dims"), [(0, (1, 2)), (1, (2, 0)), (2, (0, 1))])
def test_a_right_angle_on_cubic_voxels_is_rot90(axis, dims):
    image, mask = random_patch((9, 9, 9))
    vector = [0.0, 0.0, 0.0]
    vector[axis] = math.pi / 2
    moved, moved_mask = move(image, mask, (9, 9, 9), spacing_mm=(1, 1, 1), rotation_rad=vector)
    torch.testing.assert_close(moved[0], image[0].rot90(1, dims), atol=1e-4, rtol=0)
    assert torch.equal(moved_mask[0], mask[0].rot90(1, dims))


def test_without_a_turn_voxels_are_cropped_from_the_centre():
    image, mask = random_patch((8, 10, 12))
    cropped, cropped_mask = move(image, mask, (6, 10, 8))
    assert torch.equal(cropped, image[:, 1:7, :, 2:10])
    assert torch.equal(cropped_mask, mask[:, 1:7, :, 2:10])


@pytest.mark.parametrize("flips", list(product([False, True], repeat=3)))
def test_flips_mirror_their_axes_and_twice_undo_themselves(flips):
    image, _ = random_patch((4, 5, 6))
    mask = labels(image[0] > 0)
    flipped, flipped_mask = move(image, mask, (4, 5, 6), flips=flips)
    assert torch.equal(flipped_mask, labels(flipped[0] > 0))
    index = tuple(n - 1 if flip else 0 for n, flip in zip((4, 5, 6), flips, strict=True))
    assert flipped[0][index] == image[0, 0, 0, 0]
    twice = move(flipped, flipped_mask, (4, 5, 6), flips=flips)
    assert torch.equal(twice[0], image)
    assert torch.equal(twice[1], mask)


@pytest.mark.parametrize(("spacing_mm", "coarse"), [((5.0, 0.7, 0.9), 0), ((0.7, 0.9, 5.0), 2)])
def test_nothing_moves_along_a_coarse_axis(spacing_mm, coarse):
    axes = [1, 1, 1]
    axes[coarse] = 0
    turned = parameters((0.3, 0.4, 0.5), 1.2)
    matrix = voxel_matrices(turned, spacing_mm, tuple(axes))[0]
    unit = torch.eye(3).double()[coarse]
    assert torch.equal(matrix[coarse], unit)
    assert torch.equal(matrix[:, coarse], unit)
    assert torch.linalg.det(matrix).item() == pytest.approx(1.2**-2)  # float32 parameters
    plane = [axis for axis in range(3) if axis != coarse]
    assert matrix[plane[0], plane[1]] != 0


def test_image_and_mask_stay_aligned():
    _, mask = random_patch((12, 14, 16), values=(0, 1))
    moved, moved_mask = move(mask.float(), mask, (8, 10, 12), rotation_rad=(0.4, 0.3, -0.2))
    assert torch.equal(moved > 0.5, moved_mask == 1)


@pytest.mark.parametrize("values", [(0, 2), (UNKNOWN, 1), (UNKNOWN, 2), (UNKNOWN, 0, 2)])
@pytest.mark.parametrize("scale", [0.9, 1.0, 2.0])  # 2: many voxels exactly half way
def test_labels_are_never_invented(values, scale):
    image, mask = random_patch((20, 20, 20), values)
    for turn in [(0.0, 0.0, 0.0), (0.2, -0.1, 0.3)]:
        _, moved = move(image, mask, (7, 8, 9), rotation_rad=turn, scale=scale)
        assert set(moved.unique().tolist()) == set(values)


def test_the_mask_is_the_weighted_median_of_its_neighbours():
    image, mask = random_patch((6, 6, 6), values=(UNKNOWN, 0, 1, 2))
    _, grown = move(image, mask, (4, 4, 4), scale=2.0)  # every voxel a quarter off the centres
    for d, h, w in product(range(4), repeat=3):
        origin = [2.5 + (i - 1.5) / 2 for i in (d, h, w)]
        weights: dict[int, float] = {}
        for corner in product((0, 1), repeat=3):
            voxel = [math.floor(o) + c for o, c in zip(origin, corner, strict=True)]
            weight = math.prod(1 - abs(o - v) for o, v in zip(origin, voxel, strict=True))
            label = int(mask[0, voxel[0], voxel[1], voxel[2]])
            weights[label] = weights.get(label, 0.0) + weight
        ranked = sorted(weights)
        shares = np.cumsum([weights[label] for label in ranked])
        assert int(grown[0, d, h, w]) == ranked[int(np.searchsorted(shares, 0.5))]


def test_outside_lies_the_mean_and_background():
    image, mask = torch.full((1, 8, 8, 8), 3.0), torch.full((1, 8, 8, 8), 2, dtype=torch.int16)
    small, small_mask = move(image, mask, (8, 8, 8), scale=0.5)
    torch.testing.assert_close(small, 3.0 * (small_mask == 2))
    assert small_mask[:, 2:6, 2:6, 2:6].float().mean() == 2
    assert (small_mask == 2).sum() == 4**3


@pytest.mark.parametrize("turn", [{"scale": 0.5}, {"rotation_rad": (0.5, 0.5, 0.5)}])
def test_a_patch_without_reference_stays_unknown_outside_too(turn):
    image, mask = random_patch((8, 8, 8), values=(UNKNOWN,))
    _, moved = move(image, mask, (8, 8, 8), **turn)
    assert (moved == UNKNOWN).all()
    assert moved.dtype == torch.int16
