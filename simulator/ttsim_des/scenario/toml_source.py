"""TOML text to values and to the place of every key.

Values come from `tomllib`; places come from a tree-sitter parse of the same text, which also survives files that
`tomllib` gives up on. A key is written as TOML writes it: dotted, with parts quoted where they must be, and array
elements counted from 0 (`phases.0.rate_per_s`).
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ttsim_des.errors import InputError, Problem, bad_input
from ttsim_des.scenario.places import KeyPath, SourceMap, format_key

if TYPE_CHECKING:
    from tree_sitter import Node

MAX_FILE_BYTES = 256 * 1024
MAX_KEY_PARTS = 32
"""tomllib takes time quadratic in the parts of one dotted key; no scenario needs more than a handful."""

_AT = re.compile(r"(?P<what>.*?) \(at (?:line (?P<line>\d+), column (?P<column>\d+)|end of document)\)\Z", re.DOTALL)
_KEYS = ("bare_key", "quoted_key", "dotted_key")
_SCALARS = ("integer", "float", "local_date", "local_time", "local_date_time", "offset_date_time")
_CONTAINERS = ("array", "inline_table")


@dataclass(frozen=True)
class TomlSource:
    """A parsed file: its values and where they stand."""

    values: dict[str, Any]
    map: SourceMap


def read_text(path: Path) -> str:
    """The text of a TOML file; InputError when it cannot be read, is not a file, is too large or not UTF-8."""
    name = str(path)
    try:
        if path.is_dir():
            raise bad_input("is a directory", where=name, expected="a TOML file")
        if not path.is_file():
            raise bad_input("is not a regular file", where=name, expected="a TOML file")
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise bad_input(f"cannot be read: {error.strerror}", where=name) from None
    if len(data) > MAX_FILE_BYTES:
        raise bad_input(f"is larger than {MAX_FILE_BYTES // 1024} KiB", where=name, expected="a scenario in TOML")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        column = len(data[data.rfind(b"\n", 0, error.start) + 1 : error.start].decode("utf-8")) + 1
        message = f"is not UTF-8 text (byte 0x{data[error.start]:02x})"
        raise bad_input(message, where=f"{name}:{line}:{column}", expected="a scenario in TOML") from None
    return text.removeprefix("\ufeff").replace("\r\n", "\n")


def parse(text: str, name: str) -> TomlSource:
    """Values and places of TOML `text` that is called `name` in messages; InputError when it is not TOML."""
    data = text.encode("utf-8", "surrogatepass")
    walker = _Walker(name, data)
    tree = _syntax_tree(data)
    walker.document(tree)
    if walker.problems:
        raise InputError(walker.problems)
    try:
        values = tomllib.loads(text)
    except RecursionError:
        raise bad_input("is nested too deeply", where=name, expected="at most a few levels of tables") from None
    except ValueError as error:
        place = name if _AT.match(str(error)) else walker.bad_scalar(tree)
        raise InputError([_syntax_problem(str(error), text, name, place)]) from None
    return TomlSource(values, walker.map)


def parse_value(text: str) -> Any:
    """A TOML value written on the command line; anything that is not one is taken as a bare string."""
    too_long = len(text) > MAX_FILE_BYTES or _longest_key(text) > MAX_KEY_PARTS
    if too_long or "\n" in text:
        return text
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        return text


def _longest_key(text: str) -> int:
    return text.count(".") + 1 if "{" in text else 1


def _syntax_tree(data: bytes) -> Node:
    import tree_sitter
    import tree_sitter_toml

    parser = tree_sitter.Parser(tree_sitter.Language(tree_sitter_toml.language()))
    return parser.parse(data).root_node


def _syntax_problem(message: str, text: str, name: str, place: str) -> Problem:
    """tomllib's message with its place moved to the front, where every other message has it."""
    match = _AT.match(message)
    if match is None:  # a number or date that Python refuses: tomllib does not say where, `place` does
        return Problem(f"not valid TOML: {message.split(';')[0].lower()}", where=place)
    what = match["what"][:1].lower() + match["what"][1:]
    if match["line"]:
        where = f"{name}:{match['line']}:{match['column']}"
    else:
        line = text.count("\n") + 1
        where = f"{name}:{line}:{len(text) - text.rfind(chr(10))}"
        what = f"{what} at the end of the file"
    return Problem(f"not valid TOML: {what}", where=where)


