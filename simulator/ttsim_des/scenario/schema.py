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


Count = Annotated[int, Field(ge=1, le=65_536)]
AppendedTokens = Annotated[int, Field(ge=0, le=10_000_000)]


class StrategyTable(Table):
    """Which policy turns a query into requests; docs/strategies.md says which keys each one takes."""

    name: str = "single"
    """A bundled strategy, or a function of the user's: `file.py:function` or `package.module:function`."""
    samples: Count = 1
    first: Count | None = None
    """Stop when this many samples have finished and cancel the rest; all of them when absent."""
    verifier: Literal["verifier", "generator"] | None = None
    """The pool that scores: "verifier", or "generator" for the generator itself. Absent: scores are free."""
    score_when: Literal["all", "each"] | None = None
    score_tokens: AppendedTokens | None = None
    """What the verifier reads behind a sample's text: its instructions."""
    wave: Count | None = None
    threshold: Annotated[float, Field(gt=0.5, lt=1, allow_inf_nan=False)] | None = None
    width: Count | None = None
    step_tokens: Tokens | None = None
    iterations: Count | None = None
    temperature: Annotated[float, Field(gt=0, le=100, allow_inf_nan=False)] | None = None
    rounds: Count | None = None
    append_tokens: AppendedTokens | None = None
    think_s: Seconds | None = None
    min_tokens: Tokens | None = None
    continue_share: Annotated[float, Field(gt=0, le=10, allow_inf_nan=False)] | None = None
    answer_tokens: Tokens | None = None
    graph: str | None = None


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


class OutcomeTokens(Table):
    """Length, correctness, answer and score of each sample, drawn together per problem.

    `source`: a bundled outcome profile (parametric), a file of that format, or a sample bank (.csv, .jsonl, .parquet).
    """

    distribution: Literal["outcomes"]
    source: str
    model: str | None = None
    """Of a bank of several models: which one."""
    dataset: str | None = None
    """Of a bank of several data sets: which one."""
    verifier_auc: Annotated[float, Field(ge=0.5, le=0.9999, allow_inf_nan=False)] = 0.9
    """P(a verifier scores a right sample above a wrong one of the same problem), where the bank has no scores."""


TokenDistribution = Annotated[ConstantTokens | LognormalTokens | TableTokens, Field(discriminator="distribution")]
OutputDistribution = Annotated[
    ConstantTokens | LognormalTokens | TableTokens | OutcomeTokens, Field(discriminator="distribution")
]


class Workload(Table):
    """What is asked: arrivals, prompts, outputs and the policy that answers."""

    strategy: StrategyTable = StrategyTable()
    arrivals: Arrivals
    prompt: TokenDistribution
    """Tokens of the query's own prompt, behind the shared prefix."""
    shared_prefix_tokens: Annotated[int, Field(ge=0, le=10_000_000)] = 0
    """Tokens at the head of every prompt that all queries have in common (system prompt, few-shot examples)."""
    output: OutputDistribution
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
    expert_parallel: bool = False
    """The GPUs of a replica share whole experts instead of slices of each (vLLM's enable_expert_parallel)."""
    gpu_hour_usd: Annotated[float, Field(ge=0, le=10_000, allow_inf_nan=False)] | None = None
    """Price of one GPU for an hour; profiles/prices.toml when absent."""


class EngineSettings(Table):
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


Rates = Annotated[list[Fraction], Field(min_length=1, max_length=64)]
Drafts = Annotated[int, Field(ge=1, le=64)]
Microseconds = Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)]


