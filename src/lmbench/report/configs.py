"""Configs of runs, fast and as if they came from strangers."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lmbench.errors import UserError
from lmbench.report.folders import printable, read_text
from lmbench.run.overrides import override_as_config, recorded_overrides

if TYPE_CHECKING or not hasattr(yaml, "CSafeLoader"):
    from yaml import SafeLoader
else:
    from yaml import CSafeLoader as SafeLoader  # ten times as fast

_MOST_VALUES = 10_000


class _Loader(SafeLoader):
    """A loader without merge keys: merged again and again, they would fill the memory."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        pass


def read_config(run_dir: Path) -> dict[str, Any]:
    """The resolved config of a run, with what its resumes have changed.

    Returns:
        Single values by dotted keys; items of lists by ``key[0]`` and so on.

    Raises:
        UserError: The config is missing or damaged.
    """
    path = run_dir / "config.yaml"
    if not path.exists():
        raise UserError(
            "Has no config.yaml: it failed before it began, or that file was not copied with it."
        )
    try:
        config = yaml.load(read_text(path), _Loader)
        if not isinstance(config, dict):
            raise ValueError("it holds no keys")
        for override in recorded_overrides(run_dir):
            _merge(config, OmegaConf.to_container(override_as_config(override)))
        return dict(_leaves(config))
    except (yaml.YAMLError, OmegaConfBaseException, ValueError, TypeError, RecursionError) as error:
        message = " ".join(str(error).split())
        raise UserError(f"{path} is damaged: {message}. Copy it anew.") from error


def _merge(config: dict[Any, Any], change: Any) -> None:
    for key, value in change.items():
        if isinstance(value, dict) and isinstance(config.get(key), dict):
            _merge(config[key], value)
        else:
            config[key] = value


def _leaves(config: Any) -> Iterator[tuple[str, Any]]:
    """Single values by dotted keys; ends where aliases in a YAML file would blow it up."""
    nodes, count = [("", config)], 0
    while nodes:
        key, value = nodes.pop()
        count += 1
        if count > _MOST_VALUES:
            raise ValueError(f"it holds more than {_MOST_VALUES:,} values")
        if isinstance(value, dict):
            nodes += [(f"{key}.{name}" if key else str(name), item) for name, item in value.items()]
        elif isinstance(value, list) and value:
            nodes += [(f"{key}[{index}]", item) for index, item in enumerate(value)]
        else:
            is_plain = value is None or isinstance(value, (bool, int, float, str))
            yield printable(key), value if is_plain else str(value)
