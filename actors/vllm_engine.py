"""vLLM behind `Generates`: the mixture model in this very process, one request per answer."""

from __future__ import annotations

import contextlib
import os
import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt

from ..common.config.run import EngineConfig, ModelConfig
from ..common.errors import ConfigError, MinillmError, ModelError, told
from ..common.process import OPENMP, collector_paused
from ..common.types import Floats, Ids, Passage, Prompt, SamplingSpec, WeightVersion, answer_name
from ..common.weights import WeightManifest
from . import vllm_compat
from .sampler import Drawn, sample_numbers
from .weight_prefetcher import Received

if TYPE_CHECKING:
    from vllm import SamplingParams
    from vllm.outputs import CompletionOutput, RequestOutput

    from .mixture_model import TeacherMixedForCausalLM
    from .vllm_compat import LLMEngine

BLOCK_TOKENS = 32
"""Tokens of one cache block on CPUs. vLLM shares whole blocks of a prompt among its answers; its own
default of 128 would share nothing of most prompts."""
PREFILL_TOKENS = 8192
"""Most prompt tokens of one step."""
MODEL_FILES = ("*.json", "*.safetensors", "*.jinja", "*.txt", "*.model")
"""Files of a model on the hub that are read here: weights, settings, tokenizer."""


def prepare_environment(threads: int | None) -> None:
    """Settings that vLLM, torch and OpenMP read when they are imported, so this comes before.

    The engine runs in the calling process (only there can it reach Ray), without telemetry, quietly,
    and without compiling anything where there is no compiler.
    """
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    # Our sampler replaces that of the first model runner; vLLM may choose the second one by default.
    os.environ["VLLM_USE_V2_MODEL_RUNNER"] = "0"
    os.environ["VLLM_NO_USAGE_STATS"] = "1"
    os.environ["VLLM_DO_NOT_TRACK"] = "1"
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    for name, value in OPENMP.items():
        os.environ.setdefault(name, value)
    if threads is not None:
        os.environ["OMP_NUM_THREADS"] = str(threads)
    if shutil.which("g++") is None and shutil.which("clang++") is None:
        os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")


