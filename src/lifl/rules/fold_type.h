/* A part of fold.c: the fold of one type, included once for each.  Before it stand
 *
 *     NAME     what the functions begin with, and SUFFIX, for the set of instructions
 *     X, A     the type of the vectors, and that of `out`: double, or float
 *     WIDEN    an element of X as double
 *     CENTRED  1: differences from the mean so far are folded (see fold.c)
 *     LANES    if it is defined: so many numbers are computed at once, by these: VECTOR (their type), LOAD_X,
 *              LOAD_DOUBLE, STORE_A, STORE_DOUBLE, SPREAD (one number in all lanes), MULTIPLY, MULTIPLY_ADD (a * b + c)
 *
 * and INLINE, with the set of instructions that the functions are compiled for.
 */

#define CHUNK_OF OF(OF(NAME, SUFFIX), chunk)
#define REST_OF OF(OF(NAME, SUFFIX), rest)
#define PASS_OF OF(OF(NAME, SUFFIX), pass)
#define ROWS_OF OF(OF(NAME, SUFFIX), rows)
#define BLOCK_OF OF(OF(NAME, SUFFIX), block)
#define BODY_OF OF(OF(NAME, SUFFIX), body)
#define ODD_ OF(odd_of, A)
#define ODD OF(ODD_, SUFFIX)
#define LOOKED_AT (CENTRED || sizeof(A) < sizeof(double)) /* others are not rounded yet */
/* A sum with one term more; what is -0 stays so. */
#define ADDED(sum, weight, x) (CENTRED ? (sum) - (weight) * (centre - (x)) : (sum) + (weight) * (x))

/* A chunk of one pass over `rows` vectors, from element `at` of each on.  `rows`, `wides` and `last` are constants: what
 * is not needed falls away.  The pass goes on from what is wide: 0, 1 or WIDES_MAX vectors `before`, each times `keep`.
 * All but the last leave their sums in `made`. */
