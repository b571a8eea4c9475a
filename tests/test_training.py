"""The Lightning module: several dictionaries on one stream, each as if alone."""

from functools import partial

import lightning
import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from torch._dynamo import register_backend
from torch.utils._python_dispatch import TorchDispatchMode

from tunediff.activations import ShuffledRows
from tunediff.dictionary import L1, BatchTopK, Crosscoder, JumpReLU, Linear, Normalisation, Partition, TopK
from tunediff.objectives import AuxK, Reconstruction, Term
from tunediff.schedules import Anneal, Constant, Length, Warmup, WarmupCooldown, WarmupCosine
from tunediff.shapes import Refused, Rows, Stream
from tunediff.training import DictionaryTraining, Learner, Resampling

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


SETTINGS = {"k": 2.0, "l1": 1.0}


def made(sparsity, **settings):
    normalisation = partial(Normalisation, kind="none", sink_multiple=None)
    return Crosscoder(STREAMS, latents=24, sparsity=sparsity, normalisation=normalisation, **settings)


def member(sparsity, *, sparse_codes=None, dead_after=5_000, shared_start=False, **settings):
    schedules = {"l1_schedule": Constant(), "learning_rate_schedule": WarmupCooldown(0.05, 0.2)}
    objective = Reconstruction(terms={"auxk": AuxK(1 / 32)}, dead_after=dead_after)
    dictionary = made(sparsity, sparse_codes=sparse_codes, shared_start=shared_start)
    return Learner("m", dictionary, objective, **{**schedules, "learning_rate": 5e-3, **settings})


def fit(members, *, steps=60, precision="32-true", source=None, plugins=None):
    module = DictionaryTraining(members, length=Length(steps, 128))
    readers = [member.reader() for member in members]
    stream = ShuffledRows(source or Planted(), readers, batch=128, capacity=1024, steps=steps, seed=0)
    lightning.Trainer(
        accelerator="cpu", devices=1, precision=precision, max_epochs=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, plugins=plugins,
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
    fit([trained], steps=1500, precision=precision)
    last = trained.history[-1]
    assert last["explained_variance/base"] > 0.9 and last["explained_variance/tuned"] > 0.9
    assert trained.dictionary.W_enc.dtype == torch.float32
    base, tuned = trained.dictionary.decoder_norms()
    relative = tuned / (base + tuned)
    firing = (trained.dictionary.encode(next(Planted())) > 0).float().mean(0)
    truth, rows = Planted(), trained.dictionary.W_dec.detach()
    for called, own, mine in (
        (relative > 0.9, truth.tuned[:4], rows[:, 8:]),
        (relative < 0.1, truth.base[4:8], rows[:, :8]),
    ):
        cosines = torch.nn.functional.normalize(mine[called & (firing > 0)], dim=-1) @ own.T
        right = cosines.amax(-1) > 0.95
        assert right.sum() >= 2 and (~right).sum() <= 1, cosines


@pytest.mark.parametrize("kind", [lambda: BatchTopK(2, k_schedule=Anneal(3.0, 0.2)), lambda: TopK(2)])
def test_sparse_codes_train_as_dense_ones_over_200_steps(kind):
    """Also while latents die and AuxK teaches them."""
    histories = []
    for sparse in (True, False):
        trained = member(kind(), sparse_codes=sparse, dead_after=500)
        with torch.no_grad():
            trained.dictionary.b_enc[:6] = -0.8  # hard to wake
        fit([trained], steps=200)
        histories.append(trained.history)
    assert any(record["loss/auxk"] > 0 for record in histories[0])
    for one, other in zip(*histories, strict=True):
        assert one == pytest.approx(other, rel=1e-4, abs=1e-6)


def test_identical_models_give_relative_norm_a_half_and_cosine_1():
    class Twins(Planted):
        def __init__(self):
            super().__init__()
            self.base = self.tuned = torch.nn.functional.normalize(torch.randn(16, 8, generator=self.generator), dim=-1)

    trained = member(BatchTopK(2), shared_start=True)
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


def test_an_l1_schedule_without_a_penalty_is_refused():
    with pytest.raises(Refused, match=r"l1_schedule is Warmup\(warmup=0.1\), but BatchTopK has no penalty to schedule"):
        member(BatchTopK(2), l1_schedule=Warmup(0.1))


def test_schedules_have_the_shapes_of_their_names():
    run = Length(100, 64)
    rise = [Warmup(0.1)(step, run) for step in range(100)]
    assert rise[0] == 0.1 and rise[9:] == [1.0] * 91
    ramp = [Warmup(1.0)(step, run) for step in range(100)]
    assert ramp == [(step + 1) / 100 for step in range(100)]
    hump = [WarmupCooldown(0.1, 0.2)(step, run) for step in range(100)]
    assert hump[9:80] == [1.0] * 71 and abs(hump[-1] - 0.05) < 1e-9
    wave = [WarmupCosine(0.1, floor=0.2)(step, run) for step in range(100)]
    assert wave[:10] == rise[:10] and wave[10] == 1.0 and wave[10:] == sorted(wave[10:], reverse=True)
    assert abs(wave[55] - 0.6) < 1e-9 and 0.2 < wave[-1] < 0.201
    assert [Anneal(5.0, 0.5)(step, Length(8, 64)) for step in range(6)] == [5.0, 4.0, 3.0, 2.0, 1.0, 1.0]
    assert Constant()(3, run) == 1.0


def test_a_span_is_a_fraction_steps_or_tokens():
    run = Length(1000, 64)
    for same in (0.25, "0.25", "250 steps", "16_000 tokens"):
        assert [Warmup(same)(step, run) for step in (0, 99, 249, 500)] == [1 / 250, 100 / 250, 1.0, 1.0]


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (Warmup(5), "warmup=5: give a fraction of the run from 0 to 1, or '1000 steps'"),
        (Warmup("many steps"), "warmup=many steps: give a fraction"),
        (Warmup("2000 steps"), "warmup=2000 steps is longer than the run, which has 1,000 steps of 64 tokens"),
        (WarmupCosine("1e6 tokens"), "warmup=1e6 tokens is longer than the run"),
        (Anneal(3.0, "1001 steps"), "over=1001 steps is longer than the run"),
        (WarmupCooldown(0.7, "400 steps"), "warmup=0.7 and cooldown=400 steps together are longer than the run"),
    ],
)
def test_schedules_that_do_not_fit_the_run_are_refused(schedule, message):
    with pytest.raises(Refused, match=f"l1_schedule: {message}"):
        member(L1(1.0), l1_schedule=schedule).check(Length(1000, 64))


