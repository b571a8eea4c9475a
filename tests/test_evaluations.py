"""Every measure against a truth that was planted."""

import itertools
import re
import weakref
from functools import partial

import pytest
import torch

from conftest import logits_of
from tunediff.activations import LiveRows, take
from tunediff.dictionary import L1, BatchTopK, Crosscoder, Normalisation, TranscoderAdapter
from tunediff.evaluations import (
    Examples,
    Fidelity,
    Geometry,
    LabelAlignment,
    LatentScaling,
    LogitEffect,
    Probing,
    Segments,
    Trained,
)
from tunediff.evaluations.latents.splice import predictions
from tunediff.evaluations.reading.label_alignment import at_label
from tunediff.evaluations.reading.segments import GROUPS, PLACES, variation
from tunediff.hookpoints import Point, writing
from tunediff.measures.clustered import ratio
from tunediff.measures.separation import ActiveScores, auroc
from tunediff.models import ModelPair, ModelSource, head_of, unembedding
from tunediff.shapes import Finding, Note, Table
from tunediff.text import Text
from tunediff.toy import language
from tunediff.toy.tokenizer import ASSISTANT, USER


def toy_text():
    return Text(lambda: language.rows(0, "trace"), held_out=0.1, context=256, window=16, tokens_per_batch=1024)


def identity_dictionary(streams, *, gain=1.0):
    """Latents are the positive and negative parts of every coordinate: a perfect reconstruction."""
    width = sum(s.width for s in streams)
    made = Crosscoder(
        streams, latents=2 * width, sparsity=L1(0.0), normalisation=partial(Normalisation, kind="mean_norm")
    )
    with torch.no_grad():
        made.W_enc.copy_(torch.cat([torch.eye(width), -torch.eye(width)], dim=1))
        made.W_dec.copy_(gain * torch.cat([torch.eye(width), -torch.eye(width)], dim=0))
    return made


def run(evaluation, pair, dictionary, tokens=2000):
    trained = Trained(pair, toy_text(), tokens, dictionary=dictionary)
    found = list(evaluation.run(trained))
    findings = {f.name: f for f in found if isinstance(f, Finding)}
    tables = {t.name: t.columns for t in found if isinstance(t, Table)}
    return findings, tables, [n.text for n in found if isinstance(n, Note)]


def fitted(pair, dictionary):
    source = LiveRows(pair, toy_text(), dictionary.streams, dtype=torch.float32)
    dictionary.normalisation.fit(take(source, 2000).values)
    return dictionary


@pytest.mark.parametrize("hookpoint", ["resid_pre", "resid_post", "mlp_out"])
def test_a_perfect_reconstruction_recovers_everything(pair, hookpoint):
    dictionary = fitted(pair, identity_dictionary(pair.streams(hookpoint, 1)))
    findings, tables, notes = run(Fidelity(), pair, dictionary)
    for role in ("base", "tuned"):
        assert abs(findings[f"fidelity/explained_variance/{role}"].value - 1) < 1e-6
        assert abs(findings[f"fidelity/kl_spliced/{role}"].value) < 1e-5
        assert abs(findings[f"fidelity/excess_ce/{role}"].value) < 1e-5
        assert abs(findings[f"fidelity/kl_recovered/{role}"].value - 1) < 1e-3
    # of a cost that cannot be told from none, as of this model that has learned nothing, there is no share
    columns = {name: torch.tensor(tables["fidelity"][name]) for name in ("ce_zero", "ce_mean", "ce_clean", "predicted")}
    places = list(zip(tables["fidelity"]["model"], tables["fidelity"]["segment"], strict=True))
    told = []
    for name, ablated in (("ce_recovered", "ce_zero"), ("ce_recovered_from_mean", "ce_mean")):
        untold = []
        for role, segment in dict.fromkeys(place for place in places if place[1] != "template"):
            here = torch.tensor([place == (role, segment) for place in places])
            costs = ratio((columns[ablated] - columns["ce_clean"])[here], columns["predicted"][here])
            where = role if segment == "all" else f"{role}/{segment}"
            value = findings[f"fidelity/{name}/{where}"].value
            if costs.interval(0.95)[0] > 0:
                told.append(value)
            else:
                untold.append(where)
                assert value is None, where
        said = next(note for note in notes if note.startswith(f"fidelity/{name} has no value for "))
        assert said.removeprefix(f"fidelity/{name} has no value for ").split(": ")[0].split(", ") == untold
    assert told and told == pytest.approx([1.0] * len(told), abs=1e-2)


