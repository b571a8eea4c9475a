"""Tiny made-up models and texts that the laws are stated on."""

import gc
import os
import sys

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers looks: no test waits for a network
# bits are compared across processes, and the order of a sum depends on the number of threads
os.environ.setdefault("OMP_NUM_THREADS", "1")

from pathlib import Path

import pytest

import warm

os.fsync = warm.fsync

ROOT = Path(__file__).resolve().parent.parent
LONG = ("test_slurm", "test_sweep", "test_study", "test_notebooks", "test_finetune")


def pytest_configure(config):
    """One Python for the commands of all workers. What is imported takes long to import: not here, where the process that
    only hands out the tests would wait for it too."""
    if config.getoption("dist", "no") != "no" and not hasattr(config, "workerinput"):
        os.environ[warm.SHARED] = warm.python()


def pytest_collection_finish():
    """What was imported stays: from here on no collection of garbage looks through it."""
    import composing

    composing.once(os.path.dirname(os.environ[warm.SHARED]) if warm.SHARED in os.environ else None)
    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(items):
    """Long tests come first, so that no worker is left with one of them while the others have nothing to do."""
    items.sort(key=lambda item: item.path.stem not in LONG)


@pytest.fixture(autouse=True)
def process_as_it_was():
    """A test leaves the process as it found it: what it set would be there for all that come after."""
    import torch

    def settings():
        numbers = torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled()
        return *numbers, torch.are_deterministic_algorithms_enabled(), os.getcwd()

    def places():
        """The hookpoints that are known, to which a config may add rows of its own."""
        known = sys.modules.get("tunediff.hookpoints")
        return None if known is None else known.HOOKPOINTS

    before, there = settings(), dict(places() or {})
    yield
    if (commands := sys.modules.get("tunediff.settings.command_line")) is not None:
        commands._began = False  # each command has a process of its own
    assert settings() == before
    if there and places() != there:
        places().clear()
        places().update(there)


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """Real benchmarks and traces, where they are at hand: TUNEDIFF_DATA, or ../shared/data beside the checkout."""
    folder = Path(os.environ.get("TUNEDIFF_DATA", ROOT.parent / "shared" / "data"))
    if not (folder / "reasoning_traces" / "traces.jsonl.gz").exists():
        pytest.skip(f"no reasoning traces under {folder}; TUNEDIFF_DATA names the folder")
    return folder


def logits_of(pair, role: str, batch):
    """Logits [batch, position, vocabulary] in float32 as the model gives them itself, whole."""
    import torch

    with torch.no_grad():
        return pair.models[role](**pair.inputs(role, batch), use_cache=False).logits.float()


def save_model(folder: Path, tokenizer, *, seed: int, width: int = 32, layers: int = 3) -> Path:
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        eos_token_id=tokenizer.eos_token_id,
    )
    Qwen2ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_stand_in(folder: Path) -> Path:
    """Weights of zeros for a folder with a config.json, whatever its size: a file with holes, which takes no disk."""
    import json
    import math

    import transformers

    from tunediff.models import skeleton

    header, end = {}, 0
    for name, value in skeleton(transformers.AutoConfig.from_pretrained(folder)).named_parameters():
        start, end = end, end + 2 * math.prod(value.shape)
        header[name] = {"dtype": "BF16", "shape": list(value.shape), "data_offsets": [start, end]}
    content = json.dumps(header).encode()
    content += b" " * (-len(content) % 8)
    with open(folder / "model.safetensors", "wb") as file:
        file.write(len(content).to_bytes(8, "little") + content)
        file.truncate(8 + len(content) + end)
    return folder


@pytest.fixture(scope="session")
def tokenizer():
    from tunediff.toy import language
    from tunediff.toy.tokenizer import build_tokenizer

    rows = (row for kind in language.KINDS for _, row in zip(range(200), language.rows(0, kind), strict=False))
    return build_tokenizer(
        "\n".join(row[f] for f in ("text", "prompt", "thinking", "answer") if f in row) for row in rows
    )


@pytest.fixture(scope="session")
def folders(tmp_path_factory, tokenizer) -> dict[str, Path]:
    """Model folders: base and tuned of one shape, wide and deep of others."""
    place = tmp_path_factory.mktemp("models")
    return {
        "base": save_model(place / "base", tokenizer, seed=0),
        "tuned": save_model(place / "tuned", tokenizer, seed=1),
        "wide": save_model(place / "wide", tokenizer, seed=2, width=48, layers=4),
    }


@pytest.fixture
def server(monkeypatch):
    """A language model's endpoint; nothing waits before it asks again."""
    from fake_endpoint import Endpoint
    from tunediff.evaluations.judging import chat

    monkeypatch.setattr(chat, "PAUSE", 0.01)
    monkeypatch.setenv("no_proxy", "*")
    made = Endpoint()
    yield made
    made.close()


@pytest.fixture
def pair(folders):
    from tunediff.models import ModelPair, ModelSource

    sources = (ModelSource(str(folders[role]), dtype="float32") for role in ("base", "tuned"))
    return ModelPair(*sources).load()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """A real one, for the pages of a test file."""
    from browser import Browser

    started = Browser(tmp_path_factory.mktemp("browser"))
    yield started
    started.close()
