"""What a comparison says, in sentences."""

from collections.abc import Sequence

from lmbench.report.groups import Group, Section
from lmbench.report.significance import LEAST_UNITS, LEVEL, OWN_PREDICTIONS, Comparison
from lmbench.report.significance_tables import p_text
from lmbench.report.statistics import NUM_RESAMPLES
from lmbench.report.summary import estimate_text, perplexity_text, protocol_marks

TWO_KINDS = (
    "Two tests speak about two things. The one over the text asks whether these trained models "
    "would differ on other text of the same kind: it draws articles (or blocks of 1,000 tokens, "
    f"where there are no articles) with replacement, {NUM_RESAMPLES:,} times, and gives no verdict "
    f"where there are fewer than {LEAST_UNITS}. The one over the seeds asks whether models trained "
    "with other seeds would differ on this text: it is Welch's, or Student's for pairs where runs "
    "of both groups go back to the same weights (or to runs of one config and seed). A recipe is "
    "shown to be better only if both hold. "
    "p is adjusted (Holm) for all pairs of an evaluation, or of the "
    f"test over seeds; a difference holds if it is below {LEVEL:g}. Differences are the second "
    "group's nats per token minus the first one's: above zero, the first is better. Their 95% "
    "intervals are those of each pair for itself, not adjusted, so that one which leaves out zero "
    "may belong to a difference that does not hold."
)


def conclusions(
    section: Section,
    over_text: Sequence[Comparison],
    over_seeds: Sequence[Comparison],
    split: str,
) -> list[str]:
    """What is best, by how much, and whether that is significant.

    Args:
        section: The groups.
        over_text: All comparisons over the text.
        over_seeds: All comparisons over seeds.
        split: The split that was compared.
    """
    marks = protocol_marks(section.groups)  # none where a group was evaluated as most were
    best, *others = [group for group in section.groups if not marks[group.protocol]]
    apart = len(section.groups) - 1 - len(others)
    among = f" (Set aside, as evaluated otherwise: {apart}.)" if apart else ""
    sentences = [
        f"{_named(best)} has the lowest valid perplexity: {_score(best, 'valid')}.{among} "
        f"{_tested(best)}."
    ]
    if not others:
        return [*sentences, "There is no other group to compare it with."]
    next_best, change = others[0], ""
    one, other = best.perplexity("test"), next_best.perplexity("test")
    if one and other:
        ratio = other.mean / one.mean
        percent = f"{abs(ratio - 1):.1%} {'higher' if ratio >= 1 else 'lower'}"
        change = f", which is {percent if ratio < 10 else f'{ratio:.1e} times as much'}"
    sentences.append(
        f"Next is {_named(next_best)}: {_score(next_best, 'valid')}. {_tested(next_best)}{change}."
    )
    of_text = _own(over_text, best, next_best)
    of_seeds = _own(over_seeds, best, next_best)
    sentences += [
        _about(of_text, f"Over the {split} text, for these trained models")
        or "Over the text, the two are not tested: no standard records are of the same "
        "tokens, read alike.",
        _about(of_seeds, f"Over seeds, on {split}")
        or "Over seeds, the two are not tested: that takes two seeds of each, or two pairs where "
        "runs of both go back to the same weights, and scores that are not all equal.",
    ]
    if of_text and of_seeds and not of_text.has_too_few_units:
        sentences.append(_verdict(of_text, of_seeds, best, next_best))
    else:
        sentences.append("So it is not shown that either is better.")
    return sentences


def _own(comparisons: Sequence[Comparison], first: Group, second: Group) -> Comparison | None:
    """The comparison of the two by the models' own predictions, without cache or learning."""
    own = {one.evaluation: one for one in comparisons if (one.first, one.second) == (first, second)}
    return next((own[name] for name in (None, *OWN_PREDICTIONS) if name in own), None)


def _about(comparison: Comparison | None, where: str) -> str:
    if comparison is None:
        return ""
    evaluation = f" ({comparison.evaluation})" if comparison.evaluation else ""
    difference = f"the difference of {comparison.test.difference:.4f} nats per token"
    if comparison.has_too_few_units:
        units = f"{comparison.num_units} {comparison.unit}" + "s" * (comparison.num_units != 1)
        said = f"{difference} has no verdict: {units} are too few, it takes {LEAST_UNITS}."
    else:
        holds = "holds" if comparison.holds else "does not hold"
        said = f"{difference} {holds} (adjusted p {_equals(comparison.adjusted_p)})."
    return f"{where}{evaluation}, {said}".replace(" -", " \N{MINUS SIGN}")


def _verdict(text: Comparison, seeds: Comparison, best: Group, next_best: Group) -> str:
    if not (text.holds and seeds.holds):
        return "Not both hold: it is not shown that either is better."
    if (text.test.difference > 0) != (seeds.test.difference > 0):
        return "The two point in opposite directions: it is not shown that either is better."
    better, worse = (best, next_best) if seeds.test.difference > 0 else (next_best, best)
    return f"Both hold: {_named(better)} is better than {_named(worse)}."


def _equals(p: float) -> str:
    text = p_text(p)
    return text if text.startswith("<") else f"= {text}"


def _named(group: Group) -> str:
    return group.short_label(80)


def _score(group: Group, split: str) -> str:
    value = group.perplexity(split)
    if value is not None and value.num_values == 1:
        return f"{perplexity_text(value.mean)}, a single seed"
    return f"{estimate_text(value)} over {value.num_values if value else 0} seeds"


def _tested(group: Group) -> str:
    if group.perplexity("test") is None:
        return "It was not tested"
    return f"On test it comes to {_score(group, 'test')}"
