"""What can be wrong with a monitor command."""

from pellucid.errors import UserError


class CommandError(UserError):
    """A command cannot be carried out as written; the text is what the monitor answers."""
