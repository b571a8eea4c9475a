"""Attention that the opening sentence of the thinking receives from what comes after it, in each layer and head.

For queries after the prefix (later thinking, answer), over the groups of tokens that they see:
    first   the first token of the sequence       prompt   the rest, up to the thinking      tag     "<think>" and its line break
    prefix  the opening sentence itself           later    tokens between it and the query   itself  the query

mass       mean over queries of the attention on a group; the masses sum to 1. It grows with the group's size, so:
relative   mass / the mass of the group under uniform attention over all that the query sees; 1 is no preference
times      near tokens are preferred to far ones, which hides a sink. So the prefix's mass is divided by that of later thinking
           sentences: as many tokens from a sentence's start, seen from the same distance, their query seeing no further than
           the prefix's query does (shares of the tokens at those distances, the first token left out). 1: a sentence like
           any other, whatever attention depends on the distance
excess     the same as a difference, prefix - mean of later sentences

Attention sinks: Xiao et al. 2023 (arXiv 2309.17453). Queries are kept tokens, keys all tokens of the sequence, special ones
included. A layer with a sliding window sees less than is counted here, where a sequence is longer than the window.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from tunediff.evaluations.given import Given, Needs, Work
from tunediff.hookpoints import attending
from tunediff.measures.clustered import DocumentSums, Estimate, ratio
from tunediff.models import ModelPair
from tunediff.shapes import BASE, ROLES, SEGMENTS, TUNED, Figure, Finding, Note, Stream, Table
from tunediff.text import Batch

GROUPS = ("first", "prompt", "tag", "prefix", "later", "itself")
FIRST, PREFIX, LATER, ITSELF = (GROUPS.index(name) for name in ("first", "prefix", "later", "itself"))
COUNT = len(GROUPS)
MEANINGS = {
    "mass": "attention on the {}, from tokens after the opening sentence of the thinking",
    "relative": "attention on the {} / its value under uniform attention over all visible tokens",
    "times": "attention on the {} / that on as many tokens of later sentences from the same distance",
    "excess": "attention on the {}, less that on as many tokens of later sentences from the same distance",
}


class Watched(NamedTuple):
    """The queries and keys of one batch that are looked at. A window is a later sentence, cut to as many tokens as the prefix has; its reach are
    the tokens that are no further from a query than those after the first are from the prefix's query.

    queries  [batch, query] bool                    members  [batch, key, group + window + reach], 1 where a key belongs to it
    matched  [batch, query] bool, at whose distance from the prefix there is a query of a window
    control  [batch, query, window]: weights that make a mean over windows for each matched query
    """

    queries: Tensor
    matched: Tensor
    members: Tensor
    control: Tensor


class Sums(NamedTuple):
    """Sums over the queries of each document, in float64.

    attention  [document, layer, head, group + 2]: masses; then of matched queries the prefix's share, the windows' share
    uniform    [document, group]       queries, matched  [document]       document  [document] their numbers
    """

    attention: Tensor
    uniform: Tensor
    queries: Tensor
    matched: Tensor
    document: Tensor


SHOWN = {
    "mass": "of its attention",
    "relative": "times uniform attention",
    "times": "times the attention on later sentences",
}


class AttentionSinks:
    """level   confidence level of the intervals over documents"""

    needs = Needs.PAIR

    def __init__(self, *, level: float = 0.95):
        self.level = level

    def work(self, pair: ModelPair, streams: Sequence[Stream]) -> Work:
        """Both models, with the attention of every layer."""
        return Work(passes=2)

    def run(self, given: Given) -> Iterator[Finding | Table | Figure | Note]:
        read = {role: self._sums(given, role) for role in ROLES}
        sums = {role: found for role, found in read.items() if found is not None}
        if len(sums) < len(ROLES):
            yield Note(
                "attention_sinks was not measured: no held-out sequence has the opening sentence of a thinking and tokens "
                "after it."
            )
            return
        if not sums[BASE].matched.any():
            yield Note(
                "attention_sinks: no thinking has a later sentence as long as its opening, to compare that with."
            )
        columns: dict[str, list] = {}
        for role in ROLES:
            measures = measured(sums[role])
            self._add_rows(columns, role, measures, sums[role])
            yield from self._findings(role, measures)
            yield from self._largest_head(role, sums[role])
        yield Table("attention_sinks", columns)
        yield figure(columns)
        if torch.equal(sums[BASE].document, sums[TUNED].document):
            base, tuned = (_mean(measured(sums[role])["mass"], (-3, -2)) for role in ROLES)
            apart = (tuned - base).entries(lambda field: field[..., PREFIX])
            meaning = "attention on the prefix in the tuned model less that in the base, mean over layers and heads"
            yield self._finding("difference/prefix", apart, meaning)

    def _findings(self, role: str, measures: dict[str, Estimate]) -> Iterator[Finding]:
        for name, estimate in measures.items():
            over_all, by_layer = _mean(estimate, (-3, -2)), _mean(estimate, (-2,))
            for g in over_all.value.isfinite().nonzero()[:, 0].tolist():
                meaning, place = MEANINGS[name].format(GROUPS[g]), f"{name}/{role}/{GROUPS[g]}"
                whole = over_all.entries(lambda field, g=g: field[..., g])
                yield self._finding(place, whole, f"{meaning}; mean over layers and heads")
                for layer in range(len(by_layer.value) if g == PREFIX else 0):
                    one = by_layer.entries(lambda field, layer=layer, g=g: field[..., layer, g])
                    yield self._finding(f"{place}/{layer}", one, f"{meaning}; layer {layer}, mean over heads")

    def _largest_head(self, role: str, sums: Sums) -> Iterator[Finding]:
        """The head with the largest attention, chosen on the documents of even index and measured on the others."""
        chosen, tested = (sums.document % 2 == n for n in (0, 1))
        if not chosen.any() or not tested.any():
            return
        attention, queries = sums.attention[..., PREFIX], sums.queries[:, None, None]
        by_head = ratio(attention[chosen], queries[chosen]).value
        layer, head = divmod(int(by_head.argmax()), by_head.shape[1])
        how = "the head that gives the prefix the largest mass, chosen on half of the documents"
        yield Finding(f"attention_sinks/head/{role}/layer", layer, meaning=f"layer of {how}")
        yield Finding(f"attention_sinks/head/{role}/head", head, meaning=f"number of {how}")
        mass = ratio(attention[tested, layer, head], queries[tested, 0, 0])
        yield self._finding(f"head/{role}/mass", mass, f"attention on the prefix by {how}; measured on the other half")

    def _finding(self, name: str, estimate: Estimate, meaning: str) -> Finding:
        how = f"{len(estimate.influence):,} documents; {self.level:.0%} interval over documents"
        return Finding(f"attention_sinks/{name}", *estimate.bounded(self.level), f"{meaning}; {how}", over="documents")

    def _add_rows(self, columns: dict[str, list], role: str, measures: dict[str, Estimate], sums: Sums) -> None:
        places = (sums.uniform.sum(0) > 0).expand(measures["mass"].value.shape).nonzero()  # [row, (layer, head, group)]
        layer, head, group = places.T
        uniform = sums.uniform.sum(0) / sums.queries.sum()
        found: dict[str, list] = {"model": [role] * len(places), "layer": layer.tolist(), "head": head.tolist()}
        found |= {"group": [GROUPS[g] for g in group.tolist()], "uniform": uniform[group].tolist()}
        for name, measure in measures.items():
            for part, field in zip(("", "_low", "_high"), (measure.value, *measure.interval(self.level)), strict=True):
                values = field[layer, head, group].tolist()
                found[name + part] = [None if value != value else value for value in values]
        for name, values in found.items():
            columns.setdefault(name, []).extend(values)

    @torch.no_grad()
    def _sums(self, given: Given, role: str) -> Sums | None:
        pair, found = given.pair, [DocumentSums() for _ in range(4)]
        model, entry = pair.models[role], pair.entry(role)
        for batch in given.batches(f"{role} attention"):
            watched = watch(batch, entry, pair.tokenizers[entry])
            if watched is None:
                continue
            watched = Watched(*(t.to(pair.device(role)) for t in watched))
            inputs, layers = pair.inputs(role, batch), []

            def see(_, weights: Tensor, watched=watched, layers=layers) -> None:
                layers.append(summed(weights.float(), watched).cpu().double())

            with attending(model, see):
                model.base_model(**inputs, use_cache=False)
            uniform = summed(uniform_attention(inputs["attention_mask"]), watched)[:, 0, :COUNT]
            counts = (mask.sum(1) for mask in (watched.queries, watched.matched))
            document = torch.zeros(len(batch.ids[entry]), dtype=torch.long)  # of each sequence
            document[batch.sequence] = batch.document
            asked = watched.queries.any(1).cpu()
            for field, sums in zip(found, (torch.stack(layers, dim=1), uniform, *counts), strict=True):
                field.add(sums.cpu().double()[asked], document[asked])
        if not len(found[0]):
            return None
        document, order = torch.tensor(found[0].documents).sort()
        attention, uniform, queries, matched = (field.stacked()[order] for field in found)
        return Sums(attention, uniform, queries, matched, document)


# -- what is looked at -----------------------------------------------------------------------------------------------


def watch(batch: Batch, entry: int, tokenizer) -> Watched | None:
    """Queries and groups of keys among the ids that one model reads; None where no sequence of the batch has a prefix with
    queries after it."""
    if "opening" not in batch.labels:
        return None
    rows, length = batch.ids[entry].shape
    position = batch.places[entry] - batch.sequence * length
    thinking = batch.segment == SEGMENTS.index("thinking")
    asking = thinking | (batch.segment == SEGMENTS.index("answer"))
    queries = torch.zeros(rows, length, dtype=torch.bool)
    # windows: row, number in it, distance that its query is further on, tokens
    groups, windows = torch.zeros(rows, length, COUNT), []
    for row in range(rows):
        here = batch.sequence == row
        # Bounds of the groups among all ids of the sequence. Kept tokens alone are known by their segment: special ones
        # between them, such as the think tag's, fall into the group that they stand in.
        prefix = position[here & batch.labels["opening"]]
        if len(prefix) == 0 or prefix.max() == 0:
            continue
        start, stop = max(int(prefix.min()), 1), int(prefix.max()) + 1
        tag = position[here & (batch.segment == SEGMENTS.index("prefix"))]
        bounds = (0, 1, max(int(tag.min()), 1), start, stop, length)
        for g in range(LATER + 1):
            groups[row, bounds[g] : bounds[g + 1], g] = 1.0
        queries[row, position[here & asking]] = True
        queries[row, :stop] = False
        end = max(position[here & thinking].tolist(), default=0) + 1
        starts = sentence_starts(batch.ids[entry][row].tolist(), stop, end, tokenizer)
        long_enough = [s for s in starts if s + stop - start <= end]
        windows += [(row, n, s - start, slice(s, s + stop - start)) for n, s in enumerate(long_enough)]
    if not queries.any():
        return None
    # A query sees the prefix from some distance. From the same distance a window is seen by the query that is as much
    # further on as the window is, where there is one: `both` marks that pair at the place of the former. Each such query
    # is compared with the mean over its windows; `control` moves their weights to the queries that see the windows.
    count = max((n for _, n, _, _ in windows), default=-1) + 1
    window, reach = (torch.zeros(rows, length, count) for _ in range(2))
    both = torch.zeros(rows, length, count)  # prefix's queries that have one of a window at the same distance
    shifted = torch.zeros(rows, length, count, dtype=torch.long)
    for row, n, shift, tokens in windows:
        window[row, tokens, n] = 1.0
        reach[row, shift + 1 :, n] = 1.0
        both[row, : length - shift, n] = (queries[row, : length - shift] & queries[row, shift:]).float()
        shifted[row, :, n] = (torch.arange(length) + shift).clamp(max=length - 1)
    matched = both.any(-1)
    mean = both / both.sum(-1, keepdim=True).clamp(min=1.0)
    control = torch.zeros_like(mean).scatter_add_(1, shifted, mean)
    return Watched(queries, matched, torch.cat([groups, window, reach], dim=-1), control)


def sentence_starts(ids: Sequence[int], first: int, last: int, tokenizer) -> list[int]:
    """Positions from `first` up to `last` where a sentence begins: after a line break, or a stop that a space follows."""
    found = []
    words = [tokenizer.decode([number]) for number in ids[first - 1 : last]]
    for place, (before, here) in enumerate(zip(words[:-1], words[1:], strict=True), start=first):
        stopped = before.rstrip(" ").endswith((".", "!", "?", "。")) and (before + here[:1])[-1].isspace()
        if here.strip() and ("\n" in before or stopped):
            found.append(place)
    return found


# -- what is measured ------------------------------------------------------------------------------------------------


def uniform_attention(mask: Tensor) -> Tensor:
    """Attention weights [batch, 1, query, key] that are equal on what a query sees, from a mask [batch, position] of tokens
    that are no padding."""
    seen = mask[:, None].float().repeat(1, mask.shape[1], 1).tril()
    return (seen / seen.sum(-1, keepdim=True).clamp(min=1.0))[:, None]


def summed(weights: Tensor, watched: Watched) -> Tensor:
    """Sums [batch, head, group + 2] over queries of attention weights [batch, head, query, key]; as in Sums."""
    masses = weights @ watched.members[:, None]
    own = weights.diagonal(dim1=-2, dim2=-1)
    masses[..., LATER] -= own
    masses[..., ITSELF] = own
    groups, (window, reach) = masses[..., :COUNT], masses[..., COUNT:].chunk(2, dim=-1)
    beyond_first = groups.sum(-1) - groups[..., FIRST]
    prefix = groups[..., PREFIX] / beyond_first.clamp(min=1e-12)
    each = torch.einsum("bhqg,bq->bhg", groups, watched.queries.float())
    own_share = torch.einsum("bhq,bq->bh", prefix, watched.matched.float())
    others = torch.einsum("bhqw,bqw->bh", window / reach.clamp(min=1e-12), watched.control)
    return torch.cat([each, own_share[..., None], others[..., None]], dim=-1)


def measured(sums: Sums) -> dict[str, Estimate]:
    """The measures, each [layer, head, group]: mass and relative of the groups that there are, times and excess of the prefix
    where there are windows; else NaN."""
    masses, prefix, windows = sums.attention.split([COUNT, 1, 1], dim=-1)
    queries, matched = (counts[:, None, None, None] for counts in (sums.queries, sums.matched))
    absent, elsewhere = sums.uniform.sum(0) == 0, torch.arange(COUNT) != PREFIX
    found = {
        "mass": (ratio(masses, queries), absent),
        "relative": (ratio(masses, sums.uniform[:, None, None]), absent),
        "times": (ratio(prefix, windows), elsewhere),
        "excess": (ratio(prefix - windows, matched), elsewhere),
    }

    def known(field: Tensor, unknown: Tensor) -> Tensor:
        return field.expand(*field.shape[:-1], COUNT).masked_fill(unknown, torch.nan)

    return {
        name: each.entries(lambda field, unknown=unknown: known(field, unknown))
        for name, (each, unknown) in found.items()
    }


def _mean(estimate: Estimate, axes: tuple[int, ...]) -> Estimate:
    return estimate.entries(lambda field: field.mean(axes))


def figure(columns: dict[str, list]) -> Figure:
    """Draws the heads of either model in one shade; the prefix first, which is what is asked about."""
    known = [name for name in SHOWN if any(value is not None for value in columns.get(name, ()))]
    kept = ("model", "layer", "head", "group", "mass_low", "mass_high", *known)
    order = sorted(range(len(columns["group"])), key=lambda n: columns["group"][n] != GROUPS[PREFIX])
    return Figure(
        name="attention_sinks/heads",
        kind="heat",
        columns={name: [columns[name][n] for n in order] for name in kept if name in columns},
        x="head",
        y=known,
        section="Attention sinks",
        title="Heads",
        caption="How much of each head's attention goes to one part of the text, on average over what comes after the opening "
        "sentence; both models share the shades.",
        group="layer",
        facet="model",
        choices=["group"],
        words={**SHOWN, "group": "attention on"},
    )
