import json
import os
import signal
import threading
import time

import pytest

from pancreas_mtl.errors import UsageError
from pancreas_mtl.evaluation import trial_runs as module
from pancreas_mtl.evaluation.trial_runs import run_trials, seconds
from pancreas_mtl.evaluation.trials import Laboratory, Step, list_trials, steps
from pancreas_mtl.interruption import Interrupted, interruptible

COUNT = """
import pathlib, sys
path = pathlib.Path(sys.argv[1])
path.write_text((path.read_text() if path.exists() else "") + "x")
"""


@pytest.fixture
def counting(monkeypatch):
    """Steps that count how often they run; the trial named `bad` fails at its second."""

    def fake(trial, laboratory):
        folder = laboratory.folder(trial)
        second = "raise SystemExit(3)" if trial.configuration == "bad" else COUNT
        return [
            Step("train", ("-c", COUNT, str(folder / "a")), folder / "a"),
            Step("evaluate", ("-c", second, str(folder / "b")), folder / "b"),
        ]

    monkeypatch.setattr(module, "steps", fake)


def test_seed_by_seed_with_what_is_shared_first():
    found = list_trials({"a": ["x=1"], "b": []}, [0, 1], ["y=2"])
    assert [trial.name for trial in found] == ["a/seed0", "b/seed0", "a/seed1", "b/seed1"]
    assert found[0].overrides == ("y=2", "x=1")
    assert [t.name for t in list_trials({"a": [], "b": []}, [5], [], only=["b"])] == ["b/seed5"]


def test_overrides_that_several_share_are_spliced_in():
    shared = ["head=lesion", "model.freeze=[encoder]"]
    (trial,) = list_trials({"a": [shared, "model.hidden=0"]}, [0], ["y=2"])
    assert trial.overrides == ("y=2", *shared, "model.hidden=0")


def test_unknown_names_and_no_seeds_are_refused():
    with pytest.raises(UsageError, match="no configuration c: choose from a, b"):
        list_trials({"a": [], "b": []}, [0], [], only=["c"])
    with pytest.raises(UsageError, match="seeds"):
        list_trials({"a": []}, [], [])


def test_the_test_cases_are_predicted_after_training_with_its_bundle(tmp_path):
    (trial,) = list_trials({"a": ["head=gap"]}, [3], ["plan=small"])
    train, predict, evaluate = steps(trial, Laboratory(tmp_path))
    assert train.arguments[0] == "train.py"
    assert {"plan=small", "head=gap", "seed=3", "resume=true"} <= set(train.arguments)
    assert f"model=[{tmp_path}/trials/a/seed3/run/bundle]" in predict.arguments
    assert f"input={tmp_path}/data/test" in predict.arguments
    assert f"references={tmp_path}/data/references" in evaluate.arguments


def test_an_ensemble_predicts_with_the_bundles_of_its_members(tmp_path):
    trials = list_trials({"a": [], "b": []}, [0, 1], [], ensembles={"both": ["a", "b"]})
    assert [t.name for t in trials[-2:]] == ["both/seed0", "both/seed1"]
    predict, _ = steps(trials[-1], Laboratory(tmp_path))
    bundles = [f"{tmp_path}/trials/{member}/seed1/run/bundle" for member in "ab"]
    assert f"model=[{','.join(bundles)}]" in predict.arguments
    with pytest.raises(UsageError, match="no configuration c"):
        list_trials({"a": []}, [0], [], ensembles={"both": ["a", "c"]})


def test_folds_are_calibrated_out_of_fold_before_they_predict(tmp_path):
    trials = list_trials({"a": [], "b": ["fold=1"]}, [2], [], folds={"all": ["a", "b"]})
    assert trials[-1].needs == {"a", "b"}
    calibrate, predict, _ = steps(trials[-1], Laboratory(tmp_path))
    runs = [f"{tmp_path}/trials/{member}/seed2/run" for member in "ab"]
    assert f"runs=[{','.join(runs)}]" in calibrate.arguments
    folder = tmp_path / "trials/all/seed2/cross_validation"
    assert f"output_dir={folder}" in calibrate.arguments
    assert f"model=[{folder}/ensemble]" in predict.arguments


