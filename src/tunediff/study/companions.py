"""Dictionaries that are trained beside that of a study, on the same batches, to say what its findings are worth:

    twin                              the same from another seed: what it finds too does not hang on the start
    equal, noise, permuted, planted   the same on a control of the pair, whose truth is known (activations/controls.py)

The study's dictionary becomes what it would have become alone. They lie in companions/<name> of its folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from torch import Tensor

from tunediff import randomness
from tunediff.activations import CONTROLS, control_view, has_controls
from tunediff.dictionary import load_weights
from tunediff.evaluations import TWIN
from tunediff.settings import plain
from tunediff.shapes import Refused, Stream
from tunediff.study.parts import build_dictionary, build_learner, inside, learns
from tunediff.training import Learner

COMPANIONS = (TWIN, *CONTROLS)


def names_of(cfg: DictConfig, streams: Sequence[Stream]) -> list[str]:
    """Names of the companions of a study, of those that it asks for: a dictionary of one model has no controls, and one that
    stands inside the models, or a pair alone, no companion. Raises Refused for a name that is none."""
    asked = plain(cfg.budget.get("companions")) or []
    if not isinstance(asked, list):
        raise Refused(f"budget.companions={asked} is one word: give a list, budget.companions=[{asked}].")
    if unknown := [name for name in asked if name not in COMPANIONS]:
        raise Refused(f"budget.companions={asked}: '{unknown[0]}' is none of {', '.join(COMPANIONS)}.")
    if not learns(cfg) or inside(cfg):
        return []
    return [name for name in asked if name == TWIN or has_controls(streams)]


def build_companions(cfg: DictConfig, streams: list[Stream], own: str) -> dict[str, Learner]:
    """The companions of the study whose learner has the name `own`, which theirs begin with."""
    made = {}
    for name in names_of(cfg, streams):
        learner, _ = build_learner(settings_of(cfg, name), streams)
        assert isinstance(learner, Learner), "see names_of"
        learner.name = f"{own}/{name}"
        learner.view = control_view(name, streams) if name in CONTROLS else None
        made[name] = learner
    return made


def settings_of(cfg: DictConfig, name: str) -> DictConfig:
    """The settings of a companion: a twin has a seed of its own."""
    if name != TWIN:
        return cfg
    twin = cfg.copy()
    twin.seed = randomness.seed_for(cfg.seed, "twin of a dictionary")
    if "seed" in twin.dictionary:
        twin.dictionary.seed = twin.seed
    return twin


def starting_rows(cfg: DictConfig, streams: Sequence[Stream]) -> list[Tensor]:
    """Decoder rows [latent, width] that the study's dictionary and its twin begin with, before either has learned."""
    own = [build_dictionary(seeded.dictionary, list(streams)) for seeded in (cfg, settings_of(cfg, TWIN))]
    return [made.W_dec.detach() for made in own]


def read_companions(folder: Path, cfg: DictConfig, streams: list[Stream]) -> dict[str, Any]:
    """The companions of a finished run that are there, with frozen weights."""
    made = {}
    for name in names_of(cfg, streams):
        weights = folder / "companions" / name / "weights.safetensors"
        if weights.exists():
            made[name] = build_dictionary(settings_of(cfg, name).dictionary, streams)
            load_weights(made[name], weights.parent)
            made[name].eval().requires_grad_(False)
    return made
