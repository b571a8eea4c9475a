"""Rows, segments, labels, splits, batches."""

import gzip
import itertools
import json
import random

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch

import toy_pair
from tunediff.shapes import SEGMENTS
from tunediff.text import Text, TextError, compare_tokenizers, padded_groups, read_files, render
from tunediff.text.tokenizers import touching
from tunediff.toy import language
from tunediff.toy.tokenizer import build_tokenizer

BY_RULE = {"step_end", "hesitation", "hesitation_follows", "backtracks"}  # test_labels.py has their laws
ROWS = list(itertools.islice(language.rows(0, "trace"), 200))


def toy_text(**settings):
    return Text(
        lambda: iter(ROWS), **{"context": 256, "held_out": 0.1, "window": 32, "tokens_per_batch": 1024, **settings}
    )


def test_segments_cover_the_text_and_name_its_parts(tokenizer):
    rendered = render(ROWS[0], tokenizer)
    assert "".join(rendered.text[a:b] for a, b, _ in rendered.segments) == rendered.text
    parts = {name: rendered.text[a:b] for a, b, name in rendered.segments}
    assert list(parts) == ["template", "prompt", "prefix", "thinking", "answer"]
    assert parts["prompt"] == ROWS[0]["prompt"] and parts["template"] == tokenizer.eos_token
    assert parts["prefix"].removeprefix("<think>\n").startswith(("Okay, so", "Alright, so")) and parts[
        "prefix"
    ].endswith(".")
    assert parts["answer"].startswith("The answer is")


def test_a_toy_row_is_rendered_as_the_models_were_trained(tokenizer):
    for row in itertools.chain(ROWS[:20], itertools.islice(language.rows(0, "direct"), 20)):
        assert render(row, tokenizer).text == "".join(toy_pair.render(row, tokenizer))


def test_a_template_that_opens_the_thinking_is_not_opened_twice(tokenizer, monkeypatch):
    monkeypatch.setattr(
        tokenizer,
        "chat_template",
        tokenizer.chat_template.replace("<｜Assistant｜>{% endif %}", "<｜Assistant｜><think>\n{% endif %}"),
    )
    assert render(ROWS[0], tokenizer).text.count("<think>") == 1


def test_a_whole_response_is_cut_at_its_think_tags(tokenizer):
    row = {"prompt": "1+1?", "response": "<think>\nOkay. 1+1=2.\n</think>\n\nIt is 2."}
    parts = {name: render(row, tokenizer).text[a:b] for a, b, name in render(row, tokenizer).segments}
    assert parts["prefix"] == "<think>\nOkay." and parts["answer"].startswith("It is 2.")


def test_labels_sit_on_the_tokens_they_name(tokenizer):
    text = toy_text()
    for row in text.named_rows(held_out=False):
        document = text.documents(row, [tokenizer])[0]
        tokens = [tokenizer.decode([document.ids[0][p]]) for p in document.places[0]]
        assert {t for t, flag in zip(tokens, document.labels["step_end"], strict=True) if flag} == {"."}
        if "hesitation" in document.labels:
            said = "".join(t for t, flag in zip(tokens, document.labels["hesitation"], strict=True) if flag)
            assert said.strip().startswith(("Wait", "Hmm"))


def test_special_tokens_and_first_tokens_can_be_left_out(tokenizer):
    row = next(toy_text().named_rows(held_out=False))
    whole = toy_text(drop_special=False).documents(row, [tokenizer])[0]
    kept = toy_text().documents(row, [tokenizer])[0]
    special = set(tokenizer.all_special_ids)
    everything = toy_text(drop_special=False, segments=SEGMENTS).documents(row, [tokenizer])[0]
    assert len(everything.places[0]) == len(everything.ids[0])
    assert [tokenizer.decode([everything.ids[0][p]]) for p in sorted({*everything.places[0]} - {*whole.places[0]})] == [
        "<｜User｜>",
        "<｜Assistant｜>",
        "<｜end｜>",
    ]
    assert [whole.ids[0][p] for p in kept.places[0]] == [i for i in whole.ids[0] if i not in special]
    assert toy_text(drop_first=5).documents(row, [tokenizer])[0].places[0][0] == 5
    only = toy_text(segments=["answer"]).documents(row, [tokenizer])[0]
    assert {SEGMENTS[s] for s in only.segments} == {"answer"}


