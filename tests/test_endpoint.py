"""An endpoint is a stranger: what it may not do with the key, the time, the memory and the reader of its answers."""

import base64
import json
import socket
import threading
import time
import urllib.parse

import pytest

from fake_endpoint import Endpoint
from tunediff.evaluations import Judge
from tunediff.evaluations.judging import chat, endpoint
from tunediff.evaluations.judging.endpoint import PIECE, inside, without
from tunediff.shapes import Refused

KEY = "sk-proj-A1b2C3d4E5f6G7h8I9j0K1l2M3n4O5p6Q7"
PIECES = {KEY[n : n + PIECE] for n in range(len(KEY) - PIECE + 1) if KEY[n : n + PIECE].isalnum()}


@pytest.fixture(scope="module")
def server():
    server = Endpoint()
    yield server
    server.close()


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    monkeypatch.setenv("MY_KEY", KEY)
    monkeypatch.setattr(chat, "PAUSE", 0.01)


def judge(address, **settings):
    wanted = {"endpoint": address, "model": "rule", "examples": 6, "most_calls": 9, "retries": 0, "timeout": 5.0}
    return Judge(**{**wanted, "key_variable": "MY_KEY", **settings}).chat("evaluation.x.judge")


class Raw:
    """A server that does with each connection what it is told."""

    def __init__(self, act):
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self.socket.getsockname()[1]}/v1"
        self.asked, self.act, self.ended = [], act, threading.Event()
        self.thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self):
        self.thread.start()
        return self

    def _serve(self):
        while not self.ended.is_set():
            try:
                connection, _ = self.socket.accept()
            except OSError:
                return
            with connection:
                connection.settimeout(5)
                try:
                    self.asked.append(request_on(connection))
                    self.act(connection, self.ended)
                except OSError:
                    pass

    def __exit__(self, *_):
        self.ended.set()
        self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()
        self.thread.join()


def request_on(connection):
    """All of a request; the first bytes of what is none."""
    said = b""
    while part := connection.recv(1 << 16):
        said += part
        head, blank, body = said.partition(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].split(b"\r")[0] or 0)
        if said[:4] != b"POST" or blank and len(body) >= length:
            break
    return said


def saying(head, *parts):
    def act(connection, ended):
        connection.sendall(head)
        for part in parts:
            connection.sendall(part)

    return act


OK = b"HTTP/1.1 200 OK\r\n"


# -- elsewhere -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", (301, 302, 303, 307, 308))
def test_nobody_is_followed_elsewhere(server, status):
    other = Endpoint()
    server.rule = lambda asked: (status, {}, ("Location", f"{other.endpoint}/chat?key={KEY}"))
    with pytest.raises(Refused, match=rf"sends its callers on to http.*key=<key> \(status {status}\)") as refusal:
        judge(server.endpoint).ask("", "")
    other.close()
    assert not other.asked and not other.gone_to and not server.gone_to and KEY not in str(refusal.value)


@pytest.mark.parametrize(
    "address",
    ("10.0.0.7", "192.168.1.1:8000", "172.16.0.1", "169.254.169.254", "[fe80::1]", "[fd00::1]", "[::ffff:10.0.0.7]")
    + ("[2002:a00:1::]", "[64:ff9b::a00:7]", "0.0.0.0", "100.64.0.1", "gpu-3:8000", "metadata.google.internal")
    + ("box.local", "2130706433"),
)
def test_a_private_address_is_asked_where_that_was_agreed_to(address):
    with pytest.raises(Refused, match=r"private network, to which text .* add evaluation.x.judge.private=true"):
        judge(f"http://{address}/v1")
    assert judge(f"http://{address}/v1", private=True)


def test_this_machine_and_public_ones_need_no_leave():
    for host in ("localhost", "127.0.0.1", "::1", "api.example.com", "8.8.8.8", "2606:4700::1111"):
        assert inside(host) == ""


