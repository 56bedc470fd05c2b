"""mlx-router.toml as people write it, with the mistakes that they make."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import jsonschema
import pytest

from mlx_router.config import (
    Config,
    Known,
    SecurityConfig,
    SpecialistConfig,
    find_config,
    load_config,
    parse_config,
    read_api_keys,
)
from mlx_router.config.editor import json_schema
from mlx_router.config.environment import launched_rank
from mlx_router.config.known import known_names
from mlx_router.errors import ConfigError
from tests.gateway_rig import ROOT

KNOWN = Known(
    adapters=frozenset({"mascarade-kicad", "mascarade-spice", "mascarade-sql"}),
    domains=frozenset({"kicad-pcb", "spice", "sql", "chat-fr"}),
)


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("HOME", "PORTS", "API_KEYS", "ADMIN_TOKEN"):
        monkeypatch.delenv(f"MLX_ROUTER_{name}", raising=False)
    monkeypatch.chdir(tmp_path)


def load(tmp_path: Path, text: str, known: Known | None = KNOWN) -> Config:
    path = tmp_path / "mlx-router.toml"
    path.write_text(text, encoding="utf-8")
    return load_config(path, tmp_path, known=known)


def problems(tmp_path: Path, text: str, known: Known | None = KNOWN) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text, known)
    first, *rest = caught.value.message.splitlines()
    assert first.endswith(f"has problems ({len(rest)}):")
    return [line.strip() for line in rest]


def test_keys_are_read_before_they_are_relied_on(tmp_path: Path) -> None:
    open_to_all = "[gateway]\nhost = '0.0.0.0'\n[security]\napi_keys_file = 'keys.txt'\n"
    assert problems(tmp_path, open_to_all) == [
        f"line 4: security.api_keys_file cannot be read: {tmp_path / 'keys.txt'}: No such file or directory"
    ]
    (tmp_path / "keys.txt").write_text("# nobody yet\n\n")
    assert problems(tmp_path, open_to_all) == [
        "line 2: gateway.host = '0.0.0.0' is reachable from other machines: security.api_keys_file holds no key"
    ]
    (tmp_path / "keys.txt").write_bytes(b"caf\xe9\n")
    assert "line 4: security.api_keys_file cannot be read: " in problems(tmp_path, open_to_all)[0]
    (tmp_path / "keys.txt").write_text("# ours\n one \n")
    assert read_api_keys(load(tmp_path, open_to_all + "api_keys = ['zero']\n").security) == ("zero", "one")
    (tmp_path / "keys.txt").unlink()
    load(tmp_path, open_to_all, known=None)  # commands that serve nothing need no keys


def test_without_a_file_two_specialists_serve_the_demo_base(tmp_path: Path) -> None:
    config = load_config(None, tmp_path)
    assert [(item.name, item.port, item.base) for item in config.specialists] == [
        ("hardware", 9360, "demo"),
        ("code", 9361, "demo"),
    ]
    assert (config.gateway.port, config.path, config.home) == (9300, None, tmp_path)


def test_a_file_of_the_surface_reads_as_it_says(tmp_path: Path) -> None:
    config = load(
        tmp_path,
        """
[gateway]
host = "127.0.0.1"
port = 9300
[[specialist]]
name = "hardware"
port = 9360
base = "mlx-community/Qwen3.6-35B-A3B-4bit"
adapters = ["mascarade-kicad", "mascarade-spice"]
bank_bytes = "1.5 GiB"
request_timeout_s = 5
[[upstream]]
name = "eurollm"
url = "http://127.0.0.1:8500/v1"
model = "EuroLLM-22B-Instruct-2512"
[routes]
chat-fr = "eurollm"
[policy]
fallback = "base"
max_active = 4
min_score = { spice = 0.5 }
""",
    )
    hardware = config.specialists[0]
    assert (hardware.bank_bytes, hardware.request_timeout_s) == (1610612736, 5.0)
    assert isinstance(hardware.request_timeout_s, float)
    assert hardware.adapters == ("mascarade-kicad", "mascarade-spice")
    assert (config.routes, config.policy.min_score) == ({"chat-fr": "eurollm"}, {"spice": 0.5})
    assert config.notices == ()


def test_every_problem_comes_at_once_with_its_line(tmp_path: Path) -> None:
    found = problems(
        tmp_path,
        """[gatway]