def test_a_long_trace_is_cut_not_dropped(tokenizer):
    row = next(toy_text().named_rows(held_out=False))
    whole = toy_text().documents(row, [tokenizer])[0]
    pieces = toy_text(context=16).documents(row, [tokenizer])
    assert len(pieces) > 3 and all(len(p.ids[0]) <= 16 for p in pieces)
    assert [i for p in pieces for i in p.ids[0]] == whole.ids[0]
    assert [s for p in pieces for s in p.segments] == whole.segments


def test_progress_is_the_share_of_its_segment_that_lies_before_a_token(tokenizer):
    text = toy_text(drop_special=False, segments=SEGMENTS)
    row = next(text.named_rows(held_out=False))
    rendered, document = text.rendered(row, tokenizer), text.documents(row, [tokenizer])[0]
    tokens = [tokenizer.decode([i]) for i in document.ids[0]]
    assert "".join(tokens) == rendered.text
    starts = list(itertools.accumulate(map(len, tokens[:-1]), initial=0))
    assert len(starts) == len(document.progress)
    for first, last, name in rendered.segments:
        inside = [n for n, at in enumerate(starts) if first <= at < last]
        assert {SEGMENTS[document.segments[n]] for n in inside} == {name}
        expected = [(starts[n] - first) / (last - first) for n in inside]
        assert [document.progress[n] for n in inside] == pytest.approx(expected)


def test_the_two_sides_of_the_split_share_no_problem_and_hold_every_row():
    sides = [{row["prompt"] for row in toy_text().named_rows(held_out=side)} for side in (False, True)]
    assert not sides[0] & sides[1]
    assert sides[0] | sides[1] == {row["prompt"] for row in ROWS}
    assert 0.02 < len(sides[1]) / len(ROWS) < 0.2


def test_every_token_is_delivered_once_a_pass_with_little_padding(tokenizer):
    text = toy_text(window=128)
    expected = [
        i for row in text.named_rows(held_out=False) for d in text.documents(row, [tokenizer]) for i in d.ids[0]
    ]
    batches, delivered, padded = text.batches([tokenizer]), [], 0
    while True:
        batch = next(batches)
        if batches.epoch:
            break
        delivered += batch.ids[0][batch.mask[0].bool()].tolist()
        padded += int((1 - batch.mask[0]).sum())
        assert torch.equal(batch.ids[0].flatten()[batch.places[0]], batch.token)
    assert sorted(delivered) == sorted(expected)
    assert padded / len(delivered) < 0.1


def test_groups_hold_every_item_once_by_length_and_as_many_as_fit_when_padded():
    items = ["x" * (7 * n % 23 + 1) for n in range(60)] + ["x" * 300]
    groups = padded_groups(items, 100, len)
    assert [item for group in groups for item in group] == sorted(items, key=len)
    assert all(len(group) == 1 or len(group) * len(group[-1]) <= 100 for group in groups)
    assert all((len(group) + 1) * len(after[0]) > 100 for group, after in itertools.pairwise(groups))
    assert groups[-1] == ["x" * 300] and padded_groups([], 100, len) == []


def test_batches_go_on_from_a_saved_position(tokenizer):
    first, second = (toy_text().batches([tokenizer]) for _ in range(2))
    for _ in range(23):
        next(first)
    second.load_state_dict(first.state_dict())
    for _ in range(30):
        assert torch.equal(next(first).token, next(second).token)


def test_two_tokenizers_are_paired_by_the_character_their_tokens_end_on(tokenizer):
    other = build_tokenizer(["Anna has 3 apples"], size=300)
    assert len(compare_tokenizers(tokenizer, other, []).differing) > 0
    text = toy_text()
    row = next(text.named_rows(held_out=False))
    for document in [
        *text.documents(row, [tokenizer, other]),
        *toy_text(context=32).documents(row, [tokenizer, other]),
    ]:
        assert len(document.places[0]) == len(document.places[1]) > 0
        for a, b in zip(*document.places, strict=True):
            first, second = tokenizer.decode([document.ids[0][a]]), other.decode([document.ids[1][b]])
            assert first.endswith(second) or second.endswith(first)


def test_a_trace_that_is_cut_keeps_every_token_of_both_tokenizers_once(tokenizer):
    other = build_tokenizer(["Anna has 3 apples"], size=300)
    row = next(toy_text().named_rows(held_out=False))
    (whole,) = toy_text().documents(row, [tokenizer, other])
    pieces = toy_text(context=16).documents(row, [tokenizer, other])
    assert len(pieces) > 3
    for entry in (0, 1):
        assert [i for piece in pieces for i in piece.ids[entry]] == whole.ids[entry]


