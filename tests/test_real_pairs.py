"""What holds for the tokenizers of real models, rebuilt, and for real reasoning traces."""

import functools
import itertools
import json
import re

import numpy as np
import pytest

from conftest import ROOT
from real_tokenizers import real
from test_study import TWO_STEPS, call
from tunediff.models import ModelPair, ModelSource, PairError, agree
from tunediff.shapes import SEGMENTS, Refused
from tunediff.study.parts import check_evaluations, evaluations_of
from tunediff.text import FORMATS, Manner, Text, TextError, encode, exchange, layout, read_files, render
from tunediff.text.aligned import Aligned
from tunediff.text.tokenizers import one_of

# base, tuned, whose tokenizer, and what is foreign of it: first id, last id
PAIRS = {
    "r1_vs_qwen": ("qwen", "r1_qwen", "tuned", range(151643, 151650)),
    "deepscaler_vs_qwen": ("qwen", "r1_qwen", "base", range(151643, 151650)),
    "r1_llama_vs_llama": ("llama", "r1_llama", "tuned", (128000, 128001, *range(128011, 128016))),
}
TOKENIZERS = ["qwen", "r1_qwen", "llama", "r1_llama", "deepseek_v3", "qwen3", "gemma3"]
ODD = "🙂 龘 𝔽 and ∮ naïve 東京 <｜User｜> a <b> </think>x"
ROW = {"prompt": "What is 2+3?", "thinking": "So we add. Wait, yes.", "answer": "It is 5."}


class Source(ModelSource):
    """A source that reads its tokenizer once for all tests."""

    def tokenizer(self):
        return tokenizer_in(self.path)


whole_tokenizer = ModelSource.tokenizer


@functools.cache
def tokenizer_in(folder):
    return whole_tokenizer(ModelSource(folder))


@pytest.fixture(autouse=True)
def read_once(monkeypatch):
    """So does a source that a config names."""
    monkeypatch.setattr(ModelSource, "tokenizer", Source.tokenizer)


def source(name):
    return Source(str(real(name)))


def pair_of(name, **settings):
    base, tuned, owner, _ = PAIRS[name]
    return ModelPair(source(base), source(tuned), **{"tokenizer": owner, **settings})


@pytest.fixture(scope="module")
def traces(data_folder):
    file = str(data_folder / "reasoning_traces" / "traces.jsonl.gz")
    fields = {"prompt": "question", "thinking": "thinking", "answer": "answer"}

    def text(**settings):
        rows = settings.pop("rows", lambda: itertools.islice(read_files(file), 60))
        return Text(rows, fields=fields, **{"held_out": 0.3, **settings})

    return text


def documents(text, pair, count=20):
    for row in itertools.islice(text.named_rows(held_out=False), count):
        yield from text.documents(row, pair.tokenizers, foreign=pair.foreign)


# -- tokens agreed on what is read -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PAIRS)
def test_a_real_pair_starts_on_real_traces_and_says_what_is_foreign_and_how_much(name, traces):
    pair, text = pair_of(name), traces()
    agreed = agree(pair, text)
    owner, foreign = pair.tokenizers[0], set(PAIRS[name][3])
    rows = itertools.islice(text.named_rows(held_out=False), 32)
    counted = total = 0
    for row in rows:
        whole = text.rendered(row, owner).text
        encoded = owner(whole, add_special_tokens=False, return_offsets_mapping=True)
        other = [m.span() for m in re.finditer("</?think>", whole)]
        total += len(encoded["input_ids"])
        counted += sum(
            i in foreign or any(a < last and b > first for first, last in other)
            for i, (a, b) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
        )
    assert agreed.tokens == total and agreed.foreign == counted / total > 0.004
    said = {
        "r1_vs_qwen": "base reads id 151648 as <|box_start|>, tuned as <think> (32 times)",
        "deepscaler_vs_qwen": "base spells <think> in 3 ids, tuned spells <think> in 1 id (32 times)",
        "r1_llama_vs_llama": "base reads id 128013 as <|reserved_special_token_8|>, tuned as <think> (32 times)",
    }
    assert said[name] in agreed.notes[0] and f"{counted / total:.2%} of the {total:,}" in agreed.notes[0]


@pytest.mark.parametrize("name", PAIRS)
def test_no_foreign_token_is_kept_but_where_it_is_asked_for(name, traces):
    foreign = set(PAIRS[name][3])
    everything = traces(segments=SEGMENTS, drop_special=False)
    met = {policy: 0 for policy in ("skip", "keep")}
    for policy in met:
        pair = pair_of(name, foreign=policy)
        for document in documents(everything, pair, 6):
            kept = [document.ids[0][place] for place in document.places[0]]
            met[policy] += len(foreign & set(kept))
            said = pair.tokenizers[0].decode(document.ids[0][: document.places[0][-1] + 1])
            assert policy == "keep" or "<think>" in said or document.ids[0]
    assert met["skip"] == 0 and met["keep"] > 0
    with pytest.raises(PairError, match="model_pair.foreign=refuse: .* Choose skip, respell or keep"):
        agree(pair_of(name, foreign="refuse"), traces())


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_model_beside_itself_reads_nothing_that_is_foreign(name, traces):
    agreed = agree(ModelPair(source(name), source(name), foreign="refuse"), traces())
    assert (agreed.foreign, agreed.notes) == (0.0, []) and agreed.tokens > 10_000


