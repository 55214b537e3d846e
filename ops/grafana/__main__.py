"""Write the dashboards' JSON beside this file: `make dashboards`."""

from pathlib import Path

from ops.grafana import exported

FOLDER = Path(__file__).parent / "dashboards"


def main() -> None:
    """One file for each; files of dashboards that are no more go."""
    made = exported()
    for file in FOLDER.glob("*.json"):
        if file.name not in made:
            file.unlink()
    for name, text in made.items():
        (FOLDER / name).write_text(text)


if __name__ == "__main__":
    main()
