"""A measuring loop that designs as it goes: each round has so many seconds, and takes the best design there is when time is up.

    python examples/live_loop.py --rounds 5 --seconds 0.5

Here the instrument is played by numbers: each round it asks for a little more light in order T(1,0). In a laboratory the wanted
efficiencies come from the last measurement.
"""

import argparse
import time

import metascatter

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--rounds", type=int, default=5)
parser.add_argument("--seconds", type=float, default=0.5, help="time for a design, each round")
options = parser.parse_args()

with metascatter.load() as sampler:
    sampler.warmup(8)  # under a deadline candidates come in batches of eight
    print(f"{sampler.choice}, {options.seconds} s a round")
    for i in range(options.rounds):
        wanted = 0.05 + 0.03 * i
        target = metascatter.Target.from_dict({"height_nm": 300, "orders": {"T(1,0)": wanted, "T(-1,0)": 0.02}}, name=f"round {i + 1}")
        solved = 0

        def on_solve(done: int, total: int) -> None:
            global solved
            solved = done

        start = time.monotonic()
        (best,) = sampler.design(target, n=1000, top=1, seed=i, deadline_s=options.seconds, on_solve=on_solve)
        seconds = time.monotonic() - start
        print(
            f"{target.name}: T(1,0) wanted {wanted:.2f}, achieved {best.efficiency('T', 1, 0):.3f}, "
            f"misrouted power {best.score:.3f}, {solved} solved in {seconds:.2f} s"
        )
