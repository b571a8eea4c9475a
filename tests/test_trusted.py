"""A stranger's folder is data: no config that is read runs code, writes elsewhere, sends anything or reads a secret."""

import copy
import os
import sys
from pathlib import Path

import hydra
import pytest
import yaml
from omegaconf import OmegaConf

import tunediff
from conftest import ROOT
from tunediff import files
from tunediff.settings import check, identity, of_its_own, plain, with_files, within
from tunediff.shapes import Refused
from tunediff.study.parts import STUDY, read_config, write_config
from tunediff.trusted import BUILDABLE, LARGEST, target_of, targets_in, trust_of, unresolved

CONF = ROOT / "conf"
SECRET = "s3cret-of-the-one-who-runs-it"


def composed(*words, name="train"):
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        return hydra.compose(name, list(words))


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """The settings of a run as its folder has them."""
    folder = tmp_path_factory.mktemp("run")
    with within(folder):
        write_config(composed("scale=smoke"), folder)
    return yaml.safe_load((folder / "config.yaml").read_text())


def put(content, key, value):
    """The content with this value at a key such as text.rows."""
    content = copy.deepcopy(content)
    *path, last = key.split(".")
    node = content
    for part in path:
        node = node.setdefault(part, {})
    node[last] = value
    return content


def run_folder(tmp_path, content):
    tmp_path.mkdir(exist_ok=True)
    (tmp_path / "config.yaml").write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return tmp_path


# -- what may be built -----------------------------------------------------------------------------------------------


def test_every_option_is_built_of_the_list_and_all_of_the_list_is_there():
    named = set()
    for path in CONF.rglob("*.yaml"):
        content = yaml.safe_load(path.read_text())
        named |= {node["_target_"] for node, _ in targets_in(content)}
    assert {name.rpartition(".")[0] for name in named - BUILDABLE} == {
        "hydra_plugins.tunediff_launchers"
    }  # Hydra's side
    assert all(callable(target_of({"_target_": name})) for name in BUILDABLE)
    # what starts processes, writes files, or loads code by a name of its own
    for name in (
        "tunediff.load",
        "tunediff.models.save_adapted",
        "tunediff.dictionary.save_dictionary",
        "tunediff.activations.store",
    ):
        assert callable(target_of({"_target_": name})) and name not in BUILDABLE


CANARY = "touch {}"
ATTACKS = {
    "a process by torch": {"_target_": "torch.utils.collect_env.run", "command": CANARY},
    "a process of ours": {"_target_": "tunediff.processes.start", "command": ["-c", "1"]},
    "the shell": {"_target_": "os.system", "command": CANARY},
    "eval": {"_target_": "builtins.eval", "_args_": ["1"]},
    "subprocess": {"_target_": "subprocess.run", "args": CANARY, "shell": True},
    "torch.hub": {"_target_": "torch.hub.load", "repo_or_dir": "a/b", "model": "c"},
    "an extension": {"_target_": "torch.utils.cpp_extension.load_inline", "name": "x", "cpp_sources": ""},
    "a pickle": {"_target_": "torch.load", "f": "x.pt", "weights_only": False},
    "a file of ours": {"_target_": "tunediff.folders.write_atomically", "path": "x", "text": "y"},
    "a folder gone": {"_target_": "shutil.rmtree", "path": "x"},
    "our saving": {"_target_": "tunediff.models.save_adapted", "folder": "x"},
    "another's name for it": {"_target_": "tunediff.processes.subprocess.run", "args": CANARY},
    "a longer name of an allowed one": {"_target_": "tunediff.text.rows.read_files", "path": "x"},
    "lightning": {"_target_": "lightning.fabric.utilities.cloud_io._load", "path_or_url": "x"},
    "hydra's own": {"_target_": "hydra.utils.get_method", "path": "os.system"},
    "arguments by place": {"_target_": "tunediff.text.read_files", "_args_": ["/etc/passwd"]},
    "not looked through": {"_target_": "tunediff.text.read_files", "_recursive_": False, "path": "x"},
    "a call": {"_target_": "tunediff.text.read_files", "_call_": True, "path": "x"},
    "a partial that is none": {"_target_": "tunediff.text.read_files", "_partial_": "os.system", "path": "x"},
    "a target that is put together": {"_target_": "os.${seed}", "path": "x"},
    "a target from elsewhere": {"_target_": "${text.instruction}", "path": "x"},
    "a list of names": {"_target_": ["os", "system"]},
    "deep in a list": {
        "_target_": "tunediff.text.read_files",
        "path": [{"a": [{"_target_": "os.system", "command": "x"}]}],
    },
    "made by a resolver": "${oc.create:{_target_: os.system}}",
    "decoded": "${oc.decode:'{_target_: os.system}'}",
    "escaped": "\\${oc.env:HOME}",
    "a resolver with a made-up name": "${oc.${seed}:HOME}",
    "the environment": "${oc.env:HOME}",
    "put together behind a decoded one": "${oc.decode:${oc.env:TUNEDIFF_DATA,x}${text.instruction}}",
    "another resolver": "${hydra:runtime.cwd}",
    "a list of ours": "${oc.dict.keys:text}",
    "the environment, as a name": "${oc.select:${oc.env:HOME}}",
    "the environment, inside another": "${oc.select:text.system,${oc.env:HOME}}",
}


