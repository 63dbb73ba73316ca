"""SMBIOS structures as QEMU 7.2 hands them to firmware (DMTF DSP0134; entry points 2.1 as version 2.8, and 3.0).

Firmware copies `etc/smbios/smbios-tables` behind what it knows itself (type 0, unless it is here) and makes the entry
point from `etc/smbios/smbios-anchor`. A structure is a header (type, length, handle), fixed fields, in which strings
are numbers, and the strings, each ending in a zero and all of them in another. The sections cited are DSP0134's.
"""

import struct
from collections.abc import Sequence

from pellucid.records import dataclass, field

KiB_SHIFT, MiB_SHIFT = 10, 20
TABLES_FILE, ANCHOR_FILE = "etc/smbios/smbios-tables", "etc/smbios/smbios-anchor"
NO_ERROR_INFORMATION, NOT_PROVIDED = 0xFFFE, 0xFFFF
OTHER, UNKNOWN, SAFE = 1, 2, 3
"""Values that many enumerations have in common."""
DIMM_SIZE = 16 << 30
"""More RAM than this is several memory devices."""
CAPACITY_IN_KIB_END = 2 << 40
MEGABYTES_END = 0x7FFF
EXTENDED_CAPACITY, EXTENDED_ADDRESS, EXTENDED_SIZE = 0x8000_0000, 0xFFFF_FFFF, 0x7FFF
KIB_ADDRESS_END = 4 << 40

Fields = dict[str, str]


@dataclass(frozen=True)
class SmbiosOptions:
    """What the user said: fields by structure type, strings of type 11, whole structures that take a type's place."""

    fields: dict[int, Fields] = field(default_factory=dict)
    oem_strings: Sequence[bytes] = ()
    structures: Sequence[bytes] = ()
    uuid: bytes = bytes(16)


@dataclass(frozen=True)
class SmbiosMachine:
    """The machine as the structures describe it. `ram` are (address, size) of its ranges, from the lowest up.

    `processor_id` is CPUID leaf 1: EAX, then EDX. `entry_point_64` chooses the entry point of version 3.0.
    """

    product: str
    version: str
    sockets: int
    cores: int
    threads: int
    ram: Sequence[tuple[int, int]]
    processor_id: tuple[int, int] = (0, 0)
    manufacturer: str = "QEMU"
    entry_point_64: bool = False


class _Structure:
    """One structure being written."""

    def __init__(self, type_: int, handle: int) -> None:
        self._type, self._handle = type_, handle
        self._fixed = bytearray()
        self._strings: list[bytes] = []

    def put(self, format: str, *values: int | bytes) -> None:
        """Little-endian fields."""
        self._fixed += struct.pack("<" + format, *values)

    def string(self, text: str | bytes) -> int:
        """The number of a string, 0 for an empty one."""
        content = text.encode() if isinstance(text, str) else text
        if not content:
            return 0
        self._strings.append(content)
        return len(self._strings)

    def content(self) -> bytes:
        header = struct.pack("<BBH", self._type, 4 + len(self._fixed), self._handle)
        strings = b"".join(text + b"\0" for text in self._strings) or b"\0"
        return header + bytes(self._fixed) + strings + b"\0"


@dataclass
class SmbiosFiles:
    """What goes into fw_cfg under TABLES_FILE and ANCHOR_FILE."""

    tables: bytes
    anchor: bytes


def build_smbios(machine: SmbiosMachine, options: SmbiosOptions) -> SmbiosFiles:
    """The structures in QEMU's order: whole ones that were given, then 0 to 4, 11, 16, 17, 19, 32 and 127."""
    given = {content[0] for content in options.structures}
    built = [content for content in _Builder(machine, options).all() if content[0] not in given]
    structures = [*options.structures, *built]
    tables = b"".join(structures)
    if machine.entry_point_64:
        anchor = struct.pack("<5sBBBBBBBIQ", b"_SM3_", 0, 24, 3, 0, 0, 1, 0, len(tables), 0)
    else:
        largest = max(len(content) for content in structures)
        anchor = struct.pack("<4sBBBBHB5x", b"_SM_", 0, 31, 2, 8, largest, 0)
        anchor += struct.pack("<5sBHIHB", b"_DMI_", 0, len(tables), 0, len(structures), 0x28)
    return SmbiosFiles(tables, anchor)