def test_a_public_name_that_stands_for_a_private_address_is_never_connected_to(server, monkeypatch):
    port = urllib.parse.urlsplit(server.endpoint).port
    looked_up = []

    def of(host, port, *rest, **options):
        looked_up.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]

    monkeypatch.setattr(endpoint.socket, "getaddrinfo", of)
    server.rule = lambda asked: "yes"
    server.asked.clear()
    with pytest.raises(Refused, match="api.example.com stands for 127.0.0.1, and .* is an address of a private"):
        judge(f"http://api.example.com:{port}/v1").ask("", "")
    assert not server.asked
    assert judge(f"http://api.example.com:{port}/v1", private=True).ask("", "") == "yes"
    assert len(looked_up) == 2, "a name that is looked up twice may stand for another address the second time"


@pytest.mark.parametrize("addresses", (["8.8.8.8", "10.0.0.7"], ["8.8.8.8", "2606:4700::1111", "fd00::1"]))
def test_a_name_with_one_private_address_among_public_ones_is_never_connected_to(monkeypatch, addresses):
    """Whoever tries one address after another would come to it in the end."""
    found = [(socket.AF_INET6 if ":" in one else socket.AF_INET, 1, 6, "", (one, 80)) for one in addresses]
    monkeypatch.setattr(endpoint.socket, "getaddrinfo", lambda *_, **__: found)
    tried = []
    monkeypatch.setattr(endpoint.socket, "socket", lambda *_: tried.append(1))
    with pytest.raises(Refused, match=f"api.example.com stands for {addresses[-1]}, and .* is an address of a private"):
        judge("http://api.example.com/v1").ask("", "")
    assert not tried


def test_a_host_that_does_not_answer_at_its_first_address_is_asked_at_the_next(server, monkeypatch):
    ports = (1, urllib.parse.urlsplit(server.endpoint).port)
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port)) for port in ports]
    monkeypatch.setattr(endpoint.socket, "getaddrinfo", lambda *_, **__: found)
    server.rule = lambda asked: "yes"
    assert judge("http://localhost:9/v1").ask("", "") == "yes"


def test_a_proxy_of_the_environment_is_used_and_said_but_never_for_this_machine(server, monkeypatch, caplog):
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    asked = []

    def act(connection, ended):
        asked.append(True)
        connection.sendall(OK + b"\r\n" + json.dumps({"choices": [{"message": {"content": "by proxy"}}]}).encode())

    with Raw(act) as proxy:
        monkeypatch.setenv("http_proxy", proxy.address.removesuffix("/v1").replace("//", "//me:word@"))
        chat_by = judge("http://api.example.com/v1")
        assert chat_by.ask("", "") == "by proxy"
        head = proxy.asked[0].decode()
        assert head.startswith("POST http://api.example.com/v1/chat/completions HTTP/1.1\r\n")
        assert f"Proxy-Authorization: Basic {base64.b64encode(b'me:word').decode()}" in head
        server.rule = lambda asked: "straight"
        assert judge(server.endpoint).ask("", "") == "straight" and len(asked) == 1
        with caplog.at_level("INFO"):
            chat_by.announce("x:", 1, 4)
        assert "through the proxy 127.0.0.1 of the environment" in caplog.text and "word" not in caplog.text
    monkeypatch.setenv("http_proxy", "socks5://127.0.0.1:1")
    with pytest.raises(Refused, match="http_proxy names a proxy by socks5:// .* no_proxy=api.example.com"):
        judge("http://api.example.com/v1")


# -- time and size ---------------------------------------------------------------------------------------------------


def dripping(head):
    """Sends a byte every few milliseconds, for ever."""

    def act(connection, ended):
        connection.sendall(head)
        while not ended.wait(0.02):
            connection.sendall(b" ")

    return act


