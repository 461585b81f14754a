"""Closed forms against plain enumeration in Python, point by point."""

from __future__ import annotations

import re
import time
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from einsight.einsum import points
from einsight.einsum.expression import Apply, Expression, Number, Symbol, conjuncts
from einsight.einsum.lattice import floor_sum
from einsight.einsum.parse import parse

PYTHON = {
    "+": lambda a, b: a + b, "-": lambda a, b: a - b, "*": lambda a, b: a * b, "%": lambda a, b: a % b,
    "floordiv": lambda a, b: a // b, "neg": lambda a: -a, "max": max, "min": min, "abs": abs,
    "<": lambda a, b: a < b, "<=": lambda a, b: a <= b, ">": lambda a, b: a > b, ">=": lambda a, b: a >= b,
    "==": lambda a, b: a == b, "!=": lambda a, b: a != b,
    "&&": lambda a, b: a and b, "||": lambda a, b: a or b, "select": lambda c, a, b: a if c else b,
}  # fmt: skip


def truth(node: Expression, env: dict[str, int]):
    if isinstance(node, Number):
        return int(node.value)
    if isinstance(node, Symbol):
        return env[node.name]
    assert isinstance(node, Apply)
    return PYTHON[node.op](*(truth(a, env) for a in node.args))


def brute(ranges: dict[str, int], predicate: Expression, sizes: dict[str, int], exists=()) -> int:
    kept = [v for v in ranges if v not in exists]
    found = set()
    for point in product(*(range(n) for n in ranges.values())):
        env = dict(zip(ranges, point, strict=True))
        if truth(predicate, {**sizes, **env}):
            found.add(tuple(env[v] for v in kept))
    return len(found)


def predicate(text: str) -> Expression:
    """The `where` of a small Einsum over the usual variables."""
    file = (
        "cascade t\nrank M = M1 * M0, N = N1 * N0, D, S, W, P\nin X[m,m1,m0,n,n1,n0]\nout Z[m,m1,m0,n,n1,n0]\n"
        f"Z[m,m1,m0,n,n1,n0] = X[m,m1,m0,n,n1,n0] where {text}\n"
    )
    found = parse(file).einsums[0].predicate
    assert found is not None
    return found


FORMS = {
    "causal": "n <= m",
    "strict": "m > n",
    "aligned": "n <= m + N - M",
    "window": "n <= m && n > m - W",
    "band": "n <= m + S && n >= m - W",
    "sink or window": "n <= m && (n < S || n > m - W)",
    "prefix or causal": "n < P || n <= m",
    "off the diagonal": "m != n",
    "the diagonal": "m == n",
    "slope two": "2*n <= m + S",
    "slope a half": "n <= 2*m - W && 3*n >= m - S",
    "steep window": "2*n <= 3*m && 5*n > 2*m - W",
    "every third row": "3*n == m + S",
    "anti-diagonal": "m + n < W",
    "bounds of the row": "n <= m && m >= S",
    "only the key": "n < W && n >= S",
    "nothing": "n < m && n > m",
    "gna": "min(max(floordiv(m,S+1)*(S+1) + floordiv(S+1,2) - floordiv(W,2), 0), max(N-W,0)) <= n && n < W + "
    "min(max(floordiv(m,S+1)*(S+1) + floordiv(S+1,2) - floordiv(W,2), 0), max(N-W,0))",
    "dilated": "n <= m && n % (S+1) == m % (S+1)",
    "two dimensions": "floordiv(n,S+1) <= floordiv(m,S+1) && n%(S+1) >= m%(S+1) - 1",
    "dilated window": "n%3 == m%3 && floordiv(n,3) <= floordiv(m,3) && floordiv(n,3) > floordiv(m,3) - W",
    "two radices": "floordiv(m,2)%3 <= n%3 && floordiv(n,6) == floordiv(m,6) && m%4 >= W - 9",
    "shifted digits": "floordiv(n - m + 5, 3) == floordiv(n + 6, 3) || (m + 4)%2 == n%2",
    "blocks": "(floordiv(n,2) + floordiv(m+N-M,2)) % 3 < 2",
    "either side": "select(m < S, n < W, n >= W)",
    "product": "m*n < W",
}
SIZE = st.integers(1, 9)
PARAMETER = st.integers(0, 10)


