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
        "--nonsense",
    ],
)
def test_what_is_refused(arguments: str, capsys: pytest.CaptureFixture):
    with pytest.raises(SystemExit) as ended:
        parse_options(["DIR", *arguments.split()])
    assert ended.value.code == 2
    _, _, message = capsys.readouterr().err.partition("error: ")
    assert arguments.split(maxsplit=1)[0] in message