def test_ordinary_text_that_is_cut_differently_is_refused_on_the_same_ids(traces):
    pair = ModelPair(source("qwen"), source("deepseek_v3"))
    with pytest.raises(PairError, match="tokenize .* of the tried texts differently.*model_pair.align=by_text"):
        agree(pair, traces())


def test_each_model_reads_its_own_spelling_of_a_mark_and_the_rest_is_aligned(traces):
    pair = pair_of("r1_vs_qwen", foreign="respell")
    base, tuned = pair.tokenizer_of("base"), pair.tokenizer_of("tuned")
    (mine, other), text = pair.tokenizers, traces(context=100_000)
    assert (mine, other) == (tuned, base)
    row = next(text.named_rows(held_out=False))
    (document,) = text.documents(row, pair.tokenizers, foreign=pair.foreign)
    whole = text.rendered(row, tuned).text
    assert document.ids == tuple(list(encode(one, whole)["input_ids"]) for one in (tuned, base))
    assert tuned.convert_tokens_to_ids("<think>") in document.ids[0] and 151648 not in document.ids[1]
    for a, b in zip(*document.places, strict=True):  # the same text, under the same ids
        assert document.ids[0][a] == document.ids[1][b]
    assert len(document.places[0]) > 0.95 * len(document.ids[0])


@pytest.mark.parametrize(("first", "second"), [("qwen", "deepseek_v3"), ("r1_llama", "qwen3"), ("gemma3", "r1_qwen")])
def test_tokens_of_two_tokenizers_are_paired_one_to_one_and_no_mark_with_a_fragment(first, second, traces):
    pair = ModelPair(source(first), source(second), align="by_text")
    rows = [row["thinking"] for row in itertools.islice(traces().named_rows(held_out=False), 6)]
    for text in (ODD * 3, *(f"<｜User｜>\nq<｜Assistant｜><think>\n{ODD} {row}\n</think>\n\nA\n" for row in rows)):
        found = Aligned.of(text, pair.tokenizers, marks=one_of(pair.foreign))
        kept = found.pairs[~found.foreign]
        assert len(kept) > 0.5 * min(map(len, found.ids))
        for entry in (0, 1):
            assert (np.diff(kept[:, entry]) > 0).all()  # none twice, and in order
        ends = [found.offsets[entry][kept[:, entry], 1] for entry in (0, 1)]
        assert (ends[0] == ends[1]).all()
        marks = [m.span() for m in re.finditer("|".join(map(re.escape, pair.foreign)), text)]
        for entry in (0, 1):
            spans = found.offsets[entry][kept[:, entry]]
            assert not any(a < last and b > begin for a, b in spans for begin, last in marks)


def test_the_pieces_of_one_character_are_paired_in_order_from_the_last():
    pair = ModelPair(source("qwen"), source("r1_llama"), align="by_text")
    (mine, theirs), text = pair.tokenizers, "櫀"
    pieces = [len(encode(one, text)["input_ids"]) for one in (mine, theirs)]
    found = Aligned.of(text, pair.tokenizers, marks=None)
    assert sorted(pieces) == [2, 3]
    shift = pieces[1] - pieces[0]
    assert found.pairs.tolist() == [[n, n + shift] for n in range(max(0, -shift), pieces[0])]


def test_bits_per_byte_leave_out_the_marks_of_either_tokenizer_and_the_same_characters(traces):
    from tunediff.evaluations.pair.tokenizers import responses
    from tunediff.text.tokenizers import differing_marks

    tokenizers = [source(name).tokenizer() for name in ("qwen", "r1_qwen")]
    marks, text, left = one_of(differing_marks(*tokenizers)), traces(context=4000), 0
    for row in itertools.islice(text.named_rows(held_out=True), 5):
        both = responses(row, tokenizers, text, marks)
        said = []
        for piece, tokenizer in zip(both, tokenizers, strict=True):
            numbers = [n for n in range(piece.first, len(piece.ids)) if n not in piece.left_out]
            said.append("".join(tokenizer.decode([piece.ids[n]]) for n in numbers))
            assert not {*range(151643, 151650)} & {piece.ids[n] for n in numbers}
            assert bool(piece.left_out) is ("</think>" in tokenizer.decode(piece.ids[piece.first :]))
            left += len(piece.left_out)
        assert said[0] == said[1] and not marks.search(said[0]) and "think>" not in said[0]
        if "\ufffd" not in said[0]:
            assert {piece.bytes for piece in both} == {len(said[0].encode())}
    assert left > 0


# -- the template, thinking marks, long traces -------------------------------------------------------------------------