INLINE void CHUNK_OF(A *out, const double *const *before, double *made, const double *keep, const X *const *x,
                     const double *weights, int64_t at, int rows, int wides, int last)
{
    const double *b0 = before[0] + at, *b1 = before[wides > 1 ? 1 : 0] + at, *b2 = before[wides > 1 ? 2 : 0] + at,
                 *b3 = before[wides > 1 ? 3 : 0] + at;
    const X *x0 = x[0] + at, *x1 = x[rows > 1 ? 1 : 0] + at, *x2 = x[rows > 2 ? 2 : 0] + at,
            *x3 = x[rows > 3 ? 3 : 0] + at, *x4 = x[rows > 4 ? 4 : 0] + at, *x5 = x[rows > 5 ? 5 : 0] + at,
            *x6 = x[rows > 6 ? 6 : 0] + at, *x7 = x[rows > 7 ? 7 : 0] + at;
    double w0 = weights[0], w1 = rows > 1 ? weights[1] : 0, w2 = rows > 2 ? weights[2] : 0,
           w3 = rows > 3 ? weights[3] : 0, w4 = rows > 4 ? weights[4] : 0, w5 = rows > 5 ? weights[5] : 0,
           w6 = rows > 6 ? weights[6] : 0, w7 = rows > 7 ? weights[7] : 0;
#if defined(LANES) && !CENTRED
    VECTOR s0 = SPREAD(w0), s1 = SPREAD(w1), s2 = SPREAD(w2), s3 = SPREAD(w3), s4 = SPREAD(w4), s5 = SPREAD(w5),
           s6 = SPREAD(w6), s7 = SPREAD(w7), k0 = SPREAD(keep[0]), k1 = SPREAD(keep[1]), k2 = SPREAD(keep[2]), k3 = SPREAD(keep[3]);
#pragma GCC unroll 1
    for (int64_t j = 0; j < CHUNK; j += LANES) {
        VECTOR sum = rows ? MULTIPLY(s0, LOAD_X(x0 + j)) : MULTIPLY(k0, LOAD_DOUBLE(b0 + j));
        if (rows && wides)
            sum = MULTIPLY_ADD(k0, LOAD_DOUBLE(b0 + j), sum);
        if (wides > 1) {
            sum = MULTIPLY_ADD(k1, LOAD_DOUBLE(b1 + j), sum);
            sum = MULTIPLY_ADD(k2, LOAD_DOUBLE(b2 + j), sum);
            sum = MULTIPLY_ADD(k3, LOAD_DOUBLE(b3 + j), sum);
        }
        if (rows > 1)
            sum = MULTIPLY_ADD(s1, LOAD_X(x1 + j), sum);
        if (rows > 2)
            sum = MULTIPLY_ADD(s2, LOAD_X(x2 + j), sum);
        if (rows > 3)
            sum = MULTIPLY_ADD(s3, LOAD_X(x3 + j), sum);
        if (rows > 4)
            sum = MULTIPLY_ADD(s4, LOAD_X(x4 + j), sum);
        if (rows > 5)
            sum = MULTIPLY_ADD(s5, LOAD_X(x5 + j), sum);
        if (rows > 6)
            sum = MULTIPLY_ADD(s6, LOAD_X(x6 + j), sum);
        if (rows > 7)
            sum = MULTIPLY_ADD(s7, LOAD_X(x7 + j), sum);
        if (last)
            STORE_A(out + j, sum);
        else
            STORE_DOUBLE(made + j, sum);
    }
#else
#pragma GCC ivdep /* what is written is `before`, or nothing that is read */
#pragma GCC unroll 1
    for (int64_t j = 0; j < CHUNK; j++) {
        double v0 = rows ? WIDEN(x0[j]) : 0, kept = wides ? b0[j] : v0, centre = kept;
        double sum = CENTRED ? kept : wides ? keep[0] * kept : w0 * v0;
        if (wides > 1)
            sum += keep[1] * b1[j] + keep[2] * b2[j] + keep[3] * b3[j];
        if (rows && wides)
            sum = ADDED(sum, w0, v0);
        if (rows > 1)
            sum = ADDED(sum, w1, WIDEN(x1[j]));
        if (rows > 2)
            sum = ADDED(sum, w2, WIDEN(x2[j]));
        if (rows > 3)
            sum = ADDED(sum, w3, WIDEN(x3[j]));
        if (rows > 4)
            sum = ADDED(sum, w4, WIDEN(x4[j]));
        if (rows > 5)
            sum = ADDED(sum, w5, WIDEN(x5[j]));
        if (rows > 6)
            sum = ADDED(sum, w6, WIDEN(x6[j]));
        if (rows > 7)
            sum = ADDED(sum, w7, WIDEN(x7[j]));
        if (last)
            out[j] = (A)sum;
        else
            made[j] = sum;
    }
#endif
}

/* The same in one plain loop, for any number of elements, and for what overflowed: `unit` is 1, or less than 1 where the
 * difference of two numbers would be beyond the type; 0 sums without differences, which keeps an infinity what it is.
 * With less than 1 only what is not finite is made again: a quarter of a subnormal number has no room for its last bits.
 * The sums of all but the last pass go to `made`, which may be `before` where nothing is made again. */
NOINLINE void REST_OF(A *out, const double *const *before, double *made, const double *keep, const X *const *x,
                      const double *weights, int64_t at, int64_t count, int rows, int wides, int last, double unit)
{
    double left = 1, scale = unit == 0 ? 1 : unit;
    for (int r = 0; r < rows; r++)
        left -= weights[r];
    for (int64_t j = 0; j < count; j++) {
        if (unit != 1) {
            double found = last ? (double)out[j] : made[j];
            if (found - found == 0)
                continue;
        }
        double kept = scale * (wides ? before[0][at + j] : WIDEN(x[0][at + j])), centre = unit == 0 ? 0 : kept;
        double sum = CENTRED ? centre : wides ? keep[0] * kept : -0.0;
        for (int w = 1; w < wides; w++)
            sum += keep[w] * before[w][at + j];
        if (unit == 0 && wides)
            sum = left * kept;
        for (int r = 0; r < rows; r++)
            sum = ADDED(sum, weights[r], scale * WIDEN(x[r][at + j]));
        if (last)
            out[j] = (A)(sum / scale);
        else
            made[j] = sum / scale;
    }
}

/* One pass over `count` elements; `next` are the rows of the pass after it.  Returns whether one of the results is not
 * finite, where they are LOOKED_AT.  Of differences (CENTRED) each pass is looked at: what overflows in one would stay
 * so. */
