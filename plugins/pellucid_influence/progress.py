"""How far a long computation has come, kept now and then, so that a run that was interrupted goes on from there."""

from __future__ import annotations

import time
from collections.abc import Mapping

import torch
from torch import Tensor

from pellucid import Blocks

EVERY = 10.0
"""The least seconds between two writings."""
SHARE = 20
"""Of how many seconds writing may take one."""


class Progress:
    """Tensors that a computation changes in place step by step, and how many steps are done.

    What was kept of them before is put into them. It is written anew, in the place of what was before, at most every
    ten seconds and so that writing takes at most a twentieth of the time, and when the computation is finished.

    Args:
        blocks: where they are kept; an empty one keeps nothing.
        key: the digest of all that they depend on.
        state: the tensors, by name, as they are before the first step.

    Attributes:
        done: how many steps are.
    """

    def __init__(self, blocks: Blocks, key: str, state: Mapping[str, Tensor]) -> None:
        self.done = 0
        self._blocks, self._key, self._state = blocks, key, state
        self._due = time.monotonic() + EVERY
        if (known := blocks.found(key)) is not None:
            self.done = int(known["done"])
            for name, tensor in state.items():
                tensor.copy_(known[name])

    def reached(self, done: int, *, finished: bool = False) -> None:
        """Notes that so many steps are done, which is written where it is due or all is finished."""
        self.done = done
        begun = time.monotonic()
        if self._blocks and (finished or begun >= self._due):
            self._blocks.keep(self._key, {**self._state, "done": torch.tensor(done)})
            self._due = time.monotonic() + max(EVERY, SHARE * (time.monotonic() - begun))
