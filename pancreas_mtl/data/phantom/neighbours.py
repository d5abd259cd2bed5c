"""What lies around the pancreas: vessels, bowel, solid organs, bone and fat."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pancreas_mtl.data.phantom.geometry import (
    COARSE_MM,
    Points,
    Space,
    coverage,
    curve,
    ellipsoid,
    tube,
)
from pancreas_mtl.data.phantom.pancreas import Pancreas
from pancreas_mtl.data.phantom.statistics import Recipe
from pancreas_mtl.types import FloatArray, TripleMm

FAT_HU = -102.0
BLOOD_HU = 165.0
GAS_HU = -900.0
BILE_HU = 8.0
BOWEL_WALL_HU, LIVER_HU, SPLEEN_HU, KIDNEY_HU, MUSCLE_HU = 75.0, 118.0, 128.0, 172.0, 62.0
CORTEX_HU, MARROW_HU, DISC_HU = 330.0, 190.0, 85.0

# Positions in the crop are fractions of its edges (D, H, W); offsets and radii are in mm
NECK = 0.42  # where along the centreline the neck lies, in front of the portal confluence


@dataclass
class Scene:
    """The crop as it fills: HU on the fine lattice, and the distance to all that is placed."""

    space: Space
    rng: np.random.Generator
    recipe: Recipe
    pancreas: Pancreas
    texture: FloatArray  # fine, unit variance; organs share it, for they do not overlap
    hu: FloatArray
    occupied_mm: FloatArray  # coarse: signed distance to the pancreas and its lesion
    placed_mm: FloatArray  # coarse: signed distance to all neighbours placed so far

    def add(self, shape: FloatArray, hu: float, gap_mm: float = 1.5) -> FloatArray:
        """Paint an organ that gives way to what is there; return its coarse distance."""
        fat_plane_mm = np.float32(self.rng.uniform(*self.recipe.fat_plane_mm))
        shape = np.maximum(shape, fat_plane_mm - self.occupied_mm)
        shape = np.maximum(shape, np.float32(gap_mm) - self.placed_mm)
        self.placed_mm = np.minimum(self.placed_mm, shape)
        self.fill(shape, hu + self.rng.normal(0, 6), texture_hu=5.0)
        return shape

    def fill(self, shape: FloatArray, hu: float, texture_hu: float = 3.0) -> None:
        """Paint over what is there."""
        inside = shape < COARSE_MM / 2
        if inside.any():
            box = self.space.box_of(inside)
            share = coverage(self.space.refine(shape, box))
            value = np.float32(hu) + np.float32(texture_hu) * self.texture[box]
            self.hu[box] += share * (value - self.hu[box])

    def soft(self, hu: float) -> float:
        """The HU of soft tissue, drawn towards that of the pancreas as the recipe says."""
        return hu + self.recipe.neighbours_alike * (self.pancreas.hu - hu)

    def near(self, fractions: TripleMm, spread: float = 0.03) -> Points:
        """A position in the crop, with some variation."""
        return self.space.at(np.array(fractions) + self.rng.normal(0, spread, 3))


def paint_neighbours(
    space: Space,
    rng: np.random.Generator,
    pancreas: Pancreas,
    occupied_mm: FloatArray,
    recipe: Recipe,
) -> FloatArray:
    """HU of everything but the pancreas, on the fine lattice.

    Args:
        space: the crop.
        rng: source of all variation.
        pancreas: in the middle of it all.
        occupied_mm: signed distance to pancreas and lesion, on the coarse lattice.
        recipe: the difficulty.
    """
    texture = space.noise(rng, 4.0)
    fat = FAT_HU + 8 * texture + 9 * space.noise(rng, 25.0)
    nothing = np.full(space.coarse_shape, np.inf, np.float32)
    scene = Scene(space, rng, recipe, pancreas, texture, fat, occupied_mm, nothing)
    _add_solid_organs(scene)
    _add_vessels(scene)
    _add_bone_and_muscle(scene)
    _add_bowel(scene)
    _add_strands(scene)
    return scene.hu


def _add_solid_organs(scene: Scene) -> None:
    space, rng = scene.space, scene.rng
    bladder = ellipsoid(space, scene.near((0.5, 0.12, 0.12), 0.05), rng.uniform(10, 20, 3))
    scene.add(bladder, BILE_HU)
    liver = ellipsoid(space, scene.near((0.98, 0.3, -0.02)), (70, 62, 52))
    scene.add(liver, scene.soft(LIVER_HU))
    spleen = ellipsoid(space, scene.pancreas.line[-1] + [8, 16, 38], (45, 36, 26))
    scene.add(spleen, scene.soft(SPLEEN_HU))
    for fractions in ((0.42, 1.12, 0.92), (0.25, 1.12, 0.0)):
        centre = scene.near(fractions)
        kidney = scene.add(ellipsoid(space, centre, (48, 27, 24)), KIDNEY_HU)
        pelvis = ellipsoid(space, centre, (22, 9, 9))
        scene.fill(np.maximum(pelvis, kidney + 4), FAT_HU + 40)


def _add_vessels(scene: Scene) -> None:
    space, rng = scene.space, scene.rng
    blood = BLOOD_HU + rng.normal(0, 12)
    index = int(NECK * len(scene.pancreas.line))
    line, radius_mm = scene.pancreas.line[index:], scene.pancreas.radius_mm[index:]
    neck, behind = line[0], float(radius_mm[0]) + 6

    def along_the_spine(back_mm: float, left_mm: float, radius_mm: float) -> FloatArray:
        path = np.array([0, neck[1] + back_mm, neck[2] + left_mm]) + rng.normal(0, 3, (3, 3))
        path[:, 0] = np.linspace(-20, space.extent_mm[0] + 20, 3)
        return tube(space, curve(path), radius_mm)

    def from_confluence(end: Points, radius_mm: float) -> FloatArray:
        return tube(space, np.linspace(confluence, end, 40), radius_mm)

    back, left = behind + rng.uniform(24, 32), rng.uniform(16, 24)
    scene.add(along_the_spine(back, left, rng.uniform(8, 11)), blood - 8)  # aorta
    back, left = behind + rng.uniform(22, 28), rng.uniform(-14, -6)
    scene.add(along_the_spine(back, left, rng.uniform(9, 12)), blood - 20)  # vena cava
    confluence = neck + np.array([0, behind, 0])
    below = np.array([-20, confluence[1] + 2, confluence[2] + 2])
    scene.add(from_confluence(below, rng.uniform(4.5, 6.5)), blood, gap_mm=0.6)  # mesenteric vein
    artery = np.linspace(below + np.array([0, 4, 11]), confluence + np.array([12, 16, 14]), 40)
    scene.add(tube(space, artery, rng.uniform(3, 4)), blood, gap_mm=0.6)
    liver = confluence + np.array([60, -8, -45])
    scene.add(from_confluence(liver, rng.uniform(5, 7)), blood, gap_mm=0.0)  # portal vein
    splenic = line + np.stack([0 * radius_mm + 2, radius_mm + 4.5, 0 * radius_mm], axis=1)
    scene.add(tube(space, splenic, rng.uniform(3.2, 4.8)), blood, gap_mm=0.0)


def _add_bone_and_muscle(scene: Scene) -> None:
    space, rng = scene.space, scene.rng
    d, h, w = space.coarse
    middle = scene.pancreas.line[int(NECK * len(scene.pancreas.line))]
    back = np.float32(middle[1] + rng.uniform(66, 78))
    left = np.float32(middle[2] + rng.uniform(2, 10))
    column = np.hypot(h - back, w - left) - 22 + 0 * d
    vertebra = scene.add(column, CORTEX_HU)
    scene.fill(vertebra + 2.5, MARROW_HU, texture_hu=30)
    disc = (d + np.float32(rng.uniform(0, 34))) % 34 - 7
    scene.fill(np.maximum(vertebra, disc), DISC_HU)
    for side in (-34, 34):
        psoas = np.hypot(h - back - 6, w - left - side) - 15 + 0 * d
        scene.add(psoas, MUSCLE_HU)


def _add_bowel(scene: Scene) -> None:
    space, rng = scene.space, scene.rng
    head = scene.pancreas.line[int(0.12 * len(scene.pancreas.line))]
    loop = [[34, -12, 8], [22, -4, -18], [0, 2, -27], [-22, 6, -16], [-30, 10, 14]]
    _add_hollow(scene, tube(space, curve(head + np.array(loop)), rng.uniform(10, 13)))
    radii = rng.uniform((24, 17, 34), (34, 26, 50))
    _add_hollow(scene, ellipsoid(space, scene.near((0.85, 0.06, 0.72)), radii))
    for _ in range(rng.integers(4, 7)):
        steps = np.cumsum(rng.normal(0, 13, (5, 3)), axis=0)
        jejunum = curve(scene.near((0.2, 0.35, 0.72), 0.16) + steps)
        _add_hollow(scene, tube(space, jejunum, rng.uniform(9, 13)))
    across = np.linspace([0, 0, 0], [rng.uniform(0, 60), 4, 0.8 * space.extent_mm[2]], 6)
    colon = curve(scene.near((0.25, 0.02, 0.1)) + across + rng.normal(0, 6, across.shape))
    _add_hollow(scene, tube(space, colon, rng.uniform(12, 17)))


def _add_hollow(scene: Scene, shape: FloatArray) -> None:
    """Bowel: a wall around fluid, with gas that has risen to the front (the patient lies)."""
    rng = scene.rng
    outer = scene.add(shape, scene.soft(BOWEL_WALL_HU), gap_mm=1.0)
    lumen = outer + np.float32(rng.uniform(2.5, 4.5))
    if not (lumen < 0).any() or rng.random() < scene.recipe.collapsed:
        return
    scene.fill(lumen, float(rng.choice(scene.recipe.lumen_hu)) + rng.normal(0, 8), texture_hu=8)
    if rng.random() < 0.6:
        _, h, _ = scene.space.coarse
        rows = np.broadcast_to(h, lumen.shape)[lumen < 0]
        level = np.float32(np.quantile(rows, rng.uniform(0.1, 0.6)))
        scene.fill(np.maximum(lumen, h - level), GAS_HU, texture_hu=10)


def _add_strands(scene: Scene) -> None:
    """Small mesenteric vessels in the fat."""
    space, rng = scene.space, scene.rng
    for _ in range(12):
        steps = np.cumsum(rng.normal(0, 9, (5, 3)), axis=0)
        path = curve(space.at(rng.uniform(0, 1, 3)) + steps)
        scene.add(tube(space, path, rng.uniform(1.2, 2.4)), 140.0, gap_mm=0.5)
