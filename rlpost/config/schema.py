"""The configuration schema: every setting, its default and its meaning, once.

`rlpost.config.compose` overrides it with one file of `experiments/` and the command line. `rlpost.validate` then
refuses impossible values and combinations. Both run before anything heavy (torch, vllm, ray) is imported.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any


class Task(Enum):
    """What `python -m rlpost.run` does."""

    rl = "rl"  # warm start, then reinforcement learning
    sft = "sft"  # supervised fine-tuning of the adapter only
    dry_run = "dry_run"  # play an experiment's episodes with scripted answers: no engine, no learner
    eval = "eval"  # evaluation of an adapter (or the bare model) only
    compare = "compare"  # SFT against RL: many runs from the same start, one report
    tiny_base = "tiny_base"  # the recipe that made the bundled model


class Dtype(Enum):
    auto = "auto"  # the faster precision on the run's hardware, measured at its start; see rlpost/cluster/precision.py
    float32 = "float32"
    bfloat16 = "bfloat16"


class AdapterKind(Enum):
    """The kinds of adapters; rlpost/config/adapter_kinds.py has a row for each."""

    lora = "lora"
    rslora = "rslora"
    dora = "dora"
    rsdora = "rsdora"
    oft = "oft"
    boft = "boft"
    hra = "hra"
    road = "road"
    vera = "vera"
    pvera = "pvera"
    randlora = "randlora"
    vblora = "vblora"
    tinylora = "tinylora"
    unilora = "unilora"
    loha = "loha"
    lokr = "lokr"
    hira = "hira"
    gralora = "gralora"
    delora = "delora"
    glora = "glora"
    deft = "deft"
    peanut = "peanut"
    miss = "miss"
    c3a = "c3a"
    fourierft = "fourierft"
    waveft = "waveft"
    shira = "shira"
    supertuning = "supertuning"
    ia3 = "ia3"
    full = "full"
    bitfit = "bitfit"


class AdapterStart(Enum):
    """First values of an adapter's A and B. Their needs are in rlpost/config/adapter_starts.py."""

    default = "default"  # A uniform (Kaiming), B zero
    gaussian = "gaussian"  # A normal with standard deviation 1 / rank, B zero
    orthogonal = "orthogonal"  # A and B random and not zero, with B A = 0
    eva = "eva"  # A: principal directions of the layer's inputs, B zero
    pissa = "pissa"  # the largest singular directions of the weight
    olora = "olora"  # the first columns and rows of the weight's QR decomposition
    corda = "corda"  # the largest singular directions of the weight times its inputs' covariance
    lora_ga = "lora_ga"  # singular directions of the loss's gradient
    loftq = "loftq"  # the nearest adapter to what lora.base=nf4 rounds away


class LearningRate(Enum):
    """Who sets sft.learning_rate, algo.learning_rate and algo.critic_learning_rate."""

    given = "given"  # these settings themselves
    auto = "auto"  # a rule, from the model's width and the adapter; see rlpost/config/learning_rates.py


class RateSchedule(Enum):
    """The learning rate after its warm-up."""

    constant = "constant"
    linear = "linear"  # a straight line down to the final share at the last optimizer step
    cosine = "cosine"  # half a cosine down to the final share at the last optimizer step


class Optimizer(Enum):
    """What updates the trained weights; docs/algorithms.md compares them."""

    adamw = "adamw"
    lora_pro = "lora_pro"  # LoRA-Pro: AdamW's step of the whole weight, as near as A and B come to it
    muon = "muon"  # orthogonalised momentum for matrices, AdamW for the rest
    adamw_8bit = "adamw_8bit"  # AdamW with moments in 8 bits (bitsandbytes), on a GPU


class SftLoss(Enum):
    """The supervised loss of a token with probability p."""

    nll = "nll"  # -log p
    dft = "dft"  # -p log p, with no gradient through the weight p (dynamic fine-tuning)


class BaseKind(Enum):
    """The base model's linear layers, under the adapters of the learner and in the engines."""

    stored = "stored"  # as the checkpoint has them, in `dtype`
    nf4 = "nf4"  # QLoRA: rounded to 4 bits (NF4), which the learner holds and the engines serve; docs/adapters.md


class AlgoName(Enum):
    """The algorithms. Their parts are in rlpost/config/presets.py, their formulas in docs/algorithms.md."""

    ppo = "ppo"
    ppo_turn = "ppo_turn"
    grpo = "grpo"
    dr_grpo = "dr_grpo"
    rloo = "rloo"
    reinforce_pp = "reinforce_pp"
    reinforce_pp_baseline = "reinforce_pp_baseline"
    dapo = "dapo"
    gspo = "gspo"
    cispo = "cispo"
    rft = "rft"
    dpo = "dpo"
    opd = "opd"


