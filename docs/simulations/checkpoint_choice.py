"""Which subtype score, computed on a few validation cases, chooses the truly best checkpoint?

Simulated runs of 15 checkpoints: the signal of the subtype grows and falls again, the answers lean
towards changing subtypes, and their confidence grows all the time. What a checkpoint is worth is
its macro-F1 on 1,500 new cases. `python docs/simulations/checkpoint_choice.py`, about a minute.
"""

import numpy as np

from pancreas_mtl.metrics.subtype import macro_f1, mean_auroc

RUNS, CHECKPOINTS, NEW_CASES = 300, 15, 1500
SHARES = (0.22, 0.42, 0.36)


def answers(rng, references, signal, lean, sharpness):
    """Probabilities (checkpoints, N, S); half of the noise belongs to the case."""
    shape = (len(references), 3)
    noise = 0.8 * rng.normal(size=shape) + 0.6 * rng.normal(size=(CHECKPOINTS, *shape))
    logits = signal[:, None, None] * np.eye(3)[references] + lean[:, None, :] + noise
    powers = np.exp(sharpness[:, None, None] * (logits - logits.max(axis=-1, keepdims=True)))
    return powers / powers.sum(axis=-1, keepdims=True)


def scores(references, probabilities):
    """Each score (checkpoints,); higher is better."""
    own = np.take_along_axis(probabilities, references[None, :, None], axis=-1)[..., 0]
    present = np.unique(references)

    def balanced(values):
        return np.mean([values[:, references == s].mean(axis=1) for s in present], axis=0)

    repeated = np.broadcast_to(references, own.shape)
    f1 = macro_f1(repeated, probabilities.argmax(axis=-1))
    squares = ((probabilities - np.eye(3)[references]) ** 2).sum(axis=-1)
    auroc = mean_auroc(repeated, probabilities)
    return {
        "macro-F1": f1,
        "balanced probability": balanced(own),
        "both": f1 + balanced(own),
        "AUROC": auroc,
        "macro-F1 and AUROC": f1 + auroc,
        "balanced Brier": -balanced(squares),
        "balanced log loss": balanced(np.log(own.clip(1e-7))),
    }


def one_run(rng, num_cases):
    """What the choice by each score is worth."""
    time = np.linspace(0, 1, CHECKPOINTS)
    peak = rng.uniform(0.3, 0.9)
    signal = 1.3 * rng.uniform(0.6, 1.1) * (1 - rng.uniform(0.5, 2) * (time - peak) ** 2)
    lean = rng.normal(0, 0.3, (CHECKPOINTS, 3))
    sharpness = 0.5 + 4 * time * rng.uniform(0.3, 1.5)
    sets = [rng.choice(3, size, p=SHARES) for size in (num_cases, NEW_CASES)]
    few, many = (answers(rng, one, signal, lean, sharpness) for one in sets)
    worth = macro_f1(np.broadcast_to(sets[1], many.shape[:2]), many.argmax(axis=-1))
    chosen = {name: worth[values.argmax()] for name, values in scores(sets[0], few).items()}
    return chosen | {"the best there is": worth.max(), "by chance": worth.mean()}


def main():
    sizes = (10, 36, 50)
    table = {}
    for num_cases in sizes:
        for seed in range(3):
            rng = np.random.default_rng(seed)
            runs = [one_run(rng, num_cases) for _ in range(RUNS)]
            for name in runs[0]:
                mean = float(np.mean([run[name] for run in runs]))
                table.setdefault(name, []).append(mean)
    print(f"{'cases, three seeds each':24}" + "".join(f"{size:>20}" for size in sizes))
    for name, values in table.items():
        cells = (" ".join(f"{v:.3f}" for v in values[i : i + 3]) for i in (0, 3, 6))
        print(f"{name:24}" + "".join(f"{cell:>20}" for cell in cells))


if __name__ == "__main__":
    main()
