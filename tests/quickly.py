"""Programs that run once or a few times, so that compiling is all that they cost."""

from collections.abc import Callable
from typing import Any

import jax

# XLA's own passes stay as they are; LLVM optimizes nothing.
QUICKLY = {
    "xla_backend_optimization_level": 0,
    "xla_cpu_parallel_codegen_split_count": 1,
    "xla_llvm_disable_expensive_passes": True,
}


def jit_quickly(function: Callable[..., Any]) -> Any:
    """A jitted function that is compiled in about half of the time."""
    return jax.jit(function, compiler_options=QUICKLY)
