"""Every command of the pages runs, in the order of its page, in a copy of what a checkout holds; outputs are current.

Blocks that cannot run here say why in the page (tests/docs/pages.py) and are listed as skipped.
"""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import click
import pytest
from pages import PAGES, ROOT, Block, blocks, prose, read

from ttsim_des.cli import main
from ttsim_des.cli.group import COMMANDS

# Lines that make the virtual environment which these tests run in; .ci/run executes them as they stand.
SET_UP = ("python3 -m venv ", '. "$VENV/bin/activate"', "pip install ")
SHELLS = ("bash", "sh", "console")
NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?")
TOLERANCE = 0.05
REFRESH = "REFRESH_DOCS"  # when set, outputs that are out of date are replaced in their pages

RUNNABLE = [page for page in PAGES if any(block.language in ("bash", "python") for block in blocks(page))]
NOT_RUN = [block for page in PAGES for block in blocks(page) if block.not_run]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder that looks like a checkout to the commands, and that they may write to."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    for name in ("profiles", "scenarios", "tools", "traces"):
        shutil.copytree(ROOT / name, folder / name)
    (folder / "tests").symlink_to(ROOT / "tests")
    return folder


@pytest.mark.parametrize("page", RUNNABLE)
def test_what_a_page_shows_runs(page: str, checkout: Path) -> None:
    stdout = ""
    for block in blocks(page):
        if block.is_output:
            compare(block, stdout)
        elif block.language in ("bash", "python") and not block.not_run:
            stdout = execute(block, checkout)


@pytest.mark.parametrize("block", NOT_RUN, ids=lambda block: block.place)
def test_what_is_not_run(block: Block) -> None:
    pytest.skip(block.not_run or "")


def execute(block: Block, folder: Path) -> str:
    """Run a block as its reader would, with the environment active, and return its stdout."""
    if block.language == "python":
        command = [sys.executable, "-c", block.text]
    else:
        lines = [line for line in block.text.splitlines() if not line.startswith(SET_UP)]
        command = ["bash", "-euo", "pipefail", "-c", "\n".join(lines)]
    path = os.pathsep.join((sysconfig.get_path("scripts"), os.environ["PATH"]))
    done = subprocess.run(
        command,
        cwd=folder,
        env=os.environ | {"PATH": path},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, (
        f"{block.place}: exit code {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
    )
    return done.stdout


def compare(block: Block, stdout: str) -> None:
    """The block is what was printed, numbers to within 5 %; a last line `...` leaves later paragraphs out."""
    shown, printed = block.text.splitlines(), excerpt(block, stdout).splitlines()
    current = len(shown) == len(printed) and all(map(same, shown, printed))
    if not current and os.environ.get(REFRESH):
        (ROOT / block.page).write_text(read(block.page).replace(block.text, excerpt(block, stdout)), encoding="utf-8")
        return
    different = next((line for line, now in zip(shown, printed, strict=False) if not same(line, now)), "its length")
    hint = f"run with {REFRESH}=1 to renew it; the command prints now"
    assert current, f"{block.place} is out of date: {different.strip()}; {hint}:\n\n{stdout}"


def excerpt(block: Block, stdout: str) -> str:
    """As many paragraphs of the output as the block shows."""
    if not block.text.endswith("\n...\n"):
        return stdout
    return "\n\n".join(stdout.split("\n\n")[: block.text.count("\n\n") + 1]) + "\n...\n"


def same(shown: str, printed: str) -> bool:
    """The same words, and nearly the same numbers; widths of columns do not matter."""
    if NUMBER.sub("0", shown).split() != NUMBER.sub("0", printed).split():
        return False
    pairs = zip(NUMBER.findall(shown), NUMBER.findall(printed), strict=True)
    return all(as_number(ours) == pytest.approx(as_number(theirs), rel=TOLERANCE) for ours, theirs in pairs)


def as_number(text: str) -> float:
    return float(text.replace(",", ""))


def test_an_output_that_is_out_of_date_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(REFRESH, raising=False)
    block = Block("page.md", 1, "text", "a 1.00 s\n\nc 1,000\n...\n", None, True)
    compare(block, "a  1.02 s\n\nc  1,010\n\nwarning\n")
    for stale in ("a 1.2 s\n\nc 1,010\n\n", "a 1.00 ms\n\nc 1,000\n\n", "c 1,000\n\n", "a 1.00 s\nb\n\nc 1,000\n\n"):
        with pytest.raises(AssertionError, match=r"page\.md:1 is out of date"):
            compare(block, stale)


@pytest.mark.parametrize("page", PAGES)
def test_commands_stand_in_bash_blocks(page: str) -> None:
    for block in blocks(page):
        assert block.language != "" or not re.search(r"^\s*(\$ )?(ttsim-des|python|pip) ", block.text, re.MULTILINE), (
            f"{block.place}: name the language of this block"
        )
        assert block.language not in SHELLS[1:], f"{block.place}: call it bash"
    indented = re.search(r"^(?: {4,}|\t)(?:\$ )?(?:ttsim-des|python|pip) .*", prose(page), re.MULTILINE)
    assert indented is None, f"{page}: put this command into a bash block: {indented and indented[0].strip()}"


@pytest.mark.parametrize("page", PAGES)
def test_commands_within_sentences_exist(page: str) -> None:
    """`ttsim-des run x --set a=b` in a sentence is not run, but its command and options must be real."""
    for command in re.findall(r"`ttsim-des ([^`]+)`", prose(page)):
        check_words(page, command.split())


def test_examples_in_the_help_exist() -> None:
    context = click.Context(main)
    for name, command in [("", main), *((name, main.get_command(context, name)) for name in COMMANDS)]:
        assert command is not None
        shown = "\n".join((command.help or "", command.epilog or ""))
        for line in re.findall(r"^\s*ttsim-des (.+)$", shown, re.MULTILINE):
            check_words(f"help of {name}", line.split())


def check_words(where: str, words: list[str]) -> None:
    options = [word.split("=")[0] for word in words if word.startswith("--")]
    if words[0].startswith("-"):
        known = {name for parameter in main.params for name in parameter.opts} | {"--help"}
    else:
        command = main.get_command(click.Context(main), words[0])
        assert command is not None, f"{where}: there is no command {words[0]!r}"
        known = {name for parameter in command.params for name in parameter.opts} | {"--help"}
    assert set(options) <= known, f"{where}: `ttsim-des {' '.join(words)}` has an unknown option"
