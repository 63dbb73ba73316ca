"""-cpu ...,-rdctl-no and its like: bits of the capability MSRs by QEMU's names."""

import pytest

from pellucid.cpu.models.msr_features import UNNAMED_CAPABILITIES
from pellucid.machine.config import CpuConfig
from pellucid.machine.cpu_model import feature_msrs

UNNAMED = UNNAMED_CAPABILITIES[0x10A]


@pytest.mark.parametrize(("model", "changes", "arch", "core"), [
    ("max", {}, 0x1FB, 0x20), ("host", {"rdctl-no": False}, 0x1FA, 0x20),
    ("max", {"ssb-no": False, "mds-no": False, "split-lock-detect": False}, 0x1CB, 0),
    ("Nehalem", {}, 0, 0), ("Nehalem", {"arch-capabilities": True, "ibrs-all": True}, 2, 0),
    ("Cascadelake-Server-v2", {}, 0x2B, 0), ("Cascadelake-Server-v2", {"mds-no": False}, 0xB, 0),
    ("Snowridge-v1", {}, None, 0x20), ("qemu64", {}, 0x1FB, 0)])
def test_what_a_model_says(model: str, changes: dict[str, bool], arch: int | None, core: int) -> None:
    found = feature_msrs(CpuConfig(model, changes))
    assert found[0xCF] == core | UNNAMED_CAPABILITIES[0xCF]
    if arch is not None:
        assert found[0x10A] == arch | UNNAMED
