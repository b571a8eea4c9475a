"""Hooks, pairs, layers and loading, on tiny random models of every family."""

import functools
import inspect

import pytest
import torch
import transformers as hf
from torch import nn

from conftest import save_model
from tunediff.edits import Sequences
from tunediff.hookpoints import HOOKPOINTS, LORA, ForwardStopped, Point, decoder_layers, reading, writing
from tunediff.models import ModelPair, ModelSource, PairError, agree
from tunediff.shapes import TRANSCODER, Refused
from tunediff.text import Text
from tunediff.toy import language
from tunediff.toy.tokenizer import build_tokenizer

SAID = Text(lambda: language.rows(0, "trace"), held_out=0.0, context=256)
OF_LAYERS = [name for name in HOOKPOINTS if name not in (LORA, TRANSCODER)]  # adapters are added to a model
SMALL = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2}
GROUPED = {**SMALL, "num_key_value_heads": 1, "head_dim": 8, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
FAMILIES = {
    "qwen2": (hf.Qwen2Config, hf.Qwen2ForCausalLM, {k: v for k, v in GROUPED.items() if k != "head_dim"}),
    "qwen3": (hf.Qwen3Config, hf.Qwen3ForCausalLM, GROUPED),
    "llama": (hf.LlamaConfig, hf.LlamaForCausalLM, GROUPED),
    "mistral": (hf.MistralConfig, hf.MistralForCausalLM, GROUPED),
    "gemma2": (hf.Gemma2Config, hf.Gemma2ForCausalLM, GROUPED),
    "gemma3": (hf.Gemma3TextConfig, hf.Gemma3ForCausalLM, GROUPED),
    "gpt2": (
        hf.GPT2Config,
        hf.GPT2LMHeadModel,
        {"vocab_size": 64, "n_embd": 16, "n_layer": 3, "n_head": 2, "bos_token_id": 1, "eos_token_id": 2},
    ),
    "neox": (hf.GPTNeoXConfig, hf.GPTNeoXForCausalLM, {**SMALL, "bos_token_id": 1, "eos_token_id": 2}),
}


@pytest.fixture(params=FAMILIES)
def model(request):
    torch.manual_seed(0)
    config, kind, settings = FAMILIES[request.param]
    return kind(config(**settings)).eval()


IDS = torch.randint(3, 64, (2, 7), generator=torch.Generator().manual_seed(0))


def values(model, points, *, stop=False):
    with torch.no_grad(), reading(model, points, stop=stop) as read:
        try:
            model(input_ids=IDS)
        except ForwardStopped:
            assert stop
    return read


def test_readings_equal_the_models_own_hidden_states(model):
    with torch.no_grad():
        states = model(input_ids=IDS, output_hidden_states=True).hidden_states
    read = values(model, [Point(h, layer) for layer in range(3) for h in ("resid_pre", "resid_post")])
    for layer in range(3):
        assert torch.equal(read[Point("resid_pre", layer)], states[layer])
    for layer in range(2):  # after the last layer transformers gives the state behind the final norm
        assert torch.equal(read[Point("resid_post", layer)], states[layer + 1])


def test_a_run_stops_at_the_last_reading_and_never_reaches_the_head(model):
    seen = []
    decoder_layers(model)[2].register_forward_pre_hook(lambda *_: seen.append("layer 2"))
    model.get_output_embeddings().register_forward_pre_hook(lambda *_: seen.append("head"))
    points = [Point(hookpoint, 1) for hookpoint in OF_LAYERS]
    stopped, whole = values(model, points, stop=True), values(model, points)
    assert seen == ["layer 2", "head"]  # from the run that was not stopped
    assert all(torch.equal(stopped[p], whole[p]) for p in points)
    assert all(stopped[p].shape == (2, 7, 16) for p in points if p.hookpoint != "mlp_neurons")


def test_writing_what_was_read_changes_nothing_and_writing_zero_does(model):
    with torch.no_grad():
        clean = model(input_ids=IDS).logits
        for hookpoint in OF_LAYERS:
            with writing(model, Point(hookpoint, 1), lambda value: value.clone()):
                assert torch.equal(model(input_ids=IDS).logits, clean)
            with writing(model, Point(hookpoint, 1), torch.zeros_like):
                assert not torch.allclose(model(input_ids=IDS).logits, clean)


def test_nothing_stays_hooked_after_an_error(model):
    def hooks():
        return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())

    for context in (reading(model, [Point("resid_post", 1)]), writing(model, Point("mlp_in", 0), torch.zeros_like)):
        with pytest.raises(RuntimeError, match="inside"), context:
            assert hooks() == 1
            raise RuntimeError("inside")
        assert hooks() == 0


def batch_of(pair, **settings):
    text = Text(
        lambda: language.rows(0, "trace"),
        held_out=0.0,
        **{"context": 256, "window": 8, "tokens_per_batch": 600, **settings},
    )
    return next(text.batches(pair.tokenizers))


