"""Pages that lie beside docs/, README.md above all, as pages of the site: mkdocs takes files of one folder alone.

They stay where people look for them in a checkout, and their links stay right there; here links are turned to where the
pages are in the site. A link to a file that is no page is left as it is, so that mkdocs refuses it.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path, PurePosixPath
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
DOCS = "docs"
# Where files of the repository stand in the site.
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "benchmarks/README.md": "benchmarks.md",
    "benchmarks/NOTES.md": "benchmarks-notes.md",
    **{f"examples/{path.parent.name}/README.md": f"examples/{path.parent.name}.md"
       for path in sorted(ROOT.glob("examples/*/README.md"))},
}  # fmt: skip
LINK = re.compile(r"(?<=\]\()(?![a-z]+:|[#/])(?P<path>[^)#\s]+)(?P<rest>#[^)\s]*)?(?=\))")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put all pages that fit in the place of a pattern in the navigation."""
    config.nav = _expanded(config.nav, Path(config.docs_dir))
    return config


def _expanded(nav: Any, docs: Path) -> Any:
    if isinstance(nav, dict):
        return {title: _expanded(entry, docs) for title, entry in nav.items()}
    if isinstance(nav, list):
        return [one for entry in nav for one in (_matching(entry, docs) or [_expanded(entry, docs)])]
    return nav


def _matching(entry: Any, docs: Path) -> list[str]:
    if not isinstance(entry, str) or "*" not in entry:
        return []
    return sorted(path.relative_to(docs).as_posix() for path in docs.glob(entry))


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that lie elsewhere."""
    for path, uri in PAGES.items():
        files.append(File.generated(config, uri, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links from where files are in the repository to where they are in the site."""
    return turned(markdown, page.file.src_uri)


def turned(markdown: str, uri: str) -> str:
    """The text of the page at `uri`, with links as the site has them."""
    return LINK.sub(lambda link: _in_the_site(link["path"], uri) + (link["rest"] or ""), markdown)


def _in_the_site(link: str, uri: str) -> str:
    here = next((path for path, other in PAGES.items() if other == uri), f"{DOCS}/{uri}")
    target = posixpath.normpath(posixpath.join(posixpath.dirname(here), link))
    if target in PAGES:
        there = PAGES[target]
    elif PurePosixPath(target).parts[0] == DOCS:
        there = posixpath.relpath(target, DOCS)
    else:
        return link
    return posixpath.relpath(there, posixpath.dirname(uri) or ".")
