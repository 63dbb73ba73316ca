"""A new pseudo-terminal (`-serial pty`): another program opens its slave side, whose name is announced."""

import os
import tty

from pellucid.errors import UserError
from pellucid.machine.chardev.fd import Descriptor, FdChardev
from pellucid.runtime import MainLoop


class PtyChardev(FdChardev):
    """The master side. `slave_name` (/dev/pts/N) is what the user opens.

    We keep the slave side open too: then output waits in the terminal while nobody has it open, and a program that
    closes it ends nothing.
    """

    def __init__(self, loop: MainLoop) -> None:
        try:
            master, self._slave = os.openpty()
        except OSError as error:
            raise UserError(f"cannot make a pseudo-terminal: {error.strerror}") from None
        tty.setraw(self._slave)
        self.slave_name = os.ttyname(self._slave)
        both = Descriptor(master, os.O_RDWR, own=True)
        super().__init__(f"pty:{self.slave_name}", loop, both, both)

    @property
    def filename(self) -> str:
        return self.label

    def close(self) -> None:
        super().close()
        if self._slave >= 0:
            os.close(self._slave)
            self._slave = -1
