/* A part of fold.c: everything that is compiled for one set of instructions, SUFFIX.  Before it stand INLINE and NOINLINE,
 * which say it to the compiler, and STREAMS, 1 where stores can go past the caches. */

/* Whether one of the `count` results is NaN or infinite: all bits of its exponent are set.  They are in the L1 cache. */
#define DEFINE_ODD(NAME, A, BITS, EXPONENT)                                                                            \
    INLINE int NAME(const A *results, int64_t count)                                                                   \
    {                                                                                                                  \
        BITS odd = 0;                                                                                                  \
        for (int64_t j = 0; j < count; j++) {                                                                          \
            BITS bits;                                                                                                 \
            memcpy(&bits, results + j, sizeof bits);                                                                   \
            odd |= (bits & EXPONENT) == EXPONENT;                                                                      \
        }                                                                                                              \
        return odd != 0;                                                                                               \
    }                                                                                                                  \
    typedef int defined_here

#define OF_(NAME, PART) NAME##_##PART
#define OF(NAME, PART) OF_(NAME, PART)

DEFINE_ODD(OF(odd_of_float, SUFFIX), float, uint32_t, 0x7f800000u);
DEFINE_ODD(OF(odd_of_double, SUFFIX), double, uint64_t, 0x7ff0000000000000u);

/* Copies whole lines to a place that begins with a line and is not read soon. */
#define STREAM OF(stream, SUFFIX)
NOINLINE void STREAM(void *out, const void *from, size_t nbytes)
{
#if STREAMS
    for (size_t i = 0; i < nbytes; i += 32)
        _mm256_stream_si256((__m256i *)((char *)out + i), _mm256_load_si256((const __m256i *)((const char *)from + i)));
#else
    memcpy(out, from, nbytes);
#endif
}

/* Asks for the lines of `nbytes`, a constant. */
#define PREFETCH OF(prefetch, SUFFIX)
INLINE void PREFETCH(const char *from, int64_t nbytes)
{
    for (int64_t b = 0; b < nbytes; b += LINE_BYTES)
        __builtin_prefetch(from + b, 0, 3);
}

/* A part of that which is below: at most CHUNK elements, of four vectors. */
#define SUM_FOUR OF(sum_four, SUFFIX)
INLINE void SUM_FOUR(double *waiting, const double *kept, double keep, const double *const *x, const double *s,
                     int64_t at, int64_t count)
{
    const double *x0 = x[0] + at, *x1 = x[1] + at, *x2 = x[2] + at, *x3 = x[3] + at;
#pragma GCC ivdep /* `waiting` may be `kept` */
    for (int64_t j = 0; j < count; j++)
        waiting[at + j] = keep * kept[at + j] + s[0] * x0[j] + s[1] * x1[j] + s[2] * x2[j] + s[3] * x3[j];
}

/* waiting[0:count] = sum of scales[i] * wide[i][begin:][0:count]: of several, four at a time. */
#define SUM_WIDE OF(sum_wide, SUFFIX)
NOINLINE void SUM_WIDE(double *waiting, const double *const *wide, const double *scales, int64_t partials,
                       int64_t begin, int64_t count)
{
    for (int64_t row = 0; row < partials; row += 4) {
        const double *x[4], *kept = row ? waiting : wide[0] + begin;
        double s[4], keep = row ? 1 : scales[0];
        for (int64_t r = 0; r < 4; r++) {
            x[r] = wide[row + (row + r < partials ? r : 0)] + begin;
            s[r] = (row || r) && row + r < partials ? scales[row + r] : 0;
        }
        int64_t at = 0;
        for (; at + CHUNK <= count; at += CHUNK) {
            for (int64_t r = 0; r < 4; r++)
                PREFETCH((const char *)(x[r] + at) + AHEAD_LINES / 4 * LINE_BYTES, CHUNK * sizeof(double));
            SUM_FOUR(waiting, kept, keep, x, s, at, CHUNK);
        }
        SUM_FOUR(waiting, kept, keep, x, s, at, count - at);
    }
}

#define NAME float64
#define X double
#define A double
#define WIDEN TO_DOUBLE
#define CENTRED 1
#include "fold_type.h"
#undef X
#undef WIDEN
#undef CENTRED

#define X float
#define WIDEN TO_DOUBLE
#define LOAD_X LOAD_FLOAT
#define CENTRED 0
#define NAME float32_wide
#define A double
#define STORE_A STORE_DOUBLE
#include "fold_type.h"
#define NAME float32_narrow
#define A float
#define STORE_A STORE_FLOAT
#include "fold_type.h"
#undef X
#undef WIDEN
#undef LOAD_X
#undef CENTRED

#define X uint16_t
#define WIDEN from_half
#define LOAD_X LOAD_HALF
#define CENTRED 0
#define NAME float16_wide
#define A double
#define STORE_A STORE_DOUBLE
#include "fold_type.h"
#define NAME float16_narrow
#define A float
#define STORE_A STORE_FLOAT
#include "fold_type.h"
#undef X
#undef WIDEN
#undef LOAD_X
#undef CENTRED

#define X uint16_t
#define WIDEN from_bfloat
#define LOAD_X LOAD_BFLOAT
#define CENTRED 0
#define NAME bfloat16_wide
#define A double
#define STORE_A STORE_DOUBLE
#include "fold_type.h"
#define NAME bfloat16_narrow
#define A float
#define STORE_A STORE_FLOAT
#include "fold_type.h"
#undef X
#undef WIDEN
#undef LOAD_X
#undef CENTRED

/* In the order of core/schema.DTYPE_BYTES, each with a wide `out` and with a narrow one. */
static fold_of_type *const OF(folds, SUFFIX)[] = {
    OF(OF(float64, SUFFIX), body),       0,
    OF(OF(float32_wide, SUFFIX), body),  OF(OF(float32_narrow, SUFFIX), body),
    OF(OF(float16_wide, SUFFIX), body),  OF(OF(float16_narrow, SUFFIX), body),
    OF(OF(bfloat16_wide, SUFFIX), body), OF(OF(bfloat16_narrow, SUFFIX), body),
};

#include "fold_bins.h"

#undef SUFFIX
#undef INLINE
#undef NOINLINE
#undef STREAMS
#undef DEFINE_ODD
#undef STREAM
#undef PREFETCH
#undef SUM_FOUR
#undef SUM_WIDE
#undef OF
#undef OF_
