"""What a mistyped key or option of a command line may have meant."""

import difflib
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from lmbench.files import read_yaml
from lmbench.run.directory import as_override
from lmbench.run.targets import conf_dir, flatten


def explain(message: str, arguments: Sequence[str], config_name: str) -> str:
    """Hydra's message in one sentence, with what may have been meant."""
    if match := re.search(r"Could not override '([^']+)'", message):
        return _explain_key(match[1], arguments, config_name)
    if match := re.search(
        r"(?s)Could not find '([^']+)'\s+Available options in '([^']+)':(.*)", message
    ):
        options = [line.strip() for line in match[3].splitlines() if re.match(r"\t\w+$", line)]
        if match[2].startswith("hydra/"):
            installed = ", ".join(options)
            return (
                f"{match[1]} is not installed. Choose from {installed}; other launchers and "
                "sweepers are extras: docs/sweeps.md."
            )
        group, name = match[2], match[1].removeprefix(f"{match[2]}/")
    elif match := re.search(r"Could not load '([^']+)/([^'/]+)'", message):  # one of a list
        group, name = match.groups()
        options = sorted(path.stem for path in (conf_dir() / group).glob("*.yaml"))
    else:
        is_unreadable = "override_grammar" in message
        return (_explain_unreadable(arguments) if is_unreadable else None) or message
    meant = difflib.get_close_matches(name, options, n=2) or _options_named(name)
    known = ", ".join(options)
    return f"There is no {group}={name}.{_did_you_mean(meant)} Choose from {known}."


def _explain_key(key: str, arguments: Sequence[str], config_name: str) -> str:
    """What there is instead of a key that cannot be set."""
    search = next((text for text in arguments if text.startswith("hparams_search=")), None)
    if search and not any(text.lstrip("+~").startswith(key) for text in arguments):
        return f"{search} varies {key}, which this model lacks. Choose one with model=NAME."
    keys = _keys(arguments, config_name)
    inner = {re.split(r"[.\[]", x[len(key) + 1 :])[0] for x in keys if x.startswith(f"{key}.")}
    if inner := sorted(inner - {"_target_"}):  # its value has a key that it lacks
        return f"{key} has the keys {', '.join(inner)}. Set one: {key}.{inner[0]}=…"
    dotted = key.replace("/", ".")
    group = dotted.partition(".")[0]
    for path in sorted((conf_dir() / group).glob("*.yaml")):
        keys_there = _keys([f"{group}={path.stem}"], config_name)
        if any(f"{other}.".startswith(f"{dotted}.") for other in keys_there):
            there_is = f"There is no key {key} here, but there is with {group}={path.stem}."
            return f"{there_is}{_plus_signs(key, arguments)}"
    meant = [] if key.endswith("._target_") else similar(key, keys)  # a callback of one's own
    can_be_added = not meant and "." in key  # as an argument of a class
    other = f" To set a key that the config lacks: +{key}=…" if can_be_added else ""
    return f"There is no key {key}.{_did_you_mean(meant)}{other}"


def _plus_signs(key: str, arguments: Sequence[str]) -> str:
    """How to set a key of a run's config or of a swept experiment, which Hydra does not look at."""
    from lmbench.run.changes import RESUMABLE  # loads Hydra, as --help need not
    from lmbench.run.config import INHERITED_NODES

    for text in arguments:
        name, _, value = text.partition("=")
        can_be_resumed = name == "resume" and key in RESUMABLE
        is_inherited = name == "init_from" and key.partition(".")[0] in INHERITED_NODES
        if can_be_resumed or is_inherited:
            return f" If the run of {text} has it: +{key}=…"
        if name == "experiment" and "," in value:
            return f" If all experiments of the sweep have it: ++{key}=…"
    return ""


def explain_dashes(arguments: Sequence[str], config_name: str) -> str | None:
    """What to type in place of ``--seed 1``, if there is such an argument."""
    if not any(text.startswith("--") for text in arguments):
        return None
    keys = {path.name for path in conf_dir().iterdir() if path.is_dir()}
    keys |= read_yaml(conf_dir() / f"{config_name}.yaml").keys() - {"run"}  # --run is Hydra's
    for text in arguments:
        name, _, value = text.removeprefix("--").partition("=")
        if text.startswith("--") and name.partition(".")[0] in keys:
            return f"{text}: keys are given without dashes: {name}={value or '…'}"
    return None


