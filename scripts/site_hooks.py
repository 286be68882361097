"""What ``make docs`` adds to MkDocs: pages outside ``docs/``, and links in docstrings.

``mkdocs.yml`` names this file twice: as a hook of MkDocs and as an extension of griffe, which reads
the docstrings.
"""

import logging
import re
from pathlib import Path
from typing import Any

from griffe import Extension, Module, Object
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("*.md", "CITATION.cff", "docs/*", "examples/*", "results/**/*.md", "results/*.png")
ROLE = re.compile(r":(?:attr|class|data|func|meth|mod):`([\w.]+)`")
EXAMPLE = re.compile(r"^>>> .*?(?=\n\n|\Z)", re.MULTILINE | re.DOTALL)

logging.getLogger("mkdocs.plugins.api-autonav").setLevel("WARNING")  # else a line for each module


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Gives the site the repository's folders, so that links work on GitHub and on the site."""
    for file in [file for file in files if file.src_dir == config.docs_dir]:
        files.remove(file)
    for path in sorted(path for pattern in PAGES for path in ROOT.glob(pattern) if path.is_file()):
        name = path.relative_to(ROOT).as_posix()
        files.append(File(name, str(ROOT), config.site_dir, config.use_directory_urls))
    return files


def on_page_markdown(markdown: str, page: Page, **kwargs: Any) -> None:
    """Lists pages that were written for readers before the API when searching."""
    if page.file.src_uri.startswith("api/"):
        page.meta["search"] = {"boost": 0.2}


class Docstrings(Extension):
    """Turns ``:class:`Core``` into a link, and examples (``>>>``) into code.

    MkDocs warns of a link whose target does not exist, and with ``--strict`` fails.
    """

    def on_object(self, *, obj: Object, **kwargs: Any) -> None:
        """Griffe calls it for each module, class, function and attribute in the package."""
        if obj.docstring:
            obj.docstring.value = to_markdown(obj.docstring.value)

    def on_package(self, *, pkg: Module, **kwargs: Any) -> None:
        """Griffe calls it for the package itself."""
        self.on_object(obj=pkg)


def to_markdown(docstring: str) -> str:
    """The docstring with links and code as MkDocs knows them."""
    return EXAMPLE.sub(r"```pycon\n\g<0>\n```", ROLE.sub(r"[`\1`][\1]", docstring))
