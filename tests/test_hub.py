"""What is on the Hub is read at one commit, which is part of what a study is."""

import http.server
import itertools
import json
import sys
import threading
from pathlib import Path

import datasets
import httpx
import huggingface_hub
import pytest
import torch
from huggingface_hub import hf_api

from fake_hub import FakeHub
from test_tasks import composed
from tunediff import folders as run_folders
from tunediff import hub
from tunediff.models import AdaptedSource, ModelSource
from tunediff.models.option import node_of
from tunediff.settings import build, check, identity, material, pinned, plain
from tunediff.shapes import Refused
from tunediff.study.finetune import command_again
from tunediff.study.finished import Loaded
from tunediff.study.parts import STUDY, commits_kept, read_config, write_config
from tunediff.study.reevaluate import reevaluate
from tunediff.study.train import study
from tunediff.study.work import read_run
from tunediff.sweep.plan import commits_begun, members_in
from tunediff.text import TextError, read_hub
from tunediff.toy import language

TEXT = [
    "text=traces",
    "text.rows._target_=tunediff.text.read_hub",
    "text.rows.path=someone/rows",
    "+text.rows.revision=main",
]
PAIR = ["model_pair=local", "model_pair.base.path=someone/base", "model_pair.tuned.path=someone/tuned"]
LORA = ["model_pair=toy_lora", "model_pair.tuned.adapter=someone/adapter"]
ADAPTED = ["model_pair=adapter_vs_r1", "model_pair.tuned.transcoders=someone/transcoders"]
ADAPTED += ["model_pair.tuned.transcoders_revision=null", "model_pair.tuned.mlps.path=someone/base"]
ADAPTED += ["model_pair.tuned.mlps.revision=main"]
START = ["dictionary=transcoder_adapter", "dictionary.start=someone/transcoders"]
PROBLEMS = ["evaluation=benchmark", "task=aime24"]
RECOVERY = ["evaluation=recovery", "evaluation.recovery.full.path=someone/full"]
# what is on the Hub -> a study that reads it, by main
READ = {
    "base": PAIR,
    "tuned": PAIR,
    "adapter": LORA,
    "transcoders": ADAPTED,
    "base of MLPs": ADAPTED,
    "transcoders to start from": START,
    "full": RECOVERY,
    "rows": TEXT,
    "problems": PROBLEMS,
}
NAMES = {"base of MLPs": "someone/base", "transcoders to start from": "someone/transcoders"}
NAMES |= {"rows": "datasets/someone/rows", "problems": "datasets/HuggingFaceH4/aime_2024"}


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def rows(seed):
    """The files of a data set of traces."""
    said = ({**row, "question": row["prompt"]} for row in itertools.islice(language.rows(seed, "trace"), 200))
    keys = ("question", "thinking", "answer")
    return {"rows.jsonl": "".join(json.dumps({key: row[key] for key in keys}) + "\n" for row in said).encode()}


def another_process():
    """Forgets what was asked, as a process that starts."""
    hub._asked.cache_clear()
    hub._unanswered.clear()
    hub._silent = False


def bring(place, commits):
    """The cache as it is once files of these commits were brought."""
    for asked, commit in commits.items():
        name = asked.rpartition("@")[0]
        name = name if name.startswith("datasets/") else f"models/{name}"
        (place / "cache" / name.replace("/", "--") / "snapshots" / commit).mkdir(parents=True, exist_ok=True)
    hub.keep(commits)


@pytest.fixture
def fake(tmp_path, monkeypatch):
    fake = FakeHub()
    constants = huggingface_hub.constants
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(constants, "ENDPOINT", fake.url)
    monkeypatch.setattr(hf_api.api, "endpoint", fake.url)  # clients that were made before
    monkeypatch.setattr("transformers.utils.hub._hf_api", None, raising=False)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", fake.url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", fake.url)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "prepared")
    online(monkeypatch, True)
    another_process()
    yield fake
    fake.close()
    another_process()


def online(monkeypatch, reached):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", not reached)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", not reached)


