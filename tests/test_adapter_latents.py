"""Latents of a transcoder adapter under edits: in scoring, in generation, and in the interventions with their controls."""

import functools

import pytest
import torch

from test_behaviour import by_condition, parted
from tunediff.benchmarks import Task
from tunediff.dictionary import L1, Crosscoder, Normalisation, TranscoderAdapter
from tunediff.edits import Add, Everywhere, Keep, MeanAblate, Patch, Scale, Sequences, Zero
from tunediff.evaluations import Intervention, SteeringSweep, Trained
from tunediff.evaluations.latents.edits import latent_edits, role_of
from tunediff.evaluations.latents.selection import alike, decoder_rows
from tunediff.evaluations.latents.steering import steering_parts
from tunediff.generation import Batched, Decoding, ask, generate
from tunediff.randomness import generator
from tunediff.shapes import ADAPTER, BASE, HYBRID, TUNED, Refused
from tunediff.text import Text
from tunediff.toy import language

EACH = 6  # latents of a layer
PLANTED = 2 * EACH + 1  # of the last of three layers: fires at every token, and writes the unembedding of a word
SOME = [1, EACH + 2, PLANTED]  # one of each layer
QUESTIONS = ["Anna has 12 eggs. She buys 7. How many eggs?", "Ben has 3 apples."]


@pytest.fixture
def trained(pair, tokenizer):
    return standing_beside(pair, tokenizer)


def standing_beside(pair, tokenizer):
    """Random transcoders beside the MLPs of tiny models, in the last of them a latent that only ever says one word."""
    streams = pair.streams("mlp_in", "all", reads=ADAPTER)
    adapter = TranscoderAdapter(streams, latents=EACH, sparsity=L1(coefficient=0.0))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for one in adapter.layers:
            one.W_dec.copy_(0.3 * torch.randn(one.W_dec.shape, generator=generator))
        last, n = adapter.layers[2], PLANTED - 2 * EACH
        last.W_enc[:, n], last.b_enc[n] = 0.0, 2.0
        word = pair.models[TUNED].get_output_embeddings().weight[said(tokenizer)]
        last.W_dec[n] = 20 * torch.nn.functional.normalize(word, dim=-1)
    adapter.eval().requires_grad_(False)
    pair.stand_beside(adapter)
    text = Text(lambda: language.rows(0, "trace"), held_out=language.is_held_out, context=256, window=16)
    return Trained(pair, text, 1500, dictionary=adapter)


def said(tokenizer):
    return tokenizer.convert_tokens_to_ids("Wait")


def logits(trained, edits=(), *, adapter=None):
    pair = trained.pair if adapter is None else trained.pair.with_adapter(adapter)
    asked = ask([(q, q) for q in QUESTIONS], pair.tokenizers[0])
    known = Sequences.of_prompts(pair.tokenizers[0], [one.ids for one in asked])
    with torch.no_grad():
        return pair.run(ADAPTER, known, edits)[0][known.real]


def answers(trained, edits=(), *, adapter=None):
    pair = trained.pair if adapter is None else trained.pair.with_adapter(adapter)
    asked = ask([(q, q) for q in QUESTIONS], pair.tokenizers[0])
    found = generate(pair, ADAPTER, asked, Decoding(tokens=12), engine=Batched(), edits=edits)
    return [response.ids for response in found]


def doubled(adapter, numbers):
    made = adapter.only(range(adapter.latents))
    for n in numbers:
        layer, within = adapter.place_of(n)
        made.layers[layer].W_dec[within] *= 2
    return made