def _explain_unreadable(arguments: Sequence[str]) -> str | None:
    """Names the argument that Hydra cannot read, which its own message does not."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    for before, text in zip(["", *arguments], arguments, strict=False):
        if before.startswith("-") or text.startswith("-"):
            continue
        try:
            OverridesParser.create().parse_override(text)
        except HydraException:
            key, equals, value = text.partition("=")
            if not equals:
                return f"{text} is not of the form KEY=VALUE.{_did_you_mean(_options_named(text))}"
            if "[" in key:
                whole = key.partition("[")[0]
                return f"{text}: an item cannot be set alone. Give the whole list: '{whole}=[…,…]'"
            if (path := os.path.expanduser(value)) != value:  # noqa: PTH111 - Path's raises
                return f"{text}: ~ cannot be read here. Write {as_override(key, Path(path))}"
            escaped = value.replace("'", r"\'")
            return f"{text} cannot be read. If the value is text, quote it: \"{key}='{escaped}'\""
    return None


def explain_null(arguments: Sequence[str]) -> str:
    """What is wrong with a group set to null or to a number, which Hydra does not name."""
    for text in arguments:
        group, _, value = text.partition("=")
        options = sorted(path.stem for path in (conf_dir() / group).glob("*.yaml"))
        if group and options and not set(value.strip("[]").split(",")) <= set(options):
            names = ", ".join(options)
            return f"{text}: a group takes the name of an option. Choose from {names}."
    return "A group takes the name of an option; lmbench-train --help lists them."


def similar(key: str, keys: Iterable[str]) -> list[str]:
    """The keys spelled like a given one, or ending like it, the likeliest first; three at most."""
    last = key.rpartition(".")[2]
    known = list(keys)
    ends = {other: re.split("[./]", other)[-1] for other in known}
    same_end = [other for other in known if ends[other] == last]
    close = difflib.get_close_matches(key, known, n=3, cutoff=0.85)
    first = {end: other for other, end in reversed(ends.items())}
    close_ends = [first[end] for end in difflib.get_close_matches(last, first, n=2, cutoff=0.8)]
    longer = [other for other in known if ends[other].endswith(f"_{last}")]
    return (same_end or close or close_ends or longer)[:3]


def _options_named(name: str) -> list[str]:
    """Choices of groups with this option, such as ``model/core=gru`` for ``gru``."""
    paths = sorted(conf_dir().rglob(f"{name}.yaml")) if re.fullmatch(r"\w+", name) else []
    groups = [path.parent.relative_to(conf_dir()).as_posix() for path in paths]
    return [f"{group}={name}" for group in groups if group != "."]


def _did_you_mean(meant: Sequence[str]) -> str:
    return f" Did you mean {' or '.join(meant)}?" if meant else ""


def _keys(arguments: Sequence[str], config_name: str) -> list[str]:
    """All groups, and all keys of the config that the command line's choices of groups give."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf import OmegaConf

    groups = [text for text in arguments if re.fullmatch(r"[a-z_/]+=[\w\[\],]+", text)]
    folders = [path for path in conf_dir().rglob("*") if path.is_dir()]
    folders = [str(path.relative_to(conf_dir())) for path in folders]
    groups = [re.sub(r"=(\w+),.*", r"=\1", text) for text in groups]  # the first of a sweep
    groups = [text for text in groups if _is_known(text)]  # not from somebody's --config-dir
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        try:
            config = compose(config_name, groups)
        except HydraException:  # they are groups of another command
            config = compose(config_name)
    return [*flatten(OmegaConf.to_container(config, resolve=False)), *folders]


def _is_known(text: str) -> bool:
    """Whether all options in ``group=option`` or ``group=[option,option]`` are lmbench's own."""
    group, _, options = text.partition("=")
    return all((conf_dir() / group / f"{x}.yaml").is_file() for x in options.strip("[]").split(","))
