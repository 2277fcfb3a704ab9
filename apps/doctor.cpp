// vesal doctor: what this build is made of, what it finds on this machine, and whether it computes rightly
// here.
#include <nifti2_io.h>
#include <oneapi/dnnl/dnnl.h>
#include <png.h>
#include <zlib.h>

#include <CLI/Version.hpp>
#include <cstdio>
#include <fstream>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>

#if VESAL_WITH_CUDA
#include <cuda_runtime_api.h>
#endif

#include "apps/commands.hpp"
#include "apps/console.hpp"
#include "base/determinism.hpp"
#include "base/error.hpp"
#include "base/parallel.hpp"
#include "layers/self_check.hpp"
#include "runtime/device_api.hpp"
#include "training/interrupted.hpp"

namespace vesal::apps {
namespace {

struct Options {
  std::string device;
  bool no_check = false;
  int threads = 0;
};

void row(const std::string& name, const std::string& value) {
  std::printf("  %-16s %s\n", name.c_str(), value.c_str());
}

// Of /proc/meminfo, in GB; 0 where it cannot be read.
double memory_gb(const std::string& field) {
  std::ifstream file("/proc/meminfo");
  std::string name;
  double kilobytes = 0;
  std::string rest;
  while (file >> name >> kilobytes && std::getline(file, rest)) {
    if (name == field + ":") {
      return kilobytes * 1024.0 / 1e9;
    }
  }
  return 0;
}

void print_libraries() {
  const dnnl_version_t* dnnl = dnnl_version();
  std::cout << "libraries\n";
  row("oneDNN", concat(dnnl->major, ".", dnnl->minor, ".", dnnl->patch));
  // libnifti2 tells its version by printing it.
  std::printf("  %-16s ", "nifti2");
  nifti_disp_lib_version();
  row("zlib", zlibVersion());
  row("libpng", png_get_libpng_ver(nullptr));
  row("CLI11", CLI11_VERSION);
  row("nlohmann-json", concat(NLOHMANN_JSON_VERSION_MAJOR, ".", NLOHMANN_JSON_VERSION_MINOR, ".",
                              NLOHMANN_JSON_VERSION_PATCH));
#if VESAL_WITH_CUDA
  const auto text = [](int version) { return concat(version / 1000, ".", version % 1000 / 10); };
  int runtime = 0;
  int driver = 0;
  cudaRuntimeGetVersion(&runtime);
  if (cudaDriverGetVersion(&driver) != cudaSuccess) {
    driver = 0;
  }
  row("CUDA runtime", text(runtime));
  row("CUDA driver", driver > 0 ? "runs up to CUDA " + text(driver) : "not found on this machine");
#else
  row("CUDA", "not built in: no toolkit was found when Vesal was built (scripts/setup --cuda gets one)");
#endif
}

// Prints a table; returns how many families failed.
int64_t check_device(Device device) {
  std::cout << "\nself-check on " << to_string(device)
            << ": every op family, forward and backward, against double-precision loops\n";
  DeviceContext context(device);
  int64_t failed = 0;
  for (const layers::SelfCheckResult& result : layers::self_check(context)) {
    check<training::InterruptedError>(!stop_requested().load(), "interrupted during the self-check");
    if (result.failure.empty()) {
      std::printf("  %-18s %-7s largest relative error %.1e  (%.0f ms)\n", result.family.c_str(),
                  result.passed() ? "ok" : "WRONG", result.error, 1e3 * result.seconds);
    } else {
      std::printf("  %-18s %-7s %s\n", result.family.c_str(), "FAILED", result.failure.c_str());
    }
    failed += result.passed() ? 0 : 1;
  }
  std::fflush(stdout);
  return failed;
}

int run(const Options& options) {
  if (options.threads > 0) {
    set_thread_count(options.threads);
  }
  // Asked for by name: an unknown or absent device is an error before anything is printed.
  std::vector<Device> devices = device_api::present_devices();
  if (!options.device.empty()) {
    devices = {choose_device(options.device)};
  }
  std::cout << "vesal " << version() << '\n';
  row("build", build_description());
  std::cout << "machine\n";
  row("threads", concat(thread_count(), " in use, ", available_threads(),
                        " available (affinity, cgroup quota and OMP_NUM_THREADS)"));
  char memory[96];
  std::snprintf(memory, sizeof memory, "%.1f GB, %.1f GB available", memory_gb("MemTotal"),
                memory_gb("MemAvailable"));
  row("memory", memory);
  row("deterministic", deterministic() ? "on: same seed, same bits" : "off");
  for (const Device device : devices) {
    row(to_string(device), device_api::describe(device));
  }
  std::cout.flush();
  print_libraries();
  std::cout.flush();
  std::fflush(stdout);
  if (options.no_check) {
    return kExitOk;
  }
  int64_t failed = 0;
  for (const Device device : devices) {
    failed += check_device(device);
  }
  if (failed > 0) {
    print_error("doctor",
                concat("self-check: found ", failed, failed == 1 ? " op family" : " op families",
                       " with wrong results, expected none; do not trust results of this build here"));
    return kExitFailure;
  }
  std::cout << "\nall well" << std::endl;
  return kExitOk;
}

}  // namespace

Command make_doctor(CLI::App& program) {
  auto options = std::make_shared<Options>();
  CLI::App* app = program.add_subcommand("doctor");
  app->description(
      "Show devices and libraries, and check that all computes rightly here.\n\n"
      "Shows this build, the machine's devices, and the libraries' versions, and runs every op family once "
      "on every\n"
      "device against plain double-precision loops. Exit code 0: all well, 1: something computes wrongly.");
  app->add_option("--device", options->device,
                  "This device only: auto, cpu, cuda, cuda:N or simt [all present]")
      ->group("What")
      ->type_name("NAME");
  app->add_flag("--no-check", options->no_check, "Show versions and devices only")->group("What");
  app->add_option("--threads", options->threads, "Processor threads [all]")
      ->check(CLI::Range(1, 4096))
      ->group("General")
      ->type_name("T");
  app->footer("Example:\n  vesal doctor --device cpu");
  return {app, [options] { return run(*options); }};
}

}  // namespace vesal::apps
