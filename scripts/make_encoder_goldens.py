"""Write the encoder's goldens with sentence-transformers: tests/parity/goldens/encoder.npz.

Run in an environment that has sentence-transformers; the project itself does not need it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "tests" / "parity" / "goldens" / "encoder.npz"
PER_LABEL = 4
ODD = [
    "",
    " ",
    "\n\t\n",
    "?",
    "😀",
    "🔥🔥🔥 ship it 🚀",
    "naïve café — « été », œuvre, Übergröße",
    "日本語の質問です",
    "Привет, мир",
    "مرحبا بالعالم",
    "if (x == NULL) { return -EINVAL; }",
    "SELECT * FROM t WHERE a = 'b' -- comment",
    "for i in $(seq 1 10); do echo $i; done",
    "(module R_0603 (layer F.Cu) (pad 1 smd rect (at -0.8 0)))",
    "R1 in out 10k\n.ac dec 10 1 1meg\n.end",
    "ISO 26262-6:2018 §8.4.5 ASIL-D",
    "µV/√Hz ≤ 3 Ω ± 5 %",
    "a" * 120,
    "http://example.com/a/b?c=d#e",
    "TL;DR",
    "word " * 250,
    "mot " * 120,
    "1 2 3 4 5 6 7 8 9 10",
    "{'json': [1, 2, {\"a\": null}]}",
]


def main() -> None:
    """Encode a spread of corpus rows and odd inputs."""
    from sentence_transformers import SentenceTransformer

    texts = list(ODD)
    for path in sorted((ROOT / "data" / "router").glob("*.jsonl")):
        rows = [json.loads(line)["text"] for line in path.read_text(encoding="utf-8").splitlines()]
        texts += rows[:: max(1, len(rows) // PER_LABEL)][:PER_LABEL]
    model = SentenceTransformer(sys.argv[1] if len(sys.argv) > 1 else "sentence-transformers/all-MiniLM-L6-v2")
    model.max_seq_length = 256
    fits = [text for text in texts if len(model.tokenizer(text)["input_ids"]) <= 256]
    vectors = model.encode(fits, normalize_embeddings=True, batch_size=16)
    OUT.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(OUT, texts=np.array(fits), vectors=vectors.astype(np.float32))
    print(f"{len(fits)} goldens in {OUT}")


if __name__ == "__main__":
    main()
