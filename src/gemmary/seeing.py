"""What a model with a vision tower can be asked about a picture: the tasks of PaliGemma, in its prompt language."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast, get_args

from gemmary.adapters import Asked
from gemmary.errors import GemmaryError
from gemmary.generate import Completion
from gemmary.generate.params import TextOptions
from gemmary.generate.sight import Picture
from gemmary.vision import boxes as boxes_of
from gemmary.vision.boxes import Box, Mask
from gemmary.vision.grammar import ObjectGrammar, check_label
from gemmary.vision.objects import Malformed, parse
from gemmary.vision.preprocess import Resize, open_image, pixels
from gemmary.vision.prompt import prompt_ids

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from gemmary.loaded import Model
    from gemmary.vision.masks import MaskCodec

ANSWER_TOKENS = 512
"""The longest texts that the models were trained on (spec 3.5): where no `max_tokens` is given."""


class PictureOptions(TextOptions, total=False):
    """The keyword arguments of `generate` about a picture."""

    resize: Resize
    """By whose way it becomes the tower's square: see `preprocess.pixels`."""


class TaskOptions(PictureOptions, total=False):
    """Those of the tasks."""

    adapter: Asked


@dataclass(frozen=True)
class PictureCompletion(Completion):
    """What came of a prompt with a picture; of several pictures, the boxes and masks are in the first one's pixels."""

    width: int = 0
    """Of the picture."""
    height: int = 0
    boxes: tuple[Box, ...] = ()
    """The objects that the text names."""
    malformed: tuple[Malformed, ...] = ()
    """What looks like objects and is none, with the reason."""
    make_masks: Callable[[], list[Mask]] = field(default=list, repr=False, compare=False)

    @cached_property
    def masks(self) -> tuple[Mask, ...]:
        """Of those objects that have one. Raises GemmaryError where what decodes them is not to be had."""
        return tuple(self.make_masks())


class Seeing:
    """The part of `Model` that is about pictures.

    image: a path, the bytes of a JPEG, PNG or WebP file, a PIL image, or an array (`vision/preprocess.py`). options:
    those of `generate`; text is greedy unless `temperature` is given, and has at most 512 tokens unless `max_tokens`
    is. Raises GemmaryError for a model without a vision tower and for what is no picture.
    """

    def caption(self, image: Any, lang: str = "en", **options: Unpack[TaskOptions]) -> str:
        """What is to be seen, in a language (two letters)."""
        return self._told(image, f"caption {lang}", options)

    def answer(self, image: Any, question: str, lang: str = "en", **options: Unpack[TaskOptions]) -> str:
        """The answer to a question. Models tuned for charts and documents want the bare question: use `generate`."""
        return self._told(image, f"answer {lang} {question}", options)

    def ocr(self, image: Any, **options: Unpack[TaskOptions]) -> str:
        """The text in the picture."""
        return self._told(image, "ocr", options)

    def detect(
        self,
        image: Any,
        labels: str | Sequence[str],
        *,
        merge_iou: float | None = None,
        **options: Unpack[TaskOptions],
    ) -> list[Box]:
        """The boxes of the objects that have one of these labels, as they were written.

        merge_iou: None leaves all; a number from 0 to 1 leaves out boxes that overlap a better one of the same label by
        that much (intersection over union).
        """
        found = list(self.find_objects([image], labels, **options)[0].boxes)
        return found if merge_iou is None else boxes_of.merge(found, merge_iou)

    def segment(
        self,
        image: Any,
        labels: str | Sequence[str],
        *,
        merge_iou: float | None = None,
        **options: Unpack[TaskOptions],
    ) -> list[Mask]:
        """The masks of the objects that have one of these labels. merge_iou: of their boxes, as in `detect`."""
        found = list(self.find_objects([image], labels, has_masks=True, **options)[0].masks)
        return found if merge_iou is None else boxes_of.merge(found, merge_iou)

    def find_objects(
        self,
        images: Sequence[Any],
        labels: str | Sequence[str],
        *,
        has_masks: bool = False,
        **options: Unpack[TaskOptions],
    ) -> list[PictureCompletion]:
        """What `detect` and `segment` ask, of many pictures in shared steps."""
        model = cast("Model", self)
        opened = [open_picture(model, image, options.get("resize", "big_vision")) for image in images]
        ids, options = self.objects_prompt(labels, has_masks=has_masks, **options)
        return model.generate([ids] * len(opened), image=opened, **options)

    def objects_prompt(
        self, labels: str | Sequence[str], *, has_masks: bool = False, **options: Unpack[TaskOptions]
    ) -> tuple[list[int], TaskOptions]:
        """Prompt and options with which `generate` and `stream` write objects of these labels and nothing else.

        The grammar of objects is enforced (`vision/grammar.py`), so that nothing in the text is malformed, and the
        log-probabilities that scores are made of are kept.
        """
        model = cast("Model", self)
        labels = [labels] if isinstance(labels, str) else list(dict.fromkeys(labels))
        if not labels:
            raise GemmaryError("there is no label to look for")
        for label in labels:
            check_label(label)
        check_tasks(model)
        task = "segment" if has_masks else "detect"
        ids = prompt_ids(model.tokenizer, model.config, f"{task} {' ; '.join(labels)}")
        most = options.get("max_tokens") or answer_tokens(model, ids)
        grammar = ObjectGrammar(model.tokenizer, labels, has_masks=has_masks, most=most)
        return ids, {"logprobs": 0, **options, "max_tokens": most, "allowed": grammar}

    @cached_property
    def mask_codec(self) -> MaskCodec:
        """What decodes masks: the file beside the weights, or PaliGemma's, fetched on first use (8.5 MB)."""
        from gemmary.vision.codec import open_codec

        return open_codec(cast("Model", self).mask_codec_file)

    def _told(self, image: Any, prompt: str, options: TaskOptions) -> str:
        model = cast("Model", self)
        check_tasks(model)
        return model.generate(prompt, image=image, **options).text


