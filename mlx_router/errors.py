"""Every error that mlx-router raises on purpose.

    RouterError                      500  internal_error
    ├── ConfigError                  500  config_invalid
    ├── CorpusError                  400  corpus_invalid
    ├── EncoderError                 500  encoder_unavailable
    │   └── WeightsMismatch          500  weights_mismatch
    ├── ArtifactError                409  artifact_invalid
    │   ├── VersionNotFound          404  version_not_found
    │   └── VersionCorrupt           409  version_corrupt
    ├── AdapterError                 400  adapter_invalid
    │   ├── AdapterNotFound          404  adapter_not_found
    │   ├── AdapterExists            409  adapter_exists
    │   ├── AdapterIncompatible      409  adapter_incompatible
    │   ├── AdapterQuarantined       409  adapter_quarantined
    │   ├── AdapterForbidden         403  adapter_path_forbidden
    │   ├── AdapterTooLarge          507  adapter_too_large
    │   └── SlotsBusy                503  adapter_slots_busy
    ├── InvalidRequest               400  invalid_request
    │   ├── ContextLengthExceeded    400  context_length_exceeded
    │   ├── ModelNotFound            404  model_not_found
    │   └── BodyTooLarge             413  body_too_large
    ├── Unauthorized                 401  invalid_api_key
    ├── Forbidden                    403  forbidden
    ├── Overloaded                   429  overloaded
    ├── EngineUnavailable            503  engine_unavailable
    ├── RequestTimeout               504  request_timeout
    ├── UpstreamUnavailable          503  upstream_unavailable
    │   └── UpstreamTimeout          504  upstream_timeout
    └── SupervisorError              500  supervisor_error

`status` and `code` are what a client sees in OpenAI's error envelope; on the command line a
RouterError is one line on stderr and exit status 1.
"""

from __future__ import annotations

from collections.abc import Sequence


class RouterError(Exception):
    """Base of the tree. `param` names the request field or file at fault, where there is one."""

    status: int = 500
    code: str = "internal_error"

    def __init__(self, message: str, *, param: str | None = None, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s

    @classmethod
    def from_problems(cls, summary: str, problems: Sequence[str]) -> RouterError:
        """One error that names every problem at once, one a line."""
        return cls("\n".join([f"{summary} ({len(problems)}):", *(f"  {problem}" for problem in problems)]))


class ConfigError(RouterError):
    """mlx-router.toml, an option or an environment variable has a value that cannot be used."""

    code = "config_invalid"


class CorpusError(RouterError):
    """Corpus rows that cannot be trained on."""

    status, code = 400, "corpus_invalid"


class EncoderError(RouterError):
    """The sentence encoder cannot be loaded."""

    code = "encoder_unavailable"


class WeightsMismatch(EncoderError):
    """A weights file does not have the sha256 that was published for it."""

    code = "weights_mismatch"


class ArtifactError(RouterError):
    """A router version cannot be written, read or activated."""

    status, code = 409, "artifact_invalid"


class VersionNotFound(ArtifactError):
    """No router version has this name."""

    status, code = 404, "version_not_found"


class VersionCorrupt(ArtifactError):
    """A file of a router version is missing, truncated or changed."""

    code = "version_corrupt"


class AdapterError(RouterError):
    """An adapter directory or manifest is not usable."""

    status, code = 400, "adapter_invalid"


class AdapterNotFound(AdapterError):
    """No adapter has this name."""

    status, code = 404, "adapter_not_found"


class AdapterExists(AdapterError):
    """An adapter of this name is already loaded, and replacing it was not asked for."""

    status, code = 409, "adapter_exists"


class AdapterIncompatible(AdapterError):
    """Adapter tensors do not fit the resident base model."""

    status, code = 409, "adapter_incompatible"


class AdapterQuarantined(AdapterError):
    """The adapter failed its check and takes no traffic."""

    status, code = 409, "adapter_quarantined"


class AdapterForbidden(AdapterError):
    """The path lies outside the configured adapter roots."""

    status, code = 403, "adapter_path_forbidden"


class AdapterTooLarge(AdapterError):
    """Loading the adapter would exceed the bank's memory budget."""

    status, code = 507, "adapter_too_large"


class SlotsBusy(AdapterError):
    """Every slot of the bank is pinned or in use."""

    status, code = 503, "adapter_slots_busy"


class InvalidRequest(RouterError):
    """The request body or a header is not valid."""

    status, code = 400, "invalid_request"


class ContextLengthExceeded(InvalidRequest):
    """Prompt and requested tokens do not fit the context window."""

    code = "context_length_exceeded"


class ModelNotFound(InvalidRequest):
    """`model` names neither an alias, an adapter, a domain nor the base."""

    status, code = 404, "model_not_found"


class BodyTooLarge(InvalidRequest):
    """The request body is over the configured limit."""

    status, code = 413, "body_too_large"


class Unauthorized(RouterError):
    """No API key, or a wrong one."""

    status, code = 401, "invalid_api_key"


class Forbidden(RouterError):
    """The client may not use this endpoint."""

    status, code = 403, "forbidden"


class Overloaded(RouterError):
    """The queue is full; `retry_after_s` says when to come back."""

    status, code = 429, "overloaded"


class EngineUnavailable(RouterError):
    """The model thread is starting, stalled or dead."""

    status, code = 503, "engine_unavailable"


class RequestTimeout(RouterError):
    """A request was not finished within its time."""

    status, code = 504, "request_timeout"


class UpstreamUnavailable(RouterError):
    """No specialist or upstream can answer."""

    status, code = 503, "upstream_unavailable"


class UpstreamTimeout(UpstreamUnavailable):
    """An upstream did not answer within its time-out."""

    status, code = 504, "upstream_timeout"


class SupervisorError(RouterError):
    """A child cannot be started, or another supervisor holds this home."""

    code = "supervisor_error"
