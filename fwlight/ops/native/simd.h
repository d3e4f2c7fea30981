// Vectors of the widest kind the compiler was told to use, and products of small matrices in
// registers. Everything here works on row-major scratch whose rows are multiples of PAD numbers.
#pragma once
#include <cstdint>
#include <cstring>
#include <utility>

#if defined(__AVX512F__)
#define FW_VECTOR_BYTES 64
#define FW_REGISTERS 32
#elif defined(__AVX__)
#define FW_VECTOR_BYTES 32
#define FW_REGISTERS 16
#elif defined(__aarch64__)
#define FW_VECTOR_BYTES 16
#define FW_REGISTERS 32
#else
#define FW_VECTOR_BYTES 16
#define FW_REGISTERS 16
#endif

#define FW_ALWAYS __attribute__((always_inline))
#define FW_INLINE inline FW_ALWAYS
#define FW_APART __attribute__((noinline))
#if defined(__clang__)
#define FW_UNROLL _Pragma("clang loop unroll(full)")
#else
#define FW_UNROLL _Pragma("GCC unroll 32")
#endif

using Index = std::int64_t;

constexpr int CHUNK = 16;  // tokens worked on at once
constexpr int PAD = 16;    // key and value sizes are padded with zeros to multiples of this

template <class T>
struct Simd {
  typedef T vec __attribute__((vector_size(FW_VECTOR_BYTES)));
  typedef T mem __attribute__((vector_size(FW_VECTOR_BYTES), aligned(alignof(T)), may_alias));
  static constexpr int width = FW_VECTOR_BYTES / sizeof(T);
};

template <class T>
FW_INLINE typename Simd<T>::vec load(const T* p) {
  return *reinterpret_cast<const typename Simd<T>::mem*>(p);
}

template <class T>
FW_INLINE void store(T* p, typename Simd<T>::vec x) {
  *reinterpret_cast<typename Simd<T>::mem*>(p) = x;
}

// A tile of ROWS x (VECS vectors) of a product a(m, k) B[k, :], kept in registers. `columns_of`
// finds a(m, k) at A[k * lda + m], `rows_of` at A[m * lda + k].
template <class T, int ROWS, int VECS>
struct Tile {
  using vec = typename Simd<T>::vec;
  static constexpr int W = Simd<T>::width;
  static constexpr int rows = ROWS, vecs = VECS;
  vec c[ROWS][VECS];

  FW_INLINE void zero() {
    FW_UNROLL for (int m = 0; m < ROWS; ++m) {
      FW_UNROLL for (int j = 0; j < VECS; ++j) c[m][j] = vec{};
    }
  }
  FW_INLINE void read(const T* p, Index ld) {
    FW_UNROLL for (int m = 0; m < ROWS; ++m) {
      FW_UNROLL for (int j = 0; j < VECS; ++j) c[m][j] = load(p + m * ld + j * W);
    }
  }
  FW_INLINE void write(T* p, Index ld) const {
    FW_UNROLL for (int m = 0; m < ROWS; ++m) {
      FW_UNROLL for (int j = 0; j < VECS; ++j) store(p + m * ld + j * W, c[m][j]);
    }
  }
  FW_INLINE void scale(T x) {
    FW_UNROLL for (int m = 0; m < ROWS; ++m) {
      FW_UNROLL for (int j = 0; j < VECS; ++j) c[m][j] *= x - vec{};
    }
  }
  FW_INLINE void subtract_from(T* p, Index ld) const {
    FW_UNROLL for (int m = 0; m < ROWS; ++m) {
      FW_UNROLL for (int j = 0; j < VECS; ++j) {
        T* at = p + m * ld + j * W;
        store(at, load(at) - c[m][j]);
      }
    }
  }
  FW_INLINE void add_columns_of(const T* A, Index lda, const T* B, Index ldb, Index n) {
    for (Index k = 0; k < n; ++k, A += lda, B += ldb) {
      vec b[VECS];
      FW_UNROLL for (int j = 0; j < VECS; ++j) b[j] = load(B + j * W);
      FW_UNROLL for (int m = 0; m < ROWS; ++m) {
        const vec a = A[m] - vec{};
        FW_UNROLL for (int j = 0; j < VECS; ++j) c[m][j] += a * b[j];
      }
    }
  }
  FW_INLINE void add_rows_of(const T* A, Index lda, const T* B, Index ldb, Index n) {
    // One pointer for four rows: the others are reached by scaled offsets.
    constexpr int GROUPS = (ROWS + 3) / 4;
    const T* p[GROUPS];
    FW_UNROLL for (int g = 0; g < GROUPS; ++g) p[g] = A + 4 * g * lda;
    const Index lda3 = 3 * lda;
    for (Index k = 0; k < n; ++k, B += ldb) {
      vec b[VECS];
      FW_UNROLL for (int j = 0; j < VECS; ++j) b[j] = load(B + j * W);
      FW_UNROLL for (int m = 0; m < ROWS; ++m) {
        const T* row = p[m / 4];
        const Index at = m % 4 == 0 ? 0 : m % 4 == 1 ? lda : m % 4 == 2 ? 2 * lda : lda3;
        const vec a = row[at] - vec{};
        FW_UNROLL for (int j = 0; j < VECS; ++j) c[m][j] += a * b[j];
      }
      FW_UNROLL for (int g = 0; g < GROUPS; ++g) ++p[g];
    }
  }
};

