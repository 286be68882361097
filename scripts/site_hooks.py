"""What ``make docs`` adds to MkDocs: pages outside ``docs/``, and links in docstrings.

``mkdocs.yml`` names this file twice: as a hook of MkDocs and as an extension of griffe, which reads
the docstrings.
"""

import re
from pathlib import Path
from typing import Any

from griffe import Extension, Object
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("*.md", "LICENSE", "CITATION.cff", "docs/*", "examples/*", "results/*.*", "results/*/**/*.md")
ROLE = re.compile(r":(?:attr|class|data|func|meth|mod):`([\w.]+)`")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Gives the site the repository's folders, so that links work on GitHub and on the site."""
    for file in [file for file in files if file.src_dir == config.docs_dir]:
        files.remove(file)
    for path in sorted(path for pattern in PAGES for path in ROOT.glob(pattern) if path.is_file()):
        name = path.relative_to(ROOT).as_posix()
        files.append(File(name, str(ROOT), config.site_dir, config.use_directory_urls))
    return files


class Roles(Extension):
    """Turns ``:class:`Core``` into a link; MkDocs fails where nothing has that name."""

    def on_object(self, *, obj: Object, **kwargs: Any) -> None:
        """Griffe calls it for each module, class, function and attribute."""
        if obj.docstring:
            obj.docstring.value = ROLE.sub(r"[`\1`][\1]", obj.docstring.value)