def test_the_mean_predictor_explains_nothing_and_is_the_mean_ablation(pair):
    streams = pair.streams("resid_post", 1)
    dictionary = fitted(pair, identity_dictionary(streams))
    trained = Trained(pair, toy_text(), 2000, dictionary=dictionary)
    values = torch.cat([r.rows.values for r in trained.readings("")])
    with torch.no_grad():
        dictionary.W_enc.zero_()
        dictionary.b_dec.copy_(dictionary.normalisation.normalise(values.mean(0)))
    findings, _, _ = run(Fidelity(), pair, dictionary)
    for role in ("base", "tuned"):
        assert abs(findings[f"fidelity/explained_variance/{role}"].value) < 1e-6
        assert abs(findings[f"fidelity/ce_spliced/{role}"].value - findings[f"fidelity/ce_mean/{role}"].value) < 1e-5
    assert findings["fidelity/l0/mean"].value == 0 and findings["fidelity/dead_fraction"].value == 1


def test_a_dictionary_of_one_model_is_measured_in_that_model(pair):
    for role in ("base", "tuned"):
        dictionary = fitted(pair, identity_dictionary(pair.streams("resid_post", 1, reads=role)))
        findings, tables, _ = run(Fidelity(), pair, dictionary)
        assert abs(findings[f"fidelity/kl_recovered/{role}"].value - 1) < 1e-3
        assert {name.split("/")[2] for name in findings if name.count("/") > 1 and "l0" not in name} == {role, "pooled"}
        findings, tables, _ = run(Geometry(), pair, dictionary)
        assert "relative_decoder_norm" not in tables["latents"] and "firing_rate" in tables["latents"]


def test_a_difference_is_written_into_the_tuned_model_and_without_it_the_bases_activations_stand_there(pair):
    dictionary = fitted(pair, identity_dictionary(pair.streams("resid_post", 1, reads="difference")))
    findings, _, _ = run(Fidelity(), pair, dictionary)
    assert abs(findings["fidelity/explained_variance/difference"].value - 1) < 1e-6
    assert abs(findings["fidelity/kl_spliced/difference"].value) < 1e-5
    trained = Trained(pair, toy_text(), 300, dictionary=dictionary)
    reading = next(trained.readings(""))
    assert reading.admitted.all()
    without, scored = predictions(trained, reading, "difference", torch.zeros_like(reading.rows.values))
    batch = reading.batch
    (base,) = pair.read(batch, pair.streams("resid_post", 1, reads="base"))

    def put(value):
        flat = value.flatten(0, 1).clone()
        flat[pair.places("tuned", batch)] = base
        return flat.view_as(value)

    with writing(pair.models["tuned"], Point("resid_post", 1), put):
        logits = logits_of(pair, "tuned", batch).flatten(0, 1)
    expected = logits[pair.places("tuned", batch)[scored] - 1].log_softmax(-1)
    assert torch.allclose(head_of(pair.models["tuned"])(without).log_softmax(-1), expected, atol=1e-4)


def test_explained_variance_does_not_depend_on_batching(pair):
    dictionary = fitted(pair, identity_dictionary(pair.streams("resid_post", 1), gain=0.7))
    found = []
    for tokens_per_batch in (300, 3000):
        trained = Trained(pair, toy_text(), 2000, tokens_per_batch, dictionary=dictionary)
        values = torch.cat([r.rows.values.double() for r in trained.readings("")])
        findings = {f.name: f.value for f in Fidelity().run(trained) if isinstance(f, Finding)}
        direct = 1 - (0.3 * values[:, :32]).square().sum() / (values - values.mean(0))[:, :32].square().sum()
        found.append(findings["fidelity/explained_variance/base"])
        assert abs(found[-1] - direct) < 1e-5


def test_cross_entropy_is_the_models_own(pair):
    dictionary = fitted(pair, identity_dictionary(pair.streams("resid_post", 1)))
    findings, _, _ = run(Fidelity(), pair, dictionary, tokens=300)
    batch = next(toy_text().batches(pair.tokenizers, held_out=True, tokens_per_batch=2048))
    if len(batch.token) >= 300:
        losses = []
        for row in range(len(batch.ids[0])):
            ids = batch.ids[0][row, : int(batch.mask[0][row].sum())]
            with torch.no_grad():
                each = torch.nn.functional.cross_entropy(
                    pair.models["base"](input_ids=ids[None]).logits[0, :-1], ids[1:], reduction="none"
                )
            special = torch.tensor([int(i) in pair.tokenizers[0].all_special_ids for i in ids[1:]])
            losses.append(each[~special])
        assert abs(findings["fidelity/ce_clean/base"].value - float(torch.cat(losses).mean())) < 1e-4


