"""Generation: the same response whatever stands beside it, however it is computed, and under every edit."""

import json
import shutil
import sys
import types
from pathlib import Path

import pytest
import torch
import transformers

from test_edits import dictionary_of, direction, latents
from toy_pair import held_out_problems
from tunediff.edits import (
    Add,
    AfterMatch,
    AfterTokens,
    Edit,
    Keep,
    Patch,
    Response,
    Scale,
    Sequences,
    Thinking,
    Whole,
    Zero,
)
from tunediff.generation import VLLM, Batched, Decoding, ask, generate, surprise
from tunediff.generation.sampling import drawn_from, next_tokens, penalised
from tunediff.generation.writer import Writer, before_stop
from tunediff.hookpoints import Point, reading
from tunediff.models import ModelPair, ModelSource
from tunediff.shapes import BASE, TUNED, Refused
from tunediff.text import encode

ROLES = (BASE, TUNED)


@pytest.fixture(scope="module")
def toy():
    sources = (ModelSource(f"pkg://tunediff.toy/weights/{role}", dtype="float32") for role in ROLES)
    return ModelPair(*sources).load()


@pytest.fixture(scope="module")
def asked(toy):
    problems = held_out_problems(64, 0)
    return ask([(str(n), problem.text) for n, problem in enumerate(problems)], toy.tokenizers[0])


def answers(pair, asked, *, role=TUNED, batch=64, edits=(), alongside=None, **decoding):
    settings = Decoding(**{"tokens": 200, **decoding})
    return generate(pair, role, asked, settings, engine=Batched(batch), edits=edits, alongside=alongside)


def dictionary(pair, roles, kind="mean_norm"):
    return dictionary_of([pair.streams("resid_post", 1, reads=role)[0] for role in roles], kind=kind)


def edits_of(pair, role, *, kind="mean_norm"):
    """One of each kind that a KV cache could break."""
    at = pair.streams("resid_post", 1, reads=role)[0]
    crosscoder, sae = dictionary(pair, ROLES, kind), dictionary(pair, [role], kind)
    return {
        "zero": Edit(at, latents(crosscoder), Zero(), Response()),
        "splice": Edit(at, latents(sae), Keep(), Thinking(), mode="replace"),
        "scale": Edit(at, latents(sae), Scale(4.0)),
        "patch": Edit(at, latents(crosscoder), Patch(), Response()),
        "whole": Edit(at, Whole(), Patch(), AfterMatch("boxed|has")),
        "add": Edit(at, direction_of(96), Add(8.0), AfterMatch("Okay, so .*?[.\n]")),
    }


def direction_of(width):
    made = direction(scale=20.0)
    rows = torch.nn.functional.normalize(torch.randn(1, width, generator=torch.Generator().manual_seed(0)), dim=-1)
    return made.__class__(rows, made.scale, made.mean)


def test_a_batch_of_64_is_64_batches_of_one(toy, asked):
    together, alone = (answers(toy, asked, tokens=16, batch=batch) for batch in (64, 1))
    assert together == alone and len({tuple(one.ids) for one in together}) > 30


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_response_depends_neither_on_order_nor_on_batches(toy, asked, role, temperature):
    together = answers(toy, asked, role=role, temperature=temperature, tokens=40)
    parted = answers(toy, asked[::-1], role=role, temperature=temperature, tokens=40, batch=11)[::-1]
    assert together == parted and len({tuple(one.ids) for one in together}) > 30


@torch.no_grad()
def without_cache(pair, role, prompt, edits, tokens):
    """Every step from the first token on."""
    written: list[int] = []
    end = pair.tokenizers[0].eos_token_id
    while len(written) < tokens:
        known = Sequences.of_responses(pair.tokenizers[0], [prompt.ids], [written])
        token = int(pair.run(role, known, edits)[0][0, -1].argmax())
        if token == end:
            break
        written.append(token)
    return written


@pytest.mark.parametrize("name", ["zero", "splice", "scale", "patch", "whole", "add"])
@pytest.mark.parametrize("role", ROLES)
def test_generation_with_edits_and_a_cache_is_generation_without_a_cache(toy, asked, role, name):
    edit = edits_of(toy, role)[name]
    found = answers(toy, asked[:3], role=role, edits=[edit], tokens=40)
    for prompt, response in zip(asked[:3], found, strict=True):
        assert response.ids == without_cache(toy, role, prompt, [edit], 40)
    plain = answers(toy, asked[:3], role=role, tokens=40)
    meets_no_gate = role == BASE and name in ("splice", "add")  # the base neither thinks nor says "Okay, so"
    assert ([one.ids for one in found] == [one.ids for one in plain]) == meets_no_gate
    assert all((one.touched == (0,)) == meets_no_gate for one in found)