class Rewards(Enum):
    turn = "turn"  # each turn's reward on the turn's last token
    outcome = "outcome"  # the episode's sum of rewards on its last token


class RewardControl(Enum):
    """Controls: rewards that say nothing about an episode's own answers; see rlpost/rollout/reward_control.py."""

    none = "none"
    shuffled = "shuffled"  # each episode's total goes to another one of the batch, on its last turn
    random = "random"  # 1 or 0 on the last turn at random, 1 with the batch's share of successes


class KlPlace(Enum):
    reward = "reward"  # subtracted from every token's reward
    loss = "loss"  # added to the loss
    none = "none"


class KlEstimator(Enum):
    """Estimators of KL(policy || reference) from one sampled token, with r = reference / policy; Schulman (2020)."""

    k1 = "k1"  # -log r: unbiased, any sign; only in the reward
    k2 = "k2"  # (log r)^2 / 2: biased as a value; its gradient is the divergence's
    k3 = "k3"  # r - 1 - log r: unbiased, never negative


class RolloutPolicy(Enum):
    """The policy that plays the episodes of training. Evaluations always play the current one."""

    latest = "latest"  # the current one: the engines take every update
    start = "start"  # the one that RL starts from (after the warm start): the engines keep it, so training is offline


class OnSwap(Enum):
    """What becomes of the turns that an engine is sampling when an update arrives (rollout.max_staleness above 0)."""

    in_flight = "in_flight"  # they keep the tokens sampled so far and go on under the new weights
    drain = "drain"  # they end under the old weights first; their episodes go on under the new ones


class RolloutIS(Enum):
    """Rollout importance sampling: weights for tokens whose log-probs differ between engine and learner."""

    auto = "auto"  # truncate if an older policy may play (rollout.lag, rollout.max_staleness), else none
    none = "none"
    truncate = "truncate"  # TIS: weights beyond a bound count as the bound
    mask = "mask"  # MIS: terms with weights beyond a bound do not count


class RolloutLevel(Enum):
    """Granularity of the weights of rollout importance sampling."""

    ratio = "ratio"  # that of the algorithm's ratio
    token = "token"
    turn = "turn"  # the product over a turn's tokens
    sequence = "sequence"  # the product over a sequence's tokens
    geometric = "geometric"  # the geometric mean over a sequence's tokens


class RolloutReject(Enum):
    """The ratio learner / engine of a whole sequence, by which it is kept or left out."""

    none = "none"  # every sequence is kept
    sequence = "sequence"  # the product over its tokens
    geometric = "geometric"  # the geometric mean over its tokens


class TrustRegion(Enum):
    """What bounds the step of a token's probability away from the old policy."""

    ratio = "ratio"  # the clip of the probability ratio
    tv = "tv"  # the total variation between old and new policy, of this token against all others (DPPO)
    kl = "kl"  # the KL divergence, of this token against all others (DPPO)


class OldLogprobs(Enum):
    """The source of the old policy's log-probs of the batch."""

    learner = "learner"  # the learner's own pass, skipped if the update's only step computes them anyway
    engine = "engine"  # as sampled: saves a pass, and the ratio also corrects the engine's rounding


class Instances(Enum):
    """Which instances of a variant an evaluation plays."""

    drawn = "drawn"  # eval.episodes of them, drawn by eval.seed; none twice if the environment can count them
    all = "all"  # every one once; the environment must be able to count or list them


class Measure(Enum):
    """Units of compute, and of the data that an arm learns from; see rlpost/record/compute.py."""

    flops = "flops"
    tokens = "tokens"
    device_seconds = "device_seconds"
    rollouts = "rollouts"  # episodes played in training; an expert's example counts as one
    correct_rollouts = "correct_rollouts"  # those that succeeded; an expert's example counts as one


class Reference(Enum):
    start = "start"  # the adapter RL starts from (after the warm start), frozen
    base = "base"  # the model without an adapter


