"""Values from a config as arguments: what they must be, and errors that name the config's key."""

import inspect
import types
import typing
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

from lmbench.errors import UserError

# Arguments that the config has under another key than their node's.
_KNOWN_AS = {
    "batching.evaluation_protocol": "evaluation.protocol",
    "batching.evaluation_columns": "evaluation.columns",
    "batching.burn_in": "evaluation.burn_in",
    "batching.evaluation_window": "evaluation.window",
    "batching.seed": "seed",
    "evaluation.statistics_columns": "evaluation.dynamic.statistics.columns",
    "evaluation.statistics_segments": "evaluation.dynamic.statistics.segments",
    "model.dropout": "model.embedding_dropout",
    "model.core.input_size": "model.embedding_size",
}


def factory(node: Any, key: str) -> Callable[..., Any]:
    """What makes the object of a config node: it calls the node's target with its other keys.

    Args:
        node: Plain values; ``_target_`` names a class or function.
        key: The node's key.

    Raises:
        UserError: The node names nothing to call, or what cannot be imported; a value is missing,
            or there is one that the target does not take.
    """
    if not isinstance(node, Mapping) or "_target_" not in node:
        group = key.replace(".", "/")
        message = (
            f"{key}={node} names no class to build. An option of a group is chosen with a slash: "
            f"{group}=NAME; lmbench-train --help lists them."
        )
        if isinstance(node, Mapping) and node:  # as of an experiment that was made for another
            left = " ".join(f"~{key}.{name}" for name in node)
            message += f" If that is done, take the values out that it has no use for: {left}."
        raise UserError(message)
    for name, value in node.items():
        if value == "???":
            raise UserError(f"{key}.{name} has no default: set {key}.{name}=…")
    try:
        target = import_target(node["_target_"])
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise UserError(
            f"{key}._target_: {node['_target_']} cannot be imported: {error}."
        ) from error
    arguments = {name: value for name, value in node.items() if name != "_target_"}
    for name in arguments:
        if not _takes(target, name):
            raise UserError(
                f"{key}.{name}: {node['_target_']} has no such argument. Leave it out, or take it "
                f"out of an experiment with ~{key}.{name}."
            )

    def make(*args: Any, **kwargs: Any) -> Any:
        return call(target, key, *args, **together(key, arguments, kwargs))

    return make


def together(node: str, given: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a config node, and what lmbench itself gives besides.

    Raises:
        UserError: The node has a value that is not its own to set.
    """
    for name in given:
        if name in own:
            raise UserError(f"{node}.{name} is set by lmbench itself. Leave it out.")
    return {**given, **own}


def takes(node: Mapping[str, Any], argument: str) -> bool:
    """Whether the target of a node has an argument of that name."""
    return argument in inspect.signature(import_target(node["_target_"])).parameters


def _takes(target: Callable[..., Any], argument: str) -> bool:
    """Whether it may be called with an argument of that name."""
    try:
        parameters = inspect.signature(target).parameters
    except (TypeError, ValueError):  # some that are written in C
        return True
    any_name = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    return any_name or argument in parameters


def import_target(target: str) -> Callable[..., Any]:
    """The class or function of a module, by its dotted name."""
    module, _, name = target.rpartition(".")
    return getattr(import_module(module), name)


def call(target: Callable[..., Any], node: str, /, *args: Any, **kwargs: Any) -> Any:
    """Calls a class or function with the values of a config node.

    Args:
        target: What to call.
        node: Key of the config node, to which the arguments' names belong.
        args: Arguments that come from no config.
        kwargs: The node's values.

    Raises:
        UserError: A value has the wrong type, or the target refuses it.
    """
    keys = {name: _KNOWN_AS.get(f"{node}.{name}", f"{node}.{name}") for name in kwargs}
    hints = _hints(target)
    for name, value in kwargs.items():
        if name in hints:
            require_type(keys[name], value, hints[name])
    try:
        return target(*args, **kwargs)
    except (
        TypeError,
        ValueError,
        RuntimeError,
        IndexError,
        ImportError,
        OverflowError,
        MemoryError,
    ) as error:
        argument, _, rest = str(error).partition(" ")
        message = f"{keys[argument]} {rest}" if argument in keys else f"{node}: {error}"
        raise UserError(message) from error


def _hints(target: Callable[..., Any]) -> dict[str, Any]:
    try:
        return typing.get_type_hints(target.__init__ if inspect.isclass(target) else target)
    except NameError:  # names that only a type checker imports
        return {}


def require_type(key: str, value: Any, hint: Any) -> None:
    """Refuses a value that cannot stand where ``hint`` is declared.

    Raises:
        UserError: Naming the key, the type and what it should be.
    """
    if not _fits(value, hint):
        raise UserError(
            f"{key}={value!r} has the wrong type: {type(value).__name__} instead of "
            f"{_describe(hint)}."
        )


def _fits(value: Any, hint: Any) -> bool:
    """Whether a plain value can stand where ``hint`` is declared; what is not known here, can."""
    if _is_union(hint):
        return any(_fits(value, option) for option in typing.get_args(hint))
    kind = typing.get_origin(hint) or hint
    if not inspect.isclass(kind):
        return True
    if isinstance(value, bool):
        return kind in (bool, object)
    if kind is float:
        return isinstance(value, (int, float))
    if isinstance(value, list) and kind is tuple:  # YAML has no tuples
        return True
    return isinstance(value, kind)


def _describe(hint: Any) -> str:
    if _is_union(hint):
        # Sorted: typing takes unions for equal, and keeps the order of whichever came first.
        options = [_describe(option) for option in typing.get_args(hint)]
        options.sort(key=lambda option: (option == "None", option.lower()))
        return " or ".join(options)
    if hint is types.NoneType:
        return "None"
    return hint.__name__ if inspect.isclass(hint) else str(hint)


def _is_union(hint: Any) -> bool:
    return typing.get_origin(hint) in (typing.Union, types.UnionType)