@pytest.mark.parametrize(
    "head", (b"", b"HTTP/1.1 ", OK + b"X-Slow: ", OK + b"\r\n", OK + b"Content-Length: 900\r\n\r\n")
)
def test_an_answer_that_drips_past_the_timeout_is_given_up(head):
    began = time.monotonic()
    with Raw(dripping(head)) as slow, pytest.raises(Refused, match="no answer after 1 try: no whole answer in 0.3 s"):
        judge(slow.address, timeout=0.3).ask("", "")
    assert time.monotonic() - began < 2
    assert not [one for one in threading.enumerate() if isinstance(one, threading.Timer) and not one.finished.is_set()]


def test_one_that_never_shakes_hands_is_given_up():
    began = time.monotonic()
    with Raw(dripping(b"\x16\x03\x03\x40\x00")) as slow, pytest.raises(Refused, match="no answer after 1 try"):
        judge(slow.address.replace("http", "https"), timeout=0.3).ask("", "")
    assert time.monotonic() - began < 2


@pytest.mark.parametrize("declared", (True, False))
def test_an_answer_of_400_megabytes_is_not_read(declared):
    sent = []

    def act(connection, ended):
        connection.sendall(OK + (b"Content-Length: 400000000\r\n" if declared else b"") + b"\r\n")
        for _ in range(400):
            connection.sendall(b" " * 10**6)
            sent.append(1)

    with Raw(act) as large, pytest.raises(Refused, match="an answer of .* bytes, which no chat endpoint does"):
        judge(large.address).ask("", "")
    assert len(sent) < 40


# -- shape -----------------------------------------------------------------------------------------------------------

