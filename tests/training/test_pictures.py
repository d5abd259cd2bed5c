"""Pictures and charts of a run: when they are drawn, what they show, who gets them."""

import csv
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from matplotlib.image import imread

from pancreas_mtl.training.charts import confusion_chart, curves, reliability_chart
from pancreas_mtl.training.pictures import PictureConfig, Pictures, overlay
from pancreas_mtl.training.validation import Validated, ValidationCase
from pancreas_mtl.types import UNKNOWN, Batch


def texts(axes):
    return [text.get_text() for text in axes.texts]


def test_confusion_counts_by_row_and_column():
    figure = confusion_chart(np.array([0, 0, 1, 2, 2]), np.array([0, 1, 1, 2, 2]))
    assert texts(figure.axes[0]) == ["1", "1", "0", "0", "1", "0", "0", "0", "2"]
    assert "5 cases" in figure.axes[0].get_title(loc="left")


def test_a_case_without_prediction_gets_a_column_of_its_own():
    figure = confusion_chart(np.array([0, 1]), np.array([0, UNKNOWN]))
    labels = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    assert labels == ["0", "1", "2", "none"]
    assert texts(figure.axes[0])[4:8] == ["0", "0", "0", "1"]


def test_reliability_shows_how_often_a_confidence_is_right():
    probabilities = np.array([[0.8, 0.1, 0.1], [0.8, 0.2, 0.0], [0.1, 0.5, 0.4], [0.1, 0.9, 0.0]])
    figure = reliability_chart(np.array([0, 1, 1, 1]), probabilities)
    (axes,) = figure.axes
    bars = {round(bar.get_x() + bar.get_width() / 2, 2): bar.get_height() for bar in axes.patches}
    assert bars == {0.75: 0.5, 0.45: 1.0, 0.85: 1.0}  # bins closed on the right
    assert texts(axes) == ["1", "2", "1"]
    assert "ECE 0.300" in axes.get_title(loc="left")  # (2 x 0.3 + 0.5 + 0.1) / 4


def write_history(path):
    with path.open("w") as file:
        rows = csv.writer(file)
        rows.writerow(
            ["epoch", "step", "train/loss", "train/loss_epoch", "val/score", "lr/encoder"]
        )
        rows.writerows([[0, 5, 1.5, 1.5, "", 0.1], [1, 10, 0.5, 0.5, 0.7, 0.05]])


def test_curves_have_a_panel_for_each_column(tmp_path):
    write_history(tmp_path / "metrics.csv")
    figure = curves(tmp_path / "metrics.csv")
    drawn = {axes.get_title(loc="left"): axes.lines[0] for axes in figure.axes if axes.lines}
    assert list(drawn) == ["train/loss", "lr/encoder", "val/score"]
    assert drawn["train/loss"].get_ydata().tolist() == [1.5, 0.5]
    assert drawn["val/score"].get_xdata().tolist() == [1.0]  # the epoch that was validated


def case(name="a", subtype=1):
    return ValidationCase(name, 0.91, 0.8, 0.45, subtype, (0.2, 0.7, 0.1))


def batch(mask=None):
    image = torch.zeros(1, 1, 8, 12, 12)
    mask = torch.zeros(1, 1, 8, 12, 12, dtype=torch.int16) if mask is None else mask
    mask[..., 3:6, 3:9, 3:9] = 1
    return Batch(image, mask, torch.tensor([1]), torch.zeros(1), torch.zeros(1), ["a"])


def labels():
    predicted = torch.zeros(8, 12, 12, dtype=torch.long)
    predicted[3:6, 4:9, 3:8] = 1
    return predicted


def trainer(epoch, *, rank=0):
    return SimpleNamespace(
        current_epoch=epoch, global_step=10 * (epoch + 1), is_global_zero=rank == 0, loggers=[]
    )


def validate(pictures, plan, epoch, *, cases=3, rank=0):
    module = SimpleNamespace(plan=plan, validated=[case(f"case{n}") for n in range(cases)])
    for number, one in enumerate(module.validated):
        outputs = Validated(one, labels())
        pictures.on_validation_batch_end(
            trainer(epoch, rank=rank), module, outputs, batch(), number
        )
    pictures.on_validation_end(trainer(epoch, rank=rank), module)


def test_pictures_come_every_few_epochs_and_show_always_the_same_cases(plan, tmp_path):
    write_history(tmp_path / "metrics.csv")
    pictures = Pictures(tmp_path, PictureConfig(every=2, cases=1))
    for epoch in (0, 1, 2, 3):
        validate(pictures, plan, epoch)
    resumed = Pictures(tmp_path, PictureConfig(every=2, cases=1))
    resumed.load_state_dict(pictures.state_dict())
    validate(resumed, plan, 3)
    found = {str(path.relative_to(tmp_path / "pictures")) for path in tmp_path.rglob("*.png")}
    names = ("overlay/case0", "chart/confusion_matrix", "chart/reliability")
    assert found == {f"{n}/epoch{e:04d}.png" for n in names for e in (0, 2)} | {"curves.png"}
    picture = imread(tmp_path / "pictures" / "overlay" / "case0" / "epoch0000.png")
    assert picture.shape[1] == 960
    assert picture.std() > 0.05


@pytest.mark.parametrize(("every", "rank"), [(0, 0), (1, 1)])
def test_no_pictures_where_none_are_wanted_and_on_other_ranks(every, rank, plan, tmp_path):
    validate(Pictures(tmp_path, PictureConfig(every=every)), plan, 0, rank=rank)
    assert not list(tmp_path.iterdir())


def test_an_overlay_outlines_the_reference_only_where_there_is_one(plan):
    figures = [
        overlay(Validated(one, labels()), batch(mask), plan.intensity, plan.spacing_mm)
        for one, mask in (
            (case(), None),
            (case(subtype=None), torch.full((1, 1, 8, 12, 12), UNKNOWN, dtype=torch.int16)),
        )
    ]
    legends = [[text.get_text() for text in figure.legends[0].texts] for figure in figures]
    assert "reference" in legends[0]
    assert "reference" not in legends[1]
    title = figures[0].texts[0].get_text()
    assert title == "a   DSC whole 0.910   lesion 0.450   subtype 1, predicted 1 (0.70)"
    assert "subtype" not in figures[1].texts[0].get_text()
