"""A stranger's names, headers and packages are looked at before they are used; what speaks to a terminal is shown."""

import json
import struct
import subprocess
import sys
from pathlib import Path

import pytest

import dependencies
from campaigns import strangers
from campaigns.told import BAD
from tunediff.evaluations.behaviour.solving import KeptLines
from tunediff.models import lora
from tunediff.models.files import PairError, headers_in, weight_files
from tunediff.models.transcoder_files import TranscoderFiles
from tunediff.shapes import Refused, Table, path_in
from tunediff.terminal import printable, shown
from tunediff.trusted import check_file

CONF = Path(__file__).resolve().parent.parent / "conf"


# -- names -----------------------------------------------------------------------------------------------------------

ELSEWHERE = (
    "../x",
    "a/b",
    "/etc/passwd",
    "..",
    ".",
    "",
    "a\\b",
    "a\0b",
    "a\nb",
    "\x1b[2J",
    "\ud800",
    "x" * 200,
    "é" * 100,
    None,
    3,
)


@pytest.mark.parametrize("name", ELSEWHERE)
def test_a_name_that_would_be_another_place_is_refused(name, tmp_path):
    with pytest.raises(Refused, match="Table .*: it is the name of a file, so it has no slash") as refusal:
        path_in(tmp_path, name, "Table")
    assert str(refusal.value).isprintable() and len(str(refusal.value)) < 300
    with pytest.raises(Refused):
        KeptLines(tmp_path, name)
    with pytest.raises(Refused):
        Table(name, {}).check()


def test_a_name_is_a_file_of_its_folder(tmp_path):
    for name in ("examples", "..x", "a b", "latents.2", "東京", "~", "-rf", "a" * 180):
        assert path_in(tmp_path, name, "Table", ".x").parent == tmp_path


def test_a_config_that_is_read_names_no_sweep_elsewhere_and_asks_no_private_address(tmp_path):
    for said, why in (("sweep: ../../x", "as sweep"), ("evaluation: {x: {judge: {private: true}}}", "private=True")):
        (tmp_path / "config.yaml").write_text(said)
        with pytest.raises(Refused, match=why):
            check_file(tmp_path / "config.yaml", typed=())
    (tmp_path / "config.yaml").write_text("sweep: night-2")
    assert check_file(tmp_path / "config.yaml", typed=()) == {"sweep": "night-2"}


@pytest.mark.parametrize("named", ("../stranger.safetensors", "/etc/passwd", "a/b.safetensors", ".."))
def test_weights_that_are_named_lie_beside_the_file_that_names_them(named, tmp_path):
    (tmp_path / "model").mkdir()
    index = tmp_path / "model" / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": {"x": named}}))
    for config in ({}, {"transformers_weights": named}):
        with pytest.raises(PairError, match="is no file of that folder"):
            weight_files(tmp_path / "model", "model", config)
    with pytest.raises(Refused, match="is no file of that folder"):
        TranscoderFiles(str(tmp_path / "model"))._file(named)


# -- headers of safetensors ------------------------------------------------------------------------------------------


def safetensors_file(header, data=b"\0" * 16, length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def tensor(begin=0, end=16, dtype="F32", shape=(4,), **more):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end], **more}


