"""Keys pressed on the guest's keyboard."""

from typing import Annotated, Literal

from pellucid.machine.devices.keyboard_controller import KeyboardController
from pellucid.monitor.command import command
from pellucid.monitor.errors import CommandError
from pellucid.monitor.keycodes import KEYS, key_bytes
from pellucid.monitor.qapi import OneOf
from pellucid.monitor.session import Session
from pellucid.records import dataclass

HOLD_MS = 100
MOST_HELD_MS = 60_000
MOST_KEYS = 16
MS = 1_000_000
QKeyCode = Annotated[str, OneOf(("unmapped", *KEYS))]


@dataclass(frozen=True)
class KeyNumber:
    """A key by set 1's code; bit 7 stands for the prefix 0xE0."""

    type: Literal["number"]
    data: int


@dataclass(frozen=True)
class KeyName:
    """A key by its name."""

    type: Literal["qcode"]
    data: QKeyCode


@command("send-key")
def send_key(session: Session, keys: list[KeyNumber | KeyName], hold_time: int | None = None) -> None:
    """Press the keys in order; let go of them, the last first, after `hold_time` milliseconds."""
    if hold_time is not None and not 0 <= hold_time <= MOST_HELD_MS:
        raise CommandError(f"hold-time {hold_time}: give 0 to {MOST_HELD_MS} milliseconds")
    if len(keys) > MOST_KEYS:
        raise CommandError(f"at most {MOST_KEYS} keys at once")
    controller = _controller(session)
    codes = [_code(key) for key in keys]
    pressed = [code for code in codes if code]
    for code in pressed:
        _send(controller, code, True)

    def release() -> None:
        for code in reversed(pressed):
            _send(controller, code, False)

    # Keys are held by the host's time, as fingers are: a stopped guest finds both in its queue.
    session.machine.loop.call_later((HOLD_MS if hold_time is None else hold_time) * MS, release)


def _code(key: KeyNumber | KeyName) -> int:
    if isinstance(key, KeyName):
        return KEYS.get(key.data, 0)
    return key.data & 0x7F | (0xE000 if key.data & 0x80 else 0)


def _controller(session: Session) -> KeyboardController:
    for device in session.machine.devices:
        if isinstance(device, KeyboardController):
            return device
    raise CommandError("this machine has no keyboard")


def _send(controller: KeyboardController, code: int, down: bool) -> None:
    keyboard = controller.keyboard
    keyboard.send(key_bytes(code, down, keyboard.scan_code_set))
    controller.changed()


@command(
    hmp="sendkey",
    help="send keys to the VM (e.g. 'sendkey ctrl-alt-f1', default hold time=100 ms)",
    syntax="keys [hold_ms]",
)
def sendkey(session: Session, keys: str, hold_ms: int | None = None) -> str:
    """Names or 0x numbers joined by dashes."""
    pressed: list[KeyNumber | KeyName] = []
    for word in ("less" if keys == "<" else keys).split("-"):
        if word.startswith("0x"):
            try:
                pressed.append(KeyNumber("number", int(word, 16) & 0xFF))
                continue
            except ValueError:
                return f"invalid parameter: {word}\n"
        if word not in KEYS:
            return f"invalid parameter: {word}\n"
        pressed.append(KeyName("qcode", word))
    send_key(session, pressed, hold_ms)
    return ""
