"""What is sent: a table of queries with arrivals, lengths, fan-out and cancels, and the token ids of their prompts.

    arrival_s,prompt_tokens,output_tokens[,samples][,prompt_id][,cancel_s]

The first three columns are those of a trace (docs/workload.md). `samples`: requests of one prompt, sent together.
`prompt_id`: queries with equal ids share their text from the start, as far as both reach. `cancel_s`: the client gives
up so long after it sent.
"""

from __future__ import annotations

import csv
import random
from dataclasses import dataclass
from pathlib import Path

from ttsim_des.errors import bad_input, nearest_name

COLUMNS = ("arrival_s", "prompt_tokens", "output_tokens")
OPTIONAL = ("samples", "prompt_id", "cancel_s")


@dataclass(frozen=True, slots=True)
class Query:
    """One row: `samples` requests of the same prompt. `prompt_id` is None where the text is its own."""

    index: int
    arrival_s: float
    prompt_tokens: int
    output_tokens: int
    samples: int = 1
    prompt_id: int | None = None
    cancel_s: float | None = None


def read_load(path: Path, limit: int | None = None, speed: float = 1.0) -> list[Query]:
    """The queries of a CSV file by arrival, at most `limit`; `speed` divides the gaps. InputError with the line."""
    if not 0 < speed < float("inf"):
        raise bad_input(f"--speed {speed}", key="--speed", expected="a number above 0")
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            reader = csv.DictReader(stream)
            header = list(reader.fieldnames or ())
            for name in COLUMNS:
                if name not in header:
                    raise bad_input(f"there is no column {name}", where=f"{path}:1", expected=", ".join(COLUMNS))
            for name in header:
                if name not in (*COLUMNS, *OPTIONAL):
                    nearest = nearest_name(name, OPTIONAL)
                    raise bad_input(
                        f"unknown column {name!r}", where=f"{path}:1", expected=", ".join(OPTIONAL), nearest=nearest
                    )
            queries = [
                _query(index, row, f"{path}:{reader.line_num}", speed)
                for index, row in enumerate(reader)
                if limit is None or index < limit
            ]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise bad_input(f"this load cannot be read: {error}", where=str(path), expected="a CSV file") from None
    if not queries:
        raise bad_input("there is no query", where=str(path))
    return sorted(queries, key=lambda query: (query.arrival_s, query.index))


def _query(index: int, row: dict[str, str], where: str, speed: float) -> Query:
    def number(name: str, least: float) -> float:
        try:
            value = float(row[name])
        except (TypeError, ValueError):
            value = float("nan")
        if not least <= value < float("inf"):
            raise bad_input(f"{name} = {row[name]!r}", where=where, expected=f"a number, at least {least:g}")
        return value

    def whole(name: str, least: int) -> int:
        value = number(name, least)
        if value != int(value):
            raise bad_input(f"{name} = {row[name]!r}", where=where, expected="a whole number")
        return int(value)

    return Query(
        index,
        number("arrival_s", 0.0) / speed,
        whole("prompt_tokens", 1),
        whole("output_tokens", 1),
        whole("samples", 1) if row.get("samples") else 1,
        whole("prompt_id", 0) if row.get("prompt_id") else None,
        number("cancel_s", 0.0) if row.get("cancel_s") else None,
    )


def owner(query: Query) -> str:
    """Whose text a query's prompt is."""
    return f"query {query.index}" if query.prompt_id is None else f"prompt {query.prompt_id}"


def token_ids(query: Query, vocabulary: int, seed: int) -> list[int]:
    """The prompt: random tokens, the same for the same owner and seed, from the start on."""
    draw = random.Random(f"{seed} {owner(query)}")
    return [draw.randrange(vocabulary) for _ in range(query.prompt_tokens)]
