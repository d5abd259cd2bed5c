"""The LightningModule: what a step is, what an epoch reports, what the optimiser sees."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel
from torchmetrics import MeanMetric

from pancreas_mtl.errors import TrainingError
from pancreas_mtl.inference.windows import predict_windows
from pancreas_mtl.losses.joint import LossConfig, LossParts, joint_loss
from pancreas_mtl.models.network import PARTS, MultitaskUNet
from pancreas_mtl.training.schedules import Decay, ema_decay, guide_share, learning_rate_factor
from pancreas_mtl.training.validation import (
    Validated,
    ValidationCase,
    gather_cases,
    validation_case,
    validation_scores,
)
from pancreas_mtl.types import UNKNOWN, Batch, MultitaskOutput, Plan

log = logging.getLogger(__name__)
PROGRESS_BAR = ("whole_pancreas_dsc", "lesion_dsc", "macro_f1")


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with groups for encoder, decoder and subtype head; one schedule for all.

    `rate_scale` multiplies all rates, whatever rates a budget chooses.
    `encoder_scale` multiplies the encoder's, for warm starts.
    A step whose gradient is not finite is skipped; more than `max_skips` of them in a row stop the
    training (with fp16, some overflow until their scale is found, and again when it is raised), and
    so do more than `max_bad_losses` in all of the run whose loss is not finite.
    """

    lr: float = 1e-3
    head_lr: float = 1e-3
    rate_scale: float = 1.0
    encoder_scale: float = 1.0
    weight_decay: float = 1e-4
    head_weight_decay: float = 1e-2
    warmup_steps: int = 50
    decay: Decay = "cosine"
    clip_norm: float = 5.0
    ema: float = 0.99
    max_skips: int = 20
    max_bad_losses: int = 3


