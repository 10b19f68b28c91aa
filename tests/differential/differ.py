"""One world, three simulators: do leap, step and oracle say the same?"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import oracle
import product
import worlds

from ttsim_des.records.tables import QUERIES, REQUESTS
from ttsim_des.scenario.schema import StrategyTable
from ttsim_des.workload.handle import Delay
from ttsim_des.workload.strategies import STRATEGIES

_STEP_FIELDS = [
    *("replica", "start_ns", "duration_ns", "decode_seqs", "prefill_seqs", "prefill_tokens", "draft_tokens"),
    *("running", "waiting", "preempted", "held_blocks", "cached_blocks", "in_domain"),
]
FIELDS = {
    "queries": [name for name in QUERIES.names if name not in ("answer_id", "critical_tokens")],
    "requests": [name for name in REQUESTS.names if name not in product.NOT_IN_ORACLE],
    "steps": _STEP_FIELDS,
    "drafts": ["replica", "position", "drafted", "accepted"],
    "gaps": ["replica", "delivered_ns", "gap_ns", "seqs", "extra_tokens"],
}
_BLOCKS = [_STEP_FIELDS.index("held_blocks"), _STEP_FIELDS.index("cached_blocks")]
_APART = [_STEP_FIELDS.index(name) for name in ("prefill_seqs", "preempted")]
_ALIKE = [
    column
    for column in range(len(_STEP_FIELDS))
    if "_ns" not in _STEP_FIELDS[column] and column not in _BLOCKS and _STEP_FIELDS[column] != "draft_tokens"
]


class Verdict(NamedTuple):
    """`kind` names the first difference for comparing with others, `text` tells it; empty where all are equal."""

    kind: str
    text: str
    counts: dict[str, int]


def check(world, *, model=None):
    """Simulate a world three ways and compare all records.

    `model` replaces the product's step model (for mutations). Worlds that never end are counted, not compared.
    """
    try:
        truth = oracle_run(world)
    except oracle.Endless:
        return Verdict("", "", {"worlds without an end": 1})
    found = {"oracle": truth.facts()}
    counts = dict(truth.counts)
    for stepping in ("step", "leap"):
        try:
            with product.counting(counts if stepping == "leap" else {}):
                simulated = product.simulated(world, stepping, model)
            found[stepping] = product.facts(simulated.tables)
        except Exception as error:
            return Verdict(
                f"{stepping} fails: {type(error).__name__}", f"{stepping}: {type(error).__name__}: {error}", counts
            )
        counts[f"SimPy events, {stepping}"] = simulated.simpy_events
        if stepping == "leap":
            counts["runs of more than one step"] = sum(n > 1 for n in simulated.tables.steps["steps"].to_pylist())
    # The table gives the blocks that are held and cached at the first step of a stretch (records.canonical).
    found["oracle"]["steps"] = blocks_of_first_steps(found["oracle"]["steps"])
    for one, other in (("step", "oracle"), ("leap", "oracle")):
        kind, text = difference(found[one], found[other], one, other)
        if kind:
            return Verdict(kind, text, counts)
    return Verdict("", "", counts)


def blocks_of_first_steps(rows):
    described, blocks, result = None, (), []
    for row in rows:
        if described != [row[column] for column in _ALIKE] or any(row[column] for column in _APART):
            described, blocks = [row[column] for column in _ALIKE], [row[column] for column in _BLOCKS]
        changed = list(row)
        for column, value in zip(_BLOCKS, blocks, strict=True):
            changed[column] = value
        result.append(tuple(changed))
    return result


def oracle_run(world):
    """The oracle, having run."""

    settings = StrategyTable(**world["bundled"]) if world["bundled"] else None

    def play(query):
        if world["bundled"]:
            return STRATEGIES[settings.name](query)
        if world["strategy"]:
            return oracle.best_of_n(*world["strategy"])(query)
        asked = world["queries"][query.query_id]
        return worlds.play_script(asked["script"], asked["answer"], Delay)(query)

    luck = partial(worlds.luck, world)
    sim = oracle.Sim(world, worlds.step_model(world), play, settings, worlds.uniform, luck)
    sim.run()
    return sim


def difference(ours, theirs, one, other):
    """The first difference between two sets of facts: what differs, and a sentence."""
    for table, names in FIELDS.items():
        mine, truth = ours[table], theirs[table]
        for place, (row, true_row) in enumerate(zip(mine, truth, strict=False)):
            for column, name in enumerate(names):
                if row[column] != true_row[column]:
                    kind = f"{one}/{other} {table}.{name}"
                    text = f"{table}[{place}].{name}: {one} {row[column]}, {other} {true_row[column]}"
                    return kind, f"{text}\n  {one:6} {named(names, row)}\n  {other:6} {named(names, true_row)}"
        if len(mine) != len(truth):
            return f"{one}/{other} {table}", f"{table}: {one} has {len(mine)} rows, {other} {len(truth)}"
    if ours["end_ns"] != theirs["end_ns"]:
        return f"{one}/{other} end_ns", f"end_ns: {one} {ours['end_ns']}, {other} {theirs['end_ns']}"
    return "", ""


def named(names, row):
    return " ".join(f"{name}={value}" for name, value in zip(names, row, strict=True))


def shrink(world, kind, tries=600):
    """A smaller world that shows the same kind of difference."""

    def fails(smaller):
        try:
            return check(smaller).kind == kind
        except Exception:
            return False

    return worlds.shrink(world, fails, tries)
