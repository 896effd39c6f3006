"""Shapes of language models: what memory and time depend on, and nothing else of a model.

A decoder of the Llama kind: embedding, layers of attention and a gated MLP between RMS norms, output layer. Llama,
Mistral, Qwen2 and Qwen3 are such; others are counted as if they were (`is_counted`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from prm_ray.errors import UserError

_COUNTED = ("llama", "mistral", "qwen2", "qwen3")
"""Model types whose parameters are counted to the last one."""
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")


@dataclass(frozen=True)
class Shape:
    """A model's sizes, as its config.json has them."""

    hidden: int
    layers: int
    intermediate: int
    heads: int
    kv_heads: int
    vocab: int
    tied: bool
    """The output layer is the embedding table."""
    head_size: int = 0
    """0 = hidden / heads."""
    context: int | None = None
    """Most tokens of a text; none = not said."""
    kind: str = "llama"

    @property
    def query(self) -> int:
        """Numbers of a token's query, over all heads."""
        return self.heads * (self.head_size or self.hidden // self.heads)

    @property
    def key(self) -> int:
        """Numbers of a token's key, and of its value."""
        return self.kv_heads * (self.head_size or self.hidden // self.heads)

    @property
    def has_head_norms(self) -> bool:
        """Queries and keys have norms of their own (Qwen3)."""
        return self.kind == "qwen3"

    @property
    def is_counted(self) -> bool:
        """Its parameters are counted exactly; of others, as if they were a Llama."""
        return self.kind in _COUNTED

    @property
    def layer_matrices(self) -> int:
        """Parameters of one layer's matrices: queries, keys, values, output, and the MLP's three."""
        attention = 2 * self.hidden * self.query + 2 * self.hidden * self.key
        return attention + 3 * self.hidden * self.intermediate

    @property
    def layer_parameters(self) -> int:
        """All of one layer: its matrices, gains of its norms, and biases where the kind has them."""
        biases = self.query + 2 * self.key if self.kind == "qwen2" else 0
        head_norms = 2 * self.query // self.heads if self.has_head_norms else 0
        return self.layer_matrices + 2 * self.hidden + biases + head_norms

    @property
    def table(self) -> int:
        """Parameters of the embedding table, and of an output layer of its own."""
        return self.vocab * self.hidden

    @property
    def outside_parameters(self) -> int:
        """What is in no layer: embedding, output layer, last norm."""
        return self.table * (1 if self.tied else 2) + self.hidden

    @property
    def parameters(self) -> int:
        return self.layers * self.layer_parameters + self.outside_parameters

    @property
    def multiplied(self) -> int:
        """Parameters that a token is multiplied with: all but a table that is only looked up in, as `core.compute`
        counts."""
        return self.parameters - (0 if self.tied else self.table)

    def adapter_parameters(self, rank: int, targets: tuple[str, ...] = ()) -> int:
        """Parameters of a LoRA adapter: rank x (in + out) of each linear layer it is on."""
        chosen = [sides for name, sides in self.linears().items() if not targets or name.endswith(targets)]
        return self.layers * rank * sum(inside + outside for inside, outside in chosen)

    def linears(self) -> dict[str, tuple[int, int]]:
        """Linear layers inside a layer -> numbers in and out."""
        hidden, inner = self.hidden, self.intermediate
        return {
            "self_attn.q_proj": (hidden, self.query),
            "self_attn.k_proj": (hidden, self.key),
            "self_attn.v_proj": (hidden, self.key),
            "self_attn.o_proj": (self.query, hidden),
            "mlp.gate_proj": (hidden, inner),
            "mlp.up_proj": (hidden, inner),
            "mlp.down_proj": (inner, hidden),
        }


def shape_of(config: Mapping[str, Any], name: str) -> Shape:
    """The shape that a config.json describes. Raises `UserError` for one that lacks a size, or mixes experts."""
    config = config.get("text_config") or config
    kind = str(config.get("model_type", "?"))
    if any((config.get(key) or 1) > 1 for key in _EXPERTS):
        raise UserError(f"model {name!r} is a mixture of experts ({kind}), which `plan` does not count")
    heads = _size(config, "num_attention_heads", name)
    return Shape(
        hidden=_size(config, "hidden_size", name),
        layers=_size(config, "num_hidden_layers", name),
        intermediate=_size(config, "intermediate_size", name),
        heads=heads,
        kv_heads=config.get("num_key_value_heads") or heads,
        vocab=_size(config, "vocab_size", name),
        tied=bool(config.get("tie_word_embeddings", kind.startswith("gemma"))),  # files leave out their kind's default
        head_size=config.get("head_dim") or 0,
        context=config.get("max_position_embeddings"),
        kind=kind,
    )


def _size(config: Mapping[str, Any], key: str, name: str) -> int:
    value = config.get(key)
    if not isinstance(value, int) or value < 1:
        raise UserError(f"the config.json of model {name!r} has {key} {value!r}; it must be a number of at least 1")
    return value
