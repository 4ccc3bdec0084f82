/* A context: one device, and what its backend keeps between calls. */
#ifndef PENUMBRA_CONTEXT_H
#define PENUMBRA_CONTEXT_H

#include "penumbra/status.h"
#include "penumbra/tensor.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct pnb_context pnb_context;

enum { PNB_DEVICE_CPU = 0, PNB_DEVICE_CUDA = 1 };

typedef struct pnb_context_params {
  uint32_t struct_size;
  int32_t device;        /* PNB_DEVICE_* */
  int32_t ordinal;       /* index of the device; 0 for the CPU */
  int32_t threads;       /* CPU threads an operation may use; 0: as many as there are processors */
  int32_t deterministic; /* not 0: equal inputs and equal threads give equal bits */
  int32_t reserved;
} pnb_context_params;

/* Creates a context. A context is used by one thread at a time. PNB_ERROR_UNAVAILABLE says why a device cannot be used. */
PNB_API pnb_status pnb_context_create(const pnb_context_params* params, pnb_context** context);

/* Destroys a context; NULL is allowed. Weights made with it must have been destroyed before. */
PNB_API void pnb_context_destroy(pnb_context* context);

/* One line on what the context computes with: processor, instruction set, threads, library versions.
   Valid as long as the context. */
PNB_API pnb_status pnb_context_describe(pnb_context* context, const char** text);

/* Bytes that the context itself holds now, beside all memory it was given: primitive scratchpads, handles. */
PNB_API pnb_status pnb_context_memory(pnb_context* context, uint64_t* bytes);

#ifdef __cplusplus
}
#endif

#endif
