/* Reads model.bin of `bitwright convert-to c`: weights of 1 to 8 bits, by channel.
 *
 * C99, no heap, no file system, any byte order: the file is a run of bytes that lies somewhere
 * (flash, an array made by `xxd -i model.bin`, a memory-mapped file). bw_open looks at every number
 * in it once; after that nothing can reach outside. Weights are read where they are, a channel at a
 * time:
 *
 *     bw_model model;
 *     bw_layer layer;
 *     bw_row row;
 *     if (bw_open(&model, data, size) != BW_OK || bw_layer_at(&model, 0, &layer) != BW_OK) ...
 *     for (bw_first_row(&layer, &row); bw_has_row(&row); bw_next_row(&row))
 *         bw_row_int8(&row, buffer, &step);      weight = step * buffer[i], bias = row.bias
 */
#ifndef BITWRIGHT_H
#define BITWRIGHT_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum {
    BW_OK = 0,
    BW_NOT_A_MODEL = 1, /* not a model.bin, or another version of it */
    BW_CUT_OFF = 2,     /* shorter or longer than it says */
    BW_DAMAGED = 3,     /* its checksum does not match */
    BW_MALFORMED = 4,   /* a number in it makes no sense */
    BW_NO_SUCH_LAYER = 5
};

enum { BW_LINEAR = 0, BW_CONV1D = 1, BW_CONV2D = 2, BW_EMBEDDING = 3 };

typedef struct {
    const uint8_t *data;
    uint32_t size;
    uint32_t layers;
} bw_model;

/* Of an activation, x = step * (q - zero) with q of so many bits; step 0: it is float. */
typedef struct {
    float step;
    uint8_t zero;
    uint8_t bits;
} bw_activation;

typedef struct {
    const uint8_t *grids, *scales, *biases, *codes; /* an embedding has no biases */
    uint32_t code_bytes;
    uint32_t shape[4]; /* channels first; 1 where there are fewer axes */
    uint32_t channels, fan_in;
    uint16_t groups;
    uint8_t kind, scale_bytes;
    bw_activation input, output;
} bw_layer;

/* A channel: its weights are scale * (code - zero / 2). */
typedef struct {
    const bw_layer *layer;
    const uint8_t *codes;
    uint32_t index;
    float scale, bias;
    uint16_t zero; /* in half steps */
    uint8_t width;
} bw_row;

/* Check the whole file; must say BW_OK before anything else is called. */
int bw_open(bw_model *model, const void *data, size_t size);

int bw_layer_at(const bw_model *model, uint32_t index, bw_layer *layer);

void bw_first_row(const bw_layer *layer, bw_row *row);
int bw_has_row(const bw_row *row);
void bw_next_row(bw_row *row);

/* Row `index` at once, a token of an embedding; none has if index >= channels. */
void bw_find_row(const bw_layer *layer, uint32_t index, bw_row *row);

/* Code number `index` of a channel, index < fan_in. */
uint8_t bw_code(const bw_row *row, uint32_t index);

/* All fan_in weights of a channel. */
void bw_row_float(const bw_row *row, float *weights);

/* The same as integers: weight = *step * integers[i]. */
void bw_row_int8(const bw_row *row, int8_t *integers, float *step);

#ifdef __cplusplus
}
#endif

#endif
