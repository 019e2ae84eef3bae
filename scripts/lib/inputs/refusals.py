"""Describe the problems of a config in words for users."""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

from pydantic import BaseModel, ValidationError

BEYOND = {
    "greater_than": "less than or equal to the minimum",
    "greater_than_equal": "less than the minimum",
    "less_than": "greater than or equal to the maximum",
    "less_than_equal": "greater than the maximum",
}
Schema = Mapping[str, Any]


def problems(error: ValidationError, model: type[BaseModel]) -> list[str]:
    """Unknown keys, then one problem for each place with a wrong value."""
    schema, keys, values = _schema(model), [], {}
    for detail in error.errors(include_url=False):
        loc, of_key = detail["loc"], detail["loc"][-1:] == ("[key]",)
        path, allowed = _place(loc[:-2] if of_key else loc, schema)
        if of_key or detail["type"] in ("extra_forbidden", "invalid_key"):
            keys.append(_key_problem(path, detail, allowed))
        # If a list or a text is allowed, report the problem of the given type, not that it is not the other type
        elif path not in values or values[path][0].endswith("_type"):
            values[path] = detail["type"], _value_problem(path, detail, allowed)
    outer = {path[:n] for path in values for n in range(len(path))}
    return keys + [text for path, (_, text) in values.items() if path not in outer]


@cache
def _schema(model: type[BaseModel]) -> Schema:
    return model.model_json_schema()


def _place(loc: Sequence[str | int], schema: Schema) -> tuple[tuple[str | int, ...], list[Schema]]:
    """The place of an error of pydantic, without the names of its types, and the schemas allowed there."""
    path, allowed = [], [schema]
    for part in loc:
        if inside := [choice for outer in allowed for choice in _inside(outer, part, schema)]:
            path.append(part)
            allowed = inside
    return tuple(path), allowed


def _inside(outer: Schema, part: str | int, schema: Schema) -> Iterator[Schema]:
    """The schemas that a JSON schema allows for the value of a key or an item of a list; alternatives one by one."""
    named = outer.get("items") if isinstance(part, int) else outer.get("properties", {}).get(part)
    others = outer.get("additionalProperties"), *outer.get("patternProperties", {}).values()
    if inner := next(filter(None, (named, *others)), None):
        inner = schema["$defs"][inner["$ref"].rsplit("/", 1)[1]] if "$ref" in inner else inner
        yield from inner.get("anyOf", [inner])


def _key_problem(path: Sequence[str | int], detail: Mapping[str, Any], allowed: Sequence[Schema]) -> str:
    where, key = ": ".join(map(str, path)), detail["input"]
    if detail["type"] == "string_pattern_mismatch":
        return f"`{where}`: {key!r} does not match {detail['ctx']['pattern']!r}"
    if detail["type"] not in ("extra_forbidden", "invalid_key"):
        return f"`{where}` has the key {key!r}, a {type(key).__name__}; it must be string"
    key = str(key if detail["type"] == "invalid_key" else detail["loc"][-1])
    known = allowed[0]["properties"]
    near = difflib.get_close_matches(key, known, n=1) or [name for name in known if key in name][:1]
    hint = f"did you mean `{near[0]}`?" if near else f"there are {', '.join(known)}"
    return f"unknown key `{where}{': ' if where else ''}{key}`: {hint}"


def _value_problem(path: Sequence[str | int], detail: Mapping[str, Any], allowed: Sequence[Schema]) -> str:
    where, kind, value = ": ".join(map(str, path)) or "config", detail["type"], detail["input"]
    if kind == "literal_error":
        choices = allowed[0]["enum"]
        hint = "".join(f": did you mean {near}?" for near in difflib.get_close_matches(str(value), choices, n=1))
        return f"`{where}` is {value!r}, not one of {', '.join(choices)}{hint}"
    if kind.endswith("_type"):
        wanted = [choice["type"] for choice in allowed]
        hint = _as_number(value) if {"number", "integer"} & set(wanted) else ""
        return f"`{where}` is {value!r}, a {type(value).__name__}; it must be {' or '.join(wanted)}{hint}"
    if kind == "finite_number":
        return f"`{where}` is {value!r}; it must be a finite number"
    if kind in BEYOND:
        (limit,) = detail["ctx"].values()
        return f"`{where}`: {value!r} is {BEYOND[kind]} of {int(limit) if limit == int(limit) else limit}"
    if kind == "string_pattern_mismatch":
        return f"`{where}`: {value!r} does not match {detail['ctx']['pattern']!r}"
    if kind in ("too_short", "string_too_short"):
        return f"`{where}`: {value!r} should be non-empty"
    return f"`{where}`: {detail['msg'].removeprefix('Value error, ')}"


def _as_number(value: Any) -> str:
    """A hint for a number that YAML reads as text, such as 1e-5 or one in quotes; empty for other values."""
    try:
        number = f"{float(value):g}" if isinstance(value, str) else ""
    except ValueError:
        return ""
    number = number if "." in number else number.replace("e", ".0e")
    return f". YAML reads this as text: write {number}" if number[-1:].isdigit() else ""
