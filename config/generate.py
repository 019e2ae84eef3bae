"""Write the files derived from the config's model, scripts/lib/inputs/sections.py: `uv run python config/generate.py`.

These are config.yaml, the tables of README.md, schemas/config.schema.yaml for editors, and, in scripts/lib/inputs,
computed.py, which tells stages the obs columns that others write. A unit test fails if a file is stale.
"""

import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

HOME = Path(__file__).resolve().parents[1]
sys.path.append(str(HOME / "scripts"))

from lib.inputs import demo  # noqa: E402
from lib.inputs.keys import Section  # noqa: E402
from lib.inputs.sections import Config  # noqa: E402

# config.yaml runs the demo, and differs from the defaults here
DEMO = {
    "label_key": "CellType",
    "annotation.markers": "lists",
    "gene_sets": demo.GENE_SETS,
}
WIDTH = 120
RENAMED = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "lt": "exclusiveMaximum"}  # pydantic's names
SHOWN = [
    *("type", "enum", "pattern", "minLength", *RENAMED.values(), "propertyNames", "additionalProperties", "required"),
    *("properties", "items", "minItems", "uniqueItems", "default"),
]
CONFIG = """\
# The settings of Somersault. This file has every key with its default and a short explanation;
# config/README.md is the reference (type, range, scanpy's and the article's name).
# Your own config needs only the keys that it changes: snakemake --configfile mine.yaml
# Developers: config/generate.py writes this file.
"""
SCHEMA = """\
# Types, ranges and defaults of every config key, for editors. config/README.md explains them.
# Written by config/generate.py from scripts/lib/inputs/sections.py.
$schema: https://json-schema.org/draft/2020-12/schema
type: object
additionalProperties: false
properties:
"""
COMPUTED = '''\
"""The obs columns that stages write. Written by config/generate.py, as stages do not load the config's model."""

import re

COMPUTED = re.compile(
'''


@dataclass(frozen=True)
class Item:
    """A key or a section (`section`) of the config."""

    path: tuple[str, ...]
    heading: str
    section: type[Section] | None
    default: Any
    means: str
    comment: str
    elsewhere: str
    schema: dict[str, Any]  # JSON schema


def items(section: type[Section], path: tuple[str, ...] = (), heading: str = "") -> Iterator[Item]:
    """Sections and keys in their order, each section before its keys."""
    whole = section.model_json_schema()
    inside, schemas = section.inner(), whole["properties"]
    for name, field in section.model_fields.items():
        inner, extra = inside.get(name), field.json_schema_extra or {}
        schema = {} if inner else tidy(schemas[name], whole.get("$defs", {}))
        told = field.description or "", extra.get("comment", ""), extra.get("elsewhere", "")
        under = (inner or section).heading or heading
        yield Item((*path, name), under, inner, field.default, *told, schema)
        if inner:
            yield from items(inner, (*path, name), under)


def tidy(schema: Mapping[str, Any], sections: Mapping[str, Any]) -> dict[str, Any]:
    """pydantic's JSON schema of a value, with alternatives as a list of types, as none of them shares keywords.

    `sections` are those that a list has as its items.
    """
    schema = sections[schema["$ref"].rsplit("/", 1)[1]] if "$ref" in schema else schema
    found = {RENAMED.get(name, name): value for name, value in schema.items()}
    if "items" in found:
        found["items"] = tidy(found["items"], sections)
    if "properties" in found:
        found["properties"] = {name: tidy(value, sections) for name, value in found["properties"].items()}
    if choices := [tidy(choice, sections) for choice in found.pop("anyOf", [])]:
        for choice in choices:
            found = choice | found
        found["type"] = [choice["type"] for choice in choices]
    for pattern, values in found.pop("patternProperties", {}).items():
        found |= {"propertyNames": {"pattern": pattern}, "additionalProperties": values}
    if isinstance(found.get("additionalProperties"), dict):
        found["additionalProperties"] = tidy(found["additionalProperties"], sections)
    return found


def flow(value: Any) -> str:
    """A value as YAML on one line."""
    text = yaml.safe_dump(value, default_flow_style=True, width=float("inf"), sort_keys=False)
    return text.removesuffix("...\n").strip().replace("'null'", '"null"')


def config() -> str:
    """The text of config.yaml, with empty lines around top-level sections."""
    lines, before = [], None
    for item in items(Config):
        if len(item.path) == 1 and (item.section or before is None or len(before.path) > 1):
            lines.append("")
        default = DEMO.get(".".join(item.path), item.default)
        nested = default if isinstance(default, dict) else {}
        value = "" if item.section or nested else f" {flow(default)}"
        choices, indent = item.schema.get("enum", []), "  " * (len(item.path) - 1)
        named = " | ".join(choices) if any(choice not in item.comment for choice in choices) else ""
        comment = ": ".join(filter(None, [item.comment, named]))
        lines.append(f"{indent}{item.path[-1]}:{value}{' # ' if comment else ''}{comment}")
        lines += [f"{indent}  {name}: {flow(part)}" for name, part in nested.items()]
        before = item
    if long := [line for line in lines if len(line) > WIDTH]:
        raise SystemExit(f"longer than {WIDTH} characters; give the key a shorter `comment`:\n" + "\n".join(long))
    return CONFIG + "\n".join(lines) + "\n"


