"""Changes the code in small ways, one at a time, and counts the changes that fast tests notice.

A mutant has one operator or number changed, or one statement removed. It is caught if a test fails
or takes far longer than before, and not caught if no test reaches it. Coverage says which tests
execute a line; it does not see into processes that they start.

    python scripts/mutants.py                     200 mutants; takes about 40 minutes on one core
    python scripts/mutants.py --number 20 --seed 1 --output mutants.json
    python scripts/mutants.py --checkout DIR      mutants of another checkout, under its own tests

It works in a temporary copy.
"""

import argparse
import ast
import contextlib
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import pytest

PARTS = ["data", "evaluation", "loss", "model", "optim", "module.py"]
PARTS += ["callbacks/checkpoints.py", "callbacks/nt_asgd.py"]
NOT_TESTED = ("__repr__", "extra_repr")
PAIRS = [(ast.Add, ast.Sub), (ast.Mult, ast.Div), (ast.Eq, ast.NotEq), (ast.And, ast.Or)]
PAIRS += [(ast.Lt, ast.LtE), (ast.Gt, ast.GtE)]
OTHER_OPERATOR: dict[type, type[ast.AST]] = dict(PAIRS) | {new: old for old, new in PAIRS}
OTHER_OPERATOR |= {ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult}
PYTEST = ["-m", "not slow and not gpu", "--tb=no", "--assert=plain", "-p", "no:cacheprovider"]
SLOW_IMPORTS = ["lightning", "torch.utils.tensorboard", "torchmetrics", "hydra", "datasets"]
SLOW_IMPORTS += ["hypothesis", "matplotlib.pyplot", "scipy.stats"]
TIMES_LONGER, SECONDS_MORE = 3, 30  # than the tests took before
MOST_BYTES = 8 * 2**30  # an endless loop may append


class Mutant(NamedTuple):
    """One change of the code."""

    path: str
    line: int
    kind: str
    before: str
    after: str
    in_function: bool  # else it takes effect at import
    unparsed_lines: tuple[int, int]  # first and last; of the whole function for a default

    def __str__(self) -> str:
        return f"{self.path}:{self.line} {self.kind}: {self.before}  →  {self.after}"


