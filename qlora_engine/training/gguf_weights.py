"""Turns the blocks of a GGUF tensor into the arrays of an MLX layer, without losing a bit.

Q4_0, Q4_1 and Q8_0 hold groups of 32 values with a float16 scale (Q4_1: and a minimum). MLX's affine groups
of 32 with float16 scales and biases hold the same numbers: value = scale * integer + bias.

Norms are float32, as llama.cpp writes them, which makes the activations of mlx_lm float32. In float16 those of
SmolLM2-135M reach 22,480 of the 65,504 that it can hold, its logits change by up to 0.9, and a CPU takes 36
times as long.
"""

from __future__ import annotations

from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from qlora_engine.training.gguf import Gguf, Tensor
from qlora_engine.training.gguf_llama import Part, refused

Arrays = dict[str, npt.NDArray[np.generic]]


def read_part(gguf: Gguf, file: BinaryIO, part: Part) -> Arrays:
    """The arrays of one module, named as mlx_lm's llama names them.

    Returns:
        `<module>.weight` alone for a tensor of floats: float32 for a norm, as in the file for a matrix. For a
        quantized matrix (out, in) of b bits: `.weight` uint32 (out, in * b / 32), `.scales` and `.biases`
        float16 (out, in / 32).

    Raises:
        ConversionRefused: it holds values that are not finite, or the file became shorter.
    """
    rows = part.tensor.shape[0]
    arrays = _read(gguf, file, part.tensor)
    if len(part.tensor.shape) == 1:
        arrays = {"weight": arrays["weight"].astype("<f4")}  # a float16 norm would make what follows float16
    order = _rotated_halves(part.heads, rows) if part.heads else None
    result: Arrays = {}
    for suffix, array in arrays.items():
        if array.dtype != np.uint32 and not np.isfinite(array).all():
            raise refused(
                gguf,
                f"The tensor {part.tensor.name} holds {suffix} that are not finite.",
                "Take another file of this model.",
            )
        result[f"{part.module}.{suffix}"] = array if order is None else array[order]
    return result


def read_floats(gguf: Gguf, file: BinaryIO, tensor: Tensor) -> list[float]:
    """The values of a small tensor of floats, flat."""
    return [float(value) for value in _read(gguf, file, tensor)["weight"].ravel()]


def _rotated_halves(heads: int, rows: int) -> npt.NDArray[np.intp]:
    """The rows of a q or k projection in the order that mlx_lm's rotary positions need.

    llama.cpp rotates neighbouring rows (0, 1), (2, 3), …; mlx_lm, as transformers, rotates row i of a head
    with row i + half. llama.cpp's converter interleaved the halves; this puts them apart again.
    """
    return np.arange(rows).reshape(heads, rows // heads // 2, 2).swapaxes(1, 2).ravel()


def _read(gguf: Gguf, file: BinaryIO, tensor: Tensor) -> Arrays:
    file.seek(tensor.offset)
    data = np.fromfile(file, dtype=np.uint8, count=tensor.nbytes)
    if data.size != tensor.nbytes:
        raise refused(gguf, "The file became shorter while it was read.", "Let nothing write it, and try again.")
    if tensor.type == "F32":
        return {"weight": data.view("<f4").reshape(tensor.shape)}
    if tensor.type == "F16":
        return {"weight": data.view("<f2").reshape(tensor.shape)}
    rows, columns = tensor.shape
    groups = columns // 32
    if tensor.type == "Q8_0":  # float16 scale, 32 int8
        blocks = data.reshape(rows, groups, 34)
        scales = _half(blocks, 0)
        # MLX's integers have no sign: flipping the top bit adds 128, and the bias takes it away.
        return _affine(blocks[..., 2:] ^ np.uint8(0x80), scales, _times(scales, -128))
    if tensor.type == "Q4_0":  # float16 scale, 32 integers from -8 to 7 as 0 to 15
        blocks = data.reshape(rows, groups, 18)
        scales = _half(blocks, 0)
        return _affine(_nibbles(blocks[..., 2:]), scales, _times(scales, -8))
    blocks = data.reshape(rows, groups, 20)  # Q4_1: float16 scale, float16 minimum, 32 integers from 0 to 15
    return _affine(_nibbles(blocks[..., 4:]), _half(blocks, 0), _half(blocks, 2))


def _times(scales: npt.NDArray[np.float16], power_of_two: int) -> npt.NDArray[np.float16]:
    """Exact, but for an overflow, which is refused by name as not finite."""
    with np.errstate(over="ignore"):
        return (scales * np.float16(power_of_two)).astype("<f2")


def _half(blocks: npt.NDArray[np.uint8], offset: int) -> npt.NDArray[np.float16]:
    """The float16 at a byte offset of each block: (rows, groups)."""
    return np.ascontiguousarray(blocks[..., offset : offset + 2]).view("<f2")[..., 0]


def _nibbles(packed: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """16 bytes a block: from integers i and i + 16 in a byte to integers 2i and 2i + 1 in a byte."""
    low, high = packed & 15, packed >> 4
    integers = np.concatenate([low, high], axis=-1)
    paired: npt.NDArray[np.uint8] = integers[..., 0::2] | (integers[..., 1::2] << 4)
    return paired


def _affine(packed: npt.NDArray[np.uint8], scales: npt.NDArray[np.float16], biases: npt.NDArray[np.float16]) -> Arrays:
    """The arrays of a quantized layer; MLX takes four bytes of integers as one little-endian uint32."""
    weight = np.ascontiguousarray(packed).reshape(packed.shape[0], -1).view("<u4")
    return {"weight": weight, "scales": scales, "biases": biases}
