"""The texts of reasoning, s1K, OpenThoughts and OpenR1-Math: from synthetic rows through their YAMLs to segments and labels."""

import copy
import functools
import json

import hydra
import pyarrow
import pyarrow.parquet
import pytest

from conftest import ROOT
from tunediff.generation.responses import ask
from tunediff.settings import build, check
from tunediff.shapes import Refused
from tunediff.study.parts import STUDY
from tunediff.text import FORMATS as KNOWN
from tunediff.text import (
    Manner,
    Text,
    TextError,
    each_generation,
    encode,
    exchange,
    in_s1_form,
    layout,
    read_files,
    render,
    render_prompt,
    thoughts,
)
from tunediff.text.marks import split_response
from tunediff.text.rendering import unfinished

THINKING_FORMAT, OPEN_THOUGHTS_FORMAT = KNOWN["think"], KNOWN["open_thoughts"]
S1_FORMAT = "<|im_start|>think\n{thinking}\n<|im_start|>answer\n{answer}"
FORMATS = {"r1": THINKING_FORMAT, "s1": S1_FORMAT, "openthoughts": OPEN_THOUGHTS_FORMAT, "bare": "{thinking}\n{answer}"}
CLOSINGS = {"r1": "</think>", "s1": "<|im_start|>answer", "openthoughts": "<|end_of_thought|>"}
ROW = {"prompt": "What is 2+3?", "thinking": "So we add. That is 5.", "answer": "It is 5."}
BOXED = r"Please reason step by step, and put your final answer within \boxed{}."


def s1k(n):
    thinking = f"Let me count {n} sheep.\nThat makes {n}.\n"
    attempt = f"Answer: {n}" if n % 2 else f" There are {n} sheep.\n"
    return {
        "question": f"How many are {n} sheep?",
        "deepseek_thinking_trajectory": thinking,
        "deepseek_attempt": attempt,
    }


def openthoughts(n):
    said = OPEN_THOUGHTS_FORMAT.format(thinking=f"Let me count {n} sheep. Done.", answer=f"There are {n}.")
    turns = [{"from": "user", "value": f"How many are {n} sheep?"}, {"from": "assistant", "value": said}]
    return {"system": "Think between the marks.", "conversations": turns}


def openr1(n):
    texts = [THINKING_FORMAT.format(thinking=f"Way {g}. Count.", answer=f"{n} by way {g}.") for g in range(2)]
    return {
        "problem": f"How many are {n} sheep?",
        "answer": str(n),  # the gold, which is not the model's answer
        "generations": [*texts, "<think>\nWay 2. I never"],
        "is_reasoning_complete": [True, True, False],
        "correctness_math_verify": [True, False, False],
        "correctness_llama": None,
        "messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}],
    }


DATA = {"s1k": s1k, "openthoughts": openthoughts, "openr1_math": openr1}


@functools.cache
def composed(option, *overrides):
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(ROOT / "conf")):
        cfg = hydra.compose("train", [f"text={option}", *overrides])
    check(cfg, STUDY)
    return cfg.text


def read_from(path, option, *overrides) -> Text:
    cfg = copy.deepcopy(composed(option, "text.rows.path=x", *overrides))
    cfg.rows.path = str(path)
    return build(cfg)


def text_of(folder, name, *overrides, count=40, kind="jsonl", without=None) -> Text:
    """The option with local files, over a file of planted rows, perhaps without a column."""
    rows = [{key: value for key, value in DATA[name](n).items() if key != without} for n in range(count)]
    path = folder / f"{name}.{kind}"
    if kind == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    return read_from(path, f"{name}_files", *overrides)


def both_sides(text):
    return [row for side in (False, True) for row in text.named_rows(held_out=side)]


def parts(rendered):
    return {name: rendered.text[first:last] for first, last, name in rendered.segments}


BY_RULE = {"step_end", "hesitation", "hesitation_follows", "backtracks"}


def labelled(rendered):
    """The labels but those by rule, which test_labels.py has laws for."""
    return {label: rendered.text[first:last] for first, last, label in rendered.labels if label not in BY_RULE}


