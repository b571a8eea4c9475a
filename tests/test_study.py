"""Whole studies by the commands a user types, and every command of the README."""

import json
import os
import re
import shlex
import subprocess

import pyarrow.parquet
import pytest
import torch

import warm
from conftest import ROOT, save_model
from tunediff.directions import Direction
from tunediff.toy.tokenizer import build_tokenizer

LITTLE_TEXT = ["text.window=32", "text.tokens_per_batch=2048"]  # is read ahead
TWO_STEPS = ["budget.tokens=2048", "budget.fit_tokens=512", "budget.buffer=2048"]
SMALL = ["scale=smoke", "trainer=cpu", "budget.evaluation_tokens=1024", *LITTLE_TEXT]


def call(*words, cwd=ROOT, good=True, seconds=280, python=None, **environment):
    command = [python or warm.python(), *map(str, words)]
    env = {**os.environ, "WANDB_SILENT": "true", **environment}
    done = subprocess.run(
        command, cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=seconds, env=env
    )
    assert (done.returncode == 0) == good, done.stderr[-3000:]
    return done.stdout + done.stderr


def findings(folder):
    return {f["name"]: f["value"] for f in json.loads((folder / "findings.json").read_text())["findings"]}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study") / "run"
    said = call("train.py", *SMALL, f"hydra.run.dir={folder}")
    return folder, said


def test_a_study_leaves_everything_in_its_folder_and_says_where_the_page_is(run):
    folder, said = run
    assert f"page: {folder / 'report.html'}" in said and "explained variance base" in said and "tok/s" in said
    names = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    expected = "config.yaml identity.json findings.json report.html run.log dictionary/config.json dictionary/weights.safetensors"
    expected += " tables/training.parquet tables/latents.parquet tables/examples.parquet tables/fidelity.parquet"
    assert set(expected.split()) <= names
    assert not any(name.endswith(".partial") for name in names)
    for name in ("fidelity/ce_recovered/base", "fidelity/explained_variance/tuned/thinking", "geometry/count/shared"):
        assert name in findings(folder)
    identity = json.loads((folder / "identity.json").read_text())["identity"]
    assert identity == json.loads((folder / "findings.json").read_text())["identity"]


def test_the_saved_config_runs_again_to_the_same_numbers(run, tmp_path):
    folder, _ = run
    words = ["--config-path", folder, "--config-name", "config", f"hydra.run.dir={tmp_path}"]
    call(
        "train.py", *words, python=warm.COLD
    )  # nothing hangs on what Python decides when it starts, as the secret of hash
    assert findings(tmp_path) == findings(folder)
    assert (tmp_path / "dictionary" / "weights.safetensors").read_bytes() == (
        folder / "dictionary" / "weights.safetensors"
    ).read_bytes()
    assert json.loads((tmp_path / "identity.json").read_text()) == json.loads((folder / "identity.json").read_text())


def test_an_old_run_is_measured_again_to_the_same_numbers(run, tmp_path):
    folder, _ = run
    before = findings(folder)
    call("evaluate.py", f"run={folder}", "evaluation=[geometry,fidelity]", "trainer=cpu")
    assert findings(folder) == before
    assert "is no finished run" in call("evaluate.py", f"run={tmp_path}", good=False)


def test_a_run_is_compared_from_its_folder(run, tmp_path):
    folder, _ = run
    said = call("compare.py", folder)
    assert "EV base" in said and "finished" in said and f"page: {folder / 'compare.html'}" in said
    assert "error: No run under" in call("compare.py", tmp_path / "nothing", good=False)


def test_stored_activations_give_the_study_of_live_ones(tmp_path):
    """In bfloat16 both: the weights are the same to the bit."""
    common = [*SMALL, "evaluation=none", "activations.dtype=bfloat16"]
    call("train.py", *common, f"hydra.run.dir={tmp_path / 'live'}")
    said = call(
        "train.py",
        *common,
        "activations=stored",
        f"activations.folder={tmp_path / 'rows'}",
        f"hydra.run.dir={tmp_path / 'stored'}",
    )
    assert "Storing 10,240 tokens x 192 values" in said
    weights = [(tmp_path / kind / "dictionary" / "weights.safetensors").read_bytes() for kind in ("live", "stored")]
    assert weights[0] == weights[1]


