"""Two gloo processes on one machine do together what one does alone."""

import csv
import json
import signal
from importlib.util import find_spec

import pytest

from pancreas_mtl.interruption import EXIT_CODE

pytestmark = pytest.mark.slow


def last_row(run):
    with (run / "metrics.csv").open() as file:
        return list(csv.DictReader(file))[-1]


def files(run):
    found = {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()}
    return {"events" if "events.out" in name else name for name in found}


def test_metrics_over_all_ranks_are_those_of_one_process(trainings):
    folder, did = trainings
    assert did["alone"]["code"] == 0, (folder / "alone.log").read_text()[-3000:]
    assert [r["code"] for r in did["together"]["ranks"]] == [0, 0], (
        folder / "together.log"
    ).read_text()[-3000:]
    alone, together = last_row(folder / "alone"), last_row(folder / "together")
    validation = [key for key in alone if key.startswith("val/")]
    assert len(validation) >= 5
    assert [alone[key] for key in validation] == [together[key] for key in validation]


def test_an_epoch_has_as_many_steps_of_as_many_patches_per_rank(trainings):
    _, did = trainings
    first, second = ([step for step, _ in r["steps"]] for r in did["together"]["ranks"])
    assert first == second == [0, 1, 2, 3]
    losses = [[loss for _, loss in r["steps"]] for r in did["together"]["ranks"]]
    assert losses[0] != losses[1]


def test_only_the_first_rank_writes(trainings):
    folder, _ = trainings
    assert files(folder / "together") == files(folder / "alone")
    events = list((folder / "together").rglob("events.out*"))
    assert len(events) == bool(find_spec("tensorboard"))
    lines = (folder / "together" / "train.log").read_text().splitlines()
    assert len(lines) == len(set(lines))
    record = json.loads((folder / "together" / "run.json").read_text())
    assert record["status"] == "finished"


def test_both_ranks_learn_the_same_from_different_patches(trainings):
    _, did = trainings
    did = did["one_rank_hears"]
    attempts = zip((did["first"], did["second"]), did["again"], strict=True)
    first, second = ([*stopped["weights"], *again["weights"]] for stopped, again in attempts)
    assert did["first"]["steps"][0][1] != did["second"]["steps"][0][1]
    assert first == second
    assert len(set(first)) == 4


def test_a_signal_to_one_rank_stops_both_after_the_same_step(trainings):
    folder, did = trainings
    did = did["one_rank_hears"]
    log = (folder / "one_rank_hears.log").read_text()[-3000:]
    assert did["second"]["signal"] == signal.SIGTERM
    assert (did["first"]["code"], did["second"]["code"]) == (EXIT_CODE, 0), log
    assert len(did["first"]["steps"]) == len(did["second"]["steps"]) < 4
    assert [r["code"] for r in did["again"]] == [0, 0], log
    for stopped, again in zip((did["first"], did["second"]), did["again"], strict=True):
        steps = [step for step, _ in (*stopped["steps"], *again["steps"])]
        assert steps == [0, 1, 2, 3]
