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
 * Vectors.  Each pass works on chunks of CHUNK elements, in plain loops (fold_type.h) which the compiler turns into
 * vector instructions.  On x86-64 they are compiled for AVX2 and for AVX-512, and the processor's features choose at run
 * time; one that has neither is left to NumPy.
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
#define AHEAD_LINES 32
#define LINE_BYTES 64
#define CHUNK 64 /* elements: whole lines, whatever their type */

#define INLINE static inline __attribute__((always_inline))

/* ---- one element of each type, widened ------------------------------------------------------------------------- */

INLINE float float_of_bits(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* Exact for every half.  A subnormal half is made as 2^-14 + itself, less 2^-14: no float in between is subnormal,
 * which some processors compute a hundred times slower. */
INLINE float from_half(uint16_t half)
{
    uint32_t rest = half & 0x7fffu, sign = (uint32_t)(half & 0x8000u) << 16;
    uint32_t normal = (rest << 13) + (rest >= 0x7c00u ? 224u << 23 : 112u << 23);
    float subnormal = float_of_bits((rest << 13) + (113u << 23)) - 0x1p-14f;
    uint32_t bits;
    memcpy(&bits, &subnormal, sizeof bits);
    return float_of_bits((rest < 0x400u ? bits : normal) | sign);
}

INLINE float from_bfloat(uint16_t value)
{
    return float_of_bits((uint32_t)value << 16);
}

#define SAME(value) (value)
#define TO_DOUBLE(value) ((double)(value))

/* ---- results that are not finite --------------------------------------------------------------------------------- */

/* Whether one of the `count` results is NaN or infinite: all bits of its exponent are set.  They are in the L1 cache. */
#define DEFINE_ODD(A, BITS, EXPONENT)                                                                                  \
    INLINE int odd_of_##A(const A *results, int64_t count)                                                             \
    {                                                                                                                  \
        BITS odd = 0;                                                                                                  \
        for (int64_t j = 0; j < count; j++) {                                                                          \
            BITS bits;                                                                                                 \
            memcpy(&bits, results + j, sizeof bits);                                                                   \
            odd |= (bits & EXPONENT) == EXPONENT;                                                                      \
        }                                                                                                              \
        return odd != 0;                                                                                               \
    }                                                                                                                  \
    typedef int odd_of_##A##_defined

DEFINE_ODD(float, uint32_t, 0x7f800000u);
DEFINE_ODD(double, uint64_t, 0x7ff0000000000000u);

/* ---- stores past the caches ------------------------------------------------------------------------------------- */

#if defined(__x86_64__)
/* Copies whole lines to a place that begins with a line and is not read soon. */
__attribute__((target("avx"), noinline)) static void stream(void *out, const void *from, size_t nbytes)
{
    for (size_t i = 0; i < nbytes; i += 32)
        _mm256_stream_si256((__m256i *)((char *)out + i), _mm256_load_si256((const __m256i *)((const char *)from + i)));
}

static void stream_end(void)
{
    _mm_sfence(); /* what is streamed is seen before whatever is written next: the object's seal */
}
#else /* never called: only the functions for AVX2 stream */
static void stream(void *out, const void *from, size_t nbytes)
{
    memcpy(out, from, nbytes);
}

static void stream_end(void) {}
#endif

/* ---- floats ------------------------------------------------------------------------------------------------------ */

/* Asks for line `line` of the `lines` that the chunks of a pass hold, or of the next pass's when beyond. */
INLINE void prefetch(const char *row, const char *next, int64_t at, int64_t pass_bytes)
{
    __builtin_prefetch(at < pass_bytes ? row + at : next + (at - pass_bytes), 0, 3);
}

#define NAME float64
#define X double
#define A double
#define C double
#define WIDEN SAME
#define CENTRED 1
#include "fold_type.h"

#define NAME float32
#define X float
#define A float
#define C double
#define WIDEN TO_DOUBLE
#define CENTRED 0
#include "fold_type.h"

#define NAME float16
#define X uint16_t
#define A float
#define C float
#define WIDEN from_half
#define CENTRED 1
#include "fold_type.h"

#define NAME bfloat16
#define X uint16_t
#define A float
#define C float
#define WIDEN from_bfloat
#define CENTRED 1
#include "fold_type.h"

/* ---- all types, for each set of instructions --------------------------------------------------------------------- */

/* In the order of core/schema.DTYPE_BYTES. */
#define EACH(DO)                                                                                                       \
    DO(0, float64)                                                                                                     \
    DO(1, float32)                                                                                                     \
    DO(2, float16)                                                                                                     \
    DO(3, bfloat16)

typedef int fold_of_type(void *, int64_t, const void *const *, const double *, int64_t, double);

#define LISTED(SUFFIX, NUMBER, NAME) [NUMBER] = NAME##_##SUFFIX,
#define FUNCTION(SUFFIX, TARGET, STREAMS, NAME)                                                                        \
    TARGET static int NAME##_##SUFFIX(void *acc, int64_t size, const void *const *vectors, const double *weights,      \
                                      int64_t rows, double keep)                                                       \
    {                                                                                                                  \
        return NAME##_body(acc, size, vectors, weights, rows, keep, STREAMS);                                          \
    }

#if defined(__x86_64__)
#define AVX2(NUMBER, NAME) FUNCTION(avx2, __attribute__((target("avx2,fma"))), 1, NAME)
#define AVX2_LISTED(NUMBER, NAME) LISTED(avx2, NUMBER, NAME)
EACH(AVX2)
static fold_of_type *const avx2[] = {EACH(AVX2_LISTED)};

#define AVX512(NUMBER, NAME) FUNCTION(avx512, __attribute__((target("avx512f,avx512vl,avx512dq,avx512bw,fma"))), 1, NAME)
#define AVX512_LISTED(NUMBER, NAME) LISTED(avx512, NUMBER, NAME)
EACH(AVX512)
static fold_of_type *const avx512[] = {EACH(AVX512_LISTED)};

static fold_of_type *const *folds(void)
{
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("fma"))
        return avx512;
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? avx2 : 0;
}
#else
#define PLAIN(NUMBER, NAME) FUNCTION(plain, , 0, NAME)
#define PLAIN_LISTED(NUMBER, NAME) LISTED(plain, NUMBER, NAME)
EACH(PLAIN)
static fold_of_type *const plain[] = {EACH(PLAIN_LISTED)};

static fold_of_type *const *folds(void)
{
    return plain;
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
