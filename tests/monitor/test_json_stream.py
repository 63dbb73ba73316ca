"""QMP's JSON: values out of a stream, and QEMU 7.2's words for what is wrong."""

import json
import os
import random

import pytest

from pellucid.monitor.json_stream import MAX_BYTES, MAX_NESTING, JsonError, JsonStream
from pellucid.monitor.json_value import JsonValue

PARSE_ERROR = "JSON parse error, "


def outcomes(*pieces: bytes) -> list[JsonValue]:
    """What comes out; errors as their text, with a mark."""
    stream, found = JsonStream(), []
    for piece in pieces:
        stream.feed(piece)
        found += [f"!{outcome}" if isinstance(outcome, JsonError) else outcome for outcome in stream.read()]
    return found


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (b'{"execute":"stop"}', {"execute": "stop"}),
        (b"{'execute': 'stop', 'x': '\\''}", {"execute": "stop", "x": "'"}),
        (b'["\\u00e9\\ud83d\\ude00", "\xc3\xa9", "\\u0000"]', ["\u00e9\U0001f600", "\u00e9", "\0"]),
        (b"[1, -2.5, 1e3, true, false, null, {}, []]", [1, -2.5, 1000, True, False, None, {}, []]),
        (b"[18446744073709551615, -9223372036854775808]", [18446744073709551615, -9223372036854775808]),
        (b"[18446744073709551616]", [18446744073709551616.0]),
        (b'"a\\"b" ', 'a"b'),
        (b"12 ", 12),
    ],
)
def test_values(text: bytes, value: JsonValue) -> None:
    assert outcomes(text) == [value]
    assert outcomes(*(bytes([byte]) for byte in text)) == [value]


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (b'{"a"}', "missing : in object pair"),
        (b'{"a":}', "expecting value"),
        (b"{1:2}", "key is not a string in object"),
        (b"[1 2]", "expected separator in list"),
        (b"[1,]", "expecting value"),
        (b'{"a":1,}', "expecting value"),
        (b'{"a":1 "b":2}', "expected separator in dict"),
        (b'{"a":1]', "expected separator in dict"),
        (b'{"a":1,"a":2}', "duplicate key"),
        (b"{'a':1,'a':2}", "duplicate key"),
        (b"nul\n", "invalid keyword 'nul'"),
        (b'"\\q"', "invalid escape sequence in string"),
        (b'"\\ud800"', "\\ud800 is not a valid Unicode character"),
        (b'"\\u12"', "\\u12 is not a valid Unicode character"),
        (b'"\xc3("', "invalid UTF-8 sequence in string"),
        (b"}", "expecting value"),
        (b"{]", "expecting value"),
        (b"01\n", "stray '01'"),
        (b"1.\n", "stray '1.\n'"),
        (b'{"a":-}\n', "stray '-}'"),
        (b'"ab\x01', "stray '\"ab\x01'"),
        (b"@\n", "stray '@'"),
        (b"\xff", "stray '\ufffd'"),
        (b"[1e999]", "number out of range"),
    ],
)
def test_what_is_wrong_is_said_as_qemu_says_it(text: bytes, error: str) -> None:
    assert outcomes(text) == [f"!{PARSE_ERROR}{error}"]


def test_reading_goes_on_behind_an_error() -> None:
    assert outcomes(b'\x1b{"a":1}{"b":%i}\n[2]') == [
        f"!{PARSE_ERROR}stray '\x1b'", {"a": 1}, f"!{PARSE_ERROR}stray '%'", f"!{PARSE_ERROR}expecting value", [2],
    ]  # fmt: skip
    assert outcomes(b'"abc\n', b'def"\n', b"7\n") == [f"!{PARSE_ERROR}stray '\"abc\n'", 7]


def test_depth_is_bounded() -> None:
    deep = b"[" * MAX_NESTING + b"]" * MAX_NESTING
    (value,) = outcomes(deep)
    assert isinstance(value, list)
    found = outcomes(b"[" + deep + b"]")
    assert found[0] == "!JSON nesting depth limit exceeded" and len(found) == MAX_NESTING + 2


def test_size_is_bounded() -> None:
    piece = b"[" + b'"' + b"x" * 60_000
    stream, found = JsonStream(), []
    stream.feed(piece)
    for _ in range(MAX_BYTES // 60_000 + 2):
        stream.feed(b"x" * 60_000)
        found += [str(outcome) for outcome in stream.read()]
        assert stream.waiting < MAX_BYTES + 200_000
    assert found == ["JSON token size limit exceeded"]


def test_fuzz() -> None:
    """Random bytes and damaged JSON: never an exception, never more kept than came; good values survive."""
    rng = random.Random(int(os.environ.get("PELLUCID_SEED", "7")))
    alphabet = b'{}[]:,"\'\\ \n0123456789.eE+-truefalsn\x00\x1f\xfe\xff\xc3\xa9u'
    good = b'{"execute":"query-status","arguments":{"a":[1,2.5,"x\\n"]}}'
    for _ in range(700):
        stream = JsonStream()
        data = bytearray(good if rng.random() < 0.5 else b"")
        data += bytes(rng.choice(alphabet) for _ in range(rng.randrange(60)))
        for _ in range(rng.randrange(4)):
            data[rng.randrange(len(data) or 1) : 1] = bytes([rng.randrange(256)])
        while data:
            cut = rng.randrange(1, len(data) + 1)
            stream.feed(bytes(data[:cut]))
            del data[:cut]
            for outcome in stream.read():
                if not isinstance(outcome, JsonError):
                    json.dumps(outcome)
        stream.feed(b"\n\x00\n" + b"]" * 80 + b"\x00")
        list(stream.read())
        stream.feed(good)
        assert list(stream.read())[-1:] == [json.loads(good)]
