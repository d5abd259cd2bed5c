"""Shrinkage LDA on the features that a trained head pools: the cheap rival of training the head.

    python docs/rivals/shrinkage_lda.py outputs/bench-accuracy/small mask_only

takes the networks of one configuration of `bench_accuracy`, pools what its lesion head would see in
each of fold 0's training cases, fits linear discriminants with Ledoit and Wolf's shrinkage to the
image's features, the encoder's, and both, and answers for the test cases. `mask_only` never saw a
subtype; but its features of the training cases come from masks that it has learned by heart, unlike
those of the test cases: a handicap that a head has less which learns along with the mask. The
configuration's head must read some stage. Needs scikit-learn, which is among the tools of
development.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from pancreas_mtl.data.cases import read_cases
from pancreas_mtl.data.images import read_image
from pancreas_mtl.data.preprocess import prepare_image
from pancreas_mtl.data.splits import make_splits
from pancreas_mtl.evaluation.references import read_references
from pancreas_mtl.inference.bundle import load_bundle
from pancreas_mtl.inference.windows import predict_windows
from pancreas_mtl.metrics.intervals import bootstrap_ci
from pancreas_mtl.metrics.subtype import macro_f1


@torch.inference_mode()
def pooled(bundle, path):
    """What the head's classifier is given for a whole case, (F,)."""
    seen = []
    handle = bundle.network.subtype_head.classify.register_forward_pre_hook(
        lambda _, inputs: seen.append(inputs[0])
    )
    image = prepare_image(read_image(path), bundle.plan.intensity, bundle.plan.spacing_mm)
    whole = predict_windows(
        bundle.network.window,
        torch.from_numpy(image),
        patch_size=bundle.plan.patch_size,
    )
    bundle.network.subtype_head(whole.evidence)
    handle.remove()
    return seen[-1][0].numpy()


def main(folder, configuration):
    data = folder / "data"
    cases = {case.name: case for case in read_cases("quiz", data)}
    training = [cases[n] for n in make_splits(list(cases.values())).choose(0).train]
    truth = {one.name: one.subtype for one in read_references(data / "references")}
    test = [case for case in cases.values() if case.name in truth]
    references = np.array([truth[case.name] for case in test])
    answers = {"image": [], "encoder": [], "both": []}
    for seed in sorted((folder / "trials" / configuration).glob("seed*")):
        bundle = load_bundle(seed / "run" / "bundle")
        known, new = (
            np.stack([pooled(bundle, c.image) for c in part]) for part in (training, test)
        )
        looks = bundle.network.subtype_head.looks
        parts = (slice(looks), slice(looks, None), slice(None))
        for what, part in zip(answers, parts, strict=True):
            lda = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto")
            model = make_pipeline(StandardScaler(), lda)
            model.fit(known[:, part], [case.subtype for case in training])
            answers[what].append(model.predict(new[:, part]))
            show(f"{configuration}/{seed.name}, {what}", references, answers[what][-1:])
    for what, several in answers.items():
        show(f"{configuration}, {what}, all seeds", references, several)


def show(what, references, answers):
    """Macro-F1, the mean over trainings, with its interval over cases."""

    def averaged(references, *answers):
        return np.mean([macro_f1(references, one) for one in answers], axis=0)

    found = bootstrap_ci(averaged, references, *answers, strata=references)
    low, high = found.ci95
    print(f"{what}: macro-F1 {found.mean:.3f} [{low:.3f}, {high:.3f}]", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
