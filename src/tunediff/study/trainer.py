"""Lightning's Trainer as a study uses it: the device, the precision and the processes."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from tunediff.settings import build
from tunediff.shapes import Refused
from tunediff.training import (
    Shards,
    process_environment,
)

PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")


def make_trainer(cfg: DictConfig, folder: Path) -> Any:
    """Lightning's Trainer, of which the loop, the device and the precision are wanted and nothing else. Raises Refused
    for a precision in which weights would not be float32, or that the device does not have."""
    precision = str(cfg.trainer.get("precision", "32-true"))
    if precision not in PRECISIONS:
        raise Refused(
            f"trainer.precision={precision}: weights and statistics are kept in float32; choose {', '.join(PRECISIONS)}."
        )
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", message=".*AMP with fp16 is not supported on CPU"
        )  # said below, and not obeyed
        trainer = build(
            cfg.trainer,
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
    return trainer


def processes_of(cfg: DictConfig) -> int:
    """How many processes train one dictionary together."""
    return cfg.trainer.devices * cfg.trainer.get("num_nodes", 1)


def shares_out_layers(cfg: DictConfig) -> bool:
    """Whether the processes share out the layers of the models, by the trainer's strategy as it is asked for."""
    strategy = cfg.trainer.get("strategy") or {}
    return not isinstance(strategy, str) and strategy.get("_target_", "").endswith(Shards.__name__)
