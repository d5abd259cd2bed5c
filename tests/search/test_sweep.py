"""A search whose trainings are a script of ten lines; the studies and processes are real."""

import csv
import os
import signal
import subprocess
import sys
import textwrap
import time
from datetime import datetime, timedelta
from pathlib import Path
from types import MappingProxyType, SimpleNamespace

import pytest
from omegaconf import OmegaConf

pytest.importorskip("optuna", reason="needs the extra sweep")
import optuna
from optuna.trial import TrialState

from pancreas_mtl.errors import CaseError, UsageError
from pancreas_mtl.search import trials
from pancreas_mtl.search.results import best_command, results_table, write_results
from pancreas_mtl.search.space import read_space
from pancreas_mtl.search.study import SweepConfig, next_trial, open_study
from pancreas_mtl.search.trials import read_curve, run_sweep

ROOT = Path(__file__).resolve().parents[2]
SPACE = {"x": {"low": 0.0, "high": 1.0}, "head": ["gap", "lesion"]}
TRAIN = """
import os, pathlib, sys, time
import signal
values = dict(argument.split("=", 1) for argument in sys.argv[1:])
folder = pathlib.Path(values["output_dir"])
with (folder / "started").open("a") as file:
    print(os.getpid(), *sys.argv[1:], file=file)
(folder / "environment").write_text("\\n".join(os.environ))
if values.get("break"):
    print("train: " + values["break"])
    sys.exit(int(values["code"]))
if values.get("kill_once") and len((folder / "started").read_text().splitlines()) == 1:
    os.kill(os.getpid(), signal.SIGKILL)
rows = "epoch,val/score\\n"
for epoch in range(int(values.get("epochs", 3))):
    rows += f"{epoch},{float(values['x']) * (epoch + 1)}\\n"
    (folder / "metrics.tmp").write_text(rows)
    (folder / "metrics.tmp").replace(folder / "metrics.csv")
    time.sleep(float(values.get("pause", 0)))
"""


def config(**changes):
    default = {
        "space": SPACE,
        "trials": 3,
        "startup_trials": 10,
        "warmup_epochs": 0,
        "seed": 0,
        "objective": "val/score",
    }
    return SweepConfig(**default | changes)


@pytest.fixture
def fake(tmp_path, monkeypatch):
    (tmp_path / "train.py").write_text(TRAIN)
    monkeypatch.setattr(trials, "TRAIN", tmp_path / "train.py")
    monkeypatch.setattr(trials, "POLL_S", 0.02)
    return tmp_path / "study"


def search(folder, *overrides, **changes):
    chosen = config(**changes)
    study = open_study(folder, chosen, list(overrides))
    run_sweep(study, read_space(chosen.space), overrides, folder, chosen)
    return study


def states(study):
    return [trial.state.name for trial in study.trials]


