"""Lesions of three subtypes, told apart by texture, border and enhancement.

0 is cystic with a thin enhancing rim; 1 infiltrates, with a soft and spiculated border, and
obstructs the duct; 2 is well-defined, with hyper-enhancing nodules.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pancreas_mtl.data.phantom.geometry import (
    FINE_MM,
    Axes,
    Points,
    Space,
    coverage,
    level_of_volume,
)
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
    Border(bumps=8, height=(-0.08, 0.12), sharpness=2, fading_mm=1.25),
    Border(bumps=16, height=(0.15, 0.6), sharpness=12, fading_mm=3.5),
    Border(bumps=8, height=(-0.06, 0.08), sharpness=2, fading_mm=1.25),
)
CONTRAST_HU = (-52.0, -30.0, 60.0)  # lesion minus pancreas where mean HU tells the subtypes apart
ANY_CONTRAST_HU = (25.0, 45.0)  # its size where it does not, of either sign


def lesion_distance(
    space: Space,
    rng: np.random.Generator,
    centre: Points,
    volume_ml: float,
    subtype: int,
) -> FloatArray:
    """Signed distance (mm, fine lattice) to a star-shaped lesion of exactly the volume given."""
    axes = np.exp(rng.normal(0, 0.12, 3)).astype(np.float32)
    d, h, w = ((x - np.float32(c)) / a for x, c, a in zip(space.fine, centre, axes, strict=True))
    field = np.sqrt(d**2 + h**2 + w**2)
    i, j, k = (np.abs(x.ravel()) < 2.2 * sphere_radius_mm(volume_ml) + 6 for x in (d, h, w))
    near = np.ix_(i, j, k)  # beyond, the outline does not matter
    field[near] /= _outline(rng, BORDERS[subtype], (d[i], h[:, j], w[:, :, k]), field[near])
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
    return min(BORDERS[subtype].fading_mm, max(FINE_MM, -0.7 * float(distance.min())))


def sphere_radius_mm(volume_ml: float) -> float:
    """Radius of the sphere with this volume."""
    return float((volume_ml * 1000 * 3 / (4 * np.pi)) ** (1 / 3))


def _outline(
    rng: np.random.Generator, border: Border, offset: Axes, radius: FloatArray
) -> FloatArray:
    """Relative radius of a bumpy shape in the direction of each point around its centre."""
    d, h, w = offset
    inverse = 1 / np.maximum(radius, np.float32(1e-3))
    outline = np.ones_like(radius)
    for direction in rng.standard_normal((border.bumps, 3)):
        a, b, c = (direction / np.linalg.norm(direction)).astype(np.float32)
        cosine = np.maximum((a * d + b * h + c * w) * inverse, 0)
        outline += np.float32(rng.uniform(*border.height)) * cosine**border.sharpness
    return outline
