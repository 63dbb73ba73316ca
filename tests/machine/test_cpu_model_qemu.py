"""CPU models side by side with QEMU 7.2's, where its binary is installed: names, versions, features, identities."""

from __future__ import annotations

import functools
import json
import shutil
import subprocess
from typing import Any

import pytest

from pellucid.cpu.models import FEATURES, alias_of, canonical_name, describe_models, feature_names, find_model
from pellucid.cpu.models.data import catalog
from pellucid.cpu.models.features import OTHER_FEATURES

QEMU = shutil.which("qemu-system-x86_64")
OURS = {"pellucid", "max", "host", "base"}
NOT_COMPARED = {"vme", "hypervisor"}
"""QEMU's TCG takes the first from every model, and gives the second to each."""


@functools.cache
def version() -> str:
    return subprocess.run([str(QEMU), "--version"], capture_output=True, text=True, check=True).stdout if QEMU else ""


pytestmark = pytest.mark.skipif("version 7.2" not in version(), reason="QEMU 7.2 is not installed")


@functools.cache
def answers() -> tuple[dict[str, Any], dict[str, Any]]:
    """QEMU's query-cpu-definitions, and the properties of every model, by name."""
    arguments = ["-M", "pc-i440fx-7.2", "-accel", "tcg", "-S", "-display", "none", "-qmp", "stdio"]
    names = [name for name in describe_models() if name not in OURS]
    lines = [{"execute": "qmp_capabilities"}, {"execute": "query-cpu-definitions", "id": "definitions"}]
    lines += [{"execute": "query-cpu-model-expansion", "id": name,
               "arguments": {"type": "full", "model": {"name": name}}} for name in names]
    text = "".join(json.dumps(line) + "\n" for line in [*lines, {"execute": "quit"}])
    done = subprocess.run([str(QEMU), *arguments], input=text, capture_output=True, text=True, timeout=60, check=True)
    replies = [reply for line in done.stdout.splitlines() if "id" in (reply := json.loads(line))]
    found = {reply["id"]: reply["return"] for reply in replies if "return" in reply}
    definitions = {entry["name"]: entry for entry in found.pop("definitions")}
    return definitions, {name: reply["model"]["props"] for name, reply in found.items()}


def test_the_names_are_the_same() -> None:
    definitions, _ = answers()
    assert definitions.keys() - OURS == describe_models().keys() - OURS
    assert {name: entry.get("alias-of") for name, entry in definitions.items()} == {
        name: alias_of(name) for name in definitions}


def test_help_is_the_same() -> None:
    done = subprocess.run([str(QEMU), "-cpu", "help"], capture_output=True, text=True, check=True).stdout
    listed, _, flags = done.partition("Recognized CPUID flags:")
    theirs = [line.rstrip() for line in listed.splitlines() if line.startswith("x86 ")]
    ours = [f"x86 {name:<20}  {what}".rstrip() for name, what in describe_models().items()]
    assert [line for line in theirs if line.split()[1] not in OURS] == [
        line for line in ours if line.split()[1] not in OURS]
    assert {word for word in flags.split() if not word.startswith("kvm")} <= set(feature_names())


@pytest.mark.parametrize("name", [*catalog().versions, *catalog().aliases])
def test_a_model_is_the_same(name: str) -> None:
    theirs, ours = answers()[1][name], find_model(name)
    known = FEATURES.keys() | OTHER_FEATURES.keys()
    features = {canonical_name(word) for word, value in theirs.items() if value is True} & known
    assert features - NOT_COMPARED == ours.features - NOT_COMPARED
    identity = {"family": ours.family, "model": ours.model, "stepping": ours.stepping, "model-id": ours.model_id,
                "min-level": ours.level, "min-xlevel": ours.xlevel, "vendor": ours.vendor}
    if name.startswith("qemu64"):
        identity["vendor"] = "AuthenticAMD"  # here it is Intel's, as kvm64 is
    assert {word: theirs[word] for word in identity} == identity
