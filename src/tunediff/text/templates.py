"""Chat templates: messages -> the prompt that a model reads, up to where it begins to write.

A template is a program that came with a tokenizer. It is given what it asks for: arguments of its own, a date in place of
the clock, contents in parts where it wants parts; and what it cannot do is refused.
"""

from __future__ import annotations

import datetime
import functools
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
import jinja2.meta

from tunediff.text.rows import TextError
from tunediff.text.tokenizers import Tokenizer

DATE = "2024-07-26"  # the day that Llama 3.1's template falls back to
Message = Mapping[str, Any]  # role and content; reasoning_content where an earlier response thought


def prompt_of(
    messages: Sequence[Message], tokenizer: Tokenizer, *, arguments: Mapping[str, Any] | None = None, date: str = DATE
) -> str:
    """The messages through the chat template, with the header of the response that follows; plainly, with a blank line
    between them, where the tokenizer has no chat template. Raises TextError where the template leaves out a system
    message or the last question, where it says that it cannot take the messages, and for arguments it does not read."""
    if not tokenizer.chat_template:
        return begin_of(tokenizer) + "".join(f"{message['content']}\n\n" for message in messages)
    _refuse_unread(tokenizer, arguments or {})
    given = {**told_the_day(tokenizer.chat_template, day(date)), **(arguments or {})}
    whole: list[Any] = [dict(message) for message in messages]
    # most templates want a string, those of models that see want parts
    parts = [{**message, "content": [{"type": "text", "text": message["content"]}]} for message in whole]
    why = ""
    for form in (whole, parts):
        try:
            prompt = tokenizer.apply_chat_template(form, tokenize=False, add_generation_prompt=True, **given)
        except (jinja2.TemplateError, TypeError) as error:
            why = why or f"says: {error}"
            continue
        if all(m["content"].strip() in prompt for m in whole if m["role"] == "system" or m is whole[-1]):
            return prompt
        why = why or "leaves it out"
    system = next((message["content"] for message in messages if message["role"] == "system"), None)
    if system is None:
        raise TextError(
            f"The tokenizer's chat template cannot render a conversation of {[m['role'] for m in messages]}: it {why}. Choose "
            "text.prepare.exchange.turns=first, or a tokenizer with another template (model_pair.tokenizer)."
        )
    raise TextError(
        f"The tokenizer's chat template takes no system message, and text.system={system!r}: it {why}. Choose "
        "text.system=null, or put these words in front of every problem with text.instruction."
    )


_AROUND: dict[tuple[Any, ...], list[str]] = {}


def words_around(
    roles: tuple[str, ...], tokenizer: Tokenizer, *, arguments: Mapping[str, Any] | None = None, date: str = DATE
) -> list[str]:
    """The words that the template writes before, between and behind messages of these roles: one string more than there are; strings
    that stand in no prompt where it does not take them as they come."""
    key = (repr(tokenizer.chat_template), tokenizer.bos_token, tokenizer.eos_token, roles, repr(arguments), date)
    if key not in _AROUND:
        marks = [f"\ue000{n}\ue001" for n in range(len(roles))]
        messages = [{"role": role, "content": mark} for role, mark in zip(roles, marks, strict=True)]
        try:
            found = re.split("|".join(marks), prompt_of(messages, tokenizer, arguments=arguments, date=date))
        except TextError:
            found = []
        _AROUND[key] = found if len(found) == len(roles) + 1 else ["\ue000"] * (len(roles) + 1)
    return _AROUND[key]


def begin_of(tokenizer: Tokenizer) -> str:
    """The begin token, where the tokenizer puts one before a text of its own accord; chat templates bring theirs."""
    begins = tokenizer.bos_token_id is not None and tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]
    return tokenizer.bos_token if begins else ""


def _refuse_unread(tokenizer: Tokenizer, arguments: Mapping[str, Any]) -> None:
    template = tokenizer.chat_template
    read = variables(template) if isinstance(template, str) and arguments else None
    for name in arguments:
        if read is not None and name not in read:
            others = sorted(read - {"messages", "add_generation_prompt", "tools", "documents"})
            raise TextError(
                f"text.template.{name}={arguments[name]!r}: the tokenizer's chat template reads no {name}; it reads "
                f"{', '.join(others) or 'nothing but the messages'}."
            )


_CLOCK = re.compile(r"strftime_now\(\s*(['\"])(.*?)\1\s*\)")


def told_the_day(template: Any, today: datetime.date) -> dict[str, str]:
    """The template of one that reads the clock, as `chat_template`, in which the clock is this day; else nothing."""
    if not isinstance(template, str) or "strftime_now" not in template:
        return {}
    days = {form: today.strftime(form) for _, form in _CLOCK.findall(template)}
    clock = f"{{%- macro strftime_now(form) -%}}{{{{ {json.dumps(days)}[form] }}}}{{%- endmacro -%}}"
    return {"chat_template": clock + template}


@functools.cache
def variables(template: str) -> frozenset[str] | None:
    """The names that a chat template reads and does not set itself; None for one with tags that Jinja does not know."""
    try:
        return frozenset(jinja2.meta.find_undeclared_variables(jinja2.Environment().parse(template)))
    except jinja2.TemplateError:
        return None


@functools.cache
def day(date: str) -> datetime.date:
    """The day of a date such as 2024-07-26. Raises TextError for anything else."""
    try:
        return datetime.date.fromisoformat(date)
    except ValueError as error:
        raise TextError(f"text.date={date!r} is no day: give one such as {DATE}.") from error
