"""The archive of code that Flink's workers import.

Flink unpacks a zip and puts its root on the workers' path. Of a folder it puts the folder itself there, so
``loop/`` would have to be imported as ``trainer``; that is why one zip travels with the job.
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

    ``names``: the user's own modules, importable here. A module travels with its package, or with the
    modules beside it that it has imported; what is installed on this machine's Python stays behind,
    as the workers' Python has it, too.
    """
    files = {HERE / name: name for name in MODULES}
    for package in PACKAGES:
        files |= _package(HERE / package)
    for name in names:
        files |= _own(import_module(name))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file, place in sorted(files.items()):
            archive.write(file, place)
    return path


def _package(folder: Path) -> dict[Path, str]:
    return {file: str(file.relative_to(folder.parent)) for file in folder.rglob("*.py")}


def _own(module: ModuleType) -> dict[Path, str]:
    """Return {file: place in the archive} of a user's module and of what it needs beside it."""
    file = Path(str(module.__file__)).resolve()
    top = module.__name__.partition(".")[0]
    if top in PACKAGES or _is_installed(file):
        return {}
    if top != module.__name__:
        return _package(Path(next(iter(sys.modules[top].__path__))).resolve())
    return {beside: beside.name for beside in (file, *_imported_from(file.parent))}


def _imported_from(folder: Path) -> Iterator[Path]:
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__file__", None)
        if (
            file
            and "." not in name
            and name != "__main__"
            and Path(file).resolve().parent == folder
        ):
            yield Path(file).resolve()


def _is_installed(file: Path) -> bool:
    paths = sysconfig.get_paths()
    homes = (Path(paths[name]).resolve() for name in ("purelib", "platlib", "stdlib"))
    return any(file.is_relative_to(home) for home in homes)
