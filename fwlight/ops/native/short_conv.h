// The causal depthwise convolution y_t = sum_i w_i x_{t-r+i}, i = 0 ... r, of channels side by side;
// inputs before the first are those of a tail of r, or zero.
//
//     dx_s = sum_j w_{r-j} g_{s+j}      dw_i = sum_t g_t x_{t-r+i}      j = 0 ... r, t = 0 ... T-1
//
// Worked on are as many channels at once as the first cache holds rows of.
#pragma once
#include "arguments.h"

template <class T>
struct ShortConv {
  static constexpr Index BLOCK = 64;

  struct Rows {
    T* data;
    Index batch, token;  // strides
    explicit Rows(Arguments& a) : data(a.pointer<T>()), batch(a.number()), token(a.number()) {}
    T* at(Index b, Index t) const { return data + b * batch + t * token; }
  };

  Index batch, tokens, channels, width, threads;
  Rows x, tail;  // of a tail there may be none
  const T* weight;  // [channels, width]
  Rows y;           // forward the result, backward its gradient
  T *dx, *dtail, *dweight;  // contiguous; null: forward

  explicit ShortConv(Arguments a)
      : batch(a.number()), tokens(a.number()), channels(a.number()), width(a.number()),
        threads(a.number()), x(a), tail(a), weight(a.pointer<T>()), y(a), dx(a.pointer<T>()),
        dtail(a.pointer<T>()), dweight(a.pointer<T>()) {}

  // What the convolution reads at place t, which is before the first token if it is negative.
  FW_INLINE const T* input(Index b, Index t, const T* zeros, Index first) const {
    if (t >= 0) return x.at(b, t) + first;
    return tail.data ? tail.at(b, t + width - 1) + first : zeros;
  }

  // to = sum_i w_i rows_i, for WIDTH rows, or as many as there are if that is 0.
  template <int WIDTH>
  FW_INLINE void combine(const T* const* rows, const T* w, T* __restrict__ to, Index n) const {
    if constexpr (WIDTH == 4) {
      const T *a = rows[0], *b = rows[1], *c = rows[2], *d = rows[3];
#pragma omp simd
      for (Index i = 0; i < n; ++i) {
        to[i] = w[i] * a[i] + w[BLOCK + i] * b[i] + w[2 * BLOCK + i] * c[i] + w[3 * BLOCK + i] * d[i];
      }
    } else {
      for (Index i = 0; i < n; ++i) to[i] = w[i] * rows[0][i];
      for (Index l = 1; l < width; ++l) {
        const T *from = rows[l], *factor = w + l * BLOCK;
#pragma omp simd
        for (Index i = 0; i < n; ++i) to[i] += factor[i] * from[i];
      }
    }
  }

  // `w`: the block's weights by place, behind them zeros and room for as many rows again.
  template <int WIDTH>
  void forward(Index b, Index first, Index n, const T* w, const T* zeros, const T** rows) const {
    for (Index t = 0; t < tokens; ++t) {
      for (Index i = 0; i < width; ++i) rows[i] = input(b, t - width + 1 + i, zeros, first);
      combine<WIDTH>(rows, w, y.at(b, t) + first, n);
    }
  }

  template <int WIDTH>
  void backward(
      Index b, Index first, Index n, const T* w, const T* zeros, const T** rows, T* sums) const {
    const Index reach = width - 1;
    for (Index s = dtail ? -reach : 0; s < tokens; ++s) {
      for (Index j = 0; j < width; ++j) {  // in the order of the weights: the last token first
        const Index t = s + reach - j;
        rows[j] = t >= 0 && t < tokens ? y.at(b, t) + first : zeros;
      }
      T* to = s < 0 ? dtail + (b * reach + s + reach) * channels : dx + (b * tokens + s) * channels;
      combine<WIDTH>(rows, w, to + first, n);
    }
    for (Index i = 0; i < width * BLOCK; ++i) sums[i] = 0;
    for (Index t = 0; t < tokens; ++t) {
      const T* g = y.at(b, t) + first;
      for (Index l = 0; l < width; ++l) {
        const T* from = input(b, t - reach + l, zeros, first);
        T* __restrict__ sum = sums + l * BLOCK;
#pragma omp simd
        for (Index i = 0; i < n; ++i) sum[i] += g[i] * from[i];
      }
    }
    for (Index i = 0; i < n; ++i) {
      for (Index l = 0; l < width; ++l) dweight[(first + i) * width + l] += sums[l * BLOCK + i];
    }
  }

  template <int WIDTH>
  void block(Index part, T* own, const T** rows) const {
    const Index first = part * BLOCK, n = std::min(BLOCK, channels - first);
    T *w = own, *zeros = w + width * BLOCK, *sums = zeros + BLOCK;
    for (Index l = 0; l < width; ++l) {
      for (Index i = 0; i < n; ++i) w[l * BLOCK + i] = weight[(first + i) * width + l];
    }
    for (Index i = 0; i < BLOCK; ++i) zeros[i] = 0;
    if (dx) {
      for (Index i = first * width; i < (first + n) * width; ++i) dweight[i] = 0;
    }
    for (Index b = 0; b < batch; ++b) {
      if (dx) {
        backward<WIDTH>(b, first, n, w, zeros, rows, sums);
      } else {
        forward<WIDTH>(b, first, n, w, zeros, rows);
      }
    }
  }

  void run() const {
    const Index parts = (channels + BLOCK - 1) / BLOCK, numbers = (2 * width + 1) * BLOCK;
    const Index used = batch * tokens * channels < 32768 ? 1 : threads;
    const Scratch<T> scratch(used * numbers);
    const Scratch<const T*> pointers(used * width);
#pragma omp parallel for schedule(static) num_threads(used)
    for (Index part = 0; part < parts; ++part) {
      T* own = scratch.get() + omp_get_thread_num() * numbers;
      const T** rows = pointers.get() + omp_get_thread_num() * width;
      if (width == 4) {
        block<4>(part, own, rows);
      } else {
        block<0>(part, own, rows);
      }
    }
  }
};
