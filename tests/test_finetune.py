"""Fine-tunes by the commands a user types: what is made, what is refused, and the chain that follows."""

import json
import re
import signal
import subprocess
import time

import hydra
import peft
import pyarrow.parquet
import pytest
import safetensors.torch
import torch
import transformers
import yaml

import warm
from conftest import ROOT, save_stand_in
from test_study import LITTLE_TEXT, TWO_STEPS, call, findings
from tunediff.models import ModelSource
from tunediff.shapes import Refused
from tunediff.study import finetune as tuning
from tunediff.study.finetune import pair_of
from tunediff.toy import language

TINY = ["recipe.examples=96", "recipe.held_out=8", "trainer=cpu"]


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sft") / "run"
    return folder, call("finetune.py", *TINY, "logger=[csv,wandb]", f"hydra.run.dir={folder}")


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lora") / "a run"
    return folder, call("finetune.py", "recipe=lora_rank1_toy", *TINY, f"hydra.run.dir='{folder}'")


def curve(folder):
    return pyarrow.parquet.read_table(folder / "tables" / "training.parquet").to_pydict()


def test_a_full_fine_tune_leaves_a_model_its_card_its_curves_and_a_pair(full):
    folder, said = full
    assert f"pair: python train.py model_pair={folder / 'pair.yaml'}" in said
    model = transformers.AutoModelForCausalLM.from_pretrained(folder / "model")
    assert sum(p.numel() for p in model.parameters()) == 452_256
    losses = [loss for loss in curve(folder)["loss"] if loss is not None]
    assert len(losses) == 3 and losses[-1] < losses[0]
    card = (folder / "model" / "README.md").read_text()
    digest = re.search(r"`([0-9a-f]{64})`", card)
    assert digest and "3 steps of 32 sequences" in card and '"learning_rate": 0.002' in card
    assert f"| training | {losses[-1]:.4f} |" in card
    state = json.loads((folder / "state.json").read_text())
    assert state["state"] == "finished" and not (folder / "checkpoints").exists()
    assert "loss" in (folder / "csv" / "metrics.csv").read_text() and list((folder / "wandb").glob("offline-run-*"))


