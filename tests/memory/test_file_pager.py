"""RAM in a file: put out, read back, restored lazily; and a pager that keeps to its limit while processors run."""

import ctypes
import errno
import os
import random
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest

from pellucid.errors import UserError
from pellucid.kvm.api import IoExit, Pager, PageWaiter, Residency
from pellucid.kvm.backends.soft.system import SoftHypervisor, SoftVm
from pellucid.memory import LEAST_LIMIT, PAGE_SIZE, FilePager, RamBlock
from pellucid.memory.file_pager import FRESH_PAGES, READ_PAGES
from pellucid.records import replace
from pellucid.runtime import VirtualClock
from tests.cpu.guests.asm import assemble

MiB = 1 << 20


class Vm:
    """Nobody runs, so everybody is stopped."""

    def page_memory(self, hva: int, size: int, pager: Pager) -> Residency:
        return Residency(hva, size, pager, nullcontext)


class Waiter:
    def __init__(self) -> None:
        self.pages: list[int] = []

    def page_arrived(self, residency: Residency, page: int) -> None:
        self.pages.append(page)


@pytest.fixture
def block(tmp_path: Path) -> Iterator[RamBlock]:
    made = RamBlock("ram", 16 * MiB, path=tmp_path)
    yield made
    made.close()


def made_pager(block: RamBlock, limit: int = LEAST_LIMIT) -> FilePager:
    return FilePager(block, limit, Vm())


def get(pager: FilePager, page: int) -> None:
    """As a vCPU does: ask, wait, use."""
    waiter: PageWaiter = Waiter()
    end = time.monotonic() + 10
    while not pager.residency.ask(page, waiter):
        assert time.monotonic() < end
        time.sleep(0.0005)
    pager.residency.table[page] |= 2


def test_a_block_in_a_folder_is_memory_of_its_own(block: RamBlock, tmp_path: Path) -> None:
    assert not block.kept and list(tmp_path.iterdir()) == [], "the file has no name"
    block.view[0x1234] = 0x5A
    assert ctypes.c_ubyte.from_address(block.hva + 0x1234).value == 0x5A == os.pread(block.fd, 1, 0x1234)[0]
    assert os.fstat(block.fd).st_blocks * 512 >= 16 * MiB, "its place is reserved"
    block.view[MiB] = 1
    block.discard(0, MiB)
    assert block.view[0x1234] == 0 and block.view[MiB] == 1
    assert os.fstat(block.fd).st_blocks * 512 >= 16 * MiB


def test_what_was_put_out_comes_back_when_it_is_touched(block: RamBlock) -> None:
    content = random.Random(1).randbytes(MiB)
    block.view[:MiB] = content
    assert block.resident_size() >= MiB
    block.put_out(0, MiB)
    if block.resident_size() >= MiB:
        pytest.skip("this file system keeps its files in memory")
    assert block.resident_size() < MiB // 4 and block.resident_size(MiB // 2) <= MiB // 4
    assert block.view[5000] == content[5000] and bytes(block.view[:MiB]) == content
    block.put_out(0, MiB)
    block.fetch(0, MiB)
    assert block.resident_size() >= MiB


def test_a_file_with_a_name_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "ram"
    first = RamBlock("ram", MiB, path=path)
    assert not first.kept
    first.view[77] = 7
    first.close()
    second = RamBlock("ram", 2 * MiB, path=path)
    assert second.kept and second.view[77] == 7 and path.stat().st_size == 2 * MiB
    second.close()


