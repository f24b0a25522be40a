"""Expressions over an entry, for `--where`: `outcome.status >= 500 and what.path.startswith("/orders")`.

Names are dotted paths into the entry's JSON; a path that is not there is None. Comparisons, `in`, `and`, `or`, `not`, `+ - * /`, literals
and lists of them, and the methods startswith, endswith, contains, lower, matches (a regular expression, found anywhere). Nothing
else: the text is parsed, never run.
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Mapping
from typing import Any

from meshguard.model.errors import MeshguardError

__all__ = ["WhereError", "where"]

MAX_TEXT = 2000
_Value = Callable[[Mapping[str, Any]], Any]
_COMPARE: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.In: lambda left, right: left in right,
    ast.NotIn: lambda left, right: left not in right,
    ast.Is: lambda left, right: left is right,
    ast.IsNot: lambda left, right: left is not right,
}
_ARITHMETIC: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
_METHODS: dict[str, tuple[int, Callable[..., Any]]] = {
    "startswith": (1, str.startswith),
    "endswith": (1, str.endswith),
    "contains": (1, lambda text, part: part in text),
    "lower": (0, str.lower),
    "matches": (1, lambda text, pattern: pattern.search(text) is not None),
}
_NAMES = {"true": True, "false": False, "null": None}


class WhereError(MeshguardError):
    """The expression is none, or uses what is not allowed in one."""


def where(text: str) -> Callable[[Mapping[str, Any]], bool]:
    """A test of entries. A comparison that makes no sense for an entry (None < 5) is false. Raises WhereError."""
    if len(text) > MAX_TEXT:
        raise WhereError(f"--where: more than {MAX_TEXT} characters")
    try:
        tree = ast.parse(text.strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError) as exc:
        raise WhereError(f"--where: {exc.args[0] if exc.args else 'no expression'}") from exc
    value = _value(tree.body)

    def test(entry: Mapping[str, Any]) -> bool:
        try:
            return bool(value(entry))
        except (TypeError, AttributeError, ZeroDivisionError):
            return False

    return test


def _value(node: ast.expr) -> _Value:
    match node:
        case ast.Constant(value=str() | int() | float() | bool() | None as constant):
            return lambda entry: constant
        case ast.Name() | ast.Attribute():
            return _path(node)
        case ast.List() | ast.Tuple():
            items = [_value(item) for item in node.elts]
            return lambda entry: [item(entry) for item in items]
        case ast.BoolOp(op=ast.And()):
            parts = [_value(part) for part in node.values]
            return lambda entry: all(_true(part, entry) for part in parts)
        case ast.BoolOp():
            parts = [_value(part) for part in node.values]
            return lambda entry: any(_true(part, entry) for part in parts)
        case ast.UnaryOp(op=ast.Not()):
            inner = _value(node.operand)
            return lambda entry: not _true(inner, entry)
        case ast.UnaryOp(op=ast.USub()):
            inner = _value(node.operand)
            return lambda entry: -inner(entry)
        case ast.BinOp() if type(node.op) in _ARITHMETIC:
            left, right, act = _value(node.left), _value(node.right), _ARITHMETIC[type(node.op)]
            return lambda entry: act(left(entry), right(entry))
        case ast.Compare():
            return _comparison(node)
        case ast.Call():
            return _call(node)
    raise WhereError(f"--where: {ast.unparse(node)[:60]} is not allowed here")


def _true(part: _Value, entry: Mapping[str, Any]) -> bool:
    try:
        return bool(part(entry))
    except (TypeError, AttributeError, ZeroDivisionError):
        return False


def _comparison(node: ast.Compare) -> _Value:
    first = _value(node.left)
    rest = [(_COMPARE[type(op)], _value(right)) for op, right in zip(node.ops, node.comparators, strict=True)]

    def compare(entry: Mapping[str, Any]) -> bool:
        left = first(entry)
        for act, value in rest:
            right = value(entry)
            if not act(left, right):
                return False
            left = right
        return True

    return compare


def _path(node: ast.expr) -> _Value:
    names: list[str] = []
    while isinstance(node, ast.Attribute):
        names.append(node.attr)
        node = node.value
    if not isinstance(node, ast.Name):
        raise WhereError("--where: a name is a path such as what.path")
    names.append(node.id)
    names.reverse()
    if len(names) == 1 and names[0] in _NAMES:
        constant = _NAMES[names[0]]
        return lambda entry: constant

    def look(entry: Mapping[str, Any]) -> Any:
        value: Any = entry
        for name in names:
            if not isinstance(value, Mapping):
                return None
            value = value.get(name)
        return value

    return look


def _call(node: ast.Call) -> _Value:
    function = node.func
    if not isinstance(function, ast.Attribute) or function.attr not in _METHODS or node.keywords:
        raise WhereError(f"--where: only the methods {', '.join(_METHODS)} can be called")
    count, method = _METHODS[function.attr]
    if len(node.args) != count:
        raise WhereError(f"--where: {function.attr} takes {count} argument{'s' if count != 1 else ''}")
    target = _value(function.value)
    if function.attr == "matches":
        return _matches(target, node.args[0])
    arguments = [_value(argument) for argument in node.args]
    return lambda entry: method(target(entry), *(argument(entry) for argument in arguments))


def _matches(target: _Value, argument: ast.expr) -> _Value:
    if not isinstance(argument, ast.Constant) or not isinstance(argument.value, str):
        raise WhereError("--where: matches takes a text")
    try:
        pattern = re.compile(argument.value)
    except re.error as exc:
        raise WhereError(f"--where: {argument.value!r}: {exc}") from exc

    def match(entry: Mapping[str, Any]) -> bool:
        text = target(entry)
        return isinstance(text, str) and pattern.search(text) is not None

    return match
