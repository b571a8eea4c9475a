"""A stranger's configs, put together at random: python bench/campaigns/configs.py --count 300

A run folder whose config.yaml names what runs code, writes elsewhere, reads a secret or blows up, at a random key and
depth, is opened in each way a folder is opened. Nothing may be started, called or written outside.
"""

from __future__ import annotations

import copy
import random
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import hydra
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import tunediff
from campaigns.told import Watch, main, outcome
from tunediff import randomness
from tunediff.settings import of_its_own, with_files, within
from tunediff.study.parts import write_config

ROOT = Path(__file__).resolve().parent.parent.parent
CONF = ROOT / "conf"
CALLS = (
    "os.system os.popen subprocess.run subprocess.Popen builtins.eval builtins.exec torch.load torch.hub.load pickle.loads "
    "torch.utils.collect_env.run torch.utils.cpp_extension.load torch.utils.cpp_extension.load_inline runpy.run_path "
    "importlib.import_module shutil.rmtree shutil.copy pathlib.Path.write_text tunediff.processes.start tunediff.load "
    "tunediff.folders.write_atomically tunediff.folders.clear tunediff.models.save_adapted tunediff.dictionary.save_dictionary "
    "tunediff.study.work.work tunediff.text.rows.gzip.open tunediff.settings.checked.os.system lightning.Trainer.fit hydra.utils.call "
    "hydra.utils.get_method omegaconf.OmegaConf.save numpy.load joblib.load transformers.pipeline datasets.load_dataset "
    "urllib.request.urlopen webbrowser.open tunediff.activations.store tunediff.generation.vllm.importlib.import_module"
).split()
NODES = (
    "text.rows text.prepare.x text.held_out text.fields model_pair model_pair.base model_pair.tuned dictionary "
    "dictionary.sparsity dictionary.objective dictionary.objective.terms.x dictionary.hookpoint dictionary.normalisation "
    "evaluation.x evaluation.fidelity evaluation.fidelity.latents task.x task.toy trainer trainer.strategy trainer.callbacks "
    "trainer.plugins logger.x logger.csv activations optimizer.learning_rate_schedule optimizer.resampling l1_schedule layer "
    "budget.companions launcher hydra.callbacks.x hydra.run hydra.launcher hydra.sweeper hydra.job_logging.handlers.x trust seed"
).split()
STRINGS = (
    "${oc.env:HOME}", "${oc.env:PATH,x}", "${oc.create:{_target_: os.system, command: x}}", "${oc.decode:'[1,2]'}",
    "${oc.select:x,${oc.env:HOME}}", "${seed}${oc.env:HOME}", "\\${oc.env:HOME}", "${hydra:runtime.cwd}", "${now:%Y}",
    "${tunediff.load:x}", "${", "${}", "${a.b.c}", "${oc.dict.keys:text}", "$${x}", "\x1b]0;x\x07", "../../../x", "/dev/zero",
)  # fmt: skip


def base(folder: Path) -> dict:
    """The settings of a small run, as its folder has them."""
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(CONF)), within(folder):
        write_config(hydra.compose("train", ["scale=smoke"]), folder)
    return yaml.safe_load((folder / "config.yaml").read_text())


def hostile(draw: random.Random, canary: Path) -> object:
    """A value that a stranger may have put anywhere."""
    name = draw.choice(CALLS)
    if draw.random() < 0.2:
        return draw.choice(STRINGS)
    node: dict[str, object] = {"_target_": name}
    for key in draw.sample(["command", "args", "f", "path", "folder", "text", "name", "source", "fn", "file"], 3):
        node[key] = draw.choice([f"touch {canary}", ["sh", "-c", f"touch {canary}"], str(canary), 1, None])
    if draw.random() < 0.3:
        node["_args_"] = [f"touch {canary}"]
    if draw.random() < 0.3:
        node["_partial_"] = draw.choice([True, "yes", 1])
    if draw.random() < 0.2:
        node["_recursive_"] = False
    if draw.random() < 0.2:
        node["_target_"] = draw.choice(
            [f"${{seed}}.{name}", [name], {"_target_": name}, name.upper(), f" {name}", f"{name}."]
        )
    for _ in range(draw.randrange(3)):
        node = draw.choice(
            [{"_target_": "tunediff.text.read_files", "path": node}, [node], {"x": node}, {"_args_": [node]}]
        )
    return node


def put(content: dict, key: str, value: object) -> None:
    *path, last = key.split(".")
    node = content
    for part in path:
        if not isinstance(node.get(part), dict):
            node[part] = {}
        node = node[part]
    node[last] = value


def cases(count: int, seed: int) -> Iterator[dict]:
    draw = randomness.chance(seed, "campaign of hostile configs")
    with tempfile.TemporaryDirectory() as made:
        place = Path(made)
        canary, folder = place / "canary", place / "run"
        folder.mkdir()
        known, watch = base(folder), Watch(place)
        for number in range(count):
            content, keys = copy.deepcopy(known), draw.sample(NODES, draw.choice([1, 1, 2]))
            for key in keys:
                put(content, key, hostile(draw, canary))
            text = yaml.safe_dump(content)
            ways = {
                "load": lambda: tunediff.load(folder).streams,
                "--config-path": lambda: of_its_own(["--config-path", str(folder), "--config-name", "config"], CONF),
                "model_pair=<file>": lambda: with_files([f"model_pair={folder / 'config.yaml'}"], CONF),
            }
            way = draw.choice(list(ways))
            (folder / "config.yaml").write_text(text)
            became, said = outcome(ways[way], watch=watch)
            if became == "done":  # nothing of what is hostile may have been taken
                harmless = all(
                    key == "trust" or isinstance(_at(content, key), str) for key in keys
                )  # a file trusts nobody
                became = "done" if harmless else "silent"
            if canary.exists():
                canary.unlink()
                became = "ran code"
            yield {
                "done": f"{way}: {number} " + ", ".join(f"{key}={_at(content, key)!r:.90}" for key in keys),
                "outcome": became,
                "sentence": said,
            }


def _at(content: dict, key: str) -> object:
    node: object = content
    for part in key.split("."):
        node = node.get(part) if isinstance(node, dict) else None
    return node


if __name__ == "__main__":
    main(cases, __doc__ or "", count=300)
