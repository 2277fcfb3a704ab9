// Console behaviour shared by the subcommands.
#include "apps/console.hpp"

#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <csignal>
#include <cstdio>
#include <iostream>
#include <limits>
#include <thread>

#include "base/error.hpp"
#include "imaging/case.hpp"
#include "runtime/device_api.hpp"

namespace vesal::apps {
namespace {

std::atomic<bool> stop{false};

void take_signals(sigset_t signals) {
  int signal = 0;
  do {
    sigwait(&signals, &signal);
  } while (!stop.exchange(true));
  // The second one: its own action, so that whoever waits for the program sees which signal ended it.
  pthread_sigmask(SIG_UNBLOCK, &signals, nullptr);
  std::raise(signal);
  _exit(128 + signal);  // where that action does nothing: the first process of a container is spared
}

std::string one_line(std::string_view text) {
  std::string line(text);
  while (!line.empty() && (line.back() == '\n' || line.back() == ' ')) {
    line.pop_back();
  }
  std::replace_if(
      line.begin(), line.end(), [](unsigned char c) { return c < 0x20 || c == 0x7f; }, ' ');
  return line;
}

int terminal_width() {
  winsize size{};
  return ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 20 ? size.ws_col : 80;
}

constexpr std::chrono::milliseconds kRedraw{100};
constexpr std::chrono::seconds kLogLine{20};

}  // namespace

const std::atomic<bool>& stop_requested() { return stop; }

void watch_signals() {
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGINT);
  sigaddset(&signals, SIGTERM);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  // A script's background job starts with SIGINT ignored, and what is ignored need not become pending.
  std::signal(SIGINT, SIG_DFL);
  std::signal(SIGTERM, SIG_DFL);
  std::thread(take_signals, signals).detach();
}

void print_error(std::string_view command, std::string_view message) {
  std::cout.flush();
  std::cerr << "vesal" << (command.empty() ? "" : " ") << command << ": " << one_line(message) << std::endl;
}

void print_note(std::string_view command, std::string_view message) {
  print_error(command, concat("note: ", message));
}

std::string duration_text(double seconds) {
  const int64_t whole = std::max<int64_t>(0, std::llround(seconds));
  char text[32];
  if (whole < 3600) {
    std::snprintf(text, sizeof text, "%d:%02d", static_cast<int>(whole / 60), static_cast<int>(whole % 60));
  } else {
    std::snprintf(text, sizeof text, "%d:%02d:%02d", static_cast<int>(std::min<int64_t>(whole / 3600, 99999)),
                  static_cast<int>(whole / 60 % 60), static_cast<int>(whole % 60));
  }
  return text;
}

ProgressBar::ProgressBar(std::string label)
    : label_(std::move(label)),
      terminal_(isatty(STDOUT_FILENO) != 0),
      start_(std::chrono::steady_clock::now()) {}

ProgressBar::~ProgressBar() { finish(); }

void ProgressBar::update(int64_t done, int64_t total, std::string_view detail, double seconds_left) {
  const auto now = std::chrono::steady_clock::now();
  if (first_done_ < 0) {
    first_done_ = std::max<int64_t>(done - 1, 0);
    last_ = start_ - kLogLine;
  }
  const bool last = done >= total;
  const bool due = terminal_ ? now - last_ >= kRedraw : now - last_ >= kLogLine;
  if (!due && !last) {
    return;
  }
  last_ = now;
  const double elapsed = std::chrono::duration<double>(now - start_).count();
  const int64_t here = done - first_done_;
  std::string time = duration_text(elapsed);
  if (!last && here > 0) {
    const double paced = elapsed / static_cast<double>(here) * static_cast<double>(total - done);
    time = duration_text(seconds_left >= 0 ? seconds_left : paced) + " left";
  }
  const int percent = total > 0 ? static_cast<int>(100 * done / total) : 100;
  const std::string count = concat(done, "/", total);
  if (!terminal_) {
    std::cout << label_ << "  " << count << " (" << percent << " %)" << (detail.empty() ? "" : "  ") << detail
              << "  " << time << std::endl;
    return;
  }
  const int room = terminal_width() - 1;
  const std::string tail = concat(" ", count, detail.empty() ? "" : "  ", detail, "  ", time);
  const int bar = std::clamp(room - static_cast<int>(label_.size() + tail.size()) - 3, 0, 30);
  std::string text = label_ + " ";
  if (bar >= 5) {
    const int filled = total > 0 ? static_cast<int>(bar * done / total) : bar;
    text += concat('[', std::string(static_cast<size_t>(filled), '#'),
                   std::string(static_cast<size_t>(bar - filled), '.'), ']');
  }
  text += tail;
  text.resize(std::min<size_t>(text.size(), static_cast<size_t>(room)));
  std::cout << '\r' << text << "\x1b[K" << std::flush;
  drawn_ = true;
}

