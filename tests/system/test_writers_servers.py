"""Files come through servers of this machine, by Samba, OpenSSH and FTP, in place and by renames: once each."""

from __future__ import annotations

import os
import pwd
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from lab import Lab
from programs import free_port, server
from tools import require
from writers import LONG, Stock, at_work, call, delivered, jobs_of

from framepack_daemon.job import State

SMBD, SSHD, VSFTPD = "/usr/sbin/smbd", "/usr/sbin/sshd", "/usr/sbin/vsftpd"
USER = pwd.getpwuid(os.getuid()).pw_name

pytestmark = LONG


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory, models_dir: Path, still: Path) -> Iterator[Lab]:
    with at_work(Lab(tmp_path_factory.mktemp("servers") / "lab", models_dir, still)) as lab:
        yield lab


@contextmanager
def listening(lab: Lab, port: int, *words: object, log: Path) -> Iterator[None]:
    """A server that takes calls."""

    def answers() -> bool:
        with socket.socket() as line:
            return line.connect_ex(("127.0.0.1", port)) == 0

    with server(*words, log=log) as process:
        lab.until(lambda: answers() or process.poll() is not None, f"{words[0]} to listen")
        assert process.poll() is None, log.read_text()
        yield


@pytest.fixture(scope="module")
def share(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[object]]:
    """The inbox as a share, and the outputs as another: how smbclient is called for the first."""
    require(SMBD, "smbclient")
    folder, port = tmp_path_factory.mktemp("smbd"), free_port()
    places = ("private dir", "lock directory", "state directory", "cache directory", "pid directory", "ncalrpc dir")
    config = folder / "smb.conf"
    config.write_text(
        "\n".join(
            [
                "[global]",
                *(f"{place} = {folder}" for place in places),
                f"smb ports = {port}",
                "interfaces = 127.0.0.1",
                "bind interfaces only = yes",
                "disable netbios = yes",
                "server role = standalone server",
                "map to guest = bad user",
                "load printers = no",
                "disable spoolss = yes",
                f"force user = {USER}",
                "guest ok = yes",
                "[inbox]",
                f"path = {lab.inbox}",
                "read only = no",
                "veto files = /.framepack-daemon/",
                "[outputs]",
                f"path = {lab.outputs}",
                "read only = yes",
                "veto files = /.*.tmp/",
            ]
        )
    )
    words = [SMBD, "--foreground", "--no-process-group", "--debug-stdout", "--configfile", config]
    with listening(lab, port, *words, log=folder / "log"):
        yield ["smbclient", "//127.0.0.1/inbox", "--port", port, "--no-pass", "--configfile", config, "--command"]


@pytest.fixture(scope="module")
def shell(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[object]]:
    """A host to copy to: the options with which ssh's clients reach it."""
    require(SSHD, "ssh-keygen", "sftp", "scp")
    folder, port = tmp_path_factory.mktemp("sshd"), free_port()
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # without it sshd does not start; the system makes it for its own
    for key in ("host", "user"):
        call("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / key)
    config = folder / "sshd_config"
    config.write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder / 'host'}\nPidFile none\nStrictModes no\n"
        f"AuthorizedKeysFile {folder / 'user.pub'}\nPasswordAuthentication no\nPermitRootLogin yes\n"
        "Subsystem sftp internal-sftp\n"
    )
    known = folder / "known_hosts"
    known.write_text(f"[127.0.0.1]:{port} {(folder / 'host.pub').read_text()}")
    with listening(lab, port, SSHD, "-D", "-e", "-f", config, log=folder / "log"):
        yield ["-q", "-P", port, "-i", folder / "user", "-o", f"UserKnownHostsFile={known}", "-o", "BatchMode=yes"]


