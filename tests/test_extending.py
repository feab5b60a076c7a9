"""docs/extending.md, followed to the letter: its code is put where it says, then midblock's own verbs use it.

What goes into a file that exists is run in that file's module, a row is put into its table, and a new file is written
beside the package; all of it is taken back behind each test.
"""

import __future__

import importlib
import json
import os
import re
import sys
from functools import partial
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
import torch
import transformers
from torch import nn
from transformers.modeling_outputs import BaseModelOutput, CausalLMOutput
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

import midblock
from midblock.base import LayerTable, MidblockError
from midblock.checkpoints import Anatomy, ModelReference
from midblock.cli.main import main
from midblock.data import load_dataset
from midblock.evaluation import Evaluation
from midblock.metrics import METRICS, geometry
from midblock.report.gather import read_joint, read_one
from midblock.report.write import page_of
from midblock.runs.lenient import read_json
from midblock.runs.record import read_record
from midblock.tuning import LOSSES

PAGE = Path(__file__).parents[1] / "docs" / "extending.md"
SOURCE = Path(midblock.__file__).parent
# a path, perhaps the name of a table in that file, and the code that goes there
BLOCK = re.compile(
    r"(?:`(?P<table>[A-Z_]+)` in\s+)?`(?P<path>(?:src/midblock|tests)/[\w/]+\.py)`[^`]*:\n\n"
    r"```python\n(?P<code>.*?)```",
    re.DOTALL,
)
LAYERS = [-1, 0, 1, 2, 3]
SMALL = {"num_samples": 4, "num_token_samples": 4}
IDS = torch.tensor([[5, 9, 120, 33, 7, 250]])


class Followed:
    """The page, followed section by section.

    Attributes:
        written: the new files.
    """

    def __init__(self, folder, patch):
        self.folder, self.patch, self.written = folder, patch, []
        _, *sections = PAGE.read_text().split("\n## ")
        self.sections = {text.partition("\n")[0]: text for text in sections}

    def follow(self, title):
        for block in BLOCK.finditer(self.sections[title]):
            table, path, code = block["table"], Path(block["path"]), block["code"]
            module = ".".join(path.with_suffix("").parts[1:])
            if path.parts[0] != "src" or not (SOURCE.parent / path.relative_to("src")).exists():
                self._write(path, module, code)
            elif table:
                self._add_rows(importlib.import_module(module), table, code)
            else:
                self._add_names(importlib.import_module(module), code)

    def _write(self, path, module, code):
        file = self.folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(code)
        self.written.append(file)
        if path.parts[0] == "src":
            package = importlib.import_module(module.rpartition(".")[0])
            self.patch.setattr(package, "__path__", [*package.__path__, str(file.parent)])

    def _add_rows(self, module, table, code):
        rows = eval(f"{{{code}}}", dict(vars(module)))  # noqa: S307 (our own page)
        for name, row in rows.items():
            assert name not in getattr(module, table)
            self.patch.setitem(getattr(module, table), name, row)

    def _add_names(self, module, code):
        before = dict(vars(module))
        after = dict(before)
        exec(compile(code, module.__file__, "exec", flags=__future__.annotations.compiler_flag), after)  # noqa: S102 (our own page)
        for name in after.keys() - before.keys():
            self.patch.setattr(module, name, after[name], raising=False)

    def forget(self):
        """Modules of new files, which would stay loaded."""
        for file in self.written:
            *package, name = file.relative_to(self.folder).with_suffix("").parts[1:]
            if sys.modules.pop(".".join([*package, name]), None):
                delattr(importlib.import_module(".".join(package)), name)