def test_moments_of_a_sequence_are_those_of_its_prompt_at_every_step(toy, asked):
    edit = edits_of(toy, TUNED, kind="sequence_zscore")["zero"]
    found = answers(toy, asked[:3], edits=[edit], tokens=30)
    for prompt, response in zip(asked[:3], found, strict=True):
        assert response.ids == without_cache(toy, TUNED, prompt, [edit], 30)


def test_an_edit_of_no_strength_leaves_every_response(toy, asked):
    at = toy.streams("resid_post", 2, reads=TUNED)[0]
    edited = answers(toy, asked[:16], edits=[Edit(at, direction_of(96), Add(0.0))])
    assert [one.ids for one in edited] == [one.ids for one in answers(toy, asked[:16])]


def test_patched_from_its_own_response_the_base_is_given_what_stood_at_that_place(toy, asked):
    tuned = answers(toy, asked[:4])
    last = Edit(toy.streams("resid_post", 3, reads=BASE)[0], Whole(), Patch(), Response())
    patched = answers(toy, asked[:4], role=BASE, edits=[last], alongside=tuned, tokens=120)
    for prompt, source, response in zip(asked, tuned, patched, strict=False):
        known = Sequences.of_responses(toy.tokenizers[0], [prompt.ids], [source.ids])
        with torch.no_grad(), reading(toy.models[TUNED], [Point("resid_post", 3)], stop=False) as read:
            toy.run(TUNED, known)
            base = toy.models[BASE]
            expected = base.lm_head(base.model.norm(read[Point("resid_post", 3)]))[0].argmax(-1).tolist()
        start, count = len(prompt.ids), min(len(source.ids), len(response.ids))
        assert response.ids[1:count] == expected[start : start + count - 1]
        assert response.touched[0] in (count - 1, count)


# -- budgets ---------------------------------------------------------------------------------------------------------


def test_a_budget_cuts_and_says_so(toy, asked):
    cut = answers(toy, asked[:8], tokens=10)
    assert all(len(one.ids) == 10 and not one.finished for one in cut)
    assert all(one.finished for one in answers(toy, asked[:8]))
    whole = answers(toy, asked[:8])
    assert [one.ids for one in cut] == [one.ids[:10] for one in whole]


def test_thinking_is_ended_by_its_budget_and_an_answer_follows(toy, asked):
    cut = answers(toy, asked, think_at_most=8, conclusion="The answer is \\boxed{")
    for one in cut:
        thinking, tag, answer = one.text.partition("\n</think>\n\nThe answer is \\boxed{")
        assert tag and answer.partition("}")[0].isdigit()
        assert len(toy.tokenizers[0](thinking)["input_ids"]) == 8
    right = sum(f"boxed{{{p.answer}}}" in one.text for one, p in zip(cut, held_out_problems(64, 0), strict=True))
    assert right < 40  # it had no time to compute


def test_a_budget_ends_thinking_in_the_layout_that_it_was_begun_in(tokenizer):
    decoding = Decoding(tokens=200, think_at_most=40, conclusion="Answer: 7")
    for begun, ended in (
        ("<think>\n", "\n</think>\n\nAnswer: 7"),
        ("<|im_start|>think\n", "\n<|im_start|>answer\nAnswer: 7"),
    ):
        writer = Writer("x", decoding, tokenizer, {tokenizer.eos_token_id})
        for token in encode(tokenizer, begun + "12+7=19. " * 30)["input_ids"]:
            writer.take(token)
        text = tokenizer.decode(writer.ids)
        assert text.startswith(begun) and ended in text and text.partition(ended)[0].count("=") in range(2, 12)


def test_thinking_is_extended_by_wait_in_place_of_its_end(toy, asked):
    plain, longer = answers(toy, asked[:8]), answers(toy, asked[:8], extensions=1, extension="Wait, let me check.")
    for short, long in zip(plain, longer, strict=True):
        thinking = short.text.partition("</think>")[0]
        assert long.text.startswith(thinking + "Wait, let me check.")


