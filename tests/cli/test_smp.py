"""-smp against QEMU 7.2: the same words and the same processors for some two hundred arguments.

golden/smp.json has [board, argument, what QEMU said, what it made]: the latter, where it says so, is the numbers of
processors and of places, and how many sockets, dies in each, cores in each and threads in each there are.
`python -m tests.cli.test_smp` asks QEMU anew.
"""

import json
import re
import subprocess
from pathlib import Path

import pytest

from pellucid.cli.options import parse_options
from pellucid.cli.smp import parse_number, parse_smp, topology
from pellucid.cpu.models.topology import CpuTopology
from pellucid.errors import UserError
from pellucid.machine.board import BOARDS

GOLDEN = Path(__file__).parent / "golden" / "smp.json"
LEVELS = ("socket-id", "die-id", "core-id", "thread-id")
ABOUT_THE_MODEL = ("hyperthreading", "topoext")
"""Words of QEMU's lines about its default CPU model, which is not ours."""


def said_and_made(board: str, text: str) -> tuple[list[str], list[int] | None]:
    try:
        found, warnings = topology(parse_smp(text), BOARDS[board])
    except UserError as error:
        return [str(error)], None
    made = [found.count, found.places, found.sockets, found.dies, found.cores, found.threads]
    return [f"warning: {line}" for line in warnings], made


def test_every_argument_is_taken_as_qemu_takes_it() -> None:
    rows = json.loads(GOLDEN.read_text())
    assert len(rows) > 200 and sum(made is not None for *_, made in rows) > 60
    for board, text, said, made in rows:
        ours = said_and_made(board, text)
        assert ours[0] == said, (board, text)
        if made is not None:
            assert ours[1] == made, (board, text)


def test_places_have_numbers_and_apic_ids() -> None:
    found = CpuTopology(sockets=2, dies=3, cores=2, threads=2, plugged=5)
    assert found.places == 24 and found.count == len(found.apic_ids) == 5
    assert (found.thread_bits, found.die_bits, found.package_bits) == (1, 2, 4)
    assert found.possible_apic_ids[:5] == found.apic_ids == (0b0_00_0_0, 0b0_00_0_1, 0b0_00_1_0, 0b0_00_1_1, 0b0_01_0_0)
    assert found.place(23) == (1, 2, 1, 1) and found.possible_apic_ids[23] == 0b1_10_1_1
    assert found.apic_id_limit == 0b1_10_1_1 + 1


def test_several_options_add_up() -> None:
    config = parse_options(["-smp", "2", "-smp", "threads=2", "-M", "pc,smp.sockets=2,smp.cpus=8"])
    assert config.topology == CpuTopology(2, 2, 2) and config.cpu_count == 8
    assert said_and_made("pc", "2")[1] == [2, 2, 1, 1, 2, 1]
    with pytest.raises(UserError, match=re.escape("Parameter 'smp.cpus' expects integer")):
        parse_number("cpus", "")


def ask(board: str, text: str) -> tuple[list[str], list[int] | None]:
    """What QEMU says and makes."""
    commands = ("qmp_capabilities", "query-hotpluggable-cpus", "quit")
    done = subprocess.run(
        ["qemu-system-x86_64", "-M", board, "-nodefaults", "-S", "-display", "none", "-qmp", "stdio", "-smp", text],
        input="".join(json.dumps({"execute": command}) + "\n" for command in commands),
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    lines = [line.removeprefix("qemu-system-x86_64: ") for line in done.stderr.splitlines()]
    made = None
    for reply in map(json.loads, done.stdout.splitlines()):
        if isinstance(reply.get("return"), list):
            places = reply["return"]
            highest = [1 + max(place["props"].get(level, 0) for place in places) for level in LEVELS]
            made = [sum("qom-path" in place for place in places), len(places), *highest]
    return [line for line in lines if not any(word in line for word in ABOUT_THE_MODEL)], made


if __name__ == "__main__":
    asked = [(board, text) for board, text, *_ in json.loads(GOLDEN.read_text())]
    GOLDEN.write_text("[\n" + ",\n".join(json.dumps([*pair, *ask(*pair)]) for pair in asked) + "\n]\n")
