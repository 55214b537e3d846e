"""The console script."""


def main() -> None:
    """Placeholder until the commands land in the next commits."""
