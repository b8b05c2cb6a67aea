"""`examples/everything_server.py` over any transport: `python everything_entry.py stdio`, or `http` with options."""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path
from typing import Any

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("transport", choices=["stdio", "streamable-http"])
    parser.add_argument("--json-response", action="store_true")
    parser.add_argument("--stateless-http", action="store_true")
    options = vars(parser.parse_args())
    transport = options.pop("transport")
    sys.path.insert(0, str(EXAMPLES))
    everything: Any = importlib.import_module("everything_server")
    everything.make_server().run(transport, **({"port": 0, **options} if transport == "streamable-http" else {}))


if __name__ == "__main__":
    main()
