"""A place in the tokens of one line, and the expressions that can be read from there."""

from __future__ import annotations

from einsight.einsum.errors import Problem, did_you_mean
from einsight.einsum.expression import (
    DEPTH,
    OPERATORS,
    Access,
    Apply,
    Expression,
    Number,
    Span,
    Symbol,
    children,
)
from einsight.einsum.tokens import Line, Token

LEVEL = {"||": 1, "&&": 2, **dict.fromkeys(("<", "<=", ">", ">=", "==", "!="), 3),
          "+": 4, "-": 4, "*": 5, "/": 5, "%": 5}  # fmt: skip
_COMPARISON = 3


class FaultError(Exception):
    """Ends the reading of one line."""

    def __init__(self, message: str, span: Span, expected: str | None = None, hint: str | None = None) -> None:
        super().__init__(message)
        self.problem = Problem(message, span, expected, hint)


class Cursor:
    """A place in the tokens of one line. Methods that read raise `FaultError`, which ends the line."""

    def __init__(self, line: Line) -> None:
        self.tokens, self.at, self.depth = line.tokens, 0, 0
        if line.problem:
            found = line.problem
            raise FaultError(found.message, found.span or self.peek.span, found.expected, found.hint)

    def _ahead(self, count: int) -> Token:
        return self.tokens[min(self.at + count, len(self.tokens) - 1)]

    @property
    def peek(self) -> Token:
        return self._ahead(0)

    @property
    def after(self) -> Token:
        return self._ahead(1)

    @property
    def beyond(self) -> Token:
        return self._ahead(2)

    @property
    def found(self) -> str:
        return shown(self.peek)

    def take(self) -> Token:
        token = self.peek
        self.at += 1
        return token

    def accept(self, text: str) -> bool:
        if self.peek.text != text or self.peek.kind == "string":
            return False
        self.at += 1
        return True

    def expect(self, text: str, place: str) -> Token:
        if self.peek.text != text:
            raise FaultError(f"found {self.found} {place}", self.peek.span, f"`{text}`", _slip(self.peek))
        return self.take()

    def close(self, text: str, name: str, opened: Token) -> Token:
        if self.peek.text != text:
            where = f"`{text}` to close `{name}{opened.text}` opened in column {opened.span.column}"
            raise FaultError(f"found {self.found} inside brackets", self.peek.span, where, _slip(self.peek))
        return self.take()

    def name(self, what: str) -> Token:
        if self.peek.kind != "name":
            raise FaultError(f"found {self.found}", self.peek.span, what)
        return self.take()

    def end(self) -> None:
        if self.peek.kind != "end":
            raise FaultError(
                f"found {self.found} after the end of the statement",
                self.peek.span,
                "an operator or the end of the line",
                _slip(self.peek),
            )

    def access(self) -> Access:
        name = self.name("a tensor such as `K[n,e]`")
        opened = self.expect("[", f"after {name.text}")
        indices = self._arguments("]", name.text, opened)
        return Access(name.text, indices, join(name.span, self.tokens[self.at - 1].span))

    def expression(self) -> Expression:
        """A whole expression, not higher than `DEPTH`."""
        start = self.peek.span
        node = self._binary(1)
        if _height(node) > DEPTH:
            raise _too_deep(start)
        return node

    def _binary(self, level: int) -> Expression:
        """Operators of at least this level, left to right."""
        start, links = self.peek.span, 0
        self.depth += 1
        if self.depth > DEPTH:
            raise _too_deep(start)
        left = self._unary()
        while self.peek.kind == "sign" and LEVEL.get(self.peek.text, 0) >= level:
            operator = self.take()
            own = LEVEL[operator.text]
            right = self._binary(own + 1)
            left = Apply(operator.text, (left, right), join(left.span, right.span))
            if own == _COMPARISON and LEVEL.get(self.peek.text) == _COMPARISON:
                raise FaultError("comparisons do not chain", self.peek.span, hint="Write `a <= b && b < c`.")
            links += 1
            if links > DEPTH:
                raise _too_deep(start)
        self.depth -= 1
        return left

    def _unary(self) -> Expression:
        if self.peek.text != "-":
            return self._atom()
        minus = self.take()
        if self.peek.kind == "number" or self.peek.text == "inf":
            number = self._atom()
            assert isinstance(number, Number)
            return Number(-number.value, join(minus.span, number.span))
        operand = self._binary(6)  # above every binary level: one unary operand
        return Apply("neg", (operand,), join(minus.span, operand.span))

    def _atom(self) -> Expression:
        token = self.peek
        if token.kind == "number" or token.text == "inf":
            return self._number()
        if token.kind == "name" and self.after.text == "[":
            return self.access()
        if token.kind == "name" and self.after.text == "(":
            return self._call()
        if token.kind == "name" and token.text not in ("where", "over"):
            return Symbol(token.text, self.take().span)
        if token.text == "(":
            opened = self.take()
            inner = self._binary(1)
            self.close(")", "", opened)
            return inner
        raise FaultError(
            f"found {self.found}", token.span, "a tensor, a rank variable, a size, a number or a function", _slip(token)
        )

    def _number(self) -> Number:
        token = self.take()
        value = float(token.text)
        if token.text != "inf" and value == float("inf"):
            raise FaultError(f"{token.text[:40]} is too large for a number", token.span, hint="Write inf for infinity.")
        if self.peek.kind == "name" and self.peek.span.column == token.span.column + token.span.length:
            raise FaultError(
                f"`{token.text}` runs into `{self.peek.text}`", token.span, hint=f"Write {token.text}*{self.peek.text}."
            )
        return Number(value, token.span)

    def _call(self) -> Apply:
        name = self.take()
        opened = self.take()
        operator = OPERATORS.get(name.text)
        if operator is None:
            words = [op for op in OPERATORS if op.isidentifier() and op != "neg"]
            raise FaultError(
                f"unknown function {name.text}", name.span, "one of " + ", ".join(words), did_you_mean(name.text, words)
            )
        arguments = self._arguments(")", name.text, opened)
        if len(arguments) != operator.arity:
            hint = f"Nest it: {name.text}(a, {name.text}(b, c))." if name.text in ("max", "min") else None
            raise FaultError(
                f"{name.text} has {len(arguments)} arguments", name.span, f"{operator.arity} arguments", hint
            )
        return Apply(name.text, arguments, join(name.span, self.tokens[self.at - 1].span))

    def _arguments(self, closing: str, name: str, opened: Token) -> tuple[Expression, ...]:
        found: list[Expression] = []
        if self.peek.text != closing:
            found.append(self._binary(1))
            while self.accept(","):
                found.append(self._binary(1))
        self.close(closing, name, opened)
        return tuple(found)


def join(first: Span | None, last: Span | None) -> Span | None:
    if first is None or last is None:
        return first
    return Span(first.line, first.column, last.column + last.length - first.column)


def _too_deep(place: Span) -> FaultError:
    message = f"the expression has more than {DEPTH} levels"
    return FaultError(message, place, hint="Split it into several Einsums or `let`s; each term of a sum is a level.")


def _height(node: Expression) -> int:
    """Levels of the expression, counted without recursion."""
    level: list[Expression] = [node]
    height = 0
    while level:
        height += 1
        level = [child for n in level for child in children(n)]
    return height


def shown(token: Token) -> str:
    if token.kind == "end":
        return "the end of the line"
    return f"`{token.text[:40]}`"


def _slip(token: Token) -> str | None:
    """The likely fix for a habit of other languages."""
    return {
        "=": "Equality is written ==.",
        "and": "Write &&.",
        "or": "Write ||.",
        "not": "Write the opposite comparison.",
        "/": "Integer division is floordiv(a, b).",
        "*": "There is no power operator; multiply.",
        "if": "A predicate is written `where n <= m`.",
        "{": "Indices are written [m,n].",
    }.get(token.text)
