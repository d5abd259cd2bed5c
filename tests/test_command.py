"""Commands as users run them: exit codes, one readable line, nothing left behind."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from commands import call
from omegaconf import OmegaConf

from pancreas_mtl.interruption import Interrupted

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["train", "experiment=balancd"],
            "experiment=balancd: no such choice; did you mean balanced?; choose one of: aggressive",
        ),
        (["train", "experimnt=balanced"], "experimnt: no such key; did you mean experiment?"),
        (["train", "+pictures.evry=1"], "pictures.every"),
        (["train", "+trainer.max_epoch=1"], "trainer.max_epoch: no such argument of Lightning"),
        (["train", "data=quiz"], "data.root is not set: give data.root=VALUE"),
        (["train", "optimizer.lrr=1"], "optimizer.lrr: no such key; did you mean optimizer.lr?"),
        (["train", "data=quiz", "data.root=/nowhere"], "/nowhere"),
        (["train", "trainer.max_epochs=three"], "trainer.max_epochs=three: has to be a whole"),
        (["train", "optimizer.lr=fast"], "optimizer.lr=fast: has to be a number"),
        (["train", "sampling.balanced=1"], "sampling.balanced=1: has to be true or false"),
        (["train", "model.pretrained=/x"], "model.pretrained=/x: no such folder"),
        (["train", "seed=abc"], "seed=abc: has to be a whole number"),
        (["train", "data.num_train=x"], "data.num_train=x: has to be a whole number"),
        (["train", "--experiment", "smoke"], "keys are given as experiment=VALUE"),
        (["predict", "model=[]", "input=x", "output_dir={tmp}/p"], "model is empty"),
        (
            ["pancreas_mtl.report", "runs=[{tmp}/nope]", "output_dir={tmp}/r"],
            "runs: {tmp}/nope is no folder",
        ),
        (
            ["pancreas_mtl.convert", "from=quiz", "to=nnunet", "root=/x", "output_dir={tmp}/c"],
            "root=/x is no folder",
        ),
        (
            ["pancreas_mtl.evaluate", "predictions=/x", "references={quiz}", "output_dir={tmp}/e"],
            "{quiz}",
        ),
        (["train", "fold=9", "data=quiz", "data.root={quiz}"], "fold=9: choose one of 0 to 4"),
        (["predict", "input=x", "output_dir=y"], "model is not set: give model=VALUE"),
        (
            ["predict", "model=/nowhere", "input=x", "output_dir={tmp}/p"],
            "model=/nowhere: no such",
        ),
        (
            ["predict", "model=x", "input=x", "output_dir={tmp}/p", "preset=best"],
            "preset=best: choose",
        ),
        (["pancreas_mtl.phantom", "output_dir={tmp}/p", "num_train=-3"], "num_train=-3"),
        (
            ["predict", "model=x", "input=20240131", "output_dir={tmp}/p"],
            "input=20240131: this is read as a number; write input=./20240131",
        ),
        (
            ["pancreas_mtl.evaluate", "predictions=[x,7]", "references=y", "output_dir={tmp}/e"],
            "predictions=7: this is read as a number",
        ),
        (
            ["pancreas_mtl.evaluate", "predictions=x", "references=[y,z]", "output_dir={tmp}/e"],
            "references=['y', 'z']: give one path",
        ),
    ],
)
def test_bad_usage_is_one_line_and_exit_code_2(arguments, message, tmp_path, tiny_quiz):
    before = sorted(tmp_path.rglob("*"))
    paths = {"tmp": str(tmp_path), "quiz": str(tiny_quiz)}
    if arguments[0] == "train":
        arguments = [*arguments, "output_dir={tmp}/run", "paths.outputs={tmp}/o"]
    result = call(*(argument.format(**paths) for argument in arguments))
    assert result.code == 2, result.stderr
    assert message.format(**paths) in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr
    assert "search path" not in result.stderr
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("command", ["train", "predict"])
def test_help_shows_the_choices(command):
    result = call(command, "--help")
    assert result.code == 0
    for word in ("output_dir", "precision"):
        assert word in result.stdout


@pytest.mark.parametrize(
    ("command", "typed", "offered"),
    [
        ("train", "experiment=", {"experiment=balanced", "experiment=seg_focused"}),
        ("train", "experiment=balanced optimizer.l", {"optimizer.lr="}),
        ("train", "trainer=gpu", {"trainer=gpu", "trainer=gpu_fp16"}),
        ("predict", "lesion_", {"lesion_candidates="}),
    ],
)
def test_the_tab_key_offers_keys_and_choices(command, typed, offered, monkeypatch):
    monkeypatch.setenv("COMP_LINE", f"python {command}.py {typed}")
    answer = call(command, "-sc", "query=bash")
    assert answer.code == 0
    assert offered <= set(answer.stdout.split())


def test_the_shell_is_told_how_to_ask():
    answer = call("train", "-sc", "install=bash")
    assert answer.code == 0
    assert "complete -o nospace -o default -F hydra_bash_completion" in answer.stdout


def test_print_config_prints_and_stops(tmp_path):
    folder = f"output_dir={tmp_path / 'run'}"
    result = call("train", "print_config=true", "experiment=aggressive", "seed=3", folder)
    assert result.code == 0
    printed = OmegaConf.create(result.stdout)
    assert printed.seed == 3
    assert printed.sampling.balanced is True
    assert printed.output_dir == str(tmp_path / "run")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_process_ends_with_the_exit_code_and_the_line():
    result = subprocess.run(
        [sys.executable, "predict.py", "input=x", "output_dir=y"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1] == "predict: model is not set: give model=VALUE"


@pytest.mark.parametrize(
    ("module", "code", "hint"), [("train", 0, " with resume=true"), ("predict", 75, "")]
)
def test_a_second_task_of_slurm_is_another_rank_in_a_training_alone(
    monkeypatch, tmp_path, module, code, hint
):
    def interrupted(config):
        raise Interrupted(signal.SIGTERM)

    monkeypatch.setattr(f"{module}.build.check", interrupted, raising=False)
    monkeypatch.setattr(f"{module}.build.predictor", interrupted)
    monkeypatch.setenv("SLURM_PROCID", "1")
    monkeypatch.setenv("SLURM_NTASKS", "8")
    keys = ["model=x", "input=y"] if module == "predict" else []
    ended = call(module, *keys, f"output_dir={tmp_path / 'out'}")
    assert ended.code == code
    assert ended.last_line.endswith(f"interrupted by SIGTERM; the same command{hint} goes on")
