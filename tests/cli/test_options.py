"""The command line as a whole: what it means, and the one line that each mistake gets."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pellucid.cli import unbuilt
from pellucid.cli.option_values import HelpRequested
from pellucid.cli.options import BY_NAME, EVERY_NAME, OPTIONS, help_text, parse_options, read_options
from pellucid.cpu.models.topology import CpuTopology
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
)

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
        monitor=None,
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
    assert parse(kernel) == MachineConfig(kernel=kernel)
    assert MachineConfig().memory_size == 128 << 20


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
    assert config.monitor == monitor


@pytest.mark.parametrize(
    ("text", "backend"),
    [
        ("unix:/tmp/s,server,nowait", CharBackend(CharBackendKind.UNIX, Path("/tmp/s"), server=True, wait=False)),
        ("unix:/tmp/a,,b", CharBackend(CharBackendKind.UNIX, Path("/tmp/a,b"))),
        ("tcp::1234,server=on,wait=off", CharBackend(CharBackendKind.TCP, port=1234, server=True, wait=False)),
        ("tcp:localhost:80", CharBackend(CharBackendKind.TCP, host="localhost", port=80)),
        ("pipe:p", CharBackend(CharBackendKind.PIPE, Path("p"))),
        ("mon:pty", CharBackend(CharBackendKind.PTY, mux=True)),
    ],
)
def test_char_backends(kernel: Path, text: str, backend: CharBackend) -> None:
    assert parse(kernel, "-serial", text).serials == (backend,)


@pytest.mark.parametrize(
    ("text", "sockets", "cores", "threads"),
    [
        ("1", 1, 1, 1),
        ("4", 1, 4, 1),
        ("cpus=4,sockets=2", 2, 2, 1),
        ("cores=2", 1, 2, 1),
        ("8,cores=2", 4, 2, 1),
        ("8,sockets=2,cores=2", 2, 2, 2),
        ("sockets=2,cores=3,threads=2", 2, 3, 2),
        ("12,threads=2,maxcpus=12", 1, 6, 2),
    ],
)
def test_processors_are_grouped_cores_first(
    kernel: Path, text: str, sockets: int, cores: int, threads: int
) -> None:
    config = parse(kernel, "-smp", text)
    assert config.topology == CpuTopology(sockets, cores, threads)
    assert config.cpu_count == sockets * cores * threads == len(set(config.topology.apic_ids))


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
        (["-smp", "3,cores=2"], "-smp 3,cores=2: sockets (1) * cores (2) * threads (1) is not 3: give counts"),
        (["-smp", "2,maxcpus=4"], "-smp 2,maxcpus=4: CPU hotplug (maxcpus above cpus) is not built yet: leave"),
        (["-smp", "2,maxcpus=1"], "-smp 2,maxcpus=1: maxcpus is below cpus: leave it out"),
        (["-smp", "4,dies=2"], "-smp 4,dies=2: more than one of dies is not built yet: leave it out"),
        (["-smp", "256"], "-smp 256: this machine has at most 255 CPUs"),
        (["-smp", "x"], "-smp: cpus=x: give a number of 1 or more"),
        (["-M", "q35"], "-machine q35: not built yet: use -machine microvm"),
        (["-M", "microvmm"], "-machine microvmm: no such board: did you mean 'microvm'?"),
        (["-M", "microvm,pit"], "-machine microvm,pit: 'pit' has no value: write pit=VALUE"),
        (["-accel", "kvm"], "-accel kvm: not built yet: use -accel tcg (Pellucid's own engine)"),
        (["-enable-kvm"], "-accel kvm: not built yet: use -accel tcg (Pellucid's own engine)"),
        (["-accel", "tgc"], "-accel tgc: no such accelerator: did you mean 'tcg'?"),
        (["-cpu", "hsot"], "-cpu hsot: no such CPU model: -cpu help lists them"),
        (["-cpu", "EPYC"], "-cpu EPYC: this model is not built yet: use -cpu pellucid or -cpu max"),
        (["-cpu", "max,+axv2"], "-cpu +axv2: no such CPU feature: did you mean 'avx2'?"),
        (["-cpu", "max,smep=maybe"], "-cpu: smep=maybe: give on or off"),
        (["-cpu", "max,hv-time"], "-cpu hv-time: Hyper-V enlightenments are not built yet: leave it out"),
        (["-drive", "file=x"], "-drive: not built yet: put what the guest needs into -initrd FILE"),
        (["-snapshot"], "-snapshot: not built yet: leave it out"),
        (["disk.img"], "disk.img: disk images are not built yet: give a kernel with -kernel FILE"),
        (["-initrd", "/nowhere"], "-initrd /nowhere: no such file: check the path"),
        (["-initrd", "/"], "-initrd /: not a regular file: give the path of a file"),
        (["-D", "/nowhere/log"], "-D /nowhere/log: cannot write there: check the path and its permissions"),
        (["-D", "/"], "-D /: that is a folder: give the path of a file"),
        (["-d", "unipm"], "-d unipm: no such log item: did you mean 'unimp'?"),
        (["-d", "out_asm"], "-d out_asm: not built yet: -d help lists what is"),
        (["-name", "a,thing=b"], "-name a,thing=b: unknown parameter 'thing': known: guest, process, debug-threads"),
        (["-display", "gtk"], "-display gtk: not built yet: use -display none"),
        (["-serial", "stdoi"], "-serial stdoi: no such character device: did you mean 'stdio'?"),
        (["-serial", "vc"], "-serial vc: not built yet: use stdio, mon:stdio, file:, pty, unix: or tcp:"),
        (["-serial", "mon:null"], "-serial mon:null: a monitor needs a stream: use mon:stdio"),
        (["-serial", "file:"], "-serial file:: something is missing: write file:PATH"),
        (["-serial", "tcp:localhost"], "-serial tcp:localhost: no port in it: write tcp:HOST:PORT, with a port from 1"),
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
        ([], "nothing to boot: microvm has no firmware, so give a kernel with -kernel FILE"),
        (["-append", "x"], "-append goes with a kernel: add -kernel FILE"),
        (["-initrd", "x"], "-initrd goes with a kernel: add -kernel FILE"),
        (["-kernel", "/nowhere"], "-kernel /nowhere: no such file: check the path"),
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
        (["-accel", "help"], "tcg"), (["-cpu", "help"], "qemu64"), (["-d", "help"], "guest_errors"),
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


VALUES = st.text(alphabet="abcgkmnostuxMG0125=,+-:/.% ", max_size=20)


@given(st.lists(st.one_of(st.sampled_from([f"-{name}" for name in BY_NAME]), VALUES), max_size=8))
def test_any_words_give_a_machine_or_one_line(words: list[str]) -> None:
    try:
        parse_options(words)
    except PellucidError as error:
        assert str(error)
    except HelpRequested:
        pass
