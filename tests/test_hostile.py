"""A stranger's data is data: templates, names, headers and texts that try to be more."""

import datetime
import json
import os
import struct
import threading
import time

import jinja2.sandbox
import pytest
import transformers.utils.chat_template_utils as theirs

import stand_ins
from tunediff.shapes import Refused
from tunediff.terminal import printable
from tunediff.text import sandbox
from tunediff.text.rows import TextError
from tunediff.text.templates import prompt_of

USER = [{"role": "user", "content": "2 + 2"}]
SAY = "{% for m in messages %}{{ m.content }}{% endfor %}"


class Templated:
    """As much of a tokenizer as rendering takes; transformers does it."""

    bos_token = eos_token = "<end>"
    bos_token_id = eos_token_id = 0

    def __init__(self, chat_template):
        self.chat_template = chat_template

    def apply_chat_template(self, conversation, *, tokenize, chat_template, **options):
        (rendered,), _ = theirs.render_jinja_template([conversation], chat_template=chat_template, **options)
        return rendered


HOSTILE = {
    "endless": "{% for i in range(99999) %}{% for j in range(99999) %}{% for k in range(99999) %}{% endfor %}{% endfor %}{% endfor %}",
    "endless and silent": "{% for i in range(99999) %}{% for j in range(99999) %}{% if j == i %}{% endif %}{% endfor %}{% endfor %}",
    "endless macro": "{% macro m() %}{% for i in range(999) %}{% endfor %}{% endmacro %}{% for i in range(99999) %}{{ m() }}{% endfor %}",
    "recursion": "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "recursion in two": "{% macro a(n) %}{{ a(n + 1) }}{{ a(n + 1) }}{% endmacro %}{{ a(0) }}",
    "loop that calls itself": "{% for i in range(9) recursive %}{{ loop(range(9)) }}{% endfor %}",
    "a long range": "{% for i in range(10**12) %}{% endfor %}",
    "a long string": "{{ 'a' * 10**9 }}",
    "the same turned around": "{{ 10**9 * 'a' }}",
    "a long list": "{{ ([0] * 10**9)|length }}",
    "a list of long lists": "{{ [range(99999)|list] * 99999 }}",
    "a string that doubles": "{% set n = namespace(x='ab') %}{% for i in range(40) %}{% set n.x = n.x ~ n.x %}{% endfor %}{{ n.x }}",
    "the same by plus": "{% set n = namespace(x='ab') %}{% for i in range(40) %}{% set n.x = n.x + n.x %}{% endfor %}",
    "the same by a block": "{% set n = namespace(x='ab') %}{% for i in range(40) %}{% set y %}{{ n.x }}{{ n.x }}{% endset %}{% set n.x = y %}{% endfor %}",
    "the same by a list": "{% set n = namespace(x='ab') %}{% for i in range(60) %}{% set n.x = [n.x, n.x] %}{% endfor %}{{ n.x }}",
    "the same by namespaces": "{% set n = namespace(x='ab') %}{% for i in range(60) %}{% set n.x = namespace(a=n.x, b=n.x) %}{% endfor %}{{ n }}",
    "the same by dicts": "{% set n = namespace(x='ab') %}{% for i in range(60) %}{% set n.x = {'a': n.x, 'b': n.x} %}{% endfor %}{{ n.x|tojson }}",
    "the same by replace": "{% set n = namespace(x='ab') %}{% for i in range(60) %}{% set n.x = n.x|replace('a', 'aa') %}{% set n.x = n.x.replace('', 'ab') %}{% endfor %}",
    "the same by join": "{% set n = namespace(x='ab') %}{% for i in range(60) %}{% set n.x = n.x.join(n.x) %}{% set n.x = n.x|join(n.x) %}{% endfor %}",
    "within itself": "{% set n = namespace() %}{% set n.x = n %}{{ n }}",
    "a tower": "{{ 10**10**10 }}",
    "a tower by steps": "{% set n = namespace(x=9) %}{% for i in range(60) %}{% set n.x = n.x * n.x %}{% endfor %}",
    "wide": "{{ 'x'.center(10**9) }}",
    "wide by ljust": "{{ 'x'.ljust(10**9) }}",
    "wide by zfill": "{{ '1'.zfill(10**9) }}",
    "wide by %": "{{ '%1000000000d' % 1 }}",
    "wide by % and a number": "{{ '%*d' % (10**9, 1) }}",
    "wide by format": "{{ '{:1000000000}'.format(1) }}",
    "wide by format and a number": "{{ '{:{}}'.format(1, 10**9) }}",
    "wide by the filter": "{{ '%1000000000d'|format(1) }}",
    "wide by indent": "{{ 'a\nb'|indent(10**9) }}",
    "wide by tojson": "{{ [[1]]|tojson(indent=10**9) }}",
    "lipsum": "{{ lipsum(n=10**9) }}",
    "batch": "{{ [1]|batch(10**9, 0)|list }}",
    "bytes": "{{ (1).to_bytes(10**9, 'big') }}",
    "translate": "{{ 'aaaa'.translate({97: 'b' * 10**6}) }}",
    "a map of maps": "{{ ([range(9999)] * 9999)|map('list')|map('join')|list }}",
    "a map of a default": "{{ range(99999)|map(attribute='x', default='y' * 10**6)|join }}",
    "a search that finds nothing": "{% set x = range(99999)|list %}{{ range(100000)|reject('in', x)|list }}",
    "a sum of lists": "{{ ([[1] * 99] * 9999)|sum(start=[]) }}",
    "python": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "python by attr": "{{ ''|attr('__class__') }}",
    "python by format": "{{ '{0.__class__.__mro__}'.format(1) }}",
    "python by a function": "{{ raise_exception.__globals__ }}",
    "python by a loop": "{{ cycler.__init__.__globals__.os.system('touch owned') }}",
    "a file": "{% include '/etc/passwd' %}",
    "a module": "{% import 'os' as os %}{{ os }}",
    "deep": "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}",
    "deep ifs": "{% if 1 %}" * 300 + "{% endif %}" * 300,
    "long": "{{ 1 }}" * 40_000,
    "zero": "{{ 1 // 0 }}",
    "said": "{{ raise_exception('\x1b[2J' * 1000) }}",
    "broken": "{% for",
}  # fmt: skip


@pytest.mark.parametrize("template", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_template_is_refused_in_a_sentence_in_time_and_room(template, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sandbox, "SECONDS", 0.5)
    began = time.monotonic()
    with pytest.raises(TextError, match="The tokenizer's chat template cannot render a conversation of") as refusal:
        prompt_of(USER, Templated(template))
    assert time.monotonic() - began < 5 and not os.listdir(tmp_path)
    assert str(refusal.value).isprintable() and len(str(refusal.value)) < 2000
