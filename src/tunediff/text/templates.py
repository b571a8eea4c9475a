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
from tunediff.text.sandbox import Exceeded  # which is in the place of transformers' own from here on
from tunediff.text.tokenizers import Tokenizer

DATE = "2024-07-26"  # the day that Llama 3.1's template falls back to
Message = Mapping[str, Any]  # role and content; reasoning_content where an earlier response thought


def prompt_of(
    messages: Sequence[Message], tokenizer: Tokenizer, *, arguments: Mapping[str, Any] | None = None, date: str = DATE
) -> str:
    """The messages through the chat template, with the header of the response that follows; plainly, with a blank line
    between them, where the tokenizer has no chat template. Raises TextError where the template leaves out a system
    message, the last question or what was said since, where it fails on the messages in whatever way a program can, and
    for arguments it does not read."""
    if not tokenizer.chat_template:
        return begin_of(tokenizer) + "".join(f"{message['content']}\n\n" for message in messages)
    arguments = arguments or {}
    template = template_of(tokenizer.chat_template, arguments)
    _refuse_unread(template, arguments)
    told = told_the_day(template, day(date))
    whole: list[Any] = [dict(message) for message in messages]
    # most templates want a string, those of models that see want parts
    parts = [{**message, "content": [{"type": "text", "text": message["content"]}]} for message in whole]
    last = max((n for n, message in enumerate(whole) if message["role"] == "user"), default=0)
    needed = [m for n, m in enumerate(whole) if m["role"] == "system" or n >= last and m["role"] != "assistant"]
    why, by = "", None
    for form in (whole, parts):
        try:
            prompt = tokenizer.apply_chat_template(
                form, tokenize=False, add_generation_prompt=True, chat_template=told, **arguments
            )
        except Exceeded as error:  # the other form would not take less
            why = f"is stopped: {error}"
            break
        except Exception as error:  # a template is a program, which can divide by nothing or call itself for ever
            kind = "" if isinstance(error, jinja2.TemplateError) else f"{type(error).__name__}: "
            why = why or f"says: {kind}{str(error)[:300]}".rstrip(".")
            continue
        left_out = next((m for m in needed if not any(words in prompt for words in forms(m))), None)
        if left_out is None:
            return prompt
        by = by or left_out["role"]
        why = why or ("leaves it out" if by in ("system", "user") else f"leaves out what is said by {by}")
    system = next((message["content"] for message in messages if message["role"] == "system"), None)
    if system is None or by not in (None, "system"):
        raise TextError(
            f"The tokenizer's chat template cannot render a conversation of {[m['role'] for m in messages]}: it {why}. Choose "
            "text.prepare.exchange.turns=first, or a tokenizer with another template (model_pair.tokenizer)."
        )
    raise TextError(
        f"The tokenizer's chat template takes no system message such as {system!r}: it {why}. Choose text.system=null, "
        "leave out that of a conversation with text.prepare.exchange.turns=first, or put these words in front of every "
        "problem with text.instruction."
    )


def forms(message: Message) -> tuple[str, ...]:
    """The ways in which a template may write what a message says: some write what a tool says as JSON."""
    said = message["content"].strip()
    return (said, json.dumps(said, ensure_ascii=False)[1:-1]) if message["role"] == "tool" else (said,)


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


def template_of(templates: str | Mapping[str, str], arguments: Mapping[str, Any]) -> str:
    """The template that is used of a tokenizer's: its only one, or of several that for tools where some are given, and else
    the default. Raises TextError where there is no default."""
    if isinstance(templates, str):
        return templates
    name = "tool_use" if arguments.get("tools") and "tool_use" in templates else "default"
    if name not in templates:
        raise TextError(
            f"The tokenizer has chat templates for {', '.join(sorted(templates))} and none that is the default. Name a "
            "tokenizer that has one (model_pair.tokenizer), or rename one of these to default in its folder."
        )
    return templates[name]


# names that whoever renders a prompt sets, and no user of a template
_OURS = {
    *("messages", "conversation", "add_generation_prompt", "continue_final_message", "chat_template", "tokenize"),
    *("padding", "truncation", "max_length", "return_tensors", "return_dict", "return_assistant_tokens_mask"),
    *("tokenizer_kwargs", "sanitize_control_tokens"),
}


def _refuse_unread(template: str, arguments: Mapping[str, Any]) -> None:
    for name in arguments:
        if name in _OURS:
            raise TextError(
                f"text.template.{name}={arguments[name]!r}: {name} is set where a prompt is rendered, and is no argument of "
                "the chat template to choose. Remove it."
            )
    read = variables(template) if arguments else None
    for name in arguments:
        if read is not None and name not in read:
            others = sorted(read - _OURS - {"tools", "documents"})
            raise TextError(
                f"text.template.{name}={arguments[name]!r}: the tokenizer's chat template reads no {name}; it reads "
                f"{', '.join(others) or 'nothing but the messages'}."
            )


_DIRECTIVES = [
    f"%{flag}{letter}" for flag in ("", "-", "_", "0", "^", "#") for letter in "aAbBcCdDeFgGhHIjklmMnprRStTuUVwWxXyYzZ"
]
# in place of transformers' function of the clock, and callable as that is; a directive that is in no table is refused
_CLOCK = """\
{%- macro strftime_now(format) -%}
{%- if format is not string -%}{{- raise_exception("strftime_now takes a format such as %Y-%m-%d") -}}{%- endif -%}
{%- set day = namespace(said=format | replace("%%", "\\ue002")) -%}
{%- for directive, words in DAY.items() -%}{%- set day.said = day.said | replace(directive, words) -%}{%- endfor -%}
{%- if "%" in day.said -%}{{- raise_exception("strftime_now does not know the format " ~ format) -}}{%- endif -%}
{{- day.said | replace("\\ue002", "%") -}}
{%- endmacro %}
"""  # the line break at its end goes with the tag, so that the template begins as it did


def told_the_day(template: str, today: datetime.date) -> str:
    """The template, and where it reads the clock one in which the clock is at the midnight that begins this day, however it
    asks: by a format that it makes or a name that it gives."""
    if "strftime_now" not in template:
        return template
    days = {directive: today.strftime(directive) for directive in _DIRECTIVES}
    known = {directive: words for directive, words in days.items() if "%" not in words}
    return _CLOCK.replace("DAY", json.dumps(known)) + template


@functools.cache
def variables(template: str) -> frozenset[str] | None:
    """The names that a chat template reads and does not set itself; None for one with tags that nobody knows."""
    environment = jinja2.Environment(extensions=["jinja2.ext.loopcontrols"])
    environment.globals.update(dict.fromkeys(("raise_exception", "strftime_now")))  # functions of transformers
    without = re.sub(r"{%[-+]?\s*(?:end)?generation\s*[-+]?%}", "", template)  # a tag of transformers, around responses
    try:
        return frozenset(jinja2.meta.find_undeclared_variables(environment.parse(without)))
    except (jinja2.TemplateError, RecursionError):
        return None


@functools.cache
def day(date: str) -> datetime.date:
    """The day of a date such as 2024-07-26. Raises TextError for anything else."""
    try:
        return datetime.date.fromisoformat(date)
    except ValueError as error:
        raise TextError(f"text.date={date!r} is no day: give one such as {DATE}.") from error
