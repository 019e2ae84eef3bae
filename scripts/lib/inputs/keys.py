"""The building blocks of the config's model (`lib.inputs.sections`): keys, types of values, sections."""

from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    WrapValidator,
    model_validator,
)

from lib.inputs.refusals import problems
from lib.store.categories import name_of

T = TypeVar("T")
HUGE = 2**63


def key(
    default: Any = ...,
    *,
    means: str = "",
    comment: str | None = None,
    elsewhere: str = "",
    kind: str | None = None,
    only: Sequence[str] = (),
    **limits: Any,
) -> Any:
    """A key of the config.

    Parameters
    ----------
    default
        Its value if the config does not name it.
    means
        One sentence, for the table of config/README.md, and for config.yaml unless `comment` is given.
    comment
        The comment in config.yaml instead of `means`. The choices of the key, if any, follow it there.
    elsewhere
        Its name in scanpy or the article.
    kind
        Its type in the table, if the annotation does not tell.
    only
        Flavours that read the key; empty: all do.
    limits
        Those of pydantic: ge, gt, le, lt, min_length, pattern.
    """
    extra = {"comment": means if comment is None else comment, "elsewhere": elsewhere}
    extra |= {"kind": kind} if kind else {}
    extra |= {"only": list(only)} if only else {}
    return Field(default, description=means, json_schema_extra=extra, **limits)


def _whole(value: Any) -> Any:
    value = int(value) if isinstance(value, float) and abs(value) < HUGE and value.is_integer() else value
    return _small(value)


def _small(value: Any) -> Any:
    if isinstance(value, int) and abs(value) >= HUGE:
        raise ValueError("the number is too large")
    return value


def _as_given(value: Any, check: Callable[[Any], float]) -> Any:
    check(_small(value))
    return value


def _named(value: Any) -> Any:
    number = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < HUGE
    return name_of(value) if number else value


def _distinct(values: list[T]) -> list[T]:
    if len(set(values)) < len(values):
        raise ValueError(f"{values!r} has non-unique elements")
    return values


Integer = Annotated[int, Field(strict=True), BeforeValidator(_whole)]  # 5, and 5.0, which becomes 5
Number = Annotated[float, Field(strict=True, allow_inf_nan=False), WrapValidator(_as_given)]  # 5 stays 5
Count = Annotated[Integer, Field(ge=1)]
Positive = Annotated[Number, Field(gt=0)]
Percent = Annotated[Number, Field(ge=0, le=100)]
Text = Annotated[str, Field(min_length=1)]
Name = Annotated[Text, BeforeValidator(_named, json_schema_input_type=Text | float)]  # of a group; 5 becomes "5"
Texts = Annotated[list[Text], Field(min_length=1)]
Column = Annotated[str, Field(json_schema_extra={"kind": "obs column"})]
Distinct = Annotated[list[T], AfterValidator(_distinct), Field(json_schema_extra={"uniqueItems": True})]


class Section(BaseModel):
    """A section of the config; a missing or null section gets its defaults."""

    model_config = ConfigDict(extra="forbid", strict=True, defer_build=True)
    heading: ClassVar[str] = ""  # the heading of its keys in config/README.md
    writes: ClassVar[str] = ""  # a regular expression for the obs columns that its stage writes

    @model_validator(mode="before")
    @classmethod
    def _with_sections(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        return given | {name: {} for name in cls.inner() if given.get(name) is None}

    @classmethod
    def checked(cls, given: Any) -> "tuple[Section | None, list[str]]":
        """The section with its defaults, or None; and the problems of the values given."""
        try:
            return cls.model_validate(given), []
        except ValidationError as error:
            return None, problems(error, cls)

    @classmethod
    def inner(cls) -> "dict[str, type[Section]]":
        """The sections within this one."""
        fields = {name: field.annotation for name, field in cls.model_fields.items()}
        return {name: kind for name, kind in fields.items() if isinstance(kind, type) and issubclass(kind, Section)}

    @classmethod
    def clusterings(cls) -> "dict[str, type[Clustering]]":
        """The sections within this one whose stages make clusterings."""
        return {name: kind for name, kind in cls.inner().items() if issubclass(kind, Clustering)}

    @classmethod
    def written(cls, name: str) -> str:
        """A regular expression of the obs columns that the stage of this section, called `name`, writes."""
        return cls.writes

    def contradictions(self) -> Iterator[str]:
        """The contradictions within the section."""
        for name in self.inner():
            yield from getattr(self, name).contradictions()


class Clustering(Section):
    """A section whose stage makes one clustering, `{section}_{value}`, for each value of the key `each`."""

    each: ClassVar[str]

    @classmethod
    def written(cls, name: str) -> str:
        """A regular expression of the names of its clusterings, for all possible values."""
        return rf"{name}_\d[\d.e+-]*"
