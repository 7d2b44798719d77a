/* Kernels for float32 tensors in host memory, each with as few passes over them as there can be.
 *
 * Every one does `count` things that depend on nothing of each other, shared out over `threads`
 * threads of the pool that torch's own calls use: a second pool would wait for a core until torch's
 * threads have stopped to look for work. Compiled without OpenMP they run on the caller's thread.
 */
#include <stdint.h>
#include <string.h>

#define LANES 32
#define SHARED _Pragma("omp parallel for schedule(dynamic) num_threads(threads) if(threads > 1)")

/* Whether kernels share their work out. */
int64_t gradwise_threaded(void)
{
#ifdef _OPENMP
    return 1;
#else
    return 0;
#endif
}

/* Rows of `length` values each, which begin `start` values into tensor `owner`. They are of the
 * segments from `segment` on, and their sums go to the slots from `slot` on. A row that is too long
 * for one piece is a piece several times, with a slot each.
 */
struct piece {
    int64_t owner, start, rows, length, segment, slot;
};

/* Sums are float64, where squares of float32 are exact. */
struct sums {
    double sum, square, low, high, nonfinite, zeros;
};

/* Lanes are independent sums, so that vector registers need no other order of addition. */
static struct sums measure_row(const float *restrict x, int64_t n)
{
    double sum[LANES] = {0}, square[LANES] = {0};
    float low[LANES], high[LANES];
    int32_t bad[LANES] = {0}, zero[LANES] = {0};
    struct sums all = {0};
    int64_t i = 0, infinite = 0, nothing = 0;

    for (int l = 0; l < LANES; l++)
        low[l] = high[l] = x[0];
    for (; i + LANES <= n; i += LANES)
        for (int l = 0; l < LANES; l++) {
            const float v = x[i + l];
            const double d = v;
            sum[l] += d;
            square[l] += d * d;
            low[l] = v < low[l] ? v : low[l];
            high[l] = v > high[l] ? v : high[l];
            bad[l] += !(v - v == 0.0f); /* NaN and infinities */
            zero[l] += v == 0.0f;
        }
    for (int l = 0; i < n; i++, l++) {
        const float v = x[i];
        const double d = v;
        sum[l] += d;
        square[l] += d * d;
        low[l] = v < low[l] ? v : low[l];
        high[l] = v > high[l] ? v : high[l];
        bad[l] += !(v - v == 0.0f);
        zero[l] += v == 0.0f;
    }
    all.low = low[0];
    all.high = high[0];
    for (int l = 0; l < LANES; l++) {
        all.sum += sum[l];
        all.square += square[l];
        all.low = low[l] < all.low ? low[l] : all.low;
        all.high = high[l] > all.high ? high[l] : all.high;
        infinite += bad[l];
        nothing += zero[l];
    }
    all.nonfinite = (double)infinite;
    all.zeros = (double)nothing;
    return all;
}

/* The sums alone, in half the time where the values are in a cache; whether all values are finite
 * shows in them, since no square of a float is infinite in a double. */
static struct sums sum_row(const float *restrict x, int64_t n)
{
    double sum[LANES] = {0}, square[LANES] = {0};
    struct sums all = {0};
    int64_t i = 0;

    for (; i + LANES <= n; i += LANES)
        for (int l = 0; l < LANES; l++) {
            const double d = x[i + l];
            sum[l] += d;
            square[l] += d * d;
        }
    for (int l = 0; i < n; i++, l++) {
        const double d = x[i];
        sum[l] += d;
        square[l] += d * d;
    }
    for (int l = 0; l < LANES; l++) {
        all.sum += sum[l];
        all.square += square[l];
    }
    all.nonfinite = !(all.square - all.square == 0);
    return all;
}

/* Sums of all rows of the pieces, by slot; with extremes and zeros where they are asked for. */
void gradwise_measure(const uint64_t *data, const struct piece *pieces, int64_t count,
                      int64_t threads, int64_t extremes, struct sums *out)
{
    SHARED
    for (int64_t i = 0; i < count; i++) {
        const struct piece piece = pieces[i];
        const float *x = (const float *)(uintptr_t)data[piece.owner] + piece.start;
        for (int64_t r = 0; r < piece.rows; r++, x += piece.length)
            out[piece.slot + r] = extremes ? measure_row(x, piece.length) : sum_row(x, piece.length);
    }
}

/* Share of the sum of squares that has to be left after the mean is taken out: float64 sums are good
 * to 1e-15, so what is left is good to 1e-9. */
