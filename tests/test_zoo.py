"""Every row of the zoo against the published sizes and the exact counts that follow from them (spec §1.2 to §1.9)."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gemmary import zoo
from gemmary.config import Config
from gemmary.errors import GemmaryError

# Name: embedding, non-embedding, total, bfloat16 bytes, KV bytes a token, parameters a layer.
COUNTS = {
    "gemma-2b": (524_288_000, 1_981_884_416, 2_506_172_416, 5_012_344_832, 18_432, 110_104_576),
    "gemma-7b": (786_432_000, 7_751_248_896, 8_537_680_896, 17_075_361_792, 458_752, 276_830_208),
    "gemma-2-2b": (589_824_000, 2_024_517_888, 2_614_341_888, 5_228_683_776, 106_496, 77_865_984),
    "gemma-2-9b": (917_504_000, 8_324_201_984, 9_241_705_984, 18_483_411_968, 344_064, 198_195_200),
    "gemma-2-27b": (1_179_648_000, 26_047_480_320, 27_227_128_320, 54_454_256_640, 376_832, 566_249_472),
    "gemma-3-270m": (167_772_160, 100_326_016, 268_098_176, 536_196_352, 18_432, 5_573_632),
    "gemma-3-1b-pt": (301_989_888, 697_896_064, 999_885_952, 1_999_771_904, 26_624, 26_842_112),
    "gemma-3-4b-pt": (671_088_640, 3_209_010_688, 3_880_099_328, 7_760_198_656, 139_264, 94_382_592),
    "gemma-3-12b-pt": (1_006_632_960, 10_759_155_456, 11_765_788_416, 23_531_576_832, 393_216, 224_148_992),
    "gemma-3-27b-pt": (1_409_286_144, 25_599_716_096, 27_009_002_240, 54_018_004_480, 507_904, 412_898_560),
}
# Name: bytes a token past the window, bytes of the windows.
WINDOWED = {
    "gemma-2-2b": (53_248, 218_103_808),
    "gemma-2-9b": (172_032, 704_643_072),
    "gemma-2-27b": (188_416, 771_751_936),
    "gemma-3-270m": (3_072, 7_864_320),
    "gemma-3-1b-pt": (4_096, 11_534_336),
    "gemma-3-4b-pt": (20_480, 121_634_816),
    "gemma-3-12b-pt": (65_536, 335_544_320),
    "gemma-3-27b-pt": (81_920, 436_207_616),
}
# The sizes of spec §1.2: L, d, H, KV, hd, ffn, V, context, window, theta of local and global layers, factor, softcaps
# of attention and logits, query scalar, norms a layer, qk-norm.
SIZES = {
    "gemma-2b": (18, 2048, 8, 1, 256, 16384, 256000, 8192, None, None, 1e4, 1, None, None, 256, 2, False),
    "gemma-7b": (28, 3072, 16, 16, 256, 24576, 256000, 8192, None, None, 1e4, 1, None, None, 256, 2, False),
    "gemma-2-2b": (26, 2304, 8, 4, 256, 9216, 256000, 8192, 4096, 1e4, 1e4, 1, 50, 30, 256, 4, False),
    "gemma-2-9b": (42, 3584, 16, 8, 256, 14336, 256000, 8192, 4096, 1e4, 1e4, 1, 50, 30, 256, 4, False),
    "gemma-2-27b": (46, 4608, 32, 16, 128, 36864, 256000, 8192, 4096, 1e4, 1e4, 1, 50, 30, 144, 4, False),
    "gemma-3-270m": (18, 640, 4, 1, 256, 2048, 262144, 32768, 512, 1e4, 1e6, 1, None, None, 256, 4, True),
    "gemma-3-1b-pt": (26, 1152, 4, 1, 256, 6912, 262144, 32768, 512, 1e4, 1e6, 1, None, None, 256, 4, True),
    "gemma-3-4b-pt": (34, 2560, 8, 4, 256, 10240, 262144, 131072, 1024, 1e4, 1e6, 8, None, None, 256, 4, True),
    "gemma-3-12b-pt": (48, 3840, 16, 8, 256, 15360, 262144, 131072, 1024, 1e4, 1e6, 8, None, None, 256, 4, True),
    "gemma-3-27b-pt": (62, 5376, 32, 16, 128, 21504, 262144, 131072, 1024, 1e4, 1e6, 8, None, None, 168, 4, True),
    "embeddinggemma-300m": (24, 768, 3, 1, 256, 1152, 262144, 2048, 512, 1e4, 1e6, 1, None, None, 256, 4, True),
}
# Released checkpoints with the configuration of another (spec §1.9).
SAME_AS = {
    "gemma-2b": ["gemma-2b-it", "gemma-1.1-2b-it", "codegemma-2b", "codegemma-1.1-2b"],
    "gemma-7b": ["gemma-7b-it", "gemma-1.1-7b-it", "codegemma-7b", "codegemma-7b-it", "codegemma-1.1-7b-it"],
    "gemma-2-2b": ["gemma-2-2b-it", "shieldgemma-2b"],
    "gemma-2-9b": ["gemma-2-9b-it", "shieldgemma-9b"],
    "gemma-2-27b": ["gemma-2-27b-it", "shieldgemma-27b"],
    "gemma-3-270m": ["gemma-3-270m-it"],
    "gemma-3-1b-pt": ["gemma-3-1b-it"],
    "gemma-3-4b-pt": ["gemma-3-4b-it"],
    "gemma-3-12b-pt": ["gemma-3-12b-it"],
    "gemma-3-27b-pt": ["gemma-3-27b-it"],
    "embeddinggemma-300m": [],
}
# What sees: the decoder, and the parameters in all by the side of the pictures (spec §1.3).
PALIGEMMA = {
    "paligemma-3b": ("gemma-2b", {224: 2_923_335_408, 448: 2_924_220_144, 896: 2_927_759_088}),
    "paligemma2-3b": ("gemma-2-2b", {224: 3_032_094_960, 448: 3_032_979_696, 896: 3_036_518_640}),
    "paligemma2-10b": ("gemma-2-9b", {224: 9_662_409_456, 448: 9_663_294_192, 896: 9_666_833_136}),
    "paligemma2-28b": ("gemma-2-27b", {224: 27_650_192_112, 448: 27_651_076_848, 896: 27_654_615_792}),
}
SEEING = [f"{name}-pt-{side}" for name in PALIGEMMA for side in (224, 448, 896)]
SEEING += [f"{name}-mix-{side}" for name in PALIGEMMA for side in (224, 448)]
# Gemma 3 from 4B on (spec 1.3): the tower, its projection and the text's vocabulary of 262,144.
GEMMA_3_SEEING = {
    "gemma-3-4b-pt": 4_299_915_632,
    "gemma-3-12b-pt": 12_187_079_280,
    "gemma-3-27b-pt": 27_432_062_576,
}
EMBEDDING_SCALES = {
    640: 25.25, 768: 27.75, 1152: 34.0, 2048: 45.25, 2304: 48.0, 3072: 55.5,
    2560: 50.5, 3584: 59.75, 3840: 62.0, 4608: 68.0, 5376: 73.5,
}  # fmt: skip
GLOBAL_LAYERS = {
    "gemma-3-270m": [5, 11, 17],
    "gemma-3-1b-pt": [5, 11, 17, 23],
    "gemma-3-4b-pt": [5, 11, 17, 23, 29],
    "gemma-3-12b-pt": [5, 11, 17, 23, 29, 35, 41, 47],
    "gemma-3-27b-pt": [5, 11, 17, 23, 29, 35, 41, 47, 53, 59],
    "embeddinggemma-300m": [5, 11, 17, 23],
}


def config(name: str) -> Config:
    return zoo.get(name).config


@pytest.mark.parametrize("name", COUNTS)
def test_counts_to_the_last_digit(name: str) -> None:
    c = config(name)
    counted = (
        c.embedding_parameters,
        c.parameters - c.embedding_parameters,
        c.parameters,
        replace(c, vision=None).weight_bytes(),
        c.kv_bytes_per_token(),
        c.layer_parameters,
    )
    assert counted == COUNTS[name]


def test_counts_of_the_encoder() -> None:
    c = config("embeddinggemma-300m")
    assert c.embedding_parameters == 201_326_592
    assert c.parameters - c.embedding_parameters == 101_536_512
    assert c.dense_parameters == 4_718_592
    assert c.parameters == 302_863_104
    assert c.parameters + c.dense_parameters == 307_581_696
    assert c.weight_bytes() == 605_726_208
    assert c.layer_parameters == 4_230_656
    assert c.bidirectional
    assert c.pooled_dense == (3072, 768)


@pytest.mark.parametrize("name", WINDOWED)
def test_windowed_cache_to_the_last_digit(name: str) -> None:
    c = config(name)
    growth, fixed = WINDOWED[name]
    assert (c.kv_growth_per_token(), c.kv_window_bytes()) == (growth, fixed)
    assert c.kv_cache_bytes(c.context_length) == fixed + growth * c.context_length


@pytest.mark.parametrize("name", SIZES)
def test_sizes(name: str) -> None:
    c = config(name)
    local_theta = c.rope_theta_local if "local" in c.layer_types else None
    norms = 4 if c.post_norms else 2
    assert SIZES[name] == (
        c.num_layers, c.hidden_size, c.num_heads, c.num_kv_heads, c.head_dim, c.intermediate_size, c.vocab_size,
        c.context_length, c.sliding_window, local_theta, c.rope_theta, c.rope_scaling_factor, c.attn_logit_softcap,
        c.final_logit_softcap, c.query_pre_attn_scalar, norms, c.qk_norm,
    )  # fmt: skip
    assert c.rms_norm_eps == 1e-6
    assert c.bidirectional == (name == "embeddinggemma-300m")


@pytest.mark.parametrize("name", SEEING)
def test_what_sees(name: str) -> None:
    c = config(name)
    size, _, rest = name.partition("-pt-" if "-pt-" in name else "-mix-")
    decoder, totals = PALIGEMMA[size]
    side = int(rest)
    assert c.vision is not None
    assert (c.vision.image_size, c.vision.num_patches) == (side, {224: 256, 448: 1024, 896: 4096}[side])
    assert c.total_parameters == totals[side]
    assert c.vision.parameters == {224: 412_442_352, 448: 413_327_088, 896: 416_866_032}[side]
    assert c.prefix_lm
    assert (c.vocab_size, c.image_token_id) == (257_152, 257_152)
    assert (c.kinds, c.sliding_window, c.final_logit_softcap) == (("global",), None, None)
    assert c.attn_logit_softcap == config(decoder).attn_logit_softcap
    assert c.layer_parameters == config(decoder).layer_parameters
    assert zoo.get(name).tuning == ("mix" if "-mix-" in name else "pretrained")


@pytest.mark.parametrize("name", GEMMA_3_SEEING)
def test_what_sees_among_text(name: str) -> None:
    c = config(name)
    assert c.vision is not None
    assert (c.vision.num_patches, c.vision.num_tokens, c.vision.parameters) == (4096, 256, 416_866_032)
    assert c.total_parameters == GEMMA_3_SEEING[name]
    assert (c.image_token_id, c.picture_blocks, c.prefix_lm) == (262_144, True, False)


def test_every_released_checkpoint_has_a_row_and_no_other() -> None:
    named = {*SAME_AS, *SEEING, *(name for names in SAME_AS.values() for name in names)}
    assert {row.name for row in zoo.ZOO} == named
    assert len(zoo.ZOO) == len(named)
    for row in zoo.ZOO:
        assert row.hub_id == f"google/{row.name}"
    for base, others in SAME_AS.items():
        for name in others:
            assert config(name) == config(base)


def test_tuning() -> None:
    tuned: dict[str, set[str]] = {}
    for row in zoo.ZOO:
        tuned.setdefault(row.tuning, set()).add(row.name)
    assert all(name.endswith("-it") for name in tuned["instruction"])
    assert sum(name.endswith("-it") for name in (row.name for row in zoo.ZOO)) == len(tuned["instruction"])
    assert tuned["fill-in-the-middle"] == {"codegemma-2b", "codegemma-1.1-2b", "codegemma-7b"}
    assert tuned["safety"] == {"shieldgemma-2b", "shieldgemma-9b", "shieldgemma-27b"}
    assert tuned["embedding"] == {"embeddinggemma-300m"}
    assert tuned["mix"] == {name for name in SEEING if "-mix-" in name}
    assert tuned["pretrained"] == set(COUNTS) | {name for name in SEEING if "-pt-" in name}


@pytest.mark.parametrize("name", GLOBAL_LAYERS)
def test_five_local_layers_to_one_global(name: str) -> None:
    assert [i for i, kind in enumerate(config(name).layer_types) if kind == "global"] == GLOBAL_LAYERS[name]


@pytest.mark.parametrize("name", ["gemma-2-2b", "gemma-2-9b", "gemma-2-27b"])
def test_gemma_2_alternates_from_a_local_layer(name: str) -> None:
    kinds = config(name).layer_types
    assert all(kind == ("local" if i % 2 == 0 else "global") for i, kind in enumerate(kinds))


def test_gemma_1_is_global() -> None:
    assert set(config("gemma-2b").layer_types + config("gemma-7b").layer_types) == {"global"}


def test_embedding_scales() -> None:
    assert {row.config.hidden_size: row.config.embedding_scale for row in zoo.ZOO} == EMBEDDING_SCALES


def test_query_scales() -> None:
    for row in zoo.ZOO:
        scalar = {4608: 144, 5376: 168}.get(row.config.hidden_size, 256)
        assert row.config.attention_scale == pytest.approx(scalar**-0.5, rel=1e-15)


def test_lookup_by_short_name_and_hub_id() -> None:
    assert zoo.find("gemma-2-2b-it") is zoo.get("google/gemma-2-2b-it")
    assert zoo.find("gemma-4-2b") is None


def test_an_unknown_name_gives_its_neighbours() -> None:
    with pytest.raises(GemmaryError, match="gemma-2-2b-it") as unknown:
        zoo.get("gemma2-2b-it")
    assert "\n" not in str(unknown.value)
    with pytest.raises(GemmaryError, match="gemmary list"):
        zoo.get("xyzzy")