@pytest.mark.parametrize("name", TOKENIZERS)
def test_what_was_said_is_named_and_all_the_rest_is_the_templates(name):
    tokenizer = source(name).tokenizer()
    manner = Manner(instruction="Think. ", thinking_format="think")
    found = render({**ROW, "spans": [("prompt", 5, 7, "word"), ("answer", 6, 7, "five")]}, tokenizer, manner)
    said = {}
    for first, last, segment in found.segments:
        said.setdefault(segment, []).append(found.text[first:last])
    assert said["prompt"] == ["Think. What is 2+3?"]
    assert "".join(found.text[a:b] for a, b, _ in found.segments) == found.text
    assert said["answer"] == ["It is 5."] and said["thinking"][0].startswith(" Wait, yes.\n</think>")
    assert found.text.count("<think>") == found.text.count("</think>") == 1
    labels = {label: found.text[a:b] for a, b, label in found.labels}
    assert labels["word"] == "is" and labels["five"] == "5" and labels["end_of_thinking"] == "</think>"
    words = "".join(said["template"])
    assert tokenizer.eos_token in words and ("user" in words or "User" in words)
    kept = Text(lambda: iter([ROW])).documents({**ROW, "index": 0}, [tokenizer])
    assert SEGMENTS.index("template") not in {s for document in kept for s in document.segments}
    only = Text(lambda: iter([ROW]), segments=["template"], drop_special=False)
    assert only.documents({**ROW, "index": 0}, [tokenizer])[0].places[0]


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_row_without_thinking_leaves_no_thinking_open(name):
    tokenizer = source(name).tokenizer()
    found = render({"prompt": "q", "answer": "It is 5."}, tokenizer)
    assert found.text.count("<think>") == found.text.count("</think>")
    assert [found.text[a:b] for a, b, segment in found.segments if segment == "answer"] == ["It is 5."]


def test_arguments_reach_the_template_and_what_it_does_not_read_is_refused():
    tokenizer = source("qwen3").tokenizer()
    plain = render({"prompt": "q", "answer": "5"}, tokenizer).text
    quiet = Manner(template={"enable_thinking": False})
    found = render({"prompt": "q", "answer": "5"}, tokenizer, quiet).text
    assert "<think>" not in plain and found.count("<think>\n\n</think>\n\n5") == 1
    thinks = render(ROW, tokenizer, quiet).text  # an empty thought gives way to the row's
    assert thinks.count("<think>") == 1 and "<think>\nSo we add." in thinks
    with pytest.raises(
        TextError, match=r"text.template.enable_thinkin=False: .* reads no enable_thinkin; it reads .*enable_thinking"
    ):
        render(ROW, tokenizer, Manner(template={"enable_thinkin": False}))


@pytest.mark.parametrize("question", ["a", "n", "user", "<think></think>", "Why <think>\n\n</think>", "assistant\n"])
def test_what_was_asked_is_found_beside_an_empty_thought_of_the_template(question):
    quiet = Manner(template={"enable_thinking": False})
    found = render({**ROW, "prompt": question}, source("qwen3").tokenizer(), quiet)
    said = [(first, found.text[first:last]) for first, last, segment in found.segments if segment == "prompt"]
    assert said == [(len("<|im_start|>user\n"), question.strip())]
    assert found.text.endswith("<think>\nSo we add. Wait, yes.\n</think>\n\nIt is 5.<|im_end|>")


def test_a_question_that_ends_a_prompt_keeps_its_marks(monkeypatch):
    tokenizer = source("qwen").tokenizer()
    monkeypatch.setattr(tokenizer, "chat_template", None)
    question = "What does this mean: <think></think>"
    found = render({**ROW, "prompt": question}, tokenizer)
    assert question in found.text


def test_a_template_that_reads_the_clock_is_told_the_day_of_the_text(monkeypatch):
    tokenizer = source("llama").tokenizer()
    clock = "{{ 'Today ' + strftime_now('%d %b %Y') }}" + tokenizer.chat_template
    monkeypatch.setattr(tokenizer, "chat_template", clock)
    assert render(ROW, tokenizer).text.startswith("Today 26 Jul 2024")
    assert render(ROW, tokenizer, Manner(date="2025-02-01")).text.startswith("Today 01 Feb 2025")
    with pytest.raises(TextError, match="text.date='yesterday' is no day"):
        Text(lambda: iter([ROW]), date="yesterday")


CLOCKS = {
    "{% set f='%d %b %Y' %}{{ strftime_now(f) }}": "26 Jul 2024",
    "{{ strftime_now('%d' ~ ' %b') }}": "26 Jul",
    "{% set now = strftime_now %}{{ now('%Y-%m-%d') }}": "2024-07-26",
    "{{ strftime_now(format='%Y') }}": "2024",
    "{{ strftime_now('%%d is %-d, %A, %j, %H:%M') }}": "%d is 26, Friday, 208, 00:00",
    "{% macro today() %}{{ strftime_now('%y') }}{% endmacro %}{{ today() }}": "24",
    "{% if strftime_now is defined %}{{ strftime_now('%B') | upper }}{% endif %}": "JULY",
    "\n  {% if true %}{{ strftime_now('%m') }}{% endif %}": "\n07",
}