@pytest.mark.parametrize("what", READ)
def test_a_branch_that_moved_is_another_study_and_the_same_commit_the_same(what, fake, tmp_path, monkeypatch):
    name = NAMES.get(what, f"someone/{what}")
    kind, name = ("datasets", name[9:]) if name.startswith("datasets/") else ("models", name)
    for other in ("base", "tuned"):
        fake.push("models", f"someone/{other}", {})
    first, cfg = fake.push(kind, name, {}), composed(*READ[what])
    before = identity(cfg)
    assert first in json.dumps(material(cfg)) and identity(pinned(cfg)) == before
    check(pinned(cfg), STUDY)
    fake.push(kind, name, {})
    assert identity(cfg) == before, "a process asks once"
    asked = [path for path in fake.asked if "/revision/" in path]
    assert len(asked) == len({*asked}) and all(path.endswith("/revision/main") for path in asked)
    another_process()
    moved = identity(cfg)
    assert moved != before and fake.commits[kind, name][-1][0] in json.dumps(material(cfg))
    commits = dict(pinned(cfg).commits)
    online(monkeypatch, False)
    another_process()
    requests = len(fake.asked)
    hub.keep(commits)
    assert identity(cfg) != moved, "nothing was brought, and the cache says nothing of it"
    bring(tmp_path, commits)
    another_process()
    assert identity(cfg) == moved and len(fake.asked) == requests, "the cache knows what was brought"


@pytest.mark.parametrize(
    "answer", [httpx.ReadTimeout("slow"), json.JSONDecodeError("deep", "", 0), RecursionError()], ids=repr
)
def test_a_branch_of_which_the_hub_says_nothing_is_refused_and_not_read_as_whatever_it_is(answer, fake, monkeypatch):
    def fails(*_, **__):
        raise answer

    monkeypatch.setattr(huggingface_hub.HfApi, "repo_info", fails)
    with pytest.raises(
        Refused, match="did not say which commit 'main' of someone/base is.*model_pair.base.revision=<commit>"
    ):
        pinned(composed(*PAIR))
    pinned(composed(*PAIR), dict.fromkeys(("someone/base@main", "someone/tuned@main"), "a" * 40))
    pinned(composed(*PAIR), ask=False)


@pytest.mark.timeout(30)  # seconds
def test_a_hub_that_answers_a_byte_at_a_time_is_waited_for_no_longer_than_a_whole_answer_takes(fake, monkeypatch):
    class Drips(http.server.BaseHTTPRequestHandler):
        def do_GET(self):  # noqa: N802
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()
            while not done.wait(0.05):
                self.wfile.write(b" ")

        def log_message(self, *_):
            pass

    asked, done = [], threading.Event()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Drips)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", url)
    monkeypatch.setattr(hub, "WHOLE", 0.3)
    with pytest.raises(Refused, match="The Hub did not say which commit 'main' of someone/base is"):
        pinned(composed(*PAIR))
    done.set()
    server.shutdown()
    server.server_close()
    assert len(asked) == 1, "and it is asked nothing more"


def test_a_model_of_another_commit_than_was_asked_for_is_refused(fake, monkeypatch):
    asked, given = "a" * 40, "b" * 40
    place = Path(huggingface_hub.constants.HF_HUB_CACHE) / "models--someone--base" / "snapshots" / given
    place.mkdir(parents=True)
    (place / "config.json").write_text("{}")
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *_, **__: str(place / "config.json"))
    with pytest.raises(Refused, match=f"asked for at commit {asked}, and the Hub gave {given}"):
        ModelSource("someone/base", revision=asked).config()


def test_a_hub_that_is_not_reached_is_asked_once_and_what_is_known_stays(fake, tmp_path, monkeypatch):
    cfg = composed(*PAIR, *TEXT, *PROBLEMS)
    unknown = identity(cfg)
    begun = tmp_path / "begun"
    begun.mkdir()
    write_config(pinned(cfg), begun)
    assert "main" in json.dumps(material(cfg)) and identity(composed("model_pair=r1_vs_qwen")) != unknown
    assert not [path for path in fake.asked if "Qwen" in path], "of a commit nothing is asked"
    for name in ("someone/base", "someone/tuned"):
        fake.push("models", name, {})
    another_process()
    known = identity(cfg)
    bring(tmp_path, pinned(cfg).commits)
    assert known != unknown == identity(read_config(begun)), "a run goes on as it was begun"
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    another_process()
    calls, repo_info = [], huggingface_hub.HfApi.repo_info
    monkeypatch.setattr(
        huggingface_hub.HfApi, "repo_info", lambda *args, **named: (calls.append(args[1]), repo_info(*args, **named))[1]
    )
    assert identity(cfg) == known and len(calls) == 1
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "another"))
    another_process()
    assert identity(cfg) == unknown


