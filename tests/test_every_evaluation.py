"""Every option of conf/evaluation, asked of a pair with the tokenizers of real models on real traces: it runs, or one sentence
says, before a weight is loaded, why it cannot."""

import dataclasses

import hydra
import pytest
import torch

from conftest import ROOT
from real_tokenizers import real
from tunediff.activations import harvest
from tunediff.dictionary import TranscoderAdapter
from tunediff.evaluations import Given
from tunediff.shapes import Finding, Note, Refused, Rows
from tunediff.study.parts import (
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
SMALL = {  # words that make an evaluation short
    **dict.fromkeys(BEHAVIOUR, []),
    **{
        name: [f"evaluation.{name}.draws=1", f"evaluation.{name}.modes=[delta]"]
        for name in ("ablation", "scaling", "patching")
    },
    "steering_sweep": ["evaluation.steering_sweep.strengths=[1]", "evaluation.steering_sweep.behind=[after_prefix]"],
    "latent_sets": [
        "evaluation.latent_sets.draws=1",
        "evaluation.latent_sets.control_sizes=[1]",
        "evaluation.latent_sets.chosen_by.count=2",
    ],
    "attribution_graphs": [
        "evaluation.attribution_graphs.count=1",
        "evaluation.attribution_graphs.context=12",
        "evaluation.attribution_graphs.most_latents=8",
    ],
    "kl_patching": ["evaluation.kl_patching.draws=1", "evaluation.kl_patching.best=4"],
    "latent_cache": ["evaluation.latent_cache.latents=4"],
}
NO_ADAPTER = "No low-rank adapter|no adapter|lora"
# sentences with which an option is refused: of a crosscoder, and of a transcoder adapter
CROSSCODER = {
    **dict.fromkeys(("adapter_recovery", "attribution_graphs", "latent_sets", "replacement"), "transcoder_adapter"),
    **dict.fromkeys(("lora_ablation", "polarity_examples", "unit_comparison"), NO_ADAPTER),
    "toy": r"asks for the label 'check', of which the held-out text has 0 tokens and 1 are needed. Its labels are .*step_end",
    "toy_labels": r"evaluation=check asks for the label 'check'.* Its labels are .*backtracks .*or leave check out",
    "recovery": "is no fully fine-tuned model of",
    "autointerp": "judge.model",
}
ADAPTER = {
    **dict.fromkeys(("lora_ablation", "polarity_examples", "unit_comparison"), NO_ADAPTER),
    **dict.fromkeys(
        ("toy", "usual", "fidelity", "kl_patching", "latent_scaling"), "a transcoder adapter reconstructs nothing"
    ),
    **{name: CROSSCODER[name] for name in ("toy_labels", "recovery", "autointerp")},
    "patching": "patching",
}
# those that take a second or two
FAST = (
    "ablation attention_sinks benchmark examples geometry hesitation kl_patching layer_divergence logit_effect".split()
)
FAST += [name for name in CROSSCODER if name != "autointerp"] + "segments sentences steering_sweep tokenizers".split()


def composed(option, *words):
    data, two = "${oc.env:TUNEDIFF_DATA}", [f"model_pair.{role}.dtype=float32" for role in ("base", "tuned")]
    folders = [f"model_pair.base.path={real('qwen')}", f"model_pair.tuned.path={real('r1_qwen')}"]
    small = [
        f"task.math500.file='{data}/math500/test.jsonl.gz'",
        "text=traces",
        "text.context=256",
        "scale=smoke",
        "layer=1",
    ]
    if option in BEHAVIOUR:
        small += [f"evaluation.{option}.problems=2", f"evaluation.{option}.decoding.tokens=6"]
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(ROOT / "conf")):
        given = [
            "model_pair=r1_vs_qwen",
            *folders,
            *two,
            *small,
            f"evaluation={option}",
            *SMALL.get(option, []),
            *words,
        ]
        return hydra.compose("train", given)


def asked(option, *words):
    """A config, the evaluations of it that are not refused, its pair and its text."""
    cfg = composed(option, *words)
    pair, text = pair_and_text(cfg)
    if "judge" in str(cfg.evaluation) and option == "autointerp":
        raise Refused("evaluation.autointerp.judge.model=???")
    evaluations = evaluations_of(cfg.evaluation, learns=True, inside=inside(cfg))
    check_evaluations(evaluations, pair, text, tokens=1_000)
    return cfg, evaluations


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
    return given_with("dictionary=transcoder_adapter", "dictionary.latents=16")


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


def outcome(option, given: Given, refusals, tmp_path, *words):
    if option in refusals:
        with pytest.raises(Refused, match=refusals[option]) as refused:
            asked(option, *words)
        return str(refused.value)
    _, evaluations = asked(option, *words)
    given = dataclasses.replace(given, folder=tmp_path)
    found = [one for name, evaluation in evaluations.items() for one in found_by(name, evaluation, given)]
    notes = [one.text for one in found if isinstance(one, Note)]
    assert (
        option == "none" or any(isinstance(one, Finding) for one in found) or option in ("logit_effect", "examples")
    ), notes
    return notes


@pytest.mark.parametrize("option", FAST)
def test_an_evaluation_runs_on_a_real_pair_or_is_refused_before_it(option, crosscoder, tmp_path):
    outcome(option, crosscoder, CROSSCODER, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("option", [name for name in OPTIONS if name not in FAST])
def test_so_does_every_other(option, crosscoder, tmp_path):
    outcome(option, crosscoder, CROSSCODER, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("option", OPTIONS)
def test_and_with_transcoder_adapters(option, adapter, tmp_path):
    outcome(option, adapter, ADAPTER, tmp_path, "dictionary=transcoder_adapter", "dictionary.latents=16")
