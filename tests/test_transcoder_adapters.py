"""Transcoder adapters: the models they stand in, the loss they learn from, and that nothing but the settings decides what
is learned."""

import copy
import re
from types import SimpleNamespace

import hydra
import lightning
import pytest
import torch
from torch.nn.functional import kl_div, log_softmax
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

import tunediff
from conftest import ROOT, save_stand_in
from test_finetuning import STRATEGIES, Held, assert_equal, in_two_processes, room_for, sequences, stand_in, trainer_of
from test_study import LITTLE_TEXT
from tunediff.activations import WholeSequences
from tunediff.dictionary import L1, BatchTopK, JumpReLU, TopK, TranscoderAdapter
from tunediff.hookpoints import Point, decoder_layers, reading, writing
from tunediff.models import ModelPair, ModelSource, PairError, replaceable, replacing, save_adapted
from tunediff.models.hybrid import adapted, hybrid
from tunediff.objectives import Distillation
from tunediff.objectives.distillation import real_tokens
from tunediff.schedules import Constant, Length, Warmup, WarmupCosine
from tunediff.shapes import ADAPTER, HYBRID, TUNED, Refused, Rows, Stream
from tunediff.study.train import adapt, study
from tunediff.text import Batches, Example
from tunediff.text.examples import collated
from tunediff.training import (
    Checkpoints,
    TranscoderLearner,
    latest_checkpoint,
    load_checkpoint,
    process_environment,
)
from tunediff.training.memory import adapter_memory, adapter_parameters

WORDS, WIDTH, LAYERS = 40, 16, 3


def model_of(seed=0, kind=Qwen2Config):
    torch.manual_seed(seed)
    if kind is GPT2Config:
        return GPT2LMHeadModel(
            GPT2Config(vocab_size=WORDS, n_embd=WIDTH, n_layer=LAYERS, n_head=2, n_positions=64, initializer_range=0.2)
        ).eval()
    config = kind(
        vocab_size=WORDS, hidden_size=WIDTH, intermediate_size=24, num_hidden_layers=LAYERS, num_attention_heads=4,
        num_key_value_heads=2, head_dim=4, max_position_embeddings=64, initializer_range=0.2,
    )  # fmt: skip
    return (LlamaForCausalLM if kind is LlamaConfig else Qwen2ForCausalLM)(config)


def adapter_of(sparsity=None, *, latents=12, seed=0, planted=False, layers=LAYERS):
    streams = [Stream(ADAPTER, "mlp_in", layer, WIDTH) for layer in range(layers)]
    made = TranscoderAdapter(streams, latents=latents, sparsity=sparsity or L1(1e-3), seed=seed)
    if planted:
        generator = torch.Generator().manual_seed(9)
        for one in made.layers:
            one.W_dec.data = 0.3 * torch.randn(one.W_dec.shape, generator=generator)
            one.b_dec.data = 0.1 * torch.randn(one.b_dec.shape, generator=generator)
    return made


class Loaded:
    """Two models as a loaded pair holds them."""

    def __init__(self, base, tuned):
        self.models = {"base": base.requires_grad_(False), "tuned": tuned.requires_grad_(False)}


def member_of(adapter, **settings):
    objective = Distillation(**settings.pop("objective", {"logits_mb": room_for(7, WORDS)}))
    sequences = WholeSequences(gradient_checkpointing=settings.pop("gradient_checkpointing", False), held_out=0)
    settings = {"l1_schedule": Constant(), "learning_rate": 1e-2, "betas": (0.9, 0.999), "clip_norm": 1.0, **settings}
    settings |= {"sequences": sequences, "learning_rate_schedule": WarmupCosine(0.1)}
    return TranscoderLearner("m", adapter, objective, **settings)


def batches_of(count=16, **settings):
    learned = [Example(one.ids, [n > 0 for n in range(len(one.ids))]) for one in sequences(count)]
    return Batches(learned, **{"batch": 4, "micro_batch": 2, "epochs": 2, "seed": 3, **settings})