def test_an_adapter_is_one_that_peft_loads(adapter):
    folder, _ = adapter
    base = transformers.AutoModelForCausalLM.from_pretrained(
        ROOT / "src/tunediff/toy/weights/base", dtype=torch.float32
    )
    ids = torch.arange(5, 40)[None]
    with torch.no_grad():
        before = base(ids).logits
        loaded = peft.PeftModel.from_pretrained(base, folder / "model")
        assert not torch.allclose(loaded(ids).logits, before, atol=1e-3)
    kept = safetensors.torch.load_file(folder / "model" / "adapter_model.safetensors")
    assert len(kept) == 4 * 7 * 2 and all(".lora_A." in name or ".lora_B." in name for name in kept)  # the head is tied
    assert {p.numel() for n, p in loaded.named_parameters() if "lora_A" in n and "down_proj" in n} == {256}
    config = json.loads((folder / "model" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["use_rslora"]) == (1, 16, True)
    assert config["base_model_name_or_path"] == "pkg://tunediff.toy/weights/base"
    assert "library_name: peft" in (folder / "model" / "README.md").read_text()


def test_the_whole_chain_runs_by_commands_only(adapter, tmp_path):
    """finetune -> train -> evaluate -> compare."""
    folder, _ = adapter
    run = tmp_path / "sae"
    small = ["scale=smoke", "trainer=cpu", "evaluation=[fidelity]", "budget.evaluation_tokens=1024"]
    call(
        "train.py",
        *small,
        *LITTLE_TEXT,
        *TWO_STEPS,
        f"model_pair={folder}/pair.yaml",
        "dictionary=lora_sae",
        f"hydra.run.dir={run}",
    )
    assert "reading tuned.lora" in (run / "run.log").read_text()
    shape = safetensors.torch.load_file(run / "dictionary" / "weights.safetensors")["W_dec"].shape
    assert shape == (8 * 28, 28)
    call(
        "evaluate.py",
        f"run={run}",
        "evaluation=[geometry,lora_ablation]",
        "trainer=cpu",
        "tokens=600",
        "evaluation.lora_ablation.tasks=null",
        "evaluation.lora_ablation.by=[type]",
        "evaluation.lora_ablation.random=1",
    )
    assert any(name.startswith("lora_ablation/") for name in findings(run / "on_600_tokens"))
    assert "finished" in call("compare.py", run)


def test_a_full_fine_tune_is_a_pair_too(full, tmp_path):
    folder, _ = full
    words = [
        "scale=smoke",
        "trainer=cpu",
        "evaluation=none",
        *LITTLE_TEXT,
        *TWO_STEPS,
        f"model_pair={folder}/pair.yaml",
        f"hydra.run.dir={tmp_path}",
    ]
    assert "reading base.resid_post.3, tuned.resid_post.3" in call("train.py", *words)


def test_a_fine_tune_is_not_taken_for_a_study(full):
    folder, _ = full
    for words in (["evaluate.py", f"run={folder}", "evaluation=fidelity"], ["compare.py", folder]):
        said = call(*words, good=False)
        assert "needs a dictionary, and this study trains none" in said or f"No run under {folder}" in said


def test_the_same_line_again_finds_it_finished(full):
    folder, _ = full
    made = (folder / "model" / "model.safetensors").stat().st_mtime_ns
    assert "finished already" in call("finetune.py", *TINY, "logger=[csv,wandb]", f"hydra.run.dir={folder}")
    assert (folder / "model" / "model.safetensors").stat().st_mtime_ns == made


def test_a_fine_tune_that_was_killed_goes_on_to_the_same_bits(full, tmp_path):
    folder, _ = full
    place = tmp_path / "killed"
    words = [*TINY, "checkpoint_every=0", f"hydra.run.dir={place}"]
    process = subprocess.Popen(
        [warm.python(), "finetune.py", *words], cwd=ROOT, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    begun = time.monotonic()
    while not list(place.glob("checkpoints/step-*.json")) and time.monotonic() - begun < 120:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert json.loads((place / "state.json").read_text())["state"] == "training"
    said = call("finetune.py", *words, python=warm.COLD)
    assert "going on from step" in said
    one, other = (path / "model" / "model.safetensors" for path in (folder, place))
    assert one.read_bytes() == other.read_bytes()
    assert curve(folder) == curve(place)


def test_two_processes_make_the_model_of_one(full, tmp_path):
    """Sharded; replicated ones are in test_finetuning.py."""
    folder, _ = full
    words = [word for word in TINY if not word.startswith("trainer")]
    words += ["trainer=fsdp", "trainer.accelerator=cpu", "trainer.precision=32-true", "recipe.micro_batch=8"]
    call("finetune.py", *words, f"hydra.run.dir={tmp_path}/made")
    one, other = (
        safetensors.torch.load_file(path / "model" / "model.safetensors") for path in (folder, tmp_path / "made")
    )
    assert one.keys() == other.keys()
    assert all(torch.allclose(one[name], other[name], atol=2e-4) for name in one)
    assert curve(tmp_path / "made")["loss"][:3] == pytest.approx(curve(folder)["loss"][:3], abs=1e-3)


QWEN_32B = {
    "model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "hidden_size": 5120, "intermediate_size": 27648,
    "num_hidden_layers": 64, "num_attention_heads": 40, "num_key_value_heads": 8, "vocab_size": 152064,
    "max_position_embeddings": 32768, "tie_word_embeddings": False,
}  # fmt: skip


@pytest.fixture
def qwen_32b(tmp_path, tokenizer):
    """A folder with the configuration of Qwen2.5-32B and weights of zeros that take no disk."""
    tokenizer.save_pretrained(tmp_path / "qwen")
    (tmp_path / "qwen" / "config.json").write_text(json.dumps(QWEN_32B))
    return save_stand_in(tmp_path / "qwen")


@pytest.fixture
def records(tmp_path):
    """Twenty records in the fields of s1K."""
    rows = [row for _, row in zip(range(20), language.rows(0, "trace"), strict=False)]
    named = [
        {"question": row["prompt"], "deepseek_thinking_trajectory": row["thinking"], "deepseek_attempt": row["answer"]}
        for row in rows
    ]
    path = tmp_path / "records.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in named))
    return path


def test_a_dry_run_says_what_each_gpu_would_hold_and_refuses_what_cannot_fit(qwen_32b, records, tmp_path):
    words = [
        "recipe=lora_rank1",
        "model=local",
        f"model.path={qwen_32b}",
        "text=s1k_files",
        f"text.rows.path={records}",
    ]
    words += ["dry_run=true", f"hydra.run.dir={tmp_path}/run"]
    one = call("finetune.py", *words, "trainer=bf16", "memory_gb=140")
    eight = call("finetune.py", *words, "trainer=fsdp", "trainer.devices=8", "memory_gb=80")
    totals = [float(re.search(r"total +([\d.]+) GB", said)[1]) for said in (one, eight)]
    assert "8,388,608 parameters learn" in one and totals[0] > 65.5 > totals[1] > 65.5 / 8
    said = call("finetune.py", *words, "trainer=bf16", "memory_gb=24", good=False)
    assert f"error: It is estimated at {totals[0]:.1f} GB on each device, and a device has 24.0 GB" in said
    assert not (tmp_path / "run").exists() or not (tmp_path / "run" / "state.json").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["recipe=lora_rank1_toy", "recipe.part.modules=[w_q]"], "has no linear map w_q in its layers; there are"),
        (["recipe=lora_rank1_toy", "recipe.part.layers=[9]"], "layers [9]: the model has layers 0 to 3"),
        (["recipe.block=16"], "examples is longer than recipe.block=16"),
        (["recipe.blok=16"], "recipe.blok is not a setting here. Did you mean recipe.block?"),
        (["recipe.learning_rate=fast"], "recipe.learning_rate='fast' is not of type float"),
        (["trainer.precision=16-mixed"], "precision"),
        (["+model.adapter=pkg://tunediff.toy/weights/lora"], "set model.merged=true"),
        (
            ["recipe=lora_rank1_toy", "+model.adapter=pkg://tunediff.toy/weights/lora", "+model.merged=true"],
            "Merge it into a folder of its own",
        ),
        (["+trainer.strategy=ddp"], "trainer.strategy=ddp"),
        (["recipe.learning_rate_schedule.warmup='1000 steps'"], "longer than the run"),
        pytest.param(
            ["trainer.devices=2", "recipe.learning_rate_schedule.warmup='1000 steps'"],
            "did not end well: warmup=1000 steps is longer than the run",
            marks=pytest.mark.slow,
        ),
        (["text=s1k_files"], "text.rows.path is not set"),
    ],
)
def test_a_mistake_is_answered_before_anything_is_trained(words, message, tmp_path):
    said = call("finetune.py", *TINY, *words, f"hydra.run.dir={tmp_path}/run", good=False)
    assert message in said
    assert "Traceback" not in said or "torch/distributed/run.py" in said  # torchrun's own, about who ended
    assert not list(tmp_path.iterdir())


