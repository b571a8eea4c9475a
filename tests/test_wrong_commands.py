"""What was typed wrongly ends with status 2 and one sentence that names it, before anything is written."""

import functools
import importlib
import shlex
import sys

import pytest
from omegaconf import open_dict

from conftest import ROOT
from test_tasks import composed
from tunediff.settings import check_command_line
from tunediff.settings.typed import flags_first, refuse_launcher
from tunediff.shapes import Refused
from tunediff.study.finetune import finetune
from tunediff.study.reevaluate import reevaluate

SMOKE = "scale=smoke"
# a verb, its words, and what the sentence says
WRONG = {
    "train": {
        "modle_pair=toy": "modle_pair is not a setting here. Did you mean model_pair",
        "model_pair=toi": "model_pair=toi: Did you mean toy",
        "model_pair=[toy,toy]": "model_pair=toy,toy: choose one",
        "layer=99": "layer=99 is out of range",
        "layer=-99": "layer=-99 is out of range",
        "layer=abc": "layer='abc' is not a number",
        "layer=1.5": "a relative depth between 0 and 1",
        "layer=[]": "names no layer",
        "dictionary=batchtopk": "Did you mean batchtopk_crosscoder",
        "dictionary.sparsity.k=0": "at least one latent",
        "dictionary.sparsity.k=-3": "at least one latent",
        "dictionary.sparsity.k=many": "is not of type int",
        "dictionary.sparsity.k=1000000000": "larger than the dictionary",
        "-m dictionary.sparsity.k=12,12.0": "dictionary.sparsity.k=12.0 is not of type int: write 12",
        "budget.tokens=2048.0": "budget.tokens=2048.0: input should be a valid integer",
        "dictionary.sparsity.k=12.5": "is not of type int",
        "dictionary.latents=0": "give a number from 1",
        "dictionary.latents=abc": "give a number from 1",
        "dictionary.seed=-1": "dictionary.seed=-1",
        "dictionary.hookpoint.name=nowhere": "hookpoint 'nowhere' is unknown",
        "dictionary.reads=neither": "choose both, base, tuned",
        "budget.tokens=-1": "budget.tokens=-1",
        "budget.tokens=10": "less than one batch",
        "budget.tokens=1e30": "budget.tokens=1e",
        "budget.evaluation_tokens=0": "greater than 0",
        "budget.evaluation_tokens=9000000000": "less than or equal to 1000000000",
        "budget=3": "budget=3 is one value, where settings by name belong: give one of them, budget.tokens=",
        "budget=null": "budget=null is one value",
        "l1_schedule=warmup": "l1_schedule is Warmup(warmup=0.05), but BatchTopK has no penalty to schedule",
        "dictionary=l1_crosscoder l1_schedule=warmup 'l1_schedule.warmup=1000 steps'": "longer than the run, which has 8 steps",
        "trainer=fp16 trainer.accelerator=cpu": "trainer.precision=16-mixed needs a GPU",
        "text.held_out=0.0": "The text leaves nothing to evaluate on: text.held_out=0.0 keeps none of the first",
        "model_pair=r1_vs_qwen": "Cannot load 'Qwen/Qwen2.5-Math-1.5B'",
        "launcher=slurm": "hydra/launcher=",
        "budget.companions=twin": "give a list, budget.companions=[twin]",
        "budget.companions=[triplet]": "'triplet' is none of twin, equal, noise, permuted, planted",
        "~optimized_metric": "optimized_metric is not set",
        "hydra.run.dir=": "the name of a folder, and nothing stands there",
        "optimizer=adam_cosine": "optimizer.batch is not set, and this study reads it",
        "~optimizer.batch": "optimizer.batch is not set, and this study reads it",
        "optimizer.batch=0": "optimizer.batch=0",
        "optimizer.batch=1.5": "optimizer.batch=1.5",
        "optimizer.learning_rate=nan": "a finite number",
        "optimizer.learning_rate=-1": "greater than 0",
        "optimizer.learning_rate=inf": "a finite number",
        "optimizer.betas=[0.9]": "optimizer.betas",
        "optimizer.betas=[0.9,1.0]": "less than 1",
        "optimizer.clip_norm=abc": "optimizer.clip_norm=abc",
        "optimizer.clip_norm=-1": "greater than 0",
        "optimizer.compile=nobackend": "the backends of torch.compile here",
        "optimizer.learning_rate_schedule.warmup=-1": "give a fraction of the run",
        "l1_schedule=ramps": "Did you mean ramp",
        "seed=-1": "seed=-1",
        "seed=99999999999999999999999": "seed=9",
        "seed=1.5": "seed=1.5",
        "text.window=0": "text.window=0",
        "text.context=1": "at least 2 tokens",
        "text.context=abc": "is not of type int",
        "text.held_out=50": "no share of the rows",
        "text.held_out=nan": "no number",
        "text.seed=-1": "text.seed=-1",
        "text.tokens_per_batch=0": "give at least 1",
        "text.drop_first=-1": "text.drop_first=-1",
        "text.long=fold": "choose cut, first, keep_prompt",
        "text.unfinished=maybe": "choose keep, leave_out, refuse",
        "text.segments=[dreaming]": "the segments are",
        "text.date=yesterday": "is no day",
        "text=nowhere": "The options are",
        "text=traces text.rows.path=missing.jsonl": "No file at 'missing.jsonl'",
        "checkpoint_every=abc": "checkpoint_every=abc",
        "checkpoint_every=-1": "checkpoint_every=-1",
        "logits_mb=0": "logits_mb=0",
        "activations.buffer=-1": "activations.buffer=-1",
        "activations.fit_tokens=0": "activations.fit_tokens=0",
        "activations=sequences": "choose activations=live or stored",
        "evaluation=[fidelty]": "Did you mean fidelity",
        "evaluation=[replacement]": "choose dictionary=transcoder_adapter",
        "evaluation.fidelity=3": "names no class",
        "trainer.precision=64-true": "kept in float32",
        "+trainer.max_steps=3": "trainer.max_steps is not a setting",
        "+trainer.fast_dev_run=true": "trainer.fast_dev_run is not a setting",
        "optimized_metric=[1]": "optimized_metric=[1]",
        "text.window=9999999999999999999": "larger than any number",
        "-m seed=range(0)": "names no member",
        "trainer.devices=0": "trainer.devices=0",
        "trainer.accelerator=quantum": "accelerator",
        "trainer=gpu": "Did you mean cpu",
        "trust=os": "trust=[os]",
        "text.rows._target_=os.system": "not trusted",
        "+colour=red": "colour is not a setting",
        "+dictionary.latens=3": "Did you mean dictionary.latents",
        "~budget": "~budget takes away settings that are read",
        "~dictionary": "~dictionary ~l1_schedule ~optimizer ~activations",
        "~model_pair.base": "model_pair.base is not set",
        "model_pair.base=null": "model_pair.base=null: a ModelSource belongs there",
        "model_pair.tuned=3": "model_pair.tuned=3: a ModelSource belongs there",
        "batchtopk_crosscoder": "Did you mean dictionary=batchtopk_crosscoder",
        "seed==3": "seed==3",
        "seed=[1": "no viable alternative",
        "model_pair=local": "model_pair.base.path is not set",
        "model_pair.base.path=/nowhere": "there is no folder /nowhere",
        "model_pair=missing.yaml": "there is no such file",
        "logger=wandb logger.wandb.offline=false": "there is no key",
        "launcher.device=tpu": "launcher.device=tpu",
        "launcher.memory_gb=0": "launcher.memory_gb=0",
        "dry_run=maybe": "dry_run=maybe",
        "sweep=../../x": "sweep=",
        "sweep=..": "sweep=",
        "sweep=a/b": "sweep=",
        "scale=huge": "The options are paper, smoke, toy",
        "--config-path nowhere --config-name config": "there is no such file",
        "--no-such-flag": "--no-such-flag is no flag here",
        "hydra/launcher=slurm": "add -m",
        "-m hydra/sweeper=optun seed=1,2": "hydra/sweeper/optun",
        "-m seed=abc,1": "seed=abc",
        "-m layer=1,99": "layer=99 is out of range",
        "-m sweep=../x seed=1,2": "sweep=",
    },
    "finetune": {
        "model=nothing": "model=nothing",
        "recipe.epochs=0": "recipe.epochs=0",
        "recipe.learning_rate=nan": "recipe.learning_rate=nan",
        "recipe.held_out=-1": "recipe.held_out=-1",
        "recipe.examples=0": "recipe.examples=0",
        "evaluate_every=abc": "evaluate_every=abc",
        "evaluate_every=-1": "evaluate_every=-1",
        "model.path=/nowhere": "there is no folder /nowhere",
        "+x=1": "x is not a setting",
        "-m recipe.epochs=0 seed=1,2": "recipe.epochs=0",
        "-m recipe.epochs=0 seed=1,2 sweep=mine": "recipe.epochs=0",
        "-m sweep=../x seed=1,2": "sweep=",
    },
    "evaluate": {
        "": "run is not set",
        "run=/nowhere": "is no finished run",
        "run=. tokens=0": "tokens=0",
        "run=. tokens=9000000000": "tokens=9000000000: input should be less than or equal to 1000000000",
        "run=. evaluation=[nothing]": "evaluation=nothing",
        "run=. logits_mb=0": "logits_mb=0",
        "run=. +x=3": "x is not a setting",
    },
    "compare": {"": "folder", "nowhere": "No run under"},
}  # fmt: skip