def test_an_ensemble_comes_after_its_members(monkeypatch, tmp_path):
    order = tmp_path / "order"
    program = "import sys, time; time.sleep(float(sys.argv[2])); open(sys.argv[1], 'a').write('x')"
    product = {"a": "0.3", "both": "0"}

    def fake(trial, laboratory):
        name = trial.configuration
        written = (
            f"{program}; open({str(tmp_path / name)!r}, 'w').write(open({str(order)!r}).read())"
        )
        return [Step(name, ("-c", written, str(order), product[name]), tmp_path / name)]

    monkeypatch.setattr(module, "steps", fake)
    trials = list_trials({"a": []}, [0], [], ensembles={"both": ["a"]})
    assert run_trials(trials, Laboratory(tmp_path), jobs=2) == []
    assert (tmp_path / "both").read_text() == "xx"


def chain(monkeypatch, tmp_path, *, broken=""):
    """Trials that train one after the other: `third` needs `second`, which needs `first`."""

    def fake(trial, laboratory):
        product = laboratory.folder(trial) / "run" / "bundle" / "config.yaml"
        name = trial.configuration
        program = (
            "raise SystemExit(3)"
            if name == broken
            else "import pathlib; "
            f"p = pathlib.Path({str(product)!r}); p.parent.mkdir(parents=True); "
            f"p.write_text({name!r})"
        )
        return [Step("train", ("-c", program), product)]

    monkeypatch.setattr(module, "steps", fake)
    configurations = {"third": ["x={second}"], "second": ["x={first}"], "first": []}
    return list_trials(configurations, [0], [], only=["third"]), Laboratory(tmp_path)


def test_what_is_needed_comes_along_and_goes_first(monkeypatch, tmp_path):
    trials, laboratory = chain(monkeypatch, tmp_path)
    assert run_trials(trials, laboratory, jobs=3) == []
    assert (tmp_path / "trials/third/seed0/run/bundle/config.yaml").exists()


def test_nothing_is_made_from_what_is_not_finished(monkeypatch, tmp_path):
    trials, laboratory = chain(monkeypatch, tmp_path, broken="first")
    failures = run_trials(trials, laboratory, jobs=3)
    assert failures[0].startswith("first/seed0: train ended with exit code 3")
    assert failures[1].startswith("second/seed0: needs first/seed0, which is not finished")
    assert failures[2].startswith("third/seed0: needs second/seed0, which is not finished")


def test_what_was_made_from_another_bundle_is_not_taken_for_this_one(monkeypatch, tmp_path):
    trials, laboratory = chain(monkeypatch, tmp_path)
    run_trials(trials, laboratory, jobs=1)
    (tmp_path / "trials/first/seed0/run/bundle/config.yaml").write_text("trained anew")
    (failure,) = run_trials(trials, laboratory, jobs=1)
    folder = tmp_path / "trials/second/seed0"
    assert failure == f"second/seed0: was made from other bundles of first; remove {folder}"


def test_a_prediction_with_failed_cases_is_done_again(tmp_path):
    laboratory = Laboratory(tmp_path)
    (trial,) = list_trials({"a": []}, [0], [])
    record = laboratory.folder(trial) / "predictions" / "run.json"
    record.parent.mkdir(parents=True)
    for failures, done in (([{"name": "case0"}], False), ([], True)):
        record.write_text(json.dumps({"failures": failures}))
        _, predict, _ = steps(trial, laboratory)
        assert predict.is_done == done
        assert "overwrite=true" in predict.arguments