@dataclass
class LoraConfig:
    kind: AdapterKind = AdapterKind.lora  # kind of adapter
    rank: int = 32  # rank of each module's update; other kinds: its size, under the name in docs/adapters.md
    alpha: float = 64.0  # scaling is alpha / rank (rslora, rsdora: alpha / sqrt(rank)); see docs/adapters.md
    settings: dict[str, Any] = field(default_factory=dict)  # more settings of the kind, by PEFT's names
    # all-linear, or module names such as q_proj,v_proj. With full, all-linear is every weight: embeddings, norms and
    # head too; with bitfit every bias. Both also take modules that are not linear, such as embed_tokens.
    target_modules: str = "all-linear"
    start: AdapterStart = AdapterStart.default  # first values of A and B; see docs/adapters.md
    start_examples: int = 64  # examples of the environment that eva, corda and lora_ga read
    learning_rate: LearningRate = LearningRate.given  # auto sets the three learning rates of sft and algo
    base: BaseKind = BaseKind.stored  # the linear layers under the adapters: as stored, or in 4 bits (QLoRA)


@dataclass
class SftConfig:
    """Supervised warm start (task=rl) or the whole run (task=sft): fresh expert answers on training instances."""

    steps: int = 30  # optimizer steps; 0 skips the warm start
    loss: SftLoss = SftLoss.nll  # loss of a token of the expert's answer
    skip: int = 0  # steps whose examples are skipped: those of the warm start that this run continues
    examples: int = 0  # size of the data set, repeated in epochs; 0: endless new examples
    batch_size: int = 64  # examples per optimizer step
    learning_rate: float = 1e-3  # peak, after sft.warmup_steps
    warmup_steps: int = 5  # optimizer steps of linear warm-up, before sft.schedule
    schedule: RateSchedule = RateSchedule.constant  # learning rate from the end of the warm-up to sft.steps
    final_share: float = (
        0.0  # share of the peak learning rate at the last step, if sft.schedule is not constant
    )
    revision_share: float = 0.3  # share of examples that are a revision after a wrong answer and its feedback


@dataclass
class AlgoConfig:
    """Reinforcement learning. `algo=NAME` chooses an algorithm, whose own defaults replace these."""

    name: AlgoName = AlgoName.ppo  # which algorithm; `algo=NAME` is the same
    iterations: int = 40  # each plays rollout.episodes and updates the adapter
    rewards: Rewards = Rewards.turn  # tokens that receive the rewards
    reward_function: str | None = None  # module:function that replaces the rewards of an iteration's episodes
    reward_control: RewardControl = RewardControl.none  # replaces the rewards by a control's, to learn from
    reward_scale: float = 0.2  # rewards are multiplied by it before anything else
    normalize_rewards: bool = False  # divide by the standard deviation of the batch's episode totals
    overlong_buffer: int = 0  # last tokens before max_new_tokens over which the length penalty grows; 0: off
    overlong_penalty: float = 1.0  # penalty on the reward of an answer of full length, before scaling
    whiten_advantages: bool = True  # scale advantages to mean 0 and variance 1 over the batch
    gamma: float = 1.0  # discount per sampled token (ppo_turn: per turn); feedback tokens are skipped
    gae_lambda: float = 0.95  # lambda of GAE, for algorithms with a critic
    epochs: int = 2  # passes over an iteration's episodes
    minibatches: int = 2  # optimizer steps per pass; groups stay whole
    critic_epochs: int | None = None  # passes of the critic; none: as many as of the policy
    clip: float = 0.2  # clips the probability ratio at 1 - clip (and at 1 + clip, unless clip_high is given)
    clip_high: float | None = None  # clips the probability ratio at 1 + clip_high; none: as clip
    ratio_ceiling: float | None = None  # above this probability ratio, only the clipped term counts
    thought_weight: float = 1.0  # weight of log-probs before rollout.answer_marker in a turn's ratio
    value_clip: float = 0.5  # largest change of a value from its estimate at rollout
    value_coef: float = 0.5  # weight of the critic's loss
    entropy_coef: float = 0.0  # weight of the entropy bonus; 0: none
    kl: KlPlace = KlPlace.reward  # where the divergence from the reference is penalised
    kl_estimator: KlEstimator = KlEstimator.k1  # estimator of KL(policy || reference), per token
    kl_coef: float = 0.02  # weight of the KL penalty; with kl_target, its first value
    kl_target: float | None = (
        None  # KL in nats per token that kl_coef is steered to; none: kl_coef is constant
    )
    kl_step: float = 0.1  # gain of the steering: kl_coef moves by at most a fifth of it an iteration
    reference: Reference = Reference.start  # policy that the KL is measured from, and dpo's preferences
    dpo_beta: float = 0.1  # dpo: weight of the log-prob ratio to the reference, which is the implicit reward
    # algo=opd imitates it: folder of a PEFT adapter of the model, or a model (folder or name) of the same vocabulary
    teacher: str | None = None
    expert_coef: float = 0.0  # weight of the SFT loss that each optimizer step of the policy adds; 0: none
    expert_examples: int = 64  # expert answers of an iteration, shared among its steps; with expert_coef
    old_logprobs: OldLogprobs = OldLogprobs.learner  # source of the old policy's log-probs
    trust_region: TrustRegion = TrustRegion.ratio  # what bounds the step away from the old policy
    max_divergence: float = 0.15  # largest divergence of a token that still moves away; trust_region=tv or kl
    rollout_is: RolloutIS = RolloutIS.auto  # importance weights for differences between learner and engine
    rollout_is_level: RolloutLevel = RolloutLevel.ratio  # granularity of these weights
    rollout_is_cap: float = 2.0  # largest importance weight
    rollout_is_floor: float | None = None  # smallest importance weight; none: 1 / cap with mask, else 0
    rollout_reject: RolloutReject = RolloutReject.none  # ratio by which whole sequences are left out
    rollout_reject_cap: float | None = None  # largest ratio of a sequence that is kept; with rollout_reject
    rollout_reject_floor: float | None = None  # smallest ratio of a sequence that is kept; none: 1 / the cap
    dynamic_sampling: bool = False  # replace groups whose episodes all have the same reward
    max_refills: int = 3  # rounds of replacement per iteration; groups still flat then stay, and are counted
    learning_rate: float = 3e-4  # learning rate of the policy's adapter
    critic_learning_rate: float = 1e-3  # learning rate of the critic's adapter and value head
    warmup_steps: int = 5  # optimizer steps of linear warm-up, before algo.schedule
    schedule: RateSchedule = (
        RateSchedule.constant
    )  # learning rates from the end of the warm-up to algo.iterations
    final_share: float = (
        0.0  # share of the peak learning rate at the last step, if algo.schedule is not constant
    )
    critic_warmup: int = 2  # number of first iterations that update only the critic


