"""Fine-tuning: the loss, what learns, and that neither packing, cutting, processes nor a kill change what is learned."""

import json
import math
import os
import signal
import socket
import subprocess
import weakref

import lightning
import peft
import pytest
import safetensors.torch
import torch
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from transformers import Gemma2Config, Gemma2ForCausalLM, Qwen2Config, Qwen2ForCausalLM

import warm
from conftest import ROOT
from tunediff.directions import Direction, RandomDirection
from tunediff.models import ModelSource, head_of
from tunediff.objectives import Imitation
from tunediff.objectives.imitation import MATRICES
from tunediff.schedules import WarmupCosine
from tunediff.shapes import Refused
from tunediff.text import Batches, Example, Text, examples, packed
from tunediff.text.examples import IGNORED, collated
from tunediff.toy import language
from tunediff.training import (
    Added,
    AllWeights,
    Checkpoints,
    FineTuning,
    GradientAlong,
    Lora,
    Pulse,
    Replicas,
    Shards,
    TokenProgress,
    UnderEdit,
    latest_checkpoint,
    load_checkpoint,
    process_environment,
)
from tunediff.training.memory import memory

WORDS = 40


def room_for(rows, vocabulary=WORDS):
    """The setting logits_mb in which a loss takes so many rows at a time."""
    return rows * 4 * vocabulary * MATRICES / 1e6


def model_of(seed=0, *, layers=2, tied=True, kind=Qwen2Config):
    torch.manual_seed(seed)
    config = kind(
        vocab_size=WORDS, hidden_size=16, intermediate_size=24, num_hidden_layers=layers, num_attention_heads=4,
        num_key_value_heads=2, head_dim=4, max_position_embeddings=64, tie_word_embeddings=tied,
    )  # fmt: skip
    return (Gemma2ForCausalLM if kind is Gemma2Config else Qwen2ForCausalLM)(config)


