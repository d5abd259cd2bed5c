import logging
import re
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from trust.faults import largest_file

from pancreas_mtl.errors import CaseError, UsageError
from pancreas_mtl.run_folder import open_run


@pytest.fixture(autouse=True)
def _restore_logging():
    handlers = logging.getLogger().handlers[:]
    yield
    logging.getLogger().handlers[:] = handlers


def config(**changes):
    return OmegaConf.create({"resume": False, "overwrite": False, "lr": 1.0} | changes)


def test_a_new_folder_gets_its_config_and_log(tmp_path):
    assert open_run(config(), tmp_path / "run") is None
    assert OmegaConf.load(tmp_path / "run" / "config.yaml").lr == 1.0
    assert (tmp_path / "run" / "train.log").exists()


def test_a_run_is_never_overwritten_by_accident(tmp_path):
    open_run(config(), tmp_path)
    with pytest.raises(UsageError, match="holds a run: go on with it by resume=true"):
        open_run(config(lr=2.0), tmp_path)
    assert OmegaConf.load(tmp_path / "config.yaml").lr == 1.0


def test_overwriting_removes_the_run_and_nothing_else(tmp_path):
    open_run(config(), tmp_path)
    (tmp_path / "bundle").mkdir()
    (tmp_path / "metrics.csv").touch()
    (tmp_path / "my notes.txt").touch()
    open_run(config(overwrite=True, lr=2.0), tmp_path)
    assert not (tmp_path / "bundle").exists()
    assert not (tmp_path / "metrics.csv").exists()
    assert (tmp_path / "my notes.txt").exists()
    assert OmegaConf.load(tmp_path / "config.yaml").lr == 2.0


@pytest.mark.parametrize("killed_after", range(0, 8, 2))
def test_overwriting_that_was_killed_is_finished_by_the_same_command(
    tmp_path, monkeypatch, killed_after
):
    """Whatever was removed by then, nothing of the old run is ever gone on with."""
    open_run(config(), tmp_path)
    (tmp_path / "checkpoints").mkdir()
    torch.save({"state_dict": {}}, tmp_path / "checkpoints" / "last.ckpt")
    for name in ("plan.json", "run.json", "metrics.csv"):
        (tmp_path / name).touch()
    removals = iter(range(killed_after))

    def unlink(path, *, missing_ok=False, real=Path.unlink):
        if next(removals, None) is None:
            raise KeyboardInterrupt
        real(path, missing_ok=missing_ok)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", unlink)
        with pytest.raises(KeyboardInterrupt):
            open_run(config(overwrite=True), tmp_path)
    assert (tmp_path / "config.yaml").exists()
    with monkeypatch.context() as patch:
        assert open_run(config(resume=True), tmp_path) is None
    assert open_run(config(overwrite=True), tmp_path) is None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.yaml", "train.log"]


def test_processes_that_start_at_once_replace_no_run(tmp_path, monkeypatch):
    open_run(config(), tmp_path)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match=r"may have read the old run already; remove .* by hand"):
        open_run(config(overwrite=True), tmp_path)
    assert (tmp_path / "config.yaml").exists()


@pytest.mark.parametrize("name", ["bundle", "metrics.json", "report.html", "validation"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_files_that_no_run_marks_as_its_own_are_left_alone(tmp_path, name, overwrite):
    (tmp_path / name).mkdir()
    with pytest.raises(UsageError, match=f"holds {name}, but no config.yaml of a run: give anothe"):
        open_run(config(overwrite=overwrite), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_full_disk_leaves_the_configuration_that_was_there(tmp_path):
    open_run(config(), tmp_path)
    before = (tmp_path / "config.yaml").read_bytes()
    with largest_file(20), pytest.raises(CaseError, match=r"config\.yaml cannot be written"):
        open_run(config(resume=True, lr=2.0), tmp_path)
    assert (tmp_path / "config.yaml").read_bytes() == before


def test_resuming_finds_the_last_checkpoint_or_starts_anew(tmp_path):
    open_run(config(), tmp_path)
    assert open_run(config(resume=True), tmp_path) is None
    (tmp_path / "checkpoints").mkdir()
    last = tmp_path / "checkpoints" / "last.ckpt"
    torch.save({"state_dict": {}}, last)
    assert open_run(config(resume=True), tmp_path) == last


@pytest.mark.parametrize(
    ("change", "key"),
    [({"fold": 1}, "fold=0, not 1"), ({"plan": {"memory_gb": 2.0}}, "plan.memory_gb=8.0, not 2.0")],
)
def test_another_run_is_not_resumed(tmp_path, change, key):
    """Held-out cases would have trained its weights, or the change would quietly do nothing."""
    first = {"fold": 0, "plan": {"memory_gb": 8.0}, "lr": 1e-5}
    open_run(config(**first), tmp_path)
    with pytest.raises(UsageError, match=f"holds a run with {re.escape(key)}: leave it as it was"):
        open_run(config(resume=True, **first | change), tmp_path)
    assert OmegaConf.load(tmp_path / "config.yaml").fold == 0
    open_run(config(resume=True, **first | {"lr": 1e-4}), tmp_path)


def test_resuming_from_what_is_no_checkpoint(tmp_path):
    open_run(config(), tmp_path)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.ckpt").write_text("hello")
    with pytest.raises(UsageError, match=r"last.ckpt: not a checkpoint"):
        open_run(config(resume=True), tmp_path)


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="output_dir="):
        open_run(config(), tmp_path / "file" / "run")


def test_a_plan_of_another_rank_is_no_foreign_file(tmp_path, monkeypatch):
    """Ranks do not wait for each other before the process group exists."""
    (tmp_path / "plan.json").touch()
    with pytest.raises(UsageError, match=r"holds plan\.json, but no config\.yaml"):
        open_run(config(), tmp_path)
    monkeypatch.setenv("WORLD_SIZE", "2")
    open_run(config(), tmp_path)
    (tmp_path / "config.yaml").unlink()
    (tmp_path / "run.json").touch()
    with pytest.raises(UsageError, match=r"holds run\.json"):
        open_run(config(), tmp_path)
