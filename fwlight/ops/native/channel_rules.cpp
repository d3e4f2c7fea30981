// The same of decays by key channels.
#include "passes.h"

extern "C" {
int fwlight_channel_forward(const Index* arguments) {
  return call<Forward<FW_REAL, BY_CHANNEL>>(arguments);
}
int fwlight_channel_backward(const Index* arguments) {
  return call<Backward<FW_REAL, BY_CHANNEL>>(arguments);
}
}
