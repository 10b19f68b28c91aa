"""Make an arrival trace with the simulator's own generators: gamma arrivals, lognormal prompt and output lengths."""

from __future__ import annotations

from pathlib import Path

import click

from ttsim_des.rng import Streams
from ttsim_des.scenario.schema import Arrivals, LognormalTokens, Workload
from ttsim_des.units import NS_PER_S
from ttsim_des.workload.arrivals import arrival_times_ns
from ttsim_des.workload.queries import QuerySource


def trace_rows(workload: Workload, seed: int, queries: int) -> list[str]:
    """The lines of the CSV file, header first; arrival times carry all nine decimals."""
    streams = Streams(seed)
    source = QuerySource(workload, streams, Path(), queries=queries)
    rows = ["arrival_s,prompt_tokens,output_tokens"]
    for query, time_ns in enumerate(arrival_times_ns(workload.arrivals, streams, queries, Path())):
        seconds, rest = divmod(time_ns, NS_PER_S)
        output_tokens = min(source.output_tokens(query, 0), workload.max_tokens)
        rows.append(f"{seconds}.{rest:09d},{source.query(query).prompt_tokens},{output_tokens}")
    return rows


@click.command()
@click.argument("out", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--queries", default=600, show_default=True, help="Rows.")
@click.option("--seed", default=1, show_default=True)
@click.option("--rate-per-s", default=2.0, show_default=True, help="Mean arrival rate.")
@click.option("--burstiness", default=0.35, show_default=True, help="Gamma shape: 1 is Poisson, below 1 burstier.")
@click.option("--prompt-mean", default=200.0, show_default=True, help="Tokens.")
@click.option("--prompt-sigma", default=0.8, show_default=True, help="Standard deviation of the logarithm.")
@click.option("--output-mean", default=1200.0, show_default=True, help="Tokens, before the cap.")
@click.option("--output-sigma", default=0.9, show_default=True, help="Standard deviation of the logarithm.")
@click.option("--max-tokens", default=8192, show_default=True, help="Cap on output tokens.")
def main(
    out: Path,
    queries: int,
    seed: int,
    rate_per_s: float,
    burstiness: float,
    prompt_mean: float,
    prompt_sigma: float,
    output_mean: float,
    output_sigma: float,
    max_tokens: int,
) -> None:
    """Write a CSV trace with columns arrival_s, prompt_tokens, output_tokens to OUT."""
    workload = Workload(
        arrivals=Arrivals(process="gamma", rate_per_s=rate_per_s, burstiness=burstiness),
        prompt=LognormalTokens(distribution="lognormal", mean=prompt_mean, query_sigma=prompt_sigma),
        output=LognormalTokens(distribution="lognormal", mean=output_mean, query_sigma=output_sigma),
        max_tokens=max_tokens,
    )
    out.write_text("\n".join(trace_rows(workload, seed, queries)) + "\n")


if __name__ == "__main__":
    main()
