"""Names that sync tools, copy programs, editors and systems leave in a folder: one line each, `whose: name`.

`{}` stands for a picture's and for a sidecar's name in turn.
"""

from __future__ import annotations


def _lines(text: str) -> list[tuple[str, str]]:
    """(whose, name) of each line, `{}` filled in."""
    found = [tuple(line.split(": ", 1)) for line in text.strip("\n").split("\n")]
    dropped = ("beach.jpg", "beach.json")
    return [(whose, name.replace("{}", each)) for whose, name in found for each in dropped[: 1 + ("{}" in name)]]


# Files that are never part of a drop.
FILES = _lines("""
anybody: .hidden.json
anybody: .{}
anybody: README.md
anybody: beach
anybody: .json
anybody: .jpg
Syncthing: .syncthing.{}.tmp
Syncthing: ~syncthing~{}.tmp
Syncthing: .stignore
rsync: .{}.Ab3dEf
rclone: {}.1a2b3c4d.partial
ownCloud: .{}.~1a2b
ownCloud: ._sync_1234.db
ownCloud: ._sync_1234.db-wal
ownCloud: .sync_1234.db
ownCloud: .sync_1234.db-shm
ownCloud: .csync_journal.db
ownCloud: .csync_journal.db-wal
ownCloud: .owncloudsync.log
ownCloud: .owncloudsync.log.1
Nextcloud: {}.ocTransferId1234.part
Unison: .unison.{}.1a2b.unison.tmp
Unison: .bak.0.{}
lftp: .in.{}
lftp: {}.lftp-pget-status
ProFTPD: .in.{}.
WinSCP: {}.filepart
Resilio: {}.!sync
Resilio: beach.bts
Resilio: {}.bts
Dropbox: .dropbox
Dropbox: .dropbox.attr
macOS: .DS_Store
macOS: ._{}
macOS: Icon\r
Windows: Thumbs.db
Windows: thumbs.DB
Windows: desktop.ini
Windows: Desktop.ini
Office: ~${}
Office: ~beach.tmp
Office: ~{}.tmp
LibreOffice: .~lock.{}#
LibreOffice: .~lock.beach.txt#
Firefox: {}.part
Firefox: beach.mp4.part
Chrome: {}.crdownload
Safari: {}.download
vim: .{}.swp
vim: .{}.swo
vim: {}~
vim: 4913
an editor: beach.jpg.swp
Emacs: .#{}
GNOME: .goutputstream-ABCDEF
NFS: .nfs000000000123
FUSE: .fuse_hidden0001
the daemon: beach-1f3a9c02d4e5.status.json
the daemon: beach-1F3A9C02D4E5.STATUS.JSON
the daemon: beach-1f3a9c02d4e5.poster.jpg
the daemon: beach-1f3a9c02d4e5.preview.mp4
the daemon: beach-1f3a9c02d4e5.partial.mp4
the daemon: beach-1f3a9c02d4e5.step.jpg
the daemon: beach-1f3a9c02d4e5.webp
the daemon: beach-1f3a9c02d4e5.gif
the daemon: .beach-1f3a9c02d4e5.mp4.0a1b2c3d.tmp
""")

# Files of a folder's preset: they give values, and are never a drop themselves.
PRESETS = ("defaults.json", "Defaults.JSON")

# Copies of which a tool could not tell which one is right: a drop by their extension, to be refused visibly.
CONFLICTS = _lines("""
Syncthing: beach.sync-conflict-20261124-081500-ABCDEFG.jpg
Syncthing: beach.sync-conflict-20261124-081500-ABCDEFG.json
Nextcloud: beach (conflicted copy 2026-11-24 081500).jpg
Nextcloud: beach (conflicted copy 2026-11-24 081500).json
ownCloud: beach_conflict-20261124-081500.jpg
ownCloud: beach_conflict-20261124-081500.json
Dropbox: beach (Anna's conflicted copy 2026-11-24).jpg
Dropbox: beach (Anna's conflicted copy 2026-11-24).json
rclone: beach.conflict1.jpg
rclone: beach.conflict1.json
""")
# rclone's bisync can also put its mark behind the extension, which leaves nothing that looks like a drop.
FILES += _lines("""
rclone: {}.conflict1
rclone: {}.conflict2
""")

# Folders in which nothing is ever looked for.
FOLDERS = _lines("""
anybody: .hidden
Syncthing: .stfolder
Syncthing: .stversions
rsync: .~tmp~
rsync: .rsync-partial
Resilio: .sync
Resilio: .SyncPart
Resilio: .SyncTemp
Dropbox: .dropbox.cache
Google Drive: .tmp.drivedownload
Google Drive: .tmp.driveupload
Synology: @eaDir
Synology: @SynoEAStream
Synology: @SynoResource
Synology: @tmp
Synology: #recycle
Synology: #snapshot
QNAP: .@__thumb
QNAP: @Recycle
QNAP: @Recently-Snapshot
macOS: .Trashes
macOS: .Spotlight-V100
macOS: .fseventsd
macOS: .TemporaryItems
macOS: __MACOSX
Windows: $RECYCLE.BIN
Windows: System Volume Information
the kernel: lost+found
the desktop: .Trash-1000
the desktop: .Trash-0
the daemon: .framepack-daemon
the daemon: queue
the daemon: outputs
the daemon: pending
the daemon: Processing
the daemon: done
the daemon: FAILED
""")
