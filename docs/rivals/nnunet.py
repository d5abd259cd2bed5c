"""nnU-Net v2 on the phantoms of `bench_accuracy`: same cases, plan, machine and time.

    python docs/rivals/nnunet.py outputs/bench-accuracy/small lesion/seed0

gives nnU-Net the plan of that trial (spacing, patch, batch, channels) and the seconds that its
training took, from preprocessing to report, and evaluates what it says of the test cases, by its
own program and by ours. What is done is kept, in a folder for each trial and budget. `--venv` is
its environment (`make bench-nnunet-env`), `--minutes` another budget.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from pancreas_mtl.data.cases import read_cases
from pancreas_mtl.data.plan import load_plan
from pancreas_mtl.data.splits import make_splits
from pancreas_mtl.evaluation.trial_runs import seconds
from pancreas_mtl.evaluation.trials import Laboratory, Trial

NAME, ID = "Dataset172_Phantom", "172"
PLANS, TRAINER = "nnUNetPlans", "nnUNetTrainerBudget"
MODEL = f"{TRAINER}__{PLANS}__3d_fullres"
ROOT = Path(__file__).resolve().parents[2]


class NnUNet:
    """Its programs, in its own environment; what they print goes to `log.txt`."""

    def __init__(self, home, venv, budget_s, steps):
        self.home, self.venv = home, venv
        folders = {f"nnUNet_{n}": str(home / n) for n in ("raw", "preprocessed", "results")}
        self.environment = os.environ | folders
        self.environment |= {
            "nnUNet_n_proc_DA": "1",
            "nnUNet_compile": "false",
            "NNUNET_BUDGET_S": str(budget_s),
            "NNUNET_BUDGET_STEPS": str(steps),
        }

    def add_trainer(self, file):
        """Put it beside nnU-Net's own trainer, where it is found before all others are imported.

        One of those needs a torchvision that fits torch, which a CPU build may not have.
        """
        where = "import nnunetv2.training.nnUNetTrainer as here; print(*here.__path__)"
        python = [str(self.venv / "bin" / "python"), "-c", where]
        found = subprocess.run(python, capture_output=True, text=True, check=True)
        shutil.copy(file, found.stdout.strip())

    def __call__(self, program, *parts):
        start_s = time.monotonic()
        command = [str(self.venv / "bin" / f"nnUNetv2_{program}"), *map(str, parts)]
        with (self.home / "log.txt").open("a") as log:
            log.write(f"$ {' '.join(command)}\n")
            log.flush()
            subprocess.run(command, env=self.environment, stdout=log, stderr=log, check=True)
        print(f"{program}: {time.monotonic() - start_s:.0f} s", flush=True)


def main():
    options = arguments()
    name, _, seed = options.trial.partition("/seed")
    trial, laboratory = Trial(name, int(seed), ()), Laboratory(options.output_dir)
    budget_s = 60 * options.minutes or seconds(trial, laboratory)["train"]
    data = options.output_dir / "data"
    home = options.output_dir / "nnunet" / trial.name / f"{budget_s:.0f}s"
    home.mkdir(parents=True, exist_ok=True)
    nnunet = NnUNet(home, options.venv.absolute(), budget_s, options.steps)
    nnunet.add_trainer(ROOT / "docs" / "rivals" / f"{TRAINER}.py")
    copy_phantoms(data, home / "raw" / NAME)
    prepare(nnunet, data, laboratory.folder(trial) / "run" / "plan.json")
    predictions = train_and_predict(nnunet, data / "test", options.device)
    results = home / "results" / NAME / MODEL
    described = ("-djfile", results / "dataset.json", "-pfile", results / "plans.json")
    nnunet("evaluate_folder", data / "references", predictions, *described, "-np", 1)
    show(json.loads((predictions / "summary.json").read_text()))
    own = [f"predictions={predictions}", f"references={data / 'references'}", "workers=1"]
    evaluate = [sys.executable, "-m", "pancreas_mtl.evaluate", *own]
    subprocess.run([*evaluate, f"output_dir={home / 'evaluation'}"], cwd=ROOT, check=True)


def prepare(nnunet, data, plan):
    """Fingerprint, plan (ours takes the place of its own), preprocess; the folds are ours."""
    preprocessed = nnunet.home / "preprocessed" / NAME
    if not (preprocessed / f"{PLANS}_3d_fullres").exists():
        nnunet("extract_fingerprint", "-d", ID, "-np", 1)
        nnunet("plan_experiment", "-d", ID)
        take_plan(plan, preprocessed / f"{PLANS}.json")
        nnunet("preprocess", "-d", ID, "-c", "3d_fullres", "-np", 1)
    write_splits(data, preprocessed / "splits_final.json")


def train_and_predict(nnunet, images, device):
    """The folder of its predictions, which is there when all of them are."""
    trainer, predictions = ("-tr", TRAINER), nnunet.home / "predictions"
    if not (nnunet.home / "results" / NAME / MODEL / "fold_0" / "checkpoint_final.pth").exists():
        nnunet("train", ID, "3d_fullres", 0, *trainer, "-device", device)
    if not predictions.exists():
        given = ("-i", images, "-o", nnunet.home / "unfinished", "-d", ID, "-f", 0)
        single = ("-npp", 1, "-nps", 1, "-device", device)
        nnunet("predict", *given, "-c", "3d_fullres", *trainer, *single)
        (nnunet.home / "unfinished").rename(predictions)
    return predictions


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output_dir", type=lambda text: Path(text).absolute())
    parser.add_argument("trial", help="whose plan and training time it gets, such as lesion/seed0")
    parser.add_argument("--minutes", type=float, default=0.0, help="another budget of training")
    parser.add_argument("--steps", type=int, default=50, help="of one of its epochs")
    parser.add_argument("--device", default="cpu", help="or cuda")
    parser.add_argument("--venv", type=Path, default=Path(".nnunet"), help="where nnunetv2 is")
    return parser.parse_args()


def copy_phantoms(data, raw):
    """The phantoms in nnU-Net's layout, their images linked."""
    if not (raw / "dataset.json").exists():
        command = [sys.executable, "-m", "pancreas_mtl.convert", "from=quiz", "to=nnunet"]
        command += [f"root={data}", f"output_dir={raw}", "link=true", "workers=1"]
        subprocess.run([*command, "overwrite=true"], cwd=ROOT, check=True)


