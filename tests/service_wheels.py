"""A folder of wheels for an installation without network, made in two seconds.

The project's own wheel is a real one. Those of its dependencies hold the name and version of what is installed here,
and together one path to it: pip resolves and installs them like any others, and what is imported is the real thing.
The real wheels would take a minute to unpack, torch most of it, and a gigabyte of a tmpfs.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent
_BUILT_FROM = ("framepack_daemon", "pyproject.toml", "README.md", "LICENSE")
_PATH_FILE = "installed_here.pth"


SITE = Path(sysconfig.get_path("purelib"))


def make(folder: Path, scratch: Path, *, version: str | None = None, site: Path = SITE) -> None:
    """Fill `folder` with wheels of the project, which says it is `version`, and of what it depends on.

    `site` is the path at which this machine's packages are found where the wheels are installed.
    """
    _copy_sources(scratch, version)
    folder.mkdir()
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", folder, scratch], check=True)
    for line in tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]["dependencies"]:
        name = re.split(r"[ ;<>=!~\[]", line, maxsplit=1)[0]
        _write_pointer(folder, name, metadata.version(name), site)


def _copy_sources(scratch: Path, version: str | None) -> None:
    """Only what the wheel is made of: building writes beside it."""
    scratch.mkdir()
    for name in _BUILT_FROM:
        source = CHECKOUT / name
        if source.is_dir():
            shutil.copytree(source, scratch / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, scratch / name)
    if version:
        package = scratch / "framepack_daemon/__init__.py"
        package.write_text(re.sub(r'__version__ = ".*"', f'__version__ = "{version}"', package.read_text()))


def _write_pointer(folder: Path, name: str, version: str, site: Path) -> None:
    name = name.replace("-", "_")
    about = f"{name}-{version}.dist-info"
    files = {
        # Every one of them brings the path, under a name of its own.
        f"{name}.{_PATH_FILE}": f"{site}\n",
        f"{about}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{about}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files[f"{about}/RECORD"] = "".join(f"{path},,\n" for path in (*files, f"{about}/RECORD"))
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        for path, text in files.items():
            wheel.writestr(path, text)
