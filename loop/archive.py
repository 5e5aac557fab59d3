"""The archive of code that Flink's workers import.

Flink unpacks a zip and puts its root on the workers' import path. A folder goes on that path
itself, so its modules lose their package: ``loop/trainer.py`` would be imported as ``trainer``.
That is why one zip travels with the job.
"""

import sys
import sysconfig
import zipfile
from collections.abc import Iterable, Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

from settings import HERE

PACKAGES = ("loop", "learners")
MODULES = ("settings.py", "paths.py", "udf_model.py")


def write_archive(path: Path, names: Iterable[str]) -> Path:
    """Write the zip and return its path.

    ``names``: the user's own modules, importable here. A module of a package travels with the whole
    package. Any other module travels with the modules in its folder that are imported by now. What
    this machine's Python has installed stays behind, because the workers' Python has it, too.
    """
    files = {HERE / name: name for name in MODULES}
    for package in PACKAGES:
        files |= _package(HERE / package)
    for name in names:
        files |= _own(import_module(name))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file, name_in_zip in sorted(files.items()):
            archive.write(file, name_in_zip)
    return path


def _package(folder: Path) -> dict[Path, str]:
    return {file: str(file.relative_to(folder.parent)) for file in folder.rglob("*.py")}


def _own(module: ModuleType) -> dict[Path, str]:
    """Return {file: name in the archive} of a user's module and the modules that it needs."""
    file = Path(str(module.__file__)).resolve()
    top = module.__name__.partition(".")[0]
    if top in PACKAGES or _is_installed(file):
        return {}
    if top != module.__name__:
        folder = Path(next(iter(sys.modules[top].__path__)))
        return _package(folder.resolve())
    needed = [file, *_imported_from(file.parent)]
    return {path: path.name for path in needed}


def _imported_from(folder: Path) -> Iterator[Path]:
    """Yield the files of the top-level modules in ``folder`` that this process has imported."""
    for name, module in list(sys.modules.items()):
        if "." in name or name == "__main__":
            continue
        file = getattr(module, "__file__", None)
        if file and Path(file).resolve().parent == folder:
            yield Path(file).resolve()


def _is_installed(file: Path) -> bool:
    paths = sysconfig.get_paths()
    homes = [Path(paths[name]).resolve() for name in ("purelib", "platlib", "stdlib")]
    return any(file.is_relative_to(home) for home in homes)
