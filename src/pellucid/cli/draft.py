"""The machine while its options are being read, and the checks that need all of them."""

import os
import sys
from pathlib import Path

from pellucid.block import DriveOptions
from pellucid.cli.smp import topology
from pellucid.cpu.models import DEFAULT_MODEL
from pellucid.cpu.models.topology import CpuTopology
from pellucid.errors import NotBuiltError, UserError
from pellucid.kvm.api import InstructionTime
from pellucid.machine.board import BOARDS, DEFAULT_BOARD
from pellucid.machine.config import (
    DEFAULT_MEMORY_SIZE,
    ESCAPE,
    NO_UUID,
    NULL_BACKEND,
    STDIO_WITH_MONITOR,
    BootConfig,
    CharBackend,
    CharBackendKind,
    CpuConfig,
    DeviceOption,
    FwCfgFile,
    GlobalOption,
    MachineConfig,
    MonitorConfig,
    Pairs,
    RtcConfig,
)
from pellucid.records import dataclass, field, replace
from pellucid.runtime import PanicAction

STDIO = CharBackend(CharBackendKind.STDIO)


@dataclass
class Draft:
    """What the options said so far. Fields carry MachineConfig's names where they mean the same."""

    board: str = ""
    """Empty: the default one."""
    board_options: dict[str, str] = field(default_factory=dict)
    accelerators: list[str] = field(default_factory=list)
    memory_size: int | None = None
    memory_path: Path | None = None
    memory_resident: int | None = None
    smp: dict[str, int] = field(default_factory=dict)
    """The numbers of -smp, unchecked: what they make depends on the board."""
    cpu: CpuConfig = field(default_factory=CpuConfig)
    cpu_pm: bool = False
    kernel_irqchip: str = "on"
    kernel: str | None = None
    initrd: str | None = None
    append: str | None = None
    drives: list[DriveOptions] = field(default_factory=list)
    snapshot: bool = False
    boot: BootConfig = field(default_factory=BootConfig)
    rtc: RtcConfig = field(default_factory=RtcConfig)
    icount: InstructionTime | None = None
    several_threads: bool = False
    """-accel tcg,thread=multi."""
    data_folders: list[Path] = field(default_factory=list)
    nographic: bool = False
    display_none: bool = False
    no_defaults: bool = False
    no_user_config: bool = False
    no_fd_bootchk: bool = False
    serials: list[CharBackend] = field(default_factory=list)
    monitor: CharBackend | None = None
    monitors: list[MonitorConfig] = field(default_factory=list)
    chardevs: list[CharBackend] = field(default_factory=list)
    qtest: CharBackend | None = None
    qtest_log: str = ""
    escape: int = ESCAPE
    uuid: str = NO_UUID
    panic_action: PanicAction = PanicAction.SHUTDOWN
    daemonize: bool = False
    pidfile: str | None = None
    devices: list[DeviceOption] = field(default_factory=list)
    globals: list[GlobalOption] = field(default_factory=list)
    reboot: bool = True
    exit_on_shutdown: bool = True
    start_paused: bool = False
    only_migratable: bool = False
    name: str = ""
    process_name: str = ""
    debug_threads: bool = False
    log_items: frozenset[str] = frozenset()
    log_ranges: tuple[tuple[int, int], ...] = ()
    log_file: str | None = None
    smbios: list[Pairs] = field(default_factory=list)
    acpi_tables: list[Pairs] = field(default_factory=list)
    fw_cfg_files: list[FwCfgFile] = field(default_factory=list)

    def wants_guest(self) -> bool:
        """Whether nothing was named that could be booted."""
        return self.kernel is None and self.initrd is None and not self.boots_from_drives

    def _initrd(self) -> Path | None:
        """A Multiboot kernel's modules come as "FILE WORDS,FILE WORDS": the board that splits them reads them."""
        if self.initrd is None:
            return None
        modules = not Path(self.initrd).exists() and any(char in self.initrd for char in " ,")
        return Path(self.initrd) if modules else readable_file("initrd", self.initrd)

    def _icount(self) -> InstructionTime | None:
        if self.icount is not None and self.several_threads:
            raise UserError("-accel tcg,thread=multi: No MTTCG when icount is enabled")
        return self.icount

    def _cpu(self) -> CpuConfig:
        """With cpu-pm=on the models that follow this processor have MONITOR, which the default one is without."""
        if not self.cpu_pm or self.cpu.model not in ("host", "max", DEFAULT_MODEL):
            return self.cpu
        return replace(self.cpu, features={"monitor": True, **self.cpu.features})

    def _topology(self) -> CpuTopology:
        found, warnings = topology(self.smp, BOARDS.get(self.board or DEFAULT_BOARD, BOARDS[DEFAULT_BOARD]))
        for warning in warnings:
            print(f"pellucid: warning: {warning}", file=sys.stderr)
        return found

    @property
    def boots_from_drives(self) -> bool:
        """Whether the board's firmware has something to start from."""
        board = BOARDS.get(self.board or DEFAULT_BOARD)
        return bool(self.drives) and board is not None and board.has_firmware

    def finish(self) -> MachineConfig:
        """The machine asked for, its files checked. UserError and NotBuiltError name the option at fault."""
        serials, monitors = self._streams()
        return MachineConfig(
            board=self.board or DEFAULT_BOARD,
            board_options=self.board_options,
            kernel_irqchip=self.kernel_irqchip,
            accelerator=self._accelerator(),
            memory_size=DEFAULT_MEMORY_SIZE if self.memory_size is None else self.memory_size,
            memory_path=self._memory_path(),
            memory_resident=self.memory_resident,
            topology=self._topology(),
            cpu=self._cpu(),
            kernel=self._kernel(),
            initrd=self._initrd(),
            append=self.append or "",
            data_folders=tuple(self.data_folders),
            drives=tuple(replace(drive, snapshot=drive.snapshot or self.snapshot) for drive in self.drives),
            default_drives=not self.no_defaults,
            boot=replace(self.boot, check_floppy=not self.no_fd_bootchk),
            rtc=self.rtc,
            icount=self._icount(),
            # QEMU's firmware shows itself in the window; here there is none, unless none was wanted.
            serial_console=self.nographic or not self.display_none,
            serials=serials,
            chardevs=tuple(self.chardevs),
            monitors=monitors,
            qtest=self.qtest,
            qtest_log=self.qtest_log,
            escape=self.escape,
            uuid=self.uuid,
            panic_action=self.panic_action,
            # -debugcon comes after every -device, wherever it stands.
            devices=tuple(sorted(self.devices, key=lambda found: found.option == "debugcon")),
            globals=tuple(self.globals),
            reboot=self.reboot,
            exit_on_shutdown=self.exit_on_shutdown,
            start_paused=self.start_paused,
            only_migratable=self.only_migratable,
            name=self.name,
            process_name=self.process_name,
            debug_threads=self.debug_threads,
            log_items=self.log_items,
            log_ranges=self.log_ranges,
            log_file=None if self.log_file is None else writable_file("D", self.log_file),
            smbios=tuple(self.smbios),
            acpi_tables=tuple(self.acpi_tables),
            fw_cfg_files=tuple(self.fw_cfg_files),
        )

    def _memory_path(self) -> Path | None:
        """RAM that may not be in memory as a whole needs a file: where temporary files go that may be large."""
        if self.memory_path is None and self.memory_resident is not None:
            return Path(os.environ.get("TMPDIR", "/var/tmp"))
        return self.memory_path

    def _kernel(self) -> Path | None:
        if self.kernel is not None:
            return readable_file("kernel", self.kernel)
        for option, value in (("append", self.append), ("initrd", self.initrd)):
            if value is not None:
                raise UserError(f"-{option} goes with a kernel: add -kernel FILE")
        board = self.board or DEFAULT_BOARD
        if board in BOARDS and BOARDS[board].has_firmware or self._accelerator() == "qtest":
            return None
        raise UserError(f"nothing to boot: {board} has no firmware, so give a kernel with -kernel FILE")

    def _accelerator(self) -> str:
        # QEMU tries several -accel options in turn and takes the first that works; a lone one must work.
        if self.accelerators[:1] == ["qtest"]:
            return "qtest"
        if self.accelerators and "soft" not in self.accelerators:
            raise NotBuiltError(f"-accel {self.accelerators[0]}: not built yet: use -accel tcg (Pellucid's own engine)")
        return "soft"

    def _streams(self) -> tuple[tuple[CharBackend, ...], tuple[MonitorConfig, ...]]:
        """(serial ports, monitors) with QEMU's defaults: any monitor asked for takes the place of the default one.

        QEMU without -nographic shows them in a window. There is no window here, so unless -display none says
        otherwise they come to the terminal as under -nographic.
        """
        serials = self.serials
        monitors = [] if self.monitor is None else [MonitorConfig(self.monitor)]
        monitors += self.monitors
        on_terminal = (self.nographic or not self.display_none) and not self.no_defaults and not self.daemonize
        if not serials and not self.no_defaults:
            taken = any(user.kind is CharBackendKind.STDIO for user in self._users(monitors))
            free = on_terminal and not taken
            serials = [(STDIO if monitors else STDIO_WITH_MONITOR) if free else NULL_BACKEND]
        elif not monitors and self.nographic and not self.no_defaults and not any(port.mux for port in serials):
            monitors = [MonitorConfig(STDIO)]
        monitors = [monitor for monitor in monitors if monitor.backend.kind is not CharBackendKind.NONE]
        users = [port for port in (*serials, *self._users(monitors)) if port.kind is CharBackendKind.STDIO]
        if users and self.daemonize:
            raise UserError("-daemonize: standard input and output go away: put serial port and monitor elsewhere")
        if len(users) > 1:
            raise UserError(
                "standard input and output are asked for more than once: share them with -serial mon:stdio, "
                "or move the monitor away with -monitor none"
            )
        return tuple(serials), tuple(monitors)

    def _users(self, monitors: list[MonitorConfig]) -> list[CharBackend]:
        """Every stream besides the serial ports'."""
        others = [] if self.qtest is None else [self.qtest]
        return [*(monitor.backend for monitor in monitors), *self.chardevs, *others]


def readable_file(option: str, text: str) -> Path:
    """`text` as the path of a regular file that can be read now; UserError otherwise."""
    path = Path(text)
    if not path.exists():
        # kvm-unit-tests' own runner starts an emulator without a kernel, and goes on where it says these words.
        what = "could not open kernel file: no such file" if option == "kernel" else "no such file"
        raise UserError(f"-{option} {text}: {what}: check the path")
    if not path.is_file():
        raise UserError(f"-{option} {text}: not a regular file: give the path of a file")
    if not os.access(path, os.R_OK):
        raise UserError(f"-{option} {text}: not readable: change its permissions or copy it")
    return path


def writable_file(option: str, text: str) -> Path:
    """`text` as the path of a file that can be made or written now; UserError otherwise. Nothing is made yet."""
    path = Path(text)
    if path.is_dir():
        raise UserError(f"-{option} {text}: that is a folder: give the path of a file")
    place = path if path.exists() else path.parent
    if not os.access(place, os.W_OK):
        raise UserError(f"-{option} {text}: cannot write there: check the path and its permissions")
    return path
