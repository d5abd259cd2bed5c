"""Several jobs in one command: folders, failures, loggers, the table at the end."""

import csv
import json
import shlex
from types import SimpleNamespace

import pytest
from commands import call
from hydra.core.override_parser.overrides_parser import OverridesParser
from wandb_file import read_runs

import train
from pancreas_mtl.errors import UsageError
from pancreas_mtl.interruption import EXIT_CODE
from pancreas_mtl.multirun import Multirun, other_overrides


def test_a_name_tells_what_differs_and_nothing_of_the_machine():
    said = ["experiment=balanced", "fold=0", "seed=2", "trainer=cpu", "data.root=/a/b", "workers=3"]
    assert other_overrides(said) == ""
    assert other_overrides([*said, "paths.cache=/x", "hydra.sweep.dir=y", "logger=wandb"]) == ""
    assert other_overrides([*said, "trainer.max_epochs=3", "optimizer.lr=0.1"]) == (
        "+optimizer.lr-0.1+trainer.max_epochs-3"
    )
    assert "/" not in other_overrides(["+model/x=a/b"])
    assert other_overrides(["model.stages=[0,1]"]) != other_overrides(["model.stages=[0.1]"])
    long = other_overrides([f"optimizer.key{n}={n}" for n in range(50)])
    assert len(long) == 13
    assert long != other_overrides([f"optimizer.key{n}={n}" for n in range(51)])


@pytest.mark.parametrize("override", ["data=quiz", "model.stages=[0,1]", "+model/x=a b", "a='$x'"])
def test_a_name_is_taken_by_hydra_and_shells_as_it_is(override):
    folder = f"runs/fold0-seed0{other_overrides([override])}/bundle"
    parse = OverridesParser.create().parse_override
    assert parse(f"model={folder}").value() == folder
    assert parse(f"model=[{folder}]").value() == [folder]
    assert shlex.quote(folder) == folder


def replace_dataset(monkeypatch, *, teaches_subtypes):
    """Let no dataset be read."""
    dataset = SimpleNamespace(teaches_subtypes=teaches_subtypes)
    monkeypatch.setattr(train.build, "dataset", lambda config: dataset)


def test_no_job_takes_the_folder_of_another(tmp_path, monkeypatch):
    def opened(config, run_dir):
        raise UsageError("opened")

    replace_dataset(monkeypatch, teaches_subtypes=True)
    monkeypatch.setattr(train, "open_run", opened)
    where = [f"output_dir={tmp_path / 'x'}", f"hydra.sweep.dir={tmp_path / 'sweep'}"]
    for more in ([], ["resume=true"], ["workers=1", "overwrite=true"]):  # the same jobs again
        call("train", "-m", "debug=fast", "seed=0,1", *where, f"paths.outputs={tmp_path}", *more)
        outcomes = [tmp_path / "sweep" / job / "outcome.json" for job in "01"]
        first, second = (json.loads(path.read_text())["error"] for path in outcomes)
        assert first == "opened"
        assert second.startswith(f"output_dir={tmp_path / 'x'} is that of another job of this")
    (claimed,) = (tmp_path / "sweep" / "claims").iterdir()
    assert claimed.read_text() == "debug=fast\nseed=0"


def test_the_other_processes_of_a_job_claim_nothing(tmp_path, monkeypatch):
    heads = []
    monkeypatch.setenv("LOCAL_RANK", "1")
    replace_dataset(monkeypatch, teaches_subtypes=True)
    monkeypatch.setattr(train, "open_run", lambda config, run_dir: heads.append(config.model.head))
    where = [f"output_dir={tmp_path / 'x'}", f"hydra.sweep.dir={tmp_path / 'sweep'}"]
    call("train", "-m", "debug=fast", "seed=0", *where, f"paths.outputs={tmp_path}")
    assert heads == ["lesion"]
    assert not (tmp_path / "sweep" / "claims").exists()