def sequences(count, seed=0):
    """Examples of 4 to 12 tokens whose first three are a prompt; each token follows from the one before."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for length in torch.randint(4, 13, (count,), generator=generator).tolist():
        first = int(torch.randint(0, WORDS, (), generator=generator))
        ids = [(first + 7 * n) % WORDS for n in range(length)]
        made.append(Example(ids, [n > 2 for n in range(length)]))
    return made


def batches_of(count=22, **settings):
    return Batches(sequences(count), **{"batch": 4, "micro_batch": 2, "epochs": 2, "seed": 3, **settings})


def trainer_of(**settings):
    return lightning.Trainer(**{
        "accelerator": "cpu", "devices": 1, "max_epochs": 1, "logger": False, "enable_checkpointing": False,
        "enable_progress_bar": False, "enable_model_summary": False, **settings,
    })  # fmt: skip


def tuned(part=None, batches=None, *, model=None, callbacks=(), trainer=None, **settings):
    """A finished fine-tune of the small model."""
    model = (part or AllWeights()).prepare(model or model_of(), seed=5)
    settings = {"learning_rate": 1e-2, "learning_rate_schedule": WarmupCosine(0.1), "seed": 7, **settings}
    module = FineTuning(model, Imitation(room_for(5)), batches or batches_of(), **settings)
    trainer_of(callbacks=list(callbacks), **(trainer or {})).fit(module)
    return module


def learned_weights(module):
    return {name: p.detach().clone() for name, p in module.model.named_parameters() if p.requires_grad}


def assert_equal(one, other, **tolerance):
    assert one.keys() == other.keys()
    for name, value in one.items():
        if tolerance:
            assert torch.allclose(value, other[name], **tolerance), name
        else:
            assert torch.equal(value, other[name]), name


def losses(module):
    return [record["loss"] for record in module.history if record["loss"] is not None]


# -- the loss --------------------------------------------------------------------------------------------------------


def gradients(model, micro_batches, *, rows):
    model.zero_grad()
    sums = [Imitation(room_for(rows)).loss_sum(model, one) for one in micro_batches]
    total = sum(total for total, _ in sums)
    total.backward()
    return total.item(), sum(int(n) for _, n in sums), grads(model)


def grads(model):
    return {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("kind", [Qwen2Config, Gemma2Config])
def test_the_loss_is_the_cross_entropy_of_the_models_own_logits(kind):
    """Also where the logits are capped."""
    model = model_of(kind=kind)
    batch = collated(sequences(6))
    mask = torch.stack([torch.arange(batch.ids.shape[1]) < len(s.ids) for s in sequences(6)]).long()
    for rows in (1, 7, 4096):
        total, count, found = gradients(model, [batch], rows=rows)
        model.zero_grad()
        logits = model(batch.ids, attention_mask=mask).logits
        plain = cross_entropy(logits.flatten(0, 1), batch.labels.flatten(), ignore_index=IGNORED, reduction="sum")
        plain.backward()
        assert total == pytest.approx(plain.item(), rel=1e-5) and count == int((batch.labels != IGNORED).sum())
        assert_equal(found, grads(model), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packed_examples_teach_what_each_teaches_alone(attention):
    model, given = model_of(), sequences(9)
    model.set_attn_implementation(attention)
    alone = gradients(model, [collated([one]) for one in given], rows=5)
    blocks = packed(given, 24)
    assert len(blocks) < 5
    for together in ([collated(blocks)], [collated([block]) for block in blocks], [collated(given)]):
        total, count, found = gradients(model, together, rows=5)
        assert total == pytest.approx(alone[0], rel=1e-5) and count == alone[1]
        assert_equal(found, alone[2], atol=1e-4, rtol=1e-4)


def test_a_micro_batch_without_learned_tokens_moves_nothing_but_reaches_every_weight():
    model = model_of()
    total, count, found = gradients(model, [collated([])], rows=5)
    assert total == 0.0 and count == 0 and all(not value.any() for value in found.values())


def test_no_more_than_a_block_of_logits_is_held():
    seen = []
    model = model_of()
    head_of(model)
    model.lm_head.register_forward_hook(lambda _, __, out: seen.append(len(out)))
    total, count = Imitation(room_for(8)).loss_sum(model, collated(sequences(9)))
    forward = list(seen)
    total.backward()
    assert count > 24 and sum(forward) == count and max(seen) == 8 and len(seen) == 2 * len(forward)


def test_a_model_that_makes_its_logits_in_a_way_of_its_own_is_refused():
    model = model_of()
    model.register_forward_hook(lambda _, __, out: setattr(out, "logits", out.logits.sin()))
    with pytest.raises(Refused, match="Qwen2ForCausalLM computes its logits otherwise"):
        FineTuning(model, Imitation(), batches_of(), learning_rate=1e-3, learning_rate_schedule=WarmupCosine())


# -- what learns -----------------------------------------------------------------------------------------------------


def test_a_rank_one_adapter_of_qwen_32b_has_8_million_parameters():
    config = Qwen2Config(
        hidden_size=5120, intermediate_size=27648, num_hidden_layers=64, num_attention_heads=40, num_key_value_heads=8,
        vocab_size=152064, tie_word_embeddings=False,
    )  # fmt: skip
    assert Lora().parameters(config) == 8_388_608 and AllWeights().parameters(config) == 32_763_876_352
    share = Lora().parameters(config) / AllWeights().parameters(config)
    assert round(100 * share, 4) == 0.0256  # per cent
    settings = {"block": 20_000, "micro_batch": 1, "precision": "bf16-mixed", "logits_mb": 2500}
    settings["gradient_checkpointing"] = True
    one = memory(Lora(), config, "bfloat16", **settings)
    assert one.items["frozen weights"] == pytest.approx(65.5e9, rel=1e-3) and 75e9 < one.total < 100e9
    eight = memory(Lora(), config, "bfloat16", **settings, processes=8, sharded=True)
    assert eight.items["frozen weights"] == one.items["frozen weights"] / 8
    assert eight.items["gathered: two layers, embeddings and head"] == pytest.approx(5.06e9, rel=1e-2)
    assert 30e9 < eight.total < 60e9 and f"{eight.total / 1e9:.2f} GB" in eight.table().splitlines()[-1]
    whole = memory(AllWeights(), config, "bfloat16", **settings, processes=16, sharded=True)
    states = sum(size for name, size in whole.items.items() if "weights" in name or "grad" in name or "Adam" in name)
    assert states == pytest.approx(16 * 32.76e9 / 16, rel=1e-3)


class Held(TorchDispatchMode):
    """Bytes of all tensors that live, now and at most."""

    def __init__(self):
        super().__init__()
        self.sizes, self.now, self.most = {}, 0, 0

    def see(self, tensor):
        storage = tensor.untyped_storage()
        place = storage.data_ptr()
        if place and place not in self.sizes:
            self.sizes[place] = storage.nbytes()
            self.now += storage.nbytes()
            self.most = max(self.most, self.now)
            weakref.finalize(storage, self.forget, place)

    def forget(self, place):
        self.now -= self.sizes.pop(place)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        given = function(*args, **(kwargs or {}))
        for tensor in tree_iter(given):
            if isinstance(tensor, torch.Tensor):
                self.see(tensor)
        return given


@pytest.mark.parametrize("checkpointing", [True, False])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize(("part", "dtype"), [(AllWeights(), "float32"), (Lora(), "bfloat16"), (Lora(), "float32")])
def test_the_estimate_is_what_two_steps_hold_at_most(part, dtype, precision, checkpointing):
    config = Qwen2Config(
        hidden_size=64, intermediate_size=256, num_hidden_layers=6, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=500, tie_word_embeddings=False,
    )  # fmt: skip
    model = part.prepare(Qwen2ForCausalLM(config).to(getattr(torch, dtype)), seed=0)
    batches = Batches([Example([1] * 256, [False] + [True] * 255)] * 4, batch=2, micro_batch=2)
    settings = {"learning_rate": 1e-3, "learning_rate_schedule": WarmupCosine()}
    module = FineTuning(model, Imitation(room_for(64, 500)), batches, gradient_checkpointing=checkpointing, **settings)
    held = Held()
    for parameter in model.parameters():
        held.see(parameter)
    with held:
        trainer_of(precision=precision).fit(module)
    settings = {"block": 256, "micro_batch": 2, "precision": precision, "logits_mb": room_for(64, 500)}
    found = memory(part, config, dtype, **settings, gradient_checkpointing=checkpointing)
    assert 0.95 < found.total / held.most < 1.6, found.table()


@pytest.mark.parametrize("part", [AllWeights(), Lora(rank=2), Lora(modules=("q_proj", "down_proj"), layers=(1,))])
def test_parameters_are_counted_as_they_will_learn(part):
    model = part.prepare(model_of(), seed=0)
    learning = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert sum(p.numel() for p in learning.values()) == part.parameters(model_of().config)
    assert {p.dtype for p in learning.values()} == {torch.float32}
    if part == Lora(modules=("q_proj", "down_proj"), layers=(1,)):
        places = {name.partition(".lora_")[0] for name in learning}
        assert places == {"model.layers.1.self_attn.q_proj", "model.layers.1.mlp.down_proj"}


def test_targets_that_do_not_exist_are_refused_with_those_that_do():
    with pytest.raises(Refused, match="no linear map c_attn in its layers; there are down_proj, gate_proj, k_proj"):
        Lora(modules=("q_proj", "c_attn")).prepare(model_of(), seed=0)
    with pytest.raises(Refused, match=r"layers \[2\]: the model has layers 0 to 1"):
        Lora(layers=(0, 2)).prepare(model_of(), seed=0)
    with pytest.raises(Refused, match="rank=0"):
        Lora(rank=0).parameters(model_of().config)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")  # PEFT 0.21 with transformers 5.23
def test_an_adapter_is_written_as_peft_reads_it(tmp_path):
    """Rank-stabilised: alpha / sqrt(rank)."""
    folder = tmp_path / "base"
    model_of().save_pretrained(folder)
    source = ModelSource(str(folder), dtype="bfloat16")
    part = Lora(rank=4, alpha=8.0, layers=(1,))
    module = tuned(part, model=source.weights().train(), gradient_checkpointing=False)
    part.save(module.model, tmp_path / "adapter", str(folder))
    settings = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == str(folder) and settings["r"] == 4 and settings["use_rslora"]
    read = peft.PeftModel.from_pretrained(source.weights(), tmp_path / "adapter")
    ids = torch.arange(12)[None]
    model = module.model.eval()
    assert torch.equal(read(ids).logits, model(ids).logits)
    assert not torch.allclose(model(ids).logits, source.weights()(ids).logits, atol=1e-2)
    adapted = read.base_model.model.model.layers[1].mlp.up_proj
    assert adapted.scaling["default"] == 8.0 / math.sqrt(4)
    frozen = {name: p for name, p in model.named_parameters() if "lora_" not in name}
    assert {p.dtype for p in frozen.values()} == {torch.bfloat16}
    for name, value in source.weights().named_parameters():
        kept = frozen.get(name, frozen.get(name.replace("proj.", "proj.base_layer.")))
        assert torch.equal(kept, value), name


@pytest.mark.parametrize("tied", [True, False])
def test_a_whole_model_is_written_in_its_dtype_and_read_back(tmp_path, tied):
    module = tuned(AllWeights(dtype="bfloat16"), model=model_of(tied=tied))
    AllWeights(dtype="bfloat16").save(module.model, tmp_path / "tuned")
    AllWeights(dtype="bfloat16").save(module.model, tmp_path / "tuned")  # in place of the one before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tuned"]
    assert json.loads((tmp_path / "tuned" / "config.json").read_text())["dtype"] == "bfloat16"
    read = ModelSource(str(tmp_path / "tuned"), dtype="bfloat16").weights()
    stored = safetensors.torch.load_file(tmp_path / "tuned" / "model.safetensors")
    assert ("lm_head.weight" in stored) != tied
    for name, value in read.state_dict().items():
        assert torch.equal(value, module.model.state_dict()[name].bfloat16()), name


# -- a step ----------------------------------------------------------------------------------------------------------


def test_how_a_step_is_cut_and_checkpointed_changes_nothing():
    whole = tuned(AllWeights(), batches_of(micro_batch=4), gradient_checkpointing=False)
    assert len(losses(whole)) == 12 and losses(whole)[-1] < 0.85 * losses(whole)[0]
    for micro_batch, checkpointing in ((1, True), (3, False)):
        other = tuned(AllWeights(), batches_of(micro_batch=micro_batch), gradient_checkpointing=checkpointing)
        assert losses(other) == pytest.approx(losses(whole), rel=1e-4)
        assert_equal(learned_weights(other), learned_weights(whole), atol=1e-4)


def test_a_step_is_adamw_on_the_mean_over_its_learned_tokens():
    """Decay of matrices alone, clipping by the whole norm, learning rate by the schedule."""
    settings = {"weight_decay": 0.3, "clip_norm": 0.5, "betas": (0.8, 0.9)}
    batches = batches_of(8, epochs=1)
    module = tuned(AllWeights(), batches, **settings)
    model, schedule = model_of(), WarmupCosine(0.1)
    groups = [
        {"params": [p for p in model.parameters() if (p.ndim > 1) == big], "weight_decay": 0.3 * big} for big in (1, 0)
    ]
    optimizer = torch.optim.AdamW(groups, betas=(0.8, 0.9))
    for step in range(len(batches)):
        batch = collated([batches.sequences[n] for n in batches.numbers(step)])
        loss = cross_entropy(model(batch.ids).logits.flatten(0, 1), batch.labels.flatten(), ignore_index=IGNORED)
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * schedule(step, module.length)
        optimizer.step()
        record = module.history[step]
        assert record["loss"] == pytest.approx(loss.item(), rel=1e-4) and record["step"] == step
        assert record["grad_norm"] == pytest.approx(norm.item(), rel=1e-3) and norm > 0.5
        assert record["learning_rate"] == group["lr"]
    assert record["tokens"] == batches.tokens
    assert_equal(learned_weights(module), dict(model.named_parameters()), atol=1e-4)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_the_held_out_loss_is_taken_before_an_update_and_after_the_last(precision):
    held_out = Batches(sequences(10, seed=9), batch=4, micro_batch=4)
    logged = []

    class Logger:
        def log_metrics(self, metrics, step):
            logged.append((step, metrics))

    module = tuned(evaluate=held_out, evaluate_every=5, loggers=[Logger()], trainer={"precision": precision})
    taken = {record["step"]: record["held_out_loss"] for record in module.history}
    assert [step for step, loss in taken.items() if loss is not None] == [0, 5, 10, 12]
    assert list(taken) == list(range(13)) and module.history[-1]["loss"] is None
    assert [step for step, _ in logged] == list(taken)
    assert logged[1][1].keys() == {"tokens", "loss", "learning_rate", "grad_norm"}

    def loss_of(model):
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed"):
            sums = [Imitation().loss_sum(model.eval(), m) for step in held_out for m in step.micro_batches]
        return float(sum(nats for nats, _ in sums) / sum(count for _, count in sums))

    assert taken[0] == pytest.approx(loss_of(model_of()), rel=1e-6)
    assert taken[12] == pytest.approx(loss_of(module.model), rel=1e-6) and taken[12] < 0.9 * taken[0]


def test_mixed_precision_keeps_what_learns_in_float32_and_learns_the_same():
    full, mixed = tuned(), tuned(trainer={"precision": "bf16-mixed"})
    assert {p.dtype for p in mixed.model.parameters()} == {torch.float32}
    assert losses(mixed) == pytest.approx(losses(full), rel=0.02) and losses(mixed) != losses(full)
    with pytest.raises(Refused, match="precision=bf16-true: fine-tuning knows 32-true, bf16-mixed"):
        tuned(trainer={"precision": "bf16-true"})


def test_batches_of_another_number_of_processes_are_refused():
    with pytest.raises(Refused, match="those of process 1 of 2, and this is process 0 of 1"):
        tuned(batches=batches_of(rank=1, world=2))


def test_a_loss_that_is_not_finite_stops_with_the_weights_before_it():
    model = model_of()
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[0, 0] = torch.inf
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    with pytest.raises(
        Refused, match="The loss is nan and its gradient's norm nan at step 0 of 12. Lower learning_rate"
    ):
        tuned(model=model)
    assert_equal(dict(model.named_parameters()), before)


# -- resuming --------------------------------------------------------------------------------------------------------


class Killed(lightning.Callback):
    def __init__(self, step, how):
        self.step, self.how = step, how

    def on_train_batch_start(self, trainer, module, batch, index):
        if module.step == self.step:
            self.how()


def out_of_power():
    raise ArithmeticError("out of power")


@pytest.mark.parametrize("part", [AllWeights(), Lora(rank=2, dropout=0.3)])
@pytest.mark.parametrize("step", [1, 6, 11])
def test_killed_at_any_step_it_becomes_what_it_would_have_become(tmp_path, part, step):
    held_out = Batches(sequences(6, seed=9), batch=4, micro_batch=4)
    whole = tuned(part, evaluate=held_out, evaluate_every=4)
    saving = Checkpoints(tmp_path, seconds=0.0, digest="d")
    with pytest.raises(ArithmeticError):
        tuned(part, evaluate=held_out, evaluate_every=4, callbacks=[saving, Killed(step, out_of_power)])
    last = [f"step-{n:07d}.{end}" for n in (step - 1, step) if n > 0 for end in ("ckpt", "json")]
    assert sorted(path.name for path in tmp_path.iterdir()) == last
    with pytest.raises(Refused, match="on other examples or with other settings"):
        load_checkpoint(latest_checkpoint(tmp_path), digest="e")
    state = load_checkpoint(latest_checkpoint(tmp_path), digest="d")
    again = tuned(part, evaluate=held_out, evaluate_every=4, state=state)
    assert_equal(learned_weights(again), learned_weights(whole))
    assert again.history == whole.history


def test_a_signal_saves_at_the_end_of_the_step(tmp_path):
    saving = Checkpoints(tmp_path, seconds=1e9, digest="d")
    with pytest.raises(SystemExit):
        tuned(callbacks=[saving, Killed(5, lambda: os.kill(os.getpid(), signal.SIGTERM))])
    assert latest_checkpoint(tmp_path).stem == "step-0000006"
    saving = Checkpoints(tmp_path, seconds=1e9, digest="d")
    again = tuned(callbacks=[saving], state=load_checkpoint(latest_checkpoint(tmp_path), digest="d"))
    assert again.history == tuned().history
    state = load_checkpoint(latest_checkpoint(tmp_path), digest="d")  # of the end: nothing is left to fit
    settings = {"learning_rate": 1e-2, "learning_rate_schedule": WarmupCosine(0.1)}
    module = FineTuning(AllWeights().prepare(model_of(), 0), Imitation(), batches_of(), **settings, state=state)
    assert module.step == module.steps and module.history == again.history
    assert_equal(learned_weights(module), learned_weights(again))


# -- two processes ---------------------------------------------------------------------------------------------------

SHARED = {  # part, model, precision
    "whole": lambda: (AllWeights(), model_of(), "32-true"),
    "adapter": lambda: (Lora(rank=2), model_of(tied=False).bfloat16(), "bf16-mixed"),
    "steered": lambda: (Lora(rank=2), model_of(), "32-true"),
    "amplified": lambda: (AllWeights(), model_of(), "32-true"),
}
VECTOR = Direction({0: torch.linspace(-1.0, 1.0, 16)}, "resid_post", {})
UNDER = {  # edits of some of them
    "steered": lambda: UnderEdit(
        Added(direction=RandomDirection(), layer=0, strength=2.0, positions="response"), VECTOR
    ),
    "amplified": lambda: UnderEdit(GradientAlong(direction=RandomDirection(), layer=0, operation="amplify"), VECTOR),
}
STRATEGIES = {"replicas": Replicas, "shards": Shards}


def shared(name, folder, *, strategy=None, world=1, rank=0, callbacks=(), **settings):
    """A fine-tune with 5 sequences a step, cut into ones: two processes get unequal parts. It is saved under `folder`."""
    part, model, precision = SHARED[name]()
    trainer = {"precision": precision, "devices": world}
    if world > 1:
        trainer |= {"strategy": STRATEGIES[strategy](), "plugins": [process_environment(expected=world)]}
    held_out = Batches(sequences(3, seed=9), batch=3, micro_batch=1, rank=rank, world=world)
    batches = batches_of(10, batch=5, micro_batch=1, rank=rank, world=world)
    callbacks = [Checkpoints(folder, seconds=1e9, digest="d"), *callbacks]
    module = tuned(
        part,
        batches,
        model=model,
        trainer=trainer,
        callbacks=callbacks,
        evaluate=held_out,
        evaluate_every=2,
        edits=UNDER.get(name, UnderEdit)(),
        **settings,
    )
    part.save(module.model, folder / "saved", "base")
    return module


def stand_in(rank, port):
    """As torchrun would have started this process, one of two."""
    os.environ |= {
        "TORCHELASTIC_RUN_ID": "test", "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    torch.set_num_threads(1)


def in_two_processes(target, folder):
    """target(rank, port, folder) in each, until both have ended well."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    code = f"from {target.__module__} import {target.__name__} as run; from pathlib import Path; "
    calls = [code + f"run({rank}, {port}, Path({str(folder)!r}))" for rank in (0, 1)]
    started = [subprocess.Popen([warm.python(), "-c", call], cwd=ROOT / "tests") for call in calls]
    assert [process.wait(120) for process in started] == [0, 0]


