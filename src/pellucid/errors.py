"""The exceptions of Pellucid, drawn as a tree.

    PellucidError
    ├── UserError          bad input; one line: what, where, what to do; exit status 1
    └── NotBuiltError      a named mechanism that Pellucid does not have yet
"""

EXIT_INTERNAL = 70
"""The process's status where Pellucid itself has failed (EX_SOFTWARE of sysexits.h). Even, as no status is that a guest
gives through isa-debug-exit: a test's guest that is not executed to its end must not look like one that has passed.
"""


class PellucidError(Exception):
    """Root of every error that Pellucid raises on purpose."""


class UserError(PellucidError):
    """Bad input from the user: the text is one line that names the thing and says what to do."""


class NotBuiltError(PellucidError):
    """Asked for something that is not built yet; the text names it."""
