// Weights as the kernels read them: panels of 16 output rows, interleaved so that one 64-byte load brings 4 inputs of each row.
//
// A panel is its codes, group after group of 32 inputs, then its scales, block after block, padded to 64 bytes. Byte 4r+i of a 64-byte
// vector belongs to row r of the panel; vector v of a group (v = 0..7) holds inputs 4v..4v+3.
//   8-bit codes       8 vectors, signed
//   nibbles           4 vectors: vector v in the low halves, v+4 in the high ones
//   two-bit plane     2 vectors: vector 4h+v at bits 2v, 2v+1 of vector h
//   one-bit plane     1 vector: vector v at bit v
// 4-bit formats have nibbles; 5-bit ones nibbles and a one-bit plane (bit 4); Q6_K nibbles and a two-bit plane (bits 4, 5); Q3_K a
// two-bit and a one-bit plane (bit 2); Q2_K a two-bit plane. Codes are unsigned, as in the file, zero point included. Scales:
//   Q4_0 Q5_0 Q8_0   for each 32 inputs:   f16 d[16]
//   Q4_1 Q5_1        for each 32 inputs:   f16 d[16], m[16]
//   Q4_K Q5_K        for each 256 inputs:  f16 d[16], dmin[16]; for each sub-block of 32: u8 low[16] = scale | min << 6;
//                                          then for each two of them: u8 high[16] = min >> 2 of the first, and of the
//                                          second << 4
//   Q6_K Q3_K        for each 256 inputs:  f16 d[16]; for each 16: i8 scale[16] (Q3_K's less the 32 it is stored with)
//   Q2_K             for each 256 inputs:  f16 d[16], dmin[16]; for each 16: u8 [16] = scale | min << 4
// Float formats: for each input, 16 rows of that type. Rows beyond the last are zeros. Nothing is lost or rounded.
#pragma once

#include <memory>

#include "formats.h"

namespace gemmary {

// Stands in every file that holds panels: another layout is another number.
constexpr int kPackedVersion = 1;

// What a kernel sees. data is 64-byte aligned and stays the owner's.
struct PackedView {
  Format format;
  int64_t rows, cols;    // N outputs, K inputs
  int64_t panels;        // ceil(rows / 16)
  size_t panel_bytes;    // from one panel to the next
  size_t scale_offset;   // from a panel's start to its scales
  const uint8_t* data;
};

size_t packed_bytes(Format format, int64_t rows, int64_t cols);

// A view of panels stored elsewhere (a mapped file). Throws std::invalid_argument for a shape the format cannot have, or misalignment.
PackedView packed_view(Format format, int64_t rows, int64_t cols, const void* storage);

class HighHalves;

// Memory for weights, 64-byte aligned, out of blocks on 2 MiB pages (asked for), so that small weights have them as large ones do. A block
// goes with the last piece of it.
class WeightArena {
 public:
  std::shared_ptr<uint8_t> allocate(size_t bytes);  // contents undefined; throws std::bad_alloc

 private:
  std::shared_ptr<uint8_t> block_;
  size_t used_ = 0;
};

// Panels in memory of their own, whose contents are undefined until every one is packed, or in that of somebody else.
class PackedWeight {
 public:
  PackedWeight(Format format, int64_t rows, int64_t cols);                      // std::invalid_argument, std::bad_alloc
  PackedWeight(Format format, int64_t rows, int64_t cols, WeightArena& arena);  // the same
  // Panels that stand at `storage` (64-byte aligned), which holds as long as `owner` does.
  PackedWeight(Format format, int64_t rows, int64_t cols, std::shared_ptr<const void> owner, const void* storage);

  const PackedView& view() const { return view_; }
  uint8_t* data() { return storage_.get(); }  // null where the panels are somebody else's
  size_t bytes() const;

  std::shared_ptr<const HighHalves> high;  // of an output head that may be asked for its largest rows only (head.h), else null

 private:
  std::shared_ptr<uint8_t> storage_;
  std::shared_ptr<const void> owner_;
  PackedView view_;
};

// Packs panels [p0, p1) from their row-major source (GGUF blocks or floats, any alignment), which begins with the first row of panel p0.
// Ranges may run in parallel.
void pack(PackedWeight& weight, const void* source, int64_t p0, int64_t p1);

// Its inverse, byte for byte: the source of rows [row, row + n), source_row_bytes each.
void unpack(const PackedView& weight, int64_t row, int64_t n, uint8_t* source);

// The float32 values of rows [row, row + n), each out + i * ld: bit for bit GGUF's dequantization (gguf.quants.dequantize).
void unpack_rows(const PackedView& weight, int64_t row, int64_t n, float* out, size_t ld);

// out[i] = weight[ids[i]] * scale for i in [i0, i1). Ids must be in [0, rows): the caller checks.
void embed_rows(const PackedView& weight, const int32_t* ids, int64_t i0, int64_t i1, float scale, float* out, size_t ld);

}  // namespace gemmary
