import re
from pathlib import Path

from czsl.evaluation import evaluate, read_scores

DOCUMENT = Path(__file__).parents[3] / "docs" / "evaluation.md"


def test_the_ten_lines_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = re.search(r"ten lines\n\n```python\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.S).group(1)
    names = {}
    exec(compile(code, str(DOCUMENT), "exec"), names)
    assert names["result"] == evaluate(**read_scores("mine.npz", "mine.json").inputs())
    # By hand: the seen image is right up to bias 0.1, the unseen ones from -0.1 and 0.1 on ("dry dog" does not compete); the two
    # flips at 0.1 are one slanted step, so the area is 1/2 + 1/4.
    assert {key: round(names["result"][key], 12) for key in ("auc", "seen", "unseen", "images")} == {
        "auc": 0.75, "seen": 1.0, "unseen": 1.0, "images": 3,
    }  # fmt: skip