def taught(adapter, *, pair=None, batches=None, state=None, callbacks=(), trainer=None, held_out=None, **settings):
    """A module that learned to its end, and its member."""
    member = member_of(adapter, **settings)
    pair = pair or Loaded(model_of(0), model_of(1))
    module = member.module(pair, batches or batches_of(), held_out=held_out, loggers=[], state=state, seed=5)
    trainer_of(callbacks=list(callbacks), **(trainer or {})).fit(module)
    member.bring_back(module.model)
    return module, member


def weights(adapter):
    return {name: value.detach().clone() for name, value in adapter.state_dict().items()}


def curve(module, name):
    return [record[name] for record in module.history if record[name] is not None]


# -- the models ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Qwen2Config, LlamaConfig, GPT2Config])
@torch.no_grad()
def test_the_hybrid_is_the_tuned_model_with_the_bases_mlps_and_an_untrained_adapter_adds_nothing(kind):
    base, tuned, ids = model_of(0, kind), model_of(1, kind), torch.arange(20).view(2, 10)
    by_hand = copy.deepcopy(tuned)
    for layer, donor in zip(decoder_layers(by_hand), decoder_layers(base), strict=True):
        layer.mlp = donor.mlp
    mixed = hybrid(tuned, base)
    assert torch.equal(mixed(ids).logits, by_hand(ids).logits)
    assert torch.equal(adapted(mixed, adapter_of())(ids).logits, mixed(ids).logits)
    changed = adapted(mixed, adapter_of(planted=True))(ids).logits
    assert not torch.allclose(changed, mixed(ids).logits, atol=1e-2)
    model = replaceable(tuned, base, adapter_of(planted=True))
    for choice, same in ((TUNED, tuned(ids).logits), (HYBRID, mixed(ids).logits), (ADAPTER, changed)):
        with replacing(model, [choice] * LAYERS):
            assert torch.equal(model(ids).logits, same)
    assert torch.equal(model(ids).logits, changed)  # afterwards


def test_mlps_that_do_not_fit_are_refused_with_what_they_are():
    with pytest.raises(PairError, match=r"they are torch.float32, and it is torch.bfloat16"):
        hybrid(model_of(1).bfloat16(), model_of(0))
    with pytest.raises(PairError, match=r"3 layers of width 16 against 1 of width 8"):
        hybrid(GPT2LMHeadModel(GPT2Config(vocab_size=WORDS, n_embd=8, n_layer=1, n_head=1)), model_of(0))


def test_all_of_them_take_the_memory_of_two_models_and_an_adapter():
    base, tuned, adapter = model_of(0), model_of(1), adapter_of()
    every = [base, tuned, adapter]
    own = {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for m in every for p in m.parameters()}
    mixed = hybrid(tuned, base)
    for model in (mixed, adapted(mixed, adapter), replaceable(tuned, base, adapter)):
        assert {p.untyped_storage().data_ptr() for p in model.parameters()} <= set(own)
    mixed.model.layers[0].register_forward_hook(lambda *_: pytest.fail("the tuned model is a module of its own"))
    tuned(torch.arange(4)[None])


def test_models_that_do_not_fit_each_other_are_refused():
    with pytest.raises(PairError, match="2 layers of width 16 against 3 of width 16"):
        hybrid(
            model_of(1),
            Qwen2ForCausalLM(
                Qwen2Config(hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=4, vocab_size=WORDS)
            ),
        )
    with pytest.raises(PairError, match="has 2 layers of width 16, the model 3"):
        adapted(model_of(), adapter_of(layers=2))
    with pytest.raises(Refused, match="beside the MLP of every layer"):
        TranscoderAdapter([Stream(ADAPTER, "mlp_in", 1, WIDTH)], latents=4, sparsity=L1(0.0))