def test_the_null_control_has_only_shared_latents(tmp_path):
    (tmp_path / "findings.json").write_text('{"findings": [{"name": "left/over", "value": 1}], "notes": []}')
    words = ["model_pair=toy_self", "dictionary.shared_start=true", "evaluation=[geometry,fidelity]"]
    call("train.py", *SMALL, *words, f"hydra.run.dir={tmp_path}")
    assert "left/over" not in findings(tmp_path)  # of an earlier study in the same folder
    table = pyarrow.parquet.read_table(tmp_path / "tables" / "latents.parquet").to_pydict()
    assert all(abs(norm - 0.5) < 1e-4 for norm in table["relative_decoder_norm"])
    assert all(cosine > 0.9999 for cosine in table["decoder_cosine"])


@pytest.mark.parametrize(
    "change",
    ["dictionary/normalisation=sequence_zscore layer=[1,3]", "dictionary/normalisation=unit_rms trainer=bf16"],
)
def test_other_choices_run_to_the_end(change, tmp_path):
    words = [word for word in SMALL if not ("trainer" in change and word.startswith("trainer"))]
    words += [*change.split(), "trainer.accelerator=cpu", "evaluation=[fidelity]", *TWO_STEPS]
    call("train.py", *words, f"hydra.run.dir={tmp_path}")
    assert findings(tmp_path)["fidelity/explained_variance/base"] > -10


# -- real text and real shapes ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def byte_pair(tmp_path_factory):
    tokenizer = build_tokenizer(["the answer is, so we have that in of a to"], size=300)
    place = tmp_path_factory.mktemp("bytes")
    return [save_model(place / role, tokenizer, seed=seed, width=64) for seed, role in enumerate(("base", "tuned"))]


def test_real_traces_run_to_the_end(byte_pair, data_folder, tmp_path):
    base, tuned = byte_pair
    said = call(
        "train.py", *SMALL, "text=traces", "text.context=512", "budget.evaluation_tokens=9000", "evaluation=[fidelity,hesitation,segments]", "model_pair=local", f"model_pair.base.path={base}", f"model_pair.tuned.path={tuned}",
        "model_pair.base.dtype=float32", "model_pair.tuned.dtype=float32", "layer=1", f"hydra.run.dir={tmp_path}", TUNEDIFF_DATA=str(data_folder),
    )  # fmt: skip
    found = findings(tmp_path)
    assert {f"fidelity/explained_variance/base/{s}" for s in ("prompt", "prefix", "thinking", "answer")} <= set(found)
    content = json.loads((tmp_path / "findings.json").read_text())
    assert any("too few stretches labelled 'hesitation_follows'" in note for note in content["notes"])
    assert "page:" in said
    # sentences that a language model labelled, in traces of real models
    again = ["evaluate.py", f"run={tmp_path}", "evaluation=[sentences,examples]", "tokens=30000", "trainer=cpu"]
    call(*again, TUNEDIFF_DATA=str(data_folder))
    assert findings(tmp_path) == found, "numbers of other tokens stand apart"
    apart = tmp_path / "on_30000_tokens"
    notes = json.loads((apart / "findings.json").read_text())["notes"]
    assert any("too few stretches labelled 'backtracking'" in note and "'annotated'" in note for note in notes)
    assert any("30,000 held-out tokens; the study itself" in note and "on 9,000" in note for note in notes)
    assert pyarrow.parquet.read_metadata(apart / "tables" / "examples.parquet").num_rows > 64


