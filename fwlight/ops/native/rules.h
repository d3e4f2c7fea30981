// The sum and delta rules, chunk by chunk; one call works on one head, or on a slice of its value
// columns, which do not depend on each other given the keys.
//
// Letters as in fwlight/ops/delta_rule.py. For a chunk of tokens with features Q, K [C, K], values
// V [C, V], strengths b and the state S [K, V] before it:
//
//     X = V - K S - strict_tril(K K^T) U        U = b X        what is missing, what is written
//     O = Q S + tril(Q K^T) U                   S' = S + K^T U
//
// where the sum rule has X = V. With P = tril(Q K^T), G = K K^T the backward pass is
//
//     dU = P^T dO + K dS'
//     dR = dU - strict_tril(G)^T (b dR)          dV = b dR          (sum rule: dR = dU)
//     dP = tril(dO U^T)                          H = -strict_tril(b dR U^T)
//     dQ = dO S^T + dP K                         db = rowsum(dR X)
//     dK = dP^T Q + U dS'^T - (b dR) S^T + (H + H^T) K
//     dS = dS' + Q^T dO - K^T (b dR)
//
// without the terms of G and b dR under the sum rule. Suffix t: the transpose is what is stored.
#pragma once
#include <algorithm>
#include <cstdlib>
#include <new>

#include "simd.h"

// A tensor [B, H, T, D] (or [B, H, T]) whose last dimension is contiguous; strides in numbers.
template <class T>
struct Sequence {
  T* data;
  Index batch, head, token;
  T* at(Index b, Index h) const { return data + b * batch + h * head; }
};

// Aligned numbers that live as long as one call.
template <class T>
class Scratch {
 public:
  explicit Scratch(Index numbers)
      : base_(static_cast<T*>(::operator new(numbers * sizeof(T), std::align_val_t(64)))) {}
  Scratch(const Scratch&) = delete;
  ~Scratch() { ::operator delete(base_, std::align_val_t(64)); }
  T* get() const { return base_; }

 private:
  T* base_;
};

// One head, or a slice of its columns. Sizes with `_pad` are rounded up to PAD.
struct Shape {
  Index tokens, keys, keys_pad, values, values_pad;
  Index chunks() const { return (tokens + CHUNK - 1) / CHUNK; }
  Index rows(Index chunk) const { return std::min<Index>(CHUNK, tokens - chunk * CHUNK); }
};

template <class T>
struct ForwardHead {
  const T *q, *k, *v, *beta;  // q and (sum rule) beta may be null
  Index q_ld, k_ld, v_ld, beta_ld;
  const T* initial;  // [keys, values], rows `state_ld` apart, as the last state
  T* last;
  Index state_ld;
  T* o;
  Index o_ld;
  T* states;  // null, or St [values_pad, keys_pad] before every `every`-th chunk
  T* errors;  // null, or Xt [values_pad, CHUNK] of every chunk (delta rule)
  Index states_step, errors_step, every;
};

template <class T>
struct BackwardHead {
  const T *q, *k, *v, *beta, *d_o, *d_last;  // q and d_o may be null together
  Index q_ld, k_ld, v_ld, beta_ld, do_ld;
  Index state_ld;
  const T *states, *errors;
  Index states_step, errors_step, every;
  T *dq, *dk, *dv, *dbeta, *d_initial;  // dbeta may be null (sum rule)
  Index dq_ld, dk_ld, dv_ld, dbeta_ld;
};

template <class T>
FW_INLINE void load_beta(const T* beta, Index ld, Index rows, T* b) {
  for (Index i = 0; i < CHUNK; ++i) b[i] = i < rows ? (beta ? beta[i * ld] : T(1)) : T(0);
}

// X = (V - K S) - strict_tril(G) b X in place, U = b X, by forward substitution in registers.
template <class T>
inline void solve_lower(const T* G, Index g_ld, const T* b, T* X, T* U, Index values_pad) {
  for (Index v = 0; v < values_pad; v += Simd<T>::width) {
    typename Simd<T>::vec x[CHUNK];
    FW_UNROLL for (int i = 0; i < CHUNK; ++i) x[i] = load(X + i * values_pad + v);
    FW_UNROLL for (int j = 0; j < CHUNK; ++j) {
      const auto u = b[j] * x[j];
      store(X + j * values_pad + v, x[j]);
      store(U + j * values_pad + v, u);
      FW_UNROLL for (int i = 0; i < CHUNK; ++i) {
        if (i > j) x[i] -= G[j * g_ld + i] * u;
      }
    }
  }
}