@torch.no_grad()
def test_latents_are_read_and_written_where_they_leave_the_encoder():
    adapter, ids = adapter_of(planted=True), torch.arange(10)[None]
    mixed = hybrid(model_of(1), model_of(0))
    model = adapted(mixed, adapter)
    points = [Point(name, layer) for name in ("mlp_in", "transcoder") for layer in range(LAYERS)]
    with reading(model, points, stop=False) as read:
        whole = model(ids).logits
    rows = torch.cat([read[Point("mlp_in", layer)][0] for layer in range(LAYERS)], dim=-1)
    latents = torch.cat([read[Point("transcoder", layer)][0] for layer in range(LAYERS)], dim=-1)
    assert torch.equal(adapter.encode(Rows(rows)), latents) and (latents > 0).float().mean() > 0.2
    numbers = [3, 12 + 5, 24]
    assert adapter.by_layer(numbers) == {0: [3], 1: [5], 2: [0]} and adapter.place_of(17) == (1, 5)

    def zeroed(layer):
        def change(value):
            value = value.clone()
            value[..., adapter.by_layer(numbers)[layer]] = 0
            return value

        return writing(model, Point("transcoder", layer), change)

    with zeroed(0), zeroed(1), zeroed(2):
        edited = model(ids).logits
    assert torch.allclose(edited, adapted(mixed, adapter.without(numbers))(ids).logits, atol=1e-6)
    assert not torch.allclose(edited, whole, atol=1e-4)
    rest = [n for n in range(adapter.latents) if n not in numbers]
    assert torch.allclose(edited, adapted(mixed, adapter.only(rest))(ids).logits, atol=1e-6)
    nothing = adapted(mixed, adapter.only([], bias=False))(ids).logits
    assert torch.equal(nothing, mixed(ids).logits)
    part = adapter.only(numbers, scale=-0.5, bias=False)
    assert torch.allclose(part.decode(latents), -0.5 * (adapter.decode(latents) - adapter.without(numbers).decode(latents)), atol=1e-6)  # fmt: skip


# -- the loss --------------------------------------------------------------------------------------------------------


def by_hand(base, tuned, adapter, batch, *, cutoffs, bridge, l1):
    """All terms from whole logits and hidden states, one document at a time, layer by layer."""
    kl = nmse = bridging = penalty = 0.0
    tokens = sum(len(one.ids) for one in batch)
    predicted = tokens - len(batch)
    errors, sizes = torch.zeros(LAYERS + 1), torch.zeros(LAYERS + 1)
    model = replaceable(tuned, base, adapter)

    def run(ids, choices):
        caught = []
        handles = [
            layer.register_forward_hook(lambda _, __, out: caught.append(out)) for layer in decoder_layers(model)
        ]
        with replacing(model, choices):
            logits = model(ids).logits[0, :-1]
        for handle in handles:
            handle.remove()
        return log_softmax(logits, -1), [model.get_input_embeddings()(ids), *caught]

    def divergence(mine, theirs):
        return kl_div(mine, theirs, reduction="sum", log_target=True)

    for one in batch:
        ids = torch.tensor(one.ids)[None]
        theirs, true = run(ids, [TUNED] * LAYERS)
        mine, hidden = run(ids, [ADAPTER] * LAYERS)
        kl = kl + divergence(mine, theirs.detach()) / predicted
        for n, (a, b) in enumerate(zip(hidden, true, strict=True)):
            errors = errors + torch.eye(LAYERS + 1)[n] * (a - b.detach()).square().sum()
            sizes = sizes + torch.eye(LAYERS + 1)[n] * b.detach().square().sum()
        for k in cutoffs:
            for choices in ([ADAPTER] * k + [TUNED] * (LAYERS - k), [TUNED] * k + [ADAPTER] * (LAYERS - k)):
                bridging = bridging + bridge * divergence(run(ids, choices)[0], theirs.detach()) / predicted / len(
                    cutoffs
                )
        with reading(model, [Point("mlp_in", n) for n in range(LAYERS)], stop=False, detach=False) as read:
            model(ids)
        for n, layer in enumerate(adapter.layers):
            latents = torch.relu(read[Point("mlp_in", n)][0] @ layer.W_enc + layer.b_enc)
            penalty = penalty + l1 * (latents * layer.W_dec.norm(dim=-1)).sum() / tokens
    nmse = (errors / sizes).mean()
    return kl, nmse, bridging, penalty


