// The log of a run on a full disk.
#include "training/run_log.hpp"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>

#include "base/error.hpp"
#include "training_fixture.hpp"

namespace vesal::training {
namespace {

using RunLogTest = TrainingTest;

// A limit on the size of files stands for the full disk: a write that passes it is cut short.
TEST_F(RunLogTest, AFullDiskLeavesWholeLines) {
  const auto path = folder_ / "log.jsonl";
  RunLog log = RunLog::create(path);
  log.add_line("{\"event\":\"start\"}");
  const std::string before = slurp(path);
  rlimit old{};
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &old), 0);
  const auto old_action = signal(SIGXFSZ, SIG_IGN);
  const rlimit small{before.size() + 10, old.rlim_max};
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &small), 0);
  const std::string message = message_of<IoError>([&] { log.add_line("{\"event\":\"no room for this\"}"); });
  setrlimit(RLIMIT_FSIZE, &old);
  signal(SIGXFSZ, old_action);
  EXPECT_TRUE(holds(message, "log.jsonl: writing failed")) << message;
  EXPECT_EQ(slurp(path), before);
  log.add_line("{\"event\":\"end\"}");
  EXPECT_EQ(slurp(path), before + "{\"event\":\"end\"}\n");
}

}  // namespace
}  // namespace vesal::training
