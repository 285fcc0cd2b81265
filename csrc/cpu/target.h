// Sets the target instruction set for the functions between the two macros.
#pragma once

#define FCOS_PRAGMA(text) _Pragma(#text)
#if defined(__clang__)
#define FCOS_TARGET_BEGIN(isa) \
  FCOS_PRAGMA(clang attribute push(__attribute__((target(isa))), apply_to = function))
#define FCOS_TARGET_END _Pragma("clang attribute pop")
#else
#define FCOS_TARGET_BEGIN(isa) _Pragma("GCC push_options") FCOS_PRAGMA(GCC target(isa))
#define FCOS_TARGET_END _Pragma("GCC pop_options")
#endif