DEEP = "[" * 200_000 + "]" * 200_000
BODIES = {
    "a list": "[]",
    "null": "null",
    "a number": "7",
    "deep": DEEP,
    "deep within": '{"choices": ' + DEEP + "}",
    "choices of none": '{"choices": []}',
    "choices by name": '{"choices": {"0": 1}}',
    "content in a list": '{"choices": [{"message": {"content": ["yes"]}}]}',
    "content a number": '{"choices": [{"message": {"content": 1e999}}]}',
    "content deep": '{"choices": [{"message": {"content": ' + DEEP + "}}]}",
    "a digit too many": '{"choices": ' + "9" * 5000 + "}",
    "a page": "<html><script>alert(1)</script>",
    "bytes": b"\xff\xfe\x00\x1b[2J\x07",
    "nothing": "",
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_what_has_not_the_shape_of_an_answer_is_refused(body):
    body = body if isinstance(body, bytes) else body.encode()
    with (
        Raw(saying(OK + b"\r\n", body)) as odd,
        pytest.raises(Refused, match="does not answer as a chat end") as refusal,
    ):
        judge(odd.address).ask("", "")
    assert str(refusal.value).isprintable() and len(str(refusal.value)) < 700


@pytest.mark.parametrize(
    "act",
    (
        saying(b"garbage\r\n\r\n"),
        saying(OK + b"X: y\r\n" * 200 + b"\r\n"),
        saying(OK + b"X: " + b"y" * 70_000 + b"\r\n\r\n"),
        saying(OK + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n"),
        saying(OK + b"Content-Length: 500\r\n\r\n{}"),
        saying(b""),
    ),
)
def test_what_is_no_http_is_asked_again_and_then_refused(act):
    with Raw(act) as odd, pytest.raises(Refused, match="gave no answer after 2 tries") as refusal:
        judge(odd.address, retries=1).ask("", "")
    assert str(refusal.value).isprintable() and len(odd.asked) == 2


def test_an_answer_that_no_file_could_hold_is_one_that_it_can(server):
    server.rule = lambda asked: "a \ud800 b"
    assert judge(server.endpoint).ask("", "") == "a ? b"


# -- the key ---------------------------------------------------------------------------------------------------------

FORMS = {
    "whole": KEY,
    "a bearer": f"Bearer {KEY}",
    "cut": KEY[:38],
    "in two": f"{KEY[:20]} and then {KEY[20:]}",
    "in four": ", ".join((KEY[:18], KEY[18:26], KEY[26:34], KEY[34:])),
    "spaced": " ".join(KEY),
    "in lines": "\n".join(KEY[n : n + 3] for n in range(0, len(KEY), 3)),
    "quoted": "".join(f"'{letter}', " for letter in KEY),
    "invisible": "\u200b".join(KEY),
    "capitals": KEY.upper(),
    "json": "".join(f"\\u{ord(letter):04x}" for letter in KEY),
    "json twice": json.dumps("".join(f"\\u{ord(letter):04x}" for letter in KEY)),
    "json and a line": KEY[:12] + "\\n" + KEY[12:],
    "url": "".join(f"%{ord(letter):02X}" for letter in KEY),
    "url twice": "".join(f"%25{ord(letter):02X}" for letter in KEY),
    "json and spaces": " ".join("".join(f"\\u{ord(letter):04x}" for letter in KEY)),
    "html in lines": "\n".join("".join(f"&#{ord(letter)};" for letter in KEY)),
    "json of what cannot be seen": json.dumps("\u200b".join(KEY)),
    "in eight digits": "".join(f"\\U{ord(letter):08x}" for letter in KEY),
    "html": "".join(f"&#{ord(letter)};" for letter in KEY),
    "html x": "".join(f"&#x{ord(letter):x};" for letter in KEY),
    "hexadecimal": KEY.encode().hex(" "),
    **{f"base64 {n}": base64.b64encode(b"x" * n + KEY.encode()).decode() for n in range(3)},
    "base64 in lines": base64.encodebytes(KEY.encode() * 3).decode(),
    "base64 of an address": base64.urlsafe_b64encode(KEY.encode()).decode(),
    "wide": "".join(chr(ord(letter) + 0xFEE0) for letter in KEY),
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_a_key_that_is_repeated_is_not_kept_in_any_form(form):
    said = without(KEY, f"It says {form} there.")
    assert said.startswith("It says ") and said.endswith(" there.") and "<key>" in said
    left = "".join(c for c in said.replace("<key>", "|") if c.isalnum() or c == "|").lower()
    assert not any(piece.lower() in left for piece in PIECES), said
    shown = [letters for letters in said[8:-7].split("<key>") if len("".join(filter(str.isalnum, letters))) > 12]
    assert not shown, said


def test_an_endpoint_that_repeats_the_header_gives_the_key_to_no_answer_and_no_message(server):
    asked_of = judge(server.endpoint)
    for said in (KEY, f"You sent Bearer {' '.join(KEY)}.", "</think>" + FORMS["json"]):
        server.rule = lambda asked, said=said: said
        answer = asked_of.ask("", "")
        assert "<key>" in answer and without(KEY, answer) == answer
    for status in (200, 401, 429):  # 290 characters before it: what is cut there would leave the most of it
        server.rule = lambda asked, status=status: (status, {"error": "x" * 270 + KEY})
        with pytest.raises(Refused) as refusal:
            asked_of.ask("", "")
        assert not any(piece in str(refusal.value) for piece in PIECES)


def test_texts_without_the_key_and_words_for_no_key_are_left_as_they_are():
    for text in ("the tokens wait and 42, in base64: aGVsbG8gd29ybGQ=", "a\\nb %41 &#65;", ""):
        assert without(KEY, text) == text
    assert without("EMPTY", "an empty set") == "an empty set" and without("", "x") == "x"


def test_what_an_endpoint_says_is_shown_and_not_obeyed():
    act = saying(b"HTTP/1.1 400 \x1b[31m\r\n\r\n", "\x1b[2J\u202e".encode())
    with Raw(act) as odd, pytest.raises(Refused, match=r"status 400: \\x1b\[2J") as refusal:
        judge(odd.address).ask("", "")
    assert str(refusal.value).isprintable()


@pytest.mark.parametrize(
    "address", ("http://[::1", "http://x:99999/v1", "http://x:0/v1", "http:///v1", "http://a b/v1")
)
def test_an_address_that_cannot_be_read_is_refused(address):
    with pytest.raises(Refused, match="is no address: give one such as"):
        judge(address)
