"""Eight fake devices, full precision, no silent promotion, and a share of programs.

Most of the time goes into compiling. What one worker compiled the other finds in
pytest's cache, and so does the next run; and each worker takes whole strategies and
whole files, whose tests run the same programs.
"""

import gc
import os
import re
import signal

os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)

# Workers as many as cores are enough; with threads of their own, they would only wait
# for each other.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import jax
import jaxtyping
from hypothesis import settings
from xdist.scheduler import LoadScopeScheduling

# Traces are many small objects that live on: to look for garbage among them takes
# longer than it frees memory.
gc.set_threshold(100_000, 50, 1000)

# Ctrl-C ends the tests, and not as the examples that they import would have it.
signal.signal(signal.SIGINT, lambda *given: signal.default_int_handler(*given))

# On a GPU, matrix products round to 10 bits by default, the references' too.
jax.config.update("jax_default_matmul_precision", "highest")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")

settings.register_profile("laws", derandomize=True, deadline=None, max_examples=50)
settings.load_profile("laws")


def pytest_configure(config):
    """Keep every program, small ones too, for all workers and what they start."""
    if not hasattr(config, "cache"):  # pytest may run without one
        return
    for option, value in {
        "jax_compilation_cache_dir": str(config.cache.mkdir("jax")),
        "jax_persistent_cache_min_compile_time_secs": 0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }.items():
        jax.config.update(option, value)
        os.environ[option.upper()] = str(value)


# Those that give a strategy all kinds of leaves.
CHECKED_ROWS = ("test_edges_dtypes", "test_edges_leaves")


def pytest_runtest_setup(item):
    """Check annotations, but in the matrix only in some rows of some strategies.

    The others run the same functions on the same arrays, and checking them took a fifth
    of the matrix's time.
    """
    from zoo import ONE_OF_EACH_SCOPE  # not above, where no hook checks annotations yet

    strategy = strategy_of(item)
    in_matrix = strategy is not None
    checked = in_matrix and strategy.name in ONE_OF_EACH_SCOPE
    checked = checked and item.path.stem in CHECKED_ROWS
    jaxtyping.config.update("jaxtyping_disable", in_matrix and not checked)


def pytest_report_header():
    return f"jax: {jax.__version__}"


def strategy_of(item):
    """The strategy that a row of the matrix is asked of, if the test is such a row."""
    called = getattr(item, "callspec", None)
    return called.params.get("strategy") if called else None


def group_of(item):
    """The strategy that a row of the matrix is asked of, or else the test's file."""
    strategy = strategy_of(item)
    return strategy.name if strategy else item.path.name


class ByProgram(LoadScopeScheduling):
    """Gives each worker whole strategies of the matrix, and whole files beside it.

    The marks of xdist's own groups had no effect with xdist 3.8 and pytest 9.2.
    """

    def _split_scope(self, nodeid):
        file, _, test = nodeid.partition("::")
        if "test_edges_" in file or "test_laws" in file:
            return re.split(r"[\[\]-]", test)[1] if "[" in test else file
        return file


def pytest_xdist_make_scheduler(config, log):
    return ByProgram(config, log)


def pytest_collection_modifyitems(items):
    """Keep together in time what runs the same programs."""
    items.sort(key=group_of)
