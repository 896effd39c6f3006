"""Plans of whole runs: what fits what, what to change, and what a user is told; and their arithmetic by hand."""

import json
import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from prm_ray.cli import main
from prm_ray.config import RunConfig, load_config
from prm_ray.errors import UserError
from prm_ray.planning.hardware import GIB, GPUS, cluster_of_cpus, cluster_of_gpus
from prm_ray.planning.memory import Training
from prm_ray.planning.plan import Plan, plan_run
from prm_ray.planning.rates import Stepping, decoding_rate, forward_flops, kv_bytes, step_seconds, training_flops
from prm_ray.planning.shapes import Shape
from prm_ray.planning.stageplan import StagePlan

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
PAPER = CONFIGS / "llama31_8b_implicit_prm.toml"
ON_FOUR = ["train.num_workers=4", "generate.num_engines=4", "reference.num_workers=4", "score.num_workers=4"]


def plan_of(path: Path, gpus: str, *words: str, nodes: int = 1) -> Plan:
    return plan_run(load_config(path, list(words)), cluster_of_gpus(gpus, nodes))


def stage_of(plan: Plan, name: str) -> StagePlan:
    return next(stage for stage in plan.stages if stage.stage == name)


@pytest.mark.parametrize("name", ["llama31_8b_implicit_prm", "qwen25_7b_implicit_prm", "llama33_70b_lora"])
def test_a_config_at_the_papers_scale_fits_the_hardware_it_names(name: str):
    path = CONFIGS / f"{name}.toml"
    named = re.search(r"#     prm-ray plan (\S+) (--gpus \S+.*)", path.read_text(encoding="utf-8"))
    assert named is not None and named[1] == f"configs/{path.name}"
    _, gpus, *words = shlex.split(named[2])
    plan = plan_of(path, gpus, *words)
    assert plan.fits and plan.seconds
    assert all(stage.gpus in (0, plan.question.cluster.num_gpus) for stage in plan.stages), "idle GPUs"


def test_8b_at_8k_tokens_on_four_gpus_of_80_gb():
    """Whole on every worker: no. Cut, without checkpointing: no. Both: yes."""
    answers = {}
    for parallel in ("ddp", "fsdp"):
        for checkpointing in ("false", "true"):
            words = (f"train.parallel={parallel}", f"train.gradient_checkpointing={checkpointing}")
            answers[parallel, checkpointing] = stage_of(plan_of(PAPER, "4xA100-80GB", *ON_FOUR, *words), "train").fits
    assert answers == {
        ("ddp", "false"): False,
        ("ddp", "true"): False,
        ("fsdp", "false"): False,
        ("fsdp", "true"): True,
    }


@pytest.mark.parametrize(
    ("gpus", "words"),
    [
        ("4xA100-80GB", ["train.parallel=ddp", "train.gradient_checkpointing=false"]),
        ("4xA100-80GB", ["train.gradient_checkpointing=false"]),
        ("4xA100-40GB", []),
        ("4xL4", ["train.freeze_embeddings=true", "train.norm_lr=1e-6", "train.gradient_checkpointing=false"]),
        ("4xRTX-3090", ["model.name=Qwen/Qwen2.5-14B-Instruct", "generate.engine_options={}"]),
    ],
)
def test_what_is_advised_makes_each_stage_fit(gpus: str, words: list[str]):
    plan = plan_of(PAPER, gpus, *ON_FOUR, *words)
    assert not plan.fits
    for stage, advised in plan.advice.items():
        settings = [word for word in advised if not word.startswith("--")]
        flags = dict(word.split() for word in advised if word.startswith("--"))
        again = plan_of(
            PAPER, flags.get("--gpus", gpus), *ON_FOUR, *words, *settings, nodes=int(flags.get("--nodes", 1))
        )
        assert advised and stage_of(again, stage).fits is not False, (stage, advised)


