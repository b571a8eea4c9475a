"""Crosscoders, sparsities, normalisation and the objective."""

from functools import partial

import pytest
import torch

from tunediff.dictionary import L1, BatchTopK, Crosscoder, Normalisation
from tunediff.dictionary.crosscoder import geometric_median
from tunediff.dictionary.normalisation import KINDS
from tunediff.objectives import Reconstruction
from tunediff.shapes import Refused, Rows, Stream

STREAMS = [Stream("base", "resid_post", 1, 12), Stream("tuned", "resid_post", 1, 12)]


def sample(tokens=500, seed=0):
    generator = torch.Generator().manual_seed(seed)
    values = (
        torch.randn(tokens, 24, generator=generator) * torch.cat([torch.full((12,), 3.0), torch.full((12,), 7.0)]) + 2
    )
    moments = torch.rand(tokens, 2, 2, generator=generator) + 0.5
    return Rows(values, moments)


def crosscoder(sparsity=None, *, kind="mean_norm", latents=40, streams=STREAMS, fit=True, **settings):
    made = Crosscoder(
        streams,
        latents=latents,
        sparsity=sparsity or BatchTopK(4),
        normalisation=partial(Normalisation, kind=kind),
        **settings,
    )
    if fit:
        made.fit(sample())
    return made


@pytest.mark.parametrize("kind", KINDS)
def test_normalisation_is_inverted_exactly(kind):
    normalisation = Normalisation([12, 12], kind=kind)
    normalisation.fit(sample().values)
    values, moments = sample(seed=1)
    assert torch.allclose(normalisation.restore(normalisation.normalise(values, moments), moments), values, atol=1e-5)


def test_each_kind_of_normalisation_does_what_its_name_says():
    values = sample(5000).values

    def fitted(kind):
        normalisation = Normalisation([12, 12], kind=kind, sink_multiple=None)
        normalisation.fit(values)
        return normalisation.normalise(values).split(12, dim=-1)

    for stream in fitted("mean_norm"):
        assert abs(stream.norm(dim=-1).mean() - 12**0.5) < 1e-3
    for stream in fitted("unit_rms"):
        assert abs(stream.square().mean() - 1) < 1e-3 and stream.mean(0).abs().max() < 1e-3
    assert torch.equal(torch.cat(fitted("none"), -1), values)


def test_planted_sink_tokens_are_turned_away():
    rows = sample()
    rows.values[::50] *= 40
    normalisation = Normalisation([12, 12], sink_multiple=10.0)
    normalisation.fit(rows.values)
    admitted = normalisation.admits(rows.values)
    assert not admitted[::50].any() and admitted.sum() == 490
    open_to_all = Normalisation([12, 12], sink_multiple=None)
    open_to_all.fit(rows.values)
    assert open_to_all.admits(rows.values).all()


@pytest.mark.parametrize("subtract", [True, False])
@pytest.mark.parametrize("kind", ["mean_norm", "unit_rms"])
def test_folding_the_normalisation_and_back_leaves_latents_and_reconstructions(kind, subtract):
    dictionary = crosscoder(kind=kind, subtract_decoder_bias=subtract)
    dictionary.sparsity.threshold.fill_(0.7)
    with torch.no_grad():
        dictionary.b_enc.normal_()
    rows = sample(seed=2)
    latents, restored, norms = dictionary.encode(rows), dictionary(rows), dictionary.decoder_norms()
    mean, scale = dictionary.normalisation.mean.clone(), dictionary.normalisation.scale.clone()
    weights = dictionary.W_enc.clone()
    dictionary.rebase(torch.zeros(24), torch.ones(24))
    assert not torch.allclose(dictionary.W_enc, weights)
    assert torch.allclose(dictionary.encode(rows), latents, atol=1e-4) and torch.allclose(
        dictionary(rows), restored, atol=1e-3
    )
    assert torch.allclose(dictionary.decoder_norms(), norms, atol=1e-5)
    dictionary.rebase(mean, scale)
    assert torch.allclose(dictionary.W_enc, weights, atol=1e-5) and torch.allclose(
        dictionary.encode(rows), latents, atol=1e-4
    )


def test_decode_speaks_the_models_own_units():
    dictionary = crosscoder(L1(1.0))
    rows = sample(seed=3)
    inside = dictionary.reconstruct(dictionary.encode(rows))
    assert torch.allclose(dictionary(rows), dictionary.normalisation.restore(inside))
    assert torch.allclose(dictionary.normalisation.normalise(dictionary(rows)), inside, atol=1e-5)