@dataclass
class RolloutConfig:
    workers: int = 1  # Ray actors, one vLLM engine each
    episodes: int = 128  # episodes of an iteration, over all workers
    group_size: int = 1  # episodes that share one instance
    policy: RolloutPolicy = RolloutPolicy.latest  # policy that plays the episodes of training
    # Most updates between the policy that samples an episode and the update that learns from it. Above 0, engines go on
    # playing episodes of later iterations while the learner works.
    max_staleness: int = 0
    on_swap: OnSwap = OnSwap.in_flight  # turns that are being sampled when an update arrives
    lag: int = 0  # updates by which the policy that plays training's episodes is older than the current one
    temperature: float = 1.0  # temperature of sampled answers, in training and in evaluation
    max_new_tokens: int = 128  # most tokens of one answer
    max_model_len: int = 1024  # most tokens of an episode: prompt and all turns
    answer_marker: str | None = None  # text that separates an answer's reasoning from its result
    # System message before the environment's first message; for templates with a system role.
    system_prompt: str | None = None
    # Texts that end an answer. The token that completes one is kept, and the text is part of the answer.
    stop: list[str] = field(default_factory=list)
    # Variables for the model's chat template, which must read them: {enable_thinking: false}.
    template_args: dict[str, Any] = field(default_factory=dict)
    max_num_seqs: int = 128  # episodes that one engine decodes at once
    kv_cache_gib: float = 1.0  # GiB of KV cache of one engine on CPU, over all its processes
    gpu_memory_utilization: float = 0.4  # share of a GPU that one engine may take
    tensor_parallel: int = (
        1  # processes that share each layer of one engine; each claims the cpus and gpus below
    )
    cpus: float = 1.0  # Ray CPUs and compute threads of a worker (of each process of its engine)
    gpus: float = 0.0  # share of a GPU that Ray sets aside for a worker (for each process of its engine)
    # Engines free their GPU memory while the learner works, so that both fit on one GPU; see docs/clusters.md.
    sleep: bool = False
    enforce_eager: bool = True  # False compiles the engine: slower start, faster decoding
    # Largest mean |log-prob difference| of a swap on its canary; bf16 alone gives up to 0.07.
    max_canary_gap: float = 0.1
    restarts: int = 3  # number of dead engines that a run replaces
    min_workers: int | None = None  # fewest workers with which a run goes on after losses; none: all of them
    # Most workers: a run on a joined cluster adds some between iterations while nodes have room; none: rollout.workers.
    max_workers: int | None = None
    recycle_mib: int = 0  # host memory above which a worker is replaced between iterations; 0: never
    env_timeout_s: float = 30.0  # deadline of one reset or step of an environment; its episode then ends
    timeout_s: float = 600.0  # deadline of one answer from a worker

    @property
    def plays_current(self) -> bool:
        """Whether the current policy plays the episodes of training, as it always plays evaluations."""
        return self.policy is RolloutPolicy.latest and self.lag == 0


