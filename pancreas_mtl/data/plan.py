"""From a fingerprint and a memory budget to a plan, as nnU-Net decides it.

The rules are those of Isensee et al., Nature Methods 2021, doi:10.1038/s41592-020-01008-z, and of
nnU-Net v2's default planner: median spacing (the tenth percentile along a strongly anisotropic
axis), pooling until four voxels are left per axis, the patch from the median shape, shrunk until
the feature maps fit the budget. `plan.json` is the readable form; it may be edited by hand.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pancreas_mtl.data.files import UNREADABLE, read_text, reason, write_text
from pancreas_mtl.data.fingerprint import Fingerprint
from pancreas_mtl.data.resample import ANISOTROPY_THRESHOLD, target_shape
from pancreas_mtl.errors import UsageError
from pancreas_mtl.types import NUM_LABELS, Intensity, Plan, Triple, TripleMm

SCHEMA = 1
MIN_EDGE_VOX = 4  # no axis is pooled below this
REFERENCE_FEATURES = 560_000_000  # feature-map values that train in 8 GB at a batch size of 2
REFERENCE_GB = 8.0
REFERENCE_BATCH = 2
MAX_DATASET_SHARE = 0.05  # a batch holds at most this share of all voxels


@dataclass(frozen=True)
class PlanConfig:
    """What the user may decide; None leaves a decision to the planner.

    `memory_gb` is the budget of training (GPU memory, or what the CPU may use). `bundle` names a
    folder whose `plan.json` is taken instead of making one.
    """

    memory_gb: float = 8.0
    base_channels: int = 32
    max_channels: int = 320
    spacing_mm: TripleMm | None = None
    patch_size: Triple | None = None
    batch_size: int | None = None
    bundle: str | None = None

    def __post_init__(self) -> None:
        for name in ("spacing_mm", "patch_size"):
            value = getattr(self, name)
            if value is not None and not (len(value) == 3 and min(value) > 0):
                raise UsageError(f"plan: {name}={list(value)}: give three numbers above 0")


@dataclass(frozen=True)
class Topology:
    """Kernels and strides per stage, and the patch padded to what the pooling divides."""

    kernels: tuple[Triple, ...]
    strides: tuple[Triple, ...]
    patch_size: Triple

    @property
    def divisor(self) -> Triple:
        """What each axis of an input must be divisible by."""
        d, h, w = (int(np.prod([stride[axis] for stride in self.strides])) for axis in range(3))
        return d, h, w


def make_plan(fingerprint: Fingerprint, config: PlanConfig) -> Plan:
    """Decide spacing, patch, network and batch size.

    Raises:
        UsageError: an override in `config` contradicts the network's strides.
    """
    spacing = config.spacing_mm or target_spacing(fingerprint.shapes, fingerprint.spacings_mm)
    resampled = [
        target_shape(shape, old, spacing)
        for shape, old in zip(fingerprint.shapes, fingerprint.spacings_mm, strict=True)
    ]
    median = [float(n) for n in np.median(resampled, axis=0)]
    if config.patch_size is None:
        topology = _fit_patch(spacing, median, config)
    else:
        topology = topology_for(spacing, config.patch_size)
        if topology.patch_size != tuple(config.patch_size):
            raise UsageError(
                f"plan.patch_size={list(config.patch_size)} is not divisible by the strides "
                f"{list(topology.divisor)}: use the next larger size, {list(topology.patch_size)}"
            )
    channels = _channels(len(topology.strides), config)
    dataset_vox = float(np.prod(median)) * len(resampled)
    batch = config.batch_size or _batch_size(topology, channels, config.memory_gb, dataset_vox)
    return Plan(
        spacing_mm=spacing,
        patch_size=topology.patch_size,
        batch_size=batch,
        channels=channels,
        kernels=topology.kernels,
        strides=topology.strides,
        intensity=fingerprint.intensity,
    )


def target_spacing(shapes: Sequence[Triple], spacings_mm: Sequence[TripleMm]) -> TripleMm:
    """The median spacing; along a strongly anisotropic axis the tenth percentile, as nnU-Net."""
    spacings = np.asarray(spacings_mm, dtype=float)
    target = np.median(spacings, axis=0)
    size = np.median(np.asarray(shapes, dtype=float), axis=0)
    worst = int(np.argmax(target))
    others = [axis for axis in range(3) if axis != worst]
    finest = float(target[others].max())
    coarse_spacing = target[worst] > ANISOTROPY_THRESHOLD * finest
    coarse_voxels = size[worst] * ANISOTROPY_THRESHOLD < size[others].min()
    if coarse_spacing and coarse_voxels:
        target[worst] = max(float(np.percentile(spacings[:, worst], 10)), finest + 1e-5)
    return float(target[0]), float(target[1]), float(target[2])


def topology_for(spacing_mm: TripleMm, patch_size: Sequence[float]) -> Topology:
    """Pool each axis that is at most twice as coarse as the finest, while four voxels remain."""
    spacing = list(spacing_mm)
    size = [float(n) for n in patch_size]
    kernel = [1, 1, 1]
    kernels: list[Triple] = []
    strides: list[Triple] = [(1, 1, 1)]
    while axes := _axes_to_pool(spacing, size):
        kernel = [
            3 if k == 3 or s / min(spacing) < 2 else 1 for k, s in zip(kernel, spacing, strict=True)
        ]
        for axis in axes:
            spacing[axis] *= 2
            size[axis] = math.ceil(size[axis] / 2)
        kernels.append((kernel[0], kernel[1], kernel[2]))
        strides.append(tuple(2 if axis in axes else 1 for axis in range(3)))  # type: ignore[arg-type]
    kernels.append((3, 3, 3))
    divisor = [int(np.prod([stride[axis] for stride in strides])) for axis in range(3)]
    d, h, w = (math.ceil(n / k) * k for n, k in zip(patch_size, divisor, strict=True))
    return Topology(tuple(kernels), tuple(strides), (d, h, w))


def _axes_to_pool(spacing: Sequence[float], size: Sequence[float]) -> list[int]:
    axes = [axis for axis in range(3) if size[axis] >= 2 * MIN_EDGE_VOX]
    if not axes:
        return []
    finest = min(spacing[axis] for axis in axes)
    axes = [axis for axis in axes if spacing[axis] / finest < 2]
    if len(axes) == 1 and size[axes[0]] < 3 * MIN_EDGE_VOX:
        return []
    return axes


def _fit_patch(spacing: TripleMm, median: Sequence[float], config: PlanConfig) -> Topology:
    """The largest patch, of the median shape's proportions, whose features fit the budget."""
    density = 1 / np.asarray(spacing)
    cube = density * (256**3 / density.prod()) ** (1 / 3)  # 256 cubed, isotropic in mm
    topology = topology_for(spacing, np.minimum(np.round(cube), np.asarray(median)).tolist())
    budget = REFERENCE_FEATURES * config.memory_gb / REFERENCE_GB
    while feature_values(topology, _channels(len(topology.strides), config)) > budget:
        size = list(topology.patch_size)
        axis = int(np.argmax(np.asarray(size) / np.asarray(median)))
        trial = list(size)
        trial[axis] -= topology.divisor[axis]
        if trial[axis] < MIN_EDGE_VOX:
            raise UsageError(
                f"plan.memory_gb={config.memory_gb} is too little for any patch: "
                "raise it or lower plan.base_channels"
            )
        size[axis] -= topology_for(spacing, trial).divisor[axis]
        topology = topology_for(spacing, size)
    return topology