def test_every_trial_is_a_run_folder_and_a_row_and_the_best_can_be_repeated(fake):
    study = search(fake, "data=quiz", trials=4)
    assert states(study) == ["COMPLETE"] * 4
    with (fake / "trials.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["trial"] for row in rows] == ["0", "1", "2", "3"]
    for row in rows:
        assert float(row["value"]) == pytest.approx(3 * float(row["x"]), rel=1e-4)
        command = (fake / row["folder"] / "started").read_text()
        assert f"data=quiz x={row['x']} head={row['head']} output_dir=" in command
    assert (fake / "importance.png").stat().st_size > 2000
    best = max(rows, key=lambda row: float(row["value"]))
    again = best_command(study, ["data=quiz"])
    assert again == f"python train.py data=quiz x={best['x']} head={best['head']}"
    table = results_table(study)
    assert table.row_count == 4
    assert next(iter(table.columns[0].cells)) == best["trial"]


def test_the_same_seed_draws_the_same_values(fake):
    first, again = (search(fake / name, trials=3) for name in ("a", "b"))
    other = search(fake / "c", trials=3, seed=7)
    drawn = [[trial.params for trial in study.trials] for study in (first, again, other)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len({trial.params["x"] for trial in first.trials}) == 3


def test_more_trials_go_on_with_the_study(fake):
    search(fake, trials=2)
    study = search(fake, trials=3)
    assert len(study.trials) == 3
    with pytest.raises(UsageError, match="holds a study with other space"):
        search(fake, space={"x": {"low": 0.0, "high": 2.0}})
    with pytest.raises(UsageError, match="holds a study with other overrides"):
        search(fake, "seed=1")


def test_a_trial_that_lags_behind_is_stopped(fake):
    chosen = config(space={"x": [0.9, 0.1]}, startup_trials=1, trials=2)
    overrides = ["epochs=3", "pause=0.5"]
    study = open_study(fake, chosen, overrides)
    study.enqueue_trial({"x": 0.9})
    study.enqueue_trial({"x": 0.1})
    run_sweep(study, read_space(chosen.space), overrides, fake, chosen)
    assert states(study) == ["COMPLETE", "PRUNED"]
    assert len(study.trials[1].intermediate_values) < 3
    assert len(read_curve(fake / "trial0001" / "metrics.csv", "val/score")) < 3


def test_the_value_of_a_stopped_trial_is_its_best(tmp_path):
    study, start = optuna.create_study(direction="maximize"), datetime(2026, 1, 1)
    study.add_trial(trial_of(TrialState.PRUNED, start, start, values={0: 0.2, 1: 0.9, 2: 0.4}))
    study.add_trial(trial_of(TrialState.COMPLETE, start, start, values={0: 0.5}))
    write_results(study, tmp_path)
    with (tmp_path / "trials.csv").open() as file:
        assert [row["value"] for row in csv.DictReader(file)] == ["0.9", "0.5"]
    columns = [list(column.cells) for column in results_table(study).columns]
    assert columns == [["0", "1"], ["pruned", "complete"], ["0.9000", "0.5000"]]


LAUNCHED = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "MASTER_PORT": "1"}
LAUNCHED |= {"TORCHELASTIC_RUN_ID": "x", "SLURM_PROCID": "1", "SLURM_NTASKS": "2"}


def test_trainings_are_of_no_launchers_group(fake, monkeypatch):
    for name, value in (LAUNCHED | {"SLURM_JOB_ID": "7"}).items():
        monkeypatch.setenv(name, value)
    search(fake, trials=1)
    found = set((fake / "trial0000" / "environment").read_text().splitlines())
    assert not found & set(LAUNCHED)
    assert {"SLURM_JOB_ID", "PATH"} <= found


def test_a_configuration_that_training_refuses_stops_the_search(fake):
    with pytest.raises(UsageError, match=r"train: data.root is not set"):
        search(fake, "break=data.root is not set", "code=2")
    assert len(list(fake.glob("trial*/started"))) == 1


def test_failures_in_a_row_stop_it_and_do_not_count(fake):
    with pytest.raises(CaseError, match="3 trials in a row failed"):
        search(fake, "break=no memory", "code=1")
    study = open_study(fake, config(), ["break=no memory", "code=1"])
    assert states(study) == ["FAIL"] * 3
    write_results(study, fake)
    with (fake / "trials.csv").open() as file:
        assert [row["value"] for row in csv.DictReader(file)] == ["", "", ""]


def test_a_training_that_is_killed_is_taken_up_again_in_its_folder(fake):
    study = search(fake, "kill_once=1", trials=1)
    assert states(study) == ["FAIL", "COMPLETE"]
    assert study.trials[0].params == study.trials[1].params
    assert len((fake / "trial0000" / "started").read_text().splitlines()) == 2
    assert "resume=true" in (fake / "trial0000" / "started").read_text()
    assert [path.name for path in fake.glob("trial0*")] == ["trial0000"]


def test_an_objective_that_training_does_not_log(fake):
    with pytest.raises(UsageError, match=r"sweep.objective=val/scor: .*metrics.csv has no values"):
        search(fake, objective="val/scor")


def test_the_time_left_follows_from_the_trials_that_are_done(fake, caplog):
    study = optuna.create_study()
    assert trials.time_left(study, 10) == ""
    start = datetime(2026, 1, 1)
    for minutes, state in ((10, TrialState.COMPLETE), (20, TrialState.PRUNED)):
        study.add_trial(trial_of(state, start, start + timedelta(minutes=minutes)))
    assert trials.time_left(study, 10) == ", about 120 minutes left"  # 8 trials of 15 minutes
    for _ in range(2):
        study.add_trial(trial_of(TrialState.RUNNING, start, None))
    assert trials.time_left(study, 10) == ", about 60 minutes left"
    with caplog.at_level("INFO"):
        search(fake, trials=2)
    assert "trial 1, 0 of 2 done: x=" in caplog.text
    assert "trial 2, 1 of 2 done, about 0 minutes left: x=" in caplog.text


def trial_of(state, start, end, values=MappingProxyType({0: 1.0})):
    return optuna.trial.FrozenTrial(
        number=-1,
        state=state,
        value=list(values.values())[-1] if state.is_finished() else None,
        datetime_start=start,
        datetime_complete=end,
        params={},
        distributions={},
        user_attrs={},
        system_attrs={},
        intermediate_values=dict(values),
        trial_id=-1,
    )


def test_a_lock_on_the_journal_that_a_killed_process_left_is_taken_away(fake, monkeypatch):
    """Optuna waits half a minute for its owner; here time runs a hundred times as fast."""
    search(fake, trials=1)
    (fake / "journal.log.lock").touch()
    fast = SimpleNamespace(monotonic=lambda: 100 * time.monotonic(), sleep=time.sleep)
    monkeypatch.setattr("optuna.storages.journal._file.time", fast)
    study = search(fake, trials=2)
    assert states(study) == ["COMPLETE"] * 2
    assert not (fake / "journal.log.lock").exists()


@pytest.mark.slow
def test_real_trainings(box_quiz, tmp_path):
    from trainings import OVERRIDES  # which imports all of the training

    folder = tmp_path / "study"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pancreas_mtl.sweep", f"output_dir={folder}"),
            *(f"data.root={box_quiz}", f"paths.outputs={tmp_path}", "sweep.trials=4"),
            *OVERRIDES,
            "trainer.max_epochs=1",
        ],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=1500,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "best of 4 trials" in done.stdout
    assert "trial 4, 3 of 4 done, about " in done.stdout
    assert "the best again: python train.py " in done.stdout
    with (folder / "trials.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["state"] for row in rows] == ["complete"] * 4
    for row in rows:
        (score,) = read_curve(folder / row["folder"] / "metrics.csv", "val/score").values()
        assert float(row["value"]) == pytest.approx(score, rel=1e-4)
        config = OmegaConf.load(folder / row["folder"] / "config.yaml")
        assert config.optimizer.lr == pytest.approx(float(row["optimizer.lr"]))
        assert config.model.head == row["head"]
    assert (folder / "importance.png").stat().st_size > 2000


WORKER = """
import sys
sys.path[:0] = [{root!r}, {tests!r}]
from pathlib import Path
import test_sweep as t
t.trials.TRAIN, t.trials.POLL_S = Path({train!r}), 0.05
study = t.search(Path({folder!r}), "epochs=2", "pause={pause}", trials={trials})
"""


def worker(folder, *, pause, trials):
    code = WORKER.format(
        root=str(ROOT),
        tests=str(Path(__file__).parent),
        train=str(folder.parent / "train.py"),
        folder=str(folder),
        pause=pause,
        trials=trials,
    )
    return subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)])