// dR = dU - strict_tril(G)^T b dR in place and N = -b dR, by back substitution in registers.
template <class T>
inline void solve_upper(const T* G, const T* b, T* R, T* N, Index values_pad) {
  for (Index v = 0; v < values_pad; v += Simd<T>::width) {
    typename Simd<T>::vec r[CHUNK];
    FW_UNROLL for (int i = 0; i < CHUNK; ++i) r[i] = load(R + i * values_pad + v);
    FW_UNROLL for (int s = 0; s < CHUNK; ++s) {
      const int i = CHUNK - 1 - s;
      const auto n = -b[i] * r[i];
      store(R + i * values_pad + v, r[i]);
      store(N + i * values_pad + v, n);
      FW_UNROLL for (int j = 0; j < CHUNK; ++j) {
        if (j < i) r[j] += G[i * CHUNK + j] * n;
      }
    }
  }
}

inline Index forward_scratch(const Shape& s) {
  return s.keys_pad * s.values_pad + 4 * CHUNK * s.keys_pad + 2 * CHUNK * CHUNK +
         3 * CHUNK * s.values_pad + CHUNK;
}

template <class T, bool DELTA>
void forward_head(const Shape& s, const ForwardHead<T>& a, T* scratch) {
  const Index Kp = s.keys_pad, Vp = s.values_pad, C = CHUNK;
  const bool reads = a.q != nullptr;
  T* S = scratch;          // [Kp, Vp]
  T* K = S + Kp * Vp;      // [C, Kp]
  T* KQt = K + C * Kp;     // [Kp, 2 C]: the chunk's keys, then its queries
  T* Q = KQt + 2 * C * Kp; // [C, Kp]
  T* GP = Q + C * Kp;      // [C, 2 C]: G, then P^T
  T* X = GP + 2 * C * C;   // [C, Vp]
  T* U = X + C * Vp;
  T* O = U + C * Vp;
  T* b = O + C * Vp;
  const T* Pt = GP + C;
  pack(a.initial, a.state_ld, s.keys, s.values, S, Kp, Vp);
  for (Index n = 0; n < s.chunks(); ++n) {
    const Index t = n * C, rows = s.rows(n);
    if (a.states && n % a.every == 0) transpose(S, Vp, a.states + n / a.every * a.states_step, Kp, Kp, Vp);
    pack(a.k + t * a.k_ld, a.k_ld, rows, s.keys, K, C, Kp);
    pack(a.v + t * a.v_ld, a.v_ld, rows, s.values, X, C, Vp);
    load_beta(a.beta ? a.beta + t * a.beta_ld : nullptr, a.beta_ld, rows, b);
    if (DELTA || reads) transpose(K, Kp, KQt, 2 * C, C, Kp);
    if (reads) {
      pack(a.q + t * a.q_ld, a.q_ld, rows, s.keys, Q, C, Kp);
      transpose(Q, Kp, KQt + C, 2 * C, C, Kp);
    }
    if constexpr (DELTA) {
      for_tiles<T>(C, reads ? 2 * C : C, [&](auto& tile, Index i, Index j) __attribute__((always_inline)) {
        tile.zero();
        tile.add_columns_of(KQt + i, 2 * C, KQt + j, 2 * C, Kp);
        tile.write(GP + i * 2 * C + j, 2 * C);
      });
      for_tiles<T>(C, Vp, [&](auto& tile, Index i, Index j) __attribute__((always_inline)) {
        tile.zero();
        tile.add_columns_of(KQt + i, 2 * C, S + j, Vp, Kp);
        tile.subtract_from(X + i * Vp + j, Vp);
      });
      solve_lower(GP, 2 * C, b, X, U, Vp);
      if (a.errors) transpose(X, Vp, a.errors + n * a.errors_step, C, C, Vp);
    } else {
      if (reads) {
        for_tiles<T>(C, C, [&](auto& tile, Index i, Index j) __attribute__((always_inline)) {
          tile.zero();
          tile.add_columns_of(KQt + i, 2 * C, KQt + C + j, 2 * C, Kp);
          tile.write(GP + C + i * 2 * C + j, 2 * C);
        });
      }
      for (Index i = 0; i < C; ++i) {
        for (Index v = 0; v < Vp; ++v) U[i * Vp + v] = b[i] * X[i * Vp + v];
      }
    }
    if (reads) {
      for (Index j = 1; j < C; ++j) {
        for (Index i = 0; i < j; ++i) GP[j * 2 * C + C + i] = T(0);
      }
      for_tiles<T>(C, Vp, [&](auto& tile, Index i, Index j) __attribute__((always_inline)) {
        tile.zero();
        tile.add_columns_of(KQt + C + i, 2 * C, S + j, Vp, Kp);
        tile.add_columns_of(Pt + i, 2 * C, U + j, Vp, i + tile.rows);
        tile.write(O + i * Vp + j, Vp);
      });
      unpack(O, Vp, rows, s.values, a.o + t * a.o_ld, a.o_ld);
    }
    for_tiles<T>(Kp, Vp, [&](auto& tile, Index i, Index j) __attribute__((always_inline)) {
      tile.read(S + i * Vp + j, Vp);
      tile.add_columns_of(K + i, Kp, U + j, Vp, C);
      tile.write(S + i * Vp + j, Vp);
    });
  }
  unpack(S, Vp, s.keys, s.values, a.last, a.state_ld);
}