class VllmEngine:
    """A student, mixed with a teacher if there is one, in one vLLM engine.

    `max_tokens` counts prompt and answer together. Raises ModelError for a model that cannot be used
    here and ConfigError for settings with too little KV-cache memory.
    """

    def __init__(
        self,
        student: str,
        teacher: str | None,
        settings: EngineConfig,
        *,
        vocabulary: int,
        max_tokens: int,
        threads: int | None = None,
    ):
        prepare_environment(threads)
        import torch

        if threads is not None:
            torch.set_num_threads(threads)
        self.vocabulary = vocabulary
        self.max_tokens = max_tokens
        self._dtype = settings.dtype
        self.eos_ids = end_of_sequence_ids(student)
        _check_lengths([path for path in (student, teacher) if path], max_tokens)
        with collector_paused():
            self._engine = _start(student, teacher, settings, vocabulary, max_tokens)
        from .mixture_sampler import MixtureSampler

        runner = vllm_compat.ModelRunner(self._engine)
        self.model: TeacherMixedForCausalLM = runner.model
        self._sampler = MixtureSampler(self.model, runner.request_ids)
        runner.draw_with(self._sampler)
        if settings.enforce_eager:  # a compiled network's layers cannot be given other rows
            self.model.share_prefill(runner.step_tokens)
            self._try_layers()
        self._engine.collective_rpc("init_weight_transfer_engine", args=({},))
        vllm_compat.close_single_member_groups()

    def generate(self, prompts: Sequence[Prompt], spec: SamplingSpec) -> list[Drawn]:
        """`spec.samples` answers to each prompt, prompt-major.

        Every answer draws from its own seed, made of the spec's seed, the prompt's id and the sample
        number: the same in any process, and whatever else is in the batch. All end-of-sequence ids of
        the student's generation config, and of the spec, end an answer, and are part of it.
        """
        from .mixture_sampler import answer_seed

        if not prompts:
            return []
        wanted = [(prompt, sample) for prompt in prompts for sample in sample_numbers(prompt, spec)]
        seeds = [answer_seed(spec.seed, prompt.id, sample) for prompt, sample in wanted]
        lengths = [spec.max_tokens] * len(wanted)
        return self._run([(p.id, sample, p.token_ids) for p, sample in wanted], lengths, seeds, spec)

    def read(self, passages: Sequence[Passage], teacher_mix: float = 0.0) -> list[Drawn]:
        """Given answers as if they had been drawn: what sampling would have known of each of their tokens.

        With `teacher_mix` > 0 the teacher reads them too.
        """
        spec = SamplingSpec(
            max_tokens=max(len(passage.answer_ids) for passage in passages),
            teacher_mix=teacher_mix,
            ignore_eos=True,
        )
        given = [passage.answer_ids for passage in passages]
        wanted = [(passage.prompt_id, n, passage.prompt_ids) for n, passage in enumerate(passages)]
        return self._run(wanted, [len(ids) for ids in given], [0] * len(wanted), spec, given)

    def _run(
        self,
        wanted: Sequence[tuple[str, int, Ids]],
        lengths: Sequence[int],
        seeds: Sequence[int],
        spec: SamplingSpec,
        given: Sequence[Ids] | None = None,
    ) -> list[Drawn]:
        """One answer for each (prompt id, sample number, prompt's tokens), of at most so many tokens."""
        import torch
        from vllm.inputs import TokensPrompt

        self._set_mixture(spec)
        params = {length: self._params(spec, length) for length in set(lengths)}
        requests: dict[str, int] = {}
        for number, ((prompt_id, sample, ids), length) in enumerate(zip(wanted, lengths, strict=True)):
            tokens = TokensPrompt(prompt_token_ids=ids.tolist())
            name = f"{number}:{answer_name(prompt_id, sample)}"
            requests[self._engine.add_request(name, tokens, params[length])] = number
        states = None if spec.states is None else getattr(torch, spec.states)
        self._sampler.begin(requests, seeds, spec.max_tokens, states, given)
        ended: dict[int, CompletionOutput] = {}
        while self._engine.has_unfinished_requests():
            for output in cast("list[RequestOutput]", self._engine.step()):
                ended[int(output.request_id.partition(":")[0])] = output.outputs[0]
        return [
            _drawn(ended[number], ids, log_probs, spec.teacher_mix > 0, states)
            for number, (ids, log_probs, states) in enumerate(self._sampler.finish())
        ]

    def load(self, manifest: WeightManifest, received: Sequence[Received]) -> None:
        """Put newer weights into the student; the teacher is not touched.

        Raises ModelError if a bucket is damaged or the tensors are not the student's; the old weights
        then stay.
        """
        update = {"update_info": {"manifest": manifest, "received": received}}
        self._engine.collective_rpc("start_weight_update")
        self._engine.collective_rpc("update_weights", kwargs=update)
        self._engine.collective_rpc("finish_weight_update")
        self._reset_prefix_cache()

    def swap_model(self, student: str) -> None:
        """Answer as another student of the same shape from now on, without a new start.

        Raises ModelError if its parameters are not those of the student that this engine was made for.
        """
        from .vllm_weights import manifest_of

        with vllm_compat.as_in_engine(vllm_compat.settings_of(self._engine)):
            manifest = manifest_of(student, WeightVersion(1), self._dtype)
        self.load(manifest, [Received.of(bucket.ref) for bucket in manifest.buckets])
        self.eos_ids = end_of_sequence_ids(student)

    def teacher_checksum(self) -> int | None:
        """See TeacherMixedForCausalLM.teacher_checksum."""
        return self.model.teacher_checksum()

    def _try_layers(self) -> None:
        """Answer something with all networks, which shows whether rows reach attention as they should."""
        prompt = Prompt(id="", token_ids=np.zeros(1, np.int32))
        mixed = 0.0 if self.model.teacher is None else 0.5
        self.generate([prompt], SamplingSpec(max_tokens=1, teacher_mix=mixed, ignore_eos=True))
        self._set_mixture(SamplingSpec(max_tokens=1))

    def _set_mixture(self, spec: SamplingSpec) -> None:
        from .mixing import Mixture

        if spec.teacher_mix > 0 and self.model.teacher is None:
            raise ModelError(
                f"teacher_mix = {spec.teacher_mix}, but this engine was built without a teacher; set"
                " teacher_mix=0 or give the engine a teacher"
            )
        if (spec.teacher_mix > 0) != (self.model.mixture.teacher_mix > 0):
            # Prefixes cached at alpha = 0 hold no keys and values of the teacher.
            self._reset_prefix_cache()
        self.model.mixture = Mixture(
            teacher_mix=spec.teacher_mix,
            temperature=spec.temperature,
            top_p=spec.top_p,
            top_k=spec.top_k,
        )

    def _reset_prefix_cache(self) -> None:
        done = self._engine.reset_prefix_cache()
        assert done, "no answer is under way here, so the cache can be cleared"

    def _params(self, spec: SamplingSpec, max_tokens: int) -> SamplingParams:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        return SamplingParams(
            max_tokens=max_tokens,
            stop_token_ids=[] if spec.ignore_eos else sorted({*self.eos_ids, *spec.end_ids}),
            ignore_eos=True,  # its own notion of one end-of-sequence id; ours are the stop tokens
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )


