"""Samples responses with plain transformers, where vLLM is not installed: the same outputs, several times slower."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from transformers import GenerationConfig, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList

from prm_ray.models import decode, load_model, load_tokenizer
from prm_ray.stages.sampling import Decoding, Sample, SamplerOptions

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

SEQUENCES = 64
"""Responses a batch holds."""
_STOP_TOKENS = 8
"""Last tokens among whose text a stop text is looked for."""


class TransformersSampler:
    """One model and `generate`, in batches of whole prompts."""

    def __init__(self, options: SamplerOptions):
        self.num_threads = options.threads.count()
        torch.set_num_threads(self.num_threads)
        self._options = options
        self._one_at_a_time = threading.Lock()  # the seed is torch's own, for all threads
        self._model: PreTrainedModel = load_model(options.model, options.dtype, options.trust_remote_code)
        tokenizer = load_tokenizer(options.model, trust_remote_code=options.trust_remote_code, needs_chat=False)
        self._tokenizer = tokenizer
        own = self._model.generation_config.eos_token_id if self._model.generation_config else None
        self._ends = {tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])} - {None}

    async def sample(
        self,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[int],
        max_tokens: Sequence[int] | None = None,
        decoding: Decoding | None = None,
    ) -> list[list[Sample]]:
        """Blocks its event loop: there is one model and it is busy with one batch at a time."""
        options, decoding = self._options, decoding or self._options.decoding
        limits = [
            min(limit, options.max_model_len - len(prompt))
            for limit, prompt in zip(max_tokens or [options.max_tokens] * len(prompts), prompts, strict=True)
        ]
        samples: list[list[Sample]] = []
        for batch in self._batches([len(prompt) for prompt in prompts], limits, decoding.num_samples):
            with self._one_at_a_time:
                samples += self._batch(prompts[batch], limits[batch], seeds[batch.start], decoding)
        return samples

    def close(self) -> None:
        """Nothing to stop: the model lives in this process."""

    def _batches(self, lengths: Sequence[int], limits: Sequence[int], num_samples: int) -> Iterator[slice]:
        """Neighbours, as long as the longest prompt and the longest response of a batch fit into the model together:
        prompts are padded on the left, and all of a batch write until the last has ended."""
        size, start = max(1, SEQUENCES // num_samples), 0
        for stop in range(1, len(lengths) + 1):
            whole = slice(start, stop + 1)
            full = stop - start == size
            if stop == len(lengths) or full or max(lengths[whole]) + max(limits[whole]) > self._options.max_model_len:
                yield slice(start, stop)
                start = stop

    def _batch(
        self, prompts: Sequence[Sequence[int]], limits: Sequence[int], seed: int, decoding: Decoding
    ) -> list[list[Sample]]:
        longest = max(map(len, prompts))
        pad = min(self._ends)
        ids = torch.tensor([[pad] * (longest - len(prompt)) + list(prompt) for prompt in prompts])
        mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        torch.manual_seed(seed)
        raw, stops = _RawLogprobs(longest), _StopTexts(self._tokenizer, decoding.stop, longest)
        with torch.inference_mode():
            out = self._model.generate(
                ids.to(self._model.device),
                attention_mask=mask.to(self._model.device),
                generation_config=self._generation_config(max(limits), pad, decoding),
                logits_processor=LogitsProcessorList([raw]),
                stopping_criteria=StoppingCriteriaList([stops] if decoding.stop else []),
            )
        assert isinstance(out, torch.Tensor)
        num = decoding.num_samples
        tokens, logprobs = out[:, longest:].tolist(), raw.logprobs(out)
        return [
            [
                self._cut(tokens[row][:limit], logprobs[row][:limit], stops.ends.get(row))
                for row in range(num * index, num * (index + 1))
            ]
            for index, limit in enumerate(limits)
        ]

    def _generation_config(self, max_tokens: int, pad: int, decoding: Decoding) -> GenerationConfig:
        sampling = (
            {"temperature": decoding.temperature, "top_p": decoding.top_p, "top_k": 0} if decoding.temperature else {}
        )
        return GenerationConfig(
            do_sample=decoding.temperature > 0,
            num_return_sequences=decoding.num_samples,
            max_new_tokens=max_tokens,
            eos_token_id=sorted(self._ends),
            pad_token_id=pad,
            **sampling,
        )

    def _cut(self, tokens: list[int], logprobs: list[float], stop_end: int | None) -> Sample:
        """Drop what pads a response behind its end token, or behind the stop text that ended at `stop_end`."""
        if stop_end is not None and stop_end <= len(tokens):
            return Sample(tokens[:stop_end], logprobs[:stop_end], "stop", at_stop_text=True)
        for index, token in enumerate(tokens):
            if token in self._ends:
                return Sample(tokens[: index + 1], logprobs[: index + 1], "stop")
        return Sample(tokens, logprobs, "length")


class _RawLogprobs:
    """A logits processor that changes nothing and notes the log-prob of each token one call after it was sampled.

    Keeping all logits instead would need responses x tokens x vocabulary floats.
    """

    def __init__(self, prompt_length: int):
        self._prompt_length = prompt_length
        self._last: Any = None
        self._columns: list[Any] = []

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        if self._last is not None:
            self._note(input_ids[:, -1])
        self._last = scores.float().log_softmax(-1)
        return scores

    def _note(self, tokens: Any) -> None:
        self._columns.append(self._last.gather(1, tokens[:, None])[:, 0])

    def logprobs(self, out: Any) -> list[list[float]]:
        """One list a response, as long as the generated part of `out`."""
        self._note(out[:, -1])
        assert len(self._columns) == out.shape[1] - self._prompt_length
        return torch.stack(self._columns, 1).tolist()


class _StopTexts(StoppingCriteria):
    """Ends a response where one of the texts does; `ends` says where that was, by row."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, texts: Sequence[str], prompt_length: int):
        self._tokenizer, self._texts, self._prompt_length = tokenizer, texts, prompt_length
        self.ends: dict[int, int] = {}

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
        length = input_ids.shape[1] - self._prompt_length
        for row, tail in enumerate(input_ids[:, self._prompt_length :][:, -_STOP_TOKENS:].tolist()):
            if row not in self.ends and any(stop in decode(self._tokenizer, tail) for stop in self._texts):
                self.ends[row] = length
        return torch.tensor([row in self.ends for row in range(len(input_ids))], device=input_ids.device)
