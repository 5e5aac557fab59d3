"""Install what the forecast needs: the models' packages beside the project's, Airflow in an environment of its own.

    python -m forecast.install [--airflow]

Nothing is installed twice.
"""

import hashlib
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
LOCAL = HERE.parent / ".local"
AIRFLOW_PYTHON = LOCAL / "venv-airflow" / "bin" / "python"
UV = Path(sys.executable).parent / "uv"


def install(python: Path, requirements: list[Path]) -> None:
    """Bring an environment to what the requirements files pin; exits with a sentence where that fails."""
    wanted = hashlib.sha256(b"".join(path.read_bytes() for path in requirements)).hexdigest()
    stamp = python.parent.parent / f"{requirements[-1].parent.name}-{requirements[-1].name}.sha256"
    if stamp.exists() and stamp.read_text() == wanted:
        return
    print(f"  packages of {requirements[-1].relative_to(HERE.parent)}", flush=True)
    files = [argument for path in requirements for argument in ("-r", str(path))]
    run([str(UV), "pip", "install", "--quiet", "--python", str(python), *files])
    stamp.write_text(wanted)


def run(argv: list[str]) -> None:
    """Run one step; exits with a sentence where it fails."""
    if subprocess.run(argv, check=False).returncode:
        sys.exit(f"The step '{' '.join(argv[:3])} …' failed; the first run needs a network.")


def main() -> None:
    """Install the models' packages and, where asked for, Airflow."""
    install(Path(sys.executable), [HERE.parent / "requirements.txt", HERE / "requirements.txt"])
    if "--airflow" in sys.argv[1:]:
        if not AIRFLOW_PYTHON.exists():
            run([str(UV), "venv", "--quiet", "--python", sys.executable, str(AIRFLOW_PYTHON.parent.parent)])
        install(AIRFLOW_PYTHON, [HERE / "requirements-airflow.txt"])


if __name__ == "__main__":
    main()
