/* One rotary plane of the keys of a group: m complex numbers k_j, weights w_j, one shared z = sum a_j k_j, k_j rebuilt as e_j z.
 *   FREE   least squares of w_j (k_j - e_j z): the leading eigenvector u of H_ij = w_i S_ij w_j; a_j = conj(u_j) w_j, e_j = u_j / w_j.
 *   TURN   |e_j| = 1: the best z is sum w_j^2 conj(e_j) k_j / sum w_j^2, the e_j follow one by one, e_i the phase of
 *          sum over j != i of w_j^2 S_ij e_j; from the phases of u, and from 1: whichever ends better, so never worse than a mean.
 * z is free by a complex factor: taken so that the e_j are of size 1 together, and lie round the positive axis. */
#include <math.h>
#include <stdlib.h>

#include "linalg.h"
#include "merge_parts.h"

#define MOST_ROUNDS 100

/* The leading eigenvector of the Hermitian matrix by the symmetric one of twice the size, [Re -Im; Im Re]. */
static enum code leading(struct complex_list u, struct complex_list S, const double *w2, int64_t m, double *room)
{
    int64_t n = 2 * m;
    double value;
    for (int64_t i = 0; i < m; i++)
        for (int64_t j = 0; j < m; j++) {
            double w = sqrt(w2[i] * w2[j]), re = w * S.re[i * m + j], im = w * S.im[i * m + j];
            room[i * n + j] = room[(m + i) * n + m + j] = re;
            room[i * n + m + j] = -im;
            room[(m + i) * n + j] = im;
        }
    TRY(eigen_top(&value, room + n * n, room, n, 1));
    for (int64_t i = 0; i < m; i++) {
        u.re[i] = room[n * n + i];
        u.im[i] = room[n * n + m + i];
    }
    return OK;
}

static void to_unit(double *re, double *im)
{
    double size = hypot(*re, *im);
    *re = size > 0 ? *re / size : 1;
    *im = size > 0 ? *im / size : 0;
}

/* sum over j of w_j^2 S_ij e_j */
static void pull(double *re, double *im, struct complex_list e, struct complex_list S, const double *w2, int64_t m, int64_t i)
{
    *re = *im = 0;
    for (int64_t j = 0; j < m; j++) {
        double sr = w2[j] * S.re[i * m + j], si = w2[j] * S.im[i * m + j];
        *re += sr * e.re[j] - si * e.im[j];
        *im += sr * e.im[j] + si * e.re[j];
    }
}

/* Improves unit e's in place; returns E|sum w^2 conj(e) k|^2, which is to be large. */
static double turn(struct complex_list e, struct complex_list S, const double *w2, int64_t m)
{
    double value = 0, before = -1, re, im;
    for (int round = 0; round < MOST_ROUNDS && value > before * (1 + 1e-12); round++) {
        for (int64_t i = 0; round && i < m; i++) {
            pull(&re, &im, e, S, w2, m, i);
            re -= w2[i] * S.re[i * m + i] * e.re[i];
            im -= w2[i] * S.re[i * m + i] * e.im[i];
            if (hypot(re, im) > 0) {
                to_unit(&re, &im);
                e.re[i] = re;
                e.im[i] = im;
            }
        }
        before = value;
        value = 0;
        for (int64_t i = 0; i < m; i++) {
            pull(&re, &im, e, S, w2, m, i);
            value += w2[i] * (e.re[i] * re + e.im[i] * im);
        }
        if (!round)
            before = -1;
    }
    return value;
}

/* e *= conj(unit of sum e) / size, a the inverse. */
static void normalise(struct complex_list a, struct complex_list e, int64_t m)
{
    double re = 0, im = 0, size = 0;
    for (int64_t j = 0; j < m; j++) {
        re += e.re[j];
        im += e.im[j];
        size += e.re[j] * e.re[j] + e.im[j] * e.im[j];
    }
    size = sqrt(size / (double)m);
    to_unit(&re, &im);
    for (int64_t j = 0; j < m; j++) {
        double er = e.re[j], ei = e.im[j], ar = a.re[j], ai = a.im[j];
        e.re[j] = (er * re + ei * im) / size;
        e.im[j] = (ei * re - er * im) / size;
        a.re[j] = (ar * re - ai * im) * size;
        a.im[j] = (ai * re + ar * im) * size;
    }
}

/* a of the best z for unit e's. */
static void weighted_mean(struct complex_list a, struct complex_list e, const double *w2, int64_t m)
{
    double sum = 0;
    for (int64_t j = 0; j < m; j++)
        sum += w2[j];
    for (int64_t j = 0; j < m; j++) {
        a.re[j] = w2[j] * e.re[j] / sum;
        a.im[j] = -w2[j] * e.im[j] / sum;
    }
}

enum code plane_solve(struct complex_list a, struct complex_list e, struct complex_list S, const double *w2, int64_t m, enum freedom freedom)
{
    double *room = malloc((size_t)(4 * m * m + 4 * m) * sizeof *room);
    if (!room)
        return fail(ERR_MEMORY, "out of memory for a plane of %lld heads", (long long)m);
    enum code c = leading(e, S, w2, m, room);
    if (c == OK && freedom == FREE) {
        for (int64_t j = 0; j < m; j++) {
            double w = sqrt(w2[j]);
            a.re[j] = e.re[j] * w;
            a.im[j] = -e.im[j] * w;
            e.re[j] /= w;
            e.im[j] /= w;
        }
    } else if (c == OK) {
        struct complex_list one = {room, room + m};
        for (int64_t j = 0; j < m; j++) {
            to_unit(&e.re[j], &e.im[j]);
            one.re[j] = 1;
            one.im[j] = 0;
        }
        double from_u = turn(e, S, w2, m), from_one = turn(one, S, w2, m);
        for (int64_t j = 0; from_one >= from_u && j < m; j++) {
            e.re[j] = one.re[j];
            e.im[j] = one.im[j];
        }
        weighted_mean(a, e, w2, m);
    }
    if (c == OK)
        normalise(a, e, m);
    free(room);
    return c;
}
