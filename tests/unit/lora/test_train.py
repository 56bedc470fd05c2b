"""`adapter train` and `adapter check` on a base that is trained for a moment."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mlx_router.compute import mx  # first: it preloads the BLAS

# isort: split
from mlx_lm import load
from mlx_lm.tuner import trainer

from mlx_router.errors import AdapterError
from mlx_router.lora.batches import answer_loss, iterate_batches
from mlx_router.lora.check import Checker, Limits, Report
from mlx_router.lora.load import read_adapter
from mlx_router.lora.rows import encode_rows, read_rows
from mlx_router.lora.train import Progress, Trained, TrainFiles, TrainRecipe, fill_batches, train_adapter
from tests.tiny_base import FACTS, rows, save_tiny_base, write_rows

NEW = {
    "How do I route a pair?": "Press six now.",
    "How do I fill a zone?": "Press bee now.",
    "Where is the DRC?": "In the inspect menu, at the very end of a long list of other things.",
}
HELD_OUT = {"How can I route a pair?": "Press six now.", "How can I fill a zone?": "Press bee now."}
RECIPE = TrainRecipe(
    rank=4, iters=24, batch_size=2, learning_rate=0.02, warmup=2, max_tokens=64, eval_every=12, replay=1.0, seed=1
)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> TrainFiles:
    folder = tmp_path_factory.mktemp("rows")
    return TrainFiles(
        train=write_rows(folder / "train.jsonl", NEW),
        valid=write_rows(folder / "valid.jsonl", HELD_OUT),
        general=write_rows(folder / "general.jsonl", FACTS),
    )


@pytest.fixture(scope="module")
def seen() -> list[Progress]:
    return []


@pytest.fixture(scope="module")
def trained(base: Path, files: TrainFiles, seen: list[Progress], tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return train_adapter(
        base,
        files,
        tmp_path_factory.mktemp("out") / "a",
        RECIPE,
        name="test",
        on_progress=seen.append,
        base_name="tiny",
    )


@pytest.fixture(scope="module")
def checker(base: Path) -> Checker:
    general = [replace(row, expect=row.answer.split()[0]) for row in rows(FACTS)]
    return Checker(base, general=general)


def test_what_is_written_can_be_served(trained: Trained) -> None:
    adapter = read_adapter(trained.path)
    assert adapter.format == "mlx-lm"
    assert (adapter.rank, adapter.scale, adapter.digest) == (4, 2.0, trained.digest)
    assert len(adapter.modules) == 8  # two layers of four projections
    assert trained.rows == 6


def test_progress_is_told(trained: Trained, seen: list[Progress]) -> None:
    assert seen[-1].iteration == seen[-1].iterations == 24
    losses = [item.train_loss for item in seen if item.train_loss is not None]
    assert min(losses) < max(losses) / 10
    held_out = [item.valid_loss for item in seen if item.valid_loss is not None]
    assert held_out[-1] < held_out[0]


def test_the_same_input_gives_the_same_bytes(base: Path, files: TrainFiles, trained: Trained, tmp_path: Path) -> None:
    short = replace(RECIPE, iters=3)
    one, two = (train_adapter(base, files, tmp_path / name, short, name="test") for name in ("one", "two"))
    assert one.digest == two.digest
    first = replace(short, iters=1, batch_size=6, eval_every=0)  # one batch: only the first weights are drawn
    three, four = (
        train_adapter(base, files, tmp_path / f"seed{seed}", replace(first, seed=seed), name="test") for seed in (1, 2)
    )
    assert three.digest != four.digest


def test_provenance_names_every_input(trained: Trained, files: TrainFiles) -> None:
    record = trained.provenance
    assert json.loads(json.dumps(record)) == record
    assert record["base"]["name"] == "tiny"
    assert set(record["base"]["files"]) == {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert set(record["data"]) == {"train", "valid", "general"}
    assert record["recipe"]["seed"] == 1
    assert record["adapter"]["digest"] == trained.digest
    assert record["software"]["mlx-lm"] == "0.32.2"


def test_a_whole_number_of_batches_holds_every_row() -> None:
    """mlx-lm's own batches leave out what does not fill one: the longest rows, in every pass."""
    assert fill_batches([1, 2, 3, 4], 2) == [1, 2, 3, 4]
    filled = fill_batches([1, 2, 3, 4, 5], 4)
    assert (len(filled), set(filled)) == (8, {1, 2, 3, 4, 5})
    data = [([0] * size, 1) for size in (5, 3, 9, 4, 7)]
    sizes = [row.shape[0] for row, _, _ in iterate_batches(data, 2, 100)]
    assert sum(sizes) == 5


