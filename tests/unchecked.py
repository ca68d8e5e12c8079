"""What a user meets, whose arguments no hook checks before the library does."""

from contextlib import contextmanager

import jaxtyping


@contextmanager
def unchecked():
    """Without the check of annotations, so that the library's own sentence is heard."""
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)