def big_pair(folder, *, layers):
    """A randomly initialised model in the shape of Qwen2.5-0.5B, and what it is with the first layer's MLP turned round."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    tokenizer = build_tokenizer(["the answer is"], size=300)
    config = Qwen2Config(
        vocab_size=151_936, hidden_size=896, intermediate_size=4864, num_hidden_layers=layers, num_attention_heads=14,
        num_key_value_heads=2, tie_word_embeddings=True, eos_token_id=tokenizer.eos_token_id, max_position_embeddings=4096,
    )  # fmt: skip
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(config).bfloat16()
    for role in ("base", "tuned"):
        model.save_pretrained(folder / role)
        tokenizer.save_pretrained(folder / role)
        with torch.no_grad():
            model.model.layers[0].mlp.down_proj.weight.neg_()
    return folder


def study_of_big_pair(folder, data_folder, *, steps, layer, window, most):
    """Peaks below `most` GB. Of a window of 1 a document is evaluated at a time, of more as many as 2,048 tokens hold."""
    measured = folder / "measured.py"
    code = f"import resource, runpy, sys; sys.argv[0] = 'train.py'; runpy.run_path({str(ROOT / 'train.py')!r}, run_name='__main__'); "
    measured.write_text(code + "print('peak GB', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)")
    said = call(
        measured, *SMALL, "text=traces", "text.tokens_per_batch=1024", f"text.window={window}",
        "model_pair=local", f"model_pair.base.path={folder / 'base'}", f"model_pair.tuned.path={folder / 'tuned'}",
        f"layer={layer}", f"budget.tokens={512 * steps}", "optimizer.batch=512", "budget.latents=3584",
        "budget.buffer=2048", "budget.fit_tokens=1024", "budget.evaluation_tokens=512",
        "evaluation=[fidelity,geometry]", f"hydra.run.dir={folder / 'run'}", TUNEDIFF_DATA=str(data_folder), seconds=2000,
    )  # fmt: skip
    assert findings(folder / "run")["fidelity/explained_variance/tuned"] is not None
    peak = float(re.search(r"peak GB ([\d.]+)", said)[1])
    print("peak GB", peak)
    assert peak < most


@pytest.mark.slow
def test_a_real_width_and_vocabulary_fit_in_memory(tmp_path, data_folder):
    study_of_big_pair(big_pair(tmp_path, layers=2), data_folder, steps=3, layer=1, window=1, most=7)


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_a_half_billion_pair_trains_50_steps_within_12_gb(tmp_path, data_folder):
    study_of_big_pair(big_pair(tmp_path, layers=24), data_folder, steps=50, layer=12, window=256, most=12)


# -- refusals, as a user meets them ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["laier=3"], "error: laier is not a setting here. Did you mean layer?"),
        (
            ["layer=9"],
            "error: layer=9 is out of range: the base model pkg://tunediff.toy/weights/base has layers 0 to 3.",
        ),
        (["text=traces", "text.rows.path=missing.jsonl"], "error: No file at 'missing.jsonl'"),
    ],
)
def test_a_mistake_is_answered_in_one_sentence(words, message, tmp_path):
    """By the command, of every kind of place that finds one; all others are in test_wrong_commands.py."""
    said = call("train.py", *SMALL, *words, f"hydra.run.dir={tmp_path}/run", good=False, HF_HUB_OFFLINE="1")
    assert message in said and "Traceback" not in said
    assert not list(tmp_path.iterdir())  # nothing that looks like a run


def test_an_evaluation_of_a_folder_that_is_no_run_makes_none(tmp_path):
    assert "is no finished run" in call("evaluate.py", f"run={tmp_path}/misspelt", good=False)
    assert not list(tmp_path.iterdir())


def test_a_folder_is_kept_where_training_began_or_anything_else_stands(tmp_path):
    from tunediff.folders import say, unless_refused
    from tunediff.shapes import Refused

    def refused(folder, *, before=(), inside=(), **said):
        folder.mkdir()
        for name in ("run.log", *before):
            (folder / name).write_text("x")
        with pytest.raises(Refused), unless_refused(folder):
            say(folder, **said)
            for name in inside:
                (folder / name).write_text("x")
            raise Refused("no")
        return folder.exists()

    assert not refused(tmp_path / "empty", state="failed", inside=["config.yaml"])
    assert refused(tmp_path / "began", state="failed", step=0)
    assert refused(tmp_path / "of_the_user", before=["config.yaml"])
    assert refused(tmp_path / "found", inside=["findings.json"])
    with pytest.raises(ZeroDivisionError), unless_refused(tmp_path / "found"):
        raise ZeroDivisionError  # a fault of ours keeps its log


def test_another_study_takes_no_finished_folder(run):
    """Nor does the same line once what it reads has changed."""
    from tunediff.settings import within
    from tunediff.shapes import Refused
    from tunediff.study.parts import read_config
    from tunediff.study.train import study

    folder, _ = run
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.suffix != ".log"}
    cfg = read_config(folder)
    cfg.dictionary.seed = 5
    with within(folder), pytest.raises(Refused, match=r"another study, which is finished, with other dictionary.seed"):
        study(cfg, folder)
    assert {path: path.read_bytes() for path in before} == before


# -- the README ------------------------------------------------------------------------------------------------------


README = (ROOT / "README.md").read_text()


def readme_commands():
    for language, block in re.findall(r"^```(\w*)\n(.*?)^```$", README, flags=re.DOTALL | re.MULTILINE):
        for line in () if language else block.splitlines():
            command = line.partition("#")[0].strip()
            if command.startswith("python "):
                yield command


def readme_files(folder):
    """The files of one's own that it shows, each under the name in its first line; Python finds them there."""
    folder.mkdir()
    blocks = re.findall(r"^```\w+\n# (\S+)\n(.*?)^```$", README, flags=re.DOTALL | re.MULTILINE)
    assert {name for name, _ in blocks} == {"mine.py", "concentration.yaml", "attn_z.yaml", "tied.yaml"}
    for name, text in blocks:
        (folder / name).write_text(text)
    return folder