class Watch:
    """A plugin of pytest that notes how long tests take and which fail."""

    def __init__(self, begin: Callable[[str], Any] = lambda test: None) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.failed: list[str] = []
        self._begin = begin

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> None:
        """Is called before the fixtures are made."""
        self._begin(item.nodeid)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Is called after the setup, the call and the teardown of each test."""
        self.seconds[report.nodeid] += report.duration
        if report.failed:
            self.failed.append(report.nodeid)


def main(args: argparse.Namespace) -> None:
    """Draws the mutants, runs tests on each, and prints the shares and the survivors."""
    checkout, output = args.checkout.resolve(), args.output and args.output.absolute()
    if output:
        output.touch()  # now, rather than fail after all mutants
    root = checkout / "src/lmbench"
    files = [file for part in PARTS for file in [root / part, *(root / part).rglob("*.py")]]
    sources = {
        file.relative_to(root).as_posix(): file.read_text("utf-8")
        for file in sorted(files)
        if file.is_file()
    }
    places = [(p, n) for p in sources for n in range(len(list(sites(ast.parse(sources[p])))))]
    drawn = sorted(random.Random(args.seed).sample(places, min(args.number, len(places))))
    print(f"{len(drawn)} of {len(places)} possible mutants", flush=True)
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        ignored = shutil.ignore_patterns(".git", ".venv*", "__pycache__", "outputs", "multirun")
        shutil.copytree(checkout, folder, ignore=ignored, dirs_exist_ok=True)
        rows = list(outcomes(Path(folder, "src/lmbench"), sources, drawn))
    show(rows)
    if output:
        output.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n", "utf-8")


def outcomes(
    package: Path, sources: dict[str, str], drawn: list[tuple[str, int]]
) -> Iterator[dict[str, Any]]:
    """What became of each mutant, in a copy of the package that is changed for it."""
    os.environ |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(package.parent)}
    os.chdir(package.parents[1])
    sys.path.insert(0, str(package.parent))
    for name in SLOW_IMPORTS:  # before the forks, except the package, of which each has its own
        import_module(name)
    for path, source in sources.items():
        write(package / path, ast.unparse(ast.parse(source)))
    tests_of_line, seconds_of, failed = in_child(partial(run_all, package))
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    sys.dont_write_bytecode = True
    print(f"{len(seconds_of)} tests pass, in {sum(seconds_of.values()):.0f} s", flush=True)
    for test in failed:
        print(f"left out, because it fails without a change: {test}")
    for number, (path, place) in enumerate(drawn, start=1):
        mutant, source = mutate(path, sources[path], place)
        start = time.monotonic()
        tests = near_tests(mutant, list(seconds_of), tests_of_line)
        limit = SECONDS_MORE + TIMES_LONGER * sum(seconds_of[test] for test in tests)
        write(package / path, source, mutated=True)
        caught_by = in_child(partial(first_failure, tests), limit, "time or death")
        write(package / path, ast.unparse(ast.parse(sources[path])))
        outcome = "caught" if caught_by else "SURVIVED"
        print(f"{number:3} {outcome:8} {time.monotonic() - start:3.0f} s {mutant}", flush=True)
        yield mutant._asdict() | {"tests": len(tests), "caught_by": caught_by}


def sites(
    node: ast.AST, line: int = 0, *, in_function: bool = False
) -> Iterator[tuple[str, int, bool, Callable[[], None]]]:
    """What can be changed below a node: the kind, the line, whether in a function, and the change.

    Annotations, f-strings, logging and the texts that represent objects are left alone.
    """
    functions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
    for field, value in ast.iter_fields(node):
        inside = in_function or (field == "body" and isinstance(node, functions))
        for index, child in enumerate(value if isinstance(value, list) else [value]):
            match child:
                case ast.FunctionDef(name=name) if name in NOT_TESTED:
                    continue
                case ast.JoinedStr() | ast.Expr(ast.Call(ast.Attribute(ast.Name("log")))):
                    continue
            if not isinstance(child, ast.AST) or field in ("annotation", "returns"):
                continue
            at = getattr(child, "lineno", line)
            kind, new = changed(child)
            if new and isinstance(value, list):
                yield kind, at, inside, partial(value.__setitem__, index, new)
            elif new:
                yield kind, at, inside, partial(setattr, node, field, new)
            yield from sites(child, at, in_function=inside)


def changed(node: ast.AST) -> tuple[str, ast.AST | None]:
    """The kind of change, and what replaces a node; None if it is not changed."""
    match node:
        case ast.Constant(bool(value)):
            return "constant", ast.Constant(not value)
        case ast.Constant(int(value) | float(value)) if value + 1 != value:
            return "constant", ast.Constant(value + 1)
        case ast.UnaryOp(ast.Not(), operand):
            return "operator", operand
        case ast.Expr(ast.Call()) | ast.Raise():
            return "removed", ast.Pass()
        case ast.Assign([target]) | ast.AugAssign(target) | ast.AnnAssign(target, value=ast.AST()):
            stays = not isinstance(target, ast.Attribute | ast.Subscript)
            return "removed", None if stays else ast.Pass()
    other = OTHER_OPERATOR.get(type(node))
    return "operator", other and other()


def mutate(path: str, source: str, place: int) -> tuple[Mutant, str]:
    """Makes one of the possible changes, and returns it with the resulting source."""
    tree = ast.parse(source)
    old = ast.unparse(tree)
    kind, line, in_function, change = list(sites(tree))[place]
    change()
    new = ast.unparse(tree)
    old_lines, new_lines = old.splitlines(), new.splitlines()
    at = first_difference(old_lines, new_lines)
    before, after = old_lines[at].strip(), new_lines[at].strip()
    # Around the change, as a signature with all its defaults is one long line.
    start = max(0, first_difference(before, after) - 60)
    before, after = before[start : start + 120], after[start : start + 120]
    lines = (at + 1, at + 1)
    if not in_function:
        spans = [
            (node.lineno - len(node.decorator_list), node.end_lineno or node.lineno)
            for node in ast.walk(ast.parse(new))
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        ]
        around = [(first, last) for first, last in spans if first <= at + 1 <= last]
        lines = min(around, key=lambda span: span[1] - span[0], default=lines)
    return Mutant(path, line, kind, before, after, in_function, lines), new


def first_difference(left: Sequence[str], right: Sequence[str]) -> int:
    """The index of the first items that differ."""
    pairs = zip(left, right, strict=False)
    return next(index for index, (one, other) in enumerate(pairs) if one != other)


def write(file: Path, source: str, *, mutated: bool = False) -> None:
    """Writes a file, dated so that Python does not take the original's bytecode for a mutant's."""
    file.write_text(source, "utf-8")
    os.utime(file, (mutated, mutated))


def near_tests(
    mutant: Mutant, tests: list[str], tests_of_line: dict[tuple[str, int], set[str]]
) -> list[str]:
    """Tests that execute the lines, the mirrored file's first; at import, its folder's too."""
    first, last = mutant.unparsed_lines
    lines = [tests_of_line.get((mutant.path, line), set()) for line in range(first, last + 1)]
    executing = set[str]().union(*lines)
    folder = PurePosixPath("tests", mutant.path).parent
    file = folder / f"test_{PurePosixPath(mutant.path).stem}.py"
    file_of = {test: PurePosixPath(test.split("::")[0]) for test in tests}
    near = [
        test
        for test in tests
        if test in executing or (not mutant.in_function and file_of[test].parent == folder)
    ]
    return sorted(near, key=lambda test: (file_of[test] != file, file_of[test].parent != folder))


def run_all(package: Path) -> tuple[dict[tuple[str, int], set[str]], dict[str, float], list[str]]:
    """The tests of each line, the seconds of each test, and those that fail without a change."""
    from coverage import Coverage

    coverage = Coverage(data_file=None, include=[f"{package}/*"], config_file=False)
    coverage.start()
    watch = Watch(coverage.switch_context)
    pytest.main([*PYTEST, "tests"], [watch])
    coverage.stop()
    data = coverage.get_data()
    tests = {
        (Path(file).relative_to(package).as_posix(), line): set(names)
        for file in data.measured_files()
        for line, names in data.contexts_by_lineno(file).items()
    }
    passed = {test: spent for test, spent in watch.seconds.items() if test not in watch.failed}
    return tests, passed, watch.failed


def first_failure(tests: list[str]) -> str | None:
    """The first test that fails, or pytest's exit code if it could not even import them."""
    watch = Watch()
    code = pytest.main(["-x", *PYTEST, *tests], [watch]) if tests else 0
    return watch.failed[0] if watch.failed else f"exit code {code}" if code else None


