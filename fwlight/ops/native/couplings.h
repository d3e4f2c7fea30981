// What the tokens of a chunk take away of each other's writes: A = strict_tril(E K^T), times L where
// there are decays.
//
// Under one key of length 1 with b = 2 every write turns the sign of what is stored, and nothing of
// an error decays. In float32 A would be off by the same part of 2^-24 in every chunk, which adds
// up as the rounding of states does not. So where a write may turn a sign A is computed in float64,
// and what float32 leaves of it is kept beside it.
#pragma once
#include "panels.h"

template <class T>
struct Couplings {
  T A[BLOCK], rest[BLOCK];  // A[i, j] for j < i, and what is missing of it where that is computed
};

// Whether what float32 leaves of A matters, for the strengths b of a chunk. Both passes ask.
template <class T>
FW_INLINE bool turns_signs(const T* b) {
  if (sizeof(T) == sizeof(double)) return false;
  bool found = false;
  for (int i = 0; i < CHUNK; ++i) found |= b[i] > T(1);
  return found;
}

// Call f(tile, i, j) for tiles that cover the lower triangle.
template <int I = 0, class F>
FW_INLINE void for_lower_tiles(F f) {
  constexpr int ROWS = 4, W = Simd<double>::width;
  constexpr int VECS = std::max(1, 8 / W);
  FW_UNROLL for (int j = 0; j < I + ROWS; j += VECS * W) {
    Tile<double, ROWS, VECS> tile;
    f(tile, I, j);
  }
  if constexpr (I + ROWS < CHUNK) for_lower_tiles<I + ROWS>(f);
}

template <class T>
FW_INLINE const double* as_doubles(const T* from, double* to, Index n) {
  for (Index i = 0; i < n; ++i) to[i] = from[i];
  return to;
}

// Both operands are transposed [keys_pad, C]; `doubles` is memory for as many of both. Above the
// diagonal of `kept` stands the transpose of A, which the backward pass reads; what is missing of it
// comes after that matrix, at [i, j].
template <class T>
FW_APART void couple_exactly(
    const T* ET, const T* KT, const T* L, Index keys_pad, double* doubles, Couplings<T>& found,
    T* kept) {
  using wide = typename Simd<double>::vec;
  constexpr int W = Simd<double>::width;
  typedef T narrow __attribute__((vector_size(W * sizeof(T))));
  const double* K = as_doubles(KT, doubles, keys_pad * CHUNK);
  const double* E = ET == KT ? K : as_doubles(ET, doubles + keys_pad * CHUNK, keys_pad * CHUNK);
  for_lower_tiles([&](auto& tile, int i, int j) FW_ALWAYS {
    tile.zero();
    tile.add_columns_of(E + i, CHUNK, K + j, CHUNK, keys_pad);
    FW_UNROLL for (int m = 0; m < tile.rows; ++m) {
      FW_UNROLL for (int v = 0; v < tile.vecs; ++v) {
        wide x = tile.c[m][v];
        const Index at = (i + m) * CHUNK + j + v * W;
        if (L) {
          narrow pairs;
          std::memcpy(&pairs, L + at, sizeof pairs);
          x *= __builtin_convertvector(pairs, wide);
        }
        const narrow rounded = __builtin_convertvector(x, narrow);
        std::memcpy(found.A + at, &rounded, sizeof rounded);
        const narrow rest =
            __builtin_convertvector(x - __builtin_convertvector(rounded, wide), narrow);
        std::memcpy(found.rest + at, &rest, sizeof rest);
        if (kept) std::memcpy(kept + BLOCK + at, &rest, sizeof rest);
      }
    }
  });
  if (kept) transpose_block(found.A, kept);
}

// The same without what is missing, in the precision of T; E is not transposed.
template <class T>
FW_INLINE void couple(const T* E, const T* KT, const T* L, Index keys_pad, T* A, T* kept) {
  for_rows<T>(Panels<1>{}, CHUNK, FW_BLOCK {
    block.zero();
    block.template add<true>(E + i * PAD, BLOCK, KT, 0, keys_pad);
    if (L) {
      block.each([&](auto& x, int m, int, int v) FW_ALWAYS { x *= load(L + (i + m) * PAD + v); });
    }
    block.write(A + i * PAD, PAD, 0);
  });
  if (kept) transpose_block(A, kept);
}
