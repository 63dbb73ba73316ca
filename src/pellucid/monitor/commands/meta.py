"""The monitors themselves: help, what commands and events there are, one monitor's commands from the other."""

import functools
from collections.abc import Mapping
from typing import Literal

from pellucid.errors import NotBuiltError
from pellucid.machine.option_tables import OPTION_TABLES
from pellucid.monitor import hmp
from pellucid.monitor.command import HMP_COMMANDS, INFO_COMMANDS, QMP_COMMANDS, Command, Line, command
from pellucid.monitor.commands.logs import log_items_text
from pellucid.monitor.errors import CommandError, CommandNotFound
from pellucid.monitor.events import EVENTS, add_to_schema
from pellucid.monitor.qapi import Schema
from pellucid.monitor.session import Session
from pellucid.records import dataclass


@command(hmp="help|?", help="show the help", syntax="[cmd]")
def help_(session: Session, cmd: Line = "") -> str:
    """A line for each command, or for those asked for."""
    words = cmd.split()
    if not words:
        return _help_lines(HMP_COMMANDS)
    if words[0] == "log":
        return log_items_text()
    rows, prefix = HMP_COMMANDS, ""
    if words[0] == "info":
        if len(words) == 1:
            return _help_lines(INFO_COMMANDS)
        rows, prefix, words = INFO_COMMANDS, "info ", words[1:]
    if words[0] not in rows:
        return f"unknown command: '{prefix}{words[0]}'\n"
    return rows[words[0]].help_line() + "\n"


@command(hmp="info", help="show various information about the system state", syntax="[subcommand]")
def info(session: Session) -> str:
    """What there is to be shown."""
    return _help_lines(INFO_COMMANDS)


def _help_lines(rows: Mapping[str, Command]) -> str:
    found = sorted({id(row): row for row in rows.values()}.values(), key=lambda row: row.title)
    return "".join(row.help_line() + "\n" for row in found)


@command(info="history", help="show the command line history")
def history(session: Session) -> str:
    """The lines of before."""
    return "".join(f"{index}: '{line}'\n" for index, line in enumerate(session.history()))


@dataclass(frozen=True)
class CommandInfo:
    """A command or event."""

    name: str


@command("query-commands")
def query_commands(session: Session) -> list[CommandInfo]:
    """QMP's commands."""
    return [CommandInfo(name) for name in QMP_COMMANDS]


@command("query-events")
def query_events(session: Session) -> list[CommandInfo]:
    """QMP's events; QEMU has dropped this command, whose answer is in query-qmp-schema too."""
    return [CommandInfo(name) for name in EVENTS]


@functools.cache
def schema() -> Schema:
    """All of QMP, described once."""
    made = Schema()
    for found in QMP_COMMANDS.values():
        made.add_command(found.qmp, found.members, found.result, found.oob)
    add_to_schema(made)
    return made


@command("query-qmp-schema")
def query_qmp_schema(session: Session) -> list[object]:
    """Commands, events and their types in QAPI's introspection form."""
    return list(schema().entries)


@command("human-monitor-command")
def human_monitor_command(session: Session, command_line: str, cpu_index: int | None = None) -> str:
    """A line of HMP, and what it answers."""
    own = Session(session.control, 0 if cpu_index is None else session.thread(cpu_index).index)
    return hmp.execute(own, command_line).replace("\n", "\r\n")


@command("qmp_capabilities")
def qmp_capabilities(session: Session, enable: list[Literal["oob"]] | None = None) -> None:
    """End the negotiation; a second time is too late."""
    raise CommandNotFound("Capabilities negotiation is already complete, command ignored")


@dataclass(frozen=True)
class CommandLineParameterInfo:
    """A parameter of an option."""

    name: str
    type: Literal["string", "boolean", "number", "size"]


@dataclass(frozen=True)
class CommandLineOptionInfo:
    """An option with parameters of its own."""

    option: str
    parameters: list[CommandLineParameterInfo]


@command("query-command-line-options")
def query_command_line_options(session: Session, option: str | None = None) -> list[CommandLineOptionInfo]:
    """The options with parameters, or one of them."""
    if option is not None and option not in OPTION_TABLES:
        raise CommandError(f"invalid option name: {option}")
    return [
        CommandLineOptionInfo(name, [CommandLineParameterInfo(key, kind) for key, kind in parameters.items()])
        for name, parameters in OPTION_TABLES.items()
        if option in (None, name)
    ]


@command("getfd")
def getfd(session: Session, fdname: str) -> None:
    """A file descriptor sent along with the command."""
    raise NotBuiltError("getfd: file descriptors sent over the socket are not built yet")


@command("add_client")
def add_client(
    session: Session, protocol: str, fdname: str, skipauth: bool | None = None, tls: bool | None = None
) -> None:
    """A connection handed over to a display or chardev."""
    raise NotBuiltError("add_client: connections handed over by file descriptor are not built yet")
