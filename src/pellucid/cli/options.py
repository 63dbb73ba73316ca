"""QEMU's command line: a table of options, read left to right into a draft, checked at the end as a whole.

The grammar is QEMU's own, which argparse cannot read: an option is a whole word after `-` or `--`, is never shortened
or glued to its value, and its value is the next word whatever that begins with (`-append -v` is fine). Scripts that
start QEMU rely on all of that.

The table's order is the order in -help. A word that is neither an option nor a value of one is the first disk's image.
"""

from collections.abc import Callable, Sequence

from pellucid.cli import drives, unbuilt
from pellucid.cli import option_values as values
from pellucid.cli.draft import Draft
from pellucid.cli.icount import icount
from pellucid.cli.keyval import suggestion
from pellucid.cli.overcommit import overcommit
from pellucid.cli.rtc import rtc
from pellucid.errors import NotBuiltError, UserError
from pellucid.machine.config import MachineConfig
from pellucid.records import dataclass


@dataclass(frozen=True)
class Option:
    """One row: its names, its value's form (empty for a switch), a line of help, and what it does to the draft."""

    names: tuple[str, ...]
    value: str
    help: str
    apply: Callable[[Draft, str], None]


def _switch(field: str, value: bool = True) -> Callable[[Draft, str], None]:
    return lambda draft, _: setattr(draft, field, value)


def _text(field: str) -> Callable[[Draft, str], None]:
    return lambda draft, text: setattr(draft, field, text)


def _board_switch(name: str, value: str) -> Callable[[Draft, str], None]:
    return lambda draft, _: draft.board_options.update({name: value})


