"""A Python that starts at once: each command is a process of its own, forked from one that has imported everything, so that
what starting Python costs is paid once for all of them, and for the processes that they start.

What Python decides when it starts is the same in all of them: the secret of `hash`, and what the environment says to Python
and to what is imported. That nothing hangs on it is a law for COLD, a Python of its own.

As a script it is the server of these forks, or the process that stands for one: that has the command's standard files,
passes signals on, ends as the command does, and takes it along when it is killed.
"""

import atexit
import json
import os
import signal
import socket
import sys

PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
COLD = sys.executable
SHARED = "TUNEDIFF_TESTS_PYTHON"  # the path that another process was given, which lives as long as this one
warm: list[str] = []


def fsync(file: int) -> None:
    """In place of os.fsync: no test loses power, and a disk takes longer than most of what is tested."""


def python() -> str:
    """Path of an executable that takes `[-u] <script> ...`, `[-u] -m <module> ...` and `-c <code> ...` as Python does, but for
    warnings that tunediff gives, which are errors; what else it is asked Python itself answers. It works as long as this
    process lives."""
    if SHARED in os.environ:
        return os.environ[SHARED]
    if not warm:
        import shlex
        import shutil
        import subprocess
        import tempfile

        folder = tempfile.mkdtemp(prefix="warm")
        executable, address = (os.path.join(folder, name) for name in ("python", "socket"))
        with open(executable, "w", encoding="utf-8") as file:
            file.write(f'#!/bin/sh\nexec {shlex.join([COLD, "-IS", __file__, "ask", address])} "$@"\n')
        os.chmod(executable, 0o755)
        with socket.socket(socket.AF_UNIX) as door:
            door.bind(address)
            door.listen(64)
            server = [COLD, __file__, "serve", executable, str(door.fileno())]
            process = subprocess.Popen(server, stdin=subprocess.PIPE, pass_fds=[door.fileno()], start_new_session=True)
        atexit.register(shutil.rmtree, folder)
        atexit.register(process.communicate)  # its input ends, and with it the server
        warm.append(executable)
    return warm[0]


def ask(address: str, *words: str) -> None:
    """Never returns: what becomes of the command becomes of this process."""
    rest = words[1:] if words[:1] == ("-u",) else words
    if not rest or (rest[0].startswith("-") and rest[0] not in ("-m", "-c")):
        os.execv(COLD, [COLD, *words])
    command = {"words": rest, "cwd": os.getcwd(), "env": dict(os.environ), "unbuffered": words[0] == "-u"}
    asked = json.dumps(command).encode()
    server = socket.socket(socket.AF_UNIX)
    server.connect(address)
    for number in PASSED_ON:
        signal.signal(number, lambda number, _: server.send(bytes([number])))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, PASSED_ON)  # whoever started it may hold one back
    socket.send_fds(server, [len(asked).to_bytes(8, "big")], [0, 1, 2])
    server.sendall(asked)
    end(int(server.recv(16) or 1))


def end(status: int) -> None:
    """Never returns: this process ends with the status, or by the signal that a negative one stands for."""
    if status < 0:
        if -status in PASSED_ON:
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    os._exit(status % 256)


def serve(executable: str, door: str) -> None:
    """Forks for whoever asks, until standard input ends."""
    import collections
    import gc
    import itertools
    import select
    import warnings

    import hydra
    import pandas  # noqa: F401  # pyarrow imports these two late
    import pyarrow.dataset  # noqa: F401
    import submitit.core.submission  # noqa: F401
    import torch.distributed.run  # noqa: F401
    import transformers.models.qwen2.modeling_qwen2  # noqa: F401

    import composing
    import tunediff.models
    import tunediff.settings
    import tunediff.study.finetune
    import tunediff.study.parts
    import tunediff.sweep.launch
    import tunediff.sweep.local
    import tunediff.sweep.slurm  # noqa: F401

    # what is made once and kept: Hydra's plugins and grammar, types of settings, rows of the toy, and transformers' table of
    # checkpoint formats
    conf = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "conf")
    composing.once(os.path.dirname(executable))
    with hydra.initialize_config_dir(version_base="1.3", config_dir=conf):
        hydra.compose("train", ["seed=1"], return_hydra_config=True)
        whole = hydra.compose("train")
    tunediff.settings.check(whole, tunediff.study.parts.STUDY)
    collections.deque(itertools.islice(hydra.utils.instantiate(whole.text.rows)(), 1500), maxlen=0)
    tunediff.models.ModelSource("pkg://tunediff.toy/weights/base").weights()
    gc.collect()
    gc.freeze()
    warnings.filterwarnings("error", category=UserWarning, module="tunediff")
    os.fsync = fsync
    sys.executable = executable
    listening = socket.socket(fileno=int(door))
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while 0 not in select.select([0, listening], [], [])[0]:
        asker, _ = listening.accept()
        if os.fork() == 0:
            listening.close()
            keep(asker)
        asker.close()


def keep(asker: socket.socket) -> None:
    """Forks once more, for the command, and stands between it and who asked. Never returns."""
    import select

    length, files, _, _ = socket.recv_fds(asker, 8, 3)
    asked = b""
    while len(asked) < int.from_bytes(length, "big"):
        asked += asker.recv(1 << 16) or os._exit(1)
    ended, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake)
    if (command := os.fork()) == 0:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for number, file in enumerate(files):
            os.dup2(file, number)
        asker.close()
        os.closerange(3, max(*files, ended, wake) + 1)
        obey(**json.loads(asked))
    for file in files:
        os.close(file)
    while not (done := os.waitpid(command, os.WNOHANG))[0]:
        ready = select.select([0, asker, ended], [], [])[0]
        signals = asker.recv(16) if asker in ready else None
        for number in signals or ():
            os.kill(command, number)
        if signals == b"" or 0 in ready:
            os.kill(command, signal.SIGKILL)
            done = os.waitpid(command, 0)
            break
    try:
        asker.sendall(str(os.waitstatus_to_exitcode(done[1])).encode())
    finally:
        os._exit(0)


def obey(words: list[str], cwd: str, env: dict[str, str], unbuffered: bool) -> None:
    """Runs the command in this process. Never returns."""
    import runpy
    import threading

    import numpy

    numpy.random.seed()
    os.setsid()
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    sys.stdin = os.fdopen(0)
    if unbuffered:
        sys.stdout.reconfigure(write_through=True)
    option = words[0] if words[0] in ("-m", "-c") else ""
    sys.argv = ["-c", *words[2:]] if option == "-c" else words[1:] if option else words
    sys.path[0] = cwd if option else os.path.dirname(os.path.abspath(words[0]))
    sys.path[1:1] = [place for place in env.get("PYTHONPATH", "").split(os.pathsep) if place not in ("", *sys.path)]
    status = 0
    try:
        if option == "-m":
            sys.modules.pop(words[1], None)  # as it is before it is run
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        elif option == "-c":
            exec(words[1], {"__name__": "__main__"})
        else:
            runpy.run_path(words[0], run_name="__main__")
    except SystemExit as left:
        status = left.code if isinstance(left.code, int) else int(left.code is not None)
        if isinstance(left.code, str):
            print(left.code, file=sys.stderr)
    except BaseException as error:
        sys.excepthook(*sys.exc_info())
        status = -signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    end(status)


if __name__ == "__main__":
    {"ask": ask, "serve": serve}[sys.argv[1]](*sys.argv[2:])
