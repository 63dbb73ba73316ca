"""The chardevs of one machine: opened from the configuration under their names, given to those who use them, closed.

Who uses a stream is a serial port, a monitor or qtest. A stream has one user, unless it is a mux: then each gets a port
of it. Names are QEMU's: -chardev's ids, serial0, compat_monitor0.
"""

from collections.abc import Callable

from pellucid.errors import UserError
from pellucid.machine.chardev import Chardev, MuxChardev, PtyChardev, StdioChardev, open_chardev
from pellucid.machine.config import CharBackend, CharBackendKind, MachineConfig, MonitorConfig
from pellucid.runtime import MainLoop


class Streams:
    """`serials` has one entry for each serial port, None where there is to be no port.

    `monitors` are the monitors' streams with what each is for; `qtest` is qtest's; `named` has every backend by its
    name. `request_quit` is what Ctrl-A x does. Raises UserError, with nothing left open, for a backend that cannot be
    had.
    """

    def __init__(self, config: MachineConfig, loop: MainLoop, request_quit: Callable[[], None]) -> None:
        self._loop = loop
        self._request_quit = request_quit
        self._escape = config.escape
        self._muxes: dict[str, MuxChardev] = {}
        self._used: set[str] = set()
        self.named: dict[str, Chardev] = {}
        self.serials: list[Chardev | None] = []
        self.monitors: list[tuple[Chardev, MonitorConfig]] = []
        self.qtest: Chardev | None = None
        try:
            self._open_all(config)
        except BaseException:
            self.close()
            raise

    @property
    def stdio(self) -> StdioChardev | None:
        """The terminal, if this machine has it."""
        return next((opened for opened in self.named.values() if isinstance(opened, StdioChardev)), None)

    @property
    def interactive(self) -> bool:
        """Whether a person sits at a monitor and can act on what happens."""
        return bool(self.monitors) and self.stdio is not None and self.stdio.terminal.is_terminal

    def close(self) -> None:
        """Close every backend; the terminal is as it was."""
        for opened in reversed(self.named.values()):
            opened.close()
        self.named.clear()

    def _open_all(self, config: MachineConfig) -> None:
        for backend in config.chardevs:
            self._open(backend, backend.id)
        shared: list[tuple[str, CharBackend]] = []
        for index, backend in enumerate(config.serials):
            label = f"serial{index}"
            self.serials.append(None if backend.kind is CharBackendKind.NONE else self._connect(backend, label))
            if backend.mux:
                shared.append((label, backend))
        for label, backend in shared:
            self.monitors.append((self._muxes[label].port(f"monitor of {label}"), MonitorConfig(backend)))
        count = 0
        for monitor in config.monitors:
            if monitor.backend.kind is not CharBackendKind.NONE:
                self.monitors.append((self._connect(monitor.backend, f"compat_monitor{count}"), monitor))
                count += monitor.backend.kind is not CharBackendKind.CHARDEV
        if config.qtest is not None:
            self.qtest = self._connect(config.qtest, "qtest")

    def for_device(self, label: str) -> Chardev | None:
        """The -chardev that a device's property names; None when there is none. Raises UserError when it is in use."""
        if label not in self.named:
            return None
        return self._connect(CharBackend(CharBackendKind.CHARDEV, id=label), label)

    def _open(self, backend: CharBackend, label: str) -> None:
        if label in self.named:
            raise UserError(f"Duplicate ID '{label}' for chardev: give each -chardev a name of its own")
        opened = open_chardev(backend, self._loop)
        self.named[label] = opened
        if isinstance(opened, PtyChardev):
            # QEMU's line, which scripts wait for to learn the name.
            print(f"char device redirected to {opened.slave_name} (label {label})", flush=True)
        if backend.mux:
            self._muxes[label] = MuxChardev(opened, self._request_quit, self._escape)

    def _connect(self, backend: CharBackend, label: str) -> Chardev:
        """A front end's stream: a new one called `label`, or the -chardev it names."""
        if backend.kind is CharBackendKind.CHARDEV:
            label_of_it = backend.id
            if label_of_it not in self.named:
                raise UserError(f'chardev "{backend.id}" not found: name it with -chardev BACKEND,id={backend.id}')
        else:
            label_of_it = label
            self._open(backend, label)
        if label_of_it in self._muxes:
            return self._muxes[label_of_it].port(label)
        if label_of_it in self._used:
            raise UserError(f"Device '{label_of_it}' is in use: share it with -chardev ...,id={label_of_it},mux=on")
        self._used.add(label_of_it)
        return self.named[label_of_it]