def schema() -> str:
    """The JSON schema of the config."""
    lines = []
    for item in items(Config):
        name, indent = item.path[-1], "    " * len(item.path)
        if item.section:
            parts = ("type: object", "additionalProperties: false", "properties:")
            lines += [f"{indent[2:]}{name}:", *(f"{indent}{part}" for part in parts)]
        else:
            lines += schema_lines(name, item.schema, indent[2:])
    return SCHEMA + "\n".join(lines) + "\n"


def schema_lines(name: str, schema: Any, indent: str) -> Iterator[str]:
    """A part of the schema, on one line if it fits."""
    shown = schema if name == "default" or not isinstance(schema, dict) else only_shown(schema)
    if name == "properties":
        shown = {key: only_shown(value) for key, value in schema.items()}
    line = f"{indent}{name}: {flow(shown)}"
    if len(line) <= WIDTH or not isinstance(schema, dict):
        yield line
    else:
        yield f"{indent}{name}:"
        for part in shown:
            yield from schema_lines(part, schema[part], f"{indent}  ")


def only_shown(schema: Mapping[str, Any]) -> dict[str, Any]:
    """A schema's keywords in their order, without our own, and without the type of choices."""
    kept = [name for name in SHOWN if name in schema and not (name == "type" and "enum" in schema)]
    found = {name: schema[name] for name in kept}
    for name in ("items", "additionalProperties"):
        if isinstance(found.get(name), dict):
            found[name] = only_shown(found[name])
    if "properties" in found:
        found["properties"] = {name: only_shown(value) for name, value in found["properties"].items()}
    return found


def table(heading: str) -> str:
    """The table under a heading of README.md."""
    lines = ["| key | type | default | meaning | elsewhere |", "|---|---|---|---|---|"]
    for item in items(Config):
        if item.heading == heading and not item.section:
            parts = item.default.items() if isinstance(item.default, dict) else []
            default = ", ".join(f"`{name}: {flow(part)}`" for name, part in parts) or f"`{flow(item.default)}`"
            demo = DEMO.get(".".join(item.path))
            told = f"{len(demo)} lists" if isinstance(demo, dict) else f"`{demo}`"
            default += f" (demo: {told})" if demo else ""
            cells = f"`{': '.join(item.path)}`", type_of(item.schema), default, item.means, item.elsewhere
            lines.append("".join(f"| {cell} " if cell else "| " for cell in cells) + "|")
    return "\n".join(lines) + "\n"


def type_of(schema: Mapping[str, Any], plural: str = "") -> str:
    """Type and range of a value in words."""
    types = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    null = " or null" if "null" in types else ""
    upto = "to" if "minimum" in schema else "up to"
    words = {"minimum": "from", "exclusiveMinimum": "above", "maximum": upto, "exclusiveMaximum": "below"}
    limits = [f"{word} {schema[name]}" for name, word in words.items() if name in schema]
    if kind := schema.get("kind"):
        text = kind + plural
    elif "enum" in schema:
        text = ", ".join(schema["enum"])
    elif types[0] == "array":
        text = f"list of {type_of(schema['items'], 's')}"
    else:
        text = {"boolean": "true, false", "string": "text"}.get(types[0], types[0] + plural)
        text = " ".join([text, (" " if upto == "to" else " and ").join(limits)]).strip()
    return text + null


def readme() -> str:
    """README.md with new tables."""
    text = (HOME / "config" / "README.md").read_text("utf-8")
    for heading in dict.fromkeys(item.heading for item in items(Config)):
        text, n = re.subn(rf"(?m)(?<=^## {re.escape(heading)}\n\n)(?:\|.*\n)+", lambda _, of=heading: table(of), text)
        if n != 1:
            raise SystemExit(f"config/README.md needs one heading `## {heading}` with a table below it")
    return text


def computed() -> str:
    """scripts/lib/inputs/computed.py."""
    written = {name: section.written(name) for name, section in Config.inner().items()}
    parts = [f'{text}"  # {name}\n' for name, text in written.items() if text]
    return COMPUTED + '    r"' + '    r"|'.join(parts) + ")\n"


def generated() -> dict[Path, str]:
    """Every generated file, and its text."""
    return {
        HOME / "config" / "config.yaml": config(),
        HOME / "config" / "README.md": readme(),
        HOME / "config" / "schemas" / "config.schema.yaml": schema(),
        HOME / "scripts" / "lib" / "inputs" / "computed.py": computed(),
    }


if __name__ == "__main__":
    for path, text in generated().items():
        path.write_text(text, "utf-8")
