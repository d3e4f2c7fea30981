// One read o = S_T^T q of a memory without the memory, as weights a_t of the values written: under
// the sum rule a_t = k_t.q, under the delta rule by the formulas in fwlight/ops/delta_read.py.
// Backward, l being the gradient of q_t, from t = 1 on:
//
//     sum     g = da_t             dk_t = g q                     l = l + g k_t
//     delta   g = da_t - l.k_t     dk_t = b_t g q_t - a_t l       l = l + b_t g k_t
//                                  db_t = (k_t.q_t) g
//
// The delta rule keeps q at the end of every chunk, from which its backward pass makes the others
// again in the same order: q_t = q_{t-1} + a_t k_t would lose all digits where writes expand q.
// Keys may be given as what DPFP maps to them; features then live no longer than their chunk.
#pragma once
#include "denormals.h"
#include "dpfp.h"

template <class T>
struct Read {
  Index rule;
  DpfpMap<T> map;
  Index batch, heads, tokens, threads;
  Sequence<T> k, beta, a, da, dk, dbeta;
  T *q, *dq;  // [B, H, K]; without dq this is the forward pass
  T* kept;    // delta rule: [B, H, chunks, K], q at chunk ends

  explicit Read(Arguments p)
      : rule(p.number()), map(p), batch(p.number()), heads(p.number()), tokens(p.number()),
        threads(p.number()), k(p.sequence<T>()), beta(p.sequence<T>()), a(p.sequence<T>()),
        da(p.sequence<T>()), dk(p.sequence<T>()), dbeta(p.sequence<T>()), q(p.pointer<T>()),
        dq(p.pointer<T>()), kept(p.pointer<T>()), size_(map.features()) {}

  void run() const {
    const Index tasks = batch * heads;
    const Index used = tasks * tokens * size_ < 32768 ? 1 : threads;
    const Index numbers = (2 * CHUNK + 1) * size_ + map.scratch();
    const Scratch<T> scratch(used * numbers);
#pragma omp parallel for schedule(static) num_threads(used)
    for (Index n = 0; n < tasks; ++n) {
      const FlushDenormals flush;
      T* own = scratch.get() + omp_get_thread_num() * numbers;
      if (dq) {
        rule == DELTA ? backward<true>(n, own) : backward<false>(n, own);
      } else {
        rule == DELTA ? forward<true>(n, own) : forward<false>(n, own);
      }
    }
  }

 private:
  Index size_;  // K

  struct Chunk {
    Index first, end;
    const T* keys;
    Index ld;
    const T* key(Index t) const { return keys + (t - first) * ld; }
  };

  Index chunks() const { return (tokens + CHUNK - 1) / CHUNK; }
  T* at(const Sequence<T>& x, Index n, Index t) const {
    return x.at(n / heads, n % heads) + t * x.token;
  }
  T* kept_at(Index n, Index chunk) const { return kept + (n * chunks() + chunk) * size_; }

  Chunk load_chunk(Index n, Index chunk, T* rows, T* memory) const {
    const Index first = chunk * CHUNK, end = std::min(first + CHUNK, tokens);
    if (!map.nu) return {first, end, at(k, n, first), k.token};
    for (Index t = first; t < end; ++t) {
      map.forward(at(k, n, t), rows + (t - first) * size_, memory);
    }
    return {first, end, rows, size_};
  }

  template <bool WITH_DELTA>
  void forward(Index n, T* q_t) const {
    T *rows = q_t + size_, *memory = q_t + (2 * CHUNK + 1) * size_;
    std::memcpy(q_t, q + n * size_, size_ * sizeof(T));
    for (Index chunk = chunks() - 1; chunk >= 0; --chunk) {
      const Chunk c = load_chunk(n, chunk, rows, memory);
      if (WITH_DELTA) std::memcpy(kept_at(n, chunk), q_t, size_ * sizeof(T));
      for (Index t = c.end - 1; t >= c.first; --t) {
        const T* k_t = c.key(t);
        T s = 0;
#pragma omp simd reduction(+ : s)
        for (Index i = 0; i < size_; ++i) s += k_t[i] * q_t[i];
        if (WITH_DELTA) {
          s *= *at(beta, n, t);
#pragma omp simd
          for (Index i = 0; i < size_; ++i) q_t[i] -= s * k_t[i];
        }
        *at(a, n, t) = s;
      }
    }
  }

  // Fill q_t for the tokens of a chunk.
  void queries(Index n, Index chunk, const Chunk& c, T* rows) const {
    T* q_t = rows + (c.end - 1 - c.first) * size_;
    std::memcpy(q_t, kept_at(n, chunk), size_ * sizeof(T));
    for (Index t = c.end - 1; t > c.first; --t, q_t -= size_) {
      const T* k_t = c.key(t);
      const T a_t = *at(a, n, t);
      T* before = q_t - size_;
#pragma omp simd
      for (Index i = 0; i < size_; ++i) before[i] = q_t[i] - a_t * k_t[i];
    }
  }

  template <bool WITH_DELTA>
  void backward(Index n, T* own) const {
    T *mapped = own, *rows = own + size_, *q_rows = rows + CHUNK * size_;
    T* memory = q_rows + CHUNK * size_;
    T* l = dq + n * size_;
    std::memset(l, 0, size_ * sizeof(T));
    for (Index chunk = 0; chunk < chunks(); ++chunk) {
      const Chunk c = load_chunk(n, chunk, rows, memory);
      if (WITH_DELTA) queries(n, chunk, c, q_rows);
      for (Index t = c.first; t < c.end; ++t) {
        const T* q_t = WITH_DELTA ? q_rows + (t - c.first) * size_ : q + n * size_;
        const T* k_t = c.key(t);
        T* dk_t = map.nu ? mapped : at(dk, n, t);
        T g = *at(da, n, t), a_t = 0;
        if (WITH_DELTA) {
          T s = 0, l_k = 0;
#pragma omp simd reduction(+ : s, l_k)
          for (Index i = 0; i < size_; ++i) {
            s += k_t[i] * q_t[i];
            l_k += k_t[i] * l[i];
          }
          g -= l_k;
          a_t = *at(a, n, t);
          *at(dbeta, n, t) = s * g;
          g *= *at(beta, n, t);
        }
#pragma omp simd
        for (Index i = 0; i < size_; ++i) {
          dk_t[i] = WITH_DELTA ? g * q_t[i] - a_t * l[i] : g * q_t[i];
          l[i] += g * k_t[i];
        }
        if (map.nu) map.backward(at(k, n, t), mapped, at(dk, n, t), memory);
      }
    }
  }
};
