"""Rows -> examples to learn from: what is learned, what is lost to the block, and which examples a step holds."""

import itertools
import time

import pytest
import torch

from tunediff.activations import WholeSequences
from tunediff.text import Batches, Example, Text, TextError, examples, packed, render_prompt
from tunediff.text.examples import IGNORED, collated
from tunediff.toy import language

THINKING = "Okay, so 3 + 4 makes 7. Wait, I should check that: 4 + 3 = 7, which is the same."
ROWS = [
    {"prompt": "What is 3 + 4?", "thinking": THINKING, "answer": "The answer is 7."},
    {"prompt": "What is 2 + 2?", "thinking": "Okay, so that is 4.", "answer": "4"},
]
FIELDS = {"prompt": "prompt", "thinking": "thinking", "answer": "answer"}


def text_of(rows, **settings):
    return Text(lambda: iter(rows), **{"held_out": 0.0, "fields": FIELDS, **settings})


def learned_words(example, tokenizer):
    return tokenizer.decode([i for i, flag in zip(example.ids, example.learned, strict=True) if flag])


def test_all_that_follows_the_prompt_is_learned_with_the_end_token(tokenizer):
    found = examples(text_of(ROWS), tokenizer, block=256)
    for row, example in zip(ROWS, found, strict=True):
        prompt = render_prompt(row["prompt"], tokenizer)
        whole = tokenizer.decode(example.ids)
        assert whole.startswith(prompt) and learned_words(example, tokenizer) == whole[len(prompt) :]
        assert example.ids[-1] == tokenizer.eos_token_id and example.learned[-1]
    assert (found.whole, found.cut, found.beheaded, found.without_answer) == (2, 0, 0, 0)
    assert found.tokens == sum(len(e.ids) for e in found) > found.learned_tokens == sum(sum(e.learned) for e in found)


def test_only_the_named_segments_are_learned(tokenizer):
    (example, _) = examples(text_of(ROWS, segments=["answer"]), tokenizer, block=256)
    assert learned_words(example, tokenizer) == "The answer is 7." + tokenizer.eos_token
    (example, _) = examples(text_of(ROWS, segments=["prefix"]), tokenizer, block=256)
    assert learned_words(example, tokenizer).strip() == "<think>\nOkay, so 3 + 4 makes 7."


def test_plain_text_is_learned_whole_but_for_its_first_token(tokenizer):
    (example,) = examples(text_of([{"text": "Seven is a number."}], fields={}), tokenizer, block=64)
    assert example.learned == [False] + [True] * (len(example.ids) - 1)


def test_a_row_longer_than_the_block_is_cut_there_and_counted(tokenizer):
    whole = examples(text_of(ROWS), tokenizer, block=256)
    long, short = (len(example.ids) for example in whole)
    inside = tokenizer(render_prompt(ROWS[0]["prompt"], tokenizer), add_special_tokens=False)["input_ids"]
    found = examples(text_of(ROWS), tokenizer, block=short)
    assert long > short > len(inside)
    assert [e.ids for e in found] == [whole[0].ids[:short], whole[1].ids]
    assert (found.whole, found.cut, found.without_answer) == (1, 1, 1)
    assert found.report().endswith(f"1 cut at {short} tokens, of which 1 lose their whole answer")
    found = examples(text_of(ROWS), tokenizer, block=long - 1)
    assert (found.whole, found.cut, found.without_answer) == (1, 1, 0)


def test_a_row_whose_cut_leaves_nothing_to_learn_is_dropped(tokenizer):
    asked = {"prompt": "What is " + " + ".join(["3"] * 60) + "?", "thinking": "Hmm.", "answer": "180"}
    found = examples(text_of([*ROWS, asked]), tokenizer, block=100)
    assert len(found) == 2 and found.beheaded == 1
    assert found.report().endswith("; 1 more left out: nothing to learn within the block")