@pytest.mark.parametrize("several", [False, True], ids=["one", "several"])
@pytest.mark.parametrize("clock", CLOCKS)
def test_a_template_reads_the_day_of_the_text_in_whatever_way_it_asks(monkeypatch, clock, several):
    tokenizer = source("llama").tokenizer()
    template = clock + "|{{ messages[-1].content }}"
    monkeypatch.setattr(tokenizer, "chat_template", {"default": template, "rag": "no"} if several else template)
    assert render(ROW, tokenizer).text.startswith(f"{CLOCKS[clock]}|What is 2+3?")
    with pytest.raises(TextError, match=r"text.template.thinks=True: .* reads no thinks; it reads nothing but"):
        render(ROW, tokenizer, Manner(template={"thinks": True}))


@pytest.mark.parametrize("asks", ["'%Q'", "'%Ey'", "5", "nothing", "", "'%Y', '%d'", "'%'"])
def test_what_the_clock_cannot_be_asked_is_refused(monkeypatch, asks):
    tokenizer = source("llama").tokenizer()
    monkeypatch.setattr(tokenizer, "chat_template", "{{ strftime_now(" + asks + ") }}{{ messages[-1].content }}")
    with pytest.raises(TextError, match="chat template cannot render .* it says: .*strftime_now.* Choose"):
        render(ROW, tokenizer)


