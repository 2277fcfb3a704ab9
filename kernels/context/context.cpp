// This family holds no arithmetic: it is what the others share (context.hpp, dispatch.hpp).
#include "kernels/context/context.hpp"
