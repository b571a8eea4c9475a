"""Laws of the instruments that evaluations share, and of what a run computes once for all of them."""

import copy
import dataclasses
import math
from functools import partial
from itertools import combinations

import numpy as np
import pytest
import scipy.stats
import torch

from tunediff.activations import LiveRows, take
from tunediff.dictionary import BatchTopK, Crosscoder, Normalisation
from tunediff.evaluations import Fidelity, Geometry, Given, KLPatching, LogitEffect, Needs, Probing, declared
from tunediff.evaluations.given import TWIN
from tunediff.evaluations.latents.selection import chosen_latents
from tunediff.evaluations.reading import twin
from tunediff.measures import share, wilson
from tunediff.measures.clustered import DocumentSums, Estimate, of_sums, quotient, ratio
from tunediff.measures.next_tokens import MATRICES, compared, cross_entropies, cross_entropy, kl
from tunediff.measures.shares import share_by_group
from tunediff.models import Head, ModelPair, ModelSource
from tunediff.randomness import numpy_generator
from tunediff.shapes import Finding, Table
from tunediff.text import Text
from tunediff.toy import language

NAMES = ("clean", "spliced", "zero", "unused")


def recovered(s):
    return 1 - (s["spliced"] - s["clean"]) / (s["zero"] - s["clean"])


def documents_of(count, generator):
    """Sums [document, NAMES] of documents of unequal length, the last not a number. The truth of `recovered` is 0.75."""
    length = torch.randint(5, 40, (count,), generator=generator).double()
    means = torch.tensor([2.0, 3.0, 6.0]).double()
    noise = torch.randn(count, 3, generator=generator, dtype=torch.float64) * torch.tensor([0.2, 0.5, 1.0]).double()
    return torch.cat([length[:, None] * (means + noise), torch.full((count, 1), torch.nan).double()], dim=1)


def test_a_ratio_is_a_measure_of_sums_and_sums_that_it_does_not_take_may_be_undefined():
    sums = documents_of(9, torch.Generator().manual_seed(0))
    found = of_sums(lambda s: s["clean"] / s["zero"], sums, NAMES, "zero")
    expected = ratio(sums[:, 0], sums[:, 2])
    assert found.value == expected.value and found.freedom == expected.freedom
    assert torch.allclose(found.influence, expected.influence, atol=1e-15, rtol=1e-12)
    assert of_sums(lambda s: s["unused"] / s["zero"], sums, NAMES, "zero").bounded() == (None, None, None)


def test_the_influence_of_a_document_is_what_leaving_it_out_takes_away():
    """The jackknife: exactly, and of the few documents too that a linear approximation is wrong about."""
    sums = documents_of(7, torch.Generator().manual_seed(1))
    found = of_sums(recovered, sums, NAMES, "clean")
    cut = [torch.cat([sums[:n], sums[n + 1 :]]) for n in range(7)]
    without = torch.stack([of_sums(recovered, some, NAMES, "clean").value for some in cut])
    assert torch.allclose(found.influence, (found.value - without) * 6 / 7, rtol=1e-10, atol=1e-15)
    assert torch.allclose(found.variance(), (found.value - without).square().sum() * 6 / 7, rtol=1e-10)
    assert found.variance() > 0


