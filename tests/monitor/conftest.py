"""The machine that most tests of this folder control."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from pellucid.monitor.control import Control
from tests.monitor.controlled import controlled_pc


@pytest.fixture
def control(tmp_path: Path) -> Iterator[Control]:
    with controlled_pc(tmp_path) as made:
        yield made
