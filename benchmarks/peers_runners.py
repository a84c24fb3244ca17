"""The engines that peers.py holds beside each other, each behind the same three questions. Imports nothing but numpy
before a runner is made, so that a peer can live in an environment without Gemmary.

A runner is made with its library's own defaults but for threads and context. `start` forgets what was before and reads
prompts of one length, up to the logits of their last tokens in memory; `write` then appends given tokens, one step for
a token of every sequence. Nothing is sampled: the tokens are given, so every engine does the same work.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import numpy as np

CHUNK = 512
"""Tokens of a prompt in one step, for engines that take it in pieces."""


class Runner(Protocol):
    """One engine with one model loaded."""

    name: str

    def start(self, prompts: Sequence[Sequence[int]]) -> None:
        """Reads prompts, one sequence each."""
        ...

    def write(self, steps: Sequence[Sequence[int]]) -> None:
        """Appends tokens: a step holds one for each sequence."""
        ...


class Gemmary:
    """The native engine on a GGUF file or a folder."""

    def __init__(self, path: str, dtype: str | None, context: int, threads: int) -> None:
        from gemmary import __version__
        from gemmary.checkpoints import open_checkpoint
        from gemmary.engines import open_engine

        checkpoint = open_checkpoint(Path(path))
        self.engine: Any = open_engine("native", checkpoint.config, checkpoint.lookup, dtype=dtype, threads=threads)
        self.name = f"Gemmary {__version__} ({self.engine.info.device})"
        self.context = context

    def start(self, prompts: Sequence[Sequence[int]]) -> None:
        self.caches = [self.engine.new_cache(self.context) for _ in prompts]
        self.length = 0
        size = max(1, CHUNK // len(prompts))
        for begin in range(0, len(prompts[0]), size):
            last = begin + size >= len(prompts[0])
            self._step([prompt[begin : begin + size] for prompt in prompts], "last" if last else "none")

    def write(self, steps: Sequence[Sequence[int]]) -> None:
        for step in steps:
            self._step([[token] for token in step], "last")

    def _step(self, pieces: Sequence[Sequence[int]], outputs: Any) -> None:
        from gemmary.batch import Batch, Chunk

        chunks = [Chunk(piece, self.length, outputs=outputs) for piece in pieces]
        self.engine.step(Batch.of(self.engine.config, chunks), self.caches)
        self.length += len(pieces[0])


class LlamaCpp:
    """llama.cpp by its C interface: llama-cpp-python's class does one sequence only and copies every row of logits."""

    SEQUENCES = 8

    def __init__(self, path: str, dtype: str | None, context: int, threads: int) -> None:
        import llama_cpp

        self.lib = llama_cpp
        self.silence = llama_cpp.llama_log_callback(lambda *line: None)
        llama_cpp.llama_log_set(self.silence, None)
        llama_cpp.llama_backend_init()
        self.model = llama_cpp.llama_model_load_from_file(path.encode(), llama_cpp.llama_model_default_params())
        if not self.model:
            raise SystemExit(f"llama.cpp cannot load {path}")
        self.threads, self.context_size, self.context = threads, context, None
        self.name = f"llama.cpp (llama-cpp-python {version('llama-cpp-python')})"
        self.vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))
        self.batch = llama_cpp.llama_batch_init(CHUNK, 0, 1)
        self.sequences = 0

    def start(self, prompts: Sequence[Sequence[int]]) -> None:
        if len(prompts) != self.sequences:
            self._open(len(prompts))
        self.lib.llama_memory_clear(self.lib.llama_get_memory(self.context), False)
        self.length = 0
        size = max(1, CHUNK // len(prompts))
        for begin in range(0, len(prompts[0]), size):
            self._step([prompt[begin : begin + size] for prompt in prompts], begin + size >= len(prompts[0]))

    def write(self, steps: Sequence[Sequence[int]]) -> None:
        for step in steps:
            self._step([[token] for token in step], True)

    def _open(self, sequences: int) -> None:
        """A context has room for a number of sequences, each of which gets an equal share."""
        if self.context:
            self.lib.llama_free(self.context)
        params = self.lib.llama_context_default_params()
        params.n_ctx = self.context_size * sequences
        params.n_batch = params.n_ubatch = CHUNK
        params.n_threads = params.n_threads_batch = self.threads
        params.n_seq_max = self.sequences = sequences
        self.context = self.lib.llama_init_from_model(self.model, params)
        if not self.context:
            raise SystemExit(f"llama.cpp cannot make a context of {params.n_ctx} tokens")

    def _step(self, pieces: Sequence[Sequence[int]], logits: bool) -> None:
        batch, count = self.batch, 0
        for sequence, piece in enumerate(pieces):
            for offset, token in enumerate(piece):
                batch.token[count], batch.pos[count] = token, self.length + offset
                batch.n_seq_id[count], batch.seq_id[count][0] = 1, sequence
                batch.logits[count] = logits and offset == len(piece) - 1
                count += 1
        batch.n_tokens = count
        if self.lib.llama_decode(self.context, batch):
            raise SystemExit("llama.cpp refused a step")
        self.length += len(pieces[0])
        if logits:  # asking for them waits until they are there
            for sequence, piece in enumerate(pieces):
                row = self.lib.llama_get_logits_ith(self.context, (sequence + 1) * len(piece) - 1)
                np.ctypeslib.as_array(row, shape=(self.vocabulary,)).copy()


class Transformers:
    """PyTorch on a folder, not compiled, attention as the library chooses: its fused kernel, but not for Gemma 2."""

    def __init__(self, path: str, dtype: str | None, context: int, threads: int) -> None:
        import torch
        from transformers import AutoModelForCausalLM
        from transformers.utils import logging

        logging.disable_progress_bar()
        self.torch = torch
        torch.set_num_threads(threads)
        torch.set_grad_enabled(False)
        self.model: Any = AutoModelForCausalLM.from_pretrained(path, dtype=dtype).eval()
        self.name = f"transformers {version('transformers')} (torch {torch.__version__}, {dtype})"

    def start(self, prompts: Sequence[Sequence[int]]) -> None:
        self.cache = None
        self._step(prompts)

    def write(self, steps: Sequence[Sequence[int]]) -> None:
        for step in steps:
            self._step([[token] for token in step])

    def _step(self, tokens: Sequence[Sequence[int]]) -> None:
        ids = self.torch.tensor(tokens)
        out = self.model(ids, past_key_values=self.cache, use_cache=True, logits_to_keep=1)
        self.cache = out.past_key_values
        out.logits.float().numpy()


class OpenVino:
    """The runtime under OpenVINO GenAI on the model that optimum-intel exports, which keeps its own cache.

    As GenAI does, the head is computed for the last token of a step alone; without that, a prompt of 512 tokens would
    compute 512 rows of logits. Activations are quantized dynamically and keys held in 8 bits, as is its default.
    GenAI's own pipeline adds a scheduler and sampling over the whole vocabulary, and was slower where both were timed.
    """

    def __init__(self, path: str, dtype: str | None, context: int, threads: int) -> None:
        import openvino
        from openvino import opset13

        core = openvino.Core()
        model = core.read_model(Path(path) / "openvino_model.xml")
        head = model.output("logits").node.input_value(0).node
        while head.get_type_name() != "MatMul":
            head = head.input_value(0).node
        hidden = head.input_value(0)
        last = opset13.slice(hidden, [-1], [np.iinfo(np.int64).max], [1], [1])
        head.input(0).replace_source_output(last.output(0))
        model.validate_nodes_and_infer_types()
        self.inputs = {port.get_any_name() for port in model.inputs}
        options = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
        self.request: Any = core.compile_model(model, "CPU", options).create_infer_request()
        self.name = f"OpenVINO {version('openvino')}"

    def start(self, prompts: Sequence[Sequence[int]]) -> None:
        self.request.reset_state()
        self.length = 0
        self._step(prompts)

    def write(self, steps: Sequence[Sequence[int]]) -> None:
        for step in steps:
            self._step([[token] for token in step])

    def _step(self, tokens: Sequence[Sequence[int]]) -> None:
        ids = np.array(tokens, dtype=np.int64)
        sequences, count = ids.shape
        feeds = {
            "input_ids": ids,
            "attention_mask": np.ones((sequences, self.length + count), dtype=np.int64),
            "position_ids": np.tile(np.arange(self.length, self.length + count), (sequences, 1)),
            "beam_idx": np.arange(sequences, dtype=np.int32),
        }
        self.request.infer({name: array for name, array in feeds.items() if name in self.inputs}, share_inputs=True)
        self.request.get_tensor("logits").data.copy()
        self.length += count


RUNNERS: dict[str, Callable[[str, str | None, int, int], Runner]] = {
    "gemmary": Gemmary,
    "llama.cpp": LlamaCpp,
    "openvino": OpenVino,
    "transformers": Transformers,
}
LIBRARIES = {
    "gemmary": ("gemmary.api", "gemmary.engines.native"),
    "llama.cpp": ("llama_cpp",),
    "openvino": ("openvino",),
    "transformers": ("torch", "transformers.models.gemma2", "transformers.models.gemma3"),
}
"""What each runner imports, apart from its own time."""
