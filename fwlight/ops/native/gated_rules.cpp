// The C interface of the sum and delta rules under gates, decays being those of tokens.
#include "passes.h"

extern "C" {
int fwlight_gated_forward(const Index* arguments) { return call<Forward<FW_REAL, BY_TOKEN>>(arguments); }
int fwlight_gated_backward(const Index* arguments) {
  return call<Backward<FW_REAL, BY_TOKEN>>(arguments);
}
}
