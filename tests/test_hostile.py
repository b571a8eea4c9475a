"""A stranger's data is data: templates, names, headers and texts that try to be more."""

import base64
import csv
import hashlib
import io
import json
import os
import re
import struct
import subprocess
import sys
import threading
import time
import urllib.parse
from pathlib import Path

import jinja2.sandbox
import pyarrow
import pyarrow.parquet
import pytest
import transformers.utils.chat_template_utils as theirs

import dependencies
import real_tokenizers
import test_behaviour_page
import test_graph_page
import test_report
from browser import in_browser
from campaigns import strangers
from tunediff.evaluations.behaviour.solving import KeptLines
from tunediff.folders import write_findings
from tunediff.loggers import Csv
from tunediff.models import lora
from tunediff.models.files import PairError, headers_in, weight_files
from tunediff.models.transcoder_files import TranscoderFiles
from tunediff.report import members_under, write_comparison, write_report
from tunediff.settings import check_command_line
from tunediff.shapes import Figure, Finding, Note, Refused, Table, path_in
from tunediff.terminal import printable
from tunediff.text import sandbox
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
    monkeypatch.setattr(sandbox, "SECONDS", 0.2)
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
    monkeypatch.setattr(sandbox, "SECONDS", 0.5)
    began = time.monotonic()
    with pytest.raises(TextError, match="The tokenizer's chat template cannot render a conversation of") as refusal:
        prompt_of(USER, Templated(template))
    assert time.monotonic() - began < 5 and not os.listdir(tmp_path)
    assert str(refusal.value).isprintable() and len(str(refusal.value)) < 2000


# -- names -----------------------------------------------------------------------------------------------------------

ELSEWHERE = (
    "../x",
    "a/b",
    "/etc/passwd",
    "..",
    ".",
    "",
    "a\\b",
    "a\0b",
    "a\nb",
    "\x1b[2J",
    "\ud800",
    "x" * 200,
    "é" * 100,
    None,
    3,
)


@pytest.mark.parametrize("name", ELSEWHERE)
def test_a_name_that_would_be_another_place_is_refused(name, tmp_path):
    with pytest.raises(Refused, match="Table .*: it is the name of a file, so it has no slash") as refusal:
        path_in(tmp_path, name, "Table")
    assert str(refusal.value).isprintable() and len(str(refusal.value)) < 300
    with pytest.raises(Refused):
        KeptLines(tmp_path, name)
    with pytest.raises(Refused):
        Table(name, {}).check()


def test_a_name_is_a_file_of_its_folder(tmp_path):
    for name in ("examples", "..x", "a b", "latents.2", "東京", "~", "-rf", "a" * 180):
        assert path_in(tmp_path, name, "Table", ".x").parent == tmp_path


@pytest.mark.parametrize("sweep", ("../../x", "/tmp/x", "..", "a/b", "a\\\\b"))
def test_a_sweep_lies_in_multirun(sweep):
    with pytest.raises(Refused, match="^sweep, the folder in multirun, .*: it is the name of a file"):
        check_command_line(["-m", f"sweep={sweep}"], CONF, "train")
    check_command_line(["-m", "sweep=night-2"], CONF, "train")


@pytest.mark.parametrize("named", ("../stranger.safetensors", "/etc/passwd", "a/b.safetensors", ".."))
def test_weights_that_are_named_lie_beside_the_file_that_names_them(named, tmp_path):
    (tmp_path / "model").mkdir()
    index = tmp_path / "model" / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": {"x": named}}))
    for config in ({}, {"transformers_weights": named}):
        with pytest.raises(PairError, match="is no file of that folder"):
            weight_files(tmp_path / "model", "model", config)
    with pytest.raises(Refused, match="is no file of that folder"):
        TranscoderFiles(str(tmp_path / "model"))._file(named)


# -- headers of safetensors ------------------------------------------------------------------------------------------


def safetensors_file(header, data=b"\0" * 16, length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def tensor(begin=0, end=16, dtype="F32", shape=(4,), **more):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end], **more}


