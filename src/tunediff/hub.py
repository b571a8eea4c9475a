"""Names of models and data sets on the Hugging Face Hub, in settings -> the commits that they stand for.

A branch such as main moves. Which commit it stands for is asked of the Hub, once for each name in a process; where it cannot
be reached, or is not to be, it is what the cache of this machine knows of it. From there on a study reads that commit, which
stands in its settings in the place of the branch, and so in its identity and its config.yaml; `commits` there says what was
typed. Knows no torch, and imports huggingface_hub only where there is such a name.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import re
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tunediff.files import located, opened
from tunediff.shapes import Refused

MODEL, DATASET = "model", "dataset"  # kinds of repositories, as the Hub calls them
# settings that may be a name on the Hub -> the setting beside it that says at which revision
REVISIONS = {
    "path": "revision",
    "adapter": "adapter_revision",
    "transcoders": "transcoders_revision",
    "start": "start_revision",
}
READERS = {"read_hub": DATASET, "ModelSource": MODEL, "AdaptedSource": MODEL, "TranscoderAdapter": MODEL}
NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
REVISION = re.compile(r"(?!.*\.\.)[\w-][\w.+-]*(/[\w.+-]+)*")  # which is also the name of a file below refs/
COMMIT = re.compile(r"[0-9a-f]{40}")
SECONDS = 5.0  # that the next bytes of an answer of the Hub are waited for
WHOLE = 30.0  # that a whole answer is, which may come a byte at a time

log = logging.getLogger(__name__)


class Named(NamedTuple):
    """A name on the Hub at a place in settings. `key` is the setting of the node there that says at which revision."""

    node: tuple[str | int, ...]
    setting: str
    key: str
    kind: str
    name: str
    revision: str

    @property
    def where(self) -> str:
        """The setting that says at which revision, such as model.revision."""
        return ".".join(map(str, (*self.node, self.key)))


def pin(written: Any, meant: Any, known: Mapping[str, Any], *, ask: bool = True) -> dict[str, str]:
    """Puts the commits of all names on the Hub into settings as they are written down; `meant` is what the same settings stand
    for. Returns them by the names, as name@revision and datasets/name@revision. What is not in `known` is asked for, or stays
    as it is, as does a name that nobody knows."""
    found: dict[str, str] = {}
    for one in list(_named(meant)):
        node = functools.reduce(lambda inside, key: inside[key], one.node, written)
        name = f"{'datasets/' * (one.kind == DATASET)}{node[one.setting]}@{one.revision}"
        commit = known.get(name)
        if not is_commit(commit):
            commit = commit_of(one.kind, one.name, one.revision) if ask else None
        if commit is not None:
            node[one.key] = found[name] = commit
    return found


def places(settings: Any) -> list[str]:
    """The settings that say at which revision what is on the Hub is read, such as model.revision, where it is no commit."""
    return [one.where for one in _named(settings)]


def is_commit(revision: Any) -> bool:
    return isinstance(revision, str) and bool(COMMIT.fullmatch(revision))


def _named(settings: Any, place: tuple[str | int, ...] = ()) -> Iterator[Named]:
    """The names on the Hub in settings that do not say a commit already."""
    if isinstance(settings, list):
        for n, value in enumerate(settings):
            yield from _named(value, (*place, n))
    if not isinstance(settings, Mapping):
        return
    kind = READERS.get(str(settings.get("_target_")).rpartition(".")[2])
    for setting, key in REVISIONS.items():
        name, revision = settings.get(setting), settings.get(key)
        revision = "main" if revision is None else revision
        if not isinstance(name, str) or not isinstance(revision, str) or not (kind or key in settings):
            continue
        if is_name(name) and REVISION.fullmatch(revision) and not is_commit(revision):
            yield Named(place, setting, key, kind or MODEL, name, revision)
    for key, value in settings.items():
        if key != "rows" or not settings.get("file"):  # which a task reads in their place
            yield from _named(value, (*place, key))


def is_name(name: str) -> bool:
    """True for what may be a name on the Hub, and is neither a file nor a folder here."""
    return bool(NAME.fullmatch(name)) and not os.path.exists(located(name))


def commit_of(kind: str, name: str, revision: str) -> str | None:
    """The commit that a revision of a model or data set stands for now; None where neither the Hub nor the cache says."""
    from huggingface_hub import constants

    home = _home(kind, name)
    place = home / "refs" / revision
    commit = None if constants.HF_HUB_OFFLINE else _asked(kind, name, revision)
    try:
        with opened(place) as file:
            before = file.read(100).decode().strip()
    except (OSError, ValueError, Refused):
        before = ""
    if commit is None:
        return before if is_commit(before) else None
    if before != commit and (home / "snapshots" / commit).is_dir():  # whose files are here: else none would be found
        _keep(place, commit)
    return commit


def keep(commits: Mapping[str, str]) -> None:
    """Writes down in the cache what the names of `pin` stand for, once their files were brought: without a network the same
    names are read again."""
    for asked, commit in commits.items():
        name, _, revision = asked.rpartition("@")
        kind = DATASET if name.startswith("datasets/") else MODEL
        name = name.removeprefix("datasets/")
        if is_name(name) and REVISION.fullmatch(revision) and is_commit(commit):
            home = _home(kind, name)
            if (home / "snapshots" / commit).is_dir():
                _keep(home / "refs" / revision, commit)


def refuse_unanswered(settings: Any) -> None:
    """Raises Refused for a branch on the Hub of which neither the Hub, which did not answer, nor the cache says what it stands
    for: it may answer a moment later, and what is read then would be of no commit that is known."""
    for one in _named(settings):
        if (one.kind, one.name, one.revision) not in _unanswered:
            continue
        raise Refused(
            f"The Hub did not say which commit '{one.revision}' of {one.name} is, and the cache does not know it: type the same line "
            f"once the Hub can be reached, give {one.where}=<commit>, or name a local folder."
        )


def _home(kind: str, name: str) -> Path:
    """The folder of a model or data set in the cache of this machine."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    return Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=name, repo_type=kind)


