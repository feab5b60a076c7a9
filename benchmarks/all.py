"""All benchmarks, one after the other: `make bench`."""

from benchmarks import (
    analysis,
    carriers,
    carving,
    erasing,
    evaluation,
    interventions,
    merging,
    startup,
    tuning,
    weights,
)

if __name__ == "__main__":
    for name, benchmark in (
        ("startup", startup.main),
        ("weights", lambda: weights.main([])),
        ("analysis", lambda: analysis.main([])),
        ("evaluation", lambda: evaluation.main([])),
        ("interventions", lambda: interventions.main([])),
        ("merging", lambda: merging.main([])),
        ("tuning", lambda: tuning.main([])),
        ("carving", lambda: carving.main([])),
        ("erasing", lambda: erasing.main([])),
        ("carriers", lambda: carriers.main([])),
    ):
        print(f"# {name}")
        benchmark()