@pytest.mark.parametrize("separately", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_step_is_the_sum_of_the_papers_terms(separately, checkpointing):
    """Loss and gradients equal those of whole logits and hidden states; padding and the number of passes change nothing."""
    base, tuned, adapter = model_of(0), model_of(1), adapter_of(L1(0.3), planted=True)
    batch = [Example(one.ids, [n > 0 for n in range(len(one.ids))]) for one in sequences(3)]
    objective = Distillation(bridge=2.0, cutoffs=2, separately=separately, logits_mb=room_for(5, WORDS)).teach(
        adapter, Constant()
    )
    model = replaceable(tuned.requires_grad_(False), base.requires_grad_(False), adapter)
    if checkpointing:
        model.train()
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable({"use_reentrant": False})
    terms = objective.terms(4, Length(10, 8), seed=1)
    cutoffs = sorted({term.choices.count(ADAPTER) for term in terms if term.name == "adapter_first"})
    assert len(cutoffs) == 2 and len(terms) == 1 + separately + sum(2 - (k == LAYERS) for k in cutoffs)
    step = Batches(batch, batch=3, micro_batch=3)[0]
    told, micro = {}, step.micro_batches[0]
    for term in terms:
        part = objective.part(model, micro, term, step)
        part.loss.backward()
        for name, value in part.told.items():
            told[name] = told.get(name, 0) + value
    objective.settle(model)
    found = {name: p.grad.clone() for name, p in adapter.named_parameters()}
    adapter.zero_grad()
    kl, nmse, bridging, penalty = by_hand(base, tuned, adapter, batch, cutoffs=cutoffs, bridge=2.0, l1=0.3)
    (kl + nmse + bridging + penalty).backward()
    for name, value in (("kl", kl), ("nmse", nmse), ("penalty", penalty), ("loss", kl + nmse + bridging + penalty)):
        assert told[name].item() == pytest.approx(value.item(), rel=1e-4), name
    of_cutoffs = told["kl_adapter_first"] + told["kl_tuned_first"]  # each a mean over the cutoffs, however many
    assert of_cutoffs.item() == pytest.approx(bridging.item() / 2.0, rel=1e-4)
    assert_equal(found, {name: p.grad for name, p in adapter.named_parameters()}, atol=1e-5, rtol=1e-4)


def test_cutoffs_are_drawn_as_the_paper_and_as_the_code_draw_them():
    """The paper from 1, the code from 0; a mixture that is the tuned model itself teaches nothing and is left out."""
    for lowest in (1, 0):
        objective, seen = Distillation(lowest_cutoff=lowest).teach(adapter_of(), Constant()), set()
        for step in range(200):
            (whole, *mixtures) = objective.terms(step, Length(200, 1), seed=0)
            assert whole.choices == (ADAPTER,) * LAYERS and whole.nmse == whole.kl == 1.0
            assert all(ADAPTER in term.choices for term in mixtures)
            names = {term.name: term.choices.count(ADAPTER) for term in mixtures}
            seen.add((names.get("adapter_first"), names.get("tuned_first")))
        assert seen == {(1, 2), (2, 1), (3, None)} | ({(None, 3)} if lowest == 0 else set())
    assert len(Distillation(bridge=0.0).teach(adapter_of(), Constant()).terms(0, Length(1, 1), 0)) == 1
    same = [Distillation().teach(adapter_of(), Constant()).terms(7, Length(9, 1), seed=2) for _ in range(2)]
    assert same[0] == same[1]
    with pytest.raises(Refused, match="cutoffs=4: the models have 3 layers"):
        Distillation(cutoffs=4).teach(adapter_of(), Constant())
    with pytest.raises(Refused, match="TopK has no penalty to schedule"):
        Distillation().teach(adapter_of(TopK(2)), Warmup())
    with pytest.raises(Refused, match="one of them must teach"):
        Distillation(adapt=0.0, nmse=0.0)


# -- learning --------------------------------------------------------------------------------------------------------


def test_where_the_models_share_their_mlps_the_best_adapter_is_zero():
    tuned = model_of(1)
    base = copy.deepcopy(tuned)
    base.model.embed_tokens.weight.data += 1.0  # only MLPs are taken from it
    module, member = taught(adapter_of(L1(1.0)), pair=Loaded(base, tuned))
    assert max(map(abs, curve(module, "loss"))) < 1e-6
    assert all(not one.W_dec.any() and not one.b_dec.any() for one in member.dictionary.layers)


@pytest.mark.parametrize(
    "sparsity",
    [
        L1(1e-4),
        BatchTopK(6),
        pytest.param(TopK(6), marks=pytest.mark.slow),
        pytest.param(JumpReLU(1e-4, bandwidth=0.2, log_threshold=-3.0), marks=pytest.mark.slow),
    ],
)
def test_a_planted_adapter_is_learned(sparsity):
    """The tuned model is the base with transcoders in its MLPs."""
    base = model_of(0)
    tuned = adapted(base, adapter_of(planted=True))
    pair = Loaded(base, tuned)
    held_out = batches_of(8, epochs=1)
    module, member = taught(adapter_of(sparsity, latents=24, seed=3), pair=pair, batches=batches_of(32, epochs=3), held_out=held_out)  # fmt: skip
    first, last = curve(module, "held_out_loss")[0], curve(module, "held_out_loss")[-1]
    assert last < 0.35 * first and curve(module, "nmse")[-1] < 0.5 * curve(module, "nmse")[0]
    with torch.no_grad():
        mine, theirs = (log_softmax(m(torch.arange(12)[None]).logits, -1) for m in (adapted(base, member.dictionary), tuned))  # fmt: skip
        none = log_softmax(base(torch.arange(12)[None]).logits, -1)
    assert kl_div(mine, theirs, reduction="sum", log_target=True) < 0.5 * kl_div(none, theirs, reduction="sum", log_target=True)  # fmt: skip


def test_how_a_step_is_cut_and_checkpointed_changes_nothing():
    """But for NMSE, which is a ratio of each micro-batch."""
    settings = {"objective": {"nmse": 0.0}}
    whole, member = taught(adapter_of(), batches=batches_of(micro_batch=4), **settings)
    for micro_batch, checkpointing in ((1, True), (3, False)):
        settings |= {"gradient_checkpointing": checkpointing}
        other, twin = taught(adapter_of(), batches=batches_of(micro_batch=micro_batch), **settings)
        assert curve(other, "kl") == pytest.approx(curve(whole, "kl"), rel=1e-2)
        assert_equal(weights(twin.dictionary), weights(member.dictionary), atol=5e-3)


class Stopped(lightning.Callback):
    def __init__(self, step):
        self.step = step

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_index):
        if module.step == self.step:
            raise ArithmeticError