WHOLE = safetensors_file({"x": tensor(0, 8, shape=(2,)), "y": tensor(8, 16, shape=(1, 2)), "__metadata__": {"a": "b"}})
LYING = {
    "an endless header": safetensors_file({"x": tensor()}, length=2**63),
    "a header longer than the file": safetensors_file({"x": tensor()}, length=10**6),
    "a header of nothing": safetensors_file(b"", length=0),
    "eight bytes": b"\xff" * 8,
    "three bytes": b"abc",
    "no JSON": safetensors_file(b"{" * 40),
    "deep JSON": safetensors_file(b"[" * 100_000),
    "a list": safetensors_file([tensor()]),
    "a number": safetensors_file(b"7"),
    "no tensor": safetensors_file({}),
    "metadata that is a list": safetensors_file({"x": tensor(), "__metadata__": []}),
    "metadata of numbers": safetensors_file({"x": tensor(), "__metadata__": {"a": 1}}),
    "only metadata": safetensors_file({"__metadata__": {}}),
    "beyond the end": safetensors_file({"x": tensor(0, 32, shape=(8,))}),
    "less than the file": safetensors_file({"x": tensor(0, 8, shape=(2,))}),
    "two in one place": safetensors_file({"x": tensor(), "y": tensor()}),
    "one in another": safetensors_file({"x": tensor(), "y": tensor(4, 12, shape=(2,))}),
    "a hole": safetensors_file({"x": tensor(0, 4, shape=(1,)), "y": tensor(8, 16, shape=(2,))}),
    "a hole before": safetensors_file({"x": tensor(8, 16, shape=(2,))}),
    "before the beginning": safetensors_file({"x": tensor(-16, 16, shape=(8,))}),
    "turned around": safetensors_file({"x": tensor(0, 16), "y": tensor(16, 0, shape=(0,))}),
    "another shape": safetensors_file({"x": tensor(shape=(5,))}),
    "a shape below nothing": safetensors_file({"x": tensor(shape=(-2, -2))}),
    "a shape in halves": safetensors_file({"x": tensor(shape=(0.5, 8))}),
    "an endless shape": safetensors_file({"x": tensor(shape=(2**62, 4))}),
    "a shape that is a map": safetensors_file({"x": {"dtype": "U64", "shape": {}, "data_offsets": [0, 8]}}, b"\0" * 8),
    "a shape in words": safetensors_file({"x": tensor(shape=("4",))}),
    "a shape of true": safetensors_file({"x": tensor(shape=(True, 4))}),
    "another type": safetensors_file({"x": tensor(dtype="F64")}),
    "a type of its own": safetensors_file({"x": tensor(dtype="PICKLE")}),
    "a type that is a list": safetensors_file({"x": tensor(dtype=["F32"])}),
    "no type": safetensors_file({"x": {"shape": [4], "data_offsets": [0, 16]}}),
    "no place": safetensors_file({"x": {"shape": [4], "dtype": "F32"}}),
    "a place of three": safetensors_file({"x": {"shape": [4], "dtype": "F32", "data_offsets": [0, 16, 16]}}),
    "a place in words": safetensors_file({"x": {"shape": [4], "dtype": "F32", "data_offsets": ["0", "16"]}}),
    "a place of NaN": safetensors_file(b'{"x": {"shape": [4], "dtype": "F32", "data_offsets": [NaN, 16]}}'),
    "a name twice": safetensors_file(b'{"x": %s, "x": %s}' % ((json.dumps(tensor()).encode(),) * 2)),
    "a name that speaks": safetensors_file({"\x1b[2J" * 50: tensor(shape=(5,))}),
}  # fmt: skip


@pytest.mark.parametrize("content", LYING.values(), ids=LYING)
def test_a_header_that_lies_is_refused_by_the_name_of_its_file(content, tmp_path):
    file = tmp_path / "model-00001.safetensors"
    file.write_bytes(content)
    with pytest.raises(
        PairError, match=r"^the model: .*model-00001.safetensors .*ownload or save it again\.$"
    ) as refusal:
        headers_in(file, "the model")
    assert str(refusal.value).isprintable() and len(str(refusal.value)) < 500


def test_a_header_that_tells_the_truth_is_read(tmp_path):
    file = tmp_path / "x.safetensors"
    file.write_bytes(WHOLE)
    assert {name: header.shape for name, header in headers_in(file, "m").items()} == {"x": (2,), "y": (1, 2)}


@pytest.mark.parametrize("content", (LYING["two in one place"], LYING["a name twice"], LYING["an endless header"]))
def test_adapters_and_transcoders_are_read_by_the_same_eyes(content, tmp_path):
    for name in ("adapter_model.safetensors", "model.safetensors"):
        (tmp_path / name).write_bytes(content)
    (tmp_path / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "r": 1, "target_modules": ["q_proj"]})
    )
    for read in (lora.check, lora.shapes, lambda folder: TranscoderFiles(str(folder))._shards()):
        with pytest.raises(PairError, match="model.safetensors"):
            read(tmp_path)


