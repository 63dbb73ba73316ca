"""The command line as a whole: what it means, and the one line that each mistake gets."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pellucid.cli import unbuilt
from pellucid.cli.option_values import HelpRequested
from pellucid.cli.options import BY_NAME, EVERY_NAME, OPTIONS, help_text, parse_options, read_options
from pellucid.errors import NotBuiltError, PellucidError, UserError
from pellucid.machine.config import (
    NO_DEVICE,
    NULL_BACKEND,
    STDIO_WITH_MONITOR,
    CharBackend,
    CharBackendKind,
    CpuConfig,
    FwCfgFile,
    MachineConfig,
    MonitorConfig,
    MonitorMode,
)
from pellucid.machine.firmware.image import find_firmware
from pellucid.runtime import PanicAction

STDIO = CharBackend(CharBackendKind.STDIO)


@pytest.fixture
def kernel(tmp_path: Path) -> Path:
    path = tmp_path / "bzImage"
    path.write_bytes(b"kernel")
    return path


def parse(kernel: Path, *words: str) -> MachineConfig:
    return parse_options(["-kernel", str(kernel), *words])


def test_what_a_script_says(kernel: Path) -> None:
    config = parse(
        kernel, "-M", "microvm,rtc=on,pit=off", "-accel", "tcg,thread=multi", "-m", "size=1.5G", "-smp", "1", "-cpu",
        "max,+avx2,-smep,pcid=off,phys-bits=46,x2apic", "--initrd", str(kernel), "-append", "-v console=ttyS0",
        "-nographic", "-no-reboot", "-no-shutdown", "-name", "vm,,1,process=p,debug-threads=on", "-S",
        "-d", "guest_errors", "-d", "unimp", "-D", str(kernel.parent / "log"), "-no-user-config", "-vga", "none",
    )  # fmt: skip
    assert config == MachineConfig(
        board="microvm",
        board_options={"rtc": "on", "pit": "off"},
        accelerator="soft",
        memory_size=3 << 29,
        cpu=CpuConfig("max", {"avx2": True, "smep": False, "pcid": False, "x2apic": True}, {"phys-bits": "46"}),
        kernel=kernel,
        initrd=kernel,
        append="-v console=ttyS0",
        serials=(STDIO_WITH_MONITOR,),
        reboot=False,
        exit_on_shutdown=False,
        start_paused=True,
        name="vm,1",
        process_name="p",
        debug_threads=True,
        log_items=frozenset({"guest_errors", "unimp"}),
        log_file=kernel.parent / "log",
    )
    assert not (kernel.parent / "log").exists()


def test_defaults(kernel: Path) -> None:
    assert parse(kernel) == MachineConfig(board="pc", kernel=kernel)
    assert MachineConfig().memory_size == 128 << 20


def test_ram_in_a_file(kernel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TMPDIR", raising=False)
    config = parse(kernel, "-mem-path", str(kernel.parent))
    assert (config.memory_path, config.memory_resident) == (kernel.parent, None)
    config = parse(kernel, "-mem-resident", "96")
    assert (config.memory_path, config.memory_resident) == (Path("/var/tmp"), 96 << 20)
    monkeypatch.setenv("TMPDIR", str(kernel.parent))
    assert parse(kernel, "-mem-resident", "1G").memory_path == kernel.parent
    assert parse(kernel).memory_path is None


def test_machine_options_reach_the_same_fields(kernel: Path) -> None:
    config = parse_options(["-machine", f"type=microvm,accel=kvm:tcg,kernel={kernel},append=quiet"])
    assert (config.accelerator, config.kernel, config.append) == ("soft", kernel, "quiet")


def test_what_firmware_is_to_say(kernel: Path) -> None:
    words = ["-uuid", "11223344-5566-7788-99aa-bbccddeeff00", "-smbios", "type=1,serial=a,,b"]
    words += ["-acpitable", "sig=T,data=f"]
    words += ["-fw_cfg", "opt/a,string=x", "-fw_cfg", f"name=opt/b,file={kernel}", "-no-hpet", "-no-acpi"]
    config = parse(kernel, *words)
    assert config.uuid == words[1] and config.smbios == ((("type", "1"), ("serial", "a,b")),)
    assert config.acpi_tables == ((("sig", "T"), ("data", "f")),)
    assert config.fw_cfg_files == (FwCfgFile("opt/a", "x"), FwCfgFile("opt/b", path=kernel))
    assert config.board_options == {"hpet": "off", "acpi": "off"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["-fw_cfg", "opt/a"], "either string=TEXT or file=FILE"),
        (["-fw_cfg", "opt/a,string=x,file=y"], "either string=TEXT or file=FILE"),
        (["-fw_cfg", "opt/a,file=/none/here"], "no such file"),
        (["-fw_cfg", f"{'x' * 56},string=x"], "1 to 55 bytes"),
        (["-fw_cfg", "opt/a,gen_id=x"], "gen_id"),
        (["-smbios", "type"], "has no value"),
        (["-acpitable", "data"], "has no value"),
    ],
)
def test_bad_words_for_firmware(kernel: Path, words: list[str], said: str) -> None:
    with pytest.raises(PellucidError, match=said):
        parse(kernel, *words)


@pytest.mark.parametrize(
    ("words", "serials", "monitor"),
    [
        ([], (STDIO_WITH_MONITOR,), None),
        (["-nographic"], (STDIO_WITH_MONITOR,), None),
        (["-display", "none"], (NULL_BACKEND,), None),
        (["-nodefaults"], (), None),
        (["-nodefaults", "-nographic"], (), None),
        (["-nodefaults", "-serial", "stdio"], (STDIO,), None),
        (["-display", "none", "-serial", "stdio"], (STDIO,), None),
        (["-serial", "stdio"], (STDIO,), None),
        (["-nographic", "-serial", "null"], (NULL_BACKEND,), STDIO),
        (["-nographic", "-serial", "stdio", "-monitor", "none"], (STDIO,), None),
        (["-nographic", "-monitor", "none"], (STDIO,), None),
        (["-monitor", "stdio"], (NULL_BACKEND,), STDIO),
        (["-serial", "mon:stdio"], (STDIO_WITH_MONITOR,), None),
        (["-serial", "none"], (NO_DEVICE,), None),
        (["-serial", "file:out", "-serial", "pty"], None, None),
    ],
)
def test_streams(kernel: Path, words: list[str], serials: tuple[CharBackend, ...] | None, monitor: CharBackend) -> None:
    config = parse(kernel, *words)
    if serials is None:
        assert config.serials == (CharBackend(CharBackendKind.FILE, Path("out")), CharBackend(CharBackendKind.PTY))
    else:
        assert config.serials == serials
    assert config.monitors == (() if monitor is None else (MonitorConfig(monitor),))


@pytest.mark.parametrize(
    ("text", "backend"),
    [
        ("unix:/tmp/s,server,nowait", CharBackend(CharBackendKind.UNIX, Path("/tmp/s"), server=True, wait=False)),
        ("unix:/tmp/a,,b", CharBackend(CharBackendKind.UNIX, Path("/tmp/a,b"))),
        ("tcp::1234,server=on,wait=off", CharBackend(CharBackendKind.TCP, port=1234, server=True, wait=False)),
        ("tcp:localhost:80", CharBackend(CharBackendKind.TCP, host="localhost", port=80)),
        ("pipe:p", CharBackend(CharBackendKind.PIPE, Path("p"))),
        ("mon:pty", CharBackend(CharBackendKind.PTY, mux=True)),
        ("telnet:127.0.0.1:23,server", CharBackend(CharBackendKind.TCP, host="127.0.0.1", port=23, server=True,
                                                   telnet=True)),
        ("chardev:c", CharBackend(CharBackendKind.CHARDEV, id="c")),
    ],
)
def test_char_backends(kernel: Path, text: str, backend: CharBackend) -> None:
    assert parse(kernel, "-serial", text).serials == (backend,)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["-kernl", "x"], "-kernl: unknown option: did you mean '-kernel'?"),
        (["-mem"], "-mem: unknown option: see -help"),
        (["-m512"], "-m512: unknown option: see -help"),
        (["-m"], "-m: an argument is missing: write -m [size=]SIZE"),
        (["-m", "1Z"], "-m 1Z: not a size: give a number with K, M, G or T, such as 512M"),
        (["-m", "0"], "-m 0: a machine needs RAM: give a size such as 256M"),
        (["-m", "64,slots=2"], "-m 64,slots=2: memory hotplug (slots=) is not built yet: leave it out"),
        (["-smp", "3,cores=2"], "Invalid CPU topology: product of the hierarchy must match maxcpus: sockets (1)"),
        (["-smp", "x"], "Parameter 'smp.cpus' expects integer"),
        (["-M", "pc,smp.books=2"], "Parameter 'smp.books' is unexpected"),
        (["-M", "isapc"], "-machine isapc: not built yet: use -machine microvm"),
        (["-M", "microvmm"], "-machine microvmm: no such board: did you mean 'microvm'?"),
        (["-M", "pc,kernel-irqchip=off"],
         "-machine kernel-irqchip=off is not built yet: leave it out, or write on or split"),
        (["-M", "pc,kernel_irqchip=x"], "-machine: Parameter 'kernel-irqchip' does not accept value 'x'"),
        (["-M", "microvm,pit"], "-machine microvm,pit: 'pit' has no value: write pit=VALUE"),
        (["-accel", "kvm"], "-accel kvm: not built yet: use -accel tcg (Pellucid's own engine)"),
        (["-enable-kvm"], "-accel kvm: not built yet: use -accel tcg (Pellucid's own engine)"),
        (["-accel", "tgc"], "-accel tgc: no such accelerator: did you mean 'tcg'?"),
        (["-cpu", "hsot"], "-cpu hsot: no such CPU model: did you mean 'host'?"),
        (["-cpu", "EPYC-v4"], "-cpu EPYC-v4: no such CPU model: did you mean 'EPYC-v"),
        (["-cpu", "max,+axv2"], "-cpu +axv2: no such CPU feature: did you mean 'avx2'?"),
        (["-cpu", ""], "-cpu option cannot be empty"),
        (["-cpu", "max,smep=maybe"], "-cpu: smep=maybe: give on or off"),
        (["-cpu", "max,hv-time"], "-cpu hv-time: Hyper-V enlightenments are not built yet: leave it out"),
        (["-initrd", "/nowhere"], "-initrd /nowhere: no such file: check the path"),
        (["-initrd", "/"], "-initrd /: not a regular file: give the path of a file"),
        (["-D", "/nowhere/log"], "-D /nowhere/log: cannot write there: check the path and its permissions"),
        (["-D", "/"], "-D /: that is a folder: give the path of a file"),
        (["-d", "unipm"], "-d unipm: no such log item: did you mean 'unimp'?"),
        (["-d", "out_asm"], "-d out_asm: not built yet: -d help lists what is"),
        (["-d", "int,page"], "-d page: not built yet: -d help lists what is"),
        (["-d", "trace:memory_region*"], "-d trace:memory_region*: not built yet: -d help lists what is"),
        (["-dfilter", "0x1000"], "-dfilter 0x1000: not a range: write FIRST..LAST, START+SIZE or END-SIZE, such as"),
        (["-dfilter", "5..4"], "-dfilter 5..4: not a range: write FIRST..LAST, START+SIZE or END-SIZE, such as"),
        (["-name", "a,thing=b"], "-name a,thing=b: unknown parameter 'thing': known: guest, process, debug-threads"),
        (["-display", "gtk"], "-display gtk: not built yet: use -display none"),
        (["-serial", "stdoi"], "-serial stdoi: no such character device: did you mean 'stdio'?"),
        (["-serial", "vc"], "-serial vc: not built yet: use stdio, mon:stdio, file:, pty, unix: or tcp:"),
        (["-serial", "mon:null"], "-serial mon:null: a monitor needs a stream: use mon:stdio"),
        (["-serial", "file:"], "-serial file:: something is missing: write file:PATH"),
        (["-serial", "tcp:localhost"], "-serial tcp:localhost: no port in it: write tcp:HOST:PORT, with a port from 1"),
        (["-serial", "chardev:"], "-serial chardev:: something is missing: write chardev:ID"),
        (["-chardev", "null"], "-chardev null: no id specified: add id=NAME"),
        (["-chardev", "null,id=3"], "-chardev null,id=3: id=3: a letter, then letters, digits"),
        (["-chardev", "nul,id=a"], "-chardev nul,id=a: no such character device: did you mean 'null'?"),
        (["-chardev", "udp,id=a"], "-chardev udp,id=a: udp is not built yet: use one of"),
        (["-chardev", "null,id=a", "-chardev", "null,id=a"], "-chardev null,id=a: Duplicate ID 'a' for chardev"),
        (["-chardev", "null,id=a,foo=1"], "-chardev foo=1: unknown parameter 'foo'"),
        (["-chardev", "file,id=a"], "-chardev file,id=a: something is missing: write file,id=ID,path=PATH"),
        (["-chardev", "socket,id=a"], "-chardev socket,id=a: no port in it: write socket,id=ID,host=HOST,port=PORT"),
        (["-chardev", "socket,id=a,path=p,reconnect=1"], "-chardev socket,id=a,path=p,reconnect=1: reconnect is not b"),
        (["-chardev", "ringbuf,id=a,size=3"], "-chardev ringbuf,id=a,size=3: size of ringbuf chardev must be power"),
        (["-mon", "x,mode=foo"], "-mon x,mode=foo: Parameter 'mode' does not accept value 'foo'"),
        (["-mon", "mode=control"], "-mon mode=control: no chardev in it: write -mon chardev=ID"),
        (["-mon", "x,pretty=on"], "-mon x,pretty=on: 'pretty' is for mode=control alone: leave it out"),
        (["-mon", "foo=x"], "-mon foo=x: unknown parameter 'foo': known: mode, chardev, pretty"),
        (["-mem-path", "/no/such"], "-mem-path /no/such: no such folder: check the path"),
        (["-mem-path", "/dev/null"], "-mem-path /dev/null: a file of your own is not built yet: give a folder"),
        (["-mem-resident", "3M"], "-mem-resident 3M: a guest needs 4M or more in memory at a time"),
        (["-echr", "foo"], "-echr foo: Bad argument to echr"),
        (["-uuid", "1-2"], "-uuid 1-2: failed to parse UUID string"),
        (["-action", "reboot=x"], "-action reboot=x: reboot=x: give reset or shutdown"),
        (["-action", "watchdog=none"], "-action watchdog=none: there are no watchdog devices yet: not built yet"),
        (["-daemonize", "-serial", "stdio"], "-daemonize: standard input and output go away"),
        (["-qmp", "stdio", "-serial", "stdio"], "standard input and output are asked for more than once"),
        (["-serial", "stdio", "-serial", "stdio"], "standard input and output are asked for more than once"),
        (["-nographic", "-serial", "stdio"], "standard input and output are asked for more than once"),
    ],
)
def test_mistakes(kernel: Path, words: list[str], line: str) -> None:
    with pytest.raises(PellucidError) as caught:
        parse(kernel, *words)
    assert str(caught.value).startswith(line)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["-M", "microvm"], "nothing to boot: microvm has no firmware, so give a kernel with -kernel FILE"),
        (["-append", "x"], "-append goes with a kernel: add -kernel FILE"),
        (["-initrd", "x"], "-initrd goes with a kernel: add -kernel FILE"),
        (["-kernel", "/nowhere"], "-kernel /nowhere: could not open kernel file: no such file: check the path"),
    ],
)
def test_without_a_kernel(words: list[str], line: str) -> None:
    with pytest.raises(UserError, match=line):
        parse_options(words)


def test_an_unreadable_file_is_told(kernel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(UserError, match="not readable: change its permissions"):
        parse(kernel)


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["-h"], "-append TEXT"), (["--help"], "Ctrl-A x"), (["-version"], "Pellucid"), (["-M", "help"], "microvm"),
        (["-M", "help"], r"Supported machines are:\n(?s:.*)\npc {19}i440FX .*\(default\)"),
        (["-chardev", "help"], "Available chardev backend types: \n  null"), (["-accel", "help"], "tcg"),
        (["-cpu", "help"], "qemu64"), (["-cpu", "?"], "qemu64"), (["-d", "help"], "guest_errors"),
    ],
)  # fmt: skip
def test_help(words: list[str], part: str) -> None:
    with pytest.raises(HelpRequested, match=part):
        parse_options(["-m", "64", *words])


def test_names_are_each_said_once() -> None:
    assert len(EVERY_NAME) == len(set(EVERY_NAME))
    assert set(unbuilt.HINTS) <= {*unbuilt.WITH_VALUE, *unbuilt.SWITCHES}
    assert len(BY_NAME) == sum(len(option.names) for option in OPTIONS)
    assert all(f"-{name}" in help_text() for name in BY_NAME)


@pytest.mark.parametrize("name", [*unbuilt.WITH_VALUE, *unbuilt.SWITCHES])
def test_what_qemu_has_and_is_missing_says_so(name: str) -> None:
    with pytest.raises(NotBuiltError, match=f"^-{name}: not built yet: "):
        read_options([f"-{name}", "x"])


def test_monitors_and_named_streams(kernel: Path) -> None:
    config = parse(
        kernel, "-chardev", "socket,id=s,path=/p,server=on,wait=off", "-chardev", "stdio,id=t,mux=on,signal=off",
        "-chardev", "socket,id=n,host=h,port=4,telnet=on", "-chardev", "file,id=f,path=/f,append=on",
        "-chardev", "ringbuf,id=r,size=4K", "-mon", "chardev=s,mode=control,pretty=on", "-mon", "t",
        "-qmp", "unix:q,server,nowait", "-monitor", "pty", "-serial", "chardev:t", "-qtest", "unix:t",
        "-qtest-log", "none", "-echr", "0x14", "-uuid", "12345678-1234-1234-1234-123456789ABC", "-accel", "qtest",
        "-action", "reboot=shutdown,shutdown=pause,panic=exit-failure",
    )  # fmt: skip
    unix, tcp = CharBackendKind.UNIX, CharBackendKind.TCP
    assert config.chardevs == (
        CharBackend(unix, Path("/p"), server=True, wait=False, id="s"),
        CharBackend(CharBackendKind.STDIO, mux=True, id="t", signals=False),
        CharBackend(tcp, host="h", port=4, telnet=True, id="n"),
        CharBackend(CharBackendKind.FILE, Path("/f"), append=True, id="f"),
        CharBackend(CharBackendKind.RINGBUF, size=4096, id="r"),
    )
    assert config.monitors == (
        MonitorConfig(CharBackend(CharBackendKind.PTY)),
        MonitorConfig(CharBackend(CharBackendKind.CHARDEV, id="s"), MonitorMode.CONTROL, True),
        MonitorConfig(CharBackend(CharBackendKind.CHARDEV, id="t")),
        MonitorConfig(CharBackend(unix, Path("q"), server=True, wait=False), MonitorMode.CONTROL),
    )
    assert config.serials == (CharBackend(CharBackendKind.CHARDEV, id="t"),)
    assert (config.qtest, config.qtest_log) == (CharBackend(unix, Path("t")), "none")
    assert (config.escape, config.uuid) == (0x14, "12345678-1234-1234-1234-123456789abc")
    assert (config.reboot, config.exit_on_shutdown, config.panic_action) == (False, False, PanicAction.EXIT_FAILURE)
    assert config.accelerator == "qtest"


@pytest.mark.parametrize(
    ("words", "serial"),
    [
        (["-qmp", "unix:q"], STDIO),
        (["-qmp", "stdio"], NULL_BACKEND),
        (["-nographic", "-qmp", "unix:q"], STDIO),
        (["-display", "none", "-qmp", "unix:q"], NULL_BACKEND),
        (["-chardev", "stdio,id=c"], NULL_BACKEND),
        (["-daemonize"], NULL_BACKEND),
    ],
)
def test_the_serial_port_beside_other_users(kernel: Path, words: list[str], serial: CharBackend) -> None:
    assert parse(kernel, *words).serials == (serial,)


VALUES = st.text(alphabet="abcgkmnostuxMG0125=,+-:/.% ", max_size=20)


@given(st.lists(st.one_of(st.sampled_from([f"-{name}" for name in BY_NAME]), VALUES), max_size=8))
def test_any_words_give_a_machine_or_one_line(words: list[str]) -> None:
    try:
        parse_options(words)
    except PellucidError as error:
        assert str(error)
    except HelpRequested:
        pass


def test_firmware_and_its_folders(tmp_path: Path) -> None:
    config = parse_options(["-bios", "mine.bin", "-L", str(tmp_path), "-L", "/other"])
    assert config.board_options == {"firmware": "mine.bin"} and config.data_folders == (tmp_path, Path("/other"))
    (tmp_path / "mine.bin").touch()
    assert find_firmware("mine.bin", config.data_folders) == tmp_path / "mine.bin"
    with pytest.raises(UserError, match=f"none of {tmp_path}.*give the path"):
        find_firmware("none.bin", config.data_folders)
    with pytest.raises(HelpRequested, match="/usr/share/seabios"):
        parse_options(["-L", "help"])


def test_a_cpu_feature_with_a_sign_and_a_value(capsys: pytest.CaptureFixture[str]) -> None:
    assert parse_options(["-cpu", "Nehalem,,-fpu,"]).cpu == CpuConfig("Nehalem", {"fpu": False})
    config = parse_options(["-cpu", "pentium,-fpu,+fpu,-mce,mce=on,+cx8,cx8=off,+sse4_1,sse4_2=on"])
    assert config.cpu.features == {"fpu": False, "mce": False, "cx8": True, "sse4.1": True, "sse4.2": True}
    warnings = capsys.readouterr().err
    assert 'Don\'t mix both "-mce" and "mce=on"' in warnings and 'Don\'t mix both "+cx8" and "cx8=off"' in warnings
    assert warnings.count("\n") == 3