@pytest.mark.parametrize("sparsity", [L1(1e-3), BatchTopK(4, k_schedule=Constant())])
def test_a_run_stopped_at_any_step_goes_on_to_the_same_bits(tmp_path, sparsity):
    whole, member = taught(adapter_of(copy.deepcopy(sparsity)), held_out=batches_of(4, epochs=1))
    saving = Checkpoints(tmp_path, seconds=0.0, digest="d")
    with pytest.raises(ArithmeticError):
        taught(adapter_of(copy.deepcopy(sparsity)), held_out=batches_of(4, epochs=1), callbacks=[saving, Stopped(3)])
    last = [f"step-000000{step}.{end}" for step in (2, 3) for end in ("ckpt", "json")]
    assert sorted(path.name for path in tmp_path.iterdir()) == last
    state = load_checkpoint(latest_checkpoint(tmp_path), digest="d")
    again, other = taught(adapter_of(copy.deepcopy(sparsity), seed=8), held_out=batches_of(4, epochs=1), state=state)
    assert_equal(weights(other.dictionary), weights(member.dictionary))
    assert again.history == whole.history


def test_bfloat16_products_learn_what_float32_learns():
    exact, _ = taught(adapter_of(), pair=Loaded(model_of(0), model_of(1)))
    pair = Loaded(model_of(0).bfloat16(), model_of(1).bfloat16())
    mixed, member = taught(adapter_of(), pair=pair, trainer={"precision": "bf16-mixed"})
    assert curve(mixed, "kl") == pytest.approx(curve(exact, "kl"), rel=0.05)
    assert {p.dtype for p in member.dictionary.parameters()} == {torch.float32}


