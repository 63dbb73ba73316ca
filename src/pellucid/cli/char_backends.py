"""The arguments of -serial and -monitor: the host's end of a character device, in QEMU's legacy notation.

    none  null  stdio  pty  file:PATH  pipe:PATH  unix:PATH[,server][,nowait]  tcp:[HOST]:PORT[,server][,nowait]
    telnet:HOST:PORT[,server][,nowait]     chardev:ID, one of -chardev's
    mon:BACKEND     the same, shared with the monitor (Ctrl-A c switches)

and those of -chardev: BACKEND,id=ID,PARAMETER=VALUE,... with the backend null, stdio, pty, file, pipe, ringbuf, socket.
"""

import re
from pathlib import Path

from pellucid.cli.keyval import parse_keyval, parse_size, parse_switch, split_items, suggestion
from pellucid.errors import NotBuiltError, UserError
from pellucid.machine.config import RINGBUF_SIZE, CharBackend, CharBackendKind
from pellucid.machine.option_tables import CHARDEV_NOT_BUILT, OPTION_TABLES
from pellucid.records import replace

PLAIN = {kind.value: kind for kind in (CharBackendKind.NONE, CharBackendKind.NULL, CharBackendKind.STDIO)}
PLAIN["pty"] = CharBackendKind.PTY
WITH_PATH = {"file": CharBackendKind.FILE, "pipe": CharBackendKind.PIPE}
SOCKETS = {"unix": CharBackendKind.UNIX, "tcp": CharBackendKind.TCP, "telnet": CharBackendKind.TCP}
NOT_BUILT = ("vc", "websocket", "udp", "con", "braille", "msmouse", "/dev/...")
KNOWN = (*PLAIN, *WITH_PATH, *SOCKETS, "chardev", "mon")
CHARDEVS = ("null", "stdio", "pty", "file", "pipe", "ringbuf", "socket")
CHARDEVS_NOT_BUILT = ("udp", "vc", "msmouse", "wctablet", "mux", "parallel", "serial", "braille", "testdev", "dbus")
IDENTIFIER = re.compile(r"[A-Za-z][A-Za-z0-9._-]*", re.ASCII)
MOST_RINGBUF = 1 << 26
SOCKET_PARAMETERS = ("server", "wait", "nodelay", "reconnect")


def parse_char_backend(option: str, text: str) -> CharBackend:
    """What `-option text` asks for. UserError when malformed; NotBuiltError for a backend that QEMU has and we lack."""
    if text.startswith("mon:"):
        inner = parse_char_backend(option, text.removeprefix("mon:"))
        if inner.kind in (CharBackendKind.NONE, CharBackendKind.NULL):
            raise UserError(f"-{option} {text}: a monitor needs a stream: use mon:stdio")
        return replace(inner, mux=True)
    if text in PLAIN:
        return CharBackend(PLAIN[text])
    word, colon, rest = text.partition(":")
    if colon and word in WITH_PATH:
        return CharBackend(WITH_PATH[word], path=Path(_needed(option, text, rest, f"{word}:PATH")))
    if colon and word in SOCKETS:
        return replace(_parse_socket(option, text, SOCKETS[word], rest), telnet=word == "telnet")
    if colon and word == "chardev":
        return CharBackend(CharBackendKind.CHARDEV, id=_needed(option, text, rest, "chardev:ID"))
    if word in NOT_BUILT or text.startswith(("/dev/", "vc")):
        raise NotBuiltError(f"-{option} {text}: not built yet: use stdio, mon:stdio, file:, pty, unix: or tcp:")
    raise UserError(f"-{option} {text}: no such character device: {suggestion(word, KNOWN)}")


def _needed(option: str, text: str, value: str, form: str) -> str:
    if not value:
        raise UserError(f"-{option} {text}: something is missing: write {form}")
    return value


