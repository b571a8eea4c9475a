"""One bad row or byte: refused with its file, its number and the reason, or left out and counted; never the end of a run."""

import gzip
import itertools
import json
from pathlib import Path

import pytest

from campaigns.rows import cases
from campaigns.told import BAD
from tunediff.benchmarks import Task, TaskError
from tunediff.text import Text, TextError, each_generation, exchange, read_files, read_hub
from tunediff.text import documents as of_documents
from tunediff.text import rows as of_rows
from tunediff.text import sound as of_sound

GOOD = [{"q": f"{n}+1?", "t": f"Okay, {n} and 1.", "a": str(n + 1)} for n in range(4)]
FIELDS = {"prompt": "q", "thinking": "t", "answer": "a", "spans": "s", "pieces": "p"}
# what stands where a row belongs, as bytes or as changes of a good row; what is said of it
ODD = {
    "null": (b"null", "is null, where an object"),
    "list": (b"[1]", r"is \[1\], where an object"),
    "string": (b'"x"', 'is "x", where an object'),
    "latin": (b'{"q": "caf\xe9"}', "is not UTF-8"),
    "nul": (b'{"q": "\x00"}', "holds NUL"),
    "cut": (b'{"q": "2+', "is not JSON"),
    "half": ({"q": "\ud800"}, r"half a character \('\\ud800'\) in its prompt"),
    "number": ({"q": 5}, "has 5 where its prompt is read from"),
    "listed": ({"t": ["a", "b"]}, "has a list of 2 where its thinking is read from"),
    "object": ({"a": {"b": 1}}, "where its answer is read from"),
    "span of three": ({"s": [["prompt", 0, 1]]}, "where its spans are read from"),
    "span of words": ({"s": [["prompt", "0", "1", "x"]]}, "where its spans are read from"),
    "span beyond": ({"s": [["answer", 0, 99, "x"]]}, "that ends within its answer of 1 characters"),
    "label of a number": ({"s": [["prompt", 0, 1, 7]]}, "where its spans are read from"),
    "half label": ({"s": [["prompt", 0, 1, "\ud800"]]}, "in a label of its spans"),
    "long label": ({"p": [{"label": "x" * 999, "text": "Okay"}]}, "a label of 999 characters"),
    "piece": ({"p": ["Okay"]}, "where its pieces are read from"),
    "pieces": ({"p": "Okay"}, "where its pieces are read from"),
}


def lines(*rows):
    return b"\n".join(row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows) + b"\n"


def file_with(tmp_path, odd, at=2):
    odd = odd if isinstance(odd, bytes) else {**GOOD[0], **odd}
    (tmp_path / "rows.jsonl").write_bytes(lines(*GOOD[:at], odd, *GOOD[at:]))
    return tmp_path / "rows.jsonl"


def text_of(file, **settings):
    return Text(lambda: read_files(str(file)), **{"fields": FIELDS, "held_out": 0.0, **settings})


def read(text, tokenizer):
    return [rendered.text for _, rendered in text.read(tokenizer, held_out=False)]


@pytest.mark.parametrize("case", ODD)
def test_a_bad_row_is_refused_by_file_and_number_or_left_out_and_counted(case, tmp_path, tokenizer):
    odd, words = ODD[case]
    file = file_with(tmp_path, odd)
    with pytest.raises(TextError, match=rf"Line 3 of '.*rows\.jsonl'.*{words}.*text\.bad_rows=skip") as refusal:
        text_of(file).check(evaluated=False)
    assert str(refusal.value).isprintable()
    text = text_of(file, bad_rows="skip")
    text.check(evaluated=False)
    assert read(text, tokenizer) == read(Text(lambda: iter(GOOD), fields=FIELDS, held_out=0.0), tokenizer)
    (said,) = text.told()
    assert said.startswith("1 row that cannot be read was left out (text.bad_rows=skip). It: Line 3 of")


def test_bad_rows_is_refuse_or_skip():
    with pytest.raises(TextError, match=r"text\.bad_rows=drop: choose refuse, skip"):
        Text(lambda: iter(GOOD), bad_rows="drop")


