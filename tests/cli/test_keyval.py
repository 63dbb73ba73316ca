"""QEMU's key=value strings, sizes and switches."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pellucid.cli.keyval import parse_keyval, parse_size, parse_switch, split_items, suggestion
from pellucid.errors import UserError


@pytest.mark.parametrize(
    ("text", "items"),
    [
        ("a,b", ["a", "b"]), ("a,,b", ["a,b"]), ("a,,,b", ["a,", "b"]), ("", [""]), (",", ["", ""]),
        ("a=1,,2,c", ["a=1,2", "c"]),
    ],
)  # fmt: skip
def test_commas(text: str, items: list[str]) -> None:
    assert split_items(text) == items


@given(
    st.lists(st.text(alphabet="ab,=", min_size=1).filter(lambda text: text[0] != "," and text[-1] != ","), min_size=1)
)
def test_doubled_commas_survive(items: list[str]) -> None:
    assert split_items(",".join(item.replace(",", ",,") for item in items)) == items


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("x", {"size": "x"}),
        ("size=1,wait", {"size": "1", "wait": "on"}),
        ("size=a=b,nowait", {"size": "a=b", "wait": "off"}),
        ("1,size=2", {"size": "2"}),
        ("node=3", {"node": "3"}),
    ],
)
def test_keys(text: str, values: dict[str, str]) -> None:
    assert parse_keyval("m", text, ("size", "wait", "node"), "size") == values


def test_an_unknown_key_is_named_with_what_it_could_be() -> None:
    with pytest.raises(UserError, match=r"-m sise=3: unknown parameter 'sise': did you mean 'size'\?"):
        parse_keyval("m", "sise=3", ("size", "wait"))


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("64", 64 << 20), ("1G", 1 << 30), ("1.5g", 3 << 29), ("512K", 512 << 10), ("0x40", 64 << 20), ("100b", 100),
        ("1T", 1 << 40),
    ],
)  # fmt: skip
def test_sizes(text: str, size: int) -> None:
    assert parse_size("m", text, "M") == size


@pytest.mark.parametrize("text", ["", "1Z", "M", "-1", "1 G", "0x1.5", "½", "16E", "1e3", "٣"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(UserError, match="-m "):
        parse_size("m", text, "M")


def test_switches() -> None:
    assert parse_switch("d", "x", "on") and not parse_switch("d", "x", "off")
    with pytest.raises(UserError, match="give on or off"):
        parse_switch("d", "x", "maybe")


def test_suggestions() -> None:
    assert suggestion("kernl", ("kernel", "initrd")) == "did you mean 'kernel'?"
    assert suggestion("zzz", ("kernel", "initrd")) == "known: kernel, initrd"
    assert suggestion("zzz", [str(number) for number in range(40)]) == "see -help"
