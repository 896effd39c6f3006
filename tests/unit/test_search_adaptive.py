"""Adaptive N with toys: when a problem ends, and who gets the tokens of a common budget."""

import asyncio
import random
import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prm_ray.errors import UserError
from prm_ray.search.adaptive import Adaptive, adaptive_n
from prm_ray.search.budget import TokenBudget
from prm_ray.search.candidate import Proposal, Reward
from prm_ray.search.picking import pick
from prm_ray.search.plan import Plan
from prm_ray.search.problem import ProblemSearch
from prm_ray.search.rejection import Rejection

TOKENS = 10


def toy(answers, seed=0, latency=lambda: 0.0, tokens=lambda: TOKENS):
    """A problem whose responses are drawn from `answers`; every value is 0."""

    async def propose(start, draw):
        await asyncio.sleep(latency())
        count = tokens()
        text = random.Random(draw.seed).choice(answers)
        return Proposal(tokens=(1,) * count, text=text, finish_reason="stop", num_sampled=count)

    async def score(candidate):
        return Reward((0.0,), 0.0)

    return ProblemSearch(propose, score, seed=seed)


def run_all(problems, budget, plan=16, rule=Adaptive(first=4, step=2, error=0.2)):  # noqa: B008 - frozen
    async def go():
        return await asyncio.wait_for(
            asyncio.gather(*(adaptive_n(search, Plan(plan), rule, budget) for search in problems)), 20
        )

    return asyncio.run(go())


def test_an_easy_problem_ends_after_its_first_round_and_a_scattered_one_takes_all_sixteen():
    easy, scattered = toy("a"), toy("abcdefghijklmnopqrstuvwxyz")
    ended = run_all([easy, scattered], None)
    assert [len(each) for each in ended] == [4, 16]


def test_the_maximum_is_kept_when_rounds_do_not_divide_it():
    assert [len(each) for each in run_all([toy("abcdefghijklmnop")], None, plan=7)] == [7]


def test_the_answer_of_a_settled_problem_is_the_common_one():
    (ended,) = run_all([toy("aaaaaaab", seed=3)], None)
    assert pick(ended, "weighted_vote").answer == "a"


def test_what_easy_problems_leave_goes_to_the_hard_ones():
    """8 a problem are paid; the easy ones end after 4, so the hard ones have 12."""
    budget = TokenBudget(10 * 8 * TOKENS, 10, maximum=16)
    ended = run_all([toy("a" if at < 5 else "abcd", seed=at) for at in range(10)], budget)
    assert [len(each) for each in ended[:5]] == [4] * 5
    assert sum(len(each) for each in ended[5:]) > 5 * 11
    assert budget.spent <= budget.total


def test_with_tokens_for_all_a_budget_cuts_nobody_short():
    def counts(budget):
        return [len(each) for each in run_all([toy("abcdefgh", seed=at) for at in range(5)], budget)]

    assert counts(TokenBudget(5 * 16 * TOKENS, 5, maximum=16)) == counts(None)


async def ask_once(budget, name, need, order):
    async with budget.problem() as share:
        assert await share.more(2) == 2
        await asyncio.sleep(0.01)  # so that all are open
        share.spent(2 * TOKENS)
        if await share.more(2, need):
            order.append(name)
            await asyncio.sleep(0.01)
            share.spent(2 * TOKENS)


def test_the_neediest_is_served_first_and_the_least_needy_goes_without():
    order = []

    async def go():
        budget = TokenBudget(3 * 2 * TOKENS + 2 * 2 * TOKENS, 3, maximum=4)
        await asyncio.gather(*(ask_once(budget, need, need, order) for need in (0.1, 0.3, 0.2)))

    asyncio.run(go())
    assert order == [0.3, 0.2]


def test_the_first_problem_cannot_take_what_the_ones_not_begun_will_need():
    """One problem open at a time, and the first would take everything: all get their even share."""
    budget = TokenBudget(4 * 6 * TOKENS, 4, maximum=100, open_at_once=1)

    async def go():
        return [len(await adaptive_n(toy("abcdefghij", seed=at), Plan(100), Adaptive(2, 2), budget)) for at in range(4)]

    assert asyncio.run(go()) == [6, 6, 6, 6]


