"""The ECE that a perfectly calibrated model would have on as many cases.

    python docs/simulations/ece_by_chance.py EVALUATION

EVALUATION is a folder of `pancreas_mtl.evaluate`. Draws subtypes from the probabilities that were
predicted, which makes these calibrated by construction, and prints the ECE of the true subtypes
beside the mean and the highest tenth of 500 such draws, seed 0.
"""

import json
import sys
from pathlib import Path

import numpy as np

from pancreas_mtl.metrics.subtype import ece

DRAWS = 500


def main(evaluation):
    rows = json.loads((evaluation / "metrics.json").read_text())["cases"]
    known = [row for row in rows if row["subtype_probabilities"] and row["subtype"] is not None]
    p = np.array([row["subtype_probabilities"] for row in known])
    truth = np.array([row["subtype"] for row in known])
    draws = np.random.default_rng(0).random((DRAWS, len(p), 1))
    drawn = (draws > p.cumsum(1)).sum(2).clip(max=p.shape[1] - 1)
    chance = [ece(subtypes, p) for subtypes in drawn]
    print(f"{len(p)} cases: ECE {ece(truth, p):.3f}")
    highest = np.quantile(chance, 0.9)
    print(f"calibrated: {np.mean(chance):.3f} on average, >= {highest:.3f} in a tenth")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