# -- the layout of a response ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FORMATS)
def test_segments_and_labels_are_right_in_every_layout(tokenizer, name):
    found = render(ROW, tokenizer, Manner(thinking_format=FORMATS[name]))
    said = FORMATS[name].format(thinking=ROW["thinking"], answer=ROW["answer"])
    assert found.text == render_prompt(ROW["prompt"], tokenizer) + said + tokenizer.eos_token
    assert "".join(found.text[a:b] for a, b, _ in found.segments) == found.text
    opening, _, after = said.partition(ROW["thinking"])
    between, _, ending = after.partition(ROW["answer"])
    assert parts(found) == {
        "prompt": ROW["prompt"],
        "prefix": opening + "So we add.",
        "thinking": " That is 5." + between,
        "answer": "It is 5.",
        "template": ending + tokenizer.eos_token,  # the last of them
    }
    assert found.response == len(render_prompt(ROW["prompt"], tokenizer))
    closing = {"end_of_thinking": CLOSINGS[name]} if name in CLOSINGS else {}
    assert labelled(found) == {"opening": "So we add.", **closing}


def test_markers_that_the_tokenizer_does_not_know_are_labelled_by_their_pieces(tokenizer):
    assert len(tokenizer("<|im_start|>answer")["input_ids"]) > 3
    (document,) = Text(lambda: iter([ROW]), thinking_format=S1_FORMAT).documents({**ROW, "index": 0}, [tokenizer])
    flags = document.labels["end_of_thinking"]
    tokens = [tokenizer.decode([document.ids[0][p]]) for p in document.places[0]]
    assert "".join(t for t, flag in zip(tokens, flags, strict=True) if flag).strip() == "<|im_start|>answer"


@pytest.mark.parametrize("name", ["r1", "s1", "openthoughts"])
@pytest.mark.parametrize("whole", [True, False], ids=["with_its_line_break", "without"])
def test_a_template_that_opens_the_thinking_is_not_opened_again(tokenizer, monkeypatch, name, whole):
    opening = FORMATS[name].partition("{thinking}")[0]
    added = opening if whole else opening.rstrip()
    plain = render(ROW, tokenizer, Manner(thinking_format=FORMATS[name]))
    template = tokenizer.chat_template.replace("<｜Assistant｜>{% endif %}", "<｜Assistant｜>" + added + "{% endif %}")
    monkeypatch.setattr(tokenizer, "chat_template", template + "{{ '' }}")  # Jinja drops a line break at the very end
    found = render(ROW, tokenizer, Manner(thinking_format=FORMATS[name]))
    assert found.text == plain.text and found.labels == plain.labels
    assert parts(found)["prompt"] == parts(plain)["prompt"] == ROW["prompt"]
    assert found.text[: found.response] == plain.text[: plain.response] + added
    assert parts(found)["prefix"] == opening.removeprefix(added) + "So we add."


def test_words_with_braces_are_written_as_they_are(tokenizer):
    row = {**ROW, "thinking": "A set {answer} is {{1}}.", "answer": r"\boxed{5}"}
    found = render(row, tokenizer, Manner(thinking_format="{{{thinking}}}\n---\n{answer}"))
    assert parts(found)["prefix"] == "{A set {answer} is {{1}}." and "}\n---\n\\boxed{5}" in found.text
    assert labelled(found)["end_of_thinking"] == "}"


@pytest.mark.parametrize(
    "wrong",
    [
        "{thinking}",
        "<think>{answer}",
        "{answer}{thinking}",
        "{thinking}{answer}{answer}",
        "{thinking}{trace}{answer}",
        "",
    ],
)
def test_a_format_without_both_fields_in_order_is_refused(wrong):
    with pytest.raises(TextError, match=r"has the fields \[.*needs \{thinking\} and then \{answer\}, each once"):
        Text(lambda: iter([ROW]), thinking_format=wrong)
    with pytest.raises(TextError, match="is no format string"):
        Text(lambda: iter([ROW]), thinking_format="{thinking}{answer")
    with pytest.raises(TextError, match="a backslash and an n, where a line break is meant"):
        Text(lambda: iter([ROW]), thinking_format=r"<think>\n{thinking}\n</think>{answer}")