def test_segments_and_intervals_hold_the_whole(pair):
    dictionary = fitted(pair, identity_dictionary(pair.streams("resid_post", 1), gain=0.8))
    findings, tables, _ = run(Fidelity(), pair, dictionary)
    for role in ("base", "tuned"):
        names = [f"fidelity/ce_clean/{role}/{s}" for s in ("prompt", "prefix", "thinking", "answer")]
        values = [findings[name].value for name in names]
        assert min(values) <= findings[f"fidelity/ce_clean/{role}"].value <= max(values)
    for finding in findings.values():
        if finding.low is not None:
            assert finding.low <= finding.value <= finding.high, finding
    columns = tables["fidelity"]
    whole = sum(
        t
        for t, s, m in zip(columns["tokens"], columns["segment"], columns["model"], strict=True)
        if s == "all" and m == "base"
    )
    parts = sum(
        t
        for t, s, m in zip(columns["tokens"], columns["segment"], columns["model"], strict=True)
        if s not in ("all", "template") and m == "base"
    )
    assert whole == parts


def test_parts_of_a_response_are_as_far_apart_as_their_latents_are_and_chance_alone_puts_none_apart():
    generator = torch.Generator().manual_seed(0)

    def drawn(shares, tokens):
        return torch.poisson(tokens * shares.expand(GROUPS, -1), generator=generator)

    even = torch.full((400,), 1 / 400)
    held = [variation(drawn(even, 300.0), drawn(even, 300.0)).bounded() for _ in range(200)]
    assert sum(low <= 0 <= high for _, low, high in held) >= 180 and abs(sum(v for v, _, _ in held)) / 200 < 0.005
    moved = even.clone()
    moved[:100], moved[100:200] = 1.8 / 400, 0.2 / 400  # a fifth of all firings
    value, low, high = variation(drawn(even, 300.0), drawn(moved, 900.0)).bounded()
    assert low < value < high and value == pytest.approx(0.2, abs=0.02) and low > 0.15
    split = torch.cat([even[:200] * 2, torch.zeros(200)])
    assert variation(drawn(split, 50.0), drawn(split.flip(0), 50.0)).value == 1.0


def test_evaluations_change_nothing(pair):
    streams = pair.streams("resid_post", 1)
    dictionary = fitted(
        pair,
        Crosscoder(streams, latents=32, sparsity=BatchTopK(4), normalisation=partial(Normalisation, kind="unit_rms")),
    )
    dictionary.sparsity.threshold.fill_(0.5)
    before = {name: value.clone() for name, value in dictionary.state_dict().items()}
    state = torch.get_rng_state()
    for evaluation in (
        Fidelity(),
        Geometry(),
        Examples(strongest=2),
        LabelAlignment(label="hesitation_follows", at="step_end", first=False, shuffles=5),
        LatentScaling(),
        LogitEffect(),
        Probing(label="hesitation_follows", at="step_end", directions=4),
        Segments(),
    ):
        run(evaluation, pair, dictionary)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in dictionary.state_dict().items())


def test_planted_tuned_only_and_base_only_latents_come_back_under_their_names(pair):
    dictionary = fitted(pair, identity_dictionary(pair.streams("resid_post", 1)))
    findings, tables, _ = run(Geometry(), pair, dictionary)
    relative, kinds = tables["latents"]["relative_decoder_norm"], tables["latents"]["kind"]
    for latent in range(128):
        reads_base = latent % 64 < 32
        assert relative[latent] == (0.0 if reads_base else 1.0)
        assert kinds[latent] == ("base_only" if reads_base else "tuned_only")
    alive = [rate > 0 for rate in tables["latents"]["firing_rate"]]
    assert findings["geometry/count/base_only"].value == sum(alive[:32] + alive[64:96])
    assert findings["geometry/count/shared"].value == 0
    assert findings["geometry/decoder_cosine/shared_mean"].value is None


