"""`info mtree` against dumps of QEMU 7.2 (tests/memory/data), read back, rendered and printed again."""

import random
from pathlib import Path

import pytest

from pellucid.errors import UserError
from pellucid.memory import AddressSpace, MemoryRegion, RamBlock, info_mtree
from pellucid.memory.explain import explain
from pellucid.memory.mtree_reader import read_mtree
from tests.memory.helpers import ByteDevice

DATA = Path(__file__).parent / "data"
BOARDS = ("microvm", "pc", "q35")


def blocks(text: str) -> list[str]:
    """The parts of a dump in sorted order: QEMU's own order comes from the hash of a pointer."""
    return sorted(text.strip("\n").split("\n\n"))


def flat_views(text: str) -> list[list[str]]:
    """The flat views without their numbers; the address spaces that share one, sorted."""
    views = []
    for block in blocks(text):
        lines = block.split("\n")[1:]
        names = sorted(line for line in lines if line.startswith(" AS "))
        views.append(names + [line for line in lines if not line.startswith(" AS ")])
    return sorted(views)


@pytest.mark.parametrize("board", BOARDS)
def test_tree_text_is_qemus(board: str) -> None:
    dump = (DATA / f"{board}.mtree-D.txt").read_text()
    spaces = read_mtree(dump)
    assert info_mtree(spaces, disabled=True).strip("\n") == dump.strip("\n")
    enabled = "\n".join(line for line in dump.split("\n") if not line.endswith("[disabled]"))
    assert info_mtree(spaces).strip("\n") == enabled.strip("\n")


@pytest.mark.parametrize("board", BOARDS)
def test_flat_view_text_is_qemus(board: str) -> None:
    spaces = read_mtree((DATA / f"{board}.mtree-D.txt").read_text())
    qemu = (DATA / f"{board}.mtree-f.txt").read_text()
    assert flat_views(info_mtree(spaces, flat=True)) == flat_views(qemu)


def small_board() -> list[AddressSpace]:
    system = MemoryRegion.new_container("system")
    ram = MemoryRegion.new_ram("microvm.ram", RamBlock("microvm.ram", 0x10000), owner="obj path=/objects/microvm.ram")
    nvdimm = MemoryRegion.new_ram("nvdimm", RamBlock("nvdimm", 0x1000))
    nvdimm.set_nonvolatile(True)
    system.add_subregion(0, MemoryRegion.new_alias("ram-below-4g", ram, 0, 0x10000))
    system.add_subregion(0x10000, nvdimm)
    uart = MemoryRegion.new_io("serial", 8, ByteDevice(8), owner="dev id=uart0")
    uart.parent = "dev path=/machine/unattached/device[3]"
    system.add_subregion_overlap(0x4000, uart, 2)
    off = MemoryRegion.new_io("off", 1, ByteDevice(1))
    off.set_enabled(False)
    system.add_subregion(0xF000_0000, off)
    empty = MemoryRegion.new_container("nothing", 0x1000)
    return [AddressSpace("memory", system), AddressSpace("cpu-memory-0", system), AddressSpace("void", empty)]


def test_tree_text_of_a_small_board() -> None:
    assert info_mtree(small_board()) == (
        "address-space: cpu-memory-0\n"
        "address-space: memory\n"
        "  0000000000000000-ffffffffffffffff (prio 0, i/o): system\n"
        "    0000000000000000-000000000000ffff (prio 0, ram): alias ram-below-4g @microvm.ram "
        "0000000000000000-000000000000ffff\n"
        "    0000000000004000-0000000000004007 (prio 2, i/o): serial\n"
        "    0000000000010000-0000000000010fff (prio 0, nv-ram): nvdimm\n"
        "\n"
        "address-space: void\n"
        "  0000000000000000-0000000000000fff (prio 0, i/o): nothing\n"
        "\n"
        "memory-region: microvm.ram\n"
        "  0000000000000000-000000000000ffff (prio 0, ram): microvm.ram\n"
        "\n"
    )


def test_flat_text_with_owners() -> None:
    assert info_mtree(small_board(), flat=True, owner=True) == (
        "FlatView #0\n"
        ' AS "memory", root: system\n'
        ' AS "cpu-memory-0", root: system\n'
        " Root memory region: system\n"
        "  0000000000000000-0000000000003fff (prio 0, ram): microvm.ram owner:{obj path=/objects/microvm.ram}\n"
        "  0000000000004000-0000000000004007 (prio 2, i/o): serial owner:{dev id=uart0} "
        "parent:{dev path=/machine/unattached/device[3]}\n"
        "  0000000000004008-000000000000ffff (prio 0, ram): microvm.ram @0000000000004008 "
        "owner:{obj path=/objects/microvm.ram}\n"
        "  0000000000010000-0000000000010fff (prio 0, nv-ram): nvdimm orphan\n"
        "\n"
        "FlatView #1\n"
        ' AS "void", root: nothing\n'
        " Root memory region: (none)\n"
        "  No rendered FlatView\n"
        "\n"
    )


