"""Every package is locked with its hashes, and a file with another hash is not installed."""

import re
import subprocess

import pytest

from local.bootstrap import HERE, LOCKS, SETS, VENV, included
from local.supply_chain import SOURCES, locked

PIN = re.compile(r"^([\w.-]+)(?:\[[\w,-]+\])?==(\S+)", re.MULTILINE)


@pytest.mark.parametrize("target", SOURCES)
def test_every_pin_stands_in_its_lock(target):
    packages = locked(target)
    for file in included(list(SOURCES[target])):
        pins = {
            (re.sub(r"[-_.]+", "-", name).lower(), v) for name, v in PIN.findall(file.read_text())
        }
        assert pins <= set(packages.items()), f"run make lock: {file.name} is newer than {target}"


@pytest.mark.parametrize("target", SOURCES)
def test_every_locked_package_has_a_hash(target):
    text = (HERE / target).read_text()
    packages = re.split(r"^(?=[a-z0-9])", text, flags=re.MULTILINE)[1:]
    assert len(packages) >= len(locked(target))
    assert all("--hash=sha256:" in package for package in packages)


def test_every_environment_has_its_lock():
    assert {LOCKS[venv] for venv, _ in SETS.values()} <= set(SOURCES)


def test_a_file_with_another_hash_is_not_installed(tmp_path):
    lock = (HERE / LOCKS[VENV]).read_text()
    wrong = tmp_path / "wrong.lock"
    wrong.write_text(re.sub(r"(--hash=sha256:)[0-9a-f]{4}", r"\g<1>0000", lock))
    pinned = tmp_path / "requirements.txt"
    pinned.write_text(f"click=={locked(LOCKS[VENV])['click']}\n")
    uv = str(VENV / "bin" / "uv")
    install = [uv, "pip", "install", "--no-cache", "--no-deps", "--target", str(tmp_path / "into")]

    def installed(name) -> subprocess.CompletedProcess[str]:
        argv = [*install, "--require-hashes", "-c", str(name), "-r", str(pinned)]
        return subprocess.run(argv, capture_output=True, text=True)

    refused = installed(wrong)
    assert refused.returncode != 0
    assert "Hash mismatch" in refused.stderr
    assert not (tmp_path / "into" / "click").exists()
    assert installed(HERE / LOCKS[VENV]).returncode == 0