def test_the_surprise_of_a_response_is_that_of_the_model_that_reads_it_alone(toy, asked):
    found = answers(toy, asked[:3], tokens=20)
    found[1] = found[1]._replace(ids=found[1].ids[:4])
    found[2] = found[2]._replace(ids=[])
    measured = surprise(toy, BASE, asked[:3], found, tokenizer=toy.tokenizers[0])
    for one, response, value in zip(asked, found, measured, strict=False):
        whole, first = torch.tensor([[*one.ids, *response.ids]]), len(one.ids)
        with torch.no_grad():
            scores = toy.models[BASE](whole).logits[0].double().log_softmax(-1)
        expected = -sum(float(scores[first + n - 1, token]) for n, token in enumerate(response.ids))
        assert value == pytest.approx(expected, rel=1e-4)


def test_thinking_is_extended_as_often_as_is_said(tokenizer):
    close, dot = (tokenizer.convert_tokens_to_ids(token) for token in ("</think>", "."))
    decoding = Decoding(tokens=50, extensions=2, extension=".")
    writer = Writer("a", decoding, tokenizer, {1}, opened="<think>")
    assert [writer.take(close) for _ in range(3)] == [dot, dot, close]


def test_of_several_stop_strings_the_first_that_comes_ends_a_response(tokenizer):
    ids = list(encode(tokenizer, "Anna has 3. Ben has 4, so")["input_ids"])
    assert tokenizer.decode(before_stop(ids, [",", "."], tokenizer)) == "Anna has 3"


def test_an_edit_whose_gate_never_opens_changes_nothing_by_nothing(toy, asked):
    edit = Edit(toy.streams("resid_post", 2, reads=TUNED)[0], Whole(), Zero(), AfterTokens(1000))
    (found,) = answers(toy, asked[:1], edits=[edit], tokens=5)
    assert found.touched == (0,) and found.change == (0.0,)


def test_a_stop_string_ends_a_response_before_it(toy, asked):
    stopped = answers(toy, asked[:8], stop=["\n</think>"])
    for one, whole in zip(stopped, answers(toy, asked[:8]), strict=True):
        assert one.finished and one.text == whole.text.partition("\n</think>")[0]


def test_every_end_token_of_a_model_ends_a_response(toy, asked, tmp_path):
    source = Path(toy.sources[TUNED].location)
    shutil.copytree(source, tmp_path / "model")
    dot = toy.tokenizers[0].convert_tokens_to_ids(".")
    config = json.loads((source / "generation_config.json").read_text())
    (tmp_path / "model" / "generation_config.json").write_text(json.dumps({**config, "eos_token_id": [1, dot]}))
    changed = ModelSource(str(tmp_path / "model"), dtype="float32")
    pair = ModelPair(toy.sources[BASE], changed).load()
    assert pair.ends(TUNED) == {1, dot} and toy.ends(TUNED) == {1}
    for one, whole in zip(answers(pair, asked[:4]), answers(toy, asked[:4]), strict=True):
        assert one.finished and one.text == whole.text.partition(".")[0]


def test_the_end_of_thinking_is_replaced_only_where_it_is_a_token(toy, asked):
    class Pieces:
        def __getattr__(self, name):
            return getattr(toy.tokenizers[0], name)

        def __call__(self, text, **options):
            return {"input_ids": [7, 8]}

    with pytest.raises(Refused, match="spells </think> in pieces"):
        generate(toy, TUNED, asked[:1], Decoding(extensions=1), engine=Batched(), tokenizer=Pieces())
    with pytest.raises(Refused, match="name the word"):
        Decoding(extensions=1, extension="")


def test_a_budget_over_the_context_is_refused_with_the_largest_that_fits(toy, asked):
    longest = max(len(one.ids) for one in asked)
    with pytest.raises(Refused, match=f"set decoding.tokens to at most {512 - longest}"):
        answers(toy, asked, tokens=512)
    with pytest.raises(Refused, match="decoding.temperature=-1 is out of range"):
        Decoding(temperature=-1)


# -- sampling --------------------------------------------------------------------------------------------------------


class Row:
    """A writer that writes what it is given."""

    ended = False

    def __init__(self, draw, **decoding):
        self.draw, self.decoding = draw, Decoding(**{"temperature": 0.5, **decoding})

    def take(self, token):
        return token


def unwritten(tokenizer, rows):
    return Sequences.of_prompts(tokenizer, [[7]] * rows)


def test_draws_follow_the_probabilities_of_the_nucleus(tokenizer):
    shares = torch.tensor([0.1, 0.5, 0.05, 0.35])
    rows, logits = [Row((n + 0.5) / 1000, top_p=0.8) for n in range(1000)], (0.5 * shares.log()).expand(1000, -1)
    drawn = torch.bincount(torch.tensor(next_tokens(logits, rows, unwritten(tokenizer, 1000))), minlength=4)
    assert drawn.tolist() == pytest.approx([0, 588, 0, 412], abs=1)  # 0.5 and 0.35 are enough for a share of 0.8


