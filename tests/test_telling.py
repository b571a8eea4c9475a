"""AUROCs of labels that are told by nothing, by documents, by words: what an interval covers and what a null calls found."""

import itertools
import math

import pytest
import torch

from tunediff.measures.clustered import Estimate
from tunediff.measures.separation import ActiveScores, DenseScores, auroc, interval, separation, within_documents
from tunediff.measures.shifts import Track, alike, chance, claims, discoveries, exchanged, shifted
from tunediff.measures.token_rules import best_rule
from tunediff.randomness import generator
from tunediff.report import labels_together
from tunediff.shapes import Finding, Note
from tunediff.text import Text


def track_of(truth, document):
    """A label of documents of one segment."""
    return Track(truth, document, torch.zeros_like(document))


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
    drawn = torch.cat(list(shifted(track_of(truth, document), 60, generator(0, "a test"))), dim=1)
    for one in (0, 1):
        inside, own = drawn[document == one], truth[document == one]
        turns = {tuple(own.roll(n).tolist()) for n in range(len(own))}
        assert {tuple(some) for some in inside.T.tolist()} == turns


def test_labels_of_like_documents_keep_their_places_in_the_segments():
    sizes = [(3, 12)] * 6 + [(4, 10)] * 6 + [(0, 9)] * 3  # of two segments
    document = torch.cat([torch.full((a + b,), n) for n, (a, b) in enumerate(sizes)])
    segment = torch.cat([torch.tensor([0] * a + [1] * b) for a, b in sizes])
    first = torch.cat([torch.tensor([False] * a + [True] + [False] * (b - 1)) for a, b in sizes])
    drawn = torch.cat(list(exchanged(Track(first, document, segment), 30, generator(0, "a test"))), dim=1)
    assert (drawn == first[:, None]).all()  # all have it there
    own = first & (document % 5 == 0)
    drawn = torch.cat(list(exchanged(Track(own, document, segment), 200, generator(0, "a test"))), dim=1)
    assert not drawn[~first].any()
    often = drawn[first].double().mean(1)
    assert often[:12].sum() == pytest.approx(3) and often[12:].sum() == pytest.approx(
        0
    )  # of 0, 5, 10, none of 12 to 14
    assert all(0.1 < one < 0.5 for one in often[:12].tolist())
    counts = torch.tensor([[n, n] for n in range(1, 41)] + [[0, n] for n in range(1, 20)])
    order, group = alike(counts)
    assert order.sort().values.tolist() == list(range(59)) and group.diff().ge(0).all()
    for one in group.unique():
        members = counts[order[group == one]]
        assert len((members[:, 0] > 0).unique()) == 1 and 4 <= len(members) <= 6
        assert int(members[:, 1].max() - members[:, 1].min()) == len(members) - 1


def planted(draw, kind, strength=0.0):
    """Scores [latent, token] of 16 latents, among them those of some place, and a label's Track of stretches of four that none
    knows but by its place: the first by `strength`. Documents are unlike in length, in the label, and in each latent, and the
    latents of neighbouring tokens are alike."""
    drawn = generator(draw, "tracks of a test", kind)
    sizes = torch.randint(20, 60, (80,), generator=drawn)
    document = torch.arange(80).repeat_interleave(sizes)
    place = torch.cat([torch.arange(size) / size for size in sizes.tolist()])
    segment = (place > 0.3).long()
    truth = torch.zeros(len(document), dtype=torch.bool)
    for one in range(80):
        inside = (document == one) & (segment == 1) if kind == "late" else document == one
        here = inside.nonzero()[:, 0]
        room = len(here) - 3 if kind == "late" else len(here)
        for at in torch.rand(int(5 * torch.rand(1, generator=drawn) ** 2), generator=drawn).tolist():
            truth[here[(int(room * (at**0.5 if kind == "late" else at)) + torch.arange(4)) % len(here)]] = True
    noise = torch.randn(16, len(document) + 2, generator=drawn).unfold(1, 3, 1).mean(-1)
    own = 0.5 * torch.randn(16, 80, generator=drawn)[:, document]
    scores = own + 2 * noise + torch.linspace(0, 2, 16)[:, None] * (place - 0.5)
    scores[0] += strength * truth
    return scores, Track(truth, document, segment)


def found_by(draw, kind, strength=0.0):
    """Whether a label is found at 5 %, and whether it would be by each null alone."""
    scores, track = planted(draw, kind, strength)
    side = track.document % 2 == 0
    halves = [Track(*(field[half] for field in track)) for half in (side, ~side)]
    first, second = (DenseScores(scores[:, half]) for half in (side, ~side))
    reached = float(second.auroc(halves[1].truth)[first.auroc(halves[0].truth).argmax()])
    made = chance(first, second, *halves, 79)
    return [made.p_value(reached) <= 0.05] + [
        made._replace(best=one[None]).p_value(reached) <= 0.05 for one in made.best
    ]


@pytest.mark.parametrize("kind", ["round", "late"])
def test_labels_that_only_have_their_places_are_not_found_and_those_that_a_latent_tells_are(kind):
    found, shifts, _ = torch.tensor([found_by(draw, kind) for draw in range(60)]).sum(0).tolist()
    assert found <= 7  # at most 7 of 60 in 99 % of studies at 5 %
    assert kind == "round" or shifts > 30  # what shifts alone call found
    told, of_shifts, _ = torch.tensor([found_by(draw, kind, 1.5) for draw in range(20)]).sum(0).tolist()
    assert told >= of_shifts - 1 >= 18


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
        halves = [track_of(truth[half], document[half]) for half in (side, ~side)]
        reached = second.auroc(truth[~side])[first.auroc(truth[side]).argmax()]
        found += chance(first, second, *halves, 99).p_value(float(reached)) <= 0.05
        labels = [half.truth[torch.randperm(len(half.truth), generator=drawn)] for half in halves]
        shuffled = [track_of(some, torch.zeros(len(some), dtype=torch.long)) for some in labels]
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
    track = track_of(truth, document)
    p_values = chance(given, given, track, track, 100).p_values(given.auroc(truth))
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


def test_a_perfect_score_that_fires_weakly_elsewhere_has_no_interval_of_rounding():
    draw = generator(0, "weak firing")
    for _ in range(40):
        document = torch.arange(60).repeat_interleave(50)
        truth = torch.zeros(3000, dtype=torch.bool)
        truth[torch.arange(40) * 50 + torch.randint(50, (40,), generator=draw)] = True
        weak = torch.rand(3000, generator=draw) * (torch.rand(3000, generator=draw) < 0.05)
        column = torch.where(truth, 2 + torch.rand(3000, generator=draw), weak)
        value, low, high = separation(column, truth, document)
        assert value == pytest.approx(1.0) and high - low > 0.02
