from typing import Any

import pytest

from lmbench.command.generate_options import parse_options


def test_the_defaults():
    options = vars(parse_options(["DIR"]))
    assert 0 <= options.pop("seed") < 2**32
    assert str(options.pop("folder")) == "DIR"
    assert options == {
        "prompt": None,
        "num_tokens": 100,
        "temperature": 1.0,
        "top_k": 0,
        "top_p": 1.0,
        "num_samples": 1,
        "allow_unk": False,
        "score": None,
        "device": "auto",
    }


def test_a_seed_is_another_one_each_time():
    assert len({parse_options(["DIR"]).seed for _ in range(5)}) > 1
    assert parse_options(["DIR", "--seed", "7"]).seed == 7


@pytest.mark.parametrize(
    ("arguments", "name", "value"),
    [
        ("--temperature 0", "temperature", 0.0),
        ("--temperature 1e-3 --top-k 5 --top-p 0.5", "top_p", 0.5),
        ("--top-p 1", "top_p", 1.0),
        ("--num-samples 3 --num-tokens 1", "num_samples", 3),
        ("--allow-unk --prompt x", "allow_unk", True),
        ("--score - --device cpu", "score", "-"),
        ("--temperature 0 --num-tokens 3 --prompt x --allow-unk", "num_tokens", 3),
    ],
)
def test_what_goes_together(arguments: str, name: str, value: Any):
    assert getattr(parse_options(["DIR", *arguments.split()]), name) == value


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--num-tokens 0", "--num-tokens: '0' is not a whole number from 1 to 2**63 - 1"),
        ("--num-tokens many", "--num-tokens: 'many' is not a whole number"),
        ("--num-tokens 1.5", "--num-tokens: '1.5' is not a whole number"),
        (f"--num-tokens {2**63}", f"--num-tokens: '{2**63}' is not a whole number from 1 to"),
        ("--temperature -1", "--temperature: '-1' is not a number from 0 on"),
        ("--temperature nan", "--temperature: 'nan' is not a number from 0 on"),
        ("--temperature inf", "--temperature: 'inf' is not a number from 0 on"),
        ("--top-k -1", "--top-k: '-1' is not a whole number from 0 on"),
        ("--top-p 0", "--top-p: '0' is not a number above 0 and up to 1"),
        ("--top-p 1.5", "--top-p: '1.5' is not a number above 0 and up to 1"),
        ("--seed -1", "--seed: '-1' is not a whole number from 0 to 2**63 - 1"),
        (f"--seed {2**63}", f"--seed: '{2**63}' is not a whole number"),
        ("--num-samples 0", "--num-samples: '0' is not a whole number from 1 to 2**63 - 1"),
        ("--score x --prompt y", "--prompt does not go with --score"),
        ("--score x --num-tokens 100", "--num-tokens does not go with --score"),
        ("--score x --seed 1", "--seed does not go with --score"),
        ("--score x --allow-unk", "--allow-unk does not go with --score"),
        ("--temperature 0 --top-k 5", "--top-k does not go with --temperature 0"),
        ("--temperature 0 --seed 5", "--seed does not go with --temperature 0"),
        ("--temperature 0 --num-samples 2", "--num-samples does not go with --temperature 0"),
        ("--nonsense", "unrecognized arguments: --nonsense"),
    ],
)
def test_what_is_refused(arguments: str, message: str, capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit) as ended:
        parse_options(["DIR", *arguments.split()])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
