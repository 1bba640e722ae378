/* The mean of vectors: the compiled kernel of lifl.rules.kernels and lifl.rules.integers.
 *
 * out = keep * out + sum of weights[i] * vectors[i], where `keep` and the weights are shares, which add up to 1.
 *
 * A fold is bound by memory, so everything here is about the order in which memory is touched, and about how much can be
 * computed meanwhile.
 *
 * Right to the last bit.  The mean of equal numbers is that number, whatever the shares.  float32 is multiplied and
 * summed in double, and rounded once: there the shares' own rounding is too small to be seen.  float64, and the narrow
 * floats, which are computed in float, fold differences from the mean so far (CENTRED): c + sum of w (x - c), c being
 * what `out` holds, or the first vector; between equal numbers they are 0.  Where the difference of two numbers is beyond
 * the type the chunk is done again with all of them a quarter as large.  Nothing is summed in a narrow type.
 *
 * Blocks.  The vectors are walked in blocks of BLOCK_BYTES of the accumulator.  Within a block at most ROWS_MAX
 * vectors are added per pass, while their sums wait in the L2 cache, unrounded, for the next pass.
 *
 * Prefetch.  With three vectors or more per pass, lines are asked for AHEAD_LINES / rows lines before they are used; at
 * the end of a pass, those of the next one.  That keeps about AHEAD_LINES lines under way, whatever the number of
 * streams; many more than that are slower than none.  With one or two vectors the processor's own prefetcher does
 * better alone.
 *
 * Stores.  An accumulator of STREAM_BYTES or more that is written for the first time is stored past the caches: its
 * old lines are not read first, and nothing that is still needed is pushed out.  (No memset and no memcpy on this
 * way: GCC makes string instructions of them, which wait for such stores: eight times slower.)
 *
 * Vectors.  Each pass works on chunks of CHUNK elements, in loops (fold_type.h) which the compiler turns into vector
 * instructions, or which say them (float32 on x86-64, where it takes twice as many).  On x86-64 they are compiled for AVX2
 * and for AVX-512 (fold_target.h), and the processor's features choose at run time; one that has neither is left to
 * NumPy.
 *
 * The file needs nothing but a C compiler with GCC's attributes (GCC, Clang) and libc; it does not include Python's
 * headers, and is loaded by ctypes (lifl.rules.native), which releases the interpreter's lock.
 */

#include <stdint.h>
#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define BLOCK_BYTES (64 * 1024)
#define STREAM_BYTES (8 * 1024 * 1024) /* a smaller one may still be in a cache when it is read next */
#define ROWS_MAX 8
#define AHEAD_LINES 24
#define LINE_BYTES 64
#define CHUNK 32 /* elements: whole lines, whatever their type */

#define ALWAYS static inline __attribute__((always_inline))

/* ---- one element of each type, widened ------------------------------------------------------------------------- */

ALWAYS float float_of_bits(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* Exact for every half.  A subnormal half is made as 2^-14 + itself, less 2^-14: no float in between is subnormal,
 * which some processors compute a hundred times slower. */
ALWAYS float from_half(uint16_t half)
{
    uint32_t rest = half & 0x7fffu, sign = (uint32_t)(half & 0x8000u) << 16;
    uint32_t normal = (rest << 13) + (rest >= 0x7c00u ? 224u << 23 : 112u << 23);
    float subnormal = float_of_bits((rest << 13) + (113u << 23)) - 0x1p-14f;
    uint32_t bits;
    memcpy(&bits, &subnormal, sizeof bits);
    return float_of_bits((rest < 0x400u ? bits : normal) | sign);
}

ALWAYS float from_bfloat(uint16_t value)
{
    return float_of_bits((uint32_t)value << 16);
}

#define SAME(value) (value)
#define TO_DOUBLE(value) ((double)(value))

static void stream_end(void)
{
#if defined(__x86_64__)
    _mm_sfence(); /* what is streamed is seen before whatever is written next: the object's seal */
#endif
}

/* ---- all types, for each set of instructions --------------------------------------------------------------------- */

typedef int fold_of_type(void *, int64_t, const void *const *, const double *, int64_t, double);

#if defined(__x86_64__)

#define AVX2 target("avx2,fma")
#define SUFFIX avx2
#define INLINE static inline __attribute__((always_inline, AVX2))
#define NOINLINE static __attribute__((noinline, AVX2))
#define STREAMS 1
#define FLOAT32_LANES 4
#define VECTOR __m256d
#define LOAD_X(from) _mm256_cvtps_pd(_mm_loadu_ps(from))
#define LOAD_A LOAD_X
#define LOAD_C(from) _mm256_loadu_pd(from)
#define STORE_A(to, sum) _mm_storeu_ps(to, _mm256_cvtpd_ps(sum))
#define STORE_C(to, sum) _mm256_storeu_pd(to, sum)
#define SPREAD _mm256_set1_pd
#define MULTIPLY _mm256_mul_pd
#define MULTIPLY_ADD _mm256_fmadd_pd
#include "fold_target.h"
#undef FLOAT32_LANES
#undef VECTOR
#undef LOAD_X
#undef LOAD_C
#undef STORE_A
#undef STORE_C
#undef SPREAD
#undef MULTIPLY
#undef MULTIPLY_ADD

#define AVX512 target("avx512f,avx512vl,avx512dq,avx512bw,avx2,fma")
#define SUFFIX avx512
#define INLINE static inline __attribute__((always_inline, AVX512))
#define NOINLINE static __attribute__((noinline, AVX512))
#define STREAMS 1
#define FLOAT32_LANES 8
#define VECTOR __m512d
#define LOAD_X(from) _mm512_cvtps_pd(_mm256_loadu_ps(from))
#define LOAD_C(from) _mm512_loadu_pd(from)
#define STORE_A(to, sum) _mm256_storeu_ps(to, _mm512_cvtpd_ps(sum))
#define STORE_C(to, sum) _mm512_storeu_pd(to, sum)
#define SPREAD _mm512_set1_pd
#define MULTIPLY _mm512_mul_pd
#define MULTIPLY_ADD _mm512_fmadd_pd
#include "fold_target.h"

static fold_of_type *const *folds(void)
{
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("fma"))
        return folds_avx512;
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? folds_avx2 : 0;
}

#else

#define SUFFIX plain
#define INLINE ALWAYS
#define NOINLINE static __attribute__((noinline))
#define STREAMS 0
#include "fold_target.h"

static fold_of_type *const *folds(void)
{
    return folds_plain;
}

#endif

/* Returns whether this processor can run the kernel. */
int lifl_can_fold(void)
{
    return folds() != 0;
}

/* acc[0:size] = keep * acc + sum of weights[i] * vectors[i][0:size], for `rows` >= 1 vectors of the type `dtype` (a
 * position in core/schema.DTYPE_BYTES).  acc is double for float64, else float; no vector overlaps it, but with keep 0
 * one of float64 may be it.  `keep` and the weights add up to 1; for float32 they need not.  With keep 0, acc is not
 * read.  All addresses are multiples of their type's size.  Returns 0, 1 when an element of the result is not finite, or
 * -1 for a `dtype` that it does not know. */
int lifl_fold(int dtype, void *acc, int64_t size, const void *const *vectors, const double *weights, int64_t rows,
              double keep)
{
    if (dtype < 0 || dtype > 3 || rows < 1 || !lifl_can_fold())
        return -1;
    return folds()[dtype](acc, size, vectors, weights, rows, keep);
}
