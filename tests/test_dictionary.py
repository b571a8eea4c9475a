"""Crosscoders, sparsities, normalisation and the objective."""

from functools import partial

import pytest
import torch

from tunediff.dictionary import (
    L1,
    BatchTopK,
    Crosscoder,
    DenseCodes,
    JumpReLU,
    Linear,
    Normalisation,
    Partition,
    TopK,
    published_sae,
    save_dictionary,
)
from tunediff.dictionary.codes import BLOCK
from tunediff.dictionary.crosscoder import geometric_median, held_near
from tunediff.dictionary.normalisation import KINDS
from tunediff.objectives import AuxK, Difference, Reconstruction
from tunediff.schedules import Anneal, Constant, Length
from tunediff.shapes import Refused, Rows, Stream
from tunediff.training import Resampling

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


def test_the_limit_of_sinks_is_a_multiple_of_the_median_norm_which_no_sink_moves():
    values = sample().values
    values[::50] *= 10_000.0  # their norms carry the mean
    values[1] *= 30 / (values[1].norm() / values.norm(dim=-1).median())  # thirty times the median
    normalisation = Normalisation([24], sink_multiple=10.0)
    normalisation.fit(values)
    assert normalisation.largest_norm.item() == pytest.approx(10 * float(values.norm(dim=-1).median()))
    assert not normalisation.admits(values)[1] and normalisation.admits(values).sum() == 489


@pytest.mark.parametrize("kind", ["mean_norm", "unit_rms"])
def test_a_token_that_is_a_sink_in_one_stream_alone_counts_for_no_stream(kind):
    values = sample().values
    values[::50, :12] *= 1000.0
    fitted, clean = Normalisation([12, 12], kind=kind), Normalisation([12, 12], kind=kind, sink_multiple=None)
    fitted.fit(values)
    clean.fit(values[fitted.admits(values)])
    assert torch.equal(fitted.mean, clean.mean) and torch.equal(fitted.scale, clean.scale)


def test_statistics_are_those_of_tokens_that_are_no_sinks():
    values = sample().values
    values[::50] *= 1000.0
    fitted = Normalisation([12, 12], sink_multiple=10.0)
    fitted.fit(values)
    rest = values[[n for n in range(500) if n % 50]]
    for piece, scale in zip(rest.double().split(12, dim=-1), fitted.scale.split(12), strict=True):
        assert torch.allclose(scale, (12**0.5 / piece.norm(dim=-1).mean()).float().expand(12))


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


@pytest.mark.parametrize("sparse", [True, False])
def test_the_threshold_follows_the_smallest_kept_value_and_gives_training_l0(sparse):
    dictionary = crosscoder(BatchTopK(4, threshold_memory=0.9), sparse_codes=sparse)
    for seed in range(60):
        losses(dictionary, objective(), rows=sample(seed=seed))
        dictionary.sparsity.settle()
    l0 = (dictionary.encode(sample(seed=99)) > 0).sum(-1).float().mean()
    assert abs(l0 - 4) < 0.2


def test_what_equals_the_smallest_kept_value_is_kept_too_and_zero_never():
    rows = Rows(sample().values[:1].repeat(8, 1))  # eight tokens alike
    for sparse in (True, False):
        dictionary = crosscoder(BatchTopK(3), sparse_codes=sparse)
        found = losses(dictionary, objective(), rows=rows, settings={"k": 2.5})
        assert found.l0 == 3
        with torch.no_grad():
            dictionary.b_enc.fill_(-100.0)
        assert losses(dictionary, objective(), rows=rows).l0 == 0


def test_signed_latents_stay_signed_and_are_asked_for_by_name():
    with torch.no_grad():
        signed = crosscoder(BatchTopK(30, relu=False))
        latents = signed.sparsity.select(signed.pre_activations(sample().values), signed.code_norms(), {"k": 30.0})
    assert (latents < 0).any() and (latents != 0).sum() == 30 * 500
    for sparse in (True, False):  # also where fewer than k are positive, so that no bar above zero lets enough pass
        signed = crosscoder(BatchTopK(30, relu=False), sparse_codes=sparse)
        assert losses(signed, objective(), settings={"k": 30.0}).l0 == 30
    for sparsity in (BatchTopK(30), TopK(30), L1(1.0), JumpReLU(1.0)):
        assert (crosscoder(sparsity).encode(sample()) >= 0).all()


