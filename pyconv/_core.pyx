# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# cython: freethreading_compatible=True
"""The only compiled module: buffers in, prange over independent tasks, one C call each.

Nothing here checks what a user passed: problem.py did. Everything here runs without the GIL once the buffers are held.
"""

cimport cython
from cpython.buffer cimport PyBUF_RECORDS_RO, PyBUF_STRIDES, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cython.parallel cimport prange, threadid
from libc.stdint cimport int64_t
from libc.string cimport strcmp

import time
from math import prod

# NumPy's names of the formats that rows compute in.
COMPUTED = {"f32": "f4", "f64": "f8", "i32": "i4", "i64": "i8"}
MAC_FACTORS = "n groups ic oc kernel_d kernel_h kernel_w out_d out_h out_w".split()

cdef extern from *:
    """
    #ifdef _OPENMP
    enum { compiled_with_openmp = 1 };
    #else
    enum { compiled_with_openmp = 0 };
    #endif
    """
    bint compiled_with_openmp

ctypedef fused real:
    float
    double

cdef int thread_limit = 1
OPENMP = bool(compiled_with_openmp)
conv_watch_forks()


def set_threads(int threads):
    """How many threads a call may use."""
    global thread_limit
    thread_limit = threads


cdef const conv_table *find_table(str isa, str dtype) except? NULL:
    cdef bytes name = isa.encode(), number = dtype.encode()
    cdef size_t index = 0
    cdef const conv_table *table = conv_table_at(index, number)
    while table != NULL:
        if strcmp(table.isa, name) == 0:
            return table
        index += 1
        table = conv_table_at(index, number)
    raise LookupError(isa)


def isas():
    """Names of the compiled instruction sets that this CPU and operating system can run, best first."""
    cdef size_t index = 0
    cdef list names = []
    while conv_table_at(index, b"f32") != NULL:
        names.append(conv_table_at(index, b"f32").isa.decode())
        index += 1
    return tuple(names)


def isas_compiled():
    """Names of all compiled instruction sets, best first, whether or not this CPU can run them."""
    cdef size_t index = 0
    cdef list names = []
    while conv_isa_compiled(index) != NULL:
        names.append(conv_isa_compiled(index).decode())
        index += 1
    return tuple(names)


def algorithms(str isa, str dtype):
    """Names of one table's rows, in order of preference. dtype: a key of COMPUTED."""
    cdef const conv_table *table = find_table(isa, dtype)
    return tuple([table.algos[i].name.decode() for i in range(table.count)])


def vector_bytes(str isa):
    """Width of the instruction set's vectors."""
    return find_table(isa, "f32").vector_bytes


def levels(features):
    """Bit set of the x86 levels (1 baseline, 2 AVX2, 4 AVX-512) of a CPU described by a mapping of cpu_features."""
    cdef cpu_features f = features
    return cpu_levels(&f)


def cache_sizes():
    """Bytes of (L1 data, L2) cache that block sizes are planned from."""
    return cpu_cache_sizes().l1d, cpu_cache_sizes().l2


def cpu():
    """Name of the CPU as it tells it, or ''."""
    cdef char name[64]
    cpu_name(name)
    return name.decode("ascii", "replace").strip()


def fma_peak_gflops(str isa, str dtype):
    """Measured floating-point peak of one core: multiply-adds on registers alone, best of 20 runs of about 1 ms."""
    cdef const conv_table *table = find_table(isa, dtype)
    best = 0.0
    for _ in range(20):
        start = time.perf_counter()
        work = table.fma_burn(250_000)
        best = max(best, work / (time.perf_counter() - start) / 1e9)
    return best


@cython.final
cdef class PackedWeight:
    """Weights (and bias) as one algorithm of one instruction set reads them."""

    cdef unsigned char *data
    cdef object bias
    cdef const void *bias_data
    cdef readonly size_t nbytes

    def __cinit__(self):
        self.data = NULL

    def __dealloc__(self):
        conv_memory_free(self.data)


cdef const void *first_byte(const unsigned char[::1] array) noexcept:
    return &array[0] if array.shape[0] else NULL


cdef const void *pointer(array):
    """The data of a contiguous array of any number type, whom the caller keeps alive."""
    return first_byte(array.reshape(-1).view("u1"))


cdef int usable_threads(int64_t macs, size_t tasks) noexcept nogil:
    if not compiled_with_openmp or macs < CONV_SERIAL_BELOW_MACS or tasks < 2 or conv_in_forked_child():
        return 1
    return conv_startable_threads(thread_limit if <size_t>thread_limit < tasks else <int>tasks)


