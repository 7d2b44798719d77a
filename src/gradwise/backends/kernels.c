/* Kernels for float32 tensors in host memory, each with as few passes over them as there can be.
 *
 * Measure and apply: one read, one read and write.
 * Tensors t in [from, to) lie at data[t] as rows[t] rows of length[t] values; first[t] is the index
 * of tensor t's first row among all segments. Sums are float64, where squares of float32 are exact.
 * Lanes are independent sums, so that a compiler may use vector registers without reordering.
 */
#include <stdint.h>
#include <string.h>

#define LANES 16

struct sums {
    double sum, square, low, high;
    int64_t nonfinite, zeros;
};

static struct sums measure_row(const float *restrict x, int64_t n)
{
    double sum[LANES] = {0}, square[LANES] = {0};
    float low[LANES], high[LANES];
    int32_t bad[LANES] = {0}, zero[LANES] = {0};
    struct sums all = {0};
    int64_t i = 0;

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
        all.nonfinite += bad[l];
        all.zeros += zero[l];
    }
    return all;
}

/* out is [6, segments]: mean, m2, non-finite count, smallest, largest, count of zeros; square is
 * [segments]. */
void gradwise_measure(const uint64_t *data, const int64_t *rows, const int64_t *length,
                      const int64_t *first, int64_t from, int64_t to, int64_t segments,
                      double *restrict out, double *restrict square)
{
    for (int64_t t = from; t < to; t++)
        for (int64_t r = 0; r < rows[t]; r++) {
            const int64_t n = length[t], s = first[t] + r;
            const struct sums all = measure_row((const float *)(uintptr_t)data[t] + r * n, n);
            const double mean = all.sum / (double)n;
            out[s] = mean;
            out[segments + s] = all.square - all.sum * mean;
            out[2 * segments + s] = (double)all.nonfinite;
            out[3 * segments + s] = all.low;
            out[4 * segments + s] = all.high;
            out[5 * segments + s] = (double)all.zeros;
            square[s] = all.square;
        }
}

/* g <- scale * (g - shift), with one scale and shift a segment; what changes nothing is left. */
void gradwise_apply(const uint64_t *data, const int64_t *rows, const int64_t *length,
                    const int64_t *first, int64_t from, int64_t to, const double *scale,
                    const double *shift)
{
    for (int64_t t = from; t < to; t++)
        for (int64_t r = 0; r < rows[t]; r++) {
            const int64_t n = length[t];
            const float a = (float)scale[first[t] + r], k = (float)shift[first[t] + r];
            float *restrict x = (float *)(uintptr_t)data[t] + r * n;
            if (a == 1.0f && k == 0.0f)
                continue;
            for (int64_t i = 0; i < n; i++)
                x[i] = (x[i] - k) * a;
        }
}

/* What follows is for pairs of tensors: x of length[t] values at data[t], y of as many at other[t].
 * With fewer lanes than this gcc unrolls the loop over them, and then does not vectorise it.
 */
#define PAIR_LANES 32

/* y <- x */
void gradwise_copy(const uint64_t *data, const uint64_t *other, const int64_t *length,
                   int64_t from, int64_t to)
{
    for (int64_t t = from; t < to; t++)
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
                         int64_t from, int64_t to, int64_t count, double *restrict out)
{
    for (int64_t t = from; t < to; t++) {
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
                        int64_t from, int64_t to, int64_t count, double *restrict out)
{
    for (int64_t t = from; t < to; t++) {
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
void gradwise_histogram(const uint64_t *data, const int64_t *length, int64_t from, int64_t to,
                        int64_t above, int64_t below, int64_t octaves, int64_t *restrict out)
{
    const int32_t middle = (int32_t)octaves, bins = 2 * middle + 1;
    const int32_t positive = (int32_t)above, negative = (int32_t)below;

    for (int64_t t = from; t < to; t++) {
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