def test_a_step_goes_on_behind_a_row_that_it_refuses(tmp_path, tokenizer):
    turns = [{"role": "user", "content": "2?"}, {"role": "assistant", "content": "2"}]
    rows = [
        {"c": turns},
        {"c": turns[:1]},
        {"c": json.dumps(turns)},
        {"c": 5},
        {"c": "hello"},
        {"c": [turns]},
        {"c": turns},
    ]
    text = Text(
        lambda: iter(rows), fields={"conversation": "c"}, prepare={"e": exchange}, held_out=0.0, bad_rows="skip"
    )
    found = read(text, tokenizer)
    assert len(found) == 3 and len({*found}) == 1, "one that is written as JSON is read as any other"
    assert (
        text.told()[0].startswith("4 rows that cannot be read were left out") and "Row 2 of the text" in text.told()[0]
    )
    rows = [
        {"prompt": "2?", "response": r, "whole": w} for r, w in ((["a", "b"], [1, 1]), (["a"], [1, 1]), (["c"], [1]))
    ]
    step = {"g": lambda rows: each_generation(rows, complete_only=True, complete="whole")}
    text = Text(lambda: iter(rows), prepare=step, held_out=0.0, bad_rows="skip")
    assert [row["response"] for row in text.named_rows(held_out=False)] == ["a", "b", "c"]


@pytest.mark.parametrize("policy", ["refuse", "skip"])
def test_no_training_ends_at_a_row_behind_those_that_were_looked_at(policy, tmp_path, tokenizer, monkeypatch, caplog):
    monkeypatch.setattr(of_documents, "LOOKED_AT", 3)
    monkeypatch.setattr(of_documents, "COUNTED", 3)
    file = file_with(tmp_path, {"q": 5}, at=4)
    text = text_of(file, bad_rows=policy, window=2)
    if policy == "refuse":
        with pytest.raises(TextError, match="Line 5 of"):
            list(itertools.islice(text.batches([tokenizer]), 9))
    text.check(evaluated=False)
    text.told()

    def first(text):
        return [batch.ids[0].tolist() for batch in itertools.islice(text.batches([tokenizer]), 9)]

    assert first(text) == first(Text(lambda: iter(GOOD), fields=FIELDS, held_out=0.0, window=2))
    assert len(text.told()) == 1 and "Line 5 of" in text.told()[0], "counted once, however often it is met"
    assert [record.message for record in caplog.records if "left out" in record.message]


