"""The first-block cache: a step whose first block answers nearly as before takes the other blocks' answer from before.

`used` puts diffusers' hooks onto the transformer for the rest of a section, and takes them off again: each section
begins with nothing remembered, and no job meets what another left. Faster, and of lower quality. What is remembered is
not saved, so a section that is stopped begins anew. Knows nothing of jobs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

from diffusers import FirstBlockCacheConfig

# By how much of its mean the first block's answer may differ for the others to be left out; diffusers' default.
THRESHOLD = 0.05
# The first step never has anything to reuse. And in its forward pass diffusers' group offloading takes hooks of its own
# off the blocks, by which those put on after them would be passed over.
FIRST_STEP = 1


@contextmanager
def used(transformer: Any, kind: Literal["none", "first_block"]) -> Iterator[None]:
    """Within, each forward pass of `transformer` in a `cache_context` may reuse those before it in the same context.

    Args:
        transformer: a HunyuanVideoFramepackTransformer3DModel that has made a forward pass before.
        kind: as in the request; "none" does nothing.
    """
    if kind == "none":
        yield
        return
    config: Any = FirstBlockCacheConfig
    transformer.enable_cache(config(threshold=THRESHOLD))
    try:
        yield
    finally:
        transformer.disable_cache()