BROKEN = [
    *("{{ 1 // 0 }}", "{{ [1].index(2) }}", "{{ '%q' % 1 }}", "{{ 'é'.encode('ascii') }}", "{{ range(10000000) }}"),
    *("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "{{ none.x.y }}", "{{ 'a' + 1 }}", "{% if %}"),
]


@pytest.mark.parametrize("template", BROKEN)
def test_a_template_that_fails_in_whatever_way_is_refused_in_one_sentence(monkeypatch, template):
    tokenizer = source("llama").tokenizer()
    monkeypatch.setattr(tokenizer, "chat_template", template + "{{ messages[-1].content }}")
    with pytest.raises(TextError, match=r"chat template cannot render a conversation of \['user'\]: it says: .*Choose"):
        render(ROW, tokenizer)


def test_of_several_templates_the_default_is_read_that_for_tools_where_some_are_given_and_without_one_none(monkeypatch):
    tokenizer = source("llama").tokenizer()
    several = {"default": "plain {{ messages[-1].content }}", "tool_use": "{{ tools }} {{ messages[-1].content }}"}
    monkeypatch.setattr(tokenizer, "chat_template", several)
    assert render(ROW, tokenizer).text.startswith("plain What")
    assert render(ROW, tokenizer, Manner(template={"tools": [{"name": "add"}]})).text.startswith(
        "[{'name': 'add'}] What"
    )
    monkeypatch.setattr(tokenizer, "chat_template", {"rag": "x", "tool_use": "y"})
    with pytest.raises(TextError, match="has chat templates for rag, tool_use and none that is the default"):
        render(ROW, tokenizer)


@pytest.mark.parametrize(
    "name", ["add_generation_prompt", "messages", "tokenize", "chat_template", "return_dict", "padding"]
)
def test_an_argument_that_rendering_sets_itself_is_refused_by_name(name):
    with pytest.raises(TextError, match=f"text.template.{name}=False: {name} is set where a prompt is rendered"):
        render(ROW, source("qwen3").tokenizer(), Manner(template={name: False}))


def test_a_template_with_tags_of_transformers_has_its_arguments_checked(monkeypatch):
    tokenizer = source("llama").tokenizer()
    tags = "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% break %}{% endfor %}{{ style }}"
    monkeypatch.setattr(tokenizer, "chat_template", tags)
    assert render(ROW, tokenizer, Manner(template={"style": "short"})).text.startswith("What is 2+3?short")
    with pytest.raises(TextError, match="reads no stile; it reads style"):
        render(ROW, tokenizer, Manner(template={"stile": "short"}))


def test_a_template_that_wants_parts_gets_them(monkeypatch):
    tokenizer = source("qwen3").tokenizer()
    parts = "{% for m in messages %}[{{ m.role }}]{% for part in m.content %}{{ part.text }}{% endfor %}{% endfor %}"
    monkeypatch.setattr(tokenizer, "chat_template", parts)
    assert render(ROW, tokenizer).text.startswith("[user]What is 2+3?")


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_conversation_is_read_whole_its_last_response_as_the_response(name):
    tokenizer = source(name).tokenizer()
    turns = [("user", "First?"), ("assistant", "One."), ("user", "Second?"), ("assistant", "Two.")]
    row = {"conversation": [{"role": who, "content": said} for who, said in turns]}
    row["conversation"][3]["reasoning_content"] = "Hm, two."
    (whole,) = exchange([row])
    found = render(whole, tokenizer)
    said = [(segment, found.text[a:b]) for a, b, segment in found.segments if segment != "template"]
    assert said[:3] == [("prompt", "First?"), ("answer", "One."), ("prompt", "Second?")]
    assert said[-1] == ("answer", "Two.") and "<think>\nHm, two.\n</think>" in found.text
    (first,), each = exchange([row], turns="first"), list(exchange([row], turns="each"))
    assert (first["prompt"], first["response"]) == ("First?", "One.")
    assert [one["prompt"] for one in each] == ["First?", "Second?"] and len(each[1]["earlier"]) == 2
    assert len({Text(lambda: iter(each), held_out=0.5)._is_held_out(one["begun"]) for one in each}) == 1


@pytest.mark.parametrize("name", TOKENIZERS)
def test_what_a_tool_said_stands_before_the_response_or_the_template_is_refused(name):
    said = [("user", "How?"), ("assistant", "Let me look."), ("tool", 'It "says" 7.'), ("assistant", "Seven.")]
    (row,) = exchange(
        [{"conversation": [{"role": who, "content": what} for who, what in said], "spans": [("prompt", 0, 3, "how")]}]
    )
    tokenizer = source(name).tokenizer()
    if name in (*OPEN_BY_THEMSELVES, "gemma3"):
        with pytest.raises(TextError, match=r"cannot render .*'tool'\]: it (leaves out what is said by tool|says: )"):
            render(row, tokenizer)
        return
    found = render(row, tokenizer)
    named = [(segment, found.text[a:b].replace("\\", "")) for a, b, segment in found.segments if segment != "template"]
    assert named == [(("answer", "prompt")[who != "assistant"], what) for who, what in said]
    assert [found.text[a:b] for a, b, label in found.labels if label == "how"] == ["How"]


@pytest.mark.parametrize("name", TOKENIZERS)
def test_two_system_messages_are_what_was_said_or_refused(name):
    earlier = [{"role": "system", "content": "Be good."}, {"role": "system", "content": "Be quick."}]
    if name == "gemma3":
        with pytest.raises(TextError, match="takes no system message"):
            render({**ROW, "earlier": earlier}, source(name).tokenizer())
        return
    found = render({**ROW, "earlier": earlier}, source(name).tokenizer())
    said = "|".join(found.text[a:b] for a, b, segment in found.segments if segment == "prompt")
    assert said.replace("good.Be", "good.|Be") == "Be good.|Be quick.|What is 2+3?"


OPEN_BY_THEMSELVES = ("r1_qwen", "r1_llama", "deepseek_v3")  # templates that open the thinking


def test_rotten_rows_are_refused_in_one_sentence():
    tokenizer = source("qwen").tokenizer()
    for conversation, said in (
        (["hi"], r"A conversation is \['hi'\], and a list of turns"),
        ("hi", "A conversation is 'hi', and a list of turns"),
        ([], "has no question with a response behind it"),
        (
            [{"role": "user", "content": "q"}, {"role": "assistant", "content": None}],
            "by assistant whose content is None",
        ),
    ):
        with pytest.raises(TextError, match=said):
            list(exchange([{"conversation": conversation}]))
    with pytest.raises(TextError, match="half a character .* in its answer, at character 3"):
        render({"prompt": "q", "answer": "It \ud83d"}, tokenizer)
    for odd in ("a\x00b", "\ue0000\ue001", "   ", "<think>x</think>", "\u200b"):
        found = render({"prompt": odd, "answer": odd}, tokenizer)
        assert "".join(found.text[a:b] for a, b, _ in found.segments) == found.text


@pytest.mark.parametrize("thinking_format", FORMATS)
@pytest.mark.parametrize("name", TOKENIZERS)
def test_thinking_marks_hold_in_rendering_gates_and_grading_alike(name, thinking_format):
    from tunediff.benchmarks import closed, grade
    from tunediff.edits import Sequences, Thinking

    tokenizer = source(name).tokenizer()
    thinking, answer = "I see </other> tags, [/THINKING] too. Wait.", "It is \\boxed{5}."
    said = FORMATS[thinking_format].format(thinking=thinking, answer=answer)
    row = {"prompt": "2+3?", "response": said}
    if name not in OPEN_BY_THEMSELVES:
        found = render(row, tokenizer, Manner(thinking_format=thinking_format))
        assert said in found.text
    else:
        found = render(row, tokenizer, Manner(thinking_format="think"))
        assert f"<think>\n{thinking}\n</think>\n\n{answer}" in found.text
    response = encode(tokenizer, said)["input_ids"]
    known = Sequences.of_responses(tokenizer, [encode(tokenizer, "2+3? ")["input_ids"]], [response])
    inside = Thinking()(known, {})[0, -len(response) :]
    within = tokenizer.decode([i for i, flag in zip(response, inside, strict=True) if flag])
    assert thinking in within and "boxed" not in within
    assert closed(said) is True and grade(said, "5").correct
    assert closed(said.partition("Wait.")[0]) is False


@pytest.mark.parametrize("thinking_format", FORMATS)
@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_budget_ends_thinking_with_the_marks_that_it_was_begun_with(name, thinking_format):
    from tunediff.generation import Decoding
    from tunediff.generation.writer import Writer

    tokenizer, parts = source(name).tokenizer(), layout(thinking_format)
    decoding = Decoding(tokens=200, think_at_most=60, conclusion="Answer: 7")
    for opened in ("", parts.opens):
        writer = Writer("x", decoding, tokenizer, {-1}, opened=opened)
        model = encode(tokenizer, ("" if opened else parts.opening) + "so 12+7=19. " * 40)["input_ids"]
        for token in model:
            writer.take(token)
        said = tokenizer.decode(writer.ids)
        before, ended, after = said.partition(parts.between.strip())
        assert ended and after.strip().startswith("Answer: 7") and before.count("12+7") in range(3, 9)
        assert writer.thinking.now is None and len(writer.thinking.spans) == 1


def test_marks_of_the_text_alone_reach_gates_grading_and_budget_forcing():
    from tunediff.benchmarks import grade
    from tunediff.study.parts import pair_and_text

    own = "text.thinking_format='<musing>{thinking}</musing>{answer}'"
    pair, text = pair_and_text(composed("model_pair=r1_vs_qwen", own, *folders_of("r1_vs_qwen")))
    assert text.manner.layout == layout("<musing>{thinking}</musing>{answer}") == pair.layouts[0]
    said = "<musing>7? \\boxed{7}</musing>\\boxed{5}"
    assert grade(said, "5", layouts=pair.layouts).correct
    other, same = pair_and_text(
        composed("model_pair=r1_vs_qwen", "model_pair.thinking_format=magistral", *folders_of("r1_vs_qwen"))
    )
    assert same.manner.layout == layout("magistral") == other.layouts[0]


def test_only_the_mark_that_was_opened_is_closed():
    from tunediff.benchmarks import closed, grade

    said = "<think>\nIs [/THINK] or <|end_of_thought|> \\boxed{4}?\n</think>\n\\boxed{5}"
    assert grade(said, "5").correct and closed(said.partition("\n</think>")[0]) is False
    assert grade(said.removeprefix("<think>"), "5", opened="<think>").correct


@pytest.mark.parametrize("long", ["cut", "first", "keep_prompt"])
@pytest.mark.parametrize("name", TOKENIZERS)
def test_long_rows_are_cut_as_asked(name, long, traces):
    pair = ModelPair(source("r1_qwen"), source(name), align="strict" if name == "r1_qwen" else "by_text")
    text = traces(context=400, long=long)
    row = next(row for row in text.named_rows(held_out=False) if len(row["thinking"]) > 6000)
    (whole,) = traces(context=100_000).documents(row, pair.tokenizers, foreign=pair.foreign)
    pieces = text.documents(row, pair.tokenizers, foreign=pair.foreign)
    asked = len(
        encode(
            pair.tokenizers[0],
            text.rendered(row, pair.tokenizers[0]).text[: text.rendered(row, pair.tokenizers[0]).response],
        )["input_ids"]
    )
    kept = [[piece.ids[0][p] for p in piece.places[0]] for piece in pieces]
    everything = [whole.ids[0][p] for p in whole.places[0]]
    assert all(len(ids) <= 400 for piece in pieces for ids in piece.ids)
    if long == "first":
        ((ids, *_),) = (piece.ids for piece in pieces)
        assert ids == whole.ids[0][: len(ids)] and kept[0] == everything[: len(kept[0])]
        assert 390 < max(map(len, pieces[0].ids)) <= 400
        return
    assert [i for piece in kept for i in piece] == everything and len(pieces) > 3  # each token once
    assert [s for piece in pieces for s in piece.segments] == whole.segments
    for piece in pieces[1:]:
        assert (piece.ids[0][:asked] == whole.ids[0][:asked]) is (long == "keep_prompt")
        assert not piece.places[0] or piece.places[0][0] >= (asked if long == "keep_prompt" else 0)


@pytest.mark.parametrize("long", ["cut", "keep_prompt"])
@pytest.mark.parametrize(("mine", "theirs"), [("qwen", "deepseek_v3"), ("gemma3", "llama"), ("deepseek_v3", "gemma3")])
def test_no_piece_is_longer_than_the_context_under_either_tokenizer(mine, theirs, long):
    pair = ModelPair(source(mine), source(theirs), align="by_text")
    row = {"prompt": "What is it?", "thinking": "𝔽龘🙂 and so on. " * 300, "answer": "5", "index": 0}
    pieces = Text(lambda: iter([]), context=64, long=long).documents(row, pair.tokenizers)
    (whole,) = Text(lambda: iter([]), context=10**6).documents(row, pair.tokenizers)
    assert 50 < max(len(ids) for piece in pieces for ids in piece.ids) <= 64
    for m in (0, 1):
        kept = [piece.ids[m][place] for piece in pieces for place in piece.places[m]]
        assert kept == [whole.ids[m][place] for place in whole.places[m]]


def test_a_question_is_repeated_where_it_takes_no_more_than_half_of_the_context():
    tokenizer = source("qwen").tokenizer()
    for asked, repeated in ((10, True), (80, True), (160, False), (240, False)):
        row = {"prompt": "a " * asked, "thinking": "b " * 4000, "answer": "5", "index": 0}
        text = Text(lambda: iter([]), context=256, long="keep_prompt")
        pieces = text.documents(row, [tokenizer])
        assert (pieces[3].ids[0][:8] == pieces[0].ids[0][:8]) is repeated
        assert sum(len(piece.ids[0]) for piece in pieces) < 2.1 * 4300


def test_a_note_says_which_label_falls_to_foreign_marks():
    pair = ModelPair(source("qwen"), source("r1_qwen"))
    rows = [{**ROW, "prompt": f"What is {n}+3?"} for n in range(40)]
    (said,) = agree(pair, Text(lambda: iter(rows), held_out=0.2)).notes
    assert said.endswith("No token is left with the label end_of_thinking.")
    kept = ModelPair(source("qwen"), source("r1_qwen"), foreign="keep")
    (said,) = agree(kept, Text(lambda: iter(rows), held_out=0.2)).notes
    assert "end_of_thinking" not in said


def test_problems_of_the_toy_language_are_asked_of_its_own_models_alone():
    pair = ModelPair(source("qwen"), source("r1_qwen"))
    asked = evaluations_of(
        composed("model_pair=r1_vs_qwen", "evaluation=benchmark", "task=toy").evaluation, learns=True
    )
    text = Text(lambda: iter([ROW]))
    with pytest.raises(
        Refused, match="asks the problems of task=toy, the made-up .* name others, such as task=math500"
    ):
        check_evaluations(asked, pair, text, tokens=100)


def test_template_arguments_are_typed_as_they_stand_in_the_readme():
    cfg = composed("model_pair=r1_vs_qwen", "text.template={enable_thinking: false}")
    assert dict(cfg.text.template) == {"enable_thinking": False}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"window": 0}, "text.window=0: give at least 1"),
        ({"tokens_per_batch": 0}, "text.tokens_per_batch=0"),
        ({"drop_first": 500}, "text.drop_first=500 leaves nothing of text.context=256"),
        ({"drop_first": -1}, "text.drop_first=-1"),
        ({"held_out": -1}, "text.held_out=-1 is no share"),
    ],
)
def test_a_number_that_a_text_cannot_be_read_with_is_refused_when_it_is_set(settings, said):
    with pytest.raises(TextError, match=said):
        Text(lambda: iter([ROW]), **{"context": 256, **settings})