_silent = False  # the Hub did not answer, and nothing more is asked of it
_unanswered: set[tuple[str, str, str]] = set()  # names of which it did not say what they are, and may a moment later
UNREACHED = ("OSError", "TransportError", "RequestException")  # of Python and of the libraries of HTTP
LATER = (408, 429)  # of HTTP: too slow, and too often


@functools.cache
def _asked(kind: str, name: str, revision: str) -> str | None:
    """The Hub's answer, with the token of this machine where it has one; None where there is none."""
    global _silent
    if _silent:
        _unanswered.add((kind, name, revision))
        return None
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError

    try:
        ask = functools.partial(HfApi().repo_info, name, repo_type=kind, revision=revision, timeout=SECONDS)
        commit = _within(WHOLE, ask).sha
    except Exception as error:  # of several libraries; what is wrong is said where the files are brought
        status = getattr(getattr(error, "response", None), "status_code", None)
        _silent = status is None and any(kind.__name__ in UNREACHED for kind in type(error).__mro__)
        if isinstance(error, HFValidationError) or (status is not None and status < 500 and status not in LATER):
            return None  # there is no such name, or none for this machine
        log.debug("the Hub does not say what %s at %s is: %s", name, revision, type(error).__name__)
        commit = None
    if not is_commit(commit):
        _unanswered.add((kind, name, revision))
    return commit if is_commit(commit) else None


def _within(seconds: float, ask: Callable[[], Any]) -> Any:
    """The answer to a question, asked in a thread that is left behind where it takes longer. Raises TimeoutError, and whatever
    the question raises."""
    said: list[Any] = []

    def asks() -> None:
        try:
            said.append((ask(), None))
        except BaseException as error:
            said.append((None, error))

    thread = threading.Thread(target=asks, daemon=True)
    thread.start()
    thread.join(seconds)
    if not said:
        raise TimeoutError(f"no whole answer in {seconds:g} seconds")
    answer, error = said[0]
    if error is not None:
        raise error
    return answer


def _keep(place: Path, commit: str) -> None:
    """Writes down in the cache what a revision stands for, as huggingface_hub does for a file that it brings by the name."""
    left = place.with_name(f"{place.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        left.write_text(commit, encoding="utf-8")
        os.replace(left, place)
    except OSError:  # read-only or full: asked again next time
        with contextlib.suppress(OSError):
            left.unlink()
