"""The tokenizer that serves a pair best: each model's loss on the same held-out text under the tokenizer of each model.

bits_per_byte     - log2 p(response | prompt), summed, over the UTF-8 bytes of the response
nats_per_token    the same sum in nats over tokens: a mean over other units under each tokenizer, so not comparable
tokens_per_byte   how finely a tokenizer cuts the response

Only bits per byte compare across tokenizers: a coarser tokenizer has fewer and harder tokens. (The DeepScaleR study
chose by losses in nats a token.) The response is what follows the prompt (thinking and answer), or
the whole of a plain text, without the end token and without marks that the two tokenizers read differently; the prompt stands before it in the chat template of the tokenizer in
question, as the model would read it. A row is read up to the character at which the first of the tokenizers has filled
text.context, and only up to where all of them end a token: they score the same characters.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import log
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from tunediff.evaluations.given import Given, Needs, Work
from tunediff.measures.clustered import Estimate, interval_columns, ratio
from tunediff.measures.next_tokens import cross_entropies
from tunediff.models import ModelPair, head_of
from tunediff.shapes import BASE, ROLES, TUNED, Finding, Note, Stream, Table
from tunediff.text import Text, compare_tokenizers, padded, padded_groups
from tunediff.text.tokenizers import differing_marks, encode, one_of

SHARED = "shared"  # in place of the role of a tokenizer, where both models have the same
USES = ("bos", "eos", "pad", "unk")
NAMED = 6  # special tokens that a note names; the table has all

MEANINGS = {
    "bits_per_byte": "- log2 p(response | prompt) over the UTF-8 bytes of the response; comparable across tokenizers",
    "nats_per_token": "the same sum in nats over tokens; NOT comparable across tokenizers, whose tokens differ",
    "tokens_per_byte": "tokens of the responses over their UTF-8 bytes",
}


class Piece(NamedTuple):
    """One response under one tokenizer: ids[first:] are scored but for those at `left_out`, each given all before
    it, and what is scored stands for `bytes` bytes."""

    ids: list[int]
    first: int
    bytes: int
    left_out: frozenset[int] = frozenset()


class Tokenizers:
    """level   confidence level of the intervals"""

    needs = Needs.PAIR

    def __init__(self, *, level: float = 0.95):
        self.level = level

    def work(self, pair: ModelPair, streams: Sequence[Stream]) -> Work:
        """Both models, with the tokens of either tokenizer."""
        return Work(passes=4)

    def run(self, given: Given) -> Iterator[Finding | Table | Note]:
        pair = given.pair
        tokenizers = {role: pair.tokenizer_of(role) for role in ROLES}
        yield from told_special_tokens(tokenizers[BASE], tokenizers[TUNED])
        if are_one(tokenizers[BASE], tokenizers[TUNED], given.text.samples(tokenizers[BASE])):
            yield Note("Both models have the same tokenizer: there is none to choose, and each model is measured once.")
            tokenizers = {SHARED: tokenizers[BASE]}
        pieces = dict(zip(tokenizers, _pieces(given, list(tokenizers.values())), strict=True))
        if not pieces[next(iter(pieces))]:
            yield Note("tokenizers was not measured: no held-out row has a response within text.context tokens.")
            return
        rows: list[dict[str, Any]] = []
        found: dict[tuple[str, str], Estimate] = {}
        for owner, tokenizer in tokenizers.items():
            some = pieces[owner]
            size = torch.tensor([piece.bytes for piece in some]).double()
            tokens = torch.tensor([len(p.ids) - p.first - len(p.left_out) for p in some]).double()
            yield self._finding("tokens_per_byte", owner, ratio(tokens, size))
            for role in ROLES:
                largest, embedded = max(tokenizer.get_vocab().values()), pair.embedded(role)
                if largest >= embedded:
                    yield Note(
                        f"The {owner} tokenizer has ids up to {largest:,}, but the embedding of the {role} model has "
                        f"{embedded:,} rows: this combination was not measured."
                    )
                    continue
                nats = losses(given, role, some, f"{role} with {owner} tokenizer")
                found[role, owner] = bits = ratio(nats / log(2), size)
                loss = ratio(nats, tokens)
                row = {"model": role, "tokenizer": owner, "documents": len(some), "tokens": int(tokens.sum())}
                row |= {"bytes": int(size.sum()), "tokens_per_byte": float(tokens.sum() / size.sum())}
                for name, estimate in (("nats_per_token", loss), ("bits_per_byte", bits)):
                    row |= interval_columns(name, estimate.bounded(self.level))
                    yield self._finding(name, f"{role}/{owner}", estimate)
                rows.append(row)
        yield Table.of("tokenizers", rows)
        yield from self._differences(found)

    def _differences(self, found: Mapping[tuple[str, str], Estimate]) -> Iterator[Finding | Note]:
        """Compares the tuned model's tokenizer with the base's, in each model that both could be tried on, and over the pair."""
        apart = {
            role: found[role, TUNED] - found[role, BASE]
            for role in ROLES
            if {(role, TUNED), (role, BASE)} <= found.keys()
        }
        for role, estimate in apart.items():
            meaning = f"bits per byte of the {role} model with the tuned tokenizer less those with the base tokenizer"
            yield Finding(
                f"tokenizers/difference/{role}", *estimate.bounded(self.level), self._meaning(meaning), over="documents"
            )
        if len(apart) < len(ROLES):
            return
        base, tuned = apart[BASE], apart[TUNED]
        whole = Estimate((base.value + tuned.value) / 2, (base.influence + tuned.influence) / 2)
        value, low, high = whole.bounded(self.level)
        meaning = "the mean of both models' differences; below 0 the tuned tokenizer serves the pair better"
        words = ("bits a byte apart", "bits per byte, tuned tokenizer less base")
        yield Finding("tokenizers/difference/pair", value, low, high, self._meaning(meaning), *words, over="documents")
        if value is None or low is None or high is None or low <= 0 <= high:
            yield Note(
                "In bits per byte, these documents cannot tell which of the two tokenizers serves the pair better."
            )
        else:
            better = BASE if value > 0 else TUNED
            yield Note(
                f"The {better} tokenizer serves the pair better, by {abs(value):.4g} bits per byte on the mean of both "
                f"models: model_pair.tokenizer={better}."
            )

    def _finding(self, name: str, place: str, estimate: Estimate) -> Finding:
        meaning, (role, _, owner) = self._meaning(MEANINGS[name]), place.partition("/")
        line = f"bits per byte {role}" if (name, owner) == ("bits_per_byte", SHARED) else ""
        return Finding(
            f"tokenizers/{name}/{place}", *estimate.bounded(self.level), meaning, line=line, over="documents"
        )

    def _meaning(self, words: str) -> str:
        return f"{words}; {self.level:.0%} interval over documents"


# -- the same characters for every tokenizer -------------------------------------------------------------------------


def _pieces(given: Given, tokenizers: Sequence) -> list[list[Piece]]:
    """The held-out responses under each tokenizer, until the ids of the first reach the budget of tokens."""
    found, read = [], 0
    marks = one_of(differing_marks(*tokenizers)) if len(tokenizers) == 2 else None
    rows = given.text.named_rows(held_out=True)
    for _, pieces in given.text.sound.each(rows, lambda row: responses(row, tokenizers, given.text, marks)):
        if read >= given.tokens:
            break
        if pieces:
            read += len(pieces[0].ids)
            found.append(pieces)
    return [[pieces[n] for pieces in found] for n in range(len(tokenizers))]


def responses(
    row: Mapping[str, Any], tokenizers: Sequence, text: Text, marks: re.Pattern | None = None
) -> list[Piece] | None:
    """The row's response under each tokenizer, the same characters of it, without those of marks that the two read
    differently; nothing where a prompt fills the context."""
    written = [_written(row, tokenizer, text) for tokenizer in tokenizers]
    length = min(end - start for _, start, end in written)  # some templates write the opening think tag themselves
    encoded, ends, limit = [], [], length
    for tokenizer, (whole, _, end) in zip(tokenizers, written, strict=True):
        encoded.append(encode(tokenizer, whole))
        spans = [(first - end + length, last - end + length) for first, last in encoded[-1]["offset_mapping"]]
        ends.append([last for _, last in spans])  # counted from where the response begins
        if len(spans) > text.context:
            limit = min(limit, spans[text.context][0])
    met = set.intersection(*({last for last in each if 0 < last <= limit} for each in ends))
    # where nothing stands before the response, its first token is given and not scored
    begin = min(met, default=0) if any(each[0] > 0 for each in ends) else 0
    stop = max(met, default=0)
    if begin == stop:
        return None
    whole, _, end = written[0]
    response = whole[end - length : end]
    foreign = around_marks(response, marks, sorted({begin, *(last for last in met if last > begin)}))
    size = len(response[begin:stop].encode()) - sum(len(response[low:high].encode()) for low, high in foreign)
    pieces = []
    for each, lasts in zip(encoded, ends, strict=True):
        scored = [n for n, last in enumerate(lasts) if begin < last <= stop]
        left = frozenset(n for n in scored if any(low < lasts[n] <= high for low, high in foreign))
        if len(left) == len(scored):
            return None
        pieces.append(Piece(each["input_ids"][: scored[-1] + 1], scored[0], size, left))
    return pieces


def around_marks(text: str, marks: re.Pattern | None, ends: Sequence[int]) -> list[tuple[int, int]]:
    """The stretches of a text that hold its marks, from one of the `ends` at which every tokenizer ends a token to another."""
    found: list[tuple[int, int]] = []
    for mark in marks.finditer(text) if marks else ():
        low = max((end for end in ends if end <= mark.start()), default=ends[0])
        high = min((end for end in ends if end >= mark.end()), default=ends[-1])
        if found and low <= found[-1][1]:
            low, high = found[-1][0], max(high, found.pop()[1])
        if low < high:
            found.append((low, high))
    return found


def _written(row: Mapping[str, Any], tokenizer, text: Text) -> tuple[str, int, int]:
    """The row as the models read it, with the characters at which its response begins and ends."""
    whole, _, _, response = text.rendered(row, tokenizer)
    return whole, response, len(whole) if row.get("text") else len(whole.removesuffix(tokenizer.eos_token or ""))


@torch.no_grad()
def losses(given: Given, role: str, pieces: Sequence[Piece], title: str) -> Tensor:
    """Cross-entropy [piece] of each piece's scored tokens in nats, summed in float64."""
    model, device = given.pair.models[role], given.pair.device(role)
    head = head_of(model)
    summed = torch.zeros(len(pieces), dtype=torch.float64)
    with tqdm(
        total=sum(len(p.ids) for p in pieces), unit="tok", unit_scale=True, desc=title, leave=False, delay=2
    ) as bar:
        for some in padded_groups(range(len(pieces)), given.tokens_per_batch, lambda n: len(pieces[n].ids)):
            ids, mask = padded([pieces[n].ids for n in some], "right")
            first = torch.tensor([pieces[n].first for n in some])
            wanted = mask * (torch.arange(mask.shape[1]) >= first[:, None])
            for row, n in enumerate(some):
                wanted[row, list(pieces[n].left_out)] = 0
            wanted = wanted[:, 1:].bool()
            ids = ids.to(device)
            output = model.base_model(input_ids=ids, attention_mask=mask.to(device), use_cache=False)
            hidden, targets = output.last_hidden_state[:, :-1][wanted], ids[:, 1:][wanted]
            each = cross_entropies(head, hidden, targets, logits_mb=given.logits_mb)
            summed.index_add_(0, torch.tensor(some)[wanted.nonzero()[:, 0]], each.cpu().double())
            bar.update(int(mask.sum()))
    return summed


