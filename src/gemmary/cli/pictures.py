"""`gemmary run` with pictures: objects as a table or as COCO has them, drawn over the picture; or text as it comes."""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gemmary.cli import console, loading, parser, run, terminal
from gemmary.errors import GemmaryError

if TYPE_CHECKING:
    from PIL.Image import Image

    from gemmary.api import Model
    from gemmary.generate import Stream
    from gemmary.seeing import PictureCompletion

_OBJECTS = re.compile(r"(detect|segment)\s+(?!.*<(?:loc|seg))(.*\S)\s*")


@dataclass(frozen=True)
class Task:
    """What is asked about each picture. labels: the objects to look for, none where the prompt is free."""

    prompt: str
    labels: tuple[str, ...]
    has_masks: bool
    options: dict[str, Any]
    merge_iou: float | None
    is_raw: bool = False

    @classmethod
    def of(cls, arguments: argparse.Namespace) -> Task:
        """Raises GemmaryError for flags that do not go together."""
        if arguments.system is not None:
            raise GemmaryError("--system does not go with pictures: say it in the prompt")
        if arguments.merge_iou is not None and not 0 < arguments.merge_iou <= 1:
            raise GemmaryError(f"--merge-iou is a share above 0 and at most 1, not {arguments.merge_iou}")
        prompt = run.read_prompt(arguments.prompt)
        options = parser.sampling_options(arguments)
        if arguments.resize is not None:
            options["resize"] = arguments.resize
        asked = None if arguments.raw else _OBJECTS.fullmatch(prompt)
        labels = tuple(filter(None, (label.strip() for label in asked[2].split(";")))) if asked else ()
        return cls(
            prompt, labels, asked is not None and asked[1] == "segment", options, arguments.merge_iou, arguments.raw
        )

    def ask(self, model: Model, image: Any) -> Stream:
        """image: one picture, or several for a free prompt."""
        if not self.labels:
            prompt: Any = self.prompt
            if model.instruction_tuned and not self.is_raw:
                prompt = model.chat_prompt(prompt, len(image) if isinstance(image, list) else 1)
            return model.stream(prompt, image=image, **self.options)
        ids, options = model.objects_prompt(self.labels, has_masks=self.has_masks, **self.options)
        return model.stream(ids, image=image, **options)

    def found(self, completion: PictureCompletion) -> Found:
        from gemmary.vision.boxes import merge

        boxes, masks = list(completion.boxes), list(completion.masks)
        if self.merge_iou is not None:
            boxes, masks = merge(boxes, self.merge_iou), merge(masks, self.merge_iou)
        return Found(boxes, masks)


@dataclass(frozen=True)
class Found:
    """The objects in a text; those with masks in both lists."""

    boxes: list[Any]
    masks: list[Any]

    def entries(self) -> list[dict[str, Any]]:
        from gemmary.vision import coco

        return coco.entries(self.boxes, self.masks)

    def drawn(self, image: Image) -> Image:
        from gemmary.vision.draw import draw

        return draw(image, self.boxes, self.masks)


def ask(arguments: argparse.Namespace) -> None:
    """One prompt about one picture, or about several together."""
    from gemmary.vision.draw import encoded, format_of, save
    from gemmary.vision.preprocess import open_image

    task = Task.of(arguments)
    for flag in ("out", "every"):
        if getattr(arguments, flag) is not None:
            raise GemmaryError(f"--{flag} goes with --images")
    if len(arguments.image) > 1 and (task.labels or arguments.save):
        raise GemmaryError("objects are found in one picture: ask about a folder of them with --images")
    if arguments.save:
        format_of(Path(arguments.save))
    images = [open_image(path) for path in arguments.image]
    model = loading.load_model(arguments)
    console.note(loading.describe(model))
    for notice in model.notices:
        console.note(f"note: {notice}")
    with task.ask(model, images) as stream:
        for piece in stream:
            if not arguments.json and not task.labels:
                console.write(piece.text)
    completion: Any = stream.completion
    found = task.found(completion)
    if arguments.json:
        console.write_json({**run.as_json(model, completion), **as_coco(arguments.image[0], completion, found)})
    else:
        write_text(model, task, completion, found)
    for each in completion.malformed:
        console.note(f"note: no object: {each.text} ({each.reason})")
    if arguments.save:
        drawn = found.drawn(images[0])
        save(drawn, Path(arguments.save))
        terminal.show(encoded(drawn))
    console.note(loading.speed(completion.stats) + run.ending(completion))
    loading.keep_packed(model)


def as_coco(name: str, completion: PictureCompletion, found: Found) -> dict[str, Any]:
    """Picture, objects and labels as a file of COCO's has them, and what is malformed."""
    from gemmary.vision import coco

    annotations, categories = coco.numbered(found.entries())
    image = {"id": 1, "file_name": name, "width": completion.width, "height": completion.height}
    return {
        "images": [image],
        "annotations": annotations,
        "categories": categories,
        "malformed": [{"text": each.text, "reason": each.reason} for each in completion.malformed],
    }


def write_text(model: Model, task: Task, completion: PictureCompletion, found: Found) -> None:
    """The end of a text that was written as it came; the objects in a table."""
    if not task.labels:
        console.write("\n")
        if "logprobs" in task.options:
            run.write_logprobs(model, completion)
    if found.boxes:
        write_table(found)
    elif task.labels:
        console.note(f"nothing was found of: {', '.join(task.labels)}")


def write_table(found: Found) -> None:
    """Labels and scores, boxes in pixels, and how many pixels a mask has."""
    header = ("label", "score", "left", "top", "right", "bottom")
    if found.masks:
        masks = [(*_row(each.label, each.score, each.box), f"{each.array.sum():,}") for each in found.masks]
        console.table(masks, (*header, "pixels"))
    else:
        console.table([_row(each.label, each.score, each.xyxy) for each in found.boxes], header)


def _row(label: str, score: float | None, box: tuple[float, ...]) -> tuple[str, ...]:
    return label, "-" if score is None else f"{score:.3f}", *(f"{side:.1f}" for side in box)
