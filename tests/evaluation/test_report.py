import json
import math
import re
from html.parser import HTMLParser
from statistics import mean, median, stdev

import pytest
from evaluation import report_runs as make

from pancreas_mtl.errors import UsageError
from pancreas_mtl.evaluation.report import write_report

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(1)>\"'{{ 7 * 7 }}"


class Page(HTMLParser):
    """Collects every element's tag and attributes, and the text of every `<data>`."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.numbers, self.inside = [], [], False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag == "data":
            self.numbers.append([dict(attributes), ""])
            self.inside = True

    def handle_endtag(self, tag):
        self.inside = self.inside and tag != "data"

    def handle_data(self, data):
        if self.inside:
            self.numbers[-1][1] += data


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory):
    root = tmp_path_factory.mktemp("evaluation")
    names = ["quiz_0_001", "quiz_1_002", "quiz_2_003"]
    return make.make_evaluation(root, names=names, candidates=True)


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
    numbers = Page(page).numbers
    assert len(numbers) > 100
    for attributes, text in numbers:
        assert attributes["data-run"] == "evaluation"
        expected = lookup(metrics, attributes["data-path"])
        assert float(attributes["value"]) == expected
        digits = len(text.partition(".")[2])
        assert math.isclose(float(text), expected, abs_tol=0.5001 * 10**-digits)


def chart_card(page, slug):
    return re.search(rf'<figure class="card" id="chart-{slug}">.*?</figure>', page, re.DOTALL)[0]


def chart_numbers(page, slug):
    """The numbers behind a chart, row by row."""
    rows = re.findall(r"<tr>(.*?)</tr>", chart_card(page, slug), re.DOTALL)
    cells = [re.findall(r'<td class="number">([^<]+)</td>', row) for row in rows]
    return [[float(cell) for cell in row] for row in cells if row]


def test_the_numbers_behind_froc_and_reliability_are_those_in_metrics_json(page, evaluation):
    metrics = json.loads((evaluation / "metrics.json").read_text())
    froc = metrics["lesion_detection"]["froc"]
    columns = ("thresholds", "false_positives_per_case", "sensitivity")
    points = list(zip(*(froc[name] for name in columns), strict=True))
    bins = [tuple(one.values()) for one in metrics["subtype"]["reliability"]]
    assert len(points) == 3
    assert bins
    for slug, expected in (("froc", points), ("reliability", bins)):
        for found, row in zip(chart_numbers(page, slug), expected, strict=True):
            assert found == pytest.approx(row, abs=0.5001e-4)


def recomputed(metrics):
    """What the charts of one run say, from the cases in its `metrics.json`: slug and rows."""
    cases = metrics["cases"]

    def dsc(region, among=cases):
        return [case[f"{region}_dsc"] for case in among]

    strips = []
    for region in ("whole_pancreas", "pancreas", "lesion"):
        for subtype in (0, 1, 2, None):
            group = [case for case in cases if subtype in (None, case["subtype"])]
            label = [] if subtype is None else [subtype]
            values = dsc(region, group)
            strips.append([*label, len(group), median(values), min(values), max(values)])
    yield "dsc", strips
    by_size = sorted(cases, key=lambda case: case["lesion_reference_volume_ml"])
    sizes = [case["lesion_reference_volume_ml"] for case in by_size]
    yield "size", [[ml, ml, 1, case["lesion_dsc"]] for ml, case in zip(sizes, by_size, strict=True)]
    agreement = []
    for region in ("whole_pancreas", "lesion"):
        key = f"{region}_volume_ml"
        errors = [case[key] - case[f"{region}_reference_volume_ml"] for case in cases]
        limits = 1.96 * stdev(errors)
        agreement.append([len(cases), mean(errors), mean(errors) - limits, mean(errors) + limits])
    yield "volume", agreement


def test_the_numbers_behind_the_other_charts_follow_from_metrics_json(evaluation, tmp_path):
    metrics = json.loads((evaluation / "metrics.json").read_text())
    for number, case in enumerate(metrics["cases"]):
        case["whole_pancreas_volume_ml"] += 0.1 * number
        case["lesion_volume_ml"] += 0.2 * number**2
    (tmp_path / "metrics.json").write_text(json.dumps(metrics))
    page = write_report([tmp_path], tmp_path / "report").read_text()
    for slug, rows in recomputed(metrics):
        found = chart_numbers(page, slug)
        assert len(found) == len(rows)
        for shown, expected in zip(found, rows, strict=True):
            assert shown == pytest.approx(expected, abs=0.5001e-4), slug


def test_the_words_of_every_chart_of_scores_repeat_its_numbers(page, evaluation):
    """Every number of an alternative text stands in the chart's table, or in `metrics.json`."""
    metrics = json.loads((evaluation / "metrics.json").read_text())
    mean_sensitivity = metrics["lesion_detection"]["froc"]["mean_sensitivity"]
    for slug in ("dsc", "size", "volume", "reliability", "froc", "seconds", "curves-val"):
        words = re.search(r'aria-label="([^"]*)"', chart_card(page, slug))[1]
        table = {number for row in chart_numbers(page, slug) for number in row}
        table |= {mean_sensitivity} if slug == "froc" else set()
        said = re.findall(r"(?<![\w/])[+-]?\d+(?:\.\d+)?(?:e-?\d+)?(?![\w/])", words)
        assert said, slug
        for text in said:
            digits = len(text.partition(".")[2])
            assert any(math.isclose(float(text), n, abs_tol=0.6 * 10**-digits) for n in table), text