def test_a_padded_batch_reads_as_each_document_alone(pair):
    streams = pair.streams("resid_post", 1)
    text = Text(lambda: language.rows(0, "trace"), held_out=0.0, context=256, window=8, tokens_per_batch=900)
    batch = next(b for b in text.batches(pair.tokenizers) if len(b.ids[0]) > 2)
    together = pair.read(batch, streams)[1]
    for row in range(len(batch.ids[0])):
        length = int(batch.mask[0][row].sum())
        with torch.no_grad():
            alone = pair.models["tuned"](
                input_ids=batch.ids[0][row : row + 1, :length], output_hidden_states=True
            ).hidden_states[2]
        kept = batch.sequence == row
        assert torch.allclose(together[kept], alone[0, batch.position[kept]], atol=1e-5)


def test_both_models_read_the_same_ids_and_each_its_own_weights(pair):
    batch = batch_of(pair)
    base, tuned = pair.read(batch, pair.streams("resid_post", 1))
    assert base.shape == tuned.shape == (len(batch.token), 32)
    assert not torch.allclose(base, tuned)
    assert torch.equal(*(pair.inputs(role, batch)["input_ids"] for role in ("base", "tuned")))


def test_a_shift_reads_the_tuned_model_earlier_and_the_base_where_it_is(pair, folders):
    shifted = ModelPair(*pair.sources.values(), shift=1)
    shifted.models = pair.models
    batch, streams = batch_of(pair), pair.streams("resid_post", 1)
    base, tuned = pair.read(batch, streams)
    same, earlier = shifted.read(batch, streams)
    assert torch.equal(base, same)
    follows = (batch.position[1:] == batch.position[:-1] + 1) & (batch.sequence[1:] == batch.sequence[:-1])
    assert follows.any() and torch.equal(earlier[1:][follows], tuned[:-1][follows])


def test_one_model_or_the_difference_can_be_read_alone(pair, folders):
    batch = batch_of(pair)
    both = pair.streams("resid_post", [1, 2])
    values = dict(zip(both, pair.read(batch, both), strict=True))
    for role in ("base", "tuned"):
        alone = pair.streams("resid_post", [1, 2], reads=role)
        assert alone == [s for s in both if s.role == role]
        assert all(torch.equal(v, values[s]) for s, v in zip(alone, pair.read(batch, alone), strict=True))
    apart = pair.streams("resid_post", [1, 2], reads="difference")
    for stream, value in zip(apart, pair.read(batch, apart), strict=True):
        base, tuned = (values[stream._replace(role=role)] for role in ("base", "tuned"))
        assert torch.equal(value, tuned - base) and str(stream).startswith("difference.")
    with pytest.raises(Refused, match="dictionary.reads='all': choose both, base, tuned, difference"):
        pair.streams("resid_post", 1, reads="all")
    unlike = ModelPair(*(ModelSource(str(folders[name]), dtype="float32") for name in ("base", "wide")))
    assert unlike.streams("resid_post", 3, reads="tuned")[0].width == 48
    with pytest.raises(Refused, match="reads=difference needs models of the same width"):
        unlike.streams("resid_post", 0.5, reads="difference", equal_widths=False)


def renamed(forward):
    """As transformers marks a renamed argument: the new name alone is in the signature that is wrapped."""

    @functools.wraps(forward)
    def wrapped(*args, **given):
        assert "past_key_values" not in given, "`past_key_values` is deprecated"
        return forward(*args, **given)

    return wrapped