def in_child(work: Callable[[], Any], seconds: float | None = None, otherwise: Any = None) -> Any:
    """What a forked process returns, or ``otherwise`` if it dies or takes longer."""
    context = get_context("fork")
    receiver, sender = context.Pipe(duplex=False)

    def child() -> None:
        os.setsid()
        resource.setrlimit(resource.RLIMIT_DATA, (MOST_BYTES, MOST_BYTES))
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in (1, 2):
            os.dup2(nowhere, stream)
        sender.send(work())

    process = context.Process(target=child)
    process.start()
    assert process.pid
    sender.close()
    result = otherwise
    with contextlib.suppress(EOFError):
        if receiver.poll(seconds):
            result = receiver.recv()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # and what it has started
    process.join()
    return result


def show(rows: list[dict[str, Any]]) -> None:
    """Prints the shares by folder, and the survivors."""
    print(f"{'':12}{'mutants':>8}{'caught':>8}{'share':>8}")
    for folder in [*dict.fromkeys(row["path"].split("/")[0] for row in rows), ""]:
        caught = [bool(row["caught_by"]) for row in rows if row["path"].startswith(folder)]
        share = sum(caught) / len(caught)
        print(f"{folder or 'all':12}{len(caught):8}{sum(caught):8}{share:8.1%}")
    for row in rows:
        if not row["caught_by"]:
            print(f"{row['path']}:{row['line']} {row['kind']}: {row['before']}  →  {row['after']}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    here = Path(__file__).parents[1]
    parser.add_argument("--number", type=int, default=200, help="default %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="of the sample; default %(default)s")
    parser.add_argument("--output", type=Path, help="a JSON file of all mutants")
    parser.add_argument("--checkout", type=Path, default=here, help="default this one")
    main(parser.parse_args())
