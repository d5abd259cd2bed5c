"""A multirun whose jobs are processes of their own, one of which its scheduler interrupts."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf, open_dict
from wandb_file import read_runs

ROOT = Path(__file__).resolve().parent.parent
PATIENCE_S = 1500
OVERRIDES = [
    "data=quiz",
    "plan=small",
    "plan.base_channels=4",
    "plan.patch_size=[8,16,16]",
    "plan.batch_size=2",
    "trainer.accelerator=cpu",
    "trainer.precision=32-true",
    "trainer.max_epochs=4",
    "sampling.steps_per_epoch=4",
    "sampling.workers=0",
    "audit=false",
    "pictures.every=0",
    "workers=1",
]


def command(data, folder, launcher, *more):
    paths = [f"data.root={data}", f"paths.outputs={folder}", f"paths.runs={folder / 'runs'}"]
    return [
        *(sys.executable, "train.py", "-m", f"hydra/launcher={launcher}"),
        *(*OVERRIDES, *paths, *more),
    ]


def wait_for(path, process):
    until_s = time.monotonic() + PATIENCE_S
    while not path.exists():
        assert time.monotonic() < until_s, f"{path} never came"
        assert process.poll() is None, "the multirun has ended"
        time.sleep(0.05)


def jobs_of(process):
    """The processes that submitit's controllers have started, each a job."""
    for child in psutil.Process(process.pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # it may have ended by now
            if "submitit.core._submit" in " ".join(child.cmdline()):
                yield child


def table(folder):
    (sweep,) = (folder / "multirun").iterdir()
    with (sweep / "jobs.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.fixture
def launcher():
    """The arguments of a launcher, as its file has them."""

    def composed(name, *overrides):
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            config = compose(
                "train", [f"hydra/launcher={name}", *overrides], return_hydra_config=True
            )
        with open_dict(config):
            config.hydra.job.name = "train"
        return OmegaConf.to_container(config.hydra.launcher, resolve=True)

    return composed


def test_the_configuration_for_slurm_becomes_a_batch_script(launcher, tmp_path, monkeypatch):
    submitit = pytest.importorskip("submitit", reason="needs the extra slurm")
    written = []

    def submit(executor, *arguments):
        text = executor._executor._make_submission_file_text("python", "uid")
        written.extend(line.removeprefix("#SBATCH --") for line in text.splitlines())
        return []

    monkeypatch.setattr(submitit.SlurmExecutor, "affinity", classmethod(lambda cls: 1))
    monkeypatch.setattr(submitit.AutoExecutor, "map_array", submit)
    options = launcher("submitit_slurm", "hydra.launcher.partition=gpu")
    slurm = instantiate(options | {"submitit_folder": str(tmp_path)})
    slurm.config = OmegaConf.create({"hydra": {"sweep": {"dir": str(tmp_path)}}})
    slurm.launch([["seed=0"], ["seed=1"]], 0)
    expected = {
        "signal=USR2@180",
        "requeue",
        "open-mode=append",
        "gpus-per-node=1",
        "cpus-per-task=8",
        "mem=48GB",
        "time=1440",
        "partition=gpu",
    }
    assert expected <= set(written)


@pytest.mark.parametrize("name", ["submitit_local", "submitit_slurm", "ray"])
def test_launchers_name_what_their_plugin_takes(name, launcher):
    assert launcher(name)["_target_"].startswith("hydra_plugins.hydra_")


@pytest.mark.slow
def test_a_job_that_is_preempted_is_queued_again_and_goes_on_as_the_same_run(box_quiz, tmp_path):
    pytest.importorskip("submitit", reason="needs the extra slurm")
    arguments = ["fold=0,9", "logger=wandb", "logger.wandb.mode=offline"]
    arguments.append("trainer.log_every_n_steps=1")
    log = tmp_path / "log"
    with log.open("w") as file:
        process = subprocess.Popen(
            command(box_quiz, tmp_path, "submitit_local", *arguments),
            cwd=ROOT,
            stdout=file,
            stderr=file,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
    wait_for(tmp_path / "runs" / "balanced", process)
    (run,) = _wait_for_run(tmp_path / "runs" / "balanced", process)
    wait_for(run / "checkpoints" / "last.ckpt", process)
    before = json.loads((run / "wandb.json").read_text())
    for job in jobs_of(process):
        job.send_signal(signal.SIGUSR2)
    assert process.wait(PATIENCE_S) == 2, log.read_text()[-3000:]
    record = json.loads((run / "run.json").read_text())
    assert record["status"] == "finished"
    assert len(record["resumed"]) == 1
    assert_one_wandb_run(run / "wandb", before["id"])
    assert [job["state"] for job in table(tmp_path)] == ["done", "failed (2)"]
    with (run / "metrics.csv").open() as file:
        epochs = [row["epoch"] for row in csv.DictReader(file)]
    assert epochs == ["0", "1", "2", "3"]


def assert_one_wandb_run(folder, identity):
    """Both parts belong to one run, and no step is in both."""
    parts = read_runs(folder)
    assert [part.id for part in parts] == [identity] * 2
    before, after = ([step for step, _ in part.curve("train/loss_step")] for part in parts)
    assert before
    assert sorted(before + after) == list(range(16))


def _wait_for_run(folder, process):
    until_s = time.monotonic() + PATIENCE_S
    while not (runs := [path for path in folder.iterdir() if path.name.startswith("fold0")]):
        assert time.monotonic() < until_s
        assert process.poll() is None
        time.sleep(0.05)
    return runs


@pytest.mark.slow
def test_jobs_run_on_a_local_ray_cluster(box_quiz, tmp_path):
    pytest.importorskip("hydra_plugins.hydra_ray_launcher", reason="needs the extra ray")
    remote = "hydra.launcher.ray.remote"
    arguments = ["fold=0,9", "trainer.max_epochs=1", f"{remote}.num_cpus=1", f"{remote}.num_gpus=0"]
    done = subprocess.run(
        command(box_quiz, tmp_path, "ray", *arguments),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 2, done.stderr[-3000:]
    assert [job["state"] for job in table(tmp_path)] == ["done", "failed (2)"]