@pytest.mark.parametrize(
    "key", ["text.rows", "evaluation.fidelity", "model_pair.base", "text.prepare.step", "logger.mine"]
)
@pytest.mark.parametrize("attack", ATTACKS)
def test_no_folder_builds_anything_else(config, tmp_path, monkeypatch, attack, key):
    monkeypatch.chdir(tmp_path)
    node = ATTACKS[attack]
    canary = str(tmp_path / "canary")
    node = yaml.safe_load(yaml.safe_dump(node).replace(CANARY, CANARY.format(canary)))
    folder = run_folder(tmp_path / "run", put(config, key, node))
    there = set(os.listdir(folder))
    with pytest.raises(Refused, match=r"\w"):
        read_config(folder)
    with pytest.raises(Refused):
        tunediff.load(folder)
    assert not (tmp_path / "canary").exists() and set(os.listdir(folder)) == there


def test_a_word_put_together_of_two_is_no_reference(config, tmp_path):
    content = put(
        put(put(config, "text.instruction", "$"), "sweep", "{oc.env:HOME}"),
        "text.system",
        "${text.instruction}${sweep}",
    )
    with pytest.raises(Refused, match=r"text.system=\$\{oc.env:HOME\} holds a reference"):
        read_config(run_folder(tmp_path, content))


def test_whom_a_file_trusts_nobody_trusts(config, tmp_path, monkeypatch):
    """Only the one who opens the folder says so, and then of what that package itself has written."""
    (tmp_path / "stranger.py").write_text("from subprocess import run\n\ndef rows():\n    return [{'text': 'a'}]\n")
    monkeypatch.syspath_prepend(tmp_path)
    mine = put(put(config, "text.rows", {"_target_": "stranger.rows", "_partial_": True}), "trust", ["stranger"])
    folder = run_folder(tmp_path / "run", mine)
    with pytest.raises(Refused, match=r"stranger.*trust=\[stranger\]"):
        read_config(folder)
    assert read_config(folder, ["stranger"]).text.rows._target_ == "stranger.rows"
    theirs = run_folder(tmp_path / "theirs", put(config, "text.rows", {"_target_": "stranger.run", "args": "x"}))
    with pytest.raises(Refused, match="is written in subprocess"):
        read_config(theirs, ["stranger"])
    for trust in ("stranger", ["a.b"], ["tunediff"], [3]):
        cfg = composed("scale=smoke")
        cfg.trust = trust
        with pytest.raises(Refused, match="trust"):
            check(cfg, STUDY)


# -- what a file may say ---------------------------------------------------------------------------------------------

HYDRA = [
    {"callbacks": {"x": {"_target_": "os.system", "command": "x"}}},
    {"run": {"dir": "/tmp/elsewhere"}},
    {"searchpath": ["file:///tmp"]},
    {"job_logging": {"handlers": {"x": {"()": "os.system", "command": "x"}}}},
    {"sweeper": {"_target_": "os.system"}},
]


@pytest.mark.parametrize("hydra_node", HYDRA)
def test_no_file_sets_up_hydra(config, tmp_path, hydra_node):
    content = put(config, "hydra", hydra_node)
    folder = run_folder(tmp_path / "run", content)
    with pytest.raises(Refused, match="sets up Hydra"):
        read_config(folder)
    with pytest.raises(Refused, match="sets up Hydra"):
        of_its_own(["--config-path", str(folder), "--config-name", "config"], CONF)
    pair = tmp_path / "pair.yaml"
    pair.write_text(yaml.safe_dump({"hydra": hydra_node, "_target_": "tunediff.models.ModelPair"}))
    with pytest.raises(Refused, match="sets up Hydra"):
        with_files([f"model_pair={pair}"], CONF)


