"""The anatomy of one crop, in Hounsfield units and labels on the fine lattice.

The lesion is shaped first and the pancreas around it; neighbours are painted around both, and
pancreas, duct and lesion last.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pancreas_mtl.data.phantom import lesions
from pancreas_mtl.data.phantom.geometry import FINE_MM, Points, Space, coverage, tube
from pancreas_mtl.data.phantom.neighbours import paint_neighbours
from pancreas_mtl.data.phantom.pancreas import (
    ATROPHY,
    POINTS,
    dilated_duct,
    draw_centreline,
    draw_pancreas,
    parenchyma_hu,
)
from pancreas_mtl.data.phantom.statistics import Draw, Recipe
from pancreas_mtl.types import FloatArray

LESION_PLACE = (0.08, 0.9)  # along the centreline
DUCT_HU = 15.0
CALCIFIED_SHARE = 0.04  # of the cases, with a calcification, clip or stent in the pancreas
CALCIFICATION_HU = (300.0, 2200.0)
CALCIFICATION_MM = (2.0, 3.0)  # radius


@dataclass(frozen=True)
class Anatomy:
    """What the scanner sees, on the fine lattice: HU, and the share of each voxel in a region."""

    hu: FloatArray
    whole_pancreas: FloatArray
    lesion: FloatArray


def build_anatomy(draw: Draw, recipe: Recipe, rng: np.random.Generator) -> Anatomy:
    """Draw one crop with its pancreas, a lesion of the subtype, and all that lies around."""
    space, subtype = Space(draw.extent_mm), draw.subtype
    line, calibre = draw_centreline(space, rng)
    place = int(rng.uniform(*LESION_PLACE) * (POINTS - 1))
    obstructed = rng.random() < lesions.OBSTRUCTED_SHARE[subtype]
    if obstructed:
        calibre[place:] *= ATROPHY
    centre = _inside(space, line[place] + rng.normal(0, 2.5, 3), draw.lesion_ml)
    lesion_mm = lesions.lesion_distance(space, rng, centre, draw.lesion_ml, subtype)
    pancreas = draw_pancreas(space, rng, line, calibre, lesion_mm, draw.pancreas_ml, recipe)

    occupied_mm = np.minimum(pancreas.coarse, space.coarsen(lesion_mm))
    hu = paint_neighbours(space, rng, pancreas, occupied_mm, recipe)
    _paint(hu, pancreas.fine, parenchyma_hu(space, rng, pancreas, recipe))
    if obstructed:
        _paint(hu, dilated_duct(space, rng, pancreas, place), np.float32(DUCT_HU))
    lesion = lesions.lesion_hu(space, rng, lesion_mm, subtype, pancreas.hu, recipe)
    _paint(hu, lesion_mm, lesion, lesions.fading_mm(lesion_mm, subtype))
    if rng.random() < CALCIFIED_SHARE:
        spot = line[place] + rng.normal(0, 3, (1, 3))
        shape = space.refine(tube(space, spot, rng.uniform(*CALCIFICATION_MM)))
        _paint(hu, shape, np.float32(rng.uniform(*CALCIFICATION_HU)))
    return Anatomy(hu, coverage(np.minimum(pancreas.fine, lesion_mm)), coverage(lesion_mm))


def _paint(
    hu: FloatArray,
    distance: FloatArray,
    value: FloatArray | np.float32,
    softness_mm: float = FINE_MM,
) -> None:
    """Mix `value` into `hu`, in place, by the share of each voxel inside a shape."""
    hu += coverage(distance, softness_mm) * (value - hu)


def _inside(space: Space, centre: Points, volume_ml: float) -> Points:
    """The nearest centre at which a lesion of this volume fits into the crop."""
    extent = np.array(space.extent_mm)
    margin = np.minimum(1.15 * lesions.sphere_radius_mm(volume_ml) + 3, 0.45 * extent)
    return np.clip(centre, margin, extent - margin)
