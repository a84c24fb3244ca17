"""A loaded model: what can be asked of it. `gemmary.load` makes one."""

from __future__ import annotations

import secrets
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import numpy.typing as npt

from gemmary import scores, zoo
from gemmary.adapters import ONLY, Asked, Choice, number_of
from gemmary.chat import Message, Prompt, encode_chat, fill_in_the_middle, looks_like_gemma, style_of
from gemmary.chat.pictures import BEGIN, picture_ids
from gemmary.checkpoints import Checkpoint
from gemmary.checkpoints.kept import PackedCopy
from gemmary.checkpoints.peft import Adapter, AdapterConfig
from gemmary.config import Config
from gemmary.drafting import draft_guesser
from gemmary.engines import Engine, EngineInfo
from gemmary.errors import GemmaryError
from gemmary.generate import Completion, SamplingOptions, SamplingParams, Scheduler, Stream
from gemmary.generate.params import Allowed, TextOptions
from gemmary.generate.request import Request
from gemmary.generate.sight import Picture
from gemmary.generate.text import TextStream
from gemmary.quantize.leaves import Leaf
from gemmary.scores import are_ids
from gemmary.seeing import PictureCompletion, PictureOptions, Seeing, answer_tokens, open_pictures, seen
from gemmary.tokenizer import Tokenizer
from gemmary.vision.prompt import prompt_ids

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from gemmary.checkpoints.convert import Progress

Ids = Sequence[int]


class GemmaryWarning(UserWarning):
    """Something was done that the caller may not expect. The same lines stand in `notices`."""


