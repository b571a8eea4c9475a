"""What is read is what was written: manifests, checksums, and the checkpoint before a rotten one."""

import functools
import importlib.util
import json
import logging
import os
import re
import shutil
import socket

import pyarrow
import pyarrow.parquet
import pytest
import torch

from conftest import ROOT
from tunediff import files, folders
from tunediff.activations.stored import StoredRows, store
from tunediff.dictionary import Crosscoder, Normalisation, TopK, load_weights, save_dictionary
from tunediff.evaluations.behaviour.solving import KeptLines
from tunediff.folders import manifest
from tunediff.models import ModelSource
from tunediff.report import in_words, members_under
from tunediff.shapes import Figure, Finding, Note, Refused, Rows, Stream, Table
from tunediff.study.finished import check_files
from tunediff.study.work import work
from tunediff.text import read_hub
from tunediff.training import Checkpoints, latest_checkpoint, load_checkpoint, names_in, whole_checkpoint
from tunediff.trusted import read_yaml

STREAMS = [Stream("base", "residual", 1, 4), Stream("tuned", "residual", 1, 4)]
PLAIN = functools.partial(Normalisation, kind="none", sink_multiple=None)
FOUND = [
    Finding("a/b", 0.5, meaning="a number"),
    Note("a note"),
    Table("latents", {"latent": [0, 1], "x": [0.5, 0.25]}),
]
FOUND += [Figure("f", "bars", {"x": ["u"], "y": [1.0]}, "x", ["y"], "s", "t")]


def crosscoder(seed):
    return Crosscoder(STREAMS, latents=8, sparsity=TopK(2), normalisation=PLAIN, seed=seed)


@pytest.fixture
def run(tmp_path):
    """A finished run's folder in a sweep, with every kind of file but its config."""
    folder = tmp_path / "sweep" / "abc"
    folder.mkdir(parents=True)
    folders.begin_manifest(folder)
    folders.write_atomically(folder / "identity.json", json.dumps({"identity": "abc", "settings": {"seed": 0}}))
    save_dictionary(crosscoder(0), folder / "dictionary", {"latents": 8})
    folders.write_findings(folder, FOUND, {"study": {"model_pair": "a -> b"}})
    folders.say(folder, identity="abc", state=folders.FINISHED, step=5, steps=5, value=0.5)
    folders.write_sealed(folder.parent / "sweep.json", {"members": [{"identity": "abc", "words": ["seed=0"]}]})
    return folder


READ = {
    "findings.json": folders.findings_of,
    "figures.json": folders.figures_of,
    "state.json": folders.state_of,
    "identity.json": lambda folder: folders.read_json(folder / "identity.json"),
    "manifest.json": folders.findings_of,
    "tables/latents.parquet": lambda folder: folders.read_table(folder / "tables" / "latents.parquet").to_pydict(),
    "dictionary/weights.safetensors": lambda folder: weights_of(folder),
}


def weights_of(folder):
    made = crosscoder(1)
    load_weights(made, folder / "dictionary")
    return made.state_dict()["W_dec"].tolist()


def deep(content):
    return b'{"a":' * 100_000