inline Index backward_scratch(const Shape& s, Index every) {
  return (every + 1) * s.keys_pad * s.values_pad + 5 * CHUNK * s.keys_pad + 6 * CHUNK * CHUNK +
         6 * CHUNK * s.values_pad + CHUNK;
}

template <class T, bool DELTA>
void backward_head(const Shape& s, const BackwardHead<T>& a, T* scratch) {
  const Index Kp = s.keys_pad, Vp = s.values_pad, C = CHUNK, KV = Kp * Vp;
  const bool reads = a.q != nullptr;
  T* dSt = scratch;            // [Vp, Kp]
  T* group = dSt + KV;         // St of the chunks of a group after its first, [every, Vp, Kp]
  T* QK = group + a.every * KV;  // [2 C, Kp]: queries, then keys
  T* Q = QK;
  T* K = QK + C * Kp;
  T* KQt = QK + 2 * C * Kp;    // [Kp, 2 C]: keys, then queries
  T* out = KQt + 2 * C * Kp;   // [C, Kp]
  T* GP = out + C * Kp;        // [2 C, C]: G, then P
  T* P = GP + C * C;
  T* MN = GP + 2 * C * C;      // [2 C, C]: dR X^T, then dO X^T and dP
  T* H = MN;
  T* dP = MN + C * C;
  T* Ht = MN + 2 * C * C;
  T* R = Ht + 2 * C * C;       // [3 C, Vp]: dR, dO, -b dR
  T* dO = R + C * Vp;
  T* N = R + 2 * C * Vp;
  T* Xt = R + 3 * C * Vp;      // [Vp, C]
  T* Ut = Xt + C * Vp;
  T* dUt = Ut + C * Vp;
  T* b = dUt + C * Vp;

  // Keys of chunk n, and what it wrote.
  const auto load_writes = [&](Index n) {
    const Index t = n * C, rows = s.rows(n);
    pack(a.k + t * a.k_ld, a.k_ld, rows, s.keys, K, C, Kp);
    load_beta(a.beta ? a.beta + t * a.beta_ld : nullptr, a.beta_ld, rows, b);
    if constexpr (DELTA) {
      std::memcpy(Xt, a.errors + n * a.errors_step, C * Vp * sizeof(T));
    } else {
      pack(a.v + t * a.v_ld, a.v_ld, rows, s.values, N, C, Vp);
      transpose(N, Vp, Xt, C, C, Vp);
    }
    for (Index v = 0; v < Vp; ++v) {
      for (Index i = 0; i < C; ++i) Ut[v * C + i] = b[i] * Xt[v * C + i];
    }
  };

  // The gradient of the last state, transposed by way of the group's memory.
  pack(a.d_last, a.state_ld, s.keys, s.values, group, Kp, Vp);
  transpose(group, Vp, dSt, Kp, Kp, Vp);
  for (Index last = s.chunks() - 1; last >= 0;) {
    const Index first = last / a.every * a.every;
    const T* saved = a.states + first / a.every * a.states_step;
    for (Index n = first; n < last; ++n) {
      load_writes(n);
      const T* before = n == first ? saved : group + (n - first - 1) * KV;
      T* after = group + (n - first) * KV;
      for_tiles<T>(Vp, Kp, [&](auto& tile, Index i, Index j) __attribute__((always_inline)) {
        tile.read(before + i * Kp + j, Kp);
        tile.add_rows_of(Ut + i * C, C, K + j, Kp, C);
        tile.write(after + i * Kp + j, Kp);
      });
    }
    for (Index n = last; n >= first; --n) {
      const T* St = n == first ? saved : group + (n - first - 1) * KV;
      const Index t = n * C, rows = s.rows(n);
      load_writes(n);
      transpose(K, Kp, KQt, 2 * C, C, Kp);
      if (reads) {
        pack(a.q + t * a.q_ld, a.q_ld, rows, s.keys, Q, C, Kp);
        pack(a.d_o + t * a.do_ld, a.do_ld, rows, s.values, dO, C, Vp);
        transpose(Q, Kp, KQt + C, 2 * C, C, Kp);
      }
      const Index g_first = DELTA ? 0 : C, g_last = reads ? 2 * C : C;
      if (g_first < g_last) {
        for_tiles<T>(g_last - g_first, C, [&](auto& tile, Index i, Index j) __attribute__((always_inline)) {
          tile.zero();
          tile.add_columns_of(KQt + g_first + i, 2 * C, KQt + j, 2 * C, Kp);
          tile.write(GP + (g_first + i) * C + j, C);
        });
      }
      if (reads) {
        for (Index i = 0; i < C; ++i) {
          for (Index j = 0; j < C; ++j) P[i * C + j] = j <= i ? P[i * C + j] : T(0);
        }
      }
      for_tiles<T>(Vp, C, [&](auto& tile, Index i, Index j) __attribute__((always_inline)) {
        tile.zero();
        if (reads) tile.add_columns_of(dO + i, Vp, P + j, C, C);
        tile.add_rows_of(dSt + i * Kp, Kp, KQt + j, 2 * C, Kp);
        tile.write(dUt + i * C + j, C);
      });
      transpose(dUt, C, R, Vp, Vp, C);
      if constexpr (DELTA) {
        solve_upper(GP, b, R, N, Vp);
      } else {
        for (Index i = 0; i < C; ++i) {
          for (Index v = 0; v < Vp; ++v) N[i * Vp + v] = -b[i] * R[i * Vp + v];
        }
      }
      for (Index i = 0; i < rows; ++i) {
        T* dv = a.dv + (t + i) * a.dv_ld;
        for (Index v = 0; v < s.values; ++v) dv[v] = -N[i * Vp + v];
      }
      const Index m_first = DELTA ? 0 : C;
      if (m_first < g_last) {
        for_tiles<T>(g_last - m_first, C, [&](auto& tile, Index i, Index j) __attribute__((always_inline)) {
          tile.zero();
          tile.add_rows_of(R + (m_first + i) * Vp, Vp, Xt + j, C, Vp);
          tile.write(MN + (m_first + i) * C + j, C);
        });
      }
      if constexpr (DELTA) {
        if (a.dbeta) {
          for (Index i = 0; i < rows; ++i) a.dbeta[(t + i) * a.dbeta_ld] = H[i * C + i];
        }
        for (Index i = 0; i < C; ++i) {
          for (Index j = 0; j < C; ++j) H[i * C + j] = j < i ? -b[i] * b[j] * H[i * C + j] : T(0);
        }
        transpose(H, C, Ht, C, C, C);
        for (Index i = 0; i < C * C; ++i) H[i] += Ht[i];
      } else if (a.dbeta) {
        T sums[CHUNK] = {};
        for (Index v = 0; v < Vp; ++v) {
          for (Index i = 0; i < C; ++i) sums[i] += dUt[v * C + i] * Xt[v * C + i];
        }
        for (Index i = 0; i < rows; ++i) a.dbeta[(t + i) * a.dbeta_ld] = sums[i];
      }
      if (reads) {
        for (Index i = 0; i < C; ++i) {
          for (Index j = 0; j < C; ++j) dP[i * C + j] = j <= i ? b[j] * dP[i * C + j] : T(0);
        }
        for_tiles<T>(C, Kp, [&](auto& tile, Index i, Index j) __attribute__((always_inline)) {
          tile.zero();
          tile.add_rows_of(dO + i * Vp, Vp, St + j, Kp, Vp);
          tile.add_rows_of(dP + i * C, C, K + j, Kp, i + tile.rows);
          tile.write(out + i * Kp + j, Kp);
        });
        unpack(out, Kp, rows, s.keys, a.dq + t * a.dq_ld, a.dq_ld);
      }
      for_tiles<T>(C, Kp, [&](auto& tile, Index i, Index j) __attribute__((always_inline)) {
        tile.zero();
        tile.add_columns_of(Ut + i, C, dSt + j, Kp, Vp);
        if (reads) tile.add_columns_of(dP + i * C + i, C, Q + i * Kp + j, Kp, C - i);
        if constexpr (DELTA) {
          tile.add_rows_of(N + i * Vp, Vp, St + j, Kp, Vp);
          tile.add_columns_of(H + i, C, K + j, Kp, C);
        }
        tile.write(out + i * Kp + j, Kp);
      });
      unpack(out, Kp, rows, s.keys, a.dk + t * a.dk_ld, a.dk_ld);
      // dO and -b dR lie one after the other, as do Q and K.
      const T* left = reads ? dO : N;
      const T* right = reads ? Q : K;
      const Index depth = (reads ? C : 0) + (DELTA ? C : 0);
      if (depth) {
        for_tiles<T>(Vp, Kp, [&](auto& tile, Index i, Index j) __attribute__((always_inline)) {
          tile.read(dSt + i * Kp + j, Kp);
          tile.add_columns_of(left + i, Vp, right + j, Kp, depth);
          tile.write(dSt + i * Kp + j, Kp);
        });
      }
    }
    last = first - 1;
  }
  transpose(dSt, Kp, group, Vp, Vp, Kp);
  unpack(group, Vp, s.keys, s.values, a.d_initial, a.state_ld);
}

