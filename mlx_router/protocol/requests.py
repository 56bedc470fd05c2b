"""Request bodies of OpenAI's chat and completions API, with the extensions that vLLM and mlx-lm clients send.

Bodies are parsed from bytes in one pass, strictly: `"1"` is not a number, NaN and half surrogate pairs are
refused. Unknown fields are ignored, as OpenAI's own servers do.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from mlx_router.errors import InvalidRequest

MAX_CHOICES = 16  # n
MAX_STOPS = 16
MAX_TOP_LOGPROBS = 20
MAX_PROMPTS = 64  # of one /v1/completions body
MAX_SEED = 2**63 - 1

Unit = Annotated[float, Field(ge=0.0, le=1.0)]
Penalty = Annotated[float, Field(ge=-2.0, le=2.0)]


class Body(BaseModel):
    """Base of every request body."""

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)


B = TypeVar("B", bound=Body)


class ContentPart(BaseModel):
    """One part of a message: text here; other kinds keep their fields for whoever understands them."""

    model_config = ConfigDict(strict=True, extra="allow")

    type: str
    text: str | None = None


class Message(BaseModel):
    """One turn of a conversation; fields that a chat template may read (`tool_calls`, `name`, …) are kept."""

    model_config = ConfigDict(strict=True, extra="allow")

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[ContentPart] | None = None

    @model_validator(mode="after")
    def _content_where_needed(self) -> Message:
        if self.content is None and self.role not in ("assistant", "function"):
            raise ValueError(f"a message of role {self.role!r} needs content")
        return self

    def text(self) -> str:
        """The text parts, joined; other parts are left out."""
        if self.content is None:
            return ""
        if isinstance(self.content, str):
            return self.content
        return "".join(part.text or "" for part in self.content if part.type in ("text", "input_text"))

    def other_parts(self) -> list[str]:
        """The kinds of the parts that are not text, e.g. ["image_url"]."""
        if not isinstance(self.content, list):
            return []
        return [part.type for part in self.content if part.type not in ("text", "input_text", "refusal")]


class FunctionSpec(BaseModel):
    """The `function` of a tool: a name and a JSON Schema."""

    model_config = ConfigDict(strict=True, extra="allow")

    name: Annotated[str, Field(min_length=1, max_length=128)]
    description: str | None = None
    parameters: dict[str, Any] | None = None


class Tool(BaseModel):
    """A tool that the model may call."""

    model_config = ConfigDict(strict=True, extra="allow")

    type: Literal["function"]
    function: FunctionSpec


class NamedFunction(BaseModel):
    """`{"name": …}` inside a tool choice."""

    model_config = ConfigDict(strict=True, extra="ignore")

    name: str


class NamedTool(BaseModel):
    """`tool_choice` that names one function."""

    model_config = ConfigDict(strict=True, extra="ignore")

    type: Literal["function"]
    function: NamedFunction


class StreamOptions(BaseModel):
    """`stream_options`."""

    model_config = ConfigDict(strict=True, extra="ignore")

    include_usage: bool | None = None


class ResponseFormat(BaseModel):
    """`response_format`; only text can be promised."""

    model_config = ConfigDict(strict=True, extra="ignore")

    type: str


class SamplingBody(Body):
    """What chat and completions share. None means: the model's own default."""

    model: Annotated[str, Field(min_length=1, max_length=256)]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    max_tokens: Annotated[int, Field(ge=1, le=2**31)] | None = None
    temperature: Annotated[float, Field(ge=0.0, le=2.0)] | None = None
    top_p: Unit | None = None
    top_k: Annotated[int, Field(ge=-1, le=2**31)] | None = None  # -1 and 0: off
    min_p: Unit | None = None
    repetition_penalty: Annotated[float, Field(gt=0.0, le=10.0)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    seed: Annotated[int, Field(ge=-MAX_SEED - 1, le=MAX_SEED)] | None = None
    stop: str | list[str] | None = None
    logit_bias: dict[str, Annotated[float, Field(ge=-100.0, le=100.0)]] | None = None  # token id -> bias
    user: str | None = None

    @field_validator("stop")
    @classmethod
    def _stops(cls, value: str | list[str] | None) -> str | list[str] | None:
        stops = [value] if isinstance(value, str) else value or []
        if len(stops) > MAX_STOPS:
            raise ValueError(f"at most {MAX_STOPS} stop strings, got {len(stops)}")
        if any(not stop or len(stop) > 1024 for stop in stops):
            raise ValueError("a stop string has 1 to 1024 characters")
        return value

    @field_validator("logit_bias")
    @classmethod
    def _token_ids(cls, value: dict[str, float] | None) -> dict[str, float] | None:
        bad = [key for key in value or {} if not (key.isascii() and key.isdigit() and len(key) <= 9)]
        if bad:
            raise ValueError(f"keys must be token ids, got {', '.join(map(repr, bad[:5]))}")
        if value and len(value) > 1024:
            raise ValueError(f"at most 1024 entries, got {len(value)}")
        return value

    @property
    def stops(self) -> tuple[str, ...]:
        """Stop strings as a tuple, empty where there are none."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with a usage chunk."""
        return bool(self.stream_options and self.stream_options.include_usage)


class ChatRequest(SamplingBody):
    """Body of POST /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1, le=2**31)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    tools: list[Tool] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _consistent(self) -> ChatRequest:
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs: true")
        if isinstance(self.tool_choice, NamedTool):
            wanted = self.tool_choice.function.name
            if wanted not in [tool.function.name for tool in self.tools or []]:
                raise ValueError(f"tool_choice names {wanted!r}, which tools does not have")
        return self

    @property
    def token_limit(self) -> int | None:
        """`max_completion_tokens`, else the older `max_tokens`."""
        return self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens


class CompletionRequest(SamplingBody):
    """Body of POST /v1/completions."""

    prompt: str | list[str] | list[int] | list[list[int]]
    logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    echo: bool | None = None
    best_of: int | None = None
    suffix: str | None = None

    @model_validator(mode="after")
    def _supported(self) -> CompletionRequest:
        if self.suffix:
            raise ValueError("suffix is not supported")
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise ValueError("best_of must equal n")
        if self.echo and self.logprobs is not None:
            raise ValueError("echo with logprobs is not supported")
        count = len(self.prompts)
        if not 1 <= count <= MAX_PROMPTS:
            raise ValueError(f"prompt has {count} entries, 1 to {MAX_PROMPTS} are possible")
        if any(len(prompt) == 0 for prompt in self.prompts):
            raise ValueError("prompt is empty")
        return self

    @property
    def prompts(self) -> list[str | list[int]]:
        """One entry a prompt: a text or token ids."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if self.prompt and isinstance(self.prompt[0], int):
            return [self.prompt]
        return cast("list[str | list[int]]", self.prompt)


class EmbeddingRequest(Body):
    """Body of POST /v1/embeddings."""

    model: Annotated[str, Field(min_length=1, max_length=256)]
    input: str | list[str]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = None
    user: str | None = None

    @property
    def texts(self) -> list[str]:
        """One text an entry."""
        return [self.input] if isinstance(self.input, str) else self.input


class LoadAdapterRequest(Body):
    """Body of POST /v1/load_lora_adapter."""

    lora_name: Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    lora_path: Annotated[str, Field(min_length=1, max_length=4096)] | None = None  # None: as installed
    load_inplace: bool = False  # replace the weights of a loaded adapter


class UnloadAdapterRequest(Body):
    """Body of POST /v1/unload_lora_adapter."""

    lora_name: Annotated[str, Field(min_length=1, max_length=128)]


class PinAdapterRequest(Body):
    """Body of POST /v1/pin_lora_adapter."""

    lora_name: Annotated[str, Field(min_length=1, max_length=128)]
    pinned: bool


def parse_body(model: type[B], raw: bytes) -> B:
    """Validate a body; InvalidRequest names every problem, and the first field at fault in `param`."""
    try:
        return model.model_validate_json(raw)
    except ValidationError as error:
        raise invalid_body(error) from None


def invalid_body(error: ValidationError) -> InvalidRequest:
    """OpenAI's way to say what pydantic found: the field in `param`, every problem in the message."""
    problems = error.errors(include_url=False, include_context=False, include_input=False)
    if problems and problems[0]["type"] == "json_invalid":
        reason = problems[0]["msg"].removeprefix("Invalid JSON: ")
        return InvalidRequest(f"the body is not valid JSON: {reason}")
    lines: list[str] = []
    for problem in problems[:20]:
        where = field_path(problem["loc"])
        text = problem["msg"].removeprefix("Value error, ")
        lines.append(f"{where}: {text}" if where else text)
    lines = list(dict.fromkeys(lines))
    param = field_path(problems[0]["loc"]) if problems else ""
    return InvalidRequest("; ".join(lines), param=param or None)


def field_path(location: tuple[int | str, ...]) -> str:
    """("messages", 0, "content", "str") -> "messages[0].content", without the names of union members."""
    path = ""
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        elif part.isidentifier() and part not in ("str", "int", "float", "bool"):
            if part[0].isupper():  # a model's name, a member of a union
                continue
            path += f".{part}" if path else part
    return path
