"""The numbers of a reading one by one, against passes written by hand and against truths that only the right half, tail or
denominator gives back."""

import contextlib
import itertools
import math
from collections import defaultdict
from functools import partial

import pytest
import torch

from conftest import logits_of
from test_evaluations import fitted, identity_dictionary, run, toy_text
from test_planted import known, planted, rows
from test_sinks_and_patching import WIDTH, evaluated, imperfect, rows_of, text_of
from tunediff.dictionary import L1, Crosscoder, Normalisation
from tunediff.evaluations import (
    Examples,
    Fidelity,
    Geometry,
    Given,
    KLPatching,
    LabelAlignment,
    LatentScaling,
    Positions,
    Probing,
    Segments,
    Trained,
    latent_scaling,
    score,
)
from tunediff.evaluations.latents.scaling import Scaling
from tunediff.evaluations.latents.selection import decoder_rows
from tunediff.evaluations.reading import label_alignment, labelled
from tunediff.evaluations.reading.fidelity import SUMS, _bounded, _finding
from tunediff.evaluations.reading.geometry import KINDS
from tunediff.evaluations.reading.kl_patching import places
from tunediff.evaluations.reading.logit_effect import strongest_effects, written_rows
from tunediff.evaluations.reading.segments import PLACES
from tunediff.hookpoints import Point, writing
from tunediff.measures.shifts import Chance
from tunediff.models import unembedding
from tunediff.shapes import BASE, ROLES, SEGMENTS, TUNED
from tunediff.text import Spelling

# -- fidelity --------------------------------------------------------------------------------------------------------


def with_sinks(pair, *, gain=0.7, bias=-0.3):
    """A dictionary that shrinks, is silent about what is small, and takes the longest tokens for attention sinks."""
    dictionary = identity_dictionary(pair.streams("resid_post", 1), gain=gain)
    dictionary.normalisation.sink_multiple = 1.1
    with torch.no_grad():
        dictionary.b_enc.fill_(bias)
        dictionary.b_enc[7] = -1e6  # never fires
    return fitted(pair, dictionary)


def predicted_by_hand(pair, role, reading, replacement=None):
    """Log-probabilities of the scored tokens with the admitted vectors of layer 1 replaced, and the mask of the scored."""
    batch, places = reading.batch, pair.places(role, reading.batch)
    scored = places % batch.ids[0].shape[1] > 0

    def put(value):
        flat = value.flatten(0, 1).clone()
        flat[places[reading.admitted]] = replacement[reading.admitted]
        return flat.view_as(value)

    point = Point("resid_post", 1)
    with writing(pair.models[role], point, put) if replacement is not None else contextlib.nullcontext():
        return logits_of(pair, role, batch).flatten(0, 1)[places[scored] - 1].double().log_softmax(-1), scored


