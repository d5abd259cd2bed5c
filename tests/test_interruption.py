"""A training may be killed at any moment; what it ends with is what it would have ended with."""

import csv
import itertools
import json
import signal
from collections import Counter

import pytest
import torch

from pancreas_mtl.interruption import EXIT_CODE, Interrupted, interruptible, note_signals


@pytest.fixture(scope="module")
def runs(trainings):
    folder, did = trainings
    return folder, {"calm": did["calm"], "attempts": did["disturbed"]["attempts"]}


def losses(attempt):
    return dict(map(tuple, attempt["steps"]))


@pytest.mark.slow
def test_every_signal_ends_the_process_as_documented(runs):
    folder, result = runs
    assert result["calm"]["code"] == 0, (folder / "calm.log").read_text()[-3000:]
    *disturbed, last = result["attempts"]
    assert last["code"] == 0, (folder / "disturbed.log").read_text()[-3000:]
    codes = [attempt["code"] for attempt in disturbed if attempt["code"]]
    assert sorted(codes) == [-signal.SIGKILL] * 10 + [EXIT_CODE] * 2
    for attempt in disturbed:
        if attempt["code"]:
            assert (attempt["code"] == EXIT_CODE) == (attempt["signal"] != signal.SIGKILL)


@pytest.mark.slow
def test_no_disturbance_changes_a_loss(runs):
    _, result = runs
    expected = losses(result["calm"])
    assert len(expected) == 16
    seen = set()
    for attempt in result["attempts"]:
        for step, loss in losses(attempt).items():
            assert loss == expected[step], step
            seen.add(step)
    assert seen == set(expected)


@pytest.mark.slow
def test_a_graceful_stop_repeats_at_most_the_step_before_a_validation(runs):
    _, result = runs
    attempts = result["attempts"]
    for attempt, following in itertools.pairwise(attempts):
        if attempt["code"] != EXIT_CODE or not following["steps"]:
            continue
        last, first = attempt["steps"][-1][0], following["steps"][0][0]
        assert first - last in ((1,) if (last + 1) % 4 else (0, 1))


def assert_same(one, two, path=""):
    assert type(one) is type(two), path
    if isinstance(one, dict):
        assert one.keys() == two.keys(), path
        for key in one:
            assert_same(one[key], two[key], f"{path}/{key}")
    elif isinstance(one, (list, tuple)):
        for index, (a, b) in enumerate(zip(one, two, strict=True)):
            assert_same(a, b, f"{path}/{index}")
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, two), path
    elif not isinstance(one, str):  # paths differ
        assert one == two, path


@pytest.mark.slow
def test_weights_optimiser_and_history_end_the_same_bit_for_bit(runs):
    folder, _ = runs
    calm, disturbed = folder / "calm", folder / "disturbed"
    weights = "bundle/model.safetensors"
    assert (calm / weights).read_bytes() == (disturbed / weights).read_bytes()
    assert (calm / "metrics.csv").read_text() == (disturbed / "metrics.csv").read_text()
    states = [
        torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
        for run in (calm, disturbed)
    ]
    for key in ("state_dict", "optimizer_states", "lr_schedulers", "global_step", "loops"):
        assert_same(states[0][key], states[1][key], key)
    (calm_patience,), (patience,) = (
        [state for name, state in one["callbacks"].items() if "EarlyStopping" in name]
        for one in states
    )
    assert_same(calm_patience, patience, "early stopping")


@pytest.mark.slow
def test_no_step_is_logged_twice_and_none_lost_but_those_of_a_checkpoint(runs):
    pytest.importorskip("tensorboard", reason="needs the extra tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder, result = runs
    gone_on_from = {
        attempt["steps"][0][0] - 1 for attempt in result["attempts"] if attempt["steps"]
    }
    boards = []
    for run in ("calm", "disturbed"):
        board = EventAccumulator(str(folder / run / "tensorboard"), {"scalars": 0})
        board.Reload()
        boards.append(board)
    calm, disturbed = boards
    assert "train/loss_step" in calm.Tags()["scalars"]
    for tag in calm.Tags()["scalars"]:
        expected = Counter((event.step, event.value) for event in calm.Scalars(tag))
        found = Counter((event.step, event.value) for event in disturbed.Scalars(tag))
        assert found <= expected, tag
        assert {step for step, _ in expected - found} <= gone_on_from, tag


@pytest.mark.slow
def test_the_record_tells_the_interruptions(runs):
    folder, result = runs
    record = json.loads((folder / "disturbed" / "run.json").read_text())
    assert record["status"] == "finished"
    anew = [attempt["anew"] for attempt in result["attempts"]]
    assert len(record["resumed"]) == anew[::-1].index(True)
    with (folder / "disturbed" / "metrics.csv").open() as file:
        assert [row["epoch"] for row in csv.DictReader(file)] == ["0", "1", "2", "3"]


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2])
def test_a_signal_stops_the_block_and_its_earlier_handler_is_called(signum):
    heard = []
    before = signal.signal(signum, lambda number, frame: heard.append(number))
    try:
        with pytest.raises(Interrupted, match=signum.name), interruptible():
            signal.raise_signal(signum)
        assert heard == [signum]
        signal.raise_signal(signum)
        assert heard == [signum, signum]
    finally:
        signal.signal(signum, before)


def test_a_noted_signal_stops_nothing():
    with interruptible():
        with note_signals() as noted:
            signal.raise_signal(signal.SIGTERM)
        assert noted == [signal.SIGTERM]
        with pytest.raises(Interrupted):
            signal.raise_signal(signal.SIGTERM)


def test_ctrl_c_is_noted_once_and_stops_at_once_the_second_time():
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with note_signals() as noted:
            signal.raise_signal(signal.SIGINT)
            assert noted == [signal.SIGINT]
            with pytest.raises(Interrupted, match="SIGINT"):
                signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_ctrl_c_stays_ignored_where_it_was():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with note_signals() as noted:
            signal.raise_signal(signal.SIGINT)
        assert noted == []
    finally:
        signal.signal(signal.SIGINT, before)
