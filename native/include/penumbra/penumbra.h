/* Penumbra's C ABI: the one header that bindings are made from.

   Every operation takes a context and one struct of parameters whose first member is its own size in bytes, checks every
   pointer, shape, stride, dtype and value before a kernel sees it, and returns a pnb_status. No exception crosses this
   boundary and nothing here ends the process. Operations are enqueued on params->stream (CUDA) or run at once (CPU, where
   stream is NULL). Operands that change from step to step lie on the device, so that a captured graph reads them anew. */
#ifndef PENUMBRA_PENUMBRA_H
#define PENUMBRA_PENUMBRA_H

#include "penumbra/attention.h"
#include "penumbra/blocks.h"
#include "penumbra/context.h"
#include "penumbra/embedding.h"
#include "penumbra/gemm.h"
#include "penumbra/lora.h"
#include "penumbra/loss.h"
#include "penumbra/memory.h"
#include "penumbra/norm.h"
#include "penumbra/optimizer.h"
#include "penumbra/sparse.h"
#include "penumbra/status.h"
#include "penumbra/tensor.h"

#endif
