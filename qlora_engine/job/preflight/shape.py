"""The shape of a model, read from its config.json: how wide each part is, without a weight being loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# Families whose layers are those of llama, or differ from them in what costs no memory.
LIKE_LLAMA = frozenset(
    {
        "llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi3", "smollm3", "granite", "olmo",
        "olmo2", "cohere", "cohere2", "internlm2", "exaone", "exaone4", "helium", "mistral3", "ministral3", "seed_oss",
    }
)  # fmt: skip
UNGATED = frozenset({"phi", "starcoder2", "gpt_neox", "stablelm_alpha"})
FUSED_LINEARS = frozenset({"phi3"})  # query, key and value in one matrix; gate and up in another
FULL = {"float32": 4, "bfloat16": 2, "float16": 2}


class ShapeUnknown(ValueError):
    """The config.json does not say enough to compute with; the text says what is missing."""


@dataclass(frozen=True)
class Linear:
    """The linear layers of one name in one transformer layer.

    Attributes:
        name: within the layer, as `lora_parameters.keys` names it.
        copies: how many there are: 1, or the number of experts.
        used: how many of them a token passes through.
    """

    name: str
    inputs: int
    outputs: int
    copies: int = 1
    used: int = 1

    @property
    def weights(self) -> int:
        """Numbers in all copies."""
        return self.inputs * self.outputs * self.copies


@dataclass(frozen=True)
class ModelShape:
    """What memory and time depend on.

    Attributes:
        family: `model_type`.
        hidden: width of the residual stream.
        mlp: width of the feed-forward part that one token passes through, all its active experts together.
        heads, kv_heads, head: attention heads, heads of keys and values, width of a head.
        tied: the output layer is the embedding.
        bits, group: of the quantized weights as stored, the mean where they differ; None and 0 when none are quantized.
        stored: bytes of a number that is not quantized.
        rough: why the arithmetic is only near; None where it was compared with measurements.
    """

    family: str
    layers: int
    hidden: int
    mlp: int
    heads: int
    kv_heads: int
    head: int
    vocabulary: int
    tied: bool
    bits: float | None
    group: int
    stored: int
    linears: tuple[Linear, ...]
    rough: str | None = None

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> ModelShape:
        """Read a config.json.

        Raises:
            ShapeUnknown: it lacks a width, or holds something else in its place.
        """
        family = str(config.get("model_type", ""))
        outer, inner = config, config.get("text_config")
        config = {**outer, **inner} if isinstance(inner, Mapping) else outer
        hidden, heads = _count(config, "hidden_size", "n_embd", "d_model"), _count(
            config, "num_attention_heads", "n_head", "n_heads"
        )  # fmt: skip
        head = _count(config, "head_dim", otherwise=max(1, hidden // heads))
        kv_heads = _count(config, "num_key_value_heads", otherwise=heads)
        mlp = _count(config, "intermediate_size", "n_inner", "ffn_dim", otherwise=4 * hidden)
        attention = _attention(family, hidden, heads * head, kv_heads * head)
        experts = _count(config, "num_local_experts", "num_experts", "n_routed_experts", otherwise=0)
        if experts:
            mlp, feed_forward = _mixture(config, hidden, mlp, experts)
        else:
            feed_forward = _feed_forward(family, hidden, mlp)
        layers = _count(config, "num_hidden_layers", "n_layer", "n_layers")
        vocabulary, tied = _count(config, "vocab_size"), bool(config.get("tie_word_embeddings", True))
        embedding = vocabulary * hidden
        quantization = config.get("quantization") or outer.get("quantization")
        linears = (*attention, *feed_forward)
        quantization = quantization if isinstance(quantization, Mapping) else {}
        return cls(
            family=family,
            layers=layers,
            hidden=hidden,
            mlp=mlp,
            heads=heads,
            kv_heads=kv_heads,
            head=head,
            vocabulary=vocabulary,
            tied=tied,
            bits=_mean_bits(quantization, linears, layers, embedding) if quantization else None,
            group=_count(quantization, "group_size", otherwise=64) if quantization else 0,
            stored=FULL.get(str(config.get("torch_dtype") or config.get("dtype")).removeprefix("torch."), 2),
            linears=linears,
            rough=_doubt(family, experts),
        )

    @property
    def embedding(self) -> int:
        """Numbers in the embedding, and in an output layer of its own."""
        return self.vocabulary * self.hidden * (1 if self.tied else 2)

    @property
    def layer(self) -> int:
        """Numbers in the matrices of one transformer layer."""
        return sum(linear.weights for linear in self.linears)

    @property
    def parameters(self) -> int:
        """Numbers in all matrices."""
        return self.embedding + self.layers * self.layer

    @property
    def largest(self) -> int:
        """Numbers in the largest matrix."""
        return max(self.vocabulary * self.hidden, *(linear.weights for linear in self.linears))


def _attention(family: str, hidden: int, query: int, key: int) -> tuple[Linear, ...]:
    if family in FUSED_LINEARS:
        first: tuple[Linear, ...] = (Linear("self_attn.qkv_proj", hidden, query + 2 * key),)
    else:
        first = (
            Linear("self_attn.q_proj", hidden, query),
            Linear("self_attn.k_proj", hidden, key),
            Linear("self_attn.v_proj", hidden, key),
        )
    return (*first, Linear("self_attn.o_proj", query, hidden))


def _feed_forward(family: str, hidden: int, mlp: int) -> tuple[Linear, ...]:
    down = Linear("mlp.down_proj", mlp, hidden)
    if family in UNGATED:
        return (Linear("mlp.up_proj", hidden, mlp), down)
    if family in FUSED_LINEARS:
        return (Linear("mlp.gate_up_proj", hidden, 2 * mlp), down)
    return (Linear("mlp.gate_proj", hidden, mlp), Linear("mlp.up_proj", hidden, mlp), down)


def _mixture(config: Mapping[str, Any], hidden: int, mlp: int, experts: int) -> tuple[int, tuple[Linear, ...]]:
    """The experts of a layer as one set of linear layers, shared experts counted with the active ones."""
    width = _count(config, "moe_intermediate_size", "expert_dim", otherwise=mlp)
    active = _count(config, "num_experts_per_tok", "experts_per_token", "top_k", otherwise=2)
    shared = _count(config, "n_shared_experts", otherwise=0)
    copies, used = experts + shared, active + shared
    return used * width, (
        Linear("mlp.switch_mlp.gate_proj", hidden, width, copies, used),
        Linear("mlp.switch_mlp.up_proj", hidden, width, copies, used),
        Linear("mlp.switch_mlp.down_proj", width, hidden, copies, used),
    )


def _mean_bits(quantization: Mapping[str, Any], linears: tuple[Linear, ...], layers: int, embedding: int) -> float:
    """Bits of a weight on average, where some layers are named with bits of their own."""
    bits = _count(quantization, "bits")
    sizes = {linear.name: linear.weights for linear in linears}
    whole = sum(sizes.values()) * layers + embedding
    more = 0.0
    for name, own in quantization.items():
        if isinstance(own, Mapping | bool):
            size = next((size for end, size in sizes.items() if name.endswith(end)), embedding)
            theirs = _count(own, "bits", otherwise=bits) if isinstance(own, Mapping) else bits if own else 16
            more += (theirs - bits) * size / whole
    return bits + more


def _doubt(family: str, experts: int) -> str | None:
    if experts:
        return "it is a mixture of experts"
    if family not in LIKE_LLAMA:
        return f"its architecture `{family or 'unnamed'}` was not compared with measurements"
    return None


def _count(config: Mapping[str, Any], *names: str, otherwise: int | None = None) -> int:
    for name in names:
        value = config.get(name)
        if isinstance(value, bool) or value is None:
            continue
        if not isinstance(value, int) or not 0 < value < 2**40:
            raise ShapeUnknown(f"`{name}` in its config.json is {str(value)[:40]!r}")
        return value
    if otherwise is None:
        raise ShapeUnknown(f"its config.json has no `{names[0]}`")
    return otherwise
