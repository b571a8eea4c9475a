"""The share of each model that survives in the dictionary: explained variance, L0, dead latents, CE and KL recovered.

explained_variance   1 - sum |x - x_hat|^2 / sum |x - mean|^2, pooled over held-out tokens; the mean predictor scores 0
ce_recovered         1 - (CE_spliced - CE_clean) / (CE_zero - CE_clean), for each model with its half of the
                     reconstruction of the PAIR written back at the hookpoint; 1 is perfect, 0 is zero-ablation
kl_recovered         1 - KL(clean || spliced) / KL(clean || zero)
                     both have no value where the ablation does not cost more than nothing beyond doubt
excess_ce            (CE_spliced - CE_clean) / CE_clean

A dictionary of the difference tuned - base is written into the tuned model: base + reconstruction in place of its own
activations, so that its zero-ablation is the tuned model with the base's activations.

All in float32 or better, over the kept tokens, each predicted from the position before it. Special tokens and attention
sinks are left untouched by every splice and ablation. Intervals: 95 %, clustered by document, Fieller's for what
is recovered (measures/clustered.py).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from math import inf

import torch
from torch import Tensor

from tunediff.evaluations.given import ALL, Needs, Reading, Trained, Work, by_segment
from tunediff.evaluations.latents.splice import model_of, predictions, spread_out
from tunediff.measures.clustered import Bounded, DocumentSums, of_sums, quotient
from tunediff.measures.next_tokens import compared, predicted
from tunediff.models import ModelPair, head_of
from tunediff.shapes import BLOCK, ROLES, TEMPLATE, Finding, Note, Stream, Table

SUMS = ("tokens", "unexplained", "spread", "predicted", "ce_clean", "ce_spliced", "ce_zero", "ce_mean")
SUMS += ("kl_spliced", "kl_zero", "kl_mean")
A_TOKEN = ("ce_clean", "ce_spliced", "ce_zero", "ce_mean", "kl_spliced", "kl_zero")  # nats, never below 0
UP_TO_ONE = ("explained_variance", "kl_recovered", "kl_recovered_from_mean")
Sums = dict[tuple[str, str], DocumentSums]  # role and segment -> of every document the SUMS
Means = dict[tuple[str, str], Tensor]  # role and segment -> mean activation [width], in float64

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


WORDS = {"explained_variance": ("EV", "explained variance"), "ce_recovered": ("CE rec.", "CE recovered")}


class Fidelity:
    needs = Needs.RECONSTRUCTION

    def work(self, pair: ModelPair, streams: Sequence[Stream]) -> Work:
        """Each model clean, spliced, zeroed and at the mean."""
        return Work(passes=4 * len({stream.role for stream in streams}))

    def run(self, trained: Trained) -> Iterator[Finding | Table | Note]:
        means = segment_means(trained)
        sums: Sums = defaultdict(DocumentSums)
        latents = trained.dictionary.latents
        active = torch.zeros(latents + 1, dtype=torch.long)
        for reading in trained.readings("fidelity"):
            for block, kept in zip(reading.latents.split(BLOCK), reading.admitted.split(BLOCK), strict=True):
                active += torch.bincount((block != 0).sum(-1)[kept].cpu(), minlength=latents + 1)
            restored = trained.reconstructing.decode(reading.latents, reading.rows.moments).detach()
            for role in trained.roles:
                costs = self._costs(trained, reading, restored, role, means[role, ALL])
                self._add(sums, trained, reading, restored, role, means, costs)
        self._apart(sums, trained.template)
        yield from trained.of_template
        yield from self._findings(sums)
        yield from self._l0(active, trained.statistics.alive)
        rows = (
            {"model": role, "segment": segment, "document": document, **dict(zip(SUMS, part.tolist(), strict=True))}
            for (role, segment), documents in sums.items()
            for document, part in zip(documents.documents, documents.stacked(), strict=True)
        )
        yield Table.of("fidelity", rows)  # all that the findings are made of

    def _apart(self, sums: Sums, template: Trained) -> None:
        """Adds what the chat template writes, as a segment that no pooled number holds: how well it is reconstructed. Its marks are
        predicted from the text before them, where nothing of the template would be replaced."""
        means, alone = segment_means(template), defaultdict(DocumentSums)
        for reading in template.readings("fidelity of the template"):
            restored = template.reconstructing.decode(reading.latents, reading.rows.moments).detach()
            for role in template.roles:
                self._add(alone, template, reading, restored, role, means, {})
        sums |= {place: documents for place, documents in alone.items() if place[1] == TEMPLATE}

    def _costs(
        self, trained: Trained, reading: Reading, restored: Tensor, role: str, mean: Tensor
    ) -> dict[str, Tensor]:
        """Columns [token] of what the predictions cost, clean and with the activations replaced."""
        spliced, head = trained.part(restored, role), head_of(trained.pair.models[model_of(role)])
        clean, scored = predictions(trained, reading, role, None)
        columns = {"predicted": scored.double()}
        ablations = {
            "spliced": spliced,
            "zero": torch.zeros_like(spliced),
            "mean": mean.float().to(spliced).expand_as(spliced),
        }
        hidden = [clean, *(predictions(trained, reading, role, written)[0] for written in ablations.values())]
        targets = predicted(trained.pair, model_of(role), reading.batch).targets.to(clean.device)
        costs = compared(head, clean, hidden, targets, logits_mb=trained.logits_mb)
        for name, (divergence, entropy) in zip(("clean", *ablations), costs.mT, strict=True):
            columns[f"kl_{name}"], columns[f"ce_{name}"] = (spread_out(c, scored) for c in (divergence, entropy))
        return columns

    def _add(
        self,
        sums: Sums,
        trained: Trained,
        reading: Reading,
        restored: Tensor,
        role: str,
        means: Means,
        costs: dict[str, Tensor],
    ) -> None:
        """Adds what is reconstructed of one batch, and its costs, which are zero where they were not asked for."""
        batch, admitted = reading.batch, reading.admitted.cpu()
        values = trained.part(reading.rows.values, role).cpu().double()
        unexplained = (values - trained.part(restored, role).cpu()).square().sum(-1)
        columns = {"tokens": admitted.double(), "unexplained": unexplained * admitted, **costs}
        nothing = torch.zeros_like(unexplained)
        for segment, here in by_segment(batch).items():
            if here.any():
                columns["spread"] = (values - means[role, segment]).square().sum(-1) * admitted
                stacked = torch.stack([columns.get(name, nothing) for name in SUMS], dim=-1)
                sums[role, segment].add(stacked[here], batch.document[here])

    def _l0(self, active: Tensor, alive: Tensor) -> Iterator[Finding]:
        tokens = active.sum()
        mean = float((active * torch.arange(len(active))).sum() / tokens)
        yield Finding("fidelity/l0/mean", mean, meaning="active latents a token", column="L0", line="L0")
        below = active.cumsum(0) / tokens
        for quantile in (0.1, 0.5, 0.9):
            level = int((below >= quantile).nonzero()[0])
            meaning = f"{quantile:.0%} quantile of active latents a token"
            yield Finding(f"fidelity/l0/p{quantile * 100:.0f}", level, meaning=meaning)
        meaning = f"share of latents that fired on none of {int(tokens):,} held-out tokens"
        dead = float((~alive).float().mean())
        yield Finding("fidelity/dead_fraction", dead, meaning=meaning, column="dead", line="dead")

    def _findings(self, sums: Sums) -> Iterator[Finding | Note]:
        # one document is one cluster, also where two models read it: what they sum in it is added before anything else
        both = torch.stack([documents.stacked() for (_, segment), documents in sums.items() if segment == ALL]).sum(0)
        yield _finding("explained_variance", "pooled", _bounded("explained_variance", both))
        without: dict[str, list[str]] = defaultdict(list)
        for (role, segment), documents in sums.items():
            place = role if segment == ALL else f"{role}/{segment}"
            stacked = documents.stacked()
            for name in MEANINGS if stacked[:, SUMS.index("predicted")].any() else ("explained_variance",):
                bounded = _bounded(name, stacked)
                if bounded[0] is None and (name in RECOVERED or name == "excess_ce"):
                    without[name].append(place)
                yield _finding(name, place, bounded)
        if places := without.pop("excess_ce", None):
            yield Note(
                f"fidelity/excess_ce has no value for {', '.join(places)}: the model's own cross-entropy is not told from 0 there, and "
                "there is nothing of which it could be a share."
            )
        for name, places in without.items():
            what = "the mean of the activations" if name.endswith("mean") else "zero"
            yield Note(
                f"fidelity/{name} has no value for {', '.join(places)}: {what} in place of the activations costs the model no "
                "more there than they do, or these documents cannot tell; there is nothing of which a share could be "
                "recovered."
            )


def _bounded(name: str, sums: Tensor) -> Bounded:
    """A measure with its interval, of sums [document, SUMS]."""
    most, counted = (1.0 if name in UP_TO_ONE else inf), "spread" if name == "explained_variance" else "predicted"
    if name == "excess_ce":
        more = of_sums(lambda s: (s["ce_spliced"] - s["ce_clean"]) / s["predicted"], sums, SUMS, counted)
        clean = of_sums(lambda s: s["ce_clean"] / s["predicted"], sums, SUMS, counted)
        return quotient(more, clean) if clean.sign() > 0 else (None, None, None)
    if name not in RECOVERED:
        return of_sums(MEASURES[name], sums, SUMS, counted).bounded(least=0.0 if name in A_TOKEN else -inf, most=most)
    spliced, none, all_of_it = RECOVERED[name]
    kept = of_sums(lambda s: (s[none] - s[spliced]) / s["predicted"], sums, SUMS, counted)
    whole = of_sums(lambda s: (s[none] - (s[all_of_it] if all_of_it else 0.0)) / s["predicted"], sums, SUMS, counted)
    return quotient(kept, whole, most=most) if whole.sign() > 0 else (None, None, None)


def _finding(name: str, place: str, bounded: Bounded) -> Finding:
    return Finding(f"fidelity/{name}/{place}", *bounded, MEANINGS[name], *headline(name, place), over="documents")


def headline(name: str, place: str) -> tuple[str, str]:
    """The words of a finding at the head of a column and in the last line; none for a segment."""
    column, line = WORDS.get(name, ("", ""))
    if column and place in ROLES:
        return f"{column} {place}", f"{line} {place}"
    return (column, "") if (name, place) == ("explained_variance", "pooled") else ("", "")


Measure = Callable[[Mapping[str, Tensor]], Tensor]


def explained_variance(s: Mapping[str, Tensor]) -> Tensor:
    return 1 - s["unexplained"] / s["spread"]


def _a_token(name: str) -> Measure:
    return lambda s: s[name] / s["predicted"]


# sums of the spliced model, of the ablated one of which nothing is recovered, and of the clean one; KL from that is 0
RECOVERED: dict[str, tuple[str, str, str | None]] = {
    "ce_recovered": ("ce_spliced", "ce_zero", "ce_clean"),
    "ce_recovered_from_mean": ("ce_spliced", "ce_mean", "ce_clean"),
    "kl_recovered": ("kl_spliced", "kl_zero", None),
    "kl_recovered_from_mean": ("kl_spliced", "kl_mean", None),
}
MEASURES: dict[str, Measure] = {
    "explained_variance": explained_variance,
    **{name: _a_token(name) for name in A_TOKEN},
}


def segment_means(trained: Trained) -> Means:
    """Mean activation of each model, over all held-out tokens and over each segment."""
    totals: Means = {}
    for batch, rows, admitted in trained.activations("means"):
        for segment, here in by_segment(batch).items():
            here = here & admitted.cpu()
            for role in trained.roles:
                added = trained.part(rows.values, role).cpu()[here].double().sum(0)
                totals[role, segment] = totals.get((role, segment), 0.0) + added
    return {(role, s): total / max(trained.statistics.tokens[s], 1) for (role, s), total in totals.items()}
