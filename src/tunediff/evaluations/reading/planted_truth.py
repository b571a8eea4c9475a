"""Scores of the planted events that a dictionary recovers, on made-up pairs and in the planted control of a pair.

A latent is called exclusive to a model where its relative decoder norm says so (below 0.1 or above 0.9), and again where
latent scaling confirms it. The call is right if the event whose direction in that model is nearest to the latent's own,
with a cosine of at least 0.7, writes into that model alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from tunediff.activations import OF_EACH, RATES, STRENGTHS, Planted, planted_events
from tunediff.dictionary import ReconstructingDictionary
from tunediff.evaluations.latents.scaling import Called, latent_scaling
from tunediff.measures.shares import share
from tunediff.shapes import BASE, TUNED, Finding, Note, Rows, Table

EXCLUSIVE, NEAR = 0.1, 0.7


class Calls(NamedTuple):
    """called      alive latents that are called exclusive to either model
    false       number of these whose event is not, or that are near to none
    precision   share of the calls that is right; none without a call
    recall      share of the exclusive events that a right call names
    """

    called: int
    false: int
    precision: float | None
    recall: float


class Score(NamedTuple):
    """mean_max_cosine   mean over events of the largest cosine with an alive latent, over all that the dictionary reads
    by_norm, scaled   calls by relative decoder norm, and those that latent scaling confirms; none without both models
    explained_variance, l0, dead   on the same rows"""

    mean_max_cosine: float
    by_norm: Calls | None
    scaled: Calls | None
    explained_variance: float
    l0: float
    dead: float


@torch.no_grad()
def score(dictionary: ReconstructingDictionary, planted: Planted, rows: list[Rows]) -> Score:
    target = torch.cat([dictionary.normalisation.normalise(*block) for block in rows])
    latents = torch.cat([dictionary.encode(block) for block in rows])
    left = target - dictionary.reconstruct(latents)
    alive = (latents != 0).any(0)
    written = planted.written(dictionary.streams)
    written = written[written.norm(dim=-1) > 0]
    in_models_units = dictionary.W_dec / dictionary.normalisation.scale
    cosines = normalize(written, dim=-1) @ normalize(in_models_units[alive], dim=-1).T
    by_norm = scaled = None
    if {stream.role for stream in dictionary.streams} == {BASE, TUNED}:
        scaling = latent_scaling(dictionary, ((block, dictionary.encode(block).float()) for block in rows))
        base, tuned = dictionary.decoder_norms()
        relative = tuned / (base + tuned)
        called = {TUNED: alive & (relative > 1 - EXCLUSIVE), BASE: alive & (relative < EXCLUSIVE)}
        by_norm = calls(dictionary, planted, called)
        scaled = calls(dictionary, planted, {role: called[role] & scaling[role].exclusive() for role in called})
    return Score(
        float(cosines.amax(-1).mean()) if alive.any() else 0.0,
        by_norm,
        scaled,
        float(1 - left.square().sum() / (target - target.mean(0)).square().sum()),
        float((latents != 0).sum(-1).float().mean()),
        float((~alive).float().mean()),
    )


def calls(dictionary: ReconstructingDictionary, planted: Planted, called: dict[str, Tensor]) -> Calls:
    """The calls and how many are right; `called` is a mask [latent] for each model."""
    right = found = 0
    for role, directions in ((BASE, planted.base), (TUNED, planted.tuned)):
        rows = dictionary.part(dictionary.W_dec, role)[called[role]]
        if len(rows) == 0:
            continue
        nearest = nearest_event(rows, directions)
        hits = planted.exclusive(role)[nearest] & (nearest >= 0)
        right += int(hits.sum())
        found += len(nearest[hits].unique())
    count = sum(int(mask.sum()) for mask in called.values())
    events = sum(int(planted.exclusive(role).sum()) for role in (BASE, TUNED))
    return Calls(count, count - right, right / count if count else None, found / events)


def nearest_event(rows: Tensor, directions: Tensor) -> Tensor:
    """Index [n] of the direction [event, width] that is nearest to each row [n, width]; -1 where none is as near as 0.7."""
    nearest = (normalize(rows, dim=-1) @ normalize(directions, dim=-1).T).max(-1)
    return torch.where(nearest.values >= NEAR, nearest.indices, -1)


def planted_recall(called: Called) -> Iterator[Finding | Table | Note]:
    """Planted directions that the confirmed latents name: those with a cosine of at least 0.7 to one of them, in the models' own
    units; and how many of the latents that are called or confirmed there name one."""
    dictionary = called.dictionary
    streams = [stream for stream in dictionary.streams if stream.role == TUNED]
    events = planted_events(tuple(stream.width for stream in streams))
    rows = dictionary.part(dictionary.W_dec / dictionary.normalisation.scale, TUNED)[called.numbers]
    nearest = nearest_event(rows.cpu(), torch.cat(events.directions, dim=-1))
    right, sure = nearest >= 0, called.holds
    named = torch.zeros(len(events.rates), dtype=torch.bool)
    named[nearest[right & sure]] = True
    value, low, high = share(int(named.sum()), len(named))
    yield Finding(
        "latent_scaling/power", value, low, high, over="planted directions",
        meaning=f"share of {len(named)} directions, written into one copy of the base alone, that confirmed tuned-only latents of the "
        "same dictionary name: what it can see at this length",
    )  # fmt: skip
    for name, here, which in (("precision", sure, "confirmed as"), ("precision_by_norm", called.alive, "called")):
        found = share(int((right & here).sum()), int(here.sum()))
        meaning = f"share of the latents there that are {which} tuned-only which name a planted direction"
        yield Finding(f"latent_scaling/{name}", *found, meaning, over="latents")
    counts = named.reshape(len(STRENGTHS), len(RATES), OF_EACH).sum(-1)  # as planted_events lays them out
    cells = list(itertools.product(STRENGTHS, RATES))
    columns = {"strength": [strength for strength, _ in cells], "rate": [rate for _, rate in cells]}
    columns |= {"directions": [OF_EACH] * len(cells), "named": counts.flatten().tolist()}
    yield Table("planted", columns)
    of_strength = zip(STRENGTHS, counts.sum(-1).tolist(), strict=True)
    said = ", ".join(
        f"{count} of {len(RATES) * OF_EACH} at {size:g} of the base's median norm" for size, count in of_strength
    )
    yield Note(
        f"Of directions that were planted in a copy of the base alone, as tuned-only ones, on 0.1 to 3 % of the tokens, this kind of dictionary names at this "
        f"length {said}. A difference that is as weak or as rare as those it does not name may be in the pair unseen."
    )
