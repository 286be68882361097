"""Builds the API reference from the docstrings: HTML for every module, by pdoc.

``make docs`` calls it. It fails on a warning from pdoc, and if a reference such as
``:class:`Core``` leads nowhere.
"""

import argparse
import pkgutil
import re
import shutil
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path

import pdoc
import pdoc.extract
import pdoc.render

import lmbench

REFERENCE = re.compile(r":(?:attr|class|data|func|meth|mod):`([\w.]+)`")


def build(output: Path) -> list[str]:
    """Writes the pages.

    Args:
        output: The folder of the pages, which is emptied first.

    Returns:
        The references that lead nowhere, with their modules.
    """
    if output.exists() and not (output / "lmbench.html").exists() and any(output.iterdir()):
        sys.exit(f"{output} holds something other than the reference. Name another folder.")
    shutil.rmtree(output, ignore_errors=True)
    warnings.simplefilter("error", UserWarning)  # the kind that pdoc issues
    pdoc.render.configure(docformat="google")
    names = [module.name for module in pkgutil.walk_packages(lmbench.__path__, "lmbench.")]
    if not find_spec("lm_eval"):  # a heavy dependency, which may be missing
        names.remove("lmbench.hf.lm_eval")
    reached = set(pdoc.extract.walk_specs(["lmbench"]))  # without those that an __all__ leaves out
    pdoc.pdoc("lmbench", *[name for name in names if name not in reached], output_directory=output)
    broken = []
    for name in ["lmbench", *names]:
        source = Path(sys.modules[name].__file__ or "").read_text("utf-8")
        page = output.joinpath(*name.split(".")).with_suffix(".html").read_text("utf-8")
        broken += [f"{name}: {target}" for target in broken_references(source, page)]
    return broken


def broken_references(source: str, page: str) -> list[str]:
    """The references in a module's source that did not become links on its page."""
    targets = sorted(set(REFERENCE.findall(source)))
    # pdoc appends () to functions and methods.
    return [x for x in targets if re.search(rf"<code>{re.escape(x)}(\(\))?</code>", page)]


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description="Build the API reference.")
    help_output = "folder of the pages, which is emptied first (build/docs)"
    default = Path("build/docs")
    parser.add_argument("--output", metavar="DIR", type=Path, default=default, help=help_output)
    output = parser.parse_args().output
    if broken := build(output):
        sys.exit("These references lead nowhere:\n" + "\n".join(broken))
    print(f"The API reference is in {output}/index.html")


if __name__ == "__main__":
    main()
