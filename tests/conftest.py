"""Four fake devices, and no silent promotion of ranks or dtypes."""

import os

os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"
)

# Workers as many as cores are enough; with threads of their own, they would only wait
# for each other.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import jax
import pytest
from hypothesis import settings

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")

settings.register_profile("laws", derandomize=True, deadline=None, max_examples=50)
settings.load_profile("laws")


@pytest.fixture(scope="module", autouse=True)
def _caches_do_not_pile_up():
    yield
    jax.clear_caches()
