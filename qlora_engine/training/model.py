"""The base model: load it, bring its weights into the form that trains best here, add the adapters."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import psutil
from mlx import nn
from mlx.utils import tree_map_with_path
from mlx_lm.tokenizer_utils import TokenizerWrapper
from mlx_lm.tuner.utils import linear_to_lora_layers, load_adapters
from mlx_lm.utils import load_model as load_mlx_model
from mlx_lm.utils import load_tokenizer, quantize_model

from qlora_engine.job.errors import ModelRejected
from qlora_engine.job.resolved import ResolvedJob
from qlora_engine.job.spec import JobSpec
from qlora_engine.job.text import many
from qlora_engine.job.unforeseen import said_by
from qlora_engine.training.device import on_cpu
from qlora_engine.training.dropout import DropoutKey, key_dropout
from qlora_engine.training.gated import replace_gated
from qlora_engine.training.lowrank import replace_lora
from qlora_engine.training.recompute import checkpoint_layers
from qlora_engine.training.tree import flat


@dataclass(frozen=True)
class Base:
    """A base model in memory.

    Attributes:
        path: the folder it came from.
        config: its config.json.
        bits: of the quantized weights in the folder or made on load; None when there are none.
        quantized_on_load: it was not quantized and now is.
        dequantized: quantized weights were made float32, once, for the CPU.
    """

    model: nn.Module
    tokenizer: TokenizerWrapper
    path: Path
    config: dict[str, Any]
    bits: int | None
    quantized_on_load: bool = False
    dequantized: bool = False


def load_base(job: ResolvedJob, *, dequantize: bool | None = None) -> Base:
    """Load the base model of a job; a model that is not quantized is quantized (4 bits, groups of 64).

    Full fine-tuning trains the weights themselves, which must stay as they are.

    Args:
        job: that trains, or has trained.
        dequantize: on the CPU backend, make quantized weights float32; None for if they fit into memory.

    Raises:
        ModelRejected: it cannot be loaded.
    """
    path = Path(job.model_path) if job.model_path else download(job.spec.model)
    full = job.spec.fine_tune_type == "full"
    return load_folder(path, job.spec.model, quantize=not full, dequantize=False if full else dequantize)


def download(name: str) -> Path:
    """Fetch a model of the hub that the job names; a cached one is not fetched again."""
    from huggingface_hub import snapshot_download  # noqa: PLC0415  # a local model does without
    from mlx_lm.utils import DEFAULT_ALLOW_PATTERNS  # noqa: PLC0415

    try:
        return Path(snapshot_download(name, allow_patterns=DEFAULT_ALLOW_PATTERNS))
    except Exception as error:
        raise ModelRejected(
            f"The model `{name}` cannot be fetched from the hub: {said_by(error)}.",
            where=f"model: {name}",
            remedy="Check the name and the network, or name a local folder.",
        ) from error


def load_folder(path: Path, name: str, *, quantize: bool, dequantize: bool | None) -> Base:
    """Load a model folder.

    Args:
        path: in MLX or Hugging Face format.
        name: what the user calls it.
        quantize: quantize a model that is not.
        dequantize: on the CPU backend, make quantized weights float32; None for if they fit into memory.
    """
    try:
        model, config = load_mlx_model(path, lazy=True)
        tokenizer = load_tokenizer(path, eos_token_ids=config.get("eos_token_id"))
    except Exception as error:
        raise ModelRejected(
            f"The model `{name}` cannot be loaded: {said_by(error)}.",
            where=str(path),
            remedy="Check that mlx_lm can generate with it: python -m mlx_lm generate --model " + str(path),
        ) from error
    bits = quantized_bits(model)
    quantize = quantize and bits is None
    if quantize:
        with contextlib.redirect_stdout(sys.stderr):  # mlx_lm prints, and our output may be JSON lines
            model, config = quantize_model(model, config, group_size=64, bits=4)
        bits = quantized_bits(model)
    may = dequantize is not False and bits is not None and on_cpu()
    dequantized = may and (dequantize is True or _fits_dequantized(model))
    if dequantized:
        replace_quantized(model)
    mx.eval(model.parameters())
    model.freeze()
    return Base(model, tokenizer, path, config, bits, quantize and bits is not None, dequantized)


def quantized_bits(model: nn.Module) -> int | None:
    """Bits of the narrowest quantized layer, or None when no layer is quantized."""
    bits = [m.bits for _, m in model.named_modules() if isinstance(m, nn.QuantizedLinear | nn.QuantizedEmbedding)]
    return min(bits, default=None)


def replace_quantized(model: nn.Module) -> None:
    """Make every quantized linear layer and embedding a float32 one with the same values.

    On the CPU a float32 product through BLAS is some 20 times as fast as MLX's quantized product. What other
    floating-point weights the model has become float32 too, so that nothing is converted at every step.
    """

    def plain(_path: str, module: nn.Module) -> nn.Module:
        if not isinstance(module, nn.QuantizedLinear | nn.QuantizedEmbedding):
            return module
        weight = mx.dequantize(
            module.weight, module.scales, module.get("biases"),
            group_size=module.group_size, bits=module.bits, mode=module.mode, dtype=mx.float32,
        )  # fmt: skip
        mx.eval(weight)  # one at a time, so that the peak is the result and not the sum of both forms
        if isinstance(module, nn.QuantizedEmbedding):
            made: nn.Module = nn.Embedding(1, 1)
        else:
            made = nn.Linear(1, 1, bias="bias" in module)
            if "bias" in module:
                made.bias = module.bias
        made.weight = weight
        return made

    leaves = model.leaf_modules()
    model.update_modules(tree_map_with_path(plain, leaves, is_leaf=nn.Module.is_module))
    floats = {mx.float16, mx.bfloat16}
    model.apply(lambda array: array.astype(mx.float32) if array.dtype in floats else array)


def add_adapters(base: Base, spec: JobSpec, dropout: DropoutKey, *, recompute: bool) -> None:
    """Put LoRA or DoRA layers into the model, or unfreeze its layers, as mlx_lm does for the same keys.

    What the model computes is then computed in ways that train better here.

    Args:
        dropout: will hold the key of the micro-batch under way.
        recompute: compute every layer again in the backward pass.

    Raises:
        ModelRejected: the job asks for more layers than there are, or for layers that do not exist.
    """
    model, layers = base.model, base.model.layers
    if spec.num_layers > len(layers):
        raise ModelRejected(
            f"num_layers is {spec.num_layers}, but {spec.model} has {many(len(layers), 'layer')}.",
            where="num_layers",
            remedy=f"Set num_layers to {len(layers)} or less, or to -1 for all.",
        )
    mx.random.seed(spec.seed)  # the initial adapters are drawn from it
    chosen = layers[-max(spec.num_layers, 0) :]
    if spec.fine_tune_type == "full":
        _check_full(base, spec)
        for layer in chosen:
            layer.unfreeze()
    else:
        _check_keys(model, chosen, spec.lora_parameters.keys or ())
        _add_low_rank(model, spec)
    if not flat(model.trainable_parameters()):
        raise ModelRejected(
            "No layer of the model would be trained.",
            where="lora_parameters.keys" if spec.lora_parameters.keys else "num_layers",
            remedy="Name layers that the model has, for example self_attn.q_proj, or remove `keys`.",
        )
    if spec.lora_parameters.dropout:
        key_dropout(model, dropout)
    replace_lora(model)
    replace_gated(model)
    if recompute:
        checkpoint_layers(layers)


def _check_full(base: Base, spec: JobSpec) -> None:
    if base.bits is not None:
        raise ModelRejected(
            f"{spec.model} is quantized, and quantized weights cannot be trained.",
            where="fine_tune_type: full",
            remedy="Use fine_tune_type lora or dora, or a model that is not quantized.",
        )


def _check_keys(model: nn.Module, layers: Sequence[nn.Module], keys: Sequence[str]) -> None:
    """mlx_lm passes over a name that it does not find, and trains less than was asked for."""
    within = {name for layer in layers for name, _ in layer.named_modules() if name}
    names = within | {name for name, _ in model.named_modules()}
    if unknown := [key for key in keys if key not in names]:
        raise ModelRejected(
            f"The model has no layer `{unknown[0]}`.",
            where="lora_parameters.keys",
            remedy=f"Name layers that it has ({', '.join(sorted(n for n in within if '.' in n))}), or remove `keys`.",
        )


def _add_low_rank(model: nn.Module, spec: JobSpec) -> None:
    config = spec.lora_parameters.model_dump(include={"rank", "dropout", "keys"}, exclude_none=True)
    config["scale"] = spec.lora_parameters.effective_scale
    try:
        linear_to_lora_layers(model, spec.num_layers, config, use_dora=spec.fine_tune_type == "dora")
    except ValueError as error:
        raise ModelRejected(
            f"The adapters cannot be put into {spec.model}: {said_by(error)}.",
            where="lora_parameters.keys" if spec.lora_parameters.keys else f"fine_tune_type: {spec.fine_tune_type}",
            remedy="Name linear layers alone in `keys`, or use fine_tune_type lora.",
        ) from None


def put_adapters(base: Base, folder: Path) -> None:
    """Put the adapters that a run has learned into the model, or its weights, where it trained those themselves.

    Args:
        folder: in mlx_lm's format.

    Raises:
        ModelRejected: they cannot be read, or do not fit.
    """
    try:
        load_adapters(base.model, str(folder))
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ModelRejected(
            f"The adapters cannot be loaded: {said_by(error)}.",
            where=str(folder),
            remedy="`qlora report ID` says how the run went; `qlora retry ID` trains it again.",
        ) from error
    base.model.eval()


def activation_type(model: nn.Module) -> mx.Dtype:
    """The type that activations have: that of the embedding's output, which the layers keep."""
    for _, module in model.named_modules():
        if isinstance(module, nn.QuantizedEmbedding | nn.Embedding):
            embedded: mx.array = module(mx.zeros((1,), mx.int32))  # not computed: scales may have another type
            return embedded.dtype
    return mx.float32


