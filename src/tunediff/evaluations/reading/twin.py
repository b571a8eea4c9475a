"""A twin, the same dictionary from another seed on the same batches: which latents does it find too?

correlation   of a latent's activations with those of the twin's latent that follows it best, over held-out tokens. It does
              not care how a concept's norm is split between the models, as cosines of decoder rows do
matched       a correlation of at least 0.7
by chance     the same against the twin's activations of other tokens, as many and as sparse
untrained     the same of latents that learned nothing, on the same tokens: some of what two dictionaries share is the data's
pw_mcc        mean |cosine| of decoder rows over the best one-to-one pairs (arXiv 2505.20254, PW-MCC), beside that of random
              rows, of the rows that both began with, and of the twin with a dictionary of permuted rows (the control of that
              name): of so few or so wide rows some are near by chance, and what one model alone has is found of either
confirmed     of the latents that are called one model's own, those whose match the twin calls so too

Latents that the same latent of the twin follows best are parts of one concept: intervals of shares take them as one unit.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from tunediff import randomness
from tunediff.activations import PERMUTED
from tunediff.dictionary import Dictionary
from tunediff.evaluations.given import TWIN, Needs, Trained
from tunediff.evaluations.latents.statistics import called_exclusive
from tunediff.measures.shares import share_by_group
from tunediff.shapes import BASE, BLOCK, TUNED, Finding, Note, Table

LARGEST = 8192  # latents up to which all are matched; of more, those that are called exclusive


@dataclass(kw_only=True)
class Twin:
    """near        correlation from which two latents are a match
    exclusive   relative decoder norm that calls a latent one model's own, as in geometry
    """

    needs = Needs.RECONSTRUCTION

    near: float = 0.7
    exclusive: float = 0.1

    def run(self, trained: Trained) -> Iterator[Finding | Table | Note]:
        if TWIN not in trained.companions:
            yield Note("twin was not measured: no twin was trained beside this dictionary (budget.companions=[twin]).")
            return
        other, count = trained.beside(TWIN), trained.dictionary.latents
        kinds, kinds_of_twin = self.kinds(trained), self.kinds(other)
        numbers = torch.arange(count)
        if count > LARGEST:
            exclusive = [kinds[kind] for kind in ("base_only", "tuned_only") if kind in kinds]
            numbers = torch.stack([torch.zeros(count, dtype=torch.bool), *exclusive]).any(0).nonzero()[:, 0]
        found, chance = correlations(trained, other, numbers)
        best, match = best_of(found, numbers, count)
        best[~kinds["all"]] = torch.nan
        matched = best >= self.near
        confirmed: list[bool | None] = [None] * count
        for kind, here in kinds.items():
            here = here & ~best.isnan()
            of = f"of {int(here.sum())} alive latents" + (
                "" if kind == "all" else f" that are {kind.replace('_', '-')}"
            )
            said = f"{of}, those that a dictionary from another seed has too"
            yield share(f"twin/matched/{kind}", matched[here], match[here], said)
            if kind == "all":
                untrained = trained.reading(cast(Dictionary, trained.random_latents))
                for name, with_others, said in (
                    ("by_chance", chance, "those that have a match by chance: among its activations of other tokens"),
                    (
                        "untrained",
                        correlations(trained, untrained, numbers)[0],
                        "those that have a match among as many latents that learned nothing, on the same tokens",
                    ),
                ):
                    largest, partner = best_of(with_others, numbers, count)
                    yield share(f"twin/matched_{name}", (largest >= self.near)[here], partner[here], f"{of}, {said}")
            if kind in ("base_only", "tuned_only"):
                holds = matched & kinds_of_twin[kind][match.clamp(min=0)]
                for latent in here.nonzero()[:, 0].tolist():
                    confirmed[latent] = bool(holds[latent])
                said = f"{of}, those whose match the twin calls so too"
                yield share(f"twin/confirmed/{kind}", holds[here], match[here], said)
        if count <= LARGEST:
            yield from pw_mcc(trained, other)
        columns = {"twin": match.tolist(), "twin_correlation": best.tolist()}
        known = {
            name: [None if gone else value for value, gone in zip(values, best.isnan().tolist(), strict=True)]
            for name, values in columns.items()
        }
        yield Table("latents", {"latent": list(range(count)), **known, "twin_confirmed": confirmed})

    def kinds(self, trained: Trained) -> dict[str, Tensor]:
        """Masks [latent] of the alive latents, and with two models of those that belong to one."""
        alive = trained.statistics.alive
        if set(trained.roles) != {BASE, TUNED}:
            return {"all": alive}
        called = called_exclusive(trained, self.exclusive)
        return {"all": alive} | {kind: alive & here for kind, here in called.items()}


def share(name: str, flags: Tensor, partner: Tensor, meaning: str) -> Finding:
    """The share of latents [n] with a flag; the latents that one latent of the other dictionary follows best, their partner [n],
    are one unit of chance. None of none."""
    return Finding(name, *share_by_group(flags, partner), meaning, over="partners of latents")


def best_of(correlations: Tensor, numbers: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The largest correlation [count] of each latent, and the latent that has it, from correlations [n, latent of other] of the
    latents with the indices `numbers` [n]; NaN and -1 for the other latents."""
    best, match = torch.full((count,), torch.nan), torch.full((count,), -1)
    if len(numbers):
        best[numbers], match[numbers] = correlations.max(-1)
    return best, match