OPTIONS = (
    Option(("h", "help"), "", "show this help and exit", lambda draft, _: values.help_(help_text())),
    Option(("version",), "", "show the version and exit", values.version),
    Option(("M", "machine"), "[type=]NAME[,PROPERTY=VALUE]...", "the board (-M help lists)", values.machine),
    Option(("accel",), "NAME", "who executes the guest (-accel help lists)", values.accel),
    Option(("enable-kvm",), "", "the same as -accel kvm", lambda draft, _: values.accel(draft, "kvm")),
    Option(("m",), "[size=]SIZE", "RAM in MiB, or with a suffix K, M, G, T (default 128M)", values.memory),
    Option(("mem-path",), "FOLDER", "keep RAM in a file there", values.memory_path),
    Option(("mem-resident",), "SIZE", "so much of RAM at most is in memory, the rest in that file (default folder: "
           "TMPDIR or /var/tmp)", values.memory_resident),
    Option(("smp",), "[cpus=]N[,sockets=N][,dies=N][,cores=N][,threads=N][,maxcpus=N]", "guest CPUs", values.smp),
    Option(("cpu",), "MODEL[,+FEATURE][,-FEATURE][,PROPERTY=VALUE]", "CPU model (-cpu help lists)", values.cpu),
    Option(("bios",), "FILE", "the firmware: a path, or a name in the firmware folders", values.bios),
    Option(("L",), "FOLDER", "look for firmware there first (-L help lists the folders)", values.data_folder),
    Option(("kernel",), "FILE", "a bzImage or an ELF kernel to boot", _text("kernel")),
    Option(("initrd",), "FILE", "the initial RAM disk for it", _text("initrd")),
    Option(("append",), "TEXT", "the kernel's command line", _text("append")),
    Option(("drive",), "file=FILE[,if=ide|floppy|none][,media=disk|cdrom][,format=raw][,PROPERTY=VALUE]...",
           "a disk, CD or floppy drive", drives.drive),
    Option(("fda",), "FILE", "the first floppy disk", drives.DriveShortcut("fda", 0, interface="floppy")),
    Option(("fdb",), "FILE", "the second floppy disk", drives.DriveShortcut("fdb", 1, interface="floppy")),
    Option(("hda",), "FILE", "the first disk; a word that is no option is one too", drives.DriveShortcut("hda", 0)),
    Option(("hdb",), "FILE", "the second disk", drives.DriveShortcut("hdb", 1)),
    Option(("hdc",), "FILE", "the third disk", drives.DriveShortcut("hdc", 2)),
    Option(("hdd",), "FILE", "the fourth disk", drives.DriveShortcut("hdd", 3)),
    Option(("cdrom",), "FILE", "a CD or DVD image", drives.DriveShortcut("cdrom", 2, "cdrom")),
    Option(("snapshot",), "", "what the guest writes to disks goes to temporary files", _switch("snapshot")),
    Option(("boot",), "[order=]LETTERS[,once=LETTERS][,menu=on|off][,splash-time=MS][,reboot-timeout=MS][,strict=on]",
           "boot order: a floppy, c disk, d CD, n network", drives.boot),
    Option(("overcommit",), "[mem-lock=off][,cpu-pm=on|off]", "cpu-pm=on: the guest idles by MONITOR and MWAIT",
           overcommit),
    Option(("icount",), "[shift=]N|auto[,sleep=on|off][,align=on|off]",
           "guest time by executed instructions, 2^N ns each: every run is the same", icount),
    Option(("rtc",), "[base=utc|localtime|DATE][,clock=host|rt|vm][,driftfix=none]", "the guest's calendar", rtc),
    Option(("smbios",), "file=FILE | type=N,FIELD=VALUE,...", "SMBIOS structures and what they say", values.smbios),
    Option(("acpitable",), "sig=SIG,data=FILE,... | file=FILE", "an ACPI table of your own", values.acpitable),
    Option(("fw_cfg",), "[name=]NAME,string=TEXT | [name=]NAME,file=FILE", "a file for the guest", values.fw_cfg),
    Option(("no-acpi",), "", "no ACPI: -machine acpi=off", _board_switch("acpi", "off")),
    Option(("no-hpet",), "", "no HPET: -machine hpet=off", _board_switch("hpet", "off")),
    Option(("nographic",), "", "no display; serial port and monitor share the terminal", _switch("nographic")),
    Option(("display",), "none", "no display", values.display),
    Option(("vga",), "none", "no graphics card", values.only_none("vga")),
    Option(("vnc",), "none", "no VNC server", values.only_none("vnc")),
    Option(("serial",), "BACKEND", "where a serial port goes: stdio, mon:stdio, none, null, file:PATH, pty, unix:PATH",
           values.serial),
    Option(("device",), "DRIVER[,PROPERTY=VALUE]...", "add a device (-device help lists, DRIVER,help its properties)",
           values.device),
    Option(("global",), "DRIVER.PROPERTY=VALUE", "set a property of every device of a type", values.global_),
    Option(("debugcon",), "BACKEND", "a debug console at port 0xe9: as -serial", values.debugcon),
    Option(("parallel",), "none", "no parallel port", values.only_none("parallel")),
    Option(("monitor",), "BACKEND", "where the monitor goes: as -serial", values.monitor),
    Option(("qmp",), "BACKEND", "a monitor for programs (QMP): as -serial, such as unix:PATH,server=on,wait=off",
           values.qmp(False)),
    Option(("qmp-pretty",), "BACKEND", "the same, its answers spread over lines", values.qmp(True)),
    Option(("chardev",), "BACKEND,id=ID[,PARAMETER=VALUE]...", "a named stream (-chardev help lists the backends)",
           values.chardev),
    Option(("mon",), "[chardev=]ID[,mode=readline|control][,pretty=on|off]", "a monitor on a named stream", values.mon),
    Option(("echr",), "CODE", "the key that introduces commands on a shared terminal, instead of Ctrl-A", values.echr),
    Option(("qtest",), "BACKEND", "serve the protocol of QEMU's device tests", values.qtest),
    Option(("qtest-log",), "FILE", "the file that gets its lines, or none (default: standard error)",
           _text("qtest_log")),
    Option(("audio",), "none", "no sound", values.only_none("audio")),
    Option(("audiodev",), "none", "no sound", values.only_none("audiodev")),
    Option(("net",), "none", "no network", values.only_none("net")),
    Option(("nic",), "none", "no network card", values.only_none("nic")),
    Option(("nodefaults",), "", "no devices beyond the board's own and those asked for", _switch("no_defaults")),
    Option(("no-user-config",), "", "accepted: there are no configuration files", _switch("no_user_config")),
    Option(("no-fd-bootchk",), "", "boot from diskettes without a signature too", _switch("no_fd_bootchk")),
    Option(("action",), "EVENT=ACTION,...", "what becomes of the machine: reboot=reset|shutdown, "
           "shutdown=poweroff|pause, panic=pause|shutdown|exit-failure|none", values.action),
    Option(("no-reboot",), "", "exit when the guest resets", _switch("reboot", False)),
    Option(("no-shutdown",), "", "stop rather than exit when the guest powers off", _switch("exit_on_shutdown", False)),
    Option(("only-migratable",), "", "refuse what could not be taken along to another host",
           _switch("only_migratable")),
    Option(("S",), "", "start stopped: wait for 'cont' in the monitor", _switch("start_paused")),
    Option(("name",), "NAME[,process=NAME][,debug-threads=on|off]", "the guest's name", values.name),
    Option(("uuid",), "UUID", "the guest's UUID", values.uuid),
    Option(("daemonize",), "", "go to the background once the machine is made", _switch("daemonize")),
    Option(("pidfile",), "FILE", "write the process's number to FILE", _text("pidfile")),
    Option(("d",), "ITEM,...", "log items (-d help lists)", values.log_items),
    Option(("dfilter",), "RANGE,...", "log code there only: FIRST..LAST, START+SIZE, END-SIZE", values.log_ranges),
    Option(("D",), "FILE", "log to FILE instead of standard error", _text("log_file")),
)  # fmt: skip
BY_NAME = {name: option for option in OPTIONS for name in option.names}
EVERY_NAME = (*BY_NAME, *unbuilt.WITH_VALUE, *unbuilt.SWITCHES)


