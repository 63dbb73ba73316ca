"""`pellucid run` and `pellucid-system-x86_64`: from QEMU's options to a machine that runs until it ends."""

import gc
from collections.abc import Sequence

from pellucid.cli.daemon import go_to_background, pidfile
from pellucid.cli.draft import Draft
from pellucid.cli.option_values import HelpRequested
from pellucid.cli.options import read_options
from pellucid.machine.log import configure_logging

DEFAULT_GUEST_MEMORY = 256 << 20
DEFAULT_GUEST_BOARD = "microvm"  # it needs no firmware's package


def run(arguments: Sequence[str], *, default_guest: bool) -> int:
    """Run the machine that `arguments` ask for and return the exit status.

    With `default_guest`, a command line that names no kernel gets Debian's, with an initrd that ends in a shell; unless
    it names a drive and a board whose firmware starts from it.
    """
    try:
        draft = read_options(arguments)
        if default_guest and draft.wants_guest():
            _use_default_guest(draft)
        config = draft.finish()
    except HelpRequested as request:
        print(request)
        return 0
    ready = go_to_background() if draft.daemonize else None
    with pidfile(draft.pidfile):
        configure_logging(config.log_items, config.log_file)
        # Imported here: a bad command line is told at once, without loading the engine.
        from pellucid.machine.run import run_machine
        from pellucid.monitor.attach import attach_control
        from pellucid.monitor.machine_log import attach_log

        def made() -> None:
            gc.freeze()  # what stays is not looked at again
            gc.enable()
            if ready is not None:
                ready()

        return run_machine(config, attach_control, ready=made, attach_log=attach_log)


def _use_default_guest(draft: Draft) -> None:
    """Boot Debian's cloud kernel and a busybox initrd; RAM and -append as given, else what suits them."""
    from pellucid.cli import guest

    draft.board = draft.board or DEFAULT_GUEST_BOARD
    draft.kernel = str(guest.default_kernel())
    draft.initrd = str(guest.default_initrd())
    draft.append = " ".join(filter(None, (guest.APPEND, draft.append)))
    if draft.memory_size is None:
        draft.memory_size = DEFAULT_GUEST_MEMORY