@pytest.fixture
def page(tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        followed = Followed(tmp_path / "new", patch)
        yield followed
        followed.forget()


@pytest.fixture(scope="module")
def start(tmp_path_factory, pico, tokenizer):
    """Folder of a pico Llama of three blocks."""
    folder = tmp_path_factory.mktemp("models") / "start"
    pico("llama").save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def sft(start, pico, tuned_from, tokenizer):
    """Folder of a model tuned from it."""
    folder = start.parent / "sft"
    tuned_from(pico("llama")).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def sums(tmp_path_factory):
    """Four additions with completions of unequal lengths."""
    rows = [{"prompt": f"{a} + {a} =", "completion": f" {2 * a}" + " apples" * (a % 3)} for a in (3, 4, 20, 48)]
    path = tmp_path_factory.mktemp("data") / "sums.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def tune(start, sums, folder, **options):
    """One step on all examples at once."""
    given = {"per_device_train_batch_size": 4, "max_steps": 1, "device": "cpu", "output_dir": folder, **options}
    return midblock.tune(str(start), str(sums), "010", **given)


def test_all_code_of_the_page_has_its_place():
    text = PAGE.read_text()
    assert text.count("```python") == len(BLOCK.findall(text))
    titles = re.findall(r"^## (.*)", text, re.MULTILINE)
    assert titles == ["A metric", "A loss", "A method", "A task", "A verb", "A model family"]


def test_a_metric(page, start, sft, tmp_path, capfd):
    page.follow("A metric")
    along = geometry.Pooled.whole(torch.outer(torch.arange(1.0, 6), torch.ones(7)))
    everywhere = geometry.Pooled.whole(torch.eye(5))
    assert METRICS["leading_share"].compute(along).tolist() == pytest.approx([1])
    assert METRICS["leading_share"].compute(everywhere).tolist() == pytest.approx([1 / 5])

    folder = tmp_path / "run"
    sizes = ["--num-samples", "8", "--num-token-samples", "4", "--device", "cpu"]
    command = ["analyze", str(start), str(sft), "--data", "builtin:chain_sum", "--metrics", "leading_share,l2_norm"]
    assert main([*command, *sizes, "-o", str(folder)]) == 0
    table = LayerTable.read(folder)
    for model in ("base", "sft"):
        curve = table.curve("leading_share", model)
        assert curve.layer.tolist() == LAYERS
        assert ((curve.low > 0) & (curve.low < curve.value) & (curve.value < curve.high) & (curve.high <= 1)).all()
    assert table.curve("leading_share.split_floor", "base").layer.tolist() == LAYERS
    shown = (folder / "report.html").read_text()
    assert 'data-figure="leading_share"' in shown
    assert "Leading direction" in shown
    assert main([*command[:-1], "leading_shore", "-o", str(tmp_path / "none")]) == 2
    assert "leading_share" in capfd.readouterr().err


def test_a_loss(page, start, sums, tmp_path):
    page.follow("A loss")
    assert midblock.LOSSES is LOSSES
    done = tune(start, sums, tmp_path / "run", loss="poly")
    log_probs = torch.cat([targets_of(start, example) for example in load_dataset(str(sums)).examples])
    assert done.log[0]["nll"] == pytest.approx(float(-log_probs.mean()), rel=1e-5)
    expected = (-log_probs + 1 - log_probs.exp()).mean()
    assert done.log[0]["loss"] == pytest.approx(float(expected), rel=1e-5)
    assert "| Loss | poly over completions |" in (done.path / "README.md").read_text()
    with pytest.raises(MidblockError, match="the loss poly uses no kl_beta"):
        tune(start, sums, tmp_path / "other", loss="poly", kl_beta=0.5)


def targets_of(folder, example):
    """ln p of the completion's tokens, as the base alone sees them."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    encoded = transformers.AutoTokenizer.from_pretrained(folder)
    prompt, completion = encoded(example.prompt).input_ids, encoded(example.completion).input_ids
    ids = torch.tensor([[*prompt, *completion, encoded.eos_token_id]])
    with torch.inference_mode():
        log_probs = model(ids).logits[0, :-1].log_softmax(-1)
    return log_probs.gather(-1, ids[0, 1:, None])[len(prompt) - 1 :, 0]


def test_a_method(page, start, sums, tmp_path):
    page.follow("A method")
    folder = tmp_path / "run"
    done = tune(start, sums, folder, method="writers", max_steps=2, learning_rate=1e-2)
    before, after = weights_of(start), weights_of(done.path)
    writers = {"model.layers.1.self_attn.o_proj.weight", "model.layers.1.mlp.down_proj.weight"}
    assert {name for name in before if not torch.equal(before[name], after[name])} == writers
    assert done.summary["untouched"]["checked"] == len(before) - len(writers)
    plan = json.loads((folder / "plan.json").read_text())
    assert {target["name"] for target in plan["targets"]} == writers
    assert plan["by_part"] == {"attention": 32 * 32, "mlp": 32 * 48}
    assert {row.module for row in done.table.select(metric="delta_rel") if row.value > 0} >= {"o_proj", "down_proj"}
    assert ModelReference.parse(str(folder)).path == done.path
    assert "output tuning" in page_of(read_joint([folder, folder]))
    with pytest.raises(MidblockError, match="lora_r is about adapters"):
        tune(start, sums, tmp_path / "other", method="writers", lora_r=4)


def weights_of(folder):
    return dict(transformers.AutoModelForCausalLM.from_pretrained(folder).named_parameters())


def test_a_task(page, start, sft, tmp_path):
    page.follow("A task")
    folder, sizes = tmp_path / "run", ["--num-samples", "6", "--max-new-tokens", "3", "--device", "cpu"]
    assert main(["evaluate", str(start), str(sft), "--tasks", "doubling", *sizes, "-o", str(folder)]) == 0
    found = Evaluation.read(folder)
    assert found.scores.task.tolist() == ["doubling"] * 2
    assert [line["expected"] for line in found.samples[::2]] == ["0", "2", "4", "6", "8", "10"]
    for line in found.samples:
        assert line["value"] == float(line["answer"] == line["expected"])
    assert "doubling" in (folder / "report.html").read_text()


def test_a_verb(page, start, sft, sums, tmp_path, capfd, monkeypatch, request):
    page.follow("A verb")
    assert len(page.written) == 4
    run_its_test(page.written[-1], request)

    monkeypatch.chdir(tmp_path)
    assert main(["--help"]) == 0
    assert "Weigh the blocks of models." in capfd.readouterr().out
    assert main(["weigh", "--help"]) == 0
    told = capfd.readouterr().out
    assert all(flag in told for flag in ("--order", "--device", "--resume", "--json"))
    assert "weigh" in face().__all__
    assert face().weigh is importlib.import_module("midblock.analysis.weigh").weigh

    command = ["weigh", str(start), str(sft), "--device", "cpu"]
    folder = Path("runs/weigh-sft")
    assert main(command) == 0
    headline, *notes, last = capfd.readouterr().out.splitlines()
    assert re.fullmatch(r"Block \d of (base|sft) is the heaviest, [\d.]+\.", headline)
    assert (notes, last) == ([], f"Report: {folder}/report.html")
    assert {"config.yaml", "run.json", "summary.json", "layers.parquet", "report.html"} <= set(os.listdir(folder))
    assert "order: 2.0" in (folder / "config.yaml").read_text()
    assert [model["name"] for model in read_record(folder)["models"]] == ["base", "sft"]
    assert len(LayerTable.read(folder)) == 6
    assert (folder / "figures" / "weigh.pdf").exists()

    other = [*command, "-o", str(folder), "--order", "1"]
    assert main(other) == 2
    assert main([*other, "--resume"]) == 2
    pair = midblock.load_pair(str(start), str(sft), device="cpu")
    again = partial(face().weigh, pair, output_dir=folder)
    assert again(resume=True).frame.equals(LayerTable.read(folder).frame)
    assert "order: 2.0" in (folder / "config.yaml").read_text()
    assert again(order=1.0, overwrite=True).frame.equals(LayerTable.read(folder).frame)
    assert "order: 1.0" in (folder / "config.yaml").read_text()
    assert main([*command, "--order", "0.5", "-o", "none"]) == 2
    assert capfd.readouterr().err.splitlines()[-1] == "midblock: order is 0.5; it must be 1 or more"
    assert not Path("none").exists()

    assert 'data-figure="weigh"' in page_of(read_one(folder))
    midblock.swap(pair, str(sums), output_dir="runs/swap", num_samples=4, segments="each")
    assert main(["report", str(folder), "runs/swap"]) == 0
    assert Path("runs/report/figures/weigh.png").exists()
    joint = page_of(read_joint([folder, Path("runs/swap")]))
    assert joint.index('id="changed"') < joint.index('<section id="weigh"') < joint.index('id="matters"')
    assert 'data-figure="weigh"' in joint
    assert read_json(folder / "summary.json", {})["headline"] in joint


def run_its_test(file, request):
    """Call a test file's functions with the fixtures that they name."""
    spec = spec_from_file_location(file.stem, file)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    tests = [test for name, test in vars(module).items() if name.startswith("test_")]
    assert tests
    for test in tests:
        names = test.__code__.co_varnames[: test.__code__.co_argcount]
        test(**{name: request.getfixturevalue(name) for name in names})


def face():
    """The package's face, as it is when midblock is imported anew."""
    spec = spec_from_file_location("face", midblock.__file__)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class TernConfig(transformers.PretrainedConfig):
    """A family that midblock has never heard of."""

    model_type = "tern"
    vocab_size: int = 300
    hidden_size: int = 32
    intermediate_size: int = 48
    num_hidden_layers: int = 3
    num_attention_heads: int = 4


class Mixer(nn.Module):
    """Attention by other names; the order of tokens is told by the causal mask alone."""

    def __init__(self, config):
        super().__init__()
        self.heads = config.num_attention_heads
        for name in ("query", "key", "value", "mix"):
            setattr(self, name, nn.Linear(config.hidden_size, config.hidden_size, bias=False))

    def forward(self, states):
        query, key, value = (
            project(states).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for project in (self.query, self.key, self.value)
        )
        mixed = nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.mix(mixed.transpose(1, 2).flatten(2))


class TernBlock(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.norm_in, self.norm_mid = nn.RMSNorm(config.hidden_size), nn.RMSNorm(config.hidden_size)
        self.mixer = Mixer(config)
        self.widen = nn.Linear(config.hidden_size, config.intermediate_size)
        self.narrow = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, states):
        states = states + self.mixer(self.norm_in(states))
        return states + self.narrow(nn.functional.gelu(self.widen(self.norm_mid(states))))


class TernModel(transformers.PreTrainedModel):
    config_class = TernConfig
    base_model_prefix = "model"

    def __init__(self, config):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(TernBlock(config) for _ in range(config.num_hidden_layers))
        self.norm = nn.RMSNorm(config.hidden_size)
        self.post_init()

    def forward(self, input_ids=None, **_):
        states = self.embed_tokens(input_ids)
        for block in self.layers:
            states = block(states)
        return BaseModelOutput(self.norm(states))


class TernForCausalLM(transformers.PreTrainedModel, transformers.GenerationMixin):
    config_class = TernConfig
    base_model_prefix = "model"

    def __init__(self, config):
        super().__init__(config)
        self.model = TernModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def forward(self, input_ids=None, **_):
        return CausalLMOutput(logits=self.lm_head(self.model(input_ids).last_hidden_state))


@pytest.fixture
def tern(tmp_path, monkeypatch, tokenizer):
    """Writes pico models of that family, which transformers knows inside the test."""
    monkeypatch.setitem(CONFIG_MAPPING._extra_content, "tern", TernConfig)
    monkeypatch.setitem(transformers.AutoModelForCausalLM._model_mapping._extra_content, TernConfig, TernForCausalLM)

    def write(name, width):
        special = {f"{each}_token_id": place for place, each in enumerate(("pad", "bos", "eos"))}
        torch.manual_seed(0)
        TernForCausalLM(TernConfig(intermediate_size=width, **special)).save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
        return tmp_path / name

    return write


def test_a_model_family(page, tern, sums, tmp_path):
    unknown = tern("unknown", 40)
    assert parts_of(unknown)["mixer.query"] == parts_of(unknown)["widen"] == "other"
    with pytest.raises(MidblockError, match="'attention' matches no projection here"):
        tune(unknown, sums, tmp_path / "none", target_modules="attention")
    moved = weights_moved(unknown, tune(unknown, sums, tmp_path / "by-path", target_modules="mixer.mix"))
    assert moved["mixer.mix"] > 0 == moved["mixer.query"]

    page.follow("A model family")
    known = tern("known", 48)  # of another width: midblock keeps what it found out about a config
    attention, mlp = ("q_proj", "k_proj", "v_proj", "o_proj"), ("up_proj", "down_proj")
    named = {**dict.fromkeys(attention, "attention"), **dict.fromkeys(mlp, "mlp")}
    assert parts_of(known) == {**named, "norm": "norm", "bias": "bias"}
    done = tune(known, sums, tmp_path / "by-role", target_modules="attention")
    plan = json.loads((done.folder / "plan.json").read_text())
    assert {target["role"] for target in plan["targets"]} == set(attention)
    moved = weights_moved(known, done)
    assert moved["attention"] > 0 == moved["mlp"]
    assert all(moved[role] > 0 for role in attention)


def parts_of(folder):
    """Role → part of everything in the blocks, from an anatomy that is held against the model."""
    return {each.role: each.part for each in anatomy_of(folder).projections.values() if each.block is not None}


def anatomy_of(folder):
    """The anatomy of a model, held against the model."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    anatomy = Anatomy.of(model)
    with torch.inference_mode():
        states = anatomy.embedding(IDS)
        for block in anatomy.blocks:
            states = block(states)
        assert torch.equal(anatomy.logits(anatomy.final_norm(states)), model(IDS).logits)
    assert set(anatomy.projections) == set(dict(model.named_parameters()))
    return anatomy


def weights_moved(base, done):
    """Module → relative change of its weights in the tuned block, as `analyze` finds it."""
    pair = midblock.load_pair(str(base), str(done.path), device="cpu")
    table = midblock.analyze(pair, "builtin:chain_sum", metrics="delta_rel,change_increment", **SMALL)
    assert table.curve("change_increment", pair.tuned[0].name).layer.tolist() == LAYERS[:-1]
    return {row.module: row.value for row in table.select(metric="delta_rel") if row.layer == 1}
