// How every function of this folder reports a failure: null, or the reason as a text that kdlab_free releases. No C++
// exception leaves it.
#pragma once

#include <c10/util/Exception.h>

#include <cstring>
#include <exception>

namespace {

template <class Work> char* guarded(Work work) noexcept {
  try {
    work();
    return nullptr;
  } catch (const c10::Error& e) {
    return strdup(e.what_without_backtrace());
  } catch (const std::exception& e) {
    return strdup(e.what());
  } catch (...) {
    return strdup("an exception of unknown type");
  }
}

} // namespace
