"""No file that a run leaves holds a secret, after every kind of run."""

import base64
import json
import urllib.parse

import pytest

from conftest import ROOT
from test_finetune import TINY
from test_study import SMALL, TWO_STEPS, call

SECRETS = {
    "MY_PASSWORD": "pass-word/of+a.database=0451",
    "JUDGE_KEY": "sk-judge-9f8e7d6c5b4a39281706",
    "WANDB_API_KEY": "0123456789abcdef0123456789abcdef01234567",
    "HF_TOKEN": "hf_" + "no-token-" * 3,
}
ROWS = '''
"""Rows of a made-up database, which wants a password."""
import os

from tunediff.toy import language


def rows(password, **settings):
    assert password == os.environ["MY_PASSWORD"]
    yield from (language.rows if "kind" in settings else language.mixture)(**settings)
'''
OURS = ["trust=[database]", "text.rows._target_=database.rows", "+text.rows.password=${oc.env:MY_PASSWORD}"]


def forms(secret):
    """The ways in which a secret may stand in a file."""
    yield from (secret, json.dumps(secret)[1:-1], urllib.parse.quote(secret, safe=""), secret.replace("/", "\\/"))
    yield base64.b64encode(secret.encode()).decode().rstrip("=")[:-2]


def leaked(folder):
    found = []
    for path in folder.rglob("*"):
        if path.is_file() and path.name != "database.py":
            raw = path.read_bytes()
            found += [
                f"{name} in {path}"
                for name, secret in SECRETS.items()
                for form in forms(secret)
                if form.encode() in raw
            ]
    return found


@pytest.fixture
def outside(tmp_path):
    (tmp_path / "database.py").write_text(ROWS)
    return {"PYTHONPATH": str(tmp_path), **SECRETS}


def test_a_secret_that_is_there_is_found(tmp_path):
    """The law below could fail."""
    (tmp_path / "x.bin").write_bytes(b"\0" + json.dumps(SECRETS["MY_PASSWORD"]).encode())
    assert leaked(tmp_path)


def test_no_study_leaves_a_secret_and_no_judge_gets_one_written(tmp_path, outside, server):
    folder = tmp_path / "run"
    judge = [
        "evaluation=latent_classes",
        f"evaluation.latent_classes.judge.endpoint={server.endpoint}",
        "evaluation.latent_classes.judge.model=m",
    ]
    judge += [
        "evaluation.latent_classes.judge.key_variable=JUDGE_KEY",
        "evaluation.latent_classes.latents=20",
        "evaluation.latent_classes.each_layer=3",
    ]
    judge += ["evaluation.latent_classes.judge.examples=4"]
    rule = server.rule
    server.rule = lambda asked: f"{rule(asked)} Authorization: Bearer {SECRETS['JUDGE_KEY']}"
    loggers = ["logger=[csv,wandb,tensorboard]"]
    call(ROOT / "train.py", *SMALL, *OURS, *judge, *loggers, f"hydra.run.dir={folder}", cwd=tmp_path, **outside)
    assert any(headers.get("Authorization", "").endswith(SECRETS["JUDGE_KEY"]) for _, headers, _ in server.asked)
    assert (folder / "wandb").is_dir() and (folder / "csv").is_dir()
    assert not leaked(tmp_path)
    # the config says by what name it is read, and whoever opens the folder lets it
    assert "${oc.env:MY_PASSWORD}" in (folder / "config.yaml").read_text()
    trust = "trust=[database,env:MY_PASSWORD]"
    assert "env:MY_PASSWORD" in call(
        ROOT / "evaluate.py", f"run={folder}", "trust=[database]", cwd=tmp_path, good=False, **outside
    )
    call(ROOT / "evaluate.py", f"run={folder}", "evaluation=geometry", trust, "trainer=cpu", cwd=tmp_path, **outside)
    assert not leaked(tmp_path)


def test_no_sweep_and_no_fine_tune_leaves_a_secret(tmp_path, outside):
    words = [*SMALL, *TWO_STEPS, *OURS, "evaluation=none", "sweep=s"]
    call(ROOT / "train.py", "-m", *words, "seed=0,1", "logger=csv", cwd=tmp_path, **outside)
    call(ROOT / "finetune.py", *TINY, *OURS, f"hydra.run.dir={tmp_path / 'tuned'}", cwd=tmp_path, **outside)
    call(
        ROOT / "train.py",
        *words,
        "text.context=1",
        f"hydra.run.dir={tmp_path / 'refused'}",
        cwd=tmp_path,
        good=False,
        **outside,
    )
    assert len(list(tmp_path.rglob("state.json"))) == 3
    assert not leaked(tmp_path)