def _channels(stages: int, config: PlanConfig) -> tuple[int, ...]:
    return tuple(
        min(config.base_channels * 2**stage, config.max_channels) for stage in range(stages)
    )


def feature_values(topology: Topology, channels: Sequence[int]) -> int:
    """How many values the feature maps of one patch hold, encoder and decoder: nnU-Net's measure.

    Two convolutions per stage each way, a transposed convolution and a segmentation head per
    decoder stage.
    """
    size = np.asarray(topology.patch_size)
    total = 0
    for stage, (stride, width) in enumerate(zip(topology.strides, channels, strict=True)):
        size = size // np.asarray(stride)
        voxels = int(size.prod())
        total += 2 * width * voxels
        if stage < len(channels) - 1:
            total += (2 * width + width + NUM_LABELS) * voxels
    return total


def _batch_size(
    topology: Topology, channels: Sequence[int], memory_gb: float, dataset_vox: float
) -> int:
    budget = REFERENCE_FEATURES * memory_gb / REFERENCE_GB
    fits = round(budget / feature_values(topology, channels) * REFERENCE_BATCH)
    share = round(dataset_vox * MAX_DATASET_SHARE / float(np.prod(topology.patch_size)))
    return max(2, min(fits, share))


def save_plan(plan: Plan, path: Path) -> None:
    """Write `plan.json`, readable and stable."""
    write_text(path, json.dumps({"schema": SCHEMA, **asdict(plan)}, indent=2) + "\n")


