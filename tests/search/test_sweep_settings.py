"""A sweep's settings that cannot be meant, as its user writes them."""

import pytest
from commands import call

pytest.importorskip("optuna", reason="needs the extra sweep")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("~sweep.objective", "sweep.objective is missing: write it into the file of sweep"),
        (
            "+sweep.timeout=3",
            "sweep.timeout: no such key; did you mean sweep.objective?",
        ),
        ("sweep.trials=ten", "sweep.trials=ten: has to be a whole number"),
    ],
)
def test_a_sweep_that_cannot_be_meant_is_one_line_and_exit_code_2(tmp_path, override, message):
    done = call("pancreas_mtl.sweep", override, f"output_dir={tmp_path / 'study'}")
    assert done.code == 2, done.stderr
    assert message in done.last_line
    assert not list(tmp_path.iterdir())