def test_what_is_here_or_given_by_files_is_asked_of_nobody(fake, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "someone" / "base").mkdir(parents=True)
    (tmp_path / "problems.jsonl").write_text("{}")
    given = composed(*PAIR, "model_pair.tuned.path=someone/base", *PROBLEMS, "task.aime24.file=problems.jsonl")
    before = material(given)
    assert pinned(given).commits == {} and not fake.asked
    assert "'main'" in str(before["evaluation"]) and before["model_pair"]["base"]["revision"] is None


def test_a_config_says_of_its_commits_what_it_reads_and_no_more(fake):
    first = fake.push("models", "someone/base", {})
    cfg = pinned(composed(*PAIR, "model_pair.tuned.path=someone/base"))
    assert cfg.commits == {"someone/base@main": first} and pinned(cfg) == cfg
    cfg.model_pair.base.path = cfg.model_pair.tuned.path = "pkg://tunediff.toy/weights/base"
    cfg.model_pair.base.revision = cfg.model_pair.tuned.revision = None
    assert pinned(cfg).commits == {}
    cfg.commits = {"someone/base@main": "../../x"}
    with pytest.raises(Refused, match="commits="):
        check(cfg, STUDY)


def test_a_name_that_leads_out_of_the_cache_is_none(fake, tmp_path):
    for name, revision in (("someone/base", "../../out"), ("../someone", "main"), ("a/b/c", "main"), ("/etc", "main")):
        node = {"_target_": "tunediff.models.ModelSource", "path": name, "revision": revision}
        assert hub.pin({**node}, node, {}) == {} and not fake.asked


def test_models_and_rows_are_read_at_the_commit_of_the_identity(fake, folders, monkeypatch):
    commits = [fake.push("models", "someone/base", files(folders["base"]))]
    commits += [fake.push("datasets", "someone/rows", rows(0))]
    cfg = pinned(composed(*PAIR, "model_pair.tuned.path=someone/base", *TEXT))
    fake.push("models", "someone/base", files(folders["tuned"]))
    fake.push("datasets", "someone/rows", rows(1))
    for reached in (True, False):
        online(monkeypatch, reached)
        weights = build(cfg.model_pair.base, dtype="float32").weights()
        assert torch.equal(
            weights.lm_head.weight, ModelSource(str(folders["base"]), dtype="float32").weights().lm_head.weight
        )
        online(monkeypatch, True)
    read = build(cfg.text.rows)
    assert [*read()] == [json.loads(line) for line in rows(0)["rows.jsonl"].splitlines()]
    assert {*cfg.commits.values()} == {*commits}
    assert len([*build(cfg.text.rows, streaming=False)()]) == 200
    online(monkeypatch, False)
    assert len([*build(cfg.text.rows, streaming=False)()]) == 200
    with pytest.raises(TextError, match=f"'someone/rows' is here at commit {commits[1]}, and not at {'1' * 40}"):
        next(iter(read_hub("someone/rows", revision="1" * 40)))


class Seen(Exception):
    """What was to be seen, and no more is to be done."""


def see(what):
    raise Seen(what)


def test_adapters_and_transcoders_are_brought_at_the_revision_that_is_named_and_written_down_by_it(fake, folders):
    """Files that say nothing: which ones are brought is the question."""
    lora = {name: b"{}" for name in ("adapter_config.json", "adapter_model.safetensors")}
    kinds = {"adapter": lora, "transcoders": {"config.json": b'{"streams": []}'}}
    first = {name: fake.push("models", f"someone/{name}", content) for name, content in kinds.items()}
    for name, content in kinds.items():
        fake.push("models", f"someone/{name}", content)
    with_lora = ModelSource("x", adapter="someone/adapter", adapter_revision=first["adapter"])
    assert with_lora._adapter().name == first["adapter"]
    mlps = ModelSource("x")
    beside = AdaptedSource(
        "x", mlps=mlps, transcoders="someone/transcoders", transcoders_revision=first["transcoders"]
    ).beside
    assert beside.commit == first["transcoders"]
    at = fake.push("models", "someone/base", files(folders["base"]))
    assert node_of(ModelSource("someone/base", revision="main"))["revision"] == at


