"""Documents name files that are there, and the ways through the code that they show are short."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ARCHITECTURE = ROOT / "docs" / "contributing" / "architecture.md"
_LINKS = re.compile(r"\]\((?!https?://|#)([^)#]+)[^)]*\)")
# `models/kmeans/` or `pipeline/stages/pretrain.py`, in backquotes or as the target of a link.
_PATHS = re.compile(r"[`(](?:\.\./)*((?:models|storage|pipeline|flows|tests|benchmarks|docker|docs)/[\w./-]*)[`)]")


@pytest.mark.parametrize("document", sorted(ROOT.glob("docs/**/*.md")), ids=lambda path: path.name)
def test_a_document_names_files_that_are_there(document: Path) -> None:
    named = set(_PATHS.findall(document.read_text(encoding="utf-8")))
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


@pytest.mark.parametrize(
    "document", [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md"))], ids=lambda path: path.name
)
def test_a_link_leads_to_a_file_that_is_there(document: Path) -> None:
    targets = _LINKS.findall(document.read_text(encoding="utf-8"))
    assert [target for target in targets if not (document.parent / target).exists()] == []


def test_every_document_is_linked_from_the_readme() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    documents = [str(path.relative_to(ROOT)) for path in sorted(ROOT.glob("docs/**/*.md"))]
    assert [document for document in documents if document not in readme] == []
    assert readme.count("\n") <= 130


@pytest.mark.parametrize("way", ["From an image to its token", "From a token to a loss"])
def test_a_way_through_the_code_passes_at_most_ten_files(way: str) -> None:
    section = ARCHITECTURE.read_text(encoding="utf-8").partition(f"## {way}\n")[2].partition("\n## ")[0]
    files = re.findall(r"^\d+\. `([\w/]+\.py)`", section, re.MULTILINE)
    assert 5 <= len(files) <= 10
    assert len(set(files)) == len(files)
