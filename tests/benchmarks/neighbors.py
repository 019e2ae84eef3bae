"""Time the exact search for neighbours on a GPU: by lists, and by comparing all pairs.

The points are simulated clusters in 40 dimensions, of which the first vary most, as principal components do.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.append(str(Path(__file__).parents[2] / "scripts"))

from lib.methods import knn
from lib.run import device as devices

DIMS, TYPES = 40, 20


def clusters(n: int, apart: float, xp: Any) -> Any:
    """`n` points, float32, of `TYPES` clusters whose centres vary `apart` times as much as a cluster does."""
    random, scale = xp.random.default_rng(0), 4 * xp.exp(-xp.arange(DIMS, dtype=np.float32) / 12)
    centres = apart * scale * random.standard_normal((TYPES, DIMS), dtype=np.float32)
    noise = random.standard_normal((n, DIMS), dtype=np.float32) * (0.6 + 0.5 * scale)
    return centres[random.integers(0, TYPES, n)] + noise


def main() -> None:
    """Print the seconds of both, and whether they find the same."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=900_000)
    parser.add_argument("--neighbors", type=int, default=90)
    args = parser.parse_args()
    device = devices.gpu()
    from lib.methods import knn_gpu

    for apart in (3, 0.5):
        X, found = clusters(args.points, apart, device.xp), []
        for few, how in ((0, "by lists"), (0, "by lists, again"), (args.points, "all pairs")):
            knn_gpu.FEW, started = few, time.perf_counter()
            found.append(knn.nearest_neighbors(X, args.neighbors, exact=True, device=device))
            device.xp.cuda.runtime.deviceSynchronize()
            print(f"clusters {apart} apart, {how}: {time.perf_counter() - started:.2f} s", flush=True)
        print("the same distances:", bool((found[0][1] == found[2][1]).all()), flush=True)


if __name__ == "__main__":
    main()
