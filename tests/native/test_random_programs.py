"""Random programs of the subset, compiled and as plain Python: the same result, or an exception from both."""

import importlib.util
import itertools
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pellucid.native import i32, u8, u64
from tests.native.harness import Unit
from tests.native.random_source import module_source

FUNCTIONS = 8
INPUTS = [(0, 0, 0), (1, -1, 255), (1 << 63, -(1 << 31), 128), (12345678901234567890, 77, 3), ((1 << 64) - 1, 2, 9)]
_numbers = itertools.count()


def load(folder: Path, source: str) -> Any:
    name = f"random_programs_{next(_numbers)}"
    path = folder / f"{name}.py"
    path.write_text(source, encoding="utf-8")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("programs")


@settings(max_examples=8, database=None)
@given(seed=st.integers(0, (1 << 32) - 1))
def test_both_executions_agree(folder: Path, seed: int) -> None:
    module, unit = load(folder, module_source(seed, FUNCTIONS)), Unit()
    members = [unit.add(getattr(module, f"f{i}"), u64, i32, u8) for i in range(FUNCTIONS)]
    for member in members:
        for values in INPUTS:
            member.both(*values)
