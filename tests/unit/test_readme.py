"""The README speaks only of commands, settings and files that are there."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from settings import HERE, Settings

README = (HERE / "README.md").read_text()
CODE = "\n".join(re.findall(r"```.*?```", README, re.DOTALL)) + "\n".join(re.findall(r"`[^`\n]+`", README))


def test_every_setting_stands_in_the_table_with_its_default_and_description():
    table = {row[0]: row[1:] for row in re.findall(r"^\| `([A-Z_]+)` \| (.*?) \| (.*?) \|$", README, re.MULTILINE)}
    for name, field in Settings.model_fields.items():
        default = field.default
        if hasattr(default, "get_secret_value"):
            default = default.get_secret_value()
        if isinstance(default, Path):
            default = default.relative_to(HERE)
        if isinstance(default, tuple):
            default = ",".join(default)
        shown = str(default).lower() if isinstance(default, bool) else str(default)
        assert table[name.upper()] == (f"`{shown}`" if shown else "", field.description)


def test_every_make_target_it_names_is_there():
    targets = set(re.findall(r"^([a-z-]+):", (HERE / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"\bmake ([a-z]+(?:-[a-z]+)*)", CODE))
    assert named
    assert named <= targets


def test_every_option_it_names_is_there():
    commands = re.findall(r"python ([a-z_]+\.py)((?: [a-z]+){0,2})((?: [^\n`|]*)?)", CODE)
    assert commands
    asked: dict[tuple[str, str], str] = {}
    for script, word, rest in commands:
        assert (HERE / script).is_file(), script
        group = (script, word.strip() if script == "admin.py" else "")
        if group not in asked:
            call = [sys.executable, script, *group[1].split(), "--help"]
            asked[group] = subprocess.run(call, cwd=HERE, capture_output=True, text=True, check=True, timeout=60).stdout
        for option in re.findall(r" (--[a-z-]+)", rest):
            assert option in asked[group], f"{script} {option}"


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", README))))
def test_every_file_it_links_to_is_there(link):
    assert link.startswith("http") or (HERE / link).exists()


def test_every_file_of_the_project_stands_in_the_map():
    listed = subprocess.run(["git", "ls-files", "*.py"], cwd=HERE, capture_output=True, text=True, check=True).stdout
    modules = [name for name in listed.split() if "/" not in name]
    assert modules
    for name in modules:
        assert f"| `{name}`" in README, name
