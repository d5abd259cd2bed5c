"""Lesions of three subtypes, told apart by texture, border and enhancement.

0 is cystic with a thin enhancing rim; 1 infiltrates, with a soft and spiculated border, and
obstructs the duct; 2 is well-defined, with hyper-enhancing nodules.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pancreas_mtl.data.phantom.geometry import Space, coverage
from pancreas_mtl.data.phantom.statistics import Recipe
from pancreas_mtl.types import FloatArray

CYSTIC, INFILTRATING, HYPERENHANCING = range(3)
RIM_MM = 2.4
RIM_HU = 85.0  # rim minus core
NODULES_HU = 26.0  # standard deviation of the texture that they make
OBSTRUCTED_SHARE = (0.1, 0.95, 0.05)  # of the lesions of a subtype, with a dilated duct upstream


@dataclass(frozen=True)
class Border:
    """The outline of a subtype: bumps on an ellipsoid, `height` relative to its radius."""

    bumps: int
    height: tuple[float, float]
    sharpness: int  # the larger, the more a bump looks like a spike
    fading_mm: float  # width over which the lesion's HU fades into its surroundings


BORDERS = (
    Border(8, (-0.08, 0.12), 2, 1.25),
    Border(16, (0.15, 0.6), 12, 3.5),
    Border(8, (-0.06, 0.08), 2, 1.25),
)
CONTRAST_HU = (-52.0, -30.0, 60.0)  # lesion minus pancreas where mean HU tells the subtypes apart
ANY_CONTRAST_HU = (25.0, 45.0)  # its size where it does not, of either sign


def lesion_distance(
    space: Space,
    rng: np.random.Generator,
    centre: npt.NDArray[np.float64],
    volume_ml: float,
    subtype: int,
) -> FloatArray:
    """Signed distance (mm, fine lattice) to a star-shaped lesion of exactly the volume given."""
    border = BORDERS[subtype]
    axes = np.exp(rng.normal(0, 0.12, 3)).astype(np.float32)
    offset = [(x - np.float32(c)) / a for x, c, a in zip(space.fine, centre, axes, strict=True)]
    field = np.sqrt(offset[0] ** 2 + offset[1] ** 2 + offset[2] ** 2)
    near = _box_around(offset, 2.2 * sphere_radius_mm(volume_ml) + 6)
    d, h, w = (
        x[tuple(s if n > 1 else slice(None) for s, n in zip(near, x.shape, strict=True))]
        for x in offset
    )
    inverse = 1 / np.maximum(field[near], np.float32(1e-3))
    outline = np.ones_like(inverse)
    for direction in rng.standard_normal((border.bumps, 3)):
        a, b, c = (direction / np.linalg.norm(direction)).astype(np.float32)
        cosine = np.maximum((a * d + b * h + c * w) * inverse, 0)
        outline += np.float32(rng.uniform(*border.height)) * cosine**border.sharpness
    field[near] /= outline
    field += space.face_penalty()
    return field - level_of_volume(field, volume_ml / space.fine_ml)


def lesion_hu(
    space: Space,
    rng: np.random.Generator,
    distance: FloatArray,
    subtype: int,
    pancreas_hu: float,
    recipe: Recipe,
) -> FloatArray:
    """Enhancement inside the lesion, on the fine lattice; its mean depends on the recipe."""
    texture = space.noise(rng, 3.5)
    if subtype == CYSTIC:
        rim_mm = min(RIM_MM, -0.45 * float(distance.min()))
        hu = np.float32(RIM_HU) * coverage(-distance - rim_mm) + 3 * texture
    elif subtype == INFILTRATING:
        hu = 8 * texture + 8 * space.noise(rng, 9.0)
    else:
        hu = np.float32(NODULES_HU * 1.5) * np.clip(texture, -0.5, 1.6)
    told = recipe.contrast_tells
    any_contrast = rng.choice((-1, 1)) * rng.uniform(*ANY_CONTRAST_HU)
    contrast = told * CONTRAST_HU[subtype] + (1 - told) * any_contrast
    mean_hu = pancreas_hu + contrast + rng.normal(0, 5)
    return hu + np.float32(mean_hu - hu[distance < 0].mean())


def fading_mm(distance: FloatArray, subtype: int) -> float:
    """Width of the border in the image; narrower in a lesion that it would wash out."""
    return min(BORDERS[subtype].fading_mm, max(1.25, -0.7 * float(distance.min())))


def sphere_radius_mm(volume_ml: float) -> float:
    """Radius of the sphere with this volume."""
    return float((volume_ml * 1000 * 3 / (4 * np.pi)) ** (1 / 3))


def level_of_volume(field: FloatArray, count: float) -> np.float32:
    """The level below which `count` voxels of the field lie, at least one."""
    k = int(np.clip(round(count), 1, field.size - 1))
    lower, upper = np.partition(field.ravel(), (k - 1, k))[k - 1 : k + 1]
    return np.float32((lower + upper) / 2)


def _box_around(offset: list[FloatArray], radius_mm: float) -> tuple[slice, ...]:
    """The part of the lattice within a distance of the origin, along each axis."""
    box = []
    for x in offset:
        inside = np.flatnonzero(np.abs(x.ravel()) < radius_mm)
        box.append(slice(int(inside[0]), int(inside[-1]) + 1))
    return tuple(box)