@pytest.mark.parametrize("name", ["r1", "s1", "openthoughts"])
def test_a_response_in_a_known_layout_or_its_own_is_rendered_as_its_parts_are(tokenizer, name):
    whole = FORMATS[name].format(**ROW)
    row = {"prompt": ROW["prompt"], "response": whole}
    assert render(row, tokenizer, Manner(thinking_format=FORMATS[name])) == render(
        ROW, tokenizer, Manner(thinking_format=FORMATS[name])
    )
    assert render(row, tokenizer) == render(ROW, tokenizer)
    assert split_response("It is 5.\n", layout(FORMATS[name])) == ("", "", "It is 5.")


def test_thinking_that_was_cut_has_no_answer_and_no_end(tokenizer):
    for cut in ("<think>\nSo we add. That is", "<|begin_of_thought|>\n\nSo we add. That is"):
        found = render({"prompt": "2+3?", "response": cut, "answer": "5"}, tokenizer)
        assert found.text.endswith("<think>\nSo we add. That is")
        assert list(parts(found)) == ["template", "prompt", "prefix", "thinking"] and labelled(found) == {
            "opening": "So we add."
        }


RESPONSES = {  # what stands before the thinking, the thinking, the answer
    "Sure. <think>a</think>b": ("Sure. ", "a", "b"),
    "a</think>b<think>c</think>": ("", "a", "b<think>c</think>"),
    "<think>a</think>b<think>c</think>d": ("", "a", "b<think>c</think>d"),
    "Sure. <think>a": ("Sure. ", "a", None),
    "Sure. <think> </think>b": ("", "", "Sure. b"),
    "<thinking>a </think> b</thinking>c": ("", "a </think> b", "c"),
    "Well.\n[THINK]a[/THINK]b": ("Well.\n", "a", "b"),
    "a<|im_start|>answer\nb": ("", "a", "b"),
    "b": ("", "", "b"),
}


@pytest.mark.parametrize("response", RESPONSES)
def test_one_function_says_where_the_thinking_of_a_response_is(tokenizer, response):
    before, thinking, answer = split_response(response, layout("think"))
    assert (before, thinking, answer) == RESPONSES[response]
    found = thoughts(response)
    assert not thinking or response[found[0].begin : found[0].end].strip() == thinking
    rendered = render({"prompt": "2+3?", "response": response}, tokenizer)
    said = rendered.text[rendered.response :]
    whole = f"{before}<think>\n{thinking}" if thinking else ""
    if answer is not None:
        whole += ("\n</think>\n\n" if thinking else "") + answer + tokenizer.eos_token
    assert said == whole
    assert not before or parts(rendered)["prefix"].startswith(before + "<think>\n")
    assert unfinished({"prompt": "2+3?", "response": response}, Manner()) is (answer is None)


@pytest.mark.parametrize("response", RESPONSES)
def test_before_a_mark_that_the_template_wrote_stands_no_word_of_the_response(tokenizer, monkeypatch, response):
    opens = tokenizer.chat_template.replace("<｜Assistant｜>{% endif %}", "<｜Assistant｜><think>\n{% endif %}")
    monkeypatch.setattr(tokenizer, "chat_template", opens)
    before, thinking, answer = RESPONSES[response]
    row = {"prompt": "2+3?", "response": response, "spans": [("thinking", 0, 1, "first")] * bool(thinking)}
    found = render(row, tokenizer)
    assert found.text[: found.response].endswith("<think>\n")
    said = before + thinking + ("" if answer is None else f"\n</think>\n\n{answer}{tokenizer.eos_token}")
    assert found.text[found.response :] == said
    assert not thinking or labelled(found)["first"] == "a"


