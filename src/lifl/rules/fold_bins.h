/* A part of fold.c, within fold_target.h: reproducible sums, for one set of instructions (see lifl.rules.binned).
 *
 * An accumulator is three doubles, high, middle, low.  Each holds 1.5 * 2^52 * u and beside it a sum of whole numbers of
 * its unit u: so what is added to it is rounded to u by the addition itself, and what that takes is exact.  The units
 * are 2^32 apart, those of the high ones are powers of 2^32 (BIN_BITS), and the high one is that of the largest number
 * that was ever added: what the lowest unit cuts off is the same in any order.  Three zeros: nothing was added yet.
 *
 * Ties are broken by the last bit of what is added, which is set for the addition alone, and not by what is there
 * already.  Products and sums are operations of their own, never one: a processor that has such, one that has not, and
 * NumPy give the same bits.
 */

#define BINS OF(bins, SUFFIX)
#define UPLIFT OF(bins_uplift, SUFFIX)
#define ADD_GROUP OF(bins_add_group, SUFFIX)
#define ADD_PASS OF(bins_add_pass, SUFFIX)
#define ADD_REST OF(bins_add_rest, SUFFIX)
#define ADD_ROWS OF(bins_add_rows, SUFFIX)
#define ADD_BINS OF(bins_add_bins, SUFFIX)
#define MEAN_BINS OF(bins_mean, SUFFIX)
#define FLOATS OF(bins_floats, SUFFIX)
#define BITS OF(bins_bits, SUFFIX)

typedef double FLOATS __attribute__((vector_size(8 * BINS_LANES)));
typedef int64_t BITS __attribute__((vector_size(8 * BINS_LANES)));

#define load_bins OF(load_bins, SUFFIX)
INLINE FLOATS load_bins(const double *from)
{
    FLOATS loaded;
    memcpy(&loaded, from, sizeof loaded);
    return loaded;
}

#define odd_bins OF(odd_bins, SUFFIX)
INLINE FLOATS odd_bins(FLOATS values)
{
    return (FLOATS)((BITS)values | 1);
}

/* Elements of the type `dtype`, a constant, from `at` of a vector on. */
#define load_wide OF(load_wide, SUFFIX)
INLINE FLOATS load_wide(int dtype, const void *vector, int64_t at)
{
#ifdef LANES
    if (dtype == 0)
        return (FLOATS)LOAD_DOUBLE((const double *)vector + at);
    if (dtype == 1)
        return (FLOATS)LOAD_FLOAT((const float *)vector + at);
    if (dtype == 2)
        return (FLOATS)LOAD_HALF((const uint16_t *)vector + at);
    return (FLOATS)LOAD_BFLOAT((const uint16_t *)vector + at);
#else
    FLOATS wide;
    for (int64_t j = 0; j < BINS_LANES; j++)
        wide[j] = dtype == 0   ? ((const double *)vector)[at + j]
                  : dtype == 1 ? ((const float *)vector)[at + j]
                  : dtype == 2 ? from_half(((const uint16_t *)vector)[at + j])
                               : from_bfloat(((const uint16_t *)vector)[at + j]);
    return wide;
#endif
}

/* The larger magnitudes of two. */
#define larger_of OF(larger_of, SUFFIX)
INLINE FLOATS larger_of(FLOATS largest, FLOATS values)
{
#ifdef LARGER
    return (FLOATS)LARGER((VECTOR)largest, (VECTOR)values);
#else
    const FLOATS sizes = (FLOATS)((BITS)values & INT64_MAX);
    const BITS keeps = largest > sizes;
    return (FLOATS)(((BITS)largest & keeps) | ((BITS)sizes & ~keeps));
#endif
}

/* Whether any is negative. */
#define any_below OF(any_below, SUFFIX)
INLINE int any_below(BITS values)
{
#ifdef SIGNS
    return SIGNS((VECTOR)values) != 0;
#else
    int64_t signs = 0;
    for (int64_t j = 0; j < BINS_LANES; j++)
        signs |= values[j];
    return signs < 0;
#endif
}

