"""A request as the engine sees it, and beside it the outcome that only the world knows.

The scheduler reads `Request` and nothing else: it knows the cap (`max_tokens`), never the true length. `Outcome`
is read where the model would have been asked: when a step's tokens come back.
"""

from __future__ import annotations

from dataclasses import dataclass, field
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


@dataclass(slots=True, eq=False)
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
    priority: int = 0
    name: str = ""
    """vLLM's request_id string; breaks ties between equal priorities and arrivals."""

    status: Status = Status.WAITING
    num_computed_tokens: int = 0
    num_output_tokens: int = 0
    num_output_placeholders: int = 0
    preemptions: int = 0

    # KV blocks, kept by the cache: held, and of these named (as runs, from the first block on)
    num_blocks: int = 0
    num_registered_blocks: int = 0
    holdings: list[Holding] = field(default_factory=list)
    growing: bool = False

    # while it decodes with others its state is a function of the step index (engine.core); these are its constants
    place: Place = Place.ELSEWHERE
    serial: int = -1
    base: int = 0
    token_zero: int = 0
    join_step: int = 0
    last_step: int = 0

    drafts: DraftState | None = None
    """With speculative decoding, from the engine's taking it in on."""

    # for the records
    queued_ns: int = -1
    scheduled_ns: int = -1
    first_token_ns: int = -1
    last_token_ns: int = -1
    finish_ns: int = -1
    delivered_ns: int = -1
    """When its client side could act on its end; not for cancelled ones."""
    finish_reason: str = ""
    cached_tokens: int = 0
    first_hit_tokens: int = -1
    computed_tokens: int = 0
    recomputed_tokens: int = 0
    overshoot_tokens: int = 0
    high_water_tokens: int = 0
    """Positions below this have been computed before a preemption; computing them again is recomputation."""

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
