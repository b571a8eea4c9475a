"""Lightning's Trainer as the stories use it: the device, the precision and the processes."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from tunediff import folders, processes
from tunediff.settings import build, identity, target_of
from tunediff.shapes import Refused
from tunediff.training import Checkpoints, Pulse, TokenProgress, process_environment

PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")


def make_trainer(cfg: DictConfig, folder: Path) -> Any:
    """Lightning's Trainer, of which only the loop, the device and the precision are used. Where the precision is chosen here
    and is a GPU's, matrix products that stay float32 may use TF32. Raises Refused for a precision in which weights would
    not be float32, or that the device does not have."""
    precision = precision_of(cfg)
    with warnings.catch_warnings():
        # said below, and not obeyed
        warnings.filterwarnings("ignore", message=".*AMP with fp16 is not supported on CPU")
        trainer = build(
            cfg.trainer,
            precision=precision,
            max_epochs=1,
            plugins=[process_environment(expected=processes_of(cfg))],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
        )
    if trainer.precision != precision:
        raise Refused(
            f"trainer.precision={precision} needs a GPU, and this is the {trainer.strategy.root_device.type}: "
            "choose trainer=bf16 or trainer=auto."
        )
    if cfg.trainer.get("precision") is None and precision != PRECISIONS[0]:
        torch.set_float32_matmul_precision("high")
    return trainer


def precision_of(cfg: DictConfig) -> str:
    """Lightning's name of the precision; of none bf16-mixed on a GPU that has it, else float32. Raises Refused for one
    in which weights would not be float32."""
    if (precision := cfg.trainer.get("precision")) is None:
        on_gpu = cfg.trainer.get("accelerator", "auto") in ("auto", "gpu", "cuda") and torch.cuda.is_available()
        return "bf16-mixed" if on_gpu and torch.cuda.is_bf16_supported() else "32-true"
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
    process = processes.start(command, devices=cfg.trainer.devices)
    try:
        status = processes.wait(process)
    except KeyboardInterrupt:
        raise Refused("stopped. The same command with this hydra.run.dir goes on from the last step.") from None
    folders.note_end(folder, status)
    if not folders.is_finished(folder, identity(cfg)):
        raise Refused(f"{what} did not end well: {folders.state_of(folder).get('error', f'see {folder}/run.log')}")


def fit(
    trainer: Any, module: Any, checkpoints: Checkpoints, *, tokens: int, beat: Callable[[int], None], rows: Any = None
) -> None:
    """Takes the steps that are left, with a bar in tokens, checkpoints, and a pulse for whoever looks at the folder."""
    if module.step < module.steps:
        pulse = Pulse(beat, seconds=min(10.0, checkpoints.seconds))
        trainer.callbacks += [TokenProgress(tokens), checkpoints, pulse]
        trainer.fit(module, train_dataloaders=rows)
