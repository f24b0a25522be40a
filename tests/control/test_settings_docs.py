"""What the documentation shows is true: its documents load, its table of defaults has every limit."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from meshguard.control.policies import load_policy
from meshguard.control.settings.limits import LimitsConfig
from meshguard.control.settings.load import configuration_from, default_configuration
from meshguard.control.settings.profiles import PERMITS, ROWS
from meshguard.sources.documents import parse

ROOT = Path(__file__).parent.parent.parent
BLOCKS = re.findall(r"```yaml\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL)


def test_the_readme_has_two_configurations_and_a_policy() -> None:
    assert ["rules:" in block for block in BLOCKS] == [False, False, True]


@pytest.mark.parametrize("text", BLOCKS[:2])
def test_the_configurations_of_the_readme_load(text: str) -> None:
    document = parse("README.md", text, environment={})
    loaded = configuration_from(document, ROOT, now=0.0, environment={}, files=False)
    assert "inbound" in loaded.configuration.listeners


def test_the_policy_of_the_readme_compiles_without_a_warning() -> None:
    loaded = load_policy([parse("README.md", BLOCKS[2], environment={})])
    assert loaded.compiled.rule_count == 2
    assert loaded.warnings == ()


def test_the_built_in_policy_compiles_without_a_warning(tmp_path: Path) -> None:
    configuration = default_configuration(now=0.0, base=tmp_path, environment={}).configuration
    assert load_policy(configuration.policies, keysets=list(configuration.keys)).warnings == ()


def test_every_limit_stands_in_the_table_of_defaults() -> None:
    text = (ROOT / "SECURITY.md").read_text("utf-8")
    assert [name for name in LimitsConfig.model_fields if name not in re.findall(r"`(?:limits\.)?([a-z_]+)`", text)] == []


def test_the_readme_tells_what_each_profile_permits() -> None:
    section = (ROOT / "README.md").read_text("utf-8").partition("### Profiles")[2].partition("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| ") and not line.startswith("| |")]
    told = len(PERMITS) + len([key for key, values in ROWS if len(set(map(str, values))) > 1 and not key.startswith("identity.")])
    assert len(rows) == told