def test_comparisons_and_optimism_are_those_of_the_cases(evaluation, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    metrics = json.loads((evaluation / "metrics.json").read_text())
    changed = json.loads((evaluation / "metrics.json").read_text())
    for case in changed["cases"]:
        case["lesion_dsc"] /= 2
    (other / "metrics.json").write_text(json.dumps(changed))
    text = write_report([evaluation, other], tmp_path / "report").read_text()
    halves = -mean(case["lesion_dsc"] for case in metrics["cases"]) / 2
    row = re.search(r"<td>lesion DSC</td>\n<td>([+-][\d.]+)", text)
    assert float(row[1]) == pytest.approx(halves, abs=0.5001e-3)
    low, high = metrics["subtype"]["macro_f1"]["ci95"]
    best_of_two = (high - low) / (2 * 1.96) / math.sqrt(math.pi)
    shown = re.search(r"would still look up to ([\d.]+) better", text)
    assert float(shown[1]) == pytest.approx(best_of_two, abs=0.5001e-2)


def test_every_target_score_and_case_is_there(page, evaluation):
    shown = set(re.findall(r'data-path="([^"]+)"', page))
    metrics = json.loads((evaluation / "metrics.json").read_text())
    for number in range(len(metrics["targets"])):
        assert f"targets.{number}.value" in shown
        assert f"targets.{number}.ci95.0" in shown
    for number in range(len(metrics["cases"])):
        assert {f"cases.{number}.lesion_dsc", f"cases.{number}.subtype"} <= shown
    assert {"lesion.nsd.ci95.1", "subtype.brier_ci95.1", "subtype.confusion_matrix.2.1"} <= shown
    assert {"subtype.conformal.coverage.mean", "subtype.conformal.mean_size.ci95.0"} <= shown
    assert {"cases.2.subtype_probabilities.1", "cases.0.conformal_set.1"} <= shown
    assert {"targets.0.target", "targets.2.target"} <= shown


def test_the_page_needs_nothing_but_itself(page):
    for tag, attributes in Page(page).elements:
        for name in ("src", "href", "xlink:href", "action", "data"):
            if name in attributes and tag != "a":
                assert attributes[name].startswith(("data:", "#")), (tag, attributes[name][:80])
        assert tag not in ("link", "iframe", "object", "embed", "base")
    assert "@import" not in page
    assert "default-src 'none'" in page


def test_the_viewer_comes_with_its_licence(page):
    assert "Copyright (c) 2021, Niivue" in page
    assert "THIS SOFTWARE IS PROVIDED" in page


def test_every_picture_and_chart_has_words(page):
    elements = Page(page).elements
    pictures = [attributes for tag, attributes in elements if tag == "img"]
    charts = [attributes for tag, attributes in elements if tag == "svg"]
    assert len(pictures) > 5
    assert len(charts) > 6
    words = [attributes["alt"] for attributes in pictures]
    assert all(text.startswith("CT of quiz_") for text in words if text)
    assert words.count("") == 3 + 1  # thumbnails beside their case's name, and the empty viewer
    assert all(len(attributes["aria-label"]) > 30 for attributes in charts)
    assert page.count("<summary>Numbers</summary>") == len(charts)


def test_charts_take_their_colours_from_the_page(page):
    charts = re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL)
    for chart in charts:
        assert "var(--ink)" in chart
        assert not re.search(r"(fill|stroke): #", chart)