def test_tokenizers_that_agree_have_no_examples_and_specials_are_named(tokenizer):
    found = compare_tokenizers(tokenizer, tokenizer, ["Anna has 3<｜end｜>"])
    assert (found.differing, found.marks, found.foreign) == ([], [], 0) and found.tokens > 3


@pytest.mark.parametrize("ending", ["jsonl", "jsonl.gz", "parquet", "txt", "txt.gz"])
def test_local_files_of_every_kind_are_read(tmp_path, ending):
    rows = [{"text": "one\n"}, {"text": "two\nlines\n"}]
    path = tmp_path / f"rows.{ending}"
    plain = "\n".join(r["text"] for r in rows) if "txt" in ending else "\n".join(map(json.dumps, rows))
    if ending == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        path.write_bytes(gzip.compress(plain.encode()) if ending.endswith("gz") else plain.encode())
    assert list(read_files(str(path))) == rows
    assert list(read_files(str(tmp_path))) == rows


DEEP = "[" * 100_000
BAD_LINES = {
    "list": (b"[1, 2]", r"Line 3 of '.*' is \[1, 2\], where an object with columns belongs"),
    "null": (b"null", "Line 3 of '.*' is null, where an object"),
    "number": (b"5", "Line 3 of '.*' is 5, where an object"),
    "string": (b'"abc"', "Line 3 of '.*' is \"abc\", where an object"),
    "latin": ('{"text": "caf\u00e9"}'.encode("latin-1"), "Line 3 of '.*' is not UTF-8, in which text is read"),
    "surrogate": (b'{"text": "\xed\xb2\x80"}', "Line 3 of '.*' is not UTF-8"),
    "brackets": (DEEP.encode(), "Line 3 of '.*' cannot be read as JSON: .*recursion"),
    "digits": (b'{"n": ' + b"7" * 5000 + b"}", "Line 3 of '.*' cannot be read as JSON: Exceeds the limit"),
    "no JSON": (b"{", "Line 3 of '.*' is not JSON: .* at character"),
}


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("case", BAD_LINES)
def test_a_line_that_is_no_row_is_named_once_the_rows_before_it_are_read(case, zipped, tmp_path):
    line, words = BAD_LINES[case]
    content = b'{"text": "one"}\r\n{"text": "\xc3\xa9"}\n' + line + b"\n"
    path = tmp_path / f"rows.jsonl{'.gz' if zipped else ''}"
    path.write_bytes(gzip.compress(content) if zipped else content)
    rows = read_files(str(path))
    assert [next(rows), next(rows)] == [{"text": "one"}, {"text": "\u00e9"}]
    with pytest.raises(TextError, match=words) as refusal:
        next(rows)
    assert path.name in str(refusal.value) and "\n" not in str(refusal.value)


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3087467144\n"
LONG = "\n".join(json.dumps({"text": str(random.Random(n).random())}) for n in range(20_000)).encode()


def table():
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([{"text": "one"}] * 9), sink)
    return sink.getvalue().to_pybytes()