// What is done for one tile at row i and column j.
#define FW_TILE [&](auto& tile, Index i, Index j) FW_ALWAYS

// Call f(tile, row, column) for tiles that cover `rows` x `columns`, both multiples of PAD.
template <class T, class F>
FW_INLINE void for_tiles(Index rows, Index columns, F f) {
  constexpr int W = Simd<T>::width;
  constexpr int R2 = FW_REGISTERS == 32 ? 8 : 4;
  Index j = 0;
  for (; j + 2 * W <= columns; j += 2 * W) {
    for (Index i = 0; i < rows; i += R2) {
      Tile<T, R2, 2> tile;
      f(tile, i, j);
    }
  }
  if constexpr (PAD % (2 * W) != 0) {
    if (j < columns) {
      for (Index i = 0; i < rows; i += 16) {
        Tile<T, 16, 1> tile;
        f(tile, i, j);
      }
    }
  }
}

#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define FW_SHUFFLE 1
#endif
#endif

#ifdef FW_SHUFFLE
// One step of the transposition by recursion: exchange the lanes that have bit D with the rows
// that have it.
template <int D, class V, int... L>
FW_INLINE void exchange(V& a, V& b, std::integer_sequence<int, L...>) {
  constexpr int W = sizeof...(L);
  const V x = __builtin_shufflevector(a, b, (L & D ? W + L - D : L)...);
  const V y = __builtin_shufflevector(a, b, (L & D ? W + L : L + D)...);
  a = x;
  b = y;
}

template <int D, int W, class V>
FW_INLINE void transpose_step(V* r) {
  if constexpr (D < W) {
    FW_UNROLL for (int i = 0; i < W; ++i) {
      if ((i & D) == 0) exchange<D>(r[i], r[i + D], std::make_integer_sequence<int, W>{});
    }
    transpose_step<2 * D, W>(r);
  }
}
#endif

// to[j, i] = from[i, j] for a matrix of `rows` x `columns`, both multiples of the vector width.
template <class T>
inline void transpose(const T* from, Index ld_from, T* to, Index ld_to, Index rows, Index columns) {
#ifdef FW_SHUFFLE
  constexpr int W = Simd<T>::width;
  for (Index i = 0; i < rows; i += W) {
    for (Index j = 0; j < columns; j += W) {
      typename Simd<T>::vec r[W];
      FW_UNROLL for (int l = 0; l < W; ++l) r[l] = load(from + (i + l) * ld_from + j);
      transpose_step<1, W>(r);
      FW_UNROLL for (int l = 0; l < W; ++l) store(to + (j + l) * ld_to + i, r[l]);
    }
  }
#else
  for (Index i = 0; i < rows; ++i) {
    for (Index j = 0; j < columns; ++j) to[j * ld_to + i] = from[i * ld_from + j];
  }
#endif
}

// Copy `rows` x `columns` numbers and fill up to `all_rows` x `all_columns` with zeros.
template <class T>
inline void pack(
    const T* from, Index ld_from, Index rows, Index columns, T* to, Index all_rows,
    Index all_columns) {
  for (Index i = 0; i < rows; ++i) {
    std::memcpy(to + i * all_columns, from + i * ld_from, columns * sizeof(T));
    if (columns < all_columns) {
      std::memset(to + i * all_columns + columns, 0, (all_columns - columns) * sizeof(T));
    }
  }
  if (rows < all_rows) {
    std::memset(to + rows * all_columns, 0, (all_rows - rows) * all_columns * sizeof(T));
  }
}

template <class T>
inline void unpack(const T* from, Index ld_from, Index rows, Index columns, T* to, Index ld_to) {
  for (Index i = 0; i < rows; ++i) {
    std::memcpy(to + i * ld_to, from + i * ld_from, columns * sizeof(T));
  }
}
