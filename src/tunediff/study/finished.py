"""A run folder -> the things in it: what was found, the dictionary, the pair, and the text it read.

run = tunediff.load("multirun/2026-11-21/10-30-00-4f5a2c")
run.findings["fidelity/explained_variance/tuned"].value
run.table("latents").to_pandas()
run.dictionary.encode(rows)
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from pathlib import Path

import pyarrow
import torch
from omegaconf import DictConfig, OmegaConf

from tunediff import folders
from tunediff.dictionary import Dictionary, TranscoderAdapter, load_weights
from tunediff.edits import Edit, Everywhere, Gate, Operation
from tunediff.evaluations import Given, Trained
from tunediff.evaluations.given import LatentStatistics
from tunediff.evaluations.latents.edits import latent_edits, role_of
from tunediff.evaluations.latents.selection import choose
from tunediff.generation import Batched, Decoding, Response, ask, generate
from tunediff.models import LOGITS_MB, ModelPair, save_adapted
from tunediff.report import in_words, members_under, study_of, write_comparison
from tunediff.settings import check, pinned, within
from tunediff.shapes import ADAPTER, TUNED, Figure, Finding, Refused, Stream, path_in
from tunediff.study.companions import read_companions, starting_rows
from tunediff.study.finetune import FINE_TUNE
from tunediff.study.finetuned import pair_left
from tunediff.study.parts import (
    STUDY,
    build_dictionary,
    config_of,
    given_of,
    learns,
    pair_and_text,
    streams_of,
)
from tunediff.text import Text
from tunediff.trusted import asking_nobody, with_references

log = logging.getLogger(__name__)


class Loaded:
    """A finished run. Its findings need nothing but the folder. The rest is made when it is asked for: weights are read by
    `dictionary`, `pair.load()` and `trained()`. Raises Refused for a folder that holds no finished run, and for a config that
    names what may not be built; what is missing here, such as a model's folder, is refused by whatever needs it.

    folder, cfg   the run folder and the config it ran with; the folder of a fine-tune is opened as well
    findings, figures, notes, identity, table(name)   what was found, and the digest of the study
    pair, text, streams, dictionary, companions       what it was found with
    """

    def __init__(self, folder: Path, trust: Sequence[str] = ()):
        if not (folder / "config.yaml").exists():
            raise Refused(f"{folder} is no finished run: it has no config.yaml.")
        self.folder = folder
        self.cfg: DictConfig = config_of(folder, trust, fine_tune=True)
        self.trust = trust
        left = unended(folder)
        if learns(self.cfg) and not (folder / "dictionary" / "weights.safetensors").exists():
            raise Refused(f"{folder} is no finished run: {left or 'it has no dictionary/weights.safetensors.'}")
        if left is not None:
            log.warning("%s: %s", folder, left)
        if not (folder / folders.MANIFEST).exists():
            log.warning("%s has no manifest.json, as runs of earlier versions: its files are read unchecked.", folder)

    def __repr__(self) -> str:
        tables = ", ".join(sorted(path.stem for path in (self.folder / "tables").glob("*.parquet")))
        state = folders.read_state(self.folder).get("state", folders.FINISHED)
        ended = "" if state == folders.FINISHED else f", of a run that is {state}"
        return f"Loaded({self.folder}: {len(self.findings)} findings{ended}; tables {tables})"

    @functools.cached_property
    def _pair_and_text(self) -> tuple[ModelPair, Text]:
        with within(self.folder):
            check(self.cfg, FINE_TUNE if self.is_fine_tune else STUDY)
        cfg = OmegaConf.create({**asking_nobody(with_references(self.cfg))})  # of a judge's labels those that are kept
        if self.is_fine_tune:
            return pair_left(cfg, self.folder, self.trust)
        commits = folders.findings_of(self.folder).get("commits", {})  # of earlier versions, whose config has branches
        pair, text = pair_and_text(pinned(cfg, commits, ask=False))
        text.sound.begun = True  # what the study left out is left out again
        return pair, text

    @property
    def is_fine_tune(self) -> bool:
        """True for the folder of a fine-tune, whose pair is the model that learned and what it became."""
        return "recipe" in self.cfg

    @property
    def evaluation_tokens(self) -> int:
        """Number of held-out tokens that the run was measured on."""
        return self.cfg.evaluation_tokens if self.is_fine_tune else self.cfg.budget.evaluation_tokens

    @property
    def pair(self) -> ModelPair:
        return self._pair_and_text[0]

    @property
    def text(self) -> Text:
        return self._pair_and_text[1]

    @functools.cached_property
    def streams(self) -> list[Stream]:
        """The streams that the dictionary reads; without one, all layers of both models."""
        pair = self.pair
        return streams_of(self.cfg, pair)

    @functools.cached_property
    def dictionary(self) -> Dictionary | None:
        """The dictionary of the run, with frozen weights; None where the study measured the pair alone."""
        if not learns(self.cfg):
            return None
        made = build_dictionary(self.cfg.dictionary, self.streams)
        load_weights(made, self.folder / "dictionary")
        return made.eval().requires_grad_(False)

    @functools.cached_property
    def companions(self) -> dict[str, Dictionary]:
        """The dictionaries that were trained beside it, by name: twin, and those of the controls."""
        return {} if self.is_fine_tune else read_companions(self.folder, self.cfg, self.streams)

    def verify(self) -> None:
        """Reads every file that the run and later evaluations of it left. Raises Refused for one that is not as it was
        written, and for one that was added where the run's are read; what else was added or is gone is said in the log."""
        for folder in (self.folder, *sorted(self.folder.glob("on_*_tokens"))):
            check_files(folder)

    def _refuse_gone(self, name: str) -> None:
        listed = folders.entries(self.folder) if (self.folder / folders.MANIFEST).exists() else ()
        if name in listed and not (self.folder / name).exists():
            raise Refused(
                f"{self.folder / name} is gone: put it back, or measure again (python evaluate.py run={self.folder})."
            )

    @property
    def findings(self) -> dict[str, Finding]:
        """The findings of the run by name, as its folder has them now."""
        self._refuse_gone("findings.json")
        return {f["name"]: Finding(**f) for f in folders.findings_of(self.folder)["findings"]}

    @property
    def figures(self) -> list[Figure]:
        """The figures of the run, in the order in which they stand on its page."""
        with folders.as_written(self.folder / "figures.json"):
            return [
                Figure(**{name: f[name] for name in Figure._fields if name in f})
                for f in folders.figures_of(self.folder)
            ]

    @property
    def notes(self) -> list[str]:
        """The notes beside the findings."""
        self._refuse_gone("findings.json")
        return folders.findings_of(self.folder)["notes"]

    @property
    def identity(self) -> str | None:
        """The digest of the study that was run; None in a folder of a version that kept none."""
        return folders.read_json(self.folder / "identity.json").get("identity")

    def table(self, name: str) -> pyarrow.Table:
        """The table tables/<name>.parquet. Raises Refused where no evaluation wrote it, with the names of those that are there."""
        path = path_in(self.folder / "tables", name, "table", ".parquet")
        if not path.exists():
            self._refuse_gone(f"tables/{path.name}")
            there = ", ".join(sorted(p.stem for p in path.parent.glob("*.parquet"))) or "none"
            raise Refused(f"{self.folder} has no table '{name}': there are {there}. Run the evaluation that writes it.")
        refuse_added(self.folder, [f"tables/{name}.parquet"])
        return folders.read_table(path)

    def latents(self, which: int | str | Sequence[int]) -> list[int]:
        """Indices of latents, as evaluations choose them: those of an expression, such as
        "top(20, auroc.hesitation) and rate < .1", or so many of those most one model's own."""
        return choose(self.trained(), self._statistics, which, None)

    def edits(
        self,
        latents: int | str | Sequence[int],
        operation: Operation,
        *,
        role: str | None = None,
        gate: Gate = Everywhere(),  # noqa: B008 (a frozen dataclass)
        mode: str = "delta",
    ) -> tuple[Edit, ...]:
        """Edits of latents in the model with this role, where the dictionary reads it: one, or one for each layer of a
        transcoder adapter that has some of them. Strength 1 is a latent's largest activation on the held-out text, and its
        mean is that over the same text."""
        trained = self.trained()
        role = role_of(trained, role, setting="edits")
        numbers = self.latents(latents)
        return latent_edits(trained, role, numbers, operation, seen=self._statistics, gate=gate, mode=mode)

    def edit(
        self,
        latents: int | str | Sequence[int],
        operation: Operation,
        *,
        role: str | None = None,
        gate: Gate = Everywhere(),  # noqa: B008
        mode: str = "delta",
    ) -> Edit:
        """The one edit that `edits` makes of the latents. Raises Refused where there are several."""
        edit, *others = self.edits(latents, operation, role=role, gate=gate, mode=mode)
        if others:
            places = ", ".join(str(one.at) for one in (edit, *others))
            raise Refused(f"These latents are written at {places}, each by an edit of its own: take run.edits(...).")
        return edit

    def respond(
        self,
        questions: Sequence[str],
        *,
        role: str | None = None,
        edits: Sequence[Edit] = (),
        decoding: Decoding = Decoding(),  # noqa: B008
    ) -> list[Response]:
        """The responses of the model with this role, through the chat template and after the text's system message, under
        edits. By default it is the model that these are written into, without edits the tuned one."""
        self.given()
        role = role or (edits[0].at.role if edits else TUNED)
        tokenizer = self.pair.tokenizers[self.pair.entry(role)]
        asked = ask([(question, question) for question in questions], tokenizer, self.text.manner)
        return generate(self.pair, role, asked, decoding, engine=Batched(), edits=edits, tokenizer=tokenizer)

    def save_adapted(self, folder: str | Path) -> Path:
        """The model with this run's transcoder adapters beside its MLPs, as a checkpoint in the format of the adapters'
        authors (arXiv 2602.20904), which model_pair.tuned.path takes. Raises Refused for another dictionary, and for
        latents that are not ReLU's."""
        if not isinstance(self.dictionary, TranscoderAdapter):
            raise Refused(f"{self.folder} trained no transcoder adapters: dictionary=transcoder_adapter does.")
        pair = self.given().pair
        return save_adapted(pair.models[ADAPTER], folder, pair.tokenizer_of(ADAPTER))

    @functools.cached_property
    def _statistics(self) -> LatentStatistics:
        return self.trained().statistics

    def trained(self, *, device: torch.device | str = "cpu", tokens: int | None = None) -> Trained:
        """The pair, text and dictionary that an evaluation is given, with the models loaded; `tokens` of held-out text, by default the run's budget. Raises
        Refused for a run that trained no dictionary."""
        given = self.given(device=device, tokens=tokens)
        if not isinstance(given, Trained):
            raise Refused(f"{self.folder} trained no dictionary: run.given() has its pair and its text.")
        return given

    def given(
        self, *, device: torch.device | str = "cpu", tokens: int | None = None, logits_mb: float = LOGITS_MB
    ) -> Given:
        """The same for any run, without a dictionary where it trained none; `logits_mb` as in Given."""
        if not self.pair.models or self.pair.device(TUNED) != torch.device(device):
            self.pair.load(device)
        dictionary = None if self.dictionary is None else self.dictionary.to(device)
        beside = {name: one.to(device) for name, one in self.companions.items()}
        budget = tokens or self.evaluation_tokens
        return given_of(
            self.pair, self.text, dictionary, budget, self.folder, logits_mb=logits_mb, companions=beside,
            starting_rows=functools.partial(starting_rows, self.cfg, self.streams),
        )  # fmt: skip


