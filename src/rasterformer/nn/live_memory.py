"""How much memory tensors take while a function runs, counted on tensors that have none: those of the meta device.

`meta_copy` makes such a copy of a network, `peak_bytes` runs a function of it and counts. Nothing is computed, so a network
that fits in no memory takes no longer than a small one.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Module = TypeVar("Module", bound=nn.Module)


def peak_bytes(run: Callable[[], object]) -> int:
    """Returns the most bytes of tensors that live at once while `run` runs, without those that were made before.

    A tensor lives as long as anything refers to its memory: a view, autograd for the backward pass, a gradient. Views and
    results of in-place operations take nothing of their own. Without gradients activations end as the network goes on; with a
    backward pass they are kept for it, and gradients stay.

    Not counted: what an operation takes and gives back within itself, what the allocator rounds up or keeps, and numbers that
    `torch.tensor` reads from Python. Autocast does not reach the meta device: a network that is trained with it takes less
    than is counted, between half and all of it.

    Args:
        run: works on tensors of the meta device; on others it is counted just the same, but also computed. The backward pass
            must run in the thread that calls it, as it does on the meta device and on processors.
    """
    with _Following() as following:
        run()
    return following.most


def meta_copy(module: Module) -> Module:
    """Returns the module with parameters and buffers on the meta device: shapes, dtypes and sharing, but no numbers.

    The module stays as it is, and no memory is taken. Gradients are not copied. A tensor that is neither a parameter nor a
    buffer is copied with its numbers.

    Args:
        module: on any device.
    """
    copies: dict[int, object] = {}  # of what has the id; deepcopy takes from here what it would copy
    for weight in module.parameters():
        copies[id(weight)] = nn.Parameter(torch.empty_like(weight, device="meta"), requires_grad=weight.requires_grad)
    for buffer in module.buffers():
        copies[id(buffer)] = torch.empty_like(buffer, device="meta")
    return copy.deepcopy(module, copies)


class _Following(TorchDispatchMode):
    """Adds up the bytes of what operations make, each from when it is made to when nothing refers to its memory."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = self.most = 0
        self.ends: list[weakref.ref[torch.UntypedStorage]] = []  # only while they are kept do they call back

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: object,
        args: Sequence[object] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        taken = _storages((args, kwargs))
        for address, storage in _storages(made).items():
            if address not in taken:  # neither a view of something nor that thing itself
                self._follow(storage)
        self.most = max(self.most, self.live)
        return made

    def _follow(self, storage: torch.UntypedStorage) -> None:
        nbytes = storage.nbytes()

        def end(_: object) -> None:
            self.live -= nbytes

        self.live += nbytes
        self.ends.append(weakref.ref(storage, end))


def _storages(tree: object) -> dict[int, torch.UntypedStorage]:
    """Memory of all tensors in nested containers, by its address among those that live."""
    storages = [leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
    return {storage._cdata: storage for storage in storages}
