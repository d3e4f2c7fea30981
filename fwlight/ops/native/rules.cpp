// The C interface. FW_REAL, float or double, is given by the compiler's command line.
#include "dpfp.h"
#include "dropout.h"
#include "passes.h"
#include "read.h"
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
int fwlight_dropout(const Index* arguments) {
  return guarded([&] { Dropout<FW_REAL>{Arguments(arguments)}.run(); });
}
}