SAMPLING = [
    {"top_k": 5},
    {"top_p": 0.7},
    {"min_p": 0.2},
    {"top_k": 12, "top_p": 0.6},
    {"top_k": 20, "top_p": 0.9, "min_p": 0.1},
    {"repetition_penalty": 1.7, "top_p": 0.5},
    {"repetition_penalty": 0.6, "top_k": 7, "min_p": 0.3},
    {"top_k": 10_000, "top_p": 1.0, "min_p": 0.0},
]


@pytest.mark.parametrize("settings", SAMPLING, ids=str)
@pytest.mark.parametrize("temperature", [0.3, 2.5])
def test_what_may_be_drawn_and_how_likely_is_that_of_transformers(toy, settings, temperature):
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(16, 200, generator=generator) * 3
    prompts = [torch.randint(5, 200, (n % 5 + 8,), generator=generator).tolist() for n in range(16)]
    known = Sequences.of_prompts(toy.tokenizers[0], prompts)
    config = transformers.GenerationConfig(do_sample=True, temperature=temperature, **{"top_k": 0, **settings})
    expected = torch.stack(
        [processed(toy.models[TUNED], config, row, ids) for row, ids in zip(logits, prompts, strict=True)]
    )
    decoding = Decoding(temperature=temperature, **settings)
    scores = penalised(logits, known, decoding.repetition_penalty)
    shares, order = drawn_from(scores, decoding)
    found = torch.zeros_like(shares).scatter(1, order, shares / shares.sum(-1, keepdim=True))
    assert torch.equal(found > 0, expected.isfinite())
    assert torch.allclose(found.float(), expected.softmax(-1), atol=1e-5)


def processed(model, config, logits, ids):
    """Logits [vocabulary] after the processors that transformers makes of a config, in its order."""
    made = model._get_logits_processor(config, input_ids_seq_length=len(ids))
    return made(torch.tensor([ids]), logits[None].clone())[0]


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("penalty", [1.3, 0.8])
def test_responses_under_a_repetition_penalty_are_those_of_transformers(toy, asked, role, penalty):
    found = answers(toy, asked[:12], role=role, tokens=40, repetition_penalty=penalty)
    for one, response in zip(asked[:12], found, strict=True):
        ids = torch.tensor([one.ids])
        with torch.no_grad():
            whole = toy.models[role].generate(ids, max_new_tokens=40, do_sample=False, repetition_penalty=penalty)
        written = whole[0, len(one.ids) :].tolist()
        assert response.ids == [token for token in written if token not in toy.ends(role)]
    assert [one.ids for one in found] != [one.ids for one in answers(toy, asked[:12], role=role, tokens=40)]


def test_a_sampled_response_under_every_setting_depends_on_no_neighbour(toy, asked):
    settings = {"temperature": 1.2, "top_k": 30, "top_p": 0.9, "min_p": 0.02, "repetition_penalty": 1.1, "tokens": 30}
    together, parted = answers(toy, asked, **settings), answers(toy, asked[::-1], batch=7, **settings)[::-1]
    assert together == parted and len({tuple(one.ids) for one in together}) > 30


def with_config(place, source, **named):
    """A copy of a model whose generation_config.json names this."""
    shutil.copytree(source, place)
    (place / "generation_config.json").write_text(json.dumps({"eos_token_id": 1, **named}))
    return ModelSource(str(place), dtype="float32")


def test_a_model_is_decoded_as_its_own_generation_config_says_where_that_is_asked(toy, asked, tmp_path):
    names = {"do_sample": True, "temperature": 0.9, "top_k": 40, "repetition_penalty": 1.05}
    changed = with_config(tmp_path / "model", toy.sources[TUNED].location, **names)
    pair = ModelPair(toy.sources[BASE], changed).load()
    typed = {"temperature": 0.9, "top_k": 40, "repetition_penalty": 1.05, "tokens": 40}
    own = answers(pair, asked[:8], tokens=40, generation_config=True)
    assert own == answers(toy, asked[:8], **typed) != answers(toy, asked[:8], tokens=40)
    assert answers(pair, asked[:8], tokens=40) == answers(toy, asked[:8], tokens=40)  # it is on request
    base = answers(pair, asked[:8], role=BASE, tokens=40, generation_config=True)  # its file names nothing
    assert base == answers(toy, asked[:8], role=BASE, tokens=40)


