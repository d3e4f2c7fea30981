// Pairs (x_i, x_{i+d/2}) of every token turned by the token's angles, of queries and of keys.
#pragma once
#include "arguments.h"

template <class T>
struct Rotary {
  Index batch, heads, tokens, half, threads;
  Sequence<T> x[2], to[2];
  const T *cosine, *sine;  // [T, d / 2]
  T sign;                  // -1 turns back

  explicit Rotary(Arguments a)
      : batch(a.number()), heads(a.number()), tokens(a.number()), half(a.number()),
        threads(a.number()), x{a.sequence<T>(), a.sequence<T>()},
        to{a.sequence<T>(), a.sequence<T>()}, cosine(a.pointer<T>()), sine(a.pointer<T>()),
        sign(T(a.number())) {}

  // Tokens outside heads, which is how projections leave them in memory.
  void run() const {
    const Index rows = batch * tokens, used = rows * heads * half < 8192 ? 1 : threads;
#pragma omp parallel for schedule(static) num_threads(used)
    for (Index i = 0; i < rows; ++i) {
      const Index b = i / tokens, t = i % tokens;
      const T *c = cosine + t * half, *s = sine + t * half;
      for (int which = 0; which < 2; ++which) {
        for (Index h = 0; h < heads; ++h) {
          const T* from = x[which].at(b, h) + t * x[which].token;
          turn(from, c, s, to[which].at(b, h) + t * to[which].token);
        }
      }
    }
  }

  FW_INLINE void turn(const T* from, const T* c, const T* s, T* __restrict__ out) const {
#pragma omp simd
    for (Index l = 0; l < half; ++l) {
      const T by = sign * s[l], one = from[l], two = from[half + l];
      out[l] = one * c[l] - two * by;
      out[half + l] = one * by + two * c[l];
    }
  }
};
