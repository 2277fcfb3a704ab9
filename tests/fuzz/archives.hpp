// Changes within a ZIP archive: its entries are taken out, changed, and packed again under their right
// checksums, so that what is behind them is reached.
#pragma once

#include <algorithm>
#include <span>
#include <utility>

#include "base/error.hpp"
#include "tests/fuzz/fuzz.hpp"
#include "tests/weights_tools/torch_builders.hpp"
#include "weights_tools/zip.hpp"

namespace vesal::fuzz {

// The entries of an archive, inflated; none where the bytes are no archive.
inline weights::Records entries_of(const std::string& bytes) {
  constexpr uint64_t kMostUnpacked = 1u << 16;
  static MemoryFile memory;
  memory.write(bytes);
  weights::Records records;
  try {
    const weights::FileSource file(memory.path());
    const weights::ZipArchive zip(file, weights::ZipMethods::stored_or_deflated);
    for (const weights::ZipEntry& entry : zip.entries()) {
      std::string data(std::min(entry.size, kMostUnpacked), '\0');
      weights::ZipReader(file, entry).read(std::as_writable_bytes(std::span(data)));
      records.emplace_back(entry.name, std::move(data));
    }
  } catch (const FormatError&) {
    records.clear();
  }
  return records;
}

// One entry is changed in its data, seldom in its name; seldom an entry goes or comes twice. Bytes that are
// no archive, and every third archive, are changed without a repair. `deflate`: half of the entries are
// deflated.
inline void mutate_archive(std::string& bytes, RandomStream& random, const Change& change, bool deflate) {
  weights::Records records = entries_of(bytes);
  if (records.empty() || below(random, 3) == 0) {
    change(bytes);
    return;
  }
  const size_t chosen = below(random, records.size());
  switch (below(random, 16)) {
    case 0:
      change(records[chosen].first);
      break;
    case 1:
      records.erase(records.begin() + static_cast<std::ptrdiff_t>(chosen));
      break;
    case 2:
      records.push_back(records[chosen]);
      break;
    case 3:
      std::swap(records[chosen], records[below(random, records.size())]);
      break;
    default:
      // The first entry is the pickle, or a header, more often than not.
      change(records[below(random, 2) == 0 ? 0 : chosen].second);
  }
  using Style = weights::ZipBuilder::Style;
  weights::ZipBuilder zip(below(random, 2) == 0 ? Style::torch : Style::plain);
  for (const auto& [name, data] : records) {
    zip.add(name, data, deflate && below(random, 2) == 0);
  }
  bytes = zip.finish();
}

}  // namespace vesal::fuzz
