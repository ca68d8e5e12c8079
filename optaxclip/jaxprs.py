"""Open traced programs; only this module depends on how JAX versions differ there."""

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from typing import Any

from jax.extend.core import Jaxpr, JaxprEqn, Literal, jaxpr_as_fun
from jax.lax import Precision

# A program with its constants. Before JAX 0.11 this is a separate class around a jaxpr;
# that name may be removed, so it is not imported.
TracedProgram = Any

# Raised where JAX has renamed, moved or removed undocumented parts.
_CHANGED = (AttributeError, NotImplementedError, TypeError, ValueError)


def opened(traced: TracedProgram) -> tuple[Jaxpr, Sequence[Any]]:
    """Return the jaxpr of a traced program, and its constants."""
    return getattr(traced, "jaxpr", traced), getattr(traced, "consts", ())


def is_call(eqn: JaxprEqn) -> bool:
    """Return whether any parameter of an equation is or contains a program."""
    found: list[Any] = []
    for param in eqn.params.values():
        found += param if isinstance(param, tuple | list) else (param,)
    return any(map(_is_program, found))


def _is_program(param: Any) -> bool:
    return isinstance(getattr(param, "jaxpr", param), Jaxpr)


def named(eqn: JaxprEqn) -> tuple[str, Mapping[str, Any]]:
    """Return the name and the parameters of an equation's primitive.

    With `jax_remat3` a checkpoint is an object that one primitive calls for many kinds.
    """
    called = eqn.params.get("_prim")
    if called is None:
        return eqn.primitive.name, eqn.params
    return type(called).__name__, getattr(called, "params", {})


def holds_program(eqn: JaxprEqn) -> bool:
    """Return whether `program_of` knows the parameter that holds the program."""
    _, params = named(eqn)
    return "jaxpr" in params or "call_jaxpr" in params


def program_of(eqn: JaxprEqn) -> TracedProgram:
    """Return the program that a call evaluates once, whichever parameter holds it."""
    _, params = named(eqn)
    return params["jaxpr" if "jaxpr" in params else "call_jaxpr"]


def evaluate(eqn: JaxprEqn, values: Sequence[Any], **changed: Any) -> list[Any]:
    """Evaluate an equation as JAX does, given its operands and changed parameters."""
    primitive = eqn.primitive
    # Traced parameters differ from those of `bind`; the primitive can convert them.
    bound: Any = getattr(primitive, "get_bind_params", dict)({**eqn.params, **changed})
    # Before JAX 0.11 the functions that a call takes are returned separately.
    functions, params = bound if isinstance(bound, tuple) else ((), bound)
    result = primitive.bind(*functions, *values, **params)
    return list(result) if primitive.multiple_results else [result]


def evaluate_precisely(traced: TracedProgram, values: Sequence[Any]) -> list[Any]:
    """Evaluate a program, its products in the highest precision if it asks for none."""
    known: dict[int, TracedProgram] = {}

    def of_param(name: str, param: Any) -> Any:
        if name == "precision" and param is None:
            return Precision.HIGHEST, Precision.HIGHEST
        if name == "branches":
            return tuple(map(precise, param))
        known_inside = _is_program(param) and hasattr(param, "replace")
        return precise(param) if known_inside else param

    def of_equation(eqn: JaxprEqn) -> JaxprEqn:
        found = {name: of_param(name, param) for name, param in eqn.params.items()}
        same = all(found[name] is param for name, param in eqn.params.items())
        return eqn if same else eqn.replace(params=found)

    def precise(traced: TracedProgram) -> TracedProgram:
        if id(traced) not in known:  # JAX caches what it knows of a program.
            jaxpr, _ = opened(traced)
            found = jaxpr.replace(eqns=list(map(of_equation, jaxpr.eqns)))
            whole = found if traced is jaxpr else traced.replace(jaxpr=found)
            known[id(traced)] = whole
        return known[id(traced)]

    return jaxpr_as_fun(precise(traced))(*values)


def cut(traced: TracedProgram, behind: Set[int]) -> list[TracedProgram] | None:
    """Split a program after every equation that computes one of some variables.

    Args:
      traced: the program.
      behind: the variables, by their `id`.

    Returns:
      The parts, without constants of their own; None if this JAX does not allow it,
      since none of this is documented.
    """
    try:
        parts = list(_parts(opened(traced)[0], behind))
        closed = all(hasattr(part, "consts") for part in parts)
        return parts if closed else [type(traced)(part, ()) for part in parts]
    except _CHANGED:
        return None


def _variables(atoms: Iterable[Any]) -> list[Any]:
    return [x for x in atoms if not isinstance(x, Literal)]


def _parts(program: Jaxpr, behind: Set[int]) -> Iterator[Jaxpr]:
    used = {*_variables(program.outvars)}
    used.update(x for eqn in program.eqns for x in _variables(eqn.invars))
    debug_info, eqns = program.debug_info.with_unknown_names(), []
    for position, eqn in enumerate(program.eqns, start=1):
        eqns.append(eqn)
        if position < len(program.eqns) and not behind & set(map(id, eqn.outvars)):
            continue
        outvars = [x for each in eqns for x in each.outvars if x in used]
        read = (x for each in eqns for x in _variables(each.invars))
        made = {*outvars}
        invars = [x for x in dict.fromkeys(read) if x not in made]
        effects = frozenset().union(*(each.effects for each in eqns))
        yield program.replace(
            constvars=[],
            invars=invars,
            outvars=outvars,
            eqns=eqns,
            effects=effects,
            debug_info=debug_info,
        )
        eqns = []
