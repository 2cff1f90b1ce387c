"""`make vendor`: fetch the page's files of others again from npm, and compare them with the sums in `vendor.toml`.

Who takes a new version changes its line there and runs this: it writes the new files and says the sums that differ, so
that they can be written down after a look at the change. Ends with 1 as long as a sum differs. Needs npm.
"""

import hashlib
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "framepack_daemon" / "web" / "static" / "vendor"


def fetch(name: str, version: str, folder: Path) -> tarfile.TarFile:
    """The package as npm has it, opened."""
    words = ["npm", "pack", "--silent", "--pack-destination", str(folder), f"{name}@{version}"]
    said = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout
    return tarfile.open(folder / said.split()[-1])


def main() -> int:
    """Write every file; 1 when one is not what its sum says."""
    different = 0
    for package in tomllib.loads((FOLDER / "vendor.toml").read_text())["package"]:
        with tempfile.TemporaryDirectory() as folder:
            archive = fetch(package["name"], package["version"], Path(folder))
            for name, told in package["files"].items():
                member = archive.extractfile(f"package/{told['from']}")
                if member is None:
                    raise FileNotFoundError(told["from"])
                content = member.read()
                (FOLDER / name).write_bytes(content)
                found = hashlib.sha256(content).hexdigest()
                different += found != told["sha256"]
                word = "same" if found == told["sha256"] else f"DIFFERENT: {found}"
                print(f"{package['name']} {package['version']} {name}: {word}")  # noqa: T201 its result
    return min(different, 1)


if __name__ == "__main__":
    sys.exit(main())