// Columns v to v + VECS vectors of one token: write S' = S + k u, read o. S and S' may be one.
template <class T, bool DELTA, int VECS>
FW_INLINE void step_columns(
    const T* S, T* S_new, Index ld, Index keys, const T* q, const T* k, const T* v, T b, T* o) {
  constexpr int W = Simd<T>::width;
  typename Simd<T>::vec u[VECS], y[VECS];
  FW_UNROLL for (int j = 0; j < VECS; ++j) u[j] = load(v + j * W);
  if constexpr (DELTA) {
    for (Index i = 0; i < keys; ++i) {
      FW_UNROLL for (int j = 0; j < VECS; ++j) u[j] -= k[i] * load(S + i * ld + j * W);
    }
  }
  FW_UNROLL for (int j = 0; j < VECS; ++j) u[j] *= b, y[j] = typename Simd<T>::vec{};
  for (Index i = 0; i < keys; ++i) {
    const T q_i = q ? q[i] : T(0);
    FW_UNROLL for (int j = 0; j < VECS; ++j) {
      const auto x = load(S + i * ld + j * W) + k[i] * u[j];
      store(S_new + i * ld + j * W, x);
      y[j] += q_i * x;
    }
  }
  if (o) {
    FW_UNROLL for (int j = 0; j < VECS; ++j) store(o + j * W, y[j]);
  }
}

