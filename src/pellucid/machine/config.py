"""What the user asked for, as values that boards read: the outcome of the command line, checked and typed.

Boards get a `MachineConfig` and nothing else from above; they do not see option strings. Names are those of QEMU's
options.
"""

from collections.abc import Mapping
from enum import Enum
from pathlib import Path

from pellucid.block import DriveOptions
from pellucid.cpu.models import DEFAULT_MODEL
from pellucid.cpu.models.topology import CpuTopology
from pellucid.kvm.api import InstructionTime
from pellucid.records import dataclass, field
from pellucid.runtime import PanicAction

MiB = 1 << 20

DEFAULT_MEMORY_SIZE = 128 * MiB
"""RAM when -m is not given, as in QEMU."""


RINGBUF_SIZE = 1 << 16
"""Bytes of a ring buffer when -chardev does not say."""

NO_UUID = "00000000-0000-0000-0000-000000000000"
ESCAPE = 0x01
"""Ctrl-A."""


class CharBackendKind(Enum):
    """The host's end of a character device, under the name that -serial and -monitor take."""

    NONE = "none"  # no such device at all
    NULL = "null"  # the device is there; its output is dropped
    STDIO = "stdio"
    FILE = "file"
    PIPE = "pipe"
    PTY = "pty"
    UNIX = "unix"
    TCP = "tcp"
    RINGBUF = "ringbuf"
    CHARDEV = "chardev"  # one of -chardev's, by its id


@dataclass(frozen=True)
class CharBackend:
    """One -chardev, -serial, -monitor or -qmp argument.

    `path` belongs to file, pipe and unix; `host` and `port` to tcp; `server` and `wait` to unix and tcp: listen rather
    than connect, and wait for the first client before the guest starts; `telnet` speaks that protocol over it. `append`
    belongs to file, `size` in bytes to ringbuf. `signals` leaves a terminal's Ctrl-C a signal, None where nobody said.
    `mux` shares the stream: -serial mon:... with the monitor, -chardev ...,mux=on with everybody who names it. `id` is
    the name given to it, or for CHARDEV the name of the one meant.
    """

    kind: CharBackendKind
    path: Path | None = None
    host: str = ""
    port: int = 0
    server: bool = False
    wait: bool = True
    mux: bool = False
    id: str = ""
    telnet: bool = False
    append: bool = False
    size: int = RINGBUF_SIZE
    signals: bool | None = None


class MonitorMode(Enum):
    """Who a monitor is for."""

    READLINE = "readline"  # people: HMP
    CONTROL = "control"  # programs: QMP


@dataclass(frozen=True)
class MonitorConfig:
    """A monitor and its stream; `pretty` QMP is spread over lines."""

    backend: CharBackend
    mode: MonitorMode = MonitorMode.READLINE
    pretty: bool = False


@dataclass(frozen=True)
class FwCfgFile:
    """-fw_cfg name=NAME,string=TEXT or ,file=PATH: a file for the guest; `text` counts where `path` is None."""

    name: str
    text: str = ""
    path: Path | None = None


Pairs = tuple[tuple[str, str], ...]
"""The NAME=VALUE pairs of one option, in order."""

NO_DEVICE = CharBackend(CharBackendKind.NONE)
NULL_BACKEND = CharBackend(CharBackendKind.NULL)
STDIO_WITH_MONITOR = CharBackend(CharBackendKind.STDIO, mux=True)


CPU_PROPERTIES = (
    "phys-bits", "host-phys-bits", "host-phys-bits-limit", "tsc-frequency", "vmware-cpuid-freq", "vendor", "family",
    "model", "stepping", "model-id", "level", "xlevel", "xlevel2", "min-level", "min-xlevel", "min-xlevel2",
    "full-cpuid-auto-level", "check", "enforce", "migratable", "pmu", "lbr-fmt", "kvm", "ucode-rev", "cpuid-0xb",
    "l3-cache", "legacy-cache", "fill-mtrr-mask", "tcg-cpuid", "kvm-no-smi-migration", "x-intel-pt-auto-level",
    "x-migrate-smi-count", "apic-id", "node-id", "socket-id", "die-id", "core-id", "thread-id", "start-powered-off",
    "level-func7", "lmce", "kvm-pv-enforce-cpuid", "x-force-features", "x-vendor-cpuid-only",
)
"""What -cpu takes besides features, by QEMU's names; what of it is built says `pellucid.machine.cpu_model`."""


@dataclass(frozen=True)
class CpuConfig:
    """-cpu MODEL,+feature,-feature,property=value.

    `features` holds CPUID features by QEMU's name, switched on or off on top of the model's; `properties` the rest
    (phys-bits, tsc-frequency, ...) as text.
    """

    model: str = DEFAULT_MODEL
    features: Mapping[str, bool] = field(default_factory=dict)
    properties: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class DeviceOption:
    """One `-device`: its text as given, for messages, and the items in it. `option` is the option's own name."""

    text: str
    items: tuple[tuple[str, str], ...]
    option: str = "device"

    @property
    def driver(self) -> str:
        """The device's type."""
        return dict(self.items).get("driver", "")


@dataclass(frozen=True)
class GlobalOption:
    """One `-global DRIVER.PROPERTY=VALUE`."""

    driver: str
    property: str
    value: str

    def __str__(self) -> str:
        return f"{self.driver}.{self.property}={self.value}"


MAX_CPUS = 255
"""Guest CPUs with APIC ids that fit eight bits, 255 being the broadcast."""


