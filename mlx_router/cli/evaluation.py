"""What `router eval` computes and prints."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlx_router.head.router import Router

EXAMPLES = 3


def evaluate_file(router: Router, path: Path) -> dict[str, Any]:
    """Score one file: every figure, the worst confusions with examples, and where prompts really went."""
    from mlx_router.training import metrics
    from mlx_router.training.evaluate import evaluate, read_eval_set

    data = read_eval_set(path, router.labels)
    scores = router.classifier.classify(data.texts).probabilities
    truth = metrics.Truth.build(data.answers, data.langs, router.labels)
    figures = evaluate(scores, truth, router.labels)
    decisions = router.route_many(list(data.texts))
    hits = [decision.domain in answer for decision, answer in zip(decisions, data.answers, strict=True)]
    figures["routed_right"] = sum(hits) / max(len(hits), 1)
    figures["rejected"] = sum(decision.reason != "classified" for decision in decisions) / max(len(decisions), 1)
    figures["confusions"] = [
        {**item, "rows": len(item["rows"]), "examples": [data.texts[i] for i in item["rows"][:EXAMPLES]]}
        for item in metrics.confusions(scores, truth, router.labels)
    ]
    return {"router": router.version, "file": path.name, **figures}


def show_evaluation(figures: dict[str, Any]) -> None:
    """Tables for people."""
    from rich.console import Console
    from rich.markup import escape

    from mlx_router.cli.tables import figures_table

    console = Console(highlight=False)
    console.print(figures_table(f"{figures['file']}, {figures['router']}", {"all": figures, **figures["by_language"]}))
    console.print(
        f"after thresholds: {figures['routed_right']:.1%} reach a right domain, "
        f"{figures['rejected']:.1%} go to the fallback"
    )
    weak = sorted(figures["by_label"].items(), key=lambda item: item[1]["f1"])
    shown = [f"{label} {value['f1']:.2f}" for label, value in weak if value["support"]][:12]
    console.print("weakest labels (F1): " + ", ".join(shown))
    for item in figures["confusions"]:
        console.print(f"[bold]{item['label']}[/] taken for [bold]{item['predicted']}[/] ({item['rows']})")
        for example in item["examples"]:
            console.print("    " + escape(" ".join(example.split())[:140]), style="dim", soft_wrap=True)
