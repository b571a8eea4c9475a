"""Edits: what they change, where, and what they leave alone."""

import copy
import dataclasses

import pytest
import torch

from tunediff.dictionary import BatchTopK, Crosscoder, Linear, Normalisation
from tunediff.edits import (
    Add,
    AfterMatch,
    AfterPrefix,
    AfterTokens,
    Answer,
    Clamp,
    Directions,
    Edit,
    Every,
    Everywhere,
    Keep,
    Latents,
    MeanAblate,
    Patch,
    Prompt,
    Response,
    Scale,
    Sequences,
    Thinking,
    WhileActive,
    Whole,
    Zero,
    editing,
)
from tunediff.edits.parts import Place
from tunediff.hookpoints import Point, reading
from tunediff.shapes import BASE, DIFFERENCE, TUNED, Refused, Rows, Stream
from tunediff.text import encode

WIDTH = 32
AT = {role: Stream(role, "resid_post", 1, WIDTH) for role in (BASE, TUNED)}
BOTH = [AT[BASE], AT[TUNED]]
QUESTION = "<｜User｜>Anna has 12 eggs. She buys 7. How many eggs?<｜Assistant｜>"
ANSWERS = (
    "<think>\nOkay, so the user wants the eggs of Anna.\n12+7=19.\n</think>\n\nThe answer is \\boxed{19}.",
    "Okay, 19.",
)


def ids(tokenizer, text):
    return list(encode(tokenizer, text)["input_ids"])


@pytest.fixture
def known(tokenizer):
    """Two rows of unequal length, padded on both sides."""
    prompts = [ids(tokenizer, QUESTION), ids(tokenizer, QUESTION.replace(" She buys 7.", ""))]
    return lambda: Sequences.of_responses(tokenizer, prompts, [ids(tokenizer, answer) for answer in ANSWERS])


@pytest.fixture
def same_head(pair):
    """base and tuned differ in their decoder layers alone."""
    for name in ("embed_tokens", "norm"):
        setattr(pair.models[TUNED].model, name, copy.deepcopy(getattr(pair.models[BASE].model, name)))
    pair.models[TUNED].lm_head = copy.deepcopy(pair.models[BASE].lm_head)
    return pair


def dictionary_of(streams, *, latents=40, sparsity=None, seed=0, kind="mean_norm", perfect=False):
    made = Crosscoder(
        streams,
        latents=sum(s.width for s in streams) if perfect else latents,
        sparsity=sparsity or Linear(coefficient=0.0),
        normalisation=lambda widths: Normalisation(widths, kind=kind),
        encoder_start="random",
        decoder_norm=1.0,
        seed=seed,
    )
    generator = torch.Generator().manual_seed(seed)
    made.fit(Rows(torch.randn(64, sum(s.width for s in streams), generator=generator), torch.rand(64, len(streams), 2)))
    made.normalisation.largest_norm.fill_(torch.inf)
    if perfect:
        with torch.no_grad():
            made.W_enc.copy_(torch.eye(made.latents))
            made.W_dec.copy_(torch.eye(made.latents))
            made.b_dec.zero_()
    return made.requires_grad_(False)


def latents(dictionary, *numbers, scale=1.0, mean=0.0):
    chosen = torch.tensor(numbers or range(dictionary.latents))
    return Latents(dictionary, chosen, torch.full((len(chosen),), scale), torch.full((len(chosen),), mean))


def direction(seed=0, *, scale=1.0, mean=0.0, count=1):
    rows = torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(seed))
    return Directions(rows, torch.full((count,), scale), torch.full((count,), mean))


@torch.no_grad()
def logits(pair, role, known, *edits):
    return pair.run(role, known, edits)[0]


@torch.no_grad()
def hidden(pair, role, known, *edits, layer=1):
    """[batch, position, width] that leave a layer, as the next one sees them."""
    above = Point("resid_pre", layer + 1)
    with reading(pair.models[role], [above], stop=False) as read:
        pair.run(role, known, edits)
    return read[above]


PARTS = {
    "latents": lambda: latents(dictionary_of(BOTH), 3, 5),
    "directions": lambda: direction(),
    "whole": lambda: Whole(scale=torch.ones(WIDTH)),
}


