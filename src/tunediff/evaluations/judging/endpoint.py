"""One call of a language model's endpoint: an address and a question in bytes -> status, headers and words of the answer.

The address is no more trusted than what answers there. A call has one deadline, from the connection to the last byte; an answer
has a greatest size; nobody is followed elsewhere; and an address of a private network is asked where that was agreed to. A proxy
that the environment names (http_proxy, https_proxy, no_proxy) is used, but never for this machine itself.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import ipaddress
import re
import socket
import threading
import time
import unicodedata
import urllib.request
from collections.abc import Iterator, Mapping
from typing import NamedTuple
from urllib.parse import SplitResult, unquote, urlsplit

from tunediff.shapes import Refused

LARGEST = 2**20  # bytes of an answer
PIECE = 8  # letters and digits of a key in a row that are taken for a part of it
# names that no public server has
INSIDE = ("internal", "local", "localdomain", "lan", "intranet", "corp", "home.arpa")


class Reply(NamedTuple):
    """An answer of whatever status; the names of `headers` are in small letters."""

    status: int
    headers: Mapping[str, str]
    text: str


def post(address: str, body: bytes, headers: Mapping[str, str], *, timeout: float, private: bool) -> Reply:
    """Sends JSON to an http or https address. Raises PrivateAddress for one of a private network unless that is agreed to;
    TooLarge for an answer of more than LARGEST bytes; OSError or HTTPException where nothing whole came in `timeout` seconds
    in all."""
    parts, deadline = urlsplit(address), time.monotonic() + timeout
    proxy = proxy_of(parts)
    if not private and (why := inside(parts.hostname or "")):
        raise PrivateAddress(why)
    connection, target, by = _connection(parts, proxy, timeout)
    with contextlib.ExitStack() as held:
        held.callback(connection.close)

        def reached(place: tuple[str, int], *_: object) -> socket.socket:
            """The socket, which is shut at the deadline whatever anybody waits for."""
            if proxy is not None and not private:
                with contextlib.suppress(OSError):  # only the proxy may know the name
                    _addresses(str(parts.hostname), place[1], private)
            made = _reached(place, deadline, private or proxy is not None)
            twin = held.enter_context(contextlib.closing(made.dup()))
            timer = threading.Timer(max(deadline - time.monotonic(), 0), _shut, [twin])
            timer.daemon = True
            timer.start()
            held.callback(timer.cancel)
            return made

        connection._create_connection = reached  # type: ignore[attr-defined]
        try:
            connection.request("POST", target, body, {"Content-Type": "application/json", **by, **headers})
            response = connection.getresponse()
            declared = response.headers.get("Content-Length", "")
            if declared.isdecimal() and int(declared[:20]) > LARGEST:
                raise TooLarge(f"an answer of {declared[:20]} bytes")
            said = b"".join(_pieces(response))
            if declared.isdecimal() and len(said) < int(declared):
                raise http.client.IncompleteRead(said, int(declared) - len(said))
        except (OSError, http.client.HTTPException) as error:
            if time.monotonic() >= deadline:
                raise TimeoutError(f"no whole answer in {timeout:g} seconds") from None
            raise error
        if time.monotonic() >= deadline:
            raise TimeoutError(f"no whole answer in {timeout:g} seconds")
        answered = {name.lower(): value for name, value in response.headers.items()}
        return Reply(response.status, answered, said.decode(errors="replace"))


class PrivateAddress(Exception):
    """An address that is asked only where that was agreed to; the message says what it is."""


class TooLarge(Exception):
    """An answer of more bytes than any answer has."""


def _pieces(response: http.client.HTTPResponse) -> Iterator[bytes]:
    length = 0
    while piece := response.read1(1 << 16):
        length += len(piece)
        if length > LARGEST:
            raise TooLarge(f"an answer of more than {LARGEST:,} bytes")
        yield piece


def _shut(twin: socket.socket) -> None:
    with contextlib.suppress(OSError):
        twin.shutdown(socket.SHUT_RDWR)


# -- who is asked ----------------------------------------------------------------------------------------------------


def is_here(host: str) -> bool:
    """True for the names and addresses of this very machine: localhost, 127.0.0.1, ::1."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower().rstrip(".") == "localhost"


def inside(host: str) -> str:
    """The reason that makes a host one of a private network, as far as its name or number tells; "" for a public one and for this
    machine."""
    name = host.lower().rstrip(".")
    try:
        return "" if is_here(host) else _kept(ipaddress.ip_address(host))
    except ValueError:
        if "." not in name or name.endswith(tuple(f".{end}" for end in INSIDE)):
            return f"{host} is a name of a private network"
        return ""


def _kept(number: ipaddress.IPv4Address | ipaddress.IPv6Address) -> str:
    plain = getattr(number, "ipv4_mapped", None) or getattr(number, "sixtofour", None) or number
    if int(plain) >> 32 == 0x64FF9B << 64:  # an address of the old kind, by a gateway
        plain = ipaddress.IPv4Address(int(plain) & 0xFFFFFFFF)
    return "" if plain.is_global and not plain.is_multicast else f"{number} is an address of a private network"


