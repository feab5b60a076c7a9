"""All benchmarks, one after the other: `make bench`."""

from benchmarks import analysis, startup, tuning, weights

if __name__ == "__main__":
    for name, benchmark in (
        ("startup", startup.main),
        ("weights", lambda: weights.main([])),
        ("analysis", lambda: analysis.main([])),
        ("tuning", lambda: tuning.main([])),
    ):
        print(f"# {name}")
        benchmark()
