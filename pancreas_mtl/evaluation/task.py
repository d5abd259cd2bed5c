"""What counts as good, as `conf/task/pancreas.yaml` states it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pancreas_mtl.errors import UsageError

TARGET_NAMES = ("whole_pancreas_dsc", "lesion_dsc", "macro_f1")


@dataclass(frozen=True)
class Task:
    """The content of `conf/task/pancreas.yaml`, where each field is explained.

    Raises:
        UsageError: a value that cannot be meant.
    """

    targets: Mapping[str, float]
    score: Mapping[str, float]
    nsd_tolerance_mm: float
    lesion_hit_iou: float
    lesion_size_limits_ml: tuple[float, ...]
    coverage: float
    bootstrap_resamples: int

    def __post_init__(self) -> None:
        limits = tuple(self.lesion_size_limits_ml)
        demands = {
            "targets": (set(self.targets) <= set(TARGET_NAMES), f"of {', '.join(TARGET_NAMES)}"),
            "nsd_tolerance_mm": (self.nsd_tolerance_mm >= 0, "at least 0"),
            "lesion_hit_iou": (0 < self.lesion_hit_iou <= 1, "above 0, at most 1"),
            "lesion_size_limits_ml": (
                bool(limits) and limits == tuple(sorted(set(limits))),
                "at least one, in rising order",
            ),
            "coverage": (0 < self.coverage < 1, "between 0 and 1"),
            "bootstrap_resamples": (self.bootstrap_resamples >= 1, "at least 1"),
        }
        for key, (holds, demand) in demands.items():
            if not holds:
                raise UsageError(f"task.{key}={getattr(self, key)}: must be {demand}")
