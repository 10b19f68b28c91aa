"""What a scenario would run, without running it: the answer of `ttsim-des check`."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import Any

from ttsim_des.deployment import Deployment
from ttsim_des.report.units import number, percent, usd
from ttsim_des.scenario.schema import Scenario
from ttsim_des.units import NS_PER_US
from ttsim_des.workload.expected import ExpectedWork

CHECK_SCHEMA = 1
WIDTH = 100
NAME_WIDTH = 28
VALUE_WIDTH = 24
BUSY_SHARE = 0.9
"""Offered load above this share of the bound is worth a warning: real throughput stays below the bound."""


def summarise_check(scenario: Scenario, deployment: Deployment, work: ExpectedWork) -> dict[str, Any]:
    """Everything that `check` tells, as plain numbers; None is what cannot be said."""
    cluster = scenario.cluster
    load = _load(scenario, deployment, work)
    return {
        "schema": CHECK_SCHEMA,
        "scenario": {
            "name": scenario.name,
            "kind": scenario.experiment.kind,
            "seed": scenario.seed,
            "strategy": scenario.workload.strategy.name,
            "arrivals": scenario.workload.arrivals.process,
        },
        "cluster": {
            "model": deployment.geometry.name,
            "parameters": deployment.geometry.parameters(),
            "gpu": cluster.gpu,
            "device": deployment.device,
            "profile_source": deployment.profile_source,
            "gpus": deployment.gpus,
            "tp": cluster.tp,
            "replicas": cluster.replicas,
            "router": cluster.router,
            "dtype": cluster.dtype,
            "kv_dtype": cluster.kv_dtype,
            "gpu_hour_usd": deployment.gpu_hour_usd,
            "price_source": deployment.price_source,
        },
        "pools": {name: _pool(pool) for name, pool in deployment.pools.items()},
        "engine": {"file": deployment.engine, "settings": [setting._asdict() for setting in deployment.settings]},
        "host": _host(deployment),
        "memory": [row._asdict() for row in deployment.memory.rows],
        "work": _work(work, scenario),
        "load": load,
        "warnings": [*deployment.warnings, *_warnings(load)],
    }


def _pool(pool: Deployment) -> dict[str, Any]:
    """A pool beside the generator's, in short."""
    config = pool.engine_config
    return {
        "model": pool.geometry.name,
        "gpu": pool.gpu,
        "tp": pool.tp,
        "replicas": pool.replicas,
        "engine": pool.engine,
        "num_gpu_blocks": config.num_gpu_blocks,
        "max_num_batched_tokens": config.max_num_batched_tokens,
        "max_model_len": config.max_model_len,
        "enable_prefix_caching": config.enable_prefix_caching,
    }


def _host(deployment: Deployment) -> dict[str, Any]:
    times = {name.replace("_ns", "_us"): value / NS_PER_US for name, value in deployment.host._asdict().items()}
    return {**times, "source": deployment.host_source}


def _work(work: ExpectedWork, scenario: Scenario) -> dict[str, Any]:
    return {
        "queries": work.queries,
        "requests": work.requests,
        "requests_limit": scenario.limits.requests,
        "output_tokens": work.output_tokens,
        "output_tokens_limit": scenario.limits.output_tokens,
        "prompt_tokens_mean": work.prompt_tokens_mean,
        "output_tokens_mean": work.output_tokens_mean,
    }


def _load(scenario: Scenario, deployment: Deployment, work: ExpectedWork) -> dict[str, Any]:
    bound = deployment.best_throughput(scenario.workload, work)
    best = bound.output_tokens_per_s
    offered = work.offered_output_tokens_per_s
    return {
        "offered_queries_per_s": work.offered_queries_per_s,
        "offered_output_tokens_per_s": offered,
        "best_output_tokens_per_s": best,
        "best_batch": bound.batch,
        "best_batch_limited_by": bound.limited_by,
        "share": None if offered is None else offered / best,
    }


def _warnings(load: dict[str, Any]) -> Iterator[str]:
    share = load["share"]
    if share is None or share <= BUSY_SHARE:
        return
    rate = load["offered_queries_per_s"] / share * BUSY_SHARE
    verdict = "no queue is stable" if share > 1 else "queues will be long, or grow"
    yield (
        f"offered load is {percent(share)} of the best throughput: {verdict}; lower workload.arrivals.rate_per_s "
        f"below {number(rate)} or raise cluster.replicas"
    )


