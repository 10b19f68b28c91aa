"""The scenario: everything that a user says about one experiment, with the range of every number.

One class per table of the TOML file. Defaults that depend on the engine version or the GPU are `None` here and
are filled in from the engine file by `ttsim_des.deployment`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Seconds = Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)]
PositiveSeconds = Annotated[float, Field(gt=0, le=1e9, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Tokens = Annotated[int, Field(ge=1, le=10_000_000)]


class Table(BaseModel):
    """A table of the scenario file: no unknown keys, no coercion, immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Experiment(Table):
    """`steady`: arrivals under load, warm-up cut. `terminating`: a batch of queries until all are done."""

    kind: Literal["steady", "terminating"] = "steady"
    queries: Annotated[int, Field(ge=1, le=1_000_000_000)] = 200
    warmup_fraction: Annotated[float, Field(ge=0, le=0.9, allow_inf_nan=False)] = 0.1


class StrategyTable(Table):
    """Which test-time-scaling policy turns a query into requests. `name` is bundled or `file.py:function`."""

    name: str = "single"
    samples: Annotated[int, Field(ge=1, le=65_536)] = 1
    first: Annotated[int, Field(ge=1, le=65_536)] | None = None
    """Stop when this many samples have finished and cancel the rest; all of them when absent."""


class Arrivals(Table):
    """When queries arrive.

    `poisson`, `gamma` and `constant` need `rate_per_s`; `gamma` takes `burstiness` (the shape: 1 is Poisson, below 1 is
    burstier); `closed_loop` needs `concurrency` (queries in flight); `trace` needs `file` (column arrival_s, and
    optionally prompt_tokens and output_tokens); `together` puts every query at time 0.
    """

    process: Literal["poisson", "gamma", "constant", "closed_loop", "trace", "together"] = "poisson"
    rate_per_s: Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)] | None = None
    burstiness: Annotated[float, Field(ge=0.01, le=1000, allow_inf_nan=False)] | None = None
    concurrency: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    file: str | None = None


class ConstantTokens(Table):
    """Every draw is `tokens`."""

    distribution: Literal["constant"]
    tokens: Tokens


class LognormalTokens(Table):
    """exp(mu + u + e): u ~ N(0, query_sigma) is shared by the samples of a query, e ~ N(0, sample_sigma) is not.

    mu is chosen so that the mean before clipping to [min, max] is `mean`.
    """

    distribution: Literal["lognormal"]
    mean: Annotated[float, Field(ge=1, le=10_000_000, allow_inf_nan=False)]
    query_sigma: Annotated[float, Field(ge=0, le=4, allow_inf_nan=False)] = 0.0
    sample_sigma: Annotated[float, Field(ge=0, le=4, allow_inf_nan=False)] = 0.0
    min: Tokens = 1
    max: Tokens = 10_000_000


class TableTokens(Table):
    """Drawn from a CSV or Parquet file's `column`.

    With `problem_column` a query draws one problem and its samples draw rows of that problem without replacement
    (starting over when there are more samples than rows), so samples of a query are as alike as they really are.
    """

    distribution: Literal["table"]
    file: str
    column: str
    problem_column: str | None = None


TokenDistribution = Annotated[ConstantTokens | LognormalTokens | TableTokens, Field(discriminator="distribution")]


class Workload(Table):
    """What is asked: arrivals, prompts, outputs and the policy that answers."""

    strategy: StrategyTable = StrategyTable()
    arrivals: Arrivals
    prompt: TokenDistribution
    """Tokens of the query's own prompt, behind the shared prefix."""
    shared_prefix_tokens: Annotated[int, Field(ge=0, le=10_000_000)] = 0
    """Tokens at the head of every prompt that all queries have in common (system prompt, few-shot examples)."""
    output: TokenDistribution
    max_tokens: Tokens
    """The cap on output tokens that is sent with every request; all that the scheduler knows of the length."""
    priority: Annotated[int, Field(ge=-1_000_000, le=1_000_000)] = 0


