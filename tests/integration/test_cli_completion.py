"""bash, zsh and fish themselves complete commands, options, values, job ids and files."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tools import require

PATIENCE_SECONDS = 60.0
ESCAPES = re.compile(rb"\x1b\[[0-9;?]*[A-Za-z]|\x1b[=>]|[\x07\r]")  # of terminals, which mean no letter
PROMPT = "ready> "
COMPINIT = "autoload -U compinit; compinit -u -D"
# As the package has them: bash and fish read the file, zsh finds it by its name on a path.
SHELLS = {
    "bash": (["bash", "--norc", "--noprofile", "-i"], f"PS1='{PROMPT}'; source {{}}/bash"),
    "zsh": (["zsh", "-f", "-i"], f"unsetopt prompt_cr prompt_sp; PS1='{PROMPT}'; fpath=({{}} $fpath); {COMPINIT}"),
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, still: Path) -> dict[str, str]:
    """The environment of a shell: the command is on its path, the queue has a job, the folder a picture."""
    root = tmp_path_factory.mktemp("completion")
    command = Path(sys.executable).with_name("framepack-daemon")
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("FRAMEPACK_", "COMP_"))},
        "PATH": f"{command.parent}:{os.environ['PATH']}",
        "HOME": str(root),
        "TERM": "dumb",
        "FRAMEPACK_INBOX": str(root / "inbox"),
        "FRAMEPACK_OUTPUTS": str(root / "outputs"),
        "FRAMEPACK_WORK_DIR": str(root / "work"),
        "XDG_CACHE_HOME": str(root / "cache"),
        "WHERE": str(root),
    }
    for shell, name in (("bash", "bash"), ("zsh", "_framepack-daemon"), ("fish", "fish")):
        done = subprocess.run([command, "completion", shell], env=environment, capture_output=True, check=True)
        (root / name).write_bytes(done.stdout)
    words = [command, "submit", still, "--prompt", "waves"]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=True, cwd=root)
    environment["JOB"] = done.stdout.strip()
    (root / "holiday.png").write_bytes(still.read_bytes())
    return environment


def expected(world: dict[str, str]) -> dict[str, str]:
    """What a line that is begun so becomes by one TAB."""
    return {
        "interr": "interrupt",
        "--model framepack-i": "--model framepack-i2v",
        "cancel beach": f"cancel {world['JOB']}",
        "submit holi": "submit holiday.png",
    }


class Terminal:
    """A shell at a terminal."""

    def __init__(self, words: list[str], environment: dict[str, str]) -> None:
        self._end, other = pty.openpty()
        where, terminal = environment["WHERE"], {"stdin": other, "stdout": other, "stderr": other}
        self._process = subprocess.Popen(words, env=environment, cwd=where, start_new_session=True, **terminal)
        os.close(other)
        os.set_blocking(self._end, False)
        self._shown = b""

    def type(self, keys: str, shows: str) -> str:
        """Press keys and wait until this is shown; what else was there to see, where that does not come."""
        self._shown = b""
        os.write(self._end, keys.encode())
        end = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < end:
            try:
                self._shown += os.read(self._end, 4096)
            except BlockingIOError:
                time.sleep(0.02)
            if shows in (text := ESCAPES.sub(b"", self._shown).decode(errors="replace")):
                return shows
        return text

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._end)


@pytest.mark.parametrize("shell", SHELLS)
def test_a_shell_at_a_terminal_completes(shell: str, world: dict[str, str]) -> None:
    require(shell)
    words, setup = SHELLS[shell]
    terminal = Terminal(words, world)
    try:
        setup = setup.format(world["WHERE"])
        assert terminal.type(f"{setup}; echo se''t\n", f"set\n{PROMPT}") == f"set\n{PROMPT}"
        for begun, line in expected(world).items():
            assert terminal.type(f"framepack-daemon {begun}\t", line) == line
            assert terminal.type("\x15echo ne''xt\n", f"next\n{PROMPT}") == f"next\n{PROMPT}"
    finally:
        terminal.close()


def test_fish_completes(world: dict[str, str]) -> None:
    require("fish")
    for begun, line in expected(world).items():
        words = ["fish", "--no-config", "--command", f"source fish; complete -C 'framepack-daemon {begun}'"]
        done = subprocess.run(words, env=world, cwd=world["WHERE"], capture_output=True, text=True, check=True)
        assert [answer.split("\t")[0] for answer in done.stdout.splitlines()] == [line.split()[-1]]