def test_a_file_that_cannot_be_is_a_users_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot set up guest memory 'ram'"):
        RamBlock("ram", MiB, path=tmp_path / "no" / "such")
    space = os.statvfs(tmp_path)
    with pytest.raises(UserError, match="cannot set up guest memory 'ram'"):
        RamBlock("ram", space.f_bavail * space.f_frsize * 2 + MiB, path=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_file_system_in_memory_is_told_of(caplog: pytest.LogCaptureFixture) -> None:
    folder = Path("/dev/shm")
    if f" {folder} tmpfs " not in Path("/proc/mounts").read_text():
        pytest.skip("no tmpfs here")
    block = RamBlock("ram", LEAST_LIMIT, path=folder)
    pager = made_pager(block)
    assert caplog.messages == ["/dev/shm keeps its files in memory: RAM that is put out there takes no less of it"]
    pager.close()
    block.close()


def test_fresh_pages_take_no_waiting_and_come_in_numbers(block: RamBlock) -> None:
    pager = made_pager(block)
    assert pager.present == 0
    assert pager.residency.ask(70, Waiter())
    assert pager.present == FRESH_PAGES and pager.residency.is_present(64) and not pager.residency.is_present(128)
    pager.close()


def test_the_limit_is_kept_and_what_is_used_stays(block: RamBlock, caplog: pytest.LogCaptureFixture) -> None:
    pager = made_pager(block)
    limit = LEAST_LIMIT // PAGE_SIZE
    for page in range(block.size // PAGE_SIZE):
        block.view[page * PAGE_SIZE] = page % 251 + 1
        get(pager, page)
        get(pager, 0)
        assert pager.present <= limit + limit // 16 + FRESH_PAGES
    assert pager.residency.is_present(0) and not pager.residency.is_present(100) and not caplog.messages
    waiter = Waiter()
    assert not pager.residency.ask(100, waiter) and not pager.residency.ask(100, waiter)
    get(pager, 100)
    assert waiter.pages == [100] and pager.read >= READ_PAGES
    assert [block.view[page * PAGE_SIZE] for page in range(4096)] == [page % 251 + 1 for page in range(4096)]
    pager.close()


def test_a_disk_that_fails_leaves_nobody_waiting(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "ram"
    path.write_bytes(b"x" * LEAST_LIMIT)
    block = RamBlock("ram", LEAST_LIMIT, path=path)

    def fetch(offset: int, length: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(block, "fetch", fetch)
    pager = made_pager(block)
    get(pager, 3)
    get(pager, 300)
    assert caplog.messages == [f"cannot read RAM back from {path}: Input/output error"] * 2
    pager.close()
    block.close()


def test_a_file_with_content_is_restored_lazily(tmp_path: Path) -> None:
    path = tmp_path / "ram"
    path.write_bytes(random.Random(2).randbytes(LEAST_LIMIT * 2))
    block = RamBlock("ram", LEAST_LIMIT * 2, path=path)
    pager = made_pager(block)
    assert pager.present == 0 and not pager.residency.ask(3, Waiter())
    get(pager, 3)
    assert pager.read == READ_PAGES and bytes(block.view[3 * PAGE_SIZE : 4 * PAGE_SIZE]) == \
        path.read_bytes()[3 * PAGE_SIZE : 4 * PAGE_SIZE]
    pager.close()
    block.close()


def test_a_guest_with_more_ram_than_memory(block: RamBlock) -> None:
    """It counts up every page of 12 MiB three times over, with 4 MiB of it in memory."""
    clock = VirtualClock()
    vm: SoftVm = SoftHypervisor(clock).create_vm()
    vm.create_irqchip()
    pager = FilePager(block, LEAST_LIMIT, vm)
    try:
        vm.set_user_memory_region(0, 0, block.size, block.hva)
        vcpu = vm.create_vcpu(0)
        flat = replace(vcpu.get_sregs().ds, limit=0xFFFF_FFFF, type=3, db=True, g=True, selector=16)
        vcpu.set_sregs(replace(vcpu.get_sregs(), cs=replace(flat, type=0xB), ds=flat, es=flat, ss=flat, cr0=0x31))
        code = assemble(f"""
            mov ecx, 3
        again: mov edi, {MiB}
        next: add dword [edi], edi
            add edi, {PAGE_SIZE}
            cmp edi, {13 * MiB}
            jb next
            dec ecx
            jnz again
            out 0x99, eax""", 0x7000, 32).code  # fmt: skip
        assert vm.write_guest(0x7000, code)
        vcpu.set_regs(replace(vcpu.get_regs(), rip=0x7000))
        vcpu.state.tsc_offset = 0
        assert vcpu.run() == IoExit(0x99, 4, True, vcpu.get_regs().rax & 0xFFFF_FFFF)
        for at in range(MiB, 13 * MiB, PAGE_SIZE):
            assert int.from_bytes(block.view[at : at + 4], "little") == 3 * at & 0xFFFF_FFFF
        assert pager.written > 2048 and pager.read > 1024 and vcpu.statistics()["pages waited for"]
    finally:
        pager.close()
        vm.close()
        clock.close()