#define CANCELLED 1e-6

/* Segment s has numel[s] values, whose sums are in the slots from first[s] to first[s + 1], in an
 * order that no number of threads changes. out is [4, segments]: mean, m2, smallest, largest;
 * counts is [3, segments]: of values that are not finite, of zeros, and 1 where the sums do not tell
 * enough (not finite, constant or nearly so). All 0 where there is no slot. Returns how many those
 * are.
 */
int64_t gradwise_collect(const struct sums *part, const int64_t *first, const int64_t *numel,
                         int64_t segments, int64_t threads, double *restrict out,
                         int64_t *restrict counts)
{
    int64_t unsound = 0;

#pragma omp parallel for num_threads(threads) if(threads > 1) reduction(+ : unsound)
    for (int64_t s = 0; s < segments; s++) {
        struct sums all = {0};
        for (int64_t i = first[s]; i < first[s + 1]; i++) {
            const struct sums more = part[i];
            all.sum += more.sum;
            all.square += more.square;
            all.low = i == first[s] || more.low < all.low ? more.low : all.low;
            all.high = i == first[s] || more.high > all.high ? more.high : all.high;
            all.nonfinite += more.nonfinite;
            all.zeros += more.zeros;
        }
        const double mean = numel[s] ? all.sum / (double)numel[s] : 0;
        const double m2 = all.square - all.sum * mean;
        const int64_t poor = !(m2 > CANCELLED * all.square || all.square == 0);
        out[s] = mean;
        out[segments + s] = m2;
        out[2 * segments + s] = all.low;
        out[3 * segments + s] = all.high;
        counts[s] = (int64_t)all.nonfinite;
        counts[segments + s] = (int64_t)all.zeros;
        counts[2 * segments + s] = poor;
        unsound += poor;
    }
    return unsound;
}

/* g <- scale * (g - shift), with one scale a segment, or one for all where scales is 0, and shifts
 * likewise; what changes nothing is left. The last piece comes first: what was measured last is
 * still in a cache.
 */
void gradwise_apply(const uint64_t *data, const struct piece *pieces, int64_t count,
                    int64_t threads, const double *scale, int64_t scales, const double *shift,
                    int64_t shifts)
{
    SHARED
    for (int64_t i = 0; i < count; i++) {
        const struct piece piece = pieces[count - 1 - i];
        for (int64_t r = 0; r < piece.rows; r++) {
            const int64_t s = piece.segment + r;
            const float a = (float)scale[scales ? s : 0], k = (float)shift[shifts ? s : 0];
            float *restrict x =
                (float *)(uintptr_t)data[piece.owner] + piece.start + r * piece.length;
            if (a == 1.0f && k == 0.0f)
                continue;
            for (int64_t j = 0; j < piece.length; j++)
                x[j] = (x[j] - k) * a;
        }
    }
}

/* What follows is for pairs of tensors: x of length[t] values at data[t], y of as many at other[t].
 * With fewer lanes than this gcc unrolls the loop over them, and then does not vectorise it.
 */
#define PAIR_LANES 32

/* y <- x */
void gradwise_copy(const uint64_t *data, const uint64_t *other, const int64_t *length,
                   int64_t count, int64_t threads)
{
    SHARED
    for (int64_t t = 0; t < count; t++)
        memcpy((void *)(uintptr_t)other[t], (const void *)(uintptr_t)data[t],
               (size_t)length[t] * sizeof(float));
}

struct changes {
    double change, square;
};

static struct changes compare(const float *restrict x, const float *restrict y, int64_t n)
{
    double change[PAIR_LANES] = {0}, square[PAIR_LANES] = {0};
    struct changes all = {0};
    int64_t i = 0;

    for (; i + PAIR_LANES <= n; i += PAIR_LANES)
        for (int l = 0; l < PAIR_LANES; l++) {
            const double v = x[i + l], w = y[i + l];
            change[l] += (v - w) * (v - w);
            square[l] += v * v;
        }
    for (int l = 0; i < n; i++, l++) {
        const double v = x[i], w = y[i];
        change[l] += (v - w) * (v - w);
        square[l] += v * v;
    }
    for (int l = 0; l < PAIR_LANES; l++) {
        all.change += change[l];
        all.square += square[l];
    }
    return all;
}