def test_refusing_rows_without_an_answer_says_nothing_where_there_are_none():
    assert Text(lambda: iter([ROW]), unfinished="refuse").told() == []


def test_cutting_a_row_looks_at_every_token_a_bounded_number_of_times(monkeypatch):
    """Linear in its length, counted and not timed: no array that is made is longer than the text, and there are few."""
    tokenizer = source("r1_qwen").tokenizer()
    made = {}
    for repeats in (200, 800):
        row = {"prompt": "q", "thinking": "So we add. Wait, that is 5.\n" * repeats, "answer": "5", "index": 0}
        text = Text(lambda: iter([]), context=256)
        sizes, before = [], np.searchsorted

        def counting(a, v, *rest, sizes=sizes, before=before, **more):
            sizes.append(np.size(v))
            return before(a, v, *rest, **more)

        with monkeypatch.context() as patch:
            patch.setattr(np, "searchsorted", counting)
            pieces = text.documents(row, [tokenizer])
        made[repeats] = sum(sizes) / sum(len(piece.ids[0]) for piece in pieces)
    assert made[800] < 1.1 * made[200] < 30


@pytest.mark.parametrize("name", TOKENIZERS)
def test_thinking_that_was_cut_is_read_without_closing_mark_and_end_token(name, data_folder):
    file = str(data_folder / "reasoning_traces" / "traces.jsonl.gz")
    fields = {"prompt": "question", "thinking": "thinking", "answer": "answer"}
    rows = list(itertools.islice(read_files(file), 40))
    cut, tokenizer = {n for n, row in enumerate(rows) if not row["answer"]}, source(name).tokenizer()
    assert 0 < len(cut) < 40 and not any(rows[n]["complete"] for n in cut)
    text = Text(lambda: iter(rows), fields=fields, held_out=0.0, context=100_000)
    for row in text.named_rows(held_out=False):
        found = text.rendered(row, tokenizer)
        ended = found.text[found.response :].endswith("</think>\n\n" + (row["answer"] or "-") + tokenizer.eos_token)
        assert ended is (row["index"] not in cut)
        if row["index"] in cut:
            assert found.text.endswith(row["thinking"]) and not any(
                label == "end_of_thinking" for *_, label in found.labels
            )
            (document,) = text.documents(row, [tokenizer])
            assert tokenizer.decode(document.ids[0]).endswith(row["thinking"][-20:])
    (said,) = text.told()
    assert said.startswith(f"{len(cut)} of the first 40 rows have no answer: they are read as far as they go")
    left = Text(lambda: iter(rows), fields=fields, held_out=0.0, unfinished="leave_out")
    assert {row["index"] for row in left.named_rows(held_out=False)} == set(range(40)) - cut
    responses = [{"prompt": row["question"], "response": f"<think>\n{row['thinking']}"} for row in rows]
    same = Text(lambda: iter(responses), held_out=0.0, unfinished="leave_out")
    assert not list(same.named_rows(held_out=False)) and "40 of the first 40" in same.told()[0]