@dataclass
class LearnerConfig:
    workers: int = 1  # DeepSpeed ranks
    zero_stage: int = 0  # DeepSpeed ZeRO: 0 none; shards optimizer states (1), gradients (2), parameters (3)
    micro_batch_tokens: int = 8192  # distinct tokens of one forward and backward pass, without padding
    optimizer: Optimizer = Optimizer.adamw  # what updates the trained weights
    lora_plus_ratio: float = 1.0  # learning rate of LoRA's B over that of A (LoRA+); 1: the same
    weight_decay: float = 0.0  # decoupled weight decay
    # decay rates of AdamW's two moments, each at least 0 and below 1
    betas: list[float] = field(default_factory=lambda: [0.9, 0.95])
    max_grad_norm: float = 1.0  # largest gradient norm; longer gradients are scaled down to it
    gradient_checkpointing: bool = False  # recompute activations in the backward pass: less memory, more time
    cpus: float = 1.0  # Ray CPUs that a rank claims
    threads: int = 2  # compute threads of a rank while the engines sleep
    gpus: float = 0.0  # share of a GPU that Ray sets aside for a rank
    timeout_s: float = 900.0  # deadline of one answer from a rank


@dataclass
class EvalConfig:
    instances: Instances = Instances.drawn  # which instances of a variant are played
    episodes: int = 256  # instances per variant and decoding, if eval.instances=drawn
    samples: int = 1  # sampled episodes per instance; from 2, pass@k and majority@k are reported
    greedy: bool = True  # evaluate greedy decoding
    sampled: bool = True  # evaluate answers sampled at rollout.temperature
    start: bool = True  # also evaluate before training
    every: int = 0  # iterations (task=sft: steps) between evaluations; 0: only before and after
    seed: int = 20250126  # fixed: every run and checkpoint sees the same deals
    endpoint: str | None = (
        None  # task=eval: OpenAI-compatible server whose model plays: http://localhost:8000/v1
    )
    endpoint_model: str | None = None  # name of the model at eval.endpoint; the key is OPENAI_API_KEY's


@dataclass
class RetentionConfig:
    """What training costs elsewhere, measured at its start and whenever task=rl or task=sft evaluates; off by default.

    It is on if `retention.env` or `retention.text` is given. docs/retention.md defines each number.
    """

    env: str | None = None  # another environment to play, named as in env; none: none
    env_args: dict[str, Any] = field(default_factory=dict)  # keyword arguments of retention.env
    variants: list[str] = field(default_factory=list)  # its variants to play; empty: the first not held out
    episodes: int = 64  # instances per variant of retention.env
    max_new_tokens: int | None = None  # most tokens of one answer there; none: rollout.max_new_tokens
    # text whose loss is measured: auto (the bundled model's own corpus), a UTF-8 file, or .jsonl with "text"
    text: str | None = None
    text_tokens: int = 8192  # tokens of retention.text that are scored
    kl_episodes: int = 64  # sampled evaluation episodes for the KL to the start, one an instance; 0: no KL

    @property
    def on(self) -> bool:
        """Whether anything is measured."""
        return self.env is not None or self.text is not None

    @property
    def kl(self) -> bool:
        """Whether the KL to the start is measured."""
        return self.on and self.kl_episodes > 0


@dataclass
class BudgetConfig:
    """Amounts of compute since the start of training at which task=rl and task=sft evaluate; the last one ends it."""

    measure: Measure = Measure.flops  # unit of budget.amounts
    amounts: list[float] = field(default_factory=list)  # increasing; empty: set by algo.iterations, sft.steps