# -- every schedule reaches what it schedules ----------------------------------------------------------------------------


def test_every_schedule_acts_on_its_own_setting():
    half = Anneal(0.5, 1.0)
    parts = Partition(tied=0.5, free=0.5, tied_penalty=0.2, tied_penalty_schedule=half)
    dictionary = made(L1(1.0), partition=parts)
    objective = Reconstruction(terms={"auxk": AuxK(1 / 32, half)})
    one = Learner("m", dictionary, objective, l1_schedule=half, learning_rate_schedule=half, learning_rate=8.0)
    assert one.settings(0, Length(10, 64)) == {"learning_rate": 4.0, "l1": 0.5, "auxk": 0.5, "tied_penalty": 0.1}
    sparsity = BatchTopK(2, k_schedule=Anneal(3.0, 1.0))
    other = Learner("m", made(sparsity), objective, l1_schedule=Constant(), learning_rate_schedule=Constant())
    assert other.settings(0, Length(10, 64)) == {"learning_rate": 1e-3, "k": 6.0, "auxk": 0.5}
    assert set(other.schedules()) >= {"dictionary.sparsity.k_schedule", "dictionary.objective.terms.auxk.schedule"}
    x = next(Planted())

    def terms(settings):
        return objective(dictionary, x, dead=torch.arange(8), settings=settings).terms

    whole = terms({"l1": 1.0, "tied_penalty": 1.0, "auxk": 1.0})
    part = terms({"l1": 0.5, "tied_penalty": 1.0, "auxk": 0.25})
    assert torch.allclose(part["l1"], 0.5 * whole["l1"]) and whole["l1"] > 0
    assert torch.allclose(part["auxk"], 0.25 * whole["auxk"]) and whole["auxk"] > 0


# -- precision, compilation, host ---------------------------------------------------------------------------------------