@pytest.mark.parametrize("name", PARTS)
@pytest.mark.parametrize("operation", [Add(0.0), Scale(1.0), Keep()], ids=str)
@pytest.mark.parametrize("along", [False, True])
def test_an_edit_of_no_strength_changes_no_logit(pair, known, name, operation, along):
    edit = Edit(AT[TUNED], PARTS[name](), operation, along=torch.ones(WIDTH) if along else None)
    assert torch.equal(logits(pair, TUNED, known(), edit), logits(pair, TUNED, known()))
    stronger = Edit(AT[TUNED], PARTS[name](), Add(1.0))
    assert not torch.equal(logits(pair, TUNED, known(), stronger), logits(pair, TUNED, known()))


def test_patching_all_of_tuned_into_base_at_every_layer_gives_tuneds_logits(same_head, known):
    pair, real = same_head, known().real
    edits = [
        Edit(stream, Whole(), Patch())
        for layer in range(pair.depth(BASE))
        for stream in pair.streams("resid_post", layer, reads=BASE)
    ]
    patched, tuned = logits(pair, BASE, known(), *edits), logits(pair, TUNED, known())
    assert torch.allclose(patched[real], tuned[real], atol=1e-5)
    assert not torch.allclose(logits(pair, BASE, known())[real], tuned[real], atol=1e-2)


@pytest.mark.parametrize("role", [BASE, TUNED])
@pytest.mark.parametrize("kind", ["none", "mean_norm", "unit_rms"])
def test_the_splice_of_a_perfect_dictionary_changes_nothing(pair, known, role, kind):
    perfect = latents(dictionary_of(BOTH, kind=kind, perfect=True))
    spliced = logits(pair, role, known(), Edit(AT[role], perfect, Keep(), mode="replace"))
    assert torch.allclose(spliced, logits(pair, role, known()), atol=1e-4)
    worse = latents(dictionary_of(BOTH, kind=kind))
    broken = logits(pair, role, known(), Edit(AT[role], worse, Keep(), mode="replace"))
    assert not torch.allclose(broken, logits(pair, role, known()), atol=1e-2)


def test_delta_keeps_the_error_that_replace_loses(pair, known):
    dictionary, real = dictionary_of(BOTH), known().real & ~known().special
    own = {role: hidden(pair, role, known()) for role in BOTH_ROLES}
    rows = Rows(torch.cat([own[BASE][real], own[TUNED][real]], dim=-1))
    codes = dictionary.encode(rows)
    restored = dictionary.part(dictionary.decode(codes), TUNED)
    zeroed = codes.clone()
    zeroed[:, 7] = 0
    without = dictionary.part(dictionary.decode(zeroed), TUNED)
    for mode, expected in (("delta", own[TUNED][real] + without - restored), ("replace", without)):
        found = hidden(pair, TUNED, known(), Edit(AT[TUNED], latents(dictionary, 7), Zero(), mode=mode))[real]
        assert torch.allclose(found, expected, atol=1e-4), mode


BOTH_ROLES = (BASE, TUNED)


def test_a_patched_latent_of_a_crosscoder_takes_the_other_models_decoder_row(pair, known):
    dictionary, real = dictionary_of(BOTH), known().real & ~known().special
    own = {role: hidden(pair, role, known()) for role in BOTH_ROLES}
    codes = dictionary.encode(Rows(torch.cat([own[BASE][real], own[TUNED][real]], dim=-1)))
    restored = dictionary.decode(codes)
    everything = hidden(pair, BASE, known(), Edit(AT[BASE], latents(dictionary), Patch()))[real]
    difference = dictionary.part(restored, TUNED) - dictionary.part(restored, BASE)
    bias = dictionary.decode(torch.zeros_like(codes))
    difference = difference - dictionary.part(bias, TUNED) + dictionary.part(bias, BASE)
    assert torch.allclose(everything, own[BASE][real] + difference, atol=1e-4)


