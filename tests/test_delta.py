"""Delta-Crosscoder: shared latents, a selection for them and one for the others, and a term on the difference."""

import pytest
import safetensors.torch
import torch

from test_dictionary import STREAMS, crosscoder, losses, sample, stepped
from test_finetuning import in_two_processes
from tunediff import processes
from tunediff.dictionary import BatchTopK, DualBatchTopK, Partition, save_dictionary
from tunediff.objectives import AuxK, DeltaLoss, Difference, Reconstruction
from tunediff.schedules import Anneal, Constant, Length
from tunediff.shapes import Refused, Rows

SETTINGS = {"k": 2.0, "k_shared": 4.0, "tied_penalty": 0.15}
SHARED = 8  # of 40 latents


def delta(*, k=2, k_shared=4, shared=0.2, **settings):
    sparsity = DualBatchTopK(k, k_shared=k_shared, k_schedule=Constant(), threshold_memory=0.9)
    return crosscoder(sparsity, partition=Partition(shared=shared, free=1 - shared), **settings)


def objective(**weights):
    terms = {"delta": DeltaLoss(weights.get("delta", 0.0)), "difference": Difference(weights.get("difference", 0.0))}
    return Reconstruction(terms=terms)


def trained(dictionary, *, steps=30):
    return stepped(dictionary, Reconstruction(terms={"auxk": AuxK(1 / 32)}), steps=steps, settings=SETTINGS)


@pytest.mark.parametrize("sparse", [True, False])
def test_the_delta_loss_is_that_of_the_paper_and_no_shared_latent_learns_from_it(sparse):
    dictionary = delta(sparse_codes=sparse)
    value = losses(dictionary, objective(delta=0.3), settings=SETTINGS).terms["delta"]
    value.backward()
    target = dictionary.normalisation.normalise(sample().values)
    pre = dictionary.pre_activations(target)
    z = dictionary.sparsity.select(pre, dictionary.code_norms(), SETTINGS) * (torch.arange(40) >= SHARED)
    (a, b), (W_b, W_t), (b_b, b_t) = (one.split(12, -1) for one in (target, dictionary.W_dec, dictionary.b_dec))
    by_hand = 0.3 * ((b - a) - z @ (W_t - W_b) - (b_t - b_b)).square().sum(-1).mean()
    assert torch.allclose(value, by_hand, rtol=1e-4)
    for gradient in (dictionary.W_dec.grad, dictionary.W_enc.grad.T, dictionary.b_enc.grad[:, None]):
        assert (gradient[:SHARED] == 0).all()
        assert (gradient[SHARED:].norm(dim=-1) > 0).all()


@pytest.mark.parametrize("sparse", [True, False])
def test_where_nothing_is_shared_the_delta_loss_is_the_unmasked_one(sparse):
    found = []
    for name in ("delta", "difference"):
        dictionary = crosscoder(BatchTopK(4), partition=Partition(free=1.0), sparse_codes=sparse)
        with torch.no_grad():
            dictionary.b_dec.add_(torch.linspace(-1, 1, 24))
        value = losses(dictionary, objective(**{name: 1.0})).terms[name]
        value.backward()
        found.append([value, *(parameter.grad for parameter in dictionary.parameters())])
    for masked, unmasked in zip(*found, strict=True):
        assert unmasked.abs().max() > 0 and torch.allclose(masked, unmasked, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("sparse", [True, False])
def test_either_part_has_its_own_l0_in_training_and_outside_it(sparse):
    dictionary = trained(delta(sparse_codes=sparse), steps=60)
    normalised = dictionary.normalisation.normalise(sample(seed=99).values)
    codes = dictionary.code(normalised, dictionary.code_norms().detach(), SETTINGS)
    for latents, tolerance in ((codes.dense(), 0.0), (dictionary.encode(sample(seed=99)), 0.15)):
        shared, others = (latents != 0).split([SHARED, 40 - SHARED], dim=-1)
        assert float(shared.sum(-1).float().mean()) == pytest.approx(4.0, rel=tolerance)
        assert float(others.sum(-1).float().mean()) == pytest.approx(2.0, rel=tolerance)
    thresholds = dictionary.observed()
    assert set(thresholds) == {"threshold", "threshold_shared"}
    assert thresholds["threshold"] != thresholds["threshold_shared"]


def test_sparse_codes_have_the_losses_and_every_gradient_of_dense_ones():
    """Also where the limits of the batch before screen, and where they were far too high."""
    found = []
    for sparse in (True, False):
        dictionary, seen = delta(sparse_codes=sparse), []
        for rows in (sample(seed=1), sample(seed=2), Rows(sample(seed=3).values / 50)):
            dictionary.zero_grad()
            one = losses(dictionary, objective(delta=0.5), rows=rows, settings=SETTINGS)
            one.total.backward()
            dictionary.settle()
            seen += [one.total, one.l0, one.fired, *(p.grad for p in dictionary.parameters())]
        found.append([*seen, *dictionary.sparsity.buffers()])
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one.float(), other.float(), rtol=1e-5, atol=2e-5)


