"""README and docs speak only of commands, settings, figures and files that are there."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.pages import modules, pages
from settings import HERE, Settings

DOCS = [
    HERE / "README.md",
    HERE / "CONTRIBUTING.md",
    HERE / "SECURITY.md",
    HERE / "forecast" / "README.md",
    *sorted((HERE / "docs").glob("*.md")),
]
TEXT = "\n".join(path.read_text() for path in DOCS)
CODE = "\n".join(re.findall(r"```.*?```", TEXT, re.DOTALL)) + "\n".join(
    re.findall(r"`[^`\n]+`", TEXT)
)
GROUPS = ("admin.py", "forecast")  # whose words are commands
# Modules of others, and ours that are no commands by themselves.
TOOLS = ("ruff", "mypy", "pytest", "pip", "local", "harness")


def test_generated_pages_are_what_code_and_results_say():
    for path, text in pages().items():
        assert path.read_text() == text, f"{path.name}: run make docs"


def test_the_readme_is_short():
    readme = (HERE / "README.md").read_text()
    assert len(readme.splitlines()) <= 180
    assert len(readme.encode()) <= 12_000


def test_every_page_of_the_docs_is_linked_from_the_readme():
    readme = (HERE / "README.md").read_text()
    for path in (HERE / "docs").glob("*.md"):
        assert f"](docs/{path.name})" in readme, path.name


def test_every_make_target_it_names_is_there():
    targets = set(re.findall(r"^([a-z-]+):", (HERE / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"\bmake ([a-z]+(?:-[a-z]+)*)", CODE))
    assert named
    assert named <= targets


def test_every_option_it_names_is_there():
    commands = re.findall(r"python ([a-z_]+\.py)((?: [a-z]+){0,2})((?: [^\n`|]*)?)", CODE)
    assert commands
    asked: dict[tuple[str, str], str] = {}
    for script, words, rest in commands:
        assert (HERE / script).is_file(), script
        group = (script, words.strip() if script in GROUPS else "")
        if group not in asked:
            call = [sys.executable, script, *group[1].split(), "--help"]
            asked[group] = subprocess.run(
                call, cwd=HERE, capture_output=True, text=True, check=True, timeout=60
            ).stdout
        for option in re.findall(r" (--[a-z-]+)", rest):
            assert option in asked[group], f"{script} {option}"


def test_every_module_it_names_as_a_command_is_there_with_its_options():
    commands = re.findall(r"python3? -m ([a-z_.]+)((?: [a-z]+)?)((?: [^\n`|]*)?)", CODE)
    ours = [command for command in commands if command[0].split(".")[0] not in TOOLS]
    assert ours
    asked: dict[tuple[str, str], str] = {
        # It needs the packages of requirements/bench.txt, so its source answers.
        (module, ""): (HERE / f"{module.replace('.', '/')}.py").read_text()
        for module in ("benchmarks.loop.drawings",)
    }
    for module, word, rest in ours:
        group = (module, word.strip() if module in GROUPS else "")
        options = re.findall(r"(?<![\w-])--[a-z-]+", rest.split("#")[0])
        if group not in asked:
            asked[group] = subprocess.run(
                [sys.executable, "-W", "ignore", "-m", module, *group[1].split(), "--help"],
                cwd=HERE,
                capture_output=True,
                text=True,
                check=True,
                timeout=120,
            ).stdout
        for option in options:
            assert option in asked[group], f"python -m {module} {group[1]} {option}"


def test_every_setting_and_module_is_listed():
    settings_page = (HERE / "docs" / "settings.md").read_text()
    for name in Settings.model_fields:
        assert f"| `{name.upper()}` |" in settings_page, name
    architecture = (HERE / "docs" / "architecture.md").read_text()
    for path in modules():
        assert f"| `{path}` |" in architecture, f"{path} is not in architecture.md: run make docs"


def links() -> list[tuple[Path, str, str]]:
    """Return each relative link with its page and anchor."""
    found = [
        (path, link) for path in DOCS for link in re.findall(r"\]\(([^)\s]+)\)", path.read_text())
    ]
    return [
        (path, *link.partition("#")[::2]) for path, link in found if not link.startswith("http")
    ]


@pytest.mark.parametrize(
    ("page", "link", "anchor"), links(), ids=lambda value: getattr(value, "name", value)
)
def test_every_relative_link_and_anchor_resolves(page, link, anchor):
    target = (page.parent / link).resolve() if link else page
    assert target.exists()
    if anchor:
        headings = re.findall(r"^#+ (.+)$", target.read_text(), re.MULTILINE)
        anchors = {
            re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings
        }
        assert anchor in anchors
