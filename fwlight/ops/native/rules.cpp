// The C interface. FW_REAL, float or double, is given by the compiler's command line.
#include "activations.h"
#include "cross_entropy.h"
#include "dpfp.h"
#include "dropout.h"
#include "l2_norm.h"
#include "passes.h"
#include "read.h"
#include "rms_norm.h"
#include "rotary.h"
#include "short_conv.h"
#include "sum_norm.h"

extern "C" {
int fwlight_forward(const Index* arguments) { return call<Forward<FW_REAL, UNGATED>>(arguments); }
int fwlight_backward(const Index* arguments) { return call<Backward<FW_REAL, UNGATED>>(arguments); }
int fwlight_dpfp(const Index* arguments) {
  return guarded([&] { Dpfp<FW_REAL>{Arguments(arguments)}.run(); });
}
int fwlight_sum_norm(const Index* arguments) {
  return guarded([&] { SumNorm<FW_REAL>{Arguments(arguments)}.run(); });
}
int fwlight_read(const Index* arguments) {
  return guarded([&] { Read<FW_REAL>{Arguments(arguments)}.run(); });
}
int fwlight_l2_norm(const Index* arguments) {
  return guarded([&] { L2Norm<FW_REAL>{Arguments(arguments)}.run(); });
}
int fwlight_rms_norm(const Index* arguments) {
  return guarded([&] { RmsNorm<FW_REAL>{Arguments(arguments)}.run(); });
}
int fwlight_rotary(const Index* arguments) {
  return guarded([&] { Rotary<FW_REAL>{Arguments(arguments)}.run(); });
}
int fwlight_short_conv(const Index* arguments) {
  return guarded([&] { ShortConv<FW_REAL>{Arguments(arguments)}.run(); });
}
int fwlight_cross_entropy(const Index* arguments) {
  return !CrossEntropy<FW_REAL>{Arguments(arguments)}.run();
}
int fwlight_activation(const Index* arguments) {
  return guarded([&] { Activation<FW_REAL>{Arguments(arguments)}.run(); });
}
int fwlight_dropout(const Index* arguments) {
  return guarded([&] { Dropout<FW_REAL>{Arguments(arguments)}.run(); });
}
}
