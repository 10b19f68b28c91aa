"""Sample banks: what a model really answered, a sample a row.

Columns `problem` (or `idx`), `output_tokens` (or `tokens`), `correct` (0 or 1); optionally `answer_id`, `score` (or
`rm_score`) and, for banks of several, `model` and `dataset`. Rows of a problem with equal `answer_id` gave the same
answer, those with an id below 0 none; without the column every wrong answer is taken for another one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ttsim_des.errors import bad_input, nearest_name
from ttsim_des.rng import Streams
from ttsim_des.variates import query_uniforms, sample_uniforms, shuffled
from ttsim_des.workload.columns import TOKENS_MAX, codes, read_columns, real_numbers, whole_numbers
from ttsim_des.workload.outcomes.draws import NO_ANSWER, RIGHT, Draws
from ttsim_des.workload.outcomes.scores import drawn_scores

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

PROBLEM, TOKENS, SCORE = ("problem", "idx"), ("output_tokens", "tokens"), ("score", "rm_score")
ID_LIMIT = 1 << 30
SCORE_LIMIT = 1e9


@dataclass(frozen=True, slots=True, eq=False)
class Bank:
    """Samples of one model on one data set, those of a problem side by side.

    `starts`: index of each problem's first row, and the number of rows. `answer` as in `Draws`; `score` where known.
    """

    tokens: NDArray[np.int64]
    answer: NDArray[np.int32]
    score: NDArray[np.float64] | None
    starts: NDArray[np.int64]

    def matrix(self) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.float64] | None]:
        """Tokens, answers and scores by problem, for as many samples as the problem with the fewest has."""
        import numpy as np

        fewest = int(np.diff(self.starts).min())
        rows = self.starts[:-1, None] + np.arange(fewest)
        return self.tokens[rows], self.answer[rows], None if self.score is None else self.score[rows]


class BankOutcomes:
    """Every query is one of the bank's problems; its samples are that problem's, each once before any comes again.

    Scores are the bank's, or drawn with `verifier_auc` where it has none. Implements `Outcomes`.
    """

    def __init__(self, bank: Bank, verifier_auc: float) -> None:
        self.bank, self.verifier_auc = bank, verifier_auc

    def draw(self, streams: Streams, first_query: int, queries: int, samples: int) -> Draws:
        """See `Outcomes`."""
        import numpy as np

        bank = self.bank
        problems = len(bank.starts) - 1
        problem = (query_uniforms(streams, "outcome", first_query, queries) * problems).astype(np.int64)
        start, size = bank.starts[problem], bank.starts[problem + 1] - bank.starts[problem]
        uniforms = sample_uniforms(streams, "outcome", first_query, queries, samples).tolist()
        places = [shuffled(values, n) for values, n in zip(uniforms, size.tolist(), strict=True)]
        rows = start[:, None] + np.array(places, dtype=np.int64)
        answer = bank.answer[rows]
        if bank.score is None:
            score = drawn_scores(streams, first_query, answer, self.verifier_auc)
        else:
            score = bank.score[rows]
        return Draws(bank.tokens[rows], answer, score)

    def mean(self, cap: int) -> float:
        """See `Outcomes`: exact."""
        import numpy as np

        capped = np.minimum(self.bank.tokens, cap)
        return float((np.add.reduceat(capped, self.bank.starts[:-1]) / np.diff(self.bank.starts)).mean())

    def largest(self) -> int:
        """See `Outcomes`."""
        return int(self.bank.tokens.max())


def read_bank(path: Path, key: str, *, model: str | None = None, dataset: str | None = None) -> Bank:
    """The bank in a file; of several in it the one of `model` and `dataset`. InputError for what is wrong, by row."""
    banks = read_banks(path, key)
    wanted = {name: value for name, value in (("model", model), ("dataset", dataset)) if value is not None}
    found = [names for names in banks if all(value in names for value in wanted.values())]
    if len(found) == 1:
        return banks[found[0]]
    choices = [" ".join(names) for names in banks]
    raise bad_input(
        f"{path} has {len(found)} banks of {' '.join(wanted.values()) or 'several models or data sets'}",
        key=key,
        expected=f"model and dataset of one of: {', '.join(choices[:20])}",
        nearest=nearest_name(" ".join(wanted.values()), choices),
    )


def read_banks(path: Path, key: str, drop: Sequence[Mapping[str, Sequence[str]]] = ()) -> dict[tuple[str, ...], Bank]:
    """All banks in a file by (model, dataset), as far as it has these columns.

    `drop`: rows with one of these values in each of these columns are left out. InputError for what is wrong, by row.
    """
    import numpy as np

    named = ("model", "dataset")
    dropped = {column for conditions in drop for column in conditions}
    optional = (*named, "answer_id", *PROBLEM, *TOKENS, *SCORE, *dropped)
    table = read_columns(path, [("correct", key)], optional, key)

    def first_of(names: Sequence[str], *, needed: bool) -> str | None:
        found = next((name for name in names if name in table.column_names), None)
        if found is None and needed:
            raise bad_input(f"{path} has no column {names[0]!r}", key=key)
        return found

    problem = codes(table, str(first_of(PROBLEM, needed=True)), path, key)
    tokens = whole_numbers(table, str(first_of(TOKENS, needed=True)), path, key, low=1, high=TOKENS_MAX)
    correct = whole_numbers(table, "correct", path, key, low=0, high=1)
    ids = np.arange(table.num_rows, dtype=np.int64)
    if "answer_id" in table.column_names:
        ids = whole_numbers(table, "answer_id", path, key, low=-ID_LIMIT, high=ID_LIMIT)
    score, score_column = None, first_of(SCORE, needed=False)
    if score_column is not None:
        score = real_numbers(table, score_column, path, key, low=-SCORE_LIMIT, high=SCORE_LIMIT)
    # Ids of an answer are the file's; here the right one is RIGHT and the others follow.
    answer = np.where(correct == 1, RIGHT, np.where(ids < 0, NO_ANSWER, 1 + ids)).astype(np.int32)
    groups = [np.array(table.column(name).to_pylist(), dtype=str) for name in named if name in table.column_names]
    kept = ~_dropped(table, drop, path)
    banks: dict[tuple[str, ...], Bank] = {}
    for names in sorted(set(zip(*(values.tolist() for values in groups), strict=True)) if groups else [()]):
        rows = kept.copy()
        for values, name in zip(groups, names, strict=True):
            rows &= values == name
        chosen = np.flatnonzero(rows)
        if not len(chosen):
            continue
        _, problem_of = np.unique(problem[chosen], return_inverse=True)
        chosen = chosen[np.argsort(problem_of, kind="stable")]
        starts = np.concatenate(([0], np.cumsum(np.bincount(problem_of))))
        banks[names] = Bank(tokens[chosen], answer[chosen], None if score is None else score[chosen], starts)
    if not banks:
        raise bad_input(f"no row of {path} is left", key=key)
    return banks


def _dropped(table: pa.Table, drop: Sequence[Mapping[str, Sequence[str]]], path: Path) -> NDArray[np.bool_]:
    import numpy as np

    dropped = np.zeros(table.num_rows, dtype=bool)
    for conditions in drop:
        rows = np.ones(table.num_rows, dtype=bool)
        for column, values in conditions.items():
            if column not in table.column_names:
                raise bad_input(
                    f"{path} has no column {column!r}", key="--drop", nearest=nearest_name(column, table.column_names)
                )
            rows &= np.isin(np.array(table.column(column).to_pylist(), dtype=str), values)
        dropped |= rows
    return dropped
