"""AUROCs of labels that are told by nothing, by documents, by words: what an interval covers and what a null calls found."""

import itertools
import math

import pytest
import torch

from tunediff.measures.clustered import Estimate
from tunediff.measures.separation import ActiveScores, DenseScores, auroc, interval, separation, within_documents
from tunediff.measures.shifts import chance, claims, discoveries, shifted
from tunediff.measures.token_rules import best_rule
from tunediff.randomness import generator
from tunediff.report import labels_together
from tunediff.shapes import Finding, Note
from tunediff.text import Text


def clustered(draw, documents=30, tokens=100, shift=0.5):
    """A score, labels and documents; score and share of the label are a document's own, and independent but for a shift."""
    drawn = generator(draw, "documents of a test")
    document = torch.arange(documents).repeat_interleave(tokens)
    often = 0.05 + 0.4 * torch.rand(documents, generator=drawn)
    truth = torch.rand(documents * tokens, generator=drawn) < often[document]
    own = torch.randn(documents, generator=drawn)[document]
    return own + torch.randn(len(own), generator=drawn) + shift * truth, truth, document


def test_intervals_over_documents_cover_where_tokens_of_one_are_alike():
    expected = 0.5 * (1 + math.erf(0.5 / 2 / math.sqrt(2)))  # two normals of variance 2, half a unit apart
    covered = []
    for draw in range(200):
        value, low, high = separation(*clustered(draw))
        assert 0 <= low < value < high <= 1
        covered.append(low <= expected <= high)
    assert 0.90 < sum(covered) / 200 < 0.99


def test_influences_are_those_of_leaving_tokens_out_and_add_up_to_nothing():
    scores, truth, document = clustered(0, documents=6, tokens=40)
    scores = scores.round(decimals=1).clamp(min=0)  # ties, and zeros
    found = ActiveScores.of([scores[:, None]], 1).influences(truth, document)
    over = [sum((a > b) + 0.5 * (a == b) for b in scores[~truth].tolist()) for a in scores[truth].tolist()]
    under = [sum((a > b) + 0.5 * (a == b) for a in scores[truth].tolist()) for b in scores[~truth].tolist()]
    over, under = torch.tensor(over) / int((~truth).sum()), torch.tensor(under) / int(truth.sum())
    value = float(over.mean())
    assert float(found.value) == pytest.approx(value) == pytest.approx(float(auroc(scores[None], truth)[0]))
    for one in range(6):
        parts = [
            (place[document[side] == one] - value).sum() / int(side.sum())
            for place, side in ((over, truth), (under, ~truth))
        ]
        assert float(found.influence[one]) == pytest.approx(float(sum(parts)), abs=1e-6)
    assert float(found.influence.sum()) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_no_interval_has_a_width_of_zero(value):
    found = Estimate(torch.tensor([value], dtype=torch.float64), torch.zeros(40, 1, dtype=torch.float64))
    low, high = (float(end) for end in interval(found, 40))
    assert high - low > 0.08 and low <= value <= high
    if value == 1.0:
        assert low == pytest.approx(0.025 ** (1 / 40))  # Clopper and Pearson's of 40 of 40


def test_within_documents_a_score_that_is_a_documents_own_tells_nothing():
    _, truth, document = clustered(3)
    rate = torch.stack([truth[document == one].float().mean() for one in range(30)])[document]
    pooled, (within, both) = separation(rate, truth, document), within_documents(rate, truth, document)
    assert pooled[0] > 0.6 and within[0] == pytest.approx(0.5) and both == 30
    scores = torch.tensor([1.0, 2.0, 3.0, 5.0, 4.0, 9.0])
    labels, documents = torch.tensor([0, 1, 1, 1, 0, 0]).bool(), torch.tensor([0, 0, 0, 1, 1, 2])
    (value, _, _), both = within_documents(scores, labels, documents)
    assert both == 2 and value == pytest.approx(1.0)
    (value, _, _), _ = within_documents(scores * torch.tensor([-1, -1, -1, 1, 1, 1]), labels, documents)
    assert value == pytest.approx((1 / 3) / (2 / 4 + 1 / 3))  # documents weigh 2/4 and 1/3


def test_shifted_labels_keep_their_number_and_their_neighbours_in_each_document():
    document = torch.tensor([0] * 7 + [1] * 5 + [0] * 3)
    truth = torch.tensor([1, 1, 0, 0, 0, 0, 0, 1, 1, 1, 0, 0, 0, 0, 0]).bool()
    drawn = torch.cat(list(shifted(truth, document, 60, generator(0, "a test"))), dim=1)
    for one in (0, 1):
        inside, own = drawn[document == one], truth[document == one]
        turns = {tuple(own.roll(n).tolist()) for n in range(len(own))}
        assert {tuple(some) for some in inside.T.tolist()} == turns


