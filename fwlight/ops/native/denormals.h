// Numbers too small for the format's exponent. Writes multiply what they leave of older ones by
// factors below 1, so after some hundred tokens much of a memory would be such numbers, and
// processors are tens of times slower with them.
#pragma once
#if defined(__SSE2__)
#include <immintrin.h>
#endif

// While it lives, this thread takes them for zero and makes none.
class FlushDenormals {
#if defined(__SSE2__)
 public:
  FlushDenormals() : before_(_mm_getcsr()) { _mm_setcsr(before_ | 0x8040); }
  ~FlushDenormals() { _mm_setcsr(before_); }
  FlushDenormals(const FlushDenormals&) = delete;
  FlushDenormals& operator=(const FlushDenormals&) = delete;

 private:
  unsigned before_;
#endif
};