class _Builder:
    def __init__(self, machine: SmbiosMachine, options: SmbiosOptions) -> None:
        self._machine, self._options = machine, options

    def all(self) -> list[bytes]:
        fields, machine = self._options.fields, self._machine
        structures = [self._bios(fields[0])] if 0 in fields else []
        structures.append(self._system())
        if 2 in fields:
            structures.append(self._board())
        structures.append(self._chassis())
        structures += [self._processor(socket) for socket in range(machine.sockets)]
        if self._options.oem_strings:
            structures.append(self._oem_strings())
        total = sum(size for _, size in machine.ram)
        sizes = [min(DIMM_SIZE, total - start) for start in range(0, total, DIMM_SIZE)]
        structures.append(_memory_array(total, len(sizes)))
        structures += [self._memory_device(index, size) for index, size in enumerate(sizes)]
        structures += [_mapped_range(index, *place) for index, place in enumerate(machine.ram)]
        return [*structures, *_ending()]

    def _get(self, type_: int, name: str, default: str = "") -> str:
        return self._options.fields.get(type_, {}).get(name, default)

    def _made_by(self, structure: _Structure, type_: int) -> tuple[int, int]:
        """The numbers of the manufacturer's and the version's string."""
        maker = structure.string(self._get(type_, "manufacturer", self._machine.manufacturer))
        return maker, structure.string(self._get(type_, "version", self._machine.version))

    def _bios(self, given: Fields) -> bytes:
        """Type 0 (7.1). Characteristics: not supported; virtual machine, and UEFI when said so."""
        it = _Structure(0, 0)
        vendor, version, date = (it.string(given.get(name, "")) for name in ("vendor", "version", "date"))
        major, minor = (int(part) for part in given["release"].split(".")) if "release" in given else (0, 0)
        uefi = 0x08 if given.get("uefi") == "on" else 0
        it.put("BBHBBQBBBBBB", vendor, version, 0xE800, date, 0, 0x08, 0, 0x14 | uefi, major, minor, 0xFF, 0xFF)
        return it.content()

    def _system(self) -> bytes:
        """Type 1 (7.2). The UUID's first three fields are little-endian; it was woken by its power switch."""
        it = _Structure(1, 0x100)
        maker = it.string(self._get(1, "manufacturer", self._machine.manufacturer))
        product = it.string(self._get(1, "product", self._machine.product))
        version = it.string(self._get(1, "version", self._machine.version))
        serial, sku, family = (it.string(self._get(1, name)) for name in ("serial", "sku", "family"))
        power_switch = 6
        uuid = _mixed_endian(self._options.uuid)
        it.put("BBBB16sBBB", maker, product, version, serial, uuid, power_switch, sku, family)
        return it.content()

    def _board(self) -> bytes:
        """Type 2 (7.3): a motherboard that hosts other boards."""
        it = _Structure(2, 0x200)
        maker = it.string(self._get(2, "manufacturer", self._machine.manufacturer))
        product = it.string(self._get(2, "product", self._machine.product))
        version = it.string(self._get(2, "version", self._machine.version))
        serial, asset, location = (it.string(self._get(2, name)) for name in ("serial", "asset", "location"))
        hosting, chassis, motherboard = 1, 0x300, 0x0A
        it.put("BBBBBBBHBB", maker, product, version, serial, asset, hosting, location, chassis, motherboard, 0)
        return it.content()

    def _chassis(self) -> bytes:
        """Type 3 (7.4)."""
        it = _Structure(3, 0x300)
        maker, version = self._made_by(it, 3)
        serial, asset, sku = (it.string(self._get(3, name)) for name in ("serial", "asset", "sku"))
        it.put("BBBBBBBBBIBBBBB", maker, OTHER, version, serial, asset, SAFE, SAFE, SAFE, UNKNOWN, 0, 0, 0, 0, 0, sku)
        return it.content()

    def _processor(self, socket: int) -> bytes:
        """Type 4 (7.5): one of each socket, enabled, without caches."""
        machine = self._machine
        it = _Structure(4, 0x400 + socket)
        designation = it.string(f"{self._get(4, 'sock_pfx', 'CPU')} {socket:x}")
        maker, version = self._made_by(it, 4)
        serial, asset, part = (it.string(self._get(4, name)) for name in ("serial", "asset", "part"))
        central, enabled, other_family = 3, 0x41, 1
        speeds = (int(self._get(4, f"{which}-speed", "2000")) for which in ("max", "current"))
        cores, threads = machine.cores, machine.cores * machine.threads
        it.put("BBBBIIBBHHHBB", designation, central, OTHER, maker, *machine.processor_id, version, 0, 0, *speeds,
               enabled, OTHER)  # fmt: skip
        it.put("HHHBBB", NOT_PROVIDED, NOT_PROVIDED, NOT_PROVIDED, serial, asset, part)
        it.put("BBBHH", min(cores, 255), min(cores, 255), min(threads, 255), UNKNOWN, other_family)
        if machine.entry_point_64:
            it.put("HHH", cores, cores, threads)
        return it.content()

    def _oem_strings(self) -> bytes:
        """Type 11 (7.12)."""
        it = _Structure(11, 0xE00)
        it.put("B", len(self._options.oem_strings))
        for text in self._options.oem_strings:
            it.string(text)
        return it.content()

    def _memory_device(self, index: int, size: int) -> bytes:
        """Type 17 (7.18): a DIMM of the array."""
        it = _Structure(17, 0x1100 + index)
        locator = it.string(f"{self._get(17, 'loc_pfx', 'DIMM')} {index:x}")
        bank = it.string(self._get(17, "bank"))
        maker = it.string(self._get(17, "manufacturer", self._machine.manufacturer))
        serial, asset, part = (it.string(self._get(17, name)) for name in ("serial", "asset", "part"))
        megabytes = -(-size // (1 << MiB_SHIFT))
        short, extended = (megabytes, 0) if megabytes < MEGABYTES_END else (EXTENDED_SIZE, megabytes)
        speed = int(self._get(17, "speed", "0"))
        dimm, ram, detail = 9, 7, OTHER << 1
        it.put("HHHHHBBBBBHH", 0x1000, NO_ERROR_INFORMATION, NOT_PROVIDED, NOT_PROVIDED, short, dimm, 0, locator, bank,
               ram, detail, speed)  # fmt: skip
        it.put("BBBBBIHHHH", maker, serial, asset, part, 0, extended, speed, 0, 0, 0)
        return it.content()


def _memory_array(total: int, devices: int) -> bytes:
    """Type 16 (7.17): system memory with multi-bit error correction."""
    it = _Structure(16, 0x1000)
    multi_bit = 6
    short, extended = (total >> KiB_SHIFT, 0) if total < CAPACITY_IN_KIB_END else (EXTENDED_CAPACITY, total)
    it.put("BBBIHHQ", OTHER, 3, multi_bit, short, NO_ERROR_INFORMATION, devices, extended)
    return it.content()


def _mapped_range(index: int, address: int, size: int) -> bytes:
    """Type 19 (7.20): where RAM appears."""
    it = _Structure(19, 0x1300 + index)
    last = address + size - 1
    if last < KIB_ADDRESS_END:
        it.put("IIHBQQ", address >> KiB_SHIFT, last >> KiB_SHIFT, 0x1000, 1, 0, 0)
    else:
        it.put("IIHBQQ", EXTENDED_ADDRESS, EXTENDED_ADDRESS, 0x1000, 1, address, last)
    return it.content()


def _ending() -> list[bytes]:
    """Type 32 (7.33): no errors at the last boot; type 127: the end (7.44)."""
    boot = _Structure(32, 0x2000)
    boot.put("6xB", 0)
    return [boot.content(), _Structure(127, 0x7F00).content()]


def _mixed_endian(uuid: bytes) -> bytes:
    """The 16 bytes as SMBIOS has them (7.2.1)."""
    return uuid[3::-1] + uuid[5:3:-1] + uuid[7:5:-1] + uuid[8:]
