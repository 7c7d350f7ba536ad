"""The table of adapter kinds. A row gives PEFT's settings for one kind, and what lora.rank and lora.alpha are in it.

No other module knows a kind by name, and this module imports nothing heavy. `REFUSED` has the kinds of PEFT that a run
cannot train, each with its reason. docs/adapters.md shows both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rlpost.config.keys import did_you_mean, refusal
from rlpost.config.schema import AdapterKind, LoraConfig
from rlpost.errors import ConfigError

FULL = "FULL"  # in place of PEFT's kind, for whole parameters


@dataclass(frozen=True)
class Kind:
    """One kind of adapter, or of whole parameters.

    `learning_rate` is the learning rate that suits the kind, in multiples of LoRA's: how much larger a step its numbers
    take for the same change of the policy. tests/unit/learner/test_kinds.py solves its bandit with it.
    """

    source: str
    what: str  # what it does to a weight W0 of shape (out, in), in one line
    peft_type: str
    rank: str | None = None  # PEFT's name for lora.rank; None: the kind has no size
    alpha: str | None = None  # PEFT's name for lora.alpha; None: the kind has no scaling
    settings: Mapping[str, Any] = field(default_factory=dict)  # PEFT's settings that make the kind
    defaults: Mapping[str, Any] = field(default_factory=dict)  # settings by dotted key
    # PEFT's settings that lora.settings may give: those with which PEFT saves whatever the adapter needs.
    free: tuple[str, ...] = ()
    learning_rate: float = 1.0
    trains: str | None = None  # of whole parameters, the last part of the names that train (bias); None: all
    zero3: bool = (
        False  # whether PEFT reads the parameters in the forward of their own module, as ZeRO-3 needs
    )

    nf4: bool = True  # whether PEFT puts an adapter of the kind on a linear layer in 4 bits (lora.base=nf4)

    @property
    def whole(self) -> bool:
        """Whether it has no adapter, and each role has whole parameters of its own."""
        return self.peft_type == FULL

    def peft_settings(self, lora: LoraConfig) -> dict[str, Any]:
        """The settings of PEFT that `lora` asks for, without the modules. `lora.kind` is this row's."""
        asked: dict[str, Any] = {"peft_type": self.peft_type, **self.settings}
        if self.rank is not None:
            asked[self.rank] = lora.rank
        if self.alpha is not None:
            asked[self.alpha] = lora.alpha
        return {**asked, **lora.settings}


def _size(rank: int, alpha: float | None = None, **settings: Any) -> dict[str, Any]:
    """A row's defaults."""
    scaling = {} if alpha is None else {"lora.alpha": alpha}
    return {"lora.rank": rank, **scaling, **({"lora.settings": settings} if settings else {})}


_PATTERNS = ("rank_pattern", "alpha_pattern")


def _lora(source: str, what: str, *, rslora: bool = False, dora: bool = False) -> Kind:
    settings = {"use_rslora": rslora, "use_dora": dora}
    return Kind(source, what, "LORA", "r", "lora_alpha", settings, free=_PATTERNS, zero3=True)