WHOLE = safetensors_file({"x": tensor(0, 8, shape=(2,)), "y": tensor(8, 16, shape=(1, 2)), "__metadata__": {"a": "b"}})
LYING = {
    "an endless header": safetensors_file({"x": tensor()}, length=2**63),
    "a header longer than the file": safetensors_file({"x": tensor()}, length=10**6),
    "a header of nothing": safetensors_file(b"", length=0),
    "eight bytes": b"\xff" * 8,
    "three bytes": b"abc",
    "no JSON": safetensors_file(b"{" * 40),
    "deep JSON": safetensors_file(b"[" * 100_000),
    "a list": safetensors_file([tensor()]),
    "a number": safetensors_file(b"7"),
    "no tensor": safetensors_file({}),
    "metadata that is a list": safetensors_file({"x": tensor(), "__metadata__": []}),
    "metadata of numbers": safetensors_file({"x": tensor(), "__metadata__": {"a": 1}}),
    "only metadata": safetensors_file({"__metadata__": {}}),
    "beyond the end": safetensors_file({"x": tensor(0, 32, shape=(8,))}),
    "less than the file": safetensors_file({"x": tensor(0, 8, shape=(2,))}),
    "two in one place": safetensors_file({"x": tensor(), "y": tensor()}),
    "one in another": safetensors_file({"x": tensor(), "y": tensor(4, 12, shape=(2,))}),
    "a hole": safetensors_file({"x": tensor(0, 4, shape=(1,)), "y": tensor(8, 16, shape=(2,))}),
    "a hole before": safetensors_file({"x": tensor(8, 16, shape=(2,))}),
    "before the beginning": safetensors_file({"x": tensor(-16, 16, shape=(8,))}),
    "turned around": safetensors_file({"x": tensor(0, 16), "y": tensor(16, 0, shape=(0,))}),
    "another shape": safetensors_file({"x": tensor(shape=(5,))}),
    "a shape below nothing": safetensors_file({"x": tensor(shape=(-2, -2))}),
    "a shape in halves": safetensors_file({"x": tensor(shape=(0.5, 8))}),
    "an endless shape": safetensors_file({"x": tensor(shape=(2**62, 4))}),
    "a shape that is a map": safetensors_file({"x": {"dtype": "U64", "shape": {}, "data_offsets": [0, 8]}}, b"\0" * 8),
    "a shape in words": safetensors_file({"x": tensor(shape=("4",))}),
    "a shape of true": safetensors_file({"x": tensor(shape=(True, 4))}),
    "another type": safetensors_file({"x": tensor(dtype="F64")}),
    "a type of its own": safetensors_file({"x": tensor(dtype="PICKLE")}),
    "a type that is a list": safetensors_file({"x": tensor(dtype=["F32"])}),
    "no type": safetensors_file({"x": {"shape": [4], "data_offsets": [0, 16]}}),
    "no place": safetensors_file({"x": {"shape": [4], "dtype": "F32"}}),
    "a place of three": safetensors_file({"x": {"shape": [4], "dtype": "F32", "data_offsets": [0, 16, 16]}}),
    "a place in words": safetensors_file({"x": {"shape": [4], "dtype": "F32", "data_offsets": ["0", "16"]}}),
    "a place of NaN": safetensors_file(b'{"x": {"shape": [4], "dtype": "F32", "data_offsets": [NaN, 16]}}'),
    "a name twice": safetensors_file(b'{"x": %s, "x": %s}' % ((json.dumps(tensor()).encode(),) * 2)),
    "a name that speaks": safetensors_file({"\x1b[2J" * 50: tensor(shape=(5,))}),
}  # fmt: skip


@pytest.mark.parametrize("content", LYING.values(), ids=LYING)
def test_a_header_that_lies_is_refused_by_the_name_of_its_file(content, tmp_path):
    file = tmp_path / "model-00001.safetensors"
    file.write_bytes(content)
    with pytest.raises(
        PairError, match=r"^the model: .*model-00001.safetensors .*ownload or save it again\.$"
    ) as refusal:
        headers_in(file, "the model")
    assert str(refusal.value).isprintable() and len(str(refusal.value)) < 500


def test_a_header_that_tells_the_truth_is_read(tmp_path):
    file = tmp_path / "x.safetensors"
    file.write_bytes(WHOLE)
    assert {name: header.shape for name, header in headers_in(file, "m").items()} == {"x": (2,), "y": (1, 2)}


@pytest.mark.parametrize("content", (LYING["two in one place"], LYING["a name twice"], LYING["an endless header"]))
def test_adapters_and_transcoders_are_read_by_the_same_eyes(content, tmp_path):
    for name in ("adapter_model.safetensors", "model.safetensors"):
        (tmp_path / name).write_bytes(content)
    (tmp_path / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "r": 1, "target_modules": ["q_proj"]})
    )
    for read in (lora.check, lora.shapes, lambda folder: TranscoderFiles(str(folder))._shards()):
        with pytest.raises(PairError, match="model.safetensors"):
            read(tmp_path)


