"""The interface of evaluations: what one is, what it is given, and how it reads the held-out text.

An evaluation is a class with settings in __init__ and one verb, run, which yields Findings, Tables, Figures and Notes. It changes
nothing of what it is given: no counter, no threshold, no random state. What `Evaluation` says with a value here may be left
out of a class.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol, cast

import torch
from torch import Tensor
from tqdm import tqdm

from tunediff import randomness
from tunediff.activations import CONTROLS, View, control_view, harvest
from tunediff.dictionary import Dictionary, Polarities, ReconstructingDictionary, TranscoderAdapter
from tunediff.evaluations.untrained import RandomLatents
from tunediff.models import LOGITS_MB, ModelPair, untrained
from tunediff.shapes import BLOCK, SEGMENTS, TEMPLATE, Figure, Finding, Note, Refused, Rows, Table
from tunediff.text import Batch, Text, padded_groups
from tunediff.text.batches import collate

TWIN = "twin"  # the companion from another seed
ALL = "all"  # in place of a segment
APART = 64  # documents at most whose template is measured
FITTED = 16_384  # tokens that yardsticks are fitted on
KEPT = 2**31  # bytes of held-out activations up to which they are kept, and the models run once for all evaluations


class Needs(Enum):
    """The least that a study must have for an evaluation to be asked; each has what the former has."""

    PAIR = "pair"  # two models and a text: run(given: Given)
    DICTIONARY = "dictionary"  # and a dictionary of any kind: run(trained: Trained), as with all that follow
    RECONSTRUCTION = "reconstruction"  # one that reconstructs activations
    ADAPTER = "adapter"  # a transcoder adapter, which replaces MLPs and reconstructs nothing


class Work(NamedTuple):
    """The work of the models for an evaluation, at most, beside reading the activations of the dictionary.

    passes     forward passes of one model over the held-out tokens, logits included
    written    tokens that are written and read once more       together   responses that are written at once
    """

    passes: float = 0.0
    written: float = 0.0
    together: int = 1


class Evaluation(Protocol):
    """A question that is asked of a study.

    needs     parts that the study must have; others are refused before anything is trained
    name      first part of the names of its findings; None: its name in the config
    latents   the latents that it asks about: an expression is checked before anything is trained
    asks_for  label -> tokens with it that it needs at least: a text that has fewer is refused before anything is trained
    check     raises Refused, before a weight is loaded, for a pair or text of which it cannot ask

    A class may also have `work(pair, streams)`, which gives its Work for an estimate.
    """

    needs: Needs = Needs.DICTIONARY
    name: str | None = None
    latents: Any = None
    asks_for: Mapping[str, int] = MappingProxyType({})

    def check(self, pair: ModelPair, text: Text, /) -> None: ...

    def run(self, given: Any, /) -> Iterator[Finding | Table | Figure | Note]:
        """Yields the findings of a Given where the pair is enough, of a Trained otherwise."""
        ...


def declared(evaluation: Any, member: str) -> Any:
    """A member of an evaluation, or what `Evaluation` has for it where the class leaves it out."""
    return getattr(evaluation, member, getattr(Evaluation, member))


def by_segment(batch: Batch) -> dict[str, Tensor]:
    """Masks [token] of all tokens of a batch, and of those of each segment."""
    everything = torch.ones_like(batch.segment, dtype=torch.bool)
    return {ALL: everything} | {segment: batch.segment == n for n, segment in enumerate(SEGMENTS)}


class Reading(NamedTuple):
    """One held-out batch with its activations and latents.

    admitted   [token] bool: false for attention sinks, which are left as they are       rows      all kept tokens
    latents    [token, latent], zero where not admitted                                  batch     the batch they are from
    """

    batch: Batch
    rows: Rows
    admitted: Tensor
    latents: Tensor


class LatentStatistics(NamedTuple):
    """Counts and sums over the held-out tokens that a dictionary admits.

    tokens    segment -> number of tokens; "all" of all        active    segment -> [latent] number of tokens where it fires
    total     [latent] sum of the activations                  maximum   [latent] largest activation
    norms     role -> mean norm of its hidden vectors
    """

    tokens: dict[str, int]
    active: dict[str, Tensor]
    total: Tensor
    maximum: Tensor
    norms: dict[str, float]

    @property
    def alive(self) -> Tensor:
        """Mask [latent] of the latents that fire at all."""
        return self.active[ALL] > 0

    @property
    def rate(self) -> Tensor:
        """Firing rate [latent]: the share of tokens where the latent is active."""
        return (self.active[ALL] / max(self.tokens[ALL], 1)).float()

    @property
    def mean(self) -> Tensor:
        """Mean activation [latent] over all tokens."""
        return (self.total / max(self.tokens[ALL], 1)).float()

    def columns(self) -> dict[str, list]:
        """Firing rate of each latent, over all tokens and over each segment that there is; mean and largest activation where
        it is active."""
        rates = {
            "firing_rate" if segment == ALL else f"firing_rate/{segment}": (self.active[segment] / count).tolist()
            for segment, count in self.tokens.items()
            if count
        }
        means = (self.total / self.active[ALL].clamp(min=1)).tolist()
        return {**rates, "mean_activation": means, "max_activation": self.maximum.tolist()}


@dataclass(frozen=True)
class Given:
    """A pair with its text.

    tokens      the evaluation budget of held-out tokens
    folder      the run folder, for an evaluation that leaves files of another kind than findings and tables
    logits_mb   10^6 bytes of float32 logits that an evaluation may hold at once
    """

    pair: ModelPair
    text: Text
    tokens: int
    tokens_per_batch: int = 2048
    folder: Path | None = None
    batches_given: Sequence[Batch] | None = None  # in place of those of the held-out text
    logits_mb: float = LOGITS_MB

    @functools.cached_property
    def held_out(self) -> list[Batch]:
        """Held-out batches until the budget is spent; a smaller text is read once."""
        if self.batches_given is not None:
            return list(self.batches_given)
        source = self.text.batches(
            self.pair.tokenizers,
            held_out=True,
            tokens_per_batch=self.tokens_per_batch,
            foreign=self.pair.foreign,
        )
        batches, read = [], 0
        while read < self.tokens:
            batch = next(source)
            if source.epoch > 0:
                break
            read += len(batch.token)
            batches.append(batch)
        return batches

    def batches(self, title: str) -> Iterator[Batch]:
        """Every held-out batch, behind a progress bar."""
        with tqdm(total=self.tokens, unit="tok", unit_scale=True, desc=title, leave=False, delay=2) as bar:
            for batch in self.held_out:
                yield batch
                bar.update(len(batch.token))

    def reading(self, dictionary: Dictionary | Polarities) -> Trained:
        """The same pair and text, read by another dictionary; polarities have no decoder, for those who ask for none."""
        read = cast(Dictionary, dictionary)
        settings = {part.name: getattr(self, part.name) for part in dataclasses.fields(Given)}
        return Trained(**settings, dictionary=read)


@dataclass(frozen=True)
class Trained(Given):
    """A pair with its text and the dictionary that was trained on it.

    companions   dictionaries that were trained beside it, by name: twin, and those of the controls (activations/controls.py)
    view         what is read in place of the activations of a batch, such as a control's
    starting_rows   makes the decoder rows [latent, width] that it and its twin began with
    """

    dictionary: Dictionary = field(kw_only=True)
    companions: Mapping[str, ReconstructingDictionary] = field(default_factory=dict)
    view: View | None = None
    starting_rows: Callable[[], list[Tensor]] | None = None

    def beside(self, name: str) -> Trained:
        """The same pair and text as a companion reads them: the twin as they are, the dictionary of a control as that control."""
        dictionary = self.companions[name]
        view = control_view(name, dictionary.streams) if name in CONTROLS else None
        made = dataclasses.replace(self, dictionary=dictionary, companions={}, view=view, batches_given=self.held_out)
        made.__dict__["_kept"] = self._kept  # the models run once for all
        return made

    @functools.cached_property
    def template(self) -> Trained:
        """The same dictionary over what the chat template writes in a few of the held-out documents: no dictionary is trained
        on it unless text.segments asks for it, so it is measured apart."""
        batches = self._of_template[0]
        return dataclasses.replace(self, batches_given=batches, tokens=sum(len(batch.token) for batch in batches))

    @property
    def of_template(self) -> list[Note]:
        """A sentence on what of the template is measured, where that is not all of it."""
        return [Note(said) for said in self._of_template[1:]]

    @functools.cached_property
    def _of_template(self) -> tuple[list[Batch], *tuple[str, ...]]:
        if TEMPLATE in self.text.kept_segments:
            return ([],)
        last, found, written = max(int(batch.document.max()) for batch in self.held_out), [], 0
        rows = self.text.read(self.pair.tokenizers[0], held_out=True)
        for row, _ in itertools.islice(rows, APART):
            if row["index"] > last:
                break
            found += self.text.documents(row, self.pair.tokenizers, foreign=self.pair.foreign, segments=[TEMPLATE])
            every = self.text.documents(row, self.pair.tokenizers, segments=[TEMPLATE])
            written += sum(len(document.segments) for document in every)
        if not written:
            return ([],)
        kinds = Counter(one.ids[0][place] for one in found for place in one.places[0])
        said = f"Of {written:,} tokens that the chat template writes in {len({one.row for one in found})} held-out documents "
        said += f"{kinds.total():,} are read alike by both models, of {len(kinds)} kind{'s' * (len(kinds) != 1)}"
        if len(kinds) < 2:  # the variance of one token around its own mean is nothing to explain
            return [], f"{said}: nothing is measured of the template."
        groups = padded_groups(found, self.tokens_per_batch, lambda one: max(map(len, one.ids)))
        batches = [collate(group) for group in groups]
        return (
            batches,
            *[f"{said}: what is measured of the template is measured of these."] * (kinds.total() < written),
        )

    @functools.cached_property
    def statistics(self) -> LatentStatistics:
        """Statistics of each latent on the held-out text, which is read for them once."""
        count = self.dictionary.latents
        total, maximum = torch.zeros(count, dtype=torch.float64), torch.zeros(count)
        active = {segment: torch.zeros(count, dtype=torch.float64) for segment in (ALL, *SEGMENTS)}
        tokens, norms = dict.fromkeys(active, 0), dict.fromkeys(self.roles, 0.0)
        for reading in self.readings("latent statistics"):
            latents, admitted = reading.latents, reading.admitted.cpu()
            total += latents.sum(0).cpu()
            maximum = torch.maximum(maximum, latents.amax(0).cpu())
            fires = latents != 0
            for segment, here in by_segment(reading.batch).items():
                here = here & admitted
                tokens[segment] += int(here.sum())
                # a block at a time, for what sums a mask makes eight bytes of each of its entries
                for block in fires[here.to(fires.device)].split(BLOCK):
                    active[segment] += block.sum(0).cpu()
            for role in norms:
                norms[role] += float(self.part(reading.rows.values, role).norm(dim=-1).cpu()[admitted].double().sum())
        means = {role: value / max(tokens[ALL], 1) for role, value in norms.items()}
        return LatentStatistics(tokens, active, total, maximum, means)

    @functools.cached_property
    def random_latents(self) -> RandomLatents:
        """Latents that have learnt nothing, over the same activations: as many, and as many of them active a token."""
        seen = self.statistics
        made = RandomLatents(self.dictionary, float(seen.active[ALL].sum()) / max(seen.tokens[ALL], 1))
        made.fit(self._sample())
        return made

    @functools.cached_property
    def of_untrained_models(self) -> Trained:
        """The same text read by models that have learnt nothing, and by random latents over their activations."""
        latents = copy.deepcopy(self.random_latents)
        read = dataclasses.replace(self, pair=untrained(self.pair)).reading(cast(Dictionary, latents))
        latents.normalisation.fit(torch.cat([rows.values for _, rows in read._harvested()])[:FITTED].cpu())
        latents.fit(read._sample())
        return read

    def _sample(self) -> Rows:
        """Rows of the first FITTED held-out tokens that are admitted."""
        found, count = [], 0
        for _, rows, admitted in self.activations("a sample"):
            found.append([None if part is None else part[admitted] for part in rows])
            count += len(found[-1][0])
            if count >= FITTED:
                break
        values, moments = zip(*found, strict=True)
        return Rows(torch.cat(values), None if moments[0] is None else torch.cat(moments))

    @torch.no_grad()
    def readings(self, title: str) -> Iterator[Reading]:
        """Every held-out batch with its latents, behind a progress bar."""
        for batch, rows, admitted in self.activations(title):
            yield Reading(batch, rows, admitted, self._latents(rows, admitted))

    def _latents(self, rows: Rows, admitted: Tensor) -> Tensor:
        """Latents [token, latent]. Of a long document a block of tokens is encoded at a time, so that nothing else as large
        as they are is held beside them."""
        found = rows.values.new_empty(len(rows.values), self.dictionary.latents, dtype=torch.float32)
        for part, block, kept in zip(found.split(BLOCK), rows.blocks(), admitted.split(BLOCK), strict=True):
            part.copy_(self.dictionary.encode(block)).mul_(kept[:, None])
        return found

    @torch.no_grad()
    def activations(self, title: str) -> Iterator[tuple[Batch, Rows, Tensor]]:
        """Every held-out batch with its activations and the tokens that are admitted, as in Reading, without latents."""
        with tqdm(total=self.tokens, unit="tok", unit_scale=True, desc=title, leave=False, delay=2) as bar:
            for n, (batch, rows) in enumerate(self._harvested()):
                if self.view is not None:
                    rows = self.view(rows, randomness.generator(0, "view of held-out rows", n))
                yield batch, rows, self.dictionary.normalisation.admits(rows.values)
                bar.update(len(batch.token))

    def _harvested(self) -> Iterator[tuple[Batch, Rows]]:
        """Held-out batches with their activations, from memory once they were read and if all of them fit there."""
        if self._kept:
            yield from zip(self.held_out, self._kept, strict=True)
            return
        wanted, tokens = self.dictionary.streams, sum(len(batch.token) for batch in self.held_out)
        fits, rows = 4 * tokens * sum(stream.width for stream in wanted) <= KEPT, []
        for batch in self.held_out:
            read = harvest(self.pair, batch, wanted, moments=self.dictionary.normalisation.needs_moments)
            if fits:
                rows.append(read)
            yield batch, read
        self._kept.extend(rows)

    @functools.cached_property
    def _kept(self) -> list[Rows]:
        return []

    def streams_of(self, role: str) -> list[int]:
        """Indices of the dictionary's streams that belong to a model."""
        return [n for n, stream in enumerate(self.dictionary.streams) if stream.role == role]

    def part(self, values: Tensor, role: str) -> Tensor:
        """The columns [..., width] of one model's streams, side by side."""
        pieces = values.split([stream.width for stream in self.dictionary.streams], dim=-1)
        return torch.cat([pieces[n] for n in self.streams_of(role)], dim=-1)

    @property
    def roles(self) -> list[str]:
        """Roles of the models that the dictionary reads, each once."""
        return list(dict.fromkeys(stream.role for stream in self.dictionary.streams))

    @property
    def reconstructing(self) -> ReconstructingDictionary:
        """The dictionary, which reconstructs activations. Raises Refused for a transcoder adapter, which does not."""
        if isinstance(self.dictionary, TranscoderAdapter):
            raise Refused("A transcoder adapter reconstructs no activations: choose evaluation=replacement.")
        return cast(ReconstructingDictionary, self.dictionary)

    def adapter(self, evaluation: str) -> TranscoderAdapter:
        """The dictionary, which stands beside the pair's MLPs. Raises Refused for one that cannot."""
        if not isinstance(self.dictionary, TranscoderAdapter):
            raise Refused(
                f"evaluation={evaluation} asks about models with a transcoder adapter, and the dictionary of this run is a "
                f"{type(self.dictionary).__name__}: train one with dictionary=transcoder_adapter."
            )
        return self.dictionary
