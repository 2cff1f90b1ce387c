"""Processes that render: one child per device and the pool that looks after them."""
