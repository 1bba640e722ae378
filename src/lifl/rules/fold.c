/* The mean of vectors: the compiled kernel of lifl.rules.kernels and lifl.rules.integers.
 *
 * out = sum of scales[i] * wide[i] + sum of weights[i] * vectors[i], where scales and weights are shares, which add up to
 * 1.  What is wide is of doubles: a mean so far, or partials.  `out` is wide too, and then may be the one that is
 * added to; or it is the model's.
 *
 * A fold is bound by memory, so everything here is about the order in which memory is touched, and about how much can be
 * computed meanwhile.
 *
 * Right to the last bit.  The mean of equal numbers is that number, whatever the shares.  float and what is narrower is
 * multiplied and summed in double, and rounded once, in the end: there the shares' own rounding is too small to be seen.
 * Vectors of double fold differences from the mean so far (CENTRED): c - sum of w (c - x), c being what `out` holds, or
 * the first vector; between equal numbers they are 0.  Where the difference of two numbers is beyond the type the chunk
 * is done again with all of them a quarter as large.
 *
 * Blocks.  The vectors are walked in blocks of BLOCK elements.  Within a block at most ROWS_MAX vectors are added per
 * pass, the first time onto at most WIDES_MAX of what is wide (more of that is summed up before), while their sums wait
 * in the L2 cache, unrounded, for the next pass.
 *
 * Prefetch.  With three vectors or more per pass, or two of what is wide, lines are asked for AHEAD_LINES / rows lines before they are used; at
 * the end of a pass, those of the next one.  That keeps about AHEAD_LINES lines under way, whatever the number of
 * streams; many more than that are slower than none.  With one or two vectors the processor's own prefetcher does
 * better alone.
 *
 * Stores.  An `out` of STREAM_BYTES or more that is not read is stored past the caches: its old lines are not read
 * first, and nothing that is still needed is pushed out.  (No memset and no memcpy on this way: GCC makes string
 * instructions of them, which wait for such stores: eight times slower.)
 *
 * Vectors.  Each pass works on chunks of CHUNK elements, in loops (fold_type.h) which say vector instructions (floats on
 * x86-64), or which the compiler turns into them.  On x86-64 they are compiled for AVX2 and for AVX-512 (fold_target.h),
 * and the processor's features choose at run time; one that has neither is left to NumPy.
 *
 * The file needs nothing but a C compiler with GCC's attributes (GCC, Clang) and libc; it does not include Python's
 * headers, and is loaded by ctypes (lifl.rules.native), which releases the interpreter's lock.
 */

#include <stdint.h>
#include <string.h>

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#endif

#define BLOCK 16384 /* elements */
#define STREAM_BYTES (8 * 1024 * 1024) /* a smaller one may still be in a cache when it is read next */
#define ROWS_MAX 8
#define WIDES_MAX 4
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
ALWAYS double from_half(uint16_t half)
{
    uint32_t rest = half & 0x7fffu, sign = (uint32_t)(half & 0x8000u) << 16;
    uint32_t normal = (rest << 13) + (rest >= 0x7c00u ? 224u << 23 : 112u << 23);
    float subnormal = float_of_bits((rest << 13) + (113u << 23)) - 0x1p-14f;
    uint32_t bits;
    memcpy(&bits, &subnormal, sizeof bits);
    return float_of_bits((rest < 0x400u ? bits : normal) | sign);
}

ALWAYS double from_bfloat(uint16_t value)
{
    return float_of_bits((uint32_t)value << 16);
}

#define TO_DOUBLE(value) ((double)(value))

/* ---- reproducible sums (fold_bins.h) ----------------------------------------------------------------------------- */

#define BINS_BLOCK 256
#define BINS_ROWS 8 /* vectors at a time, at most: their products stay in registers */
#define BINS_AHEAD 1024 /* bytes */
#define BIN_BITS 32
#define BIN_MIN 96 /* a multiple of BIN_BITS: the least high unit is 2^(BIN_MIN - 1023), and the low one is normal, too */
#define BIN_SHIFT 52