def share(rank, port, folder):
    """One of two processes; the first keeps what came out. One fine-tune goes on from what a single process left."""
    stand_in(rank, port)
    settings = {"world": 2, "rank": rank}
    found = {
        f"{strategy}-{name}": shared(name, folder / f"{strategy}-{name}", strategy=strategy, **settings).history
        for strategy in STRATEGIES
        for name in SHARED
    }
    state = load_checkpoint(latest_checkpoint(folder / "left"), digest="d")
    left = shared("whole", folder / "shards-left", strategy="shards", state=state, **settings)
    if rank == 0:
        torch.save({**found, "shards-left": left.history}, folder / "found.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def test_two_processes_learn_what_one_learns_replicated_and_sharded(tmp_path):
    left = Killed(1, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(SystemExit):
        shared("whole", tmp_path / "left", callbacks=[left])
    in_two_processes(share, tmp_path)
    found = torch.load(tmp_path / "found.pt")
    alone = {name: shared(name, tmp_path / name) for name in SHARED}
    assert len(found) == 9
    for run, history in found.items():
        name = run.partition("-")[2].replace("left", "whole")
        noise = 1e-2 if name == "adapter" else 1e-3  # bfloat16 has 8 bits
        same_curves(history, alone[name].history, rel=noise)
        state, mine = load_checkpoint(latest_checkpoint(tmp_path / run), digest="d"), learned_weights(alone[name])
        assert_equal({key: state["members"]["model"]["weights"][key] for key in mine}, mine, atol=noise / 10)
        (file,) = (tmp_path / name / "saved").glob("*.safetensors")
        written = safetensors.torch.load_file(tmp_path / run / "saved" / file.name)
        assert_equal(written, safetensors.torch.load_file(file), atol=noise / 10, rtol=1e-2)


def same_curves(one, other, *, rel):
    for a, b in zip(one, other, strict=True):
        assert [name for name in a if a[name] is None] == [name for name in b if b[name] is None]
        numbers = {name: value for name, value in b.items() if value is not None}
        assert {name: a[name] for name in numbers} == pytest.approx(numbers, rel=rel)


# -- the embedded pair -----------------------------------------------------------------------------------------------


def test_the_embedded_base_learns_to_think_from_traces(capfd):
    source = ModelSource("pkg://tunediff/toy/weights/base", dtype="float32")
    text = Text(lambda: language.mixture(1, {"trace": 1.0}), held_out=language.is_held_out)
    found = examples(text, source.tokenizer(), block=256, limit=48)
    held_out = examples(text, source.tokenizer(), block=256, limit=8, held_out=True)
    batches, beats = Batches(packed(found, 256), batch=4, micro_batch=2, epochs=2), []
    module = tuned(
        Lora(rank=1),
        batches,
        callbacks=[TokenProgress(batches.tokens), Pulse(beats.append, seconds=0.0)],
        model=source.weights(),
        evaluate=Batches(held_out, batch=8, micro_batch=8),
        evaluate_every=1000,
        learning_rate=1e-2,
    )
    before, after = (r["held_out_loss"] for r in (module.history[0], module.history[-1]))
    assert found.whole == 48 and after < 0.8 * before
    assert beats == list(range(len(batches) + 1))
    said = capfd.readouterr().err
    assert f"{batches.tokens / 1000:.1f}k/{batches.tokens / 1000:.1f}k" in said and "loss" in said
