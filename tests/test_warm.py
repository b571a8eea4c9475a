"""The Python of the tests is Python: what a command says, how it ends and what ends it are its own."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import hydra
import pytest
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import OmegaConf

import composing
import warm
from conftest import ROOT

SAYS = """
import json, os, signal, sys
print(json.dumps({"argv": sys.argv, "cwd": os.getcwd(), "executable": sys.executable, "path": sys.path[0], "x": os.environ.get("X")}))
print(sys.stdin.read(), file=sys.stderr)
"""


def called(*words, **options):
    return subprocess.run([warm.python(), *map(str, words)], capture_output=True, text=True, timeout=60, **options)


@pytest.fixture
def script(tmp_path):
    def written(text):
        (tmp_path / "script.py").write_text(text)
        return tmp_path / "script.py"

    return written


def test_a_command_has_its_words_its_place_its_environment_and_its_files(tmp_path, script):
    done = called(script(SAYS), "a b", "c", cwd=tmp_path, env={**os.environ, "X": "1"}, input="said")
    said = json.loads(done.stdout)
    assert said["argv"] == [str(tmp_path / "script.py"), "a b", "c"] and said["cwd"] == said["path"] == str(tmp_path)
    assert said["x"] == "1" and said["executable"] == warm.python() and done.stderr.strip() == "said"
    of_module = called("-u", "-m", "script", "d", cwd=tmp_path, input="")
    assert json.loads(of_module.stdout)["argv"][1:] == ["d"]
    assert called("-c", "import sys; print(sys.argv, __name__)", "e").stdout.strip() == "['-c', 'e'] __main__"


@pytest.mark.parametrize(
    ("text", "status", "said"),
    [
        ("pass", 0, ""),
        ("raise SystemExit(3)", 3, ""),
        ("raise SystemExit('in words')", 1, "in words"),
        ("1 / 0", 1, "ZeroDivisionError"),
        ("raise KeyboardInterrupt", -signal.SIGINT, "KeyboardInterrupt"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL, ""),
        ("import os, signal; os.kill(os.getpid(), signal.SIGTERM)", -signal.SIGTERM, ""),
        ("import atexit; atexit.register(print, 'last'); raise SystemExit(4)", 4, "last"),
    ],
)
def test_a_command_ends_as_it_would_in_a_python_of_its_own(script, text, status, said):
    mine, its_own = (
        subprocess.run([python, str(script(text))], capture_output=True, text=True)
        for python in (warm.python(), sys.executable)
    )
    assert mine.returncode == its_own.returncode == status
    assert said in mine.stdout + mine.stderr and said in its_own.stdout + its_own.stderr


def test_a_warning_that_tunediff_gives_is_an_error():
    warns = "import warnings; warnings.warn_explicit('so', UserWarning, 'file', 1, module={!r})"
    assert called("-c", warns.format("tunediff.x")).returncode == 1
    assert called("-c", warns.format("elsewhere")).returncode == 0


WAITS = """
import os, signal, time
signal.signal(signal.SIGUSR2, lambda *_: print("told", flush=True))
print(os.getpid(), flush=True)
while True:
    time.sleep(0.05)
"""


def is_alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGKILL])
def test_a_signal_reaches_the_command_and_one_that_kills_takes_it_along(script, by):
    with subprocess.Popen([warm.python(), str(script(WAITS))], stdout=subprocess.PIPE, text=True) as process:
        pid = int(process.stdout.readline())
        process.send_signal(signal.SIGUSR2)
        assert process.stdout.readline() == "told\n" and is_alive(pid)
        process.send_signal(by)
        assert process.wait(10) == -by
        begun = time.monotonic()
        while is_alive(pid):
            assert time.monotonic() - begun < 5
            time.sleep(0.01)


def test_a_command_without_an_end_is_given_up_with_its_caller(script):
    with pytest.raises(subprocess.TimeoutExpired):
        subprocess.run([warm.python(), str(script(WAITS))], stdout=subprocess.DEVNULL, timeout=2)


def test_the_mode_that_a_command_asks_of_hydra_is_the_one_it_has():
    """Left out is the reading of configs, none of which says hydra.mode."""
    configs = [*(ROOT / "conf").rglob("*.yaml"), *(ROOT / "slurm").rglob("*.yaml")]
    assert not [path for path in configs if re.search(r"^\s*mode:|hydra\.mode", path.read_text(), re.MULTILINE)]
    for word in ("RUN", "MULTIRUN"):
        with hydra.initialize_config_dir(version_base="1.3", config_dir=str(ROOT / "conf")):
            found = GlobalHydra.instance().hydra.get_mode("train", [f"hydra.mode={word}"])
        assert str(found) == f"RunMode.{word}"


def composed(folder, *words):
    """What Hydra makes of a line, or says of it."""
    try:
        with hydra.initialize_config_dir(version_base="1.3", config_dir=str(folder)):
            found = hydra.compose("train", list(words), return_hydra_config=True)
    except HydraException as refused:
        return str(refused)
    return OmegaConf.to_yaml(found), found._get_flag("struct"), found.hydra._get_flag("readonly")


@pytest.fixture
def kept():
    shelf = [*composing.shelf]
    yield
    composing.once(*shelf)


def test_a_config_that_is_composed_of_what_was_kept_is_the_one_that_hydra_composes(kept, tmp_path):
    lines = [
        ["dictionary=l1_crosscoder", "seed=3", "budget={tokens: 3}"],
        ["~l1_schedule", "hydra/launcher=slurm", "+trainer.x=3"],
        ["evaluation=[fidelity,geometry]", "layer=[1,2]", "hydra.run.dir=x", "hydra.job.env_copy=[PATH]"],
        ["dictionary=l1_crosscoder", "seed=4"],  # laid over the files of the first
        *(["layre=3"], ["++scale=toy"], ["evaluation=[fidelty]"], ["scale={tokens: 3}"]),
    ]
    composing.anew()
    plain = [composed(ROOT / "conf", *line) for line in lines]
    composing.once(str(tmp_path))
    composing.made.clear()
    assert [composed(ROOT / "conf", *line) for line in lines] == plain
    assert (
        len(list(tmp_path.iterdir())) == len(composing.made) == 4
    )  # those that are refused for a key have read the files of no choice
    composing.made.clear()  # as in another process
    assert [composed(ROOT / "conf", *line) for line in lines] == plain


def test_a_config_whose_files_changed_is_composed_anew(tmp_path):
    file = tmp_path / "train.yaml"
    for text in ("a: 1", "a: 2", "a: 345"):
        file.write_text(text)
        assert f"{text}\n" in composed(tmp_path)[0] and f"{text}\n" in composed(tmp_path)[0]
