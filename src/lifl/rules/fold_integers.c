/* Exact sums of integers: the compiled kernel of lifl.rules.integers, whose theory says what the sums are.
 *
 * An accumulator is a signed integer of 64 bits (for numbers of 8 bits), of 192 (for those of 64) or of 128.  Nothing
 * here can overflow: the caller's weights add up to less than 2^54, 2^126, or 2^62.
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
        int exact = total < (double)((int64_t)1 << (52 - BITS));                                                       \
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

FOLD(fold_int32, int32_t, int128_t, shifted128, 32);
FOLD(fold_int16, int16_t, int128_t, shifted128, 16);
FOLD(fold_int8, int8_t, int64_t, shifted64, 8);
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

FINISH(finish_int32, int32_t, int128_t, INT32_MIN, INT32_MAX);
FINISH(finish_int16, int16_t, int128_t, INT16_MIN, INT16_MAX);
FINISH(finish_int8, int8_t, int64_t, INT8_MIN, INT8_MAX);
FINISH(finish_uint32, uint32_t, int128_t, 0, UINT32_MAX);
FINISH(finish_uint16, uint16_t, int128_t, 0, UINT16_MAX);
FINISH(finish_uint8, uint8_t, int64_t, 0, UINT8_MAX);

/* In the order of core/schema.DTYPE_BYTES, from int64 on; those of 64 bits have functions of their own. */
typedef void fold_of_type(void *, int64_t, const void *const *, const int64_t *, int64_t, int);
typedef void finish_of_type(void *restrict, const void *restrict, int64_t, int64_t);
static fold_of_type *const folds[] = {0, fold_int32, fold_int16, fold_int8, 0, fold_uint32, fold_uint16, fold_uint8};
static finish_of_type *const finishes[] = {0, finish_int32,  finish_int16,  finish_int8,
                                           0, finish_uint32, finish_uint16, finish_uint8};

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

/* ---- sums of 192 bits, of numbers of 64 -------------------------------------------------------------------------- */

typedef unsigned __int128 uint128_t;
typedef struct {
    uint64_t low, middle, high; /* of a signed number */
} int192_t;

static inline int192_t added192(int192_t a, int192_t b)
{
    uint128_t low = (uint128_t)a.low + b.low, middle = (uint128_t)a.middle + b.middle + (uint64_t)(low >> 64);
    return (int192_t){(uint64_t)low, (uint64_t)middle, a.high + b.high + (uint64_t)(middle >> 64)};
}

static inline int192_t negative192(int192_t a)
{
    return added192((int192_t){~a.low, ~a.middle, ~a.high}, (int192_t){1, 0, 0});
}

/* `value` * 2^-bits, rounded. */
static inline int192_t shifted192(int192_t value, int bits)
{
    if (bits > 190)
        return (int192_t){0, 0, 0};
    if (bits == 0)
        return value;
    int192_t half = {0, 0, 0};
    uint64_t *limbs[] = {&half.low, &half.middle, &half.high};
    *limbs[(bits - 1) / 64] = (uint64_t)1 << (bits - 1) % 64;
    value = added192(value, half);
    uint64_t sign = (uint64_t)((int64_t)value.high >> 63);
    for (; bits >= 64; bits -= 64)
        value = (int192_t){value.middle, value.high, sign};
    if (bits == 0)
        return value;
    return (int192_t){value.low >> bits | value.middle << (64 - bits), value.middle >> bits | value.high << (64 - bits),
                      (uint64_t)((int64_t)value.high >> bits)};
}

/* weight * x, of a weight of two halves that is below 2^126. */
static inline int192_t product192(uint64_t x, int negative, uint64_t weight_low, uint64_t weight_high)
{
    uint128_t low = (uint128_t)weight_low * x, high = (uint128_t)weight_high * x + (uint64_t)(low >> 64);
    int192_t made = {(uint64_t)low, (uint64_t)high, (uint64_t)(high >> 64)};
    if (negative) { /* x stands for x - 2^64 */
        uint128_t above = ((uint128_t)made.high << 64 | made.middle) - ((uint128_t)weight_high << 64 | weight_low);
        made.middle = (uint64_t)above;
        made.high = (uint64_t)(above >> 64);
    }
    return made;
}

/* acc = acc * 2^-shift + sum of weights[i] * vectors[i], of numbers of 64 bits; a weight is two numbers, the low half
 * first; with a negative `shift`, acc is not read. */