# -- terminals -------------------------------------------------------------------------------------------------------


def test_what_data_says_to_a_terminal_is_shown_and_not_obeyed(caplog):
    said = "a\x1b[2J\x1b]0;t\x07\r\x9b1m\u202eb\ud800\tc\nd東京🙂"
    shown = "a\\x1b[2J\\x1b]0;t\\x07\\r\\x9b1m\\u202eb\\ud800\tc\nd東京🙂"
    assert printable(said) == shown and str(Refused(said)) == shown and printable(shown) == shown


def test_every_line_of_a_log_and_the_last_words_of_a_program_are_printable():
    program = (
        "import logging, sys; from tunediff.terminal import guard; guard(); logging.basicConfig(stream=sys.stdout)\n"
        "logging.getLogger('x').warning('%s', '\\x1b[2J'); raise RuntimeError('\\x1b]0;owned\\x07')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "\x1b" not in done.stdout + done.stderr and "\x07" not in done.stderr
    assert "\\x1b[2J" in done.stdout and "RuntimeError: \\x1b]0;owned\\x07" in done.stderr


# -- spreadsheets ----------------------------------------------------------------------------------------------------

COMPUTED = ("=1+1", "+1+1", "-1+1", "@SUM(A1)", "\t=1", "\r=1", "=cmd|' /C calc'!A0", "＝1+1", '=HYPERLINK("http://x")')


def test_a_name_that_a_spreadsheet_would_compute_is_text_in_metrics(tmp_path):
    logger = Csv(str(tmp_path))
    logger.log_metrics({"=cmd": 1.0, "loss": -2.5}, step=0)
    logger.save()
    head, row = (tmp_path / "csv" / "metrics.csv").read_text().splitlines()
    assert sorted(head.split(",")) == ["'=cmd", "loss", "step"] and "-2.5" in row.split(",")


# -- the page --------------------------------------------------------------------------------------------------------

# what each tries: to leave its script, its attribute, its element; to be an address; to be a template of the page's own
ESCAPES = (
    '</script><script>owned = 1</script><img src=x onerror="owned = 1">"\'><svg onload=owned=1><iframe src=javascript:owned=1>'
    "</title></style><style>*{display:none}</style><base href=//x>{{SCRIPT}}${owned=1}<!--<script>&lt;b&gt;&#60;\u2028]]>"
)


LABEL = ESCAPES.replace("/", "")


def hostile(value):
    """The value with the escapes behind every text in it."""
    return f"{value}{ESCAPES}" if isinstance(value, str) else value


STRUCTURE = {"role", "model", "kind", "segments", "sign", "written", "of", "by", "group", "which", "question", "place", "gate", "condition", "reference"}  # fmt: skip


def with_escapes(tables):
    """Tables of a run with the escapes in every column of free text."""
    made = {}
    for name, columns in tables.items():
        made[name] = {
            column: values if column in STRUCTURE and not name.endswith("_outputs") else
            [[hostile(v) for v in one] if isinstance(one, list) else hostile(one) for one in values]
            for column, values in columns.items()
        }  # fmt: skip
    return made


def assert_inert(browser, path, fragment="", script=""):
    """Opens the page, does what is asked, and finds no script run, no element that is not the page's own, and every part of
    the text there as text."""
    page = browser.open(path, fragment)
    page.run(script + " await new Promise((done) => setTimeout(done, 50));")
    found = page.run(
        "return [typeof owned, document.title.includes('script'), document.querySelectorAll('iframe, object, embed, base').length,"
        " document.querySelectorAll('img').length, document.scripts.length, document.querySelectorAll('style').length,"
        " [...document.querySelectorAll('*')].filter((e) => [...e.attributes].some((a) => a.name.startsWith('on'))).length,"
        " [...document.querySelectorAll('a')].filter((a) => /^(javascript|data):/i.test(a.href) && !a.download).length,"
        " document.body.textContent.includes('owned = 1'), getComputedStyle(document.querySelector('h1')).display];"
    )
    scripts = path.read_text().count("</script>")
    assert found[0] == "undefined" and found[2:8] == [0, 0, scripts, 1, 0, 0], found
    assert found[8] and found[9] != "none"
    return page


def hostile_study(folder):
    """Findings, notes, labels, figures, training curves: every text in them tries to be more."""
    names = (
        "fidelity/explained_variance/base",
        "geometry/count/shared",
        f"label_alignment/{ESCAPES}/auroc",
        f"x/{ESCAPES}",
    )
    findings = [Finding(name, 0.5, 0.4, 0.6, ESCAPES, ESCAPES, ESCAPES, ESCAPES) for name in names]
    findings.append(Finding(f"label_alignment/{LABEL}/latent", 7))
    figures = [
        Figure(
            f"f/{kind}/{ESCAPES}", kind, {"x": [1, 2] if kind in ("lines", "points") else [ESCAPES, "b"], ESCAPES: [ESCAPES, "c"], "y": [0.5, 0.7], ESCAPES + "!": [ESCAPES, "u"]},
            "x", ["y"], section=f"s {ESCAPES}", title=f"t {ESCAPES}", caption=ESCAPES, group=ESCAPES, facet=ESCAPES + "!" if kind != "heat" else None, words={"x": ESCAPES, "y": ESCAPES},
        )
        for kind in ("lines", "points", "bars", "intervals", "heat")
    ]  # fmt: skip
    study = dict.fromkeys(("model_pair", "dictionary", "hookpoint", "layer", "streams", ESCAPES), ESCAPES)
    write_findings(
        folder,
        [*findings, *figures, Note(ESCAPES)],
        {"identity": ESCAPES, "study": study | {"tokens": 1, "latents": 40}},
    )


@in_browser
@pytest.mark.parametrize("kind", ("latents", "behaviour", "graphs"))
def test_no_text_of_a_run_is_more_than_text_on_its_page(kind, browser, tmp_path):
    folder = tmp_path / "x'><b>"
    made = {"latents": test_report, "behaviour": test_behaviour_page, "graphs": test_graph_page}[kind]
    content = {} if kind == "latents" else with_escapes(made.tables())
    if kind == "latents":
        made.make_run(folder)
        content = {
            path.stem: with_escapes({path.stem: pyarrow.parquet.read_table(path).to_pydict()})[path.stem]
            for path in (folder / "tables").glob("*.parquet")
        }
        content["latents"][f"auroc/{ESCAPES}"] = content["latents"]["firing_rate"]
        content["latent_classes"] = {"latent": [7], "class": [ESCAPES], "domain": [ESCAPES], "mechanism": [ESCAPES], "reason": [ESCAPES]}  # fmt: skip
        (folder / "findings.json").unlink()
    (folder / "tables").mkdir(parents=True, exist_ok=True)
    for name, columns in content.items():
        pyarrow.parquet.write_table(pyarrow.table(columns), folder / "tables" / f"{name}.parquet")
    hostile_study(folder)
    choose = "s.selectedIndex = s.options.length - 1; s.dispatchEvent(new Event('change'));"
    everything = f"document.querySelectorAll('select').forEach((s) => {{ {choose} }});"
    if kind == "latents":
        assert_inert(browser, write_report(folder), "#latent-7", f"await wait(() => !panel().hidden); {everything}")
    else:
        assert_inert(browser, write_report(folder), script=everything)


@in_browser
def test_no_text_of_a_run_is_more_than_text_where_runs_are_compared(browser, tmp_path):
    for number in range(2):
        folder = tmp_path / "sweep" / f"javascript:owned=1'\"><b>{number}"
        folder.mkdir(parents=True)
        settings = {
            "settings": {"layer": f"{number}{ESCAPES}", ESCAPES: f"{number}{ESCAPES}"},
            "identity": f"{number}{ESCAPES}",
        }
        (folder / "identity.json").write_text(json.dumps(settings))
        (folder / "state.json").write_text(json.dumps({"state": f"failed {ESCAPES}", "error": ESCAPES, "job": ESCAPES}))
        hostile_study(folder)
        (folder / "run.log").write_text("x")
        write_report(folder)
    page = assert_inert(browser, write_comparison(members_under([tmp_path / "sweep"]), tmp_path / "sweep"))
    links = page.run("return [...document.querySelectorAll('#members a')].map((a) => a.href);")
    assert len(links) == 2 and all(link.startswith("file://") and link.endswith("report.html") for link in links)
    assert all(Path(urllib.parse.unquote(urllib.parse.urlsplit(link).path)).is_file() for link in links)


TRIED = (
    "const s = document.createElement('script'); s.append('owned = 1'); document.body.append(s);",
    "document.body.innerHTML = '<img src=x onerror=owned=1>';",
    "document.body.insertAdjacentHTML('beforeend', '<b onclick=owned=1>'); document.querySelector('b').click();",
    "const a = document.createElement('a'); a.href = 'javascript:owned=1'; document.body.append(a); a.click();",
    "document.body.setAttribute('onclick', 'owned = 1'); document.body.click();",
    "setTimeout('owned = 1', 0);",
    "const f = document.createElement('iframe'); f.srcdoc = '<script>parent.owned = 1</scr' + 'ipt>'; document.body.append(f);",
    "await fetch('data:,x'); await fetch('file:///etc/hostname'); owned = 1;",
)


@in_browser
@pytest.mark.parametrize("attempt", TRIED)
def test_the_policy_lets_no_other_script_run_and_nothing_be_fetched(browser, tmp_path, attempt):
    path = test_report.make_run(tmp_path / "run")
    text = path.read_text()
    (tmp_path / "open.html").write_text(re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text))
    found = []
    for place in (path, tmp_path / "open.html"):
        page = browser.open(place)
        script = (
            f"(async () => {{ {attempt} }})().catch(() => 0).then(() => new Promise((done) => setTimeout(done, 40)))"
        )
        browser("Runtime.evaluate", page.session, expression=script, awaitPromise=True)
        browser.complaints.clear()  # the policy says what it stopped
        found.append(page.run("return typeof owned;"))
        browser.complaints.clear()
    assert found[0] == "undefined" and (found[1] == "number" or "fetch" in attempt)