SHORTENED = {  # words that make a command short
    "evaluation=[benchmark": [
        *(
            f"evaluation.{name}.{word}"
            for name in ("ablation", "scaling", "patching")
            for word in ("draws=1", "modes=[delta]", "decoding.tokens=16")
        ),
        "evaluation.benchmark.decoding.tokens=16",
        "evaluation.benchmark.budgets=[]",
        "task.toy.problems=2",
        "tokens=20000",  # enough of them with the label that latents are chosen by
    ],
    "ablation.latents='top(": [
        *(f"evaluation.ablation.{word}" for word in ("draws=1", "modes=[delta]", "decoding.tokens=16")),
        "task.toy.problems=2",
        "tokens=20000",
    ],
    "evaluation=steering_sweep": [
        "evaluation.steering_sweep.strengths=[1]",
        "evaluation.steering_sweep.decoding.tokens=16",
        "task.toy.problems=2",
    ],
    "evaluation=[kl_patching": ["tokens=600"],
    "[recovery,lora_ablation]": [
        "evaluation.recovery.problems=2",
        "evaluation.recovery.decoding.tokens=16",
        "evaluation.lora_ablation.problems=2",
        "evaluation.lora_ablation.decoding.tokens=16",
        "evaluation.lora_ablation.by=[type]",
        "evaluation.lora_ablation.random=1",
        "tokens=600",
    ],
    "[polarity_examples,unit_comparison]": ["tokens=1500"],
    "adam_warmup_short": ["optimizer.learning_rate_schedule.warmup=0.1"],
    "adapter_recovery": ["evaluation.adapter_recovery.problems=2", "evaluation.adapter_recovery.decoding.tokens=16"],
    "attribution_graphs": ["evaluation.attribution_graphs.count=1", "evaluation.attribution_graphs.most_latents=20"],
    "latent_sets": [
        "evaluation.latent_sets.problems=2",
        "evaluation.latent_sets.draws=1",
        "evaluation.latent_sets.control_sizes=[1]",
        "evaluation.latent_sets.decoding.tokens=16",
    ],
    "train.py dictionary=transcoder_adapter": ["activations.held_out=4", "activations.evaluate_every=1.0"],
    "task=gsm8k": ["evaluation.benchmark.decoding.tokens=16", "evaluation.benchmark.budgets=[]"],
    **{
        command: [
            f"evaluation.direction_steering.{word}"
            for word in (
                "problems=2",
                "draws=1",
                "strengths=[0.2]",
                "controls=[]",
                "decoding.tokens=16",
                "norm_tokens=500",
            )
        ]
        for command in ("experiment=toy_backtracking", "evaluation=direction_steering")
    },
    "toy_backtracking": [
        *(
            f"evaluation.direction_necessity.{word}"
            for word in ("problems=2", "draws=1", "rounds=1", "decoding.tokens=16")
        ),
        "evaluation.direction_steering.others=[]",
        "evaluation.directions.draws=2",
        "direction.tokens=4000",
    ],
    "evaluation=directions": ["direction.tokens=1000"],
    "experiment=toy_defences": [
        "evaluation.trait.problems=2",
        "evaluation.trait.data_rows=4",
        "direction.responses=10",
    ],
    "evaluation=[gradient]": [
        *(f"evaluation.gradient.{word}" for word in ("examples=4", "draws=1", "strengths=[1]")),
        "direction.responses=10",
    ],
}