def test_unequal_widths_have_norms_but_no_cosine(folders):
    pair = ModelPair(
        ModelSource(str(folders["base"]), dtype="float32"), ModelSource(str(folders["wide"]), dtype="float32")
    ).load()
    streams = pair.streams("resid_post", 1, equal_widths=False)
    dictionary = fitted(
        pair,
        Crosscoder(streams, latents=32, sparsity=L1(1.0), normalisation=partial(Normalisation), shared_start=False),
    )
    findings, tables, notes = run(Geometry(), pair, dictionary)
    assert "different widths" in notes[0] and set(tables["latents"]["decoder_cosine"]) == {None}
    assert not any("cosine" in name for name in findings)


def test_latents_of_a_transcoder_adapter_are_listed_with_their_layers(folders):
    pair = ModelPair(*(ModelSource(str(folders[role]), dtype="float32") for role in ("base", "tuned"))).load()
    adapter = TranscoderAdapter(pair.streams("mlp_in", "all", reads="adapter"), latents=8, sparsity=L1(0.0))
    pair.stand_beside(adapter.eval())
    _, tables, _ = run(Geometry(), pair, adapter, tokens=300)
    depth = pair.depth("tuned")
    assert tables["latents"]["layer"] == [layer for layer in range(depth) for _ in range(8)]
    assert tables["latents"]["latent"] == list(range(8 * depth)) and "relative_decoder_norm" not in tables["latents"]


def test_firing_rates_by_segment_are_those_of_the_latents(pair):
    dictionary = fitted(pair, identity_dictionary(pair.streams("resid_post", 1)))
    _, tables, _ = run(Geometry(), pair, dictionary)
    trained = Trained(pair, toy_text(), 2000, dictionary=dictionary)
    readings = list(trained.readings(""))
    answer = torch.cat([r.latents[r.batch.segment == 3] for r in readings])
    assert torch.allclose(
        torch.tensor(tables["latents"]["firing_rate/answer"]).float(), (answer > 0).float().mean(0), atol=1e-6
    )
    every = torch.cat([r.latents for r in readings])
    when_active = every.sum(0) / (every > 0).sum(0).clamp(min=1)
    assert torch.allclose(torch.tensor(tables["latents"]["mean_activation"]).float(), when_active, rtol=1e-4)
    assert torch.equal(torch.tensor(tables["latents"]["max_activation"]), every.amax(0))


# -- labels ----------------------------------------------------------------------------------------------------------


def test_auroc_counts_pairs_with_ties_half():
    values, truth = torch.tensor([[0.0, 1.0, 1.0, 2.0, 0.0]]), torch.tensor([False, True, False, True, False])
    pairs = [(a > b) + 0.5 * (a == b) for a, b in itertools.product([1.0, 2.0], [0.0, 1.0, 0.0])]
    assert float(auroc(values, truth)[0]) == pytest.approx(sum(pairs) / 6)


def with_planted_latent(pair, monkeypatch, noise):
    dictionary = fitted(pair, identity_dictionary(pair.streams("resid_post", 1)))
    original = Trained.readings
    generator = torch.Generator().manual_seed(1)

    def readings(self, title):
        for reading in original(self, title):
            latents = torch.rand(reading.latents.shape, generator=generator)
            label = reading.batch.labels.get("hesitation_follows", torch.zeros(len(latents), dtype=torch.bool))
            latents[:, 3] = label.float() + noise * torch.rand(len(latents), generator=generator)
            yield reading._replace(latents=latents)

    monkeypatch.setattr(Trained, "readings", readings)
    return dictionary


def test_a_planted_label_latent_is_found_and_chance_is_near_a_half(pair, monkeypatch):
    dictionary = with_planted_latent(pair, monkeypatch, noise=0.5)
    findings, tables, _ = run(
        LabelAlignment(label="hesitation_follows", at="step_end", first=False, shuffles=19),
        pair,
        dictionary,
        tokens=10_000,
    )
    where = "label_alignment/hesitation_follows"
    assert findings[f"{where}/latent"].value == 3 and findings[f"{where}/auroc"].value == 1.0
    assert 0.4 < findings[f"{where}/null_mean"].value < 0.7 < 0.8 > findings[f"{where}/null_p95"].value
    assert findings[f"{where}/p"].value == pytest.approx(1 / 20) and 0.8 < findings[f"{where}/auroc"].low < 1.0
    assert tables["latents"]["auroc/hesitation_follows"][3] == 1.0
    # over all tokens the rule "the token is a dot" is strong: decision positions take it away
    everywhere, _, _ = run(
        LabelAlignment(label="hesitation_follows", at=None, first=False, shuffles=5), pair, dictionary, tokens=10_000
    )
    assert everywhere[f"{where}/bag_of_words"].value > 0.9 > 0.75 > findings[f"{where}/bag_of_words"].value
    assert findings[f"{where}/within_documents"].value == 1.0 > findings[f"{where}/within_documents"].low > 0.8
    for yardstick in ("untrained_dictionary", "position"):
        assert findings[f"{where}/{yardstick}"].low < findings[f"{where}/{yardstick}"].value < 0.8


