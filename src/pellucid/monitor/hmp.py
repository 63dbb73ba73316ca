"""HMP, the monitor for people: one table of commands serves execution and help.

`Monitor.execute` takes a line and gives the text to show. Commands, their arguments and the wording of the answers are
QEMU's. A row of a table is what a command needs: names, parameters, a line of help, the function.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from pellucid.errors import PellucidError
from pellucid.monitor.dump import Format, Reader, memory_text, parse_format, value_text
from pellucid.monitor.errors import CommandError
from pellucid.monitor.expression import evaluate
from pellucid.monitor.registers import code_bits, register_value, registers_text
from pellucid.monitor.target import CpuRegisters, MonitorTarget


@dataclass(frozen=True)
class Arguments:
    """What follows a command's name: the format (after `/`, or None) and the rest of the line."""

    format: str | None
    text: str

    def none(self) -> None:
        """Check that there are none."""
        if self.format is not None or self.text:
            raise CommandError("extraneous characters at the end of line")

    def flags(self, allowed: str) -> set[str]:
        """Single-letter options such as `-f -d` or `-fd`; nothing else may be there."""
        found: set[str] = set()
        for word in self.text.split():
            if not word.startswith("-") or len(word) == 1:
                raise CommandError("extraneous characters at the end of line")
            for letter in word[1:]:
                if letter not in allowed:
                    raise CommandError(f"unsupported option -{letter}")
                found.add(letter)
        return found


@dataclass(frozen=True)
class Command:
    """One row: the names (the first is the canonical one), the parameters as help shows them, help, function."""

    names: tuple[str, ...]
    parameters: str
    help: str
    run: Callable[["Monitor", Arguments], str]

    @property
    def title(self) -> str:
        """Its names as help shows them."""
        return "|".join(self.names)

    def help_line(self, prefix: str = "") -> str:
        """`names parameters -- help`."""
        return f"{prefix}{self.title} {self.parameters} -- {self.help}"


class Monitor:
    """One user's conversation with a machine: the CPU it talks about and the formats it used last."""

    def __init__(self, target: MonitorTarget) -> None:
        self.target = target
        self.cpu = 0
        self.format = Format()

    def execute(self, line: str) -> str:
        """Carry out one line. The answer, to a bad command too, ends in a newline unless it is empty."""
        line = line.strip()
        if not line or line.startswith("#"):
            return ""
        name, arguments = _split_command(line)
        command = COMMANDS.get(name)
        if command is None:
            return f"unknown command: '{name}'\n"
        if name == "info" and arguments.text:
            return self._execute_info(arguments)
        return self._run(command, arguments, command.title, name)

    def _execute_info(self, arguments: Arguments) -> str:
        name, sub_arguments = _split_command(arguments.text)
        command = INFO_COMMANDS.get(name)
        if command is None:
            return f"unknown command: 'info {name}'\n"
        return self._run(command, sub_arguments, name, f"info {name}")

    def _run(self, command: Command, arguments: Arguments, title: str, name: str) -> str:
        try:
            return command.run(self, arguments)
        except CommandError as error:
            problem = f"{title}: {error}" if str(error).startswith("extraneous") else str(error)
            return f'{problem}\nTry "help {name}" for more information\n'
        except PellucidError as error:
            return f"Error: {error}\n"

    def registers(self) -> CpuRegisters:
        """The registers of the CPU that this monitor talks about."""
        return self.target.cpu_registers(self.cpu)

    def value(self, text: str) -> int:
        """The value of an expression."""
        state: list[CpuRegisters] = []  # asked for once, and only when a register is named

        def register(name: str) -> int | None:
            if not state:
                state.append(self.registers())
            return register_value(state[0], name)

        return evaluate(text, register)

    def next_format(self, arguments: Arguments) -> Format:
        """The format of this command: what it says, and for the rest what the last one said."""
        form = parse_format(arguments.format or "", self.format)
        self.format = replace(form, count=1)
        return form


def _split_command(line: str) -> tuple[str, Arguments]:
    """`name[/format] rest`; a blank may stand before the slash."""
    end = next((index for index, char in enumerate(line) if char.isspace() or char == "/"), len(line))
    name, rest = line[:end], line[end:].lstrip()
    if not rest.startswith("/"):
        return name, Arguments(None, rest.rstrip())
    form, _, rest = rest[1:].partition(" ")
    return name, Arguments(form, rest.strip())


def _dump(monitor: Monitor, arguments: Arguments, read: Reader) -> str:
    form = monitor.next_format(arguments)
    address = monitor.value(arguments.text)
    bits = code_bits(monitor.registers().sregs) if form.kind == "i" else 0
    return memory_text(form, address, read, bits)