def local_folder(model: ModelConfig) -> str:
    """The model's own folder, or the hub's files at `revision`, downloaded unless this machine has them.

    vLLM and the mixture read plain folders, so that all processes of a run read one revision. Raises
    ModelError.
    """
    if Path(model.path).is_dir():
        return model.path
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return snapshot_download(model.path, revision=model.revision, allow_patterns=list(MODEL_FILES))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as fault:
        raise ModelError(
            f"{model.path} is no folder on this machine, and the hub does not give it at revision"
            f" {model.revision or 'main'}: {fault}; on a cluster a folder must be on every machine"
        ) from fault


def end_of_sequence_ids(model: str, revision: str | None = None) -> list[int]:
    """All ids that end an answer: those of the generation config, else those of the model's config."""
    from transformers import AutoConfig, GenerationConfig

    found: Any = None
    with contextlib.suppress(OSError):  # a model without generation_config.json
        found = GenerationConfig.from_pretrained(model, revision=revision or "main").eos_token_id
    if found is None:
        found = getattr(AutoConfig.from_pretrained(model, revision=revision), "eos_token_id", None)
    if found is None:
        return []
    return sorted(set(found)) if isinstance(found, list) else [found]


def _check_lengths(models: list[str], max_tokens: int) -> None:
    from transformers import AutoConfig

    for model in models:
        positions = getattr(AutoConfig.from_pretrained(model), "max_position_embeddings", None)
        if positions is not None and max_tokens > positions:
            raise ModelError(
                f"prompt and answer take up to {max_tokens} tokens, but {model} has {positions} positions;"
                " set a smaller data.max_prompt_tokens or rollout.max_new_tokens"
            )


def _start(
    student: str, teacher: str | None, settings: EngineConfig, vocabulary: int, max_tokens: int
) -> LLMEngine:
    vllm_compat.check()
    from vllm import EngineArgs
    from vllm.config import CompilationConfig, CUDAGraphMode
    from vllm.config.weight_transfer import WeightTransferConfig
    from vllm.platforms import current_platform

    from .mixture_model import WEIGHT_TRANSFER, overrides, register

    register()
    kernels: dict[str, Any] = {}
    if current_platform.is_cpu() and settings.enforce_eager:
        from .cpu_kernels import op_priority

        kernels = {"ir_op_priority": op_priority()}
    arguments = EngineArgs(
        model=student,
        hf_overrides=overrides(student, teacher, vocabulary),
        skip_tokenizer_init=True,
        generation_config="vllm",
        load_format="safetensors",
        use_tqdm_on_load=False,
        dtype=settings.dtype,
        max_model_len=max_tokens,
        max_num_seqs=settings.max_num_seqs,
        max_num_batched_tokens=max(max_tokens, PREFILL_TOKENS),
        # A prefill in pieces draws tokens that are thrown away, and with them numbers of the seed.
        enable_chunked_prefill=False,
        enable_prefix_caching=True,
        block_size=BLOCK_TOKENS if current_platform.is_cpu() else None,
        kv_cache_memory_bytes=int(settings.kv_cache_gib * 2**30),
        enforce_eager=settings.enforce_eager,
        # Whole CUDA graphs would freeze whether the teacher runs.
        compilation_config=CompilationConfig(cudagraph_mode=CUDAGraphMode.PIECEWISE),
        async_scheduling=False,
        disable_log_stats=True,
        weight_transfer_config=WeightTransferConfig(backend=WEIGHT_TRANSFER),
        seed=0,
        **kernels,
    )
    try:
        with warnings.catch_warnings():
            # vLLM inspects every loaded module, and deprecated names in there warn.
            warnings.simplefilter("ignore", FutureWarning)
            return vllm_compat.LLMEngine.from_engine_args(arguments)
    except MinillmError:
        raise
    except Exception as error:  # whatever it is, whoever started this run is told of which models it was
        if isinstance(error, ValueError) and "cache" in str(error):
            raise ConfigError(
                f"rollout.kv_cache_gib = {settings.kv_cache_gib} is too small for one sequence of"
                f" {max_tokens} tokens (or more than this machine has); vLLM says: {error}"
            ) from error
        models = " beside ".join(path for path in (student, teacher) if path)
        raise ModelError(
            f"vLLM cannot run {models}: {told(error)}; use models of other families; those that were tried"
            " are in docs/reference/families.md"
        ) from error


def _drawn(
    output: CompletionOutput, ids: Ids, log_probs: Floats, mixed: bool, states: npt.NDArray[Any] | None
) -> Drawn:
    assert list(output.token_ids) == ids.tolist(), "vLLM's answer is not what the sampler drew"
    return Drawn(
        answer_ids=ids,
        behaviour_logprobs=log_probs[0],
        student_logprobs=log_probs[1],
        mixed_teacher_logprobs=log_probs[2] if mixed else None,
        finish="stop" if output.finish_reason == "stop" else "length",
        teacher_states=states,
    )
