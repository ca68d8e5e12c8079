"""Nothing is left out of the matrix."""

import ast
import importlib
import inspect
from pathlib import Path

from zoo import ROWS, STRATEGIES, named

import optaxclip

HERE = Path(__file__).parent


def test_every_public_strategy_is_in_the_zoo():
    public = {
        name
        for name in optaxclip.__all__
        if callable(function := getattr(optaxclip, name))
        and not inspect.isclass(function)
        and "GradientTransformationExtraArgs"
        in str(inspect.signature(function).return_annotation)
    }
    in_zoo = {strategy.factory.__name__ for strategy in STRATEGIES}
    # Two make strategies of others. Stacked gradients have a tree of their own:
    # test_per_example_stacked asks of them what the rows ask, and test_attention of
    # attention.qk_clip, which has no say over updates without the logits.
    others = {"bound_weights", "clip_per_example", "clipper"}
    assert public - others == in_zoo


def test_no_two_strategies_of_the_zoo_share_a_name():
    names = [strategy.name for strategy in STRATEGIES]
    assert len(set(names)) == len(names)


def test_a_strategy_is_exempt_from_rows_that_exist_and_says_why():
    written = {
        node.name
        for file in HERE.glob("test_*.py")
        for node in ast.parse(file.read_text()).body
        if isinstance(node, ast.FunctionDef)
    }
    for strategy in STRATEGIES:
        assert set(strategy.exempt) <= written, named(strategy)
        assert all(strategy.exempt.values()), named(strategy)


def test_an_exemption_spares_one_strategy_at_least_a_row_that_asks_it():
    """A reason may be shared by strategies of which not all would be asked."""
    for file in (*HERE.glob("test_edges_*.py"), HERE / "test_laws.py"):
        importlib.import_module(file.stem)
    given = {x for strategy in STRATEGIES for x in strategy.exempt.items()}
    needed = {
        (row, strategy.exempt.get(row))
        for row, strategies in ROWS.items()
        for strategy in strategies
    }
    assert not given - needed
