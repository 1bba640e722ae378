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
#define ADD_ROWS OF(bins_add_rows, SUFFIX)
#define ADD_BINS OF(bins_add_bins, SUFFIX)
#define PRODUCTS OF(bins_products, SUFFIX)
#define MEAN_BINS OF(bins_mean, SUFFIX)

#define load_bins OF(load_bins, SUFFIX)
INLINE bins_vector load_bins(const double *from)
{
    bins_vector loaded;
    memcpy(&loaded, from, sizeof loaded);
    return loaded;
}

#define odd_bins OF(odd_bins, SUFFIX)
INLINE bins_vector odd_bins(bins_vector values)
{
    return (bins_vector)((bins_bits)values | 1);
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

/* Adds rows of terms, of which `largest` has the largest magnitudes: all BINS_BLOCK of each. */
NOINLINE void ADD_ROWS(double *restrict high, double *restrict middle, double *restrict low,
                       const double *restrict terms, const double *restrict largest, int64_t rows)
{
    int64_t wanted[BINS_BLOCK], raise = 0;
    for (int64_t j = 0; j < BINS_BLOCK; j++) {
        wanted[j] = exponent_of(largest[j]);
        raise |= wanted[j] + BIN_SHIFT - BIN_BITS >= exponent_of(high[j]) ? 1 : 0;
    }
    if (raise)
        UPLIFT(high, middle, low, wanted, BINS_BLOCK);
    for (int64_t j = 0; j < BINS_BLOCK; j += BINS_LANES) {
        bins_vector h = load_bins(high + j), m = load_bins(middle + j), l = load_bins(low + j);
        for (int64_t row = 0; row < rows; row++) {
            bins_vector rest = load_bins(terms + row * BINS_BLOCK + j), sum = h + odd_bins(rest);
            rest -= sum - h;
            h = sum;
            sum = m + odd_bins(rest);
            rest -= sum - m;
            m = sum;
            l += odd_bins(rest);
        }
        memcpy(high + j, &h, sizeof h);
        memcpy(middle + j, &m, sizeof m);
        memcpy(low + j, &l, sizeof l);
    }
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

/* terms[0:count] = weight * vector[begin:][0:count], and the largest magnitudes so far: in memory, so that no compiler
 * makes one operation of a product and what follows. */
#define PRODUCTS_OF(X, WIDE)                                                                                           \
    do {                                                                                                               \
        const X *x = (const X *)vector + begin;                                                                        \
        for (int64_t j = 0; j < count; j++) {                                                                          \
            const double term = weight * WIDE(x[j]), size = __builtin_fabs(term);                                      \
            terms[j] = term;                                                                                           \
            largest[j] = largest[j] > size ? largest[j] : size;                                                        \
        }                                                                                                              \
    } while (0)

NOINLINE void PRODUCTS(double *restrict terms, double *restrict largest, int dtype, const void *restrict vector,
                       double weight, int64_t begin, int64_t count)
{
    if (dtype == 0)
        PRODUCTS_OF(double, TO_DOUBLE);
    else if (dtype == 1)
        PRODUCTS_OF(float, TO_DOUBLE);
    else if (dtype == 2)
        PRODUCTS_OF(uint16_t, from_half);
    else
        PRODUCTS_OF(uint16_t, from_bfloat);
}

/* See lifl_fold_bins. */
NOINLINE void BINS(int dtype, double *acc, int64_t size, int keep, const double *const *partials, int64_t others,
                   const void *const *vectors, const double *weights, int64_t rows)
{
    const int64_t item_bytes = dtype == 0 ? 8 : dtype == 1 ? 4 : 2;
    double high[BINS_BLOCK], middle[BINS_BLOCK], low[BINS_BLOCK], largest[BINS_BLOCK];
    double terms[BINS_ROWS * BINS_BLOCK];
    memset(terms, 0, sizeof terms); /* the last block may be shorter, and is computed whole */
    memset(high, 0, sizeof high);
    for (int64_t begin = 0; begin < size; begin += BINS_BLOCK) {
        const int64_t count = size - begin < BINS_BLOCK ? size - begin : BINS_BLOCK;
        const int64_t ahead = size - begin < 2 * BINS_BLOCK ? 0 : BINS_BLOCK;
        double *const at = acc + 3 * begin;
        for (int64_t j = 0; j < count; j++) {
            high[j] = keep ? at[3 * j] : 0;
            middle[j] = keep ? at[3 * j + 1] : 0;
            low[j] = keep ? at[3 * j + 2] : 0;
        }
        for (int64_t row = 0; row < others; row++) {
            ADD_BINS(high, middle, low, partials[row] + 3 * begin, count);
            for (int64_t b = 0; b < 3 * ahead; b += LINE_BYTES / 8)
                __builtin_prefetch(partials[row] + 3 * (begin + ahead) + b, 0, 3);
        }
        for (int64_t first = 0; first < rows; first += BINS_ROWS) {
            const int64_t some = rows - first < BINS_ROWS ? rows - first : BINS_ROWS;
            memset(largest, 0, sizeof largest);
            for (int64_t row = 0; row < some; row++) {
                const void *vector = vectors[first + row];
                const char *next = (const char *)vector + (begin + ahead) * item_bytes;
                for (int64_t b = 0; b < ahead * item_bytes; b += LINE_BYTES)
                    __builtin_prefetch(next + b, 0, 3);
                PRODUCTS(terms + row * BINS_BLOCK, largest, dtype, vector, weights[first + row], begin, count);
            }
            ADD_ROWS(high, middle, low, terms, largest, some);
        }
        for (int64_t b = 0; b < 3 * ahead; b += LINE_BYTES / 8)
            __builtin_prefetch(at + 3 * ahead + b, 1, 3);
        for (int64_t j = 0; j < count; j++) {
            at[3 * j] = high[j];
            at[3 * j + 1] = middle[j];
            at[3 * j + 2] = low[j];
        }
    }
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
#undef ADD_ROWS
#undef ADD_BINS
#undef PRODUCTS
#undef load_bins
#undef odd_bins
#undef PRODUCTS_OF
#undef MEAN_BINS
