"""mlx-router.toml and the environment, read into frozen dataclasses; the only reader of os.environ.

Search order: an explicit path, `./mlx-router.toml`, `$MLX_ROUTER_HOME/mlx-router.toml`, built-in defaults.

    schema       the dataclasses            bounds   what their values may be
    parse        TOML -> dataclasses        lines    where in the text a value stands
    check        what no single value shows
    environment  variables                  defaults, load, keys
"""

from mlx_router.config.check import Known
from mlx_router.config.environment import home_dir
from mlx_router.config.keys import read_api_keys
from mlx_router.config.load import CONFIG_NAME, find_config, load_config, parse_config
from mlx_router.config.schema import (
    DTYPES,
    RUNTIMES,
    Config,
    EncoderConfig,
    GatewayConfig,
    PolicyConfig,
    SecurityConfig,
    SpecialistConfig,
    SupervisorConfig,
    UpstreamConfig,
)

__all__ = [
    "CONFIG_NAME",
    "DTYPES",
    "RUNTIMES",
    "Config",
    "EncoderConfig",
    "GatewayConfig",
    "Known",
    "PolicyConfig",
    "SecurityConfig",
    "SpecialistConfig",
    "SupervisorConfig",
    "UpstreamConfig",
    "find_config",
    "home_dir",
    "load_config",
    "parse_config",
    "read_api_keys",
]
