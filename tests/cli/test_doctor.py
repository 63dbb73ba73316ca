"""What doctor finds, on files made for it; and that it works on whatever computer this is."""

import errno
import json
import os
from pathlib import Path

import pytest

from pellucid.cli import doctor


def cpuinfo(tmp_path: Path, flags: str) -> Path:
    path = tmp_path / "cpuinfo"
    path.write_text(f"processor\t: 0\nmodel name\t: Some CPU\nflags\t\t: {flags}\n\nprocessor\t: 1\nflags\t\t: other\n")
    return path


@pytest.mark.parametrize(
    ("flags", "level"),
    [
        ("fpu", "not x86-64"),
        ("lm sse2", "x86-64"),
        (" ".join(["lm", *doctor.V2]), "x86-64-v2"),
        (" ".join(["lm", *doctor.V3]), "x86-64-v3"),
        (" ".join(["lm", *doctor.V4]), "x86-64-v4"),
        (" ".join(["lm", *(doctor.V3 - {"fma"})]), "x86-64-v2"),
    ],
)
def test_cpu(tmp_path: Path, flags: str, level: str) -> None:
    cpu = doctor.read_cpu(cpuinfo(tmp_path, flags))
    assert (cpu.model, cpu.level, cpu.features) == ("Some CPU", level, sorted(set(flags.split())))


def test_no_cpuinfo(tmp_path: Path) -> None:
    assert doctor.read_cpu(tmp_path / "none").features == []


def test_kvm_that_is_not_there(tmp_path: Path) -> None:
    kvm = doctor.probe_kvm(tmp_path / "kvm", {"vmx"})
    assert not kvm.usable and "is not there" in kvm.reason


def test_kvm_that_is_no_device(tmp_path: Path) -> None:
    (tmp_path / "kvm").touch()
    kvm = doctor.probe_kvm(tmp_path / "kvm", {"vmx"})
    assert not kvm.usable and "is no KVM device" in kvm.reason


@pytest.mark.parametrize(("version", "usable"), [(12, True), (11, False)])
def test_kvm_api_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: int, usable: bool) -> None:
    (tmp_path / "kvm").touch()
    monkeypatch.setattr("fcntl.ioctl", lambda fd, request: version)
    assert doctor.probe_kvm(tmp_path / "kvm", {"vmx"}).usable is usable


def test_kvm_without_hardware_behind_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "kvm").touch()
    monkeypatch.setattr("fcntl.ioctl", lambda fd, request: doctor.KVM_API_VERSION)
    kvm = doctor.probe_kvm(tmp_path / "kvm", {"sse2"})
    assert not kvm.usable and "neither VMX nor SVM" in kvm.reason


@pytest.mark.parametrize(
    ("number", "part"),
    [(errno.EACCES, "add the user to the group"), (errno.EBUSY, "taken"), (errno.EIO, "Input/output")],
)
def test_kvm_that_cannot_be_opened(monkeypatch: pytest.MonkeyPatch, number: int, part: str) -> None:
    def refuse(path: Path, flags: int) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("os.open", refuse)
    assert part in doctor.probe_kvm(Path("/dev/kvm"), {"vmx"}).reason


def test_caches(tmp_path: Path) -> None:
    (tmp_path / "guest" / "kernel").mkdir(parents=True)
    (tmp_path / "guest" / "kernel" / "vmlinuz").write_bytes(bytes(1000))
    (tmp_path / "images").mkdir()
    (tmp_path / "stray").write_bytes(bytes(5))
    assert {name: cache.bytes for name, cache in doctor.caches(tmp_path).items()} == {"guest": 1000, "images": 0}
    assert doctor.caches(tmp_path / "none") == {}


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.doctor(["--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert set(report) >= {"cpu", "memory_bytes", "kvm", "caches", "handler_image", "versions", "programs"}
    assert report["memory_bytes"] > 1 << 20 and report["versions"]["llvmlite"]


def test_table(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PELLUCID_CACHE", str(tmp_path))
    assert doctor.doctor([]) == 0
    text = capsys.readouterr().out
    assert "/dev/kvm" in text and "handler image" in text and "empty" in text
