"""What strangers bring, at random: chat templates, headers of weights, answers of an endpoint, a key repeated, names of files.

    python bench/campaigns/strangers.py [--count 2000] [--seed 0]

Refused in a sentence and equal are well. Equal is: a template that ended says what it says without limits; a header that is
read is read by the safetensors library too, with the same shapes; an answer is a text; of a key no piece is left; a name
lies in its folder. A traceback, a hang, and anything that is let through without a word are not.
"""

from __future__ import annotations

import base64
import json
import os
import random
import socket
import struct
import sys
import tempfile
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import safetensors
import transformers.utils.chat_template_utils as theirs

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from campaigns.told import Hang, limited, main
from tunediff import randomness
from tunediff.evaluations.judging.chat import Judge
from tunediff.evaluations.judging.endpoint import PIECE, without
from tunediff.models.files import BITS, headers_in
from tunediff.shapes import Refused, path_in
from tunediff.terminal import printable
from tunediff.text import metering, sandbox
from tunediff.text.templates import prompt_of

SECONDS = 0.3  # of a template, and of an answer
LONGEST = 10.0  # of a case
TALK = [{"role": "system", "content": "Be"}, {"role": "user", "content": "2 + 2"}]


# -- chat templates --------------------------------------------------------------------------------------------------


class Templated:
    """As much of a tokenizer as rendering takes."""

    bos_token = eos_token = "<end>"
    bos_token_id = eos_token_id = 0

    def __init__(self, chat_template: str):
        self.chat_template = chat_template

    def apply_chat_template(self, conversation: list, *, tokenize: bool, chat_template: str, **options: Any) -> str:
        (rendered,), _ = theirs.render_jinja_template([conversation], chat_template=chat_template, **options)
        return rendered


ATOMS = "1 0 -1 2.5 'a' '' 'a{}' '%s' '%9d' none true x n.x messages messages[0].content messages|length bos_token [] {} loop namespace dict range cycler joiner raise_exception 99999 10**6 10**9 2**70".split()
FILTERS = (*sorted(sandbox.FILTERS), "batch(9)", "center(999999)", "pprint", "join('ab')", "replace('', 'aaaa')", "indent(99999)", "tojson(indent=9)", "map('list')|list", "map('upper')|join", "select('in', 'abc')|list", "sum(start=[])", "attr('__class__')", "wordwrap(1)", "slice(99999)", "format(1, 2)", "default('y' * 9999)", "int", "round(99, 'ceil')")  # fmt: skip
METHODS = ("center(10**8)", "join(messages)", "replace('', x)", "split()", "format(x, x)", "format_map({'a': x})", "__class__", "__init__.__globals__", "items()|list", "upper()", "encode()", "count('')", "append(x)", "zfill(10**9)", "to_bytes(10**8)", "__mro__", "copy()", "gi_frame", "title()", "translate({97: 'b' * 99999})", "splitlines()", "func_globals")  # fmt: skip
OPERATORS = "+ - * / // % ** ~ == != < and or in".split()


def expression(chance: random.Random, depth: int) -> str:
    if depth == 0 or chance.random() < 0.2:
        return chance.choice(ATOMS)
    inner = [expression(chance, depth - 1) for _ in range(2)]
    kind = chance.randrange(7)
    if kind == 0:
        return f"({inner[0]})|{chance.choice(FILTERS)}"
    if kind == 1:
        return f"({inner[0]}).{chance.choice(METHODS)}"
    if kind == 2:
        return f"[{inner[0]}, {inner[1]}]"
    if kind == 3:
        return f"({inner[0]})[{chance.choice(('0', '::-1', ':9', repr('x')))}]"
    if kind == 4:
        return f"{chance.choice(('range', 'namespace', 'dict', 'm', 'cycler'))}({chance.choice(('', 'x=', 'a='))}{inner[0]})"
    return f"({inner[0]}) {chance.choice(OPERATORS)} ({inner[1]})"


