"""Values from a config as arguments: what they must be, and errors that name the config's key."""

import inspect
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from lmbench.errors import UserError, is_out_of_memory
from lmbench.run.targets import flatten, import_target

# Arguments that the config has under a key other than their node's.
_KNOWN_AS = {
    "batching.seed": "seed",
    "model.dropout": "model.embedding_dropout",
    "model.core.input_size": "model.embedding_size",
}


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
        group = key.replace(".", "/")
        message = (
            f"{key}={node} names no class to build. An option of a group is chosen with a slash: "
            f"{group}=NAME; lmbench-train --help lists them."
        )
        kind = key.partition(".")[0]
        if kind in ("callbacks", "logger"):  # their options hold several objects
            message = (
                f"{key}={node} names no class to build. Leave it out with ~{key}, or choose an "
                f"option of {kind}= that has it; lmbench-train --help lists them."
            )
        elif isinstance(node, Mapping) and node:  # as from an experiment made for another option
            left = " ".join(f"~{key}.{name}" for name in node)
            message += f" If you have done that, remove the values that it does not use: {left}."
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
    _require_known(target, key, arguments)

    def make(*args: Any, **own: Any) -> Any:
        if unknown := _unknown(target, own):
            raise UserError(
                f"{key}: lmbench passes {target.__name__} an argument {unknown[0]}, which it does "
                "not take."
            )
        require_unset(key, arguments, own)
        return call(target, key, *args, **arguments, **own)

    return make


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


def call(target: Callable[..., Any], node: str, /, *args: Any, **kwargs: Any) -> Any:
    """Calls a class or function with the values of a config node.

    Args:
        target: What to call.
        node: Key of the config node, to which the arguments' names belong.
        args: Arguments that come from no config.
        kwargs: The node's values.

    Raises:
        UserError: A value has the wrong type, or the target refuses it or does not know it.
    """
    _require_known(target, node, kwargs)
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    for name, parameter in [*parameters_of(target).items()][len(args) :]:
        is_required = parameter.kind in named and parameter.default is inspect.Parameter.empty
        if is_required and name not in kwargs:
            key = _KNOWN_AS.get(f"{node}.{name}", f"{node}.{name}")
            raise UserError(f"{key} is missing: set +{key}=…")
    keys = {name: _KNOWN_AS.get(f"{node}.{name}", f"{node}.{name}") for name in kwargs}
    hints = _hints(target)
    for name, value in kwargs.items():
        if hints.get(name) is Path and isinstance(value, str):
            kwargs[name] = Path(value)
        elif name in hints:
            require_type(keys[name], value, hints[name])
    try:
        return target(*args, **kwargs)
    except ZeroDivisionError as error:  # OneCycleLR's, if the first phase is a single step
        raise UserError(
            f"{node}: {target.__name__} divides by zero with these values and a run of this "
            "length. Change one of them."
        ) from error
    except (
        TypeError,
        ValueError,
        RuntimeError,
        IndexError,
        ImportError,
        ArithmeticError,
        MemoryError,
    ) as error:
        argument, _, rest = str(error).partition(" ")
        message = f"{keys[argument]} {rest}" if argument in keys else f"{node}: {error}"
        if is_out_of_memory(error) and argument not in keys:
            reason = str(error).partition("\n")[0]
            message = f"Out of memory: lower the sizes of {node}. ({reason})"
        raise UserError(message) from error


def require_type(key: str, value: Any, hint: Any) -> None:
    """Refuses a value that does not fit the type ``hint``.

    Raises:
        UserError: Naming the key, the type and what it should be.
    """
    if not _fits(value, hint):
        kinds = typing.get_args(hint) if _is_union(hint) else (hint,)
        names = [_name(kind) for kind in kinds]
        shown = "null" if value is None else repr(value)
        of_type, wanted = _name(type(value)), " or ".join(names)
        message = f"{key}={shown} has the wrong type: {of_type} instead of {wanted}."
        if set(names) <= {"str", "Path", "null"}:
            message += f" In quotes it is text: \"{key}='…'\"."
        raise UserError(message)


def _require_known(target: Callable[..., Any], node: str, given: Iterable[str]) -> None:
    """Refuses arguments that the target does not have."""
    if unknown := _unknown(target, given):
        it, arguments = ("it", "argument") if len(unknown) == 1 else ("them", "arguments")
        raise UserError(
            f"{', '.join(f'{node}.{name}' for name in unknown)}: {target.__name__} has no such "
            f"{arguments}. Leave {it} out, or take {it} out of an experiment with "
            f"{' '.join(f'~{node}.{name}' for name in unknown)}."
        )


def _unknown(target: Callable[..., Any], names: Iterable[str]) -> list[str]:
    """The names that are not parameters of the target."""
    parameters = parameters_of(target)
    if inspect.Parameter.VAR_KEYWORD in {one.kind for one in parameters.values()}:
        return []
    return [name for name in names if name not in parameters]


def parameters_of(target: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    """Parameters by name; for lmbench's own classes, also those of the base given ``**options``."""
    parameters = inspect.signature(target).parameters
    if base := _base_with_the_rest(target):
        kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        own = {name: one for name, one in parameters.items() if one.kind not in kinds}
        return {**parameters_of(base), **own}
    return parameters


def _hints(target: Callable[..., Any]) -> dict[str, Any]:
    try:
        own = typing.get_type_hints(target.__init__ if inspect.isclass(target) else target)
    except NameError:  # names that only a type checker imports
        return {}
    base = _base_with_the_rest(target)
    return {**_hints(base), **own} if base else own


def _base_with_the_rest(target: Callable[..., Any]) -> Callable[..., Any] | None:
    """The base to which one of lmbench's classes passes ``**options`` on."""
    if not inspect.isclass(target) or not target.__module__.startswith("lmbench."):
        return None
    kinds = {one.kind for one in inspect.signature(target).parameters.values()}
    return target.__base__ if inspect.Parameter.VAR_KEYWORD in kinds else None


def _is_union(hint: Any) -> bool:
    return typing.get_origin(hint) in (typing.Union, types.UnionType)


def _name(hint: Any) -> str:
    if hint is types.NoneType:
        return "null"
    return hint.__name__ if inspect.isclass(hint) and not typing.get_args(hint) else str(hint)


def _fits(value: Any, hint: Any) -> bool:
    """Whether a plain value fits the type ``hint``; any value fits a type not known here."""
    if _is_union(hint):
        return any(_fits(value, option) for option in typing.get_args(hint))
    kind = typing.get_origin(hint) or hint
    if not inspect.isclass(kind) or kind is Any:  # from Python 3.11 on, Any is a class
        return True
    if isinstance(value, bool):
        return kind in (bool, object)
    if isinstance(value, list) and kind in (list, tuple):  # YAML has no tuples
        items = typing.get_args(hint)
        if kind is tuple and items and items[-1] is not Ellipsis:
            return len(value) == len(items) and all(map(_fits, value, items))
        return all(_fits(item, one) for one in items[:1] for item in value)
    return isinstance(value, (int, float) if kind is float else kind)