/* Raises the bins of those accumulators whose high unit is too small for a number of the exponent `wanted`. */
NOINLINE void UPLIFT(double *restrict high, double *restrict middle, double *restrict low,
                     const int64_t *restrict wanted, int64_t count)
{
    for (int64_t j = 0; j < count; j++) {
        const int64_t bin = wanted[j] & ~(BIN_BITS - 1), top = bin < BIN_MIN ? BIN_MIN : bin;
        const int64_t up = top + BIN_SHIFT - exponent_of(high[j]);
        const double a = high[j], b = middle[j];
        if (up > 0) {
            low[j] = up == BIN_BITS ? b : up == 2 * BIN_BITS ? a : empty_of(top - 2 * BIN_BITS);
            middle[j] = up == BIN_BITS ? a : empty_of(top - BIN_BITS);
            high[j] = empty_of(top);
        }
    }
}

/* Adds BINS_LANES elements, from `at` of each vector on, of some rows: `dtype` and `rows` are constants, so that the
 * products stay in registers until the largest of them is known.  `fresh`: what the accumulators hold is not read. */
INLINE void ADD_GROUP(double *high, double *middle, double *low, int dtype, const void *const *vectors,
                      const double *weights, int64_t at, int rows, int fresh)
{
    FLOATS terms[BINS_ROWS], largest = {0}, h, m, l;
#pragma GCC unroll 8
    for (int row = 0; row < rows; row++) {
        terms[row] = weights[row] * load_wide(dtype, vectors[row], at);
        APART(terms[row]);
        largest = larger_of(largest, terms[row]);
    }
    const BITS wanted = (BITS)largest >> 52;
    if (fresh) {
        const BITS bin = wanted & ~(int64_t)(BIN_BITS - 1), less = bin < BIN_MIN;
        const BITS top = (bin & ~less) | (BIN_MIN & less), start = (top + BIN_SHIFT) << 52 | INT64_C(1) << 51;
        h = (FLOATS)start;
        m = (FLOATS)(start - ((int64_t)BIN_BITS << 52));
        l = (FLOATS)(start - ((int64_t)BIN_BITS << 53));
    } else {
        h = load_bins(high);
        if (any_below(((BITS)h >> 52) - wanted - (BIN_SHIFT - BIN_BITS + 1))) {
            int64_t exponents[BINS_LANES];
            memcpy(exponents, &wanted, sizeof exponents);
            UPLIFT(high, middle, low, exponents, BINS_LANES);
            h = load_bins(high);
        }
        m = load_bins(middle);
        l = load_bins(low);
    }
#pragma GCC unroll 8
    for (int row = 0; row < rows; row++) {
        FLOATS rest = terms[row], sum = h + odd_bins(rest);
        rest -= sum - h;
        h = sum;
        sum = m + odd_bins(rest);
        rest -= sum - m;
        m = sum;
        l += odd_bins(rest);
    }
    memcpy(high, &h, sizeof h);
    memcpy(middle, &m, sizeof m);
    memcpy(low, &l, sizeof l);
}

/* Adds what is left of a block: less than BINS_LANES elements, as if zeros came after them. */
NOINLINE void ADD_REST(double *high, double *middle, double *low, int dtype, const void *vector, double weight,
                       int64_t at, int64_t count, int fresh)
{
    const int64_t item_bytes = dtype == 0 ? 8 : dtype == 1 ? 4 : 2;
    double last[BINS_LANES] = {0};
    const void *const vectors[] = {last};
    memcpy(last, (const char *)vector + at * item_bytes, (size_t)(count * item_bytes));
    if (dtype == 0)
        ADD_GROUP(high, middle, low, 0, vectors, &weight, 0, 1, fresh);
    else if (dtype == 1)
        ADD_GROUP(high, middle, low, 1, vectors, &weight, 0, 1, fresh);
    else if (dtype == 2)
        ADD_GROUP(high, middle, low, 2, vectors, &weight, 0, 1, fresh);
    else
        ADD_GROUP(high, middle, low, 3, vectors, &weight, 0, 1, fresh);
}

