"""The C contract of src_c/conv.h and src_c/cpu.h, as Cython sees it."""

from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t


cdef extern from "conv.h" nogil:
    enum:
        CONV_NATIVE
        CONV_BF16
        CONV_I8
        CONV_U8

    ctypedef struct conv_problem:
        int64_t n, groups, ic, oc
        int64_t in_d, in_h, in_w
        int64_t out_d, out_h, out_w
        int64_t kernel_d, kernel_h, kernel_w
        int64_t stride_d, stride_h, stride_w
        int64_t dilation_d, dilation_h, dilation_w
        int64_t pad_d, pad_h, pad_w
        double pad_value, activation_a, activation_b
        int32_t pad_mode, activation, x_type, y_type, exact, raw

    ctypedef struct conv_io:
        const void *x
        int64_t x_stride_n, x_stride_c, x_stride_d, x_stride_h, x_stride_w
        void *y
        int64_t y_stride_n, y_stride_c, y_stride_d, y_stride_h, y_stride_w
        const void *packed
        const void *bias
        const void *residual

    ctypedef struct conv_facts:
        int64_t tile_pixels, tile_channels
        int64_t groups, channels, depth, rows, cols
        int64_t terms
        double operations

    ctypedef struct conv_algo:
        const char *name
        int (*accepts)(const conv_problem *) noexcept nogil
        size_t (*packed_bytes)(const conv_problem *) noexcept nogil
        size_t (*pack_tasks)(const conv_problem *) noexcept nogil
        void (*pack)(const conv_problem *, const void *w, void *packed, size_t task) noexcept nogil
        size_t (*scratch_bytes)(const conv_problem *) noexcept nogil
        size_t (*tasks)(const conv_problem *) noexcept nogil
        void (*run)(const conv_problem *, const conv_io *, size_t task, void *scratch) noexcept nogil
        conv_facts (*facts)(const conv_problem *) noexcept nogil

    ctypedef struct conv_table:
        const char *isa
        const char *dtype
        int vector_bytes
        const conv_algo *const *algos
        size_t count
        double (*fma_burn)(int64_t rounds) noexcept nogil

    size_t CONV_ALIGN
    int64_t CONV_SERIAL_BELOW_MACS
    const conv_table *conv_table_at(size_t index, const char *dtype)
    const char *conv_isa_compiled(size_t index)
    void conv_run_task(const conv_algo *, const conv_problem *, const conv_io *, size_t task, void *scratch)
    void *conv_memory_new(size_t bytes)
    void conv_memory_free(void *block)
    void *conv_scratch_take(size_t bytes)
    void conv_scratch_give(void *scratch)
    int conv_watch_forks()
    int conv_in_forked_child()
    int conv_startable_threads(int wanted)


cdef extern from "cpu.h" nogil:
    ctypedef struct cpu_features:
        uint32_t leaf1_ecx, leaf7_ebx, extended1_ecx
        uint64_t xcr0

    ctypedef struct cpu_caches:
        int64_t l1d, l2

    unsigned int cpu_levels(const cpu_features *)
    const cpu_caches *cpu_cache_sizes()
    void cpu_name(char *name)
