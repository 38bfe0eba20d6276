#include "bitwright.h"

#include <string.h>

enum { HEAD = 16, ENTRY = 52 };

static uint32_t u32(const uint8_t *p) {
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

static uint16_t u16(const uint8_t *p) { return (uint16_t)(p[0] | p[1] << 8); }

static float as_float(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static float f32(const uint8_t *p) { return as_float(u32(p)); }

/* Of positive finite numbers; exact, as every float16 number is a float32 number. */
static float f16(const uint8_t *p) {
    uint32_t bits = u16(p), exponent = bits >> 10, fraction = bits & 0x3ff;
    if (exponent == 0) return (float)fraction * as_float(0x33800000u); /* 2^-24 */
    return as_float((exponent + 112) << 23 | fraction << 13);
}

static uint32_t checksum(const uint8_t *data, size_t size) {
    uint32_t value = 0xffffffffu;
    for (size_t i = 0; i < size; i++) {
        value ^= data[i];
        for (int bit = 0; bit < 8; bit++) value = value >> 1 ^ (value & 1 ? 0xedb88320u : 0);
    }
    return ~value;
}

/* Positive, and neither infinite nor NaN. */
static int is_step(uint32_t bits) { return bits > 0 && bits < 0x7f800000u; }

static int inside(const bw_model *model, uint32_t offset, uint64_t size) {
    return offset >= HEAD && offset <= model->size && size <= model->size - offset;
}

static uint32_t row_bytes(uint32_t fan_in, uint8_t width) {
    return (uint32_t)(((uint64_t)fan_in * width + 7) / 8);
}

static void read_layer(const bw_model *model, uint32_t index, bw_layer *layer) {
    const uint8_t *p = model->data + HEAD + (size_t)index * ENTRY;
    for (int i = 0; i < 4; i++) layer->shape[i] = u32(p + 4 * i);
    layer->channels = layer->shape[0];
    layer->fan_in = layer->shape[1] * layer->shape[2] * layer->shape[3];
    layer->grids = model->data + u32(p + 16);
    layer->scales = model->data + u32(p + 20);
    layer->biases = model->data + u32(p + 24);
    layer->codes = model->data + u32(p + 28);
    layer->code_bytes = u32(p + 32);
    layer->input.step = f32(p + 36);
    layer->output.step = f32(p + 40);
    layer->input.zero = p[44];
    layer->output.zero = p[45];
    layer->input.bits = p[46];
    layer->output.bits = p[47];
    layer->kind = p[48];
    if (layer->kind == BW_EMBEDDING) layer->biases = 0;
    layer->scale_bytes = p[49];
    layer->groups = u16(p + 50);
}

static int check_activation(uint32_t step, uint8_t zero, uint8_t bits) {
    if (step == 0) return zero == 0 && bits == 0;
    return is_step(step) && bits >= 2 && bits <= 8 && zero < 1u << bits;
}

/* Offsets, sizes and kinds of an entry, before anything is read through them. */
static int check_entry(const bw_model *model, const uint8_t *p) {
    uint64_t fan_in = 1;
    uint32_t channels = u32(p), scale_bytes = p[49];
    for (int i = 1; i < 4; i++) {
        fan_in *= u32(p + 4 * i);
        if (u32(p + 4 * i) == 0 || fan_in > 0x0fffffffu) return 0;
    }
    if (channels == 0 || p[48] > BW_EMBEDDING || u16(p + 50) == 0) return 0;
    if (scale_bytes != 2 && scale_bytes != 4) return 0;
    if (!check_activation(u32(p + 36), p[44], p[46])) return 0;
    if (!check_activation(u32(p + 40), p[45], p[47])) return 0;
    return inside(model, u32(p + 16), channels) &&
           inside(model, u32(p + 20), (uint64_t)channels * scale_bytes) &&
           (p[48] == BW_EMBEDDING || inside(model, u32(p + 24), (uint64_t)channels * 4)) &&
           inside(model, u32(p + 28), u32(p + 32));
}

/* Widths, zero points, scales and biases of every channel, and that the codes are all there. */
static int check_rows(const bw_layer *layer) {
    uint64_t bytes = 0;
    for (uint32_t i = 0; i < layer->channels; i++) {
        uint32_t width = layer->grids[i] & 15, spare = layer->grids[i] >> 4;
        uint32_t scale = layer->scale_bytes == 2 ? u16(layer->scales + 2 * (size_t)i)
                                                 : u32(layer->scales + 4 * (size_t)i);
        uint32_t top = layer->scale_bytes == 2 ? 0x7c00u : 0x7f800000u;
        if (width < 1 || width > 8 || spare > 1u << width) return 0;
        if (width == 8 ? spare != 0 : (1u << width) + spare > 129) return 0;
        if (scale == 0 || scale >= top) return 0;
        if (layer->biases && (u32(layer->biases + 4 * (size_t)i) & 0x7f800000u) == 0x7f800000u)
            return 0;
        bytes += row_bytes(layer->fan_in, (uint8_t)width);
    }
    return bytes == layer->code_bytes;
}

int bw_open(bw_model *model, const void *data, size_t size) {
    const uint8_t *bytes = data;
    bw_layer layer;
    if (size < HEAD || memcmp(bytes, "BWM1", 4) != 0) return BW_NOT_A_MODEL;
    if (u32(bytes + 4) != size) return BW_CUT_OFF;
    if (u32(bytes + 8) != checksum(bytes + 12, size - 12)) return BW_DAMAGED;
    model->data = bytes;
    model->size = (uint32_t)size;
    model->layers = u32(bytes + 12);
    if (model->layers > (size - HEAD) / ENTRY) return BW_MALFORMED;
    for (uint32_t i = 0; i < model->layers; i++) {
        if (!check_entry(model, bytes + HEAD + (size_t)i * ENTRY)) return BW_MALFORMED;
        read_layer(model, i, &layer);
        if (!check_rows(&layer)) return BW_MALFORMED;
    }
    return BW_OK;
}

int bw_layer_at(const bw_model *model, uint32_t index, bw_layer *layer) {
    if (index >= model->layers) return BW_NO_SUCH_LAYER;
    read_layer(model, index, layer);
    return BW_OK;
}

static void read_row(bw_row *row) {
    const bw_layer *layer = row->layer;
    uint8_t grid;
    if (row->index >= layer->channels) return;
    grid = layer->grids[row->index];
    row->width = grid & 15;
    row->zero = (uint16_t)((1u << row->width) - (grid >> 4));
    row->scale = layer->scale_bytes == 2 ? f16(layer->scales + 2 * (size_t)row->index)
                                         : f32(layer->scales + 4 * (size_t)row->index);
    row->bias = layer->biases ? f32(layer->biases + 4 * (size_t)row->index) : 0;
}

void bw_first_row(const bw_layer *layer, bw_row *row) {
    row->layer = layer;
    row->index = 0;
    row->codes = layer->codes;
    read_row(row);
}

void bw_find_row(const bw_layer *layer, uint32_t index, bw_row *row) {
    row->layer = layer;
    row->index = index;
    row->codes = layer->codes;
    if (index >= layer->channels) return;
    for (uint32_t i = 0; i < index; i++)
        row->codes += row_bytes(layer->fan_in, layer->grids[i] & 15);
    read_row(row);
}

int bw_has_row(const bw_row *row) { return row->index < row->layer->channels; }

void bw_next_row(bw_row *row) {
    if (!bw_has_row(row)) return;
    row->codes += row_bytes(row->layer->fan_in, row->width);
    row->index++;
    read_row(row);
}

uint8_t bw_code(const bw_row *row, uint32_t index) {
    uint64_t bit = (uint64_t)index * row->width;
    uint32_t shift = (uint32_t)(bit % 8);
    const uint8_t *p = row->codes + bit / 8;
    uint32_t value = (uint32_t)p[0] >> shift;
    if (shift + row->width > 8) value |= (uint32_t)p[1] << (8 - shift);
    return (uint8_t)(value & ((1u << row->width) - 1));
}

void bw_row_float(const bw_row *row, float *weights) {
    float half = (float)row->zero / 2;
    for (uint32_t i = 0; i < row->layer->fan_in; i++)
        weights[i] = ((float)bw_code(row, i) - half) * row->scale;
}

void bw_row_int8(const bw_row *row, int8_t *integers, float *step) {
    int whole = row->width == 8;
    *step = whole ? row->scale : row->scale / 2;
    for (uint32_t i = 0; i < row->layer->fan_in; i++) {
        int code = bw_code(row, i);
        integers[i] = (int8_t)(whole ? code - 128 : 2 * code - row->zero);
    }
}
