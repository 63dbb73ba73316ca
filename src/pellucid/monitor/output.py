"""What a client is still to be sent: a stream takes what it has room for, the rest waits in order."""

from pellucid.machine.chardev import Chardev


class Output:
    """Bytes on their way to a chardev. `len()` is what waits; who fills it bounds it by that."""

    def __init__(self, chardev: Chardev) -> None:
        self._chardev = chardev
        self._waiting = bytearray()

    def __len__(self) -> int:
        return len(self._waiting)

    def write(self, data: bytes) -> None:
        """Send behind what waits already."""
        self._waiting += data
        self.flush()

    def flush(self) -> None:
        """Send what the stream takes now."""
        while self._waiting:
            taken = self._chardev.write(bytes(self._waiting))
            if taken <= 0:
                return
            del self._waiting[:taken]

    def clear(self) -> None:
        """Nobody is there to take it any more."""
        self._waiting.clear()
