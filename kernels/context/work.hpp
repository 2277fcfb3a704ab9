// What a call has to do at least, whatever the implementation: for rates and rooflines in benchmarks.
#pragma once

namespace vesal::kernels {

struct Work {
  double flops = 0;  // multiplications and additions of its products; 0 for ops that only stream memory
  double bytes = 0;  // every input read once, every output written once
};

}  // namespace vesal::kernels
