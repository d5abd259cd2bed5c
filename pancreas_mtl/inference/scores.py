"""One model's scores of a case, as prediction asks for them."""

from __future__ import annotations

import numpy as np
import torch

from pancreas_mtl.errors import CaseError
from pancreas_mtl.inference.maps import pooling_shares
from pancreas_mtl.inference.postprocess import MeanEntropy
from pancreas_mtl.inference.windows import WindowScores
from pancreas_mtl.types import NUM_LABELS, FloatArray, Label


class ModelScores:
    """One model's scores at its plan's spacing, and their entropy, plane by plane.

    Probabilities are softened by `temperature`; `lesion_bias` is added to the lesion's logit where
    labels are decided, and nowhere else. With `keeps_lesion` the lesion's probability is
    kept, with `keeps_logits` the logits, which takes memory by the slice.
    """

    def __init__(
        self,
        windows: WindowScores,
        *,
        as_probabilities: bool,
        temperature: float = 1.0,
        lesion_bias: float = 0.0,
        keeps_lesion: bool = False,
        keeps_logits: bool = False,
    ) -> None:
        self.windows = windows
        self.shape = windows.shape
        self.entropy = MeanEntropy()
        self.kept: list[FloatArray] = []
        self._as_probabilities = as_probabilities
        self._temperature = temperature
        self._bias = torch.zeros(NUM_LABELS, 1, 1, 1)
        self._bias[Label.LESION] = lesion_bias
        self._keeps_logits = keeps_logits
        self._seen = 0  # planes whose entropy is counted
        self._lesion = np.zeros(self.shape[1:], np.float32) if keeps_lesion else None

    def planes(self, low: int, high: int) -> FloatArray:
        """Logits, or probabilities, (C, high - low, h, w) on the CPU."""
        first = min(low, self._seen)
        logits = self.windows.planes(first, high)
        if not torch.isfinite(logits).all():
            raise CaseError(
                "the network's answer is not finite: use precision=fp32, or check the bundle"
            )
        if self._keeps_logits:
            self.kept.append(logits[:, self._seen - first :].cpu().numpy())
        softened = logits / self._temperature
        self.entropy.add(softened[:, self._seen - first :])
        if self._lesion is not None:
            self._lesion[first:high] = softened.softmax(dim=0)[Label.LESION].cpu().numpy()
        self._seen = max(self._seen, high)
        scores = logits[:, low - first :] + self._bias.to(logits.device)
        if self._as_probabilities:
            scores = (scores / self._temperature).softmax(dim=0)
        return scores.cpu().numpy()

    def complete(self) -> None:
        """Look at the last planes, which nobody asks for where the source's slices are thick."""
        if self._seen < self.shape[1]:
            self.planes(self._seen, self.shape[1])

    @property
    def maps(self) -> dict[str, FloatArray]:
        """What `maps_at` needs of this model, (d, h, w) each."""
        attention = self.windows.attention
        maps = {} if self._lesion is None else {"lesion_candidates": self._lesion}
        if attention is not None:
            maps["attention"] = pooling_shares(attention.cpu().numpy())
        return maps
