"""Every measure against a truth that was planted."""

import itertools
from functools import partial

import pytest
import torch

from tunediff.activations import LiveRows, take
from tunediff.dictionary import L1, BatchTopK, Crosscoder, Normalisation
from tunediff.evaluations import Examples, Fidelity, Geometry, LabelAlignment, Trained
from tunediff.evaluations.fidelity import predictions
from tunediff.evaluations.label_alignment import auroc, average_ranks, delong_interval
from tunediff.hookpoints import Point, writing
from tunediff.models import ModelPair, ModelSource
from tunediff.shapes import Finding, Note, Table
from tunediff.text import Text
from tunediff.toy import language


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
    trained = Trained(pair, toy_text(), dictionary, tokens)
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
    findings, _, _ = run(Fidelity(resamples=50), pair, dictionary)
    for role in ("base", "tuned"):
        assert abs(findings[f"fidelity/explained_variance/{role}"].value - 1) < 1e-6
        assert abs(findings[f"fidelity/kl_spliced/{role}"].value) < 1e-5
        assert abs(findings[f"fidelity/excess_ce/{role}"].value) < 1e-5
        assert abs(findings[f"fidelity/kl_recovered/{role}"].value - 1) < 1e-3
        assert abs(findings[f"fidelity/ce_recovered/{role}"].value - 1) < 1e-2 or hookpoint == "mlp_out"


def test_the_mean_predictor_explains_nothing_and_is_the_mean_ablation(pair):
    streams = pair.streams("resid_post", 1)
    dictionary = fitted(pair, identity_dictionary(streams))
    trained = Trained(pair, toy_text(), dictionary, 2000)
    values = torch.cat([r.rows.values for r in trained.readings("")])
    with torch.no_grad():
        dictionary.W_enc.zero_()
        dictionary.b_dec.copy_(dictionary.normalisation.normalise(values.mean(0)))
    findings, _, _ = run(Fidelity(resamples=50), pair, dictionary)
    for role in ("base", "tuned"):
        assert abs(findings[f"fidelity/explained_variance/{role}"].value) < 1e-6
        assert abs(findings[f"fidelity/ce_spliced/{role}"].value - findings[f"fidelity/ce_mean/{role}"].value) < 1e-5
    assert findings["fidelity/l0/mean"].value == 0 and findings["fidelity/dead_fraction"].value == 1


def test_a_dictionary_of_one_model_is_measured_in_that_model(pair):
    for role in ("base", "tuned"):
        dictionary = fitted(pair, identity_dictionary(pair.streams("resid_post", 1, reads=role)))
        findings, tables, _ = run(Fidelity(resamples=10), pair, dictionary)
        assert abs(findings[f"fidelity/kl_recovered/{role}"].value - 1) < 1e-3
        assert {name.split("/")[2] for name in findings if name.count("/") > 1 and "l0" not in name} == {role, "pooled"}
        findings, tables, _ = run(Geometry(), pair, dictionary)
        assert "relative_decoder_norm" not in tables["latents"] and "firing_rate" in tables["latents"]


def test_a_difference_is_written_into_the_tuned_model_and_without_it_the_bases_activations_stand_there(pair):
    dictionary = fitted(pair, identity_dictionary(pair.streams("resid_post", 1, reads="difference")))
    findings, _, _ = run(Fidelity(resamples=10), pair, dictionary)
    assert abs(findings["fidelity/explained_variance/difference"].value - 1) < 1e-6
    assert abs(findings["fidelity/kl_spliced/difference"].value) < 1e-5
    trained = Trained(pair, toy_text(), dictionary, 300)
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
        logits = pair.logits("tuned", batch).flatten(0, 1)
    expected = logits[pair.places("tuned", batch)[scored] - 1].log_softmax(-1)
    assert torch.allclose(without, expected, atol=1e-4)


def test_explained_variance_does_not_depend_on_batching(pair):
    dictionary = fitted(pair, identity_dictionary(pair.streams("resid_post", 1), gain=0.7))
    found = []
    for tokens_per_batch in (300, 3000):
        trained = Trained(pair, toy_text(), dictionary, 2000, tokens_per_batch)
        values = torch.cat([r.rows.values.double() for r in trained.readings("")])
        findings = {f.name: f.value for f in Fidelity(resamples=10).run(trained) if isinstance(f, Finding)}
        direct = 1 - (0.3 * values[:, :32]).square().sum() / (values - values.mean(0))[:, :32].square().sum()
        found.append(findings["fidelity/explained_variance/base"])
        assert abs(found[-1] - direct) < 1e-5


