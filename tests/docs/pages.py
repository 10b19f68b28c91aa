"""The project's pages and the fenced blocks in them.

Commands in ```bash blocks run in the tests, and so does ```python. A comment on the line above a fence may say more:

    <!-- not run in tests: REASON -->        the block needs a network, an extra, or is proven elsewhere
    <!-- output of the commands above -->    the block is what the block before it printed
"""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for path in (ROOT / "README.md", ROOT / "CHANGELOG.md", *ROOT.glob("docs/**/*.md"), *ROOT.glob("traces/*.md"))
)
_NOT_RUN = re.compile(r"<!-- not run in tests: (.+) -->")
_OUTPUT = "<!-- output of the commands above -->"


@dataclass(frozen=True)
class Block:
    """One fenced block; `line` is that of its opening fence, from 1."""

    page: str
    line: int
    language: str
    text: str
    not_run: str | None
    is_output: bool

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"


def read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: str) -> list[Block]:
    """All fenced blocks of a page, in order."""
    found, above, start, body = [], "", 0, list[str]()
    for number, line in enumerate(read(page).splitlines(), start=1):
        if not line.startswith("```"):
            if start:
                body.append(line)
            elif line.strip():
                above = line.strip()
        elif not start:
            start, language, body = number, line[3:].strip(), []
        else:
            reason = _NOT_RUN.fullmatch(above)
            text = "\n".join(body) + "\n"
            found.append(Block(page, start, language, text, reason and reason[1], above == _OUTPUT))
            start, above = 0, ""
    assert not start, f"{page}:{start}: this fence is not closed"
    return found


def prose(page: str) -> str:
    """A page without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", read(page), flags=re.MULTILINE | re.DOTALL)
