"""The order of imports (design.md, section 2): noun by noun from checkpoints to the page, nothing flows back."""

import ast
import builtins
import dis
import subprocess
import sys
from functools import cache
from pathlib import Path
from types import CodeType

import pytest

import midblock

SOURCE = Path(midblock.__file__).parent
FILES = sorted(SOURCE.rglob("*.py"))

# A room imports rooms on earlier lines only: never its own line's other room, never a later line.
ORDER = (
    ("base",),
    ("checkpoints", "data"),
    ("trace",),
    ("runs",),
    ("metrics", "evaluation"),
    ("analysis",),
    ("interventions",),
    ("tuning",),
    ("carriers",),
    ("studies",),
    ("report",),
    ("cli",),
)
LINE = {room: line for line, rooms in enumerate(ORDER) for room in rooms}

# Inside a room a folder imports folders on earlier places of its line; "." is what lies in the room itself.
INSIDE = {
    "evaluation": ("isolation", ".", "evaluate"),
    "analysis": (".", "gate"),
    "interventions": (".", "probe", "swap", "merge", "steer"),
    "tuning": (".", "anchor", "carve", "place", "prefix", "loop", "flow", "export"),
    "carriers": (".", "carve", "erase"),
    "studies": (".", "recommend", "study", "doctor"),
    "report": ("read", "page", "tune", "sections", "figures", "."),
}

# What the package's face may load at once: strings, and nothing of midblock besides.
LIGHT = ("runs/__init__.py", "runs/verbs.py")

# Imports inside functions, by file and package, each with its reason. Everything else stands at the top of its file.
HELP = "`midblock --help` answers at once"
WITHOUT_MODELS = "weights are compared and tables read without it"
EXTRA = "an optional extra; where it is missing the error says what to install"
TRAINER = "the Trainer alone takes seconds to import"
STATISTICS = "scipy.stats takes a second to import, and most runs make no test"
HIDDEN = {
    ("base/hub.py", "huggingface_hub"): "only for hub names",
    ("base/layer_table.py", "pandas"): HELP,
    ("base/layer_table.py", "pyarrow"): HELP,
    ("base/frame_files.py", "pandas"): HELP,
    ("base/progress.py", "rich"): "only where a person watches",
    ("checkpoints/cache.py", "filelock"): "only where something is put into the cache",
    ("checkpoints/config.py", "huggingface_hub"): WITHOUT_MODELS,
    ("checkpoints/config.py", "transformers"): WITHOUT_MODELS,
    ("checkpoints/fitting.py", "transformers"): HELP,
    ("checkpoints/gguf.py", "gguf"): EXTRA,
    ("checkpoints/gguf.py", "torch"): "only where a GGUF file is converted",
    ("checkpoints/gguf.py", "transformers"): "only where a GGUF file is converted",
    ("checkpoints/gguf_whole.py", "transformers"): "only where a GGUF file is converted",
    ("checkpoints/hub.py", "huggingface_hub"): "only for hub names",
    ("checkpoints/adapter_notes.py", "peft"): EXTRA,
    ("checkpoints/merged_by_peft.py", "peft"): EXTRA,
    ("checkpoints/models.py", "transformers"): WITHOUT_MODELS,
    ("checkpoints/quantised.py", "transformers"): HELP,
    ("checkpoints/skeleton.py", "transformers"): HELP,
    ("checkpoints/stored_names.py", "transformers"): HELP,
    ("data/parquet.py", "pyarrow"): "only for Parquet",
    ("data/hub.py", "datasets"): EXTRA,
    ("data/hub.py", "huggingface_hub"): "only for hub names",
    ("data/procedural.py", "reasoning_gym"): EXTRA,
    ("data/sandbox_process.py", "resource"): "not on Windows",
    ("carriers/carve/table.py", "pandas"): HELP,
    ("evaluation/evaluate/result.py", "pandas"): HELP,
    ("evaluation/exact_match.py", "scipy"): STATISTICS,
    ("evaluation/lm_eval_tasks.py", "datasets"): EXTRA,
    ("evaluation/lm_eval_tasks.py", "lm_eval"): EXTRA,
    ("metrics/correlation.py", "scipy"): STATISTICS,
    ("runs/surroundings.py", "resource"): "not on Windows",
    ("cli/study.py", "midblock"): "a finished study is told again at once",
    ("studies/doctor/pair_checks.py", "peft"): "tried, to see whether it can be imported",
    ("studies/doctor/speed.py", "transformers"): HELP,
    ("studies/study/table.py", "pandas"): HELP,
    ("studies/study/table.py", "pyarrow"): HELP,
    ("report/figures/analysis.py", "matplotlib"): "only where figures are drawn",
    ("report/figures/paper.py", "matplotlib"): "only where figures are drawn",
    ("report/figures/swap.py", "matplotlib"): "only where figures are drawn",
    ("studies/recommend/change_points.py", "ruptures"): EXTRA,
    ("studies/recommend/pilot.py", "midblock"): "the module that imports TRL, an optional extra that takes seconds",
    ("tuning/place/adapters.py", "peft"): EXTRA,
    ("tuning/loop/arguments.py", "transformers"): TRAINER,
    ("tuning/loop/arguments.py", "trl"): EXTRA,
    ("tuning/loop/examples.py", "datasets"): EXTRA,
    ("tuning/place/peft_names.py", "peft"): EXTRA,
    ("tuning/place/prepared.py", "bitsandbytes"): EXTRA,
    ("tuning/place/prepared.py", "peft"): EXTRA,
    ("tuning/place/prepared.py", "transformers"): "only where weights are loaded in 4 bits",
    ("tuning/loop/summary.py", "huggingface_hub"): "only where the result is uploaded",
    ("tuning/loop/training.py", "midblock"): "the module that imports TRL, an optional extra that takes seconds",
}