# -- what the template wrote -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "mark", ["<think>", "[THINK]", "<|im_start|>think", "<thinking>\n", "</think>", "<think>\n\n</think>"]
)
@pytest.mark.parametrize(
    "template", [None, "{{ messages[-1].content }}", "{{ messages[-1].content }}\n<｜Assistant｜>"]
)
def test_a_mark_that_somebody_asks_about_opens_nothing(tokenizer, monkeypatch, template, mark):
    monkeypatch.setattr(tokenizer, "chat_template", template)
    question = f"What does this mean: {mark}"
    for row in ({"thinking": "So.", "answer": "5"}, {"answer": "5"}):
        found = render({**row, "prompt": question}, tokenizer)
        said = "<think>\nSo.\n</think>\n\n" if "thinking" in row else ""
        assert found.text[found.response :] == f"{said}5{tokenizer.eos_token}" and question in found.text


@pytest.mark.parametrize("name", ["think", "magistral", "s1", "open_thoughts"])
def test_words_of_the_template_behind_its_mark_are_the_first_of_the_thinking(tokenizer, monkeypatch, name):
    begun = KNOWN[name].partition("{thinking}")[0] + "Okay, "
    template = tokenizer.chat_template.replace("<｜Assistant｜>{% endif %}", f"<｜Assistant｜>{begun}{{% endif %}}")
    monkeypatch.setattr(tokenizer, "chat_template", template)
    between, ending = layout(name).between, layout(name).ending
    for row in ({"thinking": "so we add.", "answer": "5"}, {"answer": "5"}):
        found = render({**row, "prompt": "2+3?"}, tokenizer)
        assert found.text[: found.response].endswith(begun)
        said = found.text[found.response :]
        assert said.startswith(row.get("thinking", "") + between + "5") and layout(name).opens not in said.replace(
            between, ""
        )
        assert said.endswith(tokenizer.eos_token)
    assert ending in render({"prompt": "2+3?", "thinking": "so.", "answer": "5"}, tokenizer).text


# -- the system message ------------------------------------------------------------------------------------------------


def test_the_system_message_stands_before_the_problem_and_shifts_no_label(tokenizer):
    row = {**ROW, "prompt": "add", "spans": [("prompt", 0, 3, "task"), ("answer", 6, 7, "result")]}
    text = Text(lambda: iter([row]), system="You add, you add well.", instruction="Please add: ")
    found = text.rendered(row, tokenizer)
    assert [found.text[a:b] for a, b, name in found.segments if name == "prompt"] == [
        "You add, you add well.",
        "Please add: add",
    ]
    assert labelled(found)["result"] == "5"
    (at,) = [first for first, _, label in found.labels if label == "task"]
    assert found.text[:at].endswith("Please add: ") and found.text[at:].startswith("add")
    assert text.rendered(row, tokenizer).text.startswith(
        render_prompt("Please add: add", tokenizer, Manner(system=text.manner.system))
    )


def test_a_template_that_trims_what_it_is_given_shifts_no_label(tokenizer, monkeypatch):
    trimming = tokenizer.chat_template.replace("message['content']", "message['content'] | trim")
    monkeypatch.setattr(tokenizer, "chat_template", trimming)
    row = {**ROW, "prompt": "  add 2\n", "spans": [("prompt", 2, 5, "task")]}
    for system in (None, "", " You add. "):
        assert labelled(render(row, tokenizer, Manner(system=system)))["task"] == "add"


def test_a_model_is_asked_behind_the_same_system_message(tokenizer):
    (asked,) = ask([("q", "2+3?")], tokenizer, Manner(system="You add."))
    assert asked.ids == list(
        encode(tokenizer, render_prompt("2+3?", tokenizer, Manner(system="You add.")))["input_ids"]
    )
    assert "You add." in tokenizer.decode(asked.ids)


@pytest.mark.parametrize(
    ("template", "why"),
    [
        (
            "{% if messages[0].role == 'system' %}{{ raise_exception('No system here') }}{% endif %}",
            "says: No system here",
        ),
        ("{{ messages[-1]['content'] }}", "leaves it out"),
    ],
)
def test_a_template_without_a_place_for_a_system_message_is_refused(tokenizer, monkeypatch, template, why):
    monkeypatch.setattr(tokenizer, "chat_template", template)
    with pytest.raises(TextError, match=f"takes no system message.*{why}.*text.system=null"):
        render(ROW, tokenizer, Manner(system="You add."))


