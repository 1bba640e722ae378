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
#if defined(FLOAT32_LANES)
#define LANES FLOAT32_LANES
#endif
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

/* In the order of core/schema.DTYPE_BYTES. */
static fold_of_type *const OF(folds, SUFFIX)[] = {OF(OF(float64, SUFFIX), body), OF(OF(float32, SUFFIX), body),
                                                  OF(OF(float16, SUFFIX), body), OF(OF(bfloat16, SUFFIX), body)};

#undef SUFFIX
#undef INLINE
#undef NOINLINE
#undef STREAMS
#undef DEFINE_ODD
#undef STREAM
#undef PREFETCH
#undef OF
#undef OF_
