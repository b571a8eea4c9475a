"""How much attention the opening sentence of the thinking receives from what comes after it, in each layer and head.

For queries after the prefix (later thinking, answer), over the groups of tokens that they see:
    first   the first token of the sequence       prompt   the rest, up to the thinking      tag     "<think>" and its line break
    prefix  the opening sentence itself           later    tokens between it and the query   itself  the query

mass       mean over queries of the attention on a group; the masses sum to 1. It grows with the group's size, so:
relative   mass / the mass that the group has under uniform attention over all the query sees; 1 is no preference
excess     near tokens are preferred to far ones, which hides a sink: the prefix's relative mass from a query, less the mean of
           that of later thinking sentences (as many tokens, from a sentence's start) from queries at the same distance. Relative
           masses, because a later query divides its attention among more tokens. 0: a sentence like any other

Attention sinks: Xiao et al. 2023 (arXiv 2309.17453). Queries are kept tokens, keys all tokens of the sequence, special ones
included. A layer with a sliding window sees less than is counted here, where a sequence is longer than the window.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from tunediff.evaluations.intervals import Estimate, ratio
from tunediff.evaluations.trained import Trained
from tunediff.hookpoints import attending
from tunediff.shapes import BASE, ROLES, SEGMENTS, TUNED, Finding, Note, Table
from tunediff.text import Batch

GROUPS = ("first", "prompt", "tag", "prefix", "later", "itself")
PREFIX, LATER, ITSELF = (GROUPS.index(name) for name in ("prefix", "later", "itself"))
MEANINGS = {
    "mass": "attention on the {} from tokens after the opening sentence of the thinking",
    "relative": "that attention / its value under uniform attention over all visible tokens",
    "excess": "relative attention on a token of the opening sentence, less that on a token of later sentences from the same "
    "distance",
}


class Watched(NamedTuple):
    """What is looked at in one batch; a window is a later sentence, as far as the prefix is long.

    queries  [batch, query] bool                        matched  [batch, query] bool: at whose distance there is a window
    members  [batch, key, group + window]               which keys belong to each, in {0, 1}
    control  [batch, query, group + window]             weights of relative masses in the excess
    """

    queries: Tensor
    matched: Tensor
    members: Tensor
    control: Tensor


class Sums(NamedTuple):
    """Sums over the queries of each document, in float64.

    attention  [document, layer, head, group + 1], the last is the excess       uniform  [document, group]
    queries, matched  [document]                                                document  [document] their numbers
    """

    attention: Tensor
    uniform: Tensor
    queries: Tensor
    matched: Tensor
    document: Tensor


class AttentionSinks:
    """level   of the intervals"""

    needs_dictionary = False

    def __init__(self, *, level: float = 0.95):
        self.level = level

    def run(self, trained: Trained) -> Iterator[Finding | Table | Note]:
        sums = {role: self._sums(trained, role) for role in ROLES}
        if None in sums.values():
            yield Note(
                "attention_sinks was not measured: no held-out sequence has the opening sentence of a thinking and tokens "
                "after it."
            )
            return
        if not sums[BASE].matched.any():
            yield Note("attention_sinks has no excess: no later sentence of a thinking is as long as its opening.")
        columns: dict[str, list] = {}
        for role in ROLES:
            measures = measured(sums[role])
            self._add_rows(columns, role, measures, sums[role])
            yield from self._findings(role, measures, sums[role])
            yield from self._largest_head(role, sums[role])
        yield Table("attention_sinks", columns)
        if torch.equal(sums[BASE].document, sums[TUNED].document):
            base, tuned = (_mean(measured(sums[role])["mass"], (-3, -2)) for role in ROLES)
            apart = Estimate(*(t[..., PREFIX] - b[..., PREFIX] for t, b in zip(tuned, base, strict=True)))
            meaning = "attention on the prefix in the tuned model less that in the base, mean over layers and heads"
            yield self._finding("difference/prefix", apart, meaning)

    def _findings(self, role: str, measures: dict[str, Estimate], sums: Sums) -> Iterator[Finding]:
        present = sums.uniform.sum(0) > 0
        for name, estimate in measures.items():
            over_all, by_layer = _mean(estimate, (-3, -2)), _mean(estimate, (-2,))
            for g, group in enumerate(GROUPS):
                if not present[g] or (name == "excess" and g != PREFIX):
                    continue
                meaning = MEANINGS[name].format(group)
                place = role if name == "excess" else f"{role}/{group}"
                yield self._finding(f"{name}/{place}", _at(over_all, g), f"{meaning}; mean over layers and heads")
                for layer in range(by_layer.value.shape[0] if g == PREFIX else 0):
                    one = Estimate(by_layer.value[layer, g], by_layer.influence[:, layer, g])
                    yield self._finding(f"{name}/{place}/{layer}", one, f"{meaning}; layer {layer}, mean over heads")

    def _largest_head(self, role: str, sums: Sums) -> Iterator[Finding]:
        """Chosen on the documents of even number, measured on the others."""
        chosen, tested = (sums.document % 2 == n for n in (0, 1))
        if not chosen.any() or not tested.any():
            return
        attention, queries = sums.attention[..., PREFIX], sums.queries[:, None, None]
        by_head = ratio(attention[chosen], queries[chosen]).value
        layer, head = divmod(int(by_head.argmax()), by_head.shape[1])
        how = "the head that gives the opening sentence most, chosen on half of the documents"
        yield Finding(f"attention_sinks/head/{role}/layer", layer, meaning=f"layer of {how}")
        yield Finding(f"attention_sinks/head/{role}/head", head, meaning=f"number of {how}")
        mass = ratio(attention[tested, layer, head], queries[tested, 0, 0])
        yield self._finding(f"head/{role}/mass", mass, f"attention of {how}; measured on the other half")

    def _finding(self, name: str, estimate: Estimate, meaning: str) -> Finding:
        low, high = (float(bound) for bound in estimate.interval(self.level))
        bounds = (low, high) if low == low else (None, None)
        how = f"{len(estimate.influence):,} documents; {self.level:.0%} interval over documents"
        return Finding(f"attention_sinks/{name}", float(estimate.value), *bounds, f"{meaning}; {how}")

    def _add_rows(self, columns: dict[str, list], role: str, measures: dict[str, Estimate], sums: Sums) -> None:
        layers, heads, _ = measures["mass"].value.shape
        present = (sums.uniform.sum(0) > 0).nonzero()[:, 0].tolist()
        places = [(layer, head, g) for layer in range(layers) for head in range(heads) for g in present]
        uniform = (sums.uniform.sum(0) / sums.queries.sum()).tolist()
        found: dict[str, list] = {
            "model": [role] * len(places),
            "layer": [layer for layer, _, _ in places],
            "head": [head for _, head, _ in places],
            "group": [GROUPS[g] for _, _, g in places],
            "uniform": [uniform[g] for _, _, g in places],
        }
        for name in ("mass", "relative", "excess"):
            fields = [None] * 3
            if name in measures:
                fields = [t.tolist() for t in (measures[name].value, *measures[name].interval(self.level))]
            for part, field in zip(("", "_low", "_high"), fields, strict=True):
                values = [None if field is None else field[layer][head][g] for layer, head, g in places]
                found[name + part] = [None if v is None or v != v else v for v in values]
        for name, values in found.items():
            columns.setdefault(name, []).extend(values)

    @torch.no_grad()
    def _sums(self, trained: Trained, role: str) -> Sums | None:
        pair, found = trained.pair, []
        model, device = pair.models[role], pair.device(role)
        with tqdm(
            total=trained.tokens, unit="tok", unit_scale=True, desc=f"{role} attention", leave=False, delay=2
        ) as bar:
            for batch in trained.held_out:
                bar.update(len(batch.token))
                watched = watch(batch, pair.entry(role), pair.tokenizers[pair.entry(role)])
                if watched is None:
                    continue
                watched = Watched(*(t.to(device) for t in watched))
                inputs, layers = pair.inputs(role, batch), []
                uniform = uniform_attention(inputs["attention_mask"])
                share = group_masses(uniform, watched)

                def see(_, weights: Tensor, watched=watched, share=share, layers=layers) -> None:
                    layers.append(summed(group_masses(weights.float(), watched), share, watched))

                with attending(model, see):
                    model.base_model(**inputs, use_cache=False)
                whole = summed(share, share, watched)[:, 0, :-1]  # as if of one head
                counts = [mask.sum(1).double() for mask in (watched.queries, watched.matched)]
                number = torch.zeros(len(whole), dtype=torch.long)
                number[batch.sequence] = batch.document
                found.append(Sums(torch.stack(layers, dim=1).cpu(), whole.cpu(), *(c.cpu() for c in counts), number))
        if not found:
            return None
        return by_document(Sums(*(torch.cat(field) for field in zip(*found, strict=True))))


# -- what is looked at -----------------------------------------------------------------------------------------------


def watch(batch: Batch, entry: int, tokenizer) -> Watched | None:
    """Of the ids that one model reads; None where no sequence of the batch has a prefix with queries after it."""
    if "opening" not in batch.labels:
        return None
    ids = batch.ids[entry]
    rows, length = ids.shape
    thinking = batch.segment == SEGMENTS.index("thinking")
    asking = thinking | (batch.segment == SEGMENTS.index("answer"))
    position = batch.places[entry] - batch.sequence * length
    queries, matched = (torch.zeros(rows, length, dtype=torch.bool) for _ in range(2))
    windows: list[list[int]] = [[] for _ in range(rows)]
    spans: list[tuple[int, int, int]] = [(0, 0, 0)] * rows
    for row in range(rows):
        here = batch.sequence == row
        prefix = position[here & batch.labels["opening"]]
        if len(prefix) == 0:
            continue
        start, stop = int(prefix.min()), int(prefix.max()) + 1
        tag = position[here & (batch.segment == SEGMENTS.index("prefix"))]
        spans[row] = (min(start, *tag.tolist()), start, stop)
        queries[row, position[here & asking]] = True
        queries[row, :stop] = False
        inside = [p for p in position[here & thinking].tolist() if p >= stop]
        if inside:
            starts = sentence_starts(ids[row].tolist(), stop, max(inside) + 1, tokenizer)
            windows[row] = [s for s in starts if s + stop - start <= max(inside) + 1]
    if not queries.any():
        return None
    count = len(GROUPS) + max(map(len, windows))
    members, control = (torch.zeros(rows, length, count) for _ in range(2))
    for row, (tag, start, stop) in enumerate(spans):
        bounds = (1, tag, start, stop, length)
        members[row, 0, 0] = 1.0  # of its own group alone, whatever else it is
        for g in range(1, LATER + 1):
            members[row, max(bounds[g - 1], 1) : bounds[g], g] = 1.0
        aligned = []
        for n, window in enumerate(windows[row], start=len(GROUPS)):
            members[row, window : window + stop - start, n] = 1.0
            shift = window - start
            both = torch.zeros(length, dtype=torch.bool)
            both[: length - shift] = queries[row, : length - shift] & queries[row, shift:]
            aligned.append((n, shift, both))
        met = sum((both.float() for _, _, both in aligned), torch.zeros(length))
        matched[row] = met > 0
        control[row, :, PREFIX] = matched[row].float()
        for n, shift, both in aligned:
            at = both.nonzero()[:, 0]
            control[row, at + shift, n] = -1 / met[at]
    return Watched(queries, matched, members, control)


def sentence_starts(ids: Sequence[int], first: int, last: int, tokenizer) -> list[int]:
    """Positions from `first` up to `last` where a sentence begins: after a line break, or a stop that a space follows."""
    words = [tokenizer.decode([number]) for number in ids[first - 1 : last]]
    found = []
    for n in range(1, len(words)):
        before, here = words[n - 1], words[n]
        ended = "\n" in before or (
            before.rstrip(" ").endswith((".", "!", "?", "。")) and (before + here[:1])[-1].isspace()
        )
        if ended and here.strip():
            found.append(first + n - 1)
    return found


# -- what is measured ------------------------------------------------------------------------------------------------


def uniform_attention(mask: Tensor) -> Tensor:
    """[batch, 1, query, key]: all the same on what a query sees, of a mask [batch, position] of tokens that are no padding."""
    seen = mask[:, None].float().repeat(1, mask.shape[1], 1).tril()
    return (seen / seen.sum(-1, keepdim=True).clamp(min=1.0))[:, None]


def group_masses(weights: Tensor, watched: Watched) -> Tensor:
    """[batch, head, query, group + window], of attention weights [batch, head, query, key]."""
    masses = weights @ watched.members[:, None]
    own = weights.diagonal(dim1=-2, dim2=-1)
    masses[..., LATER] -= own
    masses[..., ITSELF] = own
    return masses


def summed(masses: Tensor, share: Tensor, watched: Watched) -> Tensor:
    """[batch, head, group + 1] over queries in float64: the masses, and the excess. `share` are the masses of uniform
    attention."""
    groups = torch.einsum("bhqg,bq->bhg", masses[..., : len(GROUPS)].double(), watched.queries.double())
    control = (watched.control / share[:, 0].clamp(min=1e-12)).double()
    excess = torch.einsum("bhqg,bqg->bh", masses.double(), control)
    return torch.cat([groups, excess[..., None]], dim=-1)


def measured(sums: Sums) -> dict[str, Estimate]:
    """mass, relative, and where there is a control excess, each [layer, head, group]; not a number where there is none."""
    attention = sums.attention[..., :-1]
    found = {"mass": ratio(attention, sums.queries[:, None, None, None])}
    found["relative"] = ratio(attention, sums.uniform[:, None, None])
    if sums.matched.any():
        excess = ratio(sums.attention[..., -1:], sums.matched[:, None, None, None])
        found["excess"] = Estimate(*(_only_at_prefix(field) for field in excess))
    return found


def by_document(sums: Sums) -> Sums:
    """Sums of sequences -> of documents that have queries."""
    asked = sums.queries > 0
    *fields, number = (field[asked] for field in sums)
    documents, place = number.unique(return_inverse=True)
    totals = (f.new_zeros(len(documents), *f.shape[1:]).index_add_(0, place, f) for f in fields)
    return Sums(*totals, documents)


def _only_at_prefix(field: Tensor) -> Tensor:
    """[..., 1] -> [..., group], not a number elsewhere."""
    whole = field.new_full((*field.shape[:-1], len(GROUPS)), torch.nan)
    whole[..., PREFIX] = field[..., 0]
    return whole


def _mean(estimate: Estimate, axes: tuple[int, ...]) -> Estimate:
    return Estimate(*(field.mean(axes) for field in estimate))


def _at(estimate: Estimate, group: int) -> Estimate:
    return Estimate(*(field[..., group] for field in estimate))