def test_overflowing_regions_are_marked() -> None:
    root = MemoryRegion.new_container("root")
    root.add_subregion(0xFFFF_FFFF_FFFF_F000, MemoryRegion.new_container("over", 0x2000))
    line = info_mtree([AddressSpace("as", root)]).split("\n")[2]
    assert line == "[DETECTED OVERFLOW!]     fffffffffffff000-0000000000000fff (prio 0, i/o): over"


def test_dispatch_tree_of_one_region() -> None:
    """As QEMU prints it for -M none, whose ports nobody has claimed."""
    ports = MemoryRegion.new_io("io", 0x10000, ByteDevice(1))
    dispatch = info_mtree([AddressSpace("I/O", ports)], flat=True, dispatch_tree=True).split("  Dispatch\n")[1]
    nodes = "".join(
        f"      [{level}]\n\t  0       skip={5 - level}  ptr=[5]\n\t  1..511  skip=1  ptr=NIL\n" for level in range(5)
    )
    assert dispatch == (
        "    Physical sections\n"
        "      #0 @0000000000000000..ffffffffffffffff (noname) [unassigned]\n"
        "      #1 @0000000000000000..000000000000ffff io [not dirty] [ROOT]\n"
        "    Nodes (9 bits per level, 6 levels) ptr=[5] skip=6\n"
        f"{nodes}"
        "      [5]\n\t  0..15   skip=0  ptr=#1\n\t 16..511  skip=0  ptr=#0\n"
        "\n"
    )


def test_dispatch_tree_of_everything_and_of_nothing() -> None:
    everything = MemoryRegion.new_container("everything")
    nothing = AddressSpace("void", MemoryRegion.new_container("nothing"))
    assert "Dispatch" not in info_mtree([nothing], flat=True, dispatch_tree=True)
    everything.add_subregion(0, MemoryRegion.new_reservation("all", 1 << 64))
    everything.add_subregion_overlap(0x7FF, MemoryRegion.new_reservation("across", 0x1002), 1)
    text = info_mtree([AddressSpace("as", everything)], flat=True, dispatch_tree=True)
    sections = [line.split()[1:3] for line in text.split("\n") if line.startswith("      #")]
    assert sections == [
        ["@0000000000000000..ffffffffffffffff", "(noname)"],
        ["@0000000000000000..0000000000000fff", "(noname)"],
        ["@0000000000000000..00000000000007fe", "all"],
        ["@00000000000007ff..0000000000000fff", "across"],
        ["@0000000000001000..0000000000001fff", "(noname)"],
        ["@0000000000001000..0000000000001800", "across"],
        ["@0000000000001801..0000000000001fff", "all"],
        ["@0000000000002000..ffffffffffffffff", "all"],
    ]


