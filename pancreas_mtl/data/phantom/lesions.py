"""Lesions of three subtypes, told apart by texture, border and enhancement.

0: cystic with a thin enhancing rim; 1: infiltrating and hypo-enhancing, with spiculated border and
a dilated duct upstream; 2: well-defined and hyper-enhancing, with nodular texture.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pancreas_mtl.data.phantom.geometry import Space, coverage
from pancreas_mtl.data.phantom.statistics import Recipe
from pancreas_mtl.types import FloatArray

CYSTIC, INFILTRATING, HYPERENHANCING = range(3)
LOBULATION = (0.05, 0.26, 0.05)  # of the border, as a share of the radius, by subtype
BORDER_MM = (1.25, 4.0, 1.25)  # softness of the border in the image
CONTRAST_HU = (-45.0, -45.0, 65.0)  # lesion minus pancreas in the easy recipe
RIM_MM = 2.4
RIM_HU = 85.0  # rim minus core
NODULES_HU = 28.0
DUCT_HU = 15.0


@dataclass(frozen=True)
class Lesion:
    """A lesion on the fine lattice."""

    distance: FloatArray  # signed, in mm
    hu: FloatArray
    border_mm: float


def lesion_distance(
    space: Space,
    rng: np.random.Generator,
    centre: npt.NDArray[np.float64],
    volume_ml: float,
    subtype: int,
) -> FloatArray:
    """Signed distance (mm) to a lobulated ellipsoid of exactly the volume given."""
    radius_mm = (volume_ml * 1000 * 3 / (4 * np.pi)) ** (1 / 3)
    axes = np.exp(rng.normal(0, 0.12, 3))
    squared = np.zeros((), np.float32)
    for x, c, a in zip(space.fine, centre, axes, strict=True):
        squared = squared + ((x - c) / np.float32(a)) ** 2
    lobes = space.noise(rng, float(np.clip(0.55 * radius_mm, 3.5, 9)))
    field = np.sqrt(squared) * (1 + np.float32(LOBULATION[subtype]) * np.clip(lobes, -2, 2))
    field += border_penalty(space)
    return field - threshold_for_volume(field, volume_ml / space.fine_ml)


def lesion_hu(
    space: Space,
    rng: np.random.Generator,
    distance: FloatArray,
    subtype: int,
    pancreas_hu: float,
    recipe: Recipe,
) -> Lesion:
    """Enhancement of the lesion inside and a little beyond its border."""
    inside = distance < 0
    texture = space.noise(rng, 3.5)
    if subtype == CYSTIC:
        depth = float(-distance.min())
        rim = coverage(-distance - min(RIM_MM, 0.45 * depth))
        hu = RIM_HU * rim + 3 * texture
    elif subtype == INFILTRATING:
        hu = 9 * texture + 8 * space.noise(rng, 8.0)
    else:
        hu = NODULES_HU * np.clip(texture, -0.6, 1.8)
    contrast = CONTRAST_HU[subtype] * recipe.lesion_contrast + rng.normal(0, 6)
    mean_hu = pancreas_hu + contrast
    hu = hu + np.float32(mean_hu - hu[inside].mean() if inside.any() else 0)
    return Lesion(distance, hu.astype(np.float32), BORDER_MM[subtype])


def border_penalty(space: Space, margin_mm: float = 2.5) -> FloatArray:
    """A large field value beside the crop's faces, which keeps shapes from touching them."""
    penalty = np.zeros(space.fine_shape, np.float32)
    for axis, (x, extent) in enumerate(zip(space.fine, space.extent_mm, strict=True)):
        beside = (np.minimum(x, extent - x) < margin_mm).ravel()
        penalty[(slice(None),) * axis + (beside,)] = 1e3
    return penalty


def threshold_for_volume(field: FloatArray, count: float) -> float:
    """The level below which `count` voxels of the field lie, at least one."""
    k = int(np.clip(round(count), 1, field.size - 1))
    lower, upper = np.partition(field.ravel(), (k - 1, k))[k - 1 : k + 1]
    return float((lower + upper) / 2)