def test_a_short_budget_still_gives_every_problem_a_response():
    """A token budget of 1.5 responses a problem, first rounds of 4, one problem after the other."""
    budget = TokenBudget(6 * 15, 6, maximum=16, open_at_once=1)

    async def go():
        return [len(await adaptive_n(toy("abcdefghij", seed=at), Plan(16), Adaptive(), budget)) for at in range(6)]

    assert asyncio.run(go()) == [4, 1, 1, 1, 1, 1]


def test_a_problem_that_fails_or_is_cancelled_gives_back_what_it_was_granted():
    async def go():
        budget = TokenBudget(8 * TOKENS, 2, maximum=4)
        with pytest.raises(RuntimeError):
            async with budget.problem() as share:
                await share.more(4)
                raise RuntimeError("generator died")
        parked = asyncio.ensure_future(adaptive_n(toy("abcd"), Plan(4), Adaptive(2, 2), budget))
        return len(await asyncio.wait_for(parked, 5))

    assert asyncio.run(go()) == 4


def test_cancelling_a_parked_problem_lets_the_others_go_on():
    async def go():
        budget, order = TokenBudget(100 * TOKENS, 3, maximum=4), []
        first, *others = (asyncio.ensure_future(ask_once(budget, at, -at, order)) for at in range(3))
        await asyncio.sleep(0.005)
        first.cancel()
        await asyncio.wait_for(asyncio.gather(*others), 5)
        return order

    assert asyncio.run(go()) == [1, 2]


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    num_problems=st.integers(1, 12),
    window=st.one_of(st.none(), st.integers(1, 6)),
    room=st.integers(1, 6),
    at_once=st.integers(1, 20),
    per_problem=st.integers(1, 200),
)
def test_whatever_the_order_all_problems_end_and_the_budget_holds(
    seed, num_problems, window, room, at_once, per_problem
):
    """The driver may hold fewer problems open (`room`) than it said. Bound: a round for each open problem."""
    rng = random.Random(seed)
    budget = TokenBudget(num_problems * per_problem, num_problems, 8, at_once, window)

    async def go():
        slots = asyncio.Semaphore(room)

        async def one(at):
            async with slots:
                search = toy("abcdef"[: 1 + at % 6], at, lambda: rng.random() / 2000, lambda: rng.randint(1, 30))
                return len(await adaptive_n(search, Plan(8), Adaptive(3, 2), budget))

        return await asyncio.wait_for(asyncio.gather(*(one(at) for at in range(num_problems))), 20)

    counts = asyncio.run(go())
    assert all(count <= 8 for count in counts)
    assert budget.spent < budget.total + min(room, num_problems) * 3 * 30
    assert budget.spent >= budget.total or min(counts) >= 1


def test_the_same_seeds_give_the_same_allocation():
    def counts():
        budget = TokenBudget(20 * 6 * TOKENS, 20, maximum=16)
        return [len(each) for each in run_all([toy("aabcdef"[at % 5 :], seed=at) for at in range(20)], budget)]

    assert counts() == counts()


def test_rounds_may_reject_early_and_dropped_responses_are_among_the_sixteen():
    """Every second response is worth -1 after its first step and is dropped there."""
    number = iter(range(1000))

    async def propose(start, draw):
        first = not start.tokens
        finish = None if first else "stop"
        text = f"{next(number) % 2}\n" if first else start.text + random.Random(draw.seed).choice(string.ascii_letters)
        return Proposal(tokens=(1,) * 5, text=text, finish_reason=finish, num_sampled=5)

    async def score(candidate):
        return Reward((0.0,), -float(candidate.text[0]))

    search, rejection = ProblemSearch(propose, score), Rejection(threshold=-0.5)
    ended = asyncio.run(adaptive_n(search, Plan(16), Adaptive(), sample=rejection.sample))
    assert (len(ended), len(rejection.dropped)) == (8, 8)
    assert search.num_sampled == 8 * 10 + 8 * 5


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Adaptive(first=0), "first 0: must be at least 1"),
        (lambda: Adaptive(step=0), "step 0: must be at least 1"),
        (lambda: Adaptive(error=1.0), "error 1.0: must be between 0 and 1"),
        (lambda: TokenBudget(100, 10, maximum=0), "maximum 0: must be at least 1"),
        (lambda: TokenBudget(9, 10, maximum=4), "token budget 9: must be at least a token for each of the 10 problems"),
    ],
)
def test_settings_that_make_no_sense_are_refused_in_a_line(make, message):
    with pytest.raises(UserError, match=f"^{message}$"):
        make()