def test_labels_that_documents_have_and_latents_that_documents_have_are_not_found():
    """The best of many scores that are a document's own: by shuffling over all tokens it would be found."""
    found, pooled = 0, 0
    for draw in range(40):
        drawn = generator(draw, "labels of a test")
        document = torch.arange(60).repeat_interleave(30)
        truth = torch.zeros(len(document), dtype=torch.bool)
        for one in range(0, 60, 4):
            start = 30 * one + int(torch.randint(30, (1,), generator=drawn))
            truth[[30 * one + (start + n) % 30 for n in range(6)]] = True
        own = torch.randn(20, 60, generator=drawn)[:, document]
        scores = own + torch.randn(own.shape, generator=drawn)
        side = document % 8 < 4
        first, second = (DenseScores(scores[:, half]) for half in (side, ~side))
        halves = [(truth[half], document[half]) for half in (side, ~side)]
        reached = second.auroc(truth[~side])[first.auroc(truth[side]).argmax()]
        found += chance(first, second, *halves, 99).p_value(float(reached)) <= 0.05
        alone = [(labels, torch.zeros(len(labels), dtype=torch.long)) for labels, _ in halves]
        shuffled = [(labels[torch.randperm(len(labels), generator=drawn)], same) for labels, same in alone]
        pooled += chance(first, second, *shuffled, 99).p_value(float(reached)) <= 0.05
    assert found <= 6 < pooled  # at most 6 of 40 in 99 % of studies at 5 %


def test_p_values_of_columns_are_even_where_there_is_nothing_and_small_where_something_is():
    drawn = generator(0, "columns of a test")
    document = torch.arange(40).repeat_interleave(25)
    truth = torch.rand(1000, generator=drawn) < 0.2
    scores = torch.randn(200, 1000, generator=drawn)
    scores[7] += 2.0 * truth
    scores[8] = 0.0
    given = DenseScores(scores)
    p_values = chance(given, given, (truth, document), (truth, document), 100).p_values(given.auroc(truth))
    assert p_values[7] < 1e-3 and p_values[8] == 1.0
    assert abs(float((p_values < 0.5).double().mean()) - 0.5) < 0.12
    assert (discoveries(p_values) <= 0.05).nonzero()[:, 0].tolist() == [7]
    assert claims([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])


def test_a_rule_that_memorises_places_is_not_chosen_and_a_word_is():
    drawn = generator(0, "words of a test")
    place, word = torch.arange(2000), torch.randint(20, (2000,), generator=drawn)
    truth = (word == 3) | (torch.rand(2000, generator=drawn) < 0.05)
    select, fold = place % 2 == 0, torch.randint(5, (2000,), generator=drawn)
    rules = {"the place": [place[:, None]], "the word": [word[:, None]]}
    rule = best_rule(rules, truth, select, fold)
    assert rule.name == "the word" and float(auroc(rule.scores[~select][None], truth[~select])[0]) > 0.7
    same = rule.scores[word == 3]
    assert float(same.std()) < 1e-9 < float(same[0])


def test_neighbouring_stretches_each_begin_and_one_that_the_context_cuts_begins_once(tokenizer):
    thinking = "Wait, that is wrong. Wait, let me check. So 1+2=3."
    row = {"prompt": "How many eggs?", "thinking": thinking, "answer": "3", "index": 0}
    for context in (200, 8):
        text = Text(lambda: iter([row]), held_out=0.0, context=context, hesitations=["wait"])
        documents = text.documents(row, [tokenizer])
        begins = list(itertools.chain(*(document.begins["backtracks"] for document in documents)))
        assert sum(begins) == 2 and (context == 200) == (len(documents) == 1)


def test_no_question_stands_in_both_halves(tokenizer):
    rows = [{"prompt": f"q {n % 5}", "thinking": f"t {n}", "answer": "a"} for n in range(40)]
    rows += [{"text": f"plain {n}"} for n in range(3)]
    text = Text(lambda: iter(rows), held_out=1.0)
    seen = {}
    for row in text.named_rows(held_out=True):
        for document in text.documents(row, [tokenizer]):
            seen.setdefault(row.get("prompt") or row["text"], set()).add(document.question)
    assert all(len(numbers) == 1 for numbers in seen.values()) and len(set.union(*seen.values())) == 8


def test_what_is_claimed_together_is_holms_and_a_yardstick_that_does_as_well_is_named(tmp_path):
    given = {
        "label_alignment/a/auroc": 0.929, "label_alignment/a/p": 0.01, "probing/a/random_directions": 0.961,
        "label_alignment/b/auroc": 0.8, "label_alignment/b/p": 0.04, "label_alignment/b/bag_of_words": 0.7,
        "label_alignment/c/auroc": 0.6, "label_alignment/c/p": 0.9,
    }  # fmt: skip
    found = list(labels_together(tmp_path, {name: Finding(name, value)._asdict() for name, value in given.items()}))
    values = {item.name: item.value for item in found if isinstance(item, Finding)}
    assert values == pytest.approx(
        {f"label_alignment/{n}/p_holm": p for n, p in (("a", 0.03), ("b", 0.08), ("c", 0.9))}
    )
    said = [item.text for item in found if isinstance(item, Note)]
    assert "(Holm): a. Not found: b, c." in said[0]
    assert len(said) == 2 and "'a' (AUROC 0.929)" in said[1] and "a random direction (0.961)" in said[1]
    assert not list(labels_together(tmp_path, {}))
