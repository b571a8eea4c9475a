"""The latents that make the base into the tuned model: KL(tuned || patched) with base's vectors, and with some of the latents'
difference added to them, in place of tuned's at the dictionary's layer; tuned's later layers run on. (arXiv 2504.02922)

What the two models differ by at a token is, exactly, and as conditions:
    tuned - base  =  sum_j f_j (d_j^tuned - d_j^base)  +  offset  +  error          "base" adds none of it, "tuned" all of it
    "all"              every latent                                "offset"   what the decoders write without any latent
    "reconstruction"   latents and offset                          "error"    the difference of the reconstruction errors
    tuned_only, base_only, shared, other       the latents of one kind, by relative decoder norm as in geometry.py
    best, random       the `best` alive latents with the largest relative decoder norm; as many others, drawn `draws` times

closed   1 - KL(condition) / KL(base): the share of the gap that is closed; below 0 where a change leads further away, and
         without a value where base's vectors are not told from tuned's
Intervals are over documents, that of random latents over draws and documents; of closed shares they are Fieller's.
Conditions do not add up: later layers are not linear. Each token is predicted from the position before it.

# Differs from the paper: tokens that the text drops (special ones, as in chat templates) and attention sinks keep tuned's
# vectors in every condition, so that they are no part of the gap; text.drop_special=false patches special tokens too.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tunediff import randomness
from tunediff.evaluations.given import ALL, Needs, Reading, Trained, Work, by_segment
from tunediff.evaluations.latents.splice import predictions, spread_out
from tunediff.evaluations.latents.statistics import relative_decoder_norm
from tunediff.evaluations.reading.geometry import KINDS, Geometry
from tunediff.measures.clustered import Bounded, DocumentSums, interval_columns, over_draws, quotient, ratio
from tunediff.measures.next_tokens import compared, predicted
from tunediff.models import ModelPair, head_of
from tunediff.shapes import BASE, TUNED, Figure, Finding, Note, Refused, Stream, Table
from tunediff.text import Batch

WHOLE = {
    "base": "base's vectors",
    "all": "base's vectors and all latents",
    "offset": "base's vectors and what the decoders write without any latent",
    "reconstruction": "base's vectors, all latents and what the decoders write without any",
    "error": "base's vectors and the difference of the reconstruction errors",
    "tuned": "tuned's own vectors, which must give 0",
}
RANDOM = "random"

Class = tuple[str, Tensor]  # a condition, and the numbers of the latents that it adds


@dataclass(kw_only=True)
class KLPatching:
    """exclusive, shared   bounds of the kinds by relative decoder norm, as in geometry
    best        number of latents, those that are most tuned's own   draws   draws of as many others; 0: no control
    initial     number of tokens of a response that are the place "initial"
    labels      labels; each that the text has is a place: what is predicted from its tokens
    level       confidence level of the intervals
    """

    needs = Needs.RECONSTRUCTION

    exclusive: float = 0.1
    shared: tuple[float, float] = (0.3, 0.7)
    best: int = 32
    draws: int = 20
    initial: int = 10
    labels: Sequence[str] = ("step_end", "hesitation_follows", "hesitation")
    level: float = 0.95

    def work(self, pair: ModelPair, streams: Sequence[Stream]) -> Work:
        """The tuned model clean, and under every condition."""
        return Work(passes=1 + len(WHOLE) + len(KINDS) + 1 + self.draws)

    def run(self, trained: Trained) -> Iterator[Finding | Table | Figure | Note]:
        check(trained)
        classes, notes = self.classes(trained)
        yield from map(Note, notes)
        names = [*WHOLE, *(name for name, _ in classes)]
        head = head_of(trained.pair.models[TUNED])
        # place -> of every document [condition, and the tokens]
        sums: dict[str, DocumentSums] = defaultdict(DocumentSums)
        for reading in trained.readings("KL patching"):
            clean, scored = predictions(trained, reading, TUNED, None)
            targets = predicted(trained.pair, TUNED, reading.batch).targets
            columns = []
            for vectors in replacements(trained, reading, classes):
                patched, _ = predictions(trained, reading, TUNED, vectors)
                costs = compared(head, clean, [patched], targets, logits_mb=trained.logits_mb)
                columns.append(spread_out(costs[0, :, 0], scored))
            divergence = torch.stack([*columns, torch.ones(len(scored), dtype=torch.float64)]).T
            for place, here in places(reading.batch, self.initial, self.labels).items():
                here = here & scored
                sums[place].add(divergence[here], reading.batch.document[here])
        latents = dict.fromkeys(WHOLE, 0) | {name: len(numbers) for name, numbers in classes}
        latents |= dict.fromkeys(("all", "reconstruction", "tuned"), trained.dictionary.latents)
        rows = []
        for place, documents in sums.items():
            if not len(documents):
                continue
            stacked = documents.stacked()
            found = self._measured(stacked, names)
            if found[f"closed/{BASE}"][0] is None:
                yield Note(
                    f"kl_patching: at '{place}' base's vectors predict what tuned's do: there is no gap to close."
                    if found[f"kl/{BASE}"][0] == 0
                    else f"kl_patching: at '{place}' {len(documents)} documents do not tell base's vectors from tuned's: no "
                    "share of a gap is given."
                )
            yield from self._findings(found, place, latents, len(documents))
            rows += self._rows(found, place, latents, stacked)
        table = Table.of("kl_patching", rows)
        yield table
        yield figure(table.columns)

    def classes(self, trained: Trained) -> tuple[list[Class], list[str]]:
        """The conditions that add some latents, and notes about those that cannot be made."""
        relative, alive = relative_decoder_norm(trained), trained.statistics.alive
        kinds, classes, notes = Geometry(exclusive=self.exclusive, shared=self.shared).kinds(relative), [], []
        for n, kind in enumerate(KINDS):
            numbers = ((kinds == n) & alive).nonzero()[:, 0]
            if len(numbers):
                classes.append((kind, numbers))
            else:
                notes.append(f"No alive latent is {kind}: kl_patching has no number for that kind.")
        order = relative.masked_fill(~alive, -1.0).argsort(descending=True, stable=True)[: int(alive.sum())]
        best, rest = order[: self.best], order[self.best :]
        if len(best):
            classes.append(("best", best))
        if len(rest) < len(best) and self.draws:
            notes.append(
                f"Of {len(order)} alive latents {len(best)} are the best, and {len(rest)} others are too few to draw as many: "
                f"evaluation.kl_patching.best={len(order) // 2} leaves enough."
            )
            return classes, notes
        generator = randomness.generator(0, "random latents of a patch")
        for draw in range(self.draws):
            drawn = rest[torch.randperm(len(rest), generator=generator)[: len(best)]]
            classes.append((f"{RANDOM}_{draw}", drawn))
        return classes, notes

    def _measured(self, stacked: Tensor, names: Sequence[str]) -> dict[str, Bounded]:
        """kl/<condition> and closed/<condition>, from sums [document, condition and tokens]; the draws also as one."""
        nats = {name: ratio(values, stacked[:, -1]) for name, values in zip(names, stacked.T, strict=False)}
        draws = [estimate for name, estimate in nats.items() if name.startswith(f"{RANDOM}_")]
        if draws:
            nats[RANDOM] = over_draws(draws)
        found = {f"kl/{name}": estimate.bounded(self.level, least=0.0) for name, estimate in nats.items()}
        for name, estimate in nats.items():
            found[f"closed/{name}"] = quotient(nats[BASE] - estimate, nats[BASE], self.level, most=1.0)
        return found

    def _findings(
        self, found: Mapping[str, Bounded], place: str, latents: Mapping[str, int], documents: int
    ) -> Iterator[Finding]:
        where = "" if place == ALL else f"/{place}"
        how = f"{documents:,} documents; {self.level:.0%} interval"
        drawn = [name for name in latents if name.startswith(f"{RANDOM}_")]
        shown = [name for name in latents if name not in (BASE, TUNED, *drawn)] + ([RANDOM] if drawn else [])
        for path in (f"kl/{BASE}", f"kl/{TUNED}", *(f"closed/{name}" for name in shown)):
            measure, name = path.split("/")
            count = latents[drawn[0]] if name == RANDOM else latents[name]
            what = WHOLE.get(name, f"base's vectors and {count} latents: {name.replace('_', '-')}")
            if name == RANDOM:
                what = f"{what} ones, mean of {len(drawn)} draws"
            said = "KL(tuned || patched), nats a token" if measure == "kl" else "1 - KL / KL of base's vectors"
            over, meaning = (
                ("draws and documents" if name == RANDOM else "documents"),
                f"{said}; patched: {what}; {how}",
            )
            yield Finding(f"kl_patching/{path}{where}", *found[path], meaning, over=over)
        each = [value for value, _, _ in (found[f"closed/{name}"] for name in drawn) if value is not None]
        for word, choose in (("smallest", min), ("largest", max)) if drawn else ():
            meaning = f"the {word} of {len(drawn)} draws"
            yield Finding(f"kl_patching/closed/{RANDOM}_{word}{where}", choose(each, default=None), meaning=meaning)

    def _rows(
        self, found: Mapping[str, Bounded], place: str, latents: Mapping[str, int], stacked: Tensor
    ) -> Iterator[dict[str, Any]]:
        tokens = int(stacked[:, -1].sum())
        for name, count in latents.items():
            row = {"condition": name, "place": place, "latents": count, "tokens": tokens, "documents": len(stacked)}
            for measure in MEASURES:
                row |= interval_columns(measure, found[f"{measure}/{name}"])
            yield row


MEASURES = ("kl", "closed")
BOUNDED = [f"{measure}{end}" for measure in MEASURES for end in ("", "_low", "_high")]


def figure(columns: Mapping[str, list]) -> Figure:
    labels = [
        condition.replace("_", " ") + (f", {count:,} latent{'s' if count > 1 else ''}" if count else "")
        for condition, count in zip(columns["condition"], columns["latents"], strict=True)
    ]
    control = [condition.startswith(RANDOM) for condition in columns["condition"]]
    return Figure(
        name="kl_patching/kl",
        kind="bars",
        columns={
            "patched": labels,
            **{name: values for name, values in columns.items() if name in ("place", *BOUNDED)},
            "random": control,
        },
        x="patched",
        y=["kl", "closed"],
        section="How near patched models come",
        title="KL of patched models",
        caption="KL(tuned || patched) of the next token on held-out text: base's vectors in place of tuned's, with a part of "
        "what the dictionary says of their difference added (error: with what it leaves of that difference; tuned: unchanged). Paler: as many latents drawn at random. Whiskers are "
        "intervals over documents.",
        choices=["place"],
        control="random",
        words={"kl": "KL, nats a token", "closed": "share of the gap closed", "place": "tokens of"},
    )


def check(trained: Trained) -> None:
    """Raises Refused for a dictionary that does not write both models, or not in the same width."""
    streams = trained.dictionary.streams
    if set(trained.roles) != {BASE, TUNED}:
        raise Refused(
            f"evaluation=kl_patching puts base's vectors into the tuned model, and this dictionary reads "
            f"{', '.join(map(str, streams))}: it needs one that reads both models (dictionary.reads=both)."
        )
    base, tuned = ([streams[n].width for n in trained.streams_of(role)] for role in (BASE, TUNED))
    if base != tuned:
        raise Refused(f"evaluation=kl_patching: base's vectors have widths {base}, and the tuned model takes {tuned}.")


def replacements(trained: Trained, reading: Reading, classes: Sequence[Class]) -> Iterator[Tensor]:
    """Vectors [token, width] that stand in place of the tuned model's, in the order of WHOLE and then of the classes."""
    dictionary, (values, moments) = trained.reconstructing, reading.rows

    def apart(written: Tensor) -> Tensor:
        return trained.part(written, TUNED) - trained.part(written, BASE)

    base, tuned = (trained.part(values, role) for role in (BASE, TUNED))
    latents = apart(dictionary.decode(reading.latents, moments))
    offset = apart(dictionary.decode(torch.zeros_like(reading.latents), moments))
    yield base
    yield base + (latents - offset)
    yield base + offset
    yield base + latents
    yield tuned - latents
    yield tuned
    for _, numbers in classes:
        chosen = numbers.to(reading.latents.device)
        yield base + apart(dictionary.written(reading.latents[:, chosen], chosen, moments))


def places(batch: Batch, initial: int, labels: Sequence[str]) -> dict[str, Tensor]:
    """Name of a place -> mask [token] of the tokens that are predicted there; only places that the batch has. `initial` are the first tokens of
    responses whose prompts stand in the same sequence."""
    found = by_segment(batch)
    response = ~(found["prompt"] | found["text"])
    begins = torch.full((len(batch.ids[0]),), torch.iinfo(torch.long).max)
    begins.scatter_reduce_(0, batch.sequence[response], batch.position[response], "amin")
    asked = torch.zeros(len(begins), dtype=torch.bool)
    asked[batch.sequence[found["prompt"]]] = True
    place = batch.position - begins[batch.sequence]
    found["initial"] = response & asked[batch.sequence] & (place < initial)
    follows = torch.zeros_like(response)
    follows[1:] = (batch.sequence[1:] == batch.sequence[:-1]) & (batch.position[1:] == batch.position[:-1] + 1)
    for label in labels:
        if label in batch.labels:
            found[f"after_{label}"] = follows & batch.labels[label].roll(1)
    return {name: here for name, here in found.items() if here.any()}