# -- terminals -------------------------------------------------------------------------------------------------------


def test_what_data_says_to_a_terminal_is_shown_and_not_obeyed(caplog):
    said = "a\x1b[2J\x1b]0;t\x07\r\x9b1m\u202eb\ud800\tc\nd東京🙂"
    shown = "a\\x1b[2J\\x1b]0;t\\x07\\r\\x9b1m\\u202eb\\ud800\tc\nd東京🙂"
    assert printable(said) == shown and str(Refused(said)) == shown and printable(shown) == shown


def test_errors_that_hydra_reports_have_printable_words():
    with pytest.raises(RuntimeError) as caught, shown():
        try:
            raise KeyError("\x1b[2J")
        except KeyError as error:
            raise RuntimeError("\x1b]0;owned\x07", 3) from error
    assert caught.value.args == ("\\x1b]0;owned\\x07", 3)
    assert isinstance(caught.value.__cause__, KeyError) and caught.value.__cause__.args == ("\\x1b[2J",)


def test_every_line_of_a_log_and_the_last_words_of_a_program_are_printable():
    program = (
        "import logging, sys; from tunediff.terminal import guard; guard(); logging.basicConfig(stream=sys.stdout)\n"
        "logging.getLogger('x').warning('%s', '\\x1b[2J'); raise RuntimeError('\\x1b]0;owned\\x07')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "\x1b" not in done.stdout + done.stderr and "\x07" not in done.stderr
    assert "\\x1b[2J" in done.stdout and "RuntimeError: \\x1b]0;owned\\x07" in done.stderr


# -- packages --------------------------------------------------------------------------------------------------------


def test_every_locked_package_has_a_licence_that_asks_no_more_than_to_be_named():
    packages = [one for one in dependencies.licences() if one.says != "not installed here"]
    assert len(packages) > 100
    assert not [one for one in packages if one.licence not in (*dependencies.FREE, *dependencies.NAMED)]


def test_an_advisory_holds_for_the_versions_that_it_names(tmp_path):
    (tmp_path / "vulns" / "jinja2").mkdir(parents=True)
    ranged = "{type: ECOSYSTEM, events: [{introduced: '0'}, {fixed: '2.0'}, {introduced: 3.0rc1}, {fixed: 3.1.6}]}"
    told = f"{{id: PYSEC-1, details: a hole, affected: [{{ranges: [{ranged}], versions: [9.0]}}]}}"
    (tmp_path / "vulns" / "jinja2" / "PYSEC-1.yaml").write_text(told.replace("9.0", "'9.0'"))
    lock = tmp_path / "lock.txt"
    holds = {"1.9": 1, "2.0": 0, "2.5": 0, "3.0": 1, "3.1.5": 1, "3.1.6": 0, "9.0": 1}
    for version, count in holds.items():
        lock.write_text(f"# a lock\njinja2=={version}\nother==1\n")
        assert len(dependencies.advisories(tmp_path, lock)[0]) == count, version


# -- all of it at random ---------------------------------------------------------------------------------------------


def test_nothing_that_strangers_bring_is_let_through_ends_in_a_traceback_or_hangs():
    found = list(strangers.cases(150, seed=4))
    assert not [case for case in found if case["outcome"] in BAD]
    assert {"refused", "equal"} == {case["outcome"] for case in found}


def test_an_error_whose_causes_come_round_again_is_shown_and_ends():
    """A refusal by way of another error of the same chain: following it must come to an end."""
    first, second = ValueError("\x1b]0;x\x07"), KeyError("\x1b[2J")
    first.__cause__, second.__context__ = second, first
    with pytest.raises(ValueError, match=r"\\x1b\]0;x\\x07"), shown():
        raise first
    assert second.args == ("\\x1b[2J",)
