// Pairs (x_i, x_{i+d/2}) of every token turned by the token's angles.
#pragma once
#include "arguments.h"

template <class T>
struct Rotary {
  Index batch, heads, tokens, half, threads;
  Sequence<T> x, to;
  const T *cosine, *sine;  // [T, d / 2]
  T sign;                  // -1 turns back

  explicit Rotary(Arguments a)
      : batch(a.number()), heads(a.number()), tokens(a.number()), half(a.number()),
        threads(a.number()), x(a.sequence<T>()), to(a.sequence<T>()), cosine(a.pointer<T>()),
        sine(a.pointer<T>()), sign(T(a.number())) {}

  void run() const {
    const Index rows = batch * heads * tokens, used = rows * half < 16384 ? 1 : threads;
#pragma omp parallel for schedule(static) num_threads(used)
    for (Index i = 0; i < rows; ++i) {
      const Index n = i / tokens, b = n / heads, h = n % heads, t = i % tokens;
      const T *from = x.at(b, h) + t * x.token, *c = cosine + t * half, *s = sine + t * half;
      T* __restrict__ out = to.at(b, h) + t * to.token;
#pragma omp simd
      for (Index l = 0; l < half; ++l) {
        const T turn = sign * s[l], one = from[l], two = from[half + l];
        out[l] = one * c[l] - two * turn;
        out[half + l] = one * turn + two * c[l];
      }
    }
  }
};