@pytest.mark.parametrize("make", [lambda k: BatchTopK(**k), lambda k: TopK(**k)])
def test_k_falls_to_its_final_value_and_an_anneal_of_no_steps_trains_at_k(make):
    length = Length(100, 64)
    sparsity = make({"k": 8, "k_schedule": Anneal(8.0, 0.5)})
    sparsity.prepare(64)
    ks = [sparsity.scheduled(step, length)["k"] for step in range(100)]
    assert ks[0] == 64 and ks[50:] == [8.0] * 50 and ks == sorted(ks, reverse=True)
    for same in ({"k": 8, "k_schedule": Anneal(256.0, 0)}, {"k": 8, "k_schedule": Constant()}):
        made = make(same)
        made.prepare(64)
        assert made.scheduled(0, length) == {"k": 8.0}


def test_more_active_latents_than_latents_are_refused():
    for kind in (BatchTopK, TopK):
        with pytest.raises(Refused, match=r"k=50 is larger than the dictionary: it has 40 latents"):
            crosscoder(kind(50))
        falling = kind(4, k_schedule=Anneal(16.0, 0.1))
        falling.prepare(40)
        assert falling.scheduled(0, Length(100, 64)) == {"k": 40.0}
        with pytest.raises(Refused, match="at least one latent"):
            kind(0)


@pytest.mark.parametrize("start", [{}, {"subtract_decoder_bias": True}, {"encoder_start": "tied"}])
@pytest.mark.parametrize(
    "sparsity",
    [
        lambda: BatchTopK(4),
        lambda: TopK(4),
        lambda: BatchTopK(4, relu=False),
        lambda: BatchTopK(4, prefixes=[0.25, 1.0]),
    ],
)
def test_sparse_codes_have_the_losses_and_every_gradient_of_dense_ones(sparsity, start):
    """Also once the limit of a batch before is used to screen, and where that limit was far too high."""
    found = []
    for sparse in (True, False):
        dictionary = crosscoder(sparsity(), sparse_codes=sparse, **start)
        with torch.no_grad():
            dictionary.b_enc.copy_(torch.linspace(-0.2, 0.2, 40))
            dictionary.b_dec.copy_(torch.linspace(-0.2, 0.2, 24))
        seen = []
        for rows in (sample(seed=1), sample(seed=2), Rows(sample(seed=3).values / 50)):
            dictionary.zero_grad()
            one = losses(dictionary, objective(aux_weight=0.1), rows=rows, dead=torch.arange(7))
            one.total.backward()
            seen += [one.total, one.l0, one.fired, *(p.grad for p in dictionary.parameters())]
        found.append(seen)
    for sparse, dense in zip(*found, strict=True):
        assert torch.allclose(sparse.float(), dense.float(), rtol=1e-5, atol=2e-5)


def test_sparse_codes_made_dense_are_the_dense_ones_with_their_gradient():
    found = []
    for sparse in (True, False):
        dictionary = crosscoder(TopK(4), sparse_codes=sparse)
        normalised = dictionary.normalisation.normalise(sample().values)
        latents = dictionary.code(normalised, dictionary.code_norms().detach(), {"k": 4.0}).dense()
        latents.square().sum().backward()
        found.append((latents.detach(), dictionary.W_enc.grad))
    for one, other in zip(*found, strict=True):
        assert one.abs().max() > 0 and torch.allclose(one, other, rtol=1e-4, atol=1e-4)


