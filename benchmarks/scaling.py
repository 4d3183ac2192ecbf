"""What a search costs as it grows: images, depth, environments, memory, and a whole search.

Every part is kept in a file as soon as it is measured, and a part that is there is not measured
again, so an interrupted run is gone on with; `--again` measures anew.

| part | measures |
|---|---|
| images | an evaluation against the number of search images (ResNet-20) |
| depth | an evaluation against the depth: ResNet-20, 32, 44, 56, 110 |
| environments | evaluations per second in all: one thread, all threads, processes; a control |
| layers | an episode of `layer` mode with every step evaluated, against one evaluation |
| memory | peak memory of a search on ResNet-56, and growth over many steps |
| search | a whole search on ResNet-20, and the share of the agent's updates in it |

    python -m benchmarks.scaling --data-root cifar10 --weights-dir weights --markdown docs/speed.md

Random images and weights do for all of it but the accuracy of the search.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.independent import independent_rate
from benchmarks.inner_loop import evaluate_new
from benchmarks.memory import growth_per_step, measured_growth, peak_of_search
from benchmarks.scaling_tables import section
from benchmarks.searches import Source, random_source, timed_search
from benchmarks.subjects import find_weights, load_subject, uniform_plan
from benchmarks.tables import replace_section
from benchmarks.timing import interleaved_seconds
from compress_agents.environments import make_environment, make_vector_environment
from compress_agents.runs import read_json, write_json
from compress_env.data import load_splits
from compress_env.env import JointPruneQuantEnv
from compress_env.evaluation import FastEngine
from compress_env.latency.engines import available_cores

COMMAND = "python -m benchmarks.scaling"
SECTION = "scaling"
RESULTS = Path(__file__).parent / "results" / "scaling.json"

DEPTHS = (20, 32, 44, 56, 110)
IMAGE_COUNTS = (250, 500, 1000, 2000)
BITS = 6
SEARCHED, DEEP = "resnet20", "resnet56"

Rows = list[dict[str, Any]]


def measure_images(options: argparse.Namespace) -> Rows:
    """Evaluations of one plan on more and more images; nothing is known of the plan before."""
    subject = load_subject(SEARCHED, max(options.image_counts))
    engine = FastEngine(subject.graph, subject.calibration)
    plan = uniform_plan(subject, BITS, 0.7)
    runs = {
        str(count): partial(evaluate_new, engine, plan, subject.images[:count])
        for count in options.image_counts
    }
    seconds = interleaved_seconds(runs, options.repeats)
    return [{"images": int(name), "seconds": value} for name, value in seconds.items()]


def measure_depth(options: argparse.Namespace) -> Rows:
    """Evaluations of networks of one family, with the same bits and kept share."""
    runs: dict[str, Callable[[], object]] = {}
    layers = {}
    for depth in options.depths:
        subject = load_subject(f"resnet{depth}", options.images)
        engine = FastEngine(subject.graph, subject.calibration)
        runs[subject.name] = partial(
            evaluate_new, engine, uniform_plan(subject, BITS, 0.7), subject.images
        )
        layers[subject.name] = len(subject.graph.layers)
    seconds = interleaved_seconds(runs, options.repeats)
    return [
        {"network": name, "layers": layers[name], "images": options.images, "seconds": value}
        for name, value in seconds.items()
    ]


def measure_environments(options: argparse.Namespace) -> Rows:
    """Evaluations per second in all, for environments in processes that divide the cores."""
    first = make_environment(options.source.config(SEARCHED, options.images, 1, 1))
    cores = available_cores()
    rows = []
    for count, threads in dict.fromkeys([(1, 1), (1, cores), (cores, 1)]):
        torch.set_num_threads(threads)
        environments = make_vector_environment(first, count)
        try:
            steps = max(2, options.steps // count)
            shape = (steps + 1, count, *(environments.action_space.shape or ()))
            generator = np.random.default_rng([0, count, threads])
            actions = generator.normal(0, 0.1, shape).astype(np.float32)
            environments.reset()
            environments.step(actions[0])
            start = time.perf_counter()
            for several in actions[1:]:
                environments.step(several)
            seconds = time.perf_counter() - start
        finally:
            environments.close()
        rows.append(
            {
                "environments": count,
                "threads_each": threads,
                "images": options.images,
                "evaluations_per_second": steps * count / seconds,
            }
        )
    torch.set_num_threads(cores)
    for count in dict.fromkeys([1, cores]):
        rate = independent_rate(SEARCHED, options.images, BITS, count, options.seconds)
        rows.append(
            {
                "independent_processes": count,
                "threads_each": 1,
                "images": options.images,
                "evaluations_per_second": rate,
            }
        )
    return rows


def measure_layers(options: argparse.Namespace) -> Rows:
    """Episodes that evaluate every layer's step, beside single evaluations; all plans are new."""
    config = options.source.config(SEARCHED, options.images, 1, 1)
    modes = {
        "episode": make_environment(config, {"step_mode": "layer", "evaluate_every_step": True}),
        "evaluation": make_environment(config, {"step_mode": "network"}),
    }
    generator = np.random.default_rng(0)

    def play(env: JointPruneQuantEnv) -> None:
        env.reset()
        done = False
        while not done:
            shape = env.action_space.shape
            done = env.step(generator.normal(0, 0.1, shape).astype(np.float32))[2]

    runs = {name: partial(play, env) for name, env in modes.items()}
    seconds = interleaved_seconds(runs, options.repeats)
    layers = len(modes["episode"].task.graph.layers)
    return [{"network": SEARCHED, "images": options.images, "steps": layers, **seconds}]