@dataclass
class CompareConfig:
    """task=compare: `arms=`, `seeds=` and `quick=` are short for the settings here."""

    # Rows of rlpost/config/arms.py; the first algorithm sets the budget of the other arms
    arms: list[str] = field(default_factory=lambda: ["sft", "ppo"])
    # Named settings, with each of which every arm is run: {rank_1: {lora.rank: 1}}; empty: every arm is run once
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    # Further differences of two arms in the report: [opd - grpo]; under each of the settings, if there are some
    contrasts: list[str] = field(default_factory=list)
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])  # every arm is trained with each seed
    points: int = 4  # evaluations of an arm, at equal shares of the budget
    match_on: Measure = Measure.flops  # unit of compute or data in which all arms have the same budget
    concurrency: int | None = None  # cells at once; none: one here, on a cluster as many as its CPUs allow
    # Cells on this machine keep Ray and the engines from one to the next; results are the same
    share_engines: bool = True
    # Settings named by the user (noted by `compose`), which every arm keeps whatever its algorithm's default.
    named: list[str] = field(default_factory=list)
    quick: bool = False  # only the first seed, and at most quick_iterations as algo.iterations
    quick_iterations: int = 16  # most algo.iterations of a quick comparison


class PlacementStrategy(Enum):
    """The nodes of a joined cluster on which the run's processes go; docs/clusters.md."""

    pack = "pack"  # as few nodes as possible
    spread = "spread"  # rollout workers on as many nodes as possible, all learner ranks on one node


@dataclass
class RayConfig:
    address: str | None = None  # `auto`, host:port or [IPv6]:port of a running cluster; none starts one here
    timeout_s: float = 120.0  # deadline for the cluster to answer and for actors to start
    placement: PlacementStrategy = (
        PlacementStrategy.pack
    )  # which nodes of a joined cluster the processes go on
    wait_s: float = 600.0  # deadline for a joined cluster to have room for the whole run
    autoscaling: bool = False  # the joined cluster adds nodes on demand: wait for what it does not have yet


@dataclass
class TrackingConfig:
    backends: list[str] = field(default_factory=lambda: ["wandb"])  # any of wandb, tensorboard, mlflow
    wandb: str = "auto"  # auto (WANDB_MODE, else online if there is a key), online, offline or disabled
    mlflow_uri: str | None = None  # none: MLFLOW_TRACKING_URI, else a database in the run directory
    project: str = "rlpost"  # wandb's project, MLflow's experiment
    checkpoint_every: int = 10  # iterations between checkpoints


@dataclass
class TinyBaseConfig:
    """The recipe of the bundled base model; see rlpost/assets/tiny/README.md for what made the shipped file."""

    minutes: float = 75.0  # minutes of training; the learning-rate schedule follows the clock
    start: str | None = None  # model folder, with tokenizer, of an earlier training to continue
    vocab_size: int = 512  # entries of the trained tokenizer
    hidden_size: int = 256  # width of the model
    layers: int = 6  # transformer blocks
    heads: int = 4  # attention heads per block
    intermediate_size: int = 768  # width of the feed-forward part
    batch_tokens: int = 8192  # tokens per optimizer step
    learning_rate: float = 3e-3  # peak of the schedule


@dataclass
class Config:
    task: Task = Task.rl  # task of the run
    name: str = "run"  # the experiment's name, part of the output folder's path
    model: str = "tiny"  # tiny, smollm2-135m, a local folder, or a hub id
    dtype: Dtype = Dtype.auto  # precision of engine and learner; a run's config.yaml contains the choice
    adapter: str | None = None  # folder of a PEFT adapter to start from (or to evaluate)
    env: str = "generalpoints"  # a bundled environment, module:Class, dataset, agent, verifiers:ID, ... (rlpost list)
    env_args: dict[str, Any] = field(default_factory=dict)  # keyword arguments of the environment
    train_variant: str = "faces_10"  # variant of the environment to train on
    # variants of the environment to evaluate
    eval_variants: list[str] = field(default_factory=lambda: ["faces_10", "faces_11_12_13"])
    seed: int = 0  # determines the episodes, the initial adapter and the order of minibatches
    output_dir: str | None = None  # folder of the run; none: outputs/<name>/<time>-<seed>
    resume: str | None = None  # run directory to continue
    lora: LoraConfig = field(default_factory=LoraConfig)
    sft: SftConfig = field(default_factory=SftConfig)
    algo: AlgoConfig = field(default_factory=AlgoConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    learner: LearnerConfig = field(default_factory=LearnerConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    retention: RetentionConfig = field(default_factory=RetentionConfig)
    budget: BudgetConfig = field(default_factory=BudgetConfig)
    compare: CompareConfig = field(default_factory=CompareConfig)
    ray: RayConfig = field(default_factory=RayConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    tiny_base: TinyBaseConfig = field(default_factory=TinyBaseConfig)
