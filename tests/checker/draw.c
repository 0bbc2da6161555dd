/* A seed -> a problem, its layouts and its data. Sizes are small and just beyond, or just short of, every tile and
 * vector; padding may be wider than the input, strides longer than the kernel. */
#include <string.h>

#include "checker.h"

/* splitmix64 (Steele, Lea, Flood 2014) */
uint64_t random_bits(uint64_t *state) {
    uint64_t z = *state += 0x9e3779b97f4a7c15;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    return z ^ (z >> 31);
}

/* Bytes that are used up before the generator is asked: the fuzzer's. */
static const unsigned char *chosen, *chosen_end;

void choose_from(const unsigned char *bytes, size_t count) {
    chosen = bytes;
    chosen_end = bytes ? bytes + count : NULL;
}

int64_t random_in(uint64_t *state, int64_t low, int64_t high) {
    if (chosen != chosen_end && high - low < 256) return low + *chosen++ % (high - low + 1);
    return low + (int64_t)(random_bits(state) % (uint64_t)(high - low + 1));
}

static int one_in(uint64_t *r, int64_t n) { return random_in(r, 1, n) == 1; }

/* Mostly small, at times up to most. */
static int64_t size_to(uint64_t *r, int64_t most) { return random_in(r, 1, one_in(r, 3) ? most : most < 8 ? most : 8); }

enum { DEEP = 30 };
enum { DENSE, POINTWISE, DEPTHWISE, DEPTHWISE_3X3, GROUPED, SQUARE_3X3, LINE, DEEP_LINE, VOLUME, KINDS };

static void draw_channels(uint64_t *r, conv_problem *p, int kind) {
    p->n = one_in(r, 3) ? random_in(r, 2, 3) : 1;
    p->groups = 1;
    p->ic = size_to(r, kind == POINTWISE ? 150 : 20);
    p->oc = one_in(r, 30) ? random_in(r, 60, 150) : size_to(r, 40);
    if (kind == DEPTHWISE || kind == DEPTHWISE_3X3 || (kind == LINE && one_in(r, 3))) {
        p->groups = size_to(r, 70) + 1;
        p->ic = 1;
        p->oc = one_in(r, 4) ? random_in(r, 2, 4) : 1;
    }
    if (kind == GROUPED) {
        p->groups = size_to(r, 6) + 1;
        p->ic = size_to(r, 12);
        p->oc = size_to(r, 20);
    }
    if (kind == SQUARE_3X3 && one_in(r, 2)) { /* deep enough for Winograd's algorithm */
        p->n = 1;
        p->ic = random_in(r, DEEP, 70);
        p->oc = random_in(r, 14, 70);
    }
    if (kind == DEEP_LINE) { /* and for the one along rows */
        p->n = 1;
        p->ic = one_in(r, 2) ? random_in(r, DEEP, 90) : random_in(r, 6, DEEP);
        p->oc = random_in(r, 50, 100);
    }
}

typedef struct axis {
    int64_t in, out, kernel, stride, dilation, pad;
} axis;

static axis draw_axis(uint64_t *r, int kind, int pad_mode, int64_t least, int64_t room) {
    axis a = {0, 0, size_to(r, kind == LINE ? 20 : 7), 1, 1, 0};
    const int three = kind == SQUARE_3X3 || kind == DEEP_LINE;
    for (;;) {
        if (kind == POINTWISE) a.kernel = 1;
        if (three || kind == DEPTHWISE_3X3) a.kernel = 3;
        a.stride = three || one_in(r, 2) ? 1 : size_to(r, kind == DEPTHWISE_3X3 ? 2 : 9);
        a.dilation = one_in(r, kind == DEPTHWISE_3X3 ? 9 : 3) ? size_to(r, 5) : 1;
        a.in = least > 1 ? random_in(r, least, room) : size_to(r, room);
        int64_t most = one_in(r, 10) ? 2 * a.in + 8 : a.kernel; /* beyond the input, too */
        if (kind == POINTWISE && !one_in(r, 4)) most = 0;
        if (pad_mode == CONV_PAD_REFLECT && most >= a.in) most = a.in - 1;
        if (pad_mode == CONV_PAD_CIRCULAR && most > a.in) most = a.in;
        a.pad = random_in(r, 0, most);
        const int64_t left = a.in + a.pad + random_in(r, 0, most) - a.dilation * (a.kernel - 1) - 1;
        a.out = left < 0 ? 0 : left / a.stride + 1;
        if (a.out > 0) return a;
    }
}

