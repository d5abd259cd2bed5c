"""Passes of the network against DSC, to choose the preset `fast`.

    python docs/simulations/passes.py BUNDLE DATASET

BUNDLE was trained with mirroring; DATASET is in the layout `quiz`, made by `python -m
pancreas_mtl.phantom output_dir=DATASET num_test=100 difficulty=hard`. Prints a line per choice:
passes per window, step between windows as a share of them, whether small images are padded to a
patch, seconds, mean DSC of whole pancreas and lesion.
"""

import sys
import time
from pathlib import Path

import numpy as np

from pancreas_mtl.data.images import find_images, read_image, read_mask
from pancreas_mtl.inference.bundle import load_bundle
from pancreas_mtl.inference.predictor import Predictor, Preset
from pancreas_mtl.metrics.segmentation import dsc

CHOICES = [
    Preset(axes, step, pads)
    for axes in ((0, 1, 2), (1, 2), (2,), ())
    for step in (0.5, 0.75, 1.0)
    for pads in (True, False)
]


def main(bundle: Path, dataset: Path) -> None:
    images = find_images(dataset / "test")
    for preset in CHOICES:
        predictor = Predictor([load_bundle(bundle)], preset=preset)
        start_s = time.perf_counter()
        scores = [score(predictor, path, dataset / "references") for path in images]
        spent_s = time.perf_counter() - start_s
        whole, lesion = np.nanmean(scores, axis=0)
        passes, pads = 2 ** len(preset.mirror_axes), "padded" if preset.pads else "own size"
        print(
            f"{passes} passes, step {preset.step}, {pads}: {spent_s:.0f} s, "
            f"whole {whole:.4f}, lesion {lesion:.4f}",
            flush=True,
        )


def score(predictor: Predictor, path: Path, references: Path) -> tuple[float, float]:
    labels = predictor.predict(read_image(path)).labels
    reference = read_mask(references / path.name.replace("_0000", "")).array
    return tuple(float(dsc(labels >= least, reference >= least)) for least in (1, 2))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
