"""What one of several processes does in test_evaluation; prints a line of JSON."""

import json

from training.fakes import FakeDataset, random_network

from fassd.distributed import is_main, process_group, rank, world_size
from fassd.training import evaluate


def report():
    seen = []
    evaluation = evaluate(
        random_network(),
        FakeDataset(broken=[1, 2]),
        on_sample=lambda index, *_: seen.append(index),
        on_bad=lambda _: None,
    )
    try:
        evaluate(random_network(), FakeDataset(broken=[1]))
    except Exception as caught:
        error = f"{type(caught).__name__}: {caught}"
    return {
        "rank": [rank(), world_size(), is_main()],
        "matrix": evaluation.matrix.tolist(),
        "miou": evaluation.scores.miou,
        "count": evaluation.count,
        "skipped": evaluation.skipped,
        "seen": seen,
        "one picture": evaluate(random_network(), FakeDataset(1)).matrix.tolist(),
        "error": error,
    }


if __name__ == "__main__":
    with process_group("cpu"):
        print(json.dumps(report()))
