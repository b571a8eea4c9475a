"""Every option of conf/evaluation, asked of a pair with the tokenizers of real models on real traces: it runs, or one sentence
says, before a weight is loaded, why it cannot."""

import dataclasses
import re

import hydra
import pytest
import torch

from conftest import ROOT
from real_tokenizers import real
from tunediff.activations import harvest
from tunediff.dictionary import TranscoderAdapter
from tunediff.evaluations import Telling
from tunediff.settings import check
from tunediff.shapes import Finding, Note, Refused, Rows, Table
from tunediff.study.parts import (
    STUDY,
    build_adapter,
    build_dictionary,
    check_evaluations,
    evaluations_of,
    given_of,
    inside,
    pair_and_text,
    streams_of,
)
from tunediff.study.run import found_by

OPTIONS = sorted(path.stem for path in (ROOT / "conf" / "evaluation").glob("*.yaml"))
BEHAVIOUR = [name for name in OPTIONS if "defaults/behaviour" in (ROOT / f"conf/evaluation/{name}.yaml").read_text()]
CHOOSES = ("ablation", "scaling", "patching", "steering_sweep", "latent_sets")
FEW = {  # words that make an evaluation short, or that it has to be given
    **dict.fromkeys(("ablation", "scaling", "patching"), ["draws=1", "modes=[delta]"]),
    "steering_sweep": ["strengths=[1]", "behind=[after_prefix]"],
    "direction_steering": ["draws=1", "strengths=[1]", "controls=[]", "norm_tokens=400"],
    "direction_necessity": ["draws=1", "rounds=1"],
    "latent_sets": ["draws=1", "control_sizes=[1]"],
    "attribution_graphs": ["count=1", "context=12", "most_latents=8"],
    "kl_patching": ["draws=1", "best=4"],
    "latent_cache": ["latents=4"],
    "directions": ["draws=2"],
    "gradient": ["layer=1", "examples=2", "draws=1", "strengths=[1]"],
}
ADAPTED = ("dictionary=transcoder_adapter", "dictionary.latents=16", "layer=all")
COSTLY = (
    "fidelity",
    "kl_patching",
    "replacement",
    "tokenizers",
    "toy",
    "usual",
    "lora_ablation",
)  # they compute logits of all tokens
LABELLED = ("hesitation", "labels", "probing", "sentences")  # they need each label in both halves of the documents
SILENT = ("none", "latent_cache", "latent_classes")  # nothing, files, what a judge says
NO_ADAPTER = "has no adapters to read; choose model_pair=toy_lora, or one made by finetune.py"
# sentences with which an option is refused: of a crosscoder, and of a transcoder adapter
CROSSCODER = {
    **dict.fromkeys(
        ("adapter_recovery", "attribution_graphs", "latent_sets", "replacement"),
        "asks about a transcoder adapter: choose",
    ),
    **dict.fromkeys(("lora_ablation", "polarity_examples", "unit_comparison"), NO_ADAPTER),
    "toy": r"asks for the label 'check', of which the held-out text has 0 tokens and 1 is needed. Its labels are .*step_end",
    "toy_labels": r"evaluation=check asks for the label 'check'.* Its labels are .*backtracks .*or leave check out",
    "division": r"asks for the label '(division|operation)', of which the held-out text has 0 tokens",
    "recovery": r"is no fully fine-tuned model of .*evaluation.recovery.full.path names it",
    "autointerp": "evaluation.autointerp.judge.model is not set: give it on the command line",
    "trait": "is no problem of the embedded language, whose rule tells its traits",
    "trait_judge": "evaluation.trait.scorer.judge.model is not set: give it on the command line",
}
ADAPTER = {
    **dict.fromkeys(("lora_ablation", "polarity_examples", "unit_comparison"), NO_ADAPTER),
    **dict.fromkeys(
        ("toy", "usual", "fidelity", "kl_patching", "latent_scaling"), "a transcoder adapter reconstructs nothing"
    ),
    **{name: CROSSCODER[name] for name in ("toy_labels", "division", "recovery", "autointerp", "trait", "trait_judge")},
    "latent_cache": "evaluation.latent_cache.latents=4 takes the latents that belong most to one of two models",
    "patching": "evaluation.patching.role=base: latents of a transcoder adapter are written in the adapter model",
}
# those that take a second or two
FAST = "ablation attention_sinks benchmark directions examples geometry gradient layer_divergence logit_effect positions".split()
FAST += [
    name for name in CROSSCODER if name not in ("autointerp", "trait_judge")
] + "segments steering_sweep tokenizers".split()