PAIR = {"defaults": ["defaults/pair@_here_", "_self_"], "base": {"path": "a"}, "tuned": {"path": "b"}}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (yaml.safe_dump({**PAIR, "trust": ["os"]}), "says whom you trust"),
        (yaml.safe_dump({**PAIR, "defaults": ["/hydra/launcher@x: slurm"]}), "of the groups in conf/"),
        (yaml.safe_dump({**PAIR, "defaults": ["../../../elsewhere"]}), "of the groups in conf/"),
        (yaml.safe_dump({**PAIR, "defaults": ["//elsewhere"]}), "of the groups in conf/"),
        (yaml.safe_dump({**PAIR, "defaults": ["/text: ${oc.env:HOME}"]}), "of the groups in conf/"),
        ("# @package _global_\n" + yaml.safe_dump(PAIR), "@package"),
        (yaml.safe_dump(put(PAIR, "base._target_", "os.system")), "not trusted"),
        (yaml.safe_dump(put(PAIR, "base.path", "${oc.env:HOME}")), r"trust=\[env:HOME\]"),
        ("a: &x [1]\nb: *x\n", "aliases"),
        ("- 1\n", "no config"),
        ("a: [", "no config"),
        ("a: " + "[" * 5000, "nests deeper"),
        ("a: ${", "no config|may use"),
        ("x: '" + "y" * LARGEST + "'", "bytes"),
        ("\x00", "no config"),
    ],
)  # fmt: skip
def test_an_option_from_a_file_is_of_its_group(tmp_path, text, why):
    file = tmp_path / "pair.yaml"
    file.write_text(text)
    with pytest.raises(Refused, match=why):
        with_files([f"model_pair={file}"], CONF)
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(Refused, match="no config"):
        with_files([f"model_pair={file}"], CONF)


SENDING = {
    "evaluation.autointerp.judge.endpoint": "http://elsewhere/v1",
    "evaluation.autointerp.judge.key_variable": "AWS_SECRET_ACCESS_KEY",
    "logger.wandb.offline": False,
    "evaluation.autointerp.judge.private": True,
    "logger.csv.folder": "/srv/somebody",
    "activations.folder": "../elsewhere",
}


@pytest.mark.parametrize("key", SENDING)
def test_what_is_sent_or_written_elsewhere_is_typed_again(config, tmp_path, key):
    """A config that is run by its path can neither send a key to a stranger's address nor write over one's files; where it
    is only looked at it does neither."""
    folder = run_folder(tmp_path / "run", put(config, key, SENDING[key]))
    words = ["--config-path", str(folder), "--config-name", "config"]
    with pytest.raises(Refused, match=key):
        of_its_own(words, CONF)
    assert of_its_own([*words, f"{key}=mine"], CONF)
    assert of_its_own(["--config-path", str(run_folder(tmp_path / "own", config)), "--config-name", "config"], CONF)


def test_a_config_by_its_path_stands_for_itself(config, tmp_path):
    folder = run_folder(tmp_path / "run", put(config, "defaults", ["other"]))
    with pytest.raises(Refused, match="stands for itself"):
        of_its_own(["--config-path", str(folder), "--config-name", "config"], CONF)
    with pytest.raises(Refused, match="no such file"):
        of_its_own(["--config-path", str(folder), "--config-name", "other"], CONF)
    with pytest.raises(Refused, match="--config-name config"):
        of_its_own(["--config-path", str(folder)], CONF)
    judged = put(config, "evaluation.autointerp.judge.endpoint", "http://localhost:8000/v1")
    assert of_its_own(["--config-path", str(run_folder(tmp_path / "judged", judged)), "-cn", "config"], CONF)
    words = of_its_own(
        ["--config-path", str(run_folder(tmp_path / "own", config)), "-cn", "config", "hydra.run.dir=x"], CONF
    )
    assert words[0] == "hydra.job.chdir=false" and words[-1] == "trust=[]" and len(words) == 3


@pytest.mark.parametrize("header", ("hydra", "_group_\n# @package hydra", "_global_\n# @package hydra.job_logging"))
@pytest.mark.parametrize("group", ("experiment", "model_pair", "evaluation"))
def test_no_header_puts_a_file_into_hydra(tmp_path, group, header):
    """Hydra follows the last of several."""
    (tmp_path / "x.yaml").write_text(f"# @package {header}\n{yaml.safe_dump({'handlers': {'x': {'()': 'os.system'}}})}")
    with pytest.raises(Refused, match="@package"):
        with_files([f"{group}={tmp_path}/x.yaml"], CONF)


def test_an_experiment_from_a_file_clears_no_folder(tmp_path):
    (tmp_path / "x.yaml").write_text(
        "# @package _global_\nlogger: {csv: {_target_: tunediff.loggers.Csv, folder: data}}"
    )
    with pytest.raises(Refused, match="logger.csv.folder=data, which is written to"):
        with_files([f"experiment={tmp_path}/x.yaml"], CONF)


