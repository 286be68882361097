"""The changes that the script makes."""

import ast

from mutants import mutate, sites

SOURCE = '''
LIMIT = 3

def mean(values: list[float], *, is_exact=False):
    """The mean of 2 or more."""
    log.info("%d values", len(values))
    if not values or len(values) < LIMIT:
        raise ValueError(f"{len(values) + 1} are needed")
    total.count += len(values)
    return sum(values) / len(values)
'''


def test_each_mutant_is_one_change():
    """Annotations, texts, logging and f-strings stay as they are."""
    number = len(list(sites(ast.parse(SOURCE))))
    mutants = [mutate("x.py", SOURCE, place) for place in range(number)]
    for _, source in mutants:
        compile(source, "x.py", "exec")
    condition = "if not values or len(values) < LIMIT:"
    result = "return sum(values) / len(values)"
    signature = "def mean(values: list[float], *, is_exact=False):"
    assert [(m.line, m.kind, m.before, m.after, m.in_function) for m, _ in mutants] == [
        (2, "constant", "LIMIT = 3", "LIMIT = 4", False),
        (4, "constant", signature, signature.replace("False", "True"), False),
        (7, "operator", condition, condition.replace("or", "and"), True),
        (7, "operator", condition, condition.replace("not ", ""), True),
        (7, "operator", condition, condition.replace("<", "<="), True),
        (8, "removed", "raise ValueError(f'{len(values) + 1} are needed')", "pass", True),
        (9, "removed", "total.count += len(values)", "pass", True),
        (9, "operator", "total.count += len(values)", "total.count -= len(values)", True),
        (10, "operator", result, result.replace("/", "*"), True),
    ]
    assert [m.unparsed_lines for m, _ in mutants[:3]] == [(1, 1), (3, 9), (6, 6)]