def test_one_product_over_streams_is_the_sum_over_models():
    dictionary = crosscoder(L1(1.0))
    base, tuned = dictionary.normalisation.normalise(sample().values).split(12, dim=-1)
    encoders = dictionary.W_enc.split(12, dim=0)
    by_model = torch.relu(base @ encoders[0] + tuned @ encoders[1] + dictionary.b_enc)
    assert torch.allclose(dictionary.encode(sample()), by_model, atol=1e-4)


def test_batchtopk_keeps_k_a_token_by_decoder_weighted_activation():
    dictionary = crosscoder()
    with torch.no_grad():
        dictionary.W_dec.mul_(torch.rand(40, 1) * 5)
    pre = dictionary.pre_activations(dictionary.normalisation.normalise(sample().values))
    norms = dictionary.code_norms()
    latents = dictionary.sparsity.select(pre, norms, {"k": 4.0})
    scores = torch.relu(pre) * norms
    assert (latents > 0).sum() == 4 * 500
    assert (scores[latents > 0]).min() >= scores[latents == 0].max()
    assert torch.equal(latents[latents > 0], torch.relu(pre)[latents > 0])


def test_outside_training_a_token_does_not_depend_on_its_batch():
    dictionary = crosscoder()
    dictionary.sparsity.threshold.fill_(1.0)
    rows = sample(seed=4)
    together = dictionary.encode(rows)
    alone = torch.cat([dictionary.encode(Rows(rows.values[n : n + 1])) for n in range(20)])
    assert torch.allclose(together[:20], alone, atol=1e-5)
    shaped = dictionary.encode(Rows(rows.values.view(10, 50, 24)))
    assert torch.allclose(shaped.view(500, -1), together, atol=1e-5)


def test_the_threshold_follows_the_smallest_kept_value_and_gives_training_l0():
    dictionary = crosscoder(BatchTopK(4, threshold_memory=0.9))
    norms = dictionary.code_norms().detach()
    for seed in range(60):
        pre = dictionary.pre_activations(dictionary.normalisation.normalise(sample(seed=seed).values)).detach()
        dictionary.sparsity.observe(dictionary.sparsity.select(pre, norms, {"k": 4.0}), norms)
    l0 = (dictionary.encode(sample(seed=99)) > 0).sum(-1).float().mean()
    assert abs(l0 - 4) < 0.2


def test_k_falls_to_its_final_value_and_stays():
    sparsity = BatchTopK(8, k_start=64, k_anneal=0.5)
    ks = [sparsity.scheduled(step, 100)["k"] for step in range(100)]
    assert ks[0] == 64 and ks[50:] == [8.0] * 50 and ks == sorted(ks, reverse=True)
    assert BatchTopK(8).scheduled(0, 100) == {"k": 8.0}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"k": 8, "k_anneal": 0.1}, "k_anneal=0.1 has no start"),
        ({"k": 8, "k_start": 64}, "k_start=64 is never left, because k_anneal is 0"),
        ({"k": 8, "k_start": 4, "k_anneal": 0.1}, "k falls, it does not rise"),
        ({"k": 0}, "at least one latent"),
        ({"k": 8, "k_start": 64, "k_anneal": 1.5}, "not a fraction"),
    ],
)
def test_contradictory_k_settings_are_refused(settings, message):
    with pytest.raises(Refused, match=message):
        BatchTopK(**settings)


def test_more_active_latents_than_latents_are_refused():
    with pytest.raises(Refused, match=r"k=50 is larger than the dictionary: it has 40 latents"):
        crosscoder(BatchTopK(50))
    with pytest.raises(Refused, match=r"k_start=64 is larger than the dictionary"):
        crosscoder(BatchTopK(4, k_start=64, k_anneal=0.1))


def test_unequal_widths_need_nothing_special_but_a_start_of_their_own():
    streams = [Stream("base", "resid_post", 1, 10), Stream("tuned", "resid_post", 1, 14)]
    with pytest.raises(Refused, match=r"shared_start=true needs streams of equal width, these have \[10, 14\]"):
        crosscoder(streams=streams)
    dictionary = crosscoder(streams=streams, shared_start=False)
    assert dictionary(sample()).shape == (500, 24)


def test_the_same_seed_gives_the_same_start():
    first, second, other = (crosscoder(seed=s, fit=False) for s in (0, 0, 1))
    assert torch.equal(first.W_dec, second.W_dec) and not torch.equal(first.W_dec, other.W_dec)
    assert torch.equal(first.W_dec[:, :12], first.W_dec[:, 12:])
    assert torch.allclose(first.decoder_norms(), torch.ones(2, 40))