ALWAYS int64_t bits_of(double value)
{
    int64_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

ALWAYS double double_of_bits(int64_t bits)
{
    double value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* The exponent of a number, as its bits have it. */
ALWAYS int64_t exponent_of(double value)
{
    return (bits_of(value) >> 52) & 0x7ff;
}

/* The number with its last bit set. */
ALWAYS double odd_of(double value)
{
    return double_of_bits(bits_of(value) | 1);
}

/* What an accumulator of a unit holds before anything is added. */
ALWAYS double empty_of(int64_t unit)
{
    return double_of_bits((unit + BIN_SHIFT) << 52 | INT64_C(1) << 51);
}

/* The same, of the unit of one that holds something. */
ALWAYS double start_of(double accumulator)
{
    return double_of_bits((bits_of(accumulator) & INT64_C(0x7ff) << 52) | INT64_C(1) << 51);
}

/* What of a sum is to be carried to an accumulator: the whole number of its units that is next to it. */
ALWAYS double carried(double sum, double accumulator)
{
    const int64_t unit = exponent_of(accumulator) - BIN_SHIFT;
    const double units = sum * double_of_bits((2046 - unit) << 52) + 0.5, big = 0x1.8p52;
    double whole = (units + big) - big;
    whole -= whole > units ? 1.0 : 0.0;
    return whole * double_of_bits(unit << 52);
}

/* Keeps the compiler from making one operation of a product and what follows. */
#if defined(__x86_64__)
#define APART(product) __asm__("" : "+v"(product))
#elif defined(__aarch64__)
#define APART(product) __asm__("" : "+w"(product))
#else
#define APART(product) __asm__("" : "+m"(product))
#endif

struct bins_functions {
    void (*fold)(int, double *, int64_t, int, const double *const *, int64_t, const void *const *, const double *,
                 int64_t);
    int (*mean)(void *, int, const double *, int64_t, double);
};

static void stream_end(void)
{
#if defined(__x86_64__)
    _mm_sfence(); /* what is streamed is seen before whatever is written next: the object's seal */
#endif
}

/* ---- all types, for each set of instructions --------------------------------------------------------------------- */

typedef int fold_of_type(void *, int64_t, const double *const *, const double *, int64_t, const void *const *,
                         const double *, int64_t);

struct functions {
    fold_of_type *const *folds;
    const struct bins_functions *bins;
};

#if defined(__x86_64__)

#define AVX2 target("avx2,fma,f16c")
#define SUFFIX avx2
#define INLINE static inline __attribute__((always_inline, AVX2))
#define NOINLINE static __attribute__((noinline, AVX2))
#define STREAMS 1
#define LANES 4
#define BINS_LANES LANES
#define VECTOR __m256d
#define LOAD_FLOAT(from) _mm256_cvtps_pd(_mm_loadu_ps(from))
#define LOAD_HALF(from) _mm256_cvtps_pd(_mm_cvtph_ps(_mm_loadl_epi64((const __m128i *)(from))))
#define LOAD_BFLOAT(from)                                                                                              \
    _mm256_cvtps_pd(                                                                                                   \
        _mm_castsi128_ps(_mm_slli_epi32(_mm_cvtepu16_epi32(_mm_loadl_epi64((const __m128i *)(from))), 16)))
#define LOAD_DOUBLE(from) _mm256_loadu_pd(from)
#define STORE_FLOAT(to, sum) _mm_storeu_ps(to, _mm256_cvtpd_ps(sum))
#define STORE_DOUBLE(to, sum) _mm256_storeu_pd(to, sum)
#define SPREAD _mm256_set1_pd
#define MULTIPLY _mm256_mul_pd
#define MULTIPLY_ADD _mm256_fmadd_pd
#define SIGNS _mm256_movemask_pd
#include "fold_target.h"
#undef LANES
#undef BINS_LANES
#undef SIGNS
#undef VECTOR
#undef LOAD_FLOAT
#undef LOAD_HALF
#undef LOAD_BFLOAT
#undef LOAD_DOUBLE
#undef STORE_FLOAT
#undef STORE_DOUBLE
#undef SPREAD
#undef MULTIPLY
#undef MULTIPLY_ADD

#define AVX512 target("avx512f,avx512vl,avx512dq,avx512bw,avx2,fma,f16c")
#define SUFFIX avx512
#define INLINE static inline __attribute__((always_inline, AVX512))
#define NOINLINE static __attribute__((noinline, AVX512))
#define STREAMS 1
#define LANES 8
#define BINS_LANES LANES
#define VECTOR __m512d
#define LOAD_FLOAT(from) _mm512_cvtps_pd(_mm256_loadu_ps(from))
#define LOAD_HALF(from) _mm512_cvtps_pd(_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(from))))
#define LOAD_BFLOAT(from)                                                                                              \
    _mm512_cvtps_pd(                                                                                                   \
        _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)(from))), 16)))
#define LOAD_DOUBLE(from) _mm512_loadu_pd(from)
#define STORE_FLOAT(to, sum) _mm256_storeu_ps(to, _mm512_cvtpd_ps(sum))
#define STORE_DOUBLE(to, sum) _mm512_storeu_pd(to, sum)
#define SPREAD _mm512_set1_pd
#define MULTIPLY _mm512_mul_pd
#define MULTIPLY_ADD _mm512_fmadd_pd
#define SIGNS(values) _mm512_movepi64_mask((__m512i)(values))
#define LARGER(a, b) _mm512_range_pd(a, b, 11) /* 11: of the magnitudes, without a sign */
#include "fold_target.h"

