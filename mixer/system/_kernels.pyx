# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, embedsignature=True
"""The innermost loops of delivery, compiled: what NumPy would do in a dozen passes over a few hundred numbers.

Nothing here decides anything: each function gives, bit for bit, what the NumPy code that calls it would (tests hold the
two together), and without this module that code runs instead. Types and layouts are checked, and which rows exist; that
arrays which belong together have one length is the callers' business.
"""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy

cimport numpy as cnp

cnp.import_array()

cdef extern from *:
    """
    #if defined(__GNUC__) || defined(__clang__)
    #define MIXER_PREFETCH(address) __builtin_prefetch(address)
    #else
    #define MIXER_PREFETCH(address) ((void)(address))
    #endif
    #ifndef MIXER_SOURCE
    #define MIXER_SOURCE ""
    #endif
    """
    void MIXER_PREFETCH(const void*) noexcept nogil
    const char* MIXER_SOURCE

SOURCE = MIXER_SOURCE.decode()  # digest of this file as it was compiled: hatch_build.py

cdef enum:
    LINE = 64  # bytes of a line of cache

ctypedef fused token_t:
    uint8_t
    uint16_t
    uint32_t


cdef int _require(int kind, cnp.ndarray array) except -1:
    """Raise TypeError unless an array is contiguous and of a type."""
    if cnp.PyArray_TYPE(array) != kind or not cnp.PyArray_IS_C_CONTIGUOUS(array):
        raise TypeError(f"an array of {array.dtype}, {'' if cnp.PyArray_IS_C_CONTIGUOUS(array) else 'not '}contiguous, is not "
                        "what these loops read")
    return 0


cdef int _int64s(arrays) except -1:
    for array in arrays:
        _require(cnp.NPY_INT64, array)
    return 0


cdef void _prefetch(const char* row, Py_ssize_t num_bytes) noexcept nogil:
    cdef const char* end = row + num_bytes
    while row < end:
        MIXER_PREFETCH(row)
        row += LINE


cdef void _widen(const token_t* row, Py_ssize_t length, int64_t* inputs, int64_t* labels) noexcept nogil:
    cdef Py_ssize_t k
    for k in range(length):
        inputs[k] = row[k]
    for k in range(length):
        labels[k] = row[k + 1]


cdef void _split_one(const char* row, Py_ssize_t itemsize, Py_ssize_t length, char* inputs, char* labels,
                     Py_ssize_t out_itemsize) noexcept nogil:
    if out_itemsize == itemsize:
        memcpy(inputs, row, length * itemsize)
        memcpy(labels, row + itemsize, length * itemsize)
    elif itemsize == 2:
        _widen(<const uint16_t*> row, length, <int64_t*> inputs, <int64_t*> labels)
    elif itemsize == 4:
        _widen(<const uint32_t*> row, length, <int64_t*> inputs, <int64_t*> labels)
    else:
        _widen(<const uint8_t*> row, length, <int64_t*> inputs, <int64_t*> labels)


cdef Py_ssize_t _out_itemsize(Py_ssize_t itemsize, cnp.ndarray inputs, cnp.ndarray labels) except -1:
    """Return the bytes of a token id in ``inputs`` and ``labels``: int64, or unsigned as it is read."""
    cdef int kind = cnp.NPY_INT64
    if cnp.PyArray_ITEMSIZE(inputs) == itemsize:
        kind = cnp.NPY_UINT8 if itemsize == 1 else cnp.NPY_UINT16 if itemsize == 2 else cnp.NPY_UINT32
    _require(kind, inputs)
    _require(kind, labels)
    return cnp.PyArray_ITEMSIZE(inputs)


def split(cnp.ndarray rows, cnp.ndarray inputs, cnp.ndarray labels):
    """Write all but the last token of rows to ``inputs``, all but the first to ``labels``.

    Args:
        rows: unsigned of 1, 2 or 4 bytes, [n, T + 1], contiguous.
        inputs, labels: int64 or of the type of ``rows``, [n, T], contiguous.
    """
    cdef Py_ssize_t num_rows = rows.shape[0], length = rows.shape[1] - 1, itemsize = cnp.PyArray_ITEMSIZE(rows), r
    _require(cnp.PyArray_TYPE(rows), rows)
    cdef Py_ssize_t out_itemsize = _out_itemsize(itemsize, inputs, labels)
    cdef const char* row = <const char*> cnp.PyArray_DATA(rows)
    cdef char* to_inputs = <char*> cnp.PyArray_DATA(inputs)
    cdef char* to_labels = <char*> cnp.PyArray_DATA(labels)
    with nogil:
        for r in range(num_rows):
            _split_one(row + r * (length + 1) * itemsize, itemsize, length, to_inputs + r * length * out_itemsize,
                       to_labels + r * length * out_itemsize, out_itemsize)


