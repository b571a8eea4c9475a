"""The latent that tells a label best: AUROC over tokens, chosen on one half of the questions and tested on the other.

within_documents       the same latent over pairs of tokens of one document alone: what the label's place says, and not which
                       documents have it
null_mean, null_p95    what chance reaches by the same choice, the best of all latents chosen again: with labels shifted round
                       within documents, and with those of like documents at the same places (measures/shifts.py); the
                       stricter of the two. A label that is always at one place, such as the end of thinking, is told by the
                       place, and no latent tells it better
over_null              the AUROC less null_p95, which is taken as known
p                      share of these draws that reach as much, again of the stricter; over all labels of a run they are Holm's (report/labels.py)
bag_of_words, position rules that need no model, fitted and chosen on the first half (measures/token_rules.py)
untrained_dictionary   the best of as many random latents over the same activations, by the same choice
untrained_model        the best of them over models whose weights were permuted (arXiv 2501.17727)
average_precision      mean of the precision at every recall; 1 is perfect, the share of labelled tokens is chance
lift                   average_precision / that share

Intervals run over documents: the tokens of one are not independent.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from tunediff.dictionary import TranscoderAdapter
from tunediff.evaluations.given import Reading, Trained
from tunediff.evaluations.reading.labelled import Labelled, LookedAt, gathered, positions_of, too_few, words_of
from tunediff.measures.separation import ActiveScores, interval, separation, within_documents
from tunediff.measures.shifts import chance
from tunediff.measures.token_rules import best_rule
from tunediff.shapes import Finding, Note, Refused, Rows, Table
from tunediff.text import KNOWN_LABELS, Batch

FEWEST = 10  # tokens with and without a label, below which no latents are chosen by it
FOLDS = 5  # of the first half, by question, that rules are chosen on
SMALL = 10**9  # parameters of both models up to which they are also read with permuted weights


class LabelAlignment:
    """label       the label to tell, such as hesitation_follows
    at          only tokens with this label are looked at, such as step_end; null: all tokens
    first       true: only the first token of a labelled stretch counts as labelled, and the rest of it is not looked at: a
                latent for where a behaviour begins
    shuffles    draws of each null
    untrained_model   reads the text again by models with permuted weights; null: where both have at most 10^9 parameters
    """

    def __init__(
        self, *, label: str, at: str | None, first: bool, shuffles: int = 400, untrained_model: bool | None = None
    ):
        self.label, self.at, self.first, self.shuffles = label, at, first, shuffles
        self.untrained_model = untrained_model

    @property
    def asks_for(self) -> Mapping[str, int]:
        """A label that no rule knows and that the text has not at all, which is no text to ask of."""
        return {name: 1 for name in (self.label, self.at) if name is not None and name not in KNOWN_LABELS}

    def run(self, trained: Trained) -> Iterator[Finding | Table | Note]:
        random = not isinstance(trained.dictionary, TranscoderAdapter)
        everything, looked_at = scored(
            trained, self.label, self.at, "label alignment", first=self.first, beside_random=random
        )
        labelled = gathered(looked_at, self.label)
        if labelled is None or not labelled.enough:
            yield from too_few(trained, "label_alignment", self.label, self.at, labelled)
            return
        count, where = trained.dictionary.latents, f"label_alignment/{self.label}"
        yield from self._best(everything.of_latents(0, count), labelled, where)
        yield from self._without_a_model(looked_at, labelled, where)
        if not random:
            return
        what = f"AUROC of the best of {count} random latents, by the same choice"
        found = by_choice(everything.of_latents(count, 2 * count), labelled)
        yield Finding(f"{where}/untrained_dictionary", *found, f"{what}; interval over documents", over="documents")
        models = {id(model): model for model in trained.pair.models.values()}.values()
        small = sum(part.numel() for model in models for part in model.parameters()) <= SMALL
        if small if self.untrained_model is None else self.untrained_model:
            scores, looked_at = scored(
                trained.of_untrained_models, self.label, self.at, "untrained models", first=self.first
            )
            other = gathered(looked_at, self.label)
            found = by_choice(scores, other) if other is not None and other.enough else (None, None, None)
            meaning = f"{what}, over the activations of models with permuted weights; interval over documents"
            yield Finding(f"{where}/untrained_model", *found, meaning, over="documents")

    def _best(self, scores: ActiveScores, labelled: Labelled, where: str) -> Iterator[Finding | Table]:
        """Yields what the best latent reaches, what chance does, and the numbers of every latent."""
        truth, document, select, test = labelled.truth, labelled.document, labelled.select, labelled.test
        first, second = scores.of_tokens(select), scores.of_tokens(test)
        chosen_by, found = first.auroc(truth[select]), second.influences(truth[test], document[test])
        tested, best = found.value, int(chosen_by.argmax())
        with_it, documents, without = labelled.counts()[1]
        low, high = interval(found, min(documents, without))
        how = (
            f"latent chosen on one half of the questions, tested on {with_it} labelled stretches in {documents} documents of the "
            "other; interval over documents"
        )
        bounds = float(low[best]), float(high[best])
        yield Finding(
            f"{where}/auroc", float(tested[best]), *bounds, f"AUROC of the best latent; {how}", over="documents"
        )
        yield Finding(f"{where}/latent", best, meaning="number of that latent")
        within, both = within_documents(second.column(best), truth[test], document[test])
        meaning = (
            f"AUROC of that latent over pairs of tokens of the same document, {both} of which have both kinds, weighted as by van "
            "Elteren; interval over documents"
        )
        yield Finding(f"{where}/within_documents", *within, meaning, over="documents")
        null = chance(first, second, labelled.track(select), labelled.track(test), self.shuffles)
        said = (
            f"the same with labels shifted round within their documents, or those of like documents, {self.shuffles} times each, "
            "the larger: "
        )
        for name, value, word in (("mean", null.mean, "mean"), ("p95", null.p95, "95 % quantile")):
            yield Finding(f"{where}/null_{name}", value, meaning=said + word)
        bounds = float(tested[best]) - null.p95, bounds[0] - null.p95, bounds[1] - null.p95
        yield Finding(f"{where}/over_null", *bounds, f"AUROC of the best latent less null_p95; {how}", over="documents")
        meaning = (
            "share of these that reach as much as the best latent, itself counted, the larger of the two; one label's, not yet "
            "Holm's over all"
        )
        yield Finding(f"{where}/p", null.p_value(float(tested[best])), meaning=meaning)
        share, precision = float(truth[test].double().mean()), second.average_precision(truth[test])
        yield Finding(f"{where}/share", share, meaning="share of the looked-at tokens with the label")
        meaning = "average precision of that latent; the share of labelled tokens is chance"
        yield Finding(f"{where}/average_precision", float(precision[best]), meaning=meaning)
        yield Finding(f"{where}/lift", float(precision[best]) / share, meaning="average precision / share")
        measured = {
            "auroc": tested, "auroc_low": low, "auroc_high": high, "auroc_p": null.p_values(tested.float()),
            "auroc_select": chosen_by, "average_precision": precision, "lift": precision / share,
        }  # fmt: skip
        columns = {f"{name}/{self.label}": values.tolist() for name, values in measured.items()}
        yield Table("latents", {"latent": list(range(len(tested))), **columns})

    def _without_a_model(self, looked_at: LookedAt, labelled: Labelled, where: str) -> Iterator[Finding]:
        """Yields what words and places reach."""
        truth, test, fold = labelled.truth, labelled.test, labelled.question // 2 % FOLDS
        families = ("bag_of_words", words_of(looked_at)), ("position", positions_of(looked_at))
        for name, rules in families:
            rule = best_rule(rules, truth, labelled.select, fold)
            found = separation(rule.scores[test], truth[test], labelled.document[test])
            meaning = (
                f"AUROC of the best rule without a model, of {', '.join(rules)}: {rule.name}, smoothed by {rule.smoothing:g} "
                f"sightings, both chosen on {FOLDS} folds of the first half; interval over documents"
            )
            yield Finding(f"{where}/{name}", *found, meaning, over="documents")


def by_choice(scores: ActiveScores, labelled: Labelled) -> tuple[float | None, float | None, float | None]:
    """AUROC on the second half, with its interval over documents, of the column that is best on the first."""
    select, test = labelled.select, labelled.test
    best = int(scores.of_tokens(select).auroc(labelled.truth[select]).argmax())
    return separation(scores.column(best)[test], labelled.truth[test], labelled.document[test])


def aurocs(trained: Trained, label: str, at: str | None = None, *, first: bool = False) -> Tensor:
    """AUROC [latent] of each latent for the label over all held-out tokens; `at` and `first` as in LabelAlignment. Raises
    Refused where there are too few tokens of either kind."""
    scores, looked_at = scored(trained, label, at, f"latents for {label}", first=first)
    truth = torch.cat([torch.zeros(0, dtype=torch.bool), *(batch.labelled(label)[here] for batch, here in looked_at)])
    if min(int(truth.sum()), int((~truth).sum())) < FEWEST:
        raise Refused(
            f"The held-out text has too few tokens with and without the label '{label}' to choose latents by: "
            "give their numbers instead, latents=[3,17] of the evaluation, or raise tokens."
        )
    return scores.auroc(truth)


def scored(
    trained: Trained, label: str, at: str | None, title: str, *, first: bool, beside_random: bool = False
) -> tuple[ActiveScores, LookedAt]:
    """The latents at the looked-at tokens, and behind them as many random ones where these are asked for; and which tokens
    these are, see at_label."""
    looked_at: LookedAt = []
    random = trained.random_latents if beside_random else None

    def blocks() -> Iterator[Tensor]:
        """Yields the latents of one batch after the other: those of the whole held-out text do not fit."""
        for reading, here in at_label(trained, label, at, title, first=first):
            looked_at.append((reading.batch, here))
            found, there = reading.latents[here.to(reading.latents.device)], here.to(reading.rows.values.device)
            if random is not None:
                values, moments = reading.rows
                rows = Rows(values[there], None if moments is None else moments[there])
                found = torch.cat([found, random.encode(rows)], dim=1)
            yield found

    return ActiveScores.of(blocks(), trained.dictionary.latents * (1 + beside_random)), looked_at


def at_label(
    trained: Trained, label: str, at: str | None, title: str, *, first: bool = False
) -> Iterator[tuple[Reading, Tensor]]:
    """All readings, each with the looked-at tokens [token] bool; with `first`, none of a labelled stretch but its first."""
    for reading in trained.readings(title):
        here = reading.admitted.cpu()
        if at is not None:
            here = here & reading.batch.labelled(at)
        yield reading, here & ~later(reading.batch, label) if first else here


def later(batch: Batch, label: str) -> Tensor:
    """Mask [token] of the tokens in a labelled stretch that are not its first. Each of two neighbouring stretches begins, and
    one that the context cuts begins once."""
    return batch.labelled(label) & ~batch.beginning(label)
