"""The arguments of -serial and -monitor: the host's end of a character device, in QEMU's legacy notation.

    none  null  stdio  pty  file:PATH  pipe:PATH  unix:PATH[,server][,nowait]  tcp:[HOST]:PORT[,server][,nowait]
    mon:BACKEND     the same, shared with the monitor (Ctrl-A c switches)
"""

from dataclasses import replace
from pathlib import Path

from pellucid.cli.keyval import parse_keyval, parse_switch, split_items, suggestion
from pellucid.errors import NotBuiltError, UserError
from pellucid.machine.config import CharBackend, CharBackendKind

PLAIN = {kind.value: kind for kind in (CharBackendKind.NONE, CharBackendKind.NULL, CharBackendKind.STDIO)}
PLAIN["pty"] = CharBackendKind.PTY
WITH_PATH = {"file": CharBackendKind.FILE, "pipe": CharBackendKind.PIPE}
SOCKETS = {"unix": CharBackendKind.UNIX, "tcp": CharBackendKind.TCP}
NOT_BUILT = ("vc", "telnet", "websocket", "udp", "con", "braille", "msmouse", "chardev", "/dev/...")
KNOWN = (*PLAIN, *WITH_PATH, *SOCKETS, "mon")
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
        return _parse_socket(option, text, SOCKETS[word], rest)
    if word in NOT_BUILT or text.startswith(("/dev/", "vc")):
        raise NotBuiltError(f"-{option} {text}: not built yet: use stdio, mon:stdio, file:, pty, unix: or tcp:")
    raise UserError(f"-{option} {text}: no such character device: {suggestion(word, KNOWN)}")


def _needed(option: str, text: str, value: str, form: str) -> str:
    if not value:
        raise UserError(f"-{option} {text}: something is missing: write {form}")
    return value


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
    host, colon, port = address.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise UserError(f"-{option} {text}: no port in it: write tcp:HOST:PORT, with a port from 1 to 65535")
    return CharBackend(kind, host=host, port=int(port), server=server, wait=wait)
