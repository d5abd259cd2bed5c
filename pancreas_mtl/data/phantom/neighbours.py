"""What lies around the pancreas: vessels, bowel, solid organs, bone and fat."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from pancreas_mtl.data.phantom.geometry import (
    Points,
    Space,
    coverage,
    curve,
    ellipsoid,
    tube_distance,
)
from pancreas_mtl.data.phantom.statistics import Recipe
from pancreas_mtl.types import FloatArray, TripleMm

FAT_HU = -102.0
BLOOD_HU = 165.0
WALL_MM = 3.0
GAS_HU = -900.0
LUMEN_HU = (8.0, 30.0, 260.0)  # water, chyme, positive contrast


@dataclass
class Scene:
    """The crop as it fills: HU on the fine lattice, and the distance to all that is placed."""

    space: Space
    rng: np.random.Generator
    hu: FloatArray
    placed_mm: FloatArray  # coarse: signed distance to everything placed so far
    pancreas_hu: float
    recipe: Recipe
    claimed: list[str] = field(default_factory=list)

    def add(self, name: str, distance: FloatArray, hu: float, gap_mm: float = 1.5) -> FloatArray:
        """Paint a shape that gives way to what is there; return its coarse distance."""
        distance = np.maximum(distance, np.float32(gap_mm) - self.placed_mm)
        self.placed_mm = np.minimum(self.placed_mm, distance)
        self.claimed.append(name)
        self._paint(distance, self._blend(hu), 5.0)
        return distance

    def fill(self, distance: FloatArray, hu: float, texture_hu: float = 2.0) -> None:
        """Paint inside a shape that is there already."""
        self._paint(distance, hu, texture_hu)

    def _blend(self, hu: float) -> float:
        alike = self.recipe.neighbours_alike if 0 < hu < 140 else 0.0
        return hu + alike * (self.pancreas_hu - hu)

    def _paint(self, distance: FloatArray, hu: float, texture_hu: float) -> None:
        if float(distance.min()) > 1.0:
            return
        share = coverage(self.space.refine(distance))
        value = np.float32(hu) + np.float32(texture_hu) * self.space.noise(self.rng, 4.0)
        self.hu += share * (value - self.hu)


def place_neighbours(
    space: Space,
    rng: np.random.Generator,
    line: Points,
    pancreas_mm: FloatArray,
    pancreas_hu: float,
    recipe: Recipe,
) -> FloatArray:
    """HU of everything but the pancreas, on the fine lattice.

    Args:
        space: the crop.
        rng: source of all variation.
        line: the pancreas' centreline, from head to tail.
        pancreas_mm: signed distance to pancreas and lesion, on the coarse lattice.
        pancreas_hu: what neighbours are made to resemble where the recipe says so.
        recipe: the difficulty.
    """
    fat = FAT_HU + 7 * space.noise(rng, 5.0) + 9 * space.noise(rng, 25.0)
    plane_mm = np.float32(rng.uniform(*recipe.fat_plane_mm))
    scene = Scene(space, rng, fat, pancreas_mm - plane_mm + 1.5, pancreas_hu, recipe)
    for place in (_vessels, _bowel, _solid_organs, _bone, _strands):
        place(scene, line)
    return scene.hu


def _jitter(scene: Scene, centre: TripleMm, spread: float = 0.03) -> Points:
    return scene.space.at(*(np.array(centre) + scene.rng.normal(0, spread, 3)))


def _vessels(scene: Scene, line: Points) -> None:
    rng, space = scene.rng, scene.space
    blood = BLOOD_HU + rng.normal(0, 12)
    top, bottom = space.extent_mm[0] + 20, -20.0
    neck = line[int(0.42 * len(line))]

    def vertical(offset_h: float, offset_w: float, low: float = bottom) -> Points:
        start = np.array([low, neck[1] + offset_h, neck[2] + offset_w])
        ends = np.array([start, start + rng.normal(0, 3, 3), start + rng.normal(0, 3, 3)])
        ends[:, 0] = np.linspace(low, top, 3)
        return curve(ends, 60)

    aorta = vertical(rng.uniform(38, 46), rng.uniform(16, 24))
    cava = vertical(rng.uniform(36, 42), rng.uniform(-14, -6))
    scene.add("aorta", tube_distance(space, aorta, rng.uniform(8, 11)), blood - 8)
    scene.add("cava", tube_distance(space, cava, rng.uniform(9, 12)), blood - 20)
    smv = np.linspace([bottom, neck[1] + 16, neck[2]], neck + [0, 14, 0], 40)
    sma = np.linspace([bottom, neck[1] + 20, neck[2] + 13], neck + [12, 30, 14], 40)
    portal = np.linspace(neck + [0, 14, 0], neck + [60, 4, -45], 40)
    splenic = line[int(0.42 * len(line)) :] + [2.0, 15.0, 0.0]
    for name, path, radius in (
        ("smv", smv, rng.uniform(4.5, 6.5)),
        ("sma", sma, rng.uniform(3, 4)),
        ("portal vein", portal, rng.uniform(5, 7)),
        ("splenic vein", splenic, rng.uniform(3.2, 4.8)),
    ):
        scene.add(name, tube_distance(space, path, radius), blood, gap_mm=0.6)


def _bowel(scene: Scene, line: Points) -> None:
    space, rng = scene.space, scene.rng
    head = line[int(0.12 * len(line))]
    loop = np.array(
        [
            head + [34, -12, 8],
            head + [22, -4, -18],
            head + [0, 2, -27],
            head + [-22, 6, -16],
            head + [-30, 10, 14],
        ]
    )
    _hollow(scene, "duodenum", tube_distance(space, curve(loop, 60), rng.uniform(10, 13)))
    radii = tuple(rng.uniform((24, 17, 34), (34, 26, 50)))
    _hollow(scene, "stomach", ellipsoid(space, _jitter(scene, (0.85, 0.06, 0.72)), radii))
    for _ in range(rng.integers(3, 6)):
        start = _jitter(scene, (0.2, 0.35, 0.72), 0.16)
        path = start + np.cumsum(rng.normal(0, 13, (5, 3)), axis=0)
        _hollow(scene, "jejunum", tube_distance(space, curve(path, 40), rng.uniform(9, 13)))
    start = _jitter(scene, (0.25, 0.02, 0.1))
    colon = start + np.linspace([0, 0, 0], [rng.uniform(0, 60), 4, 0.8 * space.extent_mm[2]], 6)
    colon += rng.normal(0, 6, colon.shape)
    _hollow(scene, "colon", tube_distance(space, curve(colon, 60), rng.uniform(12, 17)))


def _hollow(scene: Scene, name: str, distance: FloatArray) -> None:
    """Bowel: a wall around fluid, with gas that has risen to the front (the patient lies)."""
    rng = scene.rng
    outer = scene.add(name, distance, rng.normal(72, 8), gap_mm=1.0)
    lumen = outer + np.float32(rng.uniform(WALL_MM - 0.5, WALL_MM + 1.5))
    scene.fill(lumen, float(rng.choice(LUMEN_HU)) + rng.normal(0, 8), texture_hu=8)
    if rng.random() < 0.6 and (lumen < 0).any():
        _, h, _ = scene.space.coarse
        rows = np.broadcast_to(h, lumen.shape)[lumen < 0]
        level = np.quantile(rows, rng.uniform(0.1, 0.6))
        scene.fill(np.maximum(lumen, h - np.float32(level)), GAS_HU, texture_hu=10)


def _solid_organs(scene: Scene, line: Points) -> None:
    space, rng = scene.space, scene.rng
    liver = ellipsoid(space, _jitter(scene, (0.98, 0.3, -0.02)), (70, 62, 52))
    scene.add("liver", liver, rng.normal(118, 8))
    gallbladder = _jitter(scene, (0.5, 0.12, 0.12), 0.05)
    scene.fill(
        np.maximum(ellipsoid(space, gallbladder, (18, 13, 12)), 1.5 - scene.placed_mm), 8.0
    )
    scene.add("gallbladder", ellipsoid(space, gallbladder, (18, 13, 12)), 8.0)
    tail = line[-1]
    scene.add("spleen", ellipsoid(space, tail + [8, 16, 38], (45, 36, 26)), rng.normal(128, 8))
    for name, centre in (("left", (0.42, 0.97, 0.86)), ("right", (0.25, 0.98, 0.02))):
        shape = ellipsoid(space, _jitter(scene, centre), (48, 26, 25))
        outer = scene.add(f"{name} kidney", shape, rng.normal(172, 10))
        pelvis = ellipsoid(space, _jitter(scene, centre, 0.01), (22, 9, 9))
        scene.fill(np.maximum(pelvis, outer + 4), FAT_HU + 40)


def _bone(scene: Scene, line: Points) -> None:
    space, rng = scene.space, scene.rng
    centre_h, centre_w = line[30, 1] + rng.uniform(66, 74), line[30, 2] + rng.uniform(2, 10)
    d, h, w = space.coarse
    disc = ((d + rng.uniform(0, 34)) % 34) < 7
    round_mm = np.sqrt((h - np.float32(centre_h)) ** 2 + (w - np.float32(centre_w)) ** 2)
    body = scene.add("vertebra", (round_mm - 22) + 0 * d, 330.0)
    scene.fill(body + 2.5, 190.0, texture_hu=30)
    scene.fill(np.where(disc, body, 50.0).astype(np.float32), 85.0)
    for side in (-1, 1):
        psoas = np.array([centre_h + 6, centre_w + side * 34], np.float32)
        muscle = np.sqrt((h - psoas[0]) ** 2 + (w - psoas[1]) ** 2) - 15 + 0 * d
        scene.add("psoas", muscle.astype(np.float32), 62.0)


def _strands(scene: Scene, line: Points) -> None:
    """Small mesenteric vessels in the fat."""
    space, rng = scene.space, scene.rng
    for _ in range(6):
        start = rng.uniform(0, 1, 3) * space.extent_mm
        path = start + np.cumsum(rng.normal(0, 9, (5, 3)), axis=0)
        scene.add("vessel", tube_distance(space, curve(path, 40), rng.uniform(1.2, 2.2)), 140.0)


_ = Callable
