"""The chardevs of one machine: opened from the configuration, shared with the monitor where asked, closed together."""

from collections.abc import Callable

from pellucid.machine.chardev import Chardev, MuxChardev, StdioChardev, open_chardev
from pellucid.machine.config import CharBackend, CharBackendKind, MachineConfig
from pellucid.runtime import MainLoop


class Streams:
    """`serials` has one entry for each serial port, None where there is to be no port; `monitors` are the monitor's.

    `request_quit` is what Ctrl-A x does. Raises UserError, with nothing left open, for a backend that cannot be had.
    """

    def __init__(self, config: MachineConfig, loop: MainLoop, request_quit: Callable[[], None]) -> None:
        self._loop = loop
        self._request_quit = request_quit
        self._opened: list[Chardev] = []
        self._muxes: list[tuple[MuxChardev, int]] = []
        self.serials: list[Chardev | None] = []
        self.monitors: list[Chardev] = []
        try:
            for index, backend in enumerate(config.serials):
                self.serials.append(self._open_serial(index, backend))
            for mux, index in self._muxes:
                self.monitors.append(mux.port(f"monitor of serial{index}"))
            if config.monitor is not None and config.monitor.kind is not CharBackendKind.NONE:
                self.monitors.append(self._open(config.monitor))
        except BaseException:
            self.close()
            raise

    @property
    def stdio(self) -> StdioChardev | None:
        """The terminal, if this machine has it."""
        return next((opened for opened in self._opened if isinstance(opened, StdioChardev)), None)

    @property
    def interactive(self) -> bool:
        """Whether a person sits at a monitor and can act on what happens."""
        return bool(self.monitors) and self.stdio is not None and self.stdio.terminal.is_terminal

    def close(self) -> None:
        """Close every backend; the terminal is as it was."""
        for opened in reversed(self._opened):
            opened.close()
        self._opened.clear()

    def _open(self, backend: CharBackend) -> Chardev:
        opened = open_chardev(backend, self._loop)
        self._opened.append(opened)
        return opened

    def _open_serial(self, index: int, backend: CharBackend) -> Chardev | None:
        if backend.kind is CharBackendKind.NONE:
            return None
        opened = self._open(backend)
        if not backend.mux:
            return opened
        mux = MuxChardev(opened, self._request_quit)
        self._muxes.append((mux, index))
        return mux.port(f"serial{index}")
