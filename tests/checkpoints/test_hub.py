"""Names, the local cache, and downloads against a stand-in for the hub. Nothing here leaves the machine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import gemmary
from gemmary.checkpoints import hub, starter
from gemmary.checkpoints.hub import HubName
from gemmary.checkpoints.hub_files import select_files
from gemmary.errors import GemmaryError
from tests.checkpoints.fake_hub import COMMIT, Hub, Repo, serve

SOURCE = Path(gemmary.__path__[0]).parent
CHUNK = 64 * 1024
PULL = """
import json, os, sys
from huggingface_hub import constants
constants.DOWNLOAD_CHUNK_SIZE = int(os.environ.get("CHUNK", constants.DOWNLOAD_CHUNK_SIZE))
from gemmary.checkpoints.download import pull
from gemmary.errors import GemmaryError
loud = "LOUD" in os.environ
for name, token in json.loads(sys.argv[1]):
    os.environ["HF_TOKEN"] = token
    try:
        print(json.dumps({"path": str(pull(name, lambda *a: loud and print(json.dumps(a), flush=True)))}), flush=True)
    except GemmaryError as error:
        print(json.dumps({"error": str(error)}), flush=True)
"""


pytestmark = pytest.mark.usefixtures("cache")


def put(cache: Path, repo: str, files: dict[str, bytes], commit: str = COMMIT, ref: str = "main") -> Path:
    """A repository in the hub's cache layout."""
    folder = cache / ("models--" + repo.replace("/", "--"))
    snapshot = folder / "snapshots" / commit
    for name, data in files.items():
        blob = folder / "blobs" / f"{commit[:4]}-{name.replace('/', '-')}"
        blob.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(data)
        (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
        (snapshot / name).symlink_to(os.path.relpath(blob, (snapshot / name).parent))
    (folder / "refs").mkdir(exist_ok=True)
    (folder / "refs" / ref).write_text(commit)
    return snapshot


GEMMA = {"config.json": b'{"model_type": "gemma2"}', "model.safetensors": b"weights"}


# Names ------------------------------------------------------------------------------------------------------------


def test_a_short_name_and_its_hub_id_mean_the_same_snapshot(cache: Path) -> None:
    snapshot = put(cache, "google/gemma-2-2b-it", GEMMA)
    assert hub.resolve("gemma-2-2b-it") == hub.resolve("google/gemma-2-2b-it") == snapshot


def test_a_revision_picks_its_own_snapshot(cache: Path) -> None:
    put(cache, "google/gemma-2-2b-it", GEMMA)
    other = put(cache, "google/gemma-2-2b-it", GEMMA, commit="f" * 40, ref="float16")
    assert hub.resolve("google/gemma-2-2b-it@float16") == hub.resolve("gemma-2-2b-it@float16") == other
    assert hub.resolve("google/gemma-2-2b-it@" + "f" * 40) == other


def test_a_folder_and_a_file_mean_themselves(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text("{}")
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    assert hub.resolve("mine") == Path("mine")
    assert hub.resolve(tmp_path / "mine") == tmp_path / "mine"
    assert hub.resolve("./m.gguf") == Path("m.gguf")
    (tmp_path / "org" / "name").mkdir(parents=True)
    assert hub.resolve("org/name") == Path("org/name"), "a folder that exists comes before the hub"


def test_one_gguf_file_is_the_model_and_several_ask_for_a_choice(cache: Path) -> None:
    one = put(cache, "someone/gemma-GGUF", {"g-Q4_0.gguf": b"a", "mmproj-g.gguf": b"b"})
    assert hub.resolve("someone/gemma-GGUF") == one / "g-Q4_0.gguf"
    two = put(cache, "someone/gemma-two", {"g-Q4_K_M.gguf": b"a", "g-Q4_K.gguf": b"b"})
    with pytest.raises(GemmaryError, match=r"several GGUF files: choose one, such as `someone/gemma-two:g-Q4_K\.gguf`"):
        hub.resolve("someone/gemma-two")
    assert hub.resolve("someone/gemma-two:q4_k") == two / "g-Q4_K.gguf"
    assert hub.resolve("someone/gemma-two:g-Q4_K_M.gguf") == two / "g-Q4_K_M.gguf"
    with pytest.raises(GemmaryError, match="has no GGUF file 'Q8_0'"):
        hub.resolve("someone/gemma-two:Q8_0")


def test_a_folder_of_ones_own_may_hold_one_gguf_file(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    for name in ("a.gguf", "mmproj-a.gguf", "below/b.gguf"):
        (tmp_path / name).write_bytes(b"GGUF")
    (tmp_path / "folder.gguf").mkdir()
    assert hub.resolve(tmp_path) == tmp_path / "a.gguf"
    (tmp_path / "c.gguf").write_bytes(b"GGUF")
    with pytest.raises(GemmaryError, match=f"choose one, such as `{tmp_path}/a.gguf`"):
        hub.resolve(tmp_path)


def test_a_half_fetched_model_says_what_is_missing(cache: Path) -> None:
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    files = {"config.json": GEMMA["config.json"], "model-00001-of-00002.safetensors": b"x"}
    put(cache, "google/gemma-7b", {**files, "model.safetensors.index.json": json.dumps(index).encode()})
    with pytest.raises(
        GemmaryError, match=r"only partly here \(model-00002-of-00002.safetensors is missing\): `gemmary pull"
    ):
        hub.resolve("gemma-7b")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gemma-2-2b-itt", r"no model is called 'gemma-2-2b-itt'; did you mean .*gemma-2-2b-it\b"),
        ("startr", r"did you mean starter"),
        ("gemma-2-2b-it", r"not on this machine: `gemmary pull gemma-2-2b-it` fetches it \(about 5\.23 GB\)"),
        ("org/unknown", r"org/unknown is not on this machine: `gemmary pull org/unknown`"),
        ("./nowhere", r"no such file or folder: \./nowhere"),
        ("nowhere.gguf", r"no such file or folder: nowhere\.gguf"),
        ("a/b/c", r"no such file or folder: a/b/c"),
        ("org/name@../../etc", r"no such file or folder"),
    ],
)
def test_what_a_name_that_means_nothing_says(name: str, message: str) -> None:
    with pytest.raises(GemmaryError, match=message) as caught:
        hub.resolve(name)
    assert "\n" not in str(caught.value)


def test_looking_up_a_name_imports_no_network_library(cache: Path) -> None:
    put(cache, "google/gemma-2-2b-it", GEMMA)
    code = "import sys; from gemmary.checkpoints import hub; hub.resolve('gemma-2-2b-it')"
    code += "; print('huggingface_hub' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], env=_environment(), capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_the_cache_folder_follows_the_libraries_variables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert hub.hub_cache() == tmp_path / "hf" / "hub"
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "elsewhere"))
    assert hub.hub_cache() == tmp_path / "elsewhere"
    monkeypatch.delenv("HF_HUB_CACHE")
    monkeypatch.delenv("HF_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert hub.hub_cache() == tmp_path / "xdg" / "huggingface" / "hub"


# List and remove --------------------------------------------------------------------------------------------------


def test_list_shows_gemma_models_only_and_remove_frees_their_bytes(cache: Path) -> None:
    put(cache, "google/gemma-2-2b-it", GEMMA)
    put(cache, "someone/bert", {"config.json": b'{"model_type": "bert"}', "model.safetensors": b""})
    put(cache, "google/gemma-7b", {"config.json": b'{"model_type": "gemma"}'})
    listed = {model.name: model for model in hub.list_local()}
    assert set(listed) == {"gemma-2-2b-it", "gemma-7b"}
    assert listed["gemma-2-2b-it"].complete
    assert not listed["gemma-7b"].complete
    assert listed["gemma-2-2b-it"].size == sum(map(len, GEMMA.values())) + len(COMMIT)
    assert hub.remove("gemma-2-2b-it") == listed["gemma-2-2b-it"].size
    assert [model.name for model in hub.list_local()] == ["gemma-7b"]
    assert (cache / "models--someone--bert").is_dir()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("gemma-2-2b-it", "nothing to remove"),
        ("starter", "nothing to remove"),
        ("gema", "did you mean"),
        ("google/gemma-7b@main", "give the name alone"),
        (".", "was not fetched by `gemmary pull`"),
    ],
)
def test_remove_touches_nothing_else(cache: Path, tmp_path: Path, name: str, message: str) -> None:
    put(cache, "google/gemma-7b", GEMMA)
    (tmp_path / "mine").write_text("x")
    with pytest.raises(GemmaryError, match=message):
        hub.remove(name)
    assert (tmp_path / "mine").exists()
    assert hub.resolve("gemma-7b")