def render_check(check: dict[str, Any]) -> str:
    """The same as text, one fact a line, notes wrapped to 100 columns."""
    return "".join(f"{line}\n" for line in _lines(check))


def _lines(check: dict[str, Any]) -> Iterator[str]:
    scenario, cluster, host = check["scenario"], check["cluster"], check["host"]
    yield f"{scenario['name']}: nothing is wrong with it"
    yield ""
    yield from _row("experiment", f"{scenario['kind']}, {scenario['arrivals']} arrivals, {scenario['strategy']}")
    yield from _row("model", f"{cluster['model']}, {number(cluster['parameters'] / 1e9)} billion parameters")
    groups = f"{cluster['replicas']} x tp {cluster['tp']} = {cluster['gpus']}"
    yield from _row("GPUs", f"{groups} {cluster['gpu']}, {cluster['dtype']}, KV {cluster['kv_dtype']}")
    if cluster["replicas"] > 1:
        yield from _row("router", cluster["router"])
    price = cluster["gpu_hour_usd"]
    source = cluster["price_source"] if price is not None else "no price known: cost is not given"
    yield from _row("price", f"{usd(price)} a GPU-hour", source)
    yield from _row("step times", "", cluster["profile_source"])
    for name, pool in check["pools"].items():
        gpus = f"{pool['replicas']} x tp {pool['tp']} = {pool['replicas'] * pool['tp']} {pool['gpu']}"
        caching = "prefix caching" if pool["enable_prefix_caching"] else "no prefix caching"
        yield from _row(name, pool["model"], f"{gpus}, {pool['engine']}, {pool['num_gpu_blocks']:,} blocks, {caching}")
    yield ""
    yield f"engine {check['engine']['file']}"
    for setting in check["engine"]["settings"]:
        yield from _row(setting["name"], _plain(setting["value"]), setting["origin"])
    yield ""
    yield "host time"
    for key, value in host.items():
        if key != "source":
            yield from _row(key, f"{number(value)}")
    yield from _row("source", "", host["source"])
    yield ""
    yield "memory of one GPU"
    for row in check["memory"]:
        yield from _row(row["name"], f"{_amount(row['value'])} {row['unit']}".rstrip(), row["note"])
    yield ""
    yield from _work_lines(check)
    for warning in check["warnings"]:
        yield ""
        yield from textwrap.wrap(f"warning: {warning}", WIDTH, subsequent_indent=" " * 9, break_long_words=False)


def _work_lines(check: dict[str, Any]) -> Iterator[str]:
    work, load = check["work"], check["load"]
    yield "expected work"
    yield from _row("queries", number(work["queries"]))
    yield from _row("requests", number(work["requests"]), f"limit {work['requests_limit']:,}")
    tokens = f"limit {work['output_tokens_limit']:,}"
    yield from _row("output tokens", number(work["output_tokens"]), tokens)
    means = f"{number(work['prompt_tokens_mean'])} in, {number(work['output_tokens_mean'])} out"
    yield from _row("a request, mean", f"{means} tokens")
    yield ""
    yield "load"
    if load["offered_output_tokens_per_s"] is not None:
        yield from _row("offered", f"{number(load['offered_queries_per_s'])} queries/s")
        yield from _row("", f"{number(load['offered_output_tokens_per_s'])} output tokens/s")
    best, why = (
        load["best_output_tokens_per_s"],
        f"at batch {load['best_batch']}, limit: {load['best_batch_limited_by']}",
    )
    yield from _row("best throughput", f"{number(best)} output tokens/s", f"a bound, {why}")
    if load["share"] is not None:
        yield from _row("offered / best", percent(load["share"]))


def _row(name: str, value: str, note: str = "") -> Iterator[str]:
    """One fact and what there is to say about it; a note that does not fit goes on below itself."""
    head = f"  {name:<{NAME_WIDTH}} {value:<{VALUE_WIDTH}} " if value else f"  {name:<{NAME_WIDTH}} "
    if not note:
        yield head.rstrip()
    elif value and len(head) + len(note) > WIDTH:
        yield head.rstrip()
        yield from _row("", "", note)
    else:
        indent = " " * (NAME_WIDTH + 3)
        yield from textwrap.wrap(note, WIDTH, initial_indent=head, subsequent_indent=indent, break_long_words=False)


def _plain(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _amount(value: float) -> str:
    return f"{value:,.2f}" if value != int(value) else f"{int(value):,}"