@pytest.mark.parametrize("flag", ("--config-path", "--config-pat", "--config-p", "-cp"))
def test_a_flag_cut_short_is_looked_behind_as_well(config, tmp_path, flag):
    """Python's parser takes the beginning of a flag for it, so Hydra does."""
    folder = run_folder(tmp_path / "run", put(config, "hydra", HYDRA[0]))
    with pytest.raises(Refused, match="sets up Hydra"):
        of_its_own([flag, str(folder), "--config-n", "config"], CONF)


def test_a_value_that_is_written_out_in_many_places_is_not_given_for_one(config, tmp_path):
    """Else a seed by --config-path would leave the dictionary's as it was, and two seeds would agree to the bit."""
    words = ["--config-path", str(run_folder(tmp_path, config)), "--config-name", "config"]
    for key in ("seed=1", "budget.latents=99"):
        with pytest.raises(Refused, match="written out wherever it is used"):
            of_its_own([*words, key], CONF)
    assert of_its_own([*words, "dictionary.seed=1", "trainer.precision=32-true"], CONF)


def test_all_variables_are_named_at_once_and_a_key_that_is_typed_reads_none(config, tmp_path):
    content = put(put(config, "text.system", "${oc.env:A}"), "text.instruction", "${oc.env:B}")
    words = ["--config-path", str(run_folder(tmp_path, content)), "--config-name", "config"]
    with pytest.raises(Refused, match=r"trust=\[env:A,env:B\]|trust=\[env:B,env:A\]"):
        of_its_own(words, CONF)
    assert of_its_own([*words, "text.system=a", "text.instruction=b"], CONF)


# -- environment variables -------------------------------------------------------------------------------------------


def test_a_variable_is_read_for_use_and_written_down_by_its_name(tmp_path, monkeypatch):
    monkeypatch.setenv("MINE", SECRET)
    monkeypatch.setenv("NUMBER", "7")
    cfg = composed("scale=smoke", "logger=csv")
    cfg.text.system, cfg.seed = "${oc.env:MINE}", "${oc.decode:${oc.env:NUMBER}}"
    cfg.text.instruction = "a ${oc.env:NOT_SET,'b c'} ${oc.env:MINE,null}"
    with within(tmp_path):
        assert (
            plain(cfg.text).get("system") == SECRET
            and cfg.seed == 7
            and plain(cfg.text)["instruction"] == f"a b c {SECRET}"
        )
        said = unresolved(cfg)
        write_config(cfg, tmp_path)
        name = identity(cfg)
    assert said["text"]["system"] == "${oc.env:MINE}" and said["seed"] == "${oc.decode:${oc.env:NUMBER}}"
    for file in tmp_path.iterdir():
        assert SECRET not in file.read_text()
    assert {*trust_of(cfg)} == {"env:MINE", "env:NOT_SET", "env:NUMBER"}
    with pytest.raises(Refused, match=r"trust=\[env:"):
        read_config(tmp_path)
    again = read_config(tmp_path, trust_of(cfg))
    with within(tmp_path):
        assert identity(again) == name and plain(again.text) == plain(cfg.text) and again.seed == 7
    monkeypatch.setenv("MINE", "another")  # another text is another study
    with within(tmp_path):
        assert identity(cfg) != name and SECRET not in identity(cfg)
    monkeypatch.setenv("MINE", SECRET)
    monkeypatch.setenv("TUNEDIFF_DATA", str(tmp_path))  # a place, whose files are read, is none
    with within(tmp_path):
        assert identity(cfg) == name


def test_a_refusal_names_the_variable_and_not_what_it_holds(monkeypatch):
    monkeypatch.setenv("MINE", SECRET)
    for key in ("optimizer.batch", "text.context", "optimizer.learning_rate", "text.hesitations", "text.rows._target_"):
        cfg = composed("scale=smoke")
        OmegaConf.update(cfg, key, "${oc.env:MINE}")
        with pytest.raises(Refused) as refused:
            check(cfg, STUDY)
        assert SECRET not in str(refused.value) and key in str(refused.value)


def test_no_name_of_a_package_in_a_file_imports_it(tmp_path, monkeypatch):
    """Python imports what stands before a dot, to look inside."""
    inside = tmp_path / "unheard_of" / "evil"
    inside.mkdir(parents=True)
    (inside / "__init__.py").write_text("raise SystemExit('ran')")
    (inside / "x").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    assert files.located("pkg://unheard_of.evil.x/toy") == str(inside / "x" / "toy")
    assert files.located("pkg://unheard_of.evil.y/toy") == "pkg://unheard_of.evil.y/toy"
    assert not [name for name in sys.modules if name.startswith("unheard_of")]
    assert Path(files.located("pkg://tunediff.toy/weights/base")).is_dir()
