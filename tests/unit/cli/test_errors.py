"""What goes wrong is one line, with a next step, and exit status 1."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from mlx_router.artifacts.meta import Meta, label_map
from mlx_router.artifacts.store import RouterStore
from mlx_router.cli import main
from mlx_router.errors import CorpusError
from mlx_router.files import write_json
from mlx_router.training.evaluate import read_eval_set
from mlx_router.training.stream import chunks


def run(home: Path, *words: str) -> tuple[int, str]:
    result = CliRunner().invoke(main, ["--home", str(home), *words])
    return result.exit_code, result.output


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(28, "No space left on device", "/home/x"), "Error: /home/x: No space left on device; free some space"),
        (PermissionError(13, "Permission denied", "/home/x"), "Error: /home/x: Permission denied; look at who owns it"),
        (OSError(5, "Input/output error"), "Error: Input/output error"),
        (TimeoutError(), "Error: TimeoutError"),
    ],
)
def test_what_the_system_refuses_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: OSError, line: str
) -> None:
    def refuse(self: RouterStore) -> list[str]:
        raise error

    monkeypatch.setattr(RouterStore, "versions", refuse)
    code, output = run(tmp_path, "router", "list")
    assert code == 1
    assert output.startswith(line)
    assert len(output.strip().splitlines()) == 1


def test_a_home_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "home").touch()
    (tmp_path / "weights").mkdir()
    code, output = run(tmp_path / "home", "adapter", "add", "mine", str(tmp_path / "weights"), "--title", "Mine")
    assert code == 1
    assert "Not a directory" in output
    assert "Traceback" not in output


def test_a_damaged_meta_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "router" / "v0001"
    folder.mkdir(parents=True)
    meta = Meta(embedding_model="all-MiniLM-L6-v2", embedding_dim=384, hidden_dim=2, domains=("a", "b"))
    write_json(folder / "meta.json", meta.to_json())
    write_json(folder / "label_map.json", label_map(meta.domains))
    code, output = run(tmp_path, "router", "show", "v0001", "--json")
    assert code == 0
    assert json.loads(output)["domains"] == ["a", "b"]
    (folder / "meta.json").write_text('{"embedding_model": ')
    code, output = run(tmp_path, "router", "show", "v0001", "--json")
    assert code == 1
    assert "meta.json: not JSON" in output


@pytest.mark.parametrize("words", [["router", "train"], ["adapter", "train", "mascarade-sql"]])
def test_a_seed_below_zero_is_wrong_usage(tmp_path: Path, words: list[str]) -> None:
    code, output = run(tmp_path, *words, "--seed", "-1")
    assert code == 2
    assert "--seed" in output


def test_an_evaluation_needs_rows(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("\n\n")
    with pytest.raises(CorpusError, match=r"a\.jsonl: no rows"):
        read_eval_set(tmp_path / "a.jsonl", ("a",))


def test_bytes_that_are_no_text_are_named_with_their_line(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "one"}\n\n{"text": "caf\xe9"}\n')
    with pytest.raises(CorpusError, match=r"a\.jsonl:3: .*utf-8"):
        list(chunks(tmp_path / "a.jsonl", "text", 10))


def test_a_mistyped_command_has_a_hint(tmp_path: Path) -> None:
    code, output = run(tmp_path, "serv")
    assert code == 2
    assert "no command 'serv'; did you mean 'serve'?" in output


@pytest.mark.parametrize("words", [("corpus", "check"), ("corpus", "stats"), ("router", "train")])
def test_a_corpus_folder_that_is_not_there(tmp_path: Path, words: tuple[str, ...]) -> None:
    code, output = run(tmp_path, *words, "--data", str(tmp_path / "nope"))
    assert code == 1
    assert output == f"Error: there is no folder {tmp_path / 'nope'}\n"
