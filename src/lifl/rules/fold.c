/* out = keep * out + sum of weights[i] * vectors[i]: the compiled kernel of lifl.rules.kernels.
 *
 * A fold is bound by memory, so everything here is about the order in which memory is touched.
 *
 * Blocks.  The vectors are walked in blocks of BLOCK_BYTES of the accumulator.  Within a block at most ROWS_MAX
 * vectors are added per pass, while the block of the accumulator waits in the L1 or L2 cache for the next pass.
 * (GB/s of input on a Zen 4 that reads 28, passes of 4 / of 8: five vectors 20 / 25, eight 22 / 27, thirty-two 23 / 27.)
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
 * Vectors.  Each pass works on chunks of CHUNK elements, in plain loops over a small local array which the compiler
 * turns into vector instructions.  On x86-64 they are compiled twice, and the processor's features choose at run time.
 *
 * Nothing is summed in a narrow type: float16 and bfloat16 are widened to float, integers to double.
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

#define ODD(A, results, count) odd_of_##A(results, count)

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

/* ---- one type: NAME folds vectors of X into an accumulator of A -------------------------------------------------- */

/* Asks for line `line` of the `lines` that the chunks of a pass hold, or of the next pass's when beyond. */
INLINE void prefetch(const char *row, const char *next, int64_t at, int64_t pass_bytes)
{
    __builtin_prefetch(at < pass_bytes ? row + at : next + (at - pass_bytes), 0, 3);
}