def test_selecting_holds_one_block_of_pre_activations():
    """Nothing of the size token x latent, forward or backward."""
    dictionary = Crosscoder(STREAMS, latents=4096, sparsity=TopK(4), normalisation=partial(Normalisation, kind="none"))
    largest = 0

    class Sizes(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            out = function(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor) and not out.is_sparse_csr:
                largest = max(largest, out.numel())
            return out

    for sparsity in (TopK(4), BatchTopK(4)):
        sparsity.prepare(4096)
        dictionary.sparsity = sparsity
        with Sizes():
            losses(dictionary, objective(aux_weight=0), rows=sample(2048)).total.backward()
    assert largest <= BLOCK * 4096 < 2048 * 4096


def test_each_token_has_its_own_k_under_topk():
    dictionary = crosscoder(TopK(3))
    assert ((dictionary.encode(sample()) > 0).sum(-1) == 3).all()
    assert torch.allclose(dictionary.encode(sample())[:20], dictionary.encode(Rows(sample().values[:20])), atol=1e-5)


def test_jumprelu_jumps_and_its_threshold_learns_as_written():
    sparsity = JumpReLU(3.0, bandwidth=0.5, pre_activation=0.1, steepness=4.0, log_threshold=0.0)
    sparsity.prepare(2)
    pre = torch.tensor([[0.9, 2.0], [1.1, 1.3], [-1.0, 0.2]], requires_grad=True)
    latents = sparsity(pre, torch.ones(2))
    assert torch.equal(latents.detach(), torch.tensor([[0.0, 2.0], [1.1, 1.3], [0.0, 0.0]]))
    (latents * torch.tensor([[1.0, 1.0], [10.0, 1.0], [1.0, 1.0]])).sum().backward()
    assert torch.equal(pre.grad, torch.tensor([[0.0, 1.0], [10.0, 1.0], [0.0, 0.0]]))
    assert torch.allclose(sparsity.log_threshold.grad, torch.tensor([-(1 + 10) / 0.5, 0.0]))  # |pre - 1| < 0.25
    norms, codes = torch.tensor([1.0, 2.0]), DenseCodes(latents.detach(), pre.detach())
    terms = sparsity.penalties(codes, norms, 1.0, {"l1": 0.5})
    tanh = torch.tanh(4.0 * latents.detach() * norms).sum(-1).mean()
    below = (torch.relu(1 - pre.detach()) * norms).sum(-1).mean()
    assert torch.allclose(terms["tanh"], 3.0 * 0.5 * tanh) and torch.allclose(terms["pre_activation"], 0.1 * below)


def test_an_active_latent_costs_jumprelu_the_same_share_of_the_error_in_models_of_any_width():
    found = []
    for times in (1, 2):  # the same activations, each number of them so often
        streams = [stream._replace(width=12 * times) for stream in STREAMS]
        rows = Rows(sample().values.repeat_interleave(times, dim=-1))
        dictionary = crosscoder(JumpReLU(0.01, steepness=1e4, log_threshold=-3.0), streams=streams, fit=False)
        dictionary.normalisation.fit(rows.values)
        with torch.no_grad():
            start = crosscoder(fit=False).W_dec.repeat_interleave(times, dim=-1)
            dictionary.W_dec.copy_(start)
            dictionary.W_enc.copy_(start.T / times)
        found.append(losses(dictionary, objective(aux_weight=0), rows=rows).terms)
    narrow, wide = (terms["tanh"] / terms["reconstruction"] for terms in found)
    assert found[0]["tanh"] > 0 and torch.allclose(narrow, wide, rtol=1e-4)


def test_a_start_rate_is_how_often_latents_fire_at_the_start():
    for sparsity in (JumpReLU(1.0), L1(1.0)):
        rate = (crosscoder(sparsity, start_rate=0.2).encode(sample()) > 0).float().mean(0)
        assert ((rate - 0.2).abs() < 0.02).all()


def test_linear_latents_are_a_linear_map():
    dictionary = crosscoder(Linear(1.0))
    rows, twice = sample().values, 2 * sample().values
    there = dictionary.pre_activations(dictionary.normalisation.normalise(rows))
    assert torch.equal(dictionary.encode(Rows(rows)), there) and (there < 0).any()
    assert torch.allclose(dictionary.encode(Rows(twice)) - there, there - dictionary.encode(Rows(0 * rows)), atol=1e-4)
    terms = dictionary.sparsity.penalties(DenseCodes(there, there), dictionary.code_norms(), 1.0, {"l1": 1.0})
    assert torch.allclose(terms["l1"], (there.abs() * dictionary.code_norms()).sum(-1).mean(), rtol=1e-5)


def test_nested_dictionaries_each_reconstruct_alone():
    dictionary = crosscoder(BatchTopK(4, prefixes=[0.25, 0.5, 1.0]), sparse_codes=False)
    target = dictionary.normalisation.normalise(sample().values)
    codes = dictionary.code(target, dictionary.code_norms(), {"k": 4.0})
    alone = [codes.latents[:, :n] @ dictionary.W_dec[:n] + dictionary.b_dec for n in (10, 20, 40)]
    for restored, expected in zip(dictionary.reconstructions(codes), alone, strict=True):
        assert torch.allclose(restored, expected, atol=1e-5)
    mean = sum((target - restored).square().sum(-1).mean() for restored in alone) / 3
    assert torch.allclose(losses(dictionary, objective()).terms["reconstruction"], mean)
    with pytest.raises(Refused, match=r"prefixes=\[0.5\]: give rising shares of the latents that end with 1"):
        BatchTopK(4, prefixes=[0.5])


def test_code_norms_are_summed_joint_or_none():
    with torch.no_grad():
        made = {kind: crosscoder(code_norm=kind, decoder_norm=3.0) for kind in ("sum", "joint", "none")}
    for kind, norm in (("sum", 6.0), ("joint", 3 * 2**0.5), ("none", 1.0)):
        assert torch.allclose(made[kind].code_norms(), torch.full((40,), norm), atol=1e-4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"encoder_start": "transposed"},
            "encoder_start='transposed': choose transpose, scaled_transpose, random or tied",
        ),
        ({"frozen": "both"}, "frozen='both': choose decoder, soft_decoder, encoder or null"),
        ({"code_norm": "max"}, "code_norm='max': choose sum, joint or none"),
        ({"decoder_bias": "median"}, "decoder_bias='median': choose geometric_median, mean or zero"),
        ({"start_rate": 10000}, "start_rate=10000 is no share of the tokens"),
    ],
)
def test_words_that_mean_nothing_are_refused(settings, message):
    with pytest.raises(Refused, match=message):
        crosscoder(**settings)


