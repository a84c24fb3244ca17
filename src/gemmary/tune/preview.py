"""Rows as the model sees them: tokens, which of them are scored, what each sees, and how documents are packed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any, TextIO

from gemmary.checkpoints import Checkpoint
from gemmary.tokenizer import Tokenizer
from gemmary.tokenizer.pieces import SPACE
from gemmary.tune.data import load_data
from gemmary.tune.packing import Batches, micro_batch
from gemmary.tune.rows import Example
from gemmary.tune.settings import Settings

if TYPE_CHECKING:
    from rich.text import Text

PLACE = "<image>"
"""How a place for a picture's token is shown."""
LEGEND = ("between « and », and counted by the loss", "in bold green, and counted by the loss")


@dataclass(frozen=True)
class Preview:
    """The first documents of the training rows, and the first epoch's packing of all of them."""

    documents: list[Example]
    batches: Batches
    tokenizer: Tokenizer
    notices: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """All of it, for programs: `visible` holds the first and the last position that each computed token sees."""
        return {
            "documents": [self._document(each) for each in self.documents],
            "packing": self._packing(),
            "notices": list(self.notices),
        }

    def write(self, stream: TextIO) -> None:
        """Documents one below another: in colour on a terminal, with marks around what is scored elsewhere."""
        from rich.console import Console
        from rich.text import Text

        console = Console(file=stream, highlight=False, soft_wrap=True)
        coloured = console.is_terminal and not console.no_color
        for each in self.documents:
            scored = int(each.scored.sum())
            title = f"── {printable(each.source)} · {len(each.tokens):,} tokens, {scored:,} scored"
            title += "".join(f" · {printable(str(p.path))}, {p.width} x {p.height} pixels" for p in each.pictures)
            console.print(Text(title, style="bold" if coloured else ""))
            console.print(self._coloured(each) if coloured else Text(self._marked(each)))
        for line in self._summary(coloured):
            console.print(Text(line))

    def _document(self, example: Example) -> dict[str, Any]:
        batch = micro_batch(self.batches.config, [example]).batch
        return {
            "source": example.source,
            "tokens": example.tokens.tolist(),
            "pieces": [self._piece(i) for i in example.tokens.tolist()],
            "scored": example.scored.tolist(),
            "visible": {kind: spans.tolist() for kind, spans in batch.visible.items()},
            "pictures": [str(picture.path) for picture in example.pictures],
        }

    def _packing(self) -> dict[str, int]:
        packs = self.batches.packs(0)
        return {
            "documents": len(self.batches.documents),
            "packs": len(packs),
            "micro_batches": self.batches.count(0),
            "sequence_length": self.batches.sequence_length,
            "tokens": sum(self.batches.lengths),
            "scored": sum(int(each.scored.sum()) for each in self.batches.documents),
        }

    def _marked(self, example: Example) -> str:
        """Tokens with | between them, runs of scored ones between « and »."""
        shown, before = "", False
        for _, scored, text in self._spelled(example):
            border = {(False, True): "«", (True, False): "»"}.get((before, scored), "|" if shown else "")
            shown += border + text
            before = scored
        return shown + "»" * before

    def _coloured(self, example: Example) -> Text:
        """Tokens in two shades by turns, green where scored, control tokens underlined."""
        from rich.text import Text

        shown = Text()
        for index, (token, scored, text) in enumerate(self._spelled(example)):
            shades = ("bold green", "bold bright_green") if scored else ("bright_black", "white")
            shown.append(text, style=shades[index % 2] + " underline" * self._is_control(token))
        return shown

    def _spelled(self, example: Example) -> Iterator[tuple[int, bool, str]]:
        """Tokens, whether they are scored, and how they are shown: a picture's places as one."""
        pairs = zip(example.tokens.tolist(), example.scored.tolist(), strict=True)
        for (token, scored), run in groupby(pairs):
            count = len(list(run))
            if self._is_place(token):
                yield token, scored, f"{PLACE} x {count:,}"
                continue
            yield from [(token, scored, printable(self.tokenizer.piece(token).replace(SPACE, " ")))] * count

    def _piece(self, token: int) -> str:
        return PLACE if self._is_place(token) else self.tokenizer.piece(token)

    def _is_place(self, token: int) -> bool:
        return self.batches.config.vision is not None and token == self.batches.config.image_token_id

    def _is_control(self, token: int) -> bool:
        if self._is_place(token):
            return True
        return not self.tokenizer.token_bytes(token) or token in (self.tokenizer.turn_ids or ())

    def _summary(self, coloured: bool) -> list[str]:
        packing = self._packing()
        full = 100 * packing["tokens"] / (packing["packs"] * packing["sequence_length"])
        window = self.batches.config.sliding_window
        local = f", {window:,} tokens back at most in local layers" if window else ""
        mask = f"a token sees itself and what precedes it in its own document{local}"
        if self.batches.config.prefix_lm:
            mask = "pictures and prefix see each other; a token of the suffix sees them, itself and what precedes it"
        return [
            f"── documents: {packing['documents']:,} · packs of at most {packing['sequence_length']:,} tokens: "
            f"{packing['packs']:,}, {full:.0f} % full · batches in an epoch: {packing['micro_batches']:,}",
            f"scored: {packing['scored']:,} tokens, {LEGEND[coloured]}",
            f"mask: {mask}",
        ]


def preview(settings: Settings, checkpoint: Checkpoint, count: int) -> Preview:
    """The first `count` documents of the training rows. Reads every row, as a run would, and no weights.

    Raises GemmaryError as a run would before it starts.
    """
    data = load_data(settings, checkpoint)
    batches = Batches(
        data.train,
        checkpoint.config,
        batch_size=settings.batch_size,
        sequence_length=settings.sequence_length,
        seed=settings.seed,
    )
    notices = (*data.notices, *batches.notices)
    return Preview(batches.documents[:count], batches, checkpoint.tokenizer, notices)


def printable(text: str) -> str:
    """Without power over a terminal: a newline as ↵ and a new line, other control characters as their escapes."""
    shown = "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)
    return shown.replace("\n", "↵\n")