#define DEFINE(NAME, X, A, WIDEN)                                                                                      \
    /* `count` elements of one pass over `rows` vectors (a constant: what is not needed falls away). */                \
    INLINE void NAME##_chunk(A *out, const A *before, A keep, const X *const *x, const A *weights, int64_t at,         \
                             int64_t count, int rows)                                                                  \
    {                                                                                                                  \
        const X *x0 = x[0] + at, *x1 = x[rows > 1 ? 1 : 0] + at, *x2 = x[rows > 2 ? 2 : 0] + at,                       \
                *x3 = x[rows > 3 ? 3 : 0] + at, *x4 = x[rows > 4 ? 4 : 0] + at, *x5 = x[rows > 5 ? 5 : 0] + at,        \
                *x6 = x[rows > 6 ? 6 : 0] + at, *x7 = x[rows > 7 ? 7 : 0] + at;                                        \
        A w0 = weights[0], w1 = rows > 1 ? weights[1] : 0, w2 = rows > 2 ? weights[2] : 0,                             \
          w3 = rows > 3 ? weights[3] : 0, w4 = rows > 4 ? weights[4] : 0, w5 = rows > 5 ? weights[5] : 0,              \
          w6 = rows > 6 ? weights[6] : 0, w7 = rows > 7 ? weights[7] : 0;                                              \
        _Pragma("GCC ivdep") /* out is `before` or nothing else that is read */                                        \
        for (int64_t j = 0; j < count; j++) {                                                                          \
            A sum = keep * before[j] + w0 * WIDEN(x0[j]);                                                              \
            if (rows > 1)                                                                                              \
                sum += w1 * WIDEN(x1[j]);                                                                              \
            if (rows > 2)                                                                                              \
                sum += w2 * WIDEN(x2[j]);                                                                              \
            if (rows > 3)                                                                                              \
                sum += w3 * WIDEN(x3[j]);                                                                              \
            if (rows > 4)                                                                                              \
                sum += w4 * WIDEN(x4[j]);                                                                              \
            if (rows > 5)                                                                                              \
                sum += w5 * WIDEN(x5[j]);                                                                              \
            if (rows > 6)                                                                                              \
                sum += w6 * WIDEN(x6[j]);                                                                              \
            if (rows > 7)                                                                                              \
                sum += w7 * WIDEN(x7[j]);                                                                              \
            out[j] = sum;                                                                                              \
        }                                                                                                              \
    }                                                                                                                  \
                                                                                                                       \
    /* out = keep * acc + the weighted rows, `count` elements; `next` are the rows of the pass after this one.         \
     * Returns whether one of the results is not finite. */                                                            \
    INLINE int NAME##_pass(A *out, const A *acc, A keep, const X *const *x, const X *const *next, const A *weights,    \
                           int64_t count, int rows, int streaming)                                                     \
    {                                                                                                                  \
        static const A zeros[CHUNK];                                                                                   \
        int64_t ahead = rows > 2 ? AHEAD_LINES * LINE_BYTES / rows : 0, pass_bytes = count * (int64_t)sizeof(X);       \
        int64_t at = 0;                                                                                                \
        int odd = 0;                                                                                                   \
        A sums[CHUNK] __attribute__((aligned(LINE_BYTES)));                                                            \
        for (; at + CHUNK <= count; at += CHUNK) {                                                                     \
            if (ahead)                                                                                                 \
                for (int r = 0; r < rows; r++)                                                                         \
                    for (int64_t b = 0; b < (int64_t)(CHUNK * sizeof(X)); b += LINE_BYTES)                             \
                        prefetch((const char *)x[r], (const char *)next[r], at * (int64_t)sizeof(X) + b + ahead,       \
                                 pass_bytes);                                                                          \
            const A *before = keep == 0 ? zeros : acc + at;                                                            \
            if (streaming) {                                                                                           \
                NAME##_chunk(sums, before, keep, x, weights, at, CHUNK, rows);                                         \
                stream(out + at, sums, sizeof sums);                                                                   \
                odd |= ODD(A, sums, CHUNK);                                                                            \
            } else {                                                                                                   \
                NAME##_chunk(out + at, before, keep, x, weights, at, CHUNK, rows);                                     \
                odd |= ODD(A, out + at, CHUNK);                                                                        \
            }                                                                                                          \
        }                                                                                                              \
        NAME##_chunk(out + at, keep == 0 ? zeros : acc + at, keep, x, weights, at, count - at, rows);                  \
        return odd | ODD(A, out + at, count - at);                                                                     \
    }                                                                                                                  \
                                                                                                                       \
    /* One block: the vectors in passes of nearly equal numbers of rows. */                                            \
    INLINE int NAME##_block(A *out, A keep, const X *const *vectors, const double *weights, int64_t rows,              \
                            int64_t begin, int64_t count, int64_t next_begin, int streaming)                           \
    {                                                                                                                  \
        int odd = 0;                                                                                                   \
        A waiting[BLOCK_BYTES / sizeof(A)] __attribute__((aligned(LINE_BYTES)));                                       \
        int64_t passes = (rows + ROWS_MAX - 1) / ROWS_MAX;                                                             \
        A *acc = streaming && passes > 1 ? waiting : out + begin;                                                      \
        for (int64_t p = 0, row = 0; p < passes; p++) {                                                                \
            int64_t end = rows * (p + 1) / passes, after = p + 1 < passes ? end : 0;                                   \
            int64_t next_from = p + 1 < passes ? begin : next_begin;                                                   \
            int64_t next_rows = p + 1 < passes ? rows * (p + 2) / passes - end : rows / passes;                        \
            const X *x[ROWS_MAX] = {0}, *next[ROWS_MAX] = {0};                                                         \
            A w[ROWS_MAX] = {0};                                                                                       \
            int n = (int)(end - row), last = p + 1 == passes;                                                          \
            for (int r = 0; r < n; r++) {                                                                              \
                x[r] = vectors[row + r] + begin;                                                                       \
                next[r] = vectors[after + (r < next_rows ? r : 0)] + next_from;                                        \
                w[r] = (A)weights[row + r];                                                                            \
            }                                                                                                          \
            A *to = last ? out + begin : acc, before = p ? 1 : keep;                                                   \
            if (n == 8)                                                                                                \
                odd = NAME##_pass(to, acc, before, x, next, w, count, 8, last && streaming);                           \
            else if (n == 7)                                                                                           \
                odd = NAME##_pass(to, acc, before, x, next, w, count, 7, last && streaming);                           \
            else if (n == 6)                                                                                           \
                odd = NAME##_pass(to, acc, before, x, next, w, count, 6, last && streaming);                           \
            else if (n == 5)                                                                                           \
                odd = NAME##_pass(to, acc, before, x, next, w, count, 5, last && streaming);                           \
            else if (n == 4)                                                                                           \
                odd = NAME##_pass(to, acc, before, x, next, w, count, 4, last && streaming);                           \
            else if (n == 3)                                                                                           \
                odd = NAME##_pass(to, acc, before, x, next, w, count, 3, last && streaming);                           \
            else if (n == 2)                                                                                           \
                odd = NAME##_pass(to, acc, before, x, next, w, count, 2, last && streaming);                           \
            else                                                                                                       \
                odd = NAME##_pass(to, acc, before, x, next, w, count, 1, last && streaming);                           \
            row = end;                                                                                                 \
        }                                                                                                              \
        return odd; /* the last pass's */                                                                              \
    }                                                                                                                  \
                                                                                                                       \
    INLINE int NAME##_body(void *acc, int64_t size, const void *const *vectors, const double *weights, int64_t rows,   \
                           double keep, int streams)                                                                   \
    {                                                                                                                  \
        A *out = acc;                                                                                                  \
        int odd = 0;                                                                                                   \
        int streaming = streams && keep == 0 && size * (int64_t)sizeof(A) >= STREAM_BYTES;                             \
        int64_t step = BLOCK_BYTES / sizeof(A), begin = 0;                                                             \
        /* The first block is shorter, so that the others begin with a line. */                                        \
        int64_t end = step - (int64_t)((uintptr_t)out % LINE_BYTES / sizeof(A));                                       \
        for (; begin < size; begin = end, end += step) {                                                               \
            if (end > size)                                                                                            \
                end = size;                                                                                            \
            odd |= NAME##_block(out, (A)keep, (const X *const *)vectors, weights, rows, begin, end - begin,            \
                                end < size ? end : begin, streaming && (uintptr_t)(out + begin) % LINE_BYTES == 0);    \
        }                                                                                                              \
        if (streaming)                                                                                                 \
            stream_end();                                                                                              \
        return odd;                                                                                                    \
    }                                                                                                                  \
    typedef int NAME##_defined

