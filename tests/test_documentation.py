"""Links between the pages of the documentation lead somewhere, and commands have configs."""

import re
import shlex
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from small import composed
from torch.testing import assert_close

from lmbench.cli import compare, export, generate, score
from lmbench.cli._run_arguments import with_run
from lmbench.run.changes import RESUMABLE

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def links(text: str) -> list[str]:
    """The targets of links and pictures within the repository."""
    targets = re.findall(r"\]\(([^)\s]+)\)", text)
    return [target for target in targets if not target.startswith(("https://", "http://"))]


def anchors(text: str) -> set[str]:
    """Headings' anchors as GitHub names them: lower case, hyphens for spaces, no punctuation."""
    without_code = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", without_code, flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_to_files_and_headings(page: Path):
    found = links(page.read_text("utf-8"))
    assert found
    for link in found:
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert target.is_relative_to(ROOT)
        if anchor:
            assert anchor in anchors(target.read_text("utf-8")), link


def commands(text: str, name: str = "lmbench-train") -> Iterator[list[str]]:
    """The arguments of each such command in a block of commands or in a table."""
    text = text.replace("\\\n", " ")
    in_blocks = re.findall(rf"^ {{4}}(?:.* )?{name} (.*)", text, flags=re.MULTILINE)
    in_tables = re.findall(rf"^\|.*`{name} ([^`]+)`", text, flags=re.MULTILINE)
    for line in in_blocks + in_tables:
        yield shlex.split(line, comments=True)


OWN_PARTS = f"hydra.searchpath=['file://{ROOT}/examples/own_parts/own_parts/conf']"
"""Makes the options of that package known, as installing it does."""


def is_of_a_start(argument: str) -> bool:
    """Whether an argument says something of the run itself, not of where and how it is started."""
    return "=" in argument and not re.match(
        r"\+?hydra|hparams_search|resume|sweep_resume|experiment=NAME", argument
    )


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_choice_in_a_command_has_a_config(page: Path):
    """Each choice of a sweep, with the first one of the others."""
    parser = OverridesParser.create()
    to_compose: set[tuple[str, ...]] = set()
    for arguments in commands(page.read_text("utf-8")):
        if "--config-dir" in arguments:  # of the reader's own
            continue
        overrides = [parser.parse_override(text) for text in arguments if is_of_a_start(text)]
        choices = [
            [f"{one.get_key_element()}={choice}" for choice in one.sweep_string_iterator()]
            if one.is_sweep_override()
            else [one.input_line]
            for one in overrides
        ]
        first = tuple(of_one[0] for of_one in choices)
        for place, of_one in enumerate(choices):
            to_compose |= {(*first[:place], choice, *first[place + 1 :]) for choice in of_one}
    for overrides_of_one in to_compose:
        assert composed(*overrides_of_one, OWN_PARTS).seed


def test_what_a_resume_may_change_is_documented():
    text = (ROOT / "docs/training.md").read_text("utf-8")
    table = text.partition("A resume may change these values:")[2].partition("Any other")[0]
    names = re.findall(r"`((?:\w+\.)+\w+|float32_matmul_precision)`", table)
    assert sorted(names) == sorted(RESUMABLE)


PARSERS = {
    "lmbench-generate": generate.parse_options,
    "lmbench-score": score.parse_options,
    "lmbench-compare": compare._parser().parse_args,
    "lmbench-export": export._parser().parse_args,
}
PLAIN = [
    (name, arguments)
    for page in PAGES
    for name in PARSERS
    for arguments in commands(page.read_text("utf-8"), name)
]


@pytest.mark.parametrize(("name", "arguments"), PLAIN, ids="".join)
def test_every_plain_command_has_its_options(
    name: str, arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "RUN_DIR").mkdir()
    own = takewhile(lambda text: text not in (">", "|", "<"), arguments)
    assert PARSERS[name](list(own))


EVALUATIONS = [
    arguments
    for page in PAGES
    for arguments in commands(page.read_text("utf-8"), "lmbench-evaluate")
]


@pytest.mark.parametrize("arguments", EVALUATIONS, ids=" ".join)
def test_every_evaluation_has_a_config(arguments: list[str]):
    own = [text for text in with_run(arguments) if not re.match(r"-m|run=|hydra|split=", text)]
    assert composed(*own, OWN_PARTS, name="evaluate").evaluation.columns


def python_blocks(page: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", page.read_text("utf-8"), re.MULTILINE | re.DOTALL)


@pytest.mark.slow
def test_the_parts_in_python_train(capsys: pytest.CaptureFixture[str]):
    names: dict[str, Any] = {}
    for code in python_blocks(ROOT / "docs/training.md"):
        exec(code.replace("max_epochs=4", "max_epochs=1"), names)
    *_, perplexity = capsys.readouterr().out.split()
    assert 107.02 < float(perplexity) < 1_001  # the floor; a guess among all words
    log_probs = names["model"].head.log_probs(names["output"])
    targets = names["tokens"][1:].unsqueeze(-1)
    assert_close(names["nats_per_token"], -log_probs.gather(-1, targets).mean())
