// Features divided by their sum, y = x / s with s = sum(x) + eps; y = x where s is 0 or subnormal.
//
//     dx = (g - g.y) / s      where s is 0, dx = g
//
// `inverse` holds 1 / s, and 0 where s is 0.
#pragma once
#include <cmath>
#include <limits>

#include "arguments.h"

template <class T>
struct SumNorm {
  Index batch, heads, tokens, size, threads;
  Sequence<T> from, y, to;  // x, nothing and y; backward g, y and dx
  T* inverse;               // [B, H, T]
  T eps;

  explicit SumNorm(Arguments a)
      : batch(a.number()), heads(a.number()), tokens(a.number()), size(a.number()),
        threads(a.number()), from(a.sequence<T>()), y(a.sequence<T>()), to(a.sequence<T>()),
        inverse(a.pointer<T>()), eps(T(a.real())) {}

  void forward(const T* x, T* out, T& inverse) const {
    T sum = 0;
#pragma omp simd reduction(+ : sum)
    for (Index i = 0; i < size; ++i) sum += x[i];
    sum += eps;
    // The inverse of what is no normal number is infinite, and so would be its part of a gradient.
    const bool vanishes = std::abs(sum) < std::numeric_limits<T>::min();
    inverse = vanishes ? T(0) : 1 / sum;
    const T factor = vanishes ? T(1) : inverse;
#pragma omp simd
    for (Index i = 0; i < size; ++i) out[i] = factor * x[i];
  }

  void backward(const T* g, const T* y, T inverse, T* dx) const {
    T dot = 0;
#pragma omp simd reduction(+ : dot)
    for (Index i = 0; i < size; ++i) dot += g[i] * y[i];
    const T factor = inverse == 0 ? T(1) : inverse, less = inverse == 0 ? T(0) : dot;
#pragma omp simd
    for (Index i = 0; i < size; ++i) dx[i] = factor * (g[i] - less);
  }

  void run() const {
    const Index rows = batch * heads * tokens, used = rows * size < 32768 ? 1 : threads;
#pragma omp parallel for schedule(static) num_threads(used)
    for (Index i = 0; i < rows; ++i) {
      const Index n = i / tokens, b = n / heads, h = n % heads, t = i % tokens;
      const T* in = from.at(b, h) + t * from.token;
      T* out = to.at(b, h) + t * to.token;
      if (y.data) {
        backward(in, y.at(b, h) + t * y.token, inverse[i], out);
      } else {
        forward(in, out, inverse[i]);
      }
    }
  }
};
