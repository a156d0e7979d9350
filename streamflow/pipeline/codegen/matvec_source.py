"""C++ of products and updates of weight matrices, a row at a time."""

from collections.abc import Sequence

ROW_CODE = """
namespace rows {
template <typename T> using Vec = at::vec::Vectorized<T>;

template <typename T>
static inline T sum(const Vec<T>& value) {
    const auto add = [](Vec<T>& a, Vec<T>& b) { return a + b; };
    return at::vec::vec_reduce_all<T>(add, value);
}

template <typename T, long COUNT, long COLUMNS>
static inline void dots(const T* w, const T* x, T* y) {
    constexpr long N = Vec<T>::size(), WHOLE = COLUMNS / N * N;
    Vec<T> sums[COUNT];
    for (long r = 0; r < COUNT; ++r) sums[r] = Vec<T>(0);
    for (long i = 0; i < WHOLE; i += N) {
        const auto xi = Vec<T>::loadu(x + i);
        for (long r = 0; r < COUNT; ++r)
            sums[r] = at::vec::fmadd(Vec<T>::loadu(w + r * COLUMNS + i), xi, sums[r]);
    }
    if constexpr (WHOLE < COLUMNS) {
        constexpr long REST = COLUMNS - WHOLE;
        const auto xi = Vec<T>::loadu(x + WHOLE, REST);
        for (long r = 0; r < COUNT; ++r)
            sums[r] = at::vec::fmadd(Vec<T>::loadu(w + r * COLUMNS + WHOLE, REST), xi, sums[r]);
    }
    for (long r = 0; r < COUNT; ++r) y[r] = sum(sums[r]);
}

template <typename T, long ROWS, long COLUMNS>
static inline void product(const T* w, const T* x, T* y) {
    constexpr long COUNT = 8;
    long o = 0;
    for (; o + COUNT <= ROWS; o += COUNT) dots<T, COUNT, COLUMNS>(w + o * COLUMNS, x, y + o);
    for (; o < ROWS; ++o) dots<T, 1, COLUMNS>(w + o * COLUMNS, x, y + o);
}

// Calls f(vector's place, its length, whether that is a whole one) along a row.
template <typename T, long COLUMNS, typename F>
static inline void along(const F& f) {
    constexpr long N = Vec<T>::size(), WHOLE = COLUMNS / N * N;
    for (long i = 0; i < WHOLE; i += N) f(i, std::integral_constant<long, N>());
    if constexpr (WHOLE < COLUMNS) f(WHOLE, std::integral_constant<long, COLUMNS - WHOLE>());
}

// Calls f(first row, count) for all rows, some at a time.
template <long ROWS, typename F>
static inline void in_blocks(const F& f) {
    constexpr long COUNT = 8;
    long o = 0;
    for (; o + COUNT <= ROWS; o += COUNT) f(o, std::integral_constant<long, COUNT>());
    for (; o < ROWS; ++o) f(o, std::integral_constant<long, 1>());
}

template <typename T, long N>
static inline Vec<T> load(const T* p) {
    if constexpr (N == Vec<T>::size()) return Vec<T>::loadu(p);
    return Vec<T>::loadu(p, N);
}

template <typename T, long N>
static inline void store(T* p, const Vec<T>& value) {
    if constexpr (N == Vec<T>::size()) value.store(p);
    else value.store(p, N);
}

// The first elements; what a formula made of those behind a row's end may be anything.
template <typename T, long N>
static inline Vec<T> only(const Vec<T>& value) {
    if constexpr (N == Vec<T>::size()) return value;
    else return Vec<T>::set(Vec<T>(0), value, N);
}

template <typename T, long ROWS, long COLUMNS>
static inline void below(const T* w, const T* d, T* y) {
    std::fill(y, y + COLUMNS, T(0));
    in_blocks<ROWS>([&](long o, auto count) {
        along<T, COLUMNS>([&](long i, auto n) {
            auto sum = load<T, n>(y + i);
            for (long r = 0; r < count; ++r)
                sum = at::vec::fmadd(load<T, n>(w + (o + r) * COLUMNS + i), Vec<T>(d[o + r]), sum);
            store<T, n>(y + i, sum);
        });
    });
}

// Not finite where a product of the two vectors' elements is not.
template <typename T, long ROWS, long COLUMNS>
static inline void check(const T* d, const T* x, T* found) {
    auto largest = Vec<T>(0), others = Vec<T>(0);
    along<T, COLUMNS>([&](long i, auto n) {
        const auto xi = load<T, n>(x + i);
        largest = at::vec::maximum(largest, xi.abs());
        others = others + (xi - xi);
    });
    T all[Vec<T>::size()];
    largest.store(all);
    const auto most = Vec<T>(*std::max_element(all, all + Vec<T>::size()));
    along<T, ROWS>([&](long i, auto n) {
        const auto product = load<T, n>(d + i) * most;
        others = others + (product - product);
    });
    *found = sum<T>(others);
}
}
"""

_FORM = """
// Updates a matrix; multiplies it by the next x on the way, if there is one.
template <bool has_product>
static inline void {name}({held}, const {kind}* p_d, const {kind}* p_x{scalars},
                          const {kind}* p_next, {kind}* y) {{
    using T = {kind};
    using V = rows::Vec<T>;
    constexpr long COLUMNS = {columns};
    {read}
    rows::in_blocks<{all_rows}>([&](long o, auto count) {{
        V sums[count];
        for (long r = 0; r < count; ++r) sums[r] = V(0);
        rows::along<T, COLUMNS>([&](long i, auto n) {{
            const V x = rows::load<T, n>(p_x + i);
            V next(0);
            if constexpr (has_product) next = rows::load<T, n>(p_next + i);
            for (long r = 0; r < count; ++r) {{
                const long at = (o + r) * COLUMNS + i;
                const V g = V(p_d[o + r]) * x;
                {load}
                {code}
                {store}
                if constexpr (has_product)
                    sums[r] = at::vec::fmadd(rows::only<T, n>(w), next, sums[r]);
            }}
        }});
        if constexpr (has_product)
            for (long r = 0; r < count; ++r) y[o + r] = rows::sum<T>(sums[r]);
    }});
}}
"""


def update_code(
    name: str, kind: str, shape: Sequence[int], num_states: int, num_scalars: int, code: str
) -> str:
    """Return a function that updates a matrix, and may multiply by it on the way.

    Args:
        name: Of the function.
        kind: Type of all numbers.
        shape: Of the matrix.
        num_states: Tensors that the optimizer keeps of it.
        num_scalars: Factors of the update.
        code: New values of an element: from ``w``, ``s0``, ..., ``g`` and ``c0``, ...
    """
    names = ["w", *(f"s{k}" for k in range(num_states))]
    return _FORM.format(
        name=name,
        kind=kind,
        held=", ".join(f"{kind}* p_{name}" for name in names),
        scalars="".join(f", const {kind}* p_c{k}" for k in range(num_scalars)),
        read=" ".join(f"const V c{k}(*p_c{k});" for k in range(num_scalars)),
        all_rows=shape[0],
        columns=shape[1],
        load=" ".join(f"V {name} = rows::load<T, n>(p_{name} + at);" for name in names),
        code=code,
        store=" ".join(f"rows::store<T, n>(p_{name} + at, {name});" for name in names),
    )
