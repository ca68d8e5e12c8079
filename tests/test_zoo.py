"""Nothing is left out of the matrix."""

import inspect

import optax
from zoo import STRATEGIES

import optaxclip


def test_every_public_strategy_is_in_the_zoo():
    public = {
        name
        for name in optaxclip.__all__
        if callable(function := getattr(optaxclip, name))
        and not inspect.isclass(function)
        and inspect.signature(function).return_annotation
        is optax.GradientTransformationExtraArgs
    }
    in_zoo = {strategy.factory.__name__ for strategy in STRATEGIES}
    assert public - {"clipper"} == in_zoo


def test_no_two_strategies_of_the_zoo_share_a_name():
    names = [strategy.name for strategy in STRATEGIES]
    assert len(set(names)) == len(names)
