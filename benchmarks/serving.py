"""What serving costs beside scoring: the server at its limit, at half of it, one request at a time; vLLM's own server.

    python -m benchmarks.serving --prompts 48 --prompt 250 --n 4 --response 100
    python -m benchmarks.serving --parts stub        # Serve's own cost a request, and two replicas against one

A request holds one prompt and `--n` candidates as token ids, random ones; the policy and its reference are two models.
`bare` scores the same candidates by the Scorer alone, in this process. `merged` is the server with `--clients` clients,
`alone` the same server with one client, so that no two requests meet. `rollouts` is the shape of a trainer's requests:
one candidate each, the candidates of a prompt at about the same time. vLLM's server answers the same candidates through
`prompt_logprobs`, one model of the two.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from benchmarks import common, fresh
from benchmarks.common import Setting
from benchmarks.fresh import Figures
from benchmarks.serving_load import Call, closed_loop, open_loop
from prm_ray.core.packing import PromptGroup

PARTS = ("bare", "merged", "alone", "rollouts", "vllm", "stub")
CLIENTS = 16


def bare(setting: Setting, folder: Path) -> Figures:
    """The Scorer on all candidates at once."""
    from prm_ray.scorer import Scorer

    scorer = Scorer.from_pretrained(_checkpoint(folder), dtype=setting.dtype, token_budget=setting.token_budget)
    groups = _groups(setting)

    def work() -> None:
        scorer.score_prepared([scorer.prepare(list(group.prompt), group.responses) for group in groups])

    figures, _ = fresh.measure(work, lambda: scorer.score(list(groups[0].prompt), groups[0].responses[:1]), 0.0)
    return figures | {"seconds": figures["all_seconds"][0]}


def merged(setting: Setting, folder: Path) -> Figures:
    """Many clients; then arrivals by chance at half the rate that they reached."""
    calls = _calls(_groups(setting))
    with _Server(setting, folder) as url:
        closed_loop(url, calls[:2], 2)
        full = closed_loop(url, _fresh_prompts(calls, 1), CLIENTS)
        half = open_loop(url, _fresh_prompts(calls, 2), full["requests"] / full["seconds"] / 2)
        unloaded = closed_loop(url, _fresh_prompts(calls, 3)[:8], 1)
    return {"seconds": full["seconds"], "full": full, "half": half, "unloaded": unloaded}


def alone(setting: Setting, folder: Path) -> Figures:
    with _Server(setting, folder) as url:
        calls = _calls(_groups(setting))
        closed_loop(url, calls[:2], 2)
        return closed_loop(url, _fresh_prompts(calls, 1), 1)


def rollouts(setting: Setting, folder: Path) -> Figures:
    """One candidate a request: merged, one at a time, and one at a time without a prefix cache."""
    single = [
        call
        for group in _groups(setting)
        for call in _calls([PromptGroup(group.prompt, [one]) for one in group.responses])
    ]
    figures: Figures = {}
    for name, cache_tokens, clients in (("merged", None, CLIENTS), ("alone", None, 1), ("alone, no cache", 0, 1)):
        with _Server(setting, folder, cache_tokens) as url:
            closed_loop(url, single[:2], 2)
            figures[name] = closed_loop(url, _fresh_prompts(single, 1), clients)
    return figures


def vllm(setting: Setting, folder: Path) -> Figures:
    """The policy alone, one request a response, as many at once as ours has clients."""
    from benchmarks.vllm_server import VllmServer

    bodies: list[Call] = [
        (
            "/v1/completions",
            {"model": "policy", "prompt": [*group.prompt, *response], "max_tokens": 1, "prompt_logprobs": 0},
        )
        for group in _groups(setting)
        for response in group.responses
    ]
    with VllmServer(_checkpoint(folder), setting) as url:
        closed_loop(url, bodies[:2], 2)
        return closed_loop(url, bodies, CLIENTS)


def stub(setting: Setting, folder: Path) -> Figures:
    from benchmarks import serving_stub

    return {"overhead": serving_stub.overhead(), "scaling": serving_stub.scaling()}


class _Server:
    """`prm_ray.serve.server` on the benchmark's model."""

    def __init__(self, setting: Setting, folder: Path, cache_tokens: int | None = None):
        from prm_ray.config import parse_config
        from prm_ray.serve import server

        section: dict[str, Any] = {"port": server.free_port()}
        if cache_tokens is not None:
            section["cache_tokens"] = cache_tokens
        run = {"run": {"dir": str(folder / "run")}, "model": {"dtype": setting.dtype}}
        self._config = parse_config(run | {"score": {"token_budget": setting.token_budget}, "serve": section})
        self._server = server

    def __enter__(self) -> str:
        return self._server.start(self._config)

    def __exit__(self, *error: object) -> None:
        self._server.stop()