@pytest.mark.parametrize("form", FORMS)
@given(m=SIZE, n=SIZE, s=PARAMETER, w=PARAMETER, p=PARAMETER)
@settings(max_examples=40, deadline=None)
def test_pairs_and_projections(form: str, m: int, n: int, s: int, w: int, p: int) -> None:
    where = predicate(FORMS[form])
    ranges, sizes = {"m": m, "n": n}, {"M": m, "N": n, "S": s, "W": w, "P": p}
    assert points.count(ranges, where, sizes) == brute(ranges, where, sizes)
    for hidden in ("m", "n"):
        assert points.count(ranges, where, sizes, (hidden,)) == brute(ranges, where, sizes, (hidden,))
    assert points.count(ranges, where, sizes, ("m", "n")) == min(1, brute(ranges, where, sizes))


def chunked(text: str, of_m: bool) -> str:
    text = text.replace("n", "(n1*N0+n0)").replace("mi(n1*N0+n0)", "min").replace("floor", "FLOOR")
    if of_m:
        text = re.sub(r"m(?![ia])", "(m1*M0+m0)", text)
    return text.replace("FLOOR", "floor") + " && n1*N0+n0 < N" + (" && m1*M0+m0 < M" if of_m else "")


@pytest.mark.parametrize("of_m", [False, True])
@pytest.mark.parametrize("form", FORMS)
@given(m=SIZE, n=SIZE, m0=st.integers(1, 4), n0=st.integers(1, 4), s=PARAMETER, w=PARAMETER, p=PARAMETER)
@settings(max_examples=10, deadline=None)
def test_chunks_and_tiles(form: str, of_m: bool, m: int, n: int, m0: int, n0: int, s: int, w: int, p: int) -> None:
    where = predicate(chunked(FORMS[form], of_m))
    m1, n1 = -(-m // m0), -(-n // n0)
    sizes = {"M": m, "N": n, "M1": m1, "M0": m0, "N1": n1, "N0": n0, "S": s, "W": w, "P": p}
    ranges = {"m1": m1, "m0": m0, "n1": n1, "n0": n0} if of_m else {"m": m, "n1": n1, "n0": n0}
    for exists in ((), ("n0",), ("n1",), ("n1", "n0"), tuple(v for v in ranges if v[0] == "m"), (*ranges,)[:1]):
        assert points.count(ranges, where, sizes, exists) == brute(ranges, where, sizes, exists), exists


def applied(name: str, *args: Expression) -> Expression:
    return Apply(name, args)


WHOLE = st.integers(-4, 6).map(lambda k: Number(float(k)))
BASE = st.integers(1, 5).map(lambda k: Number(float(k)))
CHUNKED = Apply("+", (Apply("*", (Symbol("n1"), Symbol("N0"))), Symbol("n0")))
VARIABLE = st.sampled_from([Symbol("m"), Symbol("n"), Symbol("n1"), Symbol("n0"), CHUNKED])
TERM = st.recursive(
    st.one_of(VARIABLE, WHOLE),
    lambda inner: st.one_of(
        st.builds(applied, st.sampled_from(["+", "-", "min", "max"]), inner, inner),
        st.builds(applied, st.just("*"), inner, WHOLE),
        st.builds(applied, st.sampled_from(["floordiv", "%"]), inner, BASE),
    ),
    max_leaves=4,
)
ORDER = st.builds(applied, st.sampled_from(["<", "<=", ">", ">=", "==", "!="]), VARIABLE, TERM)
PREDICATE = st.recursive(ORDER, lambda p: st.builds(applied, st.sampled_from(["&&", "&&", "||"]), p, p), max_leaves=4)


@given(PREDICATE, st.tuples(*[st.integers(1, 6)] * 4), st.sets(st.sampled_from(["m", "n", "n1", "n0"])))
@settings(max_examples=200, deadline=None)
def test_any_predicate(where: Expression, extents: tuple[int, ...], exists: set[str]) -> None:
    ranges = dict(zip(("m", "n", "n1", "n0"), extents, strict=True))
    sizes = {"N0": ranges["n0"]}
    assert points.count(ranges, where, sizes, exists) == brute(ranges, where, sizes, exists)


@given(st.integers(0, 30), st.integers(-20, 20), st.integers(-50, 50), st.integers(1, 15))
def test_floor_sum(n: int, a: int, b: int, c: int) -> None:
    assert floor_sum(n, a, b, c) == sum((a * i + b) // c for i in range(n))


def test_closed_forms_in_the_sizes() -> None:
    n, w, s = 1_000_000, 4096, 4
    square, sizes = {"m": n, "n": n}, {"M": n, "N": n, "W": w, "S": s}
    causal = n * (n + 1) // 2
    window = w * (w + 1) // 2 + (n - w) * w
    assert points.count(square, predicate("n <= m"), sizes) == causal
    assert points.count(square, predicate("n <= m && n > m - W"), sizes) == window
    # row m sees min(S, m-W+1) sinks that its window does not hold already
    sinks = s * (s + 1) // 2 + s * (n - w - s)
    assert points.count(square, predicate("n <= m && (n < S || n > m - W)"), sizes) == window + sinks


def test_million_by_million_takes_no_time() -> None:
    n, n0 = 1_000_003, 128
    sizes = {"M": n, "N": n, "N0": n0, "W": 777}
    ranges = {"m": n, "n1": -(-n // n0), "n0": n0}
    where = predicate("n1*N0+n0 <= m && n1*N0+n0 > m - W && n1*N0+n0 < N")
    start = time.perf_counter()
    live = points.count(ranges, where, sizes)
    tiles = points.count(ranges, where, sizes, ("n0",))
    rows = points.count(ranges, where, sizes, ("n1", "n0"))
    assert time.perf_counter() - start < 5  # enumerating would take hours
    assert live == 777 * 778 // 2 + (n - 777) * 777
    assert rows == n
    assert tiles == sum(m // n0 - max(0, m - 776) // n0 + 1 for m in range(n))


def test_neighborhoods_of_a_video_come_apart_by_dimension() -> None:
    t, y, x = 30, 48, 80  # 115,200 tokens: 1.3e10 pairs
    size = t * y * x

    def near(i: str, j: str, length: int, window: int) -> str:
        start = f"max(min({i} - {window // 2}, {length - window}), 0)"
        return f"{j} >= {start} && {j} < {start} + {window}"

    where = predicate(
        " && ".join(
            (
                near(f"floordiv(m,{y * x})", f"floordiv(n,{y * x})", t, 18),
                near(f"floordiv(m,{x})%{y}", f"floordiv(n,{x})%{y}", y, 24),
                near(f"m%{x}", f"n%{x}", x, 24),
            )
        )
    )
    assert points.count({"m": size, "n": size}, where, {}) == size * 18 * 24 * 24
    assert points.count({"m": size, "n": size}, where, {}, ("n",)) == size


def test_too_many_points_are_refused() -> None:
    n = 100_000
    with pytest.raises(ValueError, match=r"1e\+10 points .*limit of 2e\+09"):
        points.count({"m": n, "n": n}, predicate("m*n < W"), {"W": 3})


def test_messages_name_what_is_missing() -> None:
    with pytest.raises(KeyError, match="size W is missing"):
        points.count({"m": 3, "n": 3}, predicate("n > m - W"), {"M": 3})
    with pytest.raises(ValueError, match="uses n, for which no range is given"):
        points.count({"m": 3}, predicate("n <= m"), {})


def test_independent_variables_multiply() -> None:
    where = conjuncts(predicate("n <= m && m1 <= n1"))
    ranges = {"m": 7, "n": 5, "m1": 4, "n1": 4, "m0": 3}
    assert points.count(ranges, where, {}) == points.count({"m": 7, "n": 5}, where[:1], {}) * 10 * 3