def test_without_a_chat_template_the_system_message_is_a_paragraph(tokenizer, monkeypatch):
    monkeypatch.setattr(tokenizer, "chat_template", None)
    assert render_prompt("2+3?", tokenizer, Manner(system="You add.")).endswith("You add.\n\n2+3?\n\n")


# -- rows --------------------------------------------------------------------------------------------------------------


def test_each_generation_becomes_a_row_with_its_own_entries_and_what_was_cut_is_left_out():
    row = {"prompt": "q", "response": ["a", "b", "c"], "done": [True, False, True], "right": [1, 2, 3], "other": [7, 8]}
    every = list(each_generation([row], complete="done", beside=["right", "missing"]))
    assert [(r["response"], r["done"], r["right"]) for r in every] == [("a", True, 1), ("b", False, 2), ("c", True, 3)]
    assert all(r["other"] == [7, 8] and r["prompt"] == "q" for r in every)
    assert list(each_generation([row], complete="done", beside=["right"], complete_only=True)) == every[::2]
    assert list(each_generation(every, complete="done", complete_only=True)) == every[::2]  # a row each already


def test_generations_that_do_not_fit_their_entries_or_do_not_say_whether_they_are_complete_are_refused():
    row = {"prompt": "q", "response": ["a", "b"]}
    with pytest.raises(TextError, match="2 responses and 1 entries in 'right'"):
        list(each_generation([{**row, "right": [1]}], beside=["right"]))
    with pytest.raises(TextError, match="'is_reasoning_complete'.*only prompt, response.*complete_only=false"):
        list(each_generation([row], complete_only=True))


def test_a_list_where_a_response_belongs_is_refused_with_the_way_to_rows_of_it(tokenizer):
    text = Text(lambda: iter([{"prompt": "q", "response": ["a", "b"]}]), held_out=0.5)
    for refuse in (
        lambda: text.check(evaluated=False),
        lambda: text.rendered({"prompt": "q", "response": ["a"]}, tokenizer),
    ):
        with pytest.raises(
            TextError, match=r"a list of \d where its response is read from.*tunediff.text.each_generation"
        ):
            refuse()
    with pytest.raises(TextError, match="has 5 where its answer is read from.*text.fields.answer=<column>"):
        render({"prompt": "q", "answer": 5}, tokenizer)


def test_the_first_exchange_of_a_conversation_is_its_prompt_and_response():
    turns = [("system", "s"), ("human", "q"), ("gpt", "r"), ("human", "q2"), ("gpt", "r2")]
    for who, what in (("from", "value"), ("role", "content")):
        (row,) = exchange([{"conversation": [{who: w, what: t} for w, t in turns], "id": 3}], turns="first")
        assert (row["prompt"], row["response"], row["id"]) == ("q", "r", 3)
    with pytest.raises(TextError, match=r"no question with a response behind it: its turns are by \['gpt', 'human'\]"):
        list(exchange([{"conversation": [{"from": w, "value": "x"} for w in ("gpt", "human")]}]))


def test_an_answer_is_announced_unless_it_announces_itself_anywhere():
    rows = [{"thinking": t, "answer": a} for t, a in ((" So.\n", " 5\n"), (["a", "b"], "So, Answer: 5"), (None, None))]
    assert [(r["thinking"], r["answer"]) for r in in_s1_form(rows)] == [
        ("So.", "Answer: 5"),
        ("a\n\nb", "So, Answer: 5"),
        (None, None),
    ]


def test_a_column_that_fields_does_not_name_is_not_read_for_what_it_is_called(tokenizer):
    row = {"problem": "2+3?", "said": "It is 5.", "text": "wrong", "thinking": "wrong", "prompt": "wrong", "id": 7}
    text = Text(lambda: iter([row]), fields={"prompt": "problem", "answer": "said"}, held_out=0.0)
    (named,) = text.named_rows(held_out=False)
    assert "wrong" not in text.rendered(named, tokenizer).text and named["id"] == 7