class MultitaskModule(pl.LightningModule):
    """Trains a `MultitaskUNet`; validates whole cases with the averaged weights.

    Args:
        network: the network; `network` in the state dict, its moving average is `averaged`.
        plan: for the windows of validation.
        augment: from a Batch to a Batch, on the training device.
        loss: how the losses are joined.
        optimizer: rates, schedule, clipping, averaging.
        score_weights: what the monitored score is made of, from `conf/task/pancreas.yaml`.
        compile_network: whether training runs through `torch.compile`.
    """

    _forward: Callable[..., MultitaskOutput]

    def __init__(
        self,
        network: MultitaskUNet,
        *,
        plan: Plan,
        augment: Callable[[Batch], Batch],
        loss: LossConfig,
        optimizer: OptimizerConfig,
        score_weights: dict[str, float],
        compile_network: bool = False,
    ) -> None:
        super().__init__()
        self.network = network
        self.averaged = AveragedModel(network, multi_avg_fn=self._average)
        self.averaged.requires_grad_(requires_grad=False)
        self.plan = plan
        self.augment = augment
        self.loss = loss
        self.optimizer_config = optimizer
        self.score_weights = score_weights
        forward = torch.compile(network) if compile_network else network
        object.__setattr__(self, "_forward", forward)  # no submodule: its weights are the network's
        self._validated: list[ValidationCase] = []
        self.validated: list[ValidationCase] = []  # all cases of the last validation
        self._batches: list[tuple[list[str], Tensor]] = []  # of this step: cases and loss
        self.skipped: Tensor
        self.register_buffer("skipped", torch.zeros((), dtype=torch.long))
        self._skips_in_a_row = 0
        self._bad_losses = 0
        self.epoch_means = torch.nn.ModuleDict({name: _epoch_mean() for name in LossParts._fields})

    def on_train_epoch_start(self) -> None:
        """Begin the means; an epoch that is resumed goes on with those of its checkpoint."""
        for mean in self.epoch_means.values():
            cast("MeanMetric", mean).reset()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The joint loss of one batch of patches."""
        batch = self.augment(batch)
        progress = self._progress()
        output = self._forward(batch.image, guide(batch, progress))
        parts = joint_loss(output, batch, self.loss, progress)
        self._batches.append((batch.name, parts.total.detach()))
        self._log_losses(parts, len(batch.name))
        return parts.total

    def validation_step(  # type: ignore[override]  # Lightning hands any value to the callbacks
        self, batch: Batch, batch_idx: int
    ) -> Validated:
        """Predict one whole case and keep what the epoch's scores need."""
        network = cast("MultitaskUNet", self.averaged.module)
        whole = predict_windows(
            network.window,
            batch.image[0, 0],
            patch_size=self.plan.patch_size,
        )
        probabilities = network.classify(whole.evidence).softmax(1).mean(0)
        labels = whole.logits.argmax(0)
        case = validation_case(batch, labels, probabilities.float())
        self._validated.append(case)
        return Validated(case, labels)

    def on_validation_epoch_end(self) -> None:
        """Scores over all cases of all ranks."""
        self.validated = gather_cases(self._validated)
        self._validated = []
        for name, value in validation_scores(self.validated, self.score_weights).items():
            self.log(f"val/{name}", value, prog_bar=name in PROGRESS_BAR, rank_zero_only=False)

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Skip the step where a gradient is not finite: AdamW leaves out what has no gradient."""
        gradients = [p.grad for p in self.network.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        self._log_optimizer(optimizer)
        if torch.isfinite(norm):
            self._skips_in_a_row = 0
            self.log("train/gradient_norm", norm)
            return
        self.skipped += 1
        self._skips_in_a_row += 1
        optimizer.zero_grad(set_to_none=True)
        bad = [names for names, loss in self._batches if not torch.isfinite(loss)]
        is_loss = self.trainer.strategy.reduce_boolean_decision(bool(bad), all=False)
        self._bad_losses += is_loss
        batches = bad or [names for names, _ in self._batches]
        cases = ", ".join(name for names in batches for name in names)
        self._tell_skip("loss" if is_loss else "gradient", cases)

    def _tell_skip(self, what: str, cases: str) -> None:
        """Log a skipped step, or stop the training, on all ranks alike."""
        log.warning(
            "step %d: %s not finite, step skipped (cases: %s)", self.global_step, what, cases
        )
        config, count = self.optimizer_config, f"{self._skips_in_a_row} steps in a row"
        if self._bad_losses > config.max_bad_losses:
            count = f"{self._bad_losses} steps of this run"
        elif self._skips_in_a_row <= config.max_skips:
            return
        raise TrainingError(
            f"{count} had a {what} that is not finite, the last with cases {cases}: look at these "
            "images, lower optimizer.lr, or use trainer.precision=32-true"
        )

    def _log_optimizer(self, optimizer: Optimizer) -> None:
        """The rates of this step and, in fp16, the factor by which GradScaler raises the loss."""
        for group in optimizer.param_groups:
            self.log(f"lr/{group['name']}", group["lr"])
        if scaler := getattr(self.trainer.precision_plugin, "scaler", None):
            self.log("train/loss_scale", scaler.get_scale())

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step, then move the averaged weights, unless the step was skipped.

        Here and not at the batch's end, which comes after a checkpoint of this step.
        """
        super().optimizer_step(*args, **kwargs)
        self._batches = []
        if self._skips_in_a_row == 0:
            self.averaged.update_parameters(self.network)

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Count the skipped steps."""
        self.log("train/skipped_steps", self.skipped.float())

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what is neither weight nor buffer."""
        checkpoint["skips_in_a_row"] = self._skips_in_a_row
        checkpoint["bad_losses"] = self._bad_losses

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with it."""
        self._skips_in_a_row = checkpoint["skips_in_a_row"]
        self._bad_losses = checkpoint.get("bad_losses", 0)

    def configure_optimizers(self) -> Any:
        """AdamW with a group for each part of the network, and the schedule per step."""
        config = self.optimizer_config
        optimizer = AdamW(parameter_groups(self.network, config))
        total = int(self.trainer.estimated_stepping_batches)

        def factor(step: int) -> float:
            return learning_rate_factor(
                step, total=total, warmup=min(config.warmup_steps, total // 2), decay=config.decay
            )

        schedule = LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _log_losses(self, parts: LossParts, batch_size: int) -> None:
        """Each part per step and, as `_epoch`, its mean over the epoch, which checkpoints keep."""
        for name, value in parts._asdict().items():
            key = f"train/{'loss' if name == 'total' else name}"
            mean = cast("MeanMetric", self.epoch_means[name])
            mean.update(value.detach(), weight=batch_size)
            self.log(f"{key}_step", value.detach(), prog_bar=name != "total")
            self.log(f"{key}_epoch", mean, on_step=False, on_epoch=True, batch_size=batch_size)

    def _progress(self) -> float:
        return self.global_step / max(1, int(self.trainer.estimated_stepping_batches))

    def _average(
        self,
        averaged: tuple[Tensor, ...] | list[Tensor],
        current: tuple[Tensor, ...] | list[Tensor],
        updates: Tensor | int,
    ) -> None:
        decay = ema_decay(int(updates), self.optimizer_config.ema)
        torch._foreach_lerp_(averaged, current, 1 - decay)


def parameter_groups(network: MultitaskUNet, config: OptimizerConfig) -> list[dict[str, Any]]:
    """What the optimiser sees: encoder, decoder and head; parts that are frozen are left out."""
    rates = {"encoder": config.lr * config.encoder_scale, "decoder": config.lr}
    groups = []
    for part in PARTS:
        parameters = [p for p in network.parameters_of(part) if p.requires_grad]
        if parameters:
            is_head = part == "head"
            groups.append(
                {
                    "params": parameters,
                    "lr": rates.get(part, config.head_lr) * config.rate_scale,
                    "weight_decay": config.head_weight_decay if is_head else config.weight_decay,
                    "name": part,
                }
            )
    return groups


def _epoch_mean() -> MeanMetric:
    mean = MeanMetric(nan_strategy="disable")  # looking for NaN would wait for the device
    mean.persistent(mode=True)
    return mean


def guide(batch: Batch, progress: float) -> Tensor:
    """The reference masks of some patches, chosen by their seeds; UNKNOWN for the rest.

    Through the reference the subtype head sees what a lesion looks like before the decoder finds
    any; through the prediction, what it has to do with later. The share of the first falls.
    """
    through_reference = (batch.seed % 1000 < 1000 * guide_share(progress)).view(-1, 1, 1, 1, 1)
    return torch.where(through_reference, batch.mask, UNKNOWN)
