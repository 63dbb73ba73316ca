"""The exceptions of Pellucid, drawn as a tree.

    PellucidError
    ├── UserError          bad input; one line: what, where, what to do; exit status 1
    └── NotBuiltError      a named mechanism that Pellucid does not have yet
"""


class PellucidError(Exception):
    """Root of every error that Pellucid raises on purpose."""


class UserError(PellucidError):
    """Bad input from the user: the text is one line that names the thing and says what to do."""


class NotBuiltError(PellucidError):
    """Asked for something that is not built yet; the text names it."""