@dataclass(frozen=True)
class BootConfig:
    """-boot: the order of a PC's devices by letter (a floppy, c disk, d CD, n network), and how to ask for another.

    once: the order of the first start only. splash_time, reboot_timeout: milliseconds, None for the firmware's own.
    strict: boot from nothing but what has a boot index. check_floppy: not from a diskette without 55 AA.
    """

    order: str = "cad"
    once: str = ""
    menu: bool = False
    splash_time: int | None = None
    reboot_timeout: int | None = None
    strict: bool = False
    check_floppy: bool = True


@dataclass(frozen=True)
class RtcConfig:
    """-rtc: `base` is where the calendar starts: "utc", "localtime", or seconds since 1970 as text.

    clock: what drives it: "host" the host's calendar, "rt" its monotonic one, "vm" the guest's, which may stand still.
    """

    base: str = "utc"
    clock: str = "host"


@dataclass(frozen=True)
class MachineConfig:
    """A whole virtual machine as asked for on the command line.

    board: the -machine type.
    board_options: the rest of -machine, as text; the board checks them.
    accelerator: "soft" (Pellucid's own engine), or "qtest" (nobody executes the guest; tests drive its devices).
    kernel_irqchip: "on", or "split": the IOAPIC sends messages, which an IOMMU may remap.
    memory_size: RAM in bytes, a multiple of 4096.
    memory_path: the folder of the file that holds RAM (-mem-path); None: it is in memory alone.
    memory_resident: bytes of it that may be in memory; needs memory_path.
    topology: the places of guest CPUs, in sockets, dies, cores and threads, and how many have theirs.
    kernel, initrd: files that existed and could be read when the command line was parsed.
    append: the kernel command line.
    drives: disks and CDs in the order they were asked for; default_drives: an empty CD
        and an empty floppy drive, where the board has them and none was asked for.
    boot: what firmware boots from. rtc: the guest's calendar.
    icount: the guest's time goes by its instructions.
    data_folders: where firmware is looked for first (-L).
    serial_console: firmware talks through the first serial port (-nographic).
    serials: one per serial port, in order; a kind of NONE leaves that port out.
    chardevs: the named streams, which serials and monitors may mean.
    monitors: those with a stream of their own (HMP may share a serial's besides, see CharBackend.mux).
    qtest, qtest_log: where the qtest protocol is served, and the file that gets its lines, "none", or "" for stderr.
    escape: the byte behind which keys on a shared terminal are commands (-echr).
    uuid: the guest's (-uuid), zeros when none was given.
    panic_action: what becomes of a guest that says it has crashed.
    devices, globals: -device (and -debugcon) and -global, in order, still unchecked.
    reboot: False makes a guest reset end the process (-no-reboot).
    exit_on_shutdown: False keeps a machine that powered off, stopped (-no-shutdown).
    start_paused: wait for `cont` before the first instruction (-S).
    only_migratable: refuse what could not be taken along to another host (-only-migratable).
    name, process_name, debug_threads: -name; threads are named when debug_threads is set.
    log_items, log_ranges, log_file: -d, -dfilter (first and last addresses) and -D; no file means standard error.
    smbios, acpi_tables: one per option, which the board's firmware part checks.
    fw_cfg_files: -fw_cfg.
    """

    board: str = "microvm"
    board_options: Mapping[str, str] = field(default_factory=dict)
    accelerator: str = "soft"
    kernel_irqchip: str = "on"
    memory_size: int = DEFAULT_MEMORY_SIZE
    memory_path: Path | None = None
    memory_resident: int | None = None
    topology: CpuTopology = field(default_factory=CpuTopology)
    cpu: CpuConfig = field(default_factory=CpuConfig)
    kernel: Path | None = None
    initrd: Path | None = None
    append: str = ""
    data_folders: tuple[Path, ...] = ()
    serial_console: bool = True
    drives: tuple[DriveOptions, ...] = ()
    default_drives: bool = True
    boot: BootConfig = field(default_factory=BootConfig)
    rtc: RtcConfig = field(default_factory=RtcConfig)
    icount: InstructionTime | None = None
    serials: tuple[CharBackend, ...] = (STDIO_WITH_MONITOR,)
    chardevs: tuple[CharBackend, ...] = ()
    monitors: tuple[MonitorConfig, ...] = ()
    qtest: CharBackend | None = None
    qtest_log: str = ""
    escape: int = ESCAPE
    uuid: str = NO_UUID
    panic_action: PanicAction = PanicAction.SHUTDOWN
    devices: tuple[DeviceOption, ...] = ()
    globals: tuple[GlobalOption, ...] = ()
    reboot: bool = True
    exit_on_shutdown: bool = True
    start_paused: bool = False
    only_migratable: bool = False
    name: str = ""
    process_name: str = ""
    debug_threads: bool = False
    log_items: frozenset[str] = frozenset()
    log_ranges: tuple[tuple[int, int], ...] = ()
    log_file: Path | None = None
    smbios: tuple[Pairs, ...] = ()
    acpi_tables: tuple[Pairs, ...] = ()
    fw_cfg_files: tuple[FwCfgFile, ...] = ()

    def wants_default(self, *drivers: str) -> bool:
        """Whether a default drive is wanted: not with -nodefaults, nor where -device names one of these kinds."""
        return self.default_drives and not any(device.driver in drivers for device in self.devices)

    @property
    def cpu_count(self) -> int:
        """Guest CPUs that are there from the start."""
        return self.topology.count
