"""What an evaluation is given, and how it reads the held-out text.

An evaluation is a class with settings in __init__ and one verb, run(trained), which yields Findings, Tables and Notes.
It changes nothing of what it is given: no counter, no threshold, no random state.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from tunediff.activations import harvest
from tunediff.dictionary import Crosscoder
from tunediff.models import ModelPair
from tunediff.shapes import Rows
from tunediff.text import Batch, Text


class Reading(NamedTuple):
    """One held-out batch and what the dictionary makes of it.

    admitted   [token] bool: false for attention sinks, which are left as they are       rows      all kept tokens
    latents    [token, latent], zero where not admitted                                  batch     where they come from
    """

    batch: Batch
    rows: Rows
    admitted: Tensor
    latents: Tensor


@dataclass(frozen=True)
class Trained:
    """A trained dictionary with its pair and its text. `tokens` is the evaluation budget of held-out tokens; `folder`
    is the run's, for an evaluation that leaves files of another kind than findings and tables."""

    pair: ModelPair
    text: Text
    dictionary: Crosscoder
    tokens: int
    tokens_per_batch: int = 2048
    folder: Path | None = None

    @functools.cached_property
    def held_out(self) -> list[Batch]:
        """Held-out batches until the budget is spent; a smaller text is read once."""
        source = self.text.batches(self.pair.tokenizers, held_out=True, tokens_per_batch=self.tokens_per_batch)
        batches, read = [], 0
        while read < self.tokens:
            batch = next(source)
            if source.epoch > 0:
                break
            read += len(batch.token)
            batches.append(batch)
        return batches

    @torch.no_grad()
    def readings(self, title: str) -> Iterator[Reading]:
        """Every held-out batch with its latents, behind a progress bar."""
        dictionary = self.dictionary
        with tqdm(total=self.tokens, unit="tok", unit_scale=True, desc=title, leave=False, delay=2) as bar:
            for batch in self.held_out:
                rows = harvest(self.pair, batch, dictionary.streams, moments=dictionary.normalisation.needs_moments)
                admitted = dictionary.normalisation.admits(rows.values)
                latents = dictionary.encode(rows).float() * admitted[:, None]
                bar.update(len(batch.token))
                yield Reading(batch, rows, admitted, latents)

    def streams_of(self, role: str) -> list[int]:
        """Which of the dictionary's streams belong to a model."""
        return [n for n, stream in enumerate(self.dictionary.streams) if stream.role == role]

    def part(self, values: Tensor, role: str) -> Tensor:
        """The columns of one model's streams."""
        return self.dictionary.part(values, role)

    @property
    def roles(self) -> list[str]:
        return list(dict.fromkeys(stream.role for stream in self.dictionary.streams))