def measure_memory(options: argparse.Namespace) -> Rows:
    """Peak memory of a process that searches, and growth of one that takes many steps."""
    config = options.source.config(DEEP, options.images, options.memory_evaluations, 1)
    peak = peak_of_search(config)
    points = measured_growth(options.growth_steps)
    return [
        {
            "network": DEEP,
            "images": options.images,
            "evaluations": options.memory_evaluations,
            "peak_bytes": peak,
            "growth_points": [[point.steps, point.resident_bytes] for point in points],
            "growth_bytes_per_step": growth_per_step(points),
        }
    ]


def measure_search(options: argparse.Namespace) -> Rows:
    """Whole searches by the defaults of the command line, with one environment and one per core."""
    rows = []
    for count in dict.fromkeys([1, available_cores()]):
        torch.set_num_threads(available_cores())
        config = options.source.config(SEARCHED, options.images, options.evaluations, count)
        with tempfile.TemporaryDirectory() as folder:
            found = timed_search(config, Path(folder) / "run")
        rows.append(
            {
                "network": SEARCHED,
                "images": options.images,
                "environments": count,
                "evaluations": found.evaluations,
                "seconds": found.seconds,
                "update_seconds": found.update_seconds,
                "test_accuracy": found.test_accuracy if options.data_root else None,
            }
        )
    torch.set_num_threads(available_cores())
    return rows


PARTS: dict[str, Callable[[argparse.Namespace], Rows]] = {
    "images": measure_images,
    "depth": measure_depth,
    "environments": measure_environments,
    "layers": measure_layers,
    "memory": measure_memory,
    "search": measure_search,
}


def positive_number(text: str) -> int:
    """An option that is a whole number from 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return value


def _arguments(given: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=COMMAND, description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add = partial(parser.add_argument, type=positive_number, metavar="N")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART")
    parser.add_argument("--again", action="store_true", help="measure what is there anew")
    add("--images", default=1000, help="search images (default 1000)")
    add("--image-counts", nargs="+", default=IMAGE_COUNTS, help="default 250 500 1000 2000")
    add("--depths", nargs="+", default=DEPTHS, help="default 20 32 44 56 110")
    add("--repeats", default=5, help="rounds of images and depth (default 5)")
    add("--steps", default=60, help="evaluations per row of environments (default 60)")
    add("--memory-evaluations", default=60, help="of the search for its memory (default 60)")
    add("--growth-steps", default=100_000, help="default 100000")
    add("--evaluations", default=500, help="of the whole search (default 500)")
    add("--seconds", default=15, help="of each control of --parts environments (default 15)")
    parser.add_argument("--data-root", metavar="DIR", help="real CIFAR-10 as image folders")
    parser.add_argument("--weights-dir", metavar="DIR", help="the published checkpoints")
    parser.add_argument("--json", type=Path, default=RESULTS, metavar="FILE", help="the results")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="page for the tables")
    options = parser.parse_args(given)
    if (options.data_root is None) != (options.weights_dir is None):
        parser.error("--data-root and --weights-dir belong together")
    if options.markdown and not options.markdown.is_file():
        parser.error(f"--markdown must name an existing page, not {options.markdown}")
    unknown = sorted(set(options.depths) - set(DEPTHS))
    if unknown:
        parser.error(f"--depths must be of {', '.join(map(str, DEPTHS))}, not {unknown[0]}")
    for name, least in (("image_counts", 2), ("depths", 2), ("growth_steps", 10)):
        value = getattr(options, name)
        if (value if isinstance(value, int) else len(set(value))) < least:
            parser.error(f"--{name.replace('_', '-')} must have at least {least}")
    try:
        if options.data_root is not None:
            load_splits("imagefolder", options.data_root)
            for network in (SEARCHED, DEEP):
                find_weights(options.weights_dir, network)
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.results = read_json(options.json) if options.json.exists() else {}
    except (ValueError, OSError) as error:
        parser.error(str(error))
    return options


def main(given: list[str] | None = None) -> None:
    """Measure what is missing, and print the tables."""
    options = _arguments(given)
    results = options.results
    torch.set_num_threads(available_cores())
    with tempfile.TemporaryDirectory() as folder:
        missing = [part for part in options.parts if options.again or part not in results]
        if options.data_root:
            options.source = Source(options.data_root, options.weights_dir)
        elif {"environments", "layers", "memory", "search"} & set(missing):
            options.source = random_source(Path(folder), (SEARCHED, DEEP))
        for part in missing:
            print(f"measuring {part} ...", flush=True)
            results[part] = PARTS[part](options)
            write_json(options.json, results)
            print(json.dumps(results[part]), flush=True)
    text = section(results, COMMAND)
    print(f"\n{text}")
    if options.markdown:
        replace_section(options.markdown, SECTION, text)


if __name__ == "__main__":
    main()
