"""Rewrite the golden configurations: `python -m tests.golden.refresh`."""

from pathlib import Path

from rlpost.config.compose import compose, to_yaml
from rlpost.config.experiments import experiments

FOLDER = Path(__file__).parent


def main() -> None:
    for path in FOLDER.glob("*.yaml"):
        path.unlink()
    for name in experiments():
        (FOLDER / f"{name}.yaml").write_text(to_yaml(compose([f"experiment={name}"])), encoding="utf-8")


if __name__ == "__main__":
    main()
