"""The folders that are the queue: intake, states, moves, status files. Never imports torch."""