@pytest.mark.parametrize(
    "evaluation",
    [
        LabelAlignment(label="hesitation_follows", at="step_end", first=False, shuffles=2),
        Probing(label="hesitation_follows", at="step_end", directions=2),
    ],
    ids=["label_alignment", "probing"],
)
def test_telling_a_label_keeps_the_latents_of_no_batch_but_the_one_that_is_read(pair, monkeypatch, evaluation):
    original, seen, most = Trained.readings, [], []

    def readings(self, title):
        for reading in original(self, title):
            seen.append(weakref.ref(reading.latents))
            yield reading
            del reading
            most.append(sum(one() is not None for one in seen))

    monkeypatch.setattr(Trained, "readings", readings)
    dictionary = fitted(pair, identity_dictionary(pair.streams("resid_post", 1)))
    findings, _, _ = run(evaluation, pair, dictionary, tokens=20_000)
    assert findings and len(most) > 5 and max(most) <= 1


def test_a_text_without_the_label_is_said(pair):
    dictionary = fitted(pair, identity_dictionary(pair.streams("resid_post", 1)))
    findings, _, notes = run(LabelAlignment(label="irony", at="step_end", first=False), pair, dictionary)
    assert not findings and "too few stretches labelled 'irony' among 'step_end' tokens: 0 in 0 documents" in notes[0]
    _, _, others = run(LabelAlignment(label="doubt", at="step_end", first=False), pair, dictionary)
    assert len(notes) == len(others) == 2 and notes[0] != others[0]
    assert notes[1] == others[1] and "The labelled stretches of the held-out text are" in notes[1], "said once for all"


# -- examples --------------------------------------------------------------------------------------------------------


def test_examples_are_the_strongest_documents_with_their_own_activations(pair):
    dictionary = fitted(pair, identity_dictionary(pair.streams("resid_post", 1)))
    _, tables, _ = run(Examples(strongest=3, quantiles=4, random=1, before=4, after=2), pair, dictionary)
    columns = tables["examples"]
    peaks = {}
    for reading in Trained(pair, toy_text(), 2000, dictionary=dictionary).readings(""):
        for sequence in reading.batch.sequence.unique():
            here = reading.batch.sequence == sequence
            document = int(reading.batch.document[here][0])
            peaks[document] = reading.latents[here].amax(0)
    stacked = torch.stack(list(peaks.values()))
    for latent in (0, 17, 90):
        mine = [i for i, found in enumerate(columns["latent"]) if found == latent and columns["kind"][i] == "strongest"]
        assert [columns["rank"][i] for i in mine] == list(range(len(mine)))
        expected = stacked[:, latent].sort(descending=True).values[:3]
        assert torch.allclose(torch.tensor([columns["activation"][i] for i in mine]), expected[expected > 0], atol=1e-5)
        for i in mine:
            assert columns["activations"][i][columns["position"][i]] == pytest.approx(
                columns["activation"][i], abs=1e-3
            )
            assert len(columns["tokens"][i]) == len(columns["activations"][i]) == len(columns["segments"][i]) <= 7