def test_a_context_beyond_a_models_positions_is_refused_with_both_numbers(traces):
    with pytest.raises(PairError, match=r"text.context=40,000 is more than the 32,768 positions of the base model"):
        agree(pair_of("r1_vs_qwen"), traces(context=40_000))


def composed(*overrides):
    import hydra

    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(ROOT / "conf")):
        return hydra.compose("train", [*overrides])


def folders_of(name):
    base, tuned, *_ = PAIRS[name]
    return [f"model_pair.base.path={real(base)}", f"model_pair.tuned.path={real(tuned)}"]


def test_toy_text_before_a_model_that_does_not_speak_it_is_refused_in_one_sentence():
    from tunediff.study.parts import agreed_upon

    for given in (["model_pair=r1_vs_qwen", "text=toy"], ["model_pair=local"]):
        with pytest.raises(
            Refused, match="text=toy is the made-up language of the embedded pair, and .* speaks another"
        ):
            agreed_upon(composed(*given, *folders_of("r1_vs_qwen")), evaluated=True)


@pytest.mark.parametrize("pair", sorted(p.stem for p in (ROOT / "conf" / "model_pair").glob("*_vs_*.yaml")))
def test_a_real_pair_brings_a_study_that_fits_it_and_the_line_has_the_last_word(pair):
    cfg = composed(f"model_pair={pair}")
    assert "toy" not in json.dumps([str(cfg.text.rows._target_), list(cfg.task)])
    assert cfg.budget.tokens == 100_000_000 and "check" not in cfg.evaluation
    assert cfg.text.thinking_format == ("s1" if pair == "s1_vs_qwen" else "think")
    other = composed(f"model_pair={pair}", "text=gsm8k", "scale=smoke", "evaluation=geometry", "task=amc23")
    assert (other.text.rows.path, other.budget.tokens) == ("openai/gsm8k", 8192)
    assert (list(other.evaluation), list(other.task)) == (["geometry"], ["amc23"])


