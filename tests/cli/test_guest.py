"""The default guest: packages read, initrd built, cache kept whole, apt driven; with packages and an apt made here."""

import errno
import gzip
import io
import lzma
import os
import stat
import subprocess
import tarfile
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from pellucid.cli import guest
from pellucid.cli.guest import cache, scripts
from pellucid.cli.guest.archive import package_file
from pellucid.cli.guest.initrd import InitrdFile, build_initrd
from pellucid.errors import UserError

KERNEL = b"MZ a kernel" * 100
KERNEL_PACKAGE = "linux-image-6.1.0-9-cloud-amd64"


def ar(members: dict[str, bytes]) -> bytes:
    out = b"!<arch>\n"
    for name, content in members.items():
        out += f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(content):<10}`\n".encode() + content
        out += b"\n" * (len(content) & 1)
    return out


def tar(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            if name.endswith("/"):
                info.type = tarfile.DIRTYPE
            else:
                info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


def deb(files: dict[str, bytes], suffix: str = ".xz") -> bytes:
    compress = {"": bytes, ".xz": lzma.compress, ".gz": gzip.compress, ".zst": zstandard.ZstdCompressor().compress}
    data = compress[suffix](tar(files))
    return ar({"debian-binary": b"2.0\n", "control.tar.xz": b"odd", f"data.tar{suffix}": data})


FILES = {"./boot/": b"", "./boot/config-6": b"no", "./boot/vmlinuz-6.1": KERNEL, "./bin/busybox": b"ELF busybox"}


@pytest.mark.parametrize("suffix", ["", ".xz", ".gz", ".zst"])
def test_a_file_of_a_package(tmp_path: Path, suffix: str) -> None:
    package = tmp_path / "x.deb"
    package.write_bytes(deb(FILES, suffix))
    assert package_file(package, r"boot/vmlinuz-.*") == ("boot/vmlinuz-6.1", KERNEL)


def test_a_package_without_the_file(tmp_path: Path) -> None:
    package = tmp_path / "x.deb"
    package.write_bytes(deb(FILES))
    with pytest.raises(UserError, match="no file in it matches sbin/init"):
        package_file(package, "sbin/init")
    package.write_bytes(ar({"data.tar.lz4": b""}))
    with pytest.raises(UserError, match="compressed as '.lz4'"):
        package_file(package, "x")


@pytest.mark.parametrize(
    "content", [b"", b"!<arch>\n", b"!<arch>\nshort", b"not an archive at all", ar({"data.tar.xz": b"x"})]
)
def test_damaged_packages(tmp_path: Path, content: bytes) -> None:
    package = tmp_path / "x.deb"
    package.write_bytes(content)
    with pytest.raises(UserError, match="x.deb: damaged package"):
        package_file(package, "boot/vmlinuz-.*")


WHOLE = deb(FILES, ".gz")


@given(st.integers(0, len(WHOLE) - 1), st.integers(1, 255), st.booleans())
def test_a_broken_package_is_an_error_or_the_same_file(where: int, change: int, cut: bool) -> None:
    content = WHOLE[:where] if cut else WHOLE[:where] + bytes([WHOLE[where] ^ change]) + WHOLE[where + 1 :]
    package = Path(os.environ.get("TMPDIR", "/tmp")) / f"pellucid-test-{os.getpid()}.deb"
    package.write_bytes(content)
    try:
        path, _ = package_file(package, r"boot/vmlinuz-.*")
        assert path.startswith("boot/vmlinuz-")
    except UserError as error:
        assert package.name in str(error)
    finally:
        package.unlink()


def cpio_entries(archive: bytes) -> dict[str, tuple[int, bytes, tuple[int, int]]]:
    """(mode, content, device) of each entry of a newc archive, read independently of the writer."""
    entries = {}
    position = 0
    while True:
        assert archive[position : position + 6] == b"070701"
        fields = [int(archive[position + 6 + 8 * index : position + 14 + 8 * index], 16) for index in range(13)]
        mode, size, name_size = fields[1], fields[6], fields[11]
        name_at = position + 110
        name = archive[name_at : name_at + name_size - 1].decode()
        assert archive[name_at + name_size - 1] == 0
        content_at = (name_at + name_size + 3) & ~3
        if name == "TRAILER!!!":
            assert len(archive) == content_at
            return entries
        entries[name] = (mode, archive[content_at : content_at + size], (fields[9], fields[10]))
        position = (content_at + size + 3) & ~3


def test_initrd() -> None:
    image = build_initrd("#!/bin/sh\nexit\n", b"busybox!", {"bench/deep/loop": InitrdFile(b"abc", 0o700)})
    entries = cpio_entries(gzip.decompress(image))
    assert entries["init"] == (stat.S_IFREG | 0o755, b"#!/bin/sh\nexit\n", (0, 0))
    assert entries["bin/busybox"] == (stat.S_IFREG | 0o755, b"busybox!", (0, 0))
    assert entries["bin/sh"] == (stat.S_IFLNK | 0o777, b"busybox", (0, 0))
    assert entries["dev/console"] == (stat.S_IFCHR | 0o600, b"", (5, 1))
    assert entries["bench/deep/loop"] == (stat.S_IFREG | 0o700, b"abc", (0, 0))
    names = list(entries)
    assert all(parent in names[: names.index(name)] for name in names if (parent := name.rpartition("/")[0]))
    assert image == build_initrd("#!/bin/sh\nexit\n", b"busybox!", {"bench/deep/loop": InitrdFile(b"abc", 0o700)})


def test_the_kernels_own_tool_reads_the_archive(tmp_path: Path) -> None:
    """cpio, where this computer has it, agrees about the names."""
    try:
        listing = subprocess.run(
            ["cpio", "-t", "--quiet"], input=gzip.decompress(build_initrd("x", b"y")), capture_output=True, check=True
        )
    except FileNotFoundError:
        pytest.skip("no cpio here")
    assert "bin/busybox" in listing.stdout.decode().split()


@pytest.mark.parametrize("script", [scripts.INTERACTIVE, scripts.SELF_TEST, scripts.QUIET_POWEROFF])
def test_the_scripts_are_shell(script: str) -> None:
    assert script.startswith("#!/bin/sh\n") and scripts.BANNER in script
    assert "poweroff -f" in script.splitlines()[-1]
    assert subprocess.run(["sh", "-n"], input=script.encode(), check=False).returncode == 0


def test_publishing_is_whole_or_nothing(tmp_path: Path) -> None:
    final = tmp_path / "a" / "thing"

    def fail(folder: Path) -> None:
        (folder / "half").write_bytes(b"x")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(UserError, match="No space left on device: make room"):
        cache.publish_folder(final, fail)
    assert list(final.parent.iterdir()) == []
    cache.publish_folder(final, lambda folder: (folder / "file").touch())
    assert [path.name for path in final.parent.iterdir()] == ["thing"]
    cache.publish_folder(final, fail)  # it is there: nothing is done


def test_two_processes_publish_the_same_thing(tmp_path: Path) -> None:
    final = tmp_path / "thing"

    def fill(folder: Path) -> None:
        (folder / "file").write_text("mine")
        final.mkdir()
        (final / "file").write_text("theirs")

    assert cache.publish_folder(final, fill) == final
    assert (final / "file").read_text() == "theirs"
    assert [path.name for path in tmp_path.iterdir()] == ["thing"]


def test_a_cache_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write the cache folder"):
        cache.publish_file(tmp_path / "file" / "thing", b"x")


APT_GET = """\
#!/bin/sh
# An apt-get of which the lists are in $FAKE/lists; "update" fills private ones.
fd= ; lists=$FAKE/lists
for word; do
    case $word in
        APT::Status-Fd=*) fd=${word#*=} ;;
        Dir::State::Lists=*) lists=${word#*=} ;;
        update) [ -e $FAKE/offline ] && { echo "E: Could not resolve host" >&2; exit 100; }
            echo kernel > $lists/x_Packages; exit 0 ;;
        download) what=download ;;
        *) package=$word ;;
    esac
done
[ -e $lists/x_Packages ] || { echo "E: Unable to locate package $package" >&2; exit 100; }
echo "dlstatus:1:50.0:Retrieving" > /dev/fd/$fd
cp $FAKE/$package.deb ./${package}_1.0_amd64.deb
"""

APT_CACHE = """\
#!/bin/sh
lists=$FAKE/lists
for word; do case $word in Dir::State::Lists=*) lists=${word#*=} ;; esac; done
[ -e $lists/x_Packages ] || { echo "N: Unable to locate package"; exit 100; }
printf 'linux-image-cloud-amd64\\n  Depends: other\\n  Depends: KERNEL_PACKAGE\\n'
""".replace("KERNEL_PACKAGE", KERNEL_PACKAGE)


@pytest.fixture
def apt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A computer whose apt is made of two shell scripts; its folder."""
    folder = tmp_path / "computer"
    (folder / "lists").mkdir(parents=True)
    (folder / "bin").mkdir()
    for name, script in (("apt-get", APT_GET), ("apt-cache", APT_CACHE)):
        (folder / "bin" / name).write_text(script)
        (folder / "bin" / name).chmod(0o755)
    for name in (KERNEL_PACKAGE, "busybox-static"):
        (folder / f"{name}.deb").write_bytes(deb(FILES))
    monkeypatch.setenv("FAKE", str(folder))
    monkeypatch.setenv("PATH", f"{folder / 'bin'}:/usr/bin:/bin")
    monkeypatch.setenv("PELLUCID_CACHE", str(tmp_path / "cache"))
    return folder


def test_the_guest_is_fetched_once(apt: Path) -> None:
    (apt / "lists" / "x_Packages").touch()
    kernel = guest.default_kernel()
    assert kernel.read_bytes() == KERNEL
    assert f"{KERNEL_PACKAGE}_1.0_amd64.deb" in (kernel.parent / "package.json").read_text()
    initrd = guest.default_initrd()
    assert cpio_entries(gzip.decompress(initrd.read_bytes()))["bin/busybox"][1] == b"ELF busybox"
    (apt / "bin" / "apt-get").unlink()
    assert (guest.default_kernel(), guest.default_initrd()) == (kernel, initrd)
    assert sorted(path.name for path in cache.guest_cache().iterdir()) == ["busybox", initrd.name, "kernel"]


def test_without_lists_private_ones_are_fetched(apt: Path) -> None:
    assert guest.default_kernel().read_bytes() == KERNEL
    assert list((apt / "lists").iterdir()) == []


@pytest.mark.parametrize(
    ("break_it", "line"),
    [
        (lambda apt: (apt / "offline").touch(), "apt-get failed: Could not resolve host: pass your own kernel"),
        (lambda apt: os.environ.update(PATH="/nonexistent"), "no apt-get on this machine"),
        (lambda apt: (apt / f"{KERNEL_PACKAGE}.deb").write_bytes(b"junk"), "damaged package"),
        (lambda apt: (apt / "bin" / "apt-cache").write_text("#!/bin/sh\n"), "apt knows no package"),
    ],
)  # fmt: skip
def test_what_can_go_wrong_is_one_line_and_leaves_nothing(apt: Path, break_it, line: str) -> None:  # type: ignore[no-untyped-def]
    break_it(apt)
    with pytest.raises(UserError, match=line):
        guest.default_kernel()
    left = {path.name for path in cache.guest_cache().iterdir()} if cache.guest_cache().exists() else set()
    assert left <= {"apt"}
