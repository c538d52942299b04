#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace lbk {

// What a zlib stream (RFC 1950, 1951) of exactly these bytes gives; memory grows with what comes out, not with claims.
// Refuses any other bytes, and streams that give more than `most`.
std::string inflate(const uint8_t *bytes, size_t count, size_t most);

}  // namespace lbk
