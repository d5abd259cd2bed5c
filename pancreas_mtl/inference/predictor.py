"""From HU in the source's grid to labels in the same grid and a subtype.

Three stages, so that a pipeline can overlap them: `prepare` (normalise, resample), `infer` (the
network), `finish` (back to the source's grid, clean-up). Calling the predictor does all three.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from pancreas_mtl.data.preprocess import prepare_image
from pancreas_mtl.data.resample import spline_orders
from pancreas_mtl.errors import CaseError
from pancreas_mtl.inference.bundle import Bundle, load_bundle
from pancreas_mtl.inference.engines import Precision, TorchEngine
from pancreas_mtl.inference.postprocess import (
    clean_up,
    labels_at,
    mean_entropy,
    with_temperature,
)
from pancreas_mtl.inference.windows import MIRROR_AXES, predict_windows
from pancreas_mtl.models.network import reductions
from pancreas_mtl.types import CasePrediction, FloatArray, SourceGrid, TripleMm, Volume

PresetName = Literal["accurate", "fast"]


@dataclass(frozen=True)
class Preset:
    """How much work prediction does: axes to mirror, and the step between windows.

    A network that was trained without mirrored patches is not shown mirrored images.
    """

    mirror_axes: tuple[int, ...] = MIRROR_AXES
    step: float = 0.5


PRESETS: dict[str, Preset] = {"accurate": Preset(), "fast": Preset(mirror_axes=())}


class Inferred(NamedTuple):
    """One model's answer at its plan's spacing."""

    scores: FloatArray  # (C, d, h, w): logits of a single model, probabilities in an ensemble
    probabilities: FloatArray  # (S,)
    entropy: float


class Predictor:
    """One bundle, or an ensemble of several whose probabilities are averaged.

    Args:
        bundles: trained models; they may differ in plan and head.
        preset: how much work to do.
        device: "auto", "cpu", "cuda" or "cuda:N".
        precision: of the network.
    """

    def __init__(
        self,
        bundles: Sequence[Bundle],
        *,
        preset: Preset = PRESETS["accurate"],
        device: str = "auto",
        precision: Precision = "auto",
    ) -> None:
        self.bundles = list(bundles)
        self.preset = preset
        self.engines = [
            TorchEngine(bundle.network, device=device, precision=precision) for bundle in bundles
        ]

    @classmethod
    def from_bundle(
        cls,
        path: str | Path | Sequence[str | Path],
        *,
        preset: PresetName = "accurate",
        device: str = "auto",
        precision: Precision = "auto",
    ) -> Predictor:
        """Load a bundle folder, or several as an ensemble.

        Raises:
            UsageError: a folder is no bundle of this version.
        """
        paths = [path] if isinstance(path, str | Path) else list(path)
        bundles = [load_bundle(Path(one)) for one in paths]
        return cls(bundles, preset=PRESETS[preset], device=device, precision=precision)

    def __call__(self, image: npt.NDArray[np.floating], spacing_mm: TripleMm) -> CasePrediction:
        """Labels and subtype probabilities of one CT.

        Args:
            image: `(D, H, W)` HU in canonical orientation (see `types.py`).
            spacing_mm: of the image, `(D, H, W)`.

        Raises:
            CaseError: the image is not 3D, or has voxels that are not finite.
        """
        array = np.asarray(image, dtype=np.float32)
        if array.ndim != 3 or not np.isfinite(array).all():
            raise CaseError(f"image of shape {array.shape}: needs three axes and finite voxels")
        grid = SourceGrid((array.shape[2], array.shape[1], array.shape[0]), np.eye(4))
        return self.predict(Volume(array, spacing_mm, grid))

    def predict(self, volume: Volume) -> CasePrediction:
        """All three stages on one volume."""
        return self.finish(volume, self.infer(self.prepare(volume)))

    def prepare(self, volume: Volume) -> list[FloatArray]:
        """The image as each model wants it; equal plans share one."""
        prepared: dict[object, FloatArray] = {}
        for bundle in self.bundles:
            key = (bundle.plan.intensity, bundle.plan.spacing_mm)
            if key not in prepared:
                prepared[key] = prepare_image(volume, *key)
        return [prepared[(b.plan.intensity, b.plan.spacing_mm)] for b in self.bundles]

    def infer(self, images: Sequence[FloatArray]) -> list[Inferred]:
        """Run every model on its image."""
        return [self._infer_one(model, image) for model, image in enumerate(images)]

    def finish(self, volume: Volume, inferred: Sequence[Inferred]) -> CasePrediction:
        """Labels in the source's grid, and the mean of the models' subtype probabilities."""
        d, h, w = volume.array.shape
        orders = [
            spline_orders(bundle.plan.spacing_mm, volume.spacing_mm, order=1)
            for bundle in self.bundles
        ]
        labels = labels_at([one.scores for one in inferred], (d, h, w), orders=orders)
        votes = [bundle.calibration for bundle in self.bundles]
        labels = clean_up(
            labels,
            largest_pancreas=all(one.largest_pancreas for one in votes),
            largest_lesion=all(one.largest_lesion for one in votes),
        )
        return CasePrediction(
            labels=labels,
            subtype_probabilities=np.mean([one.probabilities for one in inferred], axis=0),
            mask_entropy=float(np.mean([one.entropy for one in inferred])),
        )

    def _infer_one(self, model: int, image: FloatArray) -> Inferred:
        bundle, engine = self.bundles[model], self.engines[model]
        with torch.inference_mode():
            whole = predict_windows(
                engine,
                torch.from_numpy(image).to(engine.device),
                patch_size=bundle.plan.patch_size,
                divisor=reductions(bundle.plan.strides)[-1],
                step=self.preset.step,
                mirror_axes=self.preset.mirror_axes if bundle.may_mirror else (),
            )
            views = engine.classify(whole.evidence).softmax(dim=1)  # (V, S)
            subtype = views.mean(dim=0).cpu().numpy()
            probabilities = whole.logits.softmax(dim=0).cpu().numpy()
        scores = whole.logits.cpu().numpy() if len(self.bundles) == 1 else probabilities
        calibrated = with_temperature(subtype, bundle.calibration.subtype_temperature)
        return Inferred(scores, calibrated, mean_entropy(probabilities))