static int is_deep(const conv_problem *p, int kind) {
    return kind == DEEP_LINE || (kind == SQUARE_3X3 && p->ic >= DEEP);
}

static void draw_axes(uint64_t *r, conv_problem *p, int kind) {
    static const int64_t rooms[KINDS] = {20, 20, 20, 40, 20, 30, 220, 28, 9};
    const int deep = is_deep(p, kind), three = kind == SQUARE_3X3 || kind == DEEP_LINE;
    const int one_row = kind == LINE, one_pixel = kind == POINTWISE && one_in(r, 4);
    const int few_rows = kind == DEEP_LINE && p->ic >= DEEP && one_in(r, 2); /* and one tap of each */
    const int longer = !three && kind != VOLUME && one_in(r, 6);
    const int64_t room = kind == SQUARE_3X3 && deep ? 14 : rooms[kind], least = deep ? 6 : 1;
    const axis one = {1, 1, 1, 1, 1, 0};
    const int deep_volume = kind == DEEP_LINE && !few_rows && one_in(r, 2);
    axis d = kind == VOLUME ? draw_axis(r, kind, p->pad_mode, least, room) : one, h = one;
    if (deep_volume) d = draw_axis(r, VOLUME, p->pad_mode, 1, 4);
    if (kind == DEEP_LINE && !few_rows)
        h = draw_axis(r, VOLUME, p->pad_mode, 1, 9);
    else if (!one_row && !one_pixel && !few_rows)
        h = draw_axis(r, kind, p->pad_mode, least, room);
    const axis w = one_pixel ? one : draw_axis(r, kind, p->pad_mode, least, longer ? 5 * room : room);
    if (few_rows) h.in = h.out = random_in(r, 1, 3);
    p->in_d = d.in, p->out_d = d.out, p->kernel_d = d.kernel, p->stride_d = d.stride, p->dilation_d = d.dilation;
    p->in_h = h.in, p->out_h = h.out, p->kernel_h = h.kernel, p->stride_h = h.stride, p->dilation_h = h.dilation;
    p->in_w = w.in, p->out_w = w.out, p->kernel_w = w.kernel, p->stride_w = w.stride, p->dilation_w = w.dilation;
    p->pad_d = d.pad, p->pad_h = h.pad, p->pad_w = w.pad;
}

static int64_t work(const conv_problem *p) {
    const int64_t outputs = p->n * p->groups * p->oc * p->out_d * p->out_h * p->out_w;
    return outputs * (8 + p->ic * p->kernel_d * p->kernel_h * p->kernel_w);
}

/* Channels first, last, or any other order; axes may be reversed, with gaps between elements, or broadcast where
 * may_repeat has their bit. */
static layout draw_layout(uint64_t *r, const int64_t shape[AXES], unsigned may_repeat) {
    static const int first[AXES] = {4, 3, 2, 1, 0}, last[AXES] = {1, 4, 3, 2, 0};
    int order[AXES];
    memcpy(order, one_in(r, 3) ? last : first, sizeof order);
    for (int a = AXES - 1; a > 0 && one_in(r, 5); a--) {
        const int b = (int)random_in(r, 0, a), swap = order[a];
        order[a] = order[b], order[b] = swap;
    }
    const int plain = one_in(r, 2);
    layout l = {{0}, 0, 1};
    int64_t step = 1;
    for (int i = 0; i < AXES; i++) {
        const int a = order[i];
        if (!plain && (may_repeat >> a & 1) && one_in(r, 30)) continue;
        if (!plain && one_in(r, 4)) step *= random_in(r, 2, 3);
        if (!plain && one_in(r, 4)) step += random_in(r, 0, 3);
        l.stride[a] = step;
        l.elements += step * (shape[a] - 1);
        if (!plain && one_in(r, 4)) {
            l.first += step * (shape[a] - 1);
            l.stride[a] = -step;
        }
        step *= shape[a];
    }
    return l;
}

static void draw_epilogue(uint64_t *r, test_case *t) {
    t->has_bias = !one_in(r, 3);
    t->has_residual = one_in(r, 3);
    t->residual_is_y = t->has_residual && one_in(r, 2);
    if (one_in(r, 3)) {
        t->p.activation = CONV_CLAMP;
        t->p.activation_a = (double)random_in(r, -20, 5);
        t->p.activation_b = t->p.activation_a + (double)random_in(r, 0, 40);
    }
}

