"""nnU-Net's own trainer, cut to a wall-clock budget; `nnunet.py` puts it beside nnU-Net's own.

The learning rate falls by nnU-Net's polynomial over the budget instead of over 1,000 epochs. No
mirroring, as in the trainings that it is compared with: all phantoms have one orientation.
"""

import os
import time

import torch
from nnunetv2.training.nnUNetTrainer.variants.data_augmentation.nnUNetTrainerNoMirroring import (
    nnUNetTrainerNoMirroring,
)

POLY_POWER = 0.9


class nnUNetTrainerBudget(nnUNetTrainerNoMirroring):  # noqa: N801
    """Trains for `NNUNET_BUDGET_S` seconds, in epochs of `NNUNET_BUDGET_STEPS` steps."""

    def __init__(self, plans, configuration, fold, dataset_json, device=torch.device("cuda")):  # noqa: B008
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.budget_s = float(os.environ["NNUNET_BUDGET_S"])
        self.num_iterations_per_epoch = int(os.environ["NNUNET_BUDGET_STEPS"])
        self.num_val_iterations_per_epoch = 4
        self.save_every = 10**9

    def run_training(self):
        self.on_train_start()
        start_s = time.monotonic()
        while (spent := (time.monotonic() - start_s) / self.budget_s) < 1 or not self.current_epoch:
            self.on_epoch_start()
            self.on_train_epoch_start()
            outputs = []
            for _ in range(self.num_iterations_per_epoch):
                spent = min((time.monotonic() - start_s) / self.budget_s, 0.999)
                for group in self.optimizer.param_groups:
                    group["lr"] = self.initial_lr * (1 - spent) ** POLY_POWER
                outputs.append(self.train_step(next(self.dataloader_train)))
            self.on_train_epoch_end(outputs)
            with torch.no_grad():
                self.on_validation_epoch_start()
                steps = range(self.num_val_iterations_per_epoch)
                self.on_validation_epoch_end(
                    [self.validation_step(next(self.dataloader_val)) for _ in steps]
                )
            self.on_epoch_end()
        self.print_to_log_file(f"{self.current_epoch * self.num_iterations_per_epoch} steps")
        self.on_train_end()

    def perform_actual_validation(self, save_probabilities=False):
        """Left out: the test cases are what counts."""