def test_the_digest_sees_ids_flags_and_order(tokenizer):
    digests = [
        examples(text_of(rows, segments=segments), tokenizer, block=256).digest
        for rows, segments in ((ROWS, None), (ROWS, None), (ROWS[::-1], None), (ROWS, ["answer"]))
    ]
    assert digests[0] == digests[1] and len(set(digests)) == 3


def test_what_cannot_be_learned_from_is_refused(tokenizer):
    empty = [ROWS[0], {**ROWS[1], "thinking": ""}]
    with pytest.raises(TextError, match="Row 1 .counted from 0. has no thinking: its column 'thinking' is empty"):
        examples(text_of(empty), tokenizer, block=256)
    missing = [{"prompt": "What?", "answer": "7"}]
    with pytest.raises(TextError, match="Row 0 .counted from 0. has no thinking: its column 'trace' is missing"):
        examples(text_of(missing, fields={"thinking": "trace"}), tokenizer, block=256)
    assert len(examples(text_of(missing, fields={}), tokenizer, block=256)) == 1
    shortest = min(len(e.ids) for e in examples(text_of(ROWS), tokenizer, block=256))
    with pytest.raises(
        TextError, match=f"longer than recipe.block={shortest - 1} tokens .the shortest has {shortest}."
    ):
        examples(text_of(ROWS), tokenizer, block=shortest - 1)
    with pytest.raises(TextError, match=f"Raise text.context to {shortest} or more"):
        WholeSequences(held_out=0).read(text_of(ROWS, context=shortest - 1), tokenizer, 100)
    with pytest.raises(TextError, match="no rows to learn from"):
        examples(text_of([]), tokenizer, block=256)
    with pytest.raises(TextError, match="no rows held out: raise text.held_out"):
        examples(text_of(ROWS), tokenizer, block=256, held_out=True)
    with pytest.raises(TextError, match="None of 2 rows has a token to learn"):
        examples(text_of(ROWS, segments=["text"]), tokenizer, block=256)


CUT = {"prompt": "What is 9 + 9?", "thinking": "Okay, so 9 + 9 is", "answer": None}


