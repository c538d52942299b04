// Panels of codes to panels of bytes, by a table: what codebooks are multiplied as. An instruction looks 16 bytes up in a
// table of 16; bits beyond the low four choose among such tables. Like panels.h, which includes it, compiled anew for every
// set of instructions.
#pragma once

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace lbk {
namespace {

#if defined(__AVX512BW__)
typedef __m512i Bytes;

inline Bytes load_bytes(const uint8_t *from) { return _mm512_loadu_si512(from); }
inline void store_bytes(uint8_t *to, Bytes bytes) { _mm512_storeu_si512(to, bytes); }
inline Bytes repeated(const uint8_t *sixteen) {
  return _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i *>(sixteen)));
}
inline Bytes taken(Bytes table, Bytes places) { return _mm512_shuffle_epi8(table, places); }

template <int FROM, int COUNT>
inline Bytes field(Bytes line) {
  return _mm512_and_si512(_mm512_srli_epi32(line, FROM), _mm512_set1_epi8((1 << COUNT) - 1));
}

template <int BIT>
inline Bytes chosen(Bytes zero, Bytes one, Bytes line) {
  return _mm512_mask_mov_epi8(zero, _mm512_test_epi8_mask(line, _mm512_set1_epi8(static_cast<char>(1 << BIT))), one);
}
#elif defined(__AVX2__)
typedef __m256i Bytes;

inline Bytes load_bytes(const uint8_t *from) { return _mm256_loadu_si256(reinterpret_cast<const Bytes *>(from)); }
inline void store_bytes(uint8_t *to, Bytes bytes) { _mm256_storeu_si256(reinterpret_cast<Bytes *>(to), bytes); }
inline Bytes repeated(const uint8_t *sixteen) {
  return _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i *>(sixteen)));
}
inline Bytes taken(Bytes table, Bytes places) { return _mm256_shuffle_epi8(table, places); }

template <int FROM, int COUNT>
inline Bytes field(Bytes line) {
  return _mm256_and_si256(_mm256_srli_epi32(line, FROM), _mm256_set1_epi8((1 << COUNT) - 1));
}

template <int BIT>
inline Bytes chosen(Bytes zero, Bytes one, Bytes line) {
  return _mm256_blendv_epi8(zero, one, _mm256_slli_epi32(line, 7 - BIT));
}
#elif defined(__aarch64__)
typedef uint8x16_t Bytes;

inline Bytes load_bytes(const uint8_t *from) { return vld1q_u8(from); }
inline void store_bytes(uint8_t *to, Bytes bytes) { vst1q_u8(to, bytes); }
inline Bytes repeated(const uint8_t *sixteen) { return vld1q_u8(sixteen); }
inline Bytes taken(Bytes table, Bytes places) { return vqtbl1q_u8(table, places); }

template <int FROM, int COUNT>
inline Bytes field(Bytes line) {
  return (line >> FROM) & vdupq_n_u8((1 << COUNT) - 1);
}

template <int BIT>
inline Bytes chosen(Bytes zero, Bytes one, Bytes line) {
  return vbslq_u8(vtstq_u8(line, vdupq_n_u8(1 << BIT)), one, zero);
}
#endif

// LOW bits of a code lie as panels have them, each of the EXTRA others as a panel of one bit behind those of its block.
#if defined(__AVX2__) || defined(__aarch64__)
template <int LOW, int EXTRA>
void look_up_bits(const uint8_t *lines, int64_t blocks, const uint8_t *entries, uint8_t *out) {
  constexpr int kTables = 1 << EXTRA;
  Bytes tables[kTables];
  times<kTables>([&](auto i) LBK_INLINE { tables[i] = repeated(entries + (i << LOW)); });
  for (int64_t half = 0; half < 2 * blocks; ++half, out += 8 * 64) {
    const uint8_t *block = lines + half / 2 * 128 * (LOW + EXTRA);
    const uint8_t *low = block + half % 2 * 64 * LOW, *extra = block + 128 * LOW + half % 2 * 64;
    for (size_t v = 0; v < 64; v += sizeof(Bytes))
      times<8>([&](auto line) LBK_INLINE {
        constexpr int kLine = line, kBit = kLine * LOW;
        const Bytes places = field<kBit % 8, LOW>(load_bytes(low + kBit / 8 * 64 + v));
        Bytes found[kTables];
        times<kTables>([&](auto i) LBK_INLINE { found[i] = taken(tables[i], places); });
        times<EXTRA>([&](auto bit) LBK_INLINE {
          const Bytes choice = load_bytes(extra + 128 * bit + v);
          times<(kTables >> (bit + 1))>([&](auto i) LBK_INLINE {
            found[i] = chosen<kLine>(found[2 * i], found[2 * i + 1], choice);
          });
        });
        store_bytes(out + 64 * kLine + v, found[0]);
      });
  }
}
#else
template <int LOW, int EXTRA>
void look_up_bits(const uint8_t *lines, int64_t blocks, const uint8_t *entries, uint8_t *out) {
  for (int64_t block = 0; block < blocks; ++block, lines += 128 * (LOW + EXTRA))
    for (int line = 0; line < 16; ++line)
      for (int i = 0; i < 64; ++i) {
        int code = lines[line * LOW / 8 * 64 + i] >> line * LOW % 8 & ((1 << LOW) - 1);
        for (int bit = 0; bit < EXTRA; ++bit)
          code |= (lines[128 * (LOW + bit) + line / 8 * 64 + i] >> line % 8 & 1) << (LOW + bit);
        *out++ = entries[code];
      }
}
#endif

// Blocks of a panel of codes of `bits` to blocks of 8 bits, each code by its entry. Entries are read to 16 beyond the last.
__attribute__((noinline)) void look_up(int bits, const uint8_t *lines, int64_t blocks, const uint8_t *entries,
                                       uint8_t *out) {
  switch (bits) {
    case 1: return look_up_bits<1, 0>(lines, blocks, entries, out);
    case 2: return look_up_bits<2, 0>(lines, blocks, entries, out);
    case 3: return look_up_bits<2, 1>(lines, blocks, entries, out);
    case 4: return look_up_bits<4, 0>(lines, blocks, entries, out);
    case 5: return look_up_bits<4, 1>(lines, blocks, entries, out);
    case 6: return look_up_bits<4, 2>(lines, blocks, entries, out);
    case 7: return look_up_bits<4, 3>(lines, blocks, entries, out);
    default: return look_up_bits<4, 4>(lines, blocks, entries, out);
  }
}

}  // namespace
}  // namespace lbk
