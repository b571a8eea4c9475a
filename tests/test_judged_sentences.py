"""Sentences of thinking that an endpoint labels: the labels stand where they belong, nobody is asked twice, and no stranger's folder asks."""

import dataclasses
import itertools
import json
import logging
import re

import pytest
import torch
from omegaconf import OmegaConf

from conftest import ROOT
from test_tasks import composed
from tunediff.directions import DifferenceOfMeans
from tunediff.evaluations import Given, Judge, SentenceJudge
from tunediff.evaluations.judging.sentences import BEFORE, LABELS, PROMPT, labels_in
from tunediff.settings import identity, stream_key
from tunediff.shapes import Refused
from tunediff.study.finished import Loaded
from tunediff.study.parts import pair_and_text
from tunediff.text import Text, TextError
from tunediff.trusted import check_file

# a word of each sentence says its planted label
WORDS = dict(zip(("asked", "so", "known", "try", "unsure", "wait"), LABELS, strict=True))
KEY = "sk-judge-1234567890abcdef"


def thinking(n):
    """Three to six sentences, some in a line of their own, and where each label belongs in them."""
    words = [*itertools.islice(itertools.cycle(WORDS), n, n + 3 + n % 4)]
    text, spans = "", []
    for place, word in enumerate(words):
        text += ("", " ", "\n\n")[min(place, 1 + place % 2)]
        spans.append(("thinking", len(text), len(text) + len(f"It is {word} {n}."), WORDS[word]))
        text += f"It is {word} {n}."
    return text, spans


ROWS = [{"prompt": f"q {n}", "thinking": thinking(n)[0], "answer": str(n)} for n in range(6)]


def reader(asked):
    """The label of each numbered sentence by its word, in the words and marks that models use."""
    system, question = (message["content"] for message in asked["messages"])
    assert system == PROMPT
    said = re.findall(r"^(\d+): It is (\w+)", question, re.M)
    return "Here:\n" + "\n".join(f"- **{n}**: {WORDS[word].replace('-', ' ').title()}" for n, word in said)


@pytest.fixture
def step(server, tmp_path):
    server.rule = reader

    def made(**settings):
        judge = {"endpoint": server.endpoint, "model": "rule", "examples": 4, "most_calls": 90, "retries": 0}
        judge |= {name: settings.pop(name) for name in [*settings] if name in Judge.__dataclass_fields__}
        given = {"folder": str(tmp_path / "kept"), "rows": 10, "sentences": 9, "sentences_per_call": 3, **settings}
        return SentenceJudge(judge=Judge(**judge), **given)

    return made


def planted(rows=ROWS):
    for n, row in enumerate(rows):
        yield {**row, "spans": [(*span[:3], name) for span in thinking(n)[1] for name in (span[3], "annotated")]}


def text_of(rows, *steps):
    return Text(lambda: iter(rows), prepare=dict(enumerate(steps)), held_out=0.3, tokens_per_batch=512)


def test_planted_labels_come_back_at_their_characters(step, server):
    assert list(step()(ROWS)) == list(planted())
    whole = [
        {"prompt": r["prompt"], "response": f"Well.<think>\n{r['thinking']}\n</think>\n\n{r['answer']}"} for r in ROWS
    ]
    assert [row["spans"] for row in step()(whole)] == [row["spans"] for row in planted()]
    assert list(step()([{"text": "It is so."}, {"prompt": "q", "answer": "a"}])) == [
        {"text": "It is so."}, {"prompt": "q", "answer": "a"},
    ]  # fmt: skip
    questions = [asked["messages"][1]["content"] for *_, asked in server.asked]
    later = [question for question in questions if question.startswith("Before:")]  # what came before is shown
    assert later and all(question.split("\n\n")[0].count("It is") == BEFORE for question in later)