def test_a_patched_latent_of_an_sae_takes_the_value_that_the_other_models_vectors_give(pair, known):
    dictionary, real = dictionary_of([AT[TUNED]]), known().real & ~known().special
    own = {role: hidden(pair, role, known()) for role in BOTH_ROLES}
    codes = {role: dictionary.encode(Rows(own[role][real])) for role in BOTH_ROLES}
    changed = codes[BASE].clone()
    changed[:, 4] = codes[TUNED][:, 4]
    expected = own[BASE][real] + dictionary.decode(changed) - dictionary.decode(codes[BASE])
    found = hidden(pair, BASE, known(), Edit(AT[BASE], latents(dictionary, 4), Patch()))[real]
    assert torch.allclose(found, expected, atol=1e-4)


def test_a_dictionary_of_the_difference_is_written_into_the_tuned_model(pair, known):
    dictionary = dictionary_of([AT[TUNED]._replace(role=DIFFERENCE)], perfect=True)
    found = hidden(pair, TUNED, known(), Edit(AT[TUNED], latents(dictionary), Zero()))
    real = known().real & ~known().special
    assert torch.allclose(found[real], hidden(pair, BASE, known())[real], atol=1e-4)
    with pytest.raises(Refused, match="the dictionary reads difference.resid_post.1"):
        Edit(AT[BASE], latents(dictionary), Zero())


@pytest.mark.parametrize(
    ("operation", "coordinate"),
    [
        (Zero(), lambda c: 0 * c),
        (Clamp(2.0), lambda c: 0 * c + 2.0 * 3.0),
        (MeanAblate(), lambda c: 0 * c + 0.5),
        (Add(2.0), lambda c: c + 2.0 * 3.0),
        (Scale(0.5), lambda c: 0.5 * c),
    ],
    ids=lambda value: str(value) if not callable(value) else "",
)
def test_operations_change_the_coordinate_along_a_direction_and_nothing_across_it(pair, known, operation, coordinate):
    part = direction(scale=3.0, mean=0.5)
    unit = torch.nn.functional.normalize(part.rows, dim=-1)
    before, after = hidden(pair, TUNED, known()), hidden(pair, TUNED, known(), Edit(AT[TUNED], part, operation))

    def along(values):
        return values @ part.rows[0] / part.rows.square().sum()

    real = known().real
    assert torch.allclose(along(after)[real], coordinate(along(before))[real], atol=1e-4)
    across = (after - before) - ((after - before) @ unit.T) @ unit
    assert across[real].abs().max() < 1e-4


def test_projecting_out_takes_several_directions_that_are_not_orthogonal(pair, known):
    part = direction(count=3)
    after = hidden(pair, TUNED, known(), Edit(AT[TUNED], part, Zero()))
    assert (after[known().real] @ part.rows.T).abs().max() < 1e-3


def test_a_norm_matched_control_changes_as_much_elsewhere(pair, known):
    dictionary, other = dictionary_of(BOTH), torch.randn(WIDTH)
    before = hidden(pair, TUNED, known())
    edit, control = (Edit(AT[TUNED], latents(dictionary, 7), Zero(), along=along) for along in (None, other))
    change, elsewhere = (hidden(pair, TUNED, known(), one) - before for one in (edit, control))
    assert torch.allclose(change.norm(dim=-1), elsewhere.norm(dim=-1), atol=1e-4)
    moved = elsewhere[elsewhere.norm(dim=-1) > 1e-4]
    assert len(moved) > 5 and (torch.cosine_similarity(moved, other, dim=-1) > 0.999).all()


def test_several_edits_are_written_one_after_the_other(pair, known):
    part = direction(scale=1.0)
    doubled_then_moved = (Edit(AT[TUNED], part, Scale(2.0)), Edit(AT[TUNED], part, Add(1.0)))
    before, real = hidden(pair, TUNED, known()), known().real

    def along(values):
        return (values @ part.rows[0] / part.rows.square().sum())[real]

    assert torch.allclose(along(hidden(pair, TUNED, known(), *doubled_then_moved)), 2 * along(before) + 1, atol=1e-4)
    turned = doubled_then_moved[::-1]
    assert torch.allclose(along(hidden(pair, TUNED, known(), *turned)), 2 * (along(before) + 1), atol=1e-4)


# -- gates -----------------------------------------------------------------------------------------------------------


