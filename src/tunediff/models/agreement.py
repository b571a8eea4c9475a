"""A pair and a text -> whether the two models can read it side by side, and what they read differently in it.

Tokenizers are compared on rendered documents, template and marks included. What differs in added tokens alone (think tags,
role headers) is foreign to one of the models: that is told, counted and kept out. Anything else that differs is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from tunediff.models.files import PairError
from tunediff.models.pair import ModelPair
from tunediff.shapes import OTHER, ROLES
from tunediff.text import Text, compare_tokenizers, encode

FATE = {
    "skip": "no such token is kept for a dictionary or scored",
    "respell": "each model reads its own spelling, and no such token is kept for a dictionary or scored",
    "keep": "they are treated as any other token",
}


class Agreed(NamedTuple):
    """The share of so many tokens that touches a mark which the two models read differently, and what a user is told."""

    foreign: float
    tokens: int
    notes: list[str]


def agree(pair: ModelPair, text: Text, *, roles: Sequence[str] = ROLES) -> Agreed:
    """The marks that the two models read differently in this text, as its first rows show. Raises Refused where they cannot read it
    side by side: ordinary text that is cut differently, an id of one tokenizer that lies outside the other model's
    vocabulary, or a context that one of the `roles` has no positions for: those that read the text by themselves."""
    mine, other = (pair.tokenizer_of(role) for role in (pair.owner, OTHER[pair.owner]))
    for role in roles:
        positions = getattr(pair.configs[role], "max_position_embeddings", None)
        if positions is not None and text.context > positions:
            raise PairError(
                f"text.context={text.context:,} is more than the {positions:,} positions of the {role} model "
                f"{pair.source(role).path}: set text.context to at most {positions}."
            )
    found = compare_tokenizers(mine, other, text.samples(mine), same_ids=pair.same_ids)
    if found.differing and pair.align == "strict":
        stretch, first, second = found.differing[0]
        raise PairError(
            f"The two models tokenize {len(found.differing)} of the tried texts differently, such as {stretch!r} "
            f"({len(first)} and {len(second)} ids: {first[:8]}... and {second[:8]}...). A crosscoder needs aligned "
            f"tokens: choose a pair that shares a tokenizer, or set model_pair.align=by_text."
        )
    smallest = min(pair.embedded(role) for role in ROLES)
    if pair.same_ids and len(mine) > smallest:
        raise PairError(
            f"The {pair.owner} tokenizer has {len(mine)} ids, but one of the models knows only {smallest}. "
            f"Set model_pair.tokenizer to the other model, or model_pair.align=by_text."
        )
    met = [mark for mark in found.marks if found.counts[mark]]
    if met and pair.foreign_policy == "refuse":
        raise PairError(
            f"model_pair.foreign=refuse: {_told(pair, met[0])}. Choose skip, respell or keep, or a text without it."
        )
    share = found.foreign / max(found.tokens, 1)
    return Agreed(share, found.tokens, [_note(pair, met, found.counts, share, found.tokens)] if met else [])


def _note(pair: ModelPair, met: Sequence[str], counts: dict[str, int], share: float, tokens: int) -> str:
    told = [f"{_told(pair, mark)} ({counts[mark]:,} times)" for mark in met]
    kept = pair.foreign_policy == "keep"
    closed = " No token is left with the label end_of_thinking." * (pair.layouts[0].closing in met and not kept)
    return (
        f"{len(met)} marks of this text are foreign to one of the models: {'; '.join(told)}. Tokens that touch one are "
        f"{share:.2%} of the {tokens:,} looked at; {FATE[pair.foreign_policy]} (model_pair.foreign={pair.foreign_policy}).{closed}"
    )


def _told(pair: ModelPair, mark: str) -> str:
    """A sentence on what the two models read where a mark stands."""
    ids = {role: encode(pair.tokenizer_of(role), mark)["input_ids"] for role in ROLES}
    owner, other = pair.owner, OTHER[pair.owner]
    if len(ids[owner]) > 1 or not pair.same_ids:
        return ", ".join(f"{role} spells {mark} in {len(ids[role])} id{'s' * (len(ids[role]) > 1)}" for role in ROLES)
    read = pair.tokenizer_of(other).decode(ids[owner])
    return f"{other} reads id {ids[owner][0]} as {read or 'nothing'}, {owner} as {mark}"
