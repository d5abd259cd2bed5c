"""Several jobs in one command: folders, failures, loggers, the table at the end."""

import csv
import json

import pytest

from pancreas_mtl.multirun import Multirun, other_overrides


def test_a_name_tells_what_differs_and_nothing_of_the_machine():
    said = ["experiment=balanced", "fold=0", "seed=2", "trainer=cpu", "data.root=/a/b", "workers=3"]
    assert other_overrides(said) == ""
    assert other_overrides([*said, "paths.cache=/x", "hydra.sweep.dir=y", "logger=wandb"]) == ""
    assert other_overrides([*said, "trainer.max_epochs=3", "optimizer.lr=0.1"]) == (
        ",optimizer.lr=0.1,trainer.max_epochs=3"
    )
    assert "/" not in other_overrides(["+model/x=a/b"])
    long = other_overrides([f"optimizer.key{n}={n}" for n in range(50)])
    assert len(long) == 13
    assert long != other_overrides([f"optimizer.key{n}={n}" for n in range(51)])


def test_a_job_without_an_outcome_was_killed(tmp_path):
    (tmp_path / "0").mkdir()
    (tmp_path / "0" / "outcome.json").write_text(
        json.dumps({"output_dir": "runs/a", "exit_code": 0, "error": None})
    )
    done, killed = Multirun(tmp_path, (("seed=0",), ("seed=1",))).outcomes()
    assert (done.exit_code, str(done.output_dir)) == (0, "runs/a")
    assert killed.exit_code is None
    assert "killed" in killed.error


@pytest.fixture(scope="module")
def multirun(trainings):
    folder, did = trainings
    return folder, did["multirun"], (folder / "multirun.log").read_text()


@pytest.mark.slow
def test_the_other_jobs_go_on_when_some_fail(multirun):
    folder, did, log = multirun
    assert did["code"] == 2, log[-3000:]
    assert "job 2: fold=9: choose one of 0 to 4" in log
    runs = sorted(path.parent.name for path in (folder / "runs").rglob("metrics.json"))
    assert [name.split(",")[0] for name in runs] == ["fold0-seed0", "fold0-seed1"]


@pytest.mark.slow
def test_the_table_gives_every_job_and_the_mean_over_seeds(multirun):
    folder, _, log = multirun
    (sweep,) = (folder / "outputs" / "multirun").iterdir()
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
    journals = [json.loads(p.read_text()) for p in (folder / "runs").rglob("wandb.json")]
    offline = list((folder / "runs").rglob("offline-run-*/run-*.wandb"))
    assert {path.stem.removeprefix("run-") for path in offline} == {j["id"] for j in journals}
    assert len(offline) == 2