def tokens_of(tokenizer, known, row, mask):
    return tokenizer.decode(known.ids[row, mask[row]])


GATES = {
    "everywhere": (Everywhere(), QUESTION + ANSWERS[0]),
    "prompt": (Prompt(), QUESTION),
    "response": (Response(), ANSWERS[0]),
    "thinking": (Thinking(), ANSWERS[0].partition("\n\nThe")[0]),
    "answer": (Answer(), "\n\nThe answer is \\boxed{19}."),
    "after_3": (AfterTokens(3), ", so" + ANSWERS[0].partition(", so")[2]),
    "after_match": (AfterMatch(r"Okay, so .*?[.\n]"), "." + ANSWERS[0].partition("Anna.")[2]),
    "after_prefix": (AfterPrefix(), "." + ANSWERS[0].partition("Anna.")[2]),
    "never": (AfterMatch("Perhaps"), ""),
    "too_late": (AfterMatch("Anna", within=4), ""),
    "both": (Every([Thinking(), AfterMatch("Anna")]), " Anna.\n12+7=19.\n</think>"),
}


@pytest.mark.parametrize("name", GATES)
def test_a_gate_touches_exactly_the_tokens_it_names(pair, known, tokenizer, name):
    gate, expected = GATES[name]
    edit = Edit(AT[TUNED], direction(), Add(3.0), gate)
    with torch.no_grad():
        _, (norms,) = pair.run(TUNED, known(), [edit])
    change = hidden(pair, TUNED, known(), edit) - hidden(pair, TUNED, known())
    assert torch.allclose(change.norm(dim=-1)[known().real], norms[known().real], atol=1e-4)
    touched = norms > 0
    named = tokens_of(tokenizer, known(), 0, touched)
    assert named == expected


def test_an_answer_without_thinking_is_answer_from_its_first_token(known):
    _, plain = Answer()(known(), {}), Thinking()(known(), {})
    assert torch.equal(Answer()(known(), {})[1], known().response[1]) and not plain[1].any()


def test_a_prompt_may_open_the_thinking_itself(tokenizer):
    prompt, response = ids(tokenizer, QUESTION + "<think>\n"), ids(tokenizer, "12+7=19.\n</think>\n\n19")
    known = Sequences.of_responses(tokenizer, [prompt], [response])
    assert tokenizer.decode(known.ids[0, Thinking()(known, {})[0]]) == "12+7=19.\n</think>"


def test_the_marks_of_s1_bound_its_thinking(tokenizer):
    prompt, response = (
        ids(tokenizer, QUESTION),
        ids(tokenizer, "<|im_start|>think\n12+7=19.\n<|im_start|>answer\nAnswer: 19"),
    )
    known = Sequences.of_responses(tokenizer, [prompt], [response])
    thinking, answer = (tokenizer.decode(known.ids[0, gate(known, {})[0]]) for gate in (Thinking(), Answer()))
    assert thinking.endswith("\n12+7=19.\n<|im_start|>answer") and answer.endswith("\nAnswer: 19")


@pytest.mark.parametrize("name", GATES)
def test_a_gate_names_the_same_tokens_when_they_come_one_by_one(tokenizer, known, name):
    gate, whole = GATES[name][0], known()
    at_once = gate(whole, {})
    start = int(whole.response.any(0).nonzero()[0])
    prompts = [
        row[real & ~given].tolist() for row, real, given in zip(whole.ids, whole.real, whole.response, strict=True)
    ]
    growing = Sequences.of_prompts(tokenizer, prompts)
    found = [gate(growing, {})]
    for column in range(start, whole.ids.shape[1]):
        growing.extend(whole.ids[:, column : column + 1], whole.real[:, column : column + 1])
        found.append(gate(growing, {}))
    assert torch.equal(torch.cat(found, dim=1), at_once)


