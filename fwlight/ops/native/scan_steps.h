// What recurrent cores do with one fast matrix at one token. Matrices are row-major [rows, columns],
// rows as many as a key has numbers and columns padded to PAD; vectors of columns are padded with
// zeros, and so is what lies beyond a row's end.
#pragma once
#include <algorithm>
#include <cmath>

#include "exponentials.h"
#include "shape.h"

inline Index padded(Index n) { return (n + PAD - 1) / PAD * PAD; }

// y = M^T x
template <class T>
FW_INLINE void read_rows(const T* M, Index rows, Index columns, const T* x, T* y) {
  using vec = typename Simd<T>::vec;
  constexpr int W = Simd<T>::width, V = PAD / W;
  for (Index j = 0; j < columns; j += PAD) {
    vec even[V], odd[V];
    FW_UNROLL for (int l = 0; l < V; ++l) even[l] = odd[l] = vec{};
    const T* m = M + j;
    Index i = 0;
    for (; i + 2 <= rows; i += 2, m += 2 * columns) {
      const vec a = x[i] - vec{}, b = x[i + 1] - vec{};
      FW_UNROLL for (int l = 0; l < V; ++l) {
        even[l] += a * load(m + l * W);
        odd[l] += b * load(m + columns + l * W);
      }
    }
    if (i < rows) {
      FW_UNROLL for (int l = 0; l < V; ++l) even[l] += (x[i] - vec{}) * load(m + l * W);
    }
    FW_UNROLL for (int l = 0; l < V; ++l) store(y + j + l * W, even[l] + odd[l]);
  }
}

// y_i += scale sum_j M_ij b_j
template <class T>
FW_INLINE void add_columns(const T* M, Index rows, Index columns, const T* b, T scale, T* y) {
  using vec = typename Simd<T>::vec;
  constexpr int W = Simd<T>::width;
  for (Index i = 0; i < rows; ++i, M += columns) {
    vec sum{};
    for (Index j = 0; j < columns; j += W) sum += load(M + j) * load(b + j);
    T total = 0;
    FW_UNROLL for (int l = 0; l < W; ++l) total += sum[l];
    y[i] += scale * total;
  }
}

// M += scale a (x) b
template <class T>
FW_INLINE void add_outer(T* M, Index rows, Index columns, const T* a, const T* b, T scale) {
  using vec = typename Simd<T>::vec;
  constexpr int W = Simd<T>::width;
  for (Index i = 0; i < rows; ++i, M += columns) {
    const vec x = scale * a[i] - vec{};
    for (Index j = 0; j < columns; j += W) store(M + j, load(M + j) + x * load(b + j));
  }
}

template <class T>
FW_INLINE T dot(const T* a, const T* b, Index n) {
  T sum = 0;
  for (Index i = 0; i < n; ++i) sum += a[i] * b[i];
  return sum;
}

template <class T>
FW_INLINE void fetch(const T* from, Index n, T* to, Index all) {
  for (Index i = 0; i < n; ++i) to[i] = from[i];
  for (Index i = n; i < all; ++i) to[i] = T(0);
}

template <class T>
FW_INLINE void exponentials(T* x, Index all) {
  for (Index i = 0; i < all; i += Simd<T>::width) store(x + i, exponential<T>(load(x + i)));
}

// y = exp(x - max) / (sum + eps), for n numbers; zeros after them.
template <class T>
FW_INLINE void softmax(const T* x, Index n, Index all, T eps, T* y) {
  T largest = x[0], sum = eps;
  for (Index i = 1; i < n; ++i) largest = std::max(largest, x[i]);
  for (Index i = 0; i < n; ++i) y[i] = x[i] - largest;
  for (Index i = n; i < all; ++i) y[i] = T(0);
  exponentials(y, all);
  for (Index i = 0; i < n; ++i) sum += y[i];
  for (Index i = 0; i < n; ++i) y[i] /= sum;
  for (Index i = n; i < all; ++i) y[i] = T(0);
}

// From the gradient of y = softmax(x) that of x; they may be one.
template <class T>
FW_INLINE void softmax_backward(const T* y, const T* dy, Index n, Index all, T* dx) {
  const T less = dot(y, dy, n);
  for (Index i = 0; i < n; ++i) dx[i] = y[i] * (dy[i] - less);
  for (Index i = n; i < all; ++i) dx[i] = T(0);
}

template <class T>
FW_INLINE void sigmoids(T* x, Index n, Index all) {
  for (Index i = 0; i < n; ++i) x[i] = -x[i];
  for (Index i = n; i < all; ++i) x[i] = T(0);
  exponentials(x, all);
  for (Index i = 0; i < n; ++i) x[i] = 1 / (1 + x[i]);
  for (Index i = n; i < all; ++i) x[i] = T(0);
}

template <class T>
FW_INLINE void hyperbolic_tangents(const T* x, Index n, Index all, T* y) {
  for (Index i = 0; i < n; ++i) y[i] = 2 * x[i];
  for (Index i = n; i < all; ++i) y[i] = T(0);
  exponentials(y, all);
  for (Index i = 0; i < n; ++i) y[i] = 1 - 2 / (y[i] + 1);
  for (Index i = n; i < all; ++i) y[i] = T(0);
}

// What a delta write leaves out, v - M^T k.
template <class T>
FW_INLINE void missing(const T* M, Index d, Index columns, const T* k, const T* v, T* x) {
  read_rows(M, d, columns, k, x);
  for (Index j = 0; j < columns; ++j) x[j] = v[j] - x[j];
}

// M += k (x) b (v - M^T k); `x` is scratch.
template <class T>
FW_INLINE void delta_write(T* M, Index d, Index columns, const T* k, const T* v, T b, T* x) {
  missing(M, d, columns, k, v, x);
  add_outer(M, d, columns, k, x, b);
}

// Of a delta write into M, from the gradient dM of what it left: the gradients of v and b, what is
// added to that of k, and in dM that of M.
template <class T>
FW_INLINE void delta_write_backward(
    const T* M, T* dM, Index d, Index columns, const T* k, const T* v, T b, T* x, T* dv, T* dk,
    T& db) {
  missing(M, d, columns, k, v, x);
  add_columns(dM, d, columns, x, b, dk);
  read_rows(dM, d, columns, k, dv);
  db = dot(dv, x, columns);
  for (Index j = 0; j < columns; ++j) dv[j] *= b;
  add_columns(M, d, columns, dv, T(-1), dk);
  add_outer(dM, d, columns, k, dv, T(-1));
}
