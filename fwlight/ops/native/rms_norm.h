// Rows over their root mean square, times a gain: y_i = r x_i w_i, r = 1 / sqrt(mean(x^2) + e).
//
//     dx_i = r (g_i w_i - r^2 c x_i)      c = mean(g w x)      dw_i = sum over rows of r g_i x_i
//
// `factor` holds r. Rows are cut into as many parts whatever the number of threads is, and the parts'
// sums added in their order, so that this number changes no bit.
#pragma once
#include <cmath>

#include "arguments.h"

template <class T>
struct RmsNorm {
  static constexpr Index PARTS = 16;

  Index batch, heads, tokens, size, threads;
  Sequence<T> x, g, to;  // of g there is none in the forward pass
  const T* weight;       // [size]
  T *factor, *dweight;   // [B, H, T], [size]
  T eps;

  explicit RmsNorm(Arguments a)
      : batch(a.number()), heads(a.number()), tokens(a.number()), size(a.number()),
        threads(a.number()), x(a.sequence<T>()), g(a.sequence<T>()), to(a.sequence<T>()),
        weight(a.pointer<T>()), factor(a.pointer<T>()), dweight(a.pointer<T>()),
        eps(T(a.real())) {}

  void forward(const T* x, T* y, T& factor) const {
    T sum = 0;
#pragma omp simd reduction(+ : sum)
    for (Index i = 0; i < size; ++i) sum += x[i] * x[i];
    const T r = 1 / std::sqrt(sum / T(size) + eps);
    factor = r;
#pragma omp simd
    for (Index i = 0; i < size; ++i) y[i] = r * x[i] * weight[i];
  }

  void backward(
      const T* __restrict__ x, const T* __restrict__ g, T r, T* __restrict__ dx,
      T* __restrict__ dw) const {
    T sum = 0;
#pragma omp simd reduction(+ : sum)
    for (Index i = 0; i < size; ++i) sum += g[i] * weight[i] * x[i];
    const T less = r * r * sum / T(size);
#pragma omp simd
    for (Index i = 0; i < size; ++i) {
      dx[i] = r * (g[i] * weight[i] - less * x[i]);
      dw[i] += r * g[i] * x[i];
    }
  }

  void run() const {
    const Index rows = batch * heads * tokens, used = rows * size < 32768 ? 1 : threads;
    const Scratch<T> scratch(PARTS * size);
#pragma omp parallel for schedule(static) num_threads(used)
    for (Index part = 0; part < PARTS; ++part) {
      T* dw = scratch.get() + part * size;
      if (g.data) std::memset(dw, 0, size * sizeof(T));
      for (Index i = rows * part / PARTS; i < rows * (part + 1) / PARTS; ++i) {
        const Index n = i / tokens, b = n / heads, h = n % heads, t = i % tokens;
        const T* from = x.at(b, h) + t * x.token;
        T* out = to.at(b, h) + t * to.token;
        if (g.data) {
          backward(from, g.at(b, h) + t * g.token, factor[i], out, dw);
        } else {
          forward(from, out, factor[i]);
        }
      }
    }
    if (!g.data) return;
    for (Index i = 0; i < size; ++i) {
      T sum = 0;
      for (Index part = 0; part < PARTS; ++part) sum += scratch.get()[part * size + i];
      dweight[i] = sum;
    }
  }
};
