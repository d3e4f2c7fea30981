// The C interface of the sum and delta rules under gates, as rules.cpp.
#include "passes.h"

extern "C" {
int fwlight_gated_forward(const Index* arguments) { return call<Forward<FW_REAL, true>>(arguments); }
int fwlight_gated_backward(const Index* arguments) {
  return call<Backward<FW_REAL, true>>(arguments);
}
}
