"""From a config node to the call of a class or function; errors name the config's key."""

import inspect
import json
import re
import typing
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from lmbench.errors import UserError, is_out_of_memory
from lmbench.run.targets import flatten, import_target


def factory(node: Any, key: str) -> Callable[..., Any]:
    """What makes the object of a config node: a call of the node's target with its other keys.

    Args:
        node: Plain values; ``_target_`` names a class or function.
        key: The node's key.

    Raises:
        UserError: The node names nothing to call, or what cannot be imported; a value is missing,
            or there is one that the target does not take.
    """
    if not isinstance(node, Mapping) or "_target_" not in node:
        raise UserError(
            f"{key}={node} names no class to build. Choose one with {key.replace('.', '/')}=NAME "
            f"(lmbench-train --help lists them), or leave it out with '~{key}'."
        )
    for name, value in node.items():
        if value == "???":
            raise UserError(f"{key}.{name} has no default: set {key}.{name}=…")
    try:
        target = import_target(node["_target_"])
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise UserError(
            f"{key}._target_: {node['_target_']} cannot be imported: {error}."
        ) from error
    values = {name: value for name, value in node.items() if name != "_target_"}
    _require_known(target, key, values)
    return lambda *args, **own: call(target, key, values, *args, **own)


def require_unset(node: str, given: Iterable[str], names: Iterable[str]) -> None:
    """Refuses a node that gives a value that lmbench itself sets.

    Raises:
        UserError: Naming the key.
    """
    for name in given:
        if name in names:
            raise UserError(f"{node}.{name} is set by lmbench itself. Leave it out.")


def require_inside_run(node: Mapping[str, Any], key: str) -> None:
    """Refuses a path with which a Lightning class would write outside the run's folder.

    Raises:
        UserError: Naming the key.
    """
    for name, value in flatten(dict(node), key).items():
        parts = Path(value).parts if isinstance(value, str) else ()
        if ".." in parts or "/" in parts[:1] or re.search("::|://", str(value)):
            raise UserError(f"{name}={value} is outside the run's folder. Give a relative path.")


def call(
    target: Callable[..., Any], key: str, values: Mapping[str, Any], /, *args: Any, **own: Any
) -> Any:
    """Calls a class or function with the values of a config node.

    Args:
        target: What to call.
        key: The node's key.
        values: The node's plain values, by the names of the target's arguments.
        args: Further arguments, which lmbench gives.
        own: The same, by name.

    Raises:
        UserError: The target has no such argument, or lmbench gives it; a value has the wrong type,
            or the target refuses it.
    """
    _require_known(target, key, values)
    require_unset(key, values, own)
    hints = _hints(target)
    converted = {
        name: convert(f"{key}.{name}", value, hints[name]) if name in hints else value
        for name, value in values.items()
    }
    try:
        inspect.signature(target).bind(*args, **converted, **own)  # its errors are clearer
        return target(*args, **converted, **own)
    except UserError:
        raise
    except Exception as error:  # classes of PyTorch, Lightning and users may raise anything
        reason = str(error).partition("\n")[0]
        if is_out_of_memory(error):
            raise UserError(f"Out of memory: lower the sizes of {key}. ({reason})") from error
        kind = "" if isinstance(error, (ValueError, TypeError)) else f"{type(error).__name__}: "
        raise UserError(f"{key}: {kind}{reason}") from error


def convert(key: str, value: Any, hint: Any) -> Any:
    """A plain value as an object of the type ``hint``, such as a list as a tuple.

    Numbers are not read from texts, nor the other way round; whole numbers are numbers too.

    Raises:
        UserError: It does not fit the type.
    """
    from pydantic import ValidationError

    try:  # as JSON, in which a list may become a tuple, and a text a path
        return _adapter(hint).validate_json(json.dumps(value), strict=True)
    except ValidationError as error:
        reasons = dict.fromkeys(
            detail["msg"].removeprefix("Input should be ")
            for detail in error.errors()
            if not detail["msg"].startswith("Cannot check")  # a class, which no value of YAML has
        )
        expected = " or ".join(reasons)
        quotes = f" In quotes it is text: \"{key}='…'\"." if "valid string" in expected else ""
        raise UserError(
            f"{key}={json.dumps(value)} has the wrong type. It should be {expected}.{quotes}"
        ) from error


@cache
def _adapter(hint: Any) -> Any:
    from pydantic import ConfigDict, TypeAdapter  # as slow to import as the rest of this package

    return TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True))


def _require_known(target: Callable[..., Any], key: str, names: Iterable[str]) -> None:
    """Refuses arguments that the target does not have, as from an experiment with another class."""
    parameters = parameters_of(target)
    if any(x.kind is inspect.Parameter.VAR_KEYWORD for x in parameters.values()):
        return
    if unknown := [f"{key}.{name}" for name in names if name not in parameters]:
        removals = " ".join(f"'~{name}'" for name in unknown)  # quoted for zsh
        raise UserError(
            f"{', '.join(unknown)}: {target.__name__} has no such argument. Leave it out, or take "
            f"it out of an experiment with {removals}."
        )


def parameters_of(target: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    """Parameters by name; for lmbench's own classes, also those of the base given ``**options``."""
    parameters = inspect.signature(target).parameters
    if base := _base_given_options(target):
        kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        named = {name: x for name, x in parameters.items() if x.kind not in kinds}
        return {**parameters_of(base), **named}
    return parameters


def _hints(target: Callable[..., Any]) -> dict[str, Any]:
    try:
        hints = typing.get_type_hints(target.__init__ if inspect.isclass(target) else target)
    except NameError:  # names that only a type checker imports
        return {}
    base = _base_given_options(target)
    return {**_hints(base), **hints} if base else hints


def _base_given_options(target: Callable[..., Any]) -> Callable[..., Any] | None:
    """The base to which one of lmbench's classes passes ``**options`` on."""
    if not inspect.isclass(target) or not target.__module__.startswith("lmbench."):
        return None
    kinds = {x.kind for x in inspect.signature(target).parameters.values()}
    return target.__base__ if inspect.Parameter.VAR_KEYWORD in kinds else None