def test_the_policy_names_the_one_script_and_the_one_style_of_the_page(tmp_path):
    text = test_report.make_run(tmp_path / "run").read_text()
    for tag in ("script", "style"):
        (inside,) = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.S)
        digest = base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}';" in text and "unsafe" not in text[: text.index("<title>")]


@in_browser
def test_what_is_saved_for_a_spreadsheet_is_not_computed_by_it(browser, tmp_path):
    page = browser.open(test_report.make_run(tmp_path / "run"))
    cells = [*COMPUTED, "a", "-1.5", "-", "1e-05", " =1", 'a"b', -1.5, 3, None, "+3e+07"]
    saved = page.run(f"return csv(['=head', 'b'], {json.dumps([[cell, cell] for cell in cells])});")
    (head, *rows) = list(csv.reader(io.StringIO(saved, newline="")))
    assert head == ["'=head", "b"]
    wanted = [f"'{cell}" for cell in COMPUTED] + ["a", "-1.5", "'-", "1e-05", " =1", 'a"b', "-1.5", "3", "", "+3e+07"]
    assert [row[0] for row in rows] == wanted


# -- packages --------------------------------------------------------------------------------------------------------


def test_every_locked_package_has_a_licence_that_asks_no_more_than_to_be_named():
    packages = [one for one in dependencies.licences() if one.says != "not installed here"]
    assert len(packages) > 100
    assert not [one for one in packages if one.licence not in (*dependencies.FREE, *dependencies.NAMED)]


