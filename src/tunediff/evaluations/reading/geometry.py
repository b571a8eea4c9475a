"""The latents that belong to one model: decoder norms and cosines, with firing rates on held-out text.

relative_decoder_norm   |tuned| / (|base| + |tuned|): 0 is base-only, 0.5 shared, 1 tuned-only (Lindsey et al. 2024). In
                        the dictionary's normalised units, where both models have the same typical size. The other
                        convention of the field, ((|base| - |tuned|) / max + 1) / 2, runs the other way.
decoder_cosine          between the two decoder rows of a latent; beside it, all pairs of rows of different latents
A count says where decoder norms lie, not that a latent is absent from a model: an L1 penalty alone drives norms apart
(arXiv 2504.02922).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from tunediff.dictionary import TranscoderAdapter
from tunediff.evaluations.given import Trained
from tunediff.evaluations.latents.statistics import both_decoders, decoder_cosine, relative_decoder_norm, role_norms
from tunediff.measures import mean_of, share
from tunediff.shapes import BASE, BLOCK, TUNED, Finding, Note, Table

STEPS = 2**18  # of the cosine, from -1 to 1, that all pairs are counted in
KINDS = ("base_only", "shared", "tuned_only", "other")


@dataclass(kw_only=True)
class Geometry:
    """exclusive      below this relative decoder norm a latent counts as base-only, above 1 minus it as tuned-only
    shared         the band around 0.5 that counts as shared
    neighbours     number of nearest others listed per latent, by the cosine of whole decoder rows
    """

    exclusive: float = 0.1
    shared: tuple[float, float] = (0.3, 0.7)
    neighbours: int = 5

    def run(self, trained: Trained) -> Iterator[Finding | Table | Note]:
        columns, alive = trained.statistics.columns(), trained.statistics.alive
        columns["latent"] = list(range(trained.dictionary.latents))
        if isinstance(trained.dictionary, TranscoderAdapter):
            columns["layer"] = [trained.dictionary.place_of(number)[0] for number in columns["latent"]]
            columns["decoder_norm"] = trained.dictionary.code_norms().tolist()
        if set(trained.roles) == {BASE, TUNED}:
            base, tuned = (role_norms(trained, role) for role in (BASE, TUNED))
            relative = relative_decoder_norm(trained)
            kinds = self.kinds(relative)
            columns |= {
                "norm_base": base.tolist(),
                "norm_tuned": tuned.tolist(),
                "relative_decoder_norm": relative.tolist(),
                "kind": [KINDS[i] for i in kinds.tolist()],
            }
            yield from self._counts(kinds, alive, trained.statistics.rate)
            cosine = decoder_cosine(trained)
            columns["decoder_cosine"] = [None] * len(alive) if cosine is None else cosine.tolist()
            if cosine is None:
                yield Note("The models have different widths: decoder cosines are not defined.")
            else:
                yield from self._cosines(trained, cosine, kinds, alive)
        yield Table("latents", columns)
        yield Table("neighbours", neighbours(trained.dictionary.W_dec.detach(), alive, self.neighbours))

    def kinds(self, relative: Tensor) -> Tensor:
        """Index [latent] into KINDS."""
        low, high = self.shared
        kinds = torch.full_like(relative, KINDS.index("other"), dtype=torch.long)
        kinds[(relative >= low) & (relative <= high)] = KINDS.index("shared")
        kinds[relative < self.exclusive] = KINDS.index("base_only")
        kinds[relative > 1 - self.exclusive] = KINDS.index("tuned_only")
        return kinds

    def _counts(self, kinds: Tensor, alive: Tensor, rate: Tensor) -> Iterator[Finding]:
        bounds = {
            "base_only": f"relative decoder norm below {self.exclusive}",
            "shared": f"relative decoder norm from {self.shared[0]} to {self.shared[1]}",
            "tuned_only": f"relative decoder norm above {1 - self.exclusive}",
            "other": "between these bands",
        }
        total = int(alive.sum())
        for i, kind in enumerate(KINDS):
            count, word = int(((kinds == i) & alive).sum()), "" if kind == "other" else kind.replace("_", "-")
            meaning = f"alive latents, {bounds[kind]}"
            yield Finding(f"geometry/count/{kind}", count, meaning=meaning, column=word, line=word)
            yield Finding(f"geometry/share/{kind}", *share(count, total), f"share of all {meaning}", over="latents")
            if count:
                density = float(rate[(kinds == i) & alive].log2().mean())
                said = "log2 of the firing rate, mean over these: 1 more is twice as dense"
                yield Finding(f"geometry/density/{kind}", density, meaning=f"{meaning}: {said}")

    def _cosines(self, trained: Trained, cosine: Tensor, kinds: Tensor, alive: Tensor) -> Iterator[Finding]:
        shared = cosine[(kinds == KINDS.index("shared")) & alive]
        meaning = "mean cosine of the two decoder rows of a shared latent"
        found = mean_of(shared.cpu(), least=-1.0, most=1.0)
        yield Finding("geometry/decoder_cosine/shared_mean", *found, meaning, over="latents")
        mean, p95 = of_pairs(*both_decoders(trained), 0.95)
        pairs = len(cosine) * (len(cosine) - 1)
        meaning = f"{{}} of the cosine between the base's and the tuned decoder row of all {pairs:,} pairs of different latents"
        yield Finding("geometry/decoder_cosine/random_pairs_mean", mean, meaning=meaning.format("mean"))
        yield Finding("geometry/decoder_cosine/random_pairs_p95", p95, meaning=meaning.format("95 % quantile"))


def of_pairs(first: Tensor, second: Tensor, quantile: float) -> tuple[float | None, float | None]:
    """Mean and quantile, the latter to within 1e-5, of the cosine of rows [latent, width] of different latents, over all pairs;
    None for a single latent."""
    first, second = (normalize(rows.float(), dim=-1) for rows in (first, second))
    own = (first * second).sum(-1)
    pairs = len(first) * (len(first) - 1)
    if not pairs:
        return None, None
    total = first.double().sum(0) @ second.double().sum(0) - own.double().sum()
    counted = torch.zeros(STEPS, dtype=torch.float64)
    for some, same in zip(first.split(BLOCK), own.split(BLOCK), strict=True):
        counted += torch.histc((some @ second.T).clamp(-1, 1), STEPS, -1.0, 1.0).double()
        counted -= torch.histc(same.clamp(-1, 1), STEPS, -1.0, 1.0).double()
    place = int((counted.cumsum(0) >= quantile * pairs).int().argmax())
    return float(total) / pairs, (place + 0.5) * 2 / STEPS - 1


def neighbours(rows: Tensor, alive: Tensor, count: int) -> dict[str, list]:
    """The `count` alive latents with the nearest decoder rows [latent, width], by cosine, of each alive one."""
    numbers = alive.nonzero()[:, 0]
    units = normalize(rows[numbers.to(rows.device)], dim=-1)
    columns: dict[str, list] = {"latent": [], "rank": [], "neighbour": [], "cosine": []}
    for first in range(0, len(units), BLOCK):
        cosines = units[first : first + BLOCK] @ units.T
        own = torch.arange(len(cosines), device=cosines.device)
        cosines[own, own + first] = -torch.inf
        near = cosines.topk(min(count, max(len(units) - 1, 0)), dim=-1)
        columns["latent"] += numbers[first : first + BLOCK].repeat_interleave(near.values.shape[1]).tolist()
        columns["rank"] += list(range(near.values.shape[1])) * len(cosines)
        columns["neighbour"] += numbers[near.indices.cpu()].flatten().tolist()
        columns["cosine"] += near.values.flatten().tolist()
    return columns
