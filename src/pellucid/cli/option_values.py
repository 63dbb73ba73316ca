"""What each option's value does to the draft: functions of (draft, value) that raise UserError with one line."""

import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from pellucid.cli import names
from pellucid.cli.char_backends import CHARDEVS, parse_char_backend, parse_chardev
from pellucid.cli.draft import Draft, readable_file
from pellucid.cli.keyval import parse_keyval, parse_size, parse_switch, split_items, suggestion
from pellucid.cli.smp import parse_number, parse_smp
from pellucid.cpu.models import canonical_name, describe_models, feature_names
from pellucid.errors import NotBuiltError, UserError
from pellucid.machine.config import (
    CPU_PROPERTIES,
    CharBackend,
    CharBackendKind,
    CpuConfig,
    DeviceOption,
    FwCfgFile,
    GlobalOption,
    MonitorConfig,
    MonitorMode,
)
from pellucid.machine.log import LOG_ITEMS, LOG_ITEMS_NOT_BUILT, parse_log_ranges
from pellucid.machine.option_tables import OPTION_TABLES
from pellucid.records import replace
from pellucid.runtime import PanicAction

RAM_GRANULARITY = 8192
"""-m is rounded up to this many bytes, as QEMU does."""
LONGEST_FW_CFG_NAME = 55
CPU_HELP = "-cpu help lists them"


class HelpRequested(Exception):
    """The user asked for a list or a text rather than for a machine: print it and exit with status 0."""


def help_(text: str) -> NoReturn:
    """Ends the parsing with a text to print."""
    raise HelpRequested(text)


def _listing(title: str, words: dict[str, str]) -> NoReturn:
    help_("\n".join([title, *(f"  {word:<14} {meaning}" for word, meaning in words.items())]))


def version(_: Draft, __: str) -> NoReturn:
    """-version."""
    from importlib import metadata  # a thirtieth of a start

    try:
        help_(f"Pellucid {metadata.version('pellucid')}")
    except metadata.PackageNotFoundError:
        help_("Pellucid, not installed as a package")


def machine(draft: Draft, text: str) -> None:
    """-machine [type=]NAME,PROPERTY=VALUE,...: the board's properties are kept for the board to check."""
    if text in ("help", "?"):
        # QEMU's layout: test programs and management tools read it.
        lines = [f"{name:<20} {words}" for name, words in sorted(_boards().items())]
        help_("\n".join(["Supported machines are:", *lines]))
    for index, item in enumerate(split_items(text)):
        key, equals, value = item.partition("=")
        if not equals and index > 0:
            raise UserError(f"-machine {text}: '{item}' has no value: write {item}=VALUE")
        if key == "type" or not equals:
            _set_board(draft, value or key)
        elif key == "accel":
            draft.accelerators = []
            for name in value.split(":"):
                accel(draft, name)
        elif key in ("kernel", "initrd", "append"):
            setattr(draft, key, value)
        elif key.startswith("smp."):
            draft.smp[key.removeprefix("smp.")] = parse_number(key.removeprefix("smp."), value)
        elif key.replace("_", "-") == "kernel-irqchip":
            _set_kernel_irqchip(draft, value)
        else:
            draft.board_options[key] = value


def _set_kernel_irqchip(draft: Draft, value: str) -> None:
    """Where the interrupt chips are: with the accelerator, all of them (on), the local APICs (split) or none (off)."""
    if value not in ("on", "off", "split"):
        raise UserError(f"-machine: Parameter 'kernel-irqchip' does not accept value '{value}'")
    if value == "off":
        raise NotBuiltError("-machine kernel-irqchip=off is not built yet: leave it out, or write on or split")
    draft.kernel_irqchip = value


def _boards() -> dict[str, str]:
    # Imported when a board is named: the machine is not loaded for a command line that is wrong elsewhere.
    from pellucid.machine.board import BOARDS, DEFAULT_BOARD

    default = {DEFAULT_BOARD: " (default)"}
    return {board.name: board.description + default.get(board.name, "") for board in BOARDS.values()}


