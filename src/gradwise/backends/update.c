/* The optimizers' step for tensors in host memory: one read and write of weight and state.
 *
 * Tensors are cut into pieces, so that a large one is shared by several threads; what a step needs
 * of a whole tensor (its count, bias corrections, a cosine, a maximum) is found before the pieces
 * are updated. A piece is worked on in blocks that stay in the nearest cache: a block's gradient is
 * brought to the arithmetic's type, mapped and decayed there, and never written back.
 *
 * Constants are prepared in double and rounded once. The arithmetic is float for float32, bfloat16
 * and float16 weights, double for float64. The file includes itself once for each of the two.
 */
#ifndef REAL

#include <math.h>
#include <stdint.h>
#include <string.h>

#define BLOCK 512
#define LANES 32
#define CONSTANTS 16
#define SHARED _Pragma("omp parallel for schedule(dynamic) num_threads(threads) if(threads > 1)")

enum kind { SGD, ADAMW, SGDF, HGM, ADAMOMENTUM, ADAREM, OTA };
enum type { FLOAT32, FLOAT64, BFLOAT16, FLOAT16 };
enum wide { STEP_WIDE = 1, SCALAR_WIDE = 2 };
enum option { LR, COUPLED, DECOUPLED, MAXIMIZE, GIVEN, COSINE, NUMBER };
enum root { PLAIN, ROOT, POWER, ONE }; /* how an exponent is applied */

/* Tensor t: addresses of its values, 0 where there are none; a gradient's row holds length[t]
 * values and the first of them is mapped by segment[t] (below 0: not mapped); its pieces are
 * begin[t] to begin[t + 1]. Piece i: the values start[i] to stop[i] of tensor owner[i], and three
 * sums at partial[3 i]. There is one scale (shift) for all where scales (shifts) is 0.
 */
struct work {
    const uint64_t *param, *grad, *first, *second, *step, *scalar;
    const int64_t *type, *wide, *length, *segment, *begin;
    const int64_t *owner, *start, *stop;
    double *partial, *constant;
    const double *option, *scale, *shift;
    int64_t scales, shifts, kind;
};