class Cluster(Table):
    """Replicas of tensor-parallel groups behind a router."""

    gpu: str
    model: str
    """A bundled model's name, or the path of a Hugging Face config.json or of a geometry TOML."""
    engine: str = "vllm-0.32"
    tp: Annotated[int, Field(ge=1, le=64)] = 1
    replicas: Annotated[int, Field(ge=1, le=10_000)] = 1
    router: Literal["round_robin", "least_loaded", "query_affinity"] = "round_robin"
    dtype: Literal["bf16", "fp8"] = "bf16"
    kv_dtype: Literal["bf16", "fp8"] = "bf16"
    gpu_hour_usd: Annotated[float, Field(ge=0, le=10_000, allow_inf_nan=False)] | None = None
    """Price of one GPU for an hour; profiles/prices.toml when absent."""


class Engine(Table):
    """Engine settings by vLLM's names; what is absent comes from the engine file (and the GPU's memory)."""

    max_num_seqs: Annotated[int, Field(ge=1, le=65_536)] | None = None
    max_num_batched_tokens: Annotated[int, Field(ge=1, le=10_000_000)] | None = None
    max_model_len: Annotated[int, Field(ge=2, le=10_000_000)] | None = None
    block_size: Annotated[int, Field(ge=1, le=1024)] | None = None
    num_gpu_blocks: Annotated[int, Field(ge=2, le=1_000_000_000)] | None = None
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] | None = None
    enable_prefix_caching: bool | None = None
    enable_chunked_prefill: bool | None = None
    async_scheduling: bool | None = None
    scheduling_policy: Literal["fcfs", "priority"] | None = None
    long_prefill_token_threshold: Annotated[int, Field(ge=0, le=10_000_000)] | None = None
    scheduler_reserve_full_isl: bool | None = None
    watermark: Fraction | None = None
    """Share of the blocks that admission leaves free while something is running."""
    stepping: Literal["leap", "step"] = "leap"
    """How the simulation gets from step to step: one event per change of the batch, or one per step; same results."""


class AffineLatency(Table):
    """Step time is a sum of five terms, in microseconds: what each coefficient multiplies is in its name."""

    constant_us: Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)] = 0.0
    per_token_us: Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)] = 0.0
    per_decode_seq_us: Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)] = 0.0
    per_decode_ctx_token_us: Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)] = 0.0
    per_prefill_qk_pair_us: Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)] = 0.0


class Latency(Table):
    """The step model: `kernels` composes the GPU's profile, `affine` is five coefficients."""

    model: Literal["kernels", "affine"] = "kernels"
    unequal_contexts: bool | None = None
    """`kernels`: the longest context of a large decode batch holds it up; false: all contexts count as their mean.

    When absent: true where the GPU's profile measured it, else false."""
    affine: AffineLatency | None = None


class Frontend(Table):
    """The API server in front of each engine: requests enter one by one, `ingest_s` each."""

    ingest_s: Seconds | None = None


class Client(Table):
    """The caller: `turnaround_s` passes between a result and the requests that it causes."""

    turnaround_s: Seconds = 0.0


class Slo(Table):
    """Limits that a query must keep to count as goodput; those absent do not bind."""

    query_latency_s: PositiveSeconds | None = None
    ttft_s: PositiveSeconds | None = None
    tpot_s: PositiveSeconds | None = None


class Limits(Table):
    """Expected work above these is refused before anything runs."""

    requests: Annotated[int, Field(ge=1, le=10_000_000_000)] = 10_000_000
    output_tokens: Annotated[int, Field(ge=1, le=10**15)] = 100_000_000_000


class Output(Table):
    """What the run directory holds beside the summary and the query and request tables."""

    steps: bool = False


class Scenario(Table):
    """One experiment."""

    schema_version: Annotated[Literal[1], Field(alias="schema")]
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]
    description: str = ""
    seed: Annotated[int, Field(ge=0, le=2**63 - 1)] = 0
    experiment: Experiment = Experiment()
    workload: Workload
    cluster: Cluster
    engine: Engine = Engine()
    latency: Latency = Latency()
    frontend: Frontend = Frontend()
    client: Client = Client()
    slo: Slo = Slo()
    limits: Limits = Limits()
    output: Output = Output()
