"""The playground in headless Chromium, before the real application with a tiny model."""

import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from prm_ray.scorer import Scorer
from prm_ray.serve.asking import Gateway
from prm_ray.serve.guard import Guard, GuardLimits
from prm_ray.serve.keys import KeyRing, new_key
from tests.serving import LateGenerator, over_http, tiny_api, tiny_scorer

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install -e '.[dev]'")
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed")

PROBLEM = "1 + 2 + 4"
CANDIDATES = ["1 + 2 = 3\n3 + 4 = 7\n7", "1 + 2 = 4\nAnswer: 8", "7", "1 + 2 = 3\n3 + 4 = 7\n7", "3 + 4\n\n7 = 7\n9\n7"]
TOO_LONG = "1" * 600
HOSTILE = '<img src=x onerror="window.hacked = true"><script>window.hacked = true</script>\n\'; $(touch hacked) `7`'
Opener = Callable[..., Any]


@pytest.fixture(scope="module")
def scorer(tiny_model: str, other_tiny_model: str) -> Scorer:
    return tiny_scorer(tiny_model, other_tiny_model)


@pytest.fixture(scope="module")
def url(scorer: Scorer) -> Iterator[str]:
    with over_http(tiny_api({"demo": scorer})) as found:
        yield found


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if path is None:
        pytest.skip("no Chromium on this machine: apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=path, timeout=120_000)


@pytest.fixture
def opened(browser: Any) -> Iterator[Opener]:
    """Opens pages; at the end none of them may have had an error or a breach of its policy."""
    faults: list[str] = []
    contexts = []

    def open_page(url: str, **options: Any) -> Any:
        context = browser.new_context(permissions=["clipboard-read", "clipboard-write"], **options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(30_000)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", lambda message: faults.append(message.text))  # the page itself writes nothing there
        page.goto(url)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert [fault for fault in faults if not fault.startswith("Failed to load resource")] == []  # a status we wanted


def fill(page: Any, problem: str = PROBLEM, candidates: list[str] = CANDIDATES) -> None:
    page.get_by_label("Problem", exact=True).fill(problem)
    for number, text in enumerate(candidates, 1):
        if number > 2:
            page.get_by_role("button", name="Add candidate").click()
        page.get_by_label(f"Candidate {number}", exact=True).fill(text)


def score(page: Any) -> None:
    page.get_by_role("button", name="Score", exact=True).click()
    page.locator(".answer").first.wait_for()


def order(page: Any) -> list[int]:
    """Indices of the candidates, from the top."""
    return [int(name.removeprefix("Candidate ")) - 1 for name in page.locator(".name").all_inner_texts()]


def order_of_api(url: str, candidates: list[str], aggregation: str) -> list[int]:
    body = {"query": PROBLEM, "documents": candidates, "aggregation": aggregation}
    return [result["index"] for result in httpx.post(f"{url}/rerank", json=body, timeout=120).json()["results"]]


def test_answers_are_ranked_as_the_api_ranks_and_an_error_is_no_number(url: str, opened: Opener) -> None:
    page, candidates = opened(url), [TOO_LONG, *CANDIDATES]
    fill(page, candidates=candidates)
    score(page)
    assert page.get_by_label("min (default)").is_checked()
    assert order(page) == order_of_api(url, candidates, "min") and order(page)[-1] == 0
    failed = page.locator(".answer").last
    assert "Not scored" in failed.inner_text() and "This candidate has 601 tokens" in failed.inner_text()
    assert failed.locator(".number").count() == 0
    assert page.locator(".rank").all_inner_texts()[-1] == "\u2013"
    assert "5 of 6 scored" in page.locator("#summary").inner_text()
    tied = page.locator(".answer").filter(has_text="Tied").locator(".rank").all_inner_texts()
    assert len(tied) == 2 and len(set(tied)) == 1


def test_each_step_has_its_number_and_the_first_lowest_is_marked(url: str, opened: Opener) -> None:
    page = opened(url)
    fill(page)
    score(page)
    body = {"problem": PROBLEM, "responses": CANDIDATES}
    results = httpx.post(f"{url}/v1/rewards", json=body, timeout=120).json()["results"]
    for place, index in enumerate(order(page)):
        steps = results[index]["steps"]
        rows = page.locator(".answer").nth(place).locator(".step")
        shown = [float(text.replace("\u2212", "-")) for text in rows.locator("> .number").all_inner_texts()]
        rewards = [step["reward"] for step in steps]
        assert shown == pytest.approx(rewards, abs=0.006)
        assert rows.locator(".text").all_inner_texts() == [step["text"].strip() for step in steps]
        signs = ["minus" if reward < 0 else "plus" for reward in rewards]
        assert [row.get_attribute("data-sign") for row in rows.all()] == signs
        marked = [number for number, row in enumerate(rows.all()) if row.locator(".mark").count()]
        assert marked == ([rewards.index(min(rewards))] if len(steps) > 1 else [])


def test_equal_rewards_share_the_first_rank_in_the_order_given(tiny_model: str, opened: Opener) -> None:
    """A policy that is its own reference: every log-ratio is 0."""
    with over_http(tiny_api({"same": tiny_scorer(tiny_model, tiny_model)})) as url:
        page = opened(url)
        fill(page)
        score(page)
        assert order(page) == [0, 1, 2, 3, 4]
        assert set(page.locator(".rank").all_inner_texts()) == {"1"}
        assert set(page.locator(".number").all_inner_texts()) == {"0", "0.00"}
        firsts = page.locator(".answer").filter(has=page.locator(".mark")).locator(".step:first-child .mark")
        assert firsts.count() == page.locator(".mark").count() == 4


def test_another_aggregation_ranks_anew_without_a_request(url: str, opened: Opener) -> None:
    page = opened(url)
    fill(page)
    score(page)
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    orders = set()
    for name in ("sum", "mean", "last", "product", "normalized", "prefix_min", "prefix_mean"):
        page.get_by_label(name, exact=True).check(force=True)
        assert order(page) == order_of_api(url, CANDIDATES, name), name
        assert f"Best by {name}" in page.locator("#summary").inner_text()
        orders.add(tuple(order(page)))
    assert len(orders) > 1 and requests == []


def test_the_keyboard_alone_is_enough(url: str, opened: Opener) -> None:
    page = opened(url)

    def tab_to(selector: str) -> None:
        for _ in range(30):
            page.keyboard.press("Tab")
            if page.evaluate("selector => document.activeElement.matches(selector)", selector):
                return
        raise AssertionError(f"Tab does not reach {selector}")

    tab_to("#problem")
    page.keyboard.type(PROBLEM)
    tab_to("#candidates textarea")
    page.keyboard.insert_text(CANDIDATES[0])
    page.keyboard.press("Control+Enter")
    page.locator(".answer").wait_for()
    assert page.locator("#candidates textarea").first.evaluate("field => field === document.activeElement")
    tab_to("input[value=min]")
    page.keyboard.press("ArrowRight")
    assert page.get_by_label("last", exact=True).is_checked()
    tab_to(".step")
    page.keyboard.press("ArrowDown")
    step = page.locator(".step:focus")
    assert "Step 2 of 3" in step.locator(".detail").inner_text() and step.locator(".detail").is_visible()
    page.keyboard.press("Escape")
    assert not step.locator(".detail").is_visible()


def test_text_stays_text(url: str, opened: Opener, tmp_path: Path) -> None:
    page = opened(url)
    fill(page, HOSTILE, [HOSTILE, HOSTILE + TOO_LONG])
    score(page)
    assert page.locator("#ranking").inner_text().count("<img src=x onerror=") == 2
    assert page.locator("main img, main script").count() == 0 and page.evaluate("window.hacked") is None
    page.get_by_role("button", name="Copy as curl").click()
    page.get_by_text("Copied.").wait_for()
    command = page.evaluate("navigator.clipboard.readText()")
    reply = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True)
    assert '"rewards"' in reply.stdout and not (tmp_path / "hacked").exists(), command


def test_many_candidates_come_in_one_paste_and_the_old_ones_come_back(url: str, opened: Opener) -> None:
    page = opened(url)
    fill(page, candidates=["mine"])
    page.evaluate("text => navigator.clipboard.writeText(text)", "\n---\n".join(CANDIDATES) + "\n---\n")
    page.get_by_label("Candidate 2", exact=True).press("Control+V")
    fields = page.locator("#candidates textarea")
    assert [field.input_value() for field in fields.all()] == ["mine", *CANDIDATES]
    page.get_by_role("button", name="Remove candidate 1").click()
    assert [field.input_value() for field in fields.all()] == CANDIDATES
    page.get_by_role("button", name="Try an example").click()
    page.locator(".answer").first.wait_for()
    page.get_by_role("button", name="Bring back my text").click()
    assert [field.input_value() for field in fields.all()] == CANDIDATES


def test_a_key_is_asked_for_kept_in_the_tab_and_never_copied(scorer: Scorer, opened: Opener, tmp_path: Path) -> None:
    (key, line), (slow_key, slow_line) = new_key("someone"), new_key("slow")
    (tmp_path / "keys").write_text(f"{line}\n{slow_line} 1\n")
    guard = Guard(tiny_api({"demo": scorer}), GuardLimits(100_000, 5.0), KeyRing(tmp_path / "keys"))
    with over_http(guard) as url:
        page = opened(url)
        page.get_by_role("alert").get_by_text("wants an API key").wait_for()
        field = page.get_by_label("Key of this server")
        assert field.evaluate("field => field === document.activeElement")
        field.fill(key)
        field.press("Enter")
        page.locator("#model option").wait_for(state="attached")
        fill(page)
        score(page)
        assert page.evaluate("[Object.values(sessionStorage), localStorage.length, document.cookie]") == [[key], 0, ""]
        page.get_by_role("button", name="Copy as curl").click()
        page.get_by_text("Put your key into PRM_RAY_KEY first").wait_for()
        assert key not in page.evaluate("navigator.clipboard.readText()")
        field.fill(slow_key)  # one request a minute, and that lists the models
        with page.expect_response("**/v1/models"):
            field.press("Enter")
        page.get_by_role("button", name="Score", exact=True).click()
        page.get_by_role("alert").get_by_text("1 requests a minute. Try again in ").wait_for()


def test_refusals_and_a_server_that_is_gone_are_said_in_words(scorer: Scorer, opened: Opener) -> None:
    with over_http(tiny_api({"demo": scorer}, max_candidates=2)) as url:
        page = opened(url)
        page.get_by_role("button", name="Score", exact=True).click()
        assert page.get_by_label("Problem", exact=True).evaluate("field => field === document.activeElement")
        assert "Write a problem first." in page.locator("#ask").inner_text()
        fill(page)
        page.get_by_role("button", name="Score", exact=True).click()
        page.get_by_role("alert").get_by_text("5 responses, at most 2 are allowed").wait_for()
    page.get_by_role("button", name="Score", exact=True).click()
    page.get_by_role("alert").get_by_text("The server does not answer").wait_for()
    assert page.get_by_label("Candidate 5", exact=True).input_value() == CANDIDATES[4]


def test_the_generator_writes_candidates_and_without_one_it_is_said(scorer: Scorer, url: str, opened: Opener) -> None:
    page = opened(url)
    page.get_by_text("This server has no generator").wait_for()
    assert page.get_by_role("button", name="Generate and score").is_disabled()
    late = Gateway(LateGenerator([HOSTILE, *CANDIDATES]), 3, None, 10.0)
    with over_http(tiny_api({"demo": scorer}, gateway=late)) as with_generator:
        page = opened(with_generator)
        page.get_by_label("Problem", exact=True).fill(PROBLEM)
        page.get_by_role("button", name="Generate and score").click()
        page.locator(".answer").first.wait_for()
        assert page.locator("#candidates textarea").all_inner_texts() != [] and len(order(page)) == 2
        assert "1 of 3 did not come: one was late." in page.locator("#summary").inner_text()
        assert page.evaluate("window.hacked") is None


def test_a_request_that_takes_long_is_shown_and_can_be_cancelled(scorer: Scorer, opened: Opener) -> None:
    late = Gateway(LateGenerator(CANDIDATES, 300.0), 3, None, 600.0)
    with over_http(tiny_api({"demo": scorer}, gateway=late)) as url:
        page = opened(url)
        page.get_by_label("Problem", exact=True).fill(PROBLEM)
        page.get_by_role("button", name="Generate and score").click()
        page.locator("#results[aria-busy=true]").get_by_text("Generating").wait_for()
        page.get_by_role("button", name="Cancel").click()
        page.locator("#results[aria-busy=false]").get_by_text("Cancelled.").wait_for()
        assert page.locator("#score").evaluate("button => button === document.activeElement")
        assert page.get_by_label("Candidate 1", exact=True).input_value() == "" and page.locator(".answer").count() == 0


def test_a_phone_shows_it_without_scrolling_sideways(url: str, opened: Opener) -> None:
    page = opened(url, viewport={"width": 375, "height": 812}, has_touch=True)
    fill(page, "x" * 300, [*CANDIDATES, "y" * 200, TOO_LONG])
    score(page)
    assert page.evaluate("document.documentElement.scrollWidth") == 375
    page.locator(".step").first.tap()
    detail = page.locator(".step:focus .detail")
    box = detail.bounding_box()
    assert detail.is_visible() and box["x"] >= 0 and box["x"] + box["width"] <= 375


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [375, 1280])
def test_axe_finds_nothing(url: str, opened: Opener, scheme: str, width: int) -> None:
    page = opened(url, color_scheme=scheme, viewport={"width": width, "height": 900}, reduced_motion="reduce")
    page.get_by_text("This server has no generator").wait_for()
    checker = axe.Axe()
    assert checker.run(page).violations_count == 0, checker.run(page).generate_report()
    fill(page, candidates=[*CANDIDATES, TOO_LONG])
    score(page)
    page.locator(".step").first.focus()
    result = checker.run(page)
    assert result.violations_count == 0, result.generate_report()