def share(rank, port, folder):
    """One of two processes that train together, replicated and sharded; what was learned is kept in the first."""
    stand_in(rank, port)
    for name, strategy in STRATEGIES.items():
        trainer = {"devices": 2, "strategy": strategy(), "plugins": [process_environment(expected=2)]}
        batches = batches_of(10, batch=5, micro_batch=1, rank=rank, world=2)
        module, member = taught(adapter_of(), batches=batches, trainer=trainer)
        if rank == 0:
            torch.save({"weights": weights(member.dictionary), "history": module.history}, folder / f"{name}.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def test_two_processes_learn_what_one_learns_replicated_and_sharded(tmp_path):
    in_two_processes(share, tmp_path)
    alone, member = taught(adapter_of(), batches=batches_of(10, batch=5, micro_batch=1))
    for name in STRATEGIES:
        found = torch.load(tmp_path / f"{name}.pt")
        assert [r["kl"] for r in found["history"]] == pytest.approx(curve(alone, "kl"), rel=1e-3)
        assert_equal(found["weights"], weights(member.dictionary), atol=1e-3)


@pytest.mark.parametrize("shares_out_layers", [True, False])
def test_models_that_are_shared_out_are_held_by_nobody_else(shares_out_layers, tmp_path):
    """Sharding takes a tensor to the device in place, where it would stay, whole, for the pair."""
    pair, member, held = Loaded(model_of(0), model_of(1)), member_of(adapter_of()), []
    pair.tokenizers = (None,)
    member.sequences = SimpleNamespace(
        gradient_checkpointing=False, evaluate_every=1,
        read=lambda *_: (SimpleNamespace(report=str, digest="d"), None), batches=lambda *_, **__: batches_of(4, epochs=1)
    )  # fmt: skip
    settings = {"budget": SimpleNamespace(tokens=1), "dictionary": SimpleNamespace(_target_="TranscoderAdapter")}
    cfg = SimpleNamespace(**settings, seed=0, checkpoint_every=1.0)
    run = SimpleNamespace(cfg=cfg, learner=member, identity="i", loggers=[], open_loggers=lambda: None)
    strategy = SimpleNamespace(shares_out_layers=shares_out_layers)
    trainer = SimpleNamespace(strategy=strategy, global_rank=0, world_size=1, callbacks=[])
    trainer.fit = lambda module, **_: held.extend(pair.models)
    adapt(run, pair, SimpleNamespace(seed=0), trainer, tmp_path, resume_from=None)
    assert held == ([] if shares_out_layers else ["base", "tuned"])


# -- what it takes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("checkpointing", [True, False])
@pytest.mark.parametrize(("dtype", "precision"), [("float32", "32-true"), ("bfloat16", "bf16-mixed")])
def test_the_estimate_is_what_two_steps_hold_at_most(dtype, precision, checkpointing):
    config = Qwen2Config(
        hidden_size=64, intermediate_size=256, num_hidden_layers=6, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=500, tie_word_embeddings=False,
    )  # fmt: skip
    pair = Loaded(*(Qwen2ForCausalLM(config).to(getattr(torch, dtype)) for _ in range(2)))
    streams = [Stream(ADAPTER, "mlp_in", layer, 64) for layer in range(6)]
    adapter = TranscoderAdapter(streams, latents=128, sparsity=L1(1e-3))
    assert sum(p.numel() for p in adapter.parameters()) == adapter_parameters(config, 128)
    batches = Batches([Example([1] * 256, [False] + [True] * 255)] * 4, batch=2, micro_batch=2)
    held = Held()
    for parameter in (*pair.models["base"].parameters(), *pair.models["tuned"].parameters(), *adapter.parameters()):
        held.see(parameter)
    with held:
        settings = {"objective": {"logits_mb": room_for(64, 500)}, "gradient_checkpointing": checkpointing}
        taught(adapter, pair=pair, batches=batches, trainer={"precision": precision}, **settings)
    found = adapter_memory(
        config, config, dtype, latents=128, block=256, micro_batch=2, precision=precision,
        gradient_checkpointing=checkpointing, logits_mb=room_for(64, 500), residuals=True,
    )  # fmt: skip
    assert 0.95 < found.total / held.most < 1.7, found.table()


def test_a_pair_holds_what_stands_beside_it(folders):
    sources = [ModelSource(str(folders[role]), dtype="float32") for role in ("base", "tuned")]
    pair = ModelPair(*sources)
    streams = pair.streams("mlp_in", "all", reads=ADAPTER)
    assert [str(stream) for stream in streams] == ["adapter.mlp_in.0", "adapter.mlp_in.1", "adapter.mlp_in.2"]
    adapter = TranscoderAdapter(streams, latents="2x", sparsity=L1(0.0))
    pair.load().stand_beside(adapter)
    assert pair.streams("transcoder", 1, reads=ADAPTER) == [Stream(ADAPTER, "transcoder", 1, 64)]
    ids = torch.arange(12)[None]
    with torch.no_grad():
        assert torch.equal(pair.models[ADAPTER](ids).logits, pair.models[HYBRID](ids).logits)
        on = pair.with_adapter(adapter, on=TUNED)
        assert torch.equal(on.models[ADAPTER](ids).logits, pair.models[TUNED](ids).logits)
    with pytest.raises(PairError, match="no transcoder adapters"):
        pair.streams("transcoder", 1, reads=TUNED)
    by_text = ModelPair(*sources, align="by_text")
    with pytest.raises(PairError, match="read the same tokens"):
        by_text.stand_beside(adapter)
    with pytest.raises(PairError, match="read the same tokens"):  # before anything is trained
        by_text.streams("mlp_in", "all", reads=ADAPTER)


def test_padding_is_told_from_tokens():
    lengths = [len(one.ids) for one in sequences(5)]
    learned = [Example(one.ids, [n > 0 for n in range(len(one.ids))]) for one in sequences(5)]
    assert real_tokens(collated(learned)).sum(1).tolist() == lengths


@pytest.mark.parametrize(("name", "width", "inner", "heads"), [("7b", 3584, 18944, 28), ("1_5b", 1536, 8960, 12)])
def test_the_papers_studies_hold_its_values_and_say_what_they_take(
    name, width, inner, heads, tmp_path, tokenizer, capsys
):
    """From configurations and headers alone: a dry run reads no weight."""
    config = Qwen2Config(
        vocab_size=152_064, hidden_size=width, intermediate_size=inner, num_hidden_layers=28, num_attention_heads=heads,
        num_key_value_heads=4, tie_word_embeddings=False,
    )  # fmt: skip
    config.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(save_stand_in(tmp_path / "model"))
    words = [
        f"experiment=adapters_r1_{name}",
        "model_pair=local",
        "text=toy",
        "dry_run=true",
        "trainer.accelerator=cpu",
    ]
    words += [
        f"model_pair.{role}.{key}" for role in ("base", "tuned") for key in (f"path={tmp_path}/model", "dtype=bfloat16")
    ]
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(ROOT / "conf")):
        cfg = hydra.compose("train", words)
    dictionary, objective = cfg.dictionary, cfg.dictionary.objective
    assert (dictionary.latents, dictionary.sparsity.coefficient, cfg.optimizer.learning_rate) == (8192, 1e-3, 8e-4)
    assert [objective[key] for key in ("adapt", "bridge", "nmse", "cutoffs", "lowest_cutoff")] == [1, 1, 1, 1, 1]
    assert (cfg.activations.batch, cfg.optimizer.clip_norm, cfg.optimizer.learning_rate_schedule.warmup) == (
        1,
        1.0,
        0.05,
    )
    assert cfg.text.context == {"7b": 10_000, "1_5b": 4000}[name] and dictionary.decoder_bias
    study(cfg, tmp_path / "run")
    said = capsys.readouterr().out
    learned = adapter_parameters(config, 8192)
    assert learned == 28 * (8192 * (2 * width + 1) + width)
    assert re.search(rf"adapter, float32 +{4 * learned / 1e9:.2f} GB", said)
    total = float(said.split("total")[1].split("GB")[0])
    assert {"7b": 60, "1_5b": 20}[name] < total < {"7b": 80, "1_5b": 40}[name] and "hours of one cpu" in said
    assert not (tmp_path / "run").exists()