#define SAVED_AVX 0x06u    /* XCR0: the system saves the registers of SSE and AVX between threads */
#define SAVED_AVX512 0xe6u /* ... and those of AVX-512 */
#define AVX512_ALL (bit_AVX512F | bit_AVX512VL | bit_AVX512DQ | bit_AVX512BW)

/* Asks the processor itself, since not every compiler's library does it (__builtin_cpu_supports of Zig's says no). */
static const struct functions *looked_for(void)
{
    static const struct functions avx2 = {folds_avx2, &bins_functions_avx2},
                                  avx512 = {folds_avx512, &bins_functions_avx512};
    unsigned a, b, c, d, saved, high;
    const unsigned wanted = bit_OSXSAVE | bit_FMA | bit_F16C;
    if (!__get_cpuid(1, &a, &b, &c, &d) || (c & wanted) != wanted || !__get_cpuid_count(7, 0, &a, &b, &c, &d))
        return 0;
    __asm__("xgetbv" : "=a"(saved), "=d"(high) : "c"(0));
    if ((saved & SAVED_AVX512) == SAVED_AVX512 && (b & AVX512_ALL) == AVX512_ALL)
        return &avx512;
    return (saved & SAVED_AVX) == SAVED_AVX && b & bit_AVX2 ? &avx2 : 0;
}

static const struct functions *functions(void)
{
    static const struct functions *found;
    static int looked; /* a virtual machine is left for each question: it is asked once */
    if (!__atomic_load_n(&looked, __ATOMIC_ACQUIRE)) {
        __atomic_store_n(&found, looked_for(), __ATOMIC_RELAXED);
        __atomic_store_n(&looked, 1, __ATOMIC_RELEASE);
    }
    return __atomic_load_n(&found, __ATOMIC_RELAXED);
}

#else

#define SUFFIX plain
#define INLINE ALWAYS
#define NOINLINE static __attribute__((noinline))
#define STREAMS 0
#define BINS_LANES 2
#include "fold_target.h"

static const struct functions *functions(void)
{
    static const struct functions plain = {folds_plain, &bins_functions_plain};
    return &plain;
}

#endif

/* Returns whether this processor can run the kernel. */
int lifl_can_fold(void)
{
    return functions() != 0;
}

/* out[0:size] = sum of scales[i] * wide[i][0:size], `partials` of them, + sum of weights[i] * vectors[i][0:size], `rows`
 * vectors of the type `dtype` (a position in core/schema.DTYPE_BYTES); one at the least of all.
 *
 * `out` is of doubles, or with `narrow` of floats.  Vectors of float64 have at least one row and at most one of `wide`,
 * which is `out`, and their scale and weights add up to 1; those of other types need not, and any of `wide` may be a wide
 * `out`.  No vector overlaps `out`, but without any of `wide` one of float64 may be it.  All addresses are multiples of
 * their type's size.  Returns 0, 1 when an element of a narrow result, or of one of float64, is not finite, or -1 for a
 * `dtype` that it does not know. */
int lifl_fold(int dtype, int narrow, void *out, int64_t size, const double *const *wide, const double *scales,
              int64_t partials, const void *const *vectors, const double *weights, int64_t rows)
{
    if (dtype < 0 || dtype > 3 || (dtype == 0 && (narrow || partials > 1 || rows < 1)) || partials + rows < 1 ||
        !lifl_can_fold())
        return -1;
    return functions()->folds[2 * dtype + (narrow != 0)](out, size, wide, scales, partials, vectors, weights, rows);
}

/* Reproducible sums: acc += sum of weights[i] * vectors[i][0:size], `rows` vectors of the type `dtype`, + what `others`
 * of `partials` hold, which are accumulators, too: three doubles for each element.  Without `keep`, `acc` is not read.
 * At most 2^19 products may be in an accumulator in all, of finite numbers below 2^992.  Returns 0, or -1 for a
 * `dtype` that it does not know. */
int lifl_fold_bins(int dtype, double *acc, int64_t size, int keep, const double *const *partials, int64_t others,
                   const void *const *vectors, const double *weights, int64_t rows)
{
    if (dtype < 0 || dtype > 3 || !lifl_can_fold())
        return -1;
    functions()->bins->fold(dtype, acc, size, keep, partials, others, vectors, weights, rows);
    return 0;
}

/* out[0:size] = what `acc` holds / weight; `out` is of doubles, or with `narrow` of floats.  Returns 0, or 1 when a
 * result is not finite. */
int lifl_mean_bins(void *out, int narrow, const double *acc, int64_t size, double weight)
{
    return functions()->bins->mean(out, narrow, acc, size, weight);
}