# Downloads --------------------------------------------------------------------------------------------------------


def test_which_files_are_fetched() -> None:
    wanted = "config.json tokenizer.model tokenizer.json model-00001-of-00001.safetensors model.safetensors.index.json"
    others = "README.md gemma.gguf pytorch_model.bin onnx/model.safetensors 2_Dense/model.safetensors"
    files = dict.fromkeys([*wanted.split(), *others.split()], 1)
    assert select_files(files, HubName("a/b")) == [
        "2_Dense/model.safetensors",
        "config.json",
        "model-00001-of-00001.safetensors",
        "model.safetensors.index.json",
        "tokenizer.json",
        "tokenizer.model",
    ]
    assert select_files(files, HubName("a/b", file="gemma.gguf")) == ["gemma.gguf"]
    with pytest.raises(GemmaryError, match="no safetensors, GGUF, KerasHub or Orbax"):
        select_files({"pytorch_model.bin": 1}, HubName("a/b"))
    with pytest.raises(GemmaryError, match="cut into several files"):
        select_files({"g-00001-of-00002.gguf": 1, "g-00002-of-00002.gguf": 1}, HubName("a/b"))


def _environment(server: Hub | None = None, **extra: str) -> dict[str, str]:
    keep = {name: os.environ[name] for name in ("PATH", "HOME", "HF_HOME", "GEMMARY_HOME") if name in os.environ}
    to = {
        "HF_ENDPOINT": server.url if server else "http://127.0.0.1:9",
        "NO_PROXY": "*",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
    return {**keep, **to, "PYTHONPATH": str(SOURCE), **extra}


def pull_all(server: Hub | None, *cases: tuple[str, str], **extra: str) -> list[dict[str, str]]:
    """Pulls (name, token) pairs in one child process, as the environment tells it where the hub is."""
    command = [sys.executable, "-W", "error", "-c", PULL, json.dumps(cases)]
    done = subprocess.run(command, env=_environment(server, **extra), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return [json.loads(line) for line in done.stdout.splitlines()]


BIG = bytes(range(256)) * 2048
REPOS = {
    "google/gemma-2-2b-it": Repo(
        {"config.json": GEMMA["config.json"], "model.safetensors": BIG, "tokenizer.json": b"{}", "junk.bin": b"x"},
        gated=True,
    ),
    "someone/gemma-GGUF": Repo({"g-Q4_0.gguf": BIG[:5000], "g-Q8_0.gguf": BIG[:9000]}),
}


def test_each_refusal_has_its_own_line_and_a_member_gets_the_files(cache: Path) -> None:
    with serve(Hub(REPOS, members={"new", "member"}, accepted={"member"})) as server:
        cases = [
            ("gemma-2-2b-it", ""),
            ("gemma-2-2b-it", "new"),
            ("someone/gemma-GGUF:Q8_0", "stranger"),
            ("someone/gone", ""),
            ("google/gemma-2-2b-itt", "member"),
            ("gemma-7b", ""),
            ("google/gemma-2-2b-it@nowhere", "member"),
            ("someone/gemma-GGUF", ""),
            ("someone/gemma-GGUF:Q8_0", ""),
            ("gemma-2-2b-it", "member"),
        ]
        results = pull_all(server, *cases)
    errors = [result.get("error", "") for result in results]
    assert errors[0].startswith("no token: google/gemma-2-2b-it asks for one.")
    assert errors[1].startswith("licence not accepted: accept it at http://127.0.0.1:")
    assert errors[2].startswith("the hub does not know your token")
    assert errors[3].startswith("not found: the hub has no model 'someone/gone', or it is private")
    assert errors[4].startswith("not found: ")
    assert "did you mean google/gemma-2-2b-it" in errors[4]
    assert errors[5].startswith("no token: google/gemma-7b asks for one.")
    assert errors[6] == "not found: google/gemma-2-2b-it has no revision 'nowhere'"
    assert "choose one" in errors[7]
    assert all("\n" not in error for error in errors)

    assert Path(results[8]["path"]).read_bytes() == BIG[:9000]
    folder = Path(results[9]["path"])
    assert hub.resolve("gemma-2-2b-it") == folder
    assert (folder / "model.safetensors").read_bytes() == BIG
    assert sorted(file.name for file in folder.iterdir()) == ["config.json", "model.safetensors", "tokenizer.json"]
    leaked = [path for _, path, headers in server.requests if path.startswith("/store/") and "authorization" in headers]
    assert leaked == [], "the token went to the host that stores the bytes"


def test_a_killed_download_goes_on_where_it_was(cache: Path) -> None:
    server_state = Hub(REPOS, members={"member"}, accepted={"member"}, hold_after=3 * CHUNK)
    case = json.dumps([("gemma-2-2b-it", "member")])
    with serve(server_state) as server:
        command = [sys.executable, "-c", PULL, case]
        environment = _environment(server, LOUD="1", CHUNK=str(CHUNK))
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            for line in child.stdout:  # what is told as done was written to the partial file
                if json.loads(line)[1] >= 2 * CHUNK:
                    break
            os.kill(child.pid, signal.SIGKILL)
        (partial,) = (cache / "models--google--gemma-2-2b-it" / "blobs").glob("*.gemmary-partial")
        arrived = partial.stat().st_size
        assert 0 < arrived < len(BIG)
        server.hold_after = None
        (result,) = pull_all(server, ("gemma-2-2b-it", "member"))
        assert server.ranges() == ["", f"bytes={arrived}-"]
        assert (Path(result["path"]) / "model.safetensors").read_bytes() == BIG
        before = len(server.ranges())
        assert pull_all(server, ("gemma-2-2b-it", "member")) == [result]
        assert len(server.ranges()) == before, "nothing is fetched twice"
    assert not partial.exists()


def test_damaged_bytes_are_never_kept(cache: Path) -> None:
    with serve(Hub(REPOS, damage=True)) as server:
        (result,) = pull_all(server, ("someone/gemma-GGUF:Q4_0", ""))
        assert result["error"] == "g-Q4_0.gguf of someone/gemma-GGUF arrived damaged (SHA-256 differs): pull it again"
        server.damage = False
        (result,) = pull_all(server, ("someone/gemma-GGUF:Q4_0", ""))
        assert Path(result["path"]).read_bytes() == BIG[:5000]


def test_without_a_network_it_says_so(cache: Path) -> None:
    (result,) = pull_all(None, ("gemma-2-2b-it", ""))
    assert result["error"].startswith("no network: the hub (http://127.0.0.1:9) cannot be reached")
    (result,) = pull_all(None, ("gemma-2-2b-it", ""), HF_HUB_OFFLINE="1")
    assert result["error"].startswith("no network: HF_HUB_OFFLINE is set")


def test_a_full_disk_is_told_before_anything_is_fetched(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    from gemmary.checkpoints import download, hub_errors

    large = download._Large("model.safetensors", COMMIT, "0" * 64, 10**18, cache / "models--a--b")
    with pytest.raises(GemmaryError, match=r"a/b needs .* of disk and .* has .* free: set HF_HOME elsewhere"):
        download._check_space(HubName("a/b"), [large])
    full = OSError(28, "No space left on device")
    assert str(hub_errors.explain(full, HubName("a/b"))).startswith("disk full: ")


def test_pull_of_a_folder_or_an_unknown_word(tmp_path: Path) -> None:
    from gemmary.checkpoints.download import pull

    (tmp_path / "mine").mkdir()
    with pytest.raises(GemmaryError, match="nothing to fetch"):
        pull("mine")
    with pytest.raises(GemmaryError, match="did you mean"):
        pull("gemma-2-2b-itt")


def test_starter_is_a_name_of_its_own() -> None:
    assert hub.parse(starter.NAME) is None
