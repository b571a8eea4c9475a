"""A dry run is the run without its work: it writes nothing, refuses what the run would end on, and gives the time of a device
that is named."""

import re
import subprocess
import sys
import types
from dataclasses import dataclass

import pytest
import torch
from omegaconf import OmegaConf

import warm
from conftest import ROOT
from test_settings import composed
from tunediff.dictionary import Sparsity
from tunediff.schedules import Schedule
from tunediff.settings import build, named, nothing_written
from tunediff.shapes import Refused
from tunediff.study.devices import ASSUMED, GPUS, device_named, memory_of
from tunediff.study.estimate import cost_of, times
from tunediff.study.finetune import finetune
from tunediff.study.passes import evaluation_cost, of_model, precision_on
from tunediff.study.run import Run
from tunediff.study.train import study

SMOKE = ("scale=smoke", "trainer=cpu", "evaluation=none", "dry_run=true")


# -- nothing is written ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("train.py scale=smoke dry_run=true", "hours of one"),
        ("train.py scale=smoke activations=stored logger=csv dry_run=True hydra.run.dir=there", "hours of one"),
        ("train.py -m scale=smoke layer=1,2 seed=0,1 dry_run=true", "4 members, 4 to run in 1 processes"),
        ("train.py scale=smoke layer=9 dry_run=true", "error: layer=9 is out of range"),
        ("train.py -m scale=smoke layer=1,9 dry_run=true", "error: layer=9: layer=9 is out of range"),
        ("finetune.py recipe=sft_toy recipe.examples=20 recipe.held_out=5 dry_run=true", "parameters learn"),
        (
            "finetune.py -m recipe.examples=20 recipe.held_out=5 recipe.learning_rate=1e-5,2e-5 dry_run=true",
            "parameters learn",
        ),
    ],
)
def test_a_dry_run_leaves_an_empty_folder_empty(command, says, tmp_path):
    verb, *words = command.split()
    here = tmp_path / "here"
    here.mkdir()
    said = subprocess.run([warm.python(), ROOT / verb, *words], cwd=here, capture_output=True, text=True)
    assert says in said.stdout + said.stderr and not list(here.iterdir())


def test_a_folder_in_which_a_dry_run_is_refused_is_not_taken_for_a_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.log").write_text("mine")
    for story, cfg in (
        (study, composed(*SMOKE, "layer=9")),
        (finetune, composed("recipe=sft_toy", "text.rows.kind=nothing", "dry_run=true", name="finetune")),
    ):
        with pytest.raises((Refused, KeyError)):
            story(cfg, tmp_path)
    assert (tmp_path / "run.log").read_text() == "mine"


def test_a_sweeper_that_chooses_by_what_ended_is_refused_in_a_dry_run_and_others_keep_their_folder():
    assert nothing_written(["layer=1"], "train") == nothing_written(["-m", "layer=1,2", "dry_run=false"], "train") == []
    assert "hydra.run.dir=." in nothing_written(["dry_run=true"], "train")
    with pytest.raises(Refused, match="dry_run=true with hydra/sweeper=optuna: which members it has"):
        nothing_written(["-m", "hydra/sweeper=optuna", "dry_run=true"], "train")


# -- what the first step would end on ----------------------------------------------------------------------------------


class NoForward(Sparsity):
    """A sparsity that says nothing of which latents are active."""

    def __init__(self):
        super().__init__()


@dataclass(frozen=True)
class NoCall(Schedule):
    """A schedule without a value."""


@pytest.fixture(scope="module", autouse=True)
def mine():
    sys.modules["mine_in_a_dry_run"] = types.ModuleType("mine_in_a_dry_run")
    NoForward.__module__ = NoCall.__module__ = "mine_in_a_dry_run"  # written there, as far as a config can see
    vars(sys.modules["mine_in_a_dry_run"]).update(NoForward=NoForward, NoCall=NoCall)
    yield
    del sys.modules["mine_in_a_dry_run"]


def point(name, *settings):
    return [f"dictionary.hookpoint.name={name}", *(f"+dictionary.hookpoint.{one}" for one in settings)]


NO_CALL = "{_target_: mine_in_a_dry_run.NoCall}"


def test_the_members_of_a_sweep_of_fine_tunes_lie_in_the_folder_of_its_line():
    """Hydra composes each anew, from words of its own."""
    (word,) = named(["-m", "seed=1,2", "recipe.epochs=2"], "finetune")
    assert word.startswith("sweep=") and [word] == named(["--multirun", "recipe.epochs=2", "seed=1,2"], "finetune")
    assert (
        named(["-m", "seed=1,3", "recipe.epochs=2"], "finetune")
        != [word]
        == named(["-m", "seed=1,2", "recipe.epochs=2", "trainer=cpu"], "finetune")
    )
    for words, verb in (
        (["-m", "seed=1,2", "sweep=mine"], "finetune"),
        (["seed=1"], "finetune"),
        (["-m", "seed=1,2"], "train"),
    ):
        assert named(words, verb) == []