def test_quantile_examples_are_spread_over_the_documents_in_which_a_latent_fires(pair):
    dictionary = fitted(pair, identity_dictionary(pair.streams("resid_post", 1)))
    _, tables, _ = run(Examples(strongest=1, quantiles=4, random=2), pair, dictionary, tokens=6000)
    columns = tables["examples"]
    peaks = []
    for reading in Trained(pair, toy_text(), 6000, dictionary=dictionary).readings(""):
        peaks += [reading.latents[reading.batch.sequence == n].amax(0) for n in reading.batch.sequence.unique()]
    stacked = torch.stack(peaks)
    off = []
    for latent in range(128):
        mine = [
            i for i, number in enumerate(columns["latent"]) if number == latent and columns["kind"][i] == "quantile"
        ]
        fired = stacked[:, latent][stacked[:, latent] > 0]
        if not mine:
            assert len(fired) < 4
            continue
        found = [columns["activation"][i] for i in mine]
        assert [columns["quantile"][i] for i in mine] == [0.875, 0.625, 0.375, 0.125]
        assert found == sorted(found, reverse=True) and len({columns["document"][i] for i in mine}) == 4
        off += [float((fired < a).float().mean()) - columns["quantile"][i] for a, i in zip(found, mine, strict=True)]
    assert abs(sum(off) / len(off)) < 0.05 and max(map(abs, off)) < 0.5
    at_random = [i for i, kind in enumerate(columns["kind"]) if kind == "random"]
    assert len(at_random) == 256 and len({columns["document"][i] for i in at_random}) > 20


def test_a_latent_that_never_fires_has_random_examples_only(pair):
    dictionary = fitted(pair, identity_dictionary(pair.streams("resid_post", 1)))
    with torch.no_grad():
        dictionary.b_enc[5] = -1e6
    _, tables, _ = run(Examples(strongest=2, quantiles=2, random=1), pair, dictionary)
    kinds = [
        k for k, latent in zip(tables["examples"]["kind"], tables["examples"]["latent"], strict=True) if latent == 5
    ]
    assert kinds == ["random"]


# -- many scores at once ---------------------------------------------------------------------------------------------


def test_scores_of_active_values_are_those_of_all_values_with_ties_and_signs():
    generator = torch.Generator().manual_seed(0)
    values = torch.randint(-2, 4, (300, 7), generator=generator).float() * (
        torch.rand(300, 7, generator=generator) < 0.4
    )
    values[:, 6] = 0.0
    truth = torch.rand(300, generator=generator) < 0.3
    scores = ActiveScores.of(values.split(90), 7)
    assert torch.allclose(scores.auroc(truth), auroc(values.T, truth), atol=1e-6) and scores.auroc(truth)[6] == 0.5
    for latent in range(7):
        assert torch.equal(scores.column(latent), values[:, latent])
        expected, reached = 0.0, 0
        for level in values[:, latent].unique().flip(0):
            passed = values[:, latent] >= level
            hits = int((passed & truth).sum())
            expected, reached = expected + (hits - reached) * hits / int(passed.sum()), hits
        assert float(scores.average_precision(truth)[latent]) == pytest.approx(expected / int(truth.sum()), rel=1e-5)
    some = torch.rand(300, generator=generator) < 0.5
    assert torch.allclose(scores.of_tokens(some).auroc(truth[some]), auroc(values[some].T, truth[some]), atol=1e-6)


# -- where latents fire, what they write, what directions alone tell --------------------------------------------------


def test_rates_of_places_are_those_of_the_tokens_in_them_and_tenths_are_of_the_whole_thinking(pair):
    dictionary = fitted(pair, identity_dictionary(pair.streams("resid_post", 1)))
    findings, tables, _ = run(Segments(), pair, dictionary)
    table = tables["segments"]
    readings = list(Trained(pair, toy_text(), 2000, dictionary=dictionary).readings(""))
    tenth = [r.latents[(r.batch.segment == 2) & (r.batch.progress >= 0.3) & (r.batch.progress < 0.4)] for r in readings]
    fires = (torch.cat(tenth) != 0).float()
    assert torch.allclose(torch.tensor(table["rate/thinking/3"]), fires.mean(0), atol=1e-6)
    assert torch.allclose(torch.tensor(table["mean/thinking/3"]), torch.cat(tenth).mean(0), atol=1e-4)
    assert findings["segments/l0/thinking/3"].value == pytest.approx(float(fires.sum(-1).mean()), rel=1e-5)
    found = [name.removeprefix("rate/") for name in table if name.startswith("rate/")]
    assert found == [place for place in PLACES if place != "text"]  # no text without a prompt
    # a long row that is read in pieces has the tenths of the whole
    whole, pieces = (
        Text(lambda: language.rows(0, "trace"), held_out=0.1, context=context, window=16).documents(
            {**next(language.rows(3)), "index": 0}, pair.tokenizers
        )
        for context in (256, 20)
    )
    assert len(pieces) > 2 and [p for d in pieces for p in d.progress] == [p for d in whole for p in d.progress]


