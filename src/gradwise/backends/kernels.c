/* Measure and apply for float32 segments in host memory: one read, one read and write.
 *
 * Tensors t in [from, to) lie at data[t] as rows[t] rows of length[t] values; first[t] is the index
 * of tensor t's first row among all segments. Sums are float64, where squares of float32 are exact.
 * Lanes are independent sums, so that a compiler may use vector registers without reordering.
 */
#include <stdint.h>

#define LANES 16

struct sums {
    double sum, square, low, high;
    int64_t nonfinite;
};

static struct sums measure_row(const float *restrict x, int64_t n)
{
    double sum[LANES] = {0}, square[LANES] = {0};
    float low[LANES], high[LANES];
    int32_t bad[LANES] = {0};
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
        }
    for (int l = 0; i < n; i++, l++) {
        const float v = x[i];
        const double d = v;
        sum[l] += d;
        square[l] += d * d;
        low[l] = v < low[l] ? v : low[l];
        high[l] = v > high[l] ? v : high[l];
        bad[l] += !(v - v == 0.0f);
    }
    all.low = low[0];
    all.high = high[0];
    for (int l = 0; l < LANES; l++) {
        all.sum += sum[l];
        all.square += square[l];
        all.low = low[l] < all.low ? low[l] : all.low;
        all.high = high[l] > all.high ? high[l] : all.high;
        all.nonfinite += bad[l];
    }
    return all;
}

/* out is [5, segments]: mean, m2, non-finite count, smallest, largest; square is [segments]. */
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