def test_what_is_to_run_elsewhere_is_not_judged_by_the_devices_that_are_here(tmp_path, capsys):
    half = ["trainer.precision=16-mixed", "launcher.device=a100"]
    study(composed(*SMOKE, *half), tmp_path / "run")
    study(composed(*SMOKE, "trainer.accelerator=gpu", "trainer.devices=8"), tmp_path / "run")
    said = capsys.readouterr().out
    assert "hours of one a100" in said and ("so that the run starts on another" in said) is (
        torch.cuda.device_count() < 8
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (point("wide", "module=self_attn.o_proj", "width=7"), "vectors of width 96, and the hookpoint says 7"),
        (point("listed", "module=[a,b]"), r"hookpoint.module=\['a', 'b'\]: give a word"),
        (
            point("worded", "module=mlp", "width=rope_parameters"),
            "width=rope_parameters: the configuration of the model",
        ),
        (point("less", "module=mlp", "width=-3"), "width=-3: the configuration of the model"),
        (point("follows", "module=mlp", "before=3"), "hookpoint.before=3: give a word"),
        (point("unread", "module=input_layernorm|gone", "read=input", "width=95"), "vectors of width 96"),
        (["trainer.accelerator=tpu"], "trainer: Lightning cannot be set up as asked"),
        (["+trainer.strategy=nonsense"], "invalid strategy name"),
        (["trainer.precision=16-mixed"], "16-mixed needs a GPU, and this is the cpu"),
        (["trainer=fsdp"], "trainer=fsdp shares out the layers of models that a dictionary stands in"),
        (["text.rows.shares={trace: -1}"], "text.rows.shares=.*'trace': -1.*: give a number from 0"),
        (["text.rows.shares={trace: 0, steps: 0, fact: 0}"], "and one above 0"),
        (["text.rows.shares={trace: inf}"], "give a number from 0 for each of trace, direct"),
        (["+text.rows.shares.tale=1"], "give a number from 0 for each of trace, direct"),
        (
            ["~dictionary.sparsity", "+dictionary.sparsity={_target_: mine_in_a_dry_run.NoForward}"],
            "cannot take a first step: NotImplementedError",
        ),
        (["dictionary=l1_crosscoder", "~l1_schedule", f"+l1_schedule={NO_CALL}"], "cannot take a first step: NotImpl"),
        (
            ["~optimizer.learning_rate_schedule", f"+optimizer.learning_rate_schedule={NO_CALL}"],
            "cannot take a first step: NotImplementedError",
        ),
        (
            ["dictionary=transcoder_adapter", "~l1_schedule", f"+l1_schedule={NO_CALL}"],
            "TranscoderAdapter cannot take a first step: NotImplementedError",
        ),
        (["launcher.device=tpu"], "launcher.device=tpu: input should be 'h200', 'h100', 'a100' or 'cpu'"),
    ],
)
def test_what_a_first_step_would_end_on_is_refused(words, said, tmp_path):
    words = [word for word in words if word.startswith("trainer=")] or ["trainer=cpu", *words]
    smoke = [word for word in SMOKE if not word.startswith("trainer=")]
    with pytest.raises(Refused, match=said):
        study(composed(*smoke, "trust=[mine_in_a_dry_run]", *words), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_setting_that_was_taken_out_is_refused_by_its_name(tmp_path):
    """As by ~optimizer.batch, or by an option that has none: what reads it may stand anywhere."""
    whole = composed(*SMOKE)
    gone = "optimizer.batch optimizer.learning_rate optimizer.learning_rate_schedule._target_ budget.tokens dictionary._target_"
    gone += (
        " dictionary.sparsity dictionary.hookpoint.name dictionary.objective._target_ text text._target_ text.rows.seed"
    )
    gone += " model_pair.base._target_ trainer trainer._target_ activations._target_ launcher.device evaluation layer"
    for key in gone.split():
        cfg, (parent, _, last) = whole.copy(), key.rpartition(".")
        OmegaConf.set_struct(cfg, False)
        del (OmegaConf.select(cfg, parent) if parent else cfg)[last]
        OmegaConf.set_struct(cfg, True)
        with pytest.raises(Refused) as refused:
            study(cfg, tmp_path / "run")
        assert {last, "class"} & {*re.findall(r"\w+", str(refused.value))}, (key, refused.value)
    assert not (tmp_path / "run").exists()


def test_a_task_without_problems_is_refused_before_anything_is_trained(tmp_path):
    smoke = [word for word in SMOKE if "evaluation" not in word]
    words = ["evaluation=benchmark", "task=math500", "task.math500.file=gone.jsonl"]
    with pytest.raises(Refused, match="No file at 'gone.jsonl'"):
        study(composed(*smoke, *words), tmp_path / "run")


# -- what it takes -----------------------------------------------------------------------------------------------------


def built(tmp_path, *words):
    cfg = composed("scale=smoke", *words)
    run, pair = Run(cfg, tmp_path), build(cfg.model_pair)
    run.build(pair, build(cfg.text), weights=False)
    return run, pair


def test_hours_are_those_of_a_data_sheet_and_not_of_a_clock(tmp_path):
    run, pair = built(tmp_path, "model_pair.base.dtype=bfloat16", "model_pair.tuned.dtype=bfloat16", "trainer=bf16")
    cost = cost_of([run], pair, GPUS["h200"])
    h200, a100 = (GPUS[name].seconds(cost.training) for name in ("h200", "a100"))
    assert set(cost.training) == {"bfloat16"}
    assert h200 == pytest.approx(cost.training["bfloat16"] / 989e12 / ASSUMED)
    assert a100 / h200 == pytest.approx(989 / 312)
    in_single = cost_of([built(tmp_path, "trainer=cpu")[0]], pair, GPUS["h200"]).training
    assert set(in_single) == {"float32", "bfloat16"} or set(in_single) == {"float32"}
    assert times(cost, None)[0].endswith("FLOP") and times(cost, GPUS["h200"])[0].endswith(" s")


def test_codes_that_a_gpu_keeps_dense_are_counted_as_dense_there(tmp_path):
    cpu = device_named("cpu", composed())

    def training(device, *words):
        run, pair = built(tmp_path, "budget.latents=512", "trainer=cpu", *words)
        return sum(cost_of([run], pair, device).training.values())

    few, dense = ["dictionary.sparsity.k=4"], ["dictionary=l1_crosscoder"]
    one = 2 * composed("scale=smoke").budget.tokens * 512 * 2 * 96  # a product of both streams with all latents
    assert training(GPUS["h200"], *few) == training(GPUS["h200"], *dense) == training(cpu, *dense)
    assert training(cpu, *dense) - training(cpu, *few) == 4 * one
    assert training(cpu, "dictionary.sparsity.k=64") == training(cpu, *dense)  # one latent in eight: as many as pay
    assert training(GPUS["h200"], *few, "dictionary.sparse_codes=true") == training(cpu, *few)


def test_the_precision_that_is_chosen_is_that_of_the_named_device():
    cfg = composed()
    assert precision_on(cfg, GPUS["a100"]) == "bf16-mixed"
    assert precision_on(cfg, device_named("cpu", cfg)) == "32-true"


def test_the_memory_that_is_given_comes_before_that_of_the_device():
    assert memory_of(GPUS["h200"]) == 141e9 and memory_of(GPUS["a100"]) == 80e9
    assert memory_of(GPUS["h200"], given_gb=3) == 3e9 and memory_of(None, given_gb=3) == 3e9


def test_both_models_are_in_memory_whichever_is_read(tmp_path):
    words = ["evaluation=none", "budget.latents=1", "dictionary.sparsity.k=1", "budget.buffer=2048"]
    cost = {}
    for reads in ("tuned", "both"):
        run, pair = built(tmp_path, *words, f"dictionary.reads={reads}")
        cost[reads] = cost_of([run], pair, None).memory
    weights = 4 * sum(source.size[0] for source in pair.sources.values())
    working = 4 * 6 * 8192 * (96 + 256)  # of the layer of one model
    assert weights + working < cost["tuned"] < weights + 1.5 * working and cost["both"] > cost["tuned"] + working


def test_fidelity_costs_four_whole_passes_of_each_model_and_what_is_read_for_it(tmp_path):
    run, pair = built(tmp_path, "evaluation=[fidelity]", "trainer=cpu", "layer=1")
    none, _ = built(tmp_path, "evaluation=[geometry]", "trainer=cpu", "layer=1")
    tokens = run.cfg.budget.evaluation_tokens
    flops, read = evaluation_cost(run, pair, GPUS["h200"])
    beside, _ = evaluation_cost(none, pair, GPUS["h200"])
    assert sum((flops - beside).values()) == pytest.approx(8 * tokens * of_model(pair, "base", run.cfg)) and read == 0
    parameters = pair.source("base").size[0]
    assert of_model(pair, "base", run.cfg) >= 2 * parameters  # embeddings are read as the head is


@pytest.mark.parametrize("change", ["evaluation.benchmark.decoding.tokens=200", "evaluation.benchmark.samples=2"])
def test_what_is_written_is_counted_by_problems_conditions_and_tokens(change, tmp_path):
    words = ["evaluation=benchmark", "evaluation.benchmark.problems=5", "evaluation.benchmark.decoding.temperature=1"]
    words.append("evaluation.benchmark.decoding.tokens=100")
    (run, pair), (more, _) = built(tmp_path, *words), built(tmp_path, *words, change)
    asked = run.evaluations["benchmark"].work(pair, run.streams)
    assert asked.written == 5 * 2 * 100 and asked.together == 64
    twice = more.evaluations["benchmark"].work(pair, run.streams)
    assert twice.written == 2 * asked.written
    flops, read = evaluation_cost(run, pair, GPUS["h200"])
    assert read == pytest.approx(5 * 2 * 100 / 64 * pair.source("base").size[0] * 4)
    assert sum(flops.values()) >= 2 * asked.written * of_model(pair, "base", run.cfg)