def test_starts_have_the_norms_that_are_asked_for():
    scaled = crosscoder(encoder_start="scaled_transpose", fit=False)
    assert torch.allclose(scaled.W_enc, scaled.W_dec.T * 24 / 40)
    small = crosscoder(encoder_start="random", encoder_norm=0.005, decoder_norm=0.005, shared_start=False, fit=False)
    for piece in (*small.W_enc.split(12, dim=0), *small.W_dec.T.split(12, dim=0)):
        assert torch.allclose(piece.norm(dim=0), torch.full((40,), 0.005))
    assert not torch.allclose(small.W_enc, small.W_dec.T)
    assert crosscoder(decoder_bias="zero").b_dec.abs().max() == 0


# -- parts of a dictionary -------------------------------------------------------------------------------------------


def stepped(dictionary, objective, *, steps=20, dead=None, settings=None):
    """After a few real steps of Adam, as the training loop does them."""
    optimizer = torch.optim.Adam(dictionary.parameters(), lr=0.01, fused=True)
    settings = settings or {"l1": 1.0, "k": 4.0, "tied_penalty": 0.15}
    for step in range(steps):
        optimizer.zero_grad()
        losses(dictionary, objective, rows=sample(seed=step), dead=dead, settings=settings).total.backward()
        dictionary.constrain_gradients()
        optimizer.step()
        dictionary.settle()
    return dictionary


@pytest.mark.parametrize("sparse", [True, False])
def test_dedicated_latents_neither_read_nor_write_the_other_model_after_training_with_auxk(sparse):
    dictionary = crosscoder(partition=Partition(free=0.5, base_only=0.25, tuned_only=0.25), sparse_codes=sparse)
    start = dictionary.W_dec.detach().clone()
    stepped(dictionary, objective(aux_weight=1.0), dead=torch.arange(15, 35))
    base, tuned = slice(0, 12), slice(12, 24)
    for latents, other, own in ((slice(20, 30), tuned, base), (slice(30, 40), base, tuned)):
        assert (dictionary.W_enc[other, latents] == 0).all() and (dictionary.W_dec[latents, other] == 0).all()
        assert (dictionary.W_enc[own, latents] != 0).all() and not torch.equal(
            dictionary.W_dec[latents, own], start[latents, own]
        )
    assert (dictionary.W_dec[:20] != 0).all()
    far = sample()
    with torch.no_grad():
        near = far.values.clone()
        near[:, tuned] += 5.0
        before, after = (dictionary.pre_activations(dictionary.normalisation.normalise(v)) for v in (far.values, near))
    assert torch.equal(before[:, 20:30], after[:, 20:30]) and not torch.equal(before[:, 30:], after[:, 30:])


def test_designated_shared_latents_stay_tied_to_the_bit_and_pay_less():
    dictionary = crosscoder(L1(1.0), partition=Partition(tied=0.25, free=0.75), shared_start=False, sparse_codes=False)
    assert torch.equal(dictionary.W_dec[:10, :12], dictionary.W_dec[:10, 12:])
    stepped(dictionary, objective(aux_weight=0))
    assert torch.equal(dictionary.W_dec[:10, :12], dictionary.W_dec[:10, 12:])
    assert not torch.allclose(dictionary.W_dec[10:, :12], dictionary.W_dec[10:, 12:], atol=0.1)
    weights = dictionary.partition.weights(0.15, 40, torch.device("cpu"))
    assert torch.allclose(weights[:10], torch.tensor(0.15)) and (weights[10:] == 1).all()
    cheap, dear = (
        losses(dictionary, objective(), settings={"l1": 1.0, "tied_penalty": p}).terms["l1"] for p in (0.15, 1.0)
    )
    latents, norms = dictionary.encode(sample()), dictionary.code_norms()
    assert torch.allclose(dear - cheap, 0.85 * (latents * norms)[:, :10].sum(-1).mean(), rtol=1e-4)


def test_parts_that_do_not_sum_to_one_or_lack_a_model_are_refused():
    with pytest.raises(
        Refused, match=r"free 0.5 \+ base_only 0.1 \+ tuned_only 0.1 is 0.7; the shares of the parts sum to 1"
    ):
        Partition(free=0.5, base_only=0.1, tuned_only=0.1)
    with pytest.raises(Refused, match="needs streams of both models, these are of tuned"):
        crosscoder(partition=Partition(free=1.0), streams=STREAMS[1:], fit=False)
    unequal = [Stream("base", "resid_post", 1, 10), Stream("tuned", "resid_post", 1, 14)]
    assert crosscoder(partition=Partition(free=0.5, base_only=0.5), streams=unequal, fit=False).W_dec.shape == (40, 24)
    with pytest.raises(Refused, match=r"partition.tied=0.5 needs models of equal width"):
        crosscoder(partition=Partition(tied=0.5, free=0.5), streams=unequal, shared_start=False)


