"""Explanations and their scores, against a server that answers by rule; the latent cache, against Delphi's layout."""

import json
import logging
import re
import socket
import types
import zlib
from functools import partial

import pytest
import torch
from safetensors.torch import load_file

from fake_endpoint import parts, reader
from test_evaluations import fitted, identity_dictionary, toy_text
from tunediff.evaluations import Autointerp, Geometry, Judge, LatentCache, Trained
from tunediff.evaluations.judging import chat
from tunediff.evaluations.judging.delphi_cache import end_to_end
from tunediff.evaluations.judging.examination import (
    EXPLAIN,
    Window,
    balanced_accuracy,
    examined_on,
    sentence_in,
    verdicts_in,
)
from tunediff.shapes import Finding, Note, Refused, Table
from tunediff.study.run import evaluate

PLANTED = {3: "doubles", 7: "gives"}
KEY = "a-key-that-nobody-may-see"


def guesser(asked):
    """Explains nothing, and judges by the digits of a checksum."""
    system, _, texts = parts(asked)
    if system == EXPLAIN:
        return "Explanation: something or other"
    return str([zlib.crc32(text.encode()) % 2 for text in texts])


@pytest.fixture
def trained(pair, monkeypatch, tmp_path):
    """Latents 3 and 7 fire on a word each, more strongly later in a document; latent 9 on one token only."""
    dictionary = fitted(pair, identity_dictionary(pair.streams("resid_post", 1)))
    original = Trained.readings
    spelled = [pair.tokenizers[0].decode([i]).strip() for i in range(len(pair.tokenizers[0]))]
    ids = {n: torch.tensor([i for i, text in enumerate(spelled) if text == word]) for n, word in PLANTED.items()}

    def readings(self, title):
        for n, reading in enumerate(original(self, title)):
            latents = torch.zeros_like(reading.latents)
            for latent in PLANTED:
                fires = torch.isin(reading.batch.token, ids[latent])
                latents[:, latent] = fires * (1 + reading.batch.position / 100)
            latents[0, 9] = float(n == 0)
            yield reading._replace(latents=latents)

    monkeypatch.setattr(Trained, "readings", readings)
    return Trained(pair, toy_text(), 3000, folder=tmp_path, dictionary=dictionary)


def measured(evaluation, trained):
    found = list(evaluation.run(trained))
    tables = {t.name: t.columns for t in found if isinstance(t, Table)}
    return {f.name: f for f in found if isinstance(f, Finding)}, tables, [n.text for n in found if isinstance(n, Note)]


def asking(server, **settings):
    own = {name: settings.pop(name) for name in ("texts_per_call", "price_per_million_tokens") if name in settings}
    latents = settings.pop("latents", 2)
    judge = {"endpoint": server.endpoint, "model": "rule", "examples": 20, "most_calls": 500, **settings}
    return Autointerp(judge=Judge(**judge), latents=latents, **own)


# -- scores ----------------------------------------------------------------------------------------------------------


def test_a_latent_that_is_a_word_is_explained_by_it_and_the_explanation_scores_one(server, trained):
    findings, tables, notes = measured(asking(server, at_once=3), trained)
    for test in ("detection", "fuzzing"):
        finding = findings[f"autointerp/{test}/balanced_accuracy"]
        assert finding.value == finding.high == 1 and 0 < finding.low < 1 and finding.over == "latents"
        assert "rule" in finding.meaning and "2 latents" in finding.meaning
    assert tables["autointerp"]["latent"] == [3, 7] and notes == []
    assert tables["autointerp"]["explanation"] == ["doubles", "gives"]
    assert tables["autointerp"]["detection"] == tables["autointerp"]["fuzzing"] == [1, 1]
    assert sum(tables["autointerp"]["calls"]) == len(server.asked)
    assert {path for path, _, _ in server.asked} == {"/v1/chat/completions"}
    assert {(asked["model"], asked["temperature"]) for _, _, asked in server.asked} == {("rule", 0)}


def test_an_explanation_that_says_nothing_scores_about_a_half(server, trained):
    server.rule = guesser
    findings, tables, _ = measured(asking(server), trained)
    for test in ("detection", "fuzzing"):
        finding = findings[f"autointerp/{test}/balanced_accuracy"]
        assert 0.3 < finding.value < 0.7 and finding.low <= finding.value <= finding.high
        assert finding.value == sum(tables["autointerp"][test]) / 2