def test_a_gate_may_ask_whether_another_latent_is_active(pair, known):
    dictionary = dictionary_of([AT[TUNED]._replace(layer=0)], sparsity=BatchTopK(4))
    dictionary.sparsity.threshold.fill_(0.0)
    values = hidden(pair, TUNED, known(), layer=0)
    codes = dictionary.encode(Rows(values.flatten(0, 1)))
    latent = int(((codes > 0).float().mean(0) - 0.5).abs().argmin())
    expected = (codes[:, latent] > 0).view(values.shape[:2]) & known().real
    assert 3 < expected.sum() < known().real.sum() - 3
    edit = Edit(AT[TUNED], direction(), Add(1.0), WhileActive(latent).of(dictionary))
    with torch.no_grad():
        _, (norms,) = pair.run(TUNED, known(), [edit])
    assert torch.equal(norms > 0, expected)


def test_special_tokens_and_sinks_are_left_alone_by_a_dictionary(pair, known):
    dictionary = dictionary_of(BOTH)
    edit = Edit(AT[TUNED], latents(dictionary), Keep(), mode="replace")
    changed = (hidden(pair, TUNED, known(), edit) != hidden(pair, TUNED, known())).any(-1)
    assert known().special.any() and not (changed & known().special).any()
    dictionary.normalisation.largest_norm.fill_(0.0)
    assert torch.equal(hidden(pair, TUNED, known(), edit), hidden(pair, TUNED, known()))


def test_rows_that_go_on_keep_what_was_known_of_them(tokenizer):
    known = Sequences.of_prompts(tokenizer, [ids(tokenizer, QUESTION), ids(tokenizer, QUESTION + "<think>\n")])
    known.moments = {0: torch.arange(4.0).view(2, 1, 2)}
    known.select(torch.tensor([1]))
    assert known.opened == ["<think>"] and known.moments[0].tolist() == [[[2.0, 3.0]]]


def test_where_the_other_models_response_has_ended_nothing_is_patched(pair, tokenizer):
    prompts, response = [ids(tokenizer, QUESTION)], ids(tokenizer, ANSWERS[1])
    whole, short = (Sequences.of_responses(tokenizer, prompts, [response[:n]]) for n in (len(response), 2))
    _, (changes,) = pair.run(BASE, whole, [Edit(AT[BASE], Whole(), Patch(), Response())], alongside=short)
    start = len(prompts[0])
    assert (changes[0] > 0).nonzero()[:, 0].tolist() == [start, start + 1] and len(response) > 2


def test_the_moments_of_a_sequence_are_over_all_of_its_entries():
    part = latents(dictionary_of(BOTH, kind="sequence_zscore"), 3)
    signs = torch.ones(3, WIDTH)
    signs[:, ::2] = -1
    place = Place(1 + 4 * signs, {BOTH[1]: -2 + 0.5 * signs}, None)
    assert torch.allclose(part.moments(BOTH[0], place), torch.tensor([[1.0, 4.0], [-2.0, 0.5]]))


def test_latents_that_are_not_restored_write_in_the_units_of_the_dictionary():
    """A perfect dictionary puts the z-scores in the place of the vectors, and a change of a latent is one of a z-score."""
    whole = latents(dictionary_of(BOTH, kind="sequence_zscore", perfect=True))
    bare = dataclasses.replace(whole, restored=False)
    own = 5 + 3 * torch.randn(4, WIDTH, generator=torch.Generator().manual_seed(0))
    place = Place(own, {BOTH[1]: own}, torch.tensor([[[5.0, 3.0], [5.0, 3.0]]]).expand(4, 2, 2))
    assert torch.allclose(whole.reconstruction(BOTH[0], place), own, atol=1e-5)
    assert torch.allclose(bare.reconstruction(BOTH[0], place), (own - 5) / 3, atol=1e-5)
    ones = torch.ones(4, 2 * WIDTH)
    changes = [part.look(BOTH[0], place).written(ones) for part in (whole, bare)]
    assert torch.allclose(changes[0], 3 * changes[1]) and torch.allclose(changes[1], torch.ones(4, WIDTH))


def test_what_an_edit_changes_is_told_from_what_its_gate_names(pair, known):
    dictionary = dictionary_of([AT[TUNED]], sparsity=BatchTopK(4))
    dictionary.sparsity.threshold.fill_(torch.inf)  # nothing is ever active
    with torch.no_grad():
        for edit in (Edit(AT[TUNED], latents(dictionary, 3), Zero()), Edit(AT[TUNED], Whole(), Keep())):
            assert not pair.run(TUNED, known(), [edit])[1][0].any()
    with pytest.raises(Refused, match="is no regular expression"):
        AfterMatch("(")
    with pytest.raises(Refused, match="0 or more tokens"):
        AfterTokens(-1)


