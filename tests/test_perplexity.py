import math

from lmbench.perplexity import Score


def test_a_score_divides_by_its_tokens_and_its_extra_divisor():
    score = Score(30.0, 8, extra_divisor=2)
    assert score.plain() == {"nll": 3.0, "ppl": math.exp(3), "num_tokens": 8}
    assert Score(800.0, 1).ppl == math.inf
