// Matrices in panels of PAD columns. Number (i, j) of a matrix of R rows lies at
//
//     (j / PAD) R PAD + i PAD + j % PAD
//
// so that the steps inside all products are known to the compiler, a block of PAD x PAD numbers
// is contiguous, and what is read one after the other lies one after the other.
#pragma once
#include "shape.h"

constexpr int BLOCK = PAD * PAD;

// ROWS x (PANELS PAD) numbers of a matrix, kept in registers.
template <class T, int ROWS, int PANELS>
struct Block {
  using vec = typename Simd<T>::vec;
  static constexpr int W = Simd<T>::width, VECS = PAD / W;
  static constexpr int rows = ROWS, panels = PANELS, vecs = VECS;
  vec c[ROWS][PANELS][VECS];

  template <class F>
  FW_INLINE void each(F f) {
    FW_UNROLL for (int m = 0; m < ROWS; ++m) {
      FW_UNROLL for (int p = 0; p < PANELS; ++p) {
        FW_UNROLL for (int v = 0; v < VECS; ++v) f(c[m][p][v], m, p, v * W);
      }
    }
  }
  FW_INLINE void zero() {
    each([](vec& x, int, int, int) FW_ALWAYS { x = vec{}; });
  }
  // `ld`: from row to row, `step`: from panel to panel; as they are in panels, or in a sequence.
  FW_INLINE void read(const T* from, Index ld, Index step) {
    each([&](vec& x, int m, int p, int v) FW_ALWAYS { x = load(from + m * ld + p * step + v); });
  }
  FW_INLINE void write(T* to, Index ld, Index step) {
    each([&](vec& x, int m, int p, int v) FW_ALWAYS { store(to + m * ld + p * step + v, x); });
  }
  // Add what `read` reads. To sums that begin at zero, and last: then a state is rounded once for a
  // chunk, not for every token of it.
  FW_INLINE void plus(const T* from, Index ld, Index step) {
    each([&](vec& x, int m, int p, int v) FW_ALWAYS { x += load(from + m * ld + p * step + v); });
  }
  // The same of what decays.
  FW_INLINE void plus(const T* from, Index ld, Index step, T by) {
    each([&](vec& x, int m, int p, int v) FW_ALWAYS {
      x += by * load(from + m * ld + p * step + v);
    });
  }
  // The same of what decays row by row, or column by column.
  FW_INLINE void plus_rows(const T* from, Index ld, Index step, const T* by) {
    each([&](vec& x, int m, int p, int v) FW_ALWAYS {
      x += by[m] * load(from + m * ld + p * step + v);
    });
  }
  FW_INLINE void plus_columns(const T* from, Index ld, Index step, const T* by) {
    each([&](vec& x, int m, int p, int v) FW_ALWAYS {
      x += load(by + p * PAD + v) * load(from + m * ld + p * step + v);
    });
  }
  FW_INLINE void scale_rows(const T* by) {
    each([&](vec& x, int m, int, int) FW_ALWAYS { x *= by[m] - vec{}; });
  }
  // Add a(m, k) B[k, :], or subtract it, for `depth` values of k. B's panels are `b_step` apart.
  // a(m, k) is found at A[k PAD + m], or with ROWS_OF at A[m PAD + k], where the next panel of A
  // comes after `a_step` numbers.
  template <bool ROWS_OF, int SIGN = 1>
  FW_INLINE void add(const T* A, Index a_step, const T* B, Index b_step, Index depth) {
    for (; depth > 0; depth -= PAD, A += a_step, B += BLOCK) {
      const Index n = std::min<Index>(depth, PAD);
      for (Index k = 0; k < n; ++k) add_one<ROWS_OF, SIGN>(A, B, b_step, k);
    }
  }
  // The same in parts with sums of their own: the longer a chain, the more rounding errors add up,
  // most of all where large numbers cancel. `before` is memory, as all registers are taken.
  template <bool ROWS_OF, int SIGN = 1>
  FW_INLINE void add_in_parts(const T* A, Index a_step, const T* B, Index b_step, Index depth) {
    constexpr Index PART = 2 * PAD;
    T before[ROWS * PANELS * PAD];
    for (; depth > 0; depth -= PART, A += 2 * a_step, B += 2 * BLOCK) {
      write(before, PAD, ROWS * PAD);
      zero();
      add<ROWS_OF, SIGN>(A, a_step, B, b_step, std::min(depth, PART));
      plus(before, PAD, ROWS * PAD);
    }
  }
  template <bool ROWS_OF, int SIGN>
  FW_INLINE void add_one(const T* A, const T* B, Index b_step, Index k) {
    vec b[PANELS][VECS];
    FW_UNROLL for (int p = 0; p < PANELS; ++p) {
      FW_UNROLL for (int v = 0; v < VECS; ++v) b[p][v] = load(B + k * PAD + p * b_step + v * W);
    }
    FW_UNROLL for (int m = 0; m < ROWS; ++m) {
      const vec a = (ROWS_OF ? A[m * PAD + k] : A[k * PAD + m]) - vec{};
      FW_UNROLL for (int p = 0; p < PANELS; ++p) {
        FW_UNROLL for (int v = 0; v < VECS; ++v) {
          if (SIGN > 0) {
            c[m][p][v] += a * b[p][v];
          } else {
            c[m][p][v] -= a * b[p][v];
          }
        }
      }
    }
  }
};

