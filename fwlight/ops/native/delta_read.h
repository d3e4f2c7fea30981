// One read o = S_T^T q of the delta rule's memory without the memory; the formulas are in
// fwlight/ops/delta_read.py. Backward, l being the gradient of q_t, from that of q_0 on:
//
//     q_t = q_{t-1} + a_t k_t      g = da_t - l.k_t      db_t = (k_t.q_t) g
//     dk_t = b_t g q_t - a_t l     l = l + b_t g k_t
#pragma once
#include "arguments.h"

template <class T>
struct DeltaRead {
  Index batch, heads, tokens, size, threads;
  Sequence<T> k, beta, a, da, dk, dbeta;  // of the last three there are none in the forward pass
  T *q, *rest;  // [B, H, K]: q_T, q_0; backward: the gradient of q_0 becomes that of q_T; q_0

  explicit DeltaRead(Arguments p)
      : batch(p.number()), heads(p.number()), tokens(p.number()), size(p.number()),
        threads(p.number()), k(p.sequence<T>()), beta(p.sequence<T>()), a(p.sequence<T>()),
        da(p.sequence<T>()), dk(p.sequence<T>()), dbeta(p.sequence<T>()), q(p.pointer<T>()),
        rest(p.pointer<T>()) {}

  void forward(Index n) const {
    const Index b = n / heads, h = n % heads;
    T* q_t = rest + n * size;
    std::memcpy(q_t, q + n * size, size * sizeof(T));
    for (Index t = tokens - 1; t >= 0; --t) {
      const T* k_t = k.at(b, h) + t * k.token;
      T s = 0;
#pragma omp simd reduction(+ : s)
      for (Index i = 0; i < size; ++i) s += k_t[i] * q_t[i];
      const T a_t = beta.at(b, h)[t * beta.token] * s;
#pragma omp simd
      for (Index i = 0; i < size; ++i) q_t[i] -= a_t * k_t[i];
      a.at(b, h)[t * a.token] = a_t;
    }
  }

  void backward(Index n, T* q_t) const {
    const Index b = n / heads, h = n % heads;
    T* l = q + n * size;
    std::memcpy(q_t, rest + n * size, size * sizeof(T));
    for (Index t = 0; t < tokens; ++t) {
      const T* k_t = k.at(b, h) + t * k.token;
      T* dk_t = dk.at(b, h) + t * dk.token;
      const T a_t = a.at(b, h)[t * a.token];
      T s = 0, l_k = 0;
#pragma omp simd reduction(+ : s, l_k)
      for (Index i = 0; i < size; ++i) {
        q_t[i] += a_t * k_t[i];
        s += k_t[i] * q_t[i];
        l_k += k_t[i] * l[i];
      }
      const T g = da.at(b, h)[t * da.token] - l_k;
      const T written = beta.at(b, h)[t * beta.token] * g;
#pragma omp simd
      for (Index i = 0; i < size; ++i) {
        dk_t[i] = written * q_t[i] - a_t * l[i];
        l[i] += written * k_t[i];
      }
      dbeta.at(b, h)[t * dbeta.token] = s * g;
    }
  }

  void run() const {
    const Index tasks = batch * heads;
    const Index used = tasks * tokens * size < 32768 ? 1 : threads;
    const Scratch<T> scratch(used * size);
#pragma omp parallel for schedule(static) num_threads(used)
    for (Index n = 0; n < tasks; ++n) {
      if (dk.data) {
        backward(n, scratch.get() + omp_get_thread_num() * size);
      } else {
        forward(n);
      }
    }
  }
};
