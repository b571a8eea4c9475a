"""Models whose rotary frequencies follow the length of a text: a text is read and answered alike whatever stands beside it."""

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, Phi3Config, Phi3ForCausalLM

from conftest import logits_of, save_model
from test_edits import direction
from tunediff.edits import Add, Edit, Patch, Response, Sequences, Whole
from tunediff.generation import VLLM, Asked, Batched, Decoding, generate, surprise
from tunediff.models import ModelPair, ModelSource
from tunediff.models.rotary import text_lengths
from tunediff.shapes import BASE, TUNED, Refused
from tunediff.text import Batch, padded

SWITCH = 16
LENGTHS = (3, 9, 15, 16, 17, 30)


def drawn(*lengths, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(5, 200, (length,), generator=generator).tolist() for length in lengths]


def saved(folder, tokenizer, *, seed, kind="longrope"):
    torch.manual_seed(seed)
    shape = {
        "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4,
        "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None, "pad_token_id": None, "initializer_range": 0.3,
    }  # fmt: skip
    if kind == "longrope":
        scaling = {"rope_type": "longrope", "short_factor": [1.0, 1.1, 1.3, 2.0], "long_factor": [4.0, 8.0, 20.0, 60.0]}
        made = {"max_position_embeddings": 256, "original_max_position_embeddings": SWITCH, "rope_scaling": scaling}
        model = Phi3ForCausalLM(Phi3Config(**shape, **made))
    else:
        scaling = {"rope_type": "dynamic", "factor": 8.0}
        model = LlamaForCausalLM(LlamaConfig(**shape, max_position_embeddings=SWITCH, rope_scaling=scaling))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def places(tmp_path_factory, tokenizer):
    place = tmp_path_factory.mktemp("rotary")
    return {
        (kind, role): saved(place / kind / role, tokenizer, seed=n, kind=kind)
        for kind in ("longrope", "dynamic")
        for n, role in enumerate((BASE, TUNED))
    }


@pytest.fixture(scope="module")
def pairs(places):
    return {
        kind: ModelPair(*(ModelSource(str(places[kind, role]), dtype="float32") for role in (BASE, TUNED))).load()
        for kind in ("longrope", "dynamic")
    }


def own(places, kind="longrope", role=TUNED):
    """The model as transformers has it."""
    return AutoModelForCausalLM.from_pretrained(places[kind, role], dtype=torch.float32).eval()


def batch(rows):
    ids, mask = padded(rows, "right")
    where = mask.flatten().nonzero()[:, 0]
    none = torch.zeros(len(where), dtype=torch.long)
    return Batch((ids,), (mask,), (where,), ids.flatten()[where], none, none, none, none, none.float(), {}, {}, none)


# -- reading ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["longrope", "dynamic"])
def test_a_text_is_read_alike_beside_any_other_and_as_transformers_reads_it_alone(pairs, places, kind):
    pair, rows = pairs[kind], drawn(*LENGTHS)
    streams = [pair.streams("resid_post", 2, reads=role)[0] for role in (BASE, TUNED)]
    together, logits = pair.read(batch(rows), streams), logits_of(pair, TUNED, batch(rows))
    for n, row in enumerate(rows):
        alone = pair.read(batch([row]), streams)
        for stream, whole, one in zip(streams, together, alone, strict=True):
            assert torch.allclose(whole.split(LENGTHS)[n], one, rtol=1e-4, atol=1e-4), stream
        with torch.no_grad():
            expected = own(places, kind)(torch.tensor([row])).logits[0]  # a fresh one: dynamic remembers lengths
        assert torch.allclose(logits[n, : len(row)], expected, rtol=1e-4, atol=1e-4)


def test_without_it_a_long_neighbour_changes_what_is_read(places):
    """The premise: transformers reads the short text otherwise beside the long one."""
    short, long = drawn(9, 30)
    ids, mask = padded([short, long], "right")
    model = own(places)
    with torch.no_grad():
        together, alone = model(ids, attention_mask=mask).logits[0, :9], model(torch.tensor([short])).logits[0]
    assert (together - alone).abs().max() > 0.1


def test_texts_packed_in_one_row_have_lengths_of_their_own():
    positions = torch.tensor([[0, 1, 2, 0, 1, 0], [0, 0, 0, 1, 2, 3], [7, 8, 9, 9, 9, 9]])
    assert text_lengths(positions).tolist() == [[3, 3, 3, 2, 2, 1], [1, 1, 4, 4, 4, 4], [10] * 6]


def test_a_packed_text_is_read_as_it_is_alone(pairs):
    short, long = drawn(9, 30)
    model = pairs["longrope"].models[TUNED]
    rotary, x = model.base_model.rotary_emb, torch.zeros(1, 1, 32)
    positions = torch.tensor([[*range(9), *range(30)]])
    apart = [torch.cat(pieces, 1) for pieces in zip(*(rotary(x, torch.arange(n)[None]) for n in (9, 30)), strict=True)]
    for packed, expected in zip(rotary(x, positions), apart, strict=True):
        assert torch.equal(packed, expected)


# -- generation ------------------------------------------------------------------------------------------------------


def responses(pair, prompts, *, tokens=24, role=TUNED, batch=8, **given):
    asked = [Asked(str(n), ids) for n, ids in enumerate(prompts)]
    return generate(pair, role, asked, Decoding(tokens=tokens), engine=Batched(batch), **given)


