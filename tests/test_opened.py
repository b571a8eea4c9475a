"""A finished run's findings open with nothing but its folder; what is missing beside it is refused by what needs it."""

import json
import logging
import os
import shutil

import pytest
from omegaconf import OmegaConf

import tunediff
from conftest import ROOT
from test_trusted import composed
from test_whole_folders import FOUND, crosscoder
from tunediff import folders
from tunediff.dictionary import save_dictionary
from tunediff.settings import within
from tunediff.shapes import Note, Refused
from tunediff.study.parts import write_config
from tunediff.study.reevaluate import own_place, reevaluate

ROW = json.dumps({"text": "one two three"})


@pytest.fixture
def made(tmp_path, monkeypatch):
    """A run of a pair, a data file and a package of one's own, with all that it needs beside it."""
    place = tmp_path / "mine"
    for role in ("base", "tuned"):
        shutil.copytree(ROOT / "src" / "tunediff" / "toy" / "weights" / role, place / role)
    (place / "rows.jsonl").write_text(ROW * 3)
    (place / "packages").mkdir()
    (place / "packages" / "ofmine.py").write_text("def rows(path):\n    return [{'text': 'a'}]\n")
    monkeypatch.syspath_prepend(place / "packages")
    words = [f"model_pair.{role}.path={place / role}" for role in ("base", "tuned")]
    cfg = composed("scale=smoke", "trust=[ofmine]", *words)
    OmegaConf.set_struct(cfg, False)
    cfg.text.rows = {"_target_": "ofmine.rows", "_partial_": True, "path": str(place / "rows.jsonl")}
    folder = tmp_path / "run"
    folder.mkdir()
    with within(folder):
        write_config(cfg, folder)
    save_dictionary(crosscoder(0), folder / "dictionary", {})
    folders.write_findings(folder, FOUND, {"study": {"model_pair": "a -> b"}}, by="fidelity")
    return folder, place


def test_findings_open_with_nothing_but_the_folder(made, tmp_path, monkeypatch, caplog):
    folder, place = made
    whole = tunediff.load(folder, trust=["ofmine"])
    assert len(whole.streams) == 2 and len(list(whole.text.rows())) == 1
    for gone, said in (
        ("packages", "ofmine.rows cannot be imported"),
        ("base", "there is no folder"),
        ("", "no folder|cannot be"),
    ):
        away = tmp_path / f"away from {gone}"
        shutil.copytree(place, away)
        shutil.rmtree(place / gone)
        monkeypatch.delitem(os.sys.modules, "ofmine", raising=False)
        run = tunediff.load(folder, trust=["ofmine"])
        assert run.findings["a/b"].value == 0.5 and run.notes == ["a note"] and run.figures[0].name == "f"
        assert run.table("latents").num_rows == 2 and run.identity == whole.identity and run.cfg.seed == 0
        assert "1 findings" in repr(run)
        run.verify()
        for needs in (lambda run: run.pair, lambda run: run.text, lambda run: run.dictionary, lambda run: run.given()):
            with pytest.raises(Refused, match=said):
                needs(run)
        before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        with pytest.raises(Refused, match=said):
            reevaluate(
                composed(f"run={folder}", "evaluation=[geometry]", "trust=[ofmine]", "tokens=99", name="evaluate")
            )
        assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
        assert not list(folder.glob("on_*")) and not caplog.records
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(away, place)


def test_whom_nobody_trusts_is_refused_at_opening_and_imported_by_none(made):
    folder, place = made
    (place / "packages" / "ofmine.py").write_text("raise SystemExit('it ran')")
    with pytest.raises(Refused, match=r"ofmine.rows names a package that is not trusted.*trust=\['ofmine'\]"):
        tunediff.load(folder)
    assert tunediff.load(folder, trust=["ofmine"]).findings, "what is not asked for is not imported"


def test_new_findings_are_refused_before_any_where_a_file_is_rotten_or_its_text_is_another(made):
    folder, place = made
    words = (f"run={folder}", "evaluation=[geometry]", "trust=[ofmine]", "tokens=99")
    for path, said in (
        (folder / "tables" / "latents.parquet", "latents.parquet is not as it was written"),
        (place / "rows.jsonl", r"rows.path=.*rows.jsonl: changed since the study"),
    ):
        content = path.read_bytes()
        path.write_bytes(content + b"\n")
        with pytest.raises(Refused, match=said):
            reevaluate(composed(*words, name="evaluate"))
        path.write_bytes(content)
    assert not list(folder.glob("on_*"))
    place, _ = own_place(tunediff.load(folder, trust=["ofmine"]), 99)
    (place / "tables").mkdir()
    (place / "tables" / "x.parquet").write_bytes(b"")
    with pytest.raises(Refused, match="x.parquet is not of this run"):
        reevaluate(composed(*words, name="evaluate"))


def test_more_held_out_text_than_memory_holds_is_refused_before_any_is_read(made, monkeypatch):
    folder, place = made
    asked = composed(f"run={folder}", "evaluation=[geometry]", "trust=[ofmine]", "tokens=99_999", name="evaluate")
    monkeypatch.setattr("tunediff.study.reevaluate.memory_of", lambda *_: 9_000_000.0)
    with pytest.raises(Refused, match=r"tokens=99999: held-out text is kept in memory.* Give at most 45,000\."):
        reevaluate(asked)
    assert not list(folder.glob("on_*"))


def test_what_was_added_is_refused_where_it_would_be_read_and_named_elsewhere(made, caplog):
    folder, _ = made
    run = tunediff.load(folder, trust=["ofmine"])
    (folder / "graphs").mkdir()
    (folder / "graphs" / "mine.json").write_text("{}")
    (folder / "notes.txt").write_text("of no run")
    run.verify()
    (warned,) = caplog.records
    assert "graphs/mine.json" in warned.getMessage() and warned.levelno == logging.WARNING
    place, _ = own_place(run, 77)
    for path in (folder / "tables" / "x.parquet", folder / "dictionary" / "more.bin", place / "tables" / "x.parquet"):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"")
        with pytest.raises(Refused, match=f"{path} is not of this run: its manifest.json does not list it. Remove it"):
            run.verify()
        path.unlink()
    (folder / "tables" / "x.parquet").write_bytes(b"")
    with pytest.raises(Refused, match="x.parquet is not of this run"):
        run.table("x")


def test_a_note_that_several_say_stands_once_until_the_last_of_them_says_it_no_more(tmp_path):
    for name in ("one", "two"):
        folders.write_findings(tmp_path, [Note("too few of all"), Note(f"too few of {name}")], {}, by=name)
    assert folders.findings_of(tmp_path)["notes"] == ["too few of all", "too few of one", "too few of two"]
    folders.write_findings(tmp_path, [], {}, by="two")
    assert folders.findings_of(tmp_path)["notes"] == ["too few of all", "too few of one"]
    folders.write_findings(tmp_path, [], {}, by="one")
    assert folders.findings_of(tmp_path)["notes"] == []