DEFINE(float64, double, double, SAME);
DEFINE(float32, float, float, SAME);
DEFINE(float16, uint16_t, float, from_half);
DEFINE(bfloat16, uint16_t, float, from_bfloat);
DEFINE(int64, int64_t, double, TO_DOUBLE);
DEFINE(int32, int32_t, double, TO_DOUBLE);
DEFINE(int16, int16_t, double, TO_DOUBLE);
DEFINE(int8, int8_t, double, TO_DOUBLE);
DEFINE(uint64, uint64_t, double, TO_DOUBLE);
DEFINE(uint32, uint32_t, double, TO_DOUBLE);
DEFINE(uint16, uint16_t, double, TO_DOUBLE);
DEFINE(uint8, uint8_t, double, TO_DOUBLE);

/* ---- all types, for each set of instructions --------------------------------------------------------------------- */

/* In the order of core/schema.DTYPE_BYTES. */
#define EACH(DO)                                                                                                       \
    DO(0, float64)                                                                                                     \
    DO(1, float32)                                                                                                     \
    DO(2, float16)                                                                                                     \
    DO(3, bfloat16)                                                                                                    \
    DO(4, int64)                                                                                                       \
    DO(5, int32)                                                                                                       \
    DO(6, int16)                                                                                                       \
    DO(7, int8)                                                                                                        \
    DO(8, uint64)                                                                                                      \
    DO(9, uint32)                                                                                                      \
    DO(10, uint16)                                                                                                     \
    DO(11, uint8)

typedef int fold_of_type(void *, int64_t, const void *const *, const double *, int64_t, double);

#define LISTED(SUFFIX, NUMBER, NAME) [NUMBER] = NAME##_##SUFFIX,
#define FUNCTION(SUFFIX, TARGET, STREAMS, NAME)                                                                        \
    TARGET static int NAME##_##SUFFIX(void *acc, int64_t size, const void *const *vectors, const double *weights,      \
                                      int64_t rows, double keep)                                                       \
    {                                                                                                                  \
        return NAME##_body(acc, size, vectors, weights, rows, keep, STREAMS);                                          \
    }

#define PLAIN(NUMBER, NAME) FUNCTION(plain, , 0, NAME)
#define PLAIN_LISTED(NUMBER, NAME) LISTED(plain, NUMBER, NAME)
EACH(PLAIN)
static fold_of_type *const plain[] = {EACH(PLAIN_LISTED)};

#if defined(__x86_64__)
#define AVX2(NUMBER, NAME) FUNCTION(avx2, __attribute__((target("avx2,fma"))), 1, NAME)
#define AVX2_LISTED(NUMBER, NAME) LISTED(avx2, NUMBER, NAME)
EACH(AVX2)
static fold_of_type *const avx2[] = {EACH(AVX2_LISTED)};
#endif

/* acc[0:size] = keep * acc + sum of weights[i] * vectors[i][0:size], for `rows` >= 1 vectors of the type `dtype` (a
 * position in core/schema.DTYPE_BYTES) that do not overlap acc; acc is float for floats of up to 4 bytes, else double.
 * With keep 0, acc is not read.  All addresses are multiples of their type's size.  Returns 0, 1 when an element of the
 * result is not finite, or -1 for a `dtype` that it does not know. */
int lifl_fold(int dtype, void *acc, int64_t size, const void *const *vectors, const double *weights, int64_t rows,
              double keep)
{
    if (dtype < 0 || dtype >= (int)(sizeof plain / sizeof *plain) || rows < 1)
        return -1;
    fold_of_type *const *folds = plain;
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        folds = avx2;
#endif
    return folds[dtype](acc, size, vectors, weights, rows, keep);
}