def test_the_same_questions_are_asked_whatever_runs_at_once(server, trained):
    def sorted_questions(at_once):
        server.asked.clear()
        measured(asking(server, at_once=at_once), trained)
        return sorted(json.dumps(asked) for _, _, asked in server.asked)

    assert sorted_questions(1) == sorted_questions(4)


def test_what_explains_is_never_examined_and_no_question_holds_a_text_twice():
    def windows(kind, count, start):
        return [
            Window(kind, start + n, [f"{kind}{n}", " a", " b"], [1.0 * (kind != "random"), 0, 0]) for n in range(count)
        ]

    found = examined_on(0, windows("strongest", 20, 0) + windows("quantile", 20, 10) + windows("random", 10, 90), 10, 5)
    shown = {f"strongest{n}" for n in range(0, 20, 2)}
    assert set(re.findall(r"strongest\d+", found.passages)) == shown and "quantile" not in found.passages
    words = [re.findall(r"[a-z]{3,}\d+", text) for q in sum(found.questions.values(), []) for text in q.texts]
    assert not shown & {word for text in words for word in text}
    for question in found.questions["fuzzing"]:
        bare = [text.replace("<<", "").replace(">>", "") for text in question.texts]
        assert len(set(bare)) == len(bare) and all(text.count("<<") == 1 for text in question.texts)
        assert question.truth == [bool(re.match("<<[a-z]", text)) for text in question.texts]
    assert sum(sum(q.truth) for q in found.questions["detection"]) == 10
    # a quantile example of a document that was shown is not used either
    assert not {f"quantile{n}" for n in range(0, 10, 2)} & {word for text in words for word in text}


def test_balanced_accuracy_weighs_both_truths_alike():
    answers = [(True, True)] * 3 + [(True, False)] + [(False, True)]
    assert balanced_accuracy(answers) == (0.75 + 0) / 2
    assert balanced_accuracy(answers[:4]) is None and balanced_accuracy([]) is None


def test_answers_are_read_as_asked_for_or_not_at_all():
    assert sentence_in("Explanation: first\n**Explanation:** the word *so*\n", "explanation") == "the word *so"
    assert sentence_in("Explanation:\nnumbers.", "explanation") == "numbers."
    assert sentence_in("It is about numbers.", "explanation") is None
    assert verdicts_in("For 1 and 2: [1, 0]\n```[0,1]```", 2) == [False, True]
    for answer in ("0, 1", "[0, 1, 1]", "[0, 2]", "[yes, no]", "[]", "[01]", ""):
        assert verdicts_in(answer, 2) is None


# -- latents ---------------------------------------------------------------------------------------------------------


def test_latents_are_chosen_by_number_or_by_how_much_they_belong_to_one_model(server, trained):
    _, tables, notes = measured(asking(server, latents=[7, 9]), trained)
    assert tables["autointerp"]["latent"] == [7] and "passed over latents 9: too few" in notes[0]
    with torch.no_grad():
        trained.dictionary.W_dec[3] = 1.0  # in both models alike
    _, tables, _ = measured(asking(server, latents=1), trained)
    assert tables["autointerp"]["latent"] == [7]
    with pytest.raises(Refused, match=r"evaluation.autointerp.latents names \[999\]: .* 0 to 127"):
        measured(asking(server, latents=[999]), trained)
    _, tables, notes = measured(asking(server, latents=[9]), trained)
    assert not tables and "was not measured" in notes[1]


def test_a_dictionary_of_one_model_wants_numbers(server, pair):
    dictionary = fitted(pair, identity_dictionary(pair.streams("resid_post", 1, reads="tuned")))
    one = Trained(pair, toy_text(), 2000, dictionary=dictionary)
    with pytest.raises(Refused, match=r"evaluation.autointerp.latents=2 takes .* reads tuned only: give their numbers"):
        measured(asking(server), one)
    assert not server.asked


# -- cost ------------------------------------------------------------------------------------------------------------


