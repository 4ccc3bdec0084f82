// Compiles a function once for each instruction set and picks one when the library is loaded.
// The body must be plain loops: OpenMP regions are outlined before cloning and would keep the baseline.
#pragma once

#if defined(__SANITIZE_ADDRESS__)
#define PNB_MULTIVERSION  // resolvers run before the sanitizer's runtime is there
#else
#define PNB_MULTIVERSION __attribute__((target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")))
#endif