def test_a_response_across_the_switch_is_that_of_transformers_row_by_row(pairs, places):
    prompts, model = drawn(*LENGTHS), own(places)
    for ids, found in zip(prompts, responses(pairs["longrope"], prompts), strict=True):
        whole = model.generate(torch.tensor([ids]), max_new_tokens=24, do_sample=False, pad_token_id=0)[0].tolist()
        written = whole[len(ids) :]
        assert found.ids == [token for token in written if token != model.config.eos_token_id]
        assert found.finished == (written[-1] == model.config.eos_token_id)


def test_keys_that_were_kept_across_the_switch_would_write_something_else(pairs, places, monkeypatch):
    prompts = drawn(*LENGTHS)
    right = responses(pairs["longrope"], prompts)
    monkeypatch.setattr("tunediff.models.pair.crosses_switch", lambda *given: False)
    wrong = responses(pairs["longrope"], prompts)
    assert [len(ids) <= SWITCH and a.ids != b.ids for ids, a, b in zip(prompts, right, wrong, strict=True)].count(
        True
    ) > 1
    assert right[4:] == wrong[4:]  # these prompts were long from the start


def edits_of(pair):
    at = pair.streams("resid_post", 1, reads=TUNED)[0]
    made = direction(scale=20.0)
    along = torch.nn.functional.normalize(torch.randn(1, 32, generator=torch.Generator().manual_seed(0)), dim=-1)
    return {
        "add": Edit(at, made.__class__(along, made.scale, made.mean), Add(4.0), Response()),
        "patch": Edit(at, Whole(), Patch(), Response()),
    }


@pytest.mark.parametrize("name", ["add", "patch"])
def test_an_edited_response_across_the_switch_is_one_without_a_cache(pairs, name):
    pair, prompts, edit = pairs["longrope"], drawn(9, 13, 15, 20), edits_of(pairs["longrope"])[name]
    plain = responses(pair, prompts, tokens=16)
    for ids, one, unedited in zip(prompts, responses(pair, prompts, tokens=16, edits=[edit]), plain, strict=True):
        written = []
        while len(written) < 16:
            known = Sequences.of_responses(pair.tokenizers[0], [ids], [written])
            with torch.no_grad():
                token = int(pair.run(TUNED, known, [edit])[0][0, -1].argmax())
            if token in pair.ends(TUNED):
                break
            written.append(token)
        assert one.ids == written and one.ids != unedited.ids
        assert one.touched[0] in (len(written), len(written) - 1)  # once a token, also where it was computed twice


def test_what_stood_in_the_other_models_own_response_is_read_by_its_own_length(pairs):
    pair, prompts = pairs["longrope"], drawn(9, 13, 6)
    written = [drawn(count, seed=count)[0] for count in (20, 2, 12)]  # the second never reaches the switch
    others = [one._replace(ids=ids) for one, ids in zip(responses(pair, prompts, tokens=1), written, strict=True)]
    edit = edits_of(pair)["patch"]
    together = responses(pair, prompts, edits=[edit], alongside=others, tokens=20)
    for n, ids in enumerate(prompts):
        (alone,) = responses(pair, [ids], edits=[edit], alongside=[others[n]], tokens=20)
        assert (alone.ids, alone.touched) == (together[n].ids, together[n].touched) and alone.touched[0] > 1
        assert alone.change == pytest.approx(together[n].change, rel=1e-4)


def test_the_surprise_of_a_response_is_that_of_its_text_alone(pairs, places):
    pair, prompts, model = pairs["longrope"], drawn(4, 12, 20), own(places)
    asked = [Asked(str(n), ids) for n, ids in enumerate(prompts)]
    written = [one._replace(ids=drawn(5, seed=n)[0]) for n, one in enumerate(responses(pair, prompts, tokens=1))]
    found = surprise(pair, TUNED, asked, written, tokenizer=pair.tokenizers[0])
    for ids, one, value in zip(prompts, written, found, strict=True):
        with torch.no_grad():
            scores = model(torch.tensor([[*ids, *one.ids]])).logits[0].double().log_softmax(-1)
        expected = -sum(float(scores[len(ids) + n - 1, token]) for n, token in enumerate(one.ids))
        assert value == pytest.approx(expected, rel=1e-4)


def test_an_engine_with_one_set_of_factors_is_refused(pairs):
    with pytest.raises(Refused, match="longrope.*engine._target_=tunediff.generation.Batched"):
        generate(pairs["longrope"], TUNED, [Asked("a", [5])], Decoding(tokens=8), engine=VLLM())


def test_a_model_on_the_weights_of_another_reads_as_it_does(pairs, places):
    model = pairs["longrope"].models[TUNED]
    other = ModelSource(str(places["longrope", TUNED]), dtype="float32").weights(under=model)
    assert [type(one).__name__ for one in other.modules()].count("OwnLength") == 1
    assert len(other.base_model._forward_pre_hooks) == 1
    ids, mask = padded(drawn(9, 30), "right")
    assert torch.equal(other(ids, attention_mask=mask).logits, model(ids, attention_mask=mask).logits)


def test_other_models_are_left_as_they_are(tmp_path, tokenizer):
    folder = save_model(tmp_path / "plain", tokenizer, seed=0)
    model = ModelSource(str(folder), dtype="float32").weights()
    assert type(model.base_model.rotary_emb).__name__ == "Qwen2RotaryEmbedding"
    assert not model.base_model._forward_pre_hooks