def test_a_text_is_asked_about_once_for_all_who_read_it(step, server, tmp_path):
    text = text_of(ROWS, step())
    text.check(evaluated=True)
    calls = sum(-(-len(thinking(n)[1]) // 3) for n in range(6))
    sides = [len(list(text.named_rows(held_out=held_out))) for held_out in (False, True, False)]
    assert text.told() == [] and sum(sides[:2]) == 6 and 0 not in sides and len(server.asked) == calls
    assert list(step(endpoint=None)(ROWS)) == list(planted()) and len(server.asked) == calls
    assert list(step(endpoint="http://localhost:1/v1")(ROWS)) == list(planted())  # whoever answers for the model
    list(step(model="another")(ROWS))
    assert len(server.asked) == 2 * calls
    next(tmp_path.glob("kept/*")).write_text('{"labels": ["deduction", "\\u001b[2J", null]}')  # by a stranger
    assert list(step()(ROWS)) == list(planted()) and len(server.asked) <= 2 * calls + 1


def test_a_direction_before_backtracking_is_that_of_the_planted_labels(step, pair):
    source = DifferenceOfMeans(
        label="backtracking", offset=2, window=1, reference="events", among=LABELS, segments=None, tokens=2000
    )
    found = []
    for text in (text_of(ROWS, step()), text_of(list(planted()))):
        held_out = [
            document for row in text.named_rows(held_out=True) for document in text.documents(row, pair.tokenizers)
        ]
        assert any(any(document.labels["annotated"]) for document in held_out)  # evaluation=sentences reads this side
        found.append((source.find(Given(pair, text, 2000), "base", [1]), held_out))
    (ours, our_documents), (theirs, their_documents) = found
    torch.testing.assert_close(ours.vectors[1], theirs.vectors[1], rtol=0, atol=0)
    assert our_documents == their_documents and ours.vectors[1].norm() > 0


def test_rows_and_sentences_that_are_labelled_are_those_that_were_asked_for(step, server):
    some = list(step(rows=2, sentences=2)(ROWS))
    assert [len(row["spans"]) for row in some] == [4, 4] and len(server.asked) == 2
    text = text_of([ROWS[0], {"prompt": 3}, *ROWS[1:]], step(rows=2))  # steps begin anew behind a row that they refuse
    text.sound.policy = "skip"
    assert sum(len(list(text.named_rows(held_out=side))) for side in (True, False)) == 2
    with pytest.raises(
        Refused, match=r"up to 30 times \(10 rows, up to 3 calls each\), more than .*most_calls=29.*judged.rows"
    ):
        step(most_calls=29)


def test_an_answer_without_a_known_label_leaves_its_sentences_without_and_is_counted(step, server, caplog):
    assert labels_in("1: backtracking\n2: doubting\n3. Adding Knowledge\n4: deduction\n4: backtracking\n9: deduction", 5) == [
        "backtracking", None, "adding-knowledge", None, None,
    ]  # fmt: skip
    assert labels_in("\n" * 10**5 + "7" * 10**5 + "\n1" + ":" * 10**5, 1) == [None]
    server.rule = lambda asked: reader(asked).replace("Backtracking", "Doubting")
    with caplog.at_level(logging.WARNING):
        rows = list(step()(ROWS))
    back = sum(label == "backtracking" for n in range(6) for *_, label in thinking(n)[1])
    assert f"{back} of 25 sentences got no label" in caplog.text
    expected = [[span for span in row["spans"] if span[3] != "annotated"] for row in planted()]
    said = [[span for span in row["spans"] if span[3] != "annotated"] for row in rows]
    assert said == [[span for span in row if span[3] != "backtracking"] for row in expected]


def test_a_judge_that_gives_no_label_at_first_is_refused_and_nothing_kept(step, server, tmp_path):
    server.rule = lambda asked: "I \x1b[2J cannot help with that"
    with pytest.raises(Refused, match=r"rule answers 'I .x1b\[2J cannot.*model=<...>") as refusal:
        list(step()(ROWS))
    assert str(refusal.value).isprintable() and not (tmp_path / "kept").exists()


def test_an_endpoint_that_goes_away_is_one_sentence_and_what_it_said_is_kept(step, server):
    with pytest.raises(
        Refused, match=r"^http://localhost:1/v1 gave no answer after 1 try: .*text.prepare.judged.judge.endpoint"
    ):
        list(step(endpoint="http://localhost:1/v1")(ROWS))
    server.rule = lambda asked: (400, {}) if len(server.asked) > 3 else reader(asked)
    with pytest.raises(Refused, match="status 400"):
        list(step(at_once=1)(ROWS))
    server.rule, before = reader, len(server.asked)
    assert list(step()(ROWS)) == list(planted())
    assert len(server.asked) - before == sum(-(-len(thinking(n)[1]) // 3) for n in range(6)) - 3


def test_what_is_labelled_by_somebody_else_already_is_refused(step, server):
    for named in ({"pieces": [{"label": "deduction", "text": "It"}]}, {"spans": [("thinking", 0, 2, "deduction")]}):
        with pytest.raises(TextError, match=f"brings labels .* ~text.fields.{next(iter(named))}"):
            list(step()([{**ROWS[0], **named}]))
    (row,) = step()([{**ROWS[0], "spans": [("thinking", 0, 2, "step")]}])
    assert row["spans"][0] == ("thinking", 0, 2, "step") and len(server.asked) == 1


@pytest.mark.parametrize(
    "settings", ({"rows": 0}, {"model": None}, {"endpoint": "http://10.0.0.7/v1"}, {"sentences_per_call": 0})
)
def test_what_nobody_can_be_asked_with_is_refused_before_a_row_is_read(step, settings):
    with pytest.raises(Refused, match=r"text\.prepare\.judged"):
        step(**settings)


def test_the_key_goes_into_the_header_and_into_no_file(step, server, tmp_path, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", KEY)
    server.rule = lambda asked: f"Bearer {KEY}\n{reader(asked)}"
    made = step(key_variable="JUDGE_KEY")
    assert list(made(ROWS)) == list(planted())
    assert all(headers["Authorization"].endswith(KEY) for _, headers, _ in server.asked)
    kept = [path.read_text() for path in (tmp_path / "kept").iterdir()]
    assert len(kept) == len(server.asked) and not any(KEY in text or "It is" in text for text in kept)
    assert KEY not in repr(made) + repr(dataclasses.asdict(made.judge))


# -- studies ---------------------------------------------------------------------------------------------------------


def study(*words, evaluation="none"):
    return composed("text=judged_traces", f"evaluation={evaluation}", "text.prepare.judged.judge.model=m", *words)


def test_the_judges_model_is_part_of_a_study_and_the_folder_of_answers_is_not():
    same = study("text.prepare.judged.folder=elsewhere")
    assert identity(study()) == identity(same) and stream_key(study()) == stream_key(same)
    others = ("text.prepare.judged.judge.model=n", "text.prepare.judged.judge.endpoint=http://localhost:9/v1")
    assert len({identity(study()), *(identity(study(word)) for word in others)}) == 3  # an address as any judge's


def test_a_strangers_config_names_no_endpoint_and_no_folder_elsewhere(tmp_path):
    for key, value, why in (
        ("judge.endpoint", "https://elsewhere.org/v1", "data would leave"),
        ("judge.key_variable", "MY_KEY", "data would leave"),
        ("judge.private", True, "data would leave"),
        ("folder", "/etc", "which is written to"),
    ):
        cfg = OmegaConf.create(OmegaConf.to_container(study(), resolve=False))
        OmegaConf.update(cfg, f"text.prepare.judged.{key}", value)
        whole, option = tmp_path / "config.yaml", tmp_path / "mine.yaml"
        OmegaConf.save(OmegaConf.create({"text": cfg.text}), whole)
        OmegaConf.save(cfg.text, option)
        for file, group in ((whole, None), (option, "text")):
            with pytest.raises(Refused, match=f"text.prepare.judged.{key}.*{why}"):
                check_file(file, group=group, typed=())
            check_file(file, group=group, typed=[f"text.prepare.judged.{key}"])


@pytest.mark.parametrize("hidden", (False, True))
def test_a_run_that_is_opened_asks_nobody_and_reads_what_is_kept(hidden, server, tmp_path):
    server.rule = reader
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    base = ROOT / "src" / "tunediff" / "toy" / "weights" / "base"
    cfg = study(
        "experiment=choose_layer",
        f"text.prepare.judged.folder={tmp_path / 'kept'}",
        f"text.prepare.judged.judge.endpoint={server.endpoint}",
        f"text.rows.path={tmp_path / 'rows.jsonl'}",
        "text.fields={prompt: prompt, thinking: thinking, answer: answer}",
        *(f"model_pair.{role}.path={base}" for role in ("base", "tuned")),
        "evaluation.autointerp.judge.model=m",
        evaluation="autointerp",
    )
    asks = pair_and_text(cfg)[1]
    cfg = OmegaConf.create(OmegaConf.to_container(cfg, resolve=False))
    if hidden:  # a judge behind a reference is one, too
        judge = cfg.text.prepare.judged.judge
        cfg.evaluation.autointerp.judge, cfg.text.prepare.judged.judge = judge, "${evaluation.autointerp.judge}"
    (tmp_path / "run").mkdir()
    OmegaConf.save(cfg, tmp_path / "run" / "config.yaml")
    with pytest.raises(Refused, match="does not keep all labels of m .* a finished run is opened, which sends nothing"):
        list(Loaded(tmp_path / "run").text.named_rows(held_out=False))
    assert not server.asked
    rows = list(asks.named_rows(held_out=False))
    asked = len(server.asked)
    assert list(Loaded(tmp_path / "run").text.named_rows(held_out=False)) == rows and len(server.asked) == asked > 0
