"""-d's words and -dfilter's ranges."""

from __future__ import annotations

import random

import pytest

from pellucid.errors import PellucidError, UserError
from pellucid.machine.log import LOG_ITEMS, LOG_ITEMS_NOT_BUILT, choose_log_items, logged_items, parse_log_ranges
from pellucid.monitor.machine_log import CPU_ITEMS

# What `qemu-system-x86_64 -d help` of QEMU 7.2 lists.
QEMU_ITEMS = """out_asm in_asm op op_opt op_ind int exec cpu fpu mmu pcall cpu_reset unimp guest_errors page nochain
plugin strace tid""".split()


def test_every_item_of_qemu_is_known() -> None:
    assert set(QEMU_ITEMS) <= {*LOG_ITEMS, *LOG_ITEMS_NOT_BUILT} and set(LOG_ITEMS) <= set(QEMU_ITEMS)
    assert CPU_ITEMS < set(LOG_ITEMS)


def test_chosen_items_are_known_again() -> None:
    for items in (set(LOG_ITEMS), {"int", "exec"}, set[str]()):
        choose_log_items(items)
        assert logged_items() == items


def test_ranges() -> None:
    assert parse_log_ranges("0x8000..0x8fff,0xffffffc000080000+0x200,0xffffffc000060000-0x1000") == (
        (0x8000, 0x8FFF), (0xFFFF_FFC0_0008_0000, 0xFFFF_FFC0_0008_01FF),
        (0xFFFF_FFC0_0005_F001, 0xFFFF_FFC0_0006_0000))
    for text in ("", "1", "1+0", "2..1", "0-2", "x..y", "1..2..3", "0..0x10000000000000000", "1,2"):
        with pytest.raises(UserError, match="not a range"):
            parse_log_ranges(text)


def test_no_text_breaks_them() -> None:
    rng = random.Random(1)
    for _ in range(2000):
        try:
            parse_log_ranges("".join(rng.choice("0123x.+-,_a") for _ in range(rng.randrange(12))))
        except PellucidError:
            continue
