"""How tokens are read by a person: laws on the tokenizers of real models, on real traces and on planted characters."""

import functools
import itertools
import re
import unicodedata

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from conftest import save_model
from real_tokenizers import real
from tunediff.dictionary import L1, Crosscoder, Normalisation
from tunediff.evaluations import Trained
from tunediff.evaluations.judging.examination import marked, plain
from tunediff.evaluations.reading.examples import Examples
from tunediff.models import ModelPair, ModelSource
from tunediff.text import PLACEHOLDER, Spelling, Text, encode, read_files, text_of

REAL = ["qwen", "r1_qwen", "llama", "r1_llama", "deepseek_v3", "qwen3", "gemma3"]
ODD = "Wait , it is naïve 🙂 𝔽 東京 龘.\n\n  two\u3000x 👨‍👩‍👧 <think>\n<|im_start|></script> ⟨AB⟩ ⟨x 1/3⟩ 𝒙²"


@functools.cache
def tokenizer_of(name):
    return AutoTokenizer.from_pretrained(real(name))


def ids_of(tokenizer, text):
    return encode(tokenizer, text)["input_ids"]


@pytest.mark.parametrize("name", REAL)
def test_the_tokens_of_a_text_are_the_text_and_none_is_unreadable(name, data_folder):
    tokenizer = tokenizer_of(name)
    spelled, met = Spelling(tokenizer), 0
    traces = itertools.islice(read_files(str(data_folder / "reasoning_traces" / "traces.jsonl.gz")), 6)
    for text in (ODD, *(row["question"] + row["thinking"] for row in traces)):
        tokens = spelled.of(ids_of(tokenizer, text))
        assert text_of(tokens) == tokenizer.decode(ids_of(tokenizer, text)) and "\ufffd" not in "".join(tokens)
        assert text_of(tokens) in (text, unicodedata.normalize("NFC", text))  # which Qwen reads
        met += sum(bool(PLACEHOLDER.search(token)) for token in tokens)
    assert met > 3
    assert "\ufffd" in spelled.of(ids_of(tokenizer, "a \ufffd b"))[-2]  # what the text itself has


@pytest.mark.parametrize("name", REAL)
def test_a_character_of_several_tokens_stands_at_its_last_and_is_named_at_those_before(name):
    tokenizer, spelled = tokenizer_of(name), Spelling(tokenizer_of(name))
    ids = ids_of(tokenizer, "x 𝔽y")
    tokens = spelled.of(ids)
    count = sum(bool(PLACEHOLDER.search(token)) for token in tokens) + 1
    assert count > 2 and tokens[-2:] == ["𝔽", "y"]
    parts = [token.lstrip() for token in tokens[-1 - count : -2]]
    assert parts == [f"⟨𝔽 {n}/{count}⟩" for n in range(1, count)]
    # alone each is its bytes, and together these are the character
    alone = [spelled(token).lstrip() for token in ids[-1 - count : -1]]
    assert all(PLACEHOLDER.fullmatch(token) for token in alone)
    assert bytes.fromhex("".join(re.findall("[0-9A-F]{2}", "".join(alone)))).decode() == "𝔽"
    assert spelled.of(ids[-3:])[0] == alone[-2]  # where a text breaks off
    unseen = [token for token in spelled.of(ids_of(tokenizer, "\U000e0041")) if PLACEHOLDER.search(token)]
    assert unseen and all("U+E0041" in token for token in unseen)  # takes no ink


@pytest.mark.parametrize("name", REAL)
def test_no_other_token_of_a_vocabulary_looks_like_a_part_of_a_character(name):
    tokenizer, spelled = tokenizer_of(name), Spelling(tokenizer_of(name))
    for token in (*tokenizer.added_tokens_decoder, *range(0, len(tokenizer), 211)):
        alone = tokenizer.decode([token])
        assert bool(PLACEHOLDER.search(spelled(token))) is ("\ufffd" in alone and "\ufffd" not in spelled(token))
        assert PLACEHOLDER.search(spelled(token)) or spelled(token) == alone
    special = ids_of(tokenizer, tokenizer.eos_token)
    assert spelled.of(special) == [tokenizer.eos_token]


def test_a_leading_space_survives_a_decoder_that_strips_it_from_what_it_decodes_first():
    letters = ["a", "▁", "▁a", "▁Wait", "i", "s"]
    vocabulary = {piece: n for n, piece in enumerate(["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *letters])}
    made = Tokenizer(models.BPE(vocabulary, [("▁", "a")], unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    made.normalizer = normalizers.Replace(" ", "▁")
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    made.decoder = decoders.Sequence(steps)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>")
    wait, byte = vocabulary["▁Wait"], vocabulary["<0xE6>"]
    assert tokenizer.decode([wait]) == "Wait"
    spelled = Spelling(tokenizer)
    assert spelled(wait) == " Wait" and spelled(byte) == "⟨E6⟩"
    assert spelled.of(ids_of(tokenizer, "a 東s")) == ["a", " ", "⟨東 1/3⟩", "⟨東 2/3⟩", "東", "s"]


def test_a_token_is_looked_up_once(tokenizer):
    decoded = []

    class Counting:
        def __getattr__(self, name):
            return getattr(tokenizer, name)

        def __call__(self, text, **options):
            return tokenizer(text, **options)

        def decode(self, ids, **options):
            decoded.append(tuple(ids))
            return tokenizer.decode(ids, **options)

    ids, spelled = ids_of(tokenizer, "Wait, 3 + 3 is 6."), Spelling(Counting())
    assert [spelled(i) for i in [*ids, *ids]] == [tokenizer.decode([i]) for i in [*ids, *ids]]
    assert sum(len(pair) == 2 for pair in decoded) == len(set(ids)) > 3


def test_examples_are_spelled_in_their_documents(tmp_path, tokenizer):
    """The toy's tokenizer has no token for such a character: each is read in bytes."""
    rows = [{"text": f"{n} apples 🙂 and 東京 {n}, naïve."} for n in range(40)]
    text = Text(lambda: iter(rows), held_out=0.5, context=64, window=8, tokens_per_batch=512)
    folders = [save_model(tmp_path / role, tokenizer, seed=seed) for seed, role in enumerate(("base", "tuned"))]
    pair = ModelPair(*(ModelSource(str(folder), dtype="float32") for folder in folders)).load()
    torch.manual_seed(0)
    dictionary = Crosscoder(
        pair.streams("resid_post", 1), latents=8, sparsity=L1(0.0), normalisation=Normalisation
    ).requires_grad_(False)
    (table,) = Examples(strongest=4, before=60, after=60).run(Trained(pair, text, 400, dictionary=dictionary))
    known = {row["text"] for row in rows}
    assert {text_of(tokens).removesuffix(tokenizer.eos_token) for tokens in table.columns["tokens"]} <= known
    assert all({"⟨🙂 1/4⟩", "⟨東 2/3⟩", "🙂", "東"} <= set(tokens) for tokens in table.columns["tokens"])
    (table,) = Examples(strongest=4, before=2, after=2).run(Trained(pair, text, 400, dictionary=dictionary))
    assert "\ufffd" not in str(table.columns["tokens"])  # also where a window cuts a character


def test_a_judge_reads_the_text_and_a_marked_part_of_a_character_by_its_name():
    tokens = ["So ", "⟨🙂 1/2⟩", "🙂", "\n"]
    assert plain(tokens) == "So 🙂\\n"
    assert marked(tokens, {1}) == "So <<⟨🙂 1/2⟩>>🙂\\n" and marked(tokens, {1, 2}) == "So <<🙂>>\\n"
