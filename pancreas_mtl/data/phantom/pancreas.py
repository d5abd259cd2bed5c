"""The pancreas: a bent, tapering, lobulated tube from head to tail, with its duct."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pancreas_mtl.data.phantom.geometry import (
    Points,
    Space,
    curve,
    level_of_volume,
    tapering_tube,
    tube,
)
from pancreas_mtl.data.phantom.statistics import Recipe
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
LOBULATION = 0.13  # of the surface, relative to the radius
LOBULE_HU, CLEFT_HU = 6.0, 110.0  # lobules vary by this; fatty clefts are darker by up to this
ATROPHY = 0.72  # calibre upstream of an obstructed duct
DUCT_MM = (2.0, 3.2)  # radius of a dilated duct
DUCT_WALL_MM = 1.5  # least tissue between it and the surface


@dataclass(frozen=True)
class Pancreas:
    """The organ without its lesion; distances are signed and in mm."""

    line: Points  # centreline, from head to tail
    radius_mm: FloatArray  # along it
    fine: FloatArray  # distance on the fine lattice
    coarse: FloatArray  # distance on the coarse lattice
    hu: float  # mean enhancement


def draw_centreline(space: Space, rng: np.random.Generator) -> tuple[Points, FloatArray]:
    """Positions from head to tail, and the relative radius there."""
    control = np.array(CENTRELINE) + rng.normal(0, JITTER, (len(CENTRELINE), 3))
    calibre = np.array(CALIBRE) * np.exp(rng.normal(0, 0.1, len(CALIBRE)))
    knots, t = np.linspace(0, 1, len(calibre)), np.linspace(0, 1, POINTS)
    line = curve(space.at(control), POINTS)
    return line, np.interp(t, knots, calibre).astype(np.float32)


def draw_pancreas(
    space: Space,
    rng: np.random.Generator,
    line: Points,
    calibre: FloatArray,
    lesion_mm: FloatArray,
    volume_ml: float,
    recipe: Recipe,
) -> Pancreas:
    """The tube around a centreline whose volume outside the lesion is exactly as given."""
    relative, local = tapering_tube(space, line, calibre)
    bumps = np.tanh(space.coarse_noise(rng, 9.0))  # bounded, or islands would come loose
    relative *= 1 + np.float32(LOBULATION) * bumps
    fine = space.refine(relative) + space.face_penalty()
    level = level_of_volume(fine[lesion_mm > 0], volume_ml / space.fine_ml)
    return Pancreas(
        line,
        radius_mm=calibre * level,
        fine=(fine - level) * space.refine(local),
        coarse=(relative - level) * local,
        hu=rng.normal(*recipe.pancreas_hu),
    )


def parenchyma_hu(
    space: Space, rng: np.random.Generator, pancreas: Pancreas, recipe: Recipe
) -> FloatArray:
    """Enhancement of lobules, with fatty clefts between them, on the fine lattice."""
    clefts = np.clip(space.noise(rng, 3.5) - recipe.lobules_from, 0, 1.2)
    lobules = np.float32(LOBULE_HU) * space.noise(rng, 5.0)
    return np.float32(pancreas.hu) + lobules - np.float32(CLEFT_HU) * clefts


def dilated_duct(
    space: Space, rng: np.random.Generator, pancreas: Pancreas, place: int
) -> FloatArray:
    """Signed distance (mm, fine lattice) to the duct from a point of the centreline to the tail."""
    duct = space.refine(tube(space, pancreas.line[place:], rng.uniform(*DUCT_MM)))
    return np.maximum(duct, pancreas.fine + np.float32(DUCT_WALL_MM))
