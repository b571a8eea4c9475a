"""What a study read is part of what it is: files of data, folders of models, and the budget of new findings."""

import json
import os
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file

from test_tasks import composed
from tunediff import files, folders
from tunediff.hookpoints import HOOKPOINTS
from tunediff.report import in_words, members_under
from tunediff.settings import identity, material, plain, stream_key
from tunediff.shapes import Finding, Refused
from tunediff.study.finished import Loaded, compare
from tunediff.study.parts import other_settings, pair_and_text, write_config
from tunediff.study.reevaluate import as_in_the_run, own_place, refuse_changed
from tunediff.study.run import Run
from tunediff.study.train import study, wanted_by

ROWS = '{"question": "1+1?", "thinking": "two", "answer": "2"}\n'


def traces(path, *overrides):
    return composed("text=traces", f"text.rows.path={path}", *overrides)


def test_a_changed_byte_of_the_data_is_another_study_and_another_stream(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text(ROWS)
    before = identity(traces(file)), stream_key(traces(file))
    assert (identity(traces(file)), stream_key(traces(file))) == before
    os.utime(file, ns=(1, 1))
    assert (identity(traces(file)), stream_key(traces(file))) == before, "the time alone changes nothing"
    file.write_text(ROWS.replace("2", "3"))
    after = identity(traces(file)), stream_key(traces(file))
    assert not {*before} & {*after}
    assert set(material(traces(file))["read"]) == {"text.rows.path", "model_pair.base.path", "model_pair.tuned.path"}


def test_a_file_more_in_a_folder_or_behind_a_pattern_is_seen_and_a_missing_one_fails_nowhere(tmp_path):
    (tmp_path / "a.jsonl").write_text(ROWS)
    one = [files.of_files([name]) for name in (str(tmp_path), str(tmp_path / "*.jsonl"))]
    (tmp_path / "b.jsonl").write_text(ROWS)
    two = [files.of_files([name]) for name in (str(tmp_path), str(tmp_path / "*.jsonl"))]
    assert None not in one and all(a != b for a, b in zip(one, two, strict=True))
    assert files.of_files([str(tmp_path / "none.jsonl")]) is None
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "c.jsonl").write_text(ROWS)
    assert files.of_files([str(tmp_path)]) == two[0] != files.of_files([str(tmp_path)], "**/*")
    hub = {"_target_": "tunediff.text.read_hub", "path": str(tmp_path)}
    assert files.of_settings(hub) == {"path": files.of_files([str(tmp_path)], "**/*")}
    (tmp_path / "config.json").write_text("{}")  # beside rows it makes no model of them
    found = [files.of_settings({"_target_": "tunediff.text.read_files", "path": str(tmp_path)})]
    (tmp_path / "b.jsonl").write_text("")
    assert files.of_settings({"_target_": "tunediff.text.read_files", "path": str(tmp_path)}) not in found
    assert files.of_settings({"rows": {"path": "???"}, "b": {"path": "no/such id"}, "c": [{"file": None}]}) == {}
    assert len(identity(traces(tmp_path / "none.jsonl"))) == 12


def test_names_of_files_and_of_tensors_are_part_of_what_was_read(tmp_path, monkeypatch):
    (tmp_path / "a.jsonl").write_text(ROWS)
    before = files.of_files([str(tmp_path)], "*")
    (tmp_path / "a.jsonl").rename(tmp_path / "a.txt")  # whose lines are read as another kind of text
    assert files.of_files([str(tmp_path)], "*") != before
    monkeypatch.setattr(files, "WHOLE", 0)
    digests = []
    for n, names in enumerate(("ab", "ba")):
        save_file({name: torch.ones(4) for name in names} | {"c": torch.ones(4, 1)}, tmp_path / f"{n}.safetensors")
        content = (tmp_path / f"{n}.safetensors").read_bytes()
        (tmp_path / f"{n}.safetensors").write_bytes(content if n == 0 else content.replace(b"[4,1]", b"[1,4]"))
        digests.append(files.of_file(str(tmp_path / f"{n}.safetensors")))
    assert digests[0] != digests[1], "the same numbers in another shape"


def test_what_is_generated_in_code_has_no_digest_and_shipped_weights_have_one():
    read = material(composed())["read"]
    assert set(read) == {"model_pair.base.path", "model_pair.tuned.path"} and len({*read.values()}) == 2


@pytest.mark.parametrize("whole", [True, False], ids=["small", "sampled"])
def test_a_model_that_was_trained_again_is_another(whole, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "WHOLE", 2**26 if whole else 0)
    files._of_file.cache_clear()

    def digest(step, config="{}"):
        (tmp_path / "config.json").write_text(config)
        weights = torch.Generator().manual_seed(0)
        tensors = {name: torch.randn(64, 64, generator=weights) + step * (name == "b") for name in "abc"}
        save_file(tensors, tmp_path / "model.safetensors")
        return files.of_files([str(tmp_path)])

    first = digest(0)
    assert digest(0) == first and digest(1e-3) != first and digest(0, '{"a": 1}') != first
    (tmp_path / "README.md").write_text("notes")
    assert digest(0) == first
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "default.jinja").write_text("x")  # which transformers prefers
    assert files.of_files([str(tmp_path)]) != first
    first = files.of_files([str(tmp_path)])
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 9)  # a header that lies
    assert files.of_files([str(tmp_path)]) != first


