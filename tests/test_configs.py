"""Every experiment composes, adds no key, and builds."""

from dataclasses import fields
from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

from pancreas_mtl import build
from pancreas_mtl.build import Dataset, Prepared
from pancreas_mtl.data.augment import AugmentConfig
from pancreas_mtl.data.datamodule import SamplingConfig
from pancreas_mtl.data.plan import PlanConfig
from pancreas_mtl.data.splits import Split, Splits
from pancreas_mtl.errors import UsageError
from pancreas_mtl.losses.joint import LossConfig
from pancreas_mtl.models.network import NetworkConfig
from pancreas_mtl.training.module import OptimizerConfig

CONF = Path(__file__).resolve().parent.parent / "conf"
FOLDER = {"model": "head"}  # a group `model` would take model=BUNDLE of predict.py for a choice
EXPERIMENTS = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))
DEBUG = sorted(path.stem for path in (CONF / "debug").glob("*.yaml"))
SECTIONS = {
    "augment": AugmentConfig,
    "sampling": SamplingConfig,
    "plan": PlanConfig,
    "loss": LossConfig,
    "model": NetworkConfig,
    "optimizer": OptimizerConfig,
}


def composed(*overrides, name="train"):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(name, overrides=list(overrides), return_hydra_config=True)


def keys(node, prefix=""):
    found = set()
    for key, value in node.items():
        found.add(f"{prefix}{key}")
        if isinstance(value, dict):
            found |= keys(value, f"{prefix}{key}.")
    return found


@pytest.fixture(scope="module")
def default_keys():
    config = composed("experiment=balanced")
    return keys(OmegaConf.to_container(config)) | {"logger.wandb.project", "trainer.strategy"}


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_an_experiment_adds_no_key_and_builds(experiment, default_keys, plan, tmp_path):
    config = composed(f"experiment={experiment}", f"output_dir={tmp_path}", "model.stages=[0,1]")
    assert keys(OmegaConf.to_container(config)) <= default_keys
    module = build.module(config, plan)
    trainer = build.trainer(config, tmp_path)
    assert trainer.max_epochs <= 120
    assert sum(p.numel() for p in module.network.parameters()) > 0


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_an_experiment_has_a_header_with_its_command(experiment):
    lines = (CONF / "experiment" / f"{experiment}.yaml").read_text().splitlines()
    assert lines[0] == "# @package _global_"
    assert f"python train.py experiment={experiment}" in "\n".join(lines[:6])


@pytest.mark.parametrize("debug", DEBUG)
def test_debug_goes_with_every_experiment_and_adds_no_key(debug, default_keys):
    for experiment in ("aggressive", "smoke"):
        config = composed(f"experiment={experiment}", f"debug={debug}")
        assert keys(OmegaConf.to_container(config)) <= default_keys | {"trainer.profiler"}
        assert config.output_dir == f"outputs/debug/{debug}"
        build.check(config)
    assert config.trainer.max_epochs <= 20
    header = (CONF / "debug" / f"{debug}.yaml").read_text().splitlines()[:4]
    assert f"python train.py debug={debug}" in "\n".join(header)


@pytest.mark.parametrize(
    ("overrides", "wanted"), [(["trainer=auto"], 1), (["trainer=ddp", "trainer.devices=2"], 2)]
)
def test_torchrun_starts_as_many_processes_as_the_trainer_has(monkeypatch, overrides, wanted):
    config = composed(*overrides, "trainer.accelerator=cpu", "output_dir=run")
    ranks = {"RANK": "0", "LOCAL_RANK": "0", "GROUP_RANK": "0", "TORCHELASTIC_RUN_ID": "x"}
    for name, value in (ranks | {"WORLD_SIZE": "3"}).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=rf"torchrun started 3 .* is {wanted}: use trainer=ddp"):
        build.check(config)
    monkeypatch.setenv("WORLD_SIZE", str(wanted))
    build.check(config)


def test_a_run_says_whose_weights_know_what_it_holds_out(tmp_path):
    """In its record and card; a cross-validation refuses such a run."""
    bundle = tmp_path / "A"
    bundle.mkdir()
    first = composed("fold=1", "data=quiz", "data.root=DIR")
    (bundle / "config.yaml").write_text(
        yaml.safe_dump({"fold": 1, "data": build.plain(first.data)})
    )
    choices = ("data=quiz", "data.root=DIR", f"model.pretrained={bundle}")
    assert held_out_facts(composed("fold=1", *choices)) == ()
    known = held_out_facts(composed("fold=0", "overfit_cases=2", *choices))
    assert known[0] == f"{bundle} was trained on fold 1 of the same data"
    assert known[1].startswith("overfit_cases: ")


def held_out_facts(config):
    nothing = Dataset({}, Splits(()), Split((), ()))
    facts = build.data_facts(config, Prepared(plan=None, train=[], validation=[]))
    assert build.origin(config, nothing).known == facts["held_out_known_to"]
    return facts["held_out_known_to"]


def test_overfitting_changes_nothing_by_augmentation():
    config = composed("experiment=aggressive", "debug=overfit")
    assert {v for k, v in config.augment.items() if k.endswith("_p")} == {0.0}


def test_a_profiler_writes_into_the_run_folder(tmp_path):
    made = build.trainer(composed("debug=profiler"), tmp_path).profiler
    assert str(made.dirpath) == str(tmp_path / "profile")
    with pytest.raises(UsageError, match=r"trainer.profiler=fast: choose one of simple, advanced"):
        build.trainer(composed("debug=profiler", "trainer.profiler=fast"), tmp_path)