SPAN = "0000000000000000-000000000000ffff"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("hello\n", "line 1 is not a line"),
        ("", "no 'address-space:'"),
        ("address-space: a\n\n", "no 'address-space:'"),
        ("(qemu) info mtree -f\nFlatView #0\n", "line 2 is of 'info mtree -f'"),
        ("\n" * 20_001, "20001 lines are more"),
        ("".join(f"memory-region: m{n}\n" for n in range(2_001)), "2001 trees are more"),
        (f"  {SPAN} (prio 0, i/o): x\n", "line 1: a region before"),
        (f"address-space: a\n  {SPAN} (prio 0, i/o): x\n  {SPAN} (prio 0, i/o): y\n", "line 3: a second tree"),
        (f"address-space: a\n  {SPAN} (prio 0, i/o): alias x @gone {SPAN}\n", "'gone', which is not in the dump"),
        (f"address-space: a\n  {SPAN} (prio 0, i/o): alias x @x {SPAN}\n", "'x', which is not in the dump"),
        (
            f"address-space: a\n  {SPAN} (prio 0, i/o): r\n"
            f"    {SPAN} (prio 0, i/o): alias x @y {SPAN}\n    {SPAN} (prio 0, i/o): alias y @x {SPAN}\n",
            "shows itself",
        ),
        (f"address-space: a\n  {SPAN} (prio 0, rum): x\n", "'rum' is no kind"),
        (
            f"address-space: a\n  {SPAN} (prio 0, ram): alias x @y {SPAN}\n    {SPAN} (prio 0, ram): z\n"
            f"memory-region: y\n  {SPAN} (prio 0, ram): y\n",
            "contradicts itself",
        ),
    ],
)
def test_what_is_no_dump_is_named_by_line(text: str, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        read_mtree(text)


def test_what_is_pasted_along_is_passed_over() -> None:
    dump = (
        "QEMU 7.2.9 monitor - type 'help' for more information\n"
        "(qemu) info mtree\x1b[K\n"
        "```\n"
        "address-space: memory\n"
        f"      {SPAN} (prio 0, i/o): system owner:{{obj path=/x}} parent:{{dev id=y}}\r\n"
        f"[DETECTED OVERFLOW!]         {SPAN} (prio 0, RW): ram orphan\n"
        "```\n(qemu) quit\n"
    )
    (space,) = read_mtree(dump)
    assert (space.root.name, space.root.owner, space.root.parent) == ("system", "obj path=/x", "dev id=y")
    assert [region.name for region in space.root.subregions] == ["ram"]


def test_what_is_in_a_disabled_region_is_not_seen_though_only_it_is_printed() -> None:
    text = (
        f"address-space: io\n  {SPAN} (prio 0, i/o): io\n"
        "      0000000000000000-0000000000000003 (prio 0, i/o): acpi-evt\n"
        f"    {SPAN} (prio 0, i/o): alias w @smram {SPAN}\n"
        f"\nmemory-region: smram\n    {SPAN} (prio 0, i/o): low\n\n"
    )
    (space,) = read_mtree(text)
    assert [found.region.name for found in space.view.ranges] == ["io"]
    assert info_mtree([space]) == text


def doubled(levels: int) -> str:
    """Aliases that show the next region twice each: 2**levels ways to the last."""
    trees = [f"address-space: a\n  {SPAN} (prio 0, i/o): m0\n    {SPAN} (prio 0, i/o): alias a0 @m1 {SPAN}\n"]
    for level in range(1, levels):
        twice = f"    {SPAN} (prio 0, i/o): alias a{level} @m{level + 1} {SPAN}\n" * 2
        trees.append(f"memory-region: m{level}\n  {SPAN} (prio 0, i/o): m{level}\n{twice}")
    return "\n".join([*trees, f"memory-region: m{levels}\n  {SPAN} (prio 0, i/o): m{levels}\n"])


def test_aliases_without_end_are_refused_at_once() -> None:
    assert len(read_mtree(doubled(10))[0].view.ranges) == 1
    with pytest.raises(UserError, match="over and over"):
        read_mtree(doubled(40))
    chain = [f"address-space: a\n  {SPAN} (prio 0, i/o): alias c @m0 {SPAN}\n"]
    chain += [f"memory-region: m{n}\n  {SPAN} (prio 0, i/o): alias m{n} @n{n} {SPAN}\n" for n in range(900)]
    with pytest.raises(UserError, match="not in the dump|shows itself"):
        read_mtree("\n".join(chain))
    links = [f"    {SPAN} (prio 0, i/o): alias l{n} @l{n + 1} {SPAN}\n" for n in range(900)]
    last = f"    {SPAN} (prio 0, i/o): l900\n"
    with pytest.raises(UserError, match="too long a chain"):
        read_mtree(f"address-space: a\n  {SPAN} (prio 0, i/o): r\n" + "".join(links) + last)


@pytest.mark.parametrize("board", BOARDS)
def test_truncated_and_garbled_dumps(board: str) -> None:
    """Cut anywhere, or with bytes changed: refused with one line, or read; nothing else is raised."""
    rng = random.Random(f"garbled {board}")
    original = (DATA / f"{board}.mtree-D.txt").read_text()
    for _ in range(40):
        text = list(original[: rng.randrange(len(original))] if rng.random() < 0.5 else original)
        for _ in range(rng.choice((0, 1, 5, 50))):
            odd = rng.choice((0, 10, 13, 27, 32, 48, 102, 0x2028, 0xDCFF, rng.randrange(256)))
            text[rng.randrange(len(text))] = chr(odd)
        try:
            spaces = read_mtree("".join(text))
        except UserError as error:
            assert "\n" not in str(error)
            continue
        assert info_mtree(spaces, flat=True, owner=True, dispatch_tree=True)
        for space in spaces:
            explain(space, rng.getrandbits(64))


@pytest.mark.parametrize("board", BOARDS)
def test_damaged_dumps_are_refused_or_read_but_nothing_else(board: str) -> None:
    rng = random.Random(board)
    original = (DATA / f"{board}.mtree-D.txt").read_text().split("\n")
    refused = 0
    for _ in range(40):
        lines = list(original)
        for _ in range(rng.randrange(1, 12)):
            at, other = rng.randrange(len(lines)), rng.randrange(len(lines))
            what = rng.randrange(5)
            if what == 0:
                del lines[at]
            elif what == 1:
                lines[at] = lines[other]
            elif what == 2:
                lines[at] = "  " * rng.randrange(80) + lines[at].lstrip()
            elif what == 3:
                lines[at] = lines[at].replace(rng.choice("0f:@ ()"), rng.choice("0f:@ ()"), 3)
            else:
                lines[at], lines[other] = lines[other], lines[at]
        try:
            spaces = read_mtree("\n".join(lines))
        except UserError:
            refused += 1
            continue
        assert info_mtree(spaces, disabled=True) and info_mtree(spaces, flat=True)
    assert 0 < refused < 40


def test_trees_that_stand_in_each_other_do_not_confuse_the_reader() -> None:
    def nest(outer: str, inner: str) -> str:
        return f"memory-region: {outer}\n  {SPAN} (prio 0, i/o): {outer}\n    {SPAN} (prio 0, i/o): {inner}\n"

    shown = f"address-space: s\n  {SPAN} (prio 0, i/o): alias w @a {SPAN}\n"
    (space,) = read_mtree(shown + nest("a", "b") + nest("b", "a"))
    assert [found.region.name for found in space.view.ranges] in (["a"], ["b"])
