"""Acceptance processes: what they accept on average, and that luck belongs to a position."""

import numpy as np
import pytest

from ttsim_des.engine.speculation import Drafting, RunDrafting, TabledDrafting
from ttsim_des.rng import Streams
from ttsim_des.speculation.acceptance import (
    Acceptance,
    CopyingAcceptance,
    OracleDrafts,
    OutputAcceptance,
    PositionAcceptance,
    RecordedAcceptance,
)

TOKENS = 400
PROCESSES: dict[str, Acceptance] = {
    "iid": PositionAcceptance(4, (0.7,)),
    "positions": PositionAcceptance(4, (0.8, 0.6, 0.4, 0.4)),
    "beta": PositionAcceptance(4, (0.7,), 30.0),
    "beta by position": PositionAcceptance(4, (0.8, 0.6, 0.4, 0.4), 30.0),
    "output": OutputAcceptance(4, (0, 400), (0.3, 0.9)),
    "copying": CopyingAcceptance(4, 0.3, 0.85, 0.5),
    "copying, seldom goes on": CopyingAcceptance(4, 0.6, 0.2, 0.5),
    "recorded": RecordedAcceptance(4, (((4, 2), (4, 4), (3, 0)), ((4, 1), (0, 0)))),
}


def drafting(process: Acceptance, query: int = 0, sample: int = 0, seed: int = 1) -> Drafting:
    return process.drafting(Streams(seed), query, sample, TOKENS)


def steps(luck: Drafting, asked: int) -> list[tuple[int, int]]:
    """(drafts, accepted) of every step of a request behind its first token."""
    known, found = 1, []
    while known < TOKENS:
        drafts = luck.drafts(known, asked)
        found.append((drafts, luck.accepted(known, drafts)))
        known += 1 + found[-1][1]
    return found


@pytest.mark.parametrize("asked", [1, 3, 4])
@pytest.mark.parametrize("rate", [0.0, 0.3, 0.7, 0.95, 1.0])
def test_tokens_a_step_of_the_iid_process(rate: float, asked: int) -> None:
    process = PositionAcceptance(asked, (rate,))
    means = [np.mean([1 + taken for _, taken in steps(drafting(process, query), asked)]) for query in range(100)]
    exact = (1 - rate ** (asked + 1)) / (1 - rate) if rate < 1 else asked + 1
    half_width = 3.5 * np.std(means, ddof=1) / 10 + 2 * asked / TOKENS  # the last step may end beyond the output
    assert np.mean(means) == pytest.approx(exact, abs=half_width)
    assert process.mean_tokens_per_step(asked) == pytest.approx(exact)


@pytest.mark.parametrize("name", ["positions", "beta", "beta by position"])
def test_other_means_are_what_the_process_says(name: str) -> None:
    process = PROCESSES[name]
    means = [np.mean([1 + taken for _, taken in steps(drafting(process, query), 4)]) for query in range(200)]
    tolerance = (
        0.03 if name == "positions" else 0.06
    )  # with a rate for each request the mean of a power is not its power
    assert np.mean(means) == pytest.approx(process.mean_tokens_per_step(4), rel=tolerance)


@pytest.mark.parametrize("name", PROCESSES)
def test_another_number_of_drafts_meets_the_same_luck(name: str) -> None:
    luck = drafting(PROCESSES[name])
    for known in range(TOKENS):
        most = luck.accepted(known, 4)
        assert [luck.accepted(known, asked) for asked in range(5)] == [min(asked, most) for asked in range(5)]


@pytest.mark.parametrize("name", PROCESSES)
def test_the_walk_is_what_step_by_step_gives(name: str) -> None:
    for query in range(10):
        luck = drafting(PROCESSES[name], query)
        for asked in (0, 1, 3, 4):
            increments, drafts = luck.walk(1, TOKENS, asked)
            found = steps(luck, asked)
            assert increments.tolist() == [1 + taken for _, taken in found]
            assert (drafts.tolist() if drafts is not None else [asked] * len(found)) == [made for made, _ in found]


@pytest.mark.parametrize("name", PROCESSES)
def test_luck_belongs_to_query_sample_and_seed(name: str) -> None:
    def taken(query: int, sample: int, seed: int) -> list[int]:
        luck = drafting(PROCESSES[name], query, sample, seed)
        return [luck.accepted(known, luck.drafts(known, 4)) for known in range(TOKENS)]

    assert taken(5, 2, 1) == taken(5, 2, 1)
    if name != "recorded":  # a few streams, replayed
        assert len({tuple(taken(*who)) for who in ((5, 2, 1), (4, 2, 1), (5, 1, 1), (5, 2, 2))}) == 4


def test_a_longer_output_has_the_same_luck_at_its_beginning() -> None:
    for process in PROCESSES.values():
        short, long = (process.drafting(Streams(1), 3, 1, tokens) for tokens in (50, 2000))
        assert [short.accepted(known, 4) for known in range(47)] == [long.accepted(known, 4) for known in range(47)]


def test_requests_differ_under_a_beta_process_only() -> None:
    def spread(process: Acceptance) -> float:
        rates = []
        for query in range(300):
            found = steps(drafting(process, query), 1)
            rates.append(np.mean([taken for _, taken in found]))
        return float(np.std(rates))

    chance = (0.7 * 0.3 / 235) ** 0.5  # about 235 steps of one draft
    assert spread(PositionAcceptance(1, (0.7,))) == pytest.approx(chance, rel=0.2)
    assert spread(PositionAcceptance(1, (0.7,), 30.0)) == pytest.approx((chance**2 + 0.21 / 31) ** 0.5, rel=0.2)


def test_acceptance_follows_the_output() -> None:
    process = PROCESSES["output"]
    early, late = [], []
    for query in range(100):
        luck = drafting(process, query)
        early += [luck.accepted(known, 1) for known in range(40)]
        late += [luck.accepted(known, 1) for known in range(360, 400)]
    assert np.mean(early) == pytest.approx(0.33, abs=0.03)
    assert np.mean(late) == pytest.approx(0.87, abs=0.03)


def test_copies_come_in_runs_and_what_is_right_is_offered() -> None:
    luck = drafting(CopyingAcceptance(4, 1.0, 0.9, 0.05))
    assert isinstance(luck, TabledDrafting)
    assert luck.proposes is not None
    copied = [luck.accepts[known] > 0 for known in range(TOKENS)]
    for known in range(1, TOKENS):
        assert luck.drafts(known, 4) == (4 if copied[known - 1] or copied[known] else 0)
    runs = "".join("x" if each else " " for each in copied).split()
    assert np.mean([len(run) for run in runs]) > 5


def test_recorded_steps_come_back() -> None:
    recorded = ((3, 3), (3, 0), (3, 1), (3, 3))
    luck = RecordedAcceptance(3, (recorded,)).drafting(Streams(1), 0, 0, 200)
    known = 0
    for _ in range(5):
        for drafts, accepted in recorded:
            assert luck.accepted(known, drafts) == accepted
            known += 1 + accepted


def test_the_oracle_wastes_nothing() -> None:
    for process in PROCESSES.values():
        oracle = OracleDrafts(4, process)
        real, bound = steps(drafting(process), 4), steps(drafting(oracle), 4)
        assert all(made == taken for made, taken in bound)
        assert [taken for _, taken in bound] == [taken for _, taken in real]


def test_a_step_of_a_tree_takes_no_more_than_its_depth() -> None:
    luck = RunDrafting(np.array([20, 50]), 3)
    assert luck.accepted(0, 12) == 3
    assert luck.walk(0, 21, 12)[0].tolist() == [4, 4, 4, 4, 4, 1]