def test_unit_decoders_keep_their_norm_and_tied_encoders_their_decoder():
    dictionary = stepped(crosscoder(unit_decoder=True, decoder_norm=2.0), objective())
    assert torch.allclose(dictionary.W_dec.norm(dim=-1), torch.full((40,), 2 * 2**0.5), atol=1e-4)
    tied = stepped(crosscoder(encoder_start="tied", fit=False), objective())
    assert torch.equal(tied.encoder, tied.W_dec.T) and "W_enc" not in tied.state_dict()


@pytest.mark.parametrize("sparse", [True, False])
def test_what_is_frozen_stays_and_the_rest_learns(sparse):
    """The controls of arXiv 2602.14111."""
    for frozen, still in (("decoder", "W_dec"), ("encoder", "W_enc")):
        made, start = (crosscoder(frozen=frozen, sparse_codes=sparse) for _ in range(2))
        stepped(made, objective(), steps=30)
        for name in ("W_dec", "W_enc", "b_enc", "b_dec"):
            same = torch.equal(getattr(made, name), getattr(start, name))
            assert same == (name == still), name


def test_soft_frozen_rows_stay_within_a_cosine_of_their_start_and_keep_the_length_they_learned():
    made, free, start = crosscoder(frozen="soft_decoder"), crosscoder(), crosscoder()
    for one in (made, free):
        stepped(one, objective(), steps=200)
    cosines = [torch.cosine_similarity(one.W_dec, start.W_dec, dim=-1) for one in (made, free)]
    assert cosines[0].min() > 0.8 - 1e-4 and cosines[1].min() < 0.7
    assert (cosines[0] < 0.8 + 1e-3).any() and (cosines[0] > 0.81).any()  # some are held, some need not be
    turned = held_near(torch.tensor([[0.0, 3.0], [4.0, 3.0]]), torch.tensor([[1.0, 0.0], [1.0, 0.0]]))
    assert torch.allclose(turned, torch.tensor([[2.4, 1.8], [4.0, 3.0]]))


def test_a_tied_encoder_cannot_be_frozen_and_frozen_latents_are_not_resampled():
    with pytest.raises(Refused, match="dictionary.frozen=decoder needs an encoder of its own"):
        crosscoder(frozen="decoder", encoder_start="tied")
    with pytest.raises(Refused, match="optimizer.resampling moves what dictionary.frozen=decoder holds"):
        Resampling(every=0.1, until=0.5).check(Length(100, 10), crosscoder(frozen="decoder"))


def test_no_gradient_is_left_along_a_unit_row():
    """Else Adam's moments hold what the projection afterwards takes away (Bricken et al. 2023)."""
    dictionary = crosscoder(unit_decoder=True, decoder_norm=2.0)
    losses(dictionary, objective()).total.backward()
    along = (dictionary.W_dec.grad * dictionary.W_dec).sum(-1).detach()
    across = dictionary.W_dec.grad - along[:, None] * dictionary.W_dec / dictionary.W_dec.square().sum(-1, keepdim=True)
    assert along.abs().max() > 0.1
    dictionary.constrain_gradients()
    assert (dictionary.W_dec.grad * dictionary.W_dec).sum(-1).abs().max() < 1e-5 * along.abs().max()
    assert torch.allclose(dictionary.W_dec.grad, across, atol=1e-5 * float(along.abs().max()))


def test_dead_latents_begin_anew_where_the_error_is():
    dictionary, dead = crosscoder(fit=False), torch.tensor([3, 30])
    optimizer = torch.optim.Adam(dictionary.parameters(), lr=0.01)
    losses(dictionary, objective()).total.backward()
    optimizer.step()
    error = torch.zeros(500, 24)
    error[7, 5], error[8, 2] = 3.0, 2.0  # all that is left is at two tokens
    with torch.no_grad():
        dictionary.b_enc.fill_(1.0)
    before = dictionary.W_dec.detach().clone()
    Resampling().apply(dictionary, dead, error, optimizer, 10)
    assert {tuple(row.nonzero()[0].tolist()) for row in dictionary.W_dec[dead]} == {(5,), (2,)}
    assert (dictionary.b_enc[dead] == 0).all() and (dictionary.b_enc != 0).sum() == 38
    living = dictionary.W_enc[:, [n for n in range(40) if n not in (3, 30)]].norm(dim=0).mean()
    assert torch.allclose(dictionary.W_enc[:, dead].norm(dim=0), 0.2 * living)
    for parameter, rows in (
        (dictionary.W_dec, optimizer.state[dictionary.W_dec]["exp_avg"]),
        (dictionary.W_enc, optimizer.state[dictionary.W_enc]["exp_avg"].T),
    ):
        assert (rows[dead] == 0).all() and (rows[0] != 0).any(), parameter.shape
    others = [n for n in range(40) if n not in (3, 30)]
    assert torch.equal(dictionary.W_dec[others], before[others])