def test_records_without_thinking_are_refused_by_their_number(records, tmp_path):
    rows = [json.loads(line) for line in records.read_text().splitlines()]
    rows[3]["deepseek_thinking_trajectory"] = ""
    records.write_text("\n".join(map(json.dumps, rows)))
    words = [
        "text=s1k_files",
        f"text.rows.path={records}",
        "text.held_out=0.0",
        "recipe.held_out=0",
        "recipe.block=512",
    ]
    said = call("finetune.py", "trainer=cpu", *words, f"hydra.run.dir={tmp_path}/run", good=False)
    assert "error: Row 3 (counted from 0) has no thinking: its column 'deepseek_thinking_trajectory' is empty" in said


def test_how_many_were_cut_is_said(records, tmp_path):
    words = [
        "text=s1k_files",
        f"text.rows.path={records}",
        "text.held_out=0.0",
        "recipe.held_out=0",
        "recipe.block=130",
    ]
    said = call("finetune.py", "trainer=cpu", *words, "dry_run=true", f"hydra.run.dir={tmp_path}/run")
    assert re.search(r"20 examples, .* learned, \d+ cut at 130 tokens, of which \d+ lose their whole answer", said), (
        said
    )


def test_a_fine_tune_of_merged_weights_is_not_given_the_adapter_again(adapter, tmp_path):
    source = ModelSource(
        "pkg://tunediff.toy/weights/base", dtype="float32", adapter=str(adapter[0] / "model"), merged=True
    )
    pair = yaml.safe_load(pair_of(source, tmp_path, adapter=False))
    assert pair["base"]["adapter"] == str(adapter[0] / "model") and pair["base"]["merged"]
    assert pair["tuned"] == {
        "_target_": "tunediff.models.ModelSource", "path": str(tmp_path), "revision": None, "dtype": "float32"
    }  # fmt: skip


class Sound:
    """A logger that keeps how it ended, and can be told to fail there."""

    ends: list[str] = []
    fails = False

    def log_hyperparams(self, params):
        pass

    def log_metrics(self, metrics, step):
        pass

    def finalize(self, status):
        self.ends.append(status)
        if self.fails:
            raise OSError("no network")


def test_a_logger_hears_of_a_failure_and_one_that_fails_costs_itself_alone(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(Sound, "ends", [])
    words = [*TINY, "trust=[test_finetune]", "+logger={sound:{_target_:test_finetune.Sound}}"]
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(ROOT / "conf")):
        bad = hydra.compose("finetune", [*words, "recipe.learning_rate=1e30"])
        good = hydra.compose("finetune", [*words, "recipe.examples=32"])
    with pytest.raises(Refused, match="not finite|loss is"):
        tuning.finetune(bad, tmp_path / "bad")
    assert Sound.ends == ["failed"]
    monkeypatch.setattr(Sound, "fails", True)
    tuning.finetune(good, tmp_path / "good")
    assert Sound.ends == ["failed", "success"] and "Sound has no end of this run: no network" in caplog.text
    assert json.loads((tmp_path / "good" / "state.json").read_text())["state"] == "finished"


def test_the_pair_names_whole_places_and_ids(full, adapter):
    whole, low_rank = (yaml.safe_load((folder / "pair.yaml").read_text()) for folder, _ in (full, adapter))
    assert whole["tuned"]["path"] == str(full[0] / "model") and "adapter" not in whole["tuned"]
    assert low_rank["tuned"]["path"] == low_rank["base"]["path"] == "pkg://tunediff.toy/weights/base"
    assert low_rank["tuned"]["adapter"] == str(adapter[0] / "model")