// Call f(panels, j) for the columns from j on, `panels::count` panels of them at a time, so that
// they cover `columns`. Two panels at once need fewest loads for a multiplication, where there are
// registers for them.
template <int N>
struct Panels {
  static constexpr int count = N;
};
#define FW_PANELS [&](auto panels, Index j) FW_ALWAYS
template <class T, class F>
FW_INLINE void for_panels(Index columns, F f) {
  Index j = 0;
  if constexpr (Simd<T>::width == PAD && FW_REGISTERS == 32) {
    for (; j + 2 * PAD <= columns; j += 2 * PAD) f(Panels<2>{}, j);
  }
  for (; j < columns; j += PAD) f(Panels<1>{}, j);
}

constexpr int SUMS = FW_REGISTERS == 32 ? 16 : 8;  // registers that a block takes

// Call f(block, i) for blocks that cover `rows`, a multiple of PAD, of such panels.
#define FW_BLOCK [&](auto& block, Index i) FW_ALWAYS
template <class T, int N, class F>
FW_INLINE void for_rows(Panels<N>, Index rows, F f) {
  constexpr int VECS = PAD / Simd<T>::width;
  constexpr int ROWS = std::max(1, SUMS / (VECS * N));
  for (Index i = 0; i < rows; i += ROWS) {
    Block<T, ROWS, N> block;
    f(block, i);
  }
}

template <class T>
FW_INLINE void copy_row(const T* from, T* to) {
  for (int v = 0; v < PAD; v += Simd<T>::width) store(to + v, load(from + v));
}

// Copy `rows` x `columns` numbers into panels of `all_rows` rows, filled up with zeros;
// row by row, as they lie in memory that is in no cache yet.
template <class T>
FW_APART void to_panels(
    const T* from, Index ld, Index rows, Index columns, T* to, Index all_rows) {
  const Index whole = columns / PAD * PAD, rest = columns - whole, step = all_rows * PAD;
  for (Index i = 0; i < rows; ++i, from += ld) {
    T* row = to + i * PAD;
    for (Index j = 0; j < whole; j += PAD, row += step) copy_row(from + j, row);
    if (rest) {
      std::memset(row, 0, PAD * sizeof(T));
      std::memcpy(row, from + whole, rest * sizeof(T));
    }
  }
  for (Index i = rows; i < all_rows; ++i) {
    T* row = to + i * PAD;
    for (Index j = 0; j < columns; j += PAD, row += step) std::memset(row, 0, PAD * sizeof(T));
  }
}

// Undo `to_panels`.
template <class T>
FW_APART void from_panels(
    const T* from, Index all_rows, Index rows, Index columns, T* to, Index ld) {
  const Index whole = columns / PAD * PAD, rest = columns - whole, step = all_rows * PAD;
  for (Index i = 0; i < rows; ++i, to += ld) {
    const T* row = from + i * PAD;
    for (Index j = 0; j < whole; j += PAD, row += step) copy_row(row, to + j);
    if (rest) std::memcpy(to + whole, row, rest * sizeof(T));
  }
}