def test_logit_effects_name_the_token_that_a_direction_writes(pair):
    dictionary = fitted(pair, identity_dictionary(pair.streams("resid_post", 1)))
    tuned = pair.models["tuned"]
    with torch.no_grad():
        tuned.model.norm.weight.copy_(torch.linspace(0.5, 2.0, 32))
    weight, gain = unembedding(tuned)
    gained = weight * gain
    assert torch.allclose(gained, tuned.lm_head.weight * torch.linspace(0.5, 2.0, 32), atol=1e-5)
    wanted = {3: 40, 4: 77}
    with torch.no_grad():
        for latent, token in wanted.items():
            dictionary.W_dec[latent, 32:] = gained[token] * dictionary.normalisation.scale[32:]
    _, tables, _ = run(LogitEffect(tokens=3), pair, dictionary)
    columns = tables["logit_effect"]
    rows = list(zip(*(columns[n] for n in ("latent", "role", "sign", "rank", "token", "effect")), strict=True))
    for latent, token in wanted.items():
        first = next(row for row in rows if row[:4] == (latent, "tuned", 1, 0))
        effect = gained @ torch.nn.functional.normalize(gained[token], dim=0)
        assert first[4] == pair.tokenizers[0].decode([token])
        assert first[5] == pytest.approx(float(effect[token] - effect.mean()), rel=1e-3)
    lowest = [row[5] for row in rows if row[:3] == (3, "tuned", -1)]
    assert lowest == sorted(lowest) and lowest[0] < 0


def test_directions_are_scored_as_latents_are_and_a_planted_coordinate_is_found(pair, monkeypatch):
    dictionary = fitted(pair, identity_dictionary(pair.streams("resid_post", 1)))
    original, generator = Trained.readings, torch.Generator().manual_seed(1)

    def readings(self, title):
        for reading in original(self, title):
            values = torch.randn(reading.rows.values.shape, generator=generator)
            label = reading.batch.labels.get("hesitation_follows", torch.zeros(len(values), dtype=torch.bool))
            values[:, 40] -= 3.0 * label  # of the tuned model: low where the label is
            scale, mean = dictionary.normalisation.scale, dictionary.normalisation.mean
            yield reading._replace(rows=reading.rows._replace(values=values / scale + mean))

    monkeypatch.setattr(Trained, "readings", readings)
    findings, _, _ = run(
        Probing(label="hesitation_follows", at="step_end", directions=16), pair, dictionary, tokens=20_000
    )
    found = {name.split("/")[2]: finding for name, finding in findings.items()}
    assert set(found) == {"random_directions", "neurons", "mean_difference", "difference_pca"}
    expected = 0.983  # two normals three deviations apart
    assert abs(found["neurons"].value - expected) < 0.03 and found["mean_difference"].value > 0.9
    assert found["random_directions"].value < 0.9
    assert all(f.low <= f.value <= f.high for f in found.values())


def test_latent_scaling_of_a_perfect_reconstruction_confirms_what_one_model_alone_holds(pair):
    dictionary = fitted(pair, identity_dictionary(pair.streams("resid_post", 1)))
    findings, tables, _ = run(LatentScaling(), pair, dictionary)
    columns, geometry = tables["latents"], run(Geometry(), pair, dictionary)[0]
    for kind in ("base_only", "tuned_only"):
        before = geometry[f"geometry/count/{kind}"].value
        assert findings[f"latent_scaling/count/{kind}"].value <= before
        assert (
            f"of {before} latents that are {kind.replace('_', '-')}" in findings[f"latent_scaling/count/{kind}"].meaning
        )
    assert None not in columns["confirmed"]  # every latent of it writes into one model only
    confirmed = [c and nu is not None for c, nu in zip(columns["confirmed"], columns["nu_error"], strict=True)]
    count = sum(f.value for name, f in findings.items() if name.startswith("latent_scaling/count"))
    assert count == sum(confirmed) > 0
    of_one = fitted(pair, identity_dictionary(pair.streams("resid_post", 1, reads="base")))
    assert "this dictionary reads one" in run(LatentScaling(), pair, of_one)[2][0]