def test_cross_entropy_is_the_models_own(pair):
    dictionary = fitted(pair, identity_dictionary(pair.streams("resid_post", 1)))
    findings, _, _ = run(Fidelity(resamples=10), pair, dictionary, tokens=300)
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
    findings, tables, _ = run(Fidelity(resamples=200), pair, dictionary)
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
        if s != "all" and m == "base"
    )
    assert whole == parts


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
        Fidelity(resamples=10),
        Geometry(),
        Examples(per_latent=2),
        LabelAlignment(label="hesitation_follows", at="decision", shuffles=5),
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


def test_firing_rates_by_segment_are_those_of_the_latents(pair):
    dictionary = fitted(pair, identity_dictionary(pair.streams("resid_post", 1)))
    _, tables, _ = run(Geometry(), pair, dictionary)
    trained = Trained(pair, toy_text(), dictionary, 2000)
    readings = list(trained.readings(""))
    answer = torch.cat([r.latents[r.batch.segment == 3] for r in readings])
    assert torch.allclose(
        torch.tensor(tables["latents"]["firing_rate/answer"]).float(), (answer > 0).float().mean(0), atol=1e-6
    )


# -- labels ----------------------------------------------------------------------------------------------------------


def test_auroc_counts_pairs_with_ties_half():
    values, truth = torch.tensor([[0.0, 1.0, 1.0, 2.0, 0.0]]), torch.tensor([False, True, False, True, False])
    pairs = [(a > b) + 0.5 * (a == b) for a, b in itertools.product([1.0, 2.0], [0.0, 1.0, 0.0])]
    assert float(auroc(average_ranks(values), truth)[0]) == pytest.approx(sum(pairs) / 6)


def test_the_interval_of_an_auroc_covers_it_and_narrows_with_tokens():
    generator = torch.Generator().manual_seed(0)
    widths = []
    for count in (100, 10_000):
        truth = torch.rand(count, generator=generator) < 0.3
        scores = torch.randn(count, generator=generator) + truth
        low, high = delong_interval(scores, truth)
        assert low < float(auroc(average_ranks(scores[None]), truth)[0]) < high
        widths.append(high - low)
    assert widths[1] < widths[0] / 5
    assert low < 0.7602 < high  # two normals one deviation apart


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
        LabelAlignment(label="hesitation_follows", at="decision", shuffles=30), pair, dictionary, tokens=12_000
    )
    where = "label_alignment/hesitation_follows"
    assert findings[f"{where}/latent"].value == 3 and findings[f"{where}/auroc"].value == 1.0
    assert 0.4 < findings[f"{where}/null_mean"].value < 0.6 < 0.75 > findings[f"{where}/null_p95"].value
    assert tables["latents"]["auroc/hesitation_follows"][3] == 1.0
    # over all tokens the rule "the token is a dot" is strong: decision positions take it away
    everywhere, _, _ = run(LabelAlignment(label="hesitation_follows", shuffles=5), pair, dictionary, tokens=12_000)
    assert everywhere[f"{where}/token_rule"].value > 0.9 > 0.7 > findings[f"{where}/token_rule"].value


def test_a_text_without_the_label_is_said(pair):
    dictionary = fitted(pair, identity_dictionary(pair.streams("resid_post", 1)))
    findings, _, notes = run(LabelAlignment(label="irony", at="decision"), pair, dictionary)
    assert not findings and "too few tokens labelled 'irony' or not among 'decision' tokens" in notes[0]


# -- examples --------------------------------------------------------------------------------------------------------


def test_examples_are_the_strongest_documents_with_their_own_activations(pair):
    dictionary = fitted(pair, identity_dictionary(pair.streams("resid_post", 1)))
    _, tables, _ = run(Examples(per_latent=3, before=4, after=2), pair, dictionary)
    columns = tables["examples"]
    peaks = {}
    for reading in Trained(pair, toy_text(), dictionary, 2000).readings(""):
        for sequence in reading.batch.sequence.unique():
            here = reading.batch.sequence == sequence
            document = int(reading.batch.document[here][0])
            peaks[document] = reading.latents[here].amax(0)
    stacked = torch.stack(list(peaks.values()))
    for latent in (0, 17, 90):
        mine = [i for i, found in enumerate(columns["latent"]) if found == latent]
        assert [columns["rank"][i] for i in mine] == list(range(len(mine)))
        expected = stacked[:, latent].sort(descending=True).values[:3]
        assert torch.allclose(torch.tensor([columns["activation"][i] for i in mine]), expected[expected > 0], atol=1e-5)
        for i in mine:
            assert columns["activations"][i][columns["position"][i]] == pytest.approx(
                columns["activation"][i], abs=1e-3
            )
            assert len(columns["tokens"][i]) == len(columns["activations"][i]) == len(columns["segments"][i]) <= 7
