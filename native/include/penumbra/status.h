/* Status codes and error texts of the C ABI. */
#ifndef PENUMBRA_STATUS_H
#define PENUMBRA_STATUS_H

#include <stdint.h>

#if defined(_WIN32)
#define PNB_API
#else
#define PNB_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* What an operation returns. Anything but PNB_OK leaves the details in pnb_last_error(). */
typedef int32_t pnb_status;

enum {
  PNB_OK = 0,
  PNB_ERROR_INVALID_ARGUMENT = 1, /* a pointer, shape, stride, dtype or value is wrong */
  PNB_ERROR_UNSUPPORTED = 2,      /* valid, but this backend does not compute it */
  PNB_ERROR_OUT_OF_MEMORY = 3,    /* host or device memory is exhausted */
  PNB_ERROR_UNAVAILABLE = 4,      /* no such device, or its library cannot be loaded */
  PNB_ERROR_DEVICE = 5,           /* the device failed: a lost device, a kernel fault */
  PNB_ERROR_INTERNAL = 6          /* a defect of this library */
};

/* Text of this thread's latest failure: what was expected, what was found, in which argument.
   Never NULL; valid until this thread's next call of the library. */
PNB_API const char* pnb_last_error(void);

/* Version of the library, "major.minor.patch"; equal to the version of the jar it travels in. */
PNB_API const char* pnb_version(void);

#ifdef __cplusplus
}
#endif

#endif
