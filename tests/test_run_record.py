"""What a run's folder tells of where the run comes from, and that it can be repeated from it."""

import json
import subprocess

import pytest
from omegaconf import OmegaConf
from trust.faults import content, largest_file

from pancreas_mtl.errors import CaseError
from pancreas_mtl.provenance import CodeState, code_state, package_versions
from pancreas_mtl.run_record import goes_on, is_finished, note, read_record, recorded


def config(**changes):
    values = {
        "experiment": "balanced",
        "fold": 0,
        "seed": 1,
        "lr": 0.1,
        "resume": False,
        "overwrite": False,
        "trainer": {"devices": 1},
    }
    return OmegaConf.create(values | changes)


def test_a_record_tells_how_the_run_was_made_and_how_it_ended(tmp_path):
    with recorded(config(), tmp_path):
        assert read_record(tmp_path)["status"] == "running"
        note(tmp_path, data={"fingerprint": "abc"})
    record = read_record(tmp_path)
    assert record["status"] == "finished"
    assert record["seed"] == 1
    assert record["packages"]["torch"]
    assert record["data"] == {"fingerprint": "abc"}
    assert 0.05 < record["peak_memory_gb"]["process"] < 100
    assert (tmp_path / "git.diff").exists()


def test_a_failure_is_recorded_in_one_line(tmp_path):
    with pytest.raises(ValueError, match="two"), recorded(config(), tmp_path):
        raise ValueError("two\nlines")
    assert read_record(tmp_path)["status"] == "failed"
    assert read_record(tmp_path)["error"] == "ValueError: two lines"


def test_the_same_run_is_known_whatever_its_bookkeeping(tmp_path):
    with recorded(config(), tmp_path):
        pass
    assert is_finished(config(resume=True), tmp_path)
    assert not is_finished(config(lr=0.2), tmp_path)


def test_an_interrupted_run_goes_on_by_the_same_command(tmp_path, monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert not goes_on(config(), tmp_path, num_processes=1)
    with recorded(config(), tmp_path):
        note(tmp_path, status="interrupted")
        assert goes_on(config(), tmp_path, num_processes=1)
        assert not goes_on(config(lr=0.2), tmp_path, num_processes=1)
        assert not goes_on(config(), tmp_path, num_processes=2)
    assert not goes_on(config(), tmp_path, num_processes=1)
    note(tmp_path, status="interrupted")
    for processes, alone in (("1", True), ("2", False)):  # torchrun with one is alone as well
        monkeypatch.setenv("WORLD_SIZE", processes)
        assert goes_on(config(), tmp_path, num_processes=1) == alone
    monkeypatch.delenv("WORLD_SIZE")
    assert not goes_on(config(overwrite=True), tmp_path, num_processes=1), (
        "the start before did not ask for it"
    )
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert goes_on(config(), tmp_path, num_processes=2)


def test_what_ctrl_c_stops_in_preparation_is_interrupted_as_well(tmp_path):
    with pytest.raises(KeyboardInterrupt), recorded(config(), tmp_path):
        raise KeyboardInterrupt
    assert goes_on(config(), tmp_path, num_processes=1)


def test_code_that_has_changed_is_told_by_its_diff(tmp_path):
    def git(*arguments):
        subprocess.run(["git", "-C", tmp_path, *arguments], check=True, capture_output=True)

    assert code_state(tmp_path).label == "unversioned"
    git("init")
    (tmp_path / "a.py").write_text("one\n")
    git("add", ".")
    git("-c", "user.name=n", "-c", "user.email=e@x", "commit", "-m", "m")
    clean = code_state(tmp_path)
    assert clean.diff == ""
    assert clean.label == clean.revision[:7]
    (tmp_path / "a.py").write_text("two\n")
    (tmp_path / "né w.py").write_text("new\n")
    (tmp_path / "notes.txt").write_text("no code")
    changed = code_state(tmp_path)
    assert "-one\n+two" in changed.diff
    assert changed.untracked == ("notes.txt", "né w.py")
    assert changed.label == f"{clean.label}-dirty"
    (tmp_path / "git.diff").write_text(changed.diff)
    git("checkout", ".")
    (tmp_path / "né w.py").unlink()
    git("apply", "git.diff")
    assert (tmp_path / "a.py").read_text() == "two\n"
    assert (tmp_path / "né w.py").read_text() == "new\n"


def test_what_changes_before_a_resume_is_added_and_replaces_nothing(tmp_path, monkeypatch):
    for number, diff in enumerate(("first", "second", "third")):
        state = CodeState(f"{number}" * 40, diff, ())
        monkeypatch.setattr("pancreas_mtl.run_record.code_state", lambda state=state: state)
        with recorded(config(resume=number > 0), tmp_path):
            pass
    record = read_record(tmp_path)
    assert record["git"]["revision"] == "0" * 40
    assert [one["git"]["revision"][0] for one in record["resumed"]] == ["1", "2"]
    assert all("packages" not in one for one in record["resumed"])  # they are the same
    files = ["git.diff", *(one["diff"] for one in record["resumed"])]
    assert [(tmp_path / name).read_text() for name in files] == ["first", "second", "third"]


def test_settings_that_change_before_a_resume_are_listed(tmp_path):
    for changes in ({"lr": 1e-5}, {"lr": 1e-5}, {"lr": 1e-4, "trainer": {"devices": 2}}):
        with recorded(config(resume=True, **changes), tmp_path):
            pass
    again, changed = read_record(tmp_path)["resumed"]
    assert "settings" not in again
    assert changed["settings"] == {"lr": [1e-5, 1e-4], "trainer.devices": [1, 2]}


def test_a_full_disk_leaves_the_record_that_was_there(tmp_path):
    with recorded(config(), tmp_path):
        pass
    before = content(tmp_path)
    with (
        largest_file(20),
        pytest.raises(CaseError, match="cannot be written"),
        recorded(config(resume=True), tmp_path),
    ):
        pass
    assert before.items() <= content(tmp_path).items()


def test_packages_are_all_that_is_installed():
    versions = package_versions()
    assert versions["pytest"] == pytest.__version__
    assert list(versions) == sorted(versions, key=str.lower)


@pytest.mark.slow
def test_the_folder_repeats_its_run_bit_for_bit(trainings):
    folder, did = trainings
    assert did["repeated"]["code"] == 0, (folder / "repeated.log").read_text()[-3000:]
    assert did["repeated"]["steps"] == did["calm"]["steps"]
    weights = [(folder / run / "bundle" / "model.safetensors") for run in ("calm", "repeated")]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    records = [json.loads((folder / run / "run.json").read_text()) for run in ("calm", "repeated")]
    assert records[0]["data"] == records[1]["data"]
    assert records[0]["config"] == records[1]["config"]
