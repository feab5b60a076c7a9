"""The rows of the adapter matrix: every way PEFT has to adapt a causal language model, at pico size.

A method is a function from the base's linear layers to a config. `test_matrix.py` asks that every type of PEFT's
be here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import peft

Make = Callable[["Base"], Any]


@dataclass(frozen=True)
class Base:
    """A column of the matrix.

    Attributes:
        family: of `make_pico`.
        linear: the ends of the names of linear layers that are adapted, of several shapes.
        feedforward: those among them that IA3 scales before, not after.
        embedding, head, norm: ends of the names of those modules.
        experts: the ends of the names of stacked experts' parameters.
        conv: whether linear layers are GPT-2's Conv1D.
    """

    family: str
    linear: tuple[str, ...]
    feedforward: tuple[str, ...]
    embedding: str
    norm: str
    head: str = "lm_head"
    experts: tuple[str, ...] = ()
    conv: bool = False


BASES: Mapping[str, Base] = {
    "llama": Base("llama", ("q_proj", "v_proj", "down_proj"), ("down_proj",), "embed_tokens", "input_layernorm"),
    "llama, tied": Base("llama_tied", ("q_proj", "v_proj", "down_proj"), ("down_proj",), "embed_tokens", "norm"),
    "mixtral": Base(
        "mixtral",
        ("q_proj", "v_proj"),
        (),
        "embed_tokens",
        "input_layernorm",
        experts=("mlp.experts.gate_up_proj", "mlp.experts.down_proj"),
    ),
    "gpt2": Base("gpt2", ("c_attn", "c_proj", "c_fc"), ("c_proj",), "wte", "ln_1", conv=True),
}


def lora(**options: Any) -> Make:
    def make(base: Base) -> Any:
        given = {name: value(base) if callable(value) else value for name, value in options.items()}
        defaults = {"r": 4, "lora_alpha": 6, "target_modules": list(base.linear), "fan_in_fan_out": base.conv}
        return peft.LoraConfig(task_type="CAUSAL_LM", **{**defaults, **given})

    return make


def of(kind: str, **options: Any) -> Make:
    """A method whose config takes the names of linear layers and nothing of the base besides."""

    def make(base: Base) -> Any:
        given = {name: value(base) if callable(value) else value for name, value in options.items()}
        return getattr(peft, kind)(task_type="CAUSAL_LM", **{"target_modules": list(base.linear), **given})

    return make


def prompts(kind: str, **options: Any) -> Make:
    return lambda base: getattr(peft, kind)(task_type="CAUSAL_LM", num_virtual_tokens=4, **options)


def _fan(base: Base) -> bool:
    return base.conv


def _xlora(base: Base) -> Any:
    return peft.XLoraConfig(task_type="CAUSAL_LM", hidden_size=32, adapters={}, xlora_depth=1)


METHODS: Mapping[str, Make] = {
    "LoRA": lora(),
    "rsLoRA": lora(use_rslora=True),
    "LoRA, ranks and alphas by pattern": lora(
        rank_pattern=lambda base: {base.linear[0]: 2}, alpha_pattern=lambda base: {base.linear[1]: 9}
    ),
    "LoRA, some blocks": lora(layers_to_transform=[1]),
    "LoRA, trained biases": lora(bias="lora_only"),
    "LoRA, all biases": lora(bias="all"),
    "LoRA with a bias of its own": lora(lora_bias=True),
    "LoRA on the embedding": lora(target_modules=lambda base: [base.linear[0], base.embedding]),
    "LoRA on the head": lora(target_modules=lambda base: [base.linear[0], base.head]),
    "LoRA on embedding and head": lora(target_modules=lambda base: [base.embedding, base.head]),
    "LoRA, embedding and head kept tied": lora(
        target_modules=lambda base: [base.linear[0], base.embedding], ensure_weight_tying=True
    ),
    "LoRA, whole norm": lora(modules_to_save=lambda base: [base.norm]),
    "LoRA, whole head": lora(modules_to_save=lambda base: [base.head]),
    "LoRA, whole embedding": lora(modules_to_save=lambda base: [base.embedding]),
    "LoRA, whole embedding and head": lora(modules_to_save=lambda base: [base.embedding, base.head]),
    "LoRA, whole embedding, kept tied": lora(modules_to_save=lambda base: [base.embedding], ensure_weight_tying=True),
    "LoRA, single tokens": lora(trainable_token_indices=[33, 44, 250]),
    "LoRA on experts": lora(target_modules=[], target_parameters=lambda base: list(base.experts)),
    "LoRA on layers and experts": lora(target_parameters=lambda base: list(base.experts)),
    "LoRA on one of the experts' weights": lora(
        target_modules=[], target_parameters=lambda base: list(base.experts[:1])
    ),
    "LoRA, every linear layer": lora(target_modules="all-linear"),
    "LoRA, some modules left out": lora(exclude_modules=lambda base: [base.linear[1]]),
    "DoRA": lora(use_dora=True),
    "DoRA on the embedding": lora(use_dora=True, target_modules=lambda base: [base.linear[0], base.embedding]),
    "DoRA, trained biases": lora(use_dora=True, bias="lora_only"),
    "DoRA, single tokens": lora(use_dora=True, trainable_token_indices=[33, 44, 250]),
    "LoRA, gaussian start": lora(init_lora_weights="gaussian"),
    "LoRA, orthogonal start": lora(init_lora_weights="orthogonal"),
    "LoRA, PiSSA start": lora(init_lora_weights="pissa"),
    "LoRA, PiSSA start by random SVD": lora(init_lora_weights="pissa_niter_4"),
    "LoRA, OLoRA start": lora(init_lora_weights="olora"),
    "LoRA, EVA start": lora(init_lora_weights="eva", eva_config=lambda base: peft.EvaConfig()),
    "LoRA, LoftQ start": lora(init_lora_weights="loftq", loftq_config=lambda base: peft.LoftQConfig()),
    "LoRA, activated by tokens (aLoRA)": lora(alora_invocation_tokens=[5, 6]),
    "LoRA, layers replicated": lora(layer_replication=[[0, 2], [1, 3]]),
    "LoRA, KaSA": lora(kasa_config=lambda base: peft.KasaConfig()),
    "LoRA, block-diagonal": lora(
        use_bdlora=lambda base: peft.BdLoraConfig(
            target_modules_bd_a=list(base.linear[:1]), target_modules_bd_b=list(base.linear[1:]), nblocks=2
        )
    ),
    "LoRA, MonteCLoRA": lora(monteclora_config=lambda base: peft.MontecloraConfig()),
    "LoRA, VeLoRA": lora(velora_config=lambda base: peft.VeloraConfig(num_groups=2)),
    "LoRA, QA-LoRA": lora(use_qalora=True, qalora_group_size=8),
    "AdaLoRA": of("AdaLoraConfig", init_r=4, target_r=2, total_step=10, tinit=1, tfinal=2, fan_in_fan_out=_fan),
    "AdaMSS": of("AdamssConfig", r=8, num_subspaces=2, subspace_rank=2),
    "BEFT": of("BeftConfig"),
    "BOFT": of("BOFTConfig", boft_block_size=4, fan_in_fan_out=_fan),
    "C3A": of("C3AConfig", block_size=16),
    "DEFT": of("DeftConfig", r=4),
    "DEFT, PaRa": of("DeftConfig", r=4, para=True),
    "DeLoRA": of("DeloraConfig", r=4),
    "FourierFT": of("FourierFTConfig", n_frequency=20, fan_in_fan_out=_fan),
    "FRoD": of("FrodConfig", progressbar=False, fan_in_fan_out=_fan),
    "GLoRA": of("GloraConfig", r=4),
    "GraLoRA": of("GraloraConfig", r=4),
    "HiRA": of("HiraConfig", r=4, fan_in_fan_out=_fan),
    "HRA": of("HRAConfig", r=4),
    "IA3": of("IA3Config", feedforward_modules=lambda base: list(base.feedforward), fan_in_fan_out=_fan),
    "Lily": of("LilyConfig", r=4),
    "LN-tuning": of("LNTuningConfig", target_modules=lambda base: [base.norm]),
    "LoHa": of("LoHaConfig", r=4, alpha=6),
    "LoKr": of("LoKrConfig", r=4, alpha=6),
    "LoKr, both factors decomposed": of("LoKrConfig", r=2, alpha=6, decompose_both=True, decompose_factor=4),
    "MiSS": of("MissConfig", r=4),
    "MiSS, Bat start": of("MissConfig", r=4, init_weights="bat"),
    "MiSS, mini start": of("MissConfig", r=4, mini_r=2, init_weights="mini"),
    "OFT": of("OFTConfig", oft_block_size=8, fan_in_fan_out=_fan),
    "OFT, exact Cayley": of("OFTConfig", oft_block_size=8, use_cayley_neumann=False, fan_in_fan_out=_fan),
    "OSF": of("OSFConfig", effective_rank=8),
    "PEANuT": of("PeanutConfig", r=4),
    "PSOFT": of("PsoftConfig", r=4, psoft_alpha=4, fan_in_fan_out=_fan),
    "PVeRA": of("PveraConfig", r=4, fan_in_fan_out=_fan),
    "RandLoRA": of("RandLoraConfig", r=4, randlora_alpha=8, fan_in_fan_out=_fan),
    "RoAd": of("RoadConfig", group_size=8),
    "RoAd, two of each": of("RoadConfig", variant="road_2", group_size=8),
    "RoAd, four of each": of("RoadConfig", variant="road_4", group_size=8),
    "SHiRA": of("ShiraConfig", r=2, random_seed=0, fan_in_fan_out=_fan),
    "Super-tuning": of("SupertuningConfig", sparsity=0.9),
    "TinyLoRA": of("TinyLoraConfig", u=8, fan_in_fan_out=_fan),
    "Single tokens": lambda base: peft.TrainableTokensConfig(
        task_type="CAUSAL_LM", token_indices=[33, 44, 250], target_modules=[base.embedding]
    ),
    "Uni-LoRA": of("UniLoraConfig", r=4, theta_d_length=64, fan_in_fan_out=_fan),
    "VB-LoRA": of("VBLoRAConfig", r=4, num_vectors=16, vector_length=16, fan_in_fan_out=_fan),
    "VB-LoRA, leading vectors only": of(
        "VBLoRAConfig", r=4, num_vectors=16, vector_length=16, save_only_topk_weights=True, fan_in_fan_out=_fan
    ),
    "VeRA": of("VeraConfig", r=4, fan_in_fan_out=_fan),
    "VeRA, projections not saved": of("VeraConfig", r=4, save_projection=False, fan_in_fan_out=_fan),
    "WaveFT": of("WaveFTConfig", n_frequency=40, fan_in_fan_out=_fan),
    "HiRA on the embedding": of(
        "HiraConfig", r=4, target_modules=lambda base: [base.linear[0], base.embedding], fan_in_fan_out=_fan
    ),
    "IA3, all linear layers": of("IA3Config", feedforward_modules=[], fan_in_fan_out=_fan),
    "IA3, whole head": of(
        "IA3Config", feedforward_modules=[], modules_to_save=lambda base: [base.head], fan_in_fan_out=_fan
    ),
    "LoHa, whole norm": of("LoHaConfig", r=4, modules_to_save=lambda base: [base.norm]),
    "OFT, blocks shared": of("OFTConfig", oft_block_size=8, block_share=True, fan_in_fan_out=_fan),
    "OFT, bounded": of("OFTConfig", oft_block_size=8, coft=True, eps=0.1, fan_in_fan_out=_fan),
    "Poly": of("PolyConfig", r=4, n_skills=2),
    "X-LoRA": _xlora,
    "Shadow": lambda base: peft.ShadowConfig(task_type="CAUSAL_LM", r=4),
    "Adaption prompt": lambda base: peft.AdaptionPromptConfig(task_type="CAUSAL_LM", adapter_len=4, adapter_layers=2),
    "Prompt tuning": prompts("PromptTuningConfig"),
    "Multitask prompt tuning": prompts("MultitaskPromptTuningConfig", num_tasks=2),
    "P-tuning": prompts("PromptEncoderConfig", encoder_hidden_size=16),
    "Prefix tuning": prompts("PrefixTuningConfig"),
    "Cartridge": prompts("CartridgeConfig"),
    "CPT": lambda base: peft.CPTConfig(
        task_type="CAUSAL_LM", cpt_token_ids=[3, 4, 5], cpt_mask=[1, 1, 1], cpt_tokens_type_mask=[1, 2, 3]
    ),
}