# -- in training -----------------------------------------------------------------------------------------------------


def test_an_edit_acts_in_training_and_the_gradient_knows_it(pair, known):
    model = pair.models[TUNED].requires_grad_(True)
    loud = Edit(AT[TUNED], direction(), Add(5.0))
    loss = pair.run(TUNED, known(), [loud])[0].logsumexp(-1).mean()
    loss.backward()
    edited = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    assert all(torch.isfinite(grad).all() for grad in edited.values())
    model.zero_grad()
    pair.run(TUNED, known())[0].logsumexp(-1).mean().backward()
    plain = dict(model.named_parameters())
    assert any(not torch.allclose(plain[name].grad, grad, atol=1e-6) for name, grad in edited.items())
    name = "model.layers.0.mlp.down_proj.weight"  # below the edit: against a finite difference
    step = 1e-2 * edited[name] / edited[name].norm()

    def loss_at(sign):
        with torch.no_grad():
            plain[name] += sign * step
            value = pair.run(TUNED, known(), [loud])[0].double().logsumexp(-1).mean()
            plain[name] -= sign * step
        return float(value)

    assert loss_at(1) - loss_at(-1) == pytest.approx(2 * float((edited[name] * step).sum()), rel=0.05)


def test_an_edit_is_gone_after_its_with_also_when_it_fails(pair, known):
    before = logits(pair, TUNED, known())
    with (
        pytest.raises(ZeroDivisionError),
        editing(pair.models[TUNED], [Edit(AT[TUNED], direction(), Add(3.0))], known()),
    ):
        raise ZeroDivisionError
    assert torch.equal(logits(pair, TUNED, known()), before)


# -- refused ---------------------------------------------------------------------------------------------------------


def test_what_cannot_be_written_is_refused_in_a_sentence(pair, known):
    crosscoder = dictionary_of(BOTH)
    with pytest.raises(Refused, match="the dictionary reads base.resid_post.1, tuned.resid_post.1"):
        Edit(AT[TUNED]._replace(layer=0), latents(crosscoder), Zero())
    with pytest.raises(Refused, match="only after the last of them"):
        latents(dictionary_of([AT[TUNED], AT[TUNED]._replace(layer=2)]))
    with pytest.raises(Refused, match="does not say of which dictionary"):
        Edit(AT[TUNED], direction(), Zero(), WhileActive(0)).reads  # noqa: B018
    with pytest.raises(Refused, match="choose delta or replace"):
        Edit(AT[TUNED], direction(), Zero(), mode="swap")
    with pytest.raises(Refused, match="mode=replace, which asks for latents"):
        logits(pair, TUNED, known(), Edit(AT[TUNED], direction(), Zero(), mode="replace"))
    with pytest.raises(Refused, match="cannot be written into the base model"):
        logits(pair, BASE, known(), Edit(AT[TUNED], direction(), Zero()))
    later = dictionary_of([AT[TUNED]._replace(layer=2)])
    with pytest.raises(Refused, match=r"asks for tuned.resid_post.2, which is computed after it"):
        logits(pair, TUNED, known(), Edit(AT[TUNED], direction(), Zero(), Every([WhileActive(0)]).of(later)))
    for place, said in (
        ({"hookpoint": "lora"}, "has no adapters to read"),
        ({"layer": 7}, "layers 0 to 2"),
        ({"width": 33}, "of width 33 has no place in the tuned model of width 32"),
    ):
        with pytest.raises(Refused, match=said):
            logits(pair, TUNED, known(), Edit(AT[TUNED]._replace(**place), Whole(), Zero()))


def test_models_that_read_different_tokens_cannot_be_patched(pair, known):
    pair.align = "by_text"
    with pytest.raises(Refused, match="model_pair.align=by_text"):
        logits(pair, BASE, known(), Edit(AT[BASE], Whole(), Patch()))
