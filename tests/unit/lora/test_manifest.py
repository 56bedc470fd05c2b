"""adapter.toml: the thirty that travel with the program, and what is refused."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from mlx_router import resources
from mlx_router.errors import AdapterError
from mlx_router.lora.manifest import check_name, did_you_mean, parse_manifest, read_manifest, read_manifests
from mlx_router.lora.tomlfile import to_toml
from tests.adapter_files import write_manifest

BASE_DOMAINS = {
    "general",
    "quick",
    "summarize",
    "classification",
    "tldr",
    "normes-iec",
    "doc-technique-ce",
    "llm-ops",
    "llm-orch",
}


def test_thirty_adapters_and_the_base_share_the_labels() -> None:
    manifests = read_manifests(resources.adapters_dir())
    assert len(manifests) == 30
    claimed = [domain for item in manifests.values() for domain in item.domains]
    assert len(claimed) == len(set(claimed)) == 38
    assert not BASE_DOMAINS & set(claimed)
    stands_in = {domain for item in manifests.values() for domain in item.stands_in}
    assert stands_in < set(claimed)
    assert sum(item.specialist == "hardware" for item in manifests.values()) == 13
    assert manifests["mascarade-kicad"].domains == ("kicad", "kicad-dsl", "kicad-pcb")
    assert all(item.rank in (8, 16) and item.scale == 2.0 and item.licence for item in manifests.values())


def test_every_shipped_domain_is_a_label_of_the_corpus() -> None:
    labels = {path.stem for path in resources.corpus_dir().glob("*.jsonl") if not path.stem.startswith("_")}
    if len(labels) != 47:
        pytest.skip("the corpus is not complete")
    for item in read_manifests(resources.adapters_dir()).values():
        assert {*item.domains, *item.stands_in} <= labels


def test_a_domain_claimed_twice_is_an_error(tmp_path: Path) -> None:
    write_manifest(tmp_path, "one", ["emc", "power"])
    write_manifest(tmp_path, "two", ["emc"])
    with pytest.raises(AdapterError, match="domain emc is claimed by one and two"):
        read_manifests(tmp_path)


def test_a_later_folder_takes_the_place_of_an_earlier_one(tmp_path: Path) -> None:
    write_manifest(tmp_path / "a", "one", ["emc"])
    write_manifest(tmp_path / "b", "one", ["power"])
    assert read_manifests(tmp_path / "a", tmp_path / "b")["one"].domains == ("power",)


def test_every_problem_is_reported_at_once(tmp_path: Path) -> None:
    extra = 'ranks = 8\nrank = 0\nscale = "2"\nsource = 7\nevaluation = "good"\ntargets = ["a", "a"]\n'
    path = write_manifest(tmp_path, "one", ["emc"], extra)
    with pytest.raises(AdapterError) as caught:
        read_manifest(path)
    message = caught.value.message
    for part in ("ranks: no such key; did you mean 'rank'?", "rank is 0", "scale is '2'", "source is 7", "evaluation"):
        assert part in message
    assert "targets names something twice" in message


@pytest.mark.parametrize(
    ("extra", "part"),
    [
        ('status = "quarantined"\n', "without a reason"),
        ('status = "off"\n', "neither 'active' nor 'quarantined'"),
        ('sha256 = "abc"\n', "not 64 hex digits"),
        ('stands_in = ["emc"]\n', "emc is in domains and in stands_in"),
    ],
)
def test_values_that_cannot_be(tmp_path: Path, extra: str, part: str) -> None:
    with pytest.raises(AdapterError, match=part):
        read_manifest(write_manifest(tmp_path, "one", ["emc"], extra))


def test_missing_keys_bad_toml_and_a_foreign_folder(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="domains is missing"):
        parse_manifest({"name": "one", "title": "x", "specialist": "code"}, "here")
    broken = tmp_path / "one" / "adapter.toml"
    broken.parent.mkdir()
    broken.write_text("name = ")
    with pytest.raises(AdapterError, match=r"adapter\.toml"):
        read_manifest(broken)
    write_manifest(tmp_path, "one", ["emc"]).rename(tmp_path / "one" / "x")
    write_manifest(tmp_path, "two", ["emc"]).parent.rename(tmp_path / "three")
    with pytest.raises(AdapterError, match="its name is 'two', its folder 'three'"):
        read_manifests(tmp_path)


@pytest.mark.parametrize("name", ["", "../x", "A", "a/b", ".hidden", "base", "auto", "x" * 64, "é"])
def test_names_that_cannot_be_folders_and_models(name: str) -> None:
    with pytest.raises(AdapterError):
        check_name(name)


def test_near_names() -> None:
    known = ["mascarade-kicad", "mascarade-emc"]
    assert did_you_mean("kicad", known) == "; did you mean 'mascarade-kicad'?"
    assert did_you_mean("mascarade-kicda", known) == "; did you mean 'mascarade-kicad'?"
    assert did_you_mean("zebra", known) == ""


def test_a_manifest_survives_being_written(tmp_path: Path) -> None:
    extra = (
        'sha256 = "'
        + "a" * 64
        + '"\ntargets = ["q"]\nreason = "é \\"x\\" \\\\ \\n\\u007f"\n[evaluation]\nn = 3\nok = true\n'
    )
    manifest = read_manifest(write_manifest(tmp_path, "one", ["emc"], extra))
    assert parse_manifest(tomllib.loads(manifest.to_toml()), "again") == manifest


def test_toml_refuses_what_it_has_no_form_for() -> None:
    assert tomllib.loads(to_toml({"a": float("inf"), "b c": [1, 2.5], "t": {"x": "y"}})) == {
        "a": float("inf"),
        "b c": [1, 2.5],
        "t": {"x": "y"},
    }
    with pytest.raises(TypeError, match="NoneType"):
        to_toml({"a": None})