def flipped(at):
    return lambda content: (
        content[: len(content) * at // 16]
        + bytes([content[len(content) * at // 16] ^ 1])
        + content[len(content) * at // 16 + 1 :]
    )


WAYS = {
    "cut": lambda content: content[: len(content) // 2],
    "one byte less": lambda content: content[:-1],
    "empty": lambda content: b"",
    "noise": lambda content: bytes(range(256)),
    "deep": deep,
    "null": lambda content: b"null",
    "list": lambda content: b"[1]",
    "types": lambda content: b'{"findings": 3, "figures": [1], "files": [1], "state": 5}',
    **{f"flip at {at}/16": flipped(at) for at in (0, 3, 8, 13)},
}


@pytest.mark.parametrize("name", READ)
def test_a_file_that_is_not_as_it_was_written_is_refused_by_its_name_with_the_way_out(run, name):
    path, read = run / name, READ[name]
    content, before = path.read_bytes(), read(run)
    for way, spoil in WAYS.items():
        path.write_bytes(spoil(content))
        with pytest.raises(Refused, match="is not as it was written.*(Restore it from a copy|Remove it)") as refused:
            read(run)
        assert str(path) in str(refused.value), way
    path.write_bytes(content)
    assert read(run) == before


@pytest.mark.parametrize("name", [name for name in READ if name.endswith("s.json") or name.startswith(("tab", "dict"))])
def test_without_a_manifest_what_cannot_be_taken_apart_is_refused_too(run, name):
    """A folder of an earlier version."""
    (run / "manifest.json").unlink()
    path, read = run / name, READ[name]
    content = path.read_bytes()
    read(run)
    for way in ("cut", "empty", "noise", "deep", "null", "list", "types"):
        path.write_bytes(WAYS[way](content))
        with pytest.raises(Refused, match="is not as it was written"):
            read(run)


def test_another_files_content_is_refused_where_it_reads_well(run, tmp_path):
    pyarrow.parquet.write_table(pyarrow.table({"latent": [0, 1], "x": [9.0, 9.0]}), run / "tables" / "latents.parquet")
    with pytest.raises(
        Refused, match=r"latents.parquet is not as it was written: its checksum.*ask every evaluation again"
    ):
        READ["tables/latents.parquet"](run)
    save_dictionary(crosscoder(3), tmp_path / "other", {})
    (tmp_path / "other" / "weights.safetensors").replace(run / "dictionary" / "weights.safetensors")
    with pytest.raises(Refused, match=r"weights.safetensors is not as it was written.*run the study again"):
        weights_of(run)


def test_a_file_of_another_kind_is_refused_though_its_checksum_is_right(run):
    sweep = (run.parent / "sweep.json").read_bytes()
    (run / "group.json").write_bytes(sweep)
    with pytest.raises(Refused, match=r"group.json is not as it was written: it has no 'resume_from'. Remove it"):
        work(run)
    (run / "state.json").write_bytes(sweep)
    with pytest.raises(Refused, match=r"state.json is not as it was written: it says nothing of a run"):
        folders.state_of(run)


def test_what_is_written_again_is_read_again_and_a_kill_between_leaves_no_wrong_checksum(run, monkeypatch):
    folders.write_findings(run, [Finding("a/b", 0.75), Table("latents", {"y": [1, 2]})], {}, by="again")
    assert folders.findings_of(run)["findings"][0]["value"] == 0.75
    assert READ["tables/latents.parquet"](run) == {"latent": [0, 1], "x": [0.5, 0.25], "y": [1, 2]}
    listed = folders.entries(run)
    assert {"identity.json", "findings.json", "figures.json", "tables/latents.parquet"} < set(listed)

    class Killed(BaseException):
        pass

    whole, last = os.replace, []

    def killed_after(path, place):
        whole(path, place)
        if place.name == last[-1]:
            raise Killed

    monkeypatch.setattr(os, "replace", killed_after)
    for name in ("manifest.json", "latents.parquet", "figures.json", "findings.json"):
        last.append(name)
        with pytest.raises(Killed):
            folders.write_findings(run, [Finding("a/b", 0.25), Table("latents", {"y": [3, 4]})], {}, by="again")
        assert folders.findings_of(run) and READ["tables/latents.parquet"](run) and weights_of(run)
    monkeypatch.undo()
    folders.write_findings(run, [Finding("a/b", 0.25), Table("latents", {"y": [3, 4]})], {}, by="again")
    assert set(folders.entries(run)) == set(listed)


def test_a_kill_at_any_moment_leaves_nothing_that_reads_as_rotten_or_as_somebody_elses(run, tmp_path, monkeypatch):
    """A copy of the folder after each replacement is what a kill there leaves: nothing comes after it, not even `finally`."""
    whole, left = os.replace, []

    def copied(path, place):
        whole(path, place)
        left.append(shutil.copytree(run, tmp_path / f"{len(left)} {place.name}"))

    monkeypatch.setattr(os, "replace", copied)
    changed = [Finding("a/b", 0.25), Table("latents", {"y": [3, 4]}), Table("new", {"x": [1]}), *FOUND[3:]]
    folders.write_findings(run, changed, {}, by="again")
    save_dictionary(crosscoder(5), run / "dictionary", {"latents": 8})
    monkeypatch.undo()
    assert {name for place in left for name in [place.name.partition(" ")[2]]} >= {
        *"latents.parquet new.parquet".split()
    }
    for place in left:
        assert folders.findings_of(place) and folders.figures_of(place) and weights_of(place), place.name
        assert READ["tables/latents.parquet"](place)["latent"] == [0, 1]
        assert folders.added_to(place) == folders.gone_from(place) == [], place.name
    assert folders.read_json(run / "manifest.json").keys() == {"files"}


def no_room_for_findings(monkeypatch):
    whole = os.replace

    def full(path, place):
        if place.name == "findings.json":
            raise OSError(28, "No space left on device")
        whole(path, place)

    monkeypatch.setattr(os, "replace", full)


def test_what_was_added_to_a_run_is_named_and_a_write_that_failed_is_its_own(run, monkeypatch):
    shutil.copy(run / "tables" / "latents.parquet", run / "tables" / "mine.parquet")
    (run / "on_9_tokens" / "tables").mkdir(parents=True)
    for path in (run / "on_9_tokens" / "tables" / "x.parquet", run / "dictionary" / "old", run / "notes.txt"):
        path.write_bytes(b"")
    assert folders.added_to(run) == ["dictionary/old", "tables/mine.parquet"]
    folders.begin_manifest(run / "on_9_tokens")
    assert folders.added_to(run / "on_9_tokens") == ["tables/x.parquet"]
    no_room_for_findings(monkeypatch)
    with pytest.raises(OSError, match="No space"):
        folders.write_findings(run, [Finding("a/b", 0.25), Table("new", {"x": [1]})], {}, by="again")
    assert (run / "tables" / "new.parquet").exists() and "tables/new.parquet" not in folders.entries(run)
    assert folders.added_to(run) == ["dictionary/old", "tables/mine.parquet"]


def test_a_folder_in_place_of_a_file_is_said_and_a_fault_of_the_machine_is_no_rot(run, monkeypatch):
    (run / "state.json").unlink()
    (run / "state.json").mkdir()
    with pytest.raises(Refused, match=r"state.json cannot be read: Is a directory. Ask for permission, or remove it"):
        folders.state_of(run)

    def fails(path):
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(manifest, "opened", fails)
    with pytest.raises(OSError, match="Too many"):
        folders.findings_of(run)


def a_pipe(place):
    place.unlink(missing_ok=True)
    os.mkfifo(place)


def a_socket(place):
    place.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(os.path.relpath(place))  # whose names are short


@pytest.mark.timeout(20)  # seconds; a pipe is waited for without end
@pytest.mark.parametrize("make", [a_pipe, a_socket])
def test_what_is_no_file_is_refused_and_not_waited_for(run, tmp_path, monkeypatch, make):
    monkeypatch.chdir(run)
    model = tmp_path / "model"
    shutil.copytree(ROOT / "src" / "tunediff" / "toy" / "weights" / "base", model)
    (tmp_path / "rows").mkdir()
    (model / "additional_chat_templates").mkdir()
    odd = {run / name: functools.partial(READ[name], run) for name in READ}
    odd[run / "config.yaml"] = lambda: read_yaml(run / "config.yaml")
    odd[tmp_path / "rows" / "README.md"] = lambda: next(read_hub(str(tmp_path / "rows")))
    odd[model / "additional_chat_templates" / "x.jinja"] = ModelSource(str(model)).tokenizer
    odd[model / "model.safetensors"] = ModelSource(str(model)).check
    odd[run / "outputs" / "a.jsonl"] = lambda: KeptLines(run, "a")
    (run / "outputs").mkdir()
    for place, read in odd.items():
        kept = place.read_bytes() if place.exists() else None
        make(place)
        with pytest.raises(Refused, match=f"{re.escape(str(place))} is a pipe, a socket or a device"):
            read()
        assert files.of_files([str(place)]) is None
        place.unlink()
        if kept is not None:
            place.write_bytes(kept)


def test_curves_that_rotted_are_written_anew_while_a_run_trains(run, caplog):
    folders.write_table(run, Table("training", {"step": [1]}))
    (run / "tables" / "training.parquet").write_bytes(b"")
    folders.write_table(run, Table("training", {"step": [1, 2]}))
    assert folders.read_table(run / "tables" / "training.parquet").to_pydict() == {"step": [1, 2]}
    assert "training.parquet is not as it was written" in caplog.text and "written anew" in caplog.text


def test_a_disk_that_is_full_leaves_the_old_file_and_its_checksum(run, monkeypatch):
    before = folders.entries(run)

    no_room_for_findings(monkeypatch)
    with pytest.raises(OSError, match="No space"):
        folders.write_findings(run, [Finding("a/b", 0.25)], {}, by="again")
    assert folders.entries(run)["findings.json"] == before["findings.json"]
    assert folders.findings_of(run)["findings"][0]["value"] == 0.5
    assert not list(run.rglob("*.partial"))


def test_a_reader_that_meets_a_writer_reads_the_one_or_the_other(run, monkeypatch):
    """The manifest is read before the file: between them an evaluation may have replaced both."""
    found, first = manifest.entry_of, []

    def late(path):
        said = found(path)
        if path.name == "findings.json" and not first:
            first.append(said)
            folders.write_findings(run, [Finding("a/b", 0.75)], {}, by="again")
        return said

    monkeypatch.setattr(manifest, "entry_of", late)
    assert folders.findings_of(run)["findings"][0]["value"] == 0.75


# -- side by side ----------------------------------------------------------------------------------------------------


def test_a_rotten_member_says_so_beside_the_others(run):
    other = run.parent / "def"
    other.mkdir()
    folders.write_atomically(other / "identity.json", json.dumps({"identity": "def", "settings": {"seed": 1}}))
    folders.write_findings(other, FOUND, {})
    for name in ("identity.json", "findings.json", "state.json", "manifest.json"):
        content = (run / name).read_bytes()
        (run / name).write_bytes(content[:-7])
        words = in_words(members_under([run.parent]))
        assert "unreadable" in words and f"{name} is not as it was written" in words and "finished" in words
        (run / name).write_bytes(content)
    folders.say(other, identity="def", state=folders.RUNNING)
    (run / "state.json").write_bytes((other / "state.json").read_bytes())
    assert "state.json is not as it was written: it is of another run" in in_words(members_under([run.parent]))
    (run.parent / "sweep.json").write_bytes(b'{"members": 5}')
    with pytest.raises(
        Refused, match="sweep.json is not as it was written.*Remove it: the same command writes it anew"
    ):
        members_under([run.parent])


# -- checkpoints -----------------------------------------------------------------------------------------------------


class Module:
    def __init__(self, step):
        self.step, self.steps = step, 9
        self.learners = []

    def training_state(self):
        return {"step": self.step, "members": {"abc": torch.arange(100.0) * self.step}}


@pytest.fixture
def checkpoints(tmp_path):
    saving = Checkpoints(tmp_path / "checkpoints", seconds=0.0, digest="d")
    for step in (2, 4, 6, 8):
        saving.save(Module(step))
    return saving.folder


def test_the_last_two_checkpoints_are_kept(checkpoints):
    kept = [f"step-000000{step}.{end}" for step in (6, 8) for end in ("ckpt", "json")]
    assert sorted(path.name for path in checkpoints.iterdir()) == kept


@pytest.mark.parametrize("end", ["ckpt", "json"])
def test_a_rotten_checkpoint_is_passed_over_for_the_one_before_and_said(checkpoints, end, caplog):
    path = checkpoints / f"step-0000008.{end}"
    content = path.read_bytes()
    for spoil in (*WAYS.values(), None):
        path.unlink() if spoil is None else path.write_bytes(spoil(content))
        caplog.clear()
        saved = whole_checkpoint(latest_checkpoint(checkpoints))
        assert saved is not None and saved.name == "step-0000006.ckpt" and names_in(saved) == ["abc"]
        assert load_checkpoint(saved, digest="d")["step"] == 6
        assert spoil is None or f"passed over the checkpoint at step 8: {path} is not as it was" in caplog.text
    (checkpoints / "step-0000006.ckpt").write_bytes(b"")
    assert whole_checkpoint(latest_checkpoint(checkpoints)) is None and latest_checkpoint(checkpoints) is None
    Checkpoints(checkpoints, seconds=0.0).save(Module(9))
    assert [path.name for path in sorted(checkpoints.iterdir())] == ["step-0000009.ckpt", "step-0000009.json"]


def test_a_checkpoint_of_a_version_without_checksums_is_refused_with_the_way_out(checkpoints):
    path = latest_checkpoint(checkpoints)
    said = folders.read_json(path.with_suffix(".json"))
    del said["files"]
    path.with_suffix(".json").write_text(json.dumps(said))
    with pytest.raises(Refused, match="by an earlier version, without checksums. Go on with that version, or remove"):
        load_checkpoint(whole_checkpoint(latest_checkpoint(checkpoints)), digest="d")


# -- caches ----------------------------------------------------------------------------------------------------------


def rows():
    draws = torch.Generator().manual_seed(0)
    while True:
        yield Rows(torch.randn(16, 8, generator=draws))


def test_stored_activations_that_rotted_are_stored_anew(tmp_path, caplog):
    def first():
        folder = store(rows(), tmp_path, tokens=64, width=8, moments=0)
        return next(StoredRows(folder, STREAMS, dtype=torch.float32)).values

    caplog.set_level(logging.INFO)
    made = first()
    for name in ("index.json", "shard-00000.bin"):
        content = (tmp_path / name).read_bytes()
        for way, spoil in WAYS.items():
            (tmp_path / name).write_bytes(spoil(content))
            caplog.clear()
            if name == "shard-00000.bin" and way.startswith("flip"):
                with pytest.raises(Refused, match=r"shard-00000.bin does not match its checksum.*Delete"):
                    first()
                (tmp_path / name).write_bytes(content)
            else:
                assert torch.equal(first(), made) and "stored anew" in caplog.text, way
    caplog.clear()
    assert torch.equal(first(), made) and "Stored activations found" in caplog.text


def test_kept_lines_that_rotted_are_made_anew(tmp_path, caplog):
    kept = KeptLines(tmp_path, "answers")
    for n in range(4):
        kept.write(str(n), {"text": f"answer {n}", "share": n / 3})
    whole = kept.path.read_bytes()
    third = whole.index(b'{"key": "2"')
    for at in range(third, whole.index(b"\n", third)):
        kept.path.write_bytes(whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :])
        read = KeptLines(tmp_path, "answers")
        assert sorted(read.known) == ["0", "1", "3"] and "line 3" in caplog.text, at
        caplog.clear()
    read.write("2", {"text": "answer 2", "share": 2 / 3})
    assert KeptLines(tmp_path, "answers").known["2"] == {"text": "answer 2", "share": 2 / 3}
    kept.path.write_bytes(kept.path.read_bytes()[:-9])
    assert sorted(KeptLines(tmp_path, "answers").known) == ["0", "1", "3"] and not caplog.text


# -- a fine-tune's model ---------------------------------------------------------------------------------------------


def test_lines_that_answer_another_condition_are_made_anew(tmp_path):
    """The name of the file says under which condition they were given."""
    for name, said in (("of-base", "1"), ("of-tuned", "2")):
        KeptLines(tmp_path, name).write("a", {"text": said})
    first, second = (tmp_path / "outputs" / f"{name}.jsonl" for name in ("of-base", "of-tuned"))
    assert KeptLines(tmp_path, "of-base").known == {"a": {"text": "1"}}
    swapped = first.read_bytes(), second.read_bytes()
    first.write_bytes(swapped[1]), second.write_bytes(swapped[0])
    assert KeptLines(tmp_path, "of-base").known == KeptLines(tmp_path, "of-tuned").known == {}


def test_a_finished_run_is_whole_or_says_what_is_gone(run):
    folders.check_whole(run)
    (run / "report.html").write_text("of no use to a reader")
    folders.check_whole(run)
    weights = run / "dictionary" / "weights.safetensors"
    kept = weights.read_bytes()
    weights.write_bytes(kept[:-1] + bytes([kept[-1] ^ 1]))
    with pytest.raises(Refused, match="weights.safetensors is not as it was written"):
        folders.check_whole(run)
    weights.unlink()
    with pytest.raises(Refused, match=r"weights.safetensors is gone. .*run the study again"):
        folders.check_whole(run)


def test_findings_that_are_gone_are_asked_again_as_their_refusal_says(run):
    """What is gone is no rot: an evaluation writes it anew."""
    (run / "findings.json").unlink()
    assert folders.gone_from(run) == ["findings.json"]
    with pytest.raises(Refused, match="findings.json is gone"):
        folders.check_whole(run)  # which is asked where a run is said to be finished
    folders.write_findings(run, FOUND, {"study": {"model_pair": "a -> b"}})
    assert folders.gone_from(run) == []


def test_the_deepest_file_of_a_run_is_listed_and_one_that_stands_as_a_folder_is_no_file(run):
    deepest = run / "companions" / "twin" / "config.json"
    deepest.parent.mkdir(parents=True)
    folders.write_atomically(deepest, "{}")
    assert "companions/twin/config.json" in folders.entries(run)
    deepest.write_text("[]")
    with pytest.raises(Refused, match="twin/config.json is not as it was written"):
        folders.read_json(deepest)


def test_what_is_written_while_another_file_is_being_written_keeps_its_entry(run):
    with folders.changing(run / "report.html"):
        folders.write_atomically(run / "tables" / "inner.parquet", "x")
        with pytest.raises(OSError), folders.changing(run / "tables" / "half.parquet"):
            (run / "tables" / "half.parquet").write_text("x")
            raise OSError
        (run / "report.html").write_text("page")
    assert {"tables/inner.parquet", "report.html"} <= folders.entries(run).keys()
    assert folders.added_to(run) == []


def test_responses_are_listed_once_their_evaluation_has_ended_and_one_that_is_slipped_in_is_refused(run):
    kept = KeptLines(run, "answers")
    for key in "ab":
        kept.write(key, {"text": key})
        assert "outputs/answers.jsonl" not in folders.entries(run) and not folders.added_to(run)
    folders.settle(run)
    assert "outputs/answers.jsonl" in folders.entries(run) and len(KeptLines(run, "answers").known) == 2
    content = kept.path.read_bytes()
    (run / "outputs" / "other").mkdir()
    KeptLines(run / "outputs" / "other", "answers").write("c", {"text": "slipped in, with its own checksum"})
    kept.path.write_bytes(content + (run / "outputs" / "other" / "outputs" / "answers.jsonl").read_bytes())
    shutil.rmtree(run / "outputs" / "other")
    for read in (folders.gone_from, lambda run: KeptLines(run, "answers")):
        with pytest.raises(Refused, match=r"answers.jsonl is not as it was written.*ask every evaluation again"):
            read(run)
    kept.path.write_bytes(content)
    again = KeptLines(run, "answers")
    again.write("c", {"text": "c"})
    folders.settle(run)
    assert folders.gone_from(run) == [] and len(KeptLines(run, "answers").known) == 3
    kept.path.rename(kept.path.with_name("mine.jsonl"))
    with pytest.raises(Refused, match=r"mine.jsonl is not of this run"):
        check_files(run)


def test_a_log_may_grow_after_its_run_ended_and_what_stood_there_may_not_change(run, caplog):
    for name in ("run.log", "csv/a.csv", ".hydra/config.yaml", "checkpoints/step.ckpt", "lock", "on_9_tokens/x"):
        (run / name).parent.mkdir(exist_ok=True)
        (run / name).write_text("it began\n")
    folders.begin_manifest(run / "on_9_tokens")
    folders.note_ended(run)
    said = folders.read_json(run / "manifest.json")["ended"]
    assert said.keys() == {"run.log", "csv/a.csv", ".hydra/config.yaml", "state.json"}
    with open(run / "run.log", "a") as file:
        file.write("it ended\n")
    folders.write_table(run, Table("more", {"x": [1]}))
    (run / "evaluate.log").write_text("later")
    folders.note_ended(run)
    check_files(run)
    assert not caplog.records and folders.read_json(run / "manifest.json")["ended"].keys() == {*said, "evaluate.log"}
    (run / "run.log").write_text("it never\nbegan\n")
    (run / "csv" / "a.csv").unlink()
    check_files(run)
    assert [record.getMessage().partition(": its ")[2].split()[0] for record in caplog.records] == [
        "csv/a.csv",
        "run.log",
    ]


def test_a_manifest_that_is_rotten_in_part_is_refused_whole(run):
    for spoilt in (
        {"files": {}, "ended": {"a": 1}},
        {"files": {}, "ended": {"a": ["x", "y"]}},
        {"entries": {}},
        {"files": {"a": 1}},
        {"files": {}, "changing": [1]},
    ):
        folders.write_sealed(run / "manifest.json", spoilt)
        with pytest.raises(Refused, match=r"manifest.json is not as it was written"):
            folders.entries(run)


def test_a_table_of_another_number_of_rows_takes_the_place_of_the_earlier_one(run):
    folders.write_table(run, Table("latents", {"y": [1, 2, 3]}))
    assert READ["tables/latents.parquet"](run) == {"y": [1, 2, 3]}


def test_a_folder_that_is_used_again_holds_nothing_of_the_study_before(run):
    for left in ("on_99_tokens/tables", "outputs", "latent_cache"):
        (run / left).mkdir(parents=True)
    folders.clear(run)
    assert {path.name for path in run.iterdir()} == {"identity.json", "state.json", "dictionary", "tables"}
    assert not list((run / "tables").iterdir())


def test_nothing_is_written_through_a_link_that_leads_elsewhere(run, tmp_path):
    (run / "latest").symlink_to("dictionary")
    folders.refuse_links(run)
    (run / "evaluate.log").symlink_to(tmp_path / "victim")
    with pytest.raises(Refused, match="evaluate.log is a link to"):
        folders.refuse_links(run)


def test_what_is_written_is_flushed_and_read_by_others_as_the_users_own(run, monkeypatch):
    flushed = []
    monkeypatch.setattr(manifest.os, "fsync", flushed.append)
    os.umask(before := os.umask(0))
    folders.write_atomically(run / "report.html", "x")
    assert len(flushed) >= 2  # the file and its folder
    assert (run / "report.html").stat().st_mode & 0o777 == 0o666 & ~before
    assert (run / "dictionary" / "weights.safetensors").stat().st_mode & 0o777 == 0o666 & ~before


def test_a_fine_tunes_model_is_the_one_that_was_saved(request, tmp_path):
    folders.begin_manifest(tmp_path)
    with folders.changing(tmp_path / "model"):
        shutil.copytree(request.getfixturevalue("folders")["base"], tmp_path / "model")
    source = ModelSource(str(tmp_path / "model"), dtype="float32")
    assert source.weights() is not None and len(source.tokenizer()) > 2
    for name, read in (("model.safetensors", ModelSource.weights), ("tokenizer.json", ModelSource.tokenizer)):
        path = tmp_path / "model" / name
        content = path.read_bytes()
        path.write_bytes(content.replace(b"th", b"ht") if name.endswith(".json") else flipped(13)(content))
        with pytest.raises(Refused, match=f"{name} is not as it was written.*fine-tune again"):
            read(ModelSource(str(tmp_path / "model"), dtype="float32"))
        path.write_bytes(content)
        read(ModelSource(str(tmp_path / "model"), dtype="float32"))


@pytest.mark.slow
def test_whatever_rots_is_refused_repaired_or_of_no_consequence():
    """A slice of the campaign, which reads whole studies."""
    at = importlib.util.spec_from_file_location("rotten", ROOT / "bench" / "campaigns" / "rotten.py")
    rotten = importlib.util.module_from_spec(at)
    at.loader.exec_module(rotten)
    assert not [case for case in rotten.cases(30, 3) if case["outcome"] in rotten.BAD]
