"""What can be wrong with a monitor command."""

from pellucid.errors import UserError


class CommandError(UserError):
    """A command cannot be carried out as written; the text is what the monitor answers. `error_class` is QMP's."""

    error_class = "GenericError"


class SyntaxProblem(CommandError):
    """An HMP line that is not as the command wants it: the answer points to `help`."""


class CommandNotFound(CommandError):
    """There is no such command, or not in the client's present state."""

    error_class = "CommandNotFound"


class DeviceNotFound(CommandError):
    """No device or object has this name."""

    error_class = "DeviceNotFound"
