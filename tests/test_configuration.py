"""What `conf/` offers: keys and comments read line by line, misspelled keys, help texts."""

import re

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf, open_dict

from pancreas_mtl.configuration import (
    CONF_DIR,
    choices_in,
    did_you_mean,
    flat_keys,
    groups,
    known_keys,
    own_keys,
    read_file,
    unknown_key,
)
from pancreas_mtl.evaluation.trials import Laboratory, list_trials, steps
from pancreas_mtl.help import help_text

FILES = sorted(path for path in CONF_DIR.rglob("*.yaml") if "_global_" not in path.read_text())
COMMANDS = sorted(path.stem for path in CONF_DIR.glob("*.yaml"))


def composed(command, *overrides):
    needed = ["data=quiz"] if command == "audit" else []
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        return compose(command, overrides=[*needed, *overrides])


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(CONF_DIR)))
def test_keys_are_those_that_yaml_finds(path):
    content = OmegaConf.load(path)
    for name in ("defaults", "hydra", "_target_"):
        content.pop(name, None)
    found = [key.name for key in read_file(path, "x").keys]
    package = "model" if path.parent.name == "head" else "x"
    expected = [f"{package}.{name}" for name in flat_keys(content)]
    if path.parent.name == "sweep":  # whose keys contain dots
        found, expected = ([n for n in names if "space" not in n] for names in (found, expected))
    assert found == expected


def test_a_key_has_its_default_and_its_comment():
    keys = {key.name: key for key in read_file(CONF_DIR / "data" / "phantom.yaml", "data").keys}
    assert keys["data.difficulty"] == ("data.difficulty", "easy", "easy | hard")
    assert {key.name for key in own_keys("predict")} >= {"model", "output_dir"}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_choice_says_in_a_line_what_it_is(command):
    for group in groups(command):
        assert group.choices, group.name
        for name, file in group.choices.items():
            if len(group.choices) > 1:
                assert 5 < len(file.summary) < 120, f"{group.name}={name}: {file.summary}"


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_every_choice_and_key_with_its_line(command):
    text = help_text(command, "Does something.", [])
    assert text.startswith("Does something.")
    words = " ".join(text.split())
    for group in groups(command):
        if len(group.choices) > 1:
            for name, file in group.choices.items():
                assert f"{name} {file.summary}" in words
    for key in own_keys(command):
        if key.default:
            assert f"{key.name}=" in words
            assert key.note in words


def test_help_shows_the_keys_of_the_choices_made():
    assert "data.num_train=80" in help_text("train", "", [])
    text = help_text("train", "", ["data=quiz", "--help"])
    assert re.search(r"^  data\.root= +required", text, re.M)
    assert "num_train" not in text
    assert choices_in(["data=quiz", "fold=1", "-m"], "train") == {"data": "quiz"}


def test_help_shows_the_launchers_of_a_command_that_takes_several_jobs():
    text = help_text("train", "", [])
    assert re.search(r"^  hydra/launcher\n +ray +Every job.*\n(.*\n)* +submitit_slurm ", text, re.M)
    assert "hydra/launcher" not in help_text("sweep", "", [])
    text = help_text("train", "", ["-m", "hydra/launcher=submitit_slurm"])
    assert re.search(r"^  hydra\.launcher\.partition=null", text, re.M)


@pytest.mark.parametrize("command", COMMANDS)
def test_what_a_command_composes_has_no_unknown_key(command):
    assert unknown_key(composed(command), command) is None


@pytest.mark.parametrize("comparison", sorted(p.stem for p in (CONF_DIR / "comparison").glob("*")))
def test_a_comparison_and_its_trainings_have_no_unknown_key(comparison, tmp_path):
    config = composed("bench_accuracy", f"comparison={comparison}")
    assert config.configurations
    assert unknown_key(config, "bench_accuracy") is None
    for trial in list_trials(config.configurations, [0], config.training):
        train, *_ = steps(trial, Laboratory(tmp_path))
        assert unknown_key(composed("train", *train.arguments[1:]), "train") is None, trial.name


@pytest.mark.parametrize("experiment", sorted(p.stem for p in (CONF_DIR / "experiment").glob("*")))
@pytest.mark.parametrize("budget", sorted(p.stem for p in (CONF_DIR / "budget").glob("*")))
def test_an_experiment_has_no_unknown_key_in_any_budget(experiment, budget):
    config = composed("train", f"experiment={experiment}", f"budget={budget}")
    assert unknown_key(config, "train") is None


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("optimizer.lrr", "optimizer.lr"),
        ("optimzer", "optimizer"),
        ("patince", "patience"),
        ("model.stagess", "model.stages"),
        ("pictures.evry", "pictures.every"),
        ("logger.tensorbord", "logger.tensorboard"),
    ],
)
def test_a_key_that_an_experiment_misspells_is_found(name, meant):
    config = composed("train")
    with open_dict(config):
        OmegaConf.update(config, name, 1, force_add=True)
    assert unknown_key(config, "train") == name
    assert did_you_mean(name, known_keys("train")) == f"; did you mean {meant}?"


def test_a_key_added_on_purpose_and_those_of_a_library_are_free():
    config = composed("train", "+trainer.limit_train_batches=3", "+mine.own=1")
    assert unknown_key(config, "train") == "mine"
    assert unknown_key(config, "train", ["mine.own"]) is None


def test_nothing_similar_no_suggestion():
    assert did_you_mean("zzz", ["fold", "seed"]) == ""
