"""The directions of a fine-tune: found in the model that learns, before it does, and read from its folder ever after.

direction.safetensors   that of recipe.edit
watched.safetensors     that of recipe.watch

The first process finds and writes them, the others wait for the file. A training that resumes reads what is there, so that it
goes on along the same direction to the bit; a checkpoint knows the digest of the files that it began with.
"""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tunediff import folders
from tunediff.directions import Direction, FromFile, Source, read_direction
from tunediff.models import ModelPair, ModelSource
from tunediff.shapes import BASE, Refused
from tunediff.text import Text
from tunediff.training import Recipe, UnderEdit, Watched
from tunediff.training.under_edit import HOOKPOINT

log = logging.getLogger(__name__)

FILES = {"edit": "direction.safetensors", "watch": "watched.safetensors"}


@dataclass(frozen=True)
class Place:
    """A model beside itself, and the text that it learns."""

    pair: ModelPair
    text: Text


def asked(recipe: Recipe) -> dict[str, Watched]:
    """The parts of a recipe that have a direction, by the name of their setting."""
    return {name: given for name in FILES if (given := getattr(recipe, name)) is not None}


def check_directions(source: ModelSource, recipe: Recipe, text: Text) -> None:
    """Raises Refused, before a weight is loaded, for layers that the model has not, for a direction that a model alone has not
    got, and for one of another place or width, as far as no weight is needed to know it."""
    wanted = asked(recipe)
    place = Place(ModelPair(source, source), text) if wanted else None
    for name, given in wanted.items():
        assert place is not None
        one, layers = given.direction, layers_of(place.pair, given, name)
        if not hasattr(one, "find"):
            raise Refused(
                f"recipe.{name}.direction is {one!r:.60}: give a source, such as tunediff.directions.FromFile."
            )
        if _needs_pair(one):
            raise Refused(
                f"recipe.{name}.direction={type(one).__name__} compares two models, and here one learns by itself. Find it in a "
                "study of a pair (evaluation=directions), and give its file: tunediff.directions.FromFile."
            )
        hookpoint = getattr(one, "hookpoint", HOOKPOINT)
        if hookpoint != HOOKPOINT:
            raise Refused(_elsewhere(name, hookpoint))
        if isinstance(one, FromFile):
            _check(place.pair, name, given, one.find(place, BASE, layers))


def layers_of(pair: ModelPair, given: Watched, name: str) -> list[int]:
    """The numbers of its layers. Raises Refused for one that the model has not."""
    try:
        return sorted(stream.layer for stream in pair.streams(HOOKPOINT, given.layer, reads=BASE))
    except Refused as error:
        raise Refused(f"recipe.{name}: {error}") from error


def _needs_pair(source: Source | Any) -> bool:
    """True for a source that looks at both models, or that is made of one which does."""
    parts = [part for part in getattr(source, "__dict__", {}).values() if hasattr(part, "find")]
    return bool(getattr(source, "needs_pair", False)) or any(_needs_pair(part) for part in parts)


def _check(pair: ModelPair, name: str, given: Watched, found: Direction) -> None:
    if found.hookpoint != HOOKPOINT:
        raise Refused(_elsewhere(name, found.hookpoint))
    found.check(pair, BASE)
    given.changes(found)  # refuses a vector that cannot be added


def _elsewhere(name: str, hookpoint: str) -> str:
    return f"recipe.{name}.direction is one of {hookpoint}, and a model learns under one of {HOOKPOINT} alone."


def edits_of(
    folder: Path,
    source: ModelSource,
    recipe: Recipe,
    text: Text,
    *,
    device: torch.device | str,
    first: bool = True,
    resumes: bool = False,
) -> tuple[UnderEdit, str]:
    """The hooks of a recipe, and a digest of its directions, "" where it has none. `first` is true in the process that finds
    them, `resumes` where there is a checkpoint: then they are read, and Refused is raised where one is gone."""
    wanted = asked(recipe)
    missing = {name: given for name, given in wanted.items() if not (folder / FILES[name]).exists()}
    if missing and resumes:
        raise Refused(
            f"{folder / FILES[min(missing)]} is gone, with which the training began: restore it, or remove "
            f"{folder / 'checkpoints'} to begin anew."
        )
    if first:
        with folders.changing(*(folder / FILES[name] for name in wanted if name not in missing)):
            pass  # a run that is taken up begins its manifest anew
        find(folder, source, text, missing, device=device)
    for name in missing:
        while not (folder / FILES[name]).exists():  # torchrun ends all where one fails
            time.sleep(0.2)
    found = {name: read_direction(folder / FILES[name]) for name in wanted}
    digest = " ".join(folders.digest_of(folder / FILES[name])[:12] for name in wanted)
    return UnderEdit(recipe.edit, found.get("edit"), found.get("watch")), digest


def forget(folder: Path) -> None:
    """Removes the files of directions, which a training that begins anew finds anew."""
    for name in FILES.values():
        (folder / name).unlink(missing_ok=True)


def find(
    folder: Path, source: ModelSource, text: Text, wanted: Mapping[str, Watched], *, device: torch.device | str
) -> None:
    """Finds directions in the model and writes their files; the model's weights are let go of."""
    if not wanted:
        return
    pair = ModelPair(source, source).load(device, roles=(BASE,))
    for name, given in wanted.items():
        layers: Sequence[int] = layers_of(pair, given, name)
        found = given.direction.find(Place(pair, text), BASE, layers)
        _check(pair, name, given, found)
        log.info("recipe.%s: %s at layers %s", name, found.provenance.get("source", "a direction"), layers)
        with folders.changing(folder / FILES[name]):
            found.save(folder / FILES[name])
    del pair
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
