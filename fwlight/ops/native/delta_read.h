// One read o = S_T^T q of the delta rule's memory without the memory; the formulas are in
// fwlight/ops/delta_read.py. Backward, l being the gradient of q_t, from t = 1 on:
//
//     g = da_t - l.k_t      db_t = (k_t.q_t) g      dk_t = b_t g q_t - a_t l      l = l + b_t g k_t
//
// The forward pass keeps q at the end of every chunk, from which the backward pass makes the others
// again in the same order: q_t = q_{t-1} + a_t k_t would lose all digits where writes expand q.
#pragma once
#include "arguments.h"
#include "denormals.h"

template <class T>
struct DeltaRead {
  Index batch, heads, tokens, size, threads;
  Sequence<T> k, beta, a, da, dk, dbeta;  // of the last three there are none in the forward pass
  T *q, *kept;  // [B, H, K]: q_T, backward its gradient; [B, H, chunks, K]: q at chunk ends

  explicit DeltaRead(Arguments p)
      : batch(p.number()), heads(p.number()), tokens(p.number()), size(p.number()),
        threads(p.number()), k(p.sequence<T>()), beta(p.sequence<T>()), a(p.sequence<T>()),
        da(p.sequence<T>()), dk(p.sequence<T>()), dbeta(p.sequence<T>()), q(p.pointer<T>()),
        kept(p.pointer<T>()) {}

  Index chunks() const { return (tokens + CHUNK - 1) / CHUNK; }

  void forward(Index n, T* q_t) const {
    const Index b = n / heads, h = n % heads;
    std::memcpy(q_t, q + n * size, size * sizeof(T));
    for (Index t = tokens - 1; t >= 0; --t) {
      const T* k_t = k.at(b, h) + t * k.token;
      if (t == tokens - 1 || t % CHUNK == CHUNK - 1) {
        std::memcpy(kept + (n * chunks() + t / CHUNK) * size, q_t, size * sizeof(T));
      }
      T s = 0;
#pragma omp simd reduction(+ : s)
      for (Index i = 0; i < size; ++i) s += k_t[i] * q_t[i];
      const T a_t = beta.at(b, h)[t * beta.token] * s;
#pragma omp simd
      for (Index i = 0; i < size; ++i) q_t[i] -= a_t * k_t[i];
      a.at(b, h)[t * a.token] = a_t;
    }
  }

  // Fill q_t for the tokens of a chunk, row t - first.
  void queries(Index n, Index chunk, T* rows) const {
    const Index b = n / heads, h = n % heads;
    const Index first = chunk * CHUNK, last = std::min(first + CHUNK, tokens) - 1;
    std::memcpy(
        rows + (last - first) * size, kept + (n * chunks() + chunk) * size, size * sizeof(T));
    for (Index t = last; t > first; --t) {
      const T* k_t = k.at(b, h) + t * k.token;
      const T a_t = a.at(b, h)[t * a.token];
      const T* q_t = rows + (t - first) * size;
      T* before = rows + (t - 1 - first) * size;
#pragma omp simd
      for (Index i = 0; i < size; ++i) before[i] = q_t[i] - a_t * k_t[i];
    }
  }

  void backward(Index n, T* rows) const {
    const Index b = n / heads, h = n % heads;
    T* l = q + n * size;
    std::memset(l, 0, size * sizeof(T));
    for (Index t = 0; t < tokens; ++t) {
      if (t % CHUNK == 0) queries(n, t / CHUNK, rows);
      const T* q_t = rows + t % CHUNK * size;
      const T* k_t = k.at(b, h) + t * k.token;
      T* dk_t = dk.at(b, h) + t * dk.token;
      T s = 0, l_k = 0;
#pragma omp simd reduction(+ : s, l_k)
      for (Index i = 0; i < size; ++i) {
        s += k_t[i] * q_t[i];
        l_k += k_t[i] * l[i];
      }
      const T a_t = a.at(b, h)[t * a.token];
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
    const Index rows = dk.data ? CHUNK : 1;
    const Scratch<T> scratch(used * rows * size);
#pragma omp parallel for schedule(static) num_threads(used)
    for (Index n = 0; n < tasks; ++n) {
      const FlushDenormals flush;
      T* own = scratch.get() + omp_get_thread_num() * rows * size;
      if (dk.data) {
        backward(n, own);
      } else {
        forward(n, own);
      }
    }
  }
};
