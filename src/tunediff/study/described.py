"""How a study names itself: on the page, in tables and to loggers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from omegaconf import DictConfig

from tunediff.dictionary import latents_of
from tunediff.hookpoints import LORA
from tunediff.models import ModelPair
from tunediff.settings import identity, material
from tunediff.shapes import ADAPTER, ROLES, VERSION, Stream
from tunediff.study.parts import learns


def open_logger(logger: Any, cfg: DictConfig, history: Sequence[Mapping[str, float | None]]) -> None:
    """It learns all settings; one that starts from nothing is told what happened before a resumption."""
    logger.log_hyperparams(material(cfg))
    for record in history if getattr(logger, "starts_anew", False) else ():
        values = {name: value for name, value in record.items() if name != "step" and value is not None}
        logger.log_metrics(values, step=record["step"])


def curves_of(history: Sequence[Mapping[str, float | None]]) -> dict[str, list]:
    """Columns of the table `training`: what the last record has, of every record."""
    return {key: [record.get(key) for record in history] for key in history[-1]}


def about(cfg: DictConfig, pair: ModelPair, streams: list[Stream]) -> dict[str, Any]:
    """What the page and the tables say of a study; of a dictionary only where there is one."""
    study = {"model_pair": pair_name(pair), **{role: pair.sources[role].described for role in ROLES}}
    if learns(cfg):
        study |= {
            "dictionary": dictionary_name(cfg),
            "layer": "all"
            if cfg.dictionary.hookpoint.name == LORA
            else spelled(sorted({stream.layer for stream in streams})),
            "streams": ", ".join(map(str, streams)),
            "hookpoint": cfg.dictionary.hookpoint.name,
            "latents": latents_of(cfg.dictionary.latents, streams)
            * (len(streams) if cfg.dictionary.reads == ADAPTER else 1),
            "tokens": cfg.budget.tokens,
            "seed": cfg.seed,
        }
    return {"identity": identity(cfg), "study": {**study, "version": VERSION}}


def spelled(layers: Sequence[int]) -> str:
    """1,3 as they are; four or more in a row as 0-27."""
    if len(layers) > 3 and layers[-1] - layers[0] == len(layers) - 1:
        return f"{layers[0]}-{layers[-1]}"
    return ",".join(map(str, layers))


def pair_name(pair: ModelPair) -> str:
    return " vs ".join(pair.sources[role].name for role in ("tuned", "base"))


def dictionary_name(cfg: DictConfig) -> str:
    kind = cfg.dictionary.sparsity._target_.rpartition(".")[2]
    if cfg.dictionary.reads == ADAPTER:
        return f"{kind} transcoder adapter"
    return f"{kind} crosscoder" if cfg.dictionary.reads == "both" else f"{kind} SAE on {cfg.dictionary.reads}"