cdef int stored_bytes(int type, int native) noexcept:
    if type == CONV_NATIVE:
        return native
    return 1 if type == CONV_I8 or type == CONV_U8 else 2


cdef widened(array, str dtype):
    return None if array is None else array.astype(COMPUTED[dtype])


@cython.final
cdef class NativePlan:
    """One problem on one instruction set with one algorithm: knows how to pack weights for it and how to run it.

    Holds no array, so any number of threads may use one plan at the same time.
    """

    cdef conv_problem problem
    cdef const conv_algo *algo
    cdef int rank
    cdef int itemsize  # of weights and bias
    cdef int x_bytes, y_bytes
    cdef size_t tasks
    cdef size_t scratch_bytes
    cdef int64_t macs
    cdef readonly dict fields  # of the problem, as they were given
    cdef readonly str isa
    cdef readonly str algorithm
    cdef readonly str dtype

    def __init__(self, problem, int rank, str isa, str dtype, str algorithm):
        """rank: spatial axes of x and y. algorithm: a name, or None for the first row that accepts the problem.

        Raises LookupError where there is no such row, or it does not accept the problem.
        """
        cdef const conv_table *table = find_table(isa, dtype)
        cdef size_t i
        self.problem = problem
        self.fields = problem
        self.algo = NULL
        for i in range(table.count):
            if algorithm is not None and table.algos[i].name.decode() != algorithm:
                continue
            if table.algos[i].accepts(&self.problem):
                self.algo = table.algos[i]
                break
        if self.algo == NULL:
            raise LookupError(algorithm)
        self.rank = rank
        self.isa = isa
        self.dtype = dtype
        self.itemsize = 8 if dtype.endswith("64") else 4
        self.x_bytes = stored_bytes(self.problem.x_type, self.itemsize)
        self.y_bytes = stored_bytes(self.problem.y_type, self.itemsize)
        self.algorithm = self.algo.name.decode()
        self.tasks = self.algo.tasks(&self.problem)
        self.scratch_bytes = (self.algo.scratch_bytes(&self.problem) + CONV_ALIGN - 1) // CONV_ALIGN * CONV_ALIGN
        self.macs = min(prod(problem[name] for name in MAC_FACTORS), CONV_SERIAL_BELOW_MACS)

    def parts(self):
        """The plans that compute something, and how often: this one."""
        return ((self, 1),)

    def facts(self):
        """What explain.py tells of this plan: conv_facts, sizes, threads, and the rows that accept the problem."""
        cdef const conv_table *table = find_table(self.isa, self.dtype)
        cdef size_t i
        return self.algo.facts(&self.problem) | {
            "tasks": self.tasks,
            "threads": usable_threads(self.macs, self.tasks),
            "scratch_bytes": self.scratch_bytes,
            "packed_bytes": self.algo.packed_bytes(&self.problem),
            "accepting": tuple(
                [table.algos[i].name.decode() for i in range(table.count) if table.algos[i].accepts(&self.problem)]
            ),
        }

    def pack(self, weight, bias):
        """Pack a C-contiguous weight (native dtype, any rank) and a contiguous bias or None."""
        cdef PackedWeight packed = PackedWeight()
        cdef const void *source
        packed.nbytes = self.algo.packed_bytes(&self.problem)
        packed.data = <unsigned char *> conv_memory_new(packed.nbytes)
        if packed.data == NULL:
            raise MemoryError(f"no memory for {packed.nbytes} bytes of packed weights")
        if self.problem.x_type != CONV_NATIVE:
            weight, bias = widened(weight, self.dtype), widened(bias, self.dtype)
        source = pointer(weight)
        with nogil:
            self.pack_tasks(source, packed.data)
        if bias is not None:
            packed.bias = bias
            packed.bias_data = pointer(bias)
        return packed

    cdef void pack_tasks(self, const void *source, void *packed) noexcept nogil:
        cdef size_t tasks = self.algo.pack_tasks(&self.problem)
        cdef int threads = usable_threads(self.problem.groups * self.problem.oc * self.problem.ic, tasks)
        cdef Py_ssize_t task
        if threads == 1:
            for task in range(<Py_ssize_t> tasks):
                self.algo.pack(&self.problem, source, packed, task)
        else:
            for task in prange(<Py_ssize_t> tasks, num_threads=threads, schedule="dynamic"):
                self.algo.pack(&self.problem, source, packed, task)

    def run(self, x, PackedWeight packed not None, y, residual=None):
        """y = activation(convolution of x + residual). With or without the batch axis; any strides in whole elements.

        The residual has the dtype, shape and strides of y, and may be y.
        """
        cdef Py_buffer rb
        if self.problem.x_type == CONV_BF16:  # a dtype that the buffer protocol does not know
            x = x.view("u2")
        if self.problem.y_type == CONV_BF16:
            y, residual = y.view("u2"), None if residual is None else residual.view("u2")
        if residual is None:
            self.run_with(x, packed, y, NULL)
            return
        PyObject_GetBuffer(residual, &rb, PyBUF_RECORDS_RO)
        try:
            self.run_with(x, packed, y, rb.buf)
        finally:
            PyBuffer_Release(&rb)

    cdef run_with(self, x, PackedWeight packed, y, const void *residual):
        cdef Py_buffer xb, yb
        cdef conv_io io
        cdef bint ok
        PyObject_GetBuffer(x, &xb, PyBUF_RECORDS_RO)
        try:
            PyObject_GetBuffer(y, &yb, PyBUF_STRIDES | PyBUF_WRITABLE)
            try:
                io.x = xb.buf
                io.y = yb.buf
                io.packed = packed.data
                io.bias = packed.bias_data
                io.residual = residual
                set_strides(&xb, self.rank, self.x_bytes, &io.x_stride_n)
                set_strides(&yb, self.rank, self.y_bytes, &io.y_stride_n)
                with nogil:
                    ok = self.run_tasks(&io)
                if not ok:
                    raise MemoryError(f"no memory for {self.scratch_bytes} bytes of scratch per thread")
            finally:
                PyBuffer_Release(&yb)
        finally:
            PyBuffer_Release(&xb)

    cdef bint run_tasks(self, const conv_io *io) noexcept nogil:
        cdef int threads = usable_threads(self.macs, self.tasks)
        cdef char *scratch = <char *> conv_scratch_take(self.scratch_bytes * threads)
        cdef Py_ssize_t task
        if scratch == NULL:
            return False
        if threads == 1:
            for task in range(<Py_ssize_t> self.tasks):
                conv_run_task(self.algo, &self.problem, io, task, scratch)
        else:
            for task in prange(<Py_ssize_t> self.tasks, num_threads=threads, schedule="dynamic"):
                conv_run_task(self.algo, &self.problem, io, task, scratch + threadid() * self.scratch_bytes)
        conv_scratch_give(scratch)
        return True


