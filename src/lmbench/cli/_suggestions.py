"""What a mistyped key, option or argument of a command line may have meant."""

import difflib
import re
from collections.abc import Iterable, Sequence

from lmbench.files import read_yaml
from lmbench.run.targets import conf_dir, conf_dirs, conf_files, flatten


def explain(error: Exception, arguments: Sequence[str], config_name: str) -> str:
    """What Hydra refused, with what may have been meant; its own message if we know no better."""
    from hydra.errors import MissingConfigException, OverrideParseException

    if isinstance(error, OverrideParseException):
        return _explain_unreadable(error.override)
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        return _explain_option(error.missing_cfg_file, error.options or ())
    message = str(error)
    for text in arguments:
        key = text.partition("=")[0]
        if f"'{key}'" in message and key not in (keys := _keys(arguments, config_name)):
            group = key.partition(".")[0]
            for option in _options(group):
                there = _keys([f"{group}={option}"], config_name)
                if any(f"{other}.".startswith(f"{key}.") for other in there):
                    return f"There is no key {key} here, but there is with {group}={option}."
            hint = _did_you_mean(similar(key, keys))
            can_be_added = "." in key and not hint  # as an argument of a class
            return f"There is no key {key}.{f' To add it: +{text}' if can_be_added else hint}"
    return message


def explain_arguments(arguments: Sequence[str], config_name: str) -> str | None:
    """What to type in place of ``--seed 1`` or ``logger=null``, if there is such an argument."""
    config = read_yaml(conf_dir() / f"{config_name}.yaml")
    keys = {path.name for path in conf_dir().iterdir() if path.is_dir()} | config.keys()
    for text in arguments:
        name, _, value = text.removeprefix("--").partition("=")
        is_key = name.partition(".")[0] in keys - {"run"}  # --run is Hydra's
        if text.startswith("--") and is_key:
            return f"{text}: keys are given without dashes: {name}={value or '…'}"
        if value == "null" and (options := _options(name)):
            return f"{text}: a group takes the name of an option: {', '.join(options)}."
    return None


def _explain_option(path: str, options: Sequence[str]) -> str:
    group, _, option = path.rpartition("/")
    options = options or _options(group)  # Hydra lists them unless several are chosen
    hint = _did_you_mean(difflib.get_close_matches(option, options, n=2) or _choices_of(option))
    if group.startswith("hydra/"):
        hint = " Others are extras of lmbench: docs/sweeps.md."
    return f"There is no {group}={option}.{hint} Choose from {', '.join(options)}."


def _explain_unreadable(override: str) -> str:
    key, equals, value = override.partition("=")
    if not equals:
        meant = _did_you_mean(_choices_of(override)) or " An example: seed=2"
        return f"{override} is not of the form KEY=VALUE.{meant}"
    if value.startswith("~"):
        return f"{override}: ~ cannot be read here. Write the home folder out."
    quoted = value.replace("'", r"\'")
    return f"{override} cannot be read. If the value is text, quote it: \"{key}='{quoted}'\""


def similar(key: str, keys: Iterable[str]) -> list[str]:
    """The keys spelled like a given one, or ending like it, the likeliest first; three at most."""
    known = list(keys)
    last = re.split("[./]", key)[-1]
    ends = {other: re.split("[./]", other)[-1] for other in reversed(known)}
    by_end = {end: other for other, end in ends.items()}
    close_ends = difflib.get_close_matches(last, by_end, n=2, cutoff=0.8)
    matches = (
        [other for other in known if ends[other] == last]
        or difflib.get_close_matches(key, known, n=3, cutoff=0.85)
        or [by_end[end] for end in close_ends]
        or [other for other in known if other.endswith(f"_{key}")]
    )
    return matches[:3]


def _options(group: str) -> list[str]:
    return sorted({path.stem for path in conf_files(group)}) if group else []


def _choices_of(name: str) -> list[str]:
    """Choices of groups with this option, such as ``model/core=gru`` for ``gru``."""
    if not re.fullmatch(r"\w+", name):
        return []
    paths = [path.relative_to(top) for top in conf_dirs() for path in top.rglob(f"{name}.yaml")]
    return sorted(f"{path.parent.as_posix()}={name}" for path in paths if len(path.parts) > 1)


def _did_you_mean(meant: Sequence[str]) -> str:
    return f" Did you mean {' or '.join(meant)}?" if meant else ""


def _keys(arguments: Sequence[str], config_name: str) -> list[str]:
    """All groups, and all keys of the config that the command line's choices of groups give."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf import OmegaConf

    groups = [path.relative_to(conf_dir()).as_posix() for path in conf_dir().rglob("*/")]
    pairs = [text.partition("=") for text in arguments]
    # Of a sweep the first ones; not those from somebody's --config-dir.
    chosen = [(group, value.partition(",")[0]) for group, _, value in pairs]
    choices = [f"{group}={option}" for group, option in chosen if option in _options(group)]
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        try:
            config = compose(config_name, choices)
        except HydraException:  # they are groups of another command
            config = compose(config_name)
    return [*flatten(OmegaConf.to_container(config, resolve=False)), *groups]