// Token by token, for a few tokens without a backward pass; it works in place on the last state.
template <class T, bool DELTA>
void step_head(const Shape& s, const ForwardHead<T>& a) {
  constexpr int W = Simd<T>::width;
  for (Index t = 0; t < s.tokens; ++t) {
    const T* S = t == 0 ? a.initial : a.last;
    const T* q = a.q ? a.q + t * a.q_ld : nullptr;
    const T* k = a.k + t * a.k_ld;
    const T* v = a.v + t * a.v_ld;
    T* o = q ? a.o + t * a.o_ld : nullptr;
    const T b = a.beta ? a.beta[t * a.beta_ld] : T(1);
    Index j = 0;
    for (; j + 4 * W <= s.values; j += 4 * W) {
      step_columns<T, DELTA, 4>(S + j, a.last + j, a.state_ld, s.keys, q, k, v + j, b, o ? o + j : o);
    }
    for (; j + W <= s.values; j += W) {
      step_columns<T, DELTA, 1>(S + j, a.last + j, a.state_ld, s.keys, q, k, v + j, b, o ? o + j : o);
    }
    for (; j < s.values; ++j) {
      T u = v[j], y = 0;
      if (DELTA) {
        for (Index i = 0; i < s.keys; ++i) u -= k[i] * S[i * a.state_ld + j];
      }
      u *= b;
      for (Index i = 0; i < s.keys; ++i) {
        const T x = S[i * a.state_ld + j] + k[i] * u;
        a.last[i * a.state_ld + j] = x;
        if (q) y += q[i] * x;
      }
      if (o) o[j] = y;
    }
  }
}
