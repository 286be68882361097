"""What a comparison says, in sentences that a newcomer understands."""

import math
import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from lmbench.report._significance import LEAST_UNITS, LEVEL, OWN_PREDICTIONS, Comparison
from lmbench.report.formats import perplexity_text
from lmbench.report.groups import Group, Section
from lmbench.report.records import BLOCK
from lmbench.run.directory import key_of, noted_overrides, quoted
from lmbench.run.targets import conf_files
from lmbench.terminal.printing import printable

_NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


class Sentence(NamedTuple):
    """A sentence, and the command that it ends in, if any."""

    text: str
    command: str | None = None


def verdict(section: Section, comparisons: Sequence[Comparison], split: str) -> list[Sentence]:
    """Which group is best, by how much, and whether that is more than chance.

    The first sentence is about the two groups with the lowest validation perplexity that were read
    the same way. It is followed by what is missing to tell which is better, with the command for
    that.

    Args:
        section: The groups.
        comparisons: All tests of these.
        split: The split that was compared.
    """
    # An ensemble is better than its members as a matter of course.
    groups = [g for g in section.groups if not g.best_run.is_ensemble] or section.groups
    ((usual, _),) = Counter(group.protocol for group in groups).most_common(1)
    best, *others = [group for group in groups if group.protocol == usual]
    if not others:
        perplexity = f"a perplexity of {_scores([best], split)}"
        return [Sentence(f"{best.name} has {perplexity}. There is nothing to compare it with.")]
    return list(_about_pair(best, others[0], comparisons, split))


def _about_pair(
    best: Group, other: Group, comparisons: Sequence[Comparison], split: str
) -> Iterator[Sentence]:
    tests = {
        (pair.unit == "seed", pair.evaluation): pair
        for pair in comparisons
        if (pair.first, pair.second) == (best, other)
    }
    seeds = tests.get((True, None))
    # By the models' own predictions, without cache or learning; beside a test over all seeds, not
    # one over the records of a few.
    numbers = len(best.runs), len(other.runs)
    texts = (tests.get((False, name)) for name in OWN_PREDICTIONS)
    text = next((pair for pair in texts if pair and (not seeds or pair.num_seeds == numbers)), None)
    known = seeds or text
    unclear = f"It is unclear whether {best.name} or {other.name} is better"
    if known is None:
        yield Sentence(_without_test([best, other], split))
    else:
        sign = 1 if known.test.difference > 0 else -1
        better, worse = (best, other)[::sign]
        percent, *ends = (
            100 * (1 - math.exp(min(-sign * nats, 700.0)))
            for nats in (known.test.difference, known.test.low, known.test.high)
        )
        unit = known.unit if known is text else best.unit
        how = (
            f"{percent:.1f}% lower {split} perplexity, 95% interval over {unit}s {min(ends):.1f} "
            f"to {max(ends):.1f}%, {_number_of(best.unit, *known.num_seeds[::sign])}"
        ).replace("-", "\N{MINUS SIGN}")
        if known.test.p < LEVEL <= known.adjusted_p:
            how += f"; among so many pairs, that may be chance (p = {known.adjusted_p:.3f}, Holm)"
        agree = text is None or (text.is_significant and text.test.difference * sign > 0)
        if seeds is not None and seeds.is_significant and agree:
            yield Sentence(f"{better.name} is better than {worse.name}: {how}.")
        else:
            yield Sentence(f"{unclear}: {better.name} has {how}.")
        if text is not None and not agree:
            yield Sentence("Other text of this kind might not agree: texts vary a lot.")
    both = (best, other)
    if seeds is None or not seeds.is_significant:
        few = [group for group in both if len(group.runs) < 2]
        few = few or [min(both, key=lambda group: len(group.runs))]
        commands = "; ".join(command for group in few if (command := _more_seeds(group)))
        yield Sentence(f"More seeds may settle it{':' if commands else '.'}", commands or None)
    elif without := [group for group in both if not _has_records(group, split)]:
        folders = [run.run_dir for group in without for run in group.runs]
        about = f"This is about other {best.unit}s on this text."
        if all((folder / "checkpoints/best.ckpt").exists() for folder in folders):
            option = printable(
                shlex.quote(f"run={','.join(quoted(str(pair)) for pair in folders)}")
            )
            yield Sentence(
                f"{about} To test it for other text of this kind too, if {split} has "
                f"{LEAST_UNITS} articles or, without titles, {LEAST_UNITS * BLOCK:,} tokens:",
                f"lmbench-evaluate -m {option} split={split} evaluation.save_tokens=true",
            )
        else:
            yield Sentence(about)


