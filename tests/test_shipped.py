"""Every pair, text and dictionary that is shipped, together: composed, checked and costed by a dry run against stand-ins of
the real shapes, in one process."""

import functools
import itertools

import hydra
import pytest

import tunediff.text
from conftest import ROOT
from stand_ins import PAIRS, read_planted, words_of, words_of_text
from tunediff.models import ModelSource
from tunediff.settings import check, digest, plain
from tunediff.shapes import Refused
from tunediff.study.devices import GPUS
from tunediff.study.estimate import cost_of, table
from tunediff.study.parts import STUDY, agreed_upon
from tunediff.study.rehearsal import rehearse
from tunediff.study.run import Run

CONF = ROOT / "conf"
OPTIONS = {
    group: sorted(p.stem for p in (CONF / group).glob("*.yaml")) for group in ("model_pair", "text", "dictionary")
}
DICTIONARIES = OPTIONS["dictionary"]
TEXTS = [text for text in OPTIONS["text"] if not text.startswith("toy")]  # the toy language is the embedded pair's


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("stand_ins")


@pytest.fixture(autouse=True)
def planted(monkeypatch):
    """The Hub gives planted rows, and a tokenizer and a look at a model's files are taken once for all tests."""
    monkeypatch.setattr(tunediff.text, "read_hub", read_planted)
    monkeypatch.setattr(ModelSource, "tokenizer", lambda self: tokenizer_in(self.path))
    monkeypatch.setattr(ModelSource, "empty", property(lambda self: empty_of(self.path)))
    monkeypatch.setattr(ModelSource, "check", lambda self: checked(self))


whole_tokenizer, whole_check, whole_empty = ModelSource.tokenizer, ModelSource.check, ModelSource.empty.func


@functools.cache
def tokenizer_in(path):
    return whole_tokenizer(ModelSource(path))


@functools.cache
def empty_of(path):
    return whole_empty(ModelSource(path))


@functools.cache
def checked(source):
    whole_check(source)


agreed = {}


def dry_run(*words):
    """What `dry_run=true` does with a line, but that a pair and a text are agreed upon once."""
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        cfg = hydra.compose("train", [*words, "task=toy", "launcher.device=h200"])
    check(cfg, STUDY)
    key = digest([plain(cfg.model_pair), plain(cfg.text)])
    if key not in agreed:
        agreed[key] = agreed_upon(cfg, evaluated=True)[:2]
    pair, text = agreed[key]
    run = Run(cfg, ROOT / "nowhere")
    run.build(pair, text, weights=False)
    rehearse(run, pair)
    cost = cost_of([run], pair, GPUS["h200"])
    assert "h200" in table([([run], cost)], device=GPUS["h200"])
    assert cost.memory > 5e9 and min(sum(cost.training.values()), sum(cost.evaluation.values())) > 1e12
    return cfg, cost


def test_no_shipped_pair_is_left_out():
    assert {*PAIRS} == {pair for pair in OPTIONS["model_pair"] if not pair.startswith("toy")} - {"local"}


def words_for(pair, dictionary):
    """The words that choose a dictionary, and what a pair can have one of."""
    words = [f"dictionary={dictionary}"]
    if dictionary == "transcoder_adapter":
        words.append("evaluation=[replacement,geometry,segments,logit_effect,examples]")
    return words


def try_one(pair, dictionary, place, *more):
    words = [*words_of(pair, place), *words_for(pair, dictionary), *more]
    if dictionary == "lora_sae" and pair != "qwen32b_lora":
        with pytest.raises(Refused, match="has no adapters to read; choose model_pair="):
            dry_run(*words)
        return
    dry_run(*words)


@pytest.mark.parametrize("pair", PAIRS)
def test_a_pair_starts_with_its_own_study(pair, place):
    dry_run(*words_of(pair, place))


@pytest.mark.parametrize("dictionary", DICTIONARIES)
def test_a_dictionary_starts_on_a_real_pair(dictionary, place):
    try_one("qwen32b_lora" if dictionary == "lora_sae" else "r1_vs_qwen", dictionary, place)


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_starts_on_a_real_pair(text, place):
    dry_run(*words_of("r1_vs_qwen", place), *words_of_text(text, place))


@pytest.mark.slow
@pytest.mark.parametrize(("pair", "text", "dictionary"), list(itertools.product(PAIRS, TEXTS, DICTIONARIES)))
def test_every_pair_starts_with_every_text_and_dictionary(pair, text, dictionary, place):
    try_one(pair, dictionary, place, *words_of_text(text, place))
