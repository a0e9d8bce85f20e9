"""``python -m advrepair``."""

from advrepair.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
