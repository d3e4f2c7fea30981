// Decays of one key channel each within a chunk. In the algebra of decays.h a, l and c become
// matrices whose columns are channels, and products take the decays between two tokens channel by
// channel: with D[i, j] = exp(g_{j+1} + ... + g_i), a vector over channels,
//
//     A[i, j] = sum_c E[i, c] D[i, j]_c K[j, c]          P likewise with Q
//
// No token is a reference for others: factors are multiplied one token after the other, so that none
// is above 1, whatever the decays are. Keys that decay from token to token,
// K[j] D[i, j] = exp(g_i) K[j] D[i - 1, j], make A and P row by row. Backward, with the gradients
// F = tril(dO U^T) and H = -strict_tril(b dR U^T), the same keys give those of reads,
//
//     dQ[i] = sum_j F[i, j] D[i, j] K[j]                 dE likewise with H
//
// and reads that decay from the last token to the first,
//
//     Y_i[j] = exp(g_{i+1}) Y_{i+1}[j] + F[i, j] Q[i] + H[i, j] E[i]
//
// give dK[j] = Y_j[j] and what crosses token i, sum_{j<i} K[j] D[i, j] Y_i[j], of the gradient of g_i.
#pragma once
#include "couplings.h"
#include "exponentials.h"

// Replace the logs of decays in panels [C, keys_pad] by factors; panels are filled up with zeros.
template <class T>
FW_INLINE void to_factors(T* g, Index keys_pad) {
  for (Index i = 0; i < CHUNK * keys_pad; i += Simd<T>::width) {
    store(g + i, exponential<T>(load(g + i)));
  }
}

// A, and a row of P for every read. KT [keys_pad, C] is the transpose of the keys, and then of what is left of them at the
// end of the chunk. Either of E and Q may be null, as what is made of it.
template <class T, bool ERASES, bool READS>
FW_APART void channel_products(
    const T* factors, const T* E, const T* Q, T* KT, Index keys_pad, const Reads& asked, T* A,
    T* P) {
  using vec = typename Simd<T>::vec;
  constexpr int W = Simd<T>::width, VECS = PAD / W, TURNS = 2;
  for (Index i = 0; i < CHUNK; ++i) {
    vec earlier[VECS], a[TURNS][VECS] = {}, p[TURNS][VECS] = {};
    FW_UNROLL for (int v = 0; v < VECS; ++v) earlier[v] = lower<T, true>(vec{} + 1, i, v * W);
    const Index used = i / W + 1;  // vectors with a token that is not later
    const Index read = READS ? asked.after[i] : -1;
    const auto row = [&](auto reads) FW_ALWAYS {
      for (Index c = 0; c < keys_pad; c += TURNS) {
        const Index panel = c / PAD * BLOCK + c % PAD, at = panel + i * PAD;
        FW_UNROLL for (int n = 0; n < TURNS; ++n) {
          const vec factor = factors[at + n] - vec{};
          FW_UNROLL for (int v = 0; v < VECS; ++v) {
            if (v >= used) break;
            T* key = KT + (c + n) * PAD + v * W;
            const vec k = load(key) * (earlier[v] != 0 ? factor : vec{} + 1);
            store(key, k);
            if constexpr (ERASES) a[n][v] += E[at + n] * k;
            if constexpr (reads) p[n][v] += Q[panel + read * PAD + n] * k;
          }
        }
      }
    };
    if (read >= 0) {
      row(std::true_type{});
    } else {
      row(std::false_type{});
    }
    FW_UNROLL for (int v = 0; v < VECS; ++v) {
      if constexpr (ERASES) store(A + i * PAD + v * W, a[0][v] + a[1][v]);
      if (read < 0) continue;
      store(P + read * PAD + v * W, lower<T, false>(p[0][v] + p[1][v], i, v * W));
    }
  }
}

// K l, and c; all in panels, but c.
template <class T>
FW_INLINE void left_keys(const T* K, const T* factors, Index keys_pad, T* left, T* whole) {
  using vec = typename Simd<T>::vec;
  for (Index j = 0; j < keys_pad; j += PAD) {
    for (int v = 0; v < PAD; v += Simd<T>::width) {
      vec remains = vec{} + 1;
      for (int t = CHUNK - 1; t >= 0; --t) {
        const Index at = j * CHUNK + t * PAD + v;
        store(left + at, remains * load(K + at));
        remains *= load(factors + at);
      }
      store(whole + j + v, remains);
    }
  }
}

// c of a panel.
template <class T>
FW_INLINE void passed(const T* factors, T* whole) {
  for (int v = 0; v < PAD; v += Simd<T>::width) {
    auto product = load(factors + v);
    for (int at = PAD + v; at < BLOCK; at += PAD) product *= load(factors + at);
    store(whole + v, product);
  }
}

// Multiply reads in a panel, E or Q, by a; `to` may be `from`.
template <class T>
FW_INLINE void decayed_reads(const T* factors, const Reads& asked, const T* from, T* to) {
  using vec = typename Simd<T>::vec;
  for (int v = 0; v < PAD; v += Simd<T>::width) {
    vec since = vec{} + 1;
    for (Index i = 0; i < CHUNK; ++i) {
      since *= load(factors + i * PAD + v);
      const Index at = asked.after[i] * PAD + v;
      if (at >= 0) store(to + at, since * load(from + at));
    }
  }
}

// Gradients of one panel of channels: first the parts that stay within the chunk, then, as blocks of
// products with the states come, those and the decays' own.
template <class T>
class ChannelGradients {
 public:
  using vec = typename Simd<T>::vec;
  static constexpr int W = Simd<T>::width, VECS = PAD / W;

