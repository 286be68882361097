"""Configs of runs as single values."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lmbench.errors import UserError
from lmbench.files import read_yaml
from lmbench.printing import printable


def read_config(run_dir: Path) -> dict[str, Any]:
    """The resolved config of a run.

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
    config = read_yaml(path)
    if not config:
        raise UserError(f"{path} is damaged: it holds no keys. Copy it again.")
    return dict(_leaves(config))


def _leaves(config: Any) -> Iterator[tuple[str, Any]]:
    nodes = [("", config)]
    while nodes:
        key, value = nodes.pop()
        if isinstance(value, dict):
            nodes += [(f"{key}.{name}" if key else str(name), item) for name, item in value.items()]
        elif isinstance(value, list) and value:
            nodes += [(f"{key}[{index}]", item) for index, item in enumerate(value)]
        else:
            is_plain = value is None or isinstance(value, (bool, int, float, str))
            yield printable(key), value if is_plain else str(value)
