"""Commands as a user types them, each in a process of its own that is forked from one which has imported everything: what
starting Python costs is paid once for all of them.

As a script it waits for commands, one JSON object a line, and answers each with its exit status.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import runpy
import select
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from pathlib import Path
from typing import NamedTuple


class Done(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


class Warm:
    """`python <words>` in a fork; raises TimeoutError for one that takes longer, which is killed with all it started."""

    def __init__(self, *flags: str):
        command = [sys.executable, *flags, str(Path(__file__).resolve())]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
        atexit.register(self.close)

    def run(self, words: list[str], *, cwd: Path, env: dict[str, str], seconds: float) -> Done:
        with tempfile.TemporaryDirectory() as folder:
            out, err = (os.path.join(folder, name) for name in ("out", "err"))
            asked = {"words": words, "cwd": str(cwd), "env": env, "out": out, "err": err}
            self.process.stdin.write(json.dumps(asked).encode() + b"\n")
            self.process.stdin.flush()
            ready, _, _ = select.select([self.process.stdout], [], [], seconds)
            if not ready:
                self.close()
                raise TimeoutError(f"{words} took longer than {seconds} s")
            status = int(self.process.stdout.readline())
            return Done(status, *(Path(name).read_text(encoding="utf-8", errors="replace") for name in (out, err)))

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


def wait_for_commands() -> None:
    import pandas  # noqa: F401  # pyarrow imports these two late
    import pyarrow.dataset  # noqa: F401

    import tunediff.sweep.launch
    import tunediff.sweep.local
    import tunediff.sweep.slurm  # noqa: F401

    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            obey(**json.loads(line))
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def obey(words: list[str], cwd: str, env: dict[str, str], out: str, err: str) -> None:
    """Never returns: this is the child."""
    for name, number in ((os.devnull, 0), (out, 1), (err, 2)):
        file = os.open(name, os.O_RDWR | os.O_CREAT, 0o600)
        os.dup2(file, number)
    sys.stdin = os.fdopen(0)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    sys.argv, status = words, 0
    sys.path[0] = str(Path(words[0]).resolve().parent)
    sys.path[1:1] = [place for place in env.get("PYTHONPATH", "").split(os.pathsep) if place not in ("", *sys.path)]
    try:
        runpy.run_path(words[0], run_name="__main__")
    except SystemExit as left:
        status = left.code if isinstance(left.code, int) else int(left.code is not None)
        if isinstance(left.code, str):
            print(left.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        status = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    wait_for_commands()