def test_an_adapter_may_begin_where_another_ended_or_be_measured_as_it_is(folders, tmp_path):
    """A published checkpoint, or a run; of another shape it is refused with the words that make it fit."""
    pair = ModelPair(*(ModelSource(str(folders[role]), dtype="float32") for role in ("base", "tuned"))).load()
    adapter = TranscoderAdapter(pair.streams("mlp_in", "all", reads=ADAPTER), latents=8, sparsity=L1(0.0))
    for one in adapter.layers:
        torch.nn.init.normal_(one.W_dec, std=0.3)
    pair.stand_beside(adapter)
    save_adapted(pair.models[ADAPTER], tmp_path / "published", pair.tokenizer_of(TUNED))
    words = [
        "dictionary=transcoder_adapter",
        "model_pair=local",
        "scale=smoke",
        "trainer=cpu",
        "evaluation=replacement",
        "budget.evaluation_tokens=400",
        *LITTLE_TEXT,
    ]
    words += [
        f"model_pair.{role}.{key}" for role in ("base", "tuned") for key in (f"path={folders[role]}", "dtype=float32")
    ]

    def made(name, *more):
        with hydra.initialize_config_dir(version_base="1.3", config_dir=str(ROOT / "conf")):
            cfg = hydra.compose("train", [*words, *more])
        study(cfg, tmp_path / name)
        return tunediff.load(str(tmp_path / name))

    start = [f"dictionary.start={tmp_path}/published", "dictionary.latents=8", "budget.tokens=0"]
    with pytest.raises(Refused, match="set dictionary.latents=8 dictionary.decoder_bias=true"):
        made("refused", *start[:1], "budget.tokens=0")
    with pytest.raises(Refused, match="name what is measured, dictionary.start="):
        made("refused", "budget.tokens=0")
    run = made("measured", *start)
    assert_equal(weights(run.dictionary), weights(adapter))
    assert (
        run.findings["replacement/kl/adapter"].value > 0
        and not (tmp_path / "measured/tables/training.parquet").exists()
    )
    again = made("again", f"dictionary.start={tmp_path}/measured", *start[1:])
    assert_equal(weights(again.dictionary), weights(adapter))
    further = made("further", *start[:2], "budget.tokens=600", "activations.held_out=0", "optimizer.learning_rate=1e-5")
    moved = (further.dictionary.layers[0].W_dec - adapter.layers[0].W_dec).abs().max()
    assert 0 < moved < 1e-2
