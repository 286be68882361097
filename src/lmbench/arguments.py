"""Calls with values from a config: their types are checked, errors name the config's key."""

import inspect
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException

from lmbench.errors import UserError


def call(
    target: Callable[..., Any],
    node: str,
    known_as: Mapping[str, str],
    /,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """Calls a class or function with the values of a config node.

    Args:
        target: what to call.
        node: key of the config node, to which the arguments' names belong.
        known_as: the keys of those arguments that the config has elsewhere.
        args: arguments that come from no config.
        kwargs: the node's values.

    Raises:
        UserError: a value has the wrong type, or the target refuses it.
    """
    keys = {name: known_as.get(f"{node}.{name}", f"{node}.{name}") for name in kwargs}
    hints = _hints(target)
    for name, value in kwargs.items():
        if name in hints:
            require_type(keys[name], value, hints[name])
    try:
        return target(*args, **kwargs)
    except (TypeError, ValueError, MisconfigurationException) as error:
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
        UserError: naming the key, the type and what it should be.
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
        return " or ".join(_describe(option) for option in typing.get_args(hint))
    if hint is types.NoneType:
        return "None"
    return hint.__name__ if inspect.isclass(hint) else str(hint)


def _is_union(hint: Any) -> bool:
    return typing.get_origin(hint) in (typing.Union, types.UnionType)
