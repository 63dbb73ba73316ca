"""The machine while its options are being read, and the checks that need all of them."""

import os
from dataclasses import dataclass, field
from pathlib import Path

from pellucid.cpu.models.topology import CpuTopology
from pellucid.errors import NotBuiltError, UserError
from pellucid.machine.board import BOARDS
from pellucid.machine.config import (
    DEFAULT_MEMORY_SIZE,
    NULL_BACKEND,
    STDIO_WITH_MONITOR,
    CharBackend,
    CharBackendKind,
    CpuConfig,
    FwCfgFile,
    MachineConfig,
    Pairs,
)

STDIO = CharBackend(CharBackendKind.STDIO)


@dataclass
class Draft:
    """What the options said so far. Fields carry MachineConfig's names where they mean the same."""

    board: str = "microvm"
    board_options: dict[str, str] = field(default_factory=dict)
    accelerators: list[str] = field(default_factory=list)
    memory_size: int | None = None
    topology: CpuTopology = field(default_factory=CpuTopology)
    cpu: CpuConfig = field(default_factory=CpuConfig)
    kernel: str | None = None
    initrd: str | None = None
    append: str | None = None
    nographic: bool = False
    display_none: bool = False
    no_defaults: bool = False
    no_user_config: bool = False
    no_fd_bootchk: bool = False
    serials: list[CharBackend] = field(default_factory=list)
    monitor: CharBackend | None = None
    reboot: bool = True
    exit_on_shutdown: bool = True
    start_paused: bool = False
    name: str = ""
    process_name: str = ""
    debug_threads: bool = False
    log_items: frozenset[str] = frozenset()
    log_file: str | None = None
    uuid: str = ""
    smbios: list[Pairs] = field(default_factory=list)
    acpi_tables: list[Pairs] = field(default_factory=list)
    fw_cfg_files: list[FwCfgFile] = field(default_factory=list)

    def finish(self) -> MachineConfig:
        """The machine asked for, its files checked. UserError and NotBuiltError name the option at fault."""
        serials, monitor = self._streams()
        return MachineConfig(
            board=self.board,
            board_options=self.board_options,
            accelerator=self._accelerator(),
            memory_size=DEFAULT_MEMORY_SIZE if self.memory_size is None else self.memory_size,
            topology=self.topology,
            cpu=self.cpu,
            kernel=self._kernel(),
            initrd=None if self.initrd is None else readable_file("initrd", self.initrd),
            append=self.append or "",
            serials=serials,
            monitor=monitor,
            reboot=self.reboot,
            exit_on_shutdown=self.exit_on_shutdown,
            start_paused=self.start_paused,
            name=self.name,
            process_name=self.process_name,
            debug_threads=self.debug_threads,
            log_items=self.log_items,
            log_file=None if self.log_file is None else writable_file("D", self.log_file),
            uuid=self.uuid,
            smbios=tuple(self.smbios),
            acpi_tables=tuple(self.acpi_tables),
            fw_cfg_files=tuple(self.fw_cfg_files),
        )

    def _kernel(self) -> Path | None:
        if self.kernel is not None:
            return readable_file("kernel", self.kernel)
        for option, value in (("append", self.append), ("initrd", self.initrd)):
            if value is not None:
                raise UserError(f"-{option} goes with a kernel: add -kernel FILE")
        if self.board in BOARDS and BOARDS[self.board].has_firmware:
            return None
        raise UserError(f"nothing to boot: {self.board} has no firmware, so give a kernel with -kernel FILE")

    def _accelerator(self) -> str:
        # QEMU tries several -accel options in turn and takes the first that works; a lone one must work.
        if self.accelerators and "soft" not in self.accelerators:
            raise NotBuiltError(f"-accel {self.accelerators[0]}: not built yet: use -accel tcg (Pellucid's own engine)")
        return "soft"

    def _streams(self) -> tuple[tuple[CharBackend, ...], CharBackend | None]:
        """(serial ports, monitor) with QEMU's defaults.

        QEMU without -nographic shows them in a window. There is no window here, so unless -display none says
        otherwise they come to the terminal as under -nographic.
        """
        serials = self.serials
        monitor = self.monitor
        on_terminal = (self.nographic or not self.display_none) and not self.no_defaults
        default_serial = STDIO_WITH_MONITOR if on_terminal and monitor is None else NULL_BACKEND
        if not serials:
            if on_terminal and monitor is not None and monitor.kind is not CharBackendKind.STDIO:
                default_serial = STDIO
            serials = [] if self.no_defaults else [default_serial]
        elif monitor is None and self.nographic and not self.no_defaults and not any(port.mux for port in serials):
            monitor = STDIO
        if monitor is not None and monitor.kind is CharBackendKind.NONE:
            monitor = None
        users = [port for port in (*serials, monitor) if port is not None and port.kind is CharBackendKind.STDIO]
        if len(users) > 1:
            raise UserError(
                "standard input and output are asked for more than once: share them with -serial mon:stdio, "
                "or move the monitor away with -monitor none"
            )
        return tuple(serials), monitor


def readable_file(option: str, text: str) -> Path:
    """`text` as the path of a regular file that can be read now; UserError otherwise."""
    path = Path(text)
    if not path.exists():
        raise UserError(f"-{option} {text}: no such file: check the path")
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