BAD_FILES = {
    "pointer.jsonl": (LFS, "is a pointer of git-LFS.*git lfs pull"),
    "pointer.jsonl.gz": (LFS, "is a pointer of git-LFS.*git lfs pull"),
    "pointer.txt": (LFS, "is a pointer of git-LFS.*git lfs pull"),
    "pointer.parquet": (LFS, "is a pointer of git-LFS.*git lfs pull"),
    "plain.jsonl.gz": (b'{"text": "one"}\n', "is broken after line 0: Not a gzipped file.*name it as what it is"),
    "cut.jsonl.gz": (gzip.compress(LONG)[:-4000], r"is cut off after line [1-9]\d+: download it again"),
    "cut.txt.gz": (gzip.compress(LONG)[:-4000], r"is cut off after line [1-9]\d+: download it again"),
    "garbled.jsonl.gz": (gzip.compress(LONG)[:10] + b"\xff" * 99, "cannot be read after line 0: .*invalid block type"),
    "changed.jsonl.gz": (gzip.compress(LONG)[:-8] + bytes(8), r"is broken after line \d+: CRC check failed"),
    "wide.jsonl": ('{"text": "one"}'.encode("utf-16"), "Line 1 of '.*' is not UTF-8|Line 1 of '.*' holds NUL"),
    "wide.txt": ("one\n\ntwo".encode("utf-16"), "Line 1 of '.*' is not UTF-8|Line 1 of '.*' holds NUL"),
    "bare.txt": ("one\n\ntwo".encode("utf-16-le"), "Line 1 of '.*' holds NUL, as text in UTF-16 does"),
    "latin.txt": (b"one\n\ntwo\ncaf\xe9\n", "Line 4 of '.*' is not UTF-8"),
    "empty.parquet": (b"", "cannot be read after row 0: .*Download or save it again"),
    "cut.parquet": (table()[:-9], "cannot be read after row 0: .*Download or save it again"),
    "plain.parquet": (b"text\none\n" * 9, "cannot be read after row 0: .*Download or save it again"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_file_that_is_not_what_its_name_says_is_refused_in_one_sentence(name, tmp_path):
    content, words = BAD_FILES[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(TextError, match=words) as refusal:
        list(read_files(str(tmp_path / name)))
    assert name in str(refusal.value) and "\n" not in str(refusal.value)


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path):
    for name, content in (("a.jsonl", '{"text": "one"}'), ("b.txt", "one")):
        (tmp_path / name).write_bytes(content.encode("utf-8-sig"))
    assert list(read_files(str(tmp_path))) == [{"text": "one"}] * 2


def test_a_data_set_in_the_hubs_format_is_read_from_a_folder(tmp_path):
    from tunediff.text import read_hub

    (tmp_path / "train.jsonl").write_text('{"question": "1+1?", "answer": "2"}\n')
    assert list(read_hub(str(tmp_path), split="train", streaming=False)) == [{"question": "1+1?", "answer": "2"}]


def test_a_missing_file_is_named():
    with pytest.raises(TextError, match=r"No file at 'nowhere/\*.jsonl'"):
        list(read_files("nowhere/*.jsonl"))


def test_an_empty_text_is_refused(tokenizer):
    with pytest.raises(TextError, match="no rows to train on"):
        Text(lambda: iter(())).samples(tokenizer)
    with pytest.raises(TextError, match="no tokens to evaluate on: raise text.held_out"):
        next(toy_text(held_out=0.0).batches([tokenizer], held_out=True))


@pytest.mark.parametrize("rows", [lambda: iter(ROWS[:1]), lambda: language.rows(0, "trace")], ids=["one", "endless"])
def test_a_text_that_leaves_nothing_to_evaluate_on_is_refused_unless_nothing_is_evaluated(rows):
    text = Text(rows, held_out=0.0)
    counted = "1 row" if len(list(itertools.islice(rows(), 2))) == 1 else r"10,000 rows"
    with pytest.raises(TextError, match=f"held_out=0.0 keeps none of the first {counted}.*evaluation=none"):
        text.check(evaluated=True)
    text.check(evaluated=False)
    Text(rows, held_out=lambda prompt: True).check(evaluated=True)


def test_a_column_of_thinking_that_no_row_has_is_refused_and_a_response_takes_its_place():
    fields = {"prompt": "question", "thinking": "thinking", "answer": "answer"}
    rows = [{"question": f"{n}+1?", "answer": str(n + 1), "solution": "Okay."} for n in range(30)]

    def check(rows, **more):
        Text(lambda: iter(rows), fields={**fields, **more}, held_out=0.5).check(evaluated=True)

    with pytest.raises(
        TextError, match=r"No row .* 'thinking'.* only answer, question, solution.*text.fields.thinking"
    ):
        check(rows)
    check(rows, thinking="solution")
    check(rows, response="solution")
    check([*rows, {"question": "1+1?", "thinking": "Okay.", "answer": "2"}])
    check([{**row, "thinking": None} for row in rows])  # rows that do not think are no mistake


def test_a_row_without_our_columns_says_how_to_map_them(tokenizer):
    with pytest.raises(TextError, match=r"only \['index', 'question'\]. Map its columns with text.fields"):
        next(Text(lambda: iter([{"question": "1+1?"}])).batches([tokenizer]))


def test_an_unknown_segment_is_refused():
    with pytest.raises(TextError, match=r"\['anwser'\]; the segments are"):
        toy_text(segments=["anwser"])


def test_labelled_sentences_are_found_in_order_and_what_is_not_there_is_left_out(tokenizer):
    thinking = "So we add. Wait, so we add. Then we stop."
    pieces = [
        {"label": "start", "text": "So we add."},
        {"label": "lost", "text": "This was never written."},
        {"label": "backtracking", "text": " Wait, so we add. "},
        {"label": None, "text": "Then we stop."},
    ]
    found = render({"prompt": "q", "thinking": thinking, "answer": "a", "pieces": pieces}, tokenizer)
    said = {(found.text[first:last], label) for first, last, label in found.labels if label not in BY_RULE}
    expected = {(text, label) for text, label in [("So we add.", "start"), ("Wait, so we add.", "backtracking")]}
    expected |= {(text, "annotated") for text in ("So we add.", "Wait, so we add.", "Then we stop.")}
    assert expected | {("So we add.", "opening"), ("</think>", "end_of_thinking")} == said


def test_a_labelled_sentence_that_comes_twice_is_found_where_it_comes(tokenizer):
    pieces = [{"label": name, "text": "So we add."} for name in ("first", "second")]
    row = {"prompt": "q", "thinking": "So we add. Wait. So we add.", "answer": "a", "pieces": pieces}
    found = {label: first for first, _, label in render(row, tokenizer).labels}
    assert found["second"] - found["first"] == len("So we add. Wait. ")


ROTTEN = [
    *(("pieces", value) for value in ("abc", 7, {"label": "a", "text": "b"}, [1, 2], ["abc"])),
    *(("pieces", [value]) for value in ({"label": "a", "text": 3}, {"label": 7, "text": "So"}, None)),
    *(("spans", value) for value in ("abc", 7, {"thinking": 1}, [7], ["four"], [None], [["thinking", 0, 2]])),
    ("spans", [["thinking", "0", "2", "a"]]),
    ("spans", [["thinking", 0, 2, None]]),
    ("spans", [["thinking", -1, 2, "a"]]),
    ("spans", [["thinking", 0, 11, "a"]]),
    ("spans", [["answer", 0, 10, "a"]]),
    ("spans", [["prompt", 0, 2, "a"]]),
    ("spans", [["thinking", 3, 2, "a"]]),
    ("spans", [["thinking", 0.5, 2, "a"]]),
    ("spans", [["thinking", 0, 2.0, "a"]]),
    ("spans", [["thinking", True, 2, "a"]]),
    ("spans", [["thinkin", 0, 2, "a"]]),
    ("spans", [{"field": "thinking", "first": 0, "last": 2, "label": "a"}]),
]


@pytest.mark.parametrize(("column", "value"), ROTTEN)
def test_labels_that_are_none_are_refused_with_their_column_and_the_value(tokenizer, column, value):
    row = {"prompt": "q", "thinking": "So we add.", "answer": "It is 5.", column: value}
    for said in (row, {**row, "thinking": None, "response": "<think>\nSo we add.\n</think>\n\nIt is 5."}):
        with pytest.raises(
            TextError, match=f"A row has .* where its {column} are read from.*~text.fields.{column}"
        ) as found:
            render(said, tokenizer)
        written = value[0] if isinstance(value, list) else value
        assert repr(written) in str(found.value) or repr(value) in str(found.value)


def test_labels_that_end_with_their_field_or_that_nobody_gave_are_none_to_refuse(tokenizer):
    row = {"prompt": "q", "thinking": "So we add.", "answer": "It is 5."}
    for spans in (None, [], [("thinking", 0, 10, "a"), ["answer", 0, 8, "b"], ("prompt", 1, 1, "c")]):
        render({**row, "spans": spans, "pieces": None}, tokenizer)
    render({"prompt": "q", "thinking": "So we", "spans": [("answer", 0, 8, "b")]}, tokenizer)  # cut before its answer
    with pytest.raises(TextError, match="its spans are read from"):
        render({"text": "So.", "spans": [("text", 0, 4, "a")]}, tokenizer)


def test_a_token_has_a_label_where_it_shares_a_character_with_any_of_its_spans():
    chance = random.Random(0)
    for _ in range(300):
        begins = [chance.randint(0, 30) for _ in range(chance.randint(0, 6))]
        spans = [(begin, begin + chance.randint(0, 6), "label") for begin in begins]
        tokens = [(begin, begin + chance.randint(0, 4)) for begin in range(34)]
        shared = [any(start < last and end > first for first, last, _ in spans) for start, end in tokens]
        assert touching(np.array(tokens), [span[:2] for span in spans]).tolist() == shared