def _has_records(group: Group, split: str) -> bool:
    evaluations = (group.evaluations(name, split) for name in OWN_PREDICTIONS)
    return any(
        len(seeds) == len(group.runs) and all(run.records for run in seeds) for seeds in evaluations
    )


def _without_test(groups: Sequence[Group], split: str) -> str:
    split = _split_of_all(groups, split)
    means = [(value.mean, group) for group in groups if (value := group.perplexity(split))]
    (low, lower), (high, higher) = sorted(means, key=lambda pair: pair[0])
    lead = f"{100 * (1 - low / high):.1f}%"
    text = f"{lower.name} has a {lead} lower perplexity than {higher.name}"
    if lead == "0.0%":
        text = f"{lower.name} and {higher.name} have nearly the same perplexity"
    text += f": {_scores([lower, higher], split)}."
    has_single = any(len(group.runs) < 2 for group in groups)
    return f"{text} A test of that needs two seeds each." if has_single else text


def _split_of_all(groups: Sequence[Group], split: str) -> str:
    return split if all(group.perplexity(split) for group in groups) else "valid"


def _scores(groups: Sequence[Group], split: str) -> str:
    split = _split_of_all(groups, split)
    values = [value for group in groups if (value := group.perplexity(split))]
    means = " and ".join(perplexity_text(value.mean) for value in values)
    return f"{means} on {split}, {_number_of(groups[0].unit, *(x.num_values for x in values))}"


def _number_of(unit: str, *numbers: int) -> str:
    """In words: "three seeds each", "one and two seeds", "13 and 1 runs"."""
    words = [_NUMBERS[x] if max(numbers) < len(_NUMBERS) else str(x) for x in numbers]
    if len(set(words)) > 1:
        return f"{' and '.join(words)} {unit}s"
    return f"{words[0]} {unit}{'s' * (numbers[0] != 1)}{' each' * (len(words) > 1)}"


def _more_seeds(group: Group) -> str | None:
    """The command that trains a group's config with two seeds it does not have; None if unknown."""
    used = {run.seed for run in group.runs}
    free = [str(seed) for seed in range(1, len(used) + 3) if seed not in used]
    overrides, config = noted_overrides(group.best_run.run_dir), group.best_run.config
    if overrides is None:
        return None
    keys = set(map(key_of, overrides))
    # Not what it began with; or other weights are needed; or it would be one more search.
    if keys & {"resume", "init_from", "hparams_search"}:
        return None
    if config.get("trainer.devices", 1) not in (1, "1") or "trainer.devices[1]" in config:
        return None  # -m has one device for each job
    kept = [override for override in overrides if key_of(override) not in ("seed", "sweep_resume")]
    if not all(_is_plain(override, config) for override in kept):
        return None
    return f"lmbench-train -m {shlex.join([*kept, 'seed=' + ','.join(free[:2])])}"


def _is_plain(override: str, config: Mapping[str, object]) -> bool:
    """Whether an override of a run, which may come from a stranger, sets a value or chooses a part.

    Not one that names a class, or sets what the run does not have, such as a callback of Hydra.
    """
    key = key_of(override)
    is_key = any(f"{other}.".startswith(f"{key}.") for other in config) or bool(conf_files(key))
    can_be_set = is_key or override.startswith("~")
    return can_be_set and "_target_" not in override and override.isprintable()