TABLE: Mapping[AdapterKind, Kind] = {
    AdapterKind.lora: _lora("arXiv 2106.09685", "W0 + alpha / rank B A"),
    AdapterKind.rslora: _lora("arXiv 2312.03732", "W0 + alpha / sqrt(rank) B A", rslora=True),
    AdapterKind.dora: _lora("arXiv 2402.09353", "m (W0 + s B A), each row divided by its norm", dora=True),
    AdapterKind.rsdora: _lora("arXiv 2402.09353, 2312.03732", "DoRA with rsLoRA's s", rslora=True, dora=True),
    AdapterKind.oft: Kind(
        "arXiv 2306.07280",
        "W0 R, R orthogonal in blocks of lora.rank",
        "OFT",
        "oft_block_size",
        settings={"r": 0},
        defaults=_size(32),
        free=("coft", "eps", "block_share", "use_cayley_neumann", "num_cayley_neumann_terms"),
    ),
    AdapterKind.boft: Kind(
        "arXiv 2311.06243",
        "W0 R, R a product of sparse orthogonal matrices in blocks of lora.rank",
        "BOFT",
        "boft_block_size",
        defaults=_size(4),
        learning_rate=3.0,
        free=("boft_n_butterfly_factor",),
    ),
    AdapterKind.hra: Kind(
        "arXiv 2405.17484",
        "W0 times lora.rank Householder reflections",
        "HRA",
        "r",
        defaults=_size(8),
        learning_rate=3.0,
        free=("apply_GS",),
    ),
    AdapterKind.road: Kind(
        "arXiv 2409.00119",
        "rotates and scales pairs of outputs",
        "ROAD",
        defaults={"lora.settings": {"group_size": 32}},
        learning_rate=10.0,
        free=("variant", "group_size"),
    ),
    AdapterKind.vera: Kind(
        "arXiv 2310.11454",
        "W0 + b B d A, trains the vectors b and d between random A and B",
        "VERA",
        "r",
        defaults=_size(256),
        learning_rate=30.0,
        free=("projection_prng_key", "d_initial"),
    ),
    AdapterKind.pvera: Kind(
        "arXiv 2512.07703",
        "VeRA with a distribution for d, used at its mean",
        "PVERA",
        "r",
        defaults=_size(256),
        learning_rate=30.0,
        free=("projection_prng_key", "d_initial"),
    ),
    AdapterKind.randlora: Kind(
        "arXiv 2502.00987",
        "W0 + a sum of products of random matrices of rank lora.rank, trains their scales",
        "RANDLORA",
        "r",
        "randlora_alpha",
        defaults=_size(32, 640.0),
        free=("projection_prng_key", "sparse", "very_sparse"),
    ),
    AdapterKind.vblora: Kind(
        "arXiv 2405.15179",
        "LoRA of rank lora.rank, mixed from a bank of vectors that all modules share",
        "VBLORA",
        "r",
        defaults=_size(4, num_vectors=256, vector_length=64),
        learning_rate=10.0,
        free=("num_vectors", "vector_length", "topk", "init_vector_bank_bound", "init_logits_std"),
    ),
    AdapterKind.tinylora: Kind(
        "arXiv 2602.04118",
        "W0 + U S (sum of v_i P_i) V, trains lora.rank numbers v; all modules share them",
        "TINYLORA",
        "u",
        # With less tying, PEFT numbers the modules by their order in the model, which a checkpoint may not have.
        settings={"weight_tying": 1.0},
        defaults=_size(13),
        learning_rate=5.0,
        free=("r", "projection_seed", "init_v_bound"),
    ),
    AdapterKind.unilora: Kind(
        "arXiv 2506.00799",
        "LoRA whose numbers are all drawn from one vector of lora.rank numbers",
        "UNILORA",
        "theta_d_length",
        settings={"save_indices": True},
        defaults=_size(256),
        learning_rate=100.0,
        free=("r", "proj_seed", "init_theta_d_bound"),
    ),
    AdapterKind.loha: Kind(
        "arXiv 2108.06098",
        "W0 + alpha / rank (B1 A1) * (B2 A2), entry by entry",
        "LOHA",
        "r",
        "alpha",
        defaults=_size(8, 8.0),
        learning_rate=10.0,
        free=_PATTERNS,
    ),
    AdapterKind.lokr: Kind(
        "arXiv 2309.14859",
        "W0 + alpha / rank, times a Kronecker product",
        "LOKR",
        "r",
        "alpha",
        defaults=_size(8, 8.0),
        learning_rate=10.0,
        free=(*_PATTERNS, "decompose_both", "decompose_factor"),
    ),
    AdapterKind.hira: Kind(
        "ICLR 2025 (OpenReview TwJrTz9cRS)",
        "W0 + W0 * (B A), entry by entry",
        "HIRA",
        "r",
        defaults=_size(32),
        learning_rate=10.0,
        free=("rank_pattern",),
    ),
    AdapterKind.gralora: Kind(
        "arXiv 2505.20355",
        "LoRA of lora.rank in each of k x k blocks",
        "GRALORA",
        "r",
        "alpha",
        defaults=_size(32, 64.0),
        free=("hybrid_r", "gralora_k"),
    ),
    AdapterKind.delora: Kind(
        "arXiv 2503.18225",
        "LoRA with normalized directions; lora.alpha starts their common strength",
        "DELORA",
        "r",
        "delora_lambda",
        defaults=_size(8, 15.0),
        free=("rank_pattern", "lambda_pattern"),
    ),
    AdapterKind.glora: Kind(
        "arXiv 2306.07967",
        "W0 + W0 * A + B, A and B of rank lora.rank",
        "GLORA",
        "r",
        defaults=_size(8),
        nf4=False,
        learning_rate=3.0,
        free=("config_A_B", "config_C", "config_D_E"),
    ),
    AdapterKind.deft: Kind(
        "PEFT's documentation",
        "(I - P relu(P)') W0 + P R, P and R of rank lora.rank",
        "DEFT",
        "r",
        defaults=_size(8),
        learning_rate=3.0,
        free=("decomposition_method", "init_scale", "alpha", "para"),
    ),
    AdapterKind.peanut: Kind(
        "arXiv 2410.01870",
        "W0 + alpha B relu(A W0), a small network of W0",
        "PEANUT",
        "r",
        "scaling",
        defaults=_size(32, 1.0),
        learning_rate=3.0,
        free=("depth", "act_fn"),
    ),
    AdapterKind.miss: Kind(
        "arXiv 2409.15371",
        "W0 + one block of lora.rank rows, repeated over the inputs",
        "MISS",
        "r",
        defaults=_size(64),
        free=("mini_r",),
    ),
    AdapterKind.c3a: Kind(
        "arXiv 2407.19342",
        "W0 + circulant blocks of size lora.rank",
        "C3A",
        "block_size",
        settings={"init_weights": True},
        defaults=_size(64),
        learning_rate=30.0,
        free=("block_size_pattern",),
    ),
    AdapterKind.fourierft: Kind(
        "arXiv 2405.03003",
        "W0 + alpha times an inverse Fourier transform of lora.rank numbers",
        "FOURIERFT",
        "n_frequency",
        "scaling",
        settings={"init_weights": True},
        defaults=_size(1000, 150.0),
        learning_rate=3.0,
        free=("random_loc_seed", "n_frequency_pattern"),
    ),
    AdapterKind.waveft: Kind(
        "arXiv 2505.12532",
        "W0 + alpha times an inverse wavelet transform of lora.rank numbers",
        "WAVEFT",
        "n_frequency",
        "scaling",
        defaults=_size(1000, 25.0),
        free=(
            "wavelet_family",
            "use_idwt",
            "random_loc_seed",
            "n_frequency_pattern",
            "proportional_parameters",
        ),
    ),
    AdapterKind.shira: Kind(
        "arXiv 2406.13175",
        "W0 + numbers at random places, as many as LoRA of lora.rank has",
        "SHIRA",
        "r",
        settings={"random_seed": 0},
        defaults=_size(32),
        learning_rate=3.0,
    ),
    AdapterKind.supertuning: Kind(
        "arXiv 2607.09287",
        "W0 + numbers at its largest places, one in a hundred",
        "SUPERTUNING",
        learning_rate=10.0,
        free=("sparsity", "select_top", "r"),
    ),
    AdapterKind.ia3: Kind(
        "arXiv 2205.05638",
        "scales each output (of down_proj: each input)",
        "IA3",
        defaults={"lora.settings": {"feedforward_modules": r".*\.down_proj"}},
        learning_rate=10.0,
        free=("feedforward_modules",),
    ),
    # By the bandit. Published is a tenth of the rate of LoRA with alpha 32: "LoRA Without Regret" (2025).
    AdapterKind.full: Kind("below", "trains W0 itself, and all other parameters", FULL, learning_rate=0.2),
    AdapterKind.bitfit: Kind("arXiv 2106.10199", "trains the biases, W0 stays", FULL, trains="bias"),
}

