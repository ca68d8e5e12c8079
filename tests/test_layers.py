"""The house itself: imports go down, the face is complete, importing is light."""

import ast
import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest

import optaxclip
from optaxclip import norms, responses, scopes, thresholds

PACKAGE = Path(optaxclip.__file__).parent

# From the ground up. Whoever builds a room says here on which floor it lies; a room
# that is a folder is one room.
FLOORS = [
    {"paths", "sentences"},
    {"arguments", "exports", "jaxprs", "mesh", "numbers", "platforms", "roles"}
    | {"updates"},
    {"averages", "leaves"},
    {"axis_names", "groups"},
    {"norms", "scopes"},
    {"thresholds", "responses", "reading", "reports"},
    {"clipper", "tuning"},
    {"plotting", "spectral", "strategies", "trees", "watch"},
    {"cotangents", "feedback", "guards", "per_example", "weights"},
    {"attention"},
    {"__init__"},
]
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
FILES = sorted(PACKAGE.rglob("*.py"))


def room_of(file):
    """The name right below the package."""
    return file.relative_to(PACKAGE).with_suffix("").parts[0]


def imports(file):
    """The modules of the package that a file imports, by their dotted names."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: a relative import hides where it goes"
            if node.module == "optaxclip":
                yield from (f"optaxclip.{alias.name}" for alias in node.names)
            else:
                yield str(node.module)


def rooms_needed(file):
    """The rooms of the package that a file imports from."""
    named = [name.split(".") for name in imports(file)]
    return {parts[1] for parts in named if parts[0] == "optaxclip"}


def test_imports_go_down_the_floors_only():
    unknown = {str(file) for file in FILES if room_of(file) not in FLOOR_OF}
    assert not unknown, "say in FLOORS on which floor these lie"
    up = {}
    for file in FILES:
        here = room_of(file)
        below = {room for room in FLOOR_OF if FLOOR_OF[room] < FLOOR_OF[here]}
        if rooms := rooms_needed(file) - {here} - below:
            up[str(file)] = rooms
    assert not up


def test_a_module_is_no_longer_than_one_idea_takes():
    lines = {str(file): len(file.read_text().splitlines()) for file in FILES}
    assert not {file: count for file, count in lines.items() if count > 250}


@pytest.mark.parametrize("step", ["Observation", "empty_report", "next_report"])
def test_the_flow_is_written_in_one_place(step):
    callers = {
        room_of(file)
        for file in FILES
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Call) and getattr(node.func, "id", None) == step
    }
    assert callers == {"clipper"}


def public_names(file):
    """The names that a module defines for others."""
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name
        for target in getattr(node, "targets", [getattr(node, "target", None)]):
            if isinstance(target, ast.Name):
                yield target.id


def test_no_two_modules_define_one_public_name():
    homes: dict[str, set[Path]] = {}
    for file in FILES:
        for name in public_names(file):
            if not name.startswith("_"):
                homes.setdefault(name, set()).add(file)
    several = {name: files for name, files in homes.items() if len(files) > 1}
    assert not several


def test_all_is_sorted_and_names_what_the_package_imports_for_its_users():
    face = ast.parse((PACKAGE / "__init__.py").read_text())
    imported = [
        alias.name
        for node in face.body
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("optaxclip")
        for alias in node.names
    ]
    assert optaxclip.__all__ == sorted(imported)
    assert all(hasattr(optaxclip, name) for name in optaxclip.__all__)


def written_strategies():
    """Every public function in the files of strategies."""
    for file in sorted((PACKAGE / "strategies").glob("*.py")):
        for node in ast.parse(file.read_text()).body:
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                yield node.name


def test_every_strategy_that_is_written_is_shown():
    written = sorted(written_strategies())
    assert written
    assert set(written) <= set(optaxclip.__all__)


@pytest.mark.parametrize("name", sorted(written_strategies()))
def test_a_strategy_tells_all_that_a_user_needs(name):
    strategy = getattr(optaxclip, name)
    told = inspect.getdoc(strategy) or ""
    for section in ("Args", "Returns", "Raises", "Examples"):
        assert f"\n{section}:\n" in told, section
    for argument in inspect.signature(strategy).parameters:
        assert f"\n  {argument}: " in told, argument
    assert ">>> " in told


@pytest.mark.parametrize("module", [optaxclip, norms, scopes, thresholds, responses])
def test_every_public_function_and_class_has_a_docstring(module):
    names = getattr(module, "__all__", [n for n in vars(module) if n[0] != "_"])
    for name in names:
        thing = getattr(module, name)
        is_module = inspect.ismodule(thing)
        home = thing.__name__ if is_module else getattr(thing, "__module__", "")
        if home.startswith("optaxclip") and (is_module or callable(thing)):
            assert thing.__doc__, name
            # A dataclass without a docstring is given its signature for one.
            assert not thing.__doc__.startswith(f"{name}("), name


def fresh(code, **environment):
    """Run code in a Python that has imported nothing."""
    return subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_importing_starts_no_device_and_calls_nobody():
    """JAX knows no platform of that name, and says so when it has to start one."""
    offline = (
        "import sys\n"
        "def refuse(event, _):\n"
        "    if event in ('socket.connect', 'socket.getaddrinfo'): raise OSError\n"
        "sys.addaudithook(refuse)\n"
    )
    imported = fresh(offline + "import optaxclip", JAX_PLATFORMS="nowhere")
    assert (imported.returncode, imported.stderr) == (0, "")
    used = fresh("import jax.numpy as jnp; jnp.zeros(1)", JAX_PLATFORMS="nowhere")
    assert "nowhere" in used.stderr


def test_importing_needs_none_of_what_only_examples_and_tests_need():
    code = "import sys, optaxclip; print(*{m.split('.')[0] for m in sys.modules})"
    loaded = fresh(code).stdout.split()
    extras = {"flax", "matplotlib", "sklearn", "tqdm", "beartype", "pytest"}
    assert "optaxclip" in loaded
    assert not extras & set(loaded)