@pytest.mark.parametrize(("verb", "words"), [(verb, words) for verb, table in WRONG.items() for words in table])
def test_a_wrong_command_ends_with_2_in_a_sentence_and_writes_nothing(verb, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    given = shlex.split(words)
    if verb == "train" and not {"--config-path", "scale=huge"} & {*given}:
        given.append(SMOKE)
    monkeypatch.setattr(sys, "argv", [str(ROOT / f"{verb}.py"), *given])
    with pytest.raises(SystemExit) as left:
        importlib.import_module(verb).main()
    said = capsys.readouterr().err
    assert left.value.code == 2, said
    assert WRONG[verb][words] in said, said
    assert "Traceback" not in said
    hydras = ("Error executing job", "exception formatting", "HYDRA_FULL_ERROR")
    assert not any(line in said for line in hydras), said
    assert not list(tmp_path.rglob("*")), list(tmp_path.rglob("*"))


@pytest.mark.parametrize(
    ("verb", "words", "said"),
    [
        ("evaluate", "R", "R is no setting, which is key=value. Did you mean run=R?"),
        ("train", "nothing", "nothing is no setting, which is key=value. python train.py --help"),
        ("train", "seed=1 -m layer=1,2 --foo", "--foo is no flag here"),
        ("train", "-m --cfg job", "-m and --cfg exclude one another"),
        ("train", "--resolve", "--resolve goes with --cfg"),
        ("train", "hydra/launcher=local", "add -m, also for one study"),
        ("train", "hydra.launcher.partition=gpu", "hydra.launcher.partition=gpu is about a sweep"),
        ("evaluate", "run=R hydra/launcher=slurm", "sbatch --wrap 'python evaluate.py ...'"),
        ("finetune", "-m seed=1,2 hydra/launcher=local", "runs sweeps of studies"),
        ("train", "~text.system", "~text.system: nothing stands there that could be taken away"),
        ("train", "~txt.system", "~txt.system: txt.system is not a setting here. Did you mean text.system"),
        ("train", "~seed=3", "~seed=3: seed is 0"),
        ("evaluate", "run=R task=toy", "name the one that is meant, evaluation=[...]"),
        ("evaluate", "run=R evaluation.geometry.shared=0.1", "name the one that is meant, evaluation=geometry."),
    ],
)
def test_a_word_that_hydra_would_answer_is_answered_here_in_one_sentence(verb, words, said):
    with pytest.raises(Refused) as refused:
        check_command_line(flags_first(shlex.split(words)), ROOT / "conf", verb)
    assert said.lower() in str(refused.value).lower() and "\n" not in str(refused.value)


def test_flags_may_stand_behind_settings_and_a_launcher_wherever_a_sweep_is():
    assert flags_first(["seed=1", "-m", "layer=1,2"]) == ["-m", "seed=1", "layer=1,2"]
    assert flags_first(["a=1", "--config-name", "config", "--config-path", "x", "b=2"])[-2:] == ["a=1", "b=2"]
    for sweep in ("-m", "--multi", "hydra.mode=MULTIRUN"):
        refuse_launcher([sweep, "hydra/launcher=slurm"], ROOT / "conf", "train")
    refuse_launcher(["--cfg", "job", "hydra/launcher=slurm"], ROOT / "conf", "train")


def test_a_finished_run_may_be_asked_by_a_sweep_of_evaluations_and_by_a_class_of_ones_own():
    for words in (
        "-m run=R evaluation=geometry,examples",
        "run=R +evaluation.mine._target_=mine.Mine",
        "run=R evaluation=none",
    ):
        check_command_line(shlex.split(words), ROOT / "conf", "evaluate")


@pytest.mark.parametrize("verb", ["evaluate", "finetune"])
def test_a_key_that_a_verb_reads_and_that_was_taken_out_is_told_before_anything_is_begun(verb, tmp_path, monkeypatch):
    """Once a folder is begun, it would be a failure and no mistake."""
    monkeypatch.setattr("tunediff.study.finetune.examples_of", None)
    story = functools.partial(finetune, folder=tmp_path / "new") if verb == "finetune" else reevaluate
    whole = composed(*(["run=nowhere"] if verb == "evaluate" else []), name=verb)
    for key in (*whole, "trainer._target_"):
        if key in ("hydra", "task", "claims"):
            continue
        cfg = whole.copy()
        with open_dict(cfg):
            del (cfg.trainer if "." in key else cfg)[key.rpartition(".")[2]]
        with pytest.raises(Refused, match=rf"^{key} is not set"):
            story(cfg)
    assert not (tmp_path / "new").exists()


def test_the_table_is_long_enough():
    assert sum(map(len, WRONG.values())) >= 80
