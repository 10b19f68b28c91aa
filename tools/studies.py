"""Run a shipped study and put its tables and plots into its page.

    python tools/studies.py majority-and-prm          # print the tables
    python tools/studies.py seed-paper --write        # put them into docs/studies/seed-paper.md, with its plot

A page holds one pair of marks for each table; everything between them comes from here.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from plan_study import plan_math500
from speculation_study import speculation
from ttsim_des import load, run
from ttsim_des.report.figures import log_scale, save, set_up

DOCS = Path(__file__).parents[1] / "docs" / "studies"
Tables = dict[str, str]
Job = tuple[str, tuple[str, ...]]

NS = (1, 2, 4, 8, 16, 32)
PUBLISHED_S = {
    "majority": (2.52, 2.97, 3.34, 4.03, 4.73, 5.98),
    "reward model": (2.58, 3.08, 3.57, 4.54, 5.84, 8.38),
}
PUBLISHED_TOKENS = (526, 1049, 2102, 4178, 8284, 16517)
MAJORITY = ("workload.strategy.name=self_consistency", "workload.strategy.verifier=", "verifier=")

SIZES = ("1.5B", "7B", "14B")
BUDGETS = (1024, 2048, 4096, 8192, 16384)
DEGREES = (1, 2, 4)
IN_FLIGHT = (1, 8, 32, 128)
SEEDS = 20
NGRAM = tuple(
    f"engine.speculative.{each}"
    for each in (
        *("method=ngram", "num_speculative_tokens=4", "acceptance.process=copying"),
        *("acceptance.enter=0.6", "acceptance.stay=0.85", "acceptance.offer=0.12"),
    )
)
"""n-gram look-up on reasoning text; k is not published, acceptance is assumed (docs/speculation.md)."""


def main() -> int:
    """Run one study."""
    parser = argparse.ArgumentParser(description="Run a shipped study.")
    parser.add_argument("study", choices=sorted(STUDIES))
    parser.add_argument("--write", action="store_true", help="put tables and plot into the study's page")
    arguments = parser.parse_args()
    tables = STUDIES[arguments.study](DOCS if arguments.write else None)
    if not arguments.write:
        print("\n\n".join(f"{name}\n{table}" for name, table in tables.items()))
        return 0
    path = DOCS / f"{arguments.study}.md"
    page = path.read_text(encoding="utf-8")
    for name, table in tables.items():
        begin, end = f"<!-- {name}: tools/studies.py -->", f"<!-- end of {name} -->"
        before, rest = page.split(begin)
        _, after = rest.split(end)
        page = f"{before}{begin}\n{table}\n{end}{after}"
    path.write_text(page, encoding="utf-8")
    return 0


def summaries(jobs: Sequence[Job]) -> list[dict[str, Any]]:
    """The summaries of scenarios with overrides, run side by side."""
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(_summary, jobs))


def _summary(job: Job) -> dict[str, Any]:
    return run(load(job[0], job[1])).summary


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


# ---- majority and best of N by a reward model ----


def majority_and_prm(out: Path | None) -> Tables:
    """N = 1 to 32 with the vote and with the reward model, one question at a time, and beam search."""
    jobs = [("best-of-n-prm", (*extra, f"workload.strategy.samples={n}")) for extra in (MAJORITY, ()) for n in NS]
    beams = [
        (
            "best-of-n-prm",
            (
                "workload.strategy.name=beam_search",
                f"workload.strategy.samples={n}",
                f"workload.strategy.width={min(4, n)}",
                "workload.strategy.step_tokens=60",
                "workload.strategy.iterations=40",
            ),
        )
        for n in (4, 8, 16)
    ]
    found = summaries([*jobs, *beams])
    rows = []
    curves: dict[str, tuple[Sequence[float], Sequence[float]]] = {}
    for index, (name, published) in enumerate(PUBLISHED_S.items()):
        mine = found[index * len(NS) : (index + 1) * len(NS)]
        curves[name] = ([each["query"]["latency_s"]["mean"] for each in mine], published)
        for n, each, latency_s, tokens in zip(NS, mine, published, PUBLISHED_TOKENS, strict=True):
            ours_s, ours = each["query"]["latency_s"]["mean"], each["query"]["output_tokens"]["mean"]
            rows.append(
                (
                    *(name, str(n), f"{tokens:,}", f"{ours:,.0f}", f"{latency_s:.2f}", f"{ours_s:.2f}"),
                    *(f"{100 * (ours_s / latency_s - 1):+.1f} %", f"{each['accuracy']['share']:.1%}"),
                )
            )
    head = ("", "N", "tokens, published", "here", "latency s, published", "here", "error", "right")
    beam = [
        (
            *(str(n), f"{each['query']['requests']['mean']:.0f}", f"{each['query']['output_tokens']['mean']:,.0f}"),
            *(f"{each['query']['latency_s']['mean']:.2f}", f"{each['accuracy']['share']:.1%}"),
        )
        for n, each in zip((4, 8, 16), found[len(jobs) :], strict=True)
    ]
    if out is not None:
        set_up()
        save(out / "majority-and-prm.png", lambda: _latency_figure(curves))
    return {"latencies": table(head, rows), "beams": table(("beams", "requests", "tokens", "latency s", "right"), beam)}


def _latency_figure(curves: Mapping[str, tuple[Sequence[float], Sequence[float]]]) -> Any:
    import matplotlib.pyplot as plt

    figure, panel = plt.subplots(figsize=(8, 5), layout="constrained")
    for index, (name, (ours, published)) in enumerate(curves.items()):
        panel.plot(NS, published, "o", color=f"C{index}", label=f"{name}, published")
        panel.plot(NS, ours, "-", color=f"C{index}", label=f"{name}, simulated")
    panel.set(xscale="log", xlabel="samples", ylabel="query latency, mean, seconds", ylim=(0, None))
    panel.set_xticks(NS, [str(n) for n in NS])
    panel.legend()
    return figure


# ---- the seed paper ----


def seed_paper(out: Path | None) -> Tables:
    """Budgets x sizes, tensor parallelism, and the same under load."""

    def of(size: str, *more: str) -> Job:
        model = f"DeepSeek-R1-Distill-Qwen-{size}"
        return "seed-paper", (f"cluster.model={model}", f"workload.output.source={model.lower()}-math500", *more)

    budgets = [of(size, f"workload.max_tokens={budget}") for size in SIZES for budget in BUDGETS]
    degrees = [of(size, f"cluster.tp={tp}") for size in SIZES for tp in DEGREES]
    steady = ("experiment.kind=steady", "workload.arrivals.concurrency=", "workload.arrivals.process=poisson")
    loads = [
        of(size, *steady, f"cluster.tp={tp}", f"cluster.replicas={4 // tp}", f"workload.arrivals.rate_per_s={rate}",
           "experiment.queries=1200", "cluster.router=least_loaded")
        for size in SIZES
        for tp in DEGREES
        for rate in (0.5, 2.0, 8.0)
    ]  # fmt: skip
    drafts = [
        of(size, f"workload.arrivals.concurrency={flying}", *extra)
        for size in SIZES
        for flying in IN_FLIGHT
        for extra in ((), NGRAM)
    ]
    resampled = [
        of(size, "experiment.queries=30", f"seed={seed}", *NGRAM) for size in SIZES for seed in range(1, SEEDS + 1)
    ]
    groups = (budgets, degrees, loads, drafts, resampled)
    found = iter(summaries([job for group in groups for job in group]))
    by_budget, by_degree, by_load, by_drafts, by_seed = ([next(found) for _ in group] for group in groups)
    tables = {
        "budgets": _budgets(by_budget),
        "degrees": _degrees(by_degree),
        "load": _loads(by_load),
        "drafts": _drafts(by_drafts),
        "seeds": _seeds(by_seed),
    }
    if out is not None:
        set_up()
        save(out / "seed-paper.png", lambda: _frontier_figure(by_budget))
    return tables


def _budgets(found: Sequence[dict[str, Any]]) -> str:
    rows = []
    for place, each in enumerate(found):
        size, budget = SIZES[place // len(BUDGETS)], BUDGETS[place % len(BUDGETS)]
        rows.append(
            (
                *(size, f"{budget:,}", f"{each['query']['latency_s']['mean']:.1f}"),
                *(f"{each['query']['output_tokens']['mean']:,.0f}", f"{each['accuracy']['share']:.1%}"),
                *(f"{each['cost']['gpu_s_per_query']:.1f}", f"{each['cost']['gpu_s_per_solved_query']:.1f}"),
            )
        )
    head = ("size", "budget", "latency s", "tokens", "right", "GPU s a query", "a solved query")
    return table(head, rows)


def _degrees(found: Sequence[dict[str, Any]]) -> str:
    rows = []
    for place, size in enumerate(SIZES):
        mine = found[place * len(DEGREES) : (place + 1) * len(DEGREES)]
        latency_s = [each["query"]["latency_s"]["mean"] for each in mine]
        token = [each["cost"]["gpu_s_per_million_output_tokens"] for each in mine]
        rows.append(
            (
                *(size, *(f"{each:.1f}" for each in latency_s)),
                *(f"{latency_s[0] / latency_s[1]:.2f}", f"{latency_s[0] / latency_s[2]:.2f}"),
                f"{token[2] / token[0]:.2f}",
            )
        )
    head = ("size", "TP 1, s", "TP 2, s", "TP 4, s", "speedup TP 2", "speedup TP 4", "cost per token TP 4 / TP 1")
    return table(head, rows)


def _loads(found: Sequence[dict[str, Any]]) -> str:
    rows = []
    rates = (0.5, 2.0, 8.0)
    for place, each in enumerate(found):
        size = SIZES[place // (len(DEGREES) * len(rates))]
        tp, rate = DEGREES[place // len(rates) % len(DEGREES)], rates[place % len(rates)]
        latency = each["query"]["latency_s"]
        cells = ["queue grows"] * 2 if latency["p99"] is None else [f"{latency[name]:.1f}" for name in ("mean", "p99")]
        solved = each["cost"]["gpu_s_per_solved_query"]
        rows.append((size, f"{4 // tp} x TP {tp}", f"{rate:g}", *cells, "-" if solved is None else f"{solved:.1f}"))
    return table(("size", "4 GPUs as", "queries/s", "mean s", "p99 s", "GPU s a solved query"), rows)


def _drafts(found: Sequence[dict[str, Any]]) -> str:
    """Latency with n-gram drafts over that without, for each size and number of questions at a time."""
    rows = []
    for place, size in enumerate(SIZES):
        mine = found[2 * place * len(IN_FLIGHT) : 2 * (place + 1) * len(IN_FLIGHT)]
        latency_s = [each["query"]["latency_s"]["mean"] for each in mine]
        ratios = [with_drafts / plain for plain, with_drafts in zip(latency_s[::2], latency_s[1::2], strict=True)]
        rows.append((size, f"{mine[1]['speculation']['acceptance_length']:.2f}", *(f"{ratio:.2f}" for ratio in ratios)))
    return table(("size", "tokens a step with drafts", *(f"{flying} at a time" for flying in IN_FLIGHT)), rows)


def _seeds(found: Sequence[dict[str, Any]]) -> str:
    """How much the cost of a token varies from seed to seed."""
    rows = []
    for place, size in enumerate(SIZES):
        costs = [each["cost"]["gpu_s_per_million_output_tokens"] for each in found[place * SEEDS : (place + 1) * SEEDS]]
        mean, spread = statistics.fmean(costs), statistics.stdev(costs)
        rows.append((size, f"{mean:,.0f}", f"{spread:,.1f}", f"{spread**2:,.0f}", f"{spread / mean:.2%}"))
    head = ("size", "GPU s per million tokens", "standard deviation", "variance", "relative")
    return table(head, rows)


def _frontier_figure(found: Sequence[dict[str, Any]]) -> Any:
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, 2, figsize=(13, 5), layout="constrained", sharey=True)
    for index, size in enumerate(SIZES):
        mine = found[index * len(BUDGETS) : (index + 1) * len(BUDGETS)]
        right = [100 * each["accuracy"]["share"] for each in mine]
        panels[0].plot([each["query"]["latency_s"]["mean"] for each in mine], right, "o-", label=size)
        panels[1].plot([each["query"]["output_tokens"]["mean"] for each in mine], right, "o-", label=size)
    panels[0].set(xlabel="latency, mean, seconds", ylabel="answers right, %")
    panels[1].set(xlabel="output tokens, mean")
    for panel in panels:
        log_scale(panel)
    panels[1].legend()
    return figure


# ---- strategies under load ----

VERIFIER = "workload.strategy.verifier=verifier"
TREE = ("workload.strategy.step_tokens=60", "workload.strategy.iterations=40", VERIFIER)
POLICIES: dict[str, tuple[str, ...]] = {
    "single": ("name=single",),
    "vote of 4": ("name=self_consistency", "samples=4"),
    "vote of 16": ("name=self_consistency", "samples=16"),
    "vote of 64": ("name=self_consistency", "samples=64"),
    "adaptive vote, at most 16 by 4": ("name=adaptive_consistency", "samples=16", "wave=4"),
    "adaptive vote, at most 64 by 8": ("name=adaptive_consistency", "samples=64", "wave=8"),
    "first 4 of 8": ("name=first_finish", "samples=8", "first=4"),
    "best of 4": ("name=best_of_n", "samples=4", VERIFIER),
    "best of 16": ("name=best_of_n", "samples=16", VERIFIER),
    "best of 64": ("name=best_of_n", "samples=64", VERIFIER),
    "beam search, 8 beams": ("name=beam_search", "samples=8", "width=4", *TREE),
    "beam search, 16 beams": ("name=beam_search", "samples=16", "width=4", *TREE),
    "REBASE, 16": ("name=rebase", "samples=16", *TREE),
}
RATES = (0.2, 1.0, 3.0)


def strategies_under_load(out: Path | None) -> Tables:
    """Every policy at three loads: accuracy, tail, goodput, cost per solved query."""

    def job(policy: tuple[str, ...], rate: float) -> Job:
        settings = tuple(each if each.startswith("workload") else f"workload.strategy.{each}" for each in policy)
        caching = ("verifier.engine.enable_prefix_caching=",)
        pool = caching if VERIFIER in policy else ("verifier=", "workload.strategy.verifier=")
        clear = ("workload.strategy.samples=", "workload.arrivals.concurrency=")
        load_ = ("experiment.kind=steady", "experiment.queries=1112", "workload.arrivals.process=poisson")
        slo = ("slo.query_latency_s=15",)
        return "best-of-n-prm", (*clear, *settings, *pool, *load_, f"workload.arrivals.rate_per_s={rate}", *slo)

    jobs = [job(policy, rate) for rate in RATES for policy in POLICIES.values()]
    found = summaries(jobs)
    tables = {}
    for place, rate in enumerate(RATES):
        mine = found[place * len(POLICIES) : (place + 1) * len(POLICIES)]
        tables[f"{rate:g} queries a second"] = table(
            (
                "strategy",
                "right",
                "tokens",
                "p50 s",
                "p99 s",
                "within 15 s",
                "GPUs",
                "USD a query",
                "USD a solved query",
            ),
            [_policy_row(name, each) for name, each in zip(POLICIES, mine, strict=True)],
        )
    if out is not None:
        set_up()
        save(out / "strategies-under-load.png", lambda: _policy_figure(found))
    return tables


def _policy_row(name: str, found: dict[str, Any]) -> tuple[str, ...]:
    latency, cost, goodput = found["query"]["latency_s"], found["cost"], found["goodput"]
    gpus = found["run"]["gpus"] + sum(pool["gpus"] for pool in found["pools"].values())
    grows = latency["p99"] is None
    return (
        *(name, f"{found['accuracy']['share']:.1%}", f"{found['query']['output_tokens']['mean']:,.0f}"),
        *(["queue grows"] * 2 if grows else [f"{latency[key]:.1f}" for key in ("p50", "p99")]),
        *("-" if grows else f"{goodput['share']:.1%}", str(gpus)),
        *(f"{cost[key]:.5f}" for key in ("query_usd", "solved_query_usd")),
    )


def _policy_figure(found: Sequence[dict[str, Any]]) -> Any:
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, len(RATES), figsize=(17, 5.5), layout="constrained", sharey=True)
    for place, (panel, rate) in enumerate(zip(panels, RATES, strict=True)):
        points = [
            (index, name, each["query"]["latency_s"]["p99"], 100 * each["accuracy"]["share"])
            for index, (name, each) in enumerate(
                zip(POLICIES, found[place * len(POLICIES) : (place + 1) * len(POLICIES)], strict=True)
            )
            if each["query"]["latency_s"]["p99"] is not None
        ]
        middle_s = math.sqrt(min(p99_s for _, _, p99_s, _ in points) * max(p99_s for _, _, p99_s, _ in points))
        for index, name, p99_s, right in points:
            panel.scatter(p99_s, right, color=f"C{index % 10}", s=40)
            # Towards the middle of the logarithmic axis, so that none runs out of the frame.
            side = {"xytext": (5, -3), "ha": "left"} if p99_s <= middle_s else {"xytext": (-5, -3), "ha": "right"}
            panel.annotate(name, (p99_s, right), textcoords="offset points", size=7, **side)
        panel.set(title=f"{rate:g} queries a second", xlabel="query latency, p99, seconds")
        log_scale(panel)
    panels[0].set_ylabel("answers right, %")
    return figure


def planning(out: Path | None) -> Tables:
    """Which model, GPU, tp, replicas, N and speculation serve 5 questions a second at 90 %, p95 < 60 s, cheapest."""
    return {name: table(head, rows) for name, (head, rows) in plan_math500(out).items()}


STUDIES: dict[str, Callable[[Path | None], Tables]] = {
    "majority-and-prm": majority_and_prm,
    "seed-paper": seed_paper,
    "speculation": speculation,
    "strategies-under-load": strategies_under_load,
    "plan-math500": planning,
}


if __name__ == "__main__":
    sys.exit(main())
