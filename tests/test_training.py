"""The Lightning module: several dictionaries on one stream, each as if alone."""

from functools import partial

import lightning
import pytest
import torch

from tunediff.activations import ShuffledRows
from tunediff.dictionary import L1, BatchTopK, Crosscoder, Normalisation
from tunediff.objectives import Reconstruction
from tunediff.schedules import Anneal, Constant, Warmup, WarmupCooldown
from tunediff.shapes import Refused, Rows, Stream
from tunediff.training import DictionaryTraining, Member

STREAMS = [Stream("base", "resid_post", 1, 8), Stream("tuned", "resid_post", 1, 8)]


class Planted:
    """Sparse sums of known directions; the first 4 are tuned-only, the next 4 base-only, the rest shared."""

    def __init__(self):
        self.generator = torch.Generator().manual_seed(0)
        directions = torch.nn.functional.normalize(torch.randn(16, 8, generator=self.generator), dim=-1)
        self.base, self.tuned = directions.clone(), directions.clone()
        self.base[:4] = 0
        self.tuned[4:8] = 0

    streams, broken = STREAMS, {}

    def __next__(self):
        codes = torch.rand(256, 16, generator=self.generator) * (torch.rand(256, 16, generator=self.generator) < 0.1)
        return Rows(torch.cat([codes @ self.base, codes @ self.tuned], dim=-1))

    def __iter__(self):
        return self


def member(sparsity, **settings):
    dictionary = Crosscoder(
        STREAMS, latents=24, sparsity=sparsity, normalisation=partial(Normalisation, kind="none", sink_multiple=None)
    )
    schedules = {"l1_schedule": Constant(), "learning_rate_schedule": WarmupCooldown(0.05, 0.2)}
    return Member("m", dictionary, Reconstruction(dead_after=5_000), **{**schedules, "learning_rate": 5e-3, **settings})


def fit(members, *, steps=60, precision="32-true", source=None):
    module = DictionaryTraining(members, steps=steps)
    readers = [member.reader() for member in members]
    stream = ShuffledRows(source or Planted(), readers, batch=128, capacity=1024, steps=steps, seed=0)
    lightning.Trainer(
        accelerator="cpu", devices=1, precision=precision, max_epochs=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    ).fit(module, train_dataloaders=stream)  # fmt: skip
    return module


def test_two_dictionaries_on_one_stream_become_what_each_becomes_alone():
    together = [member(BatchTopK(2)), member(L1(0.02), l1_schedule=Warmup(0.1))]
    alone = [member(BatchTopK(2)), member(L1(0.02), l1_schedule=Warmup(0.1))]
    fit(together)
    for one in alone:
        fit([one])
    for a, b in zip(together, alone, strict=True):
        for name, value in a.dictionary.state_dict().items():
            assert torch.equal(value, b.dictionary.state_dict()[name]), name
        assert a.history == b.history


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_planted_directions_are_learned(precision):
    trained = member(BatchTopK(2, threshold_memory=0.9))
    fit([trained], steps=800, precision=precision)
    last = trained.history[-1]
    assert last["explained_variance/base"] > 0.9 and last["explained_variance/tuned"] > 0.9
    assert trained.dictionary.W_enc.dtype == torch.float32
    base, tuned = trained.dictionary.decoder_norms()
    relative = tuned / (base + tuned)
    firing = (trained.dictionary.encode(next(Planted())) > 0).float().mean(0)
    assert ((relative > 0.9) & (firing > 0)).sum() >= 3 and ((relative < 0.1) & (firing > 0)).sum() >= 3


def test_identical_models_give_relative_norm_a_half_and_cosine_1():
    class Twins(Planted):
        def __init__(self):
            super().__init__()
            self.base = self.tuned = torch.nn.functional.normalize(torch.randn(16, 8, generator=self.generator), dim=-1)

    trained = member(BatchTopK(2))
    fit([trained], source=Twins())
    base, tuned = trained.dictionary.W_dec.split(8, dim=-1)
    assert torch.allclose(
        base.norm(dim=-1) / (base.norm(dim=-1) + tuned.norm(dim=-1)), torch.full((24,), 0.5), atol=1e-5
    )
    assert torch.allclose(torch.nn.functional.cosine_similarity(base, tuned), torch.ones(24), atol=1e-5)


def test_the_curves_record_what_was_scheduled():
    trained = member(L1(0.5), l1_schedule=Warmup(0.5))
    fit([trained], steps=41)
    assert [r["step"] for r in trained.history] == [0, 20, 40]
    assert trained.history[-1]["tokens"] == 41 * 128
    assert [round(r["schedule/l1"], 3) for r in trained.history] == [0.049, 1.0, 1.0]
    first = trained.history[0]
    assert abs(first["loss/total"] - sum(first[f"loss/{t}"] for t in ("reconstruction", "l1", "auxk"))) < 1e-4


def test_an_exploding_loss_stops_with_the_step():
    bad, good = member(BatchTopK(2), learning_rate=float("inf")), member(BatchTopK(2))
    fit([bad, good])
    assert "The loss is not finite at step 20" in str(bad.error) and good.error is None
    assert [r["step"] for r in good.history] == [0, 20, 40, 59]
    fit([bad := member(BatchTopK(2), learning_rate=float("inf"))], steps=1000)
    assert bad.error is not None and len(bad.history) == 1  # nothing is read for nobody


def test_an_l1_schedule_without_an_l1_term_is_refused():
    with pytest.raises(Refused, match=r"l1_schedule is Warmup\(warmup=0.1\), but BatchTopK has no L1 term"):
        member(BatchTopK(2), l1_schedule=Warmup(0.1))


def test_schedules_have_the_shapes_of_their_names():
    rise = [Warmup(0.1)(step, 100) for step in range(100)]
    assert rise[0] == 0.1 and rise[9:] == [1.0] * 91
    hump = [WarmupCooldown(0.1, 0.2)(step, 100) for step in range(100)]
    assert hump[9:80] == [1.0] * 71 and abs(hump[-1] - 0.05) < 1e-9
    assert [Anneal(10.0, 2.0, 0.5)(step, 8) for step in range(6)] == [10.0, 8.0, 6.0, 4.0, 2.0, 2.0]
    with pytest.raises(Refused, match="together are longer than the run"):
        WarmupCooldown(0.7, 0.6)
    with pytest.raises(Refused, match="warmup=5 is not a fraction"):
        Warmup(5)