# -- the law ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("numbers", [[PLANTED], SOME], ids=str)
def test_zeroing_latents_is_leaving_them_out_and_scaling_them_is_scaling_their_decoder_rows(
    trained, numbers, tokenizer
):
    edits = functools.partial(latent_edits, trained, ADAPTER, numbers, seen=trained.statistics)
    adapter, plain, word = trained.dictionary, logits(trained), said(tokenizer)
    assert len(edits(Zero())) == len(numbers)  # one a layer
    without = logits(trained, edits(Zero()))
    assert torch.allclose(without, logits(trained, adapter=adapter.without(numbers)), atol=1e-5)
    assert (plain.argmax(-1) == word).all() and not (without.argmax(-1) == word).any()
    twice = logits(trained, edits(Scale(2.0)))
    assert torch.allclose(twice, logits(trained, adapter=doubled(adapter, numbers)), atol=1e-5)
    assert not torch.allclose(twice, plain, atol=1e-3)


def test_a_model_that_writes_under_an_edit_writes_what_it_would_without_these_latents(trained, tokenizer):
    edits = functools.partial(latent_edits, trained, ADAPTER, SOME, seen=trained.statistics)
    plain, without = answers(trained), answers(trained, edits(Zero()))
    assert {token for ids in plain for token in ids} == {said(tokenizer)}
    assert without == answers(trained, adapter=trained.dictionary.without(SOME)) != plain
    assert answers(trained, edits(Scale(2.0))) == answers(trained, adapter=doubled(trained.dictionary, SOME))


def test_what_a_mean_and_a_strength_are_is_found_on_the_held_out_text(trained):
    seen = trained.statistics
    assert seen.maximum[PLANTED] == pytest.approx(2.0) == seen.mean[PLANTED].item()
    part = latent_edits(trained, ADAPTER, [PLANTED], MeanAblate(), seen=seen)[0].part
    assert part.mean.item() == pytest.approx(2.0) and part.names == ("2.1",)
    same = logits(trained, latent_edits(trained, ADAPTER, [PLANTED], MeanAblate(), seen=seen))
    assert torch.allclose(same, logits(trained), atol=1e-4)  # it is always at its mean
    more = logits(trained, latent_edits(trained, ADAPTER, [PLANTED], Add(1.0), seen=seen))
    assert torch.allclose(more, logits(trained, adapter=doubled(trained.dictionary, [PLANTED])), atol=1e-4)


# -- in the interventions --------------------------------------------------------------------------------------------


def settings(**given):
    prompts = {"base": "{question}", "tuned": "{question} Let's think step by step."}
    task = Task(functools.partial(language.benchmark, 0, 3), question="question", answer="answer", prompts=prompts)
    return {
        "tasks": {"toy": task},
        "decoding": Decoding(tokens=8),
        "engine": Batched(64),
        "problems": None,
        "latents": [PLANTED],
        "role": None,
        "chosen_by": None,
        **given,
    }


def ablation(**given):
    return Intervention(
        **settings(name="ablation", **{"operations": {"zero": Zero()}, "modes": None, "draws": 1, **given})
    )


def test_an_ablation_of_an_adapters_latents_stands_beside_the_hybrid_and_latents_that_write_as_much(trained, tokenizer):
    _, tables, notes = parted(ablation(latents="top(1, norm)").run(trained))
    rows = by_condition(tables["ablation_conditions"])
    assert list(rows) == ["unedited", "other", "zero/delta", "random_latents/zero/delta"]
    assert [row["role"] for row in rows.values()] == [ADAPTER, HYBRID, ADAPTER, ADAPTER]
    assert rows["zero/delta"]["edit"] == "Zero() of 2.1 at adapter.transcoder.2, delta, Everywhere()"
    assert rows["zero/delta"]["change"] == pytest.approx(2.0) and rows["zero/delta"]["reference"] == "unedited"
    assert any("no control in a random direction" in note for note in notes)
    outputs = tables["ablation_outputs"]
    text = {name: [] for name in rows}
    for name, response in zip(outputs["condition"], outputs["response"], strict=True):
        text[name].append(response)
    word = tokenizer.decode([said(tokenizer)])
    assert all(one == 8 * word for one in text["unedited"]) and not any(word in one for one in text["zero/delta"])
    assert tables["ablation_latents"]["latent"] == [PLANTED]