@pytest.mark.parametrize("fields", [{}, {"prompt": "prompt", "answer": "answer"}], ids=["ours", "named"])
def test_no_column_of_the_data_is_what_a_step_writes_or_nobody_asked_for(tokenizer, fields):
    plain = {"prompt": "2+3?", "answer": "It is 5."}
    odd = {"earlier": "hello", "since": 3, "begun": 5, "conversation": "x"}
    odd |= {"spans": "abc", "pieces": 7, "thinking": "wrong", "response": "wrong"} if fields else {}
    rows = [{**plain, **odd, "prompt": f"{n}+3?"} for n in range(40)]
    sides = []
    for these in (
        rows,
        [{**row, "begun": "the same"} for row in rows],
        [{**plain, "prompt": r["prompt"]} for r in rows],
    ):
        text = Text(lambda these=these: iter(these), fields=fields, held_out=0.4)
        text.check(evaluated=True)
        sides.append(
            [[text.rendered(row, tokenizer) for row in text.named_rows(held_out=side)] for side in (False, True)]
        )
    assert sides[0] == sides[1] == sides[2] and all(sides[0])


def test_turns_that_are_no_turns_are_refused_where_they_are_asked_for(tokenizer):
    for name, value in (("earlier", "hello"), ("earlier", [5]), ("since", [{"role": "tool", "content": 5}])):
        text = Text(
            lambda n=name, v=value: iter([{"q": "2?", "a": "2", "e": v}]),
            fields={"prompt": "q", "answer": "a", name: "e"},
        )
        for refused in (lambda text=text: text.check(evaluated=False), lambda text=text: text.samples(tokenizer)):
            with pytest.raises(
                TextError, match=f"Row 1 of the text: a row has .* where its {name} is read from, and a list of turns"
            ):
                refused()


def test_a_conversation_is_answered_by_what_the_assistant_says_last():
    said = [("user", "q"), ("assistant", "let me look"), ("tool", "5"), ("assistant", "it is 5")]
    two = [("user", "p"), ("assistant", "x"), ("assistant", "y")]

    def rows(turns, which):
        conversation = [{"role": who, "content": what} for who, what in turns]
        found = exchange([{"conversation": conversation}], turns=which)
        return [
            [*([t["content"] for t in row[part]] for part in ("earlier", "since")), row["response"]] for row in found
        ]

    assert rows(said, "whole") == rows(said, "first") == [[[], ["let me look", "5"], "it is 5"]]
    assert rows(two + said, "whole") == [[["p", "x", "y"], ["let me look", "5"], "it is 5"]]
    assert rows(two + said, "first") == [[[], ["x"], "y"]]
    assert len(rows(two + said, "each")) == 2 and rows([*two, ("user", "z")], "whole") == [[[], ["x"], "y"]]


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ([{"type": "text", "text": "hi"}, {"type": "image", "text": None}], "whose content is"),
        ([{"type": "text", "text": 5}], "whose content is"),
        (5, "whose content is 5"),
    ],
)
def test_contents_that_are_no_text_are_refused(content, why):
    turns = [{"role": "user", "content": content}, {"role": "assistant", "content": "a"}]
    with pytest.raises(TextError, match=f"a turn by user {why}.*text belongs there"):
        list(exchange([{"conversation": turns}]))


def test_thinking_that_stands_in_two_places_is_read_once(tokenizer):
    def row(content, thinking="zz"):
        answered = {"role": "assistant", "content": content, "reasoning_content": thinking}
        return next(exchange([{"conversation": [{"role": "user", "content": "q"}, answered]}]))

    for content in ("x", "<think>zz</think>x", "<think>\n\n</think>\n\nx", "[THINK]zz[/THINK]x", "zz</think>x"):
        found = render(row(content), tokenizer).text
        assert found.endswith("<think>\nzz\n</think>\n\nx" + tokenizer.eos_token) and found.count("zz") == 1
    assert render(row("A <think> opens."), tokenizer).text.count("<think>") == 2  # which the answer is about
    with pytest.raises(
        TextError, match="thinks in two places: 'zz' is its reasoning_content, and 'yy' stands between marks"
    ):
        row("<think>yy</think>x")
    with pytest.raises(TextError, match="whose reasoning_content is 5, and text belongs there"):
        row("x", 5)


