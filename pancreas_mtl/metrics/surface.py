"""The surfaces of two masks, as small elements with their areas, and how far they lie apart.

A surface element sits at every corner where eight voxels meet that are not all alike. Its area is
that of the surface which cuts the cube between their centres halfway along the edges, so slanted
and flat surfaces, thick and thin slices count by their true size rather than by voxels. This is
how NSD was defined (Nikolov et al. 2018, arXiv:1809.04430).
"""

from __future__ import annotations

import itertools
from functools import cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.ndimage import distance_transform_edt
from scipy.spatial import KDTree

from pancreas_mtl.types import TripleMm

Array = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
Edge = tuple[int, int]

SPARSE = 0.1  # elements per voxel of the box; a smooth organ has about 0.05, speckle more
CORNERS = tuple(itertools.product((0, 1), repeat=3))  # (d, h, w) of a cube; bit k of a code is k
FACES: tuple[tuple[int, ...], ...] = (  # corners in the order around each face
    (0, 1, 3, 2), (4, 5, 7, 6), (0, 1, 5, 4), (2, 3, 7, 6), (0, 2, 6, 4), (1, 3, 7, 5),
)  # fmt: skip


class SurfaceDistances(NamedTuple):
    """How far each element of one surface lies from the nearest of the other, both ways.

    The first mask has M elements, the second one K.
    """

    first_mm: Array  # (M,)
    first_areas_mm2: Array  # (M,)
    second_mm: Array  # (K,)
    second_areas_mm2: Array  # (K,)

    def share_within(self, tolerance_mm: float) -> float:
        """The share of both surfaces' area that is no farther from the other, in [0, 1]."""
        areas = np.concatenate([self.first_areas_mm2, self.second_areas_mm2])
        near = np.concatenate([self.first_mm, self.second_mm]) <= tolerance_mm
        return float(areas[near].sum() / areas.sum())

    def mean_mm(self) -> float:
        """The mean distance over the area of both surfaces."""
        areas = np.concatenate([self.first_areas_mm2, self.second_areas_mm2])
        return float(np.average(np.concatenate([self.first_mm, self.second_mm]), weights=areas))

    def percentile_mm(self, percent: float) -> float:
        """The distance that `percent` of a surface's area keeps, of the worse surface."""
        return max(
            _percentile(self.first_mm, self.first_areas_mm2, percent),
            _percentile(self.second_mm, self.second_areas_mm2, percent),
        )


def surface_distances(first: Mask, second: Mask, spacing_mm: TripleMm) -> SurfaceDistances | None:
    """Measure both ways; None where a mask is empty. What leaves the volume is closed there."""
    if not first.any() or not second.any():
        return None
    box = bounding_box(first | second)
    codes = [_codes(mask[box]) for mask in (first, second)]
    first_on, second_on = ((code > 0) & (code < 255) for code in codes)
    areas = element_areas_mm2(spacing_mm)
    return SurfaceDistances(
        _distances_mm(first_on, second_on, spacing_mm),
        areas[codes[0][first_on]],
        _distances_mm(second_on, first_on, spacing_mm),
        areas[codes[1][second_on]],
    )


def _distances_mm(from_: Mask, to: Mask, spacing_mm: TripleMm) -> Array:
    """The distance from each element of one surface to the nearest of the other.

    A search tree takes time by element, a distance transform by voxel; both are exact.
    """
    if (np.count_nonzero(from_) + np.count_nonzero(to)) > SPARSE * from_.size:
        field: Array = distance_transform_edt(~to, sampling=spacing_mm)
        return field[from_]
    tree = KDTree(np.argwhere(to) * spacing_mm, compact_nodes=False, balanced_tree=False)
    distances: Array = tree.query(np.argwhere(from_) * spacing_mm)[0]
    return distances


def bounding_box(mask: Mask) -> tuple[slice, ...]:
    """The smallest box around a mask; of size 0 for an empty one."""
    box = []
    for axis in range(mask.ndim):
        others = tuple(other for other in range(mask.ndim) if other != axis)
        found = np.flatnonzero(mask.any(axis=others))
        box.append(slice(int(found[0]), int(found[-1]) + 1) if len(found) else slice(0, 0))
    return tuple(box)


def _codes(mask: Mask) -> npt.NDArray[np.uint8]:
    """Which of the eight voxels around each corner are inside; shape (D + 1, H + 1, W + 1)."""
    padded = np.pad(mask, 1).view(np.uint8)
    codes = np.zeros([size + 1 for size in mask.shape], np.uint8)
    for bit, corner in enumerate(CORNERS):
        cut = tuple(slice(c, c + size) for c, size in zip(corner, codes.shape, strict=True))
        codes |= padded[cut] << bit
    return codes


def _percentile(distances_mm: Array, areas_mm2: Array, percent: float) -> float:
    """The smallest distance up to which lies at least `percent` of the area."""
    order = np.argsort(distances_mm)
    reached = np.cumsum(areas_mm2[order])
    index = int(np.searchsorted(reached, percent / 100 * reached[-1]))
    return float(distances_mm[order][index])


@cache
def element_areas_mm2(spacing_mm: TripleMm) -> Array:
    """The area within a cube for each of its 256 codes; code 0 and 255 have none.

    A code's surface consists of closed polygons through the midpoints of the edges between a
    corner inside and a corner outside. A polygon counts by its vector area, which is the plain
    area where it is flat.
    """
    spacing = np.array(spacing_mm)
    areas = np.zeros(256)
    for code in range(256):
        for polygon in _polygons(code):
            middles = np.array([np.add(CORNERS[a], CORNERS[b]) / 2 for a, b in polygon]) * spacing
            vector = np.cross(middles, np.roll(middles, -1, axis=0)).sum(axis=0) / 2
            areas[code] += np.linalg.norm(vector)
    return areas


@cache
def _polygons(code: int) -> list[list[Edge]]:
    """The crossed edges of a cube, in the order around each polygon."""
    neighbours: dict[Edge, list[Edge]] = {}
    for face in FACES:
        for one, other in _joined_edges(face, code):
            neighbours.setdefault(one, []).append(other)
            neighbours.setdefault(other, []).append(one)
    polygons = []
    while neighbours:
        edge: Edge | None = next(iter(neighbours))
        polygon = []
        while edge is not None:
            polygon.append(edge)
            around = neighbours.pop(edge)
            edge = next((other for other in around if other in neighbours), None)
        polygons.append(polygon)
    return polygons


def _joined_edges(face: tuple[int, ...], code: int) -> list[tuple[Edge, Edge]]:
    """The pairs of crossed edges that the surface joins across one face.

    Where all four edges are crossed, each inside corner is cut off by itself.
    """
    inside = [bool(code >> corner & 1) for corner in face]
    edges = [(min(a, b), max(a, b)) for a, b in zip(face, (*face[1:], face[0]), strict=True)]
    crossed = [k for k in range(4) if inside[k] != inside[(k + 1) % 4]]
    if len(crossed) == 4:
        return [(edges[k - 1], edges[k]) for k in range(4) if inside[k]]
    return [(edges[crossed[0]], edges[crossed[1]])] if crossed else []
