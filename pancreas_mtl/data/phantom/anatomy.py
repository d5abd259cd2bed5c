"""The anatomy of one crop, in Hounsfield units and labels on the fine lattice.

A bent, tapering pancreas (head, body, tail) with its lesion and duct is shaped first; neighbours
are placed around it, and the pancreas is painted last.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pancreas_mtl.data.phantom import lesions
from pancreas_mtl.data.phantom.geometry import (
    Points,
    Space,
    coverage,
    curve,
    tapering_tube,
    tube,
)
from pancreas_mtl.data.phantom.neighbours import paint_neighbours
from pancreas_mtl.data.phantom.statistics import Draw, Recipe
from pancreas_mtl.types import FloatArray

# Uncinate process, head, neck, body and tail, as fractions of the crop's edges (D, H, W)
CENTRELINE = (
    (0.13, 0.62, 0.24),
    (0.30, 0.56, 0.19),
    (0.46, 0.40, 0.26),
    (0.58, 0.30, 0.42),
    (0.68, 0.38, 0.60),
    (0.76, 0.56, 0.76),
    (0.82, 0.72, 0.87),
)
CALIBRE = (0.85, 1.25, 1.05, 0.72, 0.80, 0.78, 0.55)  # radius along the centreline, relative
JITTER = 0.035  # of the centreline's points, as a fraction of the crop
POINTS = 72  # of the centreline
LESION_PLACE = (0.08, 0.9)  # along the centreline
LOBULATION = 0.13  # of the surface, relative to the radius
ATROPHY = 0.72  # calibre upstream of an obstructed duct
DUCT_MM = (2.0, 3.2)  # radius of a dilated duct
DUCT_HU = 15.0
CALCIFIED_SHARE = 0.04  # of the cases, with a calcification, clip or stent in the pancreas
CALCIFICATION_HU = (300.0, 2200.0)


@dataclass(frozen=True)
class Anatomy:
    """What the scanner sees, on the fine lattice: HU, and the share of each voxel in a region."""

    hu: FloatArray
    whole_pancreas: FloatArray
    lesion: FloatArray


@dataclass(frozen=True)
class _Pancreas:
    """The organ's centreline, its radius there, and signed distances (mm) on both lattices."""

    line: Points
    radius_mm: FloatArray
    fine: FloatArray
    coarse: FloatArray


def build_anatomy(draw: Draw, recipe: Recipe, rng: np.random.Generator) -> Anatomy:
    """Draw one crop with its pancreas, a lesion of the subtype, and all that lies around."""
    space, subtype = Space(draw.extent_mm), draw.subtype
    line, calibre = _centreline(space, rng)
    place = int(rng.uniform(*LESION_PLACE) * (POINTS - 1))
    obstructed = rng.random() < lesions.OBSTRUCTED_SHARE[subtype]
    if obstructed:
        calibre[place:] *= ATROPHY
    centre = _inside(space, line[place] + rng.normal(0, 2.5, 3), draw.lesion_ml)
    lesion_mm = lesions.lesion_distance(space, rng, centre, draw.lesion_ml, subtype)
    pancreas = _shape_pancreas(space, rng, line, calibre, lesion_mm, draw.pancreas_ml)

    pancreas_hu = rng.normal(*recipe.pancreas_hu)
    occupied_mm = np.minimum(pancreas.coarse, space.coarsen(lesion_mm))
    hu = paint_neighbours(space, rng, line, pancreas.radius_mm, occupied_mm, pancreas_hu, recipe)
    paint(hu, pancreas.fine, _parenchyma_hu(space, rng, pancreas_hu, recipe))
    if obstructed:
        duct = space.refine(tube(space, line[place:], rng.uniform(*DUCT_MM)))
        paint(hu, np.maximum(duct, pancreas.fine + 1.5), np.float32(DUCT_HU))
    lesion = lesions.lesion_hu(space, rng, lesion_mm, subtype, pancreas_hu, recipe)
    paint(hu, lesion_mm, lesion, lesions.fading_mm(lesion_mm, subtype))
    if rng.random() < CALCIFIED_SHARE:
        spot = tube(space, line[place] + rng.normal(0, 3, (1, 3)), rng.uniform(2.0, 3.0))
        paint(hu, space.refine(spot), np.float32(rng.uniform(*CALCIFICATION_HU)))
    return Anatomy(hu, coverage(np.minimum(pancreas.fine, lesion_mm)), coverage(lesion_mm))


def paint(
    hu: FloatArray,
    distance: FloatArray,
    value: FloatArray | np.float32,
    softness_mm: float = 1.25,
) -> None:
    """Mix `value` into `hu`, in place, by the share of each voxel inside a shape."""
    hu += coverage(distance, softness_mm) * (value - hu)


def _centreline(space: Space, rng: np.random.Generator) -> tuple[Points, FloatArray]:
    control = np.array(CENTRELINE) + rng.normal(0, JITTER, (len(CENTRELINE), 3))
    calibre = np.array(CALIBRE) * np.exp(rng.normal(0, 0.1, len(CALIBRE)))
    knots, t = np.linspace(0, 1, len(calibre)), np.linspace(0, 1, POINTS)
    line = curve(space.at(control), POINTS)
    return line, np.interp(t, knots, calibre).astype(np.float32)


def _inside(space: Space, centre: Points, volume_ml: float) -> Points:
    """The nearest centre at which a lesion of this volume fits into the crop."""
    extent = np.array(space.extent_mm)
    margin = np.minimum(1.15 * lesions.sphere_radius_mm(volume_ml) + 3, 0.45 * extent)
    return np.clip(centre, margin, extent - margin)


def _shape_pancreas(
    space: Space,
    rng: np.random.Generator,
    line: Points,
    calibre: FloatArray,
    lesion_mm: FloatArray,
    volume_ml: float,
) -> _Pancreas:
    """The lobulated tube around the centreline whose volume outside the lesion is as given."""
    relative, local = tapering_tube(space, line, calibre)
    bumps = np.tanh(space.coarse_noise(rng, 9.0))  # bounded, or islands would come loose
    relative *= 1 + np.float32(LOBULATION) * bumps
    fine = space.refine(relative) + space.face_penalty()
    level = lesions.level_of_volume(fine[lesion_mm > 0], volume_ml / space.fine_ml)
    return _Pancreas(
        line, calibre * level, (fine - level) * space.refine(local), (relative - level) * local
    )


def _parenchyma_hu(
    space: Space, rng: np.random.Generator, mean_hu: float, recipe: Recipe
) -> FloatArray:
    """Lobules with fatty clefts between them."""
    clefts = np.clip(space.noise(rng, 3.5) - recipe.lobules_from, 0, 1.2)
    return np.float32(mean_hu) + 6 * space.noise(rng, 5.0) - np.float32(110) * clefts