static storage draw_storage(uint64_t *r, storage native, int32_t *type) {
    static const int32_t floats[] = {CONV_F16, CONV_BF16}, integers[] = {CONV_I8, CONV_U8, CONV_I16, CONV_U16};
    *type = CONV_NATIVE;
    if (one_in(r, 2) || native == F64 || native == I64) return native;
    *type = native == F32 ? floats[random_in(r, 0, 1)] : integers[random_in(r, 0, 3)];
    return (storage)(F16 + *type - CONV_F16);
}

void draw_case(test_case *t, uint64_t seed, storage native) {
    uint64_t state = seed, *r = &state;
    random_bits(r);
    const int kind = (int)random_in(r, 0, KINDS - 1);
    const int64_t most = one_in(r, 20) ? 2000000 : 60000;
    do {
        *t = (test_case){.seed = seed, .native = native};
        t->p.pad_mode = (int32_t)(one_in(r, 2) ? CONV_PAD_ZEROS : random_in(r, 0, CONV_PAD_CONSTANT));
        draw_channels(r, &t->p, kind);
        draw_axes(r, &t->p, kind);
    } while (work(&t->p) > (is_deep(&t->p, kind) ? 4000000 : most));
    if (t->p.pad_mode == CONV_PAD_CONSTANT) t->p.pad_value = (double)random_in(r, 0, 5);
    t->p.exact = one_in(r, 4);
    t->p.raw = one_in(r, 4);
    draw_epilogue(r, t);
    t->x_store = draw_storage(r, native, &t->p.x_type);
    t->y_store = draw_storage(r, native, &t->p.y_type);
    t->wide = !storage_is_float(native) && one_in(r, 2);
    t->misaligned = t->x_store == native && one_in(r, 4) ? (int)random_in(r, 1, storage_bytes(native) - 1) : 0;
    const conv_problem *p = &t->p;
    /* Channels that are all the same can all be zero in one output's pixels: Winograd's errors, relative to the tile's
     * largest input, are then beyond the bound, as winograd_1d.c says. */
    const unsigned repeats = is_deep(p, kind) ? 31 & ~2u : 31;
    t->x = draw_layout(r, (const int64_t[]){p->n, p->groups * p->ic, p->in_d, p->in_h, p->in_w}, repeats);
    t->y = draw_layout(r, (const int64_t[]){p->n, p->groups * p->oc, p->out_d, p->out_h, p->out_w}, 0);
}

uint64_t case_hash(const test_case *t) {
    const test_case without_seed = *t;
    const unsigned char *bytes = (const unsigned char *)&without_seed.p;
    uint64_t hash = 0xcbf29ce484222325; /* FNV-1a of everything after the seed */
    for (const unsigned char *end = (const unsigned char *)(&without_seed + 1); bytes < end; bytes++)
        hash = (hash ^ *bytes) * 0x100000001b3;
    return hash;
}

void print_case(const test_case *t, FILE *f) {
    const conv_problem *p = &t->p;
    fprintf(f,
            "  n %ld, groups %ld, ic %ld, oc %ld, pad mode %d value %g, activation %d (%g, %g), x_type %d, y_type %d",
            (long)p->n, (long)p->groups, (long)p->ic, (long)p->oc, p->pad_mode, p->pad_value, p->activation,
            p->activation_a, p->activation_b, p->x_type, p->y_type);
    fprintf(f, ", exact %d, raw %d\n", p->exact, p->raw);
    const int64_t *in = &p->in_d, *out = &p->out_d, *kernel = &p->kernel_d, *stride = &p->stride_d;
    for (int a = 0; a < 3; a++)
        fprintf(f, "  %c: in %ld, out %ld, kernel %ld, stride %ld, dilation %ld, pad %ld\n", "dhw"[a], (long)in[a],
                (long)out[a], (long)kernel[a], (long)stride[a], (long)(&p->dilation_d)[a], (long)(&p->pad_d)[a]);
    for (int i = 0; i < 2; i++) {
        const layout *l = i ? &t->y : &t->x;
        fprintf(f, "  %c: strides", "xy"[i]);
        for (int a = 0; a < AXES; a++) fprintf(f, " %ld", (long)l->stride[a]);
        fprintf(f, ", first %ld of %ld elements\n", (long)l->first, (long)l->elements);
    }
    fprintf(f, "  %s, %s, %s, x misaligned by %d bytes\n", t->has_bias ? "bias" : "no bias",
            t->residual_is_y  ? "residual in y"
            : t->has_residual ? "residual"
                              : "no residual",
            t->wide ? "integers that wrap" : "small integers", t->misaligned);
}
