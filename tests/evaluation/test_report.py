import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from pancreas_mtl.errors import UsageError
from pancreas_mtl.evaluation.report import write_report

HOSTILE = "<script>alert(1)<\u2215script>"  # a division slash, for a file name holds no other


class DataElements(HTMLParser):
    """Collects the attributes and text of every `<data>`."""

    def __init__(self):
        super().__init__()
        self.found, self.inside = [], False

    def handle_starttag(self, tag, attributes):
        if tag == "data":
            self.found.append([dict(attributes), ""])
            self.inside = True

    def handle_endtag(self, tag):
        self.inside = self.inside and tag != "data"

    def handle_data(self, data):
        if self.inside:
            self.found[-1][1] += data


def report_runs():
    import importlib.util

    path = Path(__file__).with_name("report_runs.py")
    spec = importlib.util.spec_from_file_location("report_runs", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


make = report_runs()


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory):
    root = tmp_path_factory.mktemp("evaluation")
    return make.make_evaluation(root, names=["quiz_0_001", "quiz_1_002", HOSTILE])


@pytest.fixture(scope="module")
def page(evaluation):
    curves = make.write_curves(evaluation.parent / "run")
    path = write_report([curves, evaluation], evaluation.parent / "report")
    return path.read_text(encoding="utf-8")


def lookup(metrics, path):
    for key in path.split("."):
        metrics = metrics[int(key)] if isinstance(metrics, list) else metrics[key]
    return metrics


def test_every_number_of_the_page_is_the_one_in_metrics_json(page, evaluation):
    metrics = json.loads((evaluation / "metrics.json").read_text())
    parser = DataElements()
    parser.feed(page)
    assert len(parser.found) > 60
    for attributes, text in parser.found:
        assert attributes["data-run"] == "evaluation"
        expected = lookup(metrics, attributes["data-path"])
        assert float(attributes["value"]) == expected
        digits = len(text.partition(".")[2])
        assert math.isclose(float(text), expected, abs_tol=0.5001 * 10**-digits)


def test_every_target_score_and_case_is_there(page, evaluation):
    shown = set(re.findall(r'data-path="([^"]+)"', page))
    metrics = json.loads((evaluation / "metrics.json").read_text())
    for number in range(len(metrics["targets"])):
        assert f"targets.{number}.value" in shown
        assert f"targets.{number}.ci95.0" in shown
    for number in range(len(metrics["cases"])):
        assert {f"cases.{number}.lesion_dsc", f"cases.{number}.subtype"} <= shown
    assert {"lesion.nsd.ci95.1", "subtype.ece", "subtype.confusion_matrix.2.1"} <= shown


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"no metrics\.json, metrics\.csv or run\.json"):
        write_report([tmp_path], tmp_path / "report")
    with pytest.raises(UsageError, match="runs is empty"):
        write_report([], tmp_path / "report")
    assert not (tmp_path / "report").exists()