def test_the_digests_are_taken_without_torch(tmp_path):
    (tmp_path / "rows.jsonl").write_text(ROWS)
    code = f"""
import sys
from tunediff import files
assert files.of_settings({{"a": {{"path": {str(tmp_path)!r}}}, "b": {{"path": "pkg://tunediff.toy/weights/base"}}}}).keys() == {{"a.path", "b.path"}}
assert not {{"torch", "tunediff.toy"}} & {{*sys.modules}}
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def finished(folder, cfg):
    folder.mkdir(exist_ok=True)
    (folder / "identity.json").write_text(json.dumps({"identity": identity(cfg), "settings": material(cfg)}))
    cfg = OmegaConf.create(OmegaConf.to_container(cfg, resolve=False))
    return SimpleNamespace(folder=folder, cfg=cfg, evaluation_tokens=cfg.budget.evaluation_tokens)


def test_new_findings_are_refused_where_the_text_is_another_than_the_study_read(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text(ROWS)
    cfg = traces(file)
    run = finished(tmp_path / "run", cfg)
    refuse_changed(run)
    file.write_text(ROWS * 2)
    with pytest.raises(Refused, match=r"text\.rows\.path=.*rows\.jsonl: changed since the study .* --config-path"):
        refuse_changed(run)
    file.unlink()
    with pytest.raises(Refused, match=r"text\.rows\.path=.*nothing is there.*Put it back"):
        refuse_changed(run)


def test_a_text_under_a_variable_that_is_not_set_any_more_is_refused_by_its_name(tmp_path, monkeypatch):
    (tmp_path / "rows.jsonl").write_text(ROWS)
    monkeypatch.setenv("TUNEDIFF_DATA", str(tmp_path))
    cfg = composed("text=traces")
    cfg.text.rows.path = "${oc.env:TUNEDIFF_DATA,data}/rows.jsonl"
    run = finished(tmp_path / "run", cfg)
    refuse_changed(run)
    for gone in (lambda: monkeypatch.delenv("TUNEDIFF_DATA"), lambda: monkeypatch.setenv("TUNEDIFF_DATA", "elsewhere")):
        gone()
        for asked in (
            lambda: refuse_changed(run),
            lambda: study(cfg, run.folder),
        ):  # which says not that it is another study
            with pytest.raises(Refused, match=r"text\.rows\.path=.*nothing is there.* Set TUNEDIFF_DATA as then"):
                asked()


def test_what_an_evaluation_read_alone_may_change_before_another_is_asked(tmp_path):
    (tmp_path / "problems.jsonl").write_text(json.dumps({"problem": "1+1?", "answer": 2}))
    cfg = composed("evaluation=benchmark", "task=aime24", f"task.aime24.file={tmp_path / 'problems.jsonl'}")
    run = finished(tmp_path / "run", cfg)
    assert [name for name in material(cfg)["read"] if name.startswith("evaluation.")]
    (tmp_path / "problems.jsonl").write_text(json.dumps({"problem": "1+2?", "answer": 3}))
    refuse_changed(run)
    (tmp_path / "problems.jsonl").unlink()
    refuse_changed(run)


def test_stored_activations_of_changed_rows_are_others(tmp_path):
    keys = set()
    for rows in (ROWS, ROWS.replace("1", "3")):
        (tmp_path / "rows.jsonl").write_text(rows * 2)
        cfg = traces(tmp_path / "rows.jsonl", "scale=smoke", "evaluation=geometry")
        run = Run(cfg, tmp_path)
        run.build(*pair_and_text(cfg))
        keys.add(wanted_by([run]).key)
    assert len(keys) == 2


def test_findings_on_another_number_of_tokens_stand_in_a_folder_of_their_own(tmp_path):
    run = finished(tmp_path / "run", composed())
    budget = run.cfg.budget.evaluation_tokens
    assert own_place(run, budget) == (run.folder, [])
    place, notes = own_place(run, 4_000)
    assert place == run.folder / "on_4000_tokens" and place.is_dir()
    assert "4,000 held-out tokens" in notes[0].text and f"{budget:,}" in notes[0].text


def test_a_study_and_what_was_measured_again_on_other_tokens_are_two_columns(tmp_path, caplog, monkeypatch):
    run = finished(tmp_path / "run", composed())
    for value, place in enumerate((run.folder, own_place(run, 4_000)[0])):
        folders.write_findings(place, [Finding("a/b", value, meaning="m", column="b")], {"study": {}}, by="a")
    folders.say(run.folder, identity=identity(run.cfg), state=folders.FINISHED)
    monkeypatch.chdir(tmp_path)
    budget = run.cfg.budget.evaluation_tokens
    head, *rows = in_words(members_under(["run/on_4000_tokens", "run"])).splitlines()[:3]
    assert head.split() == ["budget.evaluation_tokens", "state", "b", "run"]
    assert [row.split() for row in rows] == [
        ["4000", "finished", "1", "run/on_4000_tokens"],
        [str(budget), "finished", "0", "run"],
    ]
    assert not caplog.records and len(members_under(["run"])) == len(members_under(["run/on_4000_tokens"])) == 1
    for named in (["run", f"{tmp_path}/run"], ["run", "."]):
        caplog.clear()
        assert compare(named).count("finished") == 1
        (warned,) = caplog.messages
        assert "was named more than once, and its runs stand here once" in warned


def test_a_run_that_did_not_end_says_so_where_it_is_opened(tmp_path, caplog):
    write_config(composed("scale=smoke"), tmp_path)
    folders.say(tmp_path, state=folders.RUNNING, step=3, steps=8)
    with pytest.raises(Refused, match="is no finished run: it was left interrupted at step 3 of 8"):
        Loaded(tmp_path)
    (tmp_path / "dictionary").mkdir()
    (tmp_path / "dictionary" / "weights.safetensors").touch()
    for state, said in (
        (folders.EVALUATING, "it was left interrupted at step 3 of 8, and findings may be missing"),
        (folders.FAILED, "it was left failed at step 3 of 8 (no labels), and findings may be missing"),
        (folders.WAITING, "it waits to be begun"),
    ):
        caplog.clear()
        folders.say(tmp_path, state=state, error="no labels" if state == folders.FAILED else None)
        assert f"of a run that is {state}" in repr(Loaded(tmp_path)) and said in caplog.text
    folders.say(tmp_path, state=folders.EVALUATING)
    with folders.held(tmp_path, "The run"):
        assert Loaded(tmp_path) and "it is evaluating at step 3 of 8" in caplog.text
    caplog.clear()
    folders.say(tmp_path, state=folders.FINISHED)
    assert "of a run" not in repr(Loaded(tmp_path)) and not caplog.records


def test_a_finished_run_is_asked_what_its_study_asked_unless_the_line_names_evaluations(tmp_path):
    run = finished(tmp_path / "run", composed("evaluation=[tokenizers,geometry]"))
    nothing, examples = (composed("run=x", *words, name="evaluate") for words in ([], ["evaluation=[examples]"]))
    assert list(as_in_the_run(examples, run).evaluation) == ["examples"]
    assert plain(as_in_the_run(nothing.copy(), run).evaluation) == plain(run.cfg.evaluation)
    run.cfg.evaluation = {"autointerp": {"judge": {"endpoint": "http://elsewhere.org/v1"}}}  # a stranger's, say
    with pytest.raises(Refused, match=r"evaluation\.autointerp\.judge\.endpoint=http.* data would leave this machine"):
        as_in_the_run(nothing, run)


def test_of_many_settings_in_which_two_studies_differ_the_first_are_named_and_the_rest_counted(tmp_path):
    run = finished(tmp_path / "run", composed())
    assert other_settings(composed("seed=3"), run.folder) == "seed, dictionary.seed"
    said = other_settings(composed("seed=3", "scale=smoke", "text.window=9"), run.folder)
    assert said.startswith("seed, ") and said.count(",") == 5 and re.search(r" and \d+ more$", said)


def test_stored_activations_of_one_name_at_another_place_are_others(tmp_path):
    """A hookpoint of the user's own has a name that stands for what its row says, in one study this and in another that."""
    keys = set()
    for module, read in (("self_attn.o_proj", "input"), ("self_attn.q_proj", "input"), ("self_attn.o_proj", "output")):
        row = [f"+dictionary.hookpoint.{one}" for one in (f"module={module}", f"read={read}", "width=hidden_size")]
        cfg = composed("scale=smoke", "dictionary.hookpoint.name=mine", *row)
        pair, text = pair_and_text(cfg)
        run = Run(cfg, tmp_path)
        run.build(pair, text)
        keys.add(wanted_by([run]).key)
        del HOOKPOINTS["mine"]
    assert len(keys) == 3


def test_what_a_variable_holds_parts_stored_activations_and_groups(monkeypatch):
    found = set()
    for held in ("Solve it.", "Answer in French."):
        monkeypatch.setenv("MINE", held)
        cfg = composed("scale=smoke")
        cfg.text.instruction = "${oc.env:MINE}"
        found.add((identity(cfg), stream_key(cfg)))
        assert held not in json.dumps(material(cfg))
    assert len({one for one, _ in found}) == len({two for _, two in found}) == 2
