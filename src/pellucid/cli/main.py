"""The entry points: `pellucid COMMAND ...` and `pellucid-system-x86_64 [QEMU's options]`."""

import gc
import os
import sys
from collections.abc import Callable, Sequence

from pellucid.cli.keyval import suggestion
from pellucid.errors import EXIT_INTERNAL, PellucidError, UserError
from pellucid.records import dataclass

EXIT_BAD_INPUT = 1
EXIT_INTERRUPTED = 130  # what shells report for a process that SIGINT ended


@dataclass(frozen=True)
class Command:
    """One subcommand: a line of help, and what runs it with the words that follow its name."""

    help: str
    run: Callable[[Sequence[str]], int]


def _run(arguments: Sequence[str], *, default_guest: bool = True) -> int:
    gc.disable()  # until the machine is made: nearly all of it stays, and to look for what does not takes 20 ms
    try:
        from pellucid.cli.run import run

        return run(arguments, default_guest=default_guest)
    finally:
        gc.enable()


def _doctor(arguments: Sequence[str]) -> int:
    from pellucid.cli.doctor import doctor

    return doctor(arguments)


def _bench(arguments: Sequence[str]) -> int:
    from pellucid.cli.bench import bench

    return bench(arguments)


def _explain(arguments: Sequence[str]) -> int:
    from pellucid.cli.explain import explain

    return explain(arguments)


def _conformance(arguments: Sequence[str]) -> int:
    from pellucid.cli.conformance import conformance

    return conformance(arguments)


COMMANDS = {
    "run": Command("run a machine; takes QEMU's options, and without -kernel boots the default guest", _run),
    "doctor": Command("show what this computer offers, the caches, and what is missing", _doctor),
    "explain": Command("explain what another program printed: mtree (QEMU's memory tree)", _explain),
    "conformance": Command("run the public kvm-unit-tests suite, and show what came of each entry", _conformance),
    "bench": Command("compare the speed with QEMU's, in a table", _bench),
}


def usage() -> str:
    """The text of `pellucid --help`."""
    lines = ["usage: pellucid COMMAND [...]", ""]
    lines += [f"  {name:<12} {command.help}" for name, command in COMMANDS.items()]
    lines += ["", "pellucid run -help lists the machine's options; pellucid-system-x86_64 takes the same ones."]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """`pellucid COMMAND ...`; the exit status."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    return _guarded(lambda: _dispatch(words))


def system_main(arguments: Sequence[str] | None = None) -> int:
    """`pellucid-system-x86_64 ...`; the exit status."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    return _guarded(lambda: _run(words, default_guest=False))


def _dispatch(words: Sequence[str]) -> int:
    if not words or words[0] in ("-h", "-help", "--help", "help"):
        print(usage())
        return 0
    if words[0] in ("-version", "--version"):
        return COMMANDS["run"].run(["-version"])
    command = COMMANDS.get(words[0])
    if command is None:
        raise UserError(f"{words[0]}: no such command: {suggestion(words[0], COMMANDS)}")
    return command.run(words[1:])


def _guarded(run: Callable[[], int]) -> int:
    """run()'s status; the errors that are the user's to mend become one line and status 1, our own EXIT_INTERNAL."""
    _open_closed_streams()
    try:
        status = run()
        sys.stdout.flush()  # here, where an error can still be told
        return status
    except PellucidError as error:
        line = " ".join(str(error).split())
        print(f"pellucid: {line}", file=sys.stderr)
        return EXIT_BAD_INPUT
    except BrokenPipeError:
        # Whoever read our output has enough (`| head`). Python would write the rest at exit and fail once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return EXIT_BAD_INPUT
    except KeyboardInterrupt:
        print("pellucid: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except Exception:  # Python would tell it likewise, but end with 1
        sys.excepthook(*sys.exc_info())
        return EXIT_INTERNAL


def _open_closed_streams() -> None:
    """Put /dev/null where a standard stream is closed: else the next file opened would be taken for it."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)  # The lowest free number, which is this stream's.
            setattr(sys, name, open(null, "w" if number else "r", closefd=False))


if __name__ == "__main__":
    sys.exit(main())