port = 1
[gateway]
host = "0.0.0.0"
port = "x"
body_limit_bytes = "4 GiBs"
log_prompts = 1
[[specialist]]
name = "hardware"
port = 9360
slots = 0
adapters = [
  "a",
  "b", # ]
  "a",
]
pinned = ["c"]
[[specialist]]
name = "hardware"
port = 9360
bse = "x"
[routes]
kicad-pbc = "mascarade-kicda"
[policy.min_score]
spice = 1.5
[encoder]
runtime = "onx"
[specialists]
""",
    )
    assert found == [
        "line 1: unknown section 'gatway'; did you mean 'gateway'?",
        "line 4: gateway.host = '0.0.0.0' is reachable from other machines: set security.api_keys_file or"
        " security.api_keys first",
        "line 5: gateway.port must be a whole number, got the string 'x'",
        "line 6: gateway.body_limit_bytes must be a number of bytes or a size like '4 GiB', got '4 GiBs'",
        "line 7: gateway.log_prompts must be true or false, got 1",
        "line 11: specialist[1].slots must be at least 1, got 0",
        "line 15: specialist[1].adapters lists 'a' twice",
        "line 17: specialist 'hardware' pins 'c', which is not among its adapters",
        "line 19: specialist 'hardware': the name is already taken by a specialist",
        "line 20: specialist 'hardware': port 9360 is already taken by specialist 'hardware'",
        "line 21: unknown key specialist[2].bse; did you mean 'base'?",
        "line 23: routes.kicad-pbc = 'mascarade-kicda' is no adapter, upstream or 'base';"
        " did you mean 'mascarade-kicad'?",
        "line 23: routes: 'kicad-pbc' is no domain; did you mean 'kicad-pcb'?",
        "line 25: policy.min_score.spice must be at most 1, got 1.5",
        "line 27: encoder.runtime must be auto, mlx or onnx, got 'onx'; did you mean 'onnx'?",
        "line 28: unknown section 'specialists'; did you mean [[specialist]]?",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[[specialist]]\nport = 1", "line 1: specialist[1] needs name"),
        ("[[specialist]]\nname = 'a'", "line 1: specialist[1] needs port"),
        ("[[specialist]]\nname = 'base'\nport = 1", "line 2: specialist 'base': this name has a meaning of its own"),
        ("[[specialist]]\nname = '../x'\nport = 1", "line 2: specialist[1].name must be letters"),
        ("[specialist]\nname = 'a'", "line 1: specialist must be a list of tables: write [[specialist]]"),
        ("gateway = 3", "line 1: gateway must be a table, got 3"),
        ("[gateway]\nport = 70000", "line 2: gateway.port must be at most 65535"),
        ("[gateway]\nport = true", "line 2: gateway.port must be a whole number, got true or false"),
        ("[gateway]\nidle_timeout_s = 0", "line 2: gateway.idle_timeout_s must be over 0"),
        ("[[upstream]]\nname='a'\nmodel='m'\nurl='localhost:1'", "line 4: upstream[1].url must be an http"),
        (
            "[[upstream]]\nname='a'\nmodel='m'\nurl='http://h'\napi_key='k'",
            "line 5: upstream[1].api_key is not written",
        ),
        ("routes = 1", "line 1: routes must be a table"),
        ("[routes]\nspice = 1", "line 2: routes.spice must be a string"),
        ("adapter_roots = '/x'", "line 1: adapter_roots must be a list"),
        (
            "[policy]\nfallback = 'bas'",
            "line 2: policy.fallback = 'bas' is no adapter, upstream or 'base'; did you mean",
        ),
        (
            "[[specialist]]\nname = 'a'\nport = 1\nmax_context = 100",
            "line 1: specialist 'a': default_max_tokens 2048 is over max_context 100",
        ),
        (
            "[[specialist]]\nname = 'a'\nport = 1\nslots = 1\npinned = ['b', 'c']",
            "line 5: specialist 'a' pins 2 adapters, and has 1 slots",
        ),
        (
            "[[specialist]]\nname = 'a'\nport = 9300\nhost = '0.0.0.0'",
            "line 3: specialist 'a': port 9300 is already taken by gateway",
        ),
    ],
)
def test_one_mistake(tmp_path: Path, text: str, expected: str) -> None:
    found = problems(tmp_path, text)
    assert len(found) == 1, found
    assert found[0].startswith(expected)


def test_origins_are_those_that_browsers_send(tmp_path: Path) -> None:
    good = ["https://app.example", "http://localhost:3000", "http://[::1]:80", "tauri://localhost", "http://127.0.0.1"]
    assert load(tmp_path, f"[gateway]\ncors_origins = {good}\n").gateway.cors_origins == tuple(good)
    bad = ["*", "https://*.example", "app.example", "https://app.example/", "https://App.example", "null", "http://"]
    example = "https://app.example or http://localhost:3000"
    form = f"must be an origin as browsers send it, like {example}, without a path or '*'"
    lines = "".join(f"  {item!r},\n" for item in bad)
    assert problems(tmp_path, f"[gateway]\ncors_origins = [\n{lines}]\n") == [
        f"line {number + 2}: gateway.cors_origins[{number}] {form}, got {item!r}"
        for number, item in enumerate(bad, start=1)
    ]


def test_keys_come_from_the_file_too(tmp_path: Path) -> None:
    path = tmp_path / "keys.txt"
    path.write_text("# ours\n  first  \n\n# last: old\né\n", encoding="utf-8")
    security = SecurityConfig(api_keys=("zeroth",), api_keys_file=path)
    assert read_api_keys(security) == ("zeroth", "first", "é")
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"api_keys_file .*keys\.txt: it is not UTF-8 text"):
        read_api_keys(security)
    path.unlink()
    with pytest.raises(ConfigError, match=r"api_keys_file .*keys\.txt: No such file"):
        read_api_keys(security)


def test_a_broken_element_does_not_move_the_lines_of_the_next(tmp_path: Path) -> None:
    text = "[[specialist]]\nport = 1\n[[specialist]]\nname = 'b'\nport = 2\n[[specialist]]\nname = 'b'\nport = 3\n"
    assert problems(tmp_path, text) == [
        "line 1: specialist[1] needs name",
        "line 7: specialist 'b': the name is already taken by a specialist",
    ]


def test_broken_toml_says_where(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"mlx-router\.toml: .*line 2"):
        load(tmp_path, "[gateway]\nport = = 1\n")


def test_names_are_looked_up_only_where_they_are_known(tmp_path: Path) -> None:
    config = load(tmp_path, "[routes]\nzoology = 'my-adapter'\n", known=None)
    assert config.routes == {"zoology": "my-adapter"}


def test_an_adapter_that_nobody_knows_is_said_and_does_not_stop_anything(tmp_path: Path) -> None:
    text = "[[specialist]]\nname = 'a'\nport = 1\nadapters = ['mascarade-kicda']\n[routes]\nspice = 'mascarade-kicda'\n"
    config = load(tmp_path, text)
    assert config.notices == (
        "adapter 'mascarade-kicda' of specialist 'a' has no manifest and is not installed;"
        " did you mean 'mascarade-kicad'?",
    )


def test_ports_keys_and_tokens_come_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLX_ROUTER_PORTS", "gateway=1, code=2, nobody=3")
    monkeypatch.setenv("MLX_ROUTER_API_KEYS", "one, two")
    monkeypatch.setenv("MLX_ROUTER_ADMIN_TOKEN", "admin")
    config = load_config(None, tmp_path)
    assert (config.gateway.port, config.specialists[1].port) == (1, 2)
    assert (config.security.api_keys, config.security.admin_token) == (("one", "two"), "admin")
    assert "two" not in repr(config)
    assert load_config(None, tmp_path, ports={"gateway": 9}).gateway.port == 9
    assert load_config(None, tmp_path, ports={"cod": 9}).specialists == load_config(None, tmp_path).specialists
    monkeypatch.setenv("MLX_ROUTER_PORTS", "gateway")
    with pytest.raises(ConfigError, match="not of the form name=port"):
        load_config(None, tmp_path)


def test_ports_of_the_environment_can_clash_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLX_ROUTER_PORTS", "gateway=9360")
    with pytest.raises(ConfigError, match="port 9360 is already taken by gateway"):
        load_config(None, tmp_path)


def test_the_key_of_an_upstream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "[[upstream]]\nname = 'a'\nmodel = 'm'\nurl = 'http://h/v1'\napi_key_env = 'A_KEY'\n"
    monkeypatch.setenv("A_KEY", "secret")
    config = load(tmp_path, text)
    assert config.upstreams[0].api_key == "secret"
    assert "secret" not in repr(config)
    monkeypatch.delenv("A_KEY")
    assert load(tmp_path, text).notices == ("upstream 'a': $A_KEY is not set, requests go out without a key",)


def test_other_addresses_need_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "[gateway]\nhost = '0.0.0.0'\n"
    assert problems(tmp_path, text)
    monkeypatch.setenv("MLX_ROUTER_API_KEYS", "one")
    assert load(tmp_path, text).gateway.host == "0.0.0.0"


def test_relative_paths_lie_beside_the_file(tmp_path: Path) -> None:
    config = load(
        tmp_path,
        "adapter_roots = ['more']\n[security]\napi_keys_file = 'keys.txt'\n"
        "[[specialist]]\nname = 'a'\nport = 1\nbase = './base'\n[[specialist]]\nname = 'b'\nport = 2\nbase = 'o/m'\n",
        known=None,
    )
    assert config.adapter_roots == (tmp_path / "more",)
    assert config.security.api_keys_file == tmp_path / "keys.txt"
    assert [item.base for item in config.specialists] == [str(tmp_path / "base"), "o/m"]


def test_where_the_file_is_looked_for(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    assert find_config(None, home) is None
    (home / "mlx-router.toml").touch()
    assert find_config(None, home) == home / "mlx-router.toml"
    (tmp_path / "mlx-router.toml").touch()
    assert find_config(None, home) == tmp_path / "mlx-router.toml"
    with pytest.raises(ConfigError, match="does not exist"):
        find_config(tmp_path / "other.toml", home)


def test_who_constructs_by_hand_gets_the_defaults(tmp_path: Path) -> None:
    assert Config(home=tmp_path).specialists == ()
    assert SpecialistConfig(name="a", port=1).base == "demo"
    assert parse_config({}, home=tmp_path).gateway.port == 9300


@pytest.mark.parametrize("name", ["mlx-router.example.toml", "mlx-router.small-mac.example.toml"])
def test_the_examples_are_valid_for_us_and_for_editors(tmp_path: Path, name: str) -> None:
    config = load_config(ROOT / name, tmp_path, known=known_names(tmp_path))
    assert config.notices == ()
    raw = tomllib.loads((ROOT / name).read_text(encoding="utf-8"))
    jsonschema.validate(raw, json_schema())


def test_the_example_has_the_thirty_adapters_where_their_manifests_say(tmp_path: Path) -> None:
    config = load_config(ROOT / "mlx-router.example.toml", tmp_path)
    placed = {name: item.name for item in config.specialists for name in item.adapters}
    manifests = {
        path.parent.name: tomllib.loads(path.read_text(encoding="utf-8"))["specialist"]
        for path in (ROOT / "adapters").glob("*/adapter.toml")
    }
    assert placed == manifests
    assert [item.port for item in config.specialists] == [9360, 9361]


def test_the_schema_in_the_repository_is_current() -> None:
    written = json.loads((ROOT / "mlx-router.schema.json").read_text(encoding="utf-8"))
    assert written == json_schema(), "run python scripts/config_schema.py"


@pytest.mark.parametrize(
    ("raw", "ok"),
    [
        ({"gateway": {"port": 9300, "body_limit_bytes": "4 MiB"}}, True),
        ({"gateway": {"prot": 9300}}, False),
        ({"gateway": {"port": 70000}}, False),
        ({"specialist": [{"name": "a"}]}, False),
        ({"specialist": [{"name": "a", "port": 1, "slots": 0}]}, False),
        ({"upstream": [{"name": "a", "url": "http://h", "model": "m", "api_key": "k"}]}, False),
        ({"encoder": {"runtime": "cuda"}}, False),
        ({"policy": {"min_score": {"sql": 2}}}, False),
    ],
)
def test_the_schema_and_the_parser_agree(tmp_path: Path, raw: dict[str, object], ok: bool) -> None:
    validator = jsonschema.Draft202012Validator(json_schema())
    assert validator.is_valid(raw) is ok
    if ok:
        parse_config(raw, home=tmp_path)
    else:
        with pytest.raises(ConfigError):
            parse_config(raw, home=tmp_path)


def test_a_rank_is_known_only_under_a_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLX_RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert launched_rank() is None
    monkeypatch.setenv("MLX_RANK", "1")
    assert launched_rank() == 1
