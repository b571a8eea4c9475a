"""Logits and what was written so far -> the next token of each row.

In the order of transformers' logits processors: the repetition penalty, temperature, top_k, top_p, min_p. What is drawn comes
from one random number a row.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tunediff.edits import Sequences
from tunediff.generation.responses import Decoding
from tunediff.generation.writer import Writer


def next_tokens(logits: Tensor, writers: Sequence[Writer], known: Sequences) -> list[int]:
    """One token for each row of [batch, vocabulary]: the most likely, or the one where the row's draw falls when the
    probabilities of the tokens that may be drawn are laid side by side, the largest first."""
    decoding = writers[0].decoding
    if decoding.repetition_penalty != 1:
        logits = penalised(logits, known, decoding.repetition_penalty)
    if decoding.temperature == 0:
        tokens = logits.argmax(-1)
    else:
        shares, order = drawn_from(logits, decoding)
        draws = torch.tensor([0.0 if w.ended else w.draw for w in writers], dtype=torch.float64, device=logits.device)
        reached = shares.cumsum(-1) > (draws * shares.sum(-1))[:, None]
        tokens = order.gather(1, reached.long().argmax(-1, keepdim=True))[:, 0]
    return [writer.take(token) for writer, token in zip(writers, tokens.tolist(), strict=True)]


def penalised(logits: Tensor, known: Sequences, penalty: float) -> Tensor:
    """Logits [batch, vocabulary] in which those of the tokens in a row's prompt and response are divided by the penalty
    where they are positive and multiplied by it where they are not (Keskar et al. 2019, arXiv 1909.05858, section 4.1;
    of signs as transformers has it)."""
    seen = torch.where(known.real, known.ids, known.ids[:, -1:])  # padding is no token; a row that goes on ends in one
    scores = logits.gather(1, seen)
    return logits.scatter(1, seen, torch.where(scores < 0, scores * penalty, scores / penalty))


def drawn_from(logits: Tensor, decoding: Decoding) -> tuple[Tensor, Tensor]:
    """Probabilities [batch, vocabulary] from the largest to the smallest, 0 for tokens that are not drawn from, and the
    tokens that they belong to.

    top_k    the k most likely stay, and what is as likely as the last of them (Fan et al. 2018, arXiv 1805.04833)
    top_p    of these the fewest that have this share of their probability (Holtzman et al. 2020, arXiv 1904.09751)
    min_p    of these what has at least this share of the largest probability (Nguyen et al. 2024, arXiv 2407.01082)"""
    shares, order = (logits.double() / decoding.temperature).softmax(-1).sort(dim=-1, descending=True, stable=True)
    if 0 < decoding.top_k < shares.shape[-1]:
        shares = shares * (shares >= shares[:, decoding.top_k - 1, None])
    if decoding.top_p < 1:
        before = shares.cumsum(-1) - shares  # so that the token which crosses top_p stays
        shares = shares * (before < decoding.top_p * shares.sum(-1, keepdim=True))
    return shares * (shares >= decoding.min_p * shares[:, :1]), order