def test_the_geometric_median_withstands_outliers():
    points = torch.randn(500, 3, generator=torch.Generator().manual_seed(0))
    points[:50] += 1000
    assert geometric_median(points).norm() < 0.3 < points.mean(0).norm()


def test_a_dictionary_comes_back_from_its_folder(tmp_path):
    import safetensors.torch

    dictionary = crosscoder()
    dictionary.save(tmp_path, {"latents": 40})
    again = crosscoder(fit=False)
    again.load_state_dict(safetensors.torch.load_file(tmp_path / "weights.safetensors"))
    assert torch.equal(again.encode(sample()), dictionary.encode(sample()))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "weights.safetensors"]


# -- the objective ---------------------------------------------------------------------------------------------------


def losses(dictionary, objective, *, dead=None, settings=None, rows=None):
    dead = torch.zeros(40, dtype=torch.bool) if dead is None else dead
    return objective(dictionary, rows or sample(), dead=dead, settings=settings or {"l1": 1.0, "k": 4.0})


def test_the_l1_loss_is_that_of_the_published_formulas():
    dictionary = crosscoder(L1(0.3))
    x = dictionary.normalisation.normalise(sample().values)
    f = torch.relu(x @ dictionary.W_enc + dictionary.b_enc)
    error = x - f @ dictionary.W_dec - dictionary.b_dec
    norms = dictionary.W_dec[:, :12].norm(dim=-1) + dictionary.W_dec[:, 12:].norm(dim=-1)
    squared = losses(dictionary, Reconstruction(squared=True, aux_weight=0.0), settings={"l1": 0.5})
    assert torch.allclose(squared.terms["reconstruction"], error.square().sum(-1).mean(), rtol=1e-5)
    assert torch.allclose(squared.terms["l1"], 0.3 * 0.5 * (f * norms).sum(-1).mean(), rtol=1e-5)
    unsquared = losses(dictionary, Reconstruction(squared=False, aux_weight=0.0))
    by_model = (error[:, :12].norm(dim=-1).mean() + error[:, 12:].norm(dim=-1).mean()) / 2
    assert torch.allclose(unsquared.terms["reconstruction"], by_model, rtol=1e-5)


def test_the_logged_terms_add_up_to_what_is_differentiated():
    found = losses(crosscoder(L1(0.3)), Reconstruction(), dead=torch.arange(40) < 20)
    assert set(found.terms) == {"reconstruction", "l1", "auxk"} and found.terms["auxk"] > 0
    assert torch.allclose(found.total, sum(found.terms.values()))


def test_auxk_teaches_dead_latents_on_both_sides_and_nothing_else():
    dictionary = crosscoder()
    dead = torch.arange(40) < 10
    losses(dictionary, Reconstruction(aux_weight=1.0), dead=dead).terms["auxk"].backward()
    for gradient in (dictionary.W_enc.grad.T, dictionary.W_dec.grad):
        assert (gradient[dead].norm(dim=-1) > 0).all() and (gradient[~dead] == 0).all()
    assert dictionary.b_dec.grad is None or (dictionary.b_dec.grad == 0).all()


def test_auxk_is_silent_while_no_latent_is_dead_and_passes_nothing_through_zeros():
    dictionary = crosscoder()
    assert losses(dictionary, Reconstruction()).terms["auxk"] == 0
    with torch.no_grad():
        dictionary.b_enc.fill_(-100.0)
    losses(dictionary, Reconstruction(), dead=torch.ones(40, dtype=torch.bool)).total.backward()
    assert (dictionary.W_enc.grad == 0).all()


def test_auxk_against_reconstruction_does_not_depend_on_the_scale_of_activations():
    ratios = []
    for factor in (1.0, 100.0):
        rows = Rows(sample().values * factor)
        dictionary = crosscoder(kind="none", fit=False)
        with torch.no_grad():
            dictionary.W_dec.mul_(1.0)
        for squared in (True, False):
            found = losses(dictionary, Reconstruction(squared=squared), dead=torch.arange(40) < 10, rows=rows)
            ratios.append(found.terms["auxk"] / found.terms["reconstruction"])
    assert torch.allclose(ratios[0], ratios[2], rtol=1e-3) and torch.allclose(ratios[1], ratios[3], rtol=1e-3)


def test_one_stream_is_an_sae():
    dictionary = crosscoder(L1(1.0), streams=[Stream("tuned", "resid_post", 1, 24)], kind="none", fit=False)
    x = sample().values
    assert torch.allclose(dictionary.encode(Rows(x)), torch.relu(x @ dictionary.W_enc + dictionary.b_enc))
    assert torch.allclose(dictionary.code_norms(), dictionary.W_dec.norm(dim=-1))