def _x(monitor: Monitor, arguments: Arguments) -> str:
    return _dump(monitor, arguments, lambda address, size: monitor.target.read_virtual(monitor.cpu, address, size))


def _xp(monitor: Monitor, arguments: Arguments) -> str:
    return _dump(monitor, arguments, monitor.target.read_physical)


def _print(monitor: Monitor, arguments: Arguments) -> str:
    form = monitor.next_format(arguments)
    return value_text(form.kind, monitor.value(arguments.text)) + "\n"


def _cpu(monitor: Monitor, arguments: Arguments) -> str:
    index = monitor.value(arguments.text)
    if index >= monitor.target.cpu_count:
        raise CommandError("invalid CPU index")
    monitor.cpu = index
    return ""


def _steer(action: Callable[[MonitorTarget], None]) -> Callable[[Monitor, Arguments], str]:
    def run(monitor: Monitor, arguments: Arguments) -> str:
        arguments.none()
        action(monitor.target)
        return ""

    return run


def _help(monitor: Monitor, arguments: Arguments) -> str:
    words = arguments.text.split()
    if not words:
        return _help_lines(COMMANDS)
    if words[0] == "info":
        if len(words) == 1:
            return _info(monitor, arguments)
        rows, words, prefix = INFO_COMMANDS, words[1:], "info "
    else:
        rows, prefix = COMMANDS, ""
    if words[0] not in rows:
        return f"unknown command: '{prefix}{words[0]}'\n"
    return rows[words[0]].help_line(prefix) + "\n"


def _info(_: Monitor, __: Arguments) -> str:
    return _help_lines(INFO_COMMANDS, "info ")


def _help_lines(rows: Mapping[str, Command], prefix: str = "") -> str:
    commands = sorted(set(rows.values()), key=lambda command: command.names)
    return "".join(command.help_line(prefix) + "\n" for command in commands)


def _info_registers(monitor: Monitor, arguments: Arguments) -> str:
    if arguments.text.startswith("-"):
        arguments.flags("a")
        every = range(monitor.target.cpu_count)
        return "".join(registers_text(cpu, monitor.target.cpu_registers(cpu)) for cpu in every)
    cpu = monitor.value(arguments.text) if arguments.text else monitor.cpu
    if cpu >= monitor.target.cpu_count:
        return f"CPU#{cpu} not available\n"
    return registers_text(cpu, monitor.target.cpu_registers(cpu))


def _info_mtree(monitor: Monitor, arguments: Arguments) -> str:
    flags = arguments.flags("fdoD")
    return monitor.target.mtree(
        flat="f" in flags, dispatch_tree="d" in flags, owner="o" in flags, disabled="D" in flags
    )


def _info_ramblock(monitor: Monitor, arguments: Arguments) -> str:
    arguments.none()
    return monitor.target.ramblock()


def _info_status(monitor: Monitor, arguments: Arguments) -> str:
    arguments.none()
    return f"VM status: {monitor.target.run_status()}\n"


def _table(*commands: Command) -> dict[str, Command]:
    return {name: command for command in commands for name in command.names}


COMMANDS = _table(
    Command(("help", "?"), "[cmd]", "show the help", _help),
    Command(("info",), "[subcommand]", "show various information about the system state", _info),
    Command(("x",), "/fmt addr", "virtual memory dump starting at 'addr'", _x),
    Command(("xp",), "/fmt addr", "physical memory dump starting at 'addr'", _xp),
    Command(("print", "p"), "/fmt expr", "print expression value (use $reg for CPU register access)", _print),
    Command(("cpu",), "index", "set the default CPU", _cpu),
    Command(("stop", "s"), "", "stop emulation", _steer(lambda target: target.stop())),
    Command(("cont", "c"), "", "resume emulation", _steer(lambda target: target.cont())),
    Command(
        ("system_powerdown",), "", "send system power down event", _steer(lambda target: target.system_powerdown())
    ),
    Command(("system_wakeup",), "", "wakeup guest from suspend", _steer(lambda target: target.system_wakeup())),
    Command(("system_reset",), "", "reset the system", _steer(lambda target: target.system_reset())),
    Command(("quit", "q"), "", "quit the emulator", _steer(lambda target: target.quit())),
)

INFO_COMMANDS = _table(
    Command(
        ("registers",), "[-a|vcpu]", "show the cpu registers (-a: of all cpus; vcpu: of that one)", _info_registers
    ),
    Command(
        ("mtree",),
        "[-f][-d][-o][-D]",
        "show memory tree (-f: flat views; -d: dispatch tree, with -f; -o: owners; -D: disabled regions too)",
        _info_mtree,
    ),
    Command(("ramblock",), "", "Display system ramblock information", _info_ramblock),
    Command(("status",), "", "show the current VM status (running|paused)", _info_status),
)