@pytest.fixture(scope="module")
def ftp(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An FTP server that shows this machine's folders as they are: its address."""
    require(VSFTPD, "lftp")
    folder, port = tmp_path_factory.mktemp("vsftpd"), free_port()
    (folder / "empty").mkdir()
    allowed = ["listen", "run_as_launching_user", "anonymous_enable", "no_anon_password", "write_enable"]
    allowed += ["anon_upload_enable", "anon_other_write_enable", "allow_writeable_chroot"]
    config = folder / "vsftpd.conf"
    config.write_text(
        "".join(f"{name}=YES\n" for name in allowed)
        + f"background=NO\nseccomp_sandbox=NO\nlisten_address=127.0.0.1\nlisten_port={port}\n"
        f"anon_root={lab.inbox}\nanon_world_readable_only=NO\nsecure_chroot_dir={folder / 'empty'}\n"
        f"anon_umask=022\nxferlog_enable=NO\nvsftpd_log_file={folder / 'log'}\nuse_localtime=YES\n"
    )
    config.chmod(0o600)
    with listening(lab, port, VSFTPD, config, log=folder / "log"):
        yield f"ftp://127.0.0.1:{port}"


def test_samba_put(lab: Lab, share: list[object], tmp_path: Path) -> None:
    stock = Stock(tmp_path / "stock", "put-")
    for _ in range(2):
        call(*share, f"lcd {stock.folder}; prompt off; mput *")
        delivered(lab, stock)
    assert len(jobs_of(lab, stock)) == len(stock.stems)
    _overwrite(lab, stock, lambda: call(*share, f"lcd {stock.folder}; prompt off; mput *"))


def test_samba_get(lab: Lab, share: list[object], tmp_path: Path) -> None:
    (name,) = [f"{job}.mp4" for job in lab.jobs(State.DONE, "first")]
    words = [str(word).replace("/inbox", "/outputs") for word in share]
    call(*words, f"lcd {tmp_path}; get {name}")
    assert (tmp_path / name).read_bytes() == (lab.outputs / name).read_bytes()
    assert ".framepack-daemon" not in call(*share, "ls")


def test_samba_rename(lab: Lab, share: list[object], tmp_path: Path) -> None:
    stock = Stock(tmp_path / "stock", "renamed-")
    names = [path.name for path in stock.files()]
    orders = [f"put {name} {name}.part; rename {name}.part {name}" for name in names]
    call(*share, "; ".join([f"lcd {stock.folder}", *orders]))
    delivered(lab, stock)


@pytest.mark.parametrize("way", ["sftp", "legacy"])
def test_scp(lab: Lab, shell: list[object], tmp_path: Path, way: str) -> None:
    stock = Stock(tmp_path / "stock", f"scp-{way}-")
    command = ["scp", *(["-O"] if way == "legacy" else []), *shell]
    for _ in range(2):
        call(*command, *stock.files(), f"{USER}@127.0.0.1:{lab.inbox}/")
        delivered(lab, stock)
    assert len(jobs_of(lab, stock)) == len(stock.stems)
    _overwrite(lab, stock, lambda: call(*command, *stock.files(), f"{USER}@127.0.0.1:{lab.inbox}/"))


def test_sftp(lab: Lab, shell: list[object], tmp_path: Path) -> None:
    stock = Stock(tmp_path / "stock", "sftp-")
    batch = tmp_path / "batch"
    hidden = [f"put {path} {path.name}.part\nrename {path.name}.part {path.name}\n" for path in stock.files()]
    plain = [f"put {path} {path.name}\n" for path in stock.files()]
    for orders in (plain, hidden):
        batch.write_text("".join(orders))
        call("sftp", "-b", batch, *shell, f"{USER}@127.0.0.1:{lab.inbox}")
        delivered(lab, stock)
    assert len(jobs_of(lab, stock)) == len(stock.stems)


@pytest.mark.parametrize("temporary", ["no", "yes"])
def test_ftp(lab: Lab, ftp: str, tmp_path: Path, temporary: str) -> None:
    stock = Stock(tmp_path / "stock", f"ftp-{temporary}-")
    settings = f"set net:max-retries 2; set xfer:use-temp-file {temporary}"

    def push() -> None:
        mirror = f"mirror --reverse --no-perms {stock.folder} {lab.inbox}"
        call("lftp", "--norc", "-c", f"{settings}; open {ftp}; {mirror}")

    for _ in range(2):
        push()
        delivered(lab, stock)
    assert len(jobs_of(lab, stock)) == len(stock.stems)
    _overwrite(lab, stock, push)


def _overwrite(lab: Lab, stock: Stock, push: object) -> None:
    """Push everything once more with some of it changed, twice in a row: over what was taken, and what was not yet."""
    before = len(jobs_of(lab, stock))
    changed = stock.renew(stock.stems[::3])
    push()
    push()
    delivered(lab, stock)
    assert len(jobs_of(lab, stock)) == before + len(changed)
