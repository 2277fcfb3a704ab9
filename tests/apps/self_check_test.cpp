// The self-check of `vesal doctor` passes where the kernels are right, covers every family once, and would
// notice.
#include "layers/self_check.hpp"

#include <gtest/gtest.h>

#include <limits>
#include <set>

#include "base/sha256.hpp"

namespace vesal::layers {
namespace {

void expect_all_right(Device device) {
  DeviceContext context(device);
  const std::vector<SelfCheckResult> results = self_check(context);
  std::set<std::string> families;
  for (const SelfCheckResult& result : results) {
    EXPECT_TRUE(result.passed()) << result.family << " on " << to_string(device) << ": error " << result.error
                                 << ' ' << result.failure;
    // Rounding must show: an error of exactly 0 where sums are formed would mean that nothing was compared.
    if (result.family == "conv3d" || result.family == "linear" || result.family == "window_attention") {
      EXPECT_GT(result.error, 0.0) << result.family;
    }
    EXPECT_TRUE(families.insert(result.family).second) << result.family;
  }
  EXPECT_EQ(families.size(), 27u);
}

TEST(SelfCheckTest, PassesOnCpu) { expect_all_right(Device{DeviceType::cpu, 0}); }
TEST(SelfCheckTest, PassesOnSimt) { expect_all_right(Device{DeviceType::simt, 0}); }

TEST(SelfCheckTest, AWrongResultFails) {
  SelfCheckResult result;
  result.tolerance = 1e-5;
  result.error = 1e-6;
  EXPECT_TRUE(result.passed());
  result.error = 2e-5;
  EXPECT_FALSE(result.passed());
  result.error = std::numeric_limits<double>::quiet_NaN();
  EXPECT_FALSE(result.passed());
  result.error = 0;
  result.failure = "launch failed";
  EXPECT_FALSE(result.passed());
}

// Vectors of FIPS 180-4 and lengths about a block's end.
TEST(Sha256Test, KnownAnswers) {
  const auto hash = [](const std::string& text) {
    Sha256 sha;
    sha.update(text.data(), text.size());
    return sha.finish();
  };
  EXPECT_EQ(hash(""), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  EXPECT_EQ(hash("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  EXPECT_EQ(hash("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq"),
            "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
  EXPECT_EQ(hash(std::string(1000000, 'a')),
            "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
  // In pieces, the same as at once.
  for (const size_t length : {55u, 56u, 63u, 64u, 65u}) {
    const std::string text(length, 'x');
    Sha256 pieces;
    for (const char c : text) {
      pieces.update(&c, 1);
    }
    EXPECT_EQ(pieces.finish(), hash(text));
  }
  EXPECT_THROW(sha256_of_file("/nowhere/at/all"), IoError);
}

}  // namespace
}  // namespace vesal::layers
