// What all subcommands share: exit codes, one-line errors, Ctrl-C, the progress bar, and the choice of a
// device.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/device.hpp"
#include "imaging/volume.hpp"

namespace vesal::apps {

constexpr int kExitOk = 0;
constexpr int kExitFailure = 1;
constexpr int kExitUsage = 2;
constexpr int kExitSomeFailed = 3;
constexpr int kExitInterrupted = 130;

// Set by SIGINT and SIGTERM. A second signal ends the program at once.
const std::atomic<bool>& stop_requested();
// Blocks both in this thread and in all that it starts later, and starts one that waits for them; call it
// while there is no other thread. There is no handler, on purpose: the system writes a handler's frame below
// the stack pointer of the thread that it interrupts, and oneDNN's sgemm (before 3.11.2, its issue 4845)
// computes with a stack pointer that points into the heap. A signal at such a moment overwrote whatever lay
// there. Throws std::system_error where no thread can be started.
void watch_signals();

// One line on stderr: "vesal COMMAND: message"; line breaks and control characters in the message become
// spaces.
void print_error(std::string_view command, std::string_view message);
// The same for something that does not stop the work: "vesal COMMAND: note: message".
void print_note(std::string_view command, std::string_view message);

// "4:05", "1:02:33".
std::string duration_text(double seconds);

// Work done so far, on standard output: on a terminal one line that is redrawn, elsewhere a line now and
// then.
class ProgressBar {
 public:
  explicit ProgressBar(std::string label);
  ~ProgressBar();
  ProgressBar(const ProgressBar&) = delete;
  ProgressBar& operator=(const ProgressBar&) = delete;

  // `detail` stands behind the bar: "loss 0.412  Dice 0.83". A negative `seconds_left` is estimated from the
  // pace.
  void update(int64_t done, int64_t total, std::string_view detail = {}, double seconds_left = -1);
  // Prints a whole line without harming the bar.
  void line(std::string_view text);
  // Ends the redrawn line; on a terminal the last state stays visible.
  void finish();

 private:
  std::string label_;
  bool terminal_;
  bool drawn_ = false;
  int64_t first_done_ = -1;  // where this run began: a resumed one does not begin at 0
  std::chrono::steady_clock::time_point start_;
  std::chrono::steady_clock::time_point last_;
};

// "auto" is the first GPU where there is one, else the processor. Throws UsageError or DeviceError.
Device choose_device(const std::string& name);

// What is wrong with the text of an option, in the words of an error; empty: nothing. CLI11 itself reads
// "-1" as the largest unsigned number and an empty list as one that is not given.
std::string check_seed(const std::string& text);
std::string check_modalities(const std::string& text);

// Three numbers as typed, X Y Z.
imaging::Size3 to_size(const std::vector<int64_t>& xyz);
imaging::Vector3 to_vector(const std::vector<double>& xyz);

// The known word that `word` was probably meant to be; empty when none is near.
std::string nearest(std::string_view word, const std::vector<std::string>& known);

// "0.1.0".
std::string version();
// Compiler, build type and options, for reports.
std::string build_description();

}  // namespace vesal::apps