def test_cost_is_said_before_anything_is_asked(server, trained, caplog):
    said = []

    def rule(asked):
        said.append(caplog.text)
        return reader(asked)

    server.rule = rule
    with caplog.at_level(logging.INFO):
        _, tables, _ = measured(asking(server, price_per_million_tokens=1000), trained)
    calls, tokens = re.search(r"2 latents, (\d+) calls of rule at \S+, about ([\d,]+) prompt tokens", said[0]).groups()
    assert int(calls) == sum(tables["autointerp"]["calls"]) == len(server.asked)
    tokens = int(tokens.replace(",", ""))
    sent = sum(len(message["content"]) for _, _, asked in server.asked for message in asked["messages"])
    assert 0 <= tokens - sent / 4 < 200 / 4 * len(server.asked)  # an explanation is taken as 200 characters
    assert f"(characters / 4), {tokens / 1000:.2f} at 1000 a million" in said[0]


def test_more_calls_than_allowed_are_refused_before_a_model_is_loaded(server, trained):
    with pytest.raises(Refused, match=r"up to 18 times \(2 latents, 9 calls each\), more than .*most_calls=17"):
        asking(server, most_calls=17)
    _, tables, _ = measured(asking(server, most_calls=18), trained)
    assert max(tables["autointerp"]["calls"]) <= 9
    assert asking(server, latents=list(range(55)))
    with pytest.raises(Refused, match="56 latents"):
        asking(server, latents=list(range(56)))


# -- the endpoint ----------------------------------------------------------------------------------------------------


def test_a_busy_endpoint_is_asked_again_and_a_wrong_call_is_not(server, trained):
    waiting = [(429, {}), (500, {"error": "overloaded"}), (503, {})]
    server.rule = lambda asked: waiting.pop() if waiting else reader(asked)
    findings, tables, notes = measured(asking(server, latents=[3], at_once=1, retries=3), trained)
    assert findings["autointerp/detection/balanced_accuracy"].value == 1 and not notes
    assert len(server.asked) == sum(tables["autointerp"]["calls"]) + 3
    server.asked.clear()
    server.rule = lambda asked: (404, {"error": "no model rule"})
    with pytest.raises(Refused, match="status 404: .*no model rule.* evaluation.autointerp.judge.model=rule"):
        measured(asking(server, latents=[3]), trained)
    assert len(server.asked) == 1
    server.rule = lambda asked: (429, {"error": "slow down"})
    with pytest.raises(
        Refused, match="no answer after 3 tries: status 429: .*slow down.* evaluation.autointerp.judge.retries"
    ):
        measured(asking(server, latents=[3], retries=2), trained)
    assert len(server.asked) == 4


def test_the_endpoint_says_how_long_to_wait(server, monkeypatch):
    waits = []
    monkeypatch.setattr(chat.time, "sleep", waits.append)
    busy = [(429, {}, ("Retry-After", said)) for said in ("7", "tomorrow", "86400")]
    server.rule = lambda asked: busy.pop(0) if busy else "yes"
    assert asking(server).chat.ask("", "") == "yes" and waits == [7.0, 0.02, chat.LONGEST_PAUSE]


def test_an_endpoint_that_fails_half_way_leaves_what_was_examined(server, trained):
    server.rule = lambda asked: (400, {"error": "gives is banned"}) if "gives" in parts(asked)[1:2] else reader(asked)
    _, tables, notes = measured(asking(server, at_once=1), trained)
    assert tables["autointerp"]["latent"] == [3]
    assert "stopped with 1 of 2 latents examined" in notes[0] and "gives is banned" in notes[0]


def test_answers_that_cannot_be_read_are_counted_and_left_out(server, trained):
    def rule(asked):
        system, _, texts = parts(asked)
        wrong = system != EXPLAIN and "<<" not in system and (len(texts) < 5 or any("Wait" in text for text in texts))
        return "I would say [1, 0, maybe]" if wrong else reader(asked)

    server.rule = rule
    findings, tables, notes = measured(asking(server, texts_per_call=4), trained)
    assert findings["autointerp/detection/balanced_accuracy"].value is None
    assert findings["autointerp/fuzzing/balanced_accuracy"].value == 1
    assert tables["autointerp"]["detection"] == [None, None]
    unread = sum(rule(asked).startswith("I would") for _, _, asked in server.asked)
    assert f"could not read {unread} of {len(server.asked)} answers" in notes[0]
    server.rule = lambda asked: "I cannot help with that."
    findings, tables, notes = measured(asking(server), trained)
    assert tables["autointerp"]["explanation"] == [None, None] and tables["autointerp"]["calls"] == [1, 1]
    assert "could not read 2 of 2 answers" in notes[0]
    assert {finding.value for finding in findings.values()} == {None}


