"""`pellucid explain mtree`: the picture, the answer, JSON, and what is said of bad input."""

import io
import json
import sys
from pathlib import Path

import pytest

from pellucid.cli import main as entry

GOLDEN = Path(__file__).parents[1] / "machine" / "golden" / "mtree"


def dump(name: str, command: str = "info mtree") -> str:
    """One answer of a golden file."""
    text = (GOLDEN / name).read_text()
    return text.split(f"(qemu) {command}\n")[1].split("(qemu) ")[0]


@pytest.fixture
def q35(tmp_path: Path) -> Path:
    path = tmp_path / "q35"
    path.write_text(dump("q35-8G-booted.txt"))
    return path


def run(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert entry.main(["explain", "mtree", *words]) == 0
    return capsys.readouterr().out


def columns(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines()]


def test_the_picture(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, q35: Path) -> None:
    monkeypatch.setenv("COLUMNS", "140")
    text = run(capsys, str(q35))
    rows = columns(text)
    assert rows[0] == ["cpu-memory-0,", "memory", "root", "system"]
    assert ["the", "same", "is", "seen", "by", "ich9-ahci"] in rows
    assert ["b0000000", "bfffffff", "256", "MiB", "███▋", "i/o", "pcie-mmcfg-mmio"] in rows
    assert ["c0000000", "febfefff", "1004", "MiB", "nothing"] in rows
    high = "100000000 27fffffff 6 GiB ████▏ ram pc.ram + 0x80000000 ← ram-above-4g"
    assert high.split() in rows
    assert ["cf9", "cf9", "1", "byte", "▏", "i/o", "lpc-reset-control"] in rows
    assert text.rstrip().splitlines()[-1].startswith("nothing is seen in ")


def test_the_answer(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, q35: Path) -> None:
    monkeypatch.setenv("COLUMNS", "140")
    text = run(capsys, str(q35), "--at", "0xf0010")
    assert text.startswith("0xf0010 in memory: pc.ram + 0xf0010, rom\n")
    assert "  read   from its memory\n  write  dropped: read-only\n" in text
    assert "└── pam-rom + 0x10   priority 1   alias of pc.ram + 0xf0010" in text
    assert "priority 0 of 'ram-below-4g' is below 1 of 'pam-rom'" in text
    text = run(capsys, str(q35), "--at", "0000000000000cf9", "--space", "I/O")
    assert text.startswith("0xcf9 in I/O: lpc-reset-control + 0x0, i/o\n")
    assert "pci-conf-idx + 0x1  i/o  priority 0 is below 1 of 'lpc-reset-control'" in text
    assert "nothing answers" in run(capsys, str(q35), "--at", "0xd0000000")


def test_json(capsys: pytest.CaptureFixture[str], q35: Path) -> None:
    whole = json.loads(run(capsys, str(q35), "--json", "--space", "memory"))
    (space,) = whole["address_spaces"]
    high = next(found for found in space["ranges"] if found["start"] == 1 << 32)
    assert high == {
        "start": 1 << 32,
        "size": 6 << 30,
        "region": "pc.ram",
        "offset": 2 << 30,
        "type": "ram",
        "priority": 0,
        "through": ["ram-above-4g"],
    }
    found = json.loads(run(capsys, str(q35), "--json", "--at", "0xfed00004"))
    assert (found["answer"]["region"], found["answer"]["offset"], found["writes"]) == ("hpet", 4, "to the device")
    assert [step["region"] for step in found["answer"]["way"]] == ["system", "hpet"]
    found = json.loads(run(capsys, str(q35), "--json", "--at", "0xd0000000"))
    assert found["answer"] is None and found["others"][0]["reason"].startswith("not covered by the window")


def test_standard_input(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pasted = "(qemu) info mtree -D\r\n" + dump("pc-128M-reset.txt", "info mtree -D").replace("\n", "\r\n")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(pasted.encode())))
    assert "'pam-ram' is disabled" in run(capsys, "-", "--at", "0xc0000")


@pytest.mark.parametrize(
    ("content", "words", "complaint"),
    [
        (None, [], "No such file"),
        (b"", [], "no 'address-space:'"),
        (b"\xff\xfe\0garbage", [], "line 1 is not a line"),
        (b"x" * ((4 << 20) + 1), [], "more than 4 MiB"),
        ("whole", ["--at", "frog"], "no address"),
        ("whole", ["--at", "0x10000000000000000"], "outside 0 to 0xffffffffffffffff"),
        ("whole", ["--at", "-1"], "--at"),
        ("whole", ["--at", "0x10000", "--space", "I/O"], "ends at 0xffff"),
        ("whole", ["--space", "memry"], "did you mean 'memory'"),
        ("cut", [], "paste the dump whole"),
        ("whole", ["--frog"], "--help"),
    ],
)
def test_bad_input(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, content: bytes | str | None, words: list[str], complaint: str
) -> None:
    path = tmp_path / "dump"
    text = dump("pc-128M-booted.txt")
    if content is not None:
        given = {"whole": text, "cut": text[: text.index("memory-region:")]}
        path.write_bytes(content if isinstance(content, bytes) else given[content].encode())
    assert entry.main(["explain", "mtree", str(path), *words]) == 1
    error = capsys.readouterr().err
    assert complaint in error and error.count("\n") == 1


def test_topics(capsys: pytest.CaptureFixture[str]) -> None:
    assert entry.main(["explain"]) == 0 and "mtree" in capsys.readouterr().out
    assert entry.main(["explain", "mtre"]) == 1 and "did you mean 'mtree'" in capsys.readouterr().err
    assert entry.main(["explain", "mtree"]) == 1 and "file" in capsys.readouterr().err