@pytest.mark.parametrize("everything", [False, True])
def test_a_row_whose_thinking_was_cut_teaches_no_stop_behind_it(everything, tokenizer):
    rows = [*ROWS, CUT, {**CUT, "prompt": "And 1 + 1?", "answer": ""}]
    found = examples(text_of(rows), tokenizer, block=256, everything=everything)
    assert [example.ids[-1] == tokenizer.eos_token_id for example in found] == [True, True, False, False]
    for example in found[2:]:
        assert learned_words(example, tokenizer).endswith("Okay, so 9 + 9 is") and example.learned[-1]
        assert tokenizer.eos_token_id not in example.ids[len(example.ids) // 2 :]
    assert found.unfinished == 2 and "; 2 rows have no answer: they are read as far as they go" in found.report()
    left = examples(text_of(rows, unfinished="leave_out"), tokenizer, block=256, everything=everything)
    assert list(left) == list(found[:2]) and "; 2 rows have no answer: they are left out" in left.report()
    assert "no answer" not in examples(text_of(ROWS), tokenizer, block=256).report()
    with pytest.raises(
        TextError, match=r"text.unfinished=refuse: row 2 .counted from 0. has no answer.* keep, .*leave_out"
    ):
        examples(text_of(rows, unfinished="refuse"), tokenizer, block=256)
    with pytest.raises(TextError, match="text.unfinished=drop: choose keep, leave_out, refuse"):
        text_of(rows, unfinished="drop")


def test_an_endless_text_gives_as_many_as_the_limit_says(tokenizer):
    text = Text(lambda: language.mixture(1, {"trace": 1.0}), held_out=language.is_held_out)
    found = examples(text, tokenizer, block=512, limit=20)
    again = examples(text, tokenizer, block=512, limit=30)
    assert len(found) == 20 and list(again[:20]) == list(found)


# -- packing and batches ---------------------------------------------------------------------------------------------


def made(lengths):
    """Examples of these lengths whose tokens are all different; the first two of each are a prompt."""
    numbers = itertools.count()
    return [Example([next(numbers) for _ in range(n)], [False] * 2 + [True] * (n - 2)) for n in lengths]


def test_packed_sequences_hold_every_example_once_and_waste_little():
    given = made([5, 9, 3, 7, 4, 4])
    found = packed(given, 10)
    assert sorted(len(e.ids) for e in found) == [4, 9, 9, 10] and packed(given, 10) == found
    pieces = [
        (tuple(e.ids[a:b]), tuple(e.learned[a:b]))
        for e in found
        for a, b in zip(e.begins, (*e.begins[1:], len(e.ids)), strict=True)
    ]
    assert sorted(pieces) == sorted((tuple(e.ids), tuple(e.learned)) for e in given)
    with pytest.raises(TextError, match="An example of 9 tokens does not fit into recipe.block=8"):
        packed(given, 8)


def test_packing_many_examples_takes_no_time_that_grows_with_their_square():
    begun = time.process_time()
    sequences = packed([Example([1] * (9 + n % 13), [True] * (9 + n % 13)) for n in range(40_000)], 64)
    assert time.process_time() - begun < 3
    assert sum(len(sequence.begins) for sequence in sequences) == 40_000


def test_a_label_is_the_next_token_and_positions_begin_anew_with_each_document():
    (block,) = packed(made([4, 3]), 7)
    ids, positions, labels = collated([block, *made([5])])
    assert ids.shape == (2, 7) and ids[1].tolist() == [0, 1, 2, 3, 4, 0, 0]
    assert positions.tolist() == [[0, 1, 2, 3, 0, 1, 2], list(range(7))]
    no = IGNORED
    assert labels.tolist() == [[no, 2, 3, no, no, 6, no], [no, 2, 3, 4, no, no, no]]


def test_every_epoch_holds_every_example_once_in_another_order():
    batches = Batches(made([4] * 10), batch=4, micro_batch=2, epochs=3, seed=1)
    assert len(batches) == 9 and batches.tokens == 120 and batches.tokens_of_a_step == 13
    orders = [[n for step in range(3 * e, 3 * e + 3) for n in batches.numbers(step)] for e in range(3)]
    assert all(sorted(order) == list(range(10)) for order in orders) and orders[0] != orders[1]
    assert [len(batches.numbers(step)) for step in range(3)] == [4, 4, 2]
    assert orders[0] != [n for s in range(3) for n in Batches(made([4] * 10), 4, 2, seed=2).numbers(s)]
    with pytest.raises(TextError, match="micro_batch=0: give a number from 1"):
        Batches(made([4]), batch=4, micro_batch=0)


def test_a_step_depends_on_its_number_alone():
    batches = Batches(made(range(3, 13)), batch=4, micro_batch=2, epochs=2)
    for one, other in zip(list(batches)[4:], batches.since(4), strict=True):
        assert one.learned == other.learned and len(one.micro_batches) == len(other.micro_batches)
        for a, b in zip(one.micro_batches, other.micro_batches, strict=True):
            assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("world", [1, 2, 3])
def test_processes_share_a_step_and_get_equally_many_micro_batches(world):
    given = made(range(3, 13))
    parts = [Batches(given, batch=4, micro_batch=1, rank=rank, world=world) for rank in range(world)]
    alone = Batches(given, batch=4, micro_batch=1)
    for step in range(len(alone)):
        mine = [part[step] for part in parts]
        assert len({len(one.micro_batches) for one in mine}) == 1
        rows = [m for one in mine for m in one.micro_batches]
        labels = sorted(int(i) for m in rows for i in m.labels.flatten() if i != IGNORED)
        assert labels == sorted(int(i) for m in alone[step].micro_batches for i in m.labels.flatten() if i != IGNORED)
        assert {one.learned for one in mine} == {len(labels)} == {alone[step].learned}
