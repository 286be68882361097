import pytest

from lmbench.cli.generate import parse_options


def test_the_default_seed_differs_each_time():
    assert len({parse_options(["DIR"]).seed for _ in range(5)}) > 1
    assert parse_options(["DIR", "--seed", "7"]).seed == 7


def test_options_that_go_together():
    options = parse_options(
        ["DIR", "--temperature", "1e-3", "--top-k", "5", "--top-p", "0.5", "--allow-unk"]
    )
    assert (options.temperature, options.top_k, options.top_p) == (1e-3, 5, 0.5)
    assert parse_options(["DIR", "--temperature", "0", "--allow-unk"]).allow_unk
    assert parse_options(["DIR", "--temperature", "0", "--num-tokens", "1"]).num_tokens == 1


@pytest.mark.parametrize(
    "arguments",
    [
        "--num-tokens 0",
        "--num-tokens 1.5",
        f"--num-tokens {2**63}",
        "--temperature nan",
        "--temperature inf",
        "--top-k -1",
        "--top-p 0",
        "--top-p 1.5",
        "--seed -1",
        f"--seed {2**63}",
        "--num-samples 0",
        "--seed 5 --temperature 0",
        "--num-samples 2 --temperature 0",
        "--nonsense",
    ],
)
def test_what_is_refused(arguments: str, capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit) as ended:
        parse_options(["DIR", *arguments.split()])
    assert ended.value.code == 2
    _, _, message = capsys.readouterr().err.partition("error: ")
    assert arguments.split(maxsplit=1)[0] in message


@pytest.mark.parametrize(
    ("arguments", "limit"),
    [
        ("--temperature -1", "must be at least 0, not -1"),
        ("--temperature nan", "must be at least 0, not nan"),
        ("--top-p x", "invalid probability value: 'x'"),
        ("--top-p 0", "must be more than 0 and at most 1, not 0"),
        (f"--seed {2**63}", f"must be smaller, not {2**63}"),
    ],
)
def test_a_number_out_of_range_is_refused_with_its_limit(
    arguments: str, limit: str, capsys: pytest.CaptureFixture
):
    with pytest.raises(SystemExit):
        parse_options(["DIR", *arguments.split()])
    assert capsys.readouterr().err.endswith(f"{limit}\n")