INLINE int PASS_OF(A *out, const double *const *before, double *waiting, const double *keep, const X *const *x,
                   const X *const *next, const double *weights, int64_t count, int rows, int wides, int last,
                   int streaming, int far)
{
    int streams = rows + 2 * far;
    int64_t ahead = rows > 2 || far > 1 ? AHEAD_LINES * LINE_BYTES / streams : 0, pass_bytes = count * (int64_t)sizeof(X);
    int64_t beyond = 2 * ahead / (int64_t)sizeof(double);
    int64_t at = 0;
    int odd = 0;
    A sums[CHUNK] __attribute__((aligned(LINE_BYTES)));
    for (; at + CHUNK <= count; at += CHUNK) {
        if (ahead) {
            int64_t there = at * (int64_t)sizeof(X) + ahead;
            int within = there < pass_bytes;
            for (int r = 0; r < rows; r++)
                PREFETCH(within ? (const char *)x[r] + there : (const char *)next[r] + (there - pass_bytes),
                         CHUNK * sizeof(X));
            for (int w = 0; w < far; w++)
                PREFETCH((const char *)(before[w] + at + beyond), CHUNK * sizeof(double));
        }
        A *to = last && (streaming || CENTRED) ? sums : out + at;
        double *made = CENTRED ? (double *)sums : waiting + at;
        CHUNK_OF(to, before, made, keep, x, weights, at, rows, wides, last);
        if (LOOKED_AT && (last || CENTRED)) {
            A *results = last ? to : sums;
            int strange = ODD(results, CHUNK);
            for (double unit = 0.25; CENTRED && strange && unit >= 0; unit -= 0.25) {
                REST_OF(to, before, made, keep, x, weights, at, CHUNK, rows, wides, last, unit);
                strange = ODD(results, CHUNK);
            }
            odd |= strange;
        }
        if (last && streaming)
            STREAM(out + at, sums, sizeof sums);
        else if (CENTRED)
            memcpy(last ? (void *)(out + at) : (void *)(waiting + at), sums, sizeof sums);
    }
    if (at == count)
        return odd;
    int64_t left = count - at;
    double *made = CENTRED ? (double *)sums : waiting + at;
    REST_OF(sums, before, made, keep, x, weights, at, left, rows, wides, last, 1);
    if (!last && !CENTRED)
        return 0;
    for (double unit = 0.25; CENTRED && ODD(sums, left) && unit >= 0; unit -= 0.25)
        REST_OF(sums, before, made, keep, x, weights, at, left, rows, wides, last, unit);
    memcpy(last ? (void *)(out + at) : (void *)(waiting + at), sums, (size_t)left * sizeof(A));
    return LOOKED_AT ? odd | ODD(sums, left) : 0;
}

/* A pass over up to ROWS_MAX rows.  There is one for 0, 1, 2 and 4, 6, 8 of them; for a number between, the first one is
 * there twice, each time with half its weight. */
INLINE int ROWS_OF(A *out, const double *const *before, double *waiting, const double *keep, const X *const *x,
                   const X *const *next, const double *weights, int64_t count, int rows, int wides, int last,
                   int streaming, int far)
{
    rows += rows > 2 && rows % 2;
    if (rows == 0 && wides && last)
        return PASS_OF(out, before, waiting, keep, x, next, weights, count, 0, wides, 1, streaming, far);
    if (rows == 1 && last)
        return PASS_OF(out, before, waiting, keep, x, next, weights, count, 1, wides, last, streaming, far);
    if (rows == 2 && last)
        return PASS_OF(out, before, waiting, keep, x, next, weights, count, 2, wides, last, streaming, far);
    if (rows <= 4)
        return PASS_OF(out, before, waiting, keep, x, next, weights, count, 4, wides, last, streaming, far);
    if (rows <= 6)
        return PASS_OF(out, before, waiting, keep, x, next, weights, count, 6, wides, last, streaming, far);
    return PASS_OF(out, before, waiting, keep, x, next, weights, count, ROWS_MAX, wides, last, streaming, far);
}