def test_an_advisory_holds_for_the_versions_that_it_names(tmp_path):
    (tmp_path / "vulns" / "jinja2").mkdir(parents=True)
    ranged = "{type: ECOSYSTEM, events: [{introduced: '0'}, {fixed: '2.0'}, {introduced: 3.0rc1}, {fixed: 3.1.6}]}"
    told = f"{{id: PYSEC-1, details: a hole, affected: [{{ranges: [{ranged}], versions: [9.0]}}]}}"
    (tmp_path / "vulns" / "jinja2" / "PYSEC-1.yaml").write_text(told.replace("9.0", "'9.0'"))
    lock = tmp_path / "lock.txt"
    holds = {"1.9": 1, "2.0": 0, "2.5": 0, "3.0": 1, "3.1.5": 1, "3.1.6": 0, "9.0": 1}
    for version, count in holds.items():
        lock.write_text(f"# a lock\njinja2=={version}\nother==1\n")
        assert len(list(dependencies.advisories(tmp_path, lock))) == count, version


# -- all of it at random ---------------------------------------------------------------------------------------------


def test_nothing_that_strangers_bring_is_let_through_ends_in_a_traceback_or_hangs():
    found = list(strangers.cases(150, seed=4))
    assert not [case for case in found if case["outcome"] in strangers.BAD]
    assert {"refused", "equal"} == {case["outcome"] for case in found}