/* out is [2, count]: sums of (x - y)^2 and of x^2. */
void gradwise_difference(const uint64_t *data, const uint64_t *other, const int64_t *length,
                         int64_t count, int64_t threads, double *restrict out)
{
    SHARED
    for (int64_t t = 0; t < count; t++) {
        const struct changes all = compare((const float *)(uintptr_t)data[t],
                                           (const float *)(uintptr_t)other[t], length[t]);
        out[t] = all.change;
        out[count + t] = all.square;
    }
}

/* Neither is NaN, and both are above, below or at 0. */
static inline int32_t same_sign(float a, float b)
{
    return ((a > 0.0f) & (b > 0.0f)) | ((a < 0.0f) & (b < 0.0f)) | ((a == 0.0f) & (b == 0.0f));
}

/* out is [4, count]: sums of x y, x^2 and y^2, and entries of the same sign; then y <- x. */
void gradwise_direction(const uint64_t *data, const uint64_t *other, const int64_t *length,
                        int64_t count, int64_t threads, double *restrict out)
{
    SHARED
    for (int64_t t = 0; t < count; t++) {
        const float *restrict x = (const float *)(uintptr_t)data[t];
        float *restrict y = (float *)(uintptr_t)other[t];
        double dot[PAIR_LANES] = {0}, now[PAIR_LANES] = {0}, before[PAIR_LANES] = {0};
        double sums[3] = {0};
        int32_t agree[PAIR_LANES] = {0};
        int64_t same = 0;
        const int64_t n = length[t];
        int64_t i = 0;

        for (; i + PAIR_LANES <= n; i += PAIR_LANES)
            for (int l = 0; l < PAIR_LANES; l++) {
                const float a = x[i + l], b = y[i + l];
                const double c = a, d = b;
                dot[l] += c * d;
                now[l] += c * c;
                before[l] += d * d;
                agree[l] += same_sign(a, b);
                y[i + l] = a;
            }
        for (int l = 0; i < n; i++, l++) {
            const float a = x[i], b = y[i];
            const double c = a, d = b;
            dot[l] += c * d;
            now[l] += c * c;
            before[l] += d * d;
            agree[l] += same_sign(a, b);
            y[i] = a;
        }
        for (int l = 0; l < PAIR_LANES; l++) {
            sums[0] += dot[l];
            sums[1] += now[l];
            sums[2] += before[l];
            same += agree[l];
        }
        for (int k = 0; k < 3; k++)
            out[k * count + t] = sums[k];
        out[3 * count + t] = (double)same;
    }
}

#define BLOCK 512
#define TABLES 4 /* neighbours that fall into one bin are counted in different places */
#define MOST 512 /* bins, that for NaN included */

/* Counts by sign and power of two into [2 octaves + 1] bins a tensor.
 *
 * The bits of a positive float, read as an integer, rise with its value, and 1 << 23 of them double
 * it. So the bin follows from how far they are from those of the lowest edge: `above` are the bits
 * of the least value that is not below it, `below` those of the least whose negative is under the
 * negative edge. Bins are closed below and open above. NaN is in no bin.
 */
void gradwise_histogram(const uint64_t *data, const int64_t *length, int64_t count, int64_t threads,
                        int64_t above, int64_t below, int64_t octaves, int64_t *restrict out)
{
    const int32_t middle = (int32_t)octaves, bins = 2 * middle + 1;
    const int32_t positive = (int32_t)above, negative = (int32_t)below;

    SHARED
    for (int64_t t = 0; t < count; t++) {
        const int32_t *x = (const int32_t *)(uintptr_t)data[t];
        int64_t counts[TABLES][MOST] = {0};
        uint16_t bin[BLOCK];

        for (int64_t start = 0; start < length[t]; start += BLOCK) {
            const int64_t left = length[t] - start;
            const int32_t n = left < BLOCK ? (int32_t)left : BLOCK;

            for (int32_t i = 0; i < n; i++) {
                const int32_t bits = x[start + i], size = bits & 0x7fffffff;
                const int32_t far = size - (bits < 0 ? negative : positive);
                int32_t step = far < 0 ? 0 : (far >> 23) + 1;
                step = step > middle ? middle : step;
                step = bits < 0 ? middle - step : middle + step;
                bin[i] = (uint16_t)(size > 0x7f800000 ? bins : step);
            }
            for (int32_t i = 0; i < n; i++)
                counts[i % TABLES][bin[i]]++;
        }
        for (int32_t b = 0; b < bins; b++) {
            out[t * bins + b] = 0;
            for (int k = 0; k < TABLES; k++)
                out[t * bins + b] += counts[k][b];
        }
    }
}