static inline float float_of(uint32_t bits)
{
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

static inline uint32_t bits_of(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

static inline double double_of(uint64_t bits)
{
    double x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

static inline uint64_t long_bits_of(double x)
{
    uint64_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

static inline float from_bfloat16(uint16_t x)
{
    return float_of((uint32_t)x << 16);
}

/* To the nearest, ties to even. */
static inline uint16_t to_bfloat16(float x)
{
    const uint32_t bits = bits_of(x);
    const uint32_t near = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    return (uint16_t)(x != x ? 0x7fc0 : near);
}

static inline float from_float16(uint16_t x)
{
    const uint32_t size = (uint32_t)(x & 0x7fff) << 13, sign = (uint32_t)(x & 0x8000) << 16;
    const uint32_t finite = bits_of(float_of(size) * 0x1p112f); /* other bias of the exponent */
    return float_of(sign | (size >= 0x0f800000 ? size | 0x7f800000 : finite));
}

static inline uint16_t to_float16(float x)
{
    const uint32_t bits = bits_of(x), size = bits & 0x7fffffff;
    const uint32_t normal = (size + 0xfff + ((size >> 13) & 1) - 0x38000000) >> 13;
    /* The last place of 0.5f is the smallest float16: adding it rounds to a multiple of that. */
    const uint32_t small = bits_of(float_of(size) + 0.5f) - 0x3f000000;
    uint32_t near = size < 0x38800000 ? small : normal;
    near = size >= 0x477ff000 ? 0x7c00 : near;
    near = size > 0x7f800000 ? 0x7e00 : near;
    return (uint16_t)(near | (bits >> 16 & 0x8000));
}

/* x^a for 0 <= x (infinite and NaN too) and 0 < a, good to 1e-9 where the result is a float's: the
 * logarithm by the series of atanh, the exponential by Taylor's.
 */
static inline double power(double x, double a)
{
    const uint64_t bits = long_bits_of(x);
    /* Twos in x, such that x / 2^twos is in [sqrt(1/2), sqrt(2)); 1024 more, to shift unsigned. */
    const uint64_t raised = (bits - 0x3fe6a09e667f3bcd + ((uint64_t)1 << 62)) >> 52;
    const double twos = double_of(raised | 0x4330000000000000) - (0x1p52 + 1024);
    const double m = double_of(bits - (raised << 52) + ((uint64_t)1 << 62));
    const double s = (m - 1) / (m + 1), z = s * s;
    const double odd = 1 + z * (1.0 / 3 + z * (1.0 / 5 + z * (1.0 / 7 + z * (1.0 / 9 + z / 11))));
    double y = a * (twos + 2.885390081777926815 * s * odd);
    y = y > 1000 ? 1000 : y < -1000 ? -1000 : y;
    const double whole = y + 0x1.8p52; /* rounded to an integer in the last places */
    const double f = 0.6931471805599453094 * (y - (whole - 0x1.8p52));
    const double e =
        1 + f * (1 + f * (1.0 / 2 + f * (1.0 / 6 + f * (1.0 / 24 + f * (1.0 / 120 + f * (1.0 / 720
        + f * (1.0 / 5040 + f * (1.0 / 40320 + f / 362880))))))));
    const double near = e * double_of((long_bits_of(whole) + 1023) << 52);
    return x == 0 || !(x - x == 0) ? x : near;
}

static inline double count(const struct work *w, int64_t t)
{
    if (!w->step[t])
        return 0;
    if (w->wide[t] & STEP_WIDE)
        return *(double *)(uintptr_t)w->step[t] += 1;
    return *(float *)(uintptr_t)w->step[t] += 1;
}

static inline double alignment(const struct work *w, int64_t t, double cosine, double beta)
{
    if (w->wide[t] & SCALAR_WIDE) {
        double *s = (double *)(uintptr_t)w->scalar[t];
        return *s = beta * *s + (1 - beta) * cosine;
    } else {
        float *s = (float *)(uintptr_t)w->scalar[t];
        return *s = (float)(beta * *s + (1 - beta) * cosine);
    }
}

/* Like torch.lerp: for a weight of 1/2 and more it starts from the other end. */
static inline void set_lerp(double *c, double weight)
{
    c[0] = weight;
    c[1] = weight < 0.5 ? weight : -(1 - weight);
}

/* Whole tensors: count the step, and put what their blocks need into constant. */
void gradwise_update_begin(const struct work *w, int64_t tensors, int64_t threads)
{
    const double *o = w->option, *n = w->option + NUMBER;

    SHARED
    for (int64_t t = 0; t < tensors; t++) {
        double *c = w->constant + CONSTANTS * t, sum[3] = {0}, top = 0;
        const double step = count(w, t), lr = o[LR];

        for (int64_t i = w->begin[t]; i < w->begin[t + 1]; i++) {
            const double *part = w->partial + 3 * i;
            for (int k = 0; k < 3; k++)
                sum[k] += part[k];
            top = part[0] > top || part[0] != part[0] ? part[0] : top;
        }
        c[0] = 1 - lr * o[DECOUPLED];
        switch (w->kind) {
        case SGD:
            c[1] = -lr;
            c[2] = n[0];
            c[3] = step == 1 ? 1 : 1 - n[1];
            break;
        case ADAMW:
        case HGM: {
            double rate = lr;
            if (w->kind == HGM) {
                const double norms = sqrt(sum[1]) * sqrt(sum[2]);
                const double cosine = o[GIVEN] ? o[COSINE] : sum[0] / (norms + n[2]);
                rate *= exp(n[4] * alignment(w, t, cosine, n[3]));
            }
            c[1] = -rate / (1 - pow(n[0], step));
            set_lerp(c + 2, 1 - n[0]);
            c[4] = n[1];
            c[5] = 1 - n[1];
            c[6] = sqrt(1 - pow(n[1], step));
            c[7] = n[2];
            break;
        }
        case SGDF: {
            const double seen = 1 - pow(n[1], step);
            c[1] = -lr;
            set_lerp(c + 2, 1 - n[0]);
            c[4] = n[1];
            c[5] = 1 - n[1];
            c[6] = 1 - pow(n[0], step);
            c[7] = n[4] ? (1 - n[0]) * (1 - pow(n[0], 2 * step)) / ((1 + n[0]) * seen) : 1 / seen;
            c[8] = n[2];
            c[9] = n[3];
            break;
        }
        case ADAMOMENTUM:
            c[1] = -lr / (1 - pow(n[0], step));
            set_lerp(c + 2, 1 - n[0]);
            c[4] = n[1];
            c[5] = 1 - n[1];
            c[6] = sqrt(1 - pow(n[1], step));
            c[7] = n[2];
            break;
        case ADAREM:
            c[1] = -lr;
            set_lerp(c + 2, 1 - n[0]);
            c[4] = pow(n[1], step - 1);
            c[5] = top + n[2];
            c[6] = n[3];
            break;
        case OTA:
            c[1] = -lr;
            set_lerp(c + 2, 1 - n[0]);
            c[4] = n[4] ? n[1] : 1;
            c[5] = n[4] ? 1 - n[1] : 1;
            c[6] = n[2];
            c[7] = n[3];
            break;
        }
    }
}

#define REAL float
#define BITS int32_t
#define NAME(name) name##_float
#define SQRT sqrtf
#define ABS fabsf
#include "update.c"
#undef REAL
#undef BITS
#undef NAME
#undef SQRT
#undef ABS

#define REAL double
#define BITS int64_t
#define NAME(name) name##_double
#define SQRT sqrt
#define ABS fabs
#define IS_DOUBLE
#include "update.c"

/* What whole tensors need of their values, a piece at a time: HGM's products, AdaRem's maximum. */
void gradwise_update_reduce(const struct work *w, int64_t count, int64_t threads)
{
    SHARED
    for (int64_t i = 0; i < count; i++)
        if (w->type[w->owner[i]] == FLOAT64)
            reduce_double(w, i);
        else
            reduce_float(w, i);
}

/* All pieces, after gradwise_update_begin; backwards, since what was measured or reduced last is
 * still in a cache. */
void gradwise_update(const struct work *w, int64_t count, int64_t threads)
{
    SHARED
    for (int64_t k = 0; k < count; k++) {
        const int64_t i = count - 1 - k;
        if (w->type[w->owner[i]] == FLOAT64)
            update_double(w, i);
        else
            update_float(w, i);
    }
}

#else /* the arithmetic, in REAL */

/* Values of a tensor from `at` on: where they lie, or widened into `space`. */
static REAL *NAME(values)(uint64_t base, int64_t type, int64_t at, int32_t n, REAL *restrict space)
{
#ifndef IS_DOUBLE
    const uint16_t *x = (const uint16_t *)(uintptr_t)base + at;

    if (type == BFLOAT16)
        for (int32_t i = 0; i < n; i++)
            space[i] = from_bfloat16(x[i]);
    else if (type == FLOAT16)
        for (int32_t i = 0; i < n; i++)
            space[i] = from_float16(x[i]);
    if (type != FLOAT32)
        return space;
#else
    (void)type, (void)n, (void)space;
#endif
    return (REAL *)(uintptr_t)base + at;
}

/* The gradient of a block as the method sees it. */
static void NAME(gather)(const struct work *w, int64_t t, int64_t at, int32_t n,
                         const REAL *restrict p, REAL *restrict g)
{
    const REAL *there = NAME(values)(w->grad[t], w->type[t], at, n, g);
    const int64_t length = w->length[t], segment = w->segment[t];
    const REAL coupled = (REAL)w->option[COUPLED];

    if (there != g)
        memcpy(g, there, (size_t)n * sizeof(REAL));
    if (segment >= 0 && (w->scale || w->shift)) {
        int64_t row = at / length, end = (row + 1) * length - at;
        for (int64_t i = 0; i < n; row++, end += length) {
            const int64_t s = segment + row;
            const REAL a = w->scale ? (REAL)w->scale[w->scales ? s : 0] : 1;
            const REAL k = w->shift ? (REAL)w->shift[w->shifts ? s : 0] : 0;
            const int64_t stop = end < n ? end : n;
            for (; i < stop; i++)
                g[i] = (g[i] - k) * a;
        }
    }
    if (w->option[MAXIMIZE])
        for (int32_t i = 0; i < n; i++)
            g[i] = -g[i];
    if (coupled)
        for (int32_t i = 0; i < n; i++)
            g[i] += coupled * p[i];
}

/* The cube root of a finite x > 0 by Halley's iteration from a guess at a third of the exponent. */
static inline REAL NAME(root3)(REAL x)
{
#ifdef IS_DOUBLE
    const REAL low = 0x1p-900, high = 0x1p900, up = 0x1p60, down = 0x1p-60, back = 0x1p20;
    const int rounds = 3;
#else
    const REAL low = 0x1p-100f, high = 0x1p100f, up = 0x1p48f, down = 0x1p-48f, back = 0x1p16f;
    const int rounds = 2;
#endif
    /* Cubes stay in range, and so do the guesses of what is subnormal. */
    const REAL v = x < low ? x * up : x > high ? x * down : x;
    const REAL after = x < low ? 1 / back : x > high ? back : 1;
    REAL y;
#ifdef IS_DOUBLE
    /* A third of the upper half; 0x55555556 is 2^32 / 3. */
    y = double_of((((long_bits_of(v) >> 32) * 0x55555556 >> 32) + 0x2a9f7893) << 32);
#else
    y = float_of(bits_of(v) / 3 + 0x2a5137a0);
#endif
    for (int i = 0; i < rounds; i++) {
        const REAL cube = y * y * y;
        y -= y * ((cube - v) / (2 * cube + v));
    }
    return y * after;
}

static inline REAL NAME(raise)(REAL x, double a)
{
#ifdef IS_DOUBLE
    return pow(x, a);
#else
    return (float)power(x, a);
#endif
}

static void NAME(sgd)(const double *c, int nesterov, REAL *restrict p, const REAL *restrict g,
                      REAL *restrict m, int32_t n)
{
    const REAL rate = (REAL)c[1], momentum = (REAL)c[2], fresh = (REAL)c[3];

    if (!m)
        for (int32_t i = 0; i < n; i++)
            p[i] += rate * g[i];
    else if (nesterov)
        for (int32_t i = 0; i < n; i++) {
            m[i] = momentum * m[i] + fresh * g[i];
            p[i] += rate * (g[i] + momentum * m[i]);
        }
    else
        for (int32_t i = 0; i < n; i++) {
            m[i] = momentum * m[i] + fresh * g[i];
            p[i] += rate * m[i];
        }
}

#define LERP(m, g) ((c[2] < 0.5 ? (m) : (g)) + weight * ((g) - (m)))

/* AdamW, and HGM with its own rate. */
static void NAME(adamw)(const double *c, REAL *restrict p, const REAL *restrict g,
                        REAL *restrict m, REAL *restrict v, int32_t n)
{
    const REAL rate = (REAL)c[1], weight = (REAL)c[3], keep = (REAL)c[4], fresh = (REAL)c[5];
    const REAL correction = (REAL)c[6], eps = (REAL)c[7];

    for (int32_t i = 0; i < n; i++) {
        m[i] = LERP(m[i], g[i]);
        v[i] = keep * v[i] + fresh * g[i] * g[i];
        p[i] += rate * m[i] / (SQRT(v[i]) / correction + eps);
    }
}

static void NAME(adamomentum)(const double *c, REAL *restrict p, const REAL *restrict g,
                              REAL *restrict m, REAL *restrict v, int32_t n)
{
    const REAL rate = (REAL)c[1], weight = (REAL)c[3], keep = (REAL)c[4], fresh = (REAL)c[5];
    const REAL correction = (REAL)c[6], eps = (REAL)c[7];

    for (int32_t i = 0; i < n; i++) {
        m[i] = LERP(m[i], g[i]);
        v[i] = keep * v[i] + fresh * m[i] * m[i] + eps;
        p[i] += rate * m[i] / (SQRT(v[i]) / correction);
    }
}

static inline __attribute__((always_inline)) void
NAME(filter)(const double *c, enum root how, REAL *restrict p, const REAL *restrict g,
             REAL *restrict m, REAL *restrict s, int32_t n)
{
    const REAL rate = (REAL)c[1], weight = (REAL)c[3], keep = (REAL)c[4], fresh = (REAL)c[5];
    const REAL correction = (REAL)c[6], factor = (REAL)c[7], eps = (REAL)c[8];

    for (int32_t i = 0; i < n; i++) {
        m[i] = LERP(m[i], g[i]);
        const REAL apart = g[i] - m[i];
        s[i] = keep * s[i] + fresh * apart * apart;
        const REAL mean = m[i] / correction, variance = factor * s[i], rest = g[i] - mean;
        REAL gain = variance / (variance + rest * rest + eps);
        gain = how == ROOT ? SQRT(gain) : how == POWER ? NAME(raise)(gain, c[9]) : gain;
        gain = how == ONE ? 1 : gain;
        p[i] += rate * (mean + gain * rest);
    }
}

static void NAME(sgdf)(const double *c, REAL *restrict p, const REAL *restrict g,
                       REAL *restrict m, REAL *restrict s, int32_t n)
{
    if (c[9] == 0.5)
        NAME(filter)(c, ROOT, p, g, m, s, n);
    else if (c[9] == 1)
        NAME(filter)(c, PLAIN, p, g, m, s, n);
    else if (c[9] == 0)
        NAME(filter)(c, ONE, p, g, m, s, n);
    else
        NAME(filter)(c, POWER, p, g, m, s, n);
}

static void NAME(adarem)(const double *c, REAL *restrict p, const REAL *restrict g,
                         REAL *restrict m, int32_t n)
{
    const REAL rate = (REAL)c[1], weight = (REAL)c[3], fade = (REAL)c[4], top = (REAL)c[5];
    const REAL decay = (REAL)c[6];

    for (int32_t i = 0; i < n; i++) {
        const REAL along = g[i] > 0 ? m[i] : g[i] < 0 ? -m[i] : 0 * m[i];
        const REAL a = 1 + fade * (along / top);
        p[i] += rate * (decay ? a * g[i] + decay * p[i] : a * g[i]);
        m[i] = LERP(m[i], g[i]);
    }
}

static inline __attribute__((always_inline)) void
NAME(over_the_air)(const double *c, double alpha, REAL *restrict p, const REAL *restrict g,
                   REAL *restrict m, REAL *restrict v, int32_t n)
{
    const REAL rate = (REAL)c[1], weight = (REAL)c[3], keep = (REAL)c[4], fresh = (REAL)c[5];
    const REAL eps = (REAL)c[7];

    for (int32_t i = 0; i < n; i++) {
        m[i] = LERP(m[i], g[i]);
        const REAL size = ABS(m[i]);
        REAL root;
        if (alpha == 2) {
            v[i] = keep * v[i] + fresh * (size * size);
            root = SQRT(v[i]);
        } else if (alpha == 1.5) {
            v[i] = keep * v[i] + fresh * (size * SQRT(size));
            const REAL third = NAME(root3)(v[i]);
            root = v[i] == 0 || !(v[i] - v[i] == 0) ? v[i] : third * third;
        } else if (alpha == 1) {
            v[i] = keep * v[i] + fresh * size;
            root = v[i];
        } else {
            v[i] = keep * v[i] + fresh * NAME(raise)(size, alpha);
            root = NAME(raise)(v[i], 1 / alpha);
        }
        p[i] += rate * m[i] / (root + eps);
    }
}

static void NAME(ota)(const double *c, REAL *restrict p, const REAL *restrict g,
                      REAL *restrict m, REAL *restrict v, int32_t n)
{
    if (c[6] == 2)
        NAME(over_the_air)(c, 2, p, g, m, v, n);
    else if (c[6] == 1.5)
        NAME(over_the_air)(c, 1.5, p, g, m, v, n);
    else if (c[6] == 1)
        NAME(over_the_air)(c, 1, p, g, m, v, n);
    else
        NAME(over_the_air)(c, c[6], p, g, m, v, n);
}

static void NAME(update)(const struct work *w, int64_t piece)
{
    const int64_t t = w->owner[piece], type = w->type[t];
    const double *c = w->constant + CONSTANTS * t, *number = w->option + NUMBER;
    const int decoupled = w->option[DECOUPLED] != 0;
    const REAL left = (REAL)c[0];
    REAL g[BLOCK], space[BLOCK];

    for (int64_t at = w->start[piece]; at < w->stop[piece]; at += BLOCK) {
        const int64_t rest = w->stop[piece] - at;
        const int32_t n = rest < BLOCK ? (int32_t)rest : BLOCK;
        REAL *p = NAME(values)(w->param[t], type, at, n, space);
        REAL *first = w->first[t] ? (REAL *)(uintptr_t)w->first[t] + at : NULL;
        REAL *second = w->second[t] ? (REAL *)(uintptr_t)w->second[t] + at : NULL;

        NAME(gather)(w, t, at, n, p, g);
        if (decoupled)
            for (int32_t i = 0; i < n; i++)
                p[i] *= left;
        switch (w->kind) {
        case SGD:
            NAME(sgd)(c, number[2] != 0, p, g, first, n);
            break;
        case ADAMW:
        case HGM:
            NAME(adamw)(c, p, g, first, second, n);
            break;
        case SGDF:
            NAME(sgdf)(c, p, g, first, second, n);
            break;
        case ADAMOMENTUM:
            NAME(adamomentum)(c, p, g, first, second, n);
            break;
        case ADAREM:
            NAME(adarem)(c, p, g, first, n);
            break;
        case OTA:
            NAME(ota)(c, p, g, first, second, n);
            break;
        }
#ifndef IS_DOUBLE
        uint16_t *narrow = (uint16_t *)(uintptr_t)w->param[t] + at;
        if (type == BFLOAT16)
            for (int32_t i = 0; i < n; i++)
                narrow[i] = to_bfloat16(p[i]);
        else if (type == FLOAT16)
            for (int32_t i = 0; i < n; i++)
                narrow[i] = to_float16(p[i]);
#endif
    }
}

static void NAME(reduce)(const struct work *w, int64_t piece)
{
    const int64_t t = w->owner[piece];
    double *out = w->partial + 3 * piece, dot[LANES] = {0}, now[LANES] = {0}, before[LANES] = {0};
    REAL g[BLOCK], space[BLOCK], top;
    BITS most = 0;

    for (int64_t at = w->start[piece]; at < w->stop[piece]; at += BLOCK) {
        const int64_t rest = w->stop[piece] - at;
        const int32_t n = rest < BLOCK ? (int32_t)rest : BLOCK;
        const REAL *m = (const REAL *)(uintptr_t)w->first[t] + at;
        int32_t i = 0;

        if (w->kind == ADAREM) {
            /* The bits of sizes rise with them, and those of NaN lie above all. */
            for (; i < n; i++) {
                const REAL size = ABS(m[i]);
                BITS bits;
                memcpy(&bits, &size, sizeof bits);
                most = bits > most ? bits : most;
            }
            continue;
        }
        NAME(gather)(w, t, at, n, NAME(values)(w->param[t], w->type[t], at, n, space), g);
        for (; i + LANES <= n; i += LANES)
            for (int l = 0; l < LANES; l++) {
                const double x = g[i + l], y = m[i + l];
                dot[l] += x * y;
                now[l] += x * x;
                before[l] += y * y;
            }
        for (int l = 0; i < n; i++, l++) {
            const double x = g[i], y = m[i];
            dot[l] += x * y;
            now[l] += x * x;
            before[l] += y * y;
        }
    }
    memcpy(&top, &most, sizeof top);
    out[0] = top;
    out[1] = out[2] = 0;
    if (w->kind == ADAREM)
        return;
    for (int l = 0; l < LANES; l++) {
        out[0] += dot[l];
        out[1] += now[l];
        out[2] += before[l];
    }
}

#endif
