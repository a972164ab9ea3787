/* The copy and the triad that benchmarks/ceilings.py holds its own against. a, b, c: n floats each. */
#include <stddef.h>

void plain_copy(float *restrict a, const float *restrict b, size_t n) {
#pragma omp parallel for schedule(static)
    for (size_t i = 0; i < n; i++)
        a[i] = b[i];
}

void plain_triad(float *restrict a, const float *restrict b, const float *restrict c, size_t n) {
#pragma omp parallel for schedule(static)
    for (size_t i = 0; i < n; i++)
        a[i] = b[i] + 3.0f * c[i];
}