def vocabulary(model: nn.Module) -> int:
    """How many tokens the model's embedding knows."""
    kinds = (nn.Embedding, nn.QuantizedEmbedding)
    sizes = [int(module.weight.shape[0]) for _, module in model.named_modules() if isinstance(module, kinds)]
    return max(sizes)


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """Parameters in all (a quantized weight counts once) and trainable ones."""
    total = sum(_parameters(module) for _, module in model.named_modules())
    trainable = sum(array.size for array in flat(model.trainable_parameters()).values())
    return total, trainable


def _parameters(module: nn.Module) -> int:
    """Parameters of a module's own, without its children's."""
    if isinstance(module, nn.QuantizedLinear | nn.QuantizedEmbedding):
        return weights(module) + (module.bias.size if "bias" in module else 0)
    return sum(array.size for array in module.values() if isinstance(array, mx.array))


def weights(module: nn.QuantizedLinear | nn.QuantizedEmbedding) -> int:
    """How many numbers a quantized weight holds."""
    return int(module.weight.size) * 32 // int(module.bits)


def _fits_dequantized(model: nn.Module) -> bool:
    """Whether float32 weights would take less than half of the memory that is free now."""
    modules = [module for _, module in model.named_modules()]
    quantized = [module for module in modules if isinstance(module, nn.QuantizedLinear | nn.QuantizedEmbedding)]
    return 4 * sum(map(weights, quantized)) < psutil.virtual_memory().available / 2
