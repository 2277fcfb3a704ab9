// The determinism switch: on unless a user turns it off. While it is on, the same seed gives the same bits on the same
// build, processor type and thread count; an implementation may choose a faster, order-dependent way only when off.
#pragma once

namespace vesal {

bool deterministic();
void set_deterministic(bool on);

}  // namespace vesal