// Brings what the next chunk reads into the second cache, an equal share after every block of the
// state: the processor itself looks ahead within one page of memory, which holds a chunk or two, and
// many requests at once would stop it. Small states leave no time for it.
template <class T>
class Prefetch {
 public:
  explicit FW_INLINE Prefetch(const Shape& s)
      : blocks_(s.keys_pad * s.values_pad / (SUMS * Simd<T>::width)) {}
  static FW_INLINE bool pays(const Shape& s) { return s.keys_pad * s.values_pad >= 64 * 64; }
  // Three times at most.
  FW_INLINE void add(const T* at, Index ld, Index rows, Index columns) {
    if (rows == 0) return;
    parts_[count_++] = {at, ld, rows, columns};
    lines_ += rows * ((columns + LINE - 1) / LINE);
    share_ = (lines_ + blocks_ - 1) / blocks_;
  }
  FW_INLINE void step() {
    for (Index lines = share_; lines > 0 && next_ < count_; --lines) {
      Part& part = parts_[next_];
      __builtin_prefetch(part.at + column_, 0, 2);
      column_ += LINE;
      if (column_ < part.columns) continue;
      column_ = 0;
      part.at += part.ld;
      if (--part.rows == 0) ++next_;
    }
  }

 private:
  static constexpr Index LINE = 64 / sizeof(T);
  struct Part {
    const T* at;
    Index ld, rows, columns;
  };
  Part parts_[3];
  int count_ = 0, next_ = 0;
  Index column_ = 0, lines_ = 0, share_ = 0, blocks_;
};

// `rows` x `columns` numbers, from row `first` on, in memory as the caller lays it out, where a
// chunk's results go.
template <class T>
struct Rows {
  T* data;
  Index ld, first, rows, columns;

  template <class B>
  FW_INLINE void put(B& block, Index i, Index j) const {
    T* to = data + (first + i) * ld + j;
    if (i + B::rows <= rows && j + B::panels * PAD <= columns) {
      block.write(to, ld, PAD);
    } else {
      T own[B::rows * B::panels * PAD];
      block.write(own, PAD, B::rows * PAD);
      const Index there = std::min<Index>(B::rows, rows - i);
      from_panels(own, B::rows, there, std::min<Index>(B::panels * PAD, columns - j), to, ld);
    }
  }
};

// Multiply the rows of a panel by the numbers of b.
template <class T>
FW_INLINE void scale_panel(const T* b, const T* from, T* to) {
  for (int i = 0; i < CHUNK; ++i) {
    for (int v = 0; v < PAD; v += Simd<T>::width) {
      store(to + i * PAD + v, b[i] * load(from + i * PAD + v));
    }
  }
}

// Row i of a matrix from column v on, with `others` right of the diagonal, and on it if STRICT.
template <class T, bool STRICT>
FW_INLINE typename Simd<T>::vec lower(
    typename Simd<T>::vec x, Index i, int v,
    typename Simd<T>::vec others = typename Simd<T>::vec{}) {
  typename Simd<T>::vec column;
  FW_UNROLL for (int l = 0; l < Simd<T>::width; ++l) column[l] = T(v + l);
  return (STRICT ? column < T(i) : column <= T(i)) ? x : others;
}

template <class T>
FW_INLINE void transpose_block(const T* from, T* to) {
  transpose(from, PAD, to, PAD, PAD, PAD);
}

// Transpose a matrix of `rows` x `columns`, multiples of PAD, block by block; into the first of
// `all` rows if that is given.
template <class T>
inline void transpose_panels(const T* from, T* to, Index rows, Index columns, Index all = 0) {
  const Index to_rows = all ? all : columns;
  for (Index i = 0; i < rows; i += PAD) {
    for (Index j = 0; j < columns; j += PAD) {
      transpose_block(from + j * rows + i * PAD, to + i * to_rows + j * PAD);
    }
  }
}
