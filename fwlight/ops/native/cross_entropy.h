// The cross-entropy of a row x of logits and a target c, smoothed by e (Szegedy et al. 2016):
//
//     loss = log sum_i exp(x_i) - (1 - e) x_c - e mean(x)
//     dx   = g (softmax(x) - (1 - e) [i = c] - e / n)
//
// A row is read twice and none is written but dx; `kept` holds max(x) and 1 / sum_i exp(x_i - max).
// A target below 0 counts for nothing; one that is no place of the row is not looked for.
#pragma once
#include <cmath>
#include <limits>

#include "arguments.h"
#include "exponentials.h"

template <class T>
struct CrossEntropy {
  using vec = typename Simd<T>::vec;
  static constexpr int W = Simd<T>::width;

  Index rows, size, threads;
  const T* x;              // [rows, size]
  const Index* target;     // [rows]
  T *kept, *loss;          // [rows, 2], [rows]
  const T* g;              // [rows]; null: forward
  Index g_stride;
  T *dx, smoothing;        // [rows, size]

  explicit CrossEntropy(Arguments a)
      : rows(a.number()), size(a.number()), threads(a.number()), x(a.pointer<T>()),
        target(a.pointer<Index>()), kept(a.pointer<T>()), loss(a.pointer<T>()), g(a.pointer<T>()),
        g_stride(a.number()), dx(a.pointer<T>()), smoothing(T(a.real())) {}

  // The last numbers of a row, -inf behind them.
  FW_INLINE vec rest(const T* row) const {
    T last[W];
    for (int i = 0; i < W; ++i) last[i] = -std::numeric_limits<T>::infinity();
    std::memcpy(last, row + size / W * W, size % W * sizeof(T));
    return load(last);
  }

  static FW_INLINE T sum_of(vec a) {
    T sum = 0;
    for (int i = 0; i < W; ++i) sum += a[i];
    return sum;
  }

  void forward(const T* row, Index c, T* kept, T& loss) const {
    constexpr int N = 4;  // vectors at once
    const vec zero{};
    vec high[N], sums[N], all[N];
    for (int j = 0; j < N; ++j) high[j] = zero - std::numeric_limits<T>::infinity();
    for (int j = 0; j < N; ++j) sums[j] = all[j] = zero;
    Index i = 0;
    for (; i + N * W <= size; i += N * W) {
      FW_UNROLL for (int j = 0; j < N; ++j) {
        const vec a = load(row + i + j * W);
        high[j] = a > high[j] ? a : high[j];
        all[j] += a;
      }
    }
    for (; i + W <= size; i += W) {
      const vec a = load(row + i);
      high[0] = a > high[0] ? a : high[0];
      all[0] += a;
    }
    T top = -std::numeric_limits<T>::infinity(), total = 0;
    for (int j = 0; j < N; ++j) {
      for (int l = 0; l < W; ++l) top = high[j][l] > top ? high[j][l] : top;
      total += sum_of(all[j]);
    }
    for (Index l = i; l < size; ++l) {
      top = row[l] > top ? row[l] : top;
      total += row[l];
    }
    const vec most = zero + top;
    for (i = 0; i + N * W <= size; i += N * W) {
      FW_UNROLL for (int j = 0; j < N; ++j) {
        sums[j] += exponential<T>(load(row + i + j * W) - most);
      }
    }
    for (; i + W <= size; i += W) sums[0] += exponential<T>(load(row + i) - most);
    if (i < size) sums[0] += exponential<T>(rest(row) - most);
    T sum = 0;
    for (int j = 0; j < N; ++j) sum += sum_of(sums[j]);
    kept[0] = top;
    kept[1] = 1 / sum;
    T of_target = top - row[c];
    if (smoothing != 0) of_target += smoothing * (row[c] - total / T(size));
    loss = std::log(sum) + of_target;
  }

  void backward(const T* row, Index c, const T* kept, T g, T* dx) const {
    const vec zero{}, most = zero + kept[0], factor = zero + g * kept[1];
    const vec less = zero + g * smoothing / T(size);
    Index i = 0;
    for (; i + W <= size; i += W) {
      store(dx + i, factor * exponential<T>(load(row + i) - most) - less);
    }
    if (i < size) {
      const vec last = factor * exponential<T>(rest(row) - most) - less;
      std::memcpy(dx + i, &last, size % W * sizeof(T));
    }
    dx[c] -= g * (1 - smoothing);
  }

  // Returns whether all targets are in the rows.
  bool run() const {
    for (Index i = 0; i < rows; ++i) {
      if (target[i] >= size) return false;
    }
    const Index used = rows * size < 32768 ? 1 : threads;
#pragma omp parallel for schedule(static) num_threads(used)
    for (Index i = 0; i < rows; ++i) {
      const Index c = target[i];
      if (g == nullptr) {
        if (c < 0) {
          loss[i] = 0;
        } else {
          forward(x + i * size, c, kept + 2 * i, loss[i]);
        }
      } else if (c < 0) {
        std::memset(dx + i * size, 0, size * sizeof(T));
      } else {
        backward(x + i * size, c, kept + 2 * i, g[i * g_stride], dx + i * size);
      }
    }
    return true;
  }
};
