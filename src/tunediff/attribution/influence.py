"""Edges of a graph -> how much of the logits runs through each node, and the part of the graph that carries most of it.

    share[target, source]   |edge| over the sum of |edges| into the target
    influence[source]       probability of each logit, times the product of the shares along a path, over all paths

As in circuit-tracer (Ameisen et al. 2025): nodes are kept first, then edges between them. Pure functions of tensors; rows
of edges are targets, latents and then logits, columns are sources, latents and then positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from tunediff.shapes import Refused


class Pruned(NamedTuple):
    """latents [latent] bool and edges [target, source] bool that are kept, embeddings and logits always are; influence
    [source] before pruning; cumulative [source]: the share of it that this source and all stronger ones have."""

    latents: Tensor
    edges: Tensor
    influence: Tensor
    cumulative: Tensor


def influence(edges: Tensor, probabilities: Tensor, of: Tensor | None = None) -> Tensor:
    """[source]. `of` [target - logit] says which latent each row is, where not every latent has one yet."""
    latents = len(edges) - len(probabilities)
    of = torch.arange(latents) if of is None else of
    shares = _shares(edges)
    reached = probabilities.to(shares) @ shares[latents:]
    found = reached.clone()
    for _ in range(latents):  # a path meets no latent twice, and ends after as many as there are layers
        reached = reached[of] @ shares[:latents]
        if not reached.any():
            break
        found += reached
    return found


def prune(edges: Tensor, probabilities: Tensor, *, nodes: float = 0.8, links: float = 0.98) -> Pruned:
    """Keeps the fewest latents and embeddings that have a share `nodes` of all influence, then the fewest edges between
    them that carry `links` of theirs, then no latent without an edge into and out of it."""
    check_share("nodes", nodes)
    check_share("links", links)
    latents, logits = len(edges) - len(probabilities), len(probabilities)
    found = influence(edges, probabilities)
    kept = fewest(found, nodes)[:latents]
    rows = torch.cat([kept, torch.ones(logits, dtype=torch.bool)])
    columns = torch.cat([kept, torch.ones(edges.shape[1] - latents, dtype=torch.bool)])
    part = edges[rows][:, columns]
    count = int(kept.sum())
    reaching = torch.cat([influence(part, probabilities)[:count], probabilities.to(part)])
    scores = _shares(part) * reaching[:, None]
    strong = fewest(scores.flatten(), links).view_as(scores)
    alive = torch.ones(count, dtype=torch.bool)
    while True:
        linked = alive & strong[:, :count].any(0) & strong[:count].any(1)
        if bool((linked == alive).all()):
            break
        alive = linked
        strong[:count] &= alive[:, None]
        strong[:, :count] &= alive
    whole = torch.zeros(edges.shape, dtype=torch.bool)
    whole[rows.nonzero(), columns.nonzero()[:, 0]] = strong
    kept = kept.clone()
    kept[kept.nonzero()[:, 0]] = alive
    return Pruned(kept, whole, found, cumulative(found))


def check_share(name: str, share: float) -> None:
    if not 0 < share <= 1:
        raise Refused(f"{name}={share} is no share of the influence that can be kept: give one above 0, and at most 1.")


def fewest(scores: Tensor, share: float) -> Tensor:
    """bool: the fewest of them that sum to this share, and whatever equals the smallest; never one that is zero."""
    positive = scores[scores > 0].double()
    if not len(positive):
        return torch.zeros_like(scores, dtype=torch.bool)
    ordered = positive.sort(descending=True).values
    summed = ordered.cumsum(0)
    # what rounding leaves of the last of all is no reason to look for one more
    last = int(torch.searchsorted(summed, share * summed[-1] * (1 - 1e-12)))
    return (scores >= ordered[min(last, len(ordered) - 1)].to(scores)) & (scores > 0)


def cumulative(scores: Tensor) -> Tensor:
    ordered, order = scores.double().sort(descending=True)
    found = torch.zeros_like(ordered)
    found[order] = ordered.cumsum(0) / ordered.sum().clamp(min=1e-30)
    return found.float()


def summed(influences: Sequence[tuple[Tensor, Tensor]], count: int) -> Tensor:
    """[latent]: mean over graphs of a latent's share of the influence of all latents, its positions summed. Each graph is
    given as the numbers and the influence of its latents; `count` is how many latents there are."""
    total = torch.zeros(count, dtype=torch.float64)
    for numbers, values in influences:
        total.index_add_(0, numbers, values.double() / values.double().sum().clamp(min=1e-30))
    return total / max(len(influences), 1)


def _shares(edges: Tensor) -> Tensor:
    sizes = edges.abs()
    return sizes / sizes.sum(1, keepdim=True).clamp(min=1e-30)