cdef void set_strides(const Py_buffer *view, int rank, int itemsize, int64_t *strides) noexcept:
    """The strides n, c, d, h, w in elements; 0 for an axis that is absent or of length 1, whose own means nothing."""
    cdef int axis, position, leading = view.ndim - rank  # (n, c) or (c,)
    for axis in range(5):
        strides[axis] = 0
    for axis in range(view.ndim):
        if view.shape[axis] > 1:
            position = axis + 2 - leading if axis < leading else axis + 5 - view.ndim
            strides[position] = view.strides[axis] // itemsize


def copy_swapped(const real[:, :, :, :, :, :] source, real[:, :, :, :, :, ::1] out):
    """out[g, b, a, d, h, w] = source[g, a, b, d, h, w], in blocks: a transposed copy by rows misses the cache."""
    cdef Py_ssize_t groups = out.shape[0], rows = out.shape[1], columns = out.shape[2]
    cdef Py_ssize_t taps = out.shape[3] * out.shape[4] * out.shape[5], g, row, column, a, b, t
    cdef Py_ssize_t *offsets
    cdef const real *read
    cdef real *write
    if out.size == 0:
        return
    offsets = <Py_ssize_t *> conv_memory_new(taps * sizeof(Py_ssize_t))
    if offsets == NULL:
        raise MemoryError(f"no memory for the offsets of {taps} taps")
    with nogil:
        for t in range(taps):
            offsets[t] = (
                t // (out.shape[4] * out.shape[5]) * source.strides[3]
                + t // out.shape[5] % out.shape[4] * source.strides[4]
                + t % out.shape[5] * source.strides[5]
            ) // <Py_ssize_t> sizeof(real)
        for g in range(groups):
            for a in range(0, columns, 16):
                for b in range(0, rows, 16):
                    for row in range(b, min(b + 16, rows)):
                        for column in range(a, min(a + 16, columns)):
                            read = &source[g, column, row, 0, 0, 0]
                            write = &out[g, row, column, 0, 0, 0]
                            for t in range(taps):
                                write[t] = read[offsets[t]]
    conv_memory_free(offsets)