def _set_board(draft: Draft, name: str) -> None:
    if name in names.BOARDS_NOT_BUILT or name.startswith(("pc-", "pc_")):
        raise NotBuiltError(f"-machine {name}: not built yet: use -machine microvm")
    boards = _boards()
    if name not in boards:
        every = (*boards, *names.BOARDS_NOT_BUILT)
        raise UserError(f"-machine {name}: no such board: {suggestion(name, every)}")
    draft.board = name


def accel(draft: Draft, text: str) -> None:
    """-accel NAME,...; the properties of QEMU's tcg (thread=, tb-size=) say how QEMU is to work: no use here."""
    if text == "help":
        _listing("accelerators:", names.ACCELERATORS)
    name = split_items(text)[0].removeprefix("accel=")
    if name in names.ACCELERATORS:
        values = parse_keyval("accel", text, ("accel", "thread", "tb-size", "split-wx", "one-insn-per-tb"), "accel")
        draft.several_threads = values.get("thread") == "multi"
        draft.accelerators.append("qtest" if name == "qtest" else "soft")
    elif name in names.ACCELERATORS_NOT_BUILT:
        draft.accelerators.append(name)
    else:
        every = (*names.ACCELERATORS, *names.ACCELERATORS_NOT_BUILT)
        raise UserError(f"-accel {text}: no such accelerator: {suggestion(name, every)}")