def make_run(setting: Setting, folder: Path) -> None:
    """A finished run of the model as its own reference, with other weights as the policy."""
    from prm_ray.models import load_tokenizer, resolve_model, write_prm_json
    from prm_ray.tables import StageFolder

    checkpoint = StageFolder(folder / "run", "train")
    tokenizer = load_tokenizer(resolve_model(common.EMBEDDED))
    for path, variant in ((folder / "reference", 0), (checkpoint.path, 1)):
        common.load(setting.model, setting.dtype, variant).save_pretrained(path)
        tokenizer.save_pretrained(path)
    facts = {"objective": "ce", "beta": 0.05, "reference": str(folder / "reference"), "step_rule": "newline"}
    write_prm_json(checkpoint.path, facts)
    checkpoint.finish({"stage": "train"})


def _checkpoint(folder: Path) -> Path:
    return folder / "run" / "checkpoint"


def _groups(setting: Setting) -> list[PromptGroup]:
    return common.candidates(setting, 40_000)


def _calls(groups: list[PromptGroup]) -> list[Call]:
    return [
        ("/v1/rewards", {"prompt_tokens": list(group.prompt), "responses": [list(each) for each in group.responses]})
        for group in groups
    ]


def _fresh_prompts(calls: list[Call], number: int) -> list[Call]:
    """The same amount of work, none of which the prefix cache has."""
    return [(path, body | {"prompt_tokens": [10 + number, *body["prompt_tokens"][1:]]}) for path, body in calls]


def show(found: dict[str, Figures], setting: Setting) -> None:
    tokens = common.num_response_tokens(_groups(setting))
    rows = [
        ("bare Scorer", found.get("bare")),
        (f"server, {CLIENTS} clients", found.get("merged", {}).get("full")),
        ("server, one client", found.get("alone")),
        *((f"rollouts, {name}", figures) for name, figures in found.get("rollouts", {}).items()),
        ("vLLM's server, one of two models", found.get("vllm")),
    ]
    base = found.get("bare", {}).get("seconds")
    lines = [
        [
            name,
            f"{figures['seconds']:.1f}",
            f"{tokens / figures['seconds']:.0f}",
            f"{figures['seconds'] / base:.2f}" if base else "",
            f"{figures['p50']:.2f}" if "p50" in figures else "",
            f"{figures['p99']:.2f}" if "p99" in figures else "",
        ]
        for name, figures in rows
        if figures
    ]
    if half := found.get("merged", {}).get("half"):
        lines.append(
            ["server at half that rate", f"{half['seconds']:.1f}", "", "", f"{half['p50']:.2f}", f"{half['p99']:.2f}"]
        )
    if lines:
        common.print_table(str(setting), ["", "seconds", "resp. tok/s", "of bare", "p50 s", "p99 s"], lines)
    if figures := found.get("stub"):
        one, many = figures["overhead"]["alone"], figures["overhead"]["at_once"]
        print(
            f"\na request that costs the model nothing: {1000 * one['p50']:.1f} ms alone, "
            f"{1000 * many['seconds'] / many['requests']:.1f} ms each of 16 at once"
        )
        print(f"two replicas of a fixed 50 ms against one: {figures['scaling']['ratio']:.2f} x")


def main() -> None:
    parser = common.flags(__doc__, prompts=48, n=4, spread=0.0, token_budget=2048)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="what to measure")
    args: argparse.Namespace = common.parse(parser)
    setting = common.setting_of(args)
    found: dict[str, Figures] = {}
    with fresh.shared_folder() as folder:
        if set(args.parts) != {"stub"}:
            make_run(setting, folder)
        for part in args.parts:
            print(part, file=sys.stderr, flush=True)
            found[part] = fresh.run_fresh(f"benchmarks.serving:{part}", setting, folder)
            if "error" in found[part]:
                raise SystemExit(f"{part}: {found[part]['error']}")
    show(found, setting)
    common.write(args, setting, found)


if __name__ == "__main__":
    main()