class AcceptanceTable(Table):
    """Would a draft of a token be taken? A process over output positions; docs/speculation.md says which fits what.

    `iid`: always `rate`. `positions`: the j-th draft of a step with `rates[j]`, the last goes on. `beta`: as `iid` or
    `positions`, but each request has a rate of its own, around the given one with `concentration`. `output`: `rates` at
    `tokens` of output, linear between. `copying`: where nothing was copied there is a match with `offer`, whose first
    draft is right with `enter`; copies go on with `stay`; without a match nothing is drafted. `recorded`: streams of
    steps from `file` (columns stream, drafts, accepted).
    """

    process: Literal["iid", "positions", "beta", "output", "copying", "recorded"]
    rate: Fraction | None = None
    rates: Rates | None = None
    concentration: Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)] | None = None
    tokens: Annotated[list[Annotated[int, Field(ge=0, le=10_000_000)]], Field(min_length=1, max_length=64)] | None = (
        None
    )
    enter: Fraction | None = None
    stay: Fraction | None = None
    offer: Fraction | None = None
    file: str | None = None


class Speculative(Table):
    """Speculative decoding, by the names of vLLM's speculative_config."""

    method: Literal["draft_model", "ngram", "eagle", "eagle3", "medusa", "mtp"]
    num_speculative_tokens: Drafts
    """Drafts per sequence and step; of a tree all nodes."""
    acceptance: AcceptanceTable
    model: str | None = None
    """`draft_model`: a bundled model's name or the path of a geometry."""
    draft_tensor_parallel_size: Annotated[int, Field(ge=1, le=64)] | None = None
    """GPUs that share the drafter: the target's, or 1. The target's when absent."""
    draft_vocab: Annotated[int, Field(ge=1, le=10_000_000)] | None = None
    """`eagle3`: the head's own vocabulary; the target's when absent."""
    tree: Annotated[list[Drafts], Field(min_length=1, max_length=16)] | None = None
    """Nodes that are verified at each depth; a chain when absent."""
    num_speculative_tokens_per_batch_size: (
        Annotated[list[Annotated[list[int], Field(min_length=3, max_length=3)]], Field(min_length=1)] | None
    ) = None
    """[first batch size, last, drafts], ascending from 1; gaps and what lies beyond go on with the drafts before."""
    policy: Literal["fixed", "adaptive", "oracle"] = "fixed"
    """`adaptive`: at each batch size the drafts with the best expected goodput. `oracle`: no draft is ever wasted."""
    draft_gap_us: Microseconds | None = None
    """Idle device time before each pass of the drafter; the method's default when absent."""
    host_step_us: Microseconds | None = None
    """CPU time of drafting after each step; the method's default when absent."""
    host_sequence_us: Microseconds | None = None
    """And for each sequence of it."""


class Engine(EngineSettings):
    """The generator's engine, and how the simulation of all of them proceeds."""

    speculative: Speculative | None = None

    stepping: Literal["leap", "step"] = "leap"
    """How the simulation gets from step to step: one event per change of the batch, or one per step; same results."""


class Pool(Table):
    """Replicas beside the generator's, with a model, GPUs and settings of their own."""

    cluster: Cluster
    engine: EngineSettings = EngineSettings()


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
    calibration: str | None = None
    """`kernels`: a bundled calibration or a file of `ttsim-des calibrate`; it replaces the engine file's host times."""
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


Texts = Annotated[list[str], Field(min_length=1, max_length=10_000)]


class Plan(Table):
    """What `ttsim-des plan` is to find out where its options do not say; a run does not look at it."""

    slos: Texts | None = None
    """As after --slo."""
    vary: Texts | None = None
    """As after --vary."""
    points: Texts | None = None
    """Each `KEY=VALUE KEY=VALUE ...`: tried with every combination of `vary`."""
    minimise: str | None = None
    replications: Annotated[int, Field(ge=2, le=1000)] | None = None


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
    verifier: Pool | None = None
    latency: Latency = Latency()
    frontend: Frontend = Frontend()
    client: Client = Client()
    slo: Slo = Slo()
    plan: Plan = Plan()
    limits: Limits = Limits()
    output: Output = Output()

    @property
    def pools(self) -> dict[str, Pool]:
        """The pools beside the generator's, by name."""
        return {} if self.verifier is None else {"verifier": self.verifier}