def test_unequal_widths_need_nothing_special_but_a_start_of_their_own():
    streams = [Stream("base", "resid_post", 1, 10), Stream("tuned", "resid_post", 1, 14)]
    with pytest.raises(Refused, match=r"shared_start=true needs streams of equal width, these have \[10, 14\]"):
        crosscoder(streams=streams, shared_start=True)
    dictionary = crosscoder(streams=streams)
    assert dictionary(sample()).shape == (500, 24)


def test_the_same_seed_gives_the_same_start():
    first, second, other = (crosscoder(seed=s, fit=False) for s in (0, 0, 1))
    assert torch.equal(first.W_dec, second.W_dec) and not torch.equal(first.W_dec, other.W_dec)
    assert not torch.equal(first.W_dec[:, :12], first.W_dec[:, 12:])
    assert torch.allclose(first.decoder_norms(), torch.full((2, 40), 0.3))
    shared = crosscoder(fit=False, shared_start=True, decoder_norm=1.0)
    assert torch.equal(shared.W_dec[:, :12], shared.W_dec[:, 12:])
    assert torch.allclose(shared.decoder_norms(), torch.ones(2, 40))


def test_the_geometric_median_withstands_outliers():
    points = torch.randn(500, 3, generator=torch.Generator().manual_seed(0))
    points[:50] += 1000
    assert geometric_median(points).norm() < 0.3 < points.mean(0).norm()


def test_a_dictionary_comes_back_from_its_folder(tmp_path):
    import safetensors.torch

    dictionary = crosscoder()
    save_dictionary(dictionary, tmp_path, {"latents": 40})
    again = crosscoder(fit=False)
    again.load_state_dict(safetensors.torch.load_file(tmp_path / "weights.safetensors"))
    assert torch.equal(again.encode(sample()), dictionary.encode(sample()))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "weights.safetensors"]


# -- the objective ---------------------------------------------------------------------------------------------------


def objective(*, aux_weight=1 / 32, difference_weight=0.0, **settings):
    terms = {"difference": Difference(difference_weight), "auxk": AuxK(aux_weight)}
    return Reconstruction(terms=terms, **settings)


def losses(dictionary, minimised, *, dead=None, settings=None, rows=None):
    dead = torch.empty(0, dtype=torch.long) if dead is None else dead
    return minimised(dictionary, rows or sample(), dead=dead, settings=settings or {"l1": 1.0, "k": 4.0})


def test_the_l1_loss_is_that_of_the_published_formulas():
    dictionary = crosscoder(L1(0.3))
    x = dictionary.normalisation.normalise(sample().values)
    f = torch.relu(x @ dictionary.W_enc + dictionary.b_enc)
    error = x - f @ dictionary.W_dec - dictionary.b_dec
    norms = dictionary.W_dec[:, :12].norm(dim=-1) + dictionary.W_dec[:, 12:].norm(dim=-1)
    squared = losses(dictionary, objective(squared=True, aux_weight=0.0), settings={"l1": 0.5})
    assert torch.allclose(squared.terms["reconstruction"], error.square().sum(-1).mean(), rtol=1e-5)
    assert torch.allclose(squared.terms["l1"], 0.3 * 0.5 * (f * norms).sum(-1).mean(), rtol=1e-5)
    unsquared = losses(dictionary, objective(squared=False, aux_weight=0.0))
    by_model = (error[:, :12].norm(dim=-1).mean() + error[:, 12:].norm(dim=-1).mean()) / 2
    assert torch.allclose(unsquared.terms["reconstruction"], by_model, rtol=1e-5)


def test_the_logged_terms_add_up_to_what_is_differentiated():
    found = losses(crosscoder(L1(0.3)), objective(), dead=torch.arange(20))
    assert set(found.terms) == {"reconstruction", "l1", "auxk"} and found.terms["auxk"] > 0
    assert torch.allclose(found.total, sum(found.terms.values()))


