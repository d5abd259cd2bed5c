"""Real trainings for the tests of runs: killed, interrupted, distributed, several in one command.

A program that imports everything once and forks a process for each training, so that a training
costs what it trains. A process tells every step, its loss and its weights through a pipe.
Usage: trainings.py DATA FOLDER [NAME...]; prints what each of the trainings did as JSON.
"""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import struct
import sys
import time
import traceback
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

import train
from pancreas_mtl.training.module import MultitaskModule

NAMES = (
    *("calm", "disturbed", "repeated", "multirun", "broken"),
    *("alone", "together", "one_rank_hears"),
)
STEP = struct.Struct("qdd")  # number, loss, and the sum of the weights before it
EPOCHS, STEPS_PER_EPOCH = 4, 4
KILLS = [signal.SIGKILL] * 10 + [signal.SIGTERM, signal.SIGUSR1]
TENSORBOARD = ["logger=tensorboard"] if find_spec("tensorboard") else []
OVERRIDES = [
    "data=quiz",
    "plan=small",
    "plan.base_channels=4",
    "plan.patch_size=[8,16,16]",
    "plan.batch_size=2",
    "trainer.accelerator=cpu",
    "trainer.precision=32-true",
    f"trainer.max_epochs={EPOCHS}",
    "trainer.log_every_n_steps=1",
    f"sampling.steps_per_epoch={STEPS_PER_EPOCH}",
    "sampling.workers=0",
    "audit=false",
    "pictures.every=0",
    "workers=1",
]


class Process(NamedTuple):
    """A training that runs: its process, and the pipe that tells its steps."""

    number: int
    pipe: int