def test_the_nearest_decoder_rows_are_neighbours_and_dead_latents_are_none(pair):
    dictionary = fitted(pair, identity_dictionary(pair.streams("resid_post", 1)))
    with torch.no_grad():
        dictionary.W_dec[7] = dictionary.W_dec[3] + 0.1 * dictionary.W_dec[9]
        dictionary.b_enc[9] = -1e6
    columns = run(Geometry(neighbours=2), pair, dictionary)[1]["neighbours"]
    rows = list(zip(*(columns[n] for n in ("latent", "rank", "neighbour", "cosine")), strict=True))
    first = next(row for row in rows if row[:2] == (7, 0))
    assert first[2] == 3 and first[3] == pytest.approx(1 / 1.01**0.5, rel=1e-3)
    assert 9 not in columns["latent"] + columns["neighbour"] and not any(row[0] == row[2] for row in rows)


def test_where_a_stretch_begins_its_other_tokens_are_not_looked_at(pair):
    dictionary = fitted(pair, identity_dictionary(pair.streams("resid_post", 1)))
    trained = Trained(pair, toy_text(), 2000, dictionary=dictionary)
    for first in (False, True):
        for reading, here in at_label(trained, "opening", None, "", first=first):
            labels, sequences = reading.batch.labels["opening"], reading.batch.sequence
            for sequence in sequences[labels].unique():
                mine = labels & (sequences == sequence)
                looked_at = (mine & here).nonzero()[:, 0].tolist()
                expected = mine.nonzero()[:, 0].tolist()
                assert len(expected) > 3 and looked_at == (expected[:1] if first else expected)
            assert (here | labels).all()  # whatever has no label is looked at


# -- what the chat template writes -------------------------------------------------------------------------------------


def notes_but_of_shares(found):
    """Not those of an ablation that costs a model of random weights nothing: there is nothing of which to recover a share."""
    notes = [item.text for item in found if isinstance(item, Note)]
    return [text for text in notes if not re.match(r"fidelity/(ce|kl)_recovered(_from_mean)? has no value for ", text)]


def test_the_template_is_measured_apart_and_stands_in_no_pooled_number(pair):
    rows = list(itertools.islice(language.rows(0, "trace"), 150))

    def measured(**settings):
        text = Text(lambda: iter(rows), held_out=0.1, context=256, window=16, tokens_per_batch=1024, **settings)
        trained = Trained(
            pair, text, 10**6, dictionary=fitted(pair, identity_dictionary(pair.streams("resid_post", 1)))
        )
        found = [*Fidelity().run(trained), *Segments().run(trained)]
        assert not notes_but_of_shares(found)  # all of it is measured
        return {f.name: f for f in found if isinstance(f, Finding)}

    apart, alone = measured(drop_special=False), measured(drop_special=False, segments=["template"])
    of_template = [name for name in apart if name.endswith("/template")]
    places = [f"fidelity/explained_variance/{role}/template" for role in ("base", "tuned")]
    assert of_template == [*places, "segments/l0/template"]
    for name in of_template:
        assert apart[name].value == pytest.approx(alone[name].value, rel=1e-5), name
    assert measured() == apart  # every token of this template is special: those of the text are left out, these are not


def test_a_template_of_which_both_models_read_one_token_alike_is_not_measured(pair):
    """R1's beside Qwen: but for a line break all of it is foreign."""
    text = Text(lambda: iter(list(itertools.islice(language.rows(0, "trace"), 60))), held_out=0.2, context=256)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(pair), "foreign", [USER, ASSISTANT])
        trained = Trained(
            pair, text, 10**4, dictionary=fitted(pair, identity_dictionary(pair.streams("resid_post", 1)))
        )
        found = [*Fidelity().run(trained), *Segments().run(trained)]
    assert not any("template" in f.name for f in found if isinstance(f, Finding))
    (said,) = notes_but_of_shares(found)
    assert re.search(
        r"Of [\d,]+ tokens that the chat template writes in \d+ held-out documents \d+ are read alike", said
    )
    assert said.endswith("of 1 kind: nothing is measured of the template.")


def test_a_label_whose_mark_is_foreign_is_not_said_to_need_more_text(pair):
    text = Text(lambda: iter(list(itertools.islice(language.rows(0, "trace"), 60))), held_out=0.2, context=256)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(pair), "foreign", ["</think>"])
        trained = Trained(
            pair, text, 10**4, dictionary=fitted(pair, identity_dictionary(pair.streams("resid_post", 1)))
        )
        (note,) = LabelAlignment(label="end_of_thinking", at=None, first=True).run(trained)
    said = "has nothing to measure of 'end_of_thinking': </think> is read differently by the two models"
    assert said in note.text and "too few" not in note.text