def test_auxk_teaches_dead_latents_on_both_sides_and_nothing_else():
    dictionary = crosscoder()
    losses(dictionary, objective(aux_weight=1.0), dead=torch.arange(10)).terms["auxk"].backward()
    dead = torch.arange(40) < 10
    for gradient in (dictionary.W_enc.grad.T, dictionary.W_dec.grad):
        assert (gradient[dead].norm(dim=-1) > 0).all() and (gradient[~dead] == 0).all()
    assert dictionary.b_dec.grad is None or (dictionary.b_dec.grad == 0).all()


def test_auxk_asks_half_the_width_of_dead_latents_unless_it_is_told_how_many():
    dictionary, dead, rows = crosscoder(), torch.arange(40), Rows(sample().values[:64])

    def of(latents):
        return losses(dictionary, Reconstruction(terms={"auxk": AuxK(1.0, latents=latents)}), dead=dead, rows=rows)

    assert of(None).terms["auxk"] == of(12).terms["auxk"] != of(24).terms["auxk"]
    few = losses(dictionary, objective(aux_weight=1.0), dead=dead[:5], rows=rows)  # all there are
    assert few.terms["auxk"] > 0


def test_auxk_is_silent_while_no_latent_is_dead_and_passes_nothing_through_zeros():
    dictionary = crosscoder()
    assert losses(dictionary, objective()).terms["auxk"] == 0
    with torch.no_grad():
        dictionary.b_enc.fill_(-100.0)
    losses(dictionary, objective(), dead=torch.arange(40)).total.backward()
    assert (dictionary.W_enc.grad == 0).all()


def test_auxk_against_reconstruction_does_not_depend_on_the_scale_of_activations():
    ratios = []
    for factor in (1.0, 100.0):
        rows = Rows(sample().values * factor)
        dictionary = crosscoder(kind="none", fit=False)
        with torch.no_grad():
            dictionary.W_dec.mul_(1.0)
        for squared in (True, False):
            found = losses(dictionary, objective(squared=squared), dead=torch.arange(10), rows=rows)
            ratios.append(found.terms["auxk"] / found.terms["reconstruction"])
    assert torch.allclose(ratios[0], ratios[2], rtol=1e-3) and torch.allclose(ratios[1], ratios[3], rtol=1e-3)


def test_one_stream_is_an_sae():
    dictionary = crosscoder(L1(1.0), streams=[Stream("tuned", "resid_post", 1, 24)], kind="none", fit=False)
    x = sample().values
    assert torch.allclose(dictionary.encode(Rows(x)), torch.relu(x @ dictionary.W_enc + dictionary.b_enc))
    assert torch.allclose(dictionary.code_norms(), dictionary.W_dec.norm(dim=-1))


def test_the_difference_term_is_the_error_of_the_reconstructed_difference():
    dictionary = crosscoder(L1(1.0))
    found = losses(dictionary, objective(difference_weight=0.3))
    target = dictionary.normalisation.normalise(sample().values)
    restored = dictionary.reconstruct(dictionary.encode(sample()))
    (base, tuned), (base_hat, tuned_hat) = target.split(12, -1), restored.split(12, -1)
    by_hand = 0.3 * ((tuned - base) - (tuned_hat - base_hat)).square().sum(-1).mean()
    assert torch.allclose(found.terms["difference"], by_hand, rtol=1e-4)
    for streams in (STREAMS[1:], [STREAMS[0], STREAMS[1]._replace(width=14)]):
        with pytest.raises(Refused, match="terms.difference needs both models, with equal widths"):
            objective(difference_weight=1.0).check(crosscoder(streams=streams, shared_start=False, fit=False))


def test_auxk_teaches_what_the_decoder_bias_left_and_does_not_count_it_again():
    dictionary = crosscoder(L1(1.0), fit=False, kind="none")
    with torch.no_grad():
        dictionary.b_dec.copy_(sample().values.mean(0))
        dictionary.b_enc.fill_(-100.0)  # nothing fires: the reconstruction is the bias
    dead = torch.arange(40)
    found = losses(dictionary, objective(aux_weight=1.0), dead=dead)
    assert torch.allclose(found.terms["auxk"], found.terms["reconstruction"])


# -- the published trainers, written out -----------------------------------------------------------------------------


def test_l1_loss_and_gradients_are_those_of_the_published_squared_trainer():
    """sum over models and width of the squared error, mean over tokens, plus 2 * mean_t sum_i f_i sum_m |W_dec_i^m|."""
    dictionary = crosscoder(L1(2.0), kind="none", shared_start=False)
    x, mine, f = published_latents(dictionary)
    x_hat = torch.einsum("bf,fmd->bmd", f, mine[1]) + mine[3]
    loss = (x - x_hat).pow(2).sum((-1, -2)).mean() + 2.0 * 0.7 * (f * mine[1].norm(dim=-1).sum(-1)).sum(-1).mean()
    loss.backward()
    found = losses(dictionary, objective(aux_weight=0), settings={"l1": 0.7})
    found.total.backward()
    assert torch.allclose(found.total, loss, rtol=1e-5)
    same_gradients(dictionary, mine)