/* Adds `count` elements of some rows, from `begin` of each vector on, and asks for those that come BINS_AHEAD bytes later. */
INLINE void ADD_PASS(double *restrict high, double *restrict middle, double *restrict low, int dtype,
                     const void *const *vectors, const double *weights, int64_t begin, int64_t count, int rows,
                     int fresh)
{
    const int64_t item_bytes = dtype == 0 ? 8 : dtype == 1 ? 4 : 2, line = LINE_BYTES / item_bytes;
    int64_t j = 0;
    for (; j + BINS_LANES <= count; j += BINS_LANES) {
        if (j % line == 0)
            for (int row = 0; row < rows; row++)
                __builtin_prefetch((const char *)vectors[row] + (begin + j) * item_bytes + BINS_AHEAD, 0, 3);
        ADD_GROUP(high + j, middle + j, low + j, dtype, vectors, weights, begin + j, rows, fresh);
    }
    for (int row = 0; row < rows && j < count; row++)
        ADD_REST(high + j, middle + j, low + j, dtype, vectors[row], weights[row], begin + j, count - j,
                 fresh && !row);
}

#define ADD_ROWS_OF(DTYPE)                                                                                             \
    do {                                                                                                               \
        if (rows >= 8)                                                                                                 \
            ADD_PASS(high, middle, low, DTYPE, vectors, weights, begin, count, 8, fresh);                              \
        else if (rows >= 4)                                                                                            \
            ADD_PASS(high, middle, low, DTYPE, vectors, weights, begin, count, 4, fresh);                              \
        else if (rows >= 2)                                                                                            \
            ADD_PASS(high, middle, low, DTYPE, vectors, weights, begin, count, 2, fresh);                              \
        else                                                                                                           \
            ADD_PASS(high, middle, low, DTYPE, vectors, weights, begin, count, 1, fresh);                              \
    } while (0)

/* Adds 8, 4, 2 or 1 of the rows that are left, and returns how many. */
NOINLINE int64_t ADD_ROWS(double *restrict high, double *restrict middle, double *restrict low, int dtype,
                          const void *const *vectors, const double *weights, int64_t begin, int64_t count,
                          int64_t rows, int fresh)
{
    if (dtype == 0)
        ADD_ROWS_OF(0);
    else if (dtype == 1)
        ADD_ROWS_OF(1);
    else if (dtype == 2)
        ADD_ROWS_OF(2);
    else
        ADD_ROWS_OF(3);
    return rows >= 8 ? 8 : rows >= 4 ? 4 : rows >= 2 ? 2 : 1;
}

/* Adds what other accumulators hold: `from` is interleaved. */
NOINLINE void ADD_BINS(double *restrict high, double *restrict middle, double *restrict low,
                       const double *restrict from, int64_t count)
{
    double its[3][BINS_BLOCK];
    int64_t mine[BINS_BLOCK], wanted[BINS_BLOCK], raise = 0, empty = 0;
    for (int64_t j = 0; j < count; j++) {
        its[0][j] = from[3 * j];
        its[1][j] = from[3 * j + 1];
        its[2][j] = from[3 * j + 2];
    }
    for (int64_t j = 0; j < count; j++) {
        wanted[j] = exponent_of(its[0][j]) - BIN_SHIFT;
        mine[j] = exponent_of(high[j]) - BIN_SHIFT;
        empty |= wanted[j] < 0 ? 1 : 0;
        raise |= wanted[j] != mine[j] || wanted[j] < 0 ? 1 : 0;
    }
    if (raise) {
        if (empty)
            for (int64_t j = 0; j < count; j++) /* it becomes an empty one of the least bin */
                wanted[j] = wanted[j] < 0 ? BIN_MIN : wanted[j];
        UPLIFT(high, middle, low, wanted, count);
        for (int64_t j = 0; j < count; j++)
            mine[j] = exponent_of(high[j]) - BIN_SHIFT;
        UPLIFT(its[0], its[1], its[2], mine, count);
    }
    for (int64_t j = 0; j < count; j++) {
        high[j] += its[0][j] - start_of(its[0][j]);
        middle[j] += its[1][j] - start_of(its[1][j]);
        low[j] += its[2][j] - start_of(its[2][j]);
    }
}