def wait_for(condition, seconds=400):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.05)


@pytest.mark.slow
def test_processes_share_a_study_and_stop_together(fake):
    both = [worker(fake, pause=0.1, trials=6) for _ in range(2)]
    assert [process.wait(400) for process in both] == [0, 0]
    study = open_study(fake, config(), ["epochs=2", "pause=0.1"])
    assert states(study) == ["COMPLETE"] * 6
    assert len({trial.params["x"] for trial in study.trials}) == 6
    assert len(list(fake.glob("trial*/started"))) == 6


@pytest.mark.slow
def test_a_killed_search_loses_nothing(fake):
    killed = worker(fake, pause=30, trials=2)
    started = fake / "trial0000" / "started"
    wait_for(lambda: started.exists() and started.read_text())
    killed.kill()
    killed.wait()
    training = int(started.read_text().split()[0])
    chosen = config(trials=1)
    study = open_study(fake, chosen, ["epochs=2", "pause=30"])
    assert next_trial(study, fake, chosen) is None  # the training lives on and holds its trial
    os.kill(training, signal.SIGKILL)
    wait_for(lambda: next_trial(study, fake, chosen))
    assert states(study) == ["FAIL", "RUNNING"]
    first, second = study.trials
    assert first.params["x"] == second.system_attrs["fixed_params"]["x"]
    assert first.user_attrs["folder"] == second.user_attrs["folder"] == "trial0000"


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({}, "sweep.space is empty"),
        ({"optimizer.lr": 3}, r"sweep.space.optimizer.lr=3: give a list of choices, or low and"),
        ({"optimizer.lr": {"low": 1.0}}, "give a list of choices, or low and high"),
        ({"optimizer.lr": {"low": 1.0, "high": 2.0, "logg": True}}, "log: true or step"),
        ({"optimizer.lr": {"low": 2.0, "high": 1.0}}, r"sweep.space.optimizer.lr=.*low"),
        ({"optimizer.lr": {"low": 0.0, "high": 1.0, "log": True}}, "sweep.space.optimizer.lr=.*"),
        ({"head": []}, "give a list of choices"),
    ],
)
def test_a_space_that_cannot_be_meant(space, message):
    with pytest.raises(UsageError, match=message):
        read_space(space)


def test_values_are_written_as_hydra_reads_them():
    space = read_space(
        {"a": [None, None], "b": [True, True], "c": [[0, 1], [0, 1]], "d": {"low": 2, "high": 2}}
    )
    trial = optuna.create_study().ask()
    written = trials.suggest(trial, space)
    assert written == {"a": "null", "b": "true", "c": "[0,1]", "d": "2"}
    assert trial.study.trials[0].state == optuna.trial.TrialState.RUNNING
