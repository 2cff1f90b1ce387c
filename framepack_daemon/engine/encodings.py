"""What texts and pictures were encoded to, kept for the next job that has the same ones.

The jobs of one drop share their text and their picture, and so do most drops of one evening. Kept in the host's memory,
a bounded number, the oldest go first. Belongs to one set of loaded weights; knows nothing of what it keeps.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable

import torch

CAPACITY = 64  # encodings; a text is 4 MB, a picture 2 MB at most

Tensors = tuple[torch.Tensor, ...]


class Encodings:
    """A bounded cache of tensors; `hits` and `misses` count its answers."""

    def __init__(self, capacity: int = CAPACITY) -> None:
        self._kept: OrderedDict[Hashable, Tensors] = OrderedDict()
        self._capacity = capacity
        self.hits = 0
        self.misses = 0

    def get(self, key: Hashable, device: torch.device, encode: Callable[[], Tensors]) -> Tensors:
        """The tensors of `key` on `device`: those kept, bit for bit, or else what `encode` gives."""
        if key in self._kept:
            self.hits += 1
        else:
            self.misses += 1
            self._kept[key] = tuple(tensor.cpu() for tensor in encode())
            if len(self._kept) > self._capacity:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return tuple(tensor.to(device) for tensor in self._kept[key])

    def clear(self) -> None:
        """Forget everything."""
        self._kept.clear()