@pytest.fixture(scope="module")
def fine_tuned(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lora") / "run"
    call("finetune.py", "recipe=lora_rank1_toy", "recipe.examples=32", "recipe.held_out=0", f"hydra.run.dir={folder}")
    return folder


@pytest.fixture(scope="module")
def adapter_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters") / "run"
    words = ["model_pair=toy_lora", "dictionary=lora_sae", "evaluation=none", f"hydra.run.dir={folder}"]
    call("train.py", *SMALL, *words)
    return folder


@pytest.fixture(scope="module")
def transcoder_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("transcoders") / "run"
    words = [
        "dictionary=transcoder_adapter",
        "activations.held_out=0",
        "evaluation=replacement",
        "dictionary.latents=32",
    ]
    said = call("train.py", *SMALL, *words, f"hydra.run.dir={folder}")
    assert "KL recovered" in said and findings(folder)["replacement/kl/adapter"] > 0
    assert {"dictionary/weights.safetensors", "pair.yaml", "tables/partial_replacement.parquet"} <= {
        str(path.relative_to(folder)) for path in folder.rglob("*")
    }
    return folder


@pytest.mark.parametrize("command", list(readme_commands()))
def test_every_command_of_the_readme_runs(command, run, request, byte_pair, data_folder, server, tmp_path):
    folder, _ = run
    base, tuned = byte_pair
    of_hub = ("r1_vs_qwen", "deepscaler", "model=qwen", "adapters_r1", "experiment=backtracking")
    needs_hub = any(name in command for name in of_hub)
    evaluation = "[fidelity]" if "optuna" in command else "none"  # a sweeper needs its metric
    Direction({1: torch.ones(96)}, "resid_post", {"source": "ones"}).save(tmp_path / "tuned.safetensors")
    given = {
        "<run folder>/directions/tuned.safetensors": str(tmp_path / "tuned.safetensors"),
        "<your folder>": str(readme_files(tmp_path / "mine")),
        **dict.fromkeys(("<run folder, absolute>", "<run folder>", "<run>", "<sweep>"), str(folder)),
        "tuned.path=<folder>": f"tuned.path={tuned}",
        "base.path=<folder>": f"base.path={base}",
        "<file.jsonl>": str(data_folder / "reasoning_traces" / "traces.jsonl.gz"),
        "http://localhost:8000/v1": server.endpoint,
        "<name>": "a-model",
        "<problems.jsonl>": str(ROOT / "tests" / "problems.jsonl"),
        "n_trials=20": "n_trials=2",
        "n_jobs=4": "n_jobs=2",
    }
    for name, made in (
        ("<fine-tune>", "fine_tuned"),
        ("<LoRA run>", "adapter_run"),
        ("<transcoder run>", "transcoder_run"),
    ):
        if name in command:  # made for those that ask for one
            given[name] = str(request.getfixturevalue(made))
    for name, value in given.items():
        command = command.replace(name, value)
    words = shlex.split(command)[1:]
    paths = [str(tmp_path / "mine"), *filter(None, [os.environ.get("PYTHONPATH")])]
    words += [word for part, short in SHORTENED.items() if part in command for word in short]
    if words[0] == "train.py":
        place = "hydra.sweep.dir" if "-m" in words else "hydra.run.dir"
        small = [] if "--config-path" in words else list(SMALL)
        chosen = any(word in command for word in ("--config-path", "experiment=", "evaluation="))
        small += [] if chosen else [f"evaluation={evaluation}"]
        words = [w for w in words if not w.startswith(("scale=", "trainer="))]
        small += [] if "experiment=" in command or "--config-path" in words else TWO_STEPS
        words += [*small, f"{place}={tmp_path}/run"]
    if words[0] == "finetune.py":
        words = [w for w in words if not w.startswith(("trainer", "memory_gb"))]
        words += ["recipe.examples=32", "recipe.held_out=8", "trainer=cpu"]
        words += [f"hydra.{'sweep' if '-m' in words else 'run'}.dir={tmp_path}/run"]
    said = call(*words, good=not needs_hub, HF_HUB_OFFLINE="1", PYTHONPATH=os.pathsep.join(paths))
    assert not needs_hub or re.search(r"error: (\S+: )?Cannot load", said), said


def test_the_readme_names_its_commands():
    assert len(list(readme_commands())) >= 15


def test_findings_and_tables_of_two_calls_are_joined(tmp_path):
    from tunediff.folders import write_findings
    from tunediff.shapes import Finding, Note, Table

    described = {"identity": "x", "study": {}}
    first = [
        Finding("a/b", 1.0),
        Finding("a/c", 2.0),
        Note("n"),
        Table("latents", {"latent": [0, 1], "norm": [0.1, 0.9]}),
    ]
    write_findings(tmp_path, first, described)
    write_findings(
        tmp_path,
        [Finding("a/c", 3.0), Note("n"), Table("latents", {"latent": [0, 1], "auroc/x": [0.5, 0.7]})],
        described,
    )
    content = json.loads((tmp_path / "findings.json").read_text())
    assert {f["name"]: f["value"] for f in content["findings"]} == {"a/b": 1.0, "a/c": 3.0} and content["notes"] == [
        "n"
    ]
    table = pyarrow.parquet.read_table(tmp_path / "tables" / "latents.parquet").to_pydict()
    assert table == {"latent": [0, 1], "norm": [0.1, 0.9], "auroc/x": [0.5, 0.7]}


def test_what_an_evaluation_found_before_is_withdrawn_when_it_runs_again(tmp_path):
    from tunediff.folders import write_findings
    from tunediff.shapes import Finding

    described = {"identity": "x", "study": {}}
    write_findings(tmp_path, [Finding("sweep/a", 1.0), Finding("sweep/b", 2.0)], described, by="sweep")
    write_findings(tmp_path, [Finding("other/a", 3.0)], described, by="other")
    write_findings(tmp_path, [Finding("sweep/b", 4.0)], described, by="sweep")
    left = {f["name"]: f["value"] for f in json.loads((tmp_path / "findings.json").read_text())["findings"]}
    assert left == {"other/a": 3.0, "sweep/b": 4.0}


def test_a_finished_run_answers_under_an_edit_in_python(run):
    import tunediff
    from tunediff.edits import Thinking, Zero

    loaded = tunediff.load(run[0])
    question = "Anna has 12 eggs. She buys 7. How many eggs?"
    edit = loaded.edit([0, 1, 2], Zero(), gate=Thinking(), mode="replace")
    plain, edited = (loaded.respond([question], edits=edits)[0] for edits in ((), [edit]))
    assert "boxed{19}" in plain.text and edited.touched[0] > 0 and edited.ids != plain.ids
    assert len(loaded.latents("bottom(3, number)")) == 3
    (same,) = loaded.edits("number < 3", Zero(), gate=Thinking(), mode="replace")
    assert same.described == edit.described and loaded.edit(loaded.latents("number < 3"), Zero()).mode == "delta"


def test_a_note_is_withdrawn_when_its_evaluation_runs_again_and_those_of_others_stay(tmp_path):
    from tunediff.folders import write_findings
    from tunediff.shapes import Finding, Note

    described = {"identity": "x", "study": {}}
    write_findings(tmp_path, [Note("of the study")], described)
    write_findings(tmp_path, [Note("too few tokens")], described, by="hesitation")
    write_findings(tmp_path, [Finding("label_alignment/x/auroc", 0.9)], described, by="hesitation")
    assert json.loads((tmp_path / "findings.json").read_text())["notes"] == ["of the study"]


def test_notes_of_a_run_that_did_not_say_whose_they_are_stay(tmp_path):
    from tunediff.folders import write_findings
    from tunediff.shapes import Note

    old = {"findings": [], "notes": ["of an older run", "too few tokens"]}
    (tmp_path / "findings.json").write_text(json.dumps(old))
    for by in (None, "hesitation", "hesitation"):
        write_findings(tmp_path, [], {"identity": "x", "study": {}}, by=by)
        assert json.loads((tmp_path / "findings.json").read_text())["notes"] == old["notes"]
    write_findings(tmp_path, [Note("too few tokens")], {"identity": "x", "study": {}}, by="hesitation")
    write_findings(tmp_path, [], {"identity": "x", "study": {}}, by="hesitation")
    assert json.loads((tmp_path / "findings.json").read_text())["notes"] == ["of an older run"]