_INPUT = "what it does depends on the input, so no weights of an engine do the same"
_BESIDE = "are parameters beside the"
_PROMPT = "it adds tokens or keys to the context and changes no weights"
REFUSED: Mapping[str, str] = {
    "adalora": "it drops ranks by every step's gradients, which ZeRO spreads, and a model holds only one that trains",
    "adamss": "PEFT builds it with scikit-learn, which rlpost does not install",
    "adaption_prompt": _PROMPT,
    "alora": f"activated LoRA works from a certain token on: {_INPUT}",
    "arrow": f"it mixes adapters: {_INPUT}",
    "beft": "its biases are parameters beside the layers; lora.kind=bitfit trains the model's own",
    "cartridge": _PROMPT,
    "cpt": _PROMPT,
    "frod": "PEFT does not save the basis that it takes from the model's weights, which differs with their precision",
    "lily": f"it mixes its parts by a router: {_INPUT}",
    "ln_tuning": f"its norms {_BESIDE} model's; lora.kind=full with lora.target_modules trains the model's own",
    "multitask_prompt_tuning": _PROMPT,
    "osf": "PEFT projects its gradients in hooks and saves half of it: the rest depends on the device's decomposition",
    "p_tuning": _PROMPT,
    "poly": "it mixes its parts by the number of a task, which comes with each input",
    "prefix_tuning": _PROMPT,
    "prompt_tuning": _PROMPT,
    "psoft": "PEFT does not save the singular vectors that it trains between, and their signs differ by device",
    "shadow": "it runs a second model beside the base",
    "trainable_tokens": f"its rows {_BESIDE} embeddings; lora.kind=full lora.target_modules=embed_tokens does",
    "xlora": f"it mixes adapters by token: {_INPUT}",
}
"""The kinds of PEFT that a run cannot train, by PEFT's name, with the reason."""


def kind_named(name: str) -> AdapterKind:
    """The kind called `name`. Raises ConfigError with the reason if there is none that can be trained."""
    known = [kind.name for kind in AdapterKind]
    if name in known:
        return AdapterKind[name]
    reason = REFUSED.get(name, "there is no such kind of adapter")
    remedy = did_you_mean(name, known) if name not in REFUSED else ""
    raise ConfigError(refusal("lora.kind", name, reason, remedy or "choose one of " + ", ".join(known)))


def described(lora: LoraConfig) -> str:
    """The kind with its size and scaling, in words: "lora (rank 8, alpha 32)"."""
    kind = TABLE[lora.kind]
    parts = [f"rank {lora.rank}" if kind.rank == "r" else f"{kind.rank} {lora.rank}"] if kind.rank else []
    parts += [f"alpha {lora.alpha:g}"] if kind.alpha else []
    parts += [f"{name} {value}" for name, value in lora.settings.items()]
    return f"{lora.kind.value} ({', '.join(parts)})" if parts else lora.kind.value