def memory(draft: Draft, text: str) -> None:
    """-m [size=]SIZE."""
    values = parse_keyval("m", text, OPTION_TABLES["memory"], "size")
    for key in ("slots", "maxmem"):
        if key in values:
            raise NotBuiltError(f"-m {text}: memory hotplug ({key}=) is not built yet: leave it out")
    size = parse_size("m", values["size"], "M")
    if size == 0:
        raise UserError(f"-m {text}: a machine needs RAM: give a size such as 256M")
    draft.memory_size = -(-size // RAM_GRANULARITY) * RAM_GRANULARITY


def memory_path(draft: Draft, text: str) -> None:
    """-mem-path FOLDER; a file, which QEMU maps privately, is not built."""
    path = Path(text)
    if not path.is_dir():
        if path.exists():
            raise NotBuiltError(f"-mem-path {text}: a file of your own is not built yet: give a folder")
        raise UserError(f"-mem-path {text}: no such folder: check the path")
    if not os.access(path, os.W_OK):
        raise UserError(f"-mem-path {text}: cannot write there: check its permissions")
    draft.memory_path = path


def memory_resident(draft: Draft, text: str) -> None:
    """-mem-resident SIZE."""
    from pellucid.memory import LEAST_LIMIT

    size = parse_size("mem-resident", text, "M")
    if size < LEAST_LIMIT:
        raise UserError(f"-mem-resident {text}: a guest needs {LEAST_LIMIT >> 20}M or more in memory at a time")
    draft.memory_resident = size


def smp(draft: Draft, text: str) -> None:
    """-smp [cpus=]N,sockets=...,dies=...,cores=...,threads=...,maxcpus=...; several add up."""
    draft.smp |= parse_smp(text)


def cpu(draft: Draft, text: str) -> None:
    """-cpu MODEL,+feature,-feature,feature=on|off,property=value."""
    if text in ("help", "?"):
        _cpu_help()
    if not text:
        raise UserError("-cpu option cannot be empty")
    model, *words = text.split(",")  # no comma stands for itself
    items = [word for word in words if word]
    known = describe_models()
    if model not in known:
        hint = suggestion(model, tuple(known), CPU_HELP)
        raise UserError(f"-cpu {model}: no such CPU model: {hint}")
    features: dict[str, bool] = {}
    properties: dict[str, str] = {}
    # +NAME counts more than NAME=VALUE, and -NAME more than both, wherever they stand.
    for item in sorted(items, key=lambda item: ("+", "-").index(item[0]) + 1 if item[:1] in ("+", "-") else 0):
        _cpu_item(item, features, properties)
    _tell_ambiguous(items)
    draft.cpu = CpuConfig(model, features, properties)


def _tell_ambiguous(items: Sequence[str]) -> None:
    """Warn, in QEMU's words, of what stands with a sign and with a value."""
    signed = {canonical_name(item[1:]): item for item in items if item[:1] in ("+", "-")}
    twice = [(signed[canonical_name(word)], item)
             for item in items
             if (word := item.partition("=")[0]) != item and canonical_name(word) in signed]  # fmt: skip
    for sign, value in twice:
        print(f'pellucid: warning: Ambiguous CPU model string. Don\'t mix both "{sign}" and "{value}"', file=sys.stderr)
    if twice:
        last = "Compatibility of ambiguous CPU model strings won't be kept on future QEMU versions"
        print(f"pellucid: warning: {last}", file=sys.stderr)


def _cpu_help() -> NoReturn:
    """-cpu help, as QEMU lays it out."""
    lines = ["Available CPUs:", *(f"x86 {name:<20}  {what}" for name, what in describe_models().items())]
    flags = " ".join(sorted((*feature_names(), *_kvm_features())))
    import textwrap

    wrapped = textwrap.wrap(flags, 75, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False)
    help_("\n".join([*lines, "", "Recognized CPUID flags:", *wrapped]))


def _cpu_item(item: str, features: dict[str, bool], properties: dict[str, str]) -> None:
    sign = item[:1] if item[:1] in ("+", "-") else ""
    word, equals, value = item.removeprefix(sign).partition("=")
    name = canonical_name(word)
    if name.startswith("hv-"):
        raise NotBuiltError(f"-cpu {item}: Hyper-V enlightenments are not built yet: leave it out")
    features_known = (*feature_names(), *_kvm_features())
    if name in features_known:
        features[name] = parse_switch("cpu", name, value) if equals else sign != "-"
    elif name == "tsc-freq" and not sign:  # QEMU's older spelling, in units of 1000
        properties["tsc-frequency"] = str(_metric(item, value))
    elif name in CPU_PROPERTIES and not sign:
        properties[name] = value if equals else "on"
    else:
        every = (*features_known, *CPU_PROPERTIES)
        raise UserError(f"-cpu {item}: no such CPU feature: {suggestion(name, every, CPU_HELP)}")


def _metric(item: str, text: str) -> int:
    """A number with a suffix K, M or G of 1000, such as 2.5G."""
    factor = {"K": 10**3, "M": 10**6, "G": 10**9}.get(text[-1:].upper(), 1)
    try:
        return round(float(text[:-1] if factor > 1 else text) * factor)
    except (ValueError, OverflowError):
        raise UserError(f"-cpu {item}: bad numerical value {text}") from None


def _kvm_features() -> tuple[str, ...]:
    from pellucid.machine.cpu_model import KVM_FEATURES  # the machine is loaded when a feature is named

    return tuple(KVM_FEATURES)


def only_none(option: str) -> Callable[[Draft, str], None]:
    """An option of which only `none` can be given: there is no display, network card or parallel port yet."""

    def apply(_: Draft, text: str) -> None:
        if text != "none":
            raise NotBuiltError(f"-{option} {text}: not built yet: use -{option} none")

    return apply


def display(draft: Draft, text: str) -> None:
    """-display none."""
    only_none("display")(draft, text)
    draft.display_none = True


def serial(draft: Draft, text: str) -> None:
    """-serial BACKEND, once per port."""
    draft.serials.append(parse_char_backend("serial", text))


def device(draft: Draft, text: str) -> None:
    """-device DRIVER,PROPERTY=VALUE,...; what it means is checked when the board stands."""
    from pellucid.machine.catalog import catalog_help, class_help, find_class

    items = _device_items(text)
    driver = dict(items).get("driver", "")
    if driver in ("help", "?"):
        help_(catalog_help())
    if any(key in ("help", "?") for key, _ in items):
        entry = find_class(driver)
        if entry is None:
            raise UserError(f"-device {text}: Device '{driver}' not found")
        help_(class_help(entry))
    draft.devices.append(DeviceOption(text, tuple(items)))


def _device_items(text: str) -> list[tuple[str, str]]:
    items = []
    for index, item in enumerate(split_items(text)):
        key, equals, value = item.partition("=")
        if equals:
            items.append((key, value))
        elif index == 0:
            items.append(("driver", item))
        elif item:
            items.append((item, "on"))
    return items


def global_(draft: Draft, text: str) -> None:
    """-global DRIVER.PROPERTY=VALUE, or driver=DRIVER,property=PROPERTY,value=VALUE."""
    head, equals, value = text.partition("=")
    driver, dot, name = head.partition(".")
    if dot and equals:
        draft.globals.append(GlobalOption(driver, name, value))
        return
    values = parse_keyval("global", text, ("driver", "property", "value"))
    missing = [key for key in ("driver", "property", "value") if key not in values]
    if missing:
        raise UserError(f"-global {text}: '{missing[0]}' is missing: write -global DRIVER.PROPERTY=VALUE")
    draft.globals.append(GlobalOption(values["driver"], values["property"], values["value"]))


def debugcon(draft: Draft, text: str) -> None:
    """-debugcon BACKEND: an isa-debugcon with a backend of its own."""
    if any(found.option == "debugcon" for found in draft.devices):
        raise UserError(f"-debugcon {text}: too many debugcon devices")
    backend = parse_char_backend("debugcon", text)
    if backend.kind is not CharBackendKind.CHARDEV:
        backend = replace(backend, id="debugcon")
        draft.chardevs.append(backend)
    items = (("driver", "isa-debugcon"), ("id", "debugcon"), ("chardev", backend.id))
    draft.devices.append(DeviceOption(text, items, "debugcon"))


def monitor(draft: Draft, text: str) -> None:
    """-monitor BACKEND; the last one counts."""
    draft.monitor = parse_char_backend("monitor", text)


def chardev(draft: Draft, text: str) -> None:
    """-chardev BACKEND,id=ID,..."""
    if text in ("help", "?"):
        help_("\n".join(["Available chardev backend types: ", *(f"  {name}" for name in CHARDEVS)]))
    backend = parse_chardev(text)
    if any(other.id == backend.id for other in draft.chardevs):
        raise UserError(f"-chardev {text}: Duplicate ID '{backend.id}' for chardev: give it another")
    draft.chardevs.append(backend)


def mon(draft: Draft, text: str) -> None:
    """-mon [chardev=]ID,mode=readline|control,pretty=on|off."""
    values = parse_keyval("mon", text, OPTION_TABLES["mon"], "chardev")
    mode = values.get("mode", "readline")
    if mode not in ("readline", "control"):
        raise UserError(f"-mon {text}: Parameter 'mode' does not accept value '{mode}': give readline or control")
    pretty = parse_switch("mon", "pretty", values.get("pretty", "off"))
    if pretty and mode == "readline":
        raise UserError(f"-mon {text}: 'pretty' is for mode=control alone: leave it out")
    if not values.get("chardev"):
        raise UserError(f"-mon {text}: no chardev in it: write -mon chardev=ID")
    backend = CharBackend(CharBackendKind.CHARDEV, id=values["chardev"])
    draft.monitors.append(MonitorConfig(backend, MonitorMode(mode), pretty))


def qmp(pretty: bool) -> Callable[[Draft, str], None]:
    """-qmp BACKEND and -qmp-pretty BACKEND."""

    def apply(draft: Draft, text: str) -> None:
        backend = parse_char_backend("qmp-pretty" if pretty else "qmp", text)
        draft.monitors.append(MonitorConfig(backend, MonitorMode.CONTROL, pretty))

    return apply


def qtest(draft: Draft, text: str) -> None:
    """-qtest BACKEND."""
    draft.qtest = parse_char_backend("qtest", text)


def echr(draft: Draft, text: str) -> None:
    """-echr CODE: a number, as C writes it."""
    try:
        draft.escape = int(text, 0)
    except ValueError:
        draft.escape = -1
    if not 0 <= draft.escape <= 255:
        raise UserError(f"-echr {text}: Bad argument to echr: give the code of a key, such as 0x14 for Ctrl-T")


def uuid(draft: Draft, text: str) -> None:
    """-uuid UUID."""
    if not re.fullmatch(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}", text, re.ASCII):
        raise UserError(f"-uuid {text}: failed to parse UUID string: write 8-4-4-4-12 hexadecimal digits")
    draft.uuid = text.lower()


def action(draft: Draft, text: str) -> None:
    """-action reboot=reset|shutdown,shutdown=poweroff|pause,panic=pause|shutdown|exit-failure|none."""
    choices = {
        "reboot": ("reset", "shutdown"),
        "shutdown": ("poweroff", "pause"),
        "panic": tuple(choice.value for choice in PanicAction),
    }
    for key, value in parse_keyval("action", text, OPTION_TABLES["action"]).items():
        if key == "watchdog":
            raise NotBuiltError(f"-action {text}: there are no watchdog devices yet: not built yet: leave it out")
        if value not in choices[key]:
            raise UserError(f"-action {text}: {key}={value}: give {' or '.join(choices[key])}")
        if key == "reboot":
            draft.reboot = value == "reset"
        elif key == "shutdown":
            draft.exit_on_shutdown = value == "poweroff"
        else:
            draft.panic_action = PanicAction(value)


def name(draft: Draft, text: str) -> None:
    """-name [guest=]NAME,process=NAME,debug-threads=on|off."""
    values = parse_keyval("name", text, OPTION_TABLES["name"], "guest")
    draft.name = values.get("guest", draft.name)
    draft.process_name = values.get("process", draft.process_name)
    if "debug-threads" in values:
        draft.debug_threads = parse_switch("name", "debug-threads", values["debug-threads"])


def _pairs(option: str, text: str) -> tuple[tuple[str, str], ...]:
    pairs: list[tuple[str, str]] = []
    for item in split_items(text):
        key, equals, value = item.partition("=")
        if not equals:
            raise UserError(f"-{option} {text}: '{item}' has no value: write {item}=VALUE")
        pairs.append((key, value))
    return tuple(pairs)


def smbios(draft: Draft, text: str) -> None:
    """-smbios file=FILE, or type=N,FIELD=VALUE,...; the board's firmware part checks them."""
    draft.smbios.append(_pairs("smbios", text))


def acpitable(draft: Draft, text: str) -> None:
    """-acpitable [sig=SIG,...,]data=FILE[:FILE...] or file=FILE."""
    draft.acpi_tables.append(_pairs("acpitable", text))


def fw_cfg(draft: Draft, text: str) -> None:
    """-fw_cfg [name=]NAME,string=TEXT or file=FILE."""
    values = parse_keyval("fw_cfg", text, ("name", "string", "file", "gen_id"), "name")
    name = values.get("name", "")
    if "gen_id" in values:
        raise NotBuiltError(f"-fw_cfg {text}: gen_id (objects) is not built yet: use file= or string=")
    if not name or len(name.encode()) > LONGEST_FW_CFG_NAME:
        raise UserError(f"-fw_cfg {text}: give a name of 1 to {LONGEST_FW_CFG_NAME} bytes, such as opt/org.example/x")
    if ("string" in values) == ("file" in values):
        raise UserError(f"-fw_cfg {text}: give either string=TEXT or file=FILE")
    path = readable_file("fw_cfg", values["file"]) if "file" in values else None
    draft.fw_cfg_files.append(FwCfgFile(name, values.get("string", ""), path))
    if not name.startswith("opt/"):
        print(f'pellucid: warning: -fw_cfg {name}: names of your own should begin with "opt/"', file=sys.stderr)


def log_items(draft: Draft, text: str) -> None:
    """-d ITEM,...; several -d add up."""
    if text == "help":
        _listing("log items:", {item: row.help for item, row in LOG_ITEMS.items()})
    chosen = set(draft.log_items)
    for item in text.split(","):
        if item in LOG_ITEMS_NOT_BUILT or item.startswith("trace:"):
            raise NotBuiltError(f"-d {item}: not built yet: -d help lists what is")
        if item not in LOG_ITEMS:
            every = (*LOG_ITEMS, *LOG_ITEMS_NOT_BUILT)
            raise UserError(f"-d {item}: no such log item: {suggestion(item, every)}")
        chosen.add(item)
    draft.log_items = frozenset(chosen)


def log_ranges(draft: Draft, text: str) -> None:
    """-dfilter RANGE,...: in_asm, exec and cpu only for code there; the last one counts."""
    draft.log_ranges = parse_log_ranges(text)


def bios(draft: Draft, text: str) -> None:
    """-bios FILE: the same as -machine firmware=FILE."""
    draft.board_options["firmware"] = text


def data_folder(draft: Draft, text: str) -> None:
    """-L FOLDER."""
    if text == "help":
        from pellucid.machine.firmware.image import FOLDERS

        help_("\n".join(map(str, (*draft.data_folders, *FOLDERS))))
    draft.data_folders.append(Path(text))