  template <bool ERASES, bool READS>
  FW_APART void pairs(
      const T* factors, const Reads& asked, const T* F, const T* H, const T* Q, const T* E,
      const T* K) {
    Index read[CHUNK];
    for (int i = 0; i < CHUNK; ++i) read[i] = READS ? asked.after[i] : -1;
    for (int i = 0; i < CHUNK; ++i) {
      const bool reads = read[i] >= 0;
      const T* Fi = F + read[i] * PAD;
      vec f[VECS], q[VECS] = {}, e[VECS] = {};
      FW_UNROLL for (int v = 0; v < VECS; ++v) {
        f[v] = load(factors + i * PAD + v * W);
        if (reads) q[v] = Fi[i] * load(K + i * PAD + v * W);
      }
      for (int j = 0; j < i; ++j) {
        const T* before = j == i - 1 ? K + j * PAD : kept(i - 1, j);
        FW_UNROLL for (int v = 0; v < VECS; ++v) {
          const vec k = f[v] * load(before + v * W);
          store(kept(i, j) + v * W, k);
          if (reads) q[v] += Fi[j] * k;
          if constexpr (ERASES) e[v] += H[i * PAD + j] * k;
        }
      }
      FW_UNROLL for (int v = 0; v < VECS; ++v) {
        if (reads) store(dQ + read[i] * PAD + v * W, q[v]);
        if constexpr (ERASES) store(dE + i * PAD + v * W, e[v]);
      }
    }
    std::memset(dK, 0, sizeof dK);  // Y
    for (int i = CHUNK - 1; i >= 0; --i) {
      const bool reads = read[i] >= 0;
      const T* Fi = F + read[i] * PAD;
      vec f[VECS], q[VECS] = {}, e[VECS], crossing[VECS] = {};
      FW_UNROLL for (int v = 0; v < VECS; ++v) {
        const int at = i * PAD + v * W;
        f[v] = load(factors + at);
        if constexpr (ERASES) e[v] = load(E + at);
        if (!reads) continue;
        q[v] = load(Q + read[i] * PAD + v * W);
        store(dK + at, load(dK + at) + Fi[i] * q[v]);
      }
      for (int j = 0; j < i; ++j) {
        FW_UNROLL for (int v = 0; v < VECS; ++v) {
          vec y = load(dK + j * PAD + v * W);
          if (reads) y += Fi[j] * q[v];
          if constexpr (ERASES) y += H[i * PAD + j] * e[v];
          crossing[v] += y * load(kept(i, j) + v * W);
          store(dK + j * PAD + v * W, f[v] * y);
        }
      }
      FW_UNROLL for (int v = 0; v < VECS; ++v) store(dg + i * PAD + v * W, crossing[v]);
    }
    vec since[VECS], left[VECS];
    FW_UNROLL for (int v = 0; v < VECS; ++v) since[v] = left[v] = vec{} + 1, whole[v] = vec{};
    for (int i = 0; i < CHUNK; ++i) {
      const int t = CHUNK - 1 - i;
      FW_UNROLL for (int v = 0; v < VECS; ++v) {
        store(since_ + i * PAD + v * W, since[v] *= load(factors + i * PAD + v * W));
        store(left_ + t * PAD + v * W, left[v]);
        left[v] *= load(factors + t * PAD + v * W);
      }
    }
    std::memset(reads_, 0, sizeof reads_);
  }
  // A block of dO S^T or -dV S^T from read i on, for reads R: add what is within the chunk.
  template <class B>
  FW_INLINE void read(B& block, Index i, const Reads& asked, const T* R, const T* within) {
    block.each([&](vec& x, int m, int, int v) FW_ALWAYS {
      const Index at = (i + m) * PAD + v, write = asked.at[i + m] * PAD + v;
      x *= load(since_ + write);
      store(reads_ + write, load(reads_ + write) + x * load(R + at));
      x += load(within + at);
    });
  }
  // A block of U dS'^T.
  template <class B>
  FW_INLINE void write(B& block, Index i, const T* K) {
    block.each([&](vec& x, int m, int, int v) FW_ALWAYS {
      const Index at = (i + m) * PAD + v;
      x *= load(left_ + at);
      store(writes_ + at, x * load(K + at));
      x += load(dK + at);
    });
  }
  // Add c dS' to a block, and <S, dS'> of every channel to what crosses the chunk.
  template <class B>
  FW_INLINE void pass(B& block, const T* c, const T* dS, const T* S) {
    block.each([&](vec& x, int m, int, int v) FW_ALWAYS {
      const vec d = load(dS + m * PAD + v);
      whole[v / W] += d * load(S + m * PAD + v);
      x += load(c + v) * d;
    });
  }
  // Return the gradients of g, once all has come; without `reads` and `writes` of what was left out.
  const T* finish(const T* c) {
    FW_UNROLL for (int v = 0; v < VECS; ++v) {
      vec reading = load(c + v * W) * whole[v], writing{};
      for (int at = BLOCK - PAD + v * W; at >= 0; at -= PAD) {
        reading += load(reads_ + at);
        store(dg + at, load(dg + at) + reading);
      }
      for (int at = v * W; at < BLOCK; at += PAD) {
        store(dg + at, load(dg + at) + writing);
        writing += load(writes_ + at);
      }
    }
    return dg;
  }

  alignas(64) T dQ[BLOCK], dE[BLOCK], dK[BLOCK];

 private:
  FW_INLINE T* kept(int i, int j) { return kept_ + (i * (i - 1) / 2 + j) * PAD; }

  vec whole[VECS];
  alignas(64) T dg[BLOCK], since_[BLOCK], left_[BLOCK], reads_[BLOCK], writes_[BLOCK];
  T kept_[CHUNK * (CHUNK - 1) / 2 * PAD];  // keys, decayed
};