def test_a_change_at_several_layers_is_a_mean_over_all_of_them(trained):
    rows = by_condition(parted(ablation(latents=SOME, draws=0).run(trained))[1]["ablation_conditions"])
    assert rows["zero/delta"]["edit"].count("adapter.transcoder") == 3
    assert 0 < rows["zero/delta"]["change"] < 2


def test_controls_of_an_adapters_latents_are_drawn_across_layers_by_what_they_write(trained):
    seen, norms = trained.statistics, decoder_rows(trained, None).norm(dim=-1)
    assert torch.allclose(norms, trained.dictionary.code_norms()) and int(norms.argmax()) == PLANTED
    drawn = {alike(seen, norms, [PLANTED], generator(seed, "a test"))[0] // EACH for seed in range(40)}
    assert drawn == {0, 1, 2}


def test_steering_adapters_latents_has_a_control_as_large_in_each_of_their_layers(trained):
    numbers, seen = [1, 3, PLANTED], trained.statistics
    _, (controls, others) = steering_parts(trained, ADAPTER, seen, numbers, unit="latent_maximum", draws=2, seed=0)
    rows = trained.dictionary.W_dec * seen.maximum[:, None]
    wanted = [rows[[1, 3]].sum(0).norm(), rows[PLANTED].norm()]
    assert [str(at) for at, _ in controls] == ["adapter.mlp_out.0", "adapter.mlp_out.2"]
    assert not torch.equal(controls[0][1].rows, others[0][1].rows)
    assert [float(part.scale * part.rows.norm()) for _, part in controls] == pytest.approx(list(map(float, wanted)))
    gates = {"everywhere": Everywhere()}
    sweep = SteeringSweep(strengths=[1.0], gates=gates, behind=None, **settings(latents=numbers))
    table = parted(sweep.run(trained))[1]["steering_sweep"]
    assert (
        table["kind"] == ["latents"] * 2 + ["random_direction"] * 2 and table["touched"][1] == table["touched"][3] == 1
    )
    with pytest.raises(Refused, match="choose latent_maximum"):
        steering_parts(trained, ADAPTER, seen, numbers, unit="residual_norm", draws=2, seed=0)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"modes": ["replace"]}, "reconstructs no hidden vector that could take its place"),
        ({"operations": {"patch": Patch()}}, r"Patch\(\) takes what the other model has"),
        ({"role": TUNED}, "ablation.role=tuned: latents of a transcoder adapter are written in the adapter model"),
        ({"latents": 3}, r"such as latents=\[3,17\], or an expression, such as latents='top\(3, norm\)'"),
    ],
)
def test_what_an_adapters_latents_cannot_have_is_refused(trained, given, said):
    with pytest.raises(Refused, match=said):
        list(ablation(**given).run(trained))


def test_the_model_that_is_written_follows_from_the_dictionary(trained):
    def role(reads, asked=None):
        made = Crosscoder(
            trained.pair.streams("resid_post", 1, reads=reads),
            latents=4,
            sparsity=L1(coefficient=0.0),
            normalisation=functools.partial(Normalisation, kind="none"),
        )
        return role_of(Trained(trained.pair, trained.text, 10, dictionary=made), asked, setting="ablation")

    assert [role(reads) for reads in ("both", TUNED, BASE, "difference")] == [TUNED, TUNED, BASE, TUNED]
    assert role("both", BASE) == role(TUNED, BASE) == BASE and role_of(trained, None, setting="a") == ADAPTER
    with pytest.raises(Refused, match="role=adapter is for latents of a transcoder adapter"):
        role("both", ADAPTER)
    with pytest.raises(Refused, match="choose base or tuned, or adapter"):
        ablation(role=HYBRID)
    with pytest.raises(Refused, match="leave `along` out"):
        latent_edits(trained, ADAPTER, [1], Keep(), seen=trained.statistics, along=torch.ones(3))