cdef class Windows:
    """Rows that lie anywhere in memory, in order.

    Args:
        places: where each begins, bytes from 0, int64 [n] and contiguous; what is there must stay mapped.
        row_length: token ids of a row, T + 1.
        itemsize: bytes of a token id: 1, 2 or 4.
    """

    cdef cnp.ndarray _places
    cdef const int64_t* _first
    cdef Py_ssize_t _num_rows, _row_length, _itemsize

    def __init__(self, cnp.ndarray places, Py_ssize_t row_length, Py_ssize_t itemsize):
        _require(cnp.NPY_INT64, places)
        self._places = places
        self._first = <const int64_t*> cnp.PyArray_DATA(places)
        self._num_rows, self._row_length, self._itemsize = places.shape[0], row_length, itemsize

    cdef int _check(self, Py_ssize_t first, Py_ssize_t num_rows) except -1:
        if first < 0 or num_rows < 0 or first + num_rows > self._num_rows:
            raise IndexError(f"rows {first} to {first + num_rows - 1} were asked for, of {self._num_rows}")
        return 0

    def gather(self, Py_ssize_t first, Py_ssize_t num_rows, cnp.ndarray out):
        """Copy so many rows from the first on to ``out``.

        Args:
            out: [n, b, T + 1] for n b rows; each of the n is contiguous.
        """
        self._check(first, num_rows)
        cdef char* to = <char*> cnp.PyArray_DATA(out)
        cdef Py_ssize_t r, k, num_bytes = self._row_length * self._itemsize
        cdef Py_ssize_t together = out.shape[1], apart = out.strides[0]
        cdef const int64_t* places = self._first + first
        with nogil:
            for k in range(num_rows // together):
                for r in range(k * together, (k + 1) * together):
                    if r + 1 < num_rows:
                        _prefetch(<const char*> <size_t> places[r + 1], num_bytes)
                    memcpy(to + k * apart + (r - k * together) * num_bytes, <const char*> <size_t> places[r], num_bytes)

    def split(self, Py_ssize_t first, Py_ssize_t num_rows, cnp.ndarray inputs, cnp.ndarray labels):
        """Write all but the last token of so many rows to ``inputs``, all but the first to ``labels``.

        Args:
            inputs, labels: int64 or unsigned of ``itemsize``, [num_rows, T], contiguous.
        """
        self._check(first, num_rows)
        cdef Py_ssize_t out_itemsize = _out_itemsize(self._itemsize, inputs, labels)
        cdef char* to_inputs = <char*> cnp.PyArray_DATA(inputs)
        cdef char* to_labels = <char*> cnp.PyArray_DATA(labels)
        cdef const int64_t* places = self._first + first
        cdef Py_ssize_t length = self._row_length - 1, r
        with nogil:
            for r in range(num_rows):
                if first + r + 1 < self._num_rows:  # the first of the next batch, too, which is likely to follow
                    _prefetch(<const char*> <size_t> places[r + 1], self._row_length * self._itemsize)
                _split_one(<const char*> <size_t> places[r], self._itemsize, length,
                           to_inputs + r * length * out_itemsize, to_labels + r * length * out_itemsize, out_itemsize)


ctypedef fused stored_t:
    uint8_t
    uint16_t
    uint32_t
    uint64_t

ctypedef fused given_t:
    uint8_t
    uint16_t
    uint32_t
    int64_t


cdef bint _converted(const char* ids, stored_t limit, given_t* out, Py_ssize_t n) noexcept nogil:
    """Copy token ids, which need not be aligned, to another type; return whether all are at most ``limit``.

    Of the wide types the largest limit has no sign bit: an id is above it if it, or what is left to the limit, has one.
    """
    cdef stored_t seen = 0, token
    cdef Py_ssize_t k
    for k in range(n):
        memcpy(&token, ids + k * <Py_ssize_t> sizeof(stored_t), sizeof(stored_t))
        out[k] = <given_t> token
        if stored_t is uint32_t or stored_t is uint64_t:
            seen |= token | (limit - token)
        else:
            seen = token if token > seen else seen
    if stored_t is uint32_t or stored_t is uint64_t:
        return seen >> (8 * sizeof(stored_t) - 1) == 0
    return seen <= limit


cdef bint _as_given(const char* ids, stored_t limit, char* out, Py_ssize_t out_itemsize, Py_ssize_t n) noexcept nogil:
    if out_itemsize == 8:
        return _converted(ids, limit, <int64_t*> out, n)
    if out_itemsize == 4:
        return _converted(ids, limit, <uint32_t*> out, n)
    if out_itemsize == 2:
        return _converted(ids, limit, <uint16_t*> out, n)
    return _converted(ids, limit, <uint8_t*> out, n)


cdef bint _copied(const char* ids, Py_ssize_t itemsize, uint64_t limit, char* out, Py_ssize_t out_itemsize,
                  Py_ssize_t n) noexcept nogil:
    """Copy token ids of one size as another; return whether all are below ``limit``, 2**31 at most."""
    if itemsize == 2:
        return _as_given(ids, <uint16_t> min(limit - 1, <uint64_t> 0xFFFF), out, out_itemsize, n)
    if itemsize == 4:
        return _as_given(ids, <uint32_t> (limit - 1), out, out_itemsize, n)
    if itemsize == 1:
        return _as_given(ids, <uint8_t> min(limit - 1, <uint64_t> 0xFF), out, out_itemsize, n)
    return _as_given(ids, <uint64_t> (limit - 1), out, out_itemsize, n)


cdef enum:
    NO_LOSS = -100  # of a label, as torch's cross entropy ignores it


cdef struct Place:  # of a row
    Py_ssize_t stream, piece
    int64_t position  # in its stream


cdef class Streams:
    """Rows of streams of token ids, whose pieces lie anywhere in memory and are stored in any type.

    The pieces of a stream are numbered through all streams, each stream's followed by an entry that ends it.

    Args:
        first_rows: of each stream, numbered through all streams, and their number, int64 [K + 1].
        first_pieces: of each stream, and their number, int64 [K + 1].
        starts: position in its stream at which each piece begins, int64 [P].
        addresses: where its token ids begin in memory, int64 [P]; they must stay there.
        masks: where its loss mask begins, a byte for each token id, int64 [P]; 0 if all count.
        itemsizes: bytes of a token id of each stream: 1, 2, 4 or 8, int64 [K].
        limits: what ids of each stream must be below, 1 to 2**31, int64 [K].
        separators: the id at the end of each piece, which is not stored, or -1 if there is none, int64 [K].
        row_length: T + 1.
    """

    cdef tuple _arrays
    cdef const int64_t* _first_rows
    cdef const int64_t* _first_pieces
    cdef const int64_t* _starts
    cdef const int64_t* _addresses
    cdef const int64_t* _masks
    cdef const int64_t* _itemsizes
    cdef const int64_t* _limits
    cdef const int64_t* _separators
    cdef Py_ssize_t _num_streams, _row_length

    def __init__(self, cnp.ndarray first_rows, cnp.ndarray first_pieces, cnp.ndarray starts, cnp.ndarray addresses,
                 cnp.ndarray masks, cnp.ndarray itemsizes, cnp.ndarray limits, cnp.ndarray separators,
                 Py_ssize_t row_length):
        self._arrays = (first_rows, first_pieces, starts, addresses, masks, itemsizes, limits, separators)
        _int64s(self._arrays)
        self._first_rows = <const int64_t*> cnp.PyArray_DATA(first_rows)
        self._first_pieces = <const int64_t*> cnp.PyArray_DATA(first_pieces)
        self._starts = <const int64_t*> cnp.PyArray_DATA(starts)
        self._addresses = <const int64_t*> cnp.PyArray_DATA(addresses)
        self._masks = <const int64_t*> cnp.PyArray_DATA(masks)
        self._itemsizes = <const int64_t*> cnp.PyArray_DATA(itemsizes)
        self._limits = <const int64_t*> cnp.PyArray_DATA(limits)
        self._separators = <const int64_t*> cnp.PyArray_DATA(separators)
        self._num_streams, self._row_length = itemsizes.shape[0], row_length

    cdef int _check(self, const int64_t* rows, Py_ssize_t num_rows) except -1:
        cdef Py_ssize_t r
        for r in range(num_rows):
            if rows[r] < 0 or rows[r] >= self._first_rows[self._num_streams]:
                raise IndexError(f"row {rows[r]} was asked for, of {self._first_rows[self._num_streams]}")
        return 0

    cdef Py_ssize_t _stream_of(self, int64_t row) noexcept nogil:
        cdef Py_ssize_t low = 0, high = self._num_streams, middle
        while high - low > 1:
            middle = (low + high) // 2
            if self._first_rows[middle] <= row:
                low = middle
            else:
                high = middle
        return low

    cdef Py_ssize_t _piece_of(self, Py_ssize_t i, int64_t position) noexcept nogil:
        cdef Py_ssize_t low = self._first_pieces[i], high = self._first_pieces[i + 1] - 1, middle
        # where it is if all are of one length, as most samples of MDS are
        middle = min(high - 1, low + <Py_ssize_t> (<double> position * (high - low) / self._starts[high]))
        if self._starts[middle] <= position < self._starts[middle + 1]:
            return middle
        while high - low > 1:
            middle = (low + high) // 2
            if self._starts[middle] <= position:
                low = middle
            else:
                high = middle
        return low

    cdef Place _place_of(self, int64_t row) noexcept nogil:
        """Find a row, and ask for its beginning, up to the end of its piece."""
        cdef Place place
        cdef Py_ssize_t itemsize, n
        place.stream = self._stream_of(row)
        place.position = (row - self._first_rows[place.stream]) * self._row_length
        place.piece = self._piece_of(place.stream, place.position)
        itemsize = self._itemsizes[place.stream]
        n = min(self._row_length, self._starts[place.piece + 1] - place.position)
        _prefetch(<const char*> <size_t> (self._addresses[place.piece]
                                          + (place.position - self._starts[place.piece]) * itemsize), n * itemsize)
        return place

    cdef bint _put(self, const char* ids, Py_ssize_t itemsize, Py_ssize_t n, Py_ssize_t at, uint64_t limit,
                   char* inputs, char* labels, Py_ssize_t out_itemsize) noexcept nogil:
        """Write ids that begin at position ``at`` of a row, and return whether all are below ``limit``."""
        cdef bint is_good
        cdef Py_ssize_t skipped = 1 if at == 0 else 0
        if labels == NULL:
            return _copied(ids, itemsize, limit, inputs + at * out_itemsize, out_itemsize, n)
        is_good = _copied(ids, itemsize, limit, inputs + at * out_itemsize, out_itemsize,
                          min(n, self._row_length - 1 - at))
        return _copied(ids + skipped * itemsize, itemsize, limit, labels + (at + skipped - 1) * out_itemsize,
                       out_itemsize, n - skipped) and is_good

    cdef bint _read(self, Place place, char* inputs, char* labels, Py_ssize_t out_itemsize) noexcept nogil:
        """Write one row, and return whether its ids are in the vocabulary."""
        cdef Py_ssize_t i = place.stream, j = place.piece, itemsize = self._itemsizes[i], at = 0, n, stored, k
        cdef int64_t position = place.position, separator = self._separators[i]
        cdef const char* ids
        cdef const char* mask
        cdef bint is_good = True
        while at < self._row_length:
            stored = self._starts[j + 1] - position - (separator >= 0)
            n = min(stored, self._row_length - at)
            if n > 0:
                ids = <const char*> <size_t> (self._addresses[j] + (position - self._starts[j]) * itemsize)
                is_good &= self._put(ids, itemsize, n, at, self._limits[i], inputs, labels, out_itemsize)
                if self._masks[j] and labels != NULL and out_itemsize == 8:
                    mask = <const char*> <size_t> (self._masks[j] + position - self._starts[j])
                    for k in range(1 if at == 0 else 0, n):
                        if mask[k] == 0:
                            (<int64_t*> labels)[at + k - 1] = NO_LOSS
                at += n
            if separator >= 0 and n == stored and at < self._row_length:
                self._put(<const char*> &separator, 8, 1, at, self._limits[i], inputs, labels, out_itemsize)
                at += 1
            j += 1
            position = self._starts[j]
        return is_good

    def gather(self, cnp.ndarray rows, cnp.ndarray out):
        """Copy rows to ``out`` and return the first of them, by place, that has an id above its limit; -1 if none has.

        Args:
            rows: their numbers through all streams, int64 [n b].
            out: unsigned of 1, 2 or 4 bytes, [n, b, T + 1]; each of the n is contiguous.
        """
        _int64s((rows,))
        cdef const int64_t* number = <const int64_t*> cnp.PyArray_DATA(rows)
        cdef Py_ssize_t num_rows = rows.shape[0], together = out.shape[1], apart = out.strides[0], r, found = -1
        cdef Py_ssize_t itemsize = cnp.PyArray_ITEMSIZE(out)
        cdef char* to = <char*> cnp.PyArray_DATA(out)
        cdef Place here, following
        self._check(number, num_rows)
        with nogil:
            if num_rows:
                following = self._place_of(number[0])
            for r in range(num_rows):
                here = following
                if r + 1 < num_rows:
                    following = self._place_of(number[r + 1])
                if not self._read(here, to + r // together * apart + r % together * self._row_length * itemsize,
                                  NULL, itemsize) and found < 0:
                    found = r
        return found

    def split(self, cnp.ndarray rows, Py_ssize_t first, Py_ssize_t num_rows, cnp.ndarray inputs, cnp.ndarray labels):
        """Write all but the last token of rows to ``inputs``, all but the first to ``labels``, -100 where a mask says so.

        Args:
            rows: numbers through all streams, int64 [n].
            first, num_rows: which of them.
            inputs, labels: int64, or unsigned of 1, 2 or 4 bytes if no stream has a mask; [num_rows, T], contiguous.

        Returns:
            As ``gather``.
        """
        _int64s((rows,))
        cdef Py_ssize_t itemsize = cnp.PyArray_ITEMSIZE(inputs), length = self._row_length - 1, r, found = -1
        _require(cnp.PyArray_TYPE(inputs), inputs)
        _require(cnp.PyArray_TYPE(inputs), labels)
        if first < 0 or num_rows < 0 or first + num_rows > rows.shape[0]:
            raise IndexError(f"rows {first} to {first + num_rows - 1} were asked for, of {rows.shape[0]}")
        cdef const int64_t* number = <const int64_t*> cnp.PyArray_DATA(rows) + first
        cdef char* to_inputs = <char*> cnp.PyArray_DATA(inputs)
        cdef char* to_labels = <char*> cnp.PyArray_DATA(labels)
        cdef Place here, following
        self._check(number, num_rows)
        with nogil:
            if num_rows:
                following = self._place_of(number[0])
            for r in range(num_rows):
                here = following
                if r + 1 < num_rows:
                    following = self._place_of(number[r + 1])
                if not self._read(here, to_inputs + r * length * itemsize, to_labels + r * length * itemsize,
                                  itemsize) and found < 0:
                    found = r
        return found


cdef inline bint _is_after(const double* values, int64_t i, int64_t j) noexcept nogil:
    return values[i] > values[j] or (values[i] == values[j] and i > j)


cdef void _sink(const double* values, int64_t* heap, Py_ssize_t size, Py_ssize_t at) noexcept nogil:
    cdef Py_ssize_t child
    cdef int64_t moving = heap[at]
    while True:
        child = 2 * at + 1
        if child >= size:
            break
        if child + 1 < size and _is_after(values, heap[child + 1], heap[child]):
            child += 1
        if not _is_after(values, heap[child], moving):
            break
        heap[at] = heap[child]
        at = child
    heap[at] = moving


def pay_the_most_owed(cnp.ndarray gains, cnp.ndarray unpaid, Py_ssize_t num_extra, cnp.ndarray candidates,
                      cnp.ndarray counts):
    """Give so many rows of each batch to those that are owed the most, ties to the first.

    Args:
        gains: rows that each earns in a batch, float64 [n].
        unpaid: what is owed to each, negated, float64 [n]; changed in place.
        num_extra: rows of a batch to give, at most n.
        candidates: which columns of ``counts`` they are, int64 [n].
        counts: where each row given is added, int64 [batches, K], contiguous.
    """
    _require(cnp.NPY_DOUBLE, gains)
    _require(cnp.NPY_DOUBLE, unpaid)
    _int64s((candidates, counts))
    cdef Py_ssize_t n = gains.shape[0], num_batches = counts.shape[0], batch, k
    cdef const double* gain = <const double*> cnp.PyArray_DATA(gains)
    cdef double* owed = <double*> cnp.PyArray_DATA(unpaid)
    cdef const int64_t* column = <const int64_t*> cnp.PyArray_DATA(candidates)
    cdef int64_t* count = <int64_t*> cnp.PyArray_DATA(counts)
    cdef cnp.npy_intp size = num_extra
    cdef cnp.ndarray room = cnp.PyArray_SimpleNew(1, &size, cnp.NPY_INT64)
    cdef int64_t* heap = <int64_t*> cnp.PyArray_DATA(room)  # the smallest so far, the greatest of them on top
    for batch in range(num_batches):
        for k in range(n):
            owed[k] -= gain[k]
        if num_extra > 0:
            for k in range(num_extra):
                heap[k] = k
            for k in range(num_extra // 2 - 1, -1, -1):
                _sink(owed, heap, num_extra, k)
            for k in range(num_extra, n):
                if owed[k] < owed[heap[0]]:
                    heap[0] = k
                    _sink(owed, heap, num_extra, 0)
            for k in range(num_extra):
                owed[heap[k]] += 1.0
                count[column[heap[k]]] += 1
        count += counts.shape[1]


def lay_rows(cnp.ndarray counts, cnp.ndarray drawn, cnp.ndarray order, cnp.ndarray source_ids, cnp.ndarray numbers):
    """Write which row of which source stands where in each batch; see ``mixer.draws.plan_rows``.

    Args:
        counts: rows of each source in each batch, int64 [L, K], contiguous.
        drawn: rows of each source drawn before, int64 [K], contiguous; moved on in place.
        order: of the rows of a source, then of the next, the one that stands in each place, int64 [L, B], contiguous.
        source_ids, numbers: where the results go, int64 [L, B], contiguous.
    """
    _int64s((counts, drawn, order, source_ids, numbers))
    cdef Py_ssize_t length = counts.shape[0], num_sources = counts.shape[1], num_rows = order.shape[1], batch, k, i, at
    cdef const int64_t* count = <const int64_t*> cnp.PyArray_DATA(counts)
    cdef const int64_t* place = <const int64_t*> cnp.PyArray_DATA(order)
    cdef int64_t* so_far = <int64_t*> cnp.PyArray_DATA(drawn)
    cdef int64_t* to_ids = <int64_t*> cnp.PyArray_DATA(source_ids)
    cdef int64_t* to_numbers = <int64_t*> cnp.PyArray_DATA(numbers)
    cdef cnp.npy_intp size = 2 * num_rows
    cdef cnp.ndarray room = cnp.PyArray_SimpleNew(1, &size, cnp.NPY_INT64)
    cdef int64_t* ids = <int64_t*> cnp.PyArray_DATA(room)  # in the order of sources
    cdef int64_t* own = ids + num_rows
    for batch in range(length):
        at = 0
        for k in range(num_sources):
            for i in range(count[k]):
                ids[at] = k
                own[at] = so_far[k] + i
                at += 1
            so_far[k] += count[k]
        for i in range(num_rows):
            to_ids[i] = ids[place[i]]
            to_numbers[i] = own[place[i]]
        count += num_sources
        place += num_rows
        to_ids += num_rows
        to_numbers += num_rows


cdef inline uint64_t _permuted(uint64_t x, uint64_t size, uint64_t key, uint64_t a, uint64_t b,
                               const uint64_t* round_keys, Py_ssize_t rounds) noexcept nogil:
    """One position's place in its order, as ``mixer.permutation`` says it."""
    cdef uint64_t left, right, mixed
    cdef Py_ssize_t r
    while True:
        right, left = x // a, x % a
        for r in range(rounds):
            mixed = right ^ (key + round_keys[r])
            mixed *= <uint64_t> 0xBF58476D1CE4E5B9
            mixed ^= mixed >> 32
            mixed *= <uint64_t> 0x94D049BB133111EB
            mixed = (mixed >> 32) + left
            left, right = right, mixed % (b if r % 2 else a)
        x = right * a + left if rounds % 2 else left + right * a
        if x < size:
            return x


cdef class Locator:
    """Says where the rows of prepared sources begin, by their numbers over all epochs.

    Args:
        sizes: rows of each source, int64 [K].
        epochs: of each source, that of its key, int64 [K]; read anew at each call, as are the keys.
        keys: of that epoch's order, uint64 [K].
        a, b: ``mixer.permutation.sides`` of the sizes, uint64 [K].
        round_keys: of the permutation, uint64 [rounds].
        first_rows: of each source, numbered through all sources, int64 [K].
        shard_rows: the first row of each shard, numbered through, int64 [S].
        origins: where row 0 would be, were it in that shard, int64 [S].
        row_length: T + 1.
    """

    cdef tuple _arrays
    cdef const int64_t* _sizes
    cdef const int64_t* _epochs
    cdef const int64_t* _first_rows
    cdef const int64_t* _shard_rows
    cdef const int64_t* _origins
    cdef const uint64_t* _keys
    cdef const uint64_t* _a
    cdef const uint64_t* _b
    cdef const uint64_t* _round_keys
    cdef Py_ssize_t _num_shards, _num_sources, _rounds, _row_length

    def __init__(self, cnp.ndarray sizes, cnp.ndarray epochs, cnp.ndarray keys, cnp.ndarray a, cnp.ndarray b,
                 cnp.ndarray round_keys, cnp.ndarray first_rows, cnp.ndarray shard_rows, cnp.ndarray origins,
                 Py_ssize_t row_length):
        _int64s((sizes, epochs, first_rows, shard_rows, origins))
        for array in (keys, a, b, round_keys):
            _require(cnp.NPY_UINT64, array)
        self._arrays = (sizes, epochs, keys, a, b, round_keys, first_rows, shard_rows, origins)
        self._sizes = <const int64_t*> cnp.PyArray_DATA(sizes)
        self._epochs = <const int64_t*> cnp.PyArray_DATA(epochs)
        self._keys = <const uint64_t*> cnp.PyArray_DATA(keys)
        self._a = <const uint64_t*> cnp.PyArray_DATA(a)
        self._b = <const uint64_t*> cnp.PyArray_DATA(b)
        self._round_keys = <const uint64_t*> cnp.PyArray_DATA(round_keys)
        self._first_rows = <const int64_t*> cnp.PyArray_DATA(first_rows)
        self._shard_rows = <const int64_t*> cnp.PyArray_DATA(shard_rows)
        self._origins = <const int64_t*> cnp.PyArray_DATA(origins)
        self._num_shards, self._num_sources, self._rounds = shard_rows.shape[0], sizes.shape[0], round_keys.shape[0]
        self._row_length = row_length

    def locate(self, cnp.ndarray source_ids, cnp.ndarray numbers, cnp.ndarray places, Py_ssize_t first):
        """Write where rows begin, from the first on, until one is of another epoch than its source's key.

        Args:
            source_ids, numbers: of the rows, int64 [n], contiguous.
            places: where the results go, int64 [n].

        Returns:
            The index of that row; n if there is none.
        """
        _int64s((source_ids, numbers, places))
        cdef const int64_t* id_of = <const int64_t*> cnp.PyArray_DATA(source_ids)
        cdef const int64_t* number_of = <const int64_t*> cnp.PyArray_DATA(numbers)
        cdef int64_t* out = <int64_t*> cnp.PyArray_DATA(places)
        cdef Py_ssize_t n = source_ids.shape[0], k, low, high, middle
        cdef int64_t i, size, row
        for k in range(first, n):
            i = id_of[k]
            if i < 0 or i >= self._num_sources or number_of[k] < 0:
                raise IndexError(f"row {number_of[k]} of source {i} was asked for, of {self._num_sources} sources")
            size = self._sizes[i]
            if number_of[k] // size != self._epochs[i]:
                return k
            row = self._first_rows[i] + <int64_t> _permuted(
                <uint64_t> (number_of[k] % size), <uint64_t> size, self._keys[i], self._a[i], self._b[i],
                self._round_keys, self._rounds)
            low, high = 0, self._num_shards  # the last shard that begins at this row or before
            while high - low > 1:
                middle = (low + high) // 2
                if self._shard_rows[middle] <= row:
                    low = middle
                else:
                    high = middle
            out[k] = self._origins[low] + row * self._row_length
        return n
