"""The gateway: HTTP on top of the folders, for programs and people. Optional, and never needed by the daemon."""
