from functools import partial

import pytest
from commands import call

from pancreas_mtl.data.cases import read_cases


@pytest.fixture
def run(monkeypatch, tmp_path):
    """A function that runs the command in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    return partial(call, "pancreas_mtl.phantom")


def test_command_writes_a_dataset_and_says_where(run, tmp_path):
    code, output, _ = run("output_dir=made", "num_train=1", "num_test=1", "size=small", "workers=1")
    assert code == 0
    assert output.splitlines()[-1] == (
        "made: 1 training, 0 validation and 1 test cases (easy, small, layout quiz, seed 0)"
    )
    assert len(read_cases("quiz", tmp_path / "made")) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "output_dir is not set: give output_dir=VALUE"),
        (("output_dir=made",), "no cases are asked for"),
        (("output_dir=made", "num_cases=3", "difficulty=odd"), "difficulty=odd: choose one of"),
        (("output_dir=made", "num_case=3"), "num_case: no such key; did you mean num_cases"),
    ],
)
def test_bad_usage_is_one_line_and_exit_code_2(run, tmp_path, arguments, message):
    code, _, errors = run(*arguments)
    assert code == 2
    assert message in errors.strip().splitlines()[-1]
    assert not (tmp_path / "made").exists()
