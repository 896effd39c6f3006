"""Columns of all tables: one Arrow schema a stage that writes one."""

from __future__ import annotations

from typing import get_args

import pyarrow as pa

from prm_ray.settings import Aggregation

_MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
_TOKENS, _FLOATS = pa.list_(pa.int32()), pa.list_(pa.float32())

RESPONSES = pa.schema(
    [
        ("prompt_id", pa.string()),  # stable hash of the problem's text
        ("split", pa.string()),  # train | test
        ("problem", pa.string()),
        ("gold_answer", pa.string()),
        ("messages", _MESSAGES),
        ("prompt_tokens", _TOKENS),  # null where the text came from elsewhere and is not encoded yet
        ("sample_index", pa.int32()),
        ("text", pa.string()),
        ("response_tokens", _TOKENS),  # as sampled, end-of-text token included
        ("sampled_logprobs", _FLOATS),  # raw log-probs of the sampler, one a response token; null if it gave none
        ("finish_reason", pa.string()),  # stop | length | null (elsewhere)
        ("generator", pa.string()),
        ("error", pa.string()),  # why there is no response; null = all is well
    ]
)
LABELS = RESPONSES.append(pa.field("answer", pa.string())).append(pa.field("correct", pa.bool_()))
LABELS = LABELS.append(pa.field("label_error", pa.string()))  # why `correct` is null
LABELS = LABELS.append(pa.field("soft_label", pa.float64()))  # chance of being right; `correct` is then whether > 0.5
REFERENCE = LABELS.append(pa.field("step_ends", _TOKENS)).append(pa.field("ref_logprobs", _FLOATS))
REFERENCE = REFERENCE.append(pa.field("fingerprint", pa.string())).append(pa.field("token_source", pa.string()))
REFERENCE = REFERENCE.append(pa.field("mismatched_tokens", _TOKENS))  # a response to another prompt, or null
REFERENCE = REFERENCE.append(pa.field("mismatched_logprob", pa.float32()))  # the reference's, behind this row's prompt
REFERENCE = REFERENCE.append(pa.field("mismatched_prompt_id", pa.string()))  # the prompt it answers
STEP_LABELS = REFERENCE.append(pa.field("step_labels", _FLOATS))  # S chances in [0, 1]; null = not labelled
STEP_LABELS = STEP_LABELS.append(pa.field("step_label_error", pa.string()))  # why the row or a step of it has none
SCORES = REFERENCE.append(pa.field("token_rewards", _FLOATS)).append(pa.field("step_rewards", _FLOATS))
SCORES = SCORES.append(pa.field("policy_logprobs", _FLOATS))  # log pi of each response token
for _aggregation in get_args(Aggregation):
    SCORES = SCORES.append(pa.field(f"reward_{_aggregation}", pa.float32()))
CACHE = pa.schema([("fingerprint", pa.string()), ("ref_logprobs", _FLOATS)])
"""reference_cache/: reference log-probs by fingerprint (weights, tokenizer, chat template, token ids)."""
PICKS = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("method", pa.string()),
        ("n", pa.int32()),
        ("accuracy", pa.float64()),  # mean over subsamples of n candidates: the share whose pick is right
        ("sample_index", pa.int32()),  # the pick among all candidates; null unless n = all of them
        ("answer", pa.string()),
        ("correct", pa.bool_()),
    ]
)
PROCESSBENCH = pa.schema(
    [
        ("subset", pa.string()),
        ("id", pa.string()),
        ("prompt_id", pa.string()),
        ("label", pa.int32()),  # 0-based first wrong step; -1 = none is wrong
        ("num_empty_steps", pa.int32()),
        ("prompt_tokens", _TOKENS),
        ("response_tokens", _TOKENS),
        ("step_ends", _TOKENS),  # one a given step; an empty step may end where the one before it does
        ("step_rewards", _FLOATS),
        ("error", pa.string()),
    ]
)
SEARCH = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("problem", pa.string()),
        ("gold_answer", pa.string()),
        ("strategy", pa.string()),
        ("size", pa.int32()),
        ("candidate", pa.int32()),  # its number; null in the one row of a problem that could not be asked
        ("parent", pa.int32()),  # the candidate it continues; -1 = none
        ("tokens", _TOKENS),  # behind those of its parent
        ("text", pa.string()),  # whole; null of one that was not continued to its end
        ("finish_reason", pa.string()),  # stop | length | null (could go on)
        ("num_sampled", pa.int32()),  # tokens drawn for it, dropped ones too
        ("step_rewards", _FLOATS),
        ("step_ends", _TOKENS),  # offsets into all of its tokens, its parents' too
        ("value", pa.float64()),
        ("competes", pa.bool_()),  # one of those that the answer was picked from
        ("picked_by", pa.list_(pa.string())),  # ways of picking that make it the answer
        ("answer", pa.string()),
        ("correct", pa.bool_()),
        ("label_error", pa.string()),
        ("error", pa.string()),
    ]
)
SCHEMAS = {
    "generate": RESPONSES,
    "label": LABELS,
    "import": LABELS,
    "reference": REFERENCE,
    "step_label": STEP_LABELS,
    "score": SCORES,
    "rerank": PICKS,
    "processbench": PROCESSBENCH,
    "policy": LABELS,
    "search": SEARCH,
}
"""Stage -> schema of the table it makes; every table carries the columns of the one before it."""
