"""Which latent tells a label: AUROC over tokens, chosen on one half of the documents and tested on the other.

Beside it stand what chance reaches by the same choice (labels shuffled, the best of all latents chosen again) and what
a reader without the model reaches: the best rule on the token, the token before it, or the place in the document.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from tunediff.evaluations.trained import Trained
from tunediff.shapes import Finding, Note, Table


class LabelAlignment:
    """label       the label to tell, such as hesitation_follows
    at          only tokens with this label are looked at, such as decision; null: all tokens
    shuffles    draws of the null
    """

    def __init__(self, *, label: str, at: str | None = None, shuffles: int = 100):
        self.label, self.at, self.shuffles = label, at, shuffles

    def run(self, trained: Trained) -> Iterator[Finding | Table | Note]:
        latents, tokens, truth, half = self._collect(trained)
        counted = [int((truth & (half == h)).sum()) for h in (0, 1)] if len(truth) else [0, 0]
        rest = [int((~truth & (half == h)).sum()) for h in (0, 1)] if len(truth) else [0, 0]
        if min(*counted, *rest) < 10:
            yield Note(
                f"label_alignment was not measured: the held-out text has too few tokens labelled '{self.label}'"
                + (f" or not among '{self.at}' tokens." if self.at else ".")
            )
            return
        select, test = half == 0, half == 1
        ranks = [average_ranks(latents[side].T) for side in (select, test)]
        chosen_by, tested = (auroc(r, truth[side]) for r, side in zip(ranks, (select, test), strict=True))
        best = int(chosen_by.argmax())
        where = f"label_alignment/{self.label}"
        low, high = delong_interval(latents[test, best], truth[test])
        how = f"latent chosen on {int(select.sum())} tokens, tested on {int(test.sum())} of other documents"
        yield Finding(f"{where}/auroc", float(tested[best]), low, high, f"AUROC of the best latent; {how}")
        yield Finding(f"{where}/latent", best, meaning="number of that latent")
        null = self._null(ranks, truth, select, test)
        yield Finding(f"{where}/null_mean", float(null.mean()), meaning="the same with shuffled labels, mean")
        yield Finding(
            f"{where}/null_p95", float(null.quantile(0.95)), meaning="the same with shuffled labels, 95 % quantile"
        )
        rules = {name: rule_auroc(values, truth, select, test) for name, values in tokens.items()}
        name = max(rules, key=lambda rule: rules[rule][0])
        yield Finding(
            f"{where}/token_rule", rules[name][1], meaning=f"AUROC of the best rule without the model: the {name}"
        )
        yield Finding(
            f"{where}/share", float(truth.float().mean()), meaning="share of the looked-at tokens with the label"
        )
        columns = {"latent": list(range(len(tested))), f"auroc/{self.label}": tested.tolist()}
        columns[f"auroc_select/{self.label}"] = chosen_by.tolist()
        yield Table("latents", columns)

    def _collect(self, trained: Trained) -> tuple[Tensor, dict[str, Tensor], Tensor, Tensor]:
        latents, truth, document = [], [], []
        tokens: dict[str, list[Tensor]] = {"token": [], "token before": [], "place in the document": []}
        for reading in trained.readings("label alignment"):
            batch = reading.batch
            if self.label not in batch.labels or (self.at and self.at not in batch.labels):
                continue
            here = reading.admitted.cpu() & (
                batch.labels[self.at] if self.at else torch.ones_like(batch.token, dtype=torch.bool)
            )
            latents.append(reading.latents.cpu()[here])
            truth.append(batch.labels[self.label][here])
            document.append(batch.document[here])
            tokens["token"].append(batch.token[here])
            tokens["token before"].append(batch.ids[0].flatten()[(batch.places[0] - 1).clamp(min=0)][here])
            tokens["place in the document"].append(batch.position[here])
        if not latents:
            empty = torch.zeros(0)
            return empty, {}, empty.bool(), empty
        half = torch.cat(document) % 2
        return torch.cat(latents), {name: torch.cat(parts) for name, parts in tokens.items()}, torch.cat(truth), half

    def _null(self, ranks: list[Tensor], truth: Tensor, select: Tensor, test: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        found = []
        for _ in range(self.shuffles):
            first, second = (
                truth[side][torch.randperm(int(side.sum()), generator=generator)] for side in (select, test)
            )
            best = auroc(ranks[0], first).argmax()
            found.append(auroc(ranks[1][best, None], second)[0])
        return torch.stack(found)


def average_ranks(values: Tensor) -> Tensor:
    """[latent, token] -> ranks from 1, ties at their mean."""
    values = values.contiguous()
    ordered = values.sort(dim=-1).values
    below = torch.searchsorted(ordered, values)
    up_to = torch.searchsorted(ordered, values, right=True)
    return (below + up_to + 1).float() / 2


def auroc(ranks: Tensor, truth: Tensor) -> Tensor:
    """[latent]: the chance that a labelled token outranks an unlabelled one, ties counted half (Mann-Whitney)."""
    labelled, rest = truth.sum(), (~truth).sum()
    total = ranks.double() @ truth.double()
    return ((total - labelled * (labelled + 1) / 2) / (labelled * rest)).float()


def rule_auroc(values: Tensor, truth: Tensor, select: Tensor, test: Tensor) -> tuple[float, float]:
    """AUROC of the rate of the label given the value, learned on `select`: there, and on `test`."""
    size = int(values.max()) + 1
    seen = torch.bincount(values[select], minlength=size).double()
    hits = torch.bincount(values[select], weights=truth[select].double(), minlength=size)
    prior = truth[select].double().mean()
    score = ((hits + prior) / (seen + 1))[values]
    return tuple(float(auroc(average_ranks(score[side][None]), truth[side])[0]) for side in (select, test))


def delong_interval(scores: Tensor, truth: Tensor) -> tuple[float, float]:
    """95 % interval of an AUROC (DeLong, DeLong and Clarke-Pearson 1988), taking tokens as independent."""
    labelled, rest = scores[truth].double(), scores[~truth].double()

    def placement(values: Tensor, against: Tensor) -> Tensor:
        ordered = against.sort().values
        return (
            (torch.searchsorted(ordered, values) + torch.searchsorted(ordered, values, right=True)) / 2 / len(against)
        )

    over, under = placement(labelled, rest), placement(rest, labelled)
    error = (over.var() / len(over) + under.var() / len(under)).sqrt()
    middle = over.mean()
    return float((middle - 1.96 * error).clamp(min=0)), float((middle + 1.96 * error).clamp(max=1))