def test_the_embedded_pair_alone_brings_toy_text_and_toy_labels():
    cfg = composed()
    assert "check" in cfg.evaluation and list(cfg.task) == ["toy"] and cfg.budget.tokens == 600_000


# -- the sentence ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_the_sentence_trains_four_layers_of_a_real_pair_on_real_traces_with_all_that_is_usual(tmp_path, data_folder):
    the_sentence(tmp_path, data_folder, evaluated=2048, evaluation="usual", window=64)


def test_the_sentence_trains_four_layers_of_a_real_pair_on_real_traces(tmp_path, data_folder):
    the_sentence(tmp_path, data_folder, evaluated=120, evaluation="[fidelity,geometry,segments,examples]")


def the_sentence(folder, data_folder, *, evaluated, evaluation, window=1):
    """python train.py -m layer=0,1,2,3 model_pair=r1_vs_qwen, with folders in place of Hub ids."""
    small = ["text=traces", "text.context=128", "scale=smoke", f"evaluation={evaluation}"]
    small += [f"text.window={window}", "text.tokens_per_batch=1024", f"budget.evaluation_tokens={evaluated}"]
    small += [
        *TWO_STEPS,
        "model_pair.base.dtype=float32",
        "model_pair.tuned.dtype=float32",
        f"hydra.sweep.dir={folder}/sweep",
    ]
    words = ["train.py", "-m", "layer=0,1,2,3", "model_pair=r1_vs_qwen", *folders_of("r1_vs_qwen"), *small]
    said = call(*words, TUNEDIFF_DATA=str(data_folder), seconds=2400)
    assert "4 of 4 members are finished" in said
    runs = [path.parent for path in (folder / "sweep").glob("*/findings.json")]
    contents = [json.loads((run / "findings.json").read_text()) for run in runs]
    assert {content["study"]["layer"] for content in contents} == set("0123")
    for run, content in zip(runs, contents, strict=True):
        found = {finding["name"]: finding["value"] for finding in content["findings"]}
        assert (run / "report.html").exists() and content["study"]["model_pair"] == "r1_qwen vs qwen"
        assert 0.003 < found["tokens/foreign"] < 0.02 and found["fidelity/l0/mean"] > 0
        assert any("base reads id 151648 as <|box_start|>" in note for note in content["notes"])
        assert {"segments/l0/prompt", "segments/l0/prefix", "segments/l0/thinking/0"} <= set(found)
        missing = [note for note in content["notes"] if "was not measured" in note]
        assert all("the held-out text has too few" in note for note in missing)  # of a label, in so little text
        assert not any("'end_of_thinking': 0" in note for note in missing)  # of which no text has more


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("question", ["a", "user", "Please reason step by step", "<|im_start|>", "assistant\n"])
def test_a_question_that_is_a_word_of_the_template_is_found_where_it_was_put(name, question):
    tokenizer = source(name).tokenizer()
    found = render({"prompt": question, "answer": "5", "spans": [("prompt", 0, 1, "first")]}, tokenizer)
    ((first, last),) = [(a, b) for a, b, segment in found.segments if segment == "prompt"]
    assert found.text[first:last] == question.strip()
    other = render({"prompt": "zzz", "answer": "5"}, tokenizer)
    assert first == other.text.index("zzz") == next(a for a, _, label in found.labels if label == "first")


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "piece", [".", " ", "<think></think>", "<think>", "Wait. ", "a.b", "\n", "no, no, no, ", "!?…", "'\""]
)
def test_rules_and_marks_come_to_an_end_on_texts_that_are_made_to_be_slow(piece):
    """A step that grows with the square of these 400,000 characters would take hours."""
    from tunediff.text import by_rule, thoughts

    text = (piece * 400_000)[:400_000]
    spans, found = by_rule(text), thoughts(text)
    assert all(0 <= a < b <= len(text) for a, b, _ in spans) and all(one.begin <= one.end for one in found)