def _addresses(host: str, port: int, private: bool) -> list[tuple]:
    """The addresses that a host stands for, for connect(). Raises PrivateAddress where one of them is private."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    for *_, place in found:
        if not private and not is_here(host) and (why := _kept(ipaddress.ip_address(place[0]))):
            raise PrivateAddress(f"{host} stands for {place[0]}, and {why}")
    return found


def _reached(place: tuple[str, int], deadline: float, private: bool) -> socket.socket:
    """Connected to the very address that was looked at, so that a name cannot stand for another one a moment later."""
    wrong: OSError = OSError(f"{place[0]} has no address")
    for family, kind, protocol, _, at in _addresses(*place, private):
        made = socket.socket(family, kind, protocol)
        try:
            made.settimeout(max(deadline - time.monotonic(), 0.001))
            made.connect(at)
            return made
        except OSError as error:
            made.close()
            wrong = error
    raise wrong


def proxy_of(parts: SplitResult) -> SplitResult | None:
    """The proxy that the environment names for an address; none for this machine itself. Raises Refused for one that is not
    spoken to by plain HTTP."""
    host = parts.hostname or ""
    named = (
        None if is_here(host) or urllib.request.proxy_bypass(host) else urllib.request.getproxies().get(parts.scheme)
    )
    if not named:
        return None
    proxy = urlsplit(named if "://" in named else f"http://{named}")
    if proxy.scheme != "http" or not proxy.hostname:
        raise Refused(
            f"{parts.scheme}_proxy names a proxy by {proxy.scheme}:// for {host}: only http:// ones are spoken to. Change it, or "
            f"set no_proxy={host}."
        )
    return proxy


def _connection(
    parts: SplitResult, proxy: SplitResult | None, timeout: float
) -> tuple[http.client.HTTPConnection, str, dict[str, str]]:
    """A connection that is not yet made, what is asked for on it, and the headers of a proxy that reads it."""
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    if proxy is None:
        return kind(str(parts.hostname), parts.port, timeout=timeout), parts.path, {}
    connection, headers = kind(str(proxy.hostname), proxy.port or 80, timeout=timeout), {}
    if proxy.username:
        word = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}"
        headers = {"Proxy-Authorization": f"Basic {base64.b64encode(word.encode()).decode()}"}
    if parts.scheme == "https":  # the proxy passes on what it cannot read
        connection.set_tunnel(str(parts.hostname), parts.port, headers)
        return connection, parts.path, {}
    return connection, parts.geturl(), headers


# -- what was said ---------------------------------------------------------------------------------------------------

_ESCAPE = re.compile(
    r"\\u000([01][0-9a-f]{4})|\\u([0-9a-f]{4})|\\u\{([0-9a-f]{1,6})\}|\\x([0-9a-f]{2})|%([0-9a-f]{2})|=([0-9a-f]{2})|"
    r"&#x([0-9a-f]{1,6});|&#(\d{1,7});|\\[nrtfbv0]",
    re.IGNORECASE,
)


def without(key: str, text: str) -> str:
    """The text without the key, which an endpoint may repeat: whole or in pieces of PIECE letters and digits or more, with
    anything but letters and digits between them, in small or large letters, escaped as JSON, an address or HTML is, in
    base64 or hexadecimal digits."""
    if not key:
        return text
    text = text.replace(key, "<key>")
    needles = [re.sub(r"[^0-9a-z]", "", form.lower()) for form in _forms(key)]
    pieces = {n[i : i + PIECE] for n in needles for i in range(len(n) - PIECE + 1)}
    if len(needles[0]) < PIECE:  # no secret is as short, and words are
        return text
    characters = [(character, n, n + 1) for n, character in enumerate(text)]
    # escapes may have spaces and what cannot be seen within them
    dense = [one for one in characters if not one[0].isspace() and (one[0].isascii() or one[0].isprintable())]
    hidden = [*_places(characters, pieces), *(_places(dense, pieces) if len(dense) < len(characters) else [])]
    made, end = [], 0
    for first, last in _joined(hidden):
        made += [text[end:first], "<key>"]
        end = last
    return "".join([*made, text[end:]])


def _places(characters: list[tuple[str, int, int]], pieces: set[str]) -> list[tuple[int, int]]:
    """The spans of a text in which a piece stands, as it is or escaped; `characters` come with their places in the text."""
    hidden: list[tuple[int, int]] = []
    for _ in range(3):  # what is escaped may be escaped once more
        plain = [(c.lower(), a, b) for c, a, b in characters if c.isascii() and c.isalnum()]
        letters = "".join(c for c, _, _ in plain)
        here = [i for i in range(len(letters) - PIECE + 1) if letters[i : i + PIECE] in pieces]
        hidden += [(plain[i][1], plain[i + PIECE - 1][2]) for i in here]
        before, characters = characters, _unescaped(characters)
        if len(before) == len(characters) and all(a[0] == b[0] for a, b in zip(before, characters, strict=True)):
            break
    return hidden


def _forms(key: str) -> Iterator[str]:
    yield key
    yield key.encode().hex()
    for before in range(3):  # wherever it stands in what was encoded
        encoded = base64.b64encode(b"\0" * before + key.encode()).decode().rstrip("=")
        yield encoded[(0, 2, 3)[before] : -1]


def _unescaped(characters: list[tuple[str, int, int]]) -> list[tuple[str, int, int]]:
    """The characters that these stand for, each with its place in the text as it came."""
    text, made, end = "".join(c for c, _, _ in characters), [], 0
    for found in _ESCAPE.finditer(text):
        *hexadecimal, decimal = found.groups()
        digits = next((group for group in hexadecimal if group), None)
        number = int(digits, 16) if digits else int(decimal) if decimal else 32
        character = chr(number) if number < 0x110000 else " "
        made += characters[end : found.start()]
        made.append((character, characters[found.start()][1], characters[found.end() - 1][2]))
        end = found.end()
    made += characters[end:]
    return [(c if c.isascii() else unicodedata.normalize("NFKC", c)[:1] or " ", a, b) for c, a, b in made]


def _joined(spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Spans that overlap as one, in their order."""
    joined: list[tuple[int, int]] = []
    for first, last in sorted(spans):
        if joined and first <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(last, joined[-1][1]))
        else:
            joined.append((first, last))
    return joined
