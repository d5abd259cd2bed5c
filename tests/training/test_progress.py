"""What a terminal shows of a training."""

import logging
import sys
from contextlib import contextmanager

import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from pancreas_mtl.training.progress import BAR, ProgressBar

LINE = "classifier has predicted one subtype"


class Model(pl.LightningModule):
    """Logs what a training logs, and says something while the bar stands."""

    def __init__(self, error=None):
        super().__init__()
        self.layer, self.error = torch.nn.Linear(1, 1), error

    def training_step(self, batch, _):
        for name in BAR:
            self.log(name, 0.25, prog_bar=True)
        logging.getLogger("pancreas_mtl").warning(LINE)
        if self.error:
            raise self.error
        return self.layer(batch).sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@contextmanager
def console():
    handler = logging.StreamHandler(sys.stdout)
    logging.getLogger().addHandler(handler)
    yield
    assert handler in logging.getLogger().handlers
    logging.getLogger().removeHandler(handler)


def fit(model):
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        callbacks=[ProgressBar()],
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    trainer.fit(model, DataLoader(torch.ones(5, 1)))


def test_the_bar_has_losses_scores_and_the_time_left_and_log_lines_stand_above(capsys):
    with console():
        fit(Model())
    lines = capsys.readouterr().out.replace("\r", "\n").splitlines()
    assert lines.count(LINE) == 5
    last = [line for line in lines if "100%" in line][-1]
    assert "seg=0.250, sub=0.250, whole=0.250, lesion=0.250, f1=0.250, left=" in last


def test_after_an_error_log_lines_go_where_they_went():
    with console(), pytest.raises(ZeroDivisionError):
        fit(Model(ZeroDivisionError("1 / 0")))
