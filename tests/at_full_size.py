"""The lines of experiments that name real models, with stand-ins in their place: run for a moment, or only costed.

Stand-ins for a run have the depth, the layout and the tokenizer of the real model and random weights of width 64; those for a dry
run have its whole shape, in files with holes. What the Hub holds are planted rows.
"""

from __future__ import annotations

import logging
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import hydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

import tunediff.text
from conftest import ROOT
from stand_ins import MODELS, read_planted, save_lora, save_shape, save_transcoders
from tunediff.settings import within
from tunediff.shapes import Refused
from tunediff.study.devices import GPUS
from tunediff.study.finetune import finetune
from tunediff.study.train import study
from tunediff.training.memory import GB

log = logging.getLogger(__name__)


def first_of(words: list[str]) -> tuple[list[str], int]:
    """The words with the first value of each that is swept, and how many members they make."""
    kept, members = [], 1
    for override in OverridesParser.create().parse_overrides(words):
        line = override.input_line
        if override.is_sweep_override():
            values = list(override.sweep_string_iterator())
            line, members = f"{line.partition('=')[0]}={values[0]}", members * len(values)
        kept.append(line)
    return kept, members


def composed(verb: str, words: list[str]) -> tuple[DictConfig, int]:
    """The config of the first member, and how many there are."""
    kept, members = first_of(words)
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(ROOT / "conf")):
        cfg = hydra.compose(verb, kept, return_hydra_config=True)
        swept = [f"{key}={value}" for key, value in (OmegaConf.select(cfg, "hydra.sweeper.params") or {}).items()]
        more, own = first_of(swept)
        typed = {word.partition("=")[0] for word in kept}
        more = [word for word in more if word.partition("=")[0] not in typed]
        return hydra.compose(verb, [*kept, *more]), members * own


def described(node: object, ending: str) -> Iterator[DictConfig]:
    """The parts of a config whose _target_ ends so."""
    if isinstance(node, DictConfig):
        if str(node.get("_target_", "")).endswith(ending):
            yield node
        for key in node:
            if not OmegaConf.is_missing(node, key):
                yield from described(node.get(key), ending)


def with_stand_ins(cfg: DictConfig, place: Path, *, small: bool) -> DictConfig:
    """The config with stand-ins, made below `place`, for every model that is on the Hub."""
    for rows in described(cfg, "read_hub"):  # planted, at a commit that nobody is asked for
        OmegaConf.update(rows, "revision", "0" * 40)
    sources = list(described(cfg, "ModelSource"))
    kept = [(source, {key: source.get(key) for key in ("path", "adapter", "transcoders")}) for source in sources]
    for source, names in kept:
        path = str(names["path"])
        if path.startswith("pkg://") or Path(path).exists():
            continue
        name = path.rpartition("/")[2]
        made = save_shape(place / name, name, small=small)
        OmegaConf.update(source, "path", str(made))
        OmegaConf.update(source, "revision", None)
        shape = MODELS[name][0]
        if names["adapter"] is not None:
            OmegaConf.update(source, "adapter", str(save_lora(place / f"lora-{shape}", shape, small=small)))
        if names["transcoders"] is not None:
            OmegaConf.update(
                source, "transcoders", str(save_transcoders(place / f"transcoders-{shape}", shape, small=small))
            )
    return cfg


def smoke(families: Mapping[str, Path], to: Path) -> None:
    """Runs each line with scale=smoke once and says what became of it; ends the program where one did not end well."""
    from reproduce import EARLIER, lines_of

    tunediff.text.read_hub = read_planted
    failed = []
    for name, path in families.items():
        before = None
        for n, line in enumerate((line for line in lines_of(path) if line.scale == "smoke"), 1):
            folder, began = to / "smoke" / name / str(n), time.monotonic()
            words = [word.replace(EARLIER, str(before)) for word in line.words[2:] if word != "-m"]
            try:
                cfg, members = composed(line.verb.partition(".")[0], words)
                cfg = with_stand_ins(cfg, to / "smoke" / "models", small=True)
                with within(folder):
                    (finetune if line.verb == "finetune.py" else study)(cfg, folder)
                asked = (folder / "report.html").exists() or not cfg.get("evaluation")
                said = "its page is written" if asked else "it has no page"
                failed += [] if asked else [name]
            except Exception as error:  # whatever it is, the others are tried
                said = f"FAILED: {type(error).__name__}: {error}"
                failed.append(name)
            print(f"{name} {n}: {said} ({time.monotonic() - began:.0f} s)", flush=True)
            before = folder
    if failed:
        sys.exit(f"failed: {', '.join(dict.fromkeys(failed))}")


def costs(families: Mapping[str, Path]) -> list[dict]:
    """A row for each line of full size: what a dry run expects of its first member on one H200."""
    from plan import costed
    from reproduce import lines_of

    tunediff.text.read_hub = read_planted
    rows, gpu = [], GPUS["h200"]
    with tempfile.TemporaryDirectory() as place:
        for path in families.values():
            for line in lines_of(path):
                if line.scale != "paper" or line.verb != "train.py" or "dry_run=true" in line.words:
                    continue
                if any("<" in word for word in line.words):
                    continue  # what a fine-tune leaves is not there
                words = [word for word in line.words[2:] if word != "-m"]
                cfg, members = composed("train", [*words, "launcher.device=h200"])
                try:
                    _, cost, hours = costed(with_stand_ins(cfg, Path(place), small=False), gpu)
                except Refused as refusal:  # planted rows have not every label
                    print(f"not costed: {line.text}: {refusal}", flush=True)
                    continue
                cells = [members, f"{cost.memory / GB:.0f} GB", f"{cost.disk / GB:.0f} GB", *hours]
                rows.append({"line": line.text, "cells": cells})
                print(rows[-1], flush=True)
    return rows