def test_batches_and_loss_are_those_of_mlx_lm(base: Path, files: TrainFiles) -> None:
    model, tokenizer = load(str(base))
    data = [(row.tokens, row.offset) for row in encode_rows(read_rows(files.train), tokenizer, 64)]
    loss, count = answer_loss(model, *next(iter(iterate_batches(data, 3, 100))))
    batch, lengths = next(iter(trainer.iterate_batches(data, 3, 100)))
    wanted, tokens = trainer.default_loss(model, batch, lengths - mx.array([0, 1]))  # it counts one token of padding
    assert int(count.item()) == int(tokens.item())
    assert float(loss.item()) == pytest.approx(float(wanted.item()), rel=1e-4)


def test_the_longest_row_is_learned(trained: Trained, checker: Checker) -> None:
    report = checker.check(trained.path, [row for row in rows(NEW) if "DRC" in row.question[0]], name="test")
    look = next(look for look in report.looks if look.name == "held-out perplexity")
    assert look.adapter is not None
    assert look.base is not None
    assert look.adapter < look.base / 4


def test_the_wired_limit_is_left_alone_and_the_trainer_restored(
    base: Path, files: TrainFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(*_: Any) -> int:
        raise AssertionError("set_wired_limit was called")

    monkeypatch.setattr(mx, "set_wired_limit", forbidden)
    monkeypatch.setattr(trainer, "maybe_set_recommended_wired_limit", forbidden)
    display = trainer.TrainUI
    train_adapter(base, files, tmp_path / "a", replace(RECIPE, iters=1), name="test")
    assert trainer.TrainUI is display
    assert trainer.maybe_set_recommended_wired_limit is forbidden


def test_revised_answers_take_the_place_of_the_old_ones(base: Path, files: TrainFiles, tmp_path: Path) -> None:
    revised = write_rows(tmp_path / "revised.jsonl", {"How do I route a pair?": "Press seven now."})
    other = replace(files, revised=revised, general=None)
    short = replace(RECIPE, iters=1, replay=0.0)
    assert train_adapter(base, other, tmp_path / "a", short, name="test").rows == 3
    plain = train_adapter(base, replace(files, general=None), tmp_path / "b", short, name="test")
    assert plain.digest != train_adapter(base, other, tmp_path / "c", short, name="test").digest


def test_recipes_and_rows_that_cannot_be(base: Path, files: TrainFiles, tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match=r"iters is 0, less than 1(.|\n)*learning_rate is 2"):
        TrainRecipe(iters=0, learning_rate=2.0)
    with pytest.raises(AdapterError, match="replay needs general rows"):
        train_adapter(base, replace(files, general=None), tmp_path / "a", RECIPE, name="test")
    with pytest.raises(AdapterError, match="no modules named nothing"):
        train_adapter(base, files, tmp_path / "a", replace(RECIPE, keys=("nothing",)), name="test")
    with pytest.raises(AdapterError, match="tokens before its answer, the limit is 8"):
        train_adapter(base, files, tmp_path / "a", replace(RECIPE, max_tokens=8), name="test")
    bad = tmp_path / "bad.jsonl"
    ends_with_user = '{"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]}'
    bad.write_text('{"messages": []}\n{"text": "x"}\nnot json\n' + ends_with_user + "\n")
    with pytest.raises(AdapterError, match=r"line 1: (.|\n)*line 2: (.|\n)*line 3: (.|\n)*line 4: the last message"):
        read_rows(bad)
    bad.write_text("\n")
    with pytest.raises(AdapterError, match="has no rows"):
        read_rows(bad)


def test_the_answer_begins_after_the_template(base: Path, checker: Checker) -> None:
    tokenizer = checker._tokenizer
    row = encode_rows(rows({"Who are you?": "A small model."}), tokenizer, 64)[0]
    assert tokenizer.decode(row.tokens[row.offset :]) == "A small model.<|im_end|>\n"


def look_of(report: Report, name: str) -> Any:
    return next(look for look in report.looks if look.name.startswith(name))


def test_a_good_adapter_passes(checker: Checker, trained: Trained, files: TrainFiles) -> None:
    report = checker.check(trained.path, rows(HELD_OUT), name="test")
    assert report.passed, report.reason
    assert report.digest == trained.digest
    held_out = look_of(report, "held-out")
    assert held_out.adapter < held_out.base / 2
    right = look_of(report, "general answers")
    assert (right.base, right.adapter) == (4.0, 4.0)
    assert json.loads(json.dumps(report.to_json()))["passed"] is True
    assert checker.check(trained.path, rows(HELD_OUT), name="test") == report


def damage(trained: Trained, folder: Path, change: Any) -> Path:
    folder.mkdir()
    tensors = load_file(trained.path / "adapters.safetensors")
    save_file({key: change(key, value.copy()) for key, value in tensors.items()}, folder / "adapters.safetensors")
    (folder / "adapter_config.json").write_bytes((trained.path / "adapter_config.json").read_bytes())
    return folder


def test_an_adapter_that_ruins_general_answers_fails(checker: Checker, trained: Trained, tmp_path: Path) -> None:
    noise = np.random.default_rng(0)

    def change(key: str, value: Any) -> Any:
        return noise.normal(size=value.shape).astype(np.float32) * 0.3 if key.endswith("lora_b") else value

    report = checker.check(damage(trained, tmp_path / "a", change), rows(HELD_OUT), name="test")
    assert not report.passed
    for name in ("general perplexity", "general answers"):
        assert not look_of(report, name).passed, report
    assert "of the base" in report.reason


def test_an_exploding_update_fails(checker: Checker, trained: Trained, tmp_path: Path) -> None:
    exploded = damage(trained, tmp_path / "a", lambda key, value: value * 100 if key.endswith("lora_b") else value)
    report = checker.check(exploded, [], name="test")
    assert not look_of(report, "largest update").passed
    assert "times its own size" in report.reason


def test_modules_that_were_never_trained_fail(checker: Checker, trained: Trained, tmp_path: Path) -> None:
    def change(key: str, value: Any) -> Any:
        return value * 0 if key.endswith("lora_b") and "q_proj" not in key else value

    report = checker.check(damage(trained, tmp_path / "a", change), [], name="test")
    assert look_of(report, "modules").adapter == 6.0
    assert not look_of(report, "modules").passed


def test_a_damaged_file_fails_with_its_digest(checker: Checker, trained: Trained, tmp_path: Path) -> None:
    def nan(key: str, value: Any) -> Any:
        value[0, 0] = np.nan
        return value

    report = checker.check(damage(trained, tmp_path / "a", nan), [], name="test")
    assert not report.passed
    assert "NaN" in report.reason
    assert report.digest.startswith("sha256:")


def test_links_that_nobody_asked_for_fail(checker: Checker, trained: Trained) -> None:
    looks = checker._answer_looks(["Paris it is."] * 4, ["Paris it is.", "See https://example.org", "x", "y"])
    assert [look.passed for look in looks] == [True, False]
    assert "links" in looks[1].note


def test_many_checks_use_one_slot(checker: Checker, trained: Trained, tmp_path: Path) -> None:
    other = damage(trained, tmp_path / "a", lambda key, value: value * 0.5)
    for path in (trained.path, other, trained.path, other):
        assert look_of(checker.check(path, [], name="test"), "largest update").passed


def test_a_larger_rank_gets_a_larger_bank(base: Path, files: TrainFiles, tmp_path: Path) -> None:
    checker = Checker(base, general=[])
    for rank in (4, 20, 4):
        made = train_adapter(base, files, tmp_path / "a", replace(RECIPE, rank=rank, iters=2), name="test")
        assert checker.check(made.path, [], name="test").passed


def test_a_check_leaves_the_base_as_it_was(checker: Checker, trained: Trained) -> None:
    before = checker.check(trained.path, rows(HELD_OUT), name="test")
    strict = Limits(general=0.0)
    checker.limits = strict
    try:
        assert not checker.check(trained.path, rows(HELD_OUT), name="test").passed
    finally:
        checker.limits = Limits()
    assert (
        look_of(checker.check(trained.path, rows(HELD_OUT), name="test"), "held-out").base
        == look_of(before, "held-out").base
    )