def parse_options(arguments: Sequence[str]) -> MachineConfig:
    """The machine that `arguments` ask for.

    Raises UserError (bad or unknown), NotBuiltError (known, not built), HelpRequested (to be printed; status 0).
    """
    return read_options(arguments).finish()


def read_options(arguments: Sequence[str]) -> Draft:
    """The draft that `arguments` make, before it is checked as a whole."""
    draft = Draft()
    words = iter(arguments)
    for word in words:
        if not word.startswith("-") or word == "-":
            drives.DriveShortcut("hda", 0)(draft, word)
            continue
        name = word[2:] if word.startswith("--") else word[1:]
        option = BY_NAME.get(name)
        if option is None:
            raise _unknown_option(word, name)
        value = ""
        if option.value:
            try:
                value = next(words)
            except StopIteration:
                raise UserError(f"{word}: an argument is missing: write -{name} {option.value}") from None
        option.apply(draft, value)
    return draft


def _unknown_option(word: str, name: str) -> Exception:
    if name in unbuilt.WITH_VALUE or name in unbuilt.SWITCHES:
        return NotBuiltError(f"{word}: not built yet: {unbuilt.HINTS.get(name, 'leave it out')}")
    return UserError(f"{word}: unknown option: {suggestion(name, EVERY_NAME).replace(chr(39), chr(39) + '-', 1)}")


def help_text() -> str:
    """The text of -help."""
    lines = ["usage: pellucid run [options], or pellucid-system-x86_64 [options]", ""]
    for option in OPTIONS:
        head = ", ".join(f"-{name}" for name in option.names) + (f" {option.value}" if option.value else "")
        lines += [f"  {head:<26}  {option.help}"] if len(head) <= 26 else [f"  {head}", f"{'':30}{option.help}"]
    lines += ["", "On the terminal: Ctrl-A x quits, Ctrl-A c switches to the monitor and back, Ctrl-A h helps."]
    return "\n".join(lines)