@pytest.mark.parametrize("lengths, freedom", [([8.0] * 7, 6.0), ([1e6, 1e6, 1e6, 1.0, 1.0], 2.4), ([1e6, 1.0], 1.0)])
def test_documents_that_the_value_hardly_rests_on_give_no_degrees_of_freedom(lengths, freedom):
    counts = torch.tensor(lengths).double()
    noise = 1 + torch.rand(len(counts), generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    found = of_sums(
        lambda s: s["sum"] / s["tokens"], torch.stack([counts * noise, counts], 1), ("sum", "tokens"), "tokens"
    )
    assert float(found.freedom) == pytest.approx(freedom)
    assert float(found.quantile(0.95)) == pytest.approx(scipy.stats.t.ppf(0.975, freedom))


def test_the_interval_of_what_is_recovered_covers_the_truth_as_often_as_it_says():
    generator, tries, covered = torch.Generator().manual_seed(2), 1000, 0
    for _ in range(tries):
        sums = documents_of(12, generator)
        kept, whole = (
            of_sums(lambda s, lost=lost: (s["zero"] - s[lost]) / s["clean"], sums, NAMES, "clean")
            for lost in ("spliced", "clean")
        )
        _, low, high = quotient(kept, whole, 0.9)
        covered += low <= 0.75 <= high
    assert 0.86 < covered / tries < 0.94


def test_bounds_end_at_what_a_measure_can_be():
    estimate = ratio(torch.tensor([0.0, 3.0]).double(), torch.ones(2).double())
    assert estimate.bounded()[1] < 0 and estimate.bounded()[2] > 3
    assert estimate.bounded(least=0.0, most=2.0) == (1.5, 0.0, 2.0)
    below = ratio(torch.tensor([-3e-9, -1e-9]).double(), torch.ones(2).double())  # of rounding alone
    assert below.bounded(least=0.0)[1:] == (0.0, below.bounded()[2])
    assert (below - below).bounded(least=0.0)[1:] == (None, None)
    assert ratio(torch.tensor([-3.0, -2.9]).double(), torch.ones(2).double()).bounded(least=0.0)[1:] == (0.0, 0.0)


def test_sums_of_documents_do_not_know_how_the_text_was_cut_into_batches():
    rows = torch.randint(0, 100, (50, 2, 3), generator=torch.Generator().manual_seed(0)).double()
    documents = torch.tensor([7] * 20 + [3] * 18 + [9] * 12)
    whole = torch.stack([rows[documents == n].sum(0) for n in (7, 3, 9)])
    for cuts in combinations((1, 19, 20, 33, 49), 2):
        sums = DocumentSums()
        for begin, end in zip((0, *cuts), (*cuts, 50), strict=True):
            sums.add(rows[begin:end], documents[begin:end])
        order = [sums.documents.index(n) for n in (7, 3, 9)]
        assert torch.equal(sums.stacked()[order], whole) and len(sums) == 3


def test_independent_values_have_students_interval_and_a_single_one_none():
    def mean(*values, **bounds):
        return ratio(torch.tensor(values).double(), torch.ones(len(values)).double()).bounded(**bounds)

    value, low, high = mean(1.0, 3.0)
    assert value == 2 and high - value == pytest.approx(12.7062, rel=1e-5)
    assert value - low == pytest.approx(high - value)
    assert mean(5.0) == (5.0, None, None)
    assert mean(1.0, 1.0, 0.8, most=1.0)[2] == 1.0 < mean(1.0, 1.0, 0.8)[2]
    assert share(3, 4) == (0.75, *wilson(3, 4)) and share(0, 0) == (None, None, None)


def test_costs_of_next_tokens_are_torchs_and_equal_predictions_are_exactly_0_apart():
    generator = torch.Generator().manual_seed(0)
    one, other = (torch.randn(6, 11, generator=generator) for _ in range(2))
    targets = torch.randint(11, (6,), generator=generator)
    p, q = one.log_softmax(-1), other.log_softmax(-1)
    expected = torch.nn.functional.kl_div(q, p, log_target=True, reduction="none").sum(-1)
    assert torch.allclose(kl(p, q), expected, atol=1e-6) and not kl(p, p).any()
    loss = torch.nn.functional.cross_entropy(other, targets, reduction="none")
    assert torch.allclose(cross_entropy(q, targets), loss, atol=1e-6)
    head = Head(torch.nn.Identity(), 11)  # whose hidden vectors are their logits
    whole = torch.stack([kl(p, q), kl(q, p), cross_entropy(q, targets)], -1)
    same = torch.stack([kl(p, p), kl(p, p), cross_entropy(p, targets)], -1)
    for rows in (1, 4, 6, 100):
        given = {"logits_mb": rows * 4 * 11 * MATRICES / 1e6}
        found = compared(head, one, [other, one], targets, reverse=True, **given)
        assert torch.equal(found, torch.stack([whole, same]))
        assert torch.equal(compared(head, one, [other], targets, **given), whole[None, :, [0, 2]])
        assert torch.equal(cross_entropies(head, other, targets, **given), cross_entropy(q, targets))
    assert compared(head, one[:0], [other[:0]], targets[:0]).shape == (1, 0, 2)


def test_rows_become_a_table_in_the_order_of_the_first():
    assert Table.of("t", iter([{"b": 1, "a": 2}, {"a": 4, "b": 3}])) == Table("t", {"b": [1, 3], "a": [2, 4]})
    assert Table.of("t", []) == Table("t", {})


# -- what is computed once -------------------------------------------------------------------------------------------


def trained_on(pair, tokens=1500, latents=24, **settings):
    text = Text(lambda: language.rows(0, "trace"), held_out=0.1, context=256, window=16, tokens_per_batch=1024)
    streams = pair.streams("resid_post", 1)
    dictionary = Crosscoder(
        streams,
        latents=latents,
        sparsity=BatchTopK(4),
        normalisation=partial(Normalisation, kind="mean_norm", sink_multiple=1.1),
        **settings,
    )
    dictionary.normalisation.fit(take(LiveRows(pair, text, streams, dtype=torch.float32), 1500).values)
    return Given(pair, text, tokens, tokens_per_batch=400).reading(dictionary.eval())


def test_what_latents_usually_do_is_read_once_for_all_evaluations_of_a_run(pair, monkeypatch):
    trained, encode, passes = trained_on(pair), Crosscoder.encode, []
    monkeypatch.setattr(Crosscoder, "encode", lambda self, rows: passes.append(len(rows.values)) or encode(self, rows))
    batches = len(trained.held_out)
    assert batches > 2
    for first in (Geometry(), LogitEffect()):
        list(first.run(trained))
    chosen_latents(trained, 5, setting="latents")
    KLPatching(best=2, draws=1).classes(trained)
    assert len(passes) == batches
    apart = len(trained.template.held_out)  # which has statistics of its own
    for evaluation, own in (
        (Probing(label="hesitation", at=None), batches), (Fidelity(), batches + 2 * apart), (Geometry(), 0)
    ):  # fmt: skip
        passes.clear()
        list(evaluation.run(trained))
        assert len(passes) == own


def test_statistics_are_those_of_all_readings_side_by_side(pair):
    trained = trained_on(pair)
    readings = list(trained.readings(""))
    latents, admitted = (torch.cat([getattr(r, name) for r in readings]) for name in ("latents", "admitted"))
    assert not admitted.all() and admitted.any()
    seen, tokens = trained.statistics, int(admitted.sum())
    assert torch.allclose(seen.rate, (latents != 0).sum(0) / tokens) and torch.equal(seen.alive, (latents != 0).any(0))
    assert torch.allclose(seen.mean, latents.sum(0) / tokens) and torch.equal(seen.maximum, latents.amax(0))
    active = torch.tensor(seen.columns()["mean_activation"])
    assert torch.allclose(active.float(), latents.sum(0) / (latents != 0).sum(0).clamp(min=1))
    norms = torch.cat([trained.part(r.rows.values, "tuned") for r in readings])[admitted].norm(dim=-1)
    assert seen.norms["tuned"] == pytest.approx(float(norms.double().mean()))


def test_two_equal_models_are_no_more_documents_than_one(folders):
    """A document is one unit of chance, however many models read it."""
    source = ModelSource(str(folders["base"]), dtype="float32")
    found = Fidelity().run(trained_on(ModelPair(source, source).load(), shared_start=True))  # equal in both halves
    findings = {f.name.removeprefix("fidelity/explained_variance/"): f for f in found if isinstance(f, Finding)}
    for one in (findings["base"], findings["tuned"]):
        assert findings["pooled"].value == pytest.approx(one.value)
        assert findings["pooled"].low == pytest.approx(one.low) and findings["pooled"].high == pytest.approx(one.high)


class Asked:
    def __init__(self, needs=None):
        if needs is not None:
            self.needs = needs

    def run(self, given):
        return ()


def test_a_class_that_says_nothing_asks_about_a_dictionary():
    assert declared(Asked(), "needs") is Needs.DICTIONARY and declared(Asked(), "name") is None
    assert declared(Asked(Needs.PAIR), "needs") is Needs.PAIR


def test_an_interval_of_skewed_numbers_reaches_further_to_the_side_of_the_rare_large_ones_and_holds_the_truth_more_often():
    drawn = numpy_generator(0, "skewed numbers of a test")
    held = []
    for _ in range(600):
        counts = torch.from_numpy(drawn.lognormal(0, 1.2, 30))
        found = ratio(counts, torch.ones_like(counts))
        straight, bent = found.bounded(), found.skewed()
        assert bent[0] == straight[0] and bent[2] - bent[0] > bent[0] - bent[1] and bent[2] > straight[2]
        held.append([low < math.exp(0.72) < high for _, low, high in (straight, bent)])
    plain, corrected = torch.tensor(held).double().mean(0).tolist()
    assert plain < 0.9 and plain + 0.015 < corrected
    even = ratio(torch.tensor([1.0, 2.0, 3.0]), torch.ones(3))
    assert even.skewed() == pytest.approx(even.bounded())
    assert ratio(torch.ones(3), torch.ones(3)).skewed() == (1.0, None, None)


def test_the_variance_of_numbers_with_heavy_tails_has_fewer_degrees_of_freedom_and_that_of_others_all():
    """n / (1 + the unbiased excess kurtosis) and at least 3, for units of both kinds."""
    even = torch.linspace(-1, 1, 20).double()
    light = Estimate(torch.tensor(0.0).double(), even)
    assert float(light.quantile(0.95, heavy=True)) == pytest.approx(scipy.stats.t.ppf(0.975, 19))
    heavy = np.append(np.linspace(-1, 1, 17), [3, -2.5, -0.5])
    excess = scipy.stats.kurtosis(heavy, bias=False)
    assert 2 < excess < 5
    expected = scipy.stats.t.ppf(0.975, 20 / (1 + excess))
    tailed = torch.from_numpy(heavy)
    for found in (Estimate(light.value, tailed), Estimate(light.value, even * 1e-9, tailed)):
        assert float(found.quantile(0.95, heavy=True)) == pytest.approx(expected, rel=1e-6)
        assert float(found.quantile(0.95)) == pytest.approx(scipy.stats.t.ppf(0.975, 19), rel=1e-6)
    one = Estimate(light.value, torch.tensor([1.0] + [-0.01] * 100).double())
    assert float(one.quantile(0.95, heavy=True)) == pytest.approx(scipy.stats.t.ppf(0.975, 3))
    assert float(light._replace(influence=tailed[:3]).quantile(0.95, heavy=True)) == pytest.approx(4.3027, rel=1e-4)


@pytest.mark.parametrize("draws", [None, 20])
def test_the_interval_of_a_difference_in_lengths_holds_the_truth(draws):
    """30 problems that differ in length, under two conditions, of which the other may be 20 random draws in turn. With the
    degrees of freedom of normal numbers it is held in .92 of these studies, both."""
    chance, held, studies = numpy_generator(0, "lengths of a test", draws or 0), [], 1500
    for _ in range(studies):
        hard, one, other = 300 * chance.lognormal(-0.18, 0.6, 30), *chance.gamma(4, 0.25, (2, 30))
        if draws is None:
            found, truth = ratio(torch.from_numpy(hard * (one - 1.2 * other)), torch.ones(30).double()), -60
        else:
            apart = hard * (0.5 * one - other * chance.gamma(4, 0.25, draws)[np.arange(30) % draws])
            sums, counts = (np.bincount(np.arange(30) % draws, each) for each in (apart, None))
            found, truth = ratio(torch.from_numpy(sums), torch.from_numpy(counts).double()), -150
        _, low, high = found.skewed()
        held.append(low <= truth <= high)
    assert 0.93 < np.mean(held) < 0.97


def test_units_of_one_group_are_one_unit_of_chance():
    flags = np.arange(40) < 25
    alone = share_by_group(flags, np.arange(40))
    assert alone == pytest.approx(share(25, 40), abs=0.02)
    assert share_by_group(flags.repeat(5), np.arange(40).repeat(5)) == pytest.approx(alone)
    assert share_by_group([], []) == (None, None, None) and share_by_group([True] * 9, [4] * 9)[1] < 0.3
    chance, held = numpy_generator(0, "groups of a test"), []
    for _ in range(800):
        sizes = chance.geometric(0.55, 40)
        true = chance.random(sizes.sum()) < chance.beta(1.2, 0.8, 40).repeat(sizes)
        intervals = share_by_group(true, np.arange(40).repeat(sizes)), share(int(true.sum()), len(true))
        held.append([low <= 0.6 <= high for _, low, high in intervals])
    grouped, single = np.mean(held, 0)
    assert 0.93 < grouped < 0.97 and single < 0.9


def test_a_dictionary_too_large_to_be_matched_whole_has_its_exclusive_latents_matched(pair, monkeypatch):
    trained = trained_on(pair)
    with torch.no_grad():
        for first, part in zip((0, 6), trained.dictionary.W_dec.chunk(2, dim=-1), strict=True):
            part[first : first + 6] *= 1e-3  # of base, then of tuned
    both = dataclasses.replace(trained, companions={TWIN: copy.deepcopy(trained.dictionary)})
    found = {}
    for largest in (24, 23):
        monkeypatch.setattr(twin, "LARGEST", largest)
        found[largest] = {one.name: one for one in twin.Twin().run(both)}
    alive = {kind: int(here.sum()) for kind, here in twin.Twin().kinds(both).items()}
    assert alive["base_only"] and alive["tuned_only"]
    for name in ("matched", "confirmed"):
        for kind in ("base_only", "tuned_only"):
            one, other = (found[largest][f"twin/{name}/{kind}"] for largest in (24, 23))
            assert one == other and one.value == 1 and f"of {alive[kind]} " in one.meaning
    known = [value is not None for value in found[23]["latents"].columns["twin_correlation"]]
    assert sum(known) == alive["base_only"] + alive["tuned_only"] and not any(known[12:])
