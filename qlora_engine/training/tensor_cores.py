"""What kernels of adapters are made of in CUDA: the product of a warp, numbers by the word, and where a layer's lie."""

from __future__ import annotations

from qlora_engine.training.cuda import HEADER

# A warp's product: d (16 × 8, float32) += a (16 × 16) @ b (16 × 8), as the manual of PTX has it for mma.m16n8k16.
# With h for a lane's number / 4 and l for the rest, the lane holds
#   of d: rows h and h + 8, columns 2 l and 2 l + 1
#   of a: a0 of row h and a1 of row h + 8 columns 2 l and 2 l + 1; a2 and a3 of these rows columns 2 l + 8 and 2 l + 9
#   of b: of column h, b0 the rows 2 l and 2 l + 1, b1 the rows 2 l + 8 and 2 l + 9.
# Which term of the sum a column of a stands for is ours to say, and so is which column of the result one of b does:
# each lane takes those that lie side by side.
MULTIPLY = """
namespace mlx::core::cu {

template <typename T>
__device__ void multiply_add(
    float (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1);

#define QLORAD_MULTIPLY_ADD(TYPE, NAME) \\
  template <> \\
  __device__ inline void multiply_add<TYPE>( \\
      float (&d)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1) { \\
    asm volatile( \\
        "mma.sync.aligned.m16n8k16.row.col.f32." NAME "." NAME ".f32 " \\
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};" \\
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) \\
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1)); \\
  }

QLORAD_MULTIPLY_ADD(__nv_bfloat16, "bf16")
QLORAD_MULTIPLY_ADD(__half, "f16")

}
"""
WORDS = """
namespace mlx::core::cu {

// Numbers of 16 bits, two a word.
template <int N>
struct alignas(4 * N) Words {
  uint32_t words[N];
};

// Those that begin at `from`, or zeros.
template <int N, typename T>
__device__ Words<N> read_words(const T* from, bool there) {
  return there ? *reinterpret_cast<const Words<N>*>(from) : Words<N>{};
}

template <typename T>
__device__ uint32_t bits(const T& number) {
  return *reinterpret_cast<const uint16_t*>(&number);
}

template <typename T>
__device__ uint32_t word(float first, float second) {
  return bits(static_cast<T>(first)) | (bits(static_cast<T>(second)) << 16);
}

// The first, or the second numbers of two words.
__device__ inline uint32_t firsts(uint32_t one, uint32_t other) {
  return (one & 0xffff) | (other << 16);
}

__device__ inline uint32_t seconds(uint32_t one, uint32_t other) {
  return (one >> 16) | (other & 0xffff0000);
}

}
"""
# Most layers are by themselves, and of those nothing is read before the numbers.
PLACE = """
namespace mlx::core::cu {

// Where the columns of a layer begin, or of those after the last.
__device__ inline uint32_t begin_of(uint32_t member, const uint32_t* layout, const Shape& shape, uint32_t all) {
  return member == 0 ? 0 : member == shape[0] ? all : layout[member * shape[1]];
}

// The layer that has a column.
__device__ inline uint32_t member_of(uint32_t column, const uint32_t* layout, const Shape& shape, uint32_t all) {
  uint32_t member = 0;
  while (begin_of(member + 1, layout, shape, all) <= column) ++member;
  return member;
}

}
"""

TENSOR_CORES = HEADER + WORDS + MULTIPLY + PLACE
