"""A design inside your own program: a thread works, the window stays alive, and a button may stop it."""

import logging
import threading
from pathlib import Path

import metascatter

logging.basicConfig(level=logging.INFO, format="%(message)s")  # the library prints nothing; it logs which engine answers and why
target = metascatter.Target.load(Path(__file__).parent / "targets" / "splitter.json")
cancel = threading.Event()  # set it from anywhere: the work ends at the next step and nothing is left running


def on_step(step: int, total: int, estimate: object) -> None:
    print(f"\rsampling {step}/{total}", end="", flush=True)


with metascatter.load(self_test=True) as sampler:  # any number of threads may share it
    designs = sampler.design(target, n=32, top=3, seed=1, cancel=cancel, on_step=on_step)
print()
for design in designs:
    print(f"misrouted power {design.score:.3f}", *("".join(".#"[pixel] for pixel in row) for row in design.pattern), sep="\n")