def statement(chance: random.Random, depth: int) -> str:
    of, inner = expression(chance, 3), statement(chance, depth - 1) if depth else ""
    return chance.choice(
        (
            f"{{{{ {of} }}}}",
            f"{{% set n.x = {of} %}}{inner}",
            f"{{% set x %}}{{{{ x }}}}{inner}{{{{ n.x }}}}{{% endset %}}",
            f"{{% for x in {chance.choice((of, 'range(99999)', 'messages', 'range(9)', 'x'))} %}}{inner}{{% endfor %}}",
            f"{{% for i in range(40) %}}{{% set n.x = {chance.choice(('[n.x, n.x]', 'n.x ~ n.x', 'n.x + n.x', 'n.x * 9', 'n.x|join(n.x)', of))} %}}{{% endfor %}}{inner}",
            f"{{% macro m(x) %}}{inner}{{{{ x }}}}{chance.choice(('', '{{ m(x) }}'))}{{% endmacro %}}{{{{ m({of}) }}}}",
            f"{{% if {of} %}}{inner}{{% else %}}{inner}{{% endif %}}",
            f"{{% filter {chance.choice(FILTERS)} %}}{inner}{{{{ n.x }}}}{{% endfilter %}}",
            f"{inner}{{{{ {of} }}}}{inner}",
        )
    )


def template(chance: random.Random, folder: Path) -> tuple[str, str, str]:
    honest = "{% for m in messages %}{{ m.content }}{% endfor %}"
    text = "{% set n = namespace(x='ab') %}{% set x = 'cd' %}" + statement(chance, chance.randrange(4)) + honest
    try:
        said = prompt_of(TALK, Templated(text))
    except Refused as refusal:
        wrong = "traceback" if "MemoryError" in str(refusal) else "refused"
        return text, wrong if shown(str(refusal)) else "silent", str(refusal)
    # what ended within the limits ends without them
    same = sandbox.UNLIMITED(text).render(messages=TALK, add_generation_prompt=True, tools=None, documents=None)
    return text, "equal" if _alike(said, same) else "silent", said[:200]


def _alike(said: str, same: str) -> bool:
    """True for two texts that differ in nothing but the places of objects in memory."""
    return said == same or "0x" in f"{said}{said[::-1]}".lower()


# -- headers ---------------------------------------------------------------------------------------------------------