def test_it_is_loaded_with_both_thresholds_and_trains_on_as_if_it_had_never_stopped(tmp_path):
    whole, first = trained(delta(), steps=30), trained(delta(), steps=30)
    save_dictionary(first, tmp_path, {})
    again = delta(fit=False)
    again.load_state_dict(safetensors.torch.load_file(tmp_path / "weights.safetensors"))
    assert {name for name, _ in again.sparsity.named_buffers()} == {"shared.threshold", "others.threshold"}
    assert torch.equal(again.encode(sample(seed=5)), whole.encode(sample(seed=5)))
    for one in (whole, again):
        trained(one, steps=5)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def test_a_schedule_lets_either_k_fall_from_all_latents_of_its_part_at_most():
    sparsity = DualBatchTopK(2, k_shared=4, k_schedule=Anneal(5.0, 0.5))
    sparsity.prepare(40, shared=8)
    ks = [sparsity.scheduled(step, Length(100, 64)) for step in (0, 60)]
    assert ks == [{"k": 10.0, "k_shared": 8.0}, {"k": 2.0, "k_shared": 4.0}]


def test_shared_latents_keep_a_decoder_for_each_model_and_tied_ones_count_as_shared():
    sparsity = DualBatchTopK(2, k_shared=4, k_schedule=Constant())
    made = trained(crosscoder(sparsity, partition=Partition(tied=0.1, shared=0.1, free=0.8)))
    base, tuned = made.W_dec.split(12, dim=-1)
    assert made.partition.shared == SHARED
    assert torch.equal(base[:4], tuned[:4]) and (base[4:8] != tuned[4:8]).all()


def halves(rank, port, folder):
    """Selection of one half of a batch, beside another process that has the other."""
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    dictionary = delta()
    rows = dictionary.normalisation.normalise(sample().values).split([200, 300])[rank]  # dense: see sparse_pays
    codes = dictionary.code(rows, dictionary.code_norms().detach(), SETTINGS)
    dictionary.settle()
    torch.save([codes.dense(), *dictionary.sparsity.buffers()], folder / f"{rank}.pt")
    processes.part()


def test_two_processes_select_over_the_whole_batch(tmp_path):
    in_two_processes(halves, tmp_path)
    dictionary = delta()
    rows = dictionary.normalisation.normalise(sample().values)
    whole = dictionary.code(rows, dictionary.code_norms().detach(), SETTINGS).dense()
    dictionary.settle()
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert torch.allclose(torch.cat([first[0], second[0]]), whole, atol=1e-5)
    for one, two, alone in zip(first[1:], second[1:], dictionary.sparsity.buffers(), strict=True):
        assert one == two and torch.allclose(one, alone)


def test_what_does_not_fit_together_is_refused():
    for partition in (None, Partition(free=1.0), Partition(shared=1.0)):
        with pytest.raises(
            Refused, match=r"k_shared=4 is of latents that a partition shares, .* set dictionary.partition"
        ):
            crosscoder(DualBatchTopK(2, k_shared=4), partition=partition, fit=False)
    with pytest.raises(Refused, match="k_shared=9 is larger than its part of the dictionary: it has 8 latents"):
        delta(k_shared=9)
    with pytest.raises(Refused, match="sparsity.k=33 is larger than its part of the dictionary: it has 32 latents"):
        delta(k=33)
    with pytest.raises(Refused, match="k_shared=0: at least one latent"):
        delta(k_shared=0)
    for partition in (None, Partition(free=1.0)):
        with pytest.raises(Refused, match="terms.delta leaves out the latents that both models share"):
            objective(delta=1.0).check(crosscoder(partition=partition, fit=False))
    unequal = [STREAMS[0], STREAMS[1]._replace(width=14)]
    with pytest.raises(Refused, match="terms.delta needs both models, with equal widths"):
        objective(delta=1.0).check(delta(streams=unequal, fit=False))