@pytest.mark.parametrize("pretrained", [False, True])
def test_without_subtypes_there_is_no_head_whatever_the_weights(tmp_path, monkeypatch, pretrained):
    heads = []
    monkeypatch.setattr(train.build, "check", lambda config: heads.append(config.model.head))
    replace_dataset(monkeypatch, teaches_subtypes=False)
    more = [f"model.pretrained={tmp_path}"] if pretrained else []
    call("train", "debug=fast", f"paths.outputs={tmp_path}", "output_dir=/dev/null/x", *more)
    assert heads == ["lesion", "none"]


def test_a_debug_run_replaces_what_lies_in_its_own_folder_alone(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    (folder / "bundle").mkdir(parents=True)
    (folder / "config.yaml").write_text("fold: 0\n")
    replace_dataset(monkeypatch, teaches_subtypes=True)
    for key in ("output_dir", "++output_dir"):
        refused = call("train", "debug=fast", f"{key}={folder}", f"paths.outputs={tmp_path}")
        assert refused.code == 2
        assert "holds a run: go on with it by resume=true" in refused.last_line
        assert (folder / "bundle").exists()


def test_a_job_without_an_outcome_was_killed(tmp_path):
    (tmp_path / "0").mkdir()
    (tmp_path / "0" / "outcome.json").write_text(
        json.dumps({"output_dir": "runs/a", "exit_code": 0, "error": None})
    )
    done, killed = Multirun(tmp_path, (("seed=0",), ("seed=1",))).outcomes()
    assert (done.exit_code, str(done.output_dir)) == (0, "runs/a")
    assert killed.exit_code is None
    assert "killed" in killed.error


def test_a_choice_that_does_not_exist_is_bad_usage_before_any_job(tmp_path):
    result = call("train", "-m", "experiment=balanced,balancd", f"paths.outputs={tmp_path}")
    assert result.code == 2
    assert result.last_line.startswith("train: experiment=balancd: no such choice; did you mean")
    assert result.stdout == ""


def test_a_repeated_multirun_keeps_what_is_finished_with_its_scores(tmp_path, monkeypatch):
    """The first job is this very run, finished; the second was made by another configuration."""
    scores = {"mean": 0.75}
    folders = [tmp_path / "runs" / "smoke" / f"fold0-seed{seed}" for seed in (0, 1)]
    for folder in folders:
        folder.mkdir(parents=True)
        (folder / "config.yaml").touch()
        (folder / "run.json").write_text(json.dumps({"status": "finished", "config": "this one"}))
        document = {"whole_pancreas": {"dsc": scores}, "pancreas": {"dsc": scores}}
        document |= {"lesion": {"dsc": scores}, "subtype": {"macro_f1": scores}}
        (folder / "metrics.json").write_text(json.dumps(document))
    monkeypatch.setattr(
        "pancreas_mtl.run_record.config_digest",
        lambda config: "this one" if config.seed == 0 else "another",
    )
    replace_dataset(monkeypatch, teaches_subtypes=True)
    paths = [f"paths.outputs={tmp_path}", f"paths.runs={tmp_path / 'runs'}"]
    arguments = ["-m", "experiment=smoke", "seed=0,1", *paths]
    again = call("train", *arguments)
    assert again.code == 2
    assert "finished already" in again.stdout
    assert f"job 1: output_dir={folders[1]} holds a run" in again.last_line
    (table,) = tmp_path.rglob("jobs.csv")
    with table.open() as file:
        jobs = list(csv.DictReader(file))
    assert [(job["state"], job["macro_f1"]) for job in jobs] == [
        ("done", "0.75"),
        ("failed (2)", ""),
    ]


def test_only_the_first_process_of_a_job_says_how_it_ended(tmp_path, monkeypatch):
    sweep = [f"hydra.sweep.dir={tmp_path}", f"paths.outputs={tmp_path}", "seed=0,1"]
    assert call("train", "-m", "data=quiz", "data.root=/nowhere", *sweep).code == 2
    before = [path.read_text() for path in sorted(tmp_path.glob("*/outcome.json"))]
    monkeypatch.setenv("RANK", "1")
    call("train", "-m", "print_config=true", *sweep)
    after = [path.read_text() for path in sorted(tmp_path.glob("*/outcome.json"))]
    assert len(before) == 2
    assert after == before
    assert json.loads(after[0])["exit_code"] == 2


@pytest.fixture(scope="module")
def multirun(trainings):
    folder, did = trainings
    return folder / "multirun", did["multirun"], (folder / "multirun.log").read_text()


@pytest.mark.slow
def test_the_other_jobs_go_on_when_some_fail(multirun):
    folder, did, log = multirun
    assert did["code"] == 2, log[-3000:]
    assert "job 2: fold=9: choose one of 0 to 4" in log
    runs = sorted(path.parent.name for path in (folder / "runs").rglob("metrics.json"))
    assert [name.split("+")[0] for name in runs] == ["fold0-seed0", "fold0-seed1"]


@pytest.mark.slow
def test_the_table_gives_every_job_and_the_mean_over_seeds(multirun):
    folder, _, log = multirun
    *_, sweep = sorted((folder / "multirun").iterdir())
    with (sweep / "jobs.csv").open() as file:
        jobs = list(csv.DictReader(file))
    assert [job["state"] for job in jobs] == ["done", "done", "failed (2)", "failed (2)"]
    values = [float(job["whole_pancreas_dsc"]) for job in jobs[:2]]
    with (sweep / "seeds.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["metric"] == "whole_pancreas_dsc"]
    assert len(rows) == 1
    assert float(rows[0]["mean"]) == pytest.approx(sum(values) / 2)
    assert float(rows[0]["ci95_low"]) <= min(values)
    assert "mean over seeds" in log


@pytest.mark.slow
def test_each_job_has_a_wandb_run_of_its_own(multirun):
    folder, _, _ = multirun
    seen = set()
    for journal in (folder / "runs").rglob("wandb.json"):
        record = json.loads((journal.parent / "run.json").read_text())
        parts = read_runs(journal.parent / "wandb")
        assert len(parts) == 1 + len(record["resumed"])
        assert {part.id for part in parts} == {json.loads(journal.read_text())["id"]}
        seed = f"seed{record['seed']}"
        for part in parts:
            assert part.group == "balanced"
            assert sorted(part.tags) == sorted(["balanced", "fold0", seed, record["git"]["label"]])
        seen.add((parts[0].id, seed))
    assert {seed for _, seed in seen} == {"seed0", "seed1"}
    assert len({identity for identity, _ in seen}) == 2


@pytest.mark.slow
def test_an_interrupted_multirun_keeps_what_is_done_and_goes_on_with_the_rest(multirun):
    folder, did, log = multirun
    assert did["stopped"]["code"] == EXIT_CODE
    stopped, after = ([step for step, _ in one["steps"]] for one in (did["stopped"], did))
    assert stopped + after == [0, 1, 2, 3] * 2
    assert 4 < len(stopped) < 8, "the first job, and a part of the second"
    assert "finished already" in log
    first, _ = sorted((folder / "multirun").iterdir())
    with (first / "jobs.csv").open() as file:
        assert [job["state"] for job in csv.DictReader(file)] == ["done", *["killed"] * 3]


@pytest.mark.slow
def test_a_job_that_fails_amid_training_ends_its_wandb_run_and_the_next_one_trains(trainings):
    folder, did = trainings
    log = (folder / "broken.log").read_text()
    assert did["broken"]["code"] == 1, log[-3000:]
    assert "job 0: 1 steps of this run had a loss that is not finite" in log
    found = [read_runs(path) for path in (folder / "broken" / "runs").rglob("wandb")]
    ended = {run.config["optimizer"]["lr"]: run.exit_code for runs in found for run in runs}
    assert ended == {1e30: 1, 1e-3: 0}