def test_the_sweep_of_wandb_gives_train_what_it_takes(monkeypatch):
    sweep = yaml.safe_load((CONF.parent / "docs" / "wandb_sweep.yaml").read_text())
    ends = {
        name: (entry.get("values") or [entry["min"], entry["max"]])[-1]
        for name, entry in sweep["parameters"].items()
    }
    given = {name: {"value": value} for name, value in ends.items()}
    arguments = create_sweep_command_args({"args": given})
    macros = {"args_no_hyphens": arguments["args_no_hyphens"], "program": [sweep["program"]]}
    command = []
    for part in create_sweep_command(sweep["command"]):
        known = part.startswith("${") and part[2:-1] in macros
        command += macros[part[2:-1]] if known else [part]
    assert command[:4] == ["${env}", "${interpreter}", "train.py", "experiment=balanced"]
    monkeypatch.setenv("WANDB_RUN_ID", "abc")
    config = composed(*command[3:])
    assert config.output_dir == "outputs/sweeps/wandb/abc"
    assert config.sampling.balanced is True
    assert config.optimizer.lr == ends["optimizer.lr"]
    assert sweep["metric"] == {"name": build.training.SCORE, "goal": "maximize"}
    build.check(config)


def test_variants_differ():
    texts = {name: OmegaConf.to_yaml(composed(f"experiment={name}")) for name in EXPERIMENTS}
    assert len(set(texts.values())) == len(EXPERIMENTS) >= 5


@pytest.mark.parametrize("section", SECTIONS)
def test_sections_name_exactly_the_fields_of_their_dataclass(section):
    names = {field.name for field in fields(SECTIONS[section])}
    for path in (CONF / FOLDER.get(section, section)).glob("*.yaml"):
        assert set(OmegaConf.load(path)) == names, path


def test_the_benchmark_augments_as_training_does():
    assert composed("what=data", name="benchmark").augment == composed().augment


@pytest.mark.parametrize(
    ("file", "kind"),
    [
        ("head/lesion", NetworkConfig),
        ("optimizer/adamw", OptimizerConfig),
        ("loss/joint", LossConfig),
        ("sampling/patches", SamplingConfig),
        ("plan/full", PlanConfig),
    ],
)
def test_defaults_from_python_are_those_of_the_command_line(file, kind):
    for key, value in OmegaConf.to_container(OmegaConf.load(CONF / f"{file}.yaml")).items():
        expected = tuple(value) if isinstance(value, list) else value
        if isinstance(value, float):
            expected = pytest.approx(value, rel=1e-3)  # a third is .3333 there
        assert getattr(kind(), key) == expected, key


@pytest.mark.parametrize("section", SECTIONS)
def test_a_mistyped_key_fails_by_its_name(section):
    config = OmegaConf.create({section: {"lrr": 1}})
    with pytest.raises(UsageError, match=rf"{section}\.lrr: no such key"):
        build.settings(SECTIONS[section], config, section)


@pytest.mark.parametrize("trainer", ["auto", "cpu", "gpu", "gpu_fp16", "ddp"])
def test_trainers_leave_the_precision_free(trainer):
    config = composed(f"trainer={trainer}", "trainer.precision=32-true")
    assert config.trainer.precision == "32-true"
    assert config.trainer.max_epochs == 120


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trainer.max_epochs=-1", "trainer.max_epochs=-1: has to be 1 or more"),
        ("trainer.max_epochs=null", "trainer.max_epochs=None: has to be a whole number"),
        ("+trainer.max_steps=5", "trainings end with an epoch; give trainer.max_epochs"),
        ("validate_every=0", "validate_every=0: has to be 1 or more"),
        ("patience=0", "patience=0: has to be 1 or more"),
        ("seed=-1", "seed=-1: has to be 0 or more"),
        ("optimizer.decay=linear", "optimizer.decay=linear: choose one of cosine, poly"),
        ("task.score.macro_f1=high", "task.score.macro_f1=high: has to be a number"),
        ("task.targets=3", "task.targets=3: has to be keys with values"),
        ("task.lesion_size_limits_ml=[4.2,big]", "lesion_size_limits_ml=big: has to be a number"),
        ("model.stages=[0,all]", "model.stages=all: has to be a whole number"),
        ("~task.coverage", "task.coverage is missing: write it into the file of task"),
        ("head=none model.freeze=[encoder,decoder]", "nothing to train without a head"),
        (
            "head=none task.score.whole_pancreas_dsc=0 task.score.lesion_dsc=0",
            "task.score: without a subtype head nothing of it is measured",
        ),
        ("plan.spacing_mm=[0,1,1]", "plan: spacing_mm=.*: give three numbers above 0"),
        ("plan.patch_size=[64,64]", "plan: patch_size=.*: give three numbers above 0"),
    ],
)
def test_values_that_mean_nothing_are_refused_before_any_work(override, message):
    with pytest.raises(UsageError, match=message):
        build.check(composed(*override.split(), "output_dir=run"))


def test_an_impossible_trainer_is_one_line(tmp_path):
    config = composed("trainer.precision=7-mixed", f"output_dir={tmp_path}")
    with pytest.raises(UsageError, match=r"trainer: .*7-mixed"):
        build.trainer(config, tmp_path)


@pytest.mark.parametrize("name", sorted(path.stem for path in CONF.glob("*.yaml")))
def test_every_command_composes(name):
    assert "hydra" in composed(*(["data=quiz"] if name == "audit" else []), name=name)