@pytest.mark.parametrize(
    ("named", "expected"),
    [
        ({}, {}),
        ({"do_sample": False, "temperature": 0.6}, {"temperature": 0.0}),
        ({"do_sample": True}, {"temperature": 1.0}),
        ({"temperature": 0.6, "top_p": 0.95}, {"temperature": 0.6, "top_p": 0.95}),
        ({"do_sample": True, "top_k": -1, "min_p": 0.1}, {"temperature": 1.0, "top_k": 0, "min_p": 0.1}),
        ({"max_new_tokens": 7, "num_beams": 4}, {}),
    ],
)
def test_what_a_generation_config_does_not_name_stays_as_it_is_set(named, expected):
    given = {"temperature": 0.3, "top_k": 9, "top_p": 0.8, "tokens": 5, "seed": 4}
    assert Decoding(**given, generation_config=True).of_model(named) == Decoding(**{**given, **expected})
    assert Decoding(**given).of_model(named) == Decoding(**given)


def test_settings_out_of_range_are_refused():
    for name, value in (("top_k", -1), ("min_p", 1.5), ("repetition_penalty", 0.0), ("top_p", 0.0)):
        with pytest.raises(Refused, match=f"decoding.{name}={value} is out of range"):
            Decoding(**{name: value})


def test_another_seed_draws_other_responses(toy, asked):
    first, second = (answers(toy, asked[:16], temperature=1.5, seed=seed) for seed in (0, 1))
    assert [one.ids for one in first] != [one.ids for one in second]


# -- vLLM ------------------------------------------------------------------------------------------------------------


class PretendedVLLM(types.ModuleType):
    """vLLM's interface, as far as it is used, in front of transformers."""

    def __init__(self, pair):
        super().__init__("vllm")
        self.SamplingParams = lambda **given: types.SimpleNamespace(**given)
        self.TokensPrompt = lambda prompt_token_ids: prompt_token_ids
        outer = self

        class LLM:
            def __init__(self, model, **given):
                outer.model = model

            def generate(self, prompts, settings):
                outer.seeds = [one.seed for one in settings]
                for prompt, one in zip(prompts, settings, strict=True):
                    with torch.no_grad():
                        ids = (
                            pair.models[TUNED]
                            .generate(torch.tensor([prompt]), max_new_tokens=one.max_tokens, do_sample=False)[
                                0, len(prompt) :
                            ]
                            .tolist()
                        )
                    reason = "stop" if ids[-1] == pair.tokenizers[0].eos_token_id else "length"
                    yield types.SimpleNamespace(outputs=[types.SimpleNamespace(token_ids=ids, finish_reason=reason)])

        self.LLM = LLM


def test_vllm_gives_the_same_responses_behind_the_same_function(toy, asked, monkeypatch):
    with pytest.raises(Refused, match=r"pip install .tunediff\[vllm\]"):
        generate(toy, TUNED, asked[:2], Decoding(), engine=VLLM())
    module = PretendedVLLM(toy)
    monkeypatch.setitem(sys.modules, "vllm", module)
    found = generate(toy, TUNED, asked[:4], Decoding(tokens=200), engine=VLLM())
    assert found == answers(toy, asked[:4])
    assert module.model.endswith("tuned") and len(set(module.seeds)) == 4
    cut = generate(toy, TUNED, asked[:4], Decoding(tokens=9), engine=VLLM())
    assert cut == answers(toy, asked[:4], tokens=9)
    with pytest.raises(Refused, match="neither edits nor budget forcing"):
        generate(toy, TUNED, asked[:1], Decoding(extensions=1), engine=VLLM())
    with pytest.raises(Refused, match="before top_p=0.9"):
        generate(toy, TUNED, asked[:1], Decoding(temperature=1.0, min_p=0.1, top_p=0.9), engine=VLLM())


def test_vllm_is_given_every_setting(toy, asked, monkeypatch):
    module, given = PretendedVLLM(toy), []
    module.SamplingParams = lambda **settings: given.append(settings) or types.SimpleNamespace(**settings)
    monkeypatch.setitem(sys.modules, "vllm", module)
    settings = {"temperature": 0.7, "top_k": 20, "top_p": 0.8, "repetition_penalty": 1.1}
    generate(toy, TUNED, asked[:1], Decoding(tokens=9, **settings), engine=VLLM())
    assert given[0].items() >= {**settings, "min_p": 0.0, "max_tokens": 9}.items()