class _Walker:
    """Walks a syntax tree once and notes the place of every key; problems are what tomllib reports badly."""

    def __init__(self, name: str, data: bytes) -> None:
        self.name = name
        self.lines = data.split(b"\n")
        self.map = SourceMap(root=f"{name}:1:1")
        self.problems: list[Problem] = []
        self._said: set[str] = set()
        self._elements: dict[KeyPath, int] = {}

    def document(self, root: Node) -> None:
        """Note every key of the file."""
        for node in root.children:
            if node.type == "pair":
                self._pair(node, ())
            elif node.type in ("table", "table_array_element"):
                self._table(node)

    def bad_scalar(self, root: Node) -> str:
        """The place of the first number or date that Python refuses, or of the file."""
        stack = [root]
        while stack:
            node = stack.pop()
            if node.type in _SCALARS:
                try:
                    tomllib.loads(f"x = {(node.text or b'').decode('utf-8', 'replace')}")
                except ValueError:
                    return self._place(node)
            else:
                stack.extend(reversed(node.children))
        return self.name

    def _place(self, node: Node) -> str:
        row, column = node.start_point
        return f"{self.name}:{row + 1}:{len(self.lines[row][:column].decode('utf-8', 'replace')) + 1}"

    def _table(self, node: Node) -> None:
        key_node = next((child for child in node.children if child.type in _KEYS), None)
        if key_node is None:
            return
        parts = self._key(key_node)
        path: KeyPath = ()
        for part in parts[:-1]:  # a header below an array of tables speaks of the array's last element
            path = (*path, part)
            if path in self._elements:
                path = (*path, str(self._elements[path]))
        path = (*path, *parts[-1:])
        if node.type == "table_array_element":
            self._elements[path] = self._elements.get(path, -1) + 1
            path = (*path, str(self._elements[path]))
        self._note(path, key_node)
        for child in node.children:
            if child.type == "pair":
                self._pair(child, path)

    def _pair(self, node: Node, base: KeyPath) -> None:
        """One `key = value`, and the keys inside an inline table or array (a stack: the depth is the file's)."""
        stack: list[tuple[Node, KeyPath]] = [(node, base)]
        while stack:
            node, base = stack.pop()
            if node.type == "pair":
                key_node, value = node.children[0], node.children[-1]
                base = (*base, *self._key(key_node))
                self._note(base, key_node)
            else:
                value = node
                self.map.places.setdefault(format_key(base), self._place(node))
            if value.type not in _CONTAINERS or len(base) > MAX_KEY_PARTS:
                continue
            children = [child for child in value.children if child.is_named and child.type != "comment"]
            if value.type == "inline_table":
                stack.extend((child, base) for child in reversed(children) if child.type == "pair")
            else:
                stack.extend((child, (*base, str(i))) for i, child in reversed(list(enumerate(children))))

    def _note(self, path: KeyPath, node: Node) -> None:
        key, place = format_key(path), self._place(node)
        if key in self._said:
            line = self.map.places[key].removeprefix(f"{self.name}:").partition(":")[0]
            self.problems.append(Problem(f"given twice, first on line {line}", key=key, where=place))
            return
        self._said.add(key)
        self.map.places[key] = place
        for depth in range(len(path) - 1, 0, -1):
            self.map.places.setdefault(format_key(path[:depth]), place)

    def _key(self, node: Node) -> list[str]:
        leaves = list(_leaves(node))
        if len(leaves) > MAX_KEY_PARTS:
            problem = Problem(f"a key of {len(leaves)} parts", where=self._place(node), expected="at most a few parts")
            self.problems.append(problem)
            leaves = leaves[:1]
        return [self._leaf(leaf) for leaf in leaves]

    def _leaf(self, node: Node) -> str:
        text = (node.text or b"").decode("utf-8", "replace")
        if node.type == "bare_key":
            return text
        try:
            return next(iter(tomllib.loads(f"{text} = 0")))
        except ValueError:
            return text


def _leaves(node: Node) -> Iterator[Node]:
    stack = [node]
    while stack:
        node = stack.pop()
        if node.type == "dotted_key":
            stack.extend(reversed(node.children))
        elif node.type in ("bare_key", "quoted_key"):
            yield node
