"""The names that every docstring's examples may use without importing them."""

import pytest


@pytest.fixture(scope="session", autouse=True)
def names(doctest_namespace):
    # Imported here, since the hook that checks annotations must come before.
    import jax
    import jax.numpy as jnp
    import optax

    import optaxclip

    doctest_namespace.update(jax=jax, jnp=jnp, optax=optax, optaxclip=optaxclip)
