/* Exact sums of integers: the compiled kernel of lifl.rules.integers, whose theory says what the sums are.
 *
 * An accumulator is a signed integer of 64 bits (for numbers of 8 bits) or of 128 (for all others).  Nothing here can
 * overflow: the caller's weights add up to less than 2^54, or 2^62.
 */

#include <stdint.h>

typedef __int128 int128_t;

/* `value` * 2^-bits, rounded. */
static inline int128_t shifted128(int128_t value, int bits)
{
    if (bits > 126)
        return 0;
    return bits ? (value + ((int128_t)1 << (bits - 1))) >> bits : value;
}

static inline int64_t shifted64(int64_t value, int bits)
{
    if (bits > 62)
        return 0;
    return bits ? (value + ((int64_t)1 << (bits - 1))) >> bits : value;
}

#define BLOCK 2048 /* elements: their sums stay in the L1 cache */
#define ROWS 8
#define INLINE static inline __attribute__((always_inline))

/* The trailing zeros that all weights have: integer weights have many. */
static int common_zeros(const int64_t *weights, int64_t rows)
{
    uint64_t any = 0;
    for (int64_t r = 0; r < rows; r++)
        any |= (uint64_t)weights[r];
    return any ? __builtin_ctzll(any) : 0;
}

/* A block is summed in double, eight rows at a time, where that is exact (weights without their common zeros whose sum
 * times the largest number is below 2^53: `exact`), else as integers. */
#define FOLD(NAME, X, A, SHIFTED, BITS)                                                                                \
    INLINE void NAME##_doubles(double *sums, int64_t count, const X *const *x, const double *w)                        \
    {                                                                                                                  \
        const X *x0 = x[0], *x1 = x[1], *x2 = x[2], *x3 = x[3], *x4 = x[4], *x5 = x[5], *x6 = x[6], *x7 = x[7];        \
        double w0 = w[0], w1 = w[1], w2 = w[2], w3 = w[3], w4 = w[4], w5 = w[5], w6 = w[6], w7 = w[7];                 \
        for (int64_t j = 0; j < count; j++)                                                                            \
            sums[j] += w0 * (double)x0[j] + w1 * (double)x1[j] + w2 * (double)x2[j] + w3 * (double)x3[j] +             \
                       w4 * (double)x4[j] + w5 * (double)x5[j] + w6 * (double)x6[j] + w7 * (double)x7[j];              \
    }                                                                                                                  \
                                                                                                                       \
    INLINE void NAME##_body(void *acc, int64_t size, const void *const *vectors, const int64_t *weights, int64_t rows, \
                            int shift)                                                                                 \
    {                                                                                                                  \
        int zeros = common_zeros(weights, rows);                                                                       \
        double total = 0, sums[BLOCK], w[ROWS];                                                                        \
        for (int64_t r = 0; r < rows; r++)                                                                             \
            total += (double)(weights[r] >> zeros);                                                                    \
        int exact = BITS < 64 && total < (double)((int64_t)1 << (BITS < 64 ? 52 - BITS : 0));                           \
        for (int64_t begin = 0; begin < size; begin += BLOCK) {                                                        \
            int64_t count = size - begin < BLOCK ? size - begin : BLOCK;                                               \
            A *out = (A *)acc + begin;                                                                                 \
            if (shift < 0)                                                                                             \
                for (int64_t j = 0; j < count; j++)                                                                    \
                    out[j] = 0;                                                                                        \
            else if (shift)                                                                                            \
                for (int64_t j = 0; j < count; j++)                                                                    \
                    out[j] = SHIFTED(out[j], shift);                                                                   \
            if (exact) {                                                                                               \
                for (int64_t j = 0; j < count; j++)                                                                    \
                    sums[j] = 0;                                                                                       \
                for (int64_t r = 0; r < rows; r += ROWS) {                                                             \
                    const X *x[ROWS];                                                                                  \
                    for (int i = 0; i < ROWS; i++) {                                                                   \
                        x[i] = (const X *)vectors[r + i < rows ? r + i : r] + begin;                                   \
                        w[i] = r + i < rows ? (double)(weights[r + i] >> zeros) : 0;                                   \
                    }                                                                                                  \
                    NAME##_doubles(sums, count, x, w);                                                                 \
                }                                                                                                      \
                for (int64_t j = 0; j < count; j++)                                                                    \
                    out[j] += (A)(int64_t)sums[j] * ((A)1 << zeros);                                                   \
                continue;                                                                                              \
            }                                                                                                          \
            for (int64_t r = 0; r < rows; r++) {                                                                       \
                const X *x = (const X *)vectors[r] + begin;                                                            \
                A weight = weights[r];                                                                                 \
                for (int64_t j = 0; j < count; j++)                                                                    \
                    out[j] += weight * (A)x[j];                                                                        \
            }                                                                                                          \
        }                                                                                                              \
    }                                                                                                                  \
    COMPILED(NAME)                                                                                                     \
    static void NAME(void *acc, int64_t size, const void *const *vectors, const int64_t *weights, int64_t rows,        \
                     int shift)                                                                                        \
    {                                                                                                                  \
        CHOOSE(NAME)                                                                                                   \
        NAME##_body(acc, size, vectors, weights, rows, shift);                                                         \
    }                                                                                                                  \
    typedef int NAME##_defined

#if defined(__x86_64__)
#define FOR(NAME, SUFFIX, TARGET)                                                                                      \
    __attribute__((target(TARGET))) static void NAME##_##SUFFIX(void *acc, int64_t size, const void *const *vectors,   \
                                                                const int64_t *weights, int64_t rows, int shift)       \
    {                                                                                                                  \
        NAME##_body(acc, size, vectors, weights, rows, shift);                                                         \
    }
