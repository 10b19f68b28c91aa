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
@click.option("--samples", default=1, show_default=True, help="For recorders: requests of each prompt.")
@click.option("--cancel-every", type=click.IntRange(1), help="For recorders: the client gives up on every so many.")
@click.option("--cancel-s", default=1.0, show_default=True, help="So long after it sent.")
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
    samples: int,
    cancel_every: int | None,
    cancel_s: float,
) -> None:
    """Write a CSV trace with columns arrival_s, prompt_tokens, output_tokens to OUT.

    Where recorders are to send it, also samples and cancel_s (tools/recorder/load.py); the simulator has none of these.
    """
    workload = Workload(
        arrivals=Arrivals(process="gamma", rate_per_s=rate_per_s, burstiness=burstiness),
        prompt=LognormalTokens(distribution="lognormal", mean=prompt_mean, query_sigma=prompt_sigma),
        output=LognormalTokens(distribution="lognormal", mean=output_mean, query_sigma=output_sigma),
        max_tokens=max_tokens,
    )
    rows = trace_rows(workload, seed, queries)
    if samples > 1:
        rows = [f"{row},{samples if index else 'samples'}" for index, row in enumerate(rows)]
    if cancel_every is not None:
        cells = ["cancel_s", *("" if index % cancel_every else f"{cancel_s:g}" for index in range(1, len(rows)))]
        rows = [f"{row},{cell}" for row, cell in zip(rows, cells, strict=True)]
    out.write_text("\n".join(rows) + "\n")


if __name__ == "__main__":
    main()