def load_plan(path: Path) -> Plan:
    """Read `plan.json`.

    Raises:
        UsageError: the file is missing, of another schema, or holds a value out of bounds.
    """
    try:
        raw = json.loads(read_text(path))
        schema = raw.pop("schema")
        plan = Plan(**{key: _tuples(value) for key, value in raw.items()})
        plan = Plan(**{**vars(plan), "intensity": Intensity(**raw["intensity"])})
        bad = out_of_bounds(plan)
    except FileNotFoundError:
        raise UsageError(
            f"{path}: not found; give a folder that holds it, such as the bundle/ of a run"
        ) from None
    except UNREADABLE as error:
        raise UsageError(f"{path}: not a plan ({reason(error)}); restore it from the run") from None
    if schema != SCHEMA:
        raise UsageError(
            f"{path}: plan schema {schema!r}, this version reads {SCHEMA}; make it again"
        )
    if bad is not None:
        raise UsageError(f"{path}: {bad}; restore it, or mend the value")
    return plan


def _tuples(value: Any) -> Any:
    return tuple(_tuples(one) for one in value) if isinstance(value, list) else value


def out_of_bounds(plan: Plan) -> str | None:
    """What of a plan cannot be, so that a hostile or mistaken file is never built."""
    stages, hu = len(plan.channels), plan.intensity
    good = {
        "channels": 3 <= stages <= 10 and _are_counts(plan.channels, 2048),
        "kernels": len(plan.kernels) == stages and _all_in(plan.kernels, (1, 3, 5, 7)),
        "strides": len(plan.strides) == stages and _all_in(plan.strides, (1, 2, 4)),
        "patch_size": len(plan.patch_size) == 3
        and _are_counts(plan.patch_size, 4096)
        and math.prod(plan.patch_size) <= 512**3,
        "batch_size": _are_counts([plan.batch_size], 4096),
        "spacing_mm": len(plan.spacing_mm) == 3 and all(0.01 < s < 100 for s in plan.spacing_mm),
        "intensity": 1e-3 <= hu.std_hu <= 1e5
        and abs(hu.mean_hu) <= 1e5
        and -1e5 <= hu.low_hu < hu.high_hu <= 1e5,
    }
    for key in good:
        if not good[key]:
            return f"{key}={str(getattr(plan, key))[:80]} is out of bounds"
    if plan.strides[0] != (1, 1, 1):
        return f"strides begin with {plan.strides[0]} instead of (1, 1, 1)"
    divisor = plan.reductions[-1]
    if any(n % k for n, k in zip(plan.patch_size, divisor, strict=True)):
        return f"patch_size={plan.patch_size} is not divisible by the strides {divisor}"
    return None


def _are_counts(values: Sequence[Any], most: int) -> bool:
    return all(type(value) is int and 1 <= value <= most for value in values)


def _all_in(triples: Sequence[Triple], allowed: Sequence[int]) -> bool:
    return all(len(triple) == 3 and set(triple) <= set(allowed) for triple in triples)
