"""The language model that sorts units into classes: questions -> its answer to each.

Knows no classes and no units. Held-out text is sent to the endpoint that was given; where none is, there is nobody to ask.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from tunediff.evaluations.judging.chat import Chat, each
from tunediff.evaluations.judging.examination import FEWEST
from tunediff.shapes import Note, Refused

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Judge:
    """endpoint        address of an OpenAI-compatible interface; null: nobody is asked       model   name of the model there
    examples        number of examples shown per unit, its strongest
    key_variable    environment variable that holds the key; null: none is sent
    most_calls      most calls of one evaluation; more are refused before anything is asked             at_once   calls under way
    timeout         seconds for one answer                              retries   tries when the endpoint is busy
    answer_tokens   tokens of the longest answer, thoughts included"""

    endpoint: str | None = None
    model: str | None = None
    examples: int = 10
    key_variable: str | None = None
    most_calls: int
    at_once: int = 4
    timeout: float = 120.0
    retries: int = 5
    answer_tokens: int = 2000

    def chat(self, setting: str) -> Chat | None:
        """The endpoint, or None where nobody is asked. Raises Refused, naming the setting, where address, model or key are
        missing, and for too few examples."""
        if self.endpoint is None:
            return None
        if self.model is None:
            raise Refused(f"{setting}.endpoint={self.endpoint} is asked for no model: name it, {setting}.model=<...>.")
        if self.examples < FEWEST:
            raise Refused(f"{setting} needs examples={FEWEST} or more.")
        return Chat(
            self.endpoint,
            self.model,
            setting=setting,
            key_variable=self.key_variable,
            timeout=self.timeout,
            retries=self.retries,
            answer_tokens=self.answer_tokens,
        )

    def answers(
        self, chat: Chat, system: str, questions: Sequence[str], *, evaluation: str, units: str
    ) -> tuple[dict[int, str], list[Note]]:
        """Index of a question -> its answer, and notes about those without one. The amount that will be sent is logged
        first. Raises Refused where the endpoint gives no answer at all."""
        characters = sum(len(system) + len(question) for question in questions)
        log.info(
            "%s: %s calls of %s at %s, about %s prompt tokens (characters / 4); answers come on top",
            *(evaluation, f"{len(questions):,}", chat.model, chat.endpoint, f"{characters // 4:,}"),
        )
        said, failure = each(
            lambda question: chat.ask(system, question),
            questions,
            at_once=self.at_once,
            title=f"judging {units}",
            unit="call",
        )
        if failure is None:
            return said, []
        if not said:
            raise failure
        return said, [Note(f"{evaluation} stopped with {len(said)} of {len(questions)} {units} judged: {failure}")]