def test_a_run_goes_on_at_its_commits_whatever_became_of_the_branches(fake, folders, tmp_path, monkeypatch):
    for role in ("base", "tuned"):
        fake.push("models", f"someone/{role}", files(folders[role]))
    fake.push("datasets", "someone/rows", rows(0))
    fake.push("datasets", "HuggingFaceH4/aime_2024", {})
    words = [
        *PAIR,
        *TEXT,
        "text.context=64",
        "text.held_out=0.2",
        "scale=smoke",
        "trainer=cpu",
        "layer=1",
    ]
    words += ["dictionary.latents=16", "evaluation=geometry", "budget.tokens=512", "budget.evaluation_tokens=256"]
    words += ["optimizer.batch=128", "activations.buffer=256", "activations.fit_tokens=256"]
    cfg, folder = composed(*words), tmp_path / "run"
    study(cfg, folder)
    first, commits = (
        run_folders.state_of(folder)["identity"],
        {key: at for key, at in plain(Loaded(folder).cfg.commits).items()},
    )
    assert {*commits} == {"someone/base@main", "someone/tuned@main", "datasets/someone/rows@main"}
    assert (
        run_folders.findings_of(folder)["commits"]
        == commits
        == run_folders.read_json(folder / "identity.json")["commits"]
    )
    assert all(commit in (folder / "report.html").read_text() for commit in commits.values())
    for role in ("tuned", "base"):
        fake.push("models", f"someone/{role}", files(folders[role]))
    fake.push("datasets", "someone/rows", rows(1))
    another_process()
    asked = [path for path in fake.asked if path.endswith("/revision/main")]
    assert read_run(folder).identity == first
    full = "evaluation.recovery.full.path=someone/base"
    with monkeypatch.context() as patched, pytest.raises(Seen) as seen:
        patched.setattr("tunediff.study.reevaluate.evaluations_of", lambda given, **_: see(given))
        reevaluate(composed(f"run={folder}", "evaluation=[recovery]", full, "trainer=cpu", name="evaluate"))
    (given,) = seen.value.args
    assert given.recovery.full.revision == commits["someone/base@main"], "what the study read is read again"
    reevaluate(composed(f"run={folder}", "evaluation=[layer_divergence]", "trainer=cpu", name="evaluate"))
    assert Loaded(folder).pair.sources["base"].commit == commits["someone/base@main"]
    assert [path for path in fake.asked if path.endswith("/revision/main")] == asked
    # typed again it is another run; one that was interrupted is the same
    with pytest.raises(
        Refused, match="another study, which is finished, with other model_pair.base.revision, model_pair"
    ):
        study(cfg, folder)
    assert commits_kept(folder, saved=True) == {}
    run_folders.say(folder, state=run_folders.INTERRUPTED)
    another_process()
    assert commits_kept(folder, saved=False) == commits and commits_begun(tmp_path) == commits
    [member] = members_in(tmp_path, [([], cfg)], commits=commits_begun(tmp_path))
    assert member.run.identity == first
    run_folders.say(folder, state=run_folders.FAILED)
    assert commits_begun(tmp_path) == {} != commits_kept(folder, saved=True)


def test_the_processes_of_a_fine_tune_are_given_its_commits(fake, tmp_path, monkeypatch):
    commit = fake.push("models", "someone/base", {})
    given = ["model=local", "model.path=someone/base", "text=s1k", "~text.rows.revision"]
    typed = composed(*given, name="finetune")
    rows = fake.push("datasets", "simplescaling/s1K-1.1", {})
    monkeypatch.setattr(sys, "argv", ["finetune.py", "model.revision=main"])
    words, before = command_again(typed, pinned(typed), tmp_path)[1:-1], identity(typed)
    assert words[1:] == [f"model.revision='{commit}'", f"+text.rows.revision='{rows}'"]
    fake.push("models", "someone/base", {})
    another_process()
    assert identity(composed(*given, *words, name="finetune")) == before != identity(typed)