def parse_chardev(text: str) -> CharBackend:
    """What `-chardev text` asks for. UserError when malformed; NotBuiltError for what QEMU has and we lack."""
    kind, *items = split_items(text)
    if kind in CHARDEVS_NOT_BUILT:
        raise NotBuiltError(f"-chardev {text}: {kind} is not built yet: use one of {', '.join(CHARDEVS)}")
    if kind not in CHARDEVS:
        raise UserError(f"-chardev {text}: no such character device: {suggestion(kind, CHARDEVS)}")
    known = OPTION_TABLES["chardev"]
    values: dict[str, str] = {}
    for item in items:
        if item.partition("=")[0].removeprefix("no") in CHARDEV_NOT_BUILT:
            raise NotBuiltError(f"-chardev {text}: {item.partition('=')[0]} is not built yet: leave it out")
        values |= parse_keyval("chardev", item, known)
    name = values.get("id", "")
    if not name:
        raise UserError(f"-chardev {text}: no id specified: add id=NAME")
    if not IDENTIFIER.fullmatch(name):
        raise UserError(f"-chardev {text}: id={name}: a letter, then letters, digits, '-', '.' and '_'")
    made = _chardev_backend(text, kind, values)
    return replace(made, id=name, mux=_switch(values, "mux", False))


def _switch(values: dict[str, str], key: str, default: bool) -> bool:
    return parse_switch("chardev", key, values[key]) if key in values else default


def _chardev_backend(text: str, kind: str, values: dict[str, str]) -> CharBackend:
    if kind == "socket":
        return _chardev_socket(text, values)
    if kind in WITH_PATH:
        path = Path(_needed("chardev", text, values.get("path", ""), f"{kind},id=ID,path=PATH"))
        return CharBackend(WITH_PATH[kind], path=path, append=_switch(values, "append", False))
    if kind == "ringbuf":
        size = parse_size("chardev", values.get("size", str(RINGBUF_SIZE)), "B")
        if size & (size - 1) or not 0 < size <= MOST_RINGBUF:
            raise UserError(f"-chardev {text}: size of ringbuf chardev must be power of two, at most {MOST_RINGBUF}")
        return CharBackend(CharBackendKind.RINGBUF, size=size)
    signals = _switch(values, "signal", True) if "signal" in values else None
    return CharBackend(PLAIN[kind], signals=signals)


def _chardev_socket(text: str, values: dict[str, str]) -> CharBackend:
    server, wait = _switch(values, "server", False), _switch(values, "wait", True)
    telnet = _switch(values, "telnet", False)
    if "path" in values:
        return CharBackend(CharBackendKind.UNIX, path=Path(values["path"]), server=server, wait=wait, telnet=telnet)
    port = _port("chardev", text, values.get("port", ""), server, "socket,id=ID,host=HOST,port=PORT or path=PATH")
    return CharBackend(
        CharBackendKind.TCP, host=values.get("host", ""), port=port, server=server, wait=wait, telnet=telnet
    )


def _port(option: str, text: str, port: str, server: bool, form: str) -> int:
    """A TCP port; a server's may be 0, for any that is free."""
    if not port.isascii() or not port.isdigit() or not (0 if server else 1) <= int(port) < 65536:
        raise UserError(f"-{option} {text}: no port in it: write {form}, with a port from 1 to 65535")
    return int(port)


def _parse_socket(option: str, text: str, kind: CharBackendKind, rest: str) -> CharBackend:
    address, *others = split_items(rest)
    parameters = {"server": "off", "wait": "on"}
    for item in others:
        parameters |= parse_keyval(option, item, SOCKET_PARAMETERS)
    if "reconnect" in parameters:
        raise NotBuiltError(f"-{option} {text}: reconnect is not built yet: leave it out")
    server = parse_switch(option, "server", parameters["server"])
    wait = parse_switch(option, "wait", parameters["wait"])
    if kind is CharBackendKind.UNIX:
        path = Path(_needed(option, text, address, "unix:PATH"))
        return CharBackend(kind, path=path, server=server, wait=wait)
    host, _, port = address.rpartition(":")
    number = _port(option, text, port if ":" in address else "", server, "tcp:HOST:PORT")
    return CharBackend(kind, host=host, port=number, server=server, wait=wait)
