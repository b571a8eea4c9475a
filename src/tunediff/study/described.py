"""The words by which a study is named on the page, in tables and to loggers."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from tunediff import folders
from tunediff.dictionary import latents_of
from tunediff.hookpoints import LORA
from tunediff.models import ModelPair
from tunediff.settings import identity, material, plain
from tunediff.shapes import BASE, ROLES, TUNED, VERSION, Stream, Table
from tunediff.study.parts import inside, learns
from tunediff.trusted import target_of

log = logging.getLogger(__name__)


def open_loggers(
    loggers: Sequence[Any],
    cfg: DictConfig,
    history: Sequence[Mapping[str, float | None]],
    described: Mapping[str, Any],
) -> list[Any]:
    """Gives each logger all settings, and as `study` what they came to, such as the names of the models and the layer that a
    relative depth means; one that starts anew also gets the history before a resume. Returns the loggers that could write
    that: the run goes on without the others."""
    opened = []
    for logger in loggers:
        try:
            logger.log_hyperparams({**material(cfg), "study": dict(described)})
            for record in history if getattr(logger, "starts_anew", False) else ():
                values = {name: value for name, value in record.items() if name != "step" and value is not None}
                logger.log_metrics(values, step=record["step"])
            opened.append(logger)
        except OSError as error:
            log.warning("%s is left out of this run: %s", type(logger).__name__, error)
    return opened


def close_loggers(loggers: Sequence[Any], status: str) -> None:
    """Ends each logger as a run of this status; one whose end cannot be written costs itself alone."""
    for logger in loggers:
        try:
            logger.finalize(status)
        except OSError as error:
            log.warning("%s has no end of this run: %s", type(logger).__name__, error)


def curves_of(history: Sequence[Mapping[str, float | None]]) -> dict[str, list]:
    """Columns of the table `training`: the keys of the last record, with the value of every record."""
    return {key: [record.get(key) for record in history] for key in history[-1]}


def beat(folder: Path, history: Sequence[Mapping[str, float | None]], step: int, steps: int | None) -> None:
    """Writes the progress of a training and its curves into its folder. Where that fails the training goes on: both are
    written anew at its end. Raises Taken where the folder is another process's by now."""
    folders.check_held(folder)
    variance = history[-1].get("explained_variance/pooled") if history else None
    try:
        if history:
            folders.write_table(folder, Table("training", curves_of(history)))
        folders.say(folder, state=folders.RUNNING, step=step, steps=steps, explained_variance=variance)
    except OSError as error:
        log.warning("No progress written at step %s: %s", step, error)


def about(
    cfg: DictConfig, pair: ModelPair, streams: list[Stream], *, evaluation_tokens: int | None = None
) -> dict[str, Any]:
    """The entries of a study on the page and in tables, with those of its dictionary where there is one, and the commits
    at which it reads what is on the Hub, by the names and revisions that were typed. `evaluation_tokens` of held-out text are
    measured on, by default the study's."""
    commits = dict(plain(cfg.get("commits")) or {})
    known = {*commits.values()}
    commits |= {name: at for source in pair.sources.values() for name, at in source.commits.items() if at not in known}
    names = " vs ".join(pair.sources[role].name for role in (TUNED, BASE))
    study: dict[str, Any] = {"model_pair": names, **{role: pair.sources[role].described for role in ROLES}}
    if commits:
        study["commits"] = [f"{asked} {commit}" for asked, commit in commits.items()]
    if learns(cfg):
        hookpoint, layers = cfg.dictionary.hookpoint.name, sorted({stream.layer for stream in streams})
        study |= {
            "dictionary": dictionary_name(cfg),
            "layer": "all" if hookpoint == LORA else spelled(layers),
            "streams": ", ".join(map(str, streams)),
            "hookpoint": hookpoint,
            "latents": latents_of(cfg.dictionary.latents, streams) * (len(streams) if inside(cfg) else 1),
            "tokens": cfg.budget.tokens,
            "seed": cfg.seed,
        }
    study["evaluation_tokens"] = evaluation_tokens or cfg.budget.evaluation_tokens
    return {"identity": identity(cfg), "study": {**study, "version": VERSION}, "commits": commits}


def spelled(layers: Sequence[int]) -> str:
    """Layers in words: 1,3 as they are; four or more in a row as 0-27."""
    if len(layers) > 3 and layers[-1] - layers[0] == len(layers) - 1:
        return f"{layers[0]}-{layers[-1]}"
    return ",".join(map(str, layers))


def dictionary_name(cfg: DictConfig) -> str:
    if "sparsity" not in cfg.dictionary:  # of the user's own
        return target_of(cfg.dictionary).__name__
    kind = target_of(cfg.dictionary.sparsity).__name__
    if inside(cfg):
        return f"{kind} transcoder adapter"
    return f"{kind} crosscoder" if cfg.dictionary.reads == "both" else f"{kind} SAE on {cfg.dictionary.reads}"