def name_of(file: Path) -> str:
    return file.relative_to(SOURCE).as_posix()


def imported_modules(node: ast.AST) -> list[str]:
    """Dotted names that an import statement loads, a submodule taken `from` its package included."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if not isinstance(node, ast.ImportFrom):
        return []
    assert node.level == 0, "imports are written out in full"
    assert node.module is not None
    return [f"{node.module}.{alias.name}" for alias in node.names]


def file_of(module: str) -> Path | None:
    """The file of ours that a dotted name leads to: a module, a package, or the module that holds the name."""
    parts = module.split(".")
    if parts[0] != "midblock":
        return None
    for end in range(len(parts), 0, -1):
        path = SOURCE.joinpath(*parts[1:end])
        if path.with_suffix(".py").is_file() and path != SOURCE:
            return path.with_suffix(".py")
        if (path / "__init__.py").is_file():
            return path / "__init__.py"
    raise AssertionError(f"{module} is no module of ours")


@cache
def targets(file: Path) -> set[Path]:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    found = {file_of(module) for node in ast.walk(tree) for module in imported_modules(node)}
    return {path for path in found if path is not None}


def room_of(file: Path) -> str | None:
    parts = file.relative_to(SOURCE).parts
    return parts[0] if len(parts) > 1 else None


def folder_of(file: Path) -> str:
    """The folder of its room that a file lies in, "." for the room itself."""
    parts = file.relative_to(SOURCE).parts
    return parts[1] if len(parts) > 2 else "."


def hidden_imports(file: Path) -> set[str]:
    """Packages imported inside functions (an `if TYPE_CHECKING` at the top is no function)."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    inside = [node for function in functions for node in ast.walk(function)]
    return {module.split(".")[0] for node in inside for module in imported_modules(node)}


