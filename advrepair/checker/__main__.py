"""``python -m advrepair.checker FOLDER [--json]``."""

import argparse
import json
import sys

from advrepair.checker import check

if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m advrepair.checker", description=__doc__)
    parser.add_argument("folder")
    parser.add_argument("--json", action="store_true", help="print the verdict as JSON")
    arguments = parser.parse_args()
    try:
        verdict = check(arguments.folder)
    except OSError as error:
        print(f"error: {error.filename}: {error.strerror}", file=sys.stderr)
        sys.exit(2)
    print(json.dumps(verdict.as_json, indent=1) if arguments.json else verdict.line)
    sys.exit(verdict.word != "VALID")
