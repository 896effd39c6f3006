"""What `/v1/chat/completions` takes and gives."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import ConfigDict, Field, model_validator

from prm_ray.search.plan import Adaptive, Plan
from prm_ray.serve.bodies import EXAMPLE_PROBLEM, AtLeastOne, Body, Given, ItemError, Message, example
from prm_ray.serve.searchlimits import TAKEN_BY
from prm_ray.settings import Aggregation, Pick, SearchSection, StrategyName

_SETTLES: dict[str, Pick] = {"none": "best", "weighted": "weighted_vote", "majority": "majority"}
"""Vote of a request -> the answer that `adaptive` wants settled."""


class PrmOptions(Given):
    """How candidates are made, and how the answer is chosen among them."""

    model: str | None = None
    """The reward model, one of /v1/models; none = the first."""
    aggregation: Aggregation | None = None
    vote: Literal["none", "weighted", "majority"] = "none"
    """Candidates with the same final answer vote together, with the softmax of their rewards or with one each."""
    return_candidates: bool = False
    """All responses that have ended, with their rewards."""
    strategy: StrategyName = "best_of_n"
    """How candidates are made. `best_of_n`: `best_of` whole responses. `adaptive`: at most `best_of`, fewer where the
    answer is settled before. `beam`, `dvts`, `lookahead`, `particles` and `mcts` continue responses step by step
    where the reward model sees promise; `best_of` is then the number of beams after they were continued, of particles,
    or of expansions of the tree. `rejection` drops responses whose beginning is hopeless; `adaptive_rejection` too."""
    expand: int | None = Field(None, ge=1)
    """Continuations of a beam (`beam`, `dvts`, `lookahead`; `best_of` must be a multiple of it) or of a node of the
    tree (`mcts`); none = the server's own number."""
    lookahead: int | None = Field(None, ge=1)
    """Steps that `lookahead` looks beyond a candidate; none = the server's own number."""
    resample_temperature: float | None = Field(None, gt=0, allow_inf_nan=False)
    """`particles`: rewards are divided by it before they become weights; none = the server's own number."""
    exploration: float | None = Field(None, ge=0, allow_inf_nan=False)
    """`mcts`: how much an unvisited step is favoured over a good one; none = the server's own number."""
    settle_error: float | None = Field(None, gt=0, lt=1)
    """`adaptive`: how often it may end early with another answer than `best_of` responses would have given."""
    reject_below: float | None = Field(None, allow_inf_nan=False)
    """`rejection`: a beginning whose value is lower is dropped; none = the server's own number."""

    @model_validator(mode="after")
    def _fits_the_strategy(self) -> PrmOptions:
        for name, strategies in TAKEN_BY.items():
            if getattr(self, name) is not None and self.strategy not in strategies:
                raise ValueError(f"{name} is for {', '.join(strategies)}, not {self.strategy}")
        return self

    def plan(self, size: int, own: SearchSection) -> Plan:
        """`own` has what is left out here."""
        given = own.model_dump(include={*TAKEN_BY}, exclude_none=True) | self.model_dump(
            include={*TAKEN_BY}, exclude_none=True
        )
        temperature, error = given.pop("resample_temperature"), given.pop("settle_error")
        adaptive = Adaptive(own.first, own.step, error, _SETTLES[self.vote])
        return Plan(size, temperature=temperature, adaptive=adaptive, descents=own.descents, **given)


class ChatRequest(Given):
    """As OpenAI's; what is not named here goes to the generator as it is."""

    model_config = ConfigDict(extra="allow") | example(
        messages=[{"role": "user", "content": EXAMPLE_PROBLEM}], best_of=4, prm={"return_candidates": True}
    )

    model: str | None = None
    messages: AtLeastOne[Message]
    n: int = Field(1, ge=1)
    """Choices in the reply, best first."""
    best_of: int | None = Field(None, ge=1)
    """Candidates to choose from (see `prm.strategy`); none = the server's own number, at least n."""
    stream: bool = False
    stream_options: dict[str, Any] | None = None
    prm: PrmOptions = PrmOptions()

    @model_validator(mode="after")
    def _enough(self) -> ChatRequest:
        if self.best_of is not None and self.best_of < self.n:
            raise ValueError(f"best_of is {self.best_of}; it must be at least n, {self.n}")
        if self.messages[-1].role != "user":
            raise ValueError("the last of messages must have the role user")
        return self

    def for_generator(self) -> dict[str, Any]:
        """The body without what chooses among the candidates."""
        ours = {"n", "best_of", "stream", "stream_options", "prm"}
        return {key: value for key, value in self.model_dump(exclude_unset=True).items() if key not in ours}


class ChoiceMessage(Body):
    role: Literal["assistant"] = "assistant"
    content: str


class Choice(Body):
    index: int
    message: ChoiceMessage
    finish_reason: str
    logprobs: None = None


class ChatUsage(Body):
    """Of the generator, over all candidates."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class ScoredCandidate(Body):
    text: str
    reward: float | None
    step_rewards: list[float] | None
    steps: list[str] | None
    answer: str | None = None
    error: ItemError | None = None


class SearchFacts(Body):
    """What a search that was no best-of-N did."""

    strategy: str
    num_drawn: int
    """Continuations that were drawn: steps, or whole responses."""
    num_ended: int
    """Responses that ended, among which the answer was chosen."""
    sampled_tokens: int
    """Of all that was drawn, what was dropped too."""


class PrmMetadata(Body):
    model: str
    aggregation: str
    vote: str
    num_candidates: int
    num_requested: int
    rewards: list[float | None]
    """Of the choices."""
    step_rewards: list[list[float] | None]
    problems: list[str]
    """Why there are fewer candidates than requested, or some could not be scored."""
    scored_tokens: int
    candidates: list[ScoredCandidate] | None = None
    search: SearchFacts | None = Field(None, exclude_if=lambda value: value is None)
    """Of any strategy but best_of_n."""


class ChatReply(Body):
    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: ChatUsage
    prm_metadata: PrmMetadata