def test_the_time_of_an_interrupted_step_counts(counting, tmp_path, monkeypatch):
    def interrupted(*arguments, **more):
        raise KeyboardInterrupt

    trials, laboratory = list_trials({"good": []}, [0], []), Laboratory(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(module.subprocess, "Popen", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run_trials(trials, laboratory, jobs=1)
    assert seconds(trials[0], laboratory).keys() == {"train"}


def test_a_signal_stops_the_running_step_and_none_begins(monkeypatch, tmp_path):
    def once_started():
        while not (started.exists() and started.read_text()):
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGTERM)

    started = tmp_path / "started"
    sleep = "import os, time; print(os.getpid(), file=open('started', 'w')); time.sleep(300)"
    programs = [("train", sleep), ("predict", "open('predicted', 'w')")]
    made = [Step(name, ("-c", text), tmp_path / name) for name, text in programs]
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(module, "steps", lambda trial, laboratory: made)
    trials = list_trials({"a": [], "b": []}, [0], [])
    threading.Thread(target=once_started).start()
    with pytest.raises(Interrupted), interruptible():
        run_trials(trials, Laboratory(tmp_path), jobs=1)
    taken = [seconds(trial, Laboratory(tmp_path)) for trial in trials]
    assert [list(one) for one in taken] == [["train"], []]
    with pytest.raises(ProcessLookupError):
        os.kill(int(started.read_text()), 0)
    assert not (tmp_path / "predicted").exists()


def test_what_is_done_is_not_done_again(counting, tmp_path):
    laboratory = Laboratory(tmp_path)
    trials = list_trials({"good": [], "bad": []}, [0], [])
    for _ in range(2):
        failures = run_trials(trials, laboratory, jobs=2)
        assert len(failures) == 1
        assert failures[0].startswith("bad/seed0: evaluate ended with exit code 3")
    good, bad = map(laboratory.folder, trials)
    assert [(good / name).read_text() for name in "ab"] == ["x", "x"]
    assert (bad / "a").read_text() == "x"
    assert seconds(trials[0], laboratory).keys() == {"train", "evaluate"}


def test_other_overrides_are_refused(counting, tmp_path):
    run_trials(list_trials({"a": ["x=1"]}, [0], []), Laboratory(tmp_path), jobs=1)
    with pytest.raises(UsageError, match="other overrides"):
        run_trials(list_trials({"a": ["x=2"]}, [0], []), Laboratory(tmp_path), jobs=1)
    assert json.loads((tmp_path / "trials/a/seed0/trial.json").read_text())["overrides"] == ["x=1"]


def test_a_trial_that_another_process_works_on_is_left_to_it(counting, tmp_path):
    (trial,) = list_trials({"a": []}, [0], [])
    folder = tmp_path / "trials" / trial.name
    folder.mkdir(parents=True)
    with module._lock(folder) as lock:
        assert lock is not None
        assert run_trials([trial], Laboratory(tmp_path), jobs=1) == []
        assert not (folder / "a").exists()
    run_trials([trial], Laboratory(tmp_path), jobs=1)
    assert (folder / "a").exists()


def test_a_trial_gets_its_share_of_threads(monkeypatch, tmp_path):
    program = "import os; open('t', 'w').write(os.environ['OMP_NUM_THREADS'])"
    monkeypatch.setattr(module, "ROOT", tmp_path)
    step = Step("train", ("-c", program), tmp_path / "t")
    monkeypatch.setattr(module, "steps", lambda trial, laboratory: [step])
    run_trials(list_trials({"a": []}, [0], []), Laboratory(tmp_path, threads=3), jobs=1)
    assert (tmp_path / "t").read_text() == "3"


def test_steps_are_of_no_launchers_group(monkeypatch, tmp_path):
    program = "import os; open('names', 'w').write(' '.join(os.environ))"
    monkeypatch.setattr(module, "ROOT", tmp_path)
    for name in ("RANK", "WORLD_SIZE", "SLURM_PROCID", "SLURM_NTASKS"):
        monkeypatch.setenv(name, "1")
    step = Step("train", ("-c", program), tmp_path / "names")
    monkeypatch.setattr(module, "steps", lambda trial, laboratory: [step])
    run_trials(list_trials({"a": []}, [0], []), Laboratory(tmp_path), jobs=1)
    found = set((tmp_path / "names").read_text().split())
    assert not found & {"RANK", "WORLD_SIZE", "SLURM_PROCID", "SLURM_NTASKS"}
    assert "PATH" in found


def test_a_second_stage_starts_from_the_bundle_of_the_first(counting, tmp_path):
    configurations = {"second": ["model.pretrained={first}"], "first": []}
    second, first = list_trials(configurations, [3], [])
    assert (second.needs, first.needs) == ({"first"}, set())
    train, *_ = steps(second, Laboratory(tmp_path))
    assert f"model.pretrained={tmp_path}/trials/first/seed3/run/bundle" in train.arguments
    with pytest.raises(UsageError, match="no configuration first"):
        list_trials({"second": ["model.pretrained={first}"]}, [0], [])


def test_a_configuration_may_have_a_dataset_of_its_own(tmp_path):
    (trial,) = list_trials({"a": ["data=nnunet", "data.root={output_dir}/part"]}, [0], [])
    train, predict, _ = steps(trial, Laboratory(tmp_path))
    assert f"data.root={tmp_path}/part" in train.arguments
    assert "data=quiz" not in train.arguments
    assert f"input={tmp_path}/data/test" in predict.arguments, "the test cases are the same"
