"""The project's packages: their locks, licences and known vulnerabilities."""

import json
import subprocess
import sys

import click

from local.bootstrap import AUDIT_VENV, HERE, LOCAL, LOCKS, PYTHON, SETS, UV, VENV
from settings import UserError, one_line

# Each lock and what it is made from.
SOURCES = {
    lock: [file for venv, file in SETS.values() if venv == environment]
    for environment, lock in LOCKS.items()
} | {UV: ["requirements/uv.in"]}
SBOM = LOCAL / "sbom.json"


@click.group()
def main() -> None:
    """Lock the packages; list their licences and known vulnerabilities; write an SBOM."""


@main.command()
@one_line()
def lock() -> None:
    """Write requirements/*.lock: every package with its version and the hashes of its files.

    A locked version stays unless a requirements file asks for another one.
    """
    for target, sources in SOURCES.items():
        options = ["--universal", "--python-version", "3.11", "--generate-hashes", "--no-annotate"]
        named = ["--custom-compile-command", "make lock", "-o", target]
        run([VENV / "bin" / "uv", "pip", "compile", "--quiet", *options, *named, *sources])
        click.echo(f"{target}: {len(locked(target))} packages")


@main.command()
@one_line()
def audit() -> None:
    """Look up every locked package in a database of known vulnerabilities; exit 1 on a find."""
    found = 0
    for target in SOURCES:
        options = ["--disable-pip", "--require-hashes", "--progress-spinner", "off"]
        tool = AUDIT_VENV / "bin" / "pip-audit"
        answer = run([tool, "-r", target, "-f", "json", *options], check=False)
        packages = json.loads(answer or '{"dependencies": []}')["dependencies"]
        checked = [package for package in packages if "skip_reason" not in package]
        for package in checked:
            for known in package["vulns"]:
                found += 1
                fixed = ", ".join(known["fix_versions"]) or "no version"
                click.echo(
                    f"{package['name']} {package['version']}: {known['id']}, fixed in {fixed}"
                )
        click.echo(f"{target}: {len(checked)} of {len(locked(target))} packages looked up")
        if not checked:
            click.echo(
                "  The database can't be reached from here, so nothing is known about these."
            )
    sys.exit(1 if found else 0)


@main.command()
@one_line()
def licences() -> None:
    """Print the licence of every package in the project's environment."""
    tool = AUDIT_VENV / "bin" / "pip-licenses"
    click.echo(run([tool, "--python", PYTHON, "--order", "license", "--format", "plain-vertical"]))


@main.command()
@one_line()
def sbom() -> None:
    """Write .local/sbom.json: the project's environment as a CycloneDX bill of materials."""
    tool = AUDIT_VENV / "bin" / "cyclonedx-py"
    run([tool, "environment", PYTHON, "--output-reproducible", "--output-file", SBOM])
    components = json.loads(SBOM.read_text())["components"]
    click.echo(f"{SBOM}: {len(components)} packages")


def locked(target: str) -> dict[str, str]:
    """Return {package: version} of a lock."""
    lines = (HERE / target).read_text().splitlines()
    pins = [line.split(" ")[0] for line in lines if "==" in line and line[0].isalnum()]
    return dict(pin.split("==") for pin in pins)


def run(argv: list, check: bool = True) -> str:
    """Return what a command prints; raises ``UserError`` with its errors where it fails."""
    done = subprocess.run(
        [str(part) for part in argv], cwd=HERE, capture_output=True, text=True, check=False
    )
    if check and done.returncode:
        raise UserError(f"{argv[0]} failed: {done.stderr.strip()}")
    return done.stdout


if __name__ == "__main__":
    main()