@torch.no_grad()
def test_every_number_of_fidelity_is_that_of_a_pass_by_hand_which_leaves_sinks_alone(pair):
    for model in pair.models.values():
        model.lm_head.weight.mul_(20)  # of models that are sure of what they say, KL is another the other way round
    dictionary = with_sinks(pair)
    findings, _, notes = run(Fidelity(), pair, dictionary, tokens=1200)
    readings = list(Trained(pair, toy_text(), 1200, dictionary=dictionary).readings(""))
    admitted = torch.cat([reading.admitted for reading in readings])
    assert 0.05 < admitted.double().mean() < 0.95
    latents = torch.cat([reading.latents for reading in readings])[admitted]
    active = sorted((latents != 0).sum(-1).tolist())
    assert findings["fidelity/l0/mean"].value == pytest.approx(sum(active) / len(active), rel=1e-5)
    for n in (10, 50, 90):
        assert findings[f"fidelity/l0/p{n}"].value == active[math.ceil(n / 100 * len(active) - 1e-9) - 1]
    assert active[len(active) // 10] < active[9 * len(active) // 10]
    assert findings["fidelity/dead_fraction"].value == pytest.approx(float((latents == 0).all(0).double().mean()))
    values = torch.cat([reading.rows.values for reading in readings])
    segment = torch.cat([reading.batch.segment for reading in readings])
    for role, columns in ((BASE, slice(0, WIDTH)), (TUNED, slice(WIDTH, None))):
        x = values[:, columns].double()
        restored = torch.cat([r.latents for r in readings]).double() @ dictionary.W_dec.double()
        left = x - restored[:, columns] / dictionary.normalisation.scale[columns].double()
        for name in (None, *("prompt", "thinking", "answer")):
            here = admitted if name is None else admitted & (segment == SEGMENTS.index(name))
            spread = (x[here] - x[here].mean(0)).square().sum()
            place = role if name is None else f"{role}/{name}"
            expected = 1 - float(left[here].square().sum() / spread)
            assert findings[f"fidelity/explained_variance/{place}"].value == pytest.approx(expected, abs=1e-4), place
        ce, kl = costs_by_hand(pair, role, readings, columns, dictionary, x[admitted].mean(0).float())
        expected = {f"ce_{name}": value for name, value in ce.items()} | {
            "kl_spliced": kl["spliced"],
            "kl_zero": kl["zero"],
            "ce_recovered": 1 - (ce["spliced"] - ce["clean"]) / (ce["zero"] - ce["clean"]),
            "ce_recovered_from_mean": 1 - (ce["spliced"] - ce["clean"]) / (ce["mean"] - ce["clean"]),
            "excess_ce": (ce["spliced"] - ce["clean"]) / ce["clean"],
            "kl_recovered": 1 - kl["spliced"] / kl["zero"],
            "kl_recovered_from_mean": 1 - kl["spliced"] / kl["mean"],
        }
        assert ce["zero"] > ce["clean"] or findings[f"fidelity/ce_recovered/{role}"].value is None
        for name in [name for name in expected if findings[f"fidelity/{name}/{role}"].value is None]:
            assert any(f"fidelity/{name} has no value for" in note and role in note for note in notes)
            del expected[name]
        assert {"excess_ce", "kl_recovered", "ce_zero"} <= expected.keys()
        for name, value in expected.items():
            assert findings[f"fidelity/{name}/{role}"].value == pytest.approx(value, rel=2e-3, abs=1e-5), (name, role)


def costs_by_hand(pair, role, readings, columns, dictionary, mean):
    """Mean cross-entropy of every ablation over the scored tokens, and mean KL(clean || ablated)."""
    ce, kl, tokens = defaultdict(float), defaultdict(float), 0
    for reading in readings:
        spliced = (reading.latents @ dictionary.W_dec)[:, columns] / dictionary.normalisation.scale[columns]
        clean, scored = predicted_by_hand(pair, role, reading)
        said = reading.batch.token[scored][:, None]
        tokens += int(scored.sum())
        whole = {"clean": clean}
        for name, vectors in (("spliced", spliced), ("zero", 0 * spliced), ("mean", mean.expand_as(spliced))):
            whole[name], _ = predicted_by_hand(pair, role, reading, vectors)
            kl[name] += float((clean.exp() * (clean - whole[name])).sum())
        for name, log_p in whole.items():
            ce[name] -= float(log_p.gather(1, said).sum())
    return ({name: value / tokens for name, value in some.items()} for some in (ce, kl))


def test_each_ratio_of_fidelity_has_its_own_denominator():
    sums = {
        "ce_clean": 2.0,
        "ce_spliced": 3.0,
        "ce_zero": 6.0,
        "ce_mean": 4.0,
        "kl_spliced": 1.0,
        "kl_zero": 8.0,
        "kl_mean": 5.0,
    }
    names = ("ce_recovered", "ce_recovered_from_mean", "excess_ce", "kl_recovered", "kl_recovered_from_mean")
    found = [_bounded(name, of_documents(sums))[0] for name in names]
    assert found == pytest.approx([1 - 1 / 4, 1 - 1 / 2, 1 / 2, 1 - 1 / 8, 1 - 1 / 5])


def of_documents(sums, spread=0.01, documents=20):
    """Sums [document, SUMS] of alike documents with this mean, each off by a little of its own."""
    chance = torch.Generator().manual_seed(0)
    whole = torch.tensor([float(sums.get(name, 1.0)) for name in SUMS], dtype=torch.float64)
    noise = torch.randn(documents, len(SUMS), generator=chance, dtype=torch.float64)
    noise[:, SUMS.index("predicted")] = 0
    return whole + spread * (noise - noise.mean(0))


@pytest.mark.parametrize(("zero", "spread"), [(1.9, 0.01), (2.0, 0.01), (2.1, 1.0)])
def test_nothing_is_recovered_of_an_ablation_that_costs_nothing_beyond_doubt(zero, spread):
    """Zero in place of the activations serves the model better, as well, or no worse than chance: that is no denominator."""
    sums = of_documents({"ce_clean": 2.0, "ce_spliced": 1.8, "ce_zero": zero, "ce_mean": 4.0}, spread)
    assert _bounded("ce_recovered", sums) == (None, None, None)
    assert _bounded("ce_clean", sums)[0] == pytest.approx(2.0)


def test_a_pooled_variance_adds_what_two_models_sum_in_one_document():
    """Coverage by simulation, of models that err on the same documents: no wider and no narrower than it says."""
    chance, held, widths, values = torch.Generator().manual_seed(0), 0, [], []
    truth = 1 - 0.3
    for _ in range(500):
        hard = torch.randn(30, 1, generator=chance, dtype=torch.float64).mul(0.5).exp() / math.exp(0.125)
        own = torch.randn(30, 2, generator=chance, dtype=torch.float64).mul(0.1).exp() / math.exp(0.005)
        spread = torch.full((30, 2), 50.0, dtype=torch.float64)
        sums = torch.zeros(2, 30, len(SUMS), dtype=torch.float64)
        sums[..., SUMS.index("unexplained")], sums[..., SUMS.index("spread")] = (0.3 * spread * hard * own).T, spread.T
        value, low, high = _bounded("explained_variance", sums.sum(0))
        held += low <= truth <= high
        widths.append(high - low)
        values.append(value)
    assert 0.92 < held / 500 < 0.98
    reach = 2 * 2.045 * float(torch.tensor(values).std())
    assert sum(widths) / 500 == pytest.approx(
        reach, rel=0.08
    )  # clusters of one model each would be 1.41 times narrower


def test_ends_of_fidelity_stop_at_what_each_number_can_be_and_its_words_head_the_columns():
    wide = of_documents({"unexplained": 2.0, "spread": 4.0, "kl_spliced": 4.0, "kl_zero": 8.0, "ce_clean": 2.0}, 3.0, 3)
    ends = {name: _bounded(name, wide) for name in ("explained_variance", "ce_clean")}
    ends["kl_recovered"] = _bounded("kl_recovered", of_documents({"kl_spliced": 0.1, "kl_zero": 8.0}, 1.0, 3))
    assert ends["explained_variance"][2] == ends["kl_recovered"][2] == 1.0 and ends["ce_clean"][1] == 0.0
    wide = (0.5, None, None)
    heads = {place: _finding("explained_variance", place, wide) for place in ("pooled", "base", "tuned/answer")}
    assert {place: (f.column, f.line) for place, f in heads.items()} == {
        "pooled": ("EV", ""), "base": ("EV base", "explained variance base"), "tuned/answer": ("", ""),
    }  # fmt: skip


# -- geometry --------------------------------------------------------------------------------------------------------

RELATIVE = [0.05, 0.15, 0.25, 0.45, 0.6, 0.75, 0.85, 0.95, 0.5, 0.99, 0.02]
DEAD = (8, 9, 10)
COSINES = [1.0, 1.0, 1.0, 0.9, 0.3, 1.0, 1.0, 1.0, -1.0, 1.0, 1.0]


def of_known_norms(pair):
    """Latents of these relative decoder norms and cosines, all active at every token but the dead ones."""
    made = Crosscoder(
        pair.streams("resid_post", 1),
        latents=len(RELATIVE),
        sparsity=L1(0.0),
        normalisation=partial(Normalisation, kind="none", sink_multiple=None),
    )
    relative, cosine = (torch.tensor(some)[:, None] for some in (RELATIVE, COSINES))
    axes = torch.eye(WIDTH)
    with torch.no_grad():
        made.W_enc.zero_()
        made.b_enc.fill_(1.0)
        made.b_enc[list(DEAD)] = -1.0
        base = axes[: len(RELATIVE)]
        tuned = cosine * base + (1 - cosine.square()).sqrt() * axes[len(RELATIVE) : 2 * len(RELATIVE)]
        made.W_dec.copy_(torch.cat([(1 - relative) * base, relative * tuned], dim=1))
    return made


def test_kinds_are_counted_by_their_bands_among_the_living_and_their_cosine_is_that_of_living_shared_latents(pair):
    findings, tables, _ = run(Geometry(), pair, of_known_norms(pair), tokens=300)
    kinds = ["base_only", "other", "other", "shared", "shared", "other", "other", "tuned_only", "shared"]
    assert tables["latents"]["kind"] == [*kinds, "tuned_only", "base_only"]
    assert {kind: findings[f"geometry/count/{kind}"].value for kind in KINDS} == {
        "base_only": 1, "shared": 2, "tuned_only": 1, "other": 4,
    }  # fmt: skip
    cosine, part = findings["geometry/decoder_cosine/shared_mean"], findings["geometry/share/shared"]
    assert cosine.value == pytest.approx(0.6, abs=1e-5) and cosine.over == part.over == "latents"
    assert part.value == pytest.approx(2 / 8) and part.low < 2 / 8 < part.high
    heads = {kind: findings[f"geometry/count/{kind}"].column for kind in KINDS}
    assert heads == {"base_only": "base-only", "shared": "shared", "tuned_only": "tuned-only", "other": ""}
    assert findings["geometry/count/tuned_only"].line == "tuned-only"
    assert findings["geometry/share/other"].value == 4 / 8, "of the living"


def test_the_density_of_a_kind_is_the_mean_logarithm_of_its_living_latents_rates():
    """Two latents of rates 1/2 and 1/8 are as dense as two of 1/4, and a dead one counts nowhere."""
    kinds, rate = torch.tensor([0, 0, 0, 1, 1]), torch.tensor([1 / 2, 1 / 8, 0.0, 1 / 2, 1 / 4])
    found = {one.name: one.value for one in Geometry()._counts(kinds, rate > 0, rate)}
    assert (found["geometry/density/base_only"], found["geometry/density/shared"]) == (-2.0, -1.5)
    assert "geometry/density/tuned_only" not in found and found["geometry/share/tuned_only"] == 0.0


def test_random_pairs_are_all_pairs_of_different_latents_one_from_either_model(pair):
    made = of_known_norms(pair)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        made.W_dec.copy_(torch.randn(made.W_dec.shape, generator=generator) + 0.3)
        made.W_dec[:, WIDTH:] += 2 * made.W_dec[:, :WIDTH]  # a latent's own two rows are alike
    findings, _, _ = run(Geometry(), pair, made, tokens=300)
    base, tuned = (torch.nn.functional.normalize(part, dim=-1) for part in made.W_dec.detach().split(WIDTH, dim=-1))
    apart = (base @ tuned.T)[~torch.eye(len(base), dtype=torch.bool)].double()
    assert (base * tuned).sum(-1).mean() > apart.mean() + 0.3
    where = "geometry/decoder_cosine/random_pairs"
    assert findings[f"{where}_mean"].value == pytest.approx(float(apart.mean()), abs=1e-6)
    assert findings[f"{where}_p95"].value == pytest.approx(
        float(apart.quantile(0.95, interpolation="higher")), abs=2e-5
    )
    assert f"all {len(apart):,} pairs" in findings[f"{where}_mean"].meaning


# -- patching --------------------------------------------------------------------------------------------------------


def test_conditions_of_patching_are_of_living_latents_and_controls_are_none_of_the_best(pair):
    trained = Trained(pair, toy_text(), 300, dictionary=of_known_norms(pair))
    classes, notes = KLPatching(best=3, draws=40).classes(trained)
    numbers = {name: some.tolist() for name, some in classes}
    assert numbers["base_only"] == [0] and numbers["tuned_only"] == [7] and numbers["shared"] == [3, 4]
    assert numbers["other"] == [1, 2, 5, 6] and numbers["best"] == [7, 6, 5] and not notes
    drawn = [some for name, some in numbers.items() if name.startswith("random_")]
    assert len(drawn) == 40 and all(len(set(some)) == 3 for some in drawn)
    assert set(itertools.chain(*drawn)) == {0, 1, 2, 3, 4}


def test_draws_of_patching_stand_as_their_mean_their_smallest_and_their_largest(pair):
    dictionary = imperfect()
    findings, tables, _ = evaluated(KLPatching(best=4, draws=3), pair, dictionary, text=text_of(rows=60))
    table = tables["kl_patching"]
    (base,) = rows_of(table, condition="base", place="all")
    drawn = [rows_of(table, condition=f"random_{n}", place="all")[0]["closed"] for n in range(3)]
    found = {end: findings[f"kl_patching/closed/random{end}"].value for end in ("", "_smallest", "_largest")}
    assert found == pytest.approx({"": sum(drawn) / 3, "_smallest": min(drawn), "_largest": max(drawn)})
    assert max(drawn) > min(drawn) + 1e-3
    counts = {row["condition"]: row["latents"] for row in rows_of(table, place="all")}
    assert [counts[name] for name in ("base", "offset", "error", "best", "random_0")] == [0, 0, 0, 4, 4]
    assert [counts[name] for name in ("all", "reconstruction", "tuned")] == [dictionary.latents] * 3
    assert base["closed"] == 0


def test_the_first_token_of_a_text_is_predicted_by_nothing_and_counts_nowhere(pair):
    text = text_of("fact", rows=60)
    _, tables, _ = evaluated(KLPatching(draws=0), pair, imperfect(), text=text)
    batches = Given(pair, text, 10**6, 1024).held_out
    first = sum(int((batch.places[0] % batch.ids[0].shape[1] == 0).sum()) for batch in batches)
    (row,) = rows_of(tables["kl_patching"], condition="base", place="all")
    assert first > 0 and row["tokens"] == sum(len(batch.token) for batch in batches) - first


def test_what_follows_a_label_stands_at_the_very_next_place_and_not_beyond_a_token_that_is_not_kept(pair):
    batch = next(b for b in Given(pair, toy_text(), 4000).held_out if AT in b.labels)
    kept = torch.ones(len(batch.token), dtype=torch.bool)
    kept[places(batch, 3, [AT])[f"after_{AT}"].nonzero()[::2, 0]] = False
    fields = ("token", "document", "sequence", "position", "segment", "progress")
    fewer = batch._replace(
        **{name: getattr(batch, name)[kept] for name in fields},
        places=tuple(some[kept] for some in batch.places),
        labels={name: here[kept] for name, here in batch.labels.items()},
    )
    stand = list(zip(fewer.sequence.tolist(), fewer.position.tolist(), strict=True))
    labelled = {place for place, here in zip(stand, fewer.labels[AT].tolist(), strict=True) if here}
    found = places(fewer, 3, [AT])[f"after_{AT}"]
    assert found.tolist() == [(row, place - 1) in labelled for row, place in stand] and 0 < found.sum() < len(labelled)


# -- latent scaling --------------------------------------------------------------------------------------------------


def test_a_latents_columns_are_those_of_the_model_that_it_leans_to_and_none_is_confirmed_that_was_not_called(pair):
    made = of_known_norms(pair)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        made.W_enc.copy_(torch.randn(made.W_enc.shape, generator=generator) / 8)
        made.b_enc.fill_(1.0)
    trained = Trained(pair, toy_text(), 600, dictionary=made)
    _, tables, _ = run(LatentScaling(), pair, made, tokens=600)
    columns, found = tables["latents"], latent_scaling(made, ((r.rows, r.latents) for r in trained.readings("")))
    for n, relative in enumerate(RELATIVE):
        own = found[TUNED if relative >= 0.5 else BASE]
        for name in ("error", "reconstruction", "activation"):
            assert columns[f"nu_{name}"][n] == pytest.approx(float(own.nu(name)[n]), rel=1e-4, abs=1e-6), (n, name)
        assert (columns["confirmed"][n] is None) == (0.1 <= relative <= 0.9), n
    leaning = [abs(float(found[TUNED].nu("error")[n] - found[BASE].nu("error")[n])) > 0.1 for n in range(len(RELATIVE))]
    assert sum(leaning) > 5


def test_a_call_is_confirmed_below_both_limits_and_the_limits_are_settings(pair):
    error, restored = torch.tensor([0.19, 0.21, 0.1, 0.1]), torch.tensor([0.1, 0.1, 0.49, 0.51])
    beta = {(name, TUNED): torch.ones(4) for name in ("error", "reconstruction")}
    beta |= {("error", BASE): error, ("reconstruction", BASE): restored}
    scaling = Scaling(TUNED, beta, torch.ones(4, dtype=torch.bool))
    assert scaling.exclusive().tolist() == [True, False, True, False]
    assert scaling.exclusive(0.15, 0.5).tolist() == [False, False, True, False]
    dictionary = fitted(pair, identity_dictionary(pair.streams("resid_post", 1)))
    counts = {}
    for limit in (-1.0, 0.2):
        findings, _, _ = run(LatentScaling(largest_nu_error=limit), pair, dictionary, tokens=600)
        counts[limit] = sum(f.value for f in findings.values())
    assert counts[-1.0] == 0 < counts[0.2]


def test_an_event_that_two_latents_name_is_found_once_and_a_dead_or_far_one_names_none():
    truth = planted()
    made = known(truth)
    (own, *_) = [n for n, kind in enumerate(k for k in truth.kinds if k != "split") if kind == "tuned_only"]
    (spare, *_) = [n for n, kind in enumerate(k for k in truth.kinds if k != "split") if kind == "shared"]
    with torch.no_grad():  # a latent of a shared event names the tuned-only one as well
        made.W_dec[spare] = made.W_dec[own]
    twice = score(made, truth, rows(truth)).by_norm
    assert (twice.called, twice.false, twice.recall) == (7, 0, 1.0)
    made = known(truth)
    with torch.no_grad():  # at a cosine of 0.55 to its event and hardly any to all others
        event = made.W_dec[own, truth.width :].clone()
        aside = torch.randn(len(event), generator=torch.Generator().manual_seed(5))
        aside -= (aside @ event) / event.square().sum() * event
        made.W_dec[own, -len(event) :] = 0.55 * event + (1 - 0.55**2) ** 0.5 * event.norm() * aside / aside.norm()
    far = score(made, truth, rows(truth)).by_norm
    assert (far.called, far.false) == (6, 1) and far.recall == pytest.approx(5 / 6)
    made = known(truth)
    before = score(made, truth, rows(truth)).mean_max_cosine
    with torch.no_grad():
        made.W_enc[:, own], made.b_enc[own] = 0.0, 0.0
    assert score(made, truth, rows(truth)).mean_max_cosine < before - 0.5 / len(truth.kinds)


# -- examples and effects --------------------------------------------------------------------------------------------


def test_an_example_ends_where_its_document_does_and_its_scaled_activation_is_by_its_own_latents_norm(pair):
    dictionary = fitted(pair, identity_dictionary(pair.streams("resid_post", 1)))
    with torch.no_grad():
        dictionary.W_dec *= torch.linspace(1, 3, 128)[:, None]
    chosen, before, after = [90, 17], 30, 25
    evaluation = Examples(strongest=12, quantiles=2, random=4, before=before, after=after, latents=chosen)
    _, tables, _ = run(evaluation, pair, dictionary)
    columns, spelled, words = tables["examples"], Spelling(pair.tokenizers[0]), {}
    for batch in Given(pair, toy_text(), 2000).held_out:
        for document, place, token in zip(
            *(f.tolist() for f in (batch.document, batch.position, batch.token)), strict=True
        ):
            words.setdefault(document, []).append((place, spelled(token)))
    cut = 0
    for document, place, tokens, position in zip(
        *(columns[name] for name in ("document", "place", "tokens", "position")), strict=True
    ):
        at = [known_place for known_place, _ in words[document]].index(place)
        whole = [word for _, word in words[document]]
        assert tokens == whole[max(0, at - before) : at + after + 1] and position == min(at, before)
        cut += at < before or at + after >= len(whole)
    assert cut > 5 and set(columns["latent"]) == set(chosen)
    norms = dictionary.code_norms().tolist()
    for latent, plain, scaled in zip(*(columns[n] for n in ("latent", "activation", "scaled_activation")), strict=True):
        assert scaled == pytest.approx(plain * norms[latent], rel=1e-5)


def test_what_latents_of_several_layers_write_is_read_at_the_highest(pair):
    streams = pair.streams("resid_post", [0, 2])
    dictionary = fitted(pair, Crosscoder(streams, latents=8, sparsity=L1(0.0), normalisation=Normalisation))
    trained = Trained(pair, toy_text(), 300, dictionary=dictionary)
    for role in ROLES:
        (n,) = [n for n, stream in enumerate(streams) if (stream.role, stream.layer) == (role, 2)]
        hookpoint, written = written_rows(trained, role)
        expected = (dictionary.W_dec / dictionary.normalisation.scale).split(WIDTH, dim=-1)[n]
        assert hookpoint == "resid_post" and torch.equal(written, expected)


def test_rows_that_only_pad_the_unembedding_are_no_tokens_and_no_part_of_the_mean(pair):
    trained = Trained(pair, toy_text(), 300, dictionary=identity_dictionary(pair.streams("resid_post", 1)))
    tuned, count = pair.models[TUNED], len(pair.tokenizers[0])
    weight, gain = unembedding(tuned)
    whole = weight * gain
    tuned.lm_head.weight = torch.nn.Parameter(torch.cat([tuned.lm_head.weight, 50 * tuned.lm_head.weight[3:9]]))
    effect = whole @ (whole[3] / whole[3].norm())
    found = {
        sign: (tokens, effects) for _, sign, tokens, effects in strongest_effects(trained, TUNED, whole[3:4], tokens=4)
    }
    for sign, (tokens, effects) in found.items():
        best = (sign * (effect - effect.mean())).topk(4)
        assert tokens == [Spelling(pair.tokenizers[0])(n) for n in best.indices.tolist()]
        assert effects == pytest.approx((sign * best.values).tolist(), rel=1e-4)
    assert len(unembedding(tuned)[0]) == count + 6 and set(found) == {1, -1}


def test_what_taking_the_other_models_row_changes_is_the_difference_of_the_two(pair):
    dictionary = fitted(pair, identity_dictionary(pair.streams("resid_post", 1)))
    with torch.no_grad():
        dictionary.W_dec += 0.5
    trained, (base, tuned) = Trained(pair, toy_text(), 300, dictionary=dictionary), dictionary.streams
    own = {role: decoder_rows(trained, at) for role, at in ((BASE, base), (TUNED, tuned))}
    assert torch.allclose(own[TUNED], dictionary.W_dec[:, WIDTH:] / dictionary.normalisation.scale[WIDTH:])
    assert torch.allclose(decoder_rows(trained, base, exchanged=True), own[TUNED] - own[BASE])


# -- labels ----------------------------------------------------------------------------------------------------------

LABEL, AT = "hesitation_follows", "step_end"


def by_halves(monkeypatch, latents=None, values=None, living=None):
    """Readings whose latents, or whose normalised values, are what functions of the label and of the half of the questions
    say; the rest is noise, of the first `living` latents alone."""
    original, generator = Trained.readings, torch.Generator().manual_seed(3)

    def readings(self, title):
        for reading in original(self, title):
            batch = reading.batch
            label = batch.labels.get(LABEL, torch.zeros(len(batch.token), dtype=torch.bool)).float()
            chosen_on = (batch.question % 2 == 0).float()
            noise = torch.rand(reading.latents.shape, generator=generator)
            for n, of in (latents or {}).items():
                noise[:, n] = of(label, chosen_on) + 0.01 * noise[:, n]
            noise[:, living or noise.shape[1] :] = 0.0
            scale, mean = self.dictionary.normalisation.scale, self.dictionary.normalisation.mean
            made = torch.randn(reading.rows.values.shape, generator=generator)
            for n, of in (values or {}).items():
                made[:, n] += of(label, chosen_on)
            yield reading._replace(latents=noise, rows=reading.rows._replace(values=made / scale + mean))

    monkeypatch.setattr(Trained, "readings", readings)


def test_the_best_latent_is_chosen_on_one_half_whatever_the_other_half_says(pair, monkeypatch):
    dictionary = fitted(pair, identity_dictionary(pair.streams("resid_post", 1)))
    by_halves(monkeypatch, {3: lambda y, half: y * half, 5: lambda y, half: y * (1 - half)})
    made = Chance(torch.linspace(0, 1, 101)[None], torch.rand(1, 128, 101, generator=torch.Generator().manual_seed(0)))
    monkeypatch.setattr(label_alignment, "chance", lambda *_: made)
    evaluation = LabelAlignment(label=LABEL, at=AT, first=False, shuffles=5)
    findings, tables, _ = run(evaluation, pair, dictionary, tokens=20_000)
    found = {name.rpartition("/")[2]: finding for name, finding in findings.items()}
    assert found["latent"].value == 3 and found["auroc"].value < 0.8
    assert tables["latents"][f"auroc/{LABEL}"][5] > 0.99 < tables["latents"][f"auroc_select/{LABEL}"][3]
    assert found["null_mean"].value == pytest.approx(0.5) and found["null_p95"].value == pytest.approx(0.95)
    assert found["over_null"].value == pytest.approx(found["auroc"].value - found["null_p95"].value)
    assert found["p"].value == pytest.approx((int((made.best >= found["auroc"].value).sum()) + 1) / 102)
    assert found["lift"].value == pytest.approx(found["average_precision"].value / found["share"].value)
    batches = Given(pair, toy_text(), 20_000).held_out
    label, question = (
        torch.cat([(b.labels[LABEL] if n == 0 else b.question)[b.labels[AT]] for b in batches if LABEL in b.labels])
        for n in (0, 1)
    )
    assert found["share"].value == pytest.approx(float(label[question % 2 == 1].double().mean()))
    assert float(label.double().mean()) != pytest.approx(found["share"].value)


def test_a_rule_may_use_the_token_before_and_it_is_not_the_token(pair):
    batch = next(b for b in Given(pair, toy_text(), 4000).held_out if LABEL in b.labels)
    here = batch.labels[AT] & (batch.places[0] % batch.ids[0].shape[1] > 0)
    token, before = labelled.words_of([(batch, here)])["the token and the one before"]
    ids = batch.ids[0].flatten()
    assert (token[:, 0] - 1).tolist() == ids[batch.places[0][here]].tolist()
    assert (before[:, 0] - 1).tolist() == ids[batch.places[0][here] - 1].tolist() != (token[:, 0] - 1).tolist()


def test_directions_are_chosen_and_made_on_one_half_alone_and_no_more_of_them_than_latents_live(pair, monkeypatch):
    dictionary = fitted(pair, identity_dictionary(pair.streams("resid_post", 1)))
    of_halves = {40: lambda y, half: 4 * y * half, 41: lambda y, half: 4 * y * (1 - half)}
    by_halves(monkeypatch, values=of_halves, living=5)
    findings, _, _ = run(Probing(label=LABEL, at=AT, directions=16), pair, dictionary, tokens=20_000)
    found = {name.rpartition("/")[2]: finding for name, finding in findings.items()}
    assert 0.3 < found["neurons"].value < 0.7 and 0.3 < found["mean_difference"].value < 0.8
    assert "the best of 5 random directions" in found["random_directions"].meaning


# -- segments --------------------------------------------------------------------------------------------------------


def test_a_latent_is_early_or_late_by_where_it_fires_more_often_among_those_that_fire_there(pair, monkeypatch):
    dictionary = fitted(pair, identity_dictionary(pair.streams("resid_post", 1)))
    original = Trained.readings

    def readings(self, title):
        for reading in original(self, title):
            batch, latents = reading.batch, torch.zeros_like(reading.latents)
            thinking, n = batch.segment == SEGMENTS.index("thinking"), batch.position
            early, late = thinking & (batch.progress < 0.1), thinking & (batch.progress >= 0.9)
            latents[:, 0] = early.float()
            latents[:, 1] = (late & (n % 8 == 0)).float()  # seldom, and late all the same
            latents[:, 2] = late.float()
            latents[:, 3] = (early | late).float()
            latents[:, 4] = (batch.segment == SEGMENTS.index("answer")).float()  # in neither
            yield reading._replace(latents=latents)

    monkeypatch.setattr(Trained, "readings", readings)
    findings, _, _ = run(Segments(), pair, dictionary)
    assert findings["segments/shift/early"].value == 1 / 4 and findings["segments/shift/late"].value == 2 / 4
    assert "last tenth of the thinking than in the first" in findings["segments/shift/late"].meaning


def test_a_latent_that_follows_the_place_is_told_from_one_that_does_not(pair, monkeypatch):
    dictionary, original = fitted(pair, identity_dictionary(pair.streams("resid_post", 1))), Trained.readings

    def readings(self, title):
        for reading in original(self, title):
            latents, place = torch.zeros_like(reading.latents), reading.batch.position
            latents[:, 0] = 9.0 * (place == 7)
            latents[:, 1] = torch.rand(len(place), generator=torch.Generator().manual_seed(len(place)))
            yield reading._replace(latents=latents, admitted=torch.ones_like(reading.admitted))

    monkeypatch.setattr(Trained, "readings", readings)
    _, tables, _ = run(Positions(latents=[0, 1], places=20), pair, dictionary)
    rows = tables["positions"]
    assert rows["explained"][0] > 0.999 and rows["peak"][0] == 7 and rows["explained"][1] < 0.4  # few documents


def test_rates_of_places_are_of_the_tokens_that_are_no_sinks(pair):
    dictionary = with_sinks(pair)
    _, tables, _ = run(Segments(), pair, dictionary)
    readings = list(Trained(pair, toy_text(), 2000, dictionary=dictionary).readings(""))
    for place in ("prompt", "answer"):
        here = [r.latents[(r.batch.segment == SEGMENTS.index(place)) & r.admitted] for r in readings]
        every = sum(int((r.batch.segment == SEGMENTS.index(place)).sum()) for r in readings)
        fires = (torch.cat(here) != 0).double()
        assert place in PLACES and 0 < len(fires) < every
        assert torch.allclose(torch.tensor(tables["segments"][f"rate/{place}"]).double(), fires.mean(0), atol=1e-6)


def test_excess_of_a_loss_that_is_not_told_from_none_is_no_number():
    sums = torch.zeros(12, len(SUMS), dtype=torch.float64)
    column = SUMS.index
    sums[:, column("predicted")] = 1.0
    sums[:, column("ce_spliced")] = 2.0 + torch.arange(12) / 10
    sums[0, column("ce_clean")] = 3.0  # one document has a loss at all
    assert _bounded("excess_ce", sums) == (None, None, None)
    sums[:, column("ce_clean")] = 1.0 + torch.arange(12) % 2 / 10
    value, low, high = _bounded("excess_ce", sums)
    assert low < value < high and value == pytest.approx(
        float(sums[:, column("ce_spliced")].sum() / sums[:, column("ce_clean")].sum()) - 1
    )
