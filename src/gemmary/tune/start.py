"""What a run from scratch starts from, in the folder `start` of its out folder: made once, whole or not at all.

start/
  made-from.json     a digest of all the text, and every setting that matters here
  data/              train.jsonl and valid.jsonl, rows for `gemmary tune`
  held-out.jsonl     rows that nothing of the model is made from
  untrained/         a Hugging Face folder: the tokenizer, trained on train.jsonl, and weights that know nothing yet
  SHA256SUMS

A start from image rows has `made-from.json` and `untrained` alone: the rows stay where their pictures are.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from gemmary.checkpoints import save_checkpoint
from gemmary.checkpoints.json_files import read_json, write_json
from gemmary.errors import GemmaryError
from gemmary.files import atomic_folder, check_folder
from gemmary.tune.corpus import Document, read_documents, split
from gemmary.tune.image_rows import texts_of
from gemmary.tune.initial import initial_checkpoint
from gemmary.tune.pretrain_settings import PretrainSettings
from gemmary.tune.sources import find_sources
from gemmary.tune.vocabulary import train_picture_tokenizer, train_tokenizer

MADE_FROM, DATA, HELD_OUT, UNTRAINED = "made-from.json", "data", "held-out.jsonl", "untrained"


def prepare(settings: PretrainSettings) -> tuple[Path, list[str]]:
    """The folder, made unless it is there, and what a user should be told.

    One that is there is used if its checksums hold and it was made from the same text and settings: the tokenizer is
    not trained again. Raises GemmaryError where it was not, or for text that cannot be read, split or tokenized so.
    """
    path = Path(settings.out).expanduser() / "start"
    from gemmary.tune.parallel import leads  # PyTorch, which reading rows and settings does without

    if not leads():
        _await(path)
    if settings.text is None:
        return _prepare_pictures(settings, path), []
    documents, notices = read_documents(settings.text)
    made_from = {"text_sha256": _digest(document.text for document in documents), **settings.start()}
    if _is_made(path, made_from):
        return path, notices
    corpus = split(documents, settings.validation, settings.held_out, settings.seed)
    tokenizer = train_tokenizer((document.text for document in corpus.train), settings.vocab_size)
    model = initial_checkpoint(settings.config(), tokenizer, path.parent.name, settings.seed)
    with atomic_folder(path) as folder:
        (folder / DATA).mkdir()
        _write(folder / DATA / "train.jsonl", corpus.train)
        _write(folder / DATA / "valid.jsonl", corpus.validation)
        _write(folder / HELD_OUT, corpus.held_out)
        save_checkpoint(model, folder / UNTRAINED)
        write_json(folder / MADE_FROM, made_from)
    return path, notices


def shares(settings: PretrainSettings) -> tuple[float | None, float | None]:
    """The shares of image rows that validate and test; None: rows of their own, or none of either, lie beside them."""
    assert settings.data is not None
    own = find_sources(settings.data)
    return None if "valid" in own else settings.validation, None if "test" in own else settings.held_out


def _prepare_pictures(settings: PretrainSettings, path: Path) -> Path:
    """The tokenizer is trained on the rows that are trained on."""
    assert settings.data is not None
    validation, test = shares(settings)
    rows = find_sources(settings.data, validation=validation, test=test, seed=settings.seed)["train"]
    texts = [text for row, _ in rows for text in texts_of(row)]
    made_from = {"text_sha256": _digest(texts), **settings.start()}
    if not _is_made(path, made_from):
        tokenizer = train_picture_tokenizer(texts, settings.vocab_size)
        model = initial_checkpoint(settings.config(), tokenizer, path.parent.name, settings.seed)
        with atomic_folder(path) as folder:
            save_checkpoint(model, folder / UNTRAINED)
            write_json(folder / MADE_FROM, made_from)
    return path


def read_rows(path: Path) -> Iterator[str]:
    """The texts of a file that `prepare` wrote."""
    with open(path, encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)["text"]


def _await(path: Path) -> None:
    """Of several processes one makes the start. If it fails, `torchrun` ends those that wait here."""
    while not path.exists():
        time.sleep(0.2)


def _write(path: Path, documents: Sequence[Document]) -> None:
    with open(path, "w", encoding="utf-8") as file:
        for document in documents:
            file.write(json.dumps({"text": document.text, "source": document.source}, ensure_ascii=False) + "\n")


def _digest(texts: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for text in texts:
        digest.update(hashlib.sha256(text.encode()).digest())
    return digest.hexdigest()


def _is_made(path: Path, made_from: dict[str, object]) -> bool:
    """Whether the start is there. Raises GemmaryError where it is damaged, or another's."""
    if not path.exists():
        return False
    check_folder(path)
    before = read_json(path / MADE_FROM)
    for name in sorted(before.keys() | made_from.keys()):
        if before.get(name) != made_from.get(name):
            raise GemmaryError(
                f"{path} was made with {name} {before.get(name)}, not {made_from.get(name)}: go on with the same, or "
                "give another --out"
            )
    return True
