"""Chat templates of strangers end, soon and small, and honest ones say what they say."""

import os
import threading
import time
from pathlib import Path

import jinja2.sandbox
import pytest
import transformers.utils.chat_template_utils as theirs

import real_tokenizers
from tunediff.text import metering, sandbox
from tunediff.text.rows import TextError
from tunediff.text.templates import prompt_of

CONF = Path(__file__).resolve().parent.parent / "conf"
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
    "a tower": "{{ 10**(10**10) }}",
    "a root of a tower": "{{ 2**99999999 % 7 }}",
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


# what templates of models do, each of it
HONEST = """\
{%- set ns = namespace(multi=true, last=messages|length - 1) %}
{%- for message in messages[::-1] %}{% set index = (messages|length - 1) - loop.index0 %}
{%- if ns.multi and message.role == "user" and message.content is string and not(message.content.startswith('<tool>')) %}
{%- set ns.multi = false %}{% set ns.last = index %}{% endif %}{% endfor %}
{%- macro said(role, text='') -%}<|{{ role }}|>{{ text|trim }}{{ caller() if caller else '' }}{%- endmacro %}
{%- if tools %}{{ '# Tools' ~ '\\n' }}{% for tool in tools %}{{ tool | tojson(indent=2) }}{% endfor %}{% endif %}
{%- for message in messages %}{% if loop.first and message['role'] != 'system' %}{{ bos_token }}{% endif %}
{%- if message.role in ['user', 'system'] or loop.last %}{{ said(message.role, message.content) }}
{%- elif message.role == 'assistant' %}{% generation %}{% set content = message.content %}
{%- if '</think>' in content %}{% set thought = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
{%- set content = content.split('</think>')[-1].lstrip('\\n') %}{{ '<t>' + thought + '</t>' if loop.index0 > ns.last }}{% endif %}
{{- content }}{% for call in message.tool_calls or [] %}{{ loop.length }}{{ '%s: %5.1f' % (call.name, 2 * 3 ** 2 / 4 - 1) }}
{%- for key, value in call.arguments|items %}{{ key }}={{ value if value is string else value | tojson }}{{ ", " if not loop.last }}
{%- endfor %}{% endfor %}{% endgeneration %}{% else %}{% call said('tool', '') %}{{ message.content|replace('a', 'b') }}{% endcall %}{% endif %}
{%- endfor %}{{ messages|map(attribute='role')|unique|join('-')|upper }}{{ messages|selectattr('role', 'equalto', 'user')|list|length }}
{%- filter upper %}{{ [1, 2] + [3] }}{{ {'a': 'b'}.get('a', none) }}{{ range(3)|list|reverse|join(',') }}{% endfilter %}
{%- if add_generation_prompt %}{{ '{}!'.format('assistant') }}{% endif %}{% if enable_thinking is defined %}<think>{% endif %}"""
CALL = {"name": "add", "arguments": {"x": [1, {"y": "é<"}], "z": "s"}}
TALK = [
    {"role": "system", "content": " Be brief. "},
    {"role": "user", "content": "2 + 2 \ud83d\ude42 <b>"},
    {"role": "assistant", "content": "<think>\nhm\n</think>\n\nI call.", "tool_calls": [CALL, CALL]},
    {"role": "tool", "content": "a 4"},
    {"role": "assistant", "content": "4"},
    {"role": "user", "content": "long " * 20_000},
]


@pytest.mark.parametrize("template", (HONEST, real_tokenizers.CHATML, real_tokenizers.R1, SAY))
@pytest.mark.parametrize("talk", (TALK, USER, TALK * 30), ids=("talk", "user", "long"))
def test_an_honest_template_says_what_it_says_without_limits(template, talk):
    for more in ({}, {"tools": [CALL], "enable_thinking": False}):
        said = {
            compiled(template).render(messages=talk, bos_token="<b>", add_generation_prompt=True, **more)
            for compiled in (sandbox.UNLIMITED, theirs._compile_jinja_template)
        }
        assert len(said) == 1 and len(said.pop()) > 4


def test_every_template_is_rendered_in_the_sandbox_that_counts_also_by_transformers_itself():
    made = theirs._compile_jinja_template(SAY)
    assert isinstance(made.environment, jinja2.sandbox.ImmutableSandboxedEnvironment)
    assert isinstance(made.environment, sandbox.Counting) and isinstance(made, sandbox.Counted)
    with pytest.raises(sandbox.Exceeded, match="more text"):
        theirs.render_jinja_template([USER], chat_template="{{ 'a' * 10**9 }}")


def test_a_template_is_stopped_in_any_thread_and_leaves_none(monkeypatch):
    monkeypatch.setattr(metering, "SECONDS", 0.2)
    said, before = [], threading.active_count()

    def render(template):
        try:
            said.append(prompt_of(USER, Templated(template)))
        except TextError as error:
            said.append(str(error))

    threads = [
        threading.Thread(target=render, args=(one,)) for one in (HOSTILE["endless"], SAY, HOSTILE["a long string"])
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(5)
    assert threading.active_count() == before and USER[0]["content"] in said
    assert sum("is stopped: it takes more than 0.2 seconds" in one for one in said) == 1
    assert sum("is stopped: it makes more text" in one for one in said) == 1


@pytest.mark.parametrize("template", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_template_is_refused_in_a_sentence_in_time_and_room(template, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(metering, "SECONDS", 0.5)
    began = time.monotonic()
    with pytest.raises(TextError, match="The tokenizer's chat template cannot render a conversation of") as refusal:
        prompt_of(USER, Templated(template))
    assert time.monotonic() - began < 5 and not os.listdir(tmp_path)
    assert str(refusal.value).isprintable() and len(str(refusal.value)) < 2000