def test_advice_is_the_smallest_change_and_spares_results():
    """Each of the first three alone where it is enough; an adapter only where nothing else does it."""

    def advised(gpus: str, *words: str) -> tuple[str, ...]:
        return plan_of(PAPER, gpus, *ON_FOUR, *words).advice["train"]

    (budget,) = advised("4xA100-80GB", "train.gradient_checkpointing=false")
    key, _, value = budget.partition("=")
    assert key == "train.token_budget" and 3072 <= int(value) < 8192
    longest = ("train.gradient_checkpointing=false", "prompt.max_tokens=6144")
    assert advised("4xA100-80GB", *longest) == ("train.gradient_checkpointing=true",)
    whole = ("train.parallel=ddp", "train.num_workers=2")
    assert advised("4xA100-80GB", *whole) == ("train.parallel=fsdp", "train.num_workers=4")
    assert advised("4xL4") == ("train.lora_rank=16",)


def test_a_reference_or_score_that_fits_no_gpu_says_what_does():
    words = ["model.name=meta-llama/Llama-3.1-70B-Instruct", "generate.num_engines=4", "label.num_workers=2"]
    plan = plan_of(PAPER, "4xH100", *ON_FOUR, *words)
    assert plan.advice["reference"] == ("reference.logprobs=sampled",)
    assert plan.advice["score"][0] == "--gpus 4xH200"
    assert plan.advice["generate"] == ("generate.gpus_per_engine=2", "generate.num_engines=2")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gpus", "8xK80"], "no GPU 'K80' is known; write 8xH100"),
        (["--gpus", "8xK80"], "H100-PCIe, H200"),
        (["--gpus", "0xH100"], "at least 1 GPU"),
        (["--gpus", "1x0GB@400TFLOPs"], "--gpus '1x0GB@400TFLOPs': the memory of a GPU must be more than 0"),
        (["--gpus", "80GB@0TFLOPs@0TB/s"], "the rate and the memory bandwidth of a GPU must be more than 0"),
        (["--gpus", "1x1.2.3GB@400TFLOPs"], "no GPU '1.2.3GB@400TFLOPs' is known; write 8xH100"),
        (["--gpus", "8xH100", "--nodes", "0"], "--nodes 0: must be at least 1"),
        (["--gpus", "4xH100"], "generate.num_engines 8 with generate.gpus_per_engine 1 needs 8 GPUs; there are 4"),
        (["--gpus", "4xH100"], "all would have room with generate.num_engines=4 reference.num_workers=4 train"),
        (["--gpus", "4xH100", "generate.gpus_per_engine=8"], "must be on one node, and a node has 4 GPUs"),
        (["--gpus", "1xH100", "generate.gpus_per_engine=2"], "2 must be on one node, and a node has 1 GPU"),
        (
            ["--gpus", "8xH100", "generate.num_engines=1", "generate.gpus_per_engine=3"],
            "divide the model's 32 attention",
        ),
        (["--gpus", "8xH100", "model.name=no/such-model"], "give model.name=FOLDER"),
        (["--gpus", "8xH100", "model.name=./nowhere"], "has no config.json that could be read"),
        (["--gpus", "8xH100", "--response-tokens", "9999"], "at most 2048, the longest by the settings"),
        (["--cpu"], "generate.gpus_per_engine is 1, but --cpu has no GPU"),
        ([], "one of the arguments --gpus --cpu is required"),
        (["--gpus", "8xH100", "--cpu"], "not allowed with argument"),
    ],
)
def test_bad_input_is_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(SystemExit) as ended:
        main(["plan", str(PAPER), *arguments])
    (line,) = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2 and message in line


EXPERIMENT = CONFIGS / "experiments" / "objectives.toml"