def test_an_endpoint_that_is_not_there_is_named_and_takes_no_other_findings_with_it(server, trained, monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        nowhere = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
    away = asking(server, endpoint=nowhere, retries=1)
    with pytest.raises(
        Refused, match=f"{nowhere} gave no answer after 2 tries: .* evaluation.autointerp.judge.endpoint"
    ):
        evaluate({"geometry": Geometry(), "autointerp": away}, trained, trained.folder, {"identity": "i"})
    kept = json.loads((trained.folder / "findings.json").read_text())
    assert "geometry/count/shared" in {finding["name"] for finding in kept["findings"]}
    assert (trained.folder / "tables" / "latents.parquet").exists()


def test_an_address_that_is_no_endpoint_is_refused(server, trained):
    for address in ("localhost:8000", "ftp://x/v1", ""):
        with pytest.raises(Refused, match="is no address: give one such as"):
            asking(server, endpoint=address)
    with pytest.raises(Refused, match="would be stored with the run") as caught:
        asking(server, endpoint=f"http://me:{KEY}@x/v1")
    assert KEY not in str(caught.value)
    server.rule = lambda asked: (200, {"object": "list"})
    with pytest.raises(Refused, match="does not answer as a chat endpoint .* with /v1"):
        measured(asking(server), trained)


# -- the key ---------------------------------------------------------------------------------------------------------


def test_the_key_is_sent_as_a_bearer_and_stands_nowhere_else(server, trained, monkeypatch, caplog, capfd):
    monkeypatch.setenv("MY_KEY", KEY + "\n")  # as read from a file
    evaluation = asking(server, key_variable="MY_KEY", at_once=1)
    with caplog.at_level(logging.DEBUG):
        found = list(evaluation.run(trained))
    assert {headers["Authorization"] for _, headers, _ in server.asked} == {f"Bearer {KEY}"}
    server.rule = lambda asked: (401, {"error": f"wrong key {KEY}"})  # servers do repeat it
    with pytest.raises(Refused, match="status 401: .*wrong key <key>") as refusal:
        list(evaluation.run(trained))
    assert refusal.value.__cause__ is None and refusal.value.__context__ is None
    seen = [caplog.text, *capfd.readouterr(), str(refusal.value), repr(found), repr(vars(evaluation.chat))]
    assert not any(KEY in text for text in seen)


def test_an_endpoint_that_repeats_the_key_leaves_it_in_no_table(server, trained, monkeypatch):
    monkeypatch.setenv("MY_KEY", KEY)
    server.rule = lambda asked: f"Explanation: it is {KEY}" if parts(asked)[0] == EXPLAIN else "[1, 0, 1, 0, 1]"
    _, tables, notes = measured(asking(server, key_variable="MY_KEY"), trained)
    assert tables["autointerp"]["explanation"] == ["it is <key>"] * 2 and KEY not in str(notes)


def test_without_a_variable_no_key_is_sent_and_a_missing_one_is_refused(server, trained, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    measured(asking(server, latents=[3]), trained)
    assert not any("Authorization" in headers for _, headers, _ in server.asked)
    for value in ("", f"{KEY}\nX: y"):
        monkeypatch.setenv("MY_KEY", value)
        with pytest.raises(Refused, match="key_variable=MY_KEY: this environment variable holds no key") as caught:
            asking(server, key_variable="MY_KEY")
        assert KEY not in str(caught.value)


# -- Delphi's latent cache -------------------------------------------------------------------------------------------


def cached(trained, **settings):
    (note,) = LatentCache(**{"latents": [3, 7], "files": 3, "context": 64, **settings}).run(trained)
    place = trained.folder / "latent_cache" / "dictionary"
    return note.text, place, {path.stem: load_file(path) for path in place.glob("*.safetensors")}


def test_the_latent_cache_has_the_layout_that_delphi_reads(trained, pair):
    note, place, files = cached(trained)
    assert sorted(files) == ["0_41", "42_84", "85_127"] and {path.suffix for path in place.iterdir()} == {
        ".json",
        ".safetensors",
    }
    config = json.loads((place / "config.json").read_text())
    assert config["model_name"] == pair.sources["base"].path and config["cache_ctx_len"] == 64
    tokenizer, read = pair.tokenizers[0], files["0_41"]
    assert config["n_tokens"] == read["tokens"].numel() and read["tokens"].shape[1] == 64
    assert read["tokens"].dtype == torch.int64 and read["activations"].dtype == torch.float16
    for content in files.values():
        assert content["locations"].dtype == torch.uint16 and content["locations"].shape[1] == 3
        assert len(content["locations"]) == len(content["activations"])
        assert torch.equal(content["tokens"], read["tokens"])
    assert len(files["85_127"]["locations"]) == 0 < len(read["locations"])
    row, position, latent = read["locations"].long().T
    for number, word in PLANTED.items():
        here = latent == number
        words = [tokenizer.decode([i]).strip() for i in read["tokens"][row[here], position[here]].tolist()]
        everywhere = [tokenizer.decode([i]).strip() for i in read["tokens"].flatten().tolist()]
        assert set(words) == {word} and len(words) == everywhere.count(word)
    readings = list(trained.readings(""))
    values = torch.cat([reading.latents for reading in readings])
    count = sum(int((values[:, number] > 0).sum()) for number in PLANTED)
    assert count - 2 <= len(read["activations"]) <= count and f"{len(read['activations']):,} activations of 2" in note
    assert set(read["activations"].tolist()) <= set(values[:, [3, 7]].half().flatten().tolist())
    length = sum(int(reading.batch.mask[0].sum()) + len(reading.batch.ids[0]) for reading in readings)
    assert length - 64 - sum(len(r.batch.ids[0]) for r in readings) < config["n_tokens"] <= length


def test_the_latent_cache_is_of_the_latents_that_were_asked_for_and_of_this_run(trained):
    cached(trained, files=7)
    _, _, files = cached(trained, latents=1, files=1)
    assert list(files) == ["0_127"] and set(files["0_127"]["locations"][:, 2].tolist()) == {3}
    with pytest.raises(Refused, match="context=100000: the held-out text is shorter"):
        cached(trained, context=100_000)
    with pytest.raises(Refused, match="evaluation.latent_cache writes files"):
        list(LatentCache().run(Trained(trained.pair, trained.text, 500, dictionary=trained.dictionary)))


def test_documents_lie_end_to_end_with_one_end_of_text_after_each_also_where_it_is_there():
    ids = torch.tensor([[5, 6, 2, 0], [7, 8, 0, 0], [9, 2, 3, 4]])
    batch = types.SimpleNamespace(ids=(ids,), mask=(torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0], [1, 1, 1, 1]]),))
    tokens, starts = end_to_end(types.SimpleNamespace(batch=batch), 2)
    assert tokens.tolist() == [5, 6, 2, 7, 8, 2, 9, 2, 3, 4, 2] and starts.tolist() == [0, 3, 6]
    tokens, starts = end_to_end(types.SimpleNamespace(batch=batch), None)
    assert tokens.tolist() == [5, 6, 2, 7, 8, 9, 2, 3, 4] and starts.tolist() == [0, 3, 5]


@pytest.mark.filterwarnings("ignore")  # theirs
def test_delphi_reads_the_latent_cache(trained, pair):
    config = pytest.importorskip("delphi.config", reason="eai-delphi is not installed", exc_type=ImportError)
    loader = pytest.importorskip("delphi.latents.loader", exc_type=ImportError)
    cached(trained)
    data = partial(
        loader.LatentDataset,
        str(trained.folder / "latent_cache"),
        config.SamplerConfig(n_examples_train=4, n_examples_test=4, n_quantiles=2),
        config.ConstructorConfig(min_examples=4, n_non_activating=5, example_ctx_len=16),
        tokenizer=pair.tokenizers[0],
    )
    for dataset in (data(), data(modules=["dictionary"], latents={"dictionary": torch.tensor([3, 7])})):
        records = {record.latent.latent_index: record for record in dataset}
        assert set(records) == set(PLANTED)
        for number, word in PLANTED.items():
            for example in records[number].train:
                fires = example.tokens[example.activations > 0].tolist()
                assert fires and {pair.tokenizers[0].decode([i]).strip() for i in fires} == {word}
            assert not any(word in pair.tokenizers[0].decode(example.tokens) for example in records[number].not_active)
