# What the kernel works on: a schema lowered to flat instructions, and a batch as plain pointers.
# Included by _program.pyx; a .pxd would have to lie in a folder named as the installed package.


cpdef enum Op:
    # What an instruction computes; the formulas stand in recserve.kernels.features.operations.
    OP_VALUE
    OP_LOG1P
    OP_RATIO
    OP_DIFFERENCE
    OP_PRODUCT
    OP_EQUAL
    OP_PAIR                 # parameter: the size of b's vocabulary
    OP_RANK_IN
    OP_HOUR_SIN
    OP_HOUR_COS
    OP_WEEKDAY_SIN
    OP_WEEKDAY_COS
    OP_DAYS_SINCE
    OP_DOT                  # a: index of the space
    OP_COUNT                # history operations: a: index of the group, b: index of the event selection
    OP_DAYS_SINCE_EVENT
    OP_SHARE
    OP_MAX_SIMILARITY       # a: index of the space, parameter: how many recent items
    OP_MEAN_SIMILARITY


cpdef enum Place:
    # Where an operand lies.
    AT_REQUEST              # in the request's own numbers or times, in the order that load_request writes them
    AT_ITEM                 # in the item's row of ItemArrays.features or .times
    AT_SCORE                # in the candidate's row of source_scores
    AT_RANK                 # in the candidate's row of source_ranks
    AT_USER_LIST            # a list column of the user
    AT_CONTEXT_LIST         # a list column of the context


cpdef enum:
    BY_ITEM = -1            # a history group's key: the item itself instead of a column of ItemArrays.features
    ALL_EVENTS = -1         # an event selection: every event type


cdef struct Instruction:
    int32_t column          # of the feature matrix
    int32_t op
    int32_t a_place
    int32_t a
    int32_t b_place
    int32_t b
    int32_t parameter


cdef enum:
    BLOCK = 64              # candidates that an instruction goes over at once
    LINE = 64               # bytes of a cache line
    BATCH_ARRAYS = 24       # at most, of a FeatureBatch without the users' vectors, and the result


cdef struct Arena:
    # Memory that is given out piece by piece. Without a start it only counts.
    char *start
    Py_ssize_t used


cdef struct Columns:
    # A ColumnValues.
    const double *numbers
    const int32_t *codes
    const int64_t *times
    const int32_t *list_codes
    const int64_t *list_offsets
    Py_ssize_t number_width
    Py_ssize_t code_width
    Py_ssize_t time_width
    Py_ssize_t list_width


cdef struct Space:
    const float *items      # [N, dim]
    const float *users      # [R, dim]; NULL where no feature takes a dot product
    Py_ssize_t dim
    Py_ssize_t depth        # similarities to how many recent items are needed
    Py_ssize_t recent       # how many of those the current request has
    double *queries         # [recent + 1, dot64_padded(dim)]: the vectors of the recent items, and then the user's
    double *products        # [recent + 1, BLOCK]: of the queries with the current candidates


cdef enum:
    # Entries of a Group; the first two belong to no key of the history.
    MISSING_KEY             # of candidates without a key, and of all candidates of an unknown user: NaN
    ABSENT_KEY              # of keys that are not in the history: no events
    FIRST_KEY


cdef struct Group:
    # One user's history, summed by item or by category: an open-addressing table from key to entry.
    int32_t key             # column of ItemArrays.features, or BY_ITEM
    int32_t entries         # FIRST_KEY + how many keys there are
    int32_t *slots          # [capacity]: a key's entry, 0: free
    int64_t *keys           # [FIRST_KEY + H]
    double *counts          # [FIRST_KEY + H, selections]
    int64_t *last_us        # [FIRST_KEY + H, selections]
    int32_t *found          # [BLOCK]: the entries of the current candidates


cdef struct Frame:
    # Everything that one call reads and writes; nothing is allocated while it runs.
    # The program:
    const Instruction *per_request
    const Instruction *per_candidate
    const int32_t *selections       # event code or ALL_EVENTS
    Py_ssize_t per_request_size
    Py_ssize_t per_candidate_size
    Py_ssize_t selection_count
    Py_ssize_t width                # features
    # The items:
    Py_ssize_t item_count
    const float *features
    const int64_t *times
    Py_ssize_t feature_width
    Py_ssize_t time_width
    # The batch:
    Py_ssize_t requests
    Py_ssize_t candidates
    const int64_t *offsets
    const int64_t *rows
    const int64_t *time_us
    const unsigned char *known
    Columns user
    Columns context
    const int64_t *history_offsets
    const int64_t *history_rows
    const int32_t *history_events
    const double *history_counts
    const int64_t *history_last_us
    const int64_t *recent_offsets
    const int64_t *recent_rows
    const float *scores
    const float *ranks
    Py_ssize_t source_width
    # Scratch of the current request:
    Py_ssize_t request
    double *request_numbers
    int64_t *request_times
    double *totals                  # [selections]: the user's events
    int64_t *recent                 # [recent_count]: the last known items
    Py_ssize_t recent_depth
    Py_ssize_t recent_count
    int hash_shift
    float *template                 # [width]: the features that all candidates of the request share
    Group *groups
    Py_ssize_t group_count
    Space *spaces
    Py_ssize_t space_count
    # The current candidates, first:first + count:
    Py_ssize_t first
    Py_ssize_t count                # at most BLOCK
    # The result, [n, width]:
    float *out
