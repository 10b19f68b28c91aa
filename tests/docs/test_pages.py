"""The pages hang together: the README's two commands, links, the index; and nothing is true on one machine only."""

import re
from pathlib import Path

import pytest
from pages import PAGES, ROOT, blocks, prose, read

LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
# Other people's machines, and where packages happen to come from.
LOCAL = re.compile(r"(?<![\w.$}])/(?:work|tmp|home|root|Users|mnt)/|pypi\.org|pythonhosted", re.IGNORECASE)


def anchors(page: str) -> set[str]:
    """The anchors of a page's headings, as code hosts make them."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def linked_pages(page: str) -> set[str]:
    folder = (ROOT / page).parent
    targets = {link.split("#")[0] for link in LINK.findall(prose(page)) if "://" not in link}
    return {(folder / target).resolve().relative_to(ROOT).as_posix() for target in targets if target}


def test_the_readme_begins_with_the_job_and_the_tests() -> None:
    job, tests = blocks("README.md")[:2]
    for block, last in (
        (job, "ttsim-des run scenarios/best-of-n.toml"),
        (tests, "python -m pytest -n auto --dist loadfile"),
    ):
        lines = block.text.splitlines()
        assert block.language == "bash"
        assert lines[0] == 'python3 -m venv "${VENV:=.venv}"'
        assert lines[1] == '. "$VENV/bin/activate"'
        assert lines[2].startswith("pip install ")
        assert lines[3:] == [last]


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    folder = (ROOT / page).parent
    for link in LINK.findall(prose(page)):
        if "://" in link:
            continue
        target, _, anchor = link.partition("#")
        path = (folder / target).resolve() if target else ROOT / page
        assert path.exists(), f"{page}: {link} is not there"
        if anchor:
            assert anchor in anchors(path.relative_to(ROOT).as_posix()), f"{page}: {link}: no such heading"


def test_the_index_has_every_page() -> None:
    index = "docs/README.md"
    docs = {page for page in PAGES if page.startswith("docs/")}
    assert index in linked_pages("README.md")
    assert docs - {index} <= linked_pages(index)


@pytest.mark.parametrize("page", [page for page in PAGES if page.startswith("docs/") and page != "docs/README.md"])
def test_every_page_begins_with_a_title(page: str) -> None:
    assert read(page).startswith("# ")


@pytest.mark.parametrize("file", [*PAGES, "NOTICE", "pyproject.toml", ".ci/run"])
def test_nothing_is_tied_to_one_machine(file: str) -> None:
    found = LOCAL.search(Path(ROOT, file).read_text(encoding="utf-8"))
    assert found is None, f"{file}: {found and found[0]}"
