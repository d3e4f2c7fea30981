// The backward pass of one head; the algebra is in shape.h.
#pragma once
#include "shape.h"

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
      for_tiles<T>(Vp, Kp, FW_TILE {
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
        for_tiles<T>(g_last - g_first, C, FW_TILE {
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
      for_tiles<T>(Vp, C, FW_TILE {
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
        for_tiles<T>(g_last - m_first, C, FW_TILE {
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
        for_tiles<T>(C, Kp, FW_TILE {
          tile.zero();
          tile.add_rows_of(dO + i * Vp, Vp, St + j, Kp, Vp);
          tile.add_rows_of(dP + i * C, C, K + j, Kp, i + tile.rows);
          tile.write(out + i * Kp + j, Kp);
        });
        unpack(out, Kp, rows, s.keys, a.dq + t * a.dq_ld, a.dq_ld);
      }
      for_tiles<T>(C, Kp, FW_TILE {
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
        for_tiles<T>(Vp, Kp, FW_TILE {
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
