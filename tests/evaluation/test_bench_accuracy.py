"""The whole command on a few phantoms; what it is made of has tests of its own."""

import csv
import json

import pytest
from commands import call

TINY = (
    "budget=minutes",
    "plan.spacing_mm=[8,6,6]",
    "plan.patch_size=[16,32,32]",
    "plan.base_channels=4",
    "plan.max_channels=8",
    "trainer.max_epochs=1",
    "sampling.steps_per_epoch=2",
    "sampling.workers=0",
)


@pytest.mark.slow
def test_a_comparison_from_phantoms_to_its_table(tmp_path):
    arguments = (
        "comparison=heads",
        "only=[gap]",
        "seeds=[0]",
        "phantoms.num_train=10",
        "phantoms.num_test=3",
        f"training={json.dumps(TINY)}",
        "bootstrap_resamples=20",
        f"output_dir={tmp_path}",
    )
    finished = call("pancreas_mtl.bench_accuracy", *arguments)
    assert finished.code == 0, finished.stderr
    text = (tmp_path / "heads.md").read_text()
    assert text in finished.stdout
    assert "3 test cases" in text
    with (tmp_path / "heads.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["metric"] == "whole_pancreas_dsc"]
    assert [row["configuration"] for row in rows] == ["gap"]
    assert all(0 <= float(row["mean"]) <= 1 for row in rows)
    log = (tmp_path / "trials" / "gap" / "seed0" / "log.txt").stat()
    assert call("pancreas_mtl.bench_accuracy", *arguments).code == 0
    again = (tmp_path / "trials" / "gap" / "seed0" / "log.txt").stat()
    assert again.st_mtime_ns == log.st_mtime_ns, "what is done is not done again"