# -- do they differ? -------------------------------------------------------------------------------------------------


def are_one(base, tuned, texts: Iterable[str]) -> bool:
    """True where two tokenizers give every document the same ids: the vocabulary, the chat template, the uses of special
    tokens, and how they cut the probes and these texts."""
    parts = [(t.get_vocab(), t.chat_template, *(getattr(t, f"{use}_token") for use in USES)) for t in (base, tuned)]
    found = compare_tokenizers(base, tuned, texts)
    return parts[0] == parts[1] and not found.differing and not found.marks


def told_special_tokens(base, tuned) -> Iterator[Table | Finding | Note]:
    """Special tokens and markers (think tags, chat markers) of both tokenizers side by side, and what share differs."""
    sides = {BASE: base, TUNED: tuned}
    names = dict.fromkeys(str(token) for t in sides.values() for token in t.added_tokens_decoder.values())
    rows: list[dict[str, Any]] = [{"token": name} for name in names]
    for role, tokenizer in sides.items():
        vocabulary = tokenizer.get_vocab()
        for row in rows:
            name = row["token"]
            row[f"{role}_id"] = vocabulary.get(name)
            row[f"{role}_pieces"] = len(encode(tokenizer, name)["input_ids"])
            row[f"{role}_use"] = ", ".join(use for use in USES if getattr(tokenizer, f"{use}_token") == name)
    differing = [r for r in rows if any(r[f"{BASE}_{part}"] != r[f"{TUNED}_{part}"] for part in ("id", "use"))]
    yield Table.of("special_tokens", rows)
    share = len(differing) / max(len(rows), 1)
    meaning = f"share of the {len(rows)} special tokens and markers of either tokenizer that differ in id or use"
    yield Finding("tokenizers/special_tokens/differing_share", share, meaning=meaning)
    if differing:
        told = [f"{r['token']!r} ({_place(r, BASE)} in base, {_place(r, TUNED)} in tuned)" for r in differing[:NAMED]]
        rest = f"; {len(differing) - NAMED} more in the table special_tokens" if len(differing) > NAMED else ""
        yield Note(f"{len(differing)} of {len(rows)} special tokens differ: {', '.join(told)}{rest}.")


def _place(row: Mapping[str, Any], role: str) -> str:
    if row[f"{role}_id"] is None:
        return f"{row[f'{role}_pieces']} ordinary ids"
    return f"id {row[f'{role}_id']}" + (f", {row[f'{role}_use']}" if row[f"{role}_use"] else "")
