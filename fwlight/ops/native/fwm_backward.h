// The backward pass of one head under the FWM rule; the algebra is in fwm.h.
#pragma once
#include "backward.h"
#include "fwm.h"

inline Index fwm_backward_scratch(const Shape& s, Index every) {
  return (every + 1) * s.keys_pad * s.values_pad + 5 * CHUNK * s.keys_pad + 4 * CHUNK * CHUNK +
         8 * CHUNK * s.values_pad + CHUNK;
}

template <class T>
void fwm_backward_head(const Shape& s, const BackwardHead<T>& a, T* scratch) {
  const Index Kp = s.keys_pad, Vp = s.values_pad, C = CHUNK, KV = Kp * Vp;
  const bool reads = a.q != nullptr;
  T* dSt = scratch;              // [Vp, Kp]
  T* group = dSt + KV;           // St of the chunks of a group after its first, [every, Vp, Kp]
  T* KQ = group + a.every * KV;  // [2 C, Kp]: keys, then queries
  T* K = KQ;
  T* Q = KQ + C * Kp;
  T* KQt = KQ + 2 * C * Kp;      // [Kp, 2 C]
  T* out = KQt + 2 * C * Kp;     // [C, Kp]
  T* GP = out + C * Kp;          // [2 C, C]: G, then P
  T* P = GP + C * C;
  T* MdP = GP + 2 * C * C;       // [2 C, C]: f_i.u_j, then do_i.u_j
  T* M = MdP;
  T* dP = MdP + C * C;
  T* X = MdP + 2 * C * C;        // [C, Vp]
  T* U = X + C * Vp;             // what is written, then what is left of it at the chunk's end
  T* Ut = U + C * Vp;            // [Vp, C]
  T* dUt = Ut + C * Vp;
  T* dU = dUt + C * Vp;          // [C, Vp]
  T* FO = dU + C * Vp;           // [2 C, Vp]: f, then do
  T* F = FO;
  T* dO = FO + C * Vp;
  T* Y = FO + 2 * C * Vp;        // [C, Vp]
  T* b = Y + C * Vp;
  T sizes[CHUNK];

  // Keys of chunk n, what it wrote, and what is left of that.
  const auto load_writes = [&](Index n) {
    const Index t = n * C, rows = s.rows(n);
    const T* errors = a.errors + n * a.errors_step;
    pack(a.k + t * a.k_ld, a.k_ld, rows, s.keys, K, C, Kp);
    load_beta(a.beta + t * a.beta_ld, a.beta_ld, rows, b);
    std::memcpy(X, errors, C * Vp * sizeof(T));
    std::memcpy(sizes, errors + C * Vp, C * sizeof(T));
    Remains<T> left;
    for (Index i = 0; i < C; ++i) {
      for (Index v = 0; v < Vp; ++v) U[i * Vp + v] = b[i] * X[i * Vp + v];
      left.pass(i, sizes[i]);
    }
    return left;
  };
  // The gradient of the last state, transposed by way of the group's memory.
  pack(a.d_last, a.state_ld, s.keys, s.values, group, Kp, Vp);
  transpose(group, Vp, dSt, Kp, Kp, Vp);
  for (Index last = s.chunks() - 1; last >= 0;) {
    const Index first = last / a.every * a.every;
    const T* saved = a.states + first / a.every * a.states_step;
    for (Index n = first; n <= last; ++n) {
      const Remains<T> left = load_writes(n);
      scale_rows(U, left.write[C], Vp);
      const T* before = n == first ? saved : group + (n - first - 1) * KV;
      T* after = group + (n - first) * KV;
      for_tiles<T>(Vp, Kp, FW_TILE {
        tile.read(before + i * Kp + j, Kp);
        tile.scale(left.state[C]);
        tile.add_columns_of(U + i, Vp, K + j, Kp, C);
        tile.write(after + i * Kp + j, Kp);
      });
    }
    for (Index n = last; n >= first; --n) {
      const T* St = n == first ? saved : group + (n - first - 1) * KV;
      const Index t = n * C, rows = s.rows(n);
      const Remains<T> left = load_writes(n);
      transpose(U, Vp, Ut, C, C, Vp);
      transpose(K, Kp, KQt, 2 * C, C, Kp);
      if (reads) {
        pack(a.q + t * a.q_ld, a.q_ld, rows, s.keys, Q, C, Kp);
        pack(a.d_o + t * a.do_ld, a.do_ld, rows, s.values, dO, C, Vp);
        transpose(Q, Kp, KQt + C, 2 * C, C, Kp);
      }
      for_tiles<T>(reads ? 2 * C : C, C, FW_TILE {
        tile.zero();
        tile.add_columns_of(KQt + i, 2 * C, KQt + j, 2 * C, Kp);
        tile.write(GP + i * C + j, C);
      });
      if (reads) {
        for_tiles<T>(C, C, FW_TILE {
          tile.zero();
          tile.add_rows_of(dO + i * Vp, Vp, Ut + j, C, Vp);
          tile.write(dP + i * C + j, C);
        });
        for (Index i = 0; i < C; ++i) {
          for (Index j = 0; j < C; ++j) {
            P[i * C + j] *= left.write[i + 1][j];
            dP[i * C + j] *= left.write[i + 1][j];
          }
        }
      }
      for (Index d = 0; d < Kp; ++d) {
        for (Index i = 0; i < C; ++i) KQt[d * 2 * C + i] *= left.write[C][i];
      }
      for_tiles<T>(Vp, C, FW_TILE {
        tile.zero();
        if (reads) tile.add_columns_of(dO + i, Vp, P + j, C, C);
        tile.add_rows_of(dSt + i * Kp, Kp, KQt + j, 2 * C, Kp);
        tile.write(dUt + i * C + j, C);
      });
      transpose(dUt, C, dU, Vp, Vp, C);
      T read[CHUNK] = {};  // do_i.o_i = q_i.dq_i
      if (reads) {
        scale_rows(dO, left.state + 1, Vp);
        for_tiles<T>(C, Kp, FW_TILE {
          tile.zero();
          tile.add_rows_of(dO + i * Vp, Vp, St + j, Kp, Vp);
          tile.add_rows_of(dP + i * C, C, K + j, Kp, i + tile.rows);
          tile.write(out + i * Kp + j, Kp);
        });
        for (Index i = 0; i < C; ++i) read[i] = dot(Q + i * Kp, out + i * Kp, Kp);
        unpack(out, Kp, rows, s.keys, a.dq + t * a.dq_ld, a.dq_ld);
      }
      pack(a.v + t * a.v_ld, a.v_ld, rows, s.values, Y, C, Vp);
      T shrink = 0, own[CHUNK];  // s_i, and s_i |u_i|^2
      T along = dot(dSt, group + (n - first) * KV, KV);  // r_i
      for (Index i = C - 1; i >= 0; --i) {
        const T *x = X + i * Vp, *u = U + i * Vp;
        T *y = Y + i * Vp, *du = dU + i * Vp, *f = F + i * Vp, weights[CHUNK];
        const T k_square = GP[i * C + i];
        const bool projected = sizes[i] != 1;
        along += read[i];
        if (projected) shrink = (shrink + along) / (sizes[i] * sizes[i]);
        for (Index j = i + 1; j < C; ++j) weights[j] = left.write[j][i] * GP[i * C + j];
        combine(du, T(1), du, weights, F, i + 1, C, Vp);
        for (Index v = 0; v < Vp; ++v) {
          y[v] -= x[v];
          du[v] -= shrink * (y[v] + k_square * u[v]);
          f[v] = -b[i] * du[v] - shrink * u[v];
        }
        along = (projected ? T(0) : along) - dot(u, du, Vp) - b[i] * dot(du, y, Vp);
        own[i] = shrink * dot(u, u, Vp);
        if (i >= rows) continue;
        T* dv = a.dv + (t + i) * a.dv_ld;
        for (Index v = 0; v < s.values; ++v) dv[v] = b[i] * du[v];
        a.dbeta[(t + i) * a.dbeta_ld] = dot(du, x, Vp);
      }
      for_tiles<T>(C, C, FW_TILE {
        tile.zero();
        tile.add_rows_of(F + i * Vp, Vp, Ut + j, C, Vp);
        tile.write(M + i * C + j, C);
      });
      for (Index i = 0; i < C; ++i) {
        for (Index j = 0; j < i; ++j) {
          M[i * C + j] *= left.write[i][j];
          M[j * C + i] = M[i * C + j];
        }
        M[i * C + i] = -own[i];
      }
      scale_rows(U, left.write[C], Vp);
      scale_rows(F, left.state, Vp);
      for_tiles<T>(C, Kp, FW_TILE {
        tile.zero();
        tile.add_rows_of(U + i * Vp, Vp, dSt + j, Kp, Vp);
        tile.add_rows_of(F + i * Vp, Vp, St + j, Kp, Vp);
        tile.add_rows_of(M + i * C, C, K + j, Kp, C);
        if (reads) tile.add_columns_of(dP + i * C + i, C, Q + i * Kp + j, Kp, C - i);
        tile.write(out + i * Kp + j, Kp);
      });
      unpack(out, Kp, rows, s.keys, a.dk + t * a.dk_ld, a.dk_ld);
      // f and do lie one after the other, as do K and Q.
      for_tiles<T>(Vp, Kp, FW_TILE {
        tile.read(dSt + i * Kp + j, Kp);
        tile.scale(left.state[C]);
        tile.add_columns_of(FO + i, Vp, KQ + j, Kp, reads ? 2 * C : C);
        tile.write(dSt + i * Kp + j, Kp);
      });
      for (Index i = 0; i < KV; ++i) dSt[i] -= shrink * St[i];
    }
    last = first - 1;
  }
  transpose(dSt, Kp, group, Vp, Vp, Kp);
  unpack(group, Vp, s.keys, s.values, a.d_initial, a.state_ld);
}
