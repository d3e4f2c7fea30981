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
#include <new>

#include "simd.h"

// What is read within a chunk. With n writes a token, whose tensors have n T rows, token t is read
// after write (t + 1) n - 1; queries stand together, as if there were no other writes.
struct Reads {
  Index token = 0, count = CHUNK;  // the first one that is read, and how many are
  Index at[CHUNK];                 // the writes after which, and what does no harm beyond `count`
  Index after[CHUNK];              // which read comes after a write, or -1
  Index from[CHUNK];               // the first read that is not before a write

  explicit Reads(Index writes = 1) : writes_(writes) {
    for (Index i = 0; i < CHUNK; ++i) at[i] = after[i] = from[i] = i;
  }
  // To the chunk that begins with this write.
  FW_INLINE void move(Index write, Index rows) {
    if (writes_ > 1 || rows < CHUNK || count < CHUNK) return find(write, rows);
    token = write;
  }

 private:
  Index writes_;

  FW_APART void find(Index write, Index rows) {
    token = write / writes_, count = 0;
    for (Index i = 0, next = (token + 1) * writes_ - 1 - write; i < CHUNK; ++i) {
      from[i] = count, after[i] = -1, at[i] = CHUNK - 1;
      if (i != next || i >= rows) continue;
      at[count] = i, after[i] = count++, next += writes_;
    }
    for (Index i = count; i < CHUNK; ++i) at[i] = CHUNK - 1;
  }
};

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

// Whether a memory decays or erases under keys of its own, and whether decays are those of channels.
enum Gating { UNGATED, BY_TOKEN, BY_CHANNEL };

// One head, or a slice of its columns. Sizes with `_pad` are rounded up to PAD.
struct Shape {
  Index tokens, keys, keys_pad, values, values_pad;
  Index chunks() const { return (tokens + CHUNK - 1) / CHUNK; }
  Index rows(Index chunk) const { return std::min<Index>(CHUNK, tokens - chunk * CHUNK); }
};

template <class T>
FW_INLINE void load_beta(const T* beta, Index ld, Index rows, T* b) {
  for (Index i = 0; i < CHUNK; ++i) b[i] = i < rows ? (beta ? beta[i * ld] : T(1)) : T(0);
}

template <class T>
T* offset(T* p, Index n) {
  return p ? p + n : p;
}