def start(arguments: list[str], log: Path, *, finish: bool = False, **environment: str) -> Process:
    """Fork a training; without `finish` it ends with its bundle: reports are tested elsewhere."""
    receive, send = os.pipe()
    number = os.fork()
    if number:
        os.close(send)
        return Process(number, receive)
    code = 99
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background ignores it
        os.environ |= environment
        with log.open("a") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        tell_steps(send)
        if not finish:
            train.finish_run = lambda run_dir, *rest, **options: run_dir
        sys.argv = ["train.py", *arguments]
        train.main()
        code = 0
    except SystemExit as stop:
        code = int(stop.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def tell_steps(pipe: int) -> None:
    step = MultitaskModule.training_step

    def told(self, batch, batch_idx):
        loss = step(self, batch, batch_idx)
        weights = sum(one.detach().double().sum().item() for one in self.network.parameters())
        os.write(pipe, STEP.pack(self.global_step, loss.item(), weights))
        return loss

    MultitaskModule.training_step = told


def watch(process: Process, *, steps: int = 0, delay_s: float = 0.0, signum: int = 0) -> dict:
    """Let it run to its end, or for some steps and a moment until the signal; what it did."""
    told: list[tuple[int, float, float]] = []
    while (not signum or len(told) < steps) and (data := os.read(process.pipe, STEP.size)):
        told.append(STEP.unpack(data))
    if signum:
        time.sleep(delay_s)
        os.kill(process.number, signum)
    while data := os.read(process.pipe, STEP.size):
        told.append(STEP.unpack(data))
    _, status = os.waitpid(process.number, 0)
    os.close(process.pipe)
    steps, weights = [one[:2] for one in told], [one[2] for one in told]
    code = os.waitstatus_to_exitcode(status)
    return {"code": code, "signal": int(signum), "steps": steps, "weights": weights}


class Trainings:
    """The trainings by name, in `folder`."""

    def __init__(self, data: str, folder: Path) -> None:
        self.folder = folder
        self.common = [
            *OVERRIDES,
            f"data.root={data}",
            f"paths.outputs={folder / 'outputs'}",
        ]

    def start(self, name: str, *more: str, **environment: str) -> Process:
        arguments = [*self.common, f"output_dir={self.folder / name}", *more]
        return start(arguments, self.folder / f"{name}.log", **environment)

    def calm(self) -> dict:
        """Nobody disturbs it."""
        return watch(self.start("calm", *TENSORBOARD))

    def disturbed(self) -> dict:
        """The same, killed and interrupted at random moments; then left alone.

        One that ends before its signal came is started anew, so every signal hits a training.
        """
        rng = random.Random(int(os.environ.get("SEED", "0")))
        signals = rng.sample(KILLS, len(KILLS))
        attempts: list[dict] = []
        begin_s, moment_s, onwards = time.monotonic(), 0.0, "overwrite=true"
        while signals:
            process = self.start("disturbed", *TENSORBOARD, onwards)
            steps, delay_s = rng.randint(1, STEPS_PER_EPOCH), rng.random() * moment_s
            attempt = watch(process, steps=steps, delay_s=delay_s, signum=signals[-1])
            attempts.append({**attempt, "anew": onwards == "overwrite=true"})
            onwards = "resume=true" if attempt["code"] else "overwrite=true"
            if attempt["code"]:
                signals.pop()
            moment_s = (time.monotonic() - begin_s) / 20 / len(attempts)  # a step or so
        last = watch(self.start("disturbed", *TENSORBOARD, onwards))
        attempts.append({**last, "anew": onwards == "overwrite=true"})
        return {"attempts": attempts}

    def repeated(self) -> dict:
        """The calm one again, by the configuration in its folder alone."""
        recipe = ["--config-path", str(self.folder / "calm" / ".hydra"), "--config-name", "config"]
        arguments = [*recipe, f"output_dir={self.folder / 'repeated'}"]
        return watch(start(arguments, self.folder / "repeated.log"))

    def multirun(self) -> dict:
        """Two folds of which one does not exist, with two seeds, one after the other.

        Ctrl-C stops it in the second job; then the same command comes again.
        """
        arguments = self.jobs("multirun", "fold=0,9", "seed=0,1")
        log = self.folder / "multirun.log"
        first = start(arguments, log, finish=True)
        stopped = watch(first, steps=STEPS_PER_EPOCH + 1, signum=signal.SIGINT)
        return {"stopped": stopped, **watch(start(arguments, log, finish=True))}

    def broken(self) -> dict:
        """Two jobs, of which the first fails when it has trained for a step."""
        arguments = self.jobs("broken", "optimizer.lr=1e30,1e-3", "optimizer.max_bad_losses=0")
        return watch(start(arguments, self.folder / "broken.log"))

    def jobs(self, name: str, *more: str) -> list[str]:
        """The arguments of a multirun of short trainings, which wandb watches."""
        paths = [f"paths.outputs={self.folder / name}", f"paths.runs={self.folder / name / 'runs'}"]
        watched = ["logger=wandb", "logger.wandb.mode=offline"]
        return ["-m", *self.common, *paths, "trainer.max_epochs=1", *watched, *more]

    def alone(self) -> dict:
        """One process that learns nothing, so that its predictions are those of `together`."""
        return watch(self.start("alone", *self.nothing_learned()))

    def together(self) -> dict:
        """Two processes that learn nothing."""
        ranks = self.ranks("together", *self.nothing_learned())
        return {"ranks": [watch(process) for process in ranks]}

    def one_rank_hears(self) -> dict:
        """Two processes, of which the second gets the signal; then both go on."""
        ranks = self.ranks("one_rank_hears", "trainer.max_epochs=1")
        second = watch(ranks[1], steps=2, signum=signal.SIGTERM)
        first = watch(ranks[0])
        again = self.ranks("one_rank_hears", "trainer.max_epochs=1", "resume=true")
        return {"first": first, "second": second, "again": [watch(process) for process in again]}

    def nothing_learned(self) -> list[str]:
        rates = ["optimizer.lr=0", "optimizer.head_lr=0", "model.freeze=[head]"]
        return [*rates, "trainer.max_epochs=1", *TENSORBOARD]

    def ranks(self, name: str, *more: str) -> list[Process]:
        """Two processes as torchrun starts them."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = str(probe.getsockname()[1])
        shared = {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
            "WORLD_SIZE": "2",
            "GROUP_RANK": "0",
            "LOCAL_WORLD_SIZE": "2",
            "TORCHELASTIC_RUN_ID": "test",
        }
        ddp = ["trainer=ddp", "trainer.devices=2"]
        return [
            self.start(name, *ddp, *more, RANK=rank, LOCAL_RANK=rank, **shared)
            for rank in ("0", "1")
        ]


def main(data: str, folder: Path, names: list[str]) -> None:
    torch.set_num_threads(1)
    trainings = Trainings(data, folder)
    print(json.dumps({name: getattr(trainings, name)() for name in names or NAMES}))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])