def composed(option, *words):
    data = "${oc.env:TUNEDIFF_DATA}"
    given = [
        "model_pair=r1_vs_qwen",
        "text=traces",
        "text.context=256",
        "scale=smoke",
        "layer=1",
        f"evaluation={option}",
        *words,
    ]
    for role, name in (("base", "qwen"), ("tuned", "r1_qwen")):
        given += [f"model_pair.{role}.path={real(name)}", f"model_pair.{role}.dtype=float32"]
    given += [f"task.math500.file='{data}/math500/test.jsonl.gz'", "task.math500.problems=2"]
    given += ["direction.tokens=4000"]
    shorter = ["decoding.tokens=6"] if option in BEHAVIOUR else []
    if option in CHOOSES:  # a label that so little text has often enough
        shorter += ["chosen_by.label=step_end", "chosen_by.at=null", "chosen_by.count=2"]
    given += [f"evaluation.{option}.{word}" for word in (*shorter, *FEW.get(option, []))]
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(ROOT / "conf")):
        return hydra.compose("train", given)


def asked(option, given, *words):
    """The evaluations of an option, once what is checked before a weight is loaded has let them pass."""
    cfg = composed(option, *words)
    check(cfg, STUDY)
    evaluations = evaluations_of(cfg.evaluation, learns=True, inside=inside(cfg))
    check_evaluations(evaluations, given.pair, given.text, tokens=4_000)
    return evaluations


@pytest.fixture(scope="module")
def traces(data_folder):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUNEDIFF_DATA", str(data_folder))
        yield


@pytest.fixture(scope="module")
def crosscoder(traces):
    return given_with()


@pytest.fixture(scope="module")
def adapter(traces):
    return given_with(*ADAPTED)


def given_with(*words):
    """An untrained dictionary over the loaded pair, and a little held-out text."""
    cfg = composed("none", *words)
    pair, text = pair_and_text(cfg)
    streams = streams_of(cfg, pair)
    pair.load("cpu")
    made = build_adapter(cfg, streams, True) if inside(cfg) else build_dictionary(cfg.dictionary, streams)
    if isinstance(made, TranscoderAdapter):
        with torch.no_grad():
            for layer in made.layers:
                layer.W_dec.normal_(std=0.02, generator=torch.Generator().manual_seed(0))
    given = dataclasses.replace(given_of(pair, text, made, 400, None, logits_mb=512), tokens_per_batch=256)
    if not isinstance(made, TranscoderAdapter):
        made.fit(Rows(harvest(pair, given.held_out[0], streams).values))
    made.eval().requires_grad_(False)
    return given


def outcome(option, given, refusals, tmp_path, *words):
    if option in refusals:
        with pytest.raises(Refused, match=refusals[option]):
            asked(option, given, *words)
        return
    tokens = 400 if option in COSTLY else 40_000 if option in LABELLED else 4_000
    given = dataclasses.replace(
        given, folder=tmp_path, tokens=tokens, tokens_per_batch=256 if option in COSTLY else 2048
    )
    evaluations = asked(option, given, *words)
    found = [one for name, evaluation in evaluations.items() for one in found_by(name, evaluation, given)]
    notes = [one.text for one in found if isinstance(one, Note)]
    assert option in SILENT or any(isinstance(one, Finding | Table) for one in found), notes
    # where a thinking begins and ends is once a document, of which labels asks for more than are read here
    assert option in (*COSTLY, "labels") or not any("was not measured" in said for said in notes), notes


@pytest.mark.parametrize("option", FAST)
def test_an_evaluation_runs_on_a_real_pair_or_is_refused_before_it(option, crosscoder, tmp_path):
    outcome(option, crosscoder, CROSSCODER, tmp_path)


def test_a_choice_by_a_label_that_is_too_rare_is_refused_with_the_labels_that_are_there(crosscoder):
    evaluations = evaluations_of(composed("ablation").evaluation, learns=True)
    evaluations["ablation"].chosen_by = Telling(label="hesitation_follows", at="step_end", count=2)
    with pytest.raises(Refused) as refused:
        check_evaluations(evaluations, crosscoder.pair, crosscoder.text, tokens=300)
    said = r"asks for the label 'hesitation_follows', of which the held-out text has \d tokens and 10 are needed. Its labels are "
    assert re.search(
        said + r".*step_end \(\d+\).*: name one with evaluation.ablation.chosen_by.label=", str(refused.value)
    )


@pytest.mark.slow
@pytest.mark.parametrize("option", [name for name in OPTIONS if name not in FAST])
def test_so_does_every_other(option, crosscoder, tmp_path):
    outcome(option, crosscoder, CROSSCODER, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("option", OPTIONS)
def test_and_with_transcoder_adapters(option, adapter, tmp_path):
    outcome(option, adapter, ADAPTER, tmp_path, *ADAPTED)
