"""A request as the engine sees it, and beside it the outcome that only the world knows.

The scheduler reads `Request` and nothing else: it knows the cap (`max_tokens`), never the true length. `Outcome`
is read where the model would have been asked: when a step's tokens come back.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from ttsim_des.engine.kv_cache import Holding
    from ttsim_des.engine.speculation import Drafting, DraftState

PromptSegment = tuple[int, int]
"""(owner, end): prompt positions below `end`, from the previous segment's end on, hold text named by `owner`."""


class Status(Enum):
    """Where a request is. WAITING covers preempted ones too; a finished one is never scheduled again."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"
    CANCELLED = "cancelled"


class Place(Enum):
    """How the engine core keeps a running request."""

    ELSEWHERE = 0
    """Not running, or planned explicitly: the request's own counts are up to date."""
    PREFILLING = 1
    """Computing its known tokens, chunk by chunk."""
    JOINING = 2
    """Its last known token is being computed; it decodes from the next step on."""
    DECODING = 3
    DRAINING = 4
    """Its last token is in flight: nothing is scheduled for it any more."""


# Looked up at every step: a name of a module is found faster than a member of an enumeration.
WAITING, RUNNING, FINISHED, CANCELLED = Status
ELSEWHERE, PREFILLING, JOINING, DECODING, DRAINING = Place


@dataclass(slots=True)
class Outcome:
    """What the model would say: tokens until it stops by itself; and the token counts that somebody asked about."""

    output_tokens: int
    milestones: tuple[int, ...] = ()
    """Token counts to be told of, ascending; the engine removes each as it passes."""
    drafting: Drafting | None = None
    """What drafts would meet; needed by an engine with speculative decoding, for all but scores."""


@dataclass(slots=True, eq=False, init=False)
class Request:
    """One sequence: a prompt and at most `max_tokens` tokens of output (0: only a prefill, such as a score).

    Known tokens are the prompt and the outputs delivered; `num_computed_tokens` of them (and, under asynchronous
    scheduling, of the `num_output_placeholders` still in flight) are in the KV cache or being computed.
    """

    request_id: int
    prompt_tokens: int
    max_tokens: int
    prompt: tuple[PromptSegment, ...]
    arrival_ns: int
    priority: int
    name: str
    """vLLM's request_id string; breaks ties between equal priorities and arrivals."""

    status: Status
    num_computed_tokens: int
    num_output_tokens: int
    num_output_placeholders: int
    preemptions: int

    # KV blocks, kept by the cache: held, and of these named (as runs, from the first block on)
    num_blocks: int
    num_registered_blocks: int
    holdings: list[Holding]
    growing: bool

    # while it decodes with others its state is a function of the step index (engine.core); these are its constants
    place: Place
    serial: int
    base: int
    token_zero: int
    join_step: int
    last_step: int

    drafts: DraftState | None
    """With speculative decoding, from the engine's taking it in on."""

    # for the records
    queued_ns: int
    scheduled_ns: int
    first_token_ns: int
    last_token_ns: int
    finish_ns: int
    delivered_ns: int
    """When its client side could act on its end; not for cancelled ones."""
    finish_reason: str
    cached_tokens: int
    first_hit_tokens: int
    computed_tokens: int
    recomputed_tokens: int
    overshoot_tokens: int
    high_water_tokens: int
    """Positions below this have been computed before a preemption; computing them again is recomputation."""

    def __init__(
        self,
        request_id: int,
        prompt_tokens: int,
        max_tokens: int,
        prompt: tuple[PromptSegment, ...],
        arrival_ns: int,
        priority: int = 0,
        name: str = "",
    ) -> None:
        # Written out: many requests are made, and a generated constructor hands over thirty arguments.
        self.request_id, self.prompt_tokens, self.max_tokens = request_id, prompt_tokens, max_tokens
        self.prompt = prompt
        self.arrival_ns, self.priority, self.name = arrival_ns, priority, name
        self.status, self.place = WAITING, ELSEWHERE
        self.holdings, self.growing, self.drafts, self.finish_reason = [], False, None, ""
        self.num_computed_tokens = self.num_output_tokens = self.num_output_placeholders = self.preemptions = 0
        self.num_blocks = self.num_registered_blocks = self.base = self.token_zero = self.join_step = 0
        self.last_step = self.cached_tokens = self.computed_tokens = self.recomputed_tokens = 0
        self.overshoot_tokens = self.high_water_tokens = 0
        self.serial = self.queued_ns = self.scheduled_ns = self.first_token_ns = self.last_token_ns = -1
        self.finish_ns = self.delivered_ns = self.first_hit_tokens = -1

    @property
    def num_tokens(self) -> int:
        """Known tokens: prompt and delivered outputs."""
        return self.prompt_tokens + self.num_output_tokens

    @property
    def output_owner(self) -> int:
        """The name of this request's own output text: negative, so that it never meets a prompt's owner."""
        return -1 - self.request_id


class Scheduled(NamedTuple):
    """One request's part in a step: `num_tokens` tokens on top of `computed_before`.

    `samples`: the step computes the last token known or in flight, so a token comes back. `epoch` is the
    request's count of preemptions when it was scheduled; another count later means the entry is stale.
    """

    request: Request
    num_tokens: int
    computed_before: int
    samples: bool
    epoch: int
    is_decode: bool
    """One token, and drafts, on top of a whole prompt; everything else, re-prefill included, is a prefill chunk."""
    num_drafts: int = 0
    """Of `num_tokens`, the last ones: drafts to be verified."""