class StandIn(nn.Module):
    """A model behind a forward of its own."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def answer(self, cache, **given):
        names = inspect.signature(self.model.forward).parameters
        return self.model(**given, **{"cache" if "cache" in names else "past_key_values": cache})


class OldName(StandIn):
    def forward(self, input_ids, attention_mask, position_ids, use_cache, past_key_values=None):
        given = {"input_ids": input_ids, "attention_mask": attention_mask, "position_ids": position_ids}
        return self.answer(past_key_values, **given, use_cache=use_cache)


class NewName(StandIn):
    def forward(self, input_ids, attention_mask, position_ids, use_cache, cache=None):
        given = {"input_ids": input_ids, "attention_mask": attention_mask, "position_ids": position_ids}
        return self.answer(cache, **given, use_cache=use_cache)


class NewNameOldAllowed(NewName):
    forward = renamed(NewName.forward)


@pytest.mark.parametrize("kind", [nn.Identity, OldName, NewName, NewNameOldAllowed])
def test_keys_and_values_are_given_under_the_name_that_the_models_forward_knows(pair, kind):
    tokenizer, rows = pair.tokenizers[0], torch.randint(3, 60, (2, 9), generator=torch.Generator().manual_seed(0))
    prompts, responses = rows[:, :6].tolist(), rows[:, 6:]
    whole, _ = pair.run("tuned", Sequences.of_responses(tokenizer, prompts, responses.tolist()))
    if kind is not nn.Identity:
        pair.models["tuned"] = kind(pair.models["tuned"])
    known, caches = Sequences.of_prompts(tokenizer, prompts), pair.new_caches()
    first, _ = pair.run("tuned", known, caches=caches)
    known.extend(responses, torch.ones_like(responses))
    rest, _ = pair.run("tuned", known, caches=caches)
    assert rest.shape[1] == 3 and torch.allclose(torch.cat([first, rest], dim=1), whole, atol=1e-5)


def test_layers_are_counted_from_0_or_given_as_depth(pair, folders):
    assert [(s.role, s.layer) for s in pair.streams("resid_post", 0.5)] == [("base", 1), ("tuned", 1)]
    assert [s.layer for s in pair.streams("mlp_out", [0, 2])] == [0, 0, 2, 2]
    uneven = ModelPair(ModelSource(str(folders["base"])), ModelSource(str(folders["wide"])))
    assert [(s.layer, s.width) for s in uneven.streams("resid_post", 0.75, equal_widths=False)] == [(2, 32), (3, 48)]


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda p: p.streams("resid_post", 3), r"layer=3 is out of range: the base model .* has layers 0 to 2"),
        (lambda p: p.streams("resid_post", "abc"), r"layer='abc' is not a number: give 0 to 2"),
        (lambda p: p.streams("resid_post", 1.5), "a fraction is a relative depth"),
        (lambda p: p.streams("resid_mid", 1), "hookpoint 'resid_mid' is unknown; the hookpoints are"),
    ],
)
def test_a_place_that_is_not_there_is_refused_before_weights_are_loaded(folders, ask, message):
    unloaded = ModelPair(*(ModelSource(str(folders[role])) for role in ("base", "tuned")))
    with pytest.raises(Refused, match=message):
        ask(unloaded)


def test_different_widths_are_refused_where_directions_are_compared(folders):
    pair = ModelPair(ModelSource(str(folders["base"])), ModelSource(str(folders["wide"])))
    with pytest.raises(PairError, match=r"different widths at resid_post \(base 32, tuned 48\).*equal_widths=false"):
        pair.streams("resid_post", 1)


def test_a_missing_model_says_how_to_point_at_a_folder():
    with pytest.raises(
        PairError, match=r"Cannot load 'nobody/nothing'.*hf download nobody/nothing.*model_pair.base.path=<folder>"
    ):
        ModelPair(ModelSource("nobody/nothing"), ModelSource("nobody/nothing"))


def test_tokenizers_that_cut_text_differently_are_refused_with_an_example(tmp_path, folders):
    other = build_tokenizer(["Anna has 3 apples"], size=300)
    save_model(tmp_path, other, seed=0)
    sources = ModelSource(str(folders["base"]), dtype="float32"), ModelSource(str(tmp_path), dtype="float32")
    with pytest.raises(
        PairError, match=r"tokenize \d+ of the tried texts differently, such as '.*model_pair.align=by_text"
    ):
        agree(ModelPair(*sources), SAID)
    by_text = ModelPair(*sources, align="by_text").load()
    assert agree(by_text, SAID).notes == []
    batch = batch_of(by_text)
    base, tuned = by_text.read(batch, by_text.streams("resid_post", 1))
    assert len(base) == len(tuned) == len(batch.token) > 0


def test_ids_outside_a_vocabulary_are_refused(tmp_path, folders, tokenizer):
    config = hf.AutoConfig.from_pretrained(folders["base"])
    config.vocab_size = len(tokenizer) - 5
    hf.Qwen2ForCausalLM(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    pair = ModelPair(ModelSource(str(folders["base"])), ModelSource(str(tmp_path)))
    with pytest.raises(PairError, match=r"one of the models knows only \d+"):
        agree(pair, SAID)


def test_differing_special_tokens_are_told(tmp_path, folders, tokenizer):
    save_model(tmp_path, tokenizer, seed=0)
    file = tmp_path / "tokenizer.json"
    file.write_text(file.read_text().replace("<｜User｜>", "<|im_start|>"))
    config = tmp_path / "tokenizer_config.json"
    config.write_text(config.read_text().replace("<｜User｜>", "<|im_start|>"))
    agreed = agree(ModelPair(ModelSource(str(folders["base"])), ModelSource(str(tmp_path))), SAID)
    asked = tokenizer.convert_tokens_to_ids("<｜User｜>")
    assert f"tuned reads id {asked} as <|im_start|>, base as <｜User｜> (32 times)" in agreed.notes[0]
    assert agreed.foreign == 32 / agreed.tokens


def test_a_tokenizer_is_loaded_as_its_file_says_not_rebuilt_from_the_model_type(folders, tokenizer):
    loaded = ModelSource(str(folders["base"])).tokenizer()
    assert len(loaded) == len(tokenizer)
    assert loaded.encode("12+30=42.\n") == tokenizer.encode("12+30=42.\n")


def test_an_unknown_role_or_alignment_is_refused(folders):
    source = ModelSource(str(folders["base"]))
    with pytest.raises(PairError, match="choose base or tuned"):
        ModelPair(source, source, tokenizer="teacher")
    with pytest.raises(PairError, match="choose strict or by_text"):
        ModelPair(source, source, align="loose")
