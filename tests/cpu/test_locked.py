"""LOCK makes an instruction atomic among processors on host threads of their own."""

from __future__ import annotations

import threading

import pytest
from pellucid.cpu.state import EXIT_HLT
from tests.cpu.bare import Bare

RBX, RCX, RSI = 3, 1, 6
DATA, CODE = 0x8000, (0x1000, 0x2000)
ROUNDS = 100_000

# Each adds 1 to what RSI points at; a loop of ROUNDS follows.
ATOMIC = {
    "lock inc dword [rsi]": "f0ff06",
    "lock add [rsi],ebx": "f0011e",
    "lock xadd [rsi],rax": "b801000000 f0480fc106",
    "lock sub qword [rsi],-1": "f048832eff",
    "lock cmpxchg": "8b06 8d5001 f00fb116 75f5",
    "lock cmpxchg16b": "4989cb 488b06 488b5608 4889c3 4889d1 4883c301 4883d100 f0480fc70e 75eb 4c89d9",
    "inc between lock bts and lock btr": "f00fba6e1000 72f8 ff06 f00fba761000",
}


def loop(body: bytes) -> bytes:
    """The body RCX times, then HLT."""
    back = -(len(body) + 5)
    tail = b"\x48\xff\xc9" + (b"\x75" + back.to_bytes(1, "little", signed=True))
    return body + tail + b"\xf4"


@pytest.mark.parametrize("name", ATOMIC)
def test_nothing_is_lost_between_two_processors(name: str) -> None:
    first = Bare(64)
    second = Bare(64, beside=first)
    code = loop(bytes.fromhex(ATOMIC[name]))
    ends: list[int] = []
    threads = []
    for machine, at in zip((first, second), CODE, strict=True):
        machine.load(at, code)
        machine.state.gpr[RSI], machine.state.gpr[RBX], machine.state.gpr[RCX] = DATA, 1, ROUNDS
        threads.append(threading.Thread(target=lambda machine=machine, at=at: ends.append(machine.run(at))))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ends == [EXIT_HLT, EXIT_HLT]
    assert int.from_bytes(first.bytes(DATA, 4), "little") == 2 * ROUNDS


def test_a_locked_access_across_two_pages_and_to_a_device_still_works() -> None:
    machine = Bare(64, read=lambda address, size: 41)
    machine.load(0x8FFE, (7).to_bytes(4, "little"))
    machine.load(CODE[0], bytes.fromhex("f0ff06 f0ff07") + b"\xf4")
    machine.state.gpr[RSI], machine.state.gpr[7] = 0x8FFE, 0x40_0000
    assert machine.run(CODE[0]) == EXIT_HLT
    assert machine.bytes(0x8FFE, 4) == (8).to_bytes(4, "little")
    assert [access.value for access in machine.accesses] == [None, 42]