def unended(folder: Path) -> str | None:
    """A sentence about a run that has not ended, or did not end well; None for a finished one, and for one of a version that
    kept no state."""
    state = folders.state_of(folder)
    word = state.get("state", folders.FINISHED)
    at = f" at step {state['step']:,} of {state['steps']:,}" if {"step", "steps"} <= state.keys() else ""
    if word == folders.FINISHED:
        return None
    if word == folders.WAITING:
        return "it waits to be begun, and what stands there is of an earlier one."
    if word in (folders.RUNNING, folders.EVALUATING):
        return f"it is {word}{at}, and what stands there is what it has found so far."
    why = f" ({state['error']})" if "error" in state else ""
    return f"it was left {word}{at}{why}, and findings may be missing. Its own line goes on and finds them all."


WHERE_READ = ("tables/", "dictionary/", "companions/", "outputs/")  # what lies there is taken for the run's


def refuse_added(folder: Path, names: Sequence[str]) -> None:
    """Raises Refused for one of these files that the run did not write."""
    for name in folders.added_to(folder):
        if name in names:
            raise Refused(
                f"{folder / name} is not of this run: its manifest.json does not list it. Remove it, and evaluate again if "
                "it is missed."
            )


def check_files(folder: Path) -> None:
    """Reads every file that the manifest of a folder lists. Raises Refused for one that is not as it was written, and for one
    that was added where it would be read; what else was added or is gone is said in the log."""
    for name in folders.gone_from(folder):
        log.warning("%s has no %s any more.", folder, name)
    for name in folders.changed_since(folder):
        log.warning("%s: its %s was changed or removed since the run ended.", folder, name)
    added = folders.added_to(folder)
    refuse_added(folder, [name for name in added if name.startswith(WHERE_READ)])
    for name in added:
        log.warning("%s has a %s that is not of this run: its manifest.json does not list it.", folder, name)


def compare(places: Sequence[str]) -> str:
    """Compares runs and sweeps side by side, also while they run: prints the table, and writes a parquet and a page into the
    first folder."""
    members = members_under(places)
    paths = [Path(place).resolve() for place in places]
    for n, (place, path) in enumerate(zip(places, paths, strict=True)):
        if path in paths[:n] or (study_of(path) == path and {*paths}.intersection(path.parents)):
            log.warning("%s was named more than once, and its runs stand here once.", place)
    said = in_words(members)
    try:
        return f"{said}\npage: {write_comparison(members, Path(places[0]))}"
    except OSError as error:
        return f"{said}\nno page: {error.strerror} ({places[0]})"