def test_every_folder_is_a_room():
    assert {room_of(file) for file in FILES} - {None} <= set(LINE)


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_a_room_imports_only_rooms_above_it(file):
    room = room_of(file)
    for target in targets(file):
        other = room_of(target)
        if room is None and file.name != "__main__.py":
            light = name_of(target) in LIGHT
            assert other is None or light, f"the package's face imports {name_of(target)} before it is asked for"
        elif room is not None and other not in (room, None):
            assert LINE[other] < LINE[room], f"{name_of(file)} imports {name_of(target)}"


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_a_folder_imports_only_folders_before_it(file):
    room, own = room_of(file), folder_of(file)
    if room is None or (own == "." and file.name == "__init__.py"):  # the room's face
        return
    order = INSIDE.get(room, (".",))
    for target in targets(file):
        if room_of(target) == room and target.name != "__init__.py":
            other = folder_of(target)
            assert order.index(other) <= order.index(own), f"{name_of(file)} imports {name_of(target)}"


def test_every_folder_of_a_room_has_its_place():
    found = {(room_of(file), folder_of(file)) for file in FILES if room_of(file)}
    assert {(room, folder) for room, folder in found if folder != "."} == {
        (room, folder) for room, folders in INSIDE.items() for folder in folders if folder != "."
    }


def test_nothing_lies_deeper_than_a_folder_of_a_room():
    assert max(len(file.relative_to(SOURCE).parts) for file in FILES) <= 3


def test_the_check_sees_an_arrow_against_the_order(tmp_path):
    backward = tmp_path / "backward.py"
    backward.write_text("def late():\n    from midblock.cli.life import carry_out\n")
    assert targets(backward) == {SOURCE / "cli" / "life.py"}
    assert hidden_imports(backward) == {"midblock"}


def test_no_ring_between_files():
    graph = {file: targets(file) - {file} for file in FILES}
    while leaves := [file for file, wanted in graph.items() if not wanted & graph.keys()]:
        for file in leaves:
            del graph[file]
    assert not graph, f"these import each other: {sorted(map(name_of, graph))}"


def test_imports_inside_functions_are_the_listed_ones():
    found = {(name_of(file), package) for file in FILES for package in hidden_imports(file)}
    assert found == set(HIDDEN)


def unknown_names(source):
    """Names that code looks up and nobody defines. Shapes in annotations look like names, so linters are no help."""

    def codes(code):
        yield code
        for each in code.co_consts:
            if isinstance(each, CodeType):
                yield from codes(each)

    found = [each for code in codes(compile(source, "source", "exec")) for each in dis.get_instructions(code)]
    known = {each.argval for each in found if each.opname in ("STORE_NAME", "STORE_GLOBAL")} | set(dir(builtins))
    asked = {each.argval for each in found if each.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    return asked - known - {"__annotations__", "__file__", "__name__", "__path__"}


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_every_name_is_defined_or_imported(file):
    assert not unknown_names(file.read_text(encoding="utf-8"))


def test_a_forgotten_import_is_seen():
    assert unknown_names("def late(path):\n    return user_path(path)\n") == {"user_path"}
    assert not unknown_names("from __future__ import annotations\ndef late(x: Float[Tensor, 'N D']): return len(x)\n")


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_no_file_is_longer_than_500_lines(file):
    assert len(file.read_text(encoding="utf-8").splitlines()) <= 500


HEAVY = ("torch", "transformers", "pandas", "scipy", "matplotlib")


@pytest.mark.parametrize("command", [["--help"], ["--version"], ["analize"]], ids=" ".join)
def test_the_door_opens_without_heavy_imports(command):
    script = f"import sys; from midblock.cli.main import main; main({command!r}); print(*sys.modules, sep='\\n')"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    loaded = done.stdout.splitlines()
    assert "cyclopts" in loaded
    assert not set(HEAVY) & set(loaded)


def test_the_face_of_the_package_names_what_is_there():
    for name in midblock.__all__:
        assert getattr(midblock, name) is not None
    assert dir(midblock) == midblock.__all__
    with pytest.raises(AttributeError, match="no attribute 'analise'"):
        midblock.analise  # noqa: B018
