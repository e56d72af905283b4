"""The network as PyTorch's compiler makes it: batch norms and activations fused, fewer kernels.

Every input shape is compiled for itself. The compiler lays convolutions out channels-last only
where it knows the sides (pytorch pull request 99773), and there are ten of them at most in the
recipes. Only the network is compiled: the loss is a loop over the objects of a batch, whose number
changes from step to step.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import cast

import torch

from triscale.errors import UserError
from triscale.model.yolo import YOLOv3

_COMPILERS = ("torch._dynamo", "torch._inductor", "triton")  # where their errors are defined


def compiled(model: YOLOv3) -> YOLOv3:
    """`model` behind the compiler, with its very own parameters and buffers.

    It compiles when it is first called with a shape, and in the backward pass after that.
    """
    try:
        # fullgraph: what can't be compiled is an error, and so is more than the limit below.
        network = torch.compile(model, dynamic=False, fullgraph=True)
    except RuntimeError as error:  # a Python or a system that it doesn't know
        raise UserError(_told(error)) from error
    return cast("YOLOv3", network)


@contextmanager
def compiling(shapes: int) -> Generator[None]:
    """Room for so many shapes inside the block; UserError where the compiler fails."""
    config = torch.compiler.config
    limits = config.recompile_limit, config.accumulated_recompile_limit
    config.recompile_limit = limits[0] + shapes
    config.accumulated_recompile_limit = limits[1] + shapes
    try:
        yield
    except Exception as error:
        if not any(cls.__module__.startswith(_COMPILERS) for cls in type(error).__mro__):
            raise
        raise UserError(_told(error)) from error
    finally:
        config.recompile_limit, config.accumulated_recompile_limit = limits


def _told(error: Exception) -> str:
    said = " ".join(str(error).partition("\n\n")[0].split())  # what follows is for its developers
    needed = (
        "a compilation that was killed left half a file: remove PyTorch's cache "
        "($TORCHINDUCTOR_CACHE_DIR, by default torchinductor_USER in the temporary folder)"
        if "file too short" in said
        else "it needs a C++ compiler such as g++, and Triton for a GPU"
    )
    return (
        f"train.compile: PyTorch couldn't compile the network ({said[:300]}); {needed}, or use "
        "--set train.compile=false"
    )