def test_a_text_without_one_good_row_ends_in_a_sentence(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr(of_sound, "HOPELESS", 5)
    endless = Text(lambda: itertools.repeat({"prompt": 5}), held_out=0.0, bad_rows="skip")
    with pytest.raises(TextError, match="None of the first 5 rows can be read. Row 1 of the text: a row has 5 where"):
        next(endless.batches([tokenizer]))
    (tmp_path / "rows.jsonl").write_bytes(b"null\n5\n")
    with pytest.raises(TextError, match="no rows to train on. 2 rows that cannot be read were left out"):
        text_of(tmp_path / "rows.jsonl", bad_rows="skip").check(evaluated=False)


def test_a_file_that_breaks_off_gives_the_rows_before_it_and_is_counted(tmp_path):
    rows = [{"q": str(n), "t": str(hash(str(n))), "a": "1"} for n in range(20_000)]
    whole = gzip.compress(lines(*rows))
    (tmp_path / "rows.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    text = text_of(tmp_path / "rows.jsonl.gz", bad_rows="skip")
    found = [row["prompt"] for row in text.named_rows(held_out=False)]
    assert 1_000 < len(found) < 20_000 and found == [str(n) for n in range(len(found))]
    assert f"is cut off after line {len(found)}" in text.told()[0]


@pytest.mark.parametrize("policy", ["refuse", "skip"])
def test_a_file_that_is_another_than_its_name_says_is_no_bad_row(policy, tmp_path):
    (tmp_path / "a.jsonl").write_bytes(lines(*GOOD))
    (tmp_path / "b.jsonl").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(TextError, match=r"^'.*b\.jsonl' is a pointer of git-LFS"):
        text_of(tmp_path, bad_rows=policy).check(evaluated=False)
    with pytest.raises(TextError, match="^No file at"):
        text_of(tmp_path / "c.jsonl", bad_rows=policy).check(evaluated=False)


def test_a_line_that_is_too_long_is_passed_without_being_held(tmp_path, monkeypatch):
    monkeypatch.setattr(of_rows, "LONGEST", 1_000)
    file = file_with(tmp_path, {"q": "x" * 50_000})
    with pytest.raises(TextError, match=r"Line 3 of '.*' has more than 1,000 characters"):
        text_of(file).check(evaluated=False)
    assert len(list(text_of(file, bad_rows="skip").named_rows(held_out=False))) == 4
    (tmp_path / "a.txt").write_text("one\n\n" + "two\n" * 999 + "\nthree\n")
    found = list(
        Text(lambda: read_files(str(tmp_path / "a.txt")), held_out=0.0, bad_rows="skip").named_rows(held_out=False)
    )
    assert [row["text"] for row in found] == ["one\n", "three\n"]


def test_names_with_brackets_and_of_the_home_folder_are_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "set[1]").mkdir()
    (tmp_path / "set[1]" / "a[b].jsonl").write_bytes(lines(*GOOD))
    for name in ("set[1]", "set[1]/a[b].jsonl", "set*/*.jsonl"):
        assert list(read_files(str(tmp_path / name))) == list(read_files(f"~/{name}")) == GOOD


@pytest.mark.parametrize("name", ["more.json", "more.csv", "more.jsonl.zst", "more.parquet.bak"])
def test_rows_in_a_form_that_is_not_read_are_not_passed_over_unsaid(name, tmp_path):
    (tmp_path / "rows.jsonl").write_bytes(lines(*GOOD))
    for beside in ("README.md", "dataset_infos.json", ".gitattributes"):
        (tmp_path / beside).write_text("{}")
    assert list(read_files(str(tmp_path))) == GOOD
    (tmp_path / name).write_text("{}")
    with pytest.raises(TextError, match=rf"{name}' stands beside the files that are read.*such as folder/\*\.jsonl"):
        list(read_files(str(tmp_path)))


PROBLEM = {"id": 1, "question": "1+1?", "answer": "2", "passage": "One."}
PROBLEMS = {
    "question": ({"question": ["1+1?"]}, r"question of row 1 is \['1\+1\?'\], and text belongs there"),
    "answer": ({"answer": {"is": 2}}, "answer of row 1 is"),
    "answers": ({"answer": ["2", {"is": 2}]}, "answer of row 1 is"),
    "id": ({"id": [1]}, "id of row 1 is"),
    "half": ({"question": "\udc00?"}, "question of row 1 holds half a character"),
    "passage": ({"passage": None}, "asks for {passage}, which is None in row 1"),
    "twice": ({"id": 1}, "Two problems have the id '1'"),
}


@pytest.mark.parametrize("case", PROBLEMS)
def test_a_problem_that_is_none_is_refused_by_file_and_number(case, tmp_path):
    change, words = PROBLEMS[case]
    (tmp_path / "rows.jsonl").write_bytes(lines(PROBLEM, {**PROBLEM, "id": 2, **change}))
    prompts = {"base": "{passage} {question}", "tuned": "{question}"}
    task = Task(file=str(tmp_path / "rows.jsonl"), question="question", answer="answer", id="id", prompts=prompts)
    with pytest.raises(TaskError, match=rf"Line 2 of '.*rows\.jsonl': .*{words}"):
        task.problems()


def test_a_slice_of_the_campaign_finds_nothing():
    found = list(cases(150, seed=1, folder=Path("nowhere")))
    assert not [case for case in found if case["outcome"] in BAD]
    assert {case["outcome"] for case in found} == {"refused", "equal"}


@pytest.mark.parametrize(
    "place",
    [
        "http://127.0.0.1:9/steal.jsonl",
        "../outside/rows.jsonl",
        "/etc/rows.jsonl",
        "~/rows.jsonl",
        '"\\x2e./rows.jsonl"',
        "*other",
    ],
)
@pytest.mark.parametrize("card", ["README.md", ".huggingface.yaml"])
def test_a_local_data_set_reads_nothing_outside_its_folder(place, card, tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "response": "b"}\n')
    head = "license_link: https://example.org/licence\nconfigs:\n- config_name: default\n  data_files: [{split: train, path: %s}]\n"
    fence = "---\n" if card == "README.md" else ""
    (tmp_path / card).write_text(f"{fence}other: &other ../x\n{head % place}pretty_name: x\n{fence}")
    with pytest.raises(TextError, match="names files that are elsewhere"):
        next(read_hub(str(tmp_path)))
    (tmp_path / card).write_text(f"{fence}{head % 'rows.jsonl'}pretty_name: x\n{fence}")
    assert next(read_hub(str(tmp_path)))["prompt"] == "a"
