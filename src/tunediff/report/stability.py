"""Runs that differ in nothing but their seed -> the share of each one's latents that the others found too."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
from torch import Tensor

from tunediff import folders
from tunediff.measures.matching import partners
from tunediff.report.page import read_table
from tunediff.shapes import Refused

SEEDS = ("seed", "dictionary.seed")
KINDS = ("all", "shared", "base_only", "tuned_only", "other")
WORDS = {"all": "", "shared": "shared", "base_only": "base-only", "tuned_only": "tuned-only"}


class Latents(NamedTuple):
    """Decoder rows [latent, width] of the alive latents of a run, and the kind of each."""

    rows: Tensor
    kinds: list[str]


def add_stability(members: Sequence[dict[str, Any]]) -> None:
    """Gives every finished member that has a twin with another seed the metrics stability/<kind>: the share of its alive
    latents of that kind with a partner, the mean over its twins."""
    for twins in groups_by_seed(members):
        twins, latents = _read(twins)
        shares: list[dict[str, list[float]]] = [{} for _ in twins]
        for a, b in itertools.permutations(range(len(twins)), 2):
            stable = partners(latents[a].rows, latents[b].rows) > 0
            for kind in KINDS:
                here = torch.tensor([kind in ("all", own) for own in latents[a].kinds], dtype=torch.bool)
                if here.any():
                    shares[a].setdefault(kind, []).append(float(stable[here].float().mean()))
        for member, found in zip(twins, shares, strict=True):
            for kind, values in found.items():
                member["metrics"][f"stability/{kind}"] = [sum(values) / len(values), None, None]
                if kind in WORDS:
                    member["columns"][f"stability/{kind}"] = f"stable {WORDS[kind]}".rstrip()


def _read(members: Sequence[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[Latents]]:
    """The members whose latents can be read, with these; in the others stands why not."""
    read, latents = [], []
    for member in members:
        try:
            latents.append(latents_of(Path(member["folder"])))
            read.append(member)
        except Refused as refusal:
            member["error"] = str(refusal)
    return read, latents


def groups_by_seed(members: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Groups of two or more finished members that differ in the dictionary's seed alone."""
    groups: dict[str, list] = {}
    for member in members:
        folder = Path(member["folder"])  # one that a study was measured again in has no dictionary
        if member["state"] == folders.FINISHED and all(
            (folder / name).exists() for name in ("identity.json", "tables/latents.parquet")
        ):
            same = {key: value for key, value in member["settings"].items() if key not in SEEDS}
            groups.setdefault(json.dumps(same, sort_keys=True), []).append(member)
    return [group for group in groups.values() if len(group) > 1]


def latents_of(folder: Path) -> Latents:
    table = read_table(folder, "latents")
    assert table is not None, "groups_by_seed takes runs that have it"
    weights = folder / "dictionary" / "weights.safetensors"
    folders.verify(weights)
    with folders.as_written(weights):
        try:
            with safetensors.safe_open(weights, framework="pt") as file:
                rows = file.get_tensor("W_dec")
        except safetensors.SafetensorError as error:
            raise ValueError(f"it is no safetensors file with W_dec: {error}") from error
    with folders.as_written(folder / "tables" / "latents.parquet"):
        alive = torch.tensor(table["firing_rate"]) > 0
        kinds = table.get("kind", ["other"] * len(alive))
        return Latents(rows[alive], [kind for kind, lives in zip(kinds, alive.tolist(), strict=True) if lives])