#define COMPILED(NAME)                                                                                                 \
    FOR(NAME, avx2, "avx2,fma")                                                                                        \
    FOR(NAME, avx512, "avx512f,avx512vl,avx512dq,avx512bw,fma")
#define CHOOSE(NAME)                                                                                                   \
    if (__builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl")) \
        NAME##_avx512(acc, size, vectors, weights, rows, shift);                                                       \
    else if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))                                          \
        NAME##_avx2(acc, size, vectors, weights, rows, shift);                                                         \
    else
#else
#define COMPILED(NAME)
#define CHOOSE(NAME)
#endif

FOLD(fold_int64, int64_t, int128_t, shifted128, 64);
FOLD(fold_int32, int32_t, int128_t, shifted128, 32);
FOLD(fold_int16, int16_t, int128_t, shifted128, 16);
FOLD(fold_int8, int8_t, int64_t, shifted64, 8);
FOLD(fold_uint64, uint64_t, int128_t, shifted128, 64);
FOLD(fold_uint32, uint32_t, int128_t, shifted128, 32);
FOLD(fold_uint16, uint16_t, int128_t, shifted128, 16);
FOLD(fold_uint8, uint8_t, int64_t, shifted64, 8);

/* acc = acc * 2^-shift + sum of partials[i] * 2^-shifts[i]; with a negative `shift`, acc is not read. */
#define MERGE(NAME, A, SHIFTED)                                                                                        \
    void NAME(void *acc, int64_t size, const void *const *partials, const int64_t *shifts, int64_t rows, int shift)    \
    {                                                                                                                  \
        A *out = acc;                                                                                                  \
        for (int64_t j = 0; j < size; j++) {                                                                           \
            A sum = shift < 0 ? 0 : SHIFTED(out[j], shift);                                                            \
            for (int64_t r = 0; r < rows; r++)                                                                         \
                sum += SHIFTED(((const A *)partials[r])[j], (int)shifts[r]);                                           \
            out[j] = sum;                                                                                              \
        }                                                                                                              \
    }                                                                                                                  \
    typedef int NAME##_defined

MERGE(lifl_merge_int64, int64_t, shifted64);
MERGE(lifl_merge_int128, int128_t, shifted128);

/* out = acc / divisor, rounded half to even, and clipped to the type. */
#define FINISH(NAME, X, A, LOWEST, HIGHEST)                                                                            \
    static void NAME(void *restrict to, const void *restrict acc, int64_t size, int64_t divisor)                       \
    {                                                                                                                  \
        X *out = to;                                                                                                   \
        for (int64_t j = 0; j < size; j++) {                                                                           \
            A sum = ((const A *)acc)[j], quotient, rest;                                                               \
            if (sum == (int64_t)sum) { /* far faster than 128 bits */                                                  \
                quotient = (int64_t)sum / divisor;                                                                     \
                rest = (int64_t)sum % divisor;                                                                         \
            } else {                                                                                                   \
                quotient = sum / divisor;                                                                              \
                rest = sum % divisor;                                                                                  \
            }                                                                                                          \
            if (rest < 0) {                                                                                            \
                rest += divisor;                                                                                       \
                quotient -= 1;                                                                                         \
            }                                                                                                          \
            A above = rest - (divisor - rest); /* positive when nearer to the next */                                  \
            quotient += above > 0 || (above == 0 && (quotient & 1));                                                   \
            out[j] = (X)(quotient < (A)LOWEST ? (A)LOWEST : quotient > (A)HIGHEST ? (A)HIGHEST : quotient);            \
        }                                                                                                              \
    }                                                                                                                  \
    typedef int NAME##_defined

FINISH(finish_int64, int64_t, int128_t, INT64_MIN, INT64_MAX);
FINISH(finish_int32, int32_t, int128_t, INT32_MIN, INT32_MAX);
FINISH(finish_int16, int16_t, int128_t, INT16_MIN, INT16_MAX);
FINISH(finish_int8, int8_t, int64_t, INT8_MIN, INT8_MAX);
FINISH(finish_uint64, uint64_t, int128_t, 0, UINT64_MAX);
FINISH(finish_uint32, uint32_t, int128_t, 0, UINT32_MAX);
FINISH(finish_uint16, uint16_t, int128_t, 0, UINT16_MAX);
FINISH(finish_uint8, uint8_t, int64_t, 0, UINT8_MAX);

/* In the order of core/schema.DTYPE_BYTES, from int64 on. */
typedef void fold_of_type(void *, int64_t, const void *const *, const int64_t *, int64_t, int);
typedef void finish_of_type(void *restrict, const void *restrict, int64_t, int64_t);
static fold_of_type *const folds[] = {fold_int64,  fold_int32,  fold_int16,  fold_int8,
                                      fold_uint64, fold_uint32, fold_uint16, fold_uint8};
static finish_of_type *const finishes[] = {finish_int64,  finish_int32,  finish_int16,  finish_int8,
                                           finish_uint64, finish_uint32, finish_uint16, finish_uint8};

/* acc = acc * 2^-shift + sum of weights[i] * vectors[i]; with a negative `shift`, acc is not read. */
void lifl_fold_integers(int type, void *acc, int64_t size, const void *const *vectors, const int64_t *weights,
                        int64_t rows, int shift)
{
    folds[type](acc, size, vectors, weights, rows, shift);
}

void lifl_finish_integers(int type, void *out, const void *acc, int64_t size, int64_t divisor)
{
    finishes[type](out, acc, size, divisor);
}
