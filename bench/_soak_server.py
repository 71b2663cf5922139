"""The server that ``bench/soak.py`` soaks: ``metascatter`` with an engine that raises where the seed ``FAULT`` is in the batch."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from runtime import batching, commands
from runtime.errors import BackendError
from runtime.serve import jobs

FAULT = 666
KEPT = 64  # finished jobs that are kept: their memory is full soon, and what grows behind that is a leak


def main() -> None:
    """The command line of ``metascatter``."""
    works = batching.denoise

    def denoise(network: Any, plan: Any, shape: Any, arrays: Any, free: Any, guidance: Any, seeds: Any, *rest: Any, **more: Any) -> Any:
        if FAULT in seeds:
            raise BackendError("the engine raises, as the soak wants it to")
        return works(network, plan, shape, arrays, free, guidance, seeds, *rest, **more)

    batching.denoise = denoise  # type: ignore[assignment]
    jobs._KEPT = KEPT
    commands.main()


if __name__ == "__main__":
    main()