@pytest.mark.parametrize("place", [0, 1, 2, 3])
def test_half_a_character_is_refused_wherever_it_is_said(tokenizer, place):
    said = [["system", "s"], ["user", "p"], ["assistant", "x"], ["user", "q"], ["assistant", "y"]]
    said[place][1] += "\ud800"
    conversation = [{"role": who, "content": what} for who, what in said]
    text = Text(lambda: iter([{"conversation": conversation}]), prepare={"exchange": exchange}, held_out=0.4)
    side = text._is_held_out(next(exchange([{"conversation": conversation}]))["begun"].replace("\ud800", "?"))
    with pytest.raises(TextError, match=r"half a character \('\\ud800'\) in .*, at character 1: no tokenizer"):
        list(text.named_rows(held_out=side))
    with pytest.raises(TextError, match="half a character"):
        text.check(evaluated=False)


# -- the options -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DATA)
def test_the_twin_differs_in_where_its_rows_come_from_and_in_nothing_else(name):
    hub, files = composed(name), composed(f"{name}_files", "text.rows.path=x")
    assert {key: hub[key] for key in hub if key != "rows"} == {key: files[key] for key in files if key != "rows"}
    assert list(files.rows) == ["_target_", "_partial_", "path"]
    with pytest.raises(Refused, match="text.rows.path is not set: give it on the command line"):
        composed(f"{name}_files")


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
@pytest.mark.parametrize("name", DATA)
def test_local_files_of_the_data_sets_columns_think_and_answer(name, kind, tmp_path, tokenizer):
    text = text_of(tmp_path, name, kind=kind)
    text.check(evaluated=True)
    rows = both_sides(text)
    assert len(rows) == (80 if name == "openr1_math" else 40) and len({row["index"] for row in rows}) == len(rows)
    for row in rows:
        found = text.rendered(row, tokenizer)
        assert list(parts(found)) == ["template", "prompt", "prefix", "thinking", "answer"]
        assert set(labelled(found)) == {"opening", "end_of_thinking"}
        assert text.documents(row, [tokenizer])


MISSING = [
    ("s1k", "question", "prompt"),
    ("s1k", "deepseek_thinking_trajectory", "thinking"),
    ("s1k", "deepseek_attempt", "answer"),
    ("openthoughts", "conversations", "conversation"),
    ("openr1_math", "problem", "prompt"),
    ("openr1_math", "generations", "response"),
]


@pytest.mark.parametrize(("name", "column", "ours"), MISSING)
def test_a_missing_column_is_named_beside_those_that_are_there(name, column, ours, tmp_path):
    left = ", ".join(sorted(DATA[name](0).keys() - {column}))
    with pytest.raises(TextError, match=f"'{column}' that its {ours} is .* only {left}. .*text.fields.{ours}=<column>"):
        text_of(tmp_path, name, without=column).check(evaluated=True)


def test_s1k_reads_as_s1_trained_on_it(tmp_path, tokenizer):
    text = text_of(tmp_path, "s1k")
    for row in both_sides(text):
        n, found = row["question"].split()[3], text.rendered(row, tokenizer).text
        answer = f"Answer: {n}" if int(n) % 2 else f"Answer: There are {n} sheep."
        assert found.endswith(
            f"<|im_start|>think\nLet me count {n} sheep.\nThat makes {n}.\n<|im_start|>answer\n{answer}{tokenizer.eos_token}"
        )


