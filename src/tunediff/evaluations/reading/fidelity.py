"""How much of each model survives in the dictionary: explained variance, L0, dead latents, CE and KL recovered.

explained_variance   1 - sum |x - x_hat|^2 / sum |x - mean|^2, pooled over held-out tokens; the mean predictor scores 0
ce_recovered         1 - (CE_spliced - CE_clean) / (CE_zero - CE_clean), for each model with its half of the
                     reconstruction of the PAIR written back at the hookpoint; 1 is perfect, 0 is zero-ablation
kl_recovered         1 - KL(clean || spliced) / KL(clean || zero)
excess_ce            (CE_spliced - CE_clean) / CE_clean

A dictionary of the difference tuned - base is written into the tuned model: base + reconstruction in place of its own
activations, so that its zero-ablation is the tuned model with the base's activations.

All in float32 or better, over the kept tokens, each predicted from the position before it. Special tokens and attention
sinks are left untouched by every splice and ablation. Intervals: 95 %, bootstrap over documents.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from tunediff.evaluations.given import Reading, Trained
from tunediff.evaluations.latents.splice import model_of, predictions
from tunediff.measures.bootstrap import bootstrap
from tunediff.shapes import ROLES, SEGMENTS, Finding, Table

SUMS = ("tokens", "unexplained", "spread", "predicted", "ce_clean", "ce_spliced", "ce_zero", "ce_mean")
SUMS += ("kl_spliced", "kl_zero", "kl_mean")
ALL = "all"

MEANINGS = {
    "explained_variance": "1 - sum |x - x_hat|^2 / sum |x - mean|^2 over held-out tokens, in the model's own units",
    "ce_clean": "cross-entropy of the unchanged model, nats a token",
    "ce_spliced": "cross-entropy with the reconstruction in place of the activations, nats a token",
    "ce_zero": "cross-entropy with the activations set to zero, nats a token",
    "ce_mean": "cross-entropy with the activations set to their mean, nats a token",
    "ce_recovered": "1 - (CE_spliced - CE_clean) / (CE_zero - CE_clean)",
    "ce_recovered_from_mean": "1 - (CE_spliced - CE_clean) / (CE_mean - CE_clean)",
    "excess_ce": "(CE_spliced - CE_clean) / CE_clean",
    "kl_spliced": "KL(clean || spliced), nats a token",
    "kl_zero": "KL(clean || zero-ablated), nats a token",
    "kl_recovered": "1 - KL(clean || spliced) / KL(clean || zero-ablated)",
    "kl_recovered_from_mean": "1 - KL(clean || spliced) / KL(clean || mean-ablated)",
}


class Fidelity:
    """resamples   draws of the bootstrap over documents"""

    needs_reconstruction = True

    def __init__(self, *, resamples: int = 1000):
        self.resamples = resamples

    def run(self, trained: Trained) -> Iterator[Finding | Table]:
        means = segment_means(trained)
        sums: dict[tuple[str, str], dict[int, Tensor]] = defaultdict(dict)  # (role, segment) -> document -> [SUMS]
        latents = trained.dictionary.latents
        fired = torch.zeros(latents, dtype=torch.bool)
        active = torch.zeros(latents + 1, dtype=torch.long)
        for reading in trained.readings("fidelity"):
            fired |= (reading.latents != 0).any(0).cpu()
            counts = (reading.latents[reading.admitted] != 0).sum(-1).cpu()
            active += torch.bincount(counts, minlength=latents + 1)
            restored = trained.dictionary.decode(reading.latents, reading.rows.moments).detach()
            for role in trained.roles:
                self._add(sums, trained, reading, restored, role, means[role])
        yield from self._findings(sums)
        yield from self._l0(active, fired)
        yield documents_table(sums)

    def _add(
        self, sums, trained: Trained, reading: Reading, restored: Tensor, role: str, means: dict[str, Tensor]
    ) -> None:
        batch, admitted = reading.batch, reading.admitted.cpu()
        values, spliced = trained.part(reading.rows.values, role).cpu().double(), trained.part(restored, role)
        unexplained = (values - spliced.cpu()).square().sum(-1)
        columns = {"tokens": admitted.double(), "unexplained": unexplained * admitted}
        clean, scored = predictions(trained, reading, role, None)
        columns["predicted"] = scored.double()
        ablations = {
            "spliced": spliced,
            "zero": torch.zeros_like(spliced),
            "mean": means[ALL].float().to(spliced).expand_as(spliced),
        }
        targets = batch.token if trained.pair.entry(model_of(role)) == 0 else batch.ids[1].flatten()[batch.places[1]]
        targets = targets[scored].to(clean.device)[:, None]
        columns["ce_clean"] = _spread_out(-clean.gather(1, targets)[:, 0], scored)
        for name, replacement in ablations.items():
            changed, _ = predictions(trained, reading, role, replacement)
            columns[f"ce_{name}"] = _spread_out(-changed.gather(1, targets)[:, 0], scored)
            columns[f"kl_{name}"] = _spread_out((clean.exp() * (clean - changed)).sum(-1), scored)
            del changed
        for segment in (ALL, *SEGMENTS):
            here = torch.ones_like(admitted) if segment == ALL else batch.segment == SEGMENTS.index(segment)
            if not here.any():
                continue
            columns["spread"] = (values - means[segment]).square().sum(-1) * admitted
            stacked = torch.stack([columns[name] for name in SUMS], dim=-1)[here]
            for document in batch.document[here].unique().tolist():
                part = stacked[batch.document[here] == document].sum(0)
                known = sums[role, segment].get(document)
                sums[role, segment][document] = part if known is None else known + part

    def _l0(self, active: Tensor, fired: Tensor) -> Iterator[Finding]:
        tokens = active.sum()
        yield Finding(
            "fidelity/l0/mean",
            float((active * torch.arange(len(active))).sum() / tokens),
            meaning="active latents a token",
            column="L0",
            line="L0",
        )
        below = active.cumsum(0) / tokens
        for quantile in (0.1, 0.5, 0.9):
            level = int((below >= quantile).nonzero()[0])
            yield Finding(
                f"fidelity/l0/p{quantile * 100:.0f}",
                level,
                meaning=f"{quantile:.0%} quantile of active latents a token",
            )
        meaning = f"share of latents that fired on none of {int(tokens):,} held-out tokens"
        yield Finding(
            "fidelity/dead_fraction", float((~fired).float().mean()), meaning=meaning, column="dead", line="dead"
        )

    def _findings(self, sums) -> Iterator[Finding]:
        whole = [torch.stack(list(documents.values())) for (_, segment), documents in sums.items() if segment == ALL]
        yield self._ratio("explained_variance", "pooled", torch.cat(whole), explained_variance)
        for (role, segment), documents in sums.items():
            stacked = torch.stack(list(documents.values()))  # [document, SUMS]
            place = role if segment == ALL else f"{role}/{segment}"
            yield self._ratio("explained_variance", place, stacked, explained_variance)
            for name in ("ce_clean", "ce_spliced", "ce_zero", "ce_mean", "kl_spliced", "kl_zero"):
                yield self._ratio(name, place, stacked, lambda s, name=name: s[name] / s["predicted"])
            for name, ratio in RECOVERED.items():
                yield self._ratio(name, place, stacked, ratio)

    def _ratio(self, name: str, place: str, stacked: Tensor, ratio: Callable) -> Finding:
        value = ratio(dict(zip(SUMS, stacked.sum(0), strict=True)))
        low, high = bootstrap(stacked, ratio, self.resamples, SUMS)
        known = (float(value), low, high) if torch.isfinite(value) else (None, None, None)
        return Finding(f"fidelity/{name}/{place}", *known, MEANINGS[name], *headline(name, place))


def headline(name: str, place: str) -> tuple[str, str]:
    """The words of a finding at the head of a column and in the last line; of other places than the models none."""
    column, line = {
        "explained_variance": ("EV", "explained variance"),
        "ce_recovered": ("CE rec.", "CE recovered"),
    }.get(name, ("", ""))
    if column and place in ROLES:
        return f"{column} {place}", f"{line} {place}"
    return ("EV", "") if (name, place) == ("explained_variance", "pooled") else ("", "")


def explained_variance(s):
    return 1 - s["unexplained"] / s["spread"]


RECOVERED: dict[str, Callable] = {
    "ce_recovered": lambda s: 1 - (s["ce_spliced"] - s["ce_clean"]) / (s["ce_zero"] - s["ce_clean"]),
    "ce_recovered_from_mean": lambda s: 1 - (s["ce_spliced"] - s["ce_clean"]) / (s["ce_mean"] - s["ce_clean"]),
    "excess_ce": lambda s: (s["ce_spliced"] - s["ce_clean"]) / s["ce_clean"],
    "kl_recovered": lambda s: 1 - s["kl_spliced"] / s["kl_zero"],
    "kl_recovered_from_mean": lambda s: 1 - s["kl_spliced"] / s["kl_mean"],
}


def segment_means(trained: Trained) -> dict[str, dict[str, Tensor]]:
    """Mean activation [width] of each model, over all held-out tokens and over each segment, in float64."""
    totals: dict[str, dict[str, Tensor]] = {role: {} for role in trained.roles}
    counts: dict[str, float] = defaultdict(float)
    for reading in trained.readings("means"):
        for segment in (ALL, *SEGMENTS):
            here = reading.admitted.cpu()
            if segment != ALL:
                here = here & (reading.batch.segment == SEGMENTS.index(segment))
            counts[segment] += float(here.sum())
            for role in trained.roles:
                added = trained.part(reading.rows.values, role).cpu()[here].double().sum(0)
                totals[role][segment] = totals[role].get(segment, 0.0) + added
    return {role: {s: total / max(counts[s], 1.0) for s, total in parts.items()} for role, parts in totals.items()}


def _spread_out(values: Tensor, scored: Tensor) -> Tensor:
    """Values of the scored tokens at their places among all kept tokens, zero elsewhere; float64 on the host."""
    whole = torch.zeros(len(scored), dtype=torch.float64)
    whole[scored] = values.cpu().double()
    return whole


def documents_table(sums) -> Table:
    """Every sum that the findings are made of, by model, segment and document."""
    rows = [(r, s, d, *v.tolist()) for (r, s), documents in sums.items() for d, v in documents.items()]
    columns = zip(*rows, strict=True)
    return Table("fidelity", dict(zip(("model", "segment", "document", *SUMS), map(list, columns), strict=True)))
