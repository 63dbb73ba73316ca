"""What the tests of instructions share: the host's CPU to compare with, and a guest that the tests of a file share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .guest import NativeGuest
from .oracle import HostCpu


@pytest.fixture(scope="module")
def host() -> Iterator[HostCpu]:
    with HostCpu() as cpu:
        yield cpu


@pytest.fixture(scope="module")
def native() -> Iterator[NativeGuest]:
    guest = NativeGuest()
    yield guest
    guest.close()


@pytest.fixture
def bare() -> Iterator[NativeGuest]:
    """A guest whose control registers and page tables a test may change."""
    guest = NativeGuest()
    yield guest
    guest.close()
