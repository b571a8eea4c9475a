"""Lightning's Trainer as the stories use it: the device, the precision and the processes."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from tunediff import folders, processes
from tunediff.settings import build, identity
from tunediff.shapes import Refused
from tunediff.study.faults import check_open_files, unwritten
from tunediff.training import Checkpoints, Pulse, TokenProgress, process_environment
from tunediff.trusted import target_of

log = logging.getLogger(__name__)

PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")


def make_trainer(cfg: DictConfig, folder: Path) -> Any:
    """Lightning's Trainer, of which only the loop, the device and the precision are used. Where the precision is chosen here
    and is a GPU's, matrix products that stay float32 may use TF32. Raises Refused for a precision in which weights would
    not be float32, or that the device does not have."""
    precision = precision_of(cfg)
    trainer = lightning_of(cfg, precision=precision, default_root_dir=folder)
    if trainer.precision != precision:
        raise Refused(
            f"trainer.precision={precision} needs a GPU, and this is the {trainer.strategy.root_device.type}: "
            "choose trainer=bf16 or trainer=auto."
        )
    if cfg.trainer.get("precision") is None and precision != PRECISIONS[0]:
        torch.set_float32_matmul_precision("high")
    return trainer


def lightning_of(cfg: DictConfig, **settings: Any) -> Any:
    """Lightning's Trainer. Raises Refused, in its words, for what it does not take or this machine does not have."""
    with warnings.catch_warnings():
        # said where the precision is checked, and not obeyed
        warnings.filterwarnings("ignore", message=".*AMP with fp16 is not supported on CPU")
        try:
            return build(
                cfg.trainer,
                max_epochs=1,
                plugins=[process_environment(expected=processes_of(cfg))],
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                **settings,
            )
        except Refused:
            raise
        except Exception as error:
            said = str(error.__cause__ or error).splitlines()[0]
            raise Refused(f"trainer: Lightning cannot be set up as asked: {said} Choose trainer=auto.") from error


def check_trainer(cfg: DictConfig, *, here: bool = True) -> None:
    """Raises Refused for a trainer that could not be made where the study runs: `here`, or where the devices are that are
    not, of which all but device, precision and strategy are tried."""
    elsewhere = {"accelerator": "cpu", "devices": 1, "num_nodes": 1, "strategy": "auto", "precision": PRECISIONS[0]}
    precision_of(cfg)
    if not here or cfg.launcher.device not in (None, "cpu") or not_here(cfg) or processes_of(cfg) > 1:
        lightning_of(cfg, **elsewhere)
    else:
        make_trainer(cfg, Path())


def not_here(cfg: DictConfig) -> list[str]:
    """A sentence for a study that asks for GPUs which this machine does not have; none for another."""
    if cfg.trainer.get("accelerator", "auto") not in ("gpu", "cuda"):
        return []
    there = torch.cuda.device_count()
    if there >= cfg.trainer.devices:
        return []
    has = f"{there} of its {cfg.trainer.devices} GPUs" if there else "no GPU"
    return [
        f"trainer.accelerator={cfg.trainer.accelerator}: this machine has {has}, so that the run starts on another."
    ]


def precision_of(cfg: DictConfig, *, on_gpu: bool | None = None) -> str:
    """Lightning's name of the precision; of none bf16-mixed on a GPU that has it, else float32. `on_gpu` is as this
    machine where it is not given. Raises Refused for one in which weights would not be float32."""
    if (precision := cfg.trainer.get("precision")) is None:
        if on_gpu is None:
            asked = cfg.trainer.get("accelerator", "auto") in ("auto", "gpu", "cuda")
            on_gpu = asked and torch.cuda.is_available() and torch.cuda.is_bf16_supported()
        return "bf16-mixed" if on_gpu else "32-true"
    if precision not in PRECISIONS:
        raise Refused(
            f"trainer.precision={precision}: weights and statistics are kept in float32; choose {', '.join(PRECISIONS)}."
        )
    return precision


def processes_of(cfg: DictConfig) -> int:
    """Number of processes that train together."""
    return cfg.trainer.devices * cfg.trainer.get("num_nodes", 1)


def shares_out_layers(cfg: DictConfig) -> bool:
    """True where the processes share out the layers of the models, as the class of the trainer's strategy says."""
    strategy = cfg.trainer.get("strategy") or {}
    return "_target_" in strategy and getattr(target_of(strategy), "shares_out_layers", False)


def in_processes(command: Sequence[str], cfg: DictConfig, folder: Path, what: str) -> None:
    """Runs `python <command>` once for each device of this machine, until all have ended. Raises Refused, saying why, where
    the run of the folder did not end well."""
    there = torch.cuda.device_count() or os.cpu_count() or 1
    if cfg.trainer.devices > there:
        raise Refused(f"trainer.devices={cfg.trainer.devices}: this machine has {there}.")
    check_open_files(f"{cfg.trainer.devices} processes", 4 * cfg.trainer.devices, "train on one device")
    process = processes.start(command, devices=cfg.trainer.devices)
    with stoppable(folder):
        status = processes.wait(process)
    folders.note_end(folder, processes.ending(status))
    if not folders.is_finished(folder, identity(cfg)):
        raise Refused(f"{what} did not end well: {folders.state_of(folder).get('error', f'see {folder}/run.log')}")


@contextlib.contextmanager
def stoppable(folder: Path) -> Iterator[None]:
    """Context in which whoever asks this process to end is answered with what is kept: the state of the run says so, and the
    process ends with 128 and the number of the signal."""
    with processes.answering():
        try:
            yield
        except (KeyboardInterrupt, SystemExit) as left:  # in training, SystemExit comes once everything is saved
            say_interrupted(folder, left)
            log.warning("stopped: the same command with hydra.run.dir=%s goes on from the last step", folder)
            sys.exit(left.code if isinstance(left, SystemExit) else processes.status_of(left))


def say_interrupted(folder: Path, left: BaseException) -> None:
    """Writes into the state of a run that did not end yet that it was stopped, and by what."""
    status = left.code if isinstance(left, SystemExit) else processes.status_of(left)
    with unwritten(folder):
        folders.note_end(folder, processes.ending(status) if isinstance(status, int) else str(status))


def fit(
    trainer: Any, module: Any, checkpoints: Checkpoints, *, tokens: int, beat: Callable[[int], None], rows: Any = None
) -> None:
    """Takes the steps that are left, with a bar in tokens, checkpoints, and a pulse for whoever looks at the folder."""
    if module.step < module.steps:
        pulse = Pulse(beat, seconds=min(10.0, checkpoints.seconds))
        trainer.callbacks += [TokenProgress(tokens), checkpoints, pulse]
        try:
            trainer.fit(module, train_dataloaders=rows)
        except (KeyboardInterrupt, SystemExit):  # it is stopped behind the step at which the pulse was felt last
            if trainer.global_rank == 0:
                beat(module.step)
            raise
