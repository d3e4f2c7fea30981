// Dropout with a mask that is computed and never stored: number i of a tensor is kept or not by
// word i of the counter-based generator Threefry-4x32 with 13 rounds, keyed by a seed (Salmon et al.
// 2011, "Parallel random numbers: as easy as 1, 2, 3"). The backward pass is the same function of
// the gradient.
#pragma once
#include "arguments.h"

using Word = std::uint32_t;

struct Threefry {
  static constexpr int COUNTERS = 16;         // worked on at once, in one vector or several
  static constexpr int COUNT = 4 * COUNTERS;  // words that they make
  static constexpr int LANES = FW_VECTOR_BYTES / sizeof(Word);
  typedef Word Words __attribute__((vector_size(FW_VECTOR_BYTES)));

  Word key[5];

  explicit Threefry(std::uint64_t seed)
      : key{Word(seed), Word(seed >> 32), 0, 0, Word(seed) ^ Word(seed >> 32) ^ 0x1BD11BDA} {}

  template <int R>
  static FW_INLINE void mix(Words& x, Words& y) {
    x += y;
    y = (y << R | y >> (32 - R)) ^ x;
  }
  template <int S>
  FW_INLINE void add_key(Words (&x)[4]) const {
    FW_UNROLL for (int i = 0; i < 4; ++i) x[i] += key[(S + i) % 5];
    x[3] += S;
  }
  template <int R0, int R1, int R2, int R3>
  static FW_INLINE void two_rounds(Words (&x)[4]) {
    mix<R0>(x[0], x[1]);
    mix<R1>(x[2], x[3]);
    mix<R2>(x[0], x[3]);
    mix<R3>(x[2], x[1]);
  }

  // The words of counters 16 n to 16 n + 15: first those numbered 0, then 1, 2 and 3.
  FW_INLINE void words(Index n, Word* out) const {
    for (int first = 0; first < COUNTERS; first += LANES) {
      Words x[4] = {};
      for (int l = 0; l < LANES; ++l) x[0][l] = first + l;
      x[0] += Word(n * COUNTERS);
      x[1] += Word(std::uint64_t(n) * COUNTERS >> 32);
      add_key<0>(x);
      two_rounds<10, 26, 11, 21>(x);
      two_rounds<13, 27, 23, 5>(x);
      add_key<1>(x);
      two_rounds<6, 20, 17, 11>(x);
      two_rounds<25, 10, 18, 20>(x);
      add_key<2>(x);
      two_rounds<10, 26, 11, 21>(x);
      two_rounds<13, 27, 23, 5>(x);
      add_key<3>(x);
      mix<6>(x[0], x[1]);
      mix<20>(x[2], x[3]);
      for (int i = 0; i < 4; ++i) std::memcpy(out + i * COUNTERS + first, &x[i], sizeof x[i]);
    }
  }
};

template <class T>
struct Dropout {
  Index numbers, threads;
  const T* x;
  T* y;
  const std::uint64_t* seed;
  Word dropped;  // words below it drop
  T scale;

  explicit Dropout(Arguments a)
      : numbers(a.number()), threads(a.number()), x(a.pointer<T>()), y(a.pointer<T>()),
        seed(a.pointer<std::uint64_t>()) {
    const double p = a.real();
    dropped = Word(p * 4294967296.0);
    scale = T(1 / (1 - p));
  }

  FW_INLINE void drop(const Word* word, const T* from, T* to, Index count) const {
    const Word limit = dropped;
    const T factor = scale;
#pragma omp simd
    for (Index i = 0; i < count; ++i) {
      const T kept = factor * from[i];
      to[i] = word[i] < limit ? T(0) : kept;
    }
  }

  void run() const {
    constexpr Index COUNT = Threefry::COUNT;
    const Index runs = (numbers + COUNT - 1) / COUNT, used = numbers < 32768 ? 1 : threads;
    const Threefry generator(*seed);
#pragma omp parallel for schedule(static) num_threads(used)
    for (Index n = 0; n < runs; ++n) {
      Word word[COUNT];
      generator.words(n, word);
      const Index first = n * COUNT;
      if (numbers - first >= COUNT) {
        drop(word, x + first, y + first, COUNT);
      } else {
        drop(word, x + first, y + first, numbers - first);
      }
    }
  }
};
