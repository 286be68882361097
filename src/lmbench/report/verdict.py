"""What a comparison says, in sentences that a newcomer understands."""

import math
import shlex
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from lmbench.errors import UserError
from lmbench.files import read_small
from lmbench.printing import printable
from lmbench.report.groups import Group, Section
from lmbench.report.significance import OWN_PREDICTIONS, Comparison
from lmbench.report.tables import perplexity_text

_NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


class Sentence(NamedTuple):
    """A sentence, and the command that it ends in, if any."""

    text: str
    command: str | None = None


def verdict(
    section: Section,
    over_text: Sequence[Comparison],
    over_seeds: Sequence[Comparison],
    split: str,
) -> list[Sentence]:
    """Which group is best, by how much, and whether that is more than chance.

    The first sentence is about the two groups with the lowest valid perplexity that were read
    alike. What is missing to tell which of them is better follows, with the command that gives it.

    Args:
        section: The groups.
        over_text: All comparisons over the text.
        over_seeds: All comparisons over seeds.
        split: The split that was compared.
    """
    # An ensemble is better than its members as a matter of course.
    groups = [group for group in section.groups if group.best_run.model != "ensemble"]
    best, *others = groups or section.groups
    others = [group for group in others if group.protocol == best.protocol]
    if not others:
        of_best = f"a perplexity of {_scores([best], split)}"
        return [Sentence(f"{best.name} has {of_best}. There is nothing to compare it with.")]
    sentences = list(_about_pair(best, others[0], over_text, over_seeds, split))
    tested = [one for one in over_seeds if one.first == best]
    beaten = sum(one.holds and one.ratio > 1 for one in tested)
    if beaten and len(tested) > 1:
        text = f"better than {beaten} of the {len(tested)} groups tested with it."
        sentences.append(Sentence(f"Over seeds, {best.name} is {text}"))
    return sentences


def _about_pair(
    best: Group,
    other: Group,
    over_text: Sequence[Comparison],
    over_seeds: Sequence[Comparison],
    split: str,
) -> Iterator[Sentence]:
    seeds, text = (_own(comparisons, best, other) for comparisons in (over_seeds, over_text))
    known = seeds or text
    unclear = f"It is not shown whether {best.name} or {other.name} is better"
    if known is None:
        yield Sentence(f"{unclear}: they have {_scores([best, other], split)}.")
    else:
        sign = 1 if known.test.difference > 0 else -1
        better, worse = (best, other)[::sign]
        percent, *ends = (
            100 * (1 - math.exp(min(-sign * nats, 700.0)))
            for nats in (known.test.difference, known.test.low, known.test.high)
        )
        how = (
            f"{percent:.1f}% lower {split} perplexity, 95% interval {min(ends):.1f} to "
            f"{max(ends):.1f}%, {_seeds(*known.num_seeds)}"
        ).replace("-", "\N{MINUS SIGN}")
        agree = text is None or (text.holds and text.test.difference * sign > 0)
        if seeds is not None and seeds.holds and agree:
            yield Sentence(f"{better.name} is better than {worse.name}: {how}.")
        else:
            yield Sentence(f"{unclear}: {better.name} has {how}.")
        if not agree:
            yield Sentence("Other text of this kind might not agree: articles differ too much.")
    if seeds is None or not seeds.holds:
        few = min(best, other, key=lambda group: len(group.runs))
        yield Sentence("More seeds would tell:", _more_seeds(few))
    elif text is None:
        runs = ",".join(str(run.run_dir) for group in (best, other) for run in group.runs)
        option = shlex.quote(f"run={printable(runs)}")
        yield Sentence(
            "This is about other seeds on this text. To test it for other text of this kind too:",
            f"lmbench-evaluate -m {option} split={split} evaluation.save_tokens=true",
        )


def _own(comparisons: Sequence[Comparison], first: Group, second: Group) -> Comparison | None:
    """The comparison of the two by the models' own predictions, without cache or learning."""
    own = {one.evaluation: one for one in comparisons if (one.first, one.second) == (first, second)}
    return next((own[name] for name in (None, *OWN_PREDICTIONS) if name in own), None)


def _scores(groups: Sequence[Group], split: str) -> str:
    split = split if all(group.perplexity(split) for group in groups) else "valid"
    values = [value for group in groups if (value := group.perplexity(split))]
    means = " and ".join(perplexity_text(value.mean) for value in values)
    return f"{means} on {split}, {_seeds(*(value.num_values for value in values))}"


def _seeds(*numbers: int) -> str:
    """In words: "three seeds each", "one and two seeds"."""
    words = [_NUMBERS[number] if number < len(_NUMBERS) else str(number) for number in numbers]
    if len(set(words)) > 1:
        return f"{' and '.join(words)} seeds"
    return f"{words[0]} seed{'s' * (words[0] != 'one')}{' each' * (len(words) > 1)}"


def _more_seeds(group: Group) -> str:
    """The command that trains a group's config with two seeds that it does not have."""
    used = {run.seed for run in group.runs}
    free = [str(seed) for seed in range(1, len(used) + 3) if seed not in used]
    seeds = f"seed={','.join(free[:2])}"
    try:  # what Hydra has noted of the command line, a line for each override
        noted = read_small(group.best_run.run_dir / ".hydra/overrides.yaml", 2**16).splitlines()
    except UserError:
        return f"lmbench-train -m … {seeds}"
    overrides = [printable(line.removeprefix("- ").strip("'\"")) for line in noted]
    kept = [one for one in overrides if not one.startswith("seed=") and one != "[]"]
    return f"lmbench-train -m {shlex.join([*kept, seeds])}"
