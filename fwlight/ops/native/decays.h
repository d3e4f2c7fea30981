// Decays of one token each within a chunk, and what erases: the gates of the sum and delta rules.
//
// Let L[i, j] be what token i finds of the write of token j <= i, a_i what it finds of the state S
// before the chunk, l_j what is left of a write at the chunk's end, c of S: products of exp(g).
// With the erase keys E, which are K without any, shape.h's algebra becomes
//
//     A = strict_tril(L E K^T)          P = tril(L Q K^T)
//     X = V - a E S - A U               U = b X
//     O = a Q S + P U                   S' = c S + (l K)^T U
//
// and backward, F being tril(dO U^T) and H = -strict_tril(b dR U^T),
//
//     dU = P^T dO + l K dS'             dR = dU - A^T (b dR)
//     dQ = a dO S^T + (L F) K           dE = -a b dR S^T + (L H) K
//     dK = (L F)^T Q + l U dS'^T + (L H)^T E
//     dS = c dS' + (a Q)^T dO - (a E)^T (b dR)
//
// The gradient of g_t sums what crosses token t: N[i, j] = F P + H A over j < t <= i, what i >= t
// reads of S, what of j < t is in S', and c <S, dS'>. Nothing in it cancels, and all of it is zero
// where exp(g_t) is. No product of decays is a quotient of others, so that exp(g_t) may be zero.
#pragma once
#include "exponentials.h"
#include "panels.h"

template <class T>
struct Decays {
  T since[CHUNK], left[CHUNK], whole;  // a, l, c
  T pairs[BLOCK];                      // L, zero above its diagonal

  FW_INLINE void load(const T* decay, Index ld, Index rows) {
    using vec = typename Simd<T>::vec;
    constexpr int W = Simd<T>::width;
    T factors[CHUNK] = {}, before = 1;
    for (Index i = 0; decay && i < rows; ++i) factors[i] = decay[i * ld];
    for (int i = 0; i < CHUNK; i += W) store(factors + i, exponential<T>(::load(factors + i)));
    vec row[CHUNK / W] = {};
    for (int i = 0; i < CHUNK; ++i) {
      since[i] = before *= factors[i];
      FW_UNROLL for (int v = 0; v < PAD; v += W) {
        row[v / W] = lower<T, true>(factors[i] * row[v / W], i, v, lower<T, false>(vec{} + 1, i, v));
        store(pairs + i * PAD + v, row[v / W]);
      }
    }
    std::memcpy(left, pairs + (CHUNK - 1) * PAD, sizeof left);
    whole = since[CHUNK - 1];
  }
};

// What the gradients of the decays of a chunk are summed from.
template <class T>
struct Crossing {
  using vec = typename Simd<T>::vec;
  static constexpr int W = Simd<T>::width, VECS = PAD / W;
  T pairs[BLOCK];       // N
  T reads[CHUNK * W];   // of every token, in W parts
  vec writes[VECS];     // of every token, divided by b
  vec whole;            // <S, dS'>, in W parts

  FW_INLINE void clear() {
    std::memset(pairs, 0, sizeof pairs);
    std::memset(reads, 0, sizeof reads);
    FW_UNROLL for (int v = 0; v < VECS; ++v) writes[v] = vec{};
    whole = vec{};
  }
  // A block of what is read of S from read i on, times the keys that read it.
  template <class B>
  FW_INLINE void read(B& block, Index i, const Reads& asked, const T* keys, Index step) {
    vec sums[B::rows] = {};
    block.each([&](vec& x, int m, int p, int v) FW_ALWAYS {
      sums[m] += x * load(keys + (i + m) * PAD + p * step + v);
    });
    FW_UNROLL for (int m = 0; m < B::rows; ++m) {
      T* to = reads + asked.at[i + m] * W;
      store(to, load(to) + sums[m]);
    }
  }
  // A block of l K dS', whose rows are values, times what was missing of them.
  template <class B>
  FW_INLINE void write(B& block, const T* Xt) {
    block.each([&](vec& x, int m, int, int v) FW_ALWAYS {
      writes[v / W] += x * load(Xt + m * PAD + v);
    });
  }
  // Replace dS' by c dS' in sums, after its product with S.
  template <class B>
  FW_INLINE void pass(B& block, T c, const T* dS, Index step, const T* S, Index S_step) {
    block.each([&](vec& x, int m, int p, int v) FW_ALWAYS {
      const vec d = load(dS + m * PAD + p * step + v);
      whole += d * load(S + m * PAD + p * S_step + v);
      x += c * d;
    });
  }
  void finish(const Decays<T>& decays, const T* b, Index rows, T* ddecay, Index ld) {
    T parts[BLOCK], transposed[BLOCK];  // of every token, to be summed
    vec pair[VECS] = {}, reading = decays.whole * whole;
    FW_UNROLL for (int v = 0; v < VECS; ++v) writes[v] *= load(b + v * W);
    for (Index t = CHUNK - 1; t >= 0; --t) {
      reading += load(reads + t * W);
      FW_UNROLL for (int v = 0; v < VECS; ++v) {
        pair[v] += load(pairs + t * PAD + v * W);
        const vec before = lower<T, true>(pair[v] + writes[v], t, v * W);
        store(parts + t * PAD + v * W, v == 0 ? before + reading : before);
      }
    }
    transpose_block(parts, transposed);
    for (int v = 0; v < PAD; v += W) {
      vec sum{};
      for (int j = 0; j < PAD; ++j) sum += load(transposed + j * PAD + v);
      store(parts + v, sum);
    }
    for (Index t = 0; t < rows; ++t) ddecay[t * ld] = parts[t];
  }
};