def test_l1_loss_and_gradients_are_those_of_the_published_unsquared_trainer():
    """|x - x_hat|_2, mean over tokens and models, plus mu * the same L1 term."""
    dictionary = crosscoder(L1(0.036), kind="none", shared_start=False)
    x, mine, f = published_latents(dictionary)
    x_hat = torch.einsum("bf,fmd->bmd", f, mine[1]) + mine[3]
    loss = (
        torch.linalg.norm(x - x_hat, dim=-1).mean()
        + 0.036 * (f * mine[1].norm(dim=-1).sum(-1)).norm(p=1, dim=-1).mean()
    )
    loss.backward()
    found = losses(dictionary, objective(squared=False, aux_weight=0))
    found.total.backward()
    assert torch.allclose(found.total, loss, rtol=1e-5)
    same_gradients(dictionary, mine)


@pytest.mark.parametrize("sparse", [True, False])
def test_batchtopk_loss_and_gradients_are_those_of_the_published_crosscoder(sparse):
    """relu(sum over models + b_enc), the k * B largest of f_i * sum_m |W_dec_i^m| kept by a flat top-k and scatter."""
    dictionary = crosscoder(BatchTopK(4), kind="none", shared_start=False, sparse_codes=sparse)
    x, mine, f = published_latents(dictionary)
    chosen = (f * mine[1].norm(dim=-1).sum(-1)).flatten().topk(4 * len(x), sorted=False).indices
    kept = torch.zeros_like(f).flatten().scatter(0, chosen, f.flatten()[chosen]).view_as(f)
    x_hat = torch.einsum("bf,fmd->bmd", kept, mine[1]) + mine[3]
    loss = torch.linalg.norm(x - x_hat, dim=-1).mean()
    loss.backward()
    found = losses(dictionary, objective(squared=False, aux_weight=0))
    found.total.backward()
    assert torch.allclose(found.total, loss, rtol=1e-5)
    same_gradients(dictionary, mine)


def published_latents(dictionary):
    """A batch [token, model, width], the parameters as the published crosscoders hold them ([model, width, latent], [latent,
    model, width], [latent], [model, width]), and their latents."""
    shaped = (
        dictionary.W_enc.reshape(2, 12, 40),
        dictionary.W_dec.view(40, 2, 12),
        dictionary.b_enc,
        dictionary.b_dec.view(2, 12),
    )
    x, mine = sample().values.view(-1, 2, 12), [p.detach().clone().requires_grad_() for p in shaped]
    return x, mine, torch.relu(torch.einsum("bmd,mdf->bf", x, mine[0]) + mine[2])


def same_gradients(dictionary, published):
    mine = (dictionary.W_enc, dictionary.W_dec, dictionary.b_enc, dictionary.b_dec)
    for ours, theirs in zip(mine, published, strict=True):
        assert torch.allclose(ours.grad.reshape(-1), theirs.grad.reshape(-1), rtol=1e-5, atol=1e-5)


def test_a_published_tied_autoencoder_selects_and_reconstructs_as_its_own_code_does(tmp_path):
    generator = torch.Generator().manual_seed(0)
    weights = 0.1 * torch.nn.functional.normalize(torch.randn(16, 64, generator=generator), dim=0)
    b_enc, b_dec = 0.01 * torch.randn(64, generator=generator), torch.randn(16, generator=generator)
    torch.save({"W": weights, "b_enc": b_enc, "b_dec": b_dec}, tmp_path / "sae.pt")
    x, stream = 10 * torch.randn(400, 16, generator=generator), Stream("tuned", "resid_post", 1, 16)
    sae = published_sae(tmp_path / "sae.pt", stream, k=8, sample=x)
    f = torch.relu(x @ weights + b_enc)
    lowest = f.flatten().topk(8 * 400).values.min()  # of the whole batch, as theirs
    f = torch.where(f >= lowest, f, 0.0)
    found = sae.encode(Rows(x))
    assert (found != f).sum() <= 1 and (found != 0).sum() == 8 * 400 - 1  # that one decides the threshold
    assert torch.allclose(sae.decode(f, None), f @ weights.T + b_dec, atol=1e-5)
    with pytest.raises(Refused, match="reads a width of 16"):
        published_sae(tmp_path / "sae.pt", stream._replace(width=8), k=8, sample=x)
    torch.save({"W": weights}, tmp_path / "other.pt")
    with pytest.raises(Refused, match="does not hold W, b_enc, b_dec alone"):
        published_sae(tmp_path / "other.pt", stream, k=8, sample=x)