def take_plan(ours, theirs):
    """Write spacing, patch, batch and network of our plan into nnU-Net's."""
    plan, document = load_plan(ours), json.loads(theirs.read_text())
    configuration = document["configurations"]["3d_fullres"]
    configuration |= {
        "spacing": list(plan.spacing_mm),
        "patch_size": list(plan.patch_size),
        "batch_size": plan.batch_size,
    }
    stages = len(plan.channels)
    configuration["architecture"]["arch_kwargs"] |= {
        "n_stages": stages,
        "features_per_stage": list(plan.channels),
        "kernel_sizes": [list(kernel) for kernel in plan.kernels],
        "strides": [list(stride) for stride in plan.strides],
        "n_conv_per_stage": [2] * stages,
        "n_conv_per_stage_decoder": [2] * (stages - 1),
    }
    theirs.write_text(json.dumps(document, indent=4))


def write_splits(data, path):
    cases = [case for case in read_cases("quiz", data) if case.split == "train"]
    fold = make_splits(cases).choose(0)
    path.write_text(json.dumps([{"train": list(fold.train), "val": list(fold.validation)}]))


def show(summary):
    print("nnUNetv2_evaluate_folder, mean DSC:")
    for label, scores in summary["mean"].items():
        print(f"  label {label}: {scores['Dice']:.3f}")


if __name__ == "__main__":
    main()