def correlations(trained: Trained, other: Trained, numbers: Tensor) -> tuple[Tensor, Tensor]:
    """Correlations [n, latent of other] of the activations of the latents with the indices `numbers` [n], and those with the other's
    activations of tokens half a block away. NaN of a latent that never fires."""
    device = trained.dictionary.W_dec.device
    sizes = (len(numbers), other.dictionary.latents)
    products, shifted = (torch.zeros(sizes, dtype=torch.float64) for _ in range(2))
    mine, theirs = (torch.zeros(2, size, dtype=torch.float64) for size in sizes)
    tokens = 0
    for one, two in zip(trained.readings("twin"), other.readings("twin"), strict=True):
        for a, b in zip(one.latents.split(BLOCK), two.latents.split(BLOCK), strict=True):
            a = a[:, numbers.to(device)]
            products += (a.T @ b).cpu()
            shifted += (a.T @ b.roll(len(b) // 2, 0)).cpu()
            for sums, values in ((mine, a), (theirs, b)):
                sums += torch.stack([values.sum(0), values.square().sum(0)]).cpu()
            tokens += len(a)
    deviations = [(sums[1] - sums[0].square() / tokens).clamp(min=0).sqrt() for sums in (mine, theirs)]
    scale = deviations[0][:, None] * deviations[1]
    expected = mine[0][:, None] * theirs[0] / tokens
    first, second = (((one - expected) / scale).nan_to_num(-1.0, -1.0, -1.0).float() for one in (products, shifted))
    return first, second


def pw_mcc(trained: Trained, other: Trained) -> Iterator[Finding]:
    """The pairwise dictionary mean correlation coefficient of the alive latents, and of as many rows of dictionaries that can
    share nothing that either learned of the pair."""
    both = [one.dictionary.W_dec.detach().float().cpu() for one in (trained, other)]
    alive = [one.statistics.alive for one in (trained, other)]
    rows = [one[here] for one, here in zip(both, alive, strict=True)]
    compared = {"pw_mcc": ("the two dictionaries", rows)}
    if trained.starting_rows is not None:
        begun = [one[here] for one, here in zip(trained.starting_rows(), alive, strict=True)]
        compared["pw_mcc_untrained"] = ("the two before they learned", begun)
    if PERMUTED in trained.companions:
        control = trained.beside(PERMUTED)
        permuted = control.dictionary.W_dec.detach().float().cpu()[control.statistics.alive]
        compared["pw_mcc_permuted"] = ("the twin and what the other seed learned of permuted rows", [permuted, rows[1]])
    drawn = [
        torch.randn(part.shape, generator=randomness.generator(0, "random rows beside a twin", n))
        for n, part in enumerate(rows)
    ]
    compared["pw_mcc_random"] = ("random rows", drawn)
    for name, (of, pair) in compared.items():
        a, b = (torch.nn.functional.normalize(part.float().cpu(), dim=-1) for part in pair)
        cosines = (a @ b.T).abs().numpy()
        if not cosines.size:
            return
        chosen = linear_sum_assignment(cosines, maximize=True)
        meaning = (
            f"mean |cosine| of decoder rows over the best one-to-one pairs of {of} (PW-MCC), {len(a)} and {len(b)} rows"
        )
        yield Finding(f"twin/{name}", float(cosines[chosen].mean()), meaning=meaning)
