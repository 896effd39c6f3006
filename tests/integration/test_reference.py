"""reference: encodes texts from elsewhere once, and computes no log-prob twice."""

from pathlib import Path

import pyarrow.compute as pc
import pytest

from prm_ray.config import RunConfig
from prm_ray.models import decode, encode_prompt, load_tokenizer
from prm_ray.parquetfiles import read_parquet, write_parquet
from prm_ray.stages import reference
from prm_ray.tables import StageFolder
from tests.tables_by_hand import tiny_config

pytestmark = pytest.mark.usefixtures("ray_local")


def labels(config: RunConfig, texts: list[str]) -> None:
    folder = StageFolder(config.run.dir, "label")
    folder.path.mkdir(parents=True)
    row = {"split": "train", "correct": True, "messages": [{"role": "user", "content": "1+2"}], "prompt_id": "p"}
    folder.write_part(0, [row | {"sample_index": index, "text": text} for index, text in enumerate(texts)])


def run_reference(config: RunConfig) -> list[dict]:
    folder = StageFolder(config.run.dir, "reference")
    folder.clear()
    folder.path.mkdir(parents=True)
    reference.run(config, folder)
    return list(folder.rows())


def test_texts_from_elsewhere_are_encoded_once_and_too_long_ones_say_so(tmp_path: Path, tiny_model: str) -> None:
    config = tiny_config(tmp_path, tiny_model)
    labels(config, ["3\n4 漢字", "1 2 " * 400])
    good, long = run_reference(config)
    tokenizer = load_tokenizer(tiny_model)
    assert good["prompt_tokens"] == encode_prompt(tokenizer, good["messages"])
    assert decode(tokenizer, good["response_tokens"]) == "3\n4 漢字"
    assert (good["token_source"], len(good["step_ends"])) == ("encoded", 2)
    assert len(good["ref_logprobs"]) == len(good["response_tokens"]) == good["step_ends"][-1]
    assert long["error"].startswith("too_long: prompt and response have") and long["ref_logprobs"] is None


def test_log_probs_are_reused_by_fingerprint_and_only_for_the_same_model(
    tmp_path: Path, tiny_model: str, other_tiny_model: str
) -> None:
    config = tiny_config(tmp_path, tiny_model)
    labels(config, ["3\n4", "5"])
    first = run_reference(config)
    cache = tmp_path / "reference_cache" / "part-00000.parquet"
    table = read_parquet(cache)
    write_parquet(cache, table.filter(pc.equal(table["fingerprint"], first[0]["fingerprint"])))
    marked = read_parquet(cache).set_column(1, "ref_logprobs", [[[0.5] * len(first[0]["ref_logprobs"])]])
    write_parquet(cache, marked)  # a value no model gives: seen again only if it was not computed anew
    again = run_reference(tiny_config(tmp_path, tiny_model, reference={"step_rule": "none"}))
    assert set(again[0]["ref_logprobs"]) == {0.5}
    assert again[1]["ref_logprobs"] == pytest.approx(first[1]["ref_logprobs"], abs=1e-5)
    other = run_reference(tiny_config(tmp_path, tiny_model, reference={"model": other_tiny_model}))
    assert 0.5 not in other[0]["ref_logprobs"]
