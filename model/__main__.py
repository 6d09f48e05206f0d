"""What a method can do, for shell scripts:   eval "$(python -m model winclip)"   sets trains, zero_shot, few_shot and
batched to "yes" or to nothing."""

import sys

from model import METHODS, capabilities


def main(argv: list[str]) -> int:
    if len(argv) != 1 or argv[0] not in METHODS:
        print(f"error: '{' '.join(argv)}' is no method; known: {', '.join(METHODS)}", file=sys.stderr)
        return 2
    for name, can in capabilities(argv[0])._asdict().items():
        print(f"{name}={'yes' if can else ''}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
