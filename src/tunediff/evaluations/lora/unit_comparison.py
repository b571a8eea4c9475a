"""Interpretability of adapter directions beside that of a dictionary's latents and of neurons (arXiv 2511.06739).

The kinds of units, and what "matched" means of the neurons, stand in units.py. Two measures:

labels   AUROC of every unit for every label of the text. The best unit of a kind is chosen on one half of the documents and
         tested on the other, beside shuffled labels; each unit is tested on the label that it tells best on the first half
judge    a language model sorts units by their strongest examples (unit_classes.py), where an endpoint is given

The kinds differ in how many units they have, and the best of more is better by choice alone. So the best is also taken among
as many random living units of each kind as the smallest has, averaged over draws. They differ in density too: a sparse
latent is zero where a direction still ranks tokens, which AUROC rewards, so average precision stands beside it. Directions
of an untrained adapter are the yardstick for both.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tunediff import randomness
from tunediff.evaluations.given import Given, Needs, Trained, Work
from tunediff.evaluations.judging.chat import Judge
from tunediff.evaluations.judging.unit_classes import sort_units
from tunediff.evaluations.lora.units import HeldOut, Kind, check_adapters, kinds_of, read_columns
from tunediff.evaluations.reading.label_alignment import later
from tunediff.evaluations.reading.labelled import STRETCHES, gathered
from tunediff.measures import mean_of, share
from tunediff.measures.separation import ActiveScores, separation
from tunediff.measures.shifts import chance
from tunediff.models import ModelPair
from tunediff.shapes import Finding, Note, Refused, Stream, Table
from tunediff.text import Text

SETTING = "evaluation.unit_comparison"
KINDS = 3  # adapters, neurons, latents


@dataclass(kw_only=True)
class UnitComparison:
    """first      true: only the first token of a labelled stretch counts as labelled, the rest of it is not looked at
    above      from this AUROC on a unit counts as telling a label
    shuffles   draws of each null
    draws      draws of equal numbers of units
    judge      the language model that sorts units into classes; without an endpoint none is asked
    judged     number of units of each kind that are judged, drawn among the living
    seed       seed of the neurons, the draws, and the units that are judged

    Raises Refused before a model is loaded where the judge cannot be asked or could be asked too often; later for a pair
    without adapters."""

    judge: Judge
    judged: int = 50
    first: bool = True
    above: float = 0.9
    shuffles: int = 100
    draws: int = 100
    seed: int = 0

    needs = Needs.PAIR

    def __post_init__(self):
        self.chat = self.judge.chat(f"{SETTING}.judge")
        if self.chat is not None:
            if self.judged < 1:
                raise Refused(f"{SETTING} needs judged=1 or more.")
            counted = f"{self.judged:,} units of each of {KINDS} kinds"
            self.chat.allow(KINDS * self.judged, counted=counted, fewer=f"{SETTING}.judged")

    def work(self, pair: ModelPair, streams: Sequence[Stream]) -> Work:
        """The tuned model, read twice for its units."""
        return Work(passes=2)

    def check(self, pair: ModelPair, text: Text) -> None:
        check_adapters(pair)

    def run(self, given: Given) -> Iterator[Finding | Table | Note]:
        kinds, held_out = kinds_of(given, seed=self.seed)
        if not isinstance(given, Trained):
            yield Note("unit_comparison has no latents to compare: the study trains no dictionary.")
        for kind in kinds:
            silent = int((~kind.alive).sum())
            yield Finding(f"unit_comparison/{kind.name}/units", len(kind.units), meaning=kind.what)
            meaning = "of these, units that fire on no held-out token; shares and draws leave them out"
            yield Finding(f"unit_comparison/{kind.name}/silent", silent, meaning=meaning)
        yield from self._labels(kinds, held_out)
        if self.chat is not None:
            yield from sort_units(self.chat, kinds, units=self.judged, seed=self.seed)

    def _labels(self, kinds: Sequence[Kind], held_out: HeldOut) -> Iterator[Finding | Table | Note]:
        chosen, tested = defaultdict(list), defaultdict(list)  # of each kind, [unit] for each label
        rows, labels, too_few = [], [], []
        for label in sorted({label for batch in held_out.batches for label in batch.labels}):
            here = self._looked_at(held_out, label)
            labelled, everywhere = gathered(list(zip(held_out.batches, here, strict=True)), label), torch.cat(here)
            if labelled is None or not labelled.enough:
                too_few.append(label)
                continue
            chosen_on, tested_on = (
                (labelled.truth[side], labelled.document[side]) for side in (labelled.select, labelled.test)
            )
            select, test = (everywhere.masked_scatter(everywhere, side) for side in (labelled.select, labelled.test))
            labels.append(label)
            for kind in kinds:
                first, second = kind.scores.of_tokens(select), kind.scores.of_tokens(test)
                chosen[kind.name].append(first.auroc(chosen_on[0]))
                tested[kind.name].append(second.auroc(tested_on[0]))
                best = int(chosen[kind.name][-1].argmax())
                column, where = second.column(best), f"unit_comparison/{kind.name}/{label}"
                auroc, low, high = separation(column, *tested_on)
                precision = float(ActiveScores.of([column[:, None]], 1).average_precision(tested_on[0]))
                tracks = labelled.track(labelled.select), labelled.track(labelled.test)
                null = chance(first, second, *tracks, self.shuffles).p95
                how = f"chosen on {int(select.sum())} tokens, tested on {int(test.sum())} of other questions; interval over documents"
                meaning = f"AUROC of {kind.units[best]}, the best of {len(kind.units)} {kind.what}, {how}"
                yield Finding(f"{where}/auroc", auroc, low, high, meaning, over="documents")
                meaning = "the same with labels shifted within documents, or those of like documents: the larger 95 % quantile"
                yield Finding(f"{where}/null_p95", null, meaning=meaning)
                rate = float(tested_on[0].double().mean())
                meaning = f"average precision of that unit; the share of labelled tokens, {rate:.3g}, is chance"
                yield Finding(f"{where}/average_precision", precision, meaning=meaning)
                measured = {"auroc": auroc, "low": low, "high": high, "null_p95": null}
                measured |= {"average_precision": precision, "share": rate}
                rows.append({"label": label, "kind": kind.name, **kind.units[best]._asdict(), **measured})
        if too_few:
            yield Note(
                f"unit_comparison passed over {', '.join(too_few)}: fewer than {STRETCHES} stretches with the label, or documents "
                "with or without it, in one half of the held-out questions."
            )
        if not labels:
            yield Note("unit_comparison measured no label: the held-out text has none that is frequent enough.")
            return
        yield Table.of("unit_labels", rows)
        by_kind = [(kind, torch.stack(chosen[kind.name]), torch.stack(tested[kind.name])) for kind in kinds]
        yield from self._own_labels(by_kind, labels)
        yield from self._equal_numbers(by_kind)
        kind, _, reached = by_kind[0]
        found = {f"auroc/{label}": values.tolist() for label, values in zip(labels, reached, strict=True)}
        yield Table("adapter_units", read_columns(kind.units) | found)

    def _looked_at(self, held_out: HeldOut, label: str) -> list[Tensor]:
        """Masks [token] of the tokens that count for a label, of every batch."""
        admitted = held_out.admitted.split([len(batch.token) for batch in held_out.batches])
        parts = zip(held_out.batches, admitted, strict=True)
        return [some & ~later(batch, label) if self.first else some for batch, some in parts]

    def _own_labels(self, by_kind: Sequence[tuple[Kind, Tensor, Tensor]], labels: Sequence[str]) -> Iterator:
        """AUROC of each unit for the label that it tells best, chosen [label, unit] on one half and tested on the other."""
        columns: dict[str, list] = defaultdict(list)
        for kind, chosen, tested in by_kind:
            own = chosen.argmax(0)
            reached = tested.gather(0, own[None])[0]
            columns["kind"] += [kind.name] * len(own)
            for name, values in zip(kind.units[0]._fields, zip(*kind.units, strict=True), strict=True):
                columns[name] += values
            columns["alive"] += kind.alive.tolist()
            columns["label"] += [labels[n] for n in own.tolist()]
            columns["auroc_select"] += chosen.amax(0).tolist()
            columns["auroc"] += reached.tolist()
            where, alive = f"unit_comparison/{kind.name}", reached[kind.alive]
            how = f"over {len(alive)} living units, each on the label it tells best on the other half of the documents"
            telling = int((alive > self.above).sum())
            meaning = f"share of units with an AUROC above {self.above:g}, {how}; Wilson interval over units"
            yield Finding(f"{where}/telling", *share(telling, len(alive)), meaning, over="units")
            yield Finding(f"{where}/auroc", *mean_of(alive, least=0.0, most=1.0), f"mean AUROC {how}", over="units")
        yield Table("unit_comparison", dict(columns))

    def _equal_numbers(self, by_kind: Sequence[tuple[Kind, Tensor, Tensor]]) -> Iterator[Finding | Note]:
        """The best of as many living units of each kind, chosen [label, unit] on one half and tested on the other."""
        count = min(int(kind.alive.sum()) for kind, _, _ in by_kind)
        if not count:
            silent = ", ".join(kind.name for kind, _, _ in by_kind if not kind.alive.any())
            yield Note(f"unit_comparison drew no equal numbers of units: all {silent} are silent on the held-out text.")
            return
        for kind, chosen, tested in by_kind:
            living, generator = kind.alive.nonzero()[:, 0], randomness.generator(self.seed, "equal numbers of units")
            reached = []
            for _ in range(self.draws):
                drawn = living[torch.randperm(len(living), generator=generator)[:count]]
                best = drawn[chosen[:, drawn].argmax(1)]
                reached.append(tested.gather(1, best[:, None]).double().mean())
            means = torch.stack(reached)
            low, high = means.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
            if count == len(living):  # every draw is all of them, which says nothing of chance
                low = high = None
            meaning = (
                f"AUROC of the best of {count} random living units, as many as the smallest kind has: mean over "
                f"{len(chosen)} labels and {self.draws} draws; low and high hold 95 % of the draws"
            )
            yield Finding(
                f"unit_comparison/{kind.name}/equal_numbers", float(means.mean()), low, high, meaning, over="draws"
            )
