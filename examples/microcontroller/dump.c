/* `dump model.bin`: all weights and biases as float32 on standard output, layer by layer; with
 * `dump -i model.bin` the integers of the weights, a byte each. Exits with bw_open's word. A check
 * of the reader on a computer: buffers are on the heap here, files are read. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bitwright.h"

static unsigned char *slurp(const char *path, size_t *size) {
    FILE *file = fopen(path, "rb");
    unsigned char *data = NULL;
    long length;
    if (!file) return NULL;
    if (fseek(file, 0, SEEK_END) == 0 && (length = ftell(file)) >= 0) {
        rewind(file);
        data = malloc(length ? (size_t)length : 1);
        *size = data ? fread(data, 1, (size_t)length, file) : 0;
    }
    fclose(file);
    return data;
}

static int dump(const bw_model *model, int integers) {
    for (uint32_t i = 0; i < model->layers; i++) {
        bw_layer layer;
        bw_row row;
        float *weights, step;
        int8_t *small;
        if (bw_layer_at(model, i, &layer) != BW_OK) return 1;
        weights = malloc(sizeof(float) * layer.fan_in);
        small = malloc(layer.fan_in);
        if (!weights || !small) return 1;
        for (bw_first_row(&layer, &row); bw_has_row(&row); bw_next_row(&row)) {
            bw_row_float(&row, weights);
            bw_row_int8(&row, small, &step);
            if (integers) {
                fwrite(small, 1, layer.fan_in, stdout);
            } else {
                fwrite(weights, sizeof(float), layer.fan_in, stdout);
                if (layer.biases) fwrite(&row.bias, sizeof(float), 1, stdout);
            }
        }
        free(weights);
        free(small);
    }
    return 0;
}

int main(int count, char **arguments) {
    int integers = count == 3 && strcmp(arguments[1], "-i") == 0, word;
    size_t size = 0;
    unsigned char *data;
    bw_model model;
    if (count < 2) return 64;
    data = slurp(arguments[count - 1], &size);
    if (!data) return 66;
    word = bw_open(&model, data, size);
    if (word == BW_OK) word = dump(&model, integers);
    free(data);
    return word;
}
