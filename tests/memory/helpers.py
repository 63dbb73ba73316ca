"""What the memory tests share: a device made of bytes that remembers how it was called."""

from typing import Literal

from pellucid.memory import MemoryListener, MemoryRegionSection


class ByteDevice:
    """A device whose registers are plain bytes; `calls` holds (what, offset, size) of each access."""

    def __init__(self, size: int, order: Literal["little", "big"] = "little") -> None:
        self.bytes = bytearray(size)
        self.order = order
        self.calls: list[tuple[str, int, int]] = []

    def read(self, offset: int, size: int) -> int:
        self.calls.append(("read", offset, size))
        return int.from_bytes(self.bytes[offset : offset + size].ljust(size, b"\0"), self.order)

    def write(self, offset: int, size: int, value: int) -> None:
        self.calls.append(("write", offset, size))
        self.bytes[offset : offset + size] = value.to_bytes(size, self.order)[: len(self.bytes) - offset]


class Recorder(MemoryListener):
    """Keeps what is there, from the additions and deletions it hears."""

    def __init__(self) -> None:
        self.there: set[MemoryRegionSection] = set()
        self.log: list[str] = []

    def begin(self) -> None:
        self.log.append("begin")

    def region_add(self, section: MemoryRegionSection) -> None:
        assert section not in self.there
        self.there.add(section)
        self.log.append(f"add {section.region.name} {section.addr:#x}+{section.size:#x}")

    def region_del(self, section: MemoryRegionSection) -> None:
        self.there.remove(section)
        self.log.append(f"del {section.region.name} {section.addr:#x}+{section.size:#x}")

    def commit(self) -> None:
        self.log.append("commit")
