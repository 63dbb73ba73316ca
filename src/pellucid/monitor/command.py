"""How a monitor command is declared: one function with typed arguments and a result serves people and programs.

    @command("memsave", hmp="memsave", help="save to disk virtual memory dump starting at 'addr' of size 'size'")
    def memsave(session: Session, val: Address, size: int, filename: Filename, cpu_index: QmpOnly[int] = None) -> None:

The names and types of the arguments are QMP's (`qapi.py`), checked before the function is called; the function's
parameters are also HMP's, in their order: what a line gives for each follows from its type and the markers below. A
command for people only has no QMP name, one for programs only no HMP name. `info="status"` puts it behind `info`. What
`text` makes of the result is HMP's answer; without it a string is the answer itself.
"""

import functools
import inspect
import logging
import typing
from collections.abc import Callable
from importlib import import_module
from typing import Annotated, Any, get_origin

from pellucid.errors import PellucidError
from pellucid.monitor.errors import CommandError
from pellucid.monitor.qapi import Member, plain_type, qapi_name
from pellucid.records import dataclass

_log = logging.getLogger("pellucid.monitor")


@dataclass(frozen=True)
class Marker:
    """How an argument is written in HMP. A bool marked ("flag", "a") is set by `-a`."""

    kind: str
    letter: str = ""


Address = Annotated[int, Marker("value")]
"""An unsigned 64-bit value of an expression; QMP's int wraps around to it."""
Filename = Annotated[str, Marker("filename")]
"""A word, or text in double quotes."""
Line = Annotated[str, Marker("line")]
"""All the rest of the line."""
Fmt = Annotated[str | None, Marker("format")]
"""What stands behind the slash of `x/4xg`, None without one."""


@dataclass(frozen=True)
class Parameter:
    """An argument: QMP's member, and HMP's way of writing it ("" for none)."""

    member: Member
    kind: str
    letter: str = ""
    shown: str = ""
    """Its name in help."""


@dataclass(frozen=True)
class Command:
    """A command as declared. `names` are HMP's, the first one canonical; `info` its word behind `info`, or ""."""

    qmp: str
    names: tuple[str, ...]
    info: str
    help: str
    syntax: str
    parameters: tuple[Parameter, ...]
    result: Any
    run: Callable[..., Any]
    text: Callable[[Any], str]
    oob: bool = False

    @property
    def title(self) -> str:
        """Its names as HMP's help and errors show them."""
        return self.info or "|".join(self.names)

    def help_line(self) -> str:
        """`names parameters -- help`."""
        return f"{'info ' if self.info else ''}{self.title} {self.syntax} -- {self.help}"

    @functools.cached_property
    def members(self) -> tuple[Member, ...]:
        """QMP's arguments."""
        return tuple(parameter.member for parameter in self.parameters)


def run_command(found: Command, session: Any, arguments: dict[str, Any]) -> Any:
    """The command's result. What it raises by mistake becomes an error of the command: a monitor ends no machine."""
    try:
        return found.run(session, **arguments)
    except PellucidError:
        raise
    except Exception as error:
        name = found.qmp or found.title
        _log.exception("the command %s failed", name)
        raise CommandError(f"{name} failed: {type(error).__name__}: {error}") from None


def declare_commands() -> None:
    """Fill the three tables, if nobody has: by importing every command, which is a tenth of a start."""
    import_module("pellucid.monitor.commands")


QMP_COMMANDS: dict[str, Command] = {}
HMP_COMMANDS: dict[str, Command] = {}
INFO_COMMANDS: dict[str, Command] = {}


def command(
    qmp: str = "",
    *,
    hmp: str = "",
    info: str = "",
    help: str = "",
    syntax: str | None = None,
    oob: bool = False,
    text: Callable[[Any], str] | None = None,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Declare the decorated function as a command. `hmp` may hold several names, parted by `|`.

    `syntax` is what help shows of the arguments, where it is not simply their names.
    """

    def declare(run: Callable[..., Any]) -> Callable[..., Any]:
        hints = typing.get_type_hints(run, include_extras=True)
        rest = list(inspect.signature(run).parameters.values())[1:]
        parameters = tuple(_parameter(entry, hints[entry.name]) for entry in rest)
        result = plain_type(hints.get("return"))
        shown = " ".join(_shown(parameter) for parameter in parameters if parameter.kind)
        names = tuple(filter(None, hmp.split("|")))
        answer = text or (lambda result: result if isinstance(result, str) else "")
        made = Command(
            qmp,
            names,
            info,
            help,
            shown if syntax is None else syntax,
            parameters,
            None if result is type(None) else result,
            run,
            answer,
            oob,
        )
        _register(made)
        return run

    return declare


def _register(made: Command) -> None:
    for table, names in ((QMP_COMMANDS, (made.qmp,)), (HMP_COMMANDS, made.names), (INFO_COMMANDS, (made.info,))):
        for name in filter(None, names):
            assert name not in table, f"two commands are called {name}"
            table[name] = made


def _parameter(entry: inspect.Parameter, annotation: Any) -> Parameter:
    marker = next((extra for extra in getattr(annotation, "__metadata__", ()) if isinstance(extra, Marker)), None)
    kind = plain_type(annotation)
    optional = entry.default is not inspect.Parameter.empty
    member = Member(qapi_name(entry.name), entry.name, kind, optional)
    if marker is not None:
        return Parameter(member, marker.kind, marker.letter, member.name)
    written = {int: "int", str: "word"}.get(kind, "")
    return Parameter(member, "" if get_origin(kind) is list else written, shown=member.name)


def _shown(parameter: Parameter) -> str:
    if parameter.kind == "flag":
        return f"[-{parameter.letter}]"
    if parameter.kind == "format":
        return "/fmt"
    return f"[{parameter.shown}]" if parameter.member.optional else parameter.shown