void lifl_fold_int192(int is_signed, void *acc, int64_t size, const void *const *vectors, const uint64_t *weights,
                      int64_t rows, int shift)
{
    int192_t *out = acc;
    uint64_t lows = 0;
    for (int64_t r = 0; r < rows; r++)
        lows |= weights[2 * r];
    for (int64_t j = 0; j < size; j++) {
        int192_t sum = {0, 0, 0};
        if (shift >= 0)
            sum = shifted192(out[j], shift);
        if (lows == 0) { /* whole weights: three times as fast */
            int128_t above = 0;
            for (int64_t r = 0; r < rows; r++) {
                uint64_t x = ((const uint64_t *)vectors[r])[j];
                above += (int128_t)weights[2 * r + 1] * (is_signed ? (int128_t)(int64_t)x : (int128_t)x);
            }
            out[j] = added192(sum, (int192_t){0, (uint64_t)above, (uint64_t)(above >> 64)});
            continue;
        }
        for (int64_t r = 0; r < rows; r++) {
            uint64_t x = ((const uint64_t *)vectors[r])[j];
            sum = added192(sum, product192(x, is_signed && (int64_t)x < 0, weights[2 * r], weights[2 * r + 1]));
        }
        out[j] = sum;
    }
}

void lifl_merge_int192(void *acc, int64_t size, const void *const *partials, const int64_t *shifts, int64_t rows,
                       int shift)
{
    int192_t *out = acc;
    for (int64_t j = 0; j < size; j++) {
        int192_t sum = {0, 0, 0};
        if (shift >= 0)
            sum = shifted192(out[j], shift);
        for (int64_t r = 0; r < rows; r++)
            sum = added192(sum, shifted192(((const int192_t *)partials[r])[j], (int)shifts[r]));
        out[j] = sum;
    }
}

/* The quotient of a number of 192 bits and one of 128 whose highest bit is set, if it has 64 bits, else the highest one;
 * `rest` is what is left.  Knuth, The Art of Computer Programming 2, 4.3.1, algorithm D. */
static inline uint64_t divided192(int192_t value, uint128_t divisor, uint128_t *rest)
{
    uint64_t first = (uint64_t)(divisor >> 64), second = (uint64_t)divisor, quotient = UINT64_MAX;
    uint128_t top = (uint128_t)value.high << 64 | value.middle;
    if (top >= divisor) {
        *rest = 0;
        return quotient;
    }
    if (value.high < first)
        quotient = (uint64_t)(top / first);
    uint128_t low = (uint128_t)quotient * second, high = (uint128_t)quotient * first + (uint64_t)(low >> 64);
    int192_t product = {(uint64_t)low, (uint64_t)high, (uint64_t)(high >> 64)};
    int192_t left = added192(value, negative192(product));
    while ((int64_t)left.high < 0) { /* twice at most */
        quotient -= 1;
        left = added192(left, (int192_t){second, first, 0});
    }
    *rest = (uint128_t)left.middle << 64 | left.low;
    return quotient;
}

/* out = acc / divisor, rounded half to even, and clipped to the type.  The divisor, two halves, is from 2^125 on. */
void lifl_finish_int192(int is_signed, void *to, const void *acc, int64_t size, uint64_t divisor_low,
                        uint64_t divisor_high)
{
    uint64_t *out = to;
    uint128_t divisor = ((uint128_t)divisor_high << 64 | divisor_low) << 2;
    for (int64_t j = 0; j < size; j++) {
        int192_t sum = ((const int192_t *)acc)[j];
        int negative = (int64_t)sum.high < 0;
        if (negative)
            sum = negative192(sum);
        sum = (int192_t){sum.low << 2, sum.middle << 2 | sum.low >> 62, sum.high << 2 | sum.middle >> 62};
        uint128_t rest;
        uint64_t quotient = divided192(sum, divisor, &rest);
        if (rest > divisor - rest || (rest == divisor - rest && (quotient & 1)))
            quotient += quotient != UINT64_MAX;
        uint64_t most = !is_signed ? (negative ? 0 : UINT64_MAX) : (uint64_t)INT64_MAX + negative;
        quotient = quotient < most ? quotient : most;
        out[j] = negative ? 0 - quotient : quotient;
    }
}