class Model(Seeing):
    """A loaded model. `load` makes it.

    Any thread may call it; calls share the steps of one scheduler. Everything raises GemmaryError for what cannot be
    done. It is its own context manager; leaving it, or `close`, ends what is being generated and frees the weights.
    """

    config: Config
    context: int
    """Tokens that prompt and answer may have together."""
    notices: tuple[str, ...]
    """What should be known about how it was loaded."""
    adapters: dict[str, AdapterConfig]
    """Those that were loaded, by name. Where `adapter` may be given below, it is one of these names, or None for the
    base model; left out it is the only one, and an error where there are several."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        engine: Engine,
        *,
        name: str | None = None,
        lookup: Callable[[str], Leaf] | None = None,
        context: int | None = None,
        kv_bytes: int | None = None,
        notices: Iterable[str] = (),
        draft: Model | None = None,
        adapters: Mapping[str, Adapter] | None = None,
        packed_copy: PackedCopy | None = None,
    ) -> None:
        """lookup: leaves as the engine was given them, without adapters, where they are not the checkpoint's own.
        context, kv_bytes: as in `Scheduler`. draft: a small model of the family that guesses tokens ahead. adapters:
        those that the engine was given, in their order. packed_copy: where one of what the engine packed would lie."""
        self.checkpoint = checkpoint
        self.lookup = lookup or checkpoint.lookup
        self.name = name or checkpoint.name
        self.config = engine.config
        self.notices = (*checkpoint.notices, *notices)
        self.context = context or engine.config.context_length
        self.draft = draft
        self.packed_copy = packed_copy
        self.adapters = {name: adapter.config for name, adapter in (adapters or {}).items()}
        templates = [adapter.chat_template for adapter in (adapters or {}).values()]
        self._tuned_template = templates[0] if len(templates) == 1 else None
        guessers = [] if draft is None else [draft_guesser(draft, checkpoint, engine)]
        of_tower = {number for number, each in enumerate((adapters or {}).values(), 1) if each.changes_tower}
        self._scheduler: Scheduler | None = Scheduler(
            engine, context=self.context, kv_bytes=kv_bytes, guessers=guessers, tower_adapters=of_tower
        )

    # What it is ---------------------------------------------------------------------------------------------------

    @property
    def scheduler(self) -> Scheduler:
        """What runs the engine; its `lock` is held during a step."""
        if self._scheduler is None:
            raise GemmaryError("this model was closed: load it again")
        return self._scheduler

    @property
    def engine(self) -> Engine:
        return self.scheduler.engine

    @property
    def info(self) -> EngineInfo:
        """Engine, device, dtype, formats of the weights, threads."""
        return self.engine.info

    @property
    def tokenizer(self) -> Tokenizer:
        return self.checkpoint.tokenizer

    @property
    def chat_template(self) -> str | None:
        """That of the only adapter, else the checkpoint's own, as text. It is never executed."""
        return self._tuned_template or self.checkpoint.chat_template

    @property
    def mask_codec_file(self) -> Path | None:
        """See `Checkpoint.mask_codec_file`."""
        return self.checkpoint.mask_codec_file

    @property
    def weight_format(self) -> str:
        """The format that the weights were given to the engine in, as one of the matrices has it: `BF16`, `Q4_0` …"""
        return self.lookup("layers.0.gate").format

    @property
    def description(self) -> str:
        adapted = f" with {' or '.join(self.adapters)}" if self.adapters else ""
        return f"{self.name}{adapted} ({self.info.engine} engine, {self.info.dtype}, weights {self.weight_format})"

    @property
    def instruction_tuned(self) -> bool:
        """Where the only adapter has a chat template; else by the zoo's row where the name has one, else by whether
        the checkpoint has a chat template."""
        if self._tuned_template is not None:
            return True
        row = zoo.find(self.name)
        return row.tuning == "instruction" if row else self.checkpoint.instruction_tuned

    # Asking it ----------------------------------------------------------------------------------------------------

    @overload
    def generate(
        self, prompt: str | Ids | Prompt, *, adapter: Asked = ONLY, **options: Unpack[TextOptions]
    ) -> Completion: ...

    @overload
    def generate(
        self,
        prompt: list[str] | list[Ids] | list[list[int]] | list[Prompt],
        *,
        adapter: Asked | Sequence[str | None] = ONLY,
        **options: Unpack[TextOptions],
    ) -> list[Completion]: ...

    @overload
    def generate(
        self, prompt: str | Ids | Prompt = "", *, image: Any, adapter: Asked = ONLY, **options: Unpack[PictureOptions]
    ) -> PictureCompletion: ...

    @overload
    def generate(
        self,
        prompt: list[str] | list[Ids] | list[list[int]] | list[Prompt],
        *,
        image: Any,
        adapter: Asked | Sequence[str | None] = ONLY,
        **options: Unpack[PictureOptions],
    ) -> list[PictureCompletion]: ...

    def generate(
        self,
        prompt: Any = "",
        *,
        image: Any = None,
        adapter: Asked | Sequence[str | None] = ONLY,
        **options: Unpack[PictureOptions],
    ) -> Any:
        """What the model writes after a prompt; after each of a list of prompts, in shared steps.

        prompt: a text (BOS is put before it, once, also where it begins with `<bos>`), ids (taken as they are), or
        what `chat_prompt` returns; or a list of these. image: what it is about (see `caption`), or a list of several
        pictures; with a list of prompts, one for all or a list of as many. resize: "big_vision" or "transformers", by
        whose way the picture becomes pixels. allowed: which tokens may come after those so far. adapter: see
        `adapters`; with a list of prompts, one for all or a list of as many. options: see `SamplingParams`; about a
        picture the text is greedy unless `temperature` is given. The same seed gives a prompt the same text alone and
        in a list.
        """
        many = isinstance(prompt, Sequence) and not isinstance(prompt, str | Prompt) and not are_ids(prompt)
        prompts = list(prompt) if many else [prompt]
        chosen: list[Asked] = []
        if adapter is None or isinstance(adapter, str | Choice):
            chosen = [adapter] * len(prompts)
        elif many and len(adapter) == len(prompts):
            chosen = list(adapter)
        else:
            raise GemmaryError(f"a list of {len(adapter)} adapters goes with a list of as many prompts")
        shown = open_pictures(self, image, options.pop("resize", "big_vision"), len(prompts) if many else None)
        allowed, params = options.pop("allowed", None), _params(options, image)
        with ExitStack() as open_streams:
            streams = [
                open_streams.enter_context(self._stream(each, params, named, pictures, allowed))
                for each, named, pictures in zip(prompts, chosen, shown, strict=True)
            ]
            completions = [stream.read() for stream in streams]
        return completions if many else completions[0]

    def stream(
        self,
        prompt: str | Ids | Prompt = "",
        *,
        image: Any = None,
        adapter: Asked = ONLY,
        **options: Unpack[PictureOptions],
    ) -> Stream:
        """Like `generate`, for one prompt, in pieces as they come: `for piece in model.stream(…): print(piece.text)`.

        Closing it, or dropping it, cancels.
        """
        (pictures,) = open_pictures(self, image, options.pop("resize", "big_vision"), None)
        allowed = options.pop("allowed", None)
        return self._stream(prompt, _params(options, image), adapter, pictures, allowed)

    def chat(
        self,
        messages: str | Sequence[Message],
        *,
        image: Any = None,
        adapter: Asked = ONLY,
        **options: Unpack[PictureOptions],
    ) -> Completion:
        """The model's answer to a conversation: {"role": "system" | "user" | "assistant", "content": "…"} each, or one
        text that the user says. Anything to be told is in `.notices`, and a GemmaryWarning.

        image: as in `generate`, for a model that sees and chats (Gemma 3): for each item {"type": "image"} of the
        contents a picture, in their order; before a text that the user says, all of them.
        """
        pictures = 0 if image is None else len(image) if isinstance(image, list | tuple) else 1
        prompt = self.chat_prompt(messages, pictures)
        completion = self.generate(prompt, image=image, adapter=adapter, **options)
        warn(completion.notices)
        return completion

    def chat_prompt(self, messages: str | Sequence[Message], pictures: int = 0) -> Prompt:
        """The conversation as ids, for `generate` or `stream`; what should be known about it is in its `.notices`.

        pictures: how many stand before a text that the user says.
        """
        if self.config.prefix_lm:
            raise GemmaryError(f"{self.name} does not chat: ask it about a picture, with `generate` and its `image`")
        if isinstance(messages, str):
            items = [*[{"type": "image"}] * pictures, {"type": "text", "text": messages}]
            messages = [{"role": "user", "content": items if pictures else messages}]
        style = style_of(self.config.family, self.chat_template)
        notices = []
        if self.chat_template is not None and looks_like_gemma(self.chat_template) is None:
            notices.append(f"the checkpoint's own chat template is not one of Gemma's: {style}'s is used instead")
        if not self.instruction_tuned:
            notices.append(f"{self.name} is not instruction-tuned: expect it to go on writing rather than to answer")
        vision, picture = self.config.vision, list[int]()
        if vision is not None and self.tokenizer.find(BEGIN) is not None:
            picture = picture_ids(self.tokenizer, self.config.image_token_id, vision.num_tokens)
        prompt = encode_chat(self.tokenizer, messages, style, picture=picture)
        return Prompt(prompt.ids, prompt.stop_ids, (*notices, *prompt.notices))

    def fill_in_the_middle(
        self, before: str, after: str, *, adapter: Asked = ONLY, **options: Unpack[SamplingOptions]
    ) -> Completion:
        """What CodeGemma writes between two pieces of code. Raises GemmaryError for other models' tokenizers."""
        prompt = fill_in_the_middle(self.tokenizer, before, after)
        completion = self.generate(prompt, adapter=adapter, **options)
        warn(completion.notices)
        return completion

    def embed(
        self,
        texts: str | Sequence[str],
        *,
        prompt: str | None = "query",
        title: str | None = None,
        dimensions: int | None = None,
        adapter: Asked = ONLY,
    ) -> npt.NDArray[np.float32]:
        """Unit vectors of texts, float32 [S, D]; of one text, [D]. Only for embedding models.

        prompt: what the vectors are for ("query", "document" …: `gemmary.embedding.PROMPTS`), None: the bare text.
        title: of a document. dimensions: 512, 256 or 128 for the leading numbers alone, normalised again. A text that
        does not fit the context is an error: nothing is cut.
        """
        from gemmary import embedding

        if not self.config.pooled_dense:
            raise GemmaryError(f"{self.name} is not an embedding model: use embeddinggemma-300m")
        sequences = []
        for text in [texts] if isinstance(texts, str) else texts:
            ids = self.tokenizer.encode(embedding.prompted(text, prompt, title), bos=True, eos=True)
            if len(ids) > self.context:
                raise GemmaryError(f"a text has {len(ids):,} tokens and the context holds {self.context:,}: split it")
            sequences.append(ids)
        if not sequences:
            raise GemmaryError("there is no text to embed")
        number = self.adapter_number(adapter)
        with self.scheduler.lock:
            vectors = embedding.embed(self.engine, sequences, dimensions, number)
        return vectors[0] if isinstance(texts, str) else vectors

    # Looking into it ----------------------------------------------------------------------------------------------

    def adapter_number(self, adapter: Asked = ONLY) -> int:
        """What a `Chunk` calls an adapter. Raises GemmaryError for a name that is not there, or none of several."""
        return number_of(list(self.adapters), adapter)

    def logits(
        self, ids: Ids, *, pixels: npt.ArrayLike | None = None, adapter: Asked = ONLY
    ) -> npt.NDArray[np.float32]:
        """Scores of the next token after each token of `ids`: float32 [T, V]. It is the only array of that size.

        pixels: float32 [images, rows, columns, 3] in [-1, 1], whose tokens stand in the places that `ids` has for them
        (`config.image_token_id`); such a prompt, and any of a model that reads prompts so (PaliGemma), sees itself
        whole.
        """
        return scores.logits(self, ids, pixels, self.adapter_number(adapter))

    def score(self, ids: Ids, *, adapter: Asked = ONLY) -> npt.NDArray[np.float32]:
        """Log-probability (natural) of each token after those before it: float32 [T - 1], the first has none."""
        return scores.score(self, ids, self.adapter_number(adapter))

    # Keeping it ---------------------------------------------------------------------------------------------------

    @property
    def packed_bytes(self) -> int:
        """Bytes of the weights that this load packed, of which no copy is kept; 0 where there is nothing to keep."""
        return sum(self._held(name).nbytes for name in self.checkpoint.names()) if self.packed_copy is not None else 0

    def keep_packed(self, progress: Progress | None = None) -> Path:
        """Keeps a copy of the weights as the native engine has packed them, which a later `load` of the same files maps
        instead of packing them again. Returns its folder; `gemmary rm --packed` removes all copies.

        Raises GemmaryError where nothing was packed (another engine, random weights, a packed folder or copy, a `dtype`
        with adapters), copies are turned off (GEMMARY_KEEP_PACKED=0), or the disk refuses.
        """
        if self.packed_copy is None:
            raise GemmaryError(f"of {self.name} no packed copy can be kept: this load has packed nothing to keep")
        self.packed_copy.write(self.checkpoint, self._held, progress)
        folder, self.packed_copy = self.packed_copy.folder, None
        return folder

    def _held(self, name: str) -> Leaf:
        engine: Any = self.engine  # the native one
        leaf: Leaf = engine.held(name)
        return leaf

    # Ending it ----------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Ends what is being generated and lets the weights go (a draft model's too, unless it is someone else's)."""
        scheduler, self._scheduler = self._scheduler, None
        self.draft = None
        if scheduler is not None:
            scheduler.close()

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *error: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()

    def _stream(
        self,
        prompt: str | Ids | Prompt,
        params: SamplingParams,
        adapter: Any,
        pictures: tuple[Picture, ...] = (),
        allowed: Allowed | None = None,
    ) -> Stream:
        if self.config.bidirectional:
            raise GemmaryError(f"{self.name} is an encoder and writes no text: use `embed`")
        tokenizer = self.tokenizer
        stops = {tokenizer.eos_id, *(tokenizer.turn_ids or ())[1:]}
        notices: tuple[str, ...] = ()
        if isinstance(prompt, str):
            bos = tokenizer.piece(tokenizer.bos_id)
            if prompt.startswith(bos):  # as in a prompt that another tool rendered
                prompt = prompt.removeprefix(bos)
                notices = (f"the text begins with {bos}: that is read as the token, which stands there once anyway",)
            sees = pictures or self.config.prefix_lm
            ids: Ids = (
                prompt_ids(tokenizer, self.config, prompt, len(pictures))
                if sees
                else tokenizer.encode(prompt, bos=True)
            )
        elif isinstance(prompt, Prompt):
            ids, notices = prompt.ids, prompt.notices
            stops |= prompt.stop_ids
        elif are_ids(prompt):
            ids = [int(i) for i in prompt]
        else:
            raise GemmaryError("a prompt is a text, a list of token ids, or what chat_prompt returns")
        if outside := [i for i in params.stop_ids if not 0 <= i < self.config.vocab_size]:
            raise GemmaryError(f"stop id {outside[0]} is outside the vocabulary (0 to {self.config.vocab_size - 1})")
        seed = params.seed if params.seed is not None else secrets.randbits(63)
        text = TextStream(tokenizer.stream(), params.stop_strings)
        number = self.adapter_number(adapter)
        if pictures and params.max_tokens is None:
            params = replace(params, max_tokens=answer_tokens(self, ids))
        prefix = len(ids) if self.config.prefix_lm else 0
        request = Request(ids, params, text, frozenset(stops), prefix, seed, number, pictures, allowed)
        told = (lambda completion: seen(self, completion, pictures)) if pictures else None
        return Stream(self.scheduler, request, notices, told)


def warn(notices: Iterable[str]) -> None:
    """Each as a GemmaryWarning at the caller's caller."""
    for notice in notices:
        warnings.warn(notice, GemmaryWarning, stacklevel=3)


def _params(options: SamplingOptions, image: Any) -> SamplingParams:
    return SamplingParams.of(options if image is None else {"temperature": 0.0, **options})