def test_hostile_names_stay_text(page, evaluation, tmp_path):
    folder = tmp_path / "<img src=x onerror=alert(1)>"
    folder.mkdir()
    metrics = json.loads((evaluation / "metrics.json").read_text())
    metrics["cases"][0]["name"] = HOSTILE
    metrics["failures"] = [{"name": HOSTILE, "error": HOSTILE}]
    metrics["by_subtype"][0]["name"] = HOSTILE
    (folder / "metrics.json").write_text(json.dumps(metrics))
    make.write_curves(folder)
    text = write_report([folder], tmp_path / "report").read_text()
    elements = Page(text).elements
    clean = Page(page).elements
    assert not any("onerror" in attributes for _, attributes in elements)
    scripts = [attributes for tag, attributes in elements if tag == "script"]
    allowed = [attributes for tag, attributes in clean if tag == "script"]
    assert [one for one in scripts if "type" not in one] == [
        one for one in allowed if "type" not in one
    ]
    assert HOSTILE not in text
    assert any(attributes.get("data-name") == HOSTILE for _, attributes in elements)


def test_two_runs_on_the_same_cases_are_compared_with_a_warning(page, evaluation, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    metrics = json.loads((evaluation / "metrics.json").read_text())
    for case in metrics["cases"]:
        case["lesion_dsc"] = case["lesion_dsc"] / 2
    (other / "metrics.json").write_text(json.dumps(metrics))
    text = write_report([evaluation, other], tmp_path / "report").read_text()
    assert "The best of several is flattered" in text
    assert "Case by case, against evaluation" in text
    assert "Comparison of runs" in text
    assert "The best of several" not in page


def test_settings_are_shown_as_given_and_runs_that_differ_are_marked(page, evaluation, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    metrics = json.loads((evaluation / "metrics.json").read_text())
    metrics["lesion"]["nsd_tolerance_mm"] = 0.25
    (other / "metrics.json").write_text(json.dumps(metrics))
    text = write_report([evaluation, other], tmp_path / "report").read_text()
    assert "different rules" in text
    assert "different rules" not in page
    for html, tolerances in ((page, ["1"]), (text, ["1", "0.25"])):
        assert re.findall(r'nsd_tolerance_mm">([^<]*)<', html) == tolerances
    compared = re.findall(r"<td>([^<]* (?:DSC|NSD|F1))</td>", text)
    assert compared == ["whole pancreas DSC", "lesion DSC", "macro F1"]  # NSD is not


def test_the_worst_case_comes_first(page, evaluation):
    metrics = json.loads((evaluation / "metrics.json").read_text())
    shown = re.findall(r'<tr id="case-[^"]+" data-name="([^"]+)"', page)
    by_lesion = sorted(metrics["cases"], key=lambda case: case["lesion_dsc"])
    assert shown == [case["name"] for case in by_lesion]


def test_the_same_runs_give_the_same_page(page, evaluation, tmp_path):
    again = write_report([evaluation.parent / "run", evaluation], tmp_path / "report")
    assert again.read_text(encoding="utf-8") == page


def test_a_report_that_cannot_be_written_says_so(evaluation, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="give another one"):
        write_report([evaluation], tmp_path / "file" / "report")