def test_of_an_experiment_a_variant_is_planned_with_its_own_settings(capsys: pytest.CaptureFixture[str]):
    def planned(*words: str) -> dict[str, Any]:
        with pytest.raises(SystemExit):
            main(["plan", *words, "--cpu", "--json"])
        return json.loads(capsys.readouterr().out)

    common = ["problems.num_train=400", "problems.num_test=240", "reference.logprobs=compute", "reference.mismatched=1"]
    alone = planned(str(CONFIGS / "demo.toml"), *common, "train.with_reference=false")
    assert planned(str(EXPERIMENT), "--variant", "ce_free") == alone
    assert planned(str(EXPERIMENT), "--variant", "ce_free", "problems.num_train=99")["work"]["num_train"] == 99


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([str(EXPERIMENT)], "objectives.toml' is an experiment file, not the config of one run: prm-ray experiment "),
        ([str(EXPERIMENT)], f"prm-ray plan {EXPERIMENT} --variant NAME plans one"),
        ([str(EXPERIMENT), "--variant", "none"], "--variant 'none' must be a variant of"),
        ([str(EXPERIMENT), "--variant", "base"], "that is trained: ce, ce_dataset, "),
        ([str(PAPER), "--variant", "ce"], "is no experiment file: it has neither a base nor variants"),
    ],
)
def test_an_experiment_file_and_a_config_are_told_apart(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(SystemExit) as ended:
        main(["plan", *words, "--cpu"])
    (line,) = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2 and message in line


def test_exit_codes_words_and_json(capsys: pytest.CaptureFixture[str]):
    def shown(*arguments: str) -> tuple[object, str]:
        with pytest.raises(SystemExit) as ended:
            main(["plan", str(PAPER), *arguments])
        return ended.value.code, capsys.readouterr().out

    code, text = shown("--gpus", "8xA100-80GB")
    assert code == 0 and text.endswith("It fits.\n") and "8.03 billion parameters" in text
    code, text = shown("--gpus", "4xL4", *ON_FOUR)
    assert code == 1 and "train fits with: train.lora_rank=16" in text and "optimizer moments" in text
    code, text = shown("--gpus", "4xL4", *ON_FOUR, "--json")
    found = json.loads(text)
    (train,) = [stage for stage in found["stages"] if stage["stage"] == "train"]
    assert code == 1 and not found["fits"] and train["change"] == ["train.lora_rank=16"]
    assert sum(train["terms_bytes"].values()) + train["allowance_bytes"] == pytest.approx(train["need_bytes"])


def test_a_models_own_config_is_read(tmp_path: Path):
    facts = {"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    facts |= {"intermediate_size": 128, "vocab_size": 1000, "tie_word_embeddings": True}
    (tmp_path / "config.json").write_text(json.dumps(facts))
    plan = plan_of(PAPER, "8xL4", f"model.name={tmp_path}")
    assert plan.question.shape == Shape(64, 2, 128, 4, 4, 1000, True) and plan.source == str(tmp_path)
    for wrong, message in (({"hidden_size": "x"}, "hidden_size 'x'"), ({"num_experts": 8}, "mixture of experts")):
        (tmp_path / "config.json").write_text(json.dumps(facts | wrong))
        with pytest.raises(UserError, match=message):
            plan_of(PAPER, "8xL4", f"model.name={tmp_path}")


def test_problems_are_counted_in_files_that_are_there(tmp_path: Path):
    (tmp_path / "train.jsonl").write_text("{}\n{}\n\n{}\n")
    words = (f"problems.train={tmp_path}/train.jsonl", "problems.num_train=")
    assert plan_of(PAPER, "8xH100", *words).question.work.num_train == 3
    assert plan_of(PAPER, "8xH100", *words, "problems.num_train=2").question.work.num_train == 2
    unknown = plan_of(PAPER, "8xH100", "problems.num_train=")
    assert unknown.question.work.num_train is None and unknown.seconds is None
    assert stage_of(unknown, "train").tokens_per_second


def test_of_problems_made_on_the_spot_the_lengths_are_known():
    """The demo's tokenizer finds 23.8 tokens in a prompt and 16.2 in a worked solution; responses had 19."""
    work = plan_of(CONFIGS / "demo.toml", "1xH100").question.work
    assert work.prompt_tokens == pytest.approx(23.8, rel=0.05) and 16 <= work.response_tokens <= 19
    short = plan_of(CONFIGS / "demo.toml", "1xH100", "arithmetic.min_operations=1", "arithmetic.max_operations=1")
    assert short.question.work.response_tokens < 5
    given = plan_of(CONFIGS / "demo.toml", "1xH100", "problems.train=train.jsonl", "problems.test=test.jsonl")
    assert (given.question.work.prompt_tokens, given.question.work.response_tokens) == (64, 40)  # the demo's limits


@pytest.mark.parametrize("stage", ["warmup", "generate", "train", "score"])
def test_this_machine_without_gpus_is_planned_and_judged(stage: str):
    plan = plan_run(load_config(CONFIGS / "debug.toml"), cluster_of_cpus(1))
    found = stage_of(plan, stage)
    assert found.fits is not None and found.seconds and found.have == plan.question.cluster.device.memory


def test_gpus_are_read_as_people_write_them():
    assert cluster_of_gpus("4xa100-80gb", 2).num_gpus == 8
    assert cluster_of_gpus("H100", 1).num_gpus == 1
    assert cluster_of_gpus("8xA100", 1).device is GPUS["A100-80GB"]
    custom = cluster_of_gpus("2x96GB@400TFLOPs@3.5TB/s", 1).device
    assert custom.memory == pytest.approx(0.98 * 96 * GIB)
    assert (custom.flops, custom.bandwidth) == (400e12, 3.5e12)


def test_operations_and_times_by_hand():
    """Queries of 8 numbers, over 5 earlier tokens; a GPU of 1e12 operations/s, of which training reaches 35 %."""
    shape = Shape(8, 3, 16, 2, 1, 100, True)  # a layer: 8 x (8 + 4 + 4 + 8) + 3 x 8 x 16 = 576, norms 16
    assert shape.parameters == 3 * (576 + 16) + 100 * 8 + 8 == 2584
    forward = 2 * 2584 + 4 * 3 * 8 * 5
    assert forward_flops(shape, 5) == forward
    assert training_flops(shape, Training(), 5) == 3 * forward
    assert training_flops(shape, Training(lora_rank=4), 5) == 2 * forward
    assert training_flops(shape, Training(gradient_checkpointing=True), 5) == 4 * forward
    device = replace(GPUS["L4"], flops=1e12, bandwidth=1e12, link=1e9)
    cluster = replace(cluster_of_gpus("2xL4", 1), device=device)
    alone, waiting = step_seconds(shape, Training(), Stepping(1000, 1), 5, 2, cluster)
    assert waiting == 0 and alone == pytest.approx(1000 * 3 * forward / 0.35e12 + 40 * 2584 / 1e12)
    _, waiting = step_seconds(shape, Training(num_workers=2), Stepping(1000, 1), 5, 2, cluster)
    assert waiting == pytest.approx(8 * 2584 / 0.7e9)
    assert kv_bytes(shape, 2) == 2 * 2 * 3 * 4
    assert decoding_rate(shape, 2, 10, 5, device, 1) == pytest.approx(10 * 0.8 / (10 * forward / 0.5e12 + 5e-3))
    reading = (2 * 2584 + 10 * 5 * 48) / 0.7e9
    slow = replace(device, bandwidth=1e9)
    assert decoding_rate(shape, 2, 10, 5, slow, 1) == pytest.approx(10 * 0.8 / (reading + 5e-3))


def test_fewer_tokens_or_more_gpus_take_less_time():
    slow, fast = (plan_of(PAPER, "8xA100-80GB", nodes=1), plan_of(PAPER, "8xH100", nodes=1))
    assert fast.seconds is not None and slow.seconds is not None and fast.seconds < slow.seconds
    fewer = plan_of(PAPER, "8xA100-80GB", "problems.num_train=3300")
    assert stage_of(fewer, "train").seconds == pytest.approx((stage_of(slow, "train").seconds or 0) / 10)


def test_every_stage_with_a_model_is_planned():
    settings = {"warmup": {"enabled": True}, "step_label": {"method": "monte_carlo"}}
    plan = plan_run(RunConfig.model_validate(settings), cluster_of_cpus(1))
    assert [stage.stage for stage in plan.stages] == ["warmup", "generate", "reference", "step_label", "train", "score"]
    assert stage_of(plan, "step_label").seconds > stage_of(plan, "generate").seconds  # pyright: ignore
