// The FWM rule, chunk by chunk: the projection is a scalar, so that the delta rule's chunkwise form
// carries over. Letters as in shape.h, small for one token: x_i = v_i - y_i, u_i = b_i x_i.
//
// Let a_i be what is left, after token i of a chunk, of the state S before the chunk, and a_ij of
// the write of token j <= i: products of 1 / n, which never exceed 1. Then
//
//     S_i = a_i S + sum_j a_ij k_j (x) u_j
//     y_i = S_{i-1}^T k_i = a_{i-1} S^T k_i + sum_{j<i} a_{i-1,j} (k_j.k_i) u_j
//     |S'_i|^2 = |S_{i-1}|^2 + 2 u_i.y_i + |u_i|^2 |k_i|^2
//
// The square is measured afresh at every chunk, and where it shrinks so much that the sum above has
// lost its digits; exactly zero it is for an empty memory, whose first write is not projected unless
// that is asked for.
//
// Backward, G_i is the gradient of S_i with the read of token i in it, r_i = <G_i, S_i> and
// dS'_i = (G_i - r_i S_i) / n_i where token i is projected. As |S_i| = 1 there, <dS'_i, S'_i> = 0,
// which makes r a scalar recurrence too. With D = dS at the chunk's end and dS'_i = W_i - s_i S'_i,
//
//     s_i = (s_{i+1} + r_i) / n_i^2 if projected, else s_{i+1}
//     W_i = a_Ci D + sum_{j>=i} a_ji q_j (x) do_j + sum_{j>i} a_{j-1,i} k_j (x) f_j
//     du_i = dS'_i^T k_i = W_i^T k_i - s_i (y_i + |k_i|^2 u_i)
//     e_i = -b_i du_i      f_i = e_i - s_i u_i      dv_i = -e_i      db_i = du_i.x_i
//     r_{i-1} = <dS'_i, S'_i> - u_i.du_i + e_i.y_i + do_{i-1}.o_{i-1}
//     dk_i = W_i u_i + S_{i-1} f_i - s_i |u_i|^2 k_i      dq_i = S_i do_i
//     dS = a_C D + sum_j a_j q_j (x) do_j + sum_j a_{j-1} k_j (x) f_j - s_1 S
#pragma once
#include <cmath>

#include "shape.h"

// Row i holds a and a_j before token i, so row i + 1 after it; a_j = 0 for writes yet to come.
template <class T>
struct Remains {
  T state[CHUNK + 1], write[CHUNK + 1][CHUNK];

  Remains() : state{T(1)}, write{} {}
  FW_INLINE void pass(Index i, T n) {
    state[i + 1] = state[i] / n;
    for (Index j = 0; j < CHUNK; ++j) write[i + 1][j] = (j == i ? T(1) : write[i][j]) / n;
  }
};

// `numbers` is a multiple of PAD here and below.
template <class T>
FW_INLINE T dot(const T* a, const T* b, Index numbers) {
  typename Simd<T>::vec sums{};
  for (Index i = 0; i < numbers; i += Simd<T>::width) sums += load(a + i) * load(b + i);
  T sum = 0;
  FW_UNROLL for (int l = 0; l < Simd<T>::width; ++l) sum += sums[l];
  return sum;
}

// to = c x + sum_j c_j X[j, :] over the rows first <= j < last; to and x may be one.
template <class T>
FW_INLINE void combine(
    T* to, T c, const T* x, const T* c_j, const T* X, Index first, Index last, Index numbers) {
  for (Index v = 0; v < numbers; v += Simd<T>::width) {
    auto sum = c * load(x + v);
    for (Index j = first; j < last; ++j) sum += c_j[j] * load(X + j * numbers + v);
    store(to + v, sum);
  }
}

template <class T>
FW_INLINE void scale_rows(T* X, const T* c, Index numbers) {
  for (Index i = 0; i < CHUNK; ++i) {
    for (Index v = 0; v < numbers; ++v) X[i * numbers + v] *= c[i];
  }
}

// |c S + sum_{j<count} c_j k_j (x) u_j|^2, formed row by row.
template <class T>
inline T measure(
    const Shape& s, T c, const T* S, const T* c_j, const T* K, const T* U, Index count, T* row) {
  T sum = 0;
  for (Index i = 0; i < s.keys; ++i) {
    T weights[CHUNK];
    for (Index j = 0; j < count; ++j) weights[j] = c_j[j] * K[j * s.keys_pad + i];
    combine(row, c, S + i * s.values_pad, weights, U, 0, count, s.values_pad);
    sum += dot(row, row, s.values_pad);
  }
  return sum;
}
