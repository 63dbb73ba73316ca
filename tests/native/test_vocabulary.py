"""The page of the vocabulary has every public word."""

import re
from pathlib import Path

import pellucid.native

PAGE = Path(__file__).parents[2] / "docs" / "NATIVE.md"


def test_every_public_name_is_on_the_page() -> None:
    text = PAGE.read_text(encoding="utf-8").replace("i8 … i128", "i8 i16 i32 i64 i128")
    code = " ".join(re.findall(r"`+([^`]+)`+", text))
    words = set(re.findall(r"\w+", code))
    assert set(pellucid.native.__all__) - words == set()