/* One block: the vectors in passes of nearly equal numbers of rows, onto what is wide. */
INLINE int BLOCK_OF(A *out, const double *const *wide, const double *scales, int64_t partials, const X *const *vectors,
                    const double *weights, int64_t rows, int64_t begin, int64_t count, int64_t next_begin,
                    int streaming)
{
    int odd = 0;
    double waiting[BLOCK] __attribute__((aligned(LINE_BYTES)));
    int64_t passes = rows > ROWS_MAX ? (rows + ROWS_MAX - 1) / ROWS_MAX : 1;
    int near = partials > WIDES_MAX; /* what is wide is summed up first: it is in the cache */
    int wides = near || partials == 1 ? 1 : partials ? WIDES_MAX : 0;
    const double *before[WIDES_MAX] = {waiting, waiting, waiting, waiting};
    double keep[WIDES_MAX] = {1}, with = near; /* `with`: the weight of what is there already */
    for (int w = 0; w < wides && !near; w++) {
        before[w] = wide[w < partials ? w : 0] + begin;
        keep[w] = w < partials ? scales[w] : 0;
        with += keep[w];
    }
    if (near)
        SUM_WIDE(waiting, wide, scales, partials, begin, count);
    for (int64_t p = 0, row = 0; p < passes; p++) {
        int64_t end = rows * (p + 1) / passes, after = p + 1 < passes ? end : 0;
        int64_t next_from = p + 1 < passes ? begin : next_begin;
        int64_t next_rows = p + 1 < passes ? rows * (p + 2) / passes - end : rows / passes;
        const X *x[ROWS_MAX] = {0}, *next[ROWS_MAX] = {0};
        double w[ROWS_MAX] = {0};
        int n = (int)(end - row), last = p + 1 == passes;
        for (int r = 0; r < n; r++)
            with += weights[row + r];
        for (int r = 0; r < ROWS_MAX && rows; r++) {
            x[r] = vectors[row + (r < n ? r : 0)] + begin;
            next[r] = vectors[after + (r < next_rows ? r : 0)] + next_from;
            w[r] = r < n ? (CENTRED ? weights[row + r] / with : weights[row + r]) : 0;
        }
        if (n > 2 && n % 2)
            w[0] = w[n] = w[0] / 2;
        A *to = out + begin;
        if (!wides && last)
            odd = ROWS_OF(to, before, waiting, keep, x, next, w, count, n, 0, 1, streaming, 0);
        else if (!wides)
            odd = ROWS_OF(to, before, waiting, keep, x, next, w, count, n, 0, 0, 0, 0);
        else if (wides == 1 && last)
            odd = ROWS_OF(to, before, waiting, keep, x, next, w, count, n, 1, 1, streaming, before[0] != waiting);
        else if (wides == 1)
            odd = ROWS_OF(to, before, waiting, keep, x, next, w, count, n, 1, 0, 0, before[0] != waiting);
        else if (last && !CENTRED)
            odd = ROWS_OF(to, before, waiting, keep, x, next, w, count, n, WIDES_MAX, 1, streaming, WIDES_MAX);
        else if (!CENTRED)
            odd = ROWS_OF(to, before, waiting, keep, x, next, w, count, n, WIDES_MAX, 0, 0, WIDES_MAX);
        row = end;
        before[0] = waiting;
        keep[0] = wides = 1;
    }
    return odd; /* the last pass's */
}

NOINLINE int BODY_OF(void *to, int64_t size, const double *const *wide, const double *scales, int64_t partials,
                     const void *const *vectors, const double *weights, int64_t rows)
{
    A *out = to;
    int odd = 0;
    int streaming = STREAMS && size * (int64_t)sizeof(A) >= STREAM_BYTES;
    for (int64_t p = 0; p < partials; p++)
        streaming &= (const void *)wide[p] != to;
    int64_t begin = 0;
    /* The first block is shorter, so that the others begin with a line. */
    int64_t end = BLOCK - (int64_t)((uintptr_t)out % LINE_BYTES / sizeof(A));
    for (; begin < size; begin = end, end += BLOCK) {
        if (end > size)
            end = size;
        odd |= BLOCK_OF(out, wide, scales, partials, (const X *const *)vectors, weights, rows, begin, end - begin,
                        end < size ? end : begin, streaming && (uintptr_t)(out + begin) % LINE_BYTES == 0);
    }
    if (streaming)
        stream_end();
    return odd;
}

#undef NAME
#undef A
#undef STORE_A
#undef LOOKED_AT
#undef ADDED
#undef CHUNK_OF
#undef REST_OF
#undef PASS_OF
#undef ROWS_OF
#undef BLOCK_OF
#undef BODY_OF
#undef ODD
#undef ODD_