def test_the_first_s1k_is_read_under_its_own_columns(tmp_path, tokenizer):
    (tmp_path / "old.jsonl").write_text('{"question": "2+3?", "thinking_trajectories": ["So 5."], "attempt": "5"}\n')
    columns = ["text.fields.thinking=thinking_trajectories", "text.fields.answer=attempt", "text.held_out=0"]
    text = read_from(tmp_path / "old.jsonl", "s1k_files", *columns)
    text.check(evaluated=False)
    (row,) = both_sides(text)
    assert "think\nSo 5.\n<|im_start|>answer\nAnswer: 5" in text.rendered(row, tokenizer).text


def test_openthoughts_marks_are_written_as_think_tags_and_its_system_message_is_left_out(tmp_path, tokenizer):
    text = text_of(tmp_path, "openthoughts")
    for row in both_sides(text):
        found, n = text.rendered(row, tokenizer).text, row["prompt"].split()[3]
        assert f"<think>\nLet me count {n} sheep. Done.\n</think>\n\nThere are {n}.{tokenizer.eos_token}" in found
        assert "<|" not in found.replace(tokenizer.eos_token, "") and "marks" not in found


def test_openr1_gives_every_complete_generation_once_behind_the_prefix(tmp_path, tokenizer):
    text = text_of(tmp_path, "openr1_math")
    rows = both_sides(text)
    said = sorted((row["prompt"], row["correctness_math_verify"], row["response"].split()[2]) for row in rows)
    assert said == sorted((openr1(n)["problem"], g == 0, f"{g}.") for n in range(40) for g in range(2))
    for row in rows:
        assert f"{BOXED}{row['problem']}" in text.rendered(row, tokenizer).text  # nothing between the two
        n, g = row["problem"].split()[3], row["response"].split()[2]
        assert parts(text.rendered(row, tokenizer))["answer"] == f"{n} by way {g}"
    every = both_sides(text_of(tmp_path, "openr1_math", "text.prepare.generations.complete_only=false"))
    assert len(every) == 120 and sum(row["is_reasoning_complete"] for row in every) == 80


def test_openr1_keeps_three_of_ten_problems_for_evaluation_with_all_their_generations(tmp_path):
    text = text_of(tmp_path, "openr1_math", count=400)
    train, held = ([row["prompt"] for row in text.named_rows(held_out=side)] for side in (False, True))
    assert not set(train) & set(held) and len(train) + len(held) == 800
    assert all(side.count(prompt) == 2 for side in (train, held) for prompt in set(side))
    assert abs(len(held) / 800 - 0.3) < 0.07  # three standard deviations of 400 draws


def test_final_answers_alone_are_a_setting(tmp_path, tokenizer):
    text = text_of(tmp_path, "openr1_math", "text.segments=[answer]")
    for row in both_sides(text):
        (document,) = text.documents(row, [tokenizer])
        kept = tokenizer.decode([document.ids[0][p] for p in document.places[0]])
        assert kept.strip().endswith("by way " + row["response"].split()[2]) and "Count" not in kept


def test_a_file_where_nothing_is_complete_is_refused_by_the_step_that_left_nothing(tmp_path):
    (tmp_path / "cut.jsonl").write_text(
        '{"problem": "2+3?", "generations": ["<think>\\nSo"], "is_reasoning_complete": [false]}\n'
    )
    text = read_from(tmp_path / "cut.jsonl", "openr1_math_files")
    with pytest.raises(TextError, match="no rows to train on: generations of text.prepare leaves none"):
        text.check(evaluated=True)


def test_heads_of_real_openthoughts_traces_are_thinking_without_an_end(data_folder, tokenizer):
    path = data_folder / "openthoughts_heads" / "heads.jsonl"
    text = Text(lambda: read_files(str(path)), fields={"prompt": "problem", "response": "trace_head"})
    rows = both_sides(text)
    assert len(rows) == 48
    for row in rows:
        found = text.rendered(row, tokenizer)
        head = row["trace_head"].partition("<|begin_of_thought|>")[2].strip()
        assert (
            found.text.endswith("<think>\n" + head)
            and list(parts(found))[:2] == ["template", "prompt"]
            and "answer" not in parts(found)
        )
        assert "_of_thought" not in found.text