/* See lifl_fold_bins. */
NOINLINE void BINS(int dtype, double *acc, int64_t size, int keep, const double *const *partials, int64_t others,
                   const void *const *vectors, const double *weights, int64_t rows)
{
    double high[BINS_BLOCK], middle[BINS_BLOCK], low[BINS_BLOCK];
    double whole[3 * BINS_BLOCK] __attribute__((aligned(LINE_BYTES)));
    const int streaming = STREAMS && !keep && 3 * size * 8 >= STREAM_BYTES && (uintptr_t)acc % LINE_BYTES == 0;
    for (int64_t begin = 0; begin < size; begin += BINS_BLOCK) {
        const int64_t count = size - begin < BINS_BLOCK ? size - begin : BINS_BLOCK;
        const int64_t ahead = size - begin < 2 * BINS_BLOCK ? 0 : BINS_BLOCK;
        double *const at = acc + 3 * begin;
        const int streams = streaming && count == BINS_BLOCK;
        double *const to = streams ? whole : at;
        if (keep)
            for (int64_t j = 0; j < count; j++) {
                high[j] = at[3 * j];
                middle[j] = at[3 * j + 1];
                low[j] = at[3 * j + 2];
            }
        else if (others || !rows)
            for (int64_t j = 0; j < count; j++)
                high[j] = middle[j] = low[j] = 0;
        for (int64_t j = count; j % BINS_LANES; j++) /* is computed with the last ones */
            high[j] = middle[j] = low[j] = 0;
        for (int64_t row = 0; row < others; row++) {
            ADD_BINS(high, middle, low, partials[row] + 3 * begin, count);
            for (int64_t b = 0; b < 3 * ahead; b += LINE_BYTES / 8)
                __builtin_prefetch(partials[row] + 3 * (begin + ahead) + b, 0, 3);
        }
        for (int64_t row = 0; row < rows;)
            row += ADD_ROWS(high, middle, low, dtype, vectors + row, weights + row, begin, count, rows - row,
                            !keep && !others && !row);
        for (int64_t b = 0; b < 3 * ahead && !streams; b += LINE_BYTES / 8)
            __builtin_prefetch(at + 3 * ahead + b, 1, 3);
        for (int64_t j = 0; j < count; j++) {
            to[3 * j] = high[j];
            to[3 * j + 1] = middle[j];
            to[3 * j + 2] = low[j];
        }
        if (streams)
            STREAM(at, whole, sizeof whole);
    }
    if (streaming)
        stream_end();
}

/* See lifl_mean_bins. */
NOINLINE int MEAN_BINS(void *out, int narrow, const double *acc, int64_t size, double weight)
{
    int odd = 0;
    for (int64_t begin = 0; begin < size; begin += BINS_BLOCK) {
        const int64_t count = size - begin < BINS_BLOCK ? size - begin : BINS_BLOCK;
        double sums[BINS_BLOCK];
        float narrowed[BINS_BLOCK];
        for (int64_t j = 0; j < count; j++) {
            const double *a = acc + 3 * (begin + j);
            double high = a[0] - start_of(a[0]), middle = a[1] - start_of(a[1]), low = a[2] - start_of(a[2]);
            const double of_low = carried(low, a[1]);
            low -= of_low;
            middle += of_low;
            const double of_middle = carried(middle, a[0]);
            middle -= of_middle;
            high += of_middle;
            sums[j] = (high + (middle + low)) / weight;
        }
        if (narrow) {
            for (int64_t j = 0; j < count; j++)
                narrowed[j] = (float)sums[j];
            odd |= OF(odd_of_float, SUFFIX)(narrowed, count);
            memcpy((float *)out + begin, narrowed, count * sizeof *narrowed);
        } else {
            odd |= OF(odd_of_double, SUFFIX)(sums, count);
            memcpy((double *)out + begin, sums, count * sizeof *sums);
        }
    }
    return odd;
}

static const struct bins_functions OF(bins_functions, SUFFIX) = {BINS, MEAN_BINS};

#undef BINS
#undef UPLIFT
#undef ADD_GROUP
#undef ADD_PASS
#undef ADD_REST
#undef ADD_ROWS
#undef ADD_ROWS_OF
#undef ADD_BINS
#undef MEAN_BINS
#undef FLOATS
#undef BITS
#undef load_bins
#undef odd_bins
#undef load_wide
#undef larger_of
#undef any_below
