"""Whether an exported network answers as torch does, and by how much it is off."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pancreas_mtl.errors import CaseError
from pancreas_mtl.inference.bundle import Bundle
from pancreas_mtl.inference.exportable import ExportableClassifier, ExportableWindow

TOLERANCE = 1e-4
"""Largest difference allowed, as a share of the answer's largest magnitude (but at least of 1)."""

Run = Callable[[Sequence[npt.NDArray[np.float32]]], Sequence[npt.NDArray[np.float32]]]
"""From the inputs of a network to its outputs, both in their order."""


def check_networks(bundle: Bundle, window: Run, classifier: Run | None) -> dict[str, Any]:
    """Compare an export with torch in fp32: windows of three sizes, then their case's subtype.

    Args:
        bundle: what was exported.
        window: the exported network on windows.
        classifier: the exported classifier, None from a bundle without subtypes.

    Returns:
        Tolerance, sizes and the largest difference of every output.

    Raises:
        CaseError: the export disagrees.
    """
    ours = ExportableWindow(bundle.network)
    shapes = sample_shapes(bundle)
    worst = dict.fromkeys(ours.output_names, 0.0)
    evidence: list[tuple[Tensor, ...]] = []
    for shape in shapes:
        image = torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))
        with torch.inference_mode():
            expected = ours(image)
        answers = window([image.numpy()])
        for name, answer, reference in zip(ours.output_names, answers, expected, strict=True):
            worst[name] = max(worst[name], difference(answer, reference.numpy()))
        evidence.append(tuple(part.sum(0, keepdim=True) for part in expected[1:]))
    if classifier is not None:
        sums, weights = (torch.stack(parts).sum(0) for parts in zip(*evidence, strict=True))
        with torch.inference_mode():
            subtype = ExportableClassifier(bundle.network)(sums, weights)
        (answer,) = classifier([sums.numpy(), weights.numpy()])
        worst["subtype"] = difference(answer, subtype.numpy())
    refuse_above(worst, TOLERANCE)
    return {
        "reference": f"torch {torch.__version__.split('+')[0]}, float32, CPU",
        "tolerance": TOLERANCE,
        "largest_difference": worst,
        "as_share_of": "the answer's largest magnitude, but at least 1",
        "shapes": [list(shape) for shape in shapes],
    }


def sample_shapes(bundle: Bundle) -> list[tuple[int, int, int, int, int]]:
    """Two of the smallest windows at once, one with other sizes, and the plan's patch."""
    a, b, c = bundle.plan.reductions[-1]
    return [
        (2, 1, 2 * a, 2 * b, 2 * c),
        (1, 1, 2 * a, 3 * b, 4 * c),
        (1, 1, *bundle.plan.patch_size),
    ]


def difference(answer: npt.NDArray[Any], reference: npt.NDArray[Any]) -> float:
    """The largest difference, as a share of the reference's largest magnitude, but at least of 1.

    It is infinite where shapes differ or the answer is not finite.
    """
    if answer.shape != reference.shape or not np.isfinite(answer).all():
        return float("inf")
    scale = max(1.0, float(np.abs(reference).max(initial=0.0)))
    return float(np.abs(answer - reference).max(initial=0.0)) / scale


def refuse_above(worst: dict[str, float], tolerance: float) -> None:
    """Raise a `CaseError` that names the output that is furthest off, if it is off too far."""
    name = max(worst, key=lambda one: worst[one])
    if worst[name] > tolerance:
        raise CaseError(
            f"the exported network disagrees with torch: {name} by {worst[name]:.2g}, tolerance "
            f"{tolerance:g}; nothing was written. Try another release of the exporter"
        )