def open_picture(model: Model, source: Any, resize: Resize) -> Picture:
    """What the model's tower is fed. A `Picture` stays as it is."""
    vision = model.config.vision
    if vision is None:
        raise text_only(model)
    if resize not in get_args(Resize):
        raise GemmaryError(f"resize must be {' or '.join(get_args(Resize))}, not {resize!r}")
    if isinstance(source, Picture):
        return source
    image = open_image(source)
    square = pixels(image, vision.image_size, resize, bicubic=model.config.prefix_lm)
    return Picture(square, image.width, image.height)


def check_tasks(model: Model) -> None:
    """Raises GemmaryError for a model that was not trained on PaliGemma's tasks."""
    if model.config.vision is None:
        raise text_only(model)
    if not model.config.prefix_lm:
        raise GemmaryError(f"{model.name} has no words for this task: ask it, with `chat` or `generate` and `image`")


def text_only(model: Model) -> GemmaryError:
    """The error for a picture that a model cannot see."""
    return GemmaryError(f"{model.name} reads text only: for pictures load a model that sees, such as PaliGemma")


def open_pictures(model: Model, image: Any, resize: Resize, prompts: int | None) -> list[tuple[Picture, ...]]:
    """The pictures of each prompt. prompts: how many a list has; None: one prompt that is in no list."""
    count = 1 if prompts is None else prompts
    if image is None:
        return [()] * count
    several = isinstance(image, list | tuple)
    if prompts is None or not several:
        return [tuple(open_picture(model, each, resize) for each in (image if several else [image]))] * count
    if len(image) != prompts:
        raise GemmaryError(f"{len(image)} pictures do not go with {prompts} prompts: give one for all, or one for each")
    return [
        tuple(open_picture(model, each, resize) for each in (mine if isinstance(mine, list | tuple) else [mine]))
        for mine in image
    ]


def answer_tokens(model: Model, prompt: Sequence[int]) -> int:
    """How long the answer about a picture may be where nothing is said: the longest, or what the context leaves."""
    return max(1, min(ANSWER_TOKENS, model.context - len(prompt)))


def seen(model: Model, completion: Completion, pictures: Sequence[Picture]) -> PictureCompletion:
    """A completion with what it says of its first picture."""
    size = pictures[0].width, pictures[0].height
    return PictureCompletion(
        **{each.name: getattr(completion, each.name) for each in fields(Completion)},
        width=size[0],
        height=size[1],
        boxes=tuple(boxes_of.boxes(model.tokenizer, completion, *size)),
        malformed=tuple(parse(completion.text)[1]),
        make_masks=lambda: boxes_of.masks(model.tokenizer, completion, *size, lambda: model.mask_codec),
    )
