"""Passes of the network against DSC, to choose the presets `fast` and `single`.

    python docs/simulations/passes.py BUNDLE DATASET

BUNDLE was trained with mirroring; DATASET is in the layout `quiz`, made by `python -m
pancreas_mtl.phantom output_dir=DATASET num_test=100 difficulty=hard`. Prints a line per choice:
passes per window, step between windows as a share of them, whether small images are padded to a
patch, seconds, mean DSC of whole pancreas and lesion, macro-F1 of the subtype.
"""

import sys
import time
from pathlib import Path

import numpy as np

from pancreas_mtl.data.images import read_image, read_mask
from pancreas_mtl.evaluation.references import Reference, read_references
from pancreas_mtl.inference.bundle import load_bundle
from pancreas_mtl.inference.predictor import Predictor, Preset
from pancreas_mtl.metrics.segmentation import dsc
from pancreas_mtl.metrics.subtype import macro_f1
from pancreas_mtl.types import CasePrediction

CHOICES = [
    Preset(axes, step, pads)
    for axes in ((0, 1, 2), (1, 2), (2,), ())
    for step in (0.5, 1.0)
    for pads in (True, False)
]


def main(bundle: Path, dataset: Path) -> None:
    references = read_references(dataset / "references")
    images = [dataset / "test" / f"{one.name}_0000.nii.gz" for one in references]
    for preset in CHOICES:
        predictor = Predictor([load_bundle(bundle)], preset=preset)
        start_s = time.perf_counter()
        predictions = [predictor.predict(read_image(path)) for path in images]
        spent_s = time.perf_counter() - start_s
        whole, lesion = np.nanmean(list(map(both_dsc, predictions, references)), axis=0)
        answers = np.array([one.subtype_probabilities.argmax() for one in predictions])
        f1 = macro_f1(np.array([one.subtype for one in references]), answers)
        passes, pads = 2 ** len(preset.mirror_axes), "padded" if preset.pads else "own size"
        print(
            f"{passes} passes, step {preset.step}, {pads}: {spent_s:.0f} s, whole {whole:.4f}, "
            f"lesion {lesion:.4f}, macro-F1 {f1:.3f}",
            flush=True,
        )


def both_dsc(prediction: CasePrediction, reference: Reference) -> tuple[float, ...]:
    truth = read_mask(reference.mask).array
    return tuple(float(dsc(prediction.labels >= least, truth >= least)) for least in (1, 2))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