KINDS = {
    "batchtopk": lambda: BatchTopK(2),
    "topk": lambda: TopK(2),
    "l1": lambda: L1(0.02),
    "jumprelu": lambda: JumpReLU(0.05, bandwidth=0.2, log_threshold=-2.0),
    "linear": lambda: Linear(0.02),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sparse", [True, False])
def test_mixed_precision_keeps_weights_losses_statistics_and_thresholds_in_float32(kind, sparse):
    trained = member(KINDS[kind](), sparse_codes=sparse)
    fit([trained], steps=3, precision="bf16-mixed")
    dictionary = trained.dictionary
    assert {value.dtype for value in dictionary.state_dict().values()} == {torch.float32}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = Reconstruction(terms={"auxk": AuxK(1 / 32)})(
            dictionary, next(Planted()), dead=torch.arange(4), settings=SETTINGS
        )
    full = Reconstruction(terms={"auxk": AuxK(1 / 32)})(
        dictionary, next(Planted()), dead=torch.arange(4), settings=SETTINGS
    )
    assert {value.dtype for value in (low.total, low.error, *low.terms.values())} == {torch.float32}
    assert torch.allclose(low.total, full.total, rtol=0.02) and not torch.equal(low.total, full.total)


def test_bf16_trains_to_where_float32_trains():
    losses = {}
    for precision in ("32-true", "bf16-mixed"):
        trained = member(BatchTopK(2))
        fit([trained], steps=400, precision=precision)
        losses[precision] = trained.history[-1]["loss/reconstruction"]
    assert abs(losses["bf16-mixed"] / losses["32-true"] - 1) < 0.05


def test_float16_scales_each_members_loss_by_itself():
    """Packed as alone, and a step whose gradients overflow changes nothing but that member's scale."""
    plugin = lambda: MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu", init_scale=2.0**10))  # noqa: E731
    pair = [member(BatchTopK(2)), member(L1(0.02))]
    module = fit(pair, steps=6, precision=None, plugins=[plugin()])
    for n, sparsity in enumerate((BatchTopK(2), L1(0.02))):
        alone = member(sparsity)
        fit([alone], steps=6, precision=None, plugins=[plugin()])
        for name, value in alone.dictionary.state_dict().items():
            assert torch.equal(value, pair[n].dictionary.state_dict()[name]), name
    assert module.scalers[0] is not module.scalers[1]
    huge = member(BatchTopK(2), sparse_codes=False)
    before = huge.dictionary.W_dec.detach().clone()
    wild = MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu", init_scale=2.0**40))
    module = fit([huge], steps=1, precision=None, plugins=[wild])
    assert torch.equal(huge.dictionary.W_dec, before) and module.scalers[0].get_scale() == 2.0**39


@pytest.mark.parametrize("kind", KINDS)
def test_no_step_waits_for_the_device(kind):
    """As on a GPU: dense codes. The host reads a number only where a step is logged or looks for dead latents."""
    waits = {"aten._local_scalar_dense.default", "aten.nonzero.default", "aten.masked_select.default"}
    counted = []

    class Waits(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if str(function) in waits:
                counted.append(str(function))
            return function(*args, **(kwargs or {}))

    trained = member(KINDS[kind](), sparse_codes=False)
    seen = {}
    advance = DictionaryTraining.advance

    def watched(module, n, one, optimizer, rows):
        counted.clear()
        with Waits():
            advance(module, n, one, optimizer, rows)
        seen[module.step] = len(counted)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DictionaryTraining, "advance", watched)
        fit([trained], steps=31)
    assert {step: count for step, count in seen.items() if step % 10 and step != 30 and count} == {}
    assert seen[20] > 0  # the counter counts


def test_a_compiled_loss_is_really_used():
    calls = []

    def counting(graph, inputs):
        def run(*values):
            calls.append(graph)
            return graph(*values)

        return run

    torch._dynamo.reset()
    register_backend(compiler_fn=counting, name="counting")
    for kind in KINDS:
        calls.clear()
        compiled = member(KINDS[kind](), sparse_codes=False, compile="counting")
        fit([compiled], steps=5)
        assert len(calls) >= 5, kind
        plain = member(KINDS[kind](), sparse_codes=False)
        fit([plain], steps=5)
        assert torch.allclose(compiled.dictionary.W_dec, plain.dictionary.W_dec, atol=1e-5)


def test_dead_latents_are_resampled_when_it_is_due_and_only_then():
    steps = [step for step in range(100) if Resampling(every=0.1, until="45 steps").due(step, Length(100, 64))]
    assert steps == [10, 20, 30, 40]
    with pytest.raises(Refused, match="resampling.every=0.001 is less than a step"):
        Resampling(every=0.001).check(Length(100, 64), made(L1(1.0)))
    without, with_it = (member(L1(3.0), resampling=r, dead_after=300) for r in (None, Resampling(every=0.1, until=0.8)))
    for one in (without, with_it):
        fit([one], steps=200)
    assert with_it.history[-1]["dead_fraction"] < without.history[-1]["dead_fraction"]


def test_evaluating_leaves_counters_and_thresholds_as_they_are():
    trained = member(BatchTopK(2))
    module = fit([trained], steps=25)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with torch.no_grad():
        trained.dictionary.encode(next(Planted()))
        trained.dictionary(next(Planted()))
        trained.objective(trained.dictionary, next(Planted()), dead=trained.dead, settings=SETTINGS)
    for name, value in module.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_l0_under_the_threshold_is_within_5_percent_of_training_l0():
    for k in (1, 3):
        trained = member(BatchTopK(k))
        fit([trained], steps=400)
        l0 = (trained.dictionary.encode(next(Planted())) > 0).sum(-1).float().mean()
        assert abs(l0 / k - 1) < 0.05
        assert trained.history[-1]["l0"] == pytest.approx(k, rel=0.02)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (torch.ones(3, requires_grad=True), r"\[3\] of torch.float32"),
        (torch.ones((), dtype=torch.complex64), r"\[\] of torch.complex64"),
        (None, "NoneType"),
        (0.5, "float"),
    ],
)
def test_a_loss_term_that_is_no_number_is_refused_by_its_name(value, said):
    class Mine(Term):
        def __call__(self, given):
            return value

    objective, none = Reconstruction(terms={"mine": Mine(0.1)}), torch.empty(0, dtype=torch.long)
    with pytest.raises(Refused, match=f"terms.mine gave {said}: a term of the loss is a tensor of one number"):
        objective(made(L1(0.02)), next(Planted()), dead=none, settings=SETTINGS)


def test_a_loss_term_without_a_value_is_refused_where_it_is_made():
    class Mute(Term):
        pass

    with pytest.raises(Refused, match="terms.mine: Mute has no method __call__"):
        Reconstruction(terms={"mine": Mute(0.1)})