def header(chance: random.Random, folder: Path) -> tuple[str, str, str]:
    """A file of a few tensors, with one thing wrong, or none."""
    told: dict[str, Any] = {}
    place = 0
    for n in range(chance.randrange(1, 4)):
        dtype, shape = chance.choice(sorted(BITS)), [chance.choice((1, 2, 4)) for _ in range(chance.randrange(1, 3))]
        bits = BITS[dtype]
        for number in shape:
            bits *= number
        told[f"t{n}"] = {"dtype": dtype, "shape": shape, "data_offsets": [place, place + bits // 8]}
        place += bits // 8
    one, number = chance.choice(list(told.values())), chance.choice((0, -1, 1, 2, 3, 2**31, 2**63, 2**64, 10**30, 1.5, "1", None, True))  # fmt: skip
    wrong = chance.randrange(10)
    if wrong == 0:
        one["data_offsets"][chance.randrange(2)] = number
    elif wrong == 1:
        one["shape"][0] = number
    elif wrong == 2:
        one["dtype"] = chance.choice([*BITS, "F31", "", None, 3, ["F32"], {}])
    elif wrong == 3:
        del one[chance.choice(list(one))]
    elif wrong == 4:
        one["shape"] = chance.choice(([], [[]], "4", None, {}, [number] * 3))
    elif wrong == 5:
        told["__metadata__"] = chance.choice(({"a": "b"}, {"a": 1}, [], "x", None))
    text = json.dumps(told).encode()
    if wrong == 6:
        spot = chance.randrange(len(text))
        text = text[:spot] + bytes([chance.randrange(256)]) + text[spot + 1 :]
    length = chance.choice((0, 1, len(text) - 1, len(text) + 8, 2**40, 2**63, 2**64 - 1)) if wrong == 7 else len(text)
    data = b"\0" * max(0, place + (chance.choice((-1, 1, 8)) if wrong == 8 else 0))
    content = struct.pack("<Q", length) + text + data
    file = folder / "x.safetensors"
    file.write_bytes(content)
    try:
        found = headers_in(file, "the model")
    except Refused as refusal:
        return text.decode(errors="replace"), "refused" if file.name in str(refusal) else "silent", str(refusal)
    try:
        with safetensors.safe_open(file, framework="np") as read:
            shapes = {name: tuple(read.get_slice(name).get_shape()) for name in read.keys()}  # noqa: SIM118
    except safetensors.SafetensorError as error:
        return text.decode(errors="replace"), "silent", f"the library: {error}"
    same = shapes == {name: one.shape for name, one in found.items()}
    return text.decode(errors="replace"), "equal" if same else "silent", ""


# -- answers of an endpoint ------------------------------------------------------------------------------------------

KEY = "sk-proj-A1b2C3d4E5f6G7h8I9j0K1l2M3n4O5p6Q7"


def answered(chance: random.Random, folder: Path) -> tuple[str, str, str]:
    whole = json.dumps({"choices": [{"message": {"content": chance.choice(("yes", KEY, "\x1b[2J", None, 3, [], {}))}}]})
    heads = (*("HTTP/1.1 200 OK\r\n",) * 6, "HTTP/1.1 302 Found\r\nLocation: http://10.0.0.1/\r\n", "HTTP/1.0 429 x\r\n", "HTTP/1.1 500 \x1b[2J\r\n", "HTTP/9 200\r\n", "")  # fmt: skip
    more = (*("",) * 4, "Transfer-Encoding: chunked\r\n", f"Content-Length: {chance.choice((0, 5, len(whole), 10**9, -1, 10**30))}\r\n", f"X: {KEY}\r\n", "Content-Encoding: gzip\r\n")  # fmt: skip
    body = bytearray((chance.choice(heads) + chance.choice(more) + "\r\n" + whole).encode("latin-1", "replace"))
    for _ in range(chance.choice((0, 0, 1, 5, 50))):
        body[chance.randrange(len(body))] = chance.randrange(256)
    if chance.random() < 0.1:
        body += b" " * 3_000_000
    listening, drips = socket.create_server(("127.0.0.1", 0)), chance.random() < 0.1

    def serve() -> None:
        connection, _ = listening.accept()
        with connection:
            connection.settimeout(3)
            try:
                said = b""
                while b'"max_tokens"' not in said:
                    said += connection.recv(1 << 16)
                for part in (bytes([byte]) for byte in body) if drips else (bytes(body),):
                    connection.sendall(part)
                    time.sleep(0.02 if drips else 0)
            except OSError:
                pass

    thread = threading.Thread(target=serve)
    thread.start()
    os.environ["STRANGERS_KEY"] = KEY
    judge = Judge(endpoint=f"http://127.0.0.1:{listening.getsockname()[1]}/v1", model="m", examples=6, most_calls=9, retries=0, timeout=SECONDS, key_variable="STRANGERS_KEY")  # fmt: skip
    done = bytes(body[:300]).decode("latin-1")
    try:
        said = judge.chat("evaluation.x.judge").ask("", "")  # type: ignore[union-attr]
        outcome = "equal" if isinstance(said, str) else "silent"
    except Refused as refusal:
        said, outcome = str(refusal), "refused" if shown(str(refusal)) else "silent"
    finally:
        thread.join()
        listening.close()
    return done, "silent" if left_of(KEY, said) else outcome, said[:200]


def left_of(key: str, said: str) -> bool:
    """True where a piece of the key can be read in a text, signs between its letters left out."""
    letters = ["".join(filter(str.isalnum, part)).lower() for part in said.split("<key>")]
    plain = "".join(filter(str.isalnum, key)).lower()
    return any(plain[n : n + PIECE] in part for part in letters for n in range(len(plain) - PIECE + 1))


WAYS: tuple[Callable[[str], str], ...] = (
    str,
    str.upper,
    " ".join,
    "\n".join,
    "\u200b".join,
    lambda text: json.dumps(text),
    lambda text: urllib.parse.quote(text, safe=""),
    lambda text: "".join(f"%{byte:02x}" for byte in text.encode()),
    lambda text: "".join(f"\\u{ord(letter):04X}" for letter in text),
    lambda text: "".join(f"&#{ord(letter)};" for letter in text),
    lambda text: "".join(f"\\U{ord(letter):08x}" for letter in text),
    lambda text: "".join(f"\\u{{{ord(letter):x}}}" for letter in text),
    lambda text: "".join(f"\\x{byte:02x}" for byte in text.encode()),
    lambda text: f"{text[: len(text) // 2]} ... {text[len(text) // 2 :]}",
)


def repeated(chance: random.Random, folder: Path) -> tuple[str, str, str]:
    """A key of this shape or that, told in up to two ways at once; the last may be base64 or hexadecimal."""
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    key = chance.choice(("sk-", "sk-ant-", "hf_", "")) + "".join(
        chance.choices(letters, k=chance.choice((24, 40, 100)))
    )
    said = key
    for way in chance.choices(WAYS, k=chance.choice((1, 2))):
        said = way(said)
    if chance.random() < 0.2:
        raw = b"x" * chance.randrange(3) + key.encode()
        said = chance.choice((base64.b64encode(raw).decode(), base64.urlsafe_b64encode(raw).decode(), raw.hex()))
    masked = without(key, f"It says {said} there.")
    whole = masked.startswith("It says ") and masked.endswith(" there.") and "<key>" in masked
    left = [part for part in masked[8:-7].split("<key>") if len("".join(filter(str.isalnum, part))) > 40]
    return said, "equal" if whole and not left_of(key, masked) and not left else "silent", masked


# -- names -----------------------------------------------------------------------------------------------------------


def named(chance: random.Random, folder: Path) -> tuple[str, str, str]:
    parts = ("..", "/", "\\", "a", ".", "\0", "\n", "\x1b", "é", "~", "-", " ", "x" * 90, "\ud800", "\u202e", "\u2215")
    name = "".join(chance.choices(parts, k=chance.randrange(4)))
    try:
        path = path_in(folder / "named", name, "Table", ".txt")
    except Refused as refusal:
        return repr(name), "refused" if shown(str(refusal)) else "silent", str(refusal)
    (folder / "named").mkdir(exist_ok=True)
    path.write_text("x")
    inside = [one.name for one in (folder / "named").iterdir()] == [path.name]
    path.unlink()
    return repr(name), "equal" if inside else "silent", str(path)


def shown(text: str) -> bool:
    """True for what a terminal shows and does not obey."""
    return printable(text) == text


KINDS = (template, header, answered, repeated, named)


def cases(count: int, seed: int) -> Iterator[dict]:
    """Yields a case: what was done, its outcome, and what was said."""
    chance, before = randomness.chance(seed, "campaign of strangers"), metering.SECONDS
    metering.SECONDS = SECONDS

    place = os.getcwd()
    try:
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            for number in range(count):
                kind = KINDS[number % len(KINDS)]
                made = Path(folder) / "made"
                made.mkdir(exist_ok=True)
                try:
                    with limited(LONGEST):
                        done, outcome, said = kind(chance, made)
                except Hang:
                    done, outcome, said = "", "hang", ""
                except Exception as error:
                    done, outcome, said = "", "traceback", f"{type(error).__name__}: {error}"[:300]
                if {path.name for path in Path(folder).iterdir()} != {"made"}:
                    outcome = "ran code"
                yield {"done": f"{kind.__name__}: {number} {done}", "outcome": outcome, "sentence": said}
    finally:
        metering.SECONDS = before
        os.chdir(place)


if __name__ == "__main__":
    main(cases, __doc__ or "", count=2000)