void ProgressBar::line(std::string_view text) {
  if (drawn_) {
    std::cout << "\r\x1b[K";
    drawn_ = false;
  }
  std::cout << text << std::endl;
}

void ProgressBar::finish() {
  if (drawn_) {
    std::cout << std::endl;
    drawn_ = false;
  }
}

Device choose_device(const std::string& name) {
  if (name == "auto") {
    for (const Device device : device_api::present_devices()) {
      if (device.type == DeviceType::cuda) {
        return device;
      }
    }
    return {};
  }
  Device device;
  try {
    device = parse_device(name);
  } catch (const UsageError&) {
    throw UsageError(concat("--device: found ", name, ", expected auto, cpu, cuda, cuda:N or simt"));
  }
  device_api::require(device);
  return device;
}

std::string check_seed(const std::string& text) {
  uint64_t seed = 0;
  const auto [rest, error] = std::from_chars(text.data(), text.data() + text.size(), seed);
  return error == std::errc() && rest == text.data() + text.size()
             ? ""
             : concat("found ", text.empty() ? "nothing" : text, ", expected a whole number from 0 to ",
                      std::numeric_limits<uint64_t>::max());
}

std::string check_modalities(const std::string& text) {
  try {
    imaging::parse_modality_mask(text);
  } catch (const UsageError& error) {
    return error.what();
  }
  return "";
}

imaging::Size3 to_size(const std::vector<int64_t>& xyz) { return {xyz.at(0), xyz.at(1), xyz.at(2)}; }
imaging::Vector3 to_vector(const std::vector<double>& xyz) { return {xyz.at(0), xyz.at(1), xyz.at(2)}; }

std::string nearest(std::string_view word, const std::vector<std::string>& known) {
  std::string best;
  size_t best_distance = std::max<size_t>(2, word.size() / 3) + 1;
  for (const std::string& candidate : known) {
    // Levenshtein distance, one row at a time.
    std::vector<size_t> row(candidate.size() + 1);
    for (size_t j = 0; j < row.size(); ++j) {
      row[j] = j;
    }
    for (size_t i = 0; i < word.size(); ++i) {
      size_t diagonal = row[0];
      row[0] = i + 1;
      for (size_t j = 0; j < candidate.size(); ++j) {
        const size_t substituted = diagonal + (word[i] == candidate[j] ? 0 : 1);
        diagonal = row[j + 1];
        row[j + 1] = std::min({substituted, row[j] + 1, diagonal + 1});
      }
    }
    if (row.back() < best_distance) {
      best_distance = row.back();
      best = candidate;
    }
  }
  return best;
}

std::string version() { return VESAL_VERSION; }

std::string build_description() {
  return concat("g++ ", __VERSION__, ", ", VESAL_BUILD_TYPE, ", -march=", VESAL_CPU_ARCH_NAME,
                ", sanitizers: ", VESAL_SANITIZE_NAME, ", CUDA: ", VESAL_CUDA_NAME);
}

}  // namespace vesal::apps
